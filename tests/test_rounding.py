"""Choosing levels and grids of weights: rows and moments against onnxruntime, each method against a slow reference."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qconvert.recover.rows
from qconvert.graph import constant, operand, operators, serialize
from qconvert.numerics import QUANT_TYPES, QuantParams, along, dequantize, fake_quantize, params_from_range, quantize
from qconvert.plan import Plan
from qconvert.plan.weight_only import make_weight_plan
from qconvert.prepare import prepare, raise_opset
from qconvert.recover.adaquant import AdaQuant
from qconvert.recover.adaround import AdaRound
from qconvert.recover.clip import Clipping
from qconvert.recover.descent import descend
from qconvert.recover.gptq import Gptq, gptq
from qconvert.recover.grids import shares
from qconvert.recover.hqq import Hqq
from qconvert.recover.lowrank import LowRank, factors
from qconvert.recover.moments import DAMPING, Moments, loss, moments
from qconvert.recover.rounding import Rounding, better
from qconvert.recover.rows import Floats, Rows
from qconvert.recover.types import Context, Step, Work
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.rewrite.weight_forms import needed_opset as stored_opset
from qconvert.rewrite.weight_forms import readings
from qconvert.rewrite.weight_only import to_weight_only
from qconvert.rounding_kernels import relax
from qconvert.session import Feeds, open_session, run
from tests.models import RUNTIME, i64, model, planned, policy, weight

Array = npt.NDArray[Any]
METHODS: Sequence[Rounding] = (Gptq(), AdaRound(steps=300), AdaQuant(steps=100), Clipping())
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


# rows: every operator is a product of a weight and columns


@dataclass(frozen=True)
class Case:
    """An operator that reads ``x`` and a weight."""

    op: str
    weight: tuple[int, ...]
    x: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


CONV, TRANSPOSED = (8, 4, 3, 3), (4, 5, 3, 3)
IMAGE = (2, 4, 9, 8)
CASES = {
    "conv": Case("Conv", CONV, IMAGE),
    "padded": Case("Conv", CONV, IMAGE, {"pads": [1, 2, 0, 1]}),
    "strided": Case("Conv", CONV, IMAGE, {"strides": [2, 3], "dilations": [2, 1], "pads": [1, 1, 1, 1]}),
    "upper": Case("Conv", CONV, IMAGE, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "lower": Case("Conv", CONV, IMAGE, {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "valid": Case("Conv", CONV, IMAGE, {"auto_pad": "VALID"}),
    "grouped": Case("Conv", (8, 2, 3, 3), IMAGE, {"group": 2}),
    "depthwise": Case("Conv", (8, 1, 3, 3), IMAGE, {"group": 4, "pads": [1, 1, 1, 1]}),
    "pointwise": Case("Conv", (8, 4, 1, 1), IMAGE, {"strides": [2, 2]}),
    "one axis": Case("Conv", (6, 4, 3), (2, 4, 9), {"strides": [2]}),
    "three axes": Case("Conv", (6, 4, 2, 3, 1), (2, 4, 4, 5, 3), {"strides": [2, 1, 1]}),
    "transpose": Case("ConvTranspose", TRANSPOSED, IMAGE),
    "transpose strided": Case("ConvTranspose", TRANSPOSED, IMAGE, {"strides": [2, 3], "pads": [1, 0, 1, 2]}),
    "transpose dilated": Case("ConvTranspose", TRANSPOSED, IMAGE, {"dilations": [2, 1], "strides": [2, 2]}),
    "transpose grouped": Case("ConvTranspose", TRANSPOSED, IMAGE, {"group": 2, "pads": [1, 1, 1, 1]}),
    "transpose upper": Case("ConvTranspose", TRANSPOSED, IMAGE, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "transpose lower": Case("ConvTranspose", TRANSPOSED, IMAGE, {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "gemm": Case("Gemm", (10, 7), (6, 10)),
    "gemm b": Case("Gemm", (7, 10), (6, 10), {"transB": 1}),
    "gemm a": Case("Gemm", (10, 7), (10, 6), {"transA": 1}),
    "matmul": Case("MatMul", (10, 7), (2, 3, 10)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def rows_of(case: Case) -> Rows:
    return Rows(case.op, case.weight, dict(case.attributes))


def text(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def computed(case: Case, x: Array, w: Array) -> Array:
    """By onnxruntime; channels first, positions in the order of samples."""
    given_ = ", ".join(f"{key} = {text(value)}" for key, value in case.attributes.items())
    shapes = ",".join(map(str, case.x))
    graph = model(
        f"y = {case.op} {f'<{given_}>' if given_ else ''} (x, w)", inputs=f"float[{shapes}] x", weights={"w": w}
    )
    y: Array = run(open_session(graph, optimize=False), {"x": x})[0]
    return np.moveaxis(y, 1 if "Conv" in case.op else -1, 0).reshape(y.shape[1 if "Conv" in case.op else -1], -1)


def multiplied(rows: Rows, x: Array, w: Array) -> Array:
    """Rows times columns, in the order of channels and samples."""
    found = [rows.split(w) @ columns for columns in rows.columns(x)]
    whole = np.concatenate(found, 2)
    return whole.reshape(-1, whole.shape[2])


@every_case
def test_an_operator_is_rows_times_columns(case: Case) -> None:
    x, w = normal(*case.x), normal(*case.weight)
    got = multiplied(rows_of(case), x, w)
    want = computed(case, x, w)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=1e-4)


@every_case
def test_columns_in_small_parts_are_the_same_columns(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, x = rows_of(case), normal(*case.x)
    w = rows.split(normal(*case.weight)).astype(np.float64)
    whole = moments(rows, [(x, x)], w)
    monkeypatch.setattr(qconvert.recover.rows, "COLUMNS", 50)
    parts = moments(rows, [(x, x)], w)
    assert parts.columns == whole.columns
    np.testing.assert_allclose(parts.gram, whole.gram, rtol=1e-5, atol=1e-4)


@every_case
def test_join_undoes_split(case: Case) -> None:
    w, rows = normal(*case.weight), rows_of(case)
    np.testing.assert_array_equal(rows.join(rows.split(w)), w)
    assert rows.split(w).shape == rows.size


def params_of(
    w: Array, dtype: str, axis: int | None, block: int | None = None, *, symmetric: bool = True
) -> QuantParams:
    if axis is None:
        ends = w.min(), w.max()
    elif block is None:
        other = tuple(d for d in range(w.ndim) if d != axis)
        ends = w.min(other), w.max(other)
    else:
        starts = range(0, w.shape[axis], block)
        ends = np.minimum.reduceat(w, starts, axis), np.maximum.reduceat(w, starts, axis)
    return params_from_range(*ends, QUANT_TYPES[dtype], symmetric=symmetric, axis=axis, block_size=block)


GRANULARITIES: Mapping[str, tuple[str, int | None, int | None]] = {
    "per tensor": ("conv", None, None),
    "per channel": ("conv", 0, None),
    "depthwise": ("depthwise", 0, None),
    "transpose": ("transpose grouped", 1, None),
    "matmul": ("matmul", 1, None),
    "per group": ("matmul", 0, 4),
    "gemm groups": ("gemm b", 1, 4),
}


@pytest.mark.parametrize("dtype", ["int2", "int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_lattice_is_the_grid_and_levels_survive_exactly(dtype: str, granularity: str) -> None:
    name, axis, block = GRANULARITIES[granularity]
    case = CASES[name]
    w, rows = normal(*case.weight), rows_of(case)
    params = params_of(w, dtype, axis, block, symmetric=dtype.startswith("int"))
    lattice = rows.lattice(params)
    nearest = lattice.nearest(rows.split(w).astype(np.float64))
    np.testing.assert_array_equal(rows.rounded(nearest, params), fake_quantize(w, params))
    drawn = (
        np.random.default_rng(1).integers(lattice.first.astype(int), lattice.last.astype(int) + 1).astype(np.float64)
    )
    written = rows.rounded(drawn, params)
    np.testing.assert_array_equal(
        quantize(written, params), quantize(dequantize(quantize(written, params), params), params)
    )
    zero = np.broadcast_to(along(params.zero_point, params, w.shape), w.shape)
    np.testing.assert_array_equal(rows.split(quantize(written, params) - zero), drawn)


def test_grids_with_negative_scales_keep_their_levels_too() -> None:
    params = replace(params_of(normal(10, 7), "int4", 1), scale=-params_of(normal(10, 7), "int4", 1).scale)
    rows = rows_of(CASES["matmul"])
    drawn = np.random.default_rng(0).integers(-8, 8, rows.size).astype(np.float64)
    np.testing.assert_array_equal(rows.split(quantize(rows.rounded(drawn, params), params)), drawn)


# moments: the error of a layer without its samples


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_the_error_of_any_weight_is_that_of_its_distance_to_the_target(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = Rows("MatMul", (5, 3))
    x = rng.standard_normal((40, 5)).astype(np.float32)
    z = (x + 0.3 * rng.standard_normal((40, 5))).astype(np.float32)
    w, v, u = (rng.standard_normal((1, 3, 5)) for _ in range(3))
    seen = replace(moments(rows, [(x[:25], z[:25]), (x[25:], z[25:])], w), doubt=DAMPING)
    gram, cross = seen.gram, seen.cross
    target = np.linalg.solve(gram, (w @ cross).swapaxes(1, 2)).swapaxes(1, 2)

    def real(chosen: Floats) -> Floats:
        return np.asarray(np.square(w[0] @ x.T.astype(np.float64) - chosen[0] @ z.T.astype(np.float64)).sum(1))

    difference = loss(target - v, gram)[0] - loss(target - u, gram)[0]
    np.testing.assert_allclose(difference, real(v) - real(u), rtol=1e-3, atol=1e-3)
    assert seen.error(w, v) - seen.error(w, u) == pytest.approx((real(v) - real(u)).sum(), rel=1e-3, abs=1e-3)
    damped = seen.target(w)
    assert np.abs(damped - target).max() < 0.1 * np.abs(target).max()


def test_moments_add_up() -> None:
    rows, x, z = rows_of(CASES["padded"]), normal(*IMAGE), normal(*IMAGE, seed=1)
    w = normal(1, 8, 36).astype(np.float64)
    one, other = moments(rows, [(x, z)], w), moments(rows, [(z, x)], w)
    both = moments(rows, [(x, z), (z, x)], w)
    np.testing.assert_allclose((one + other).gram, both.gram, rtol=1e-6)
    np.testing.assert_allclose((one + other).cross, both.cross, rtol=1e-6, atol=1e-3)
    assert (one + other).columns == both.columns


def chance(samples: int, *, seed: int = 0) -> Moments:
    """Of 40 inputs that a quantized model has added noise to, each sample one column."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, 1, 40)).astype(np.float32)
    z = x + 0.3 * rng.standard_normal(x.shape).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((1, 6, 40))
    return moments(Rows("MatMul", (40, 6)), list(zip(x, z, strict=True)), w)


def test_few_samples_are_trusted_less_and_do_better_for_it() -> None:
    """One target from 30 samples, judged on 4000 others."""
    few, many, w = chance(30), chance(4000, seed=2), np.random.default_rng(1).standard_normal((1, 6, 40))
    assert few.doubt > DAMPING
    assert few.doubt > 3 * many.doubt
    bold = replace(few, doubt=DAMPING)
    assert many.error(w, few.target(w)) < many.error(w, bold.target(w))
    lost = [many.error(w, one.target(w)) - many.error(w, many.target(w)) for one in (few, bold)]
    assert lost[0] < 0.7 * lost[1]


def test_random_inputs_are_trusted_no_more_than_is_said() -> None:
    rows, w = Rows("MatMul", (5, 3)), normal(1, 3, 5).astype(np.float64)
    pairs = [(normal(9, 5, seed=seed), normal(9, 5, seed=seed)) for seed in range(4)]
    seen = moments(rows, pairs, w, damping=3.0)
    assert seen.damping == 3.0
    assert seen.doubt >= 3.0


def test_inputs_that_do_not_differ_leave_the_weight_as_it_is() -> None:
    rows, x, w = rows_of(CASES["conv"]), normal(*IMAGE), normal(1, 8, 36).astype(np.float64)
    seen = moments(rows, [(x, x), (x, x)], w)
    assert seen.cross is seen.gram
    assert seen.doubt == DAMPING
    assert seen.target(w) is w


def test_moments_about_the_mean_leave_a_constant_input_out() -> None:
    rows, w = Rows("MatMul", (5, 3)), normal(1, 3, 5).astype(np.float64)
    x, z = normal(40, 5), normal(40, 5, seed=1)
    seen = moments(rows, [(x, z)], w, centred=True)
    moved = moments(rows, [(x + np.float32(3), z - np.float32(2))], w, centred=True)
    np.testing.assert_allclose(seen.gram, moved.gram, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(seen.cross, moved.cross, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(seen.gram[0], 40 * np.cov(z.T, bias=True), rtol=1e-4, atol=1e-4)


def test_means_that_are_large_beside_what_varies_leave_it_as_it_is() -> None:
    rows, w = Rows("MatMul", (6, 4)), normal(1, 4, 6).astype(np.float64)
    varies = 1e-3 * normal(60, 6) @ normal(6, 6, seed=1)
    x, z = (np.asarray(varies + np.arange(6) + shift, np.float32).reshape(6, 10, 6) for shift in (0, 1))
    samples = list(zip(x, z, strict=True))
    seen = moments(rows, samples, w, centred=True)
    read = np.concatenate([z for _, z in samples[::2]]).astype(np.float64)
    other = np.concatenate([z for _, z in samples[1::2]]).astype(np.float64)
    expected = 30 * (np.cov(read.T, bias=True) + np.cov(other.T, bias=True))
    np.testing.assert_allclose(seen.gram[0], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert (np.linalg.eigvalsh(seen.damped) > 0).all()
    params = params_of(normal(6, 4), "int4", 1)
    for method in METHODS:
        assert np.isfinite(method.choose(w, rows, params, seen)[0]).all()


def test_inputs_too_large_to_be_squared_are_said() -> None:
    rows, w, x = Rows("MatMul", (6, 4)), normal(1, 4, 6).astype(np.float64), normal(10, 6)
    large = np.float32(1e30) * x
    assert moments(rows, [(x, x), (large, large)], w).unusable == "whose inputs are too large to be squared"
    assert moments(rows, [(x, x), (large, large)], w, centred=True).unusable
    assert not moments(rows, [(x, x)], w).unusable


def test_an_input_that_is_always_zero_breaks_nothing() -> None:
    x = normal(50, 6)
    x[:, 2] = 0
    rows, w = Rows("MatMul", (6, 4)), normal(1, 4, 6).astype(np.float64)
    seen = moments(rows, [(x, x + np.float32(0))], w)
    lattice = rows.lattice(params_of(normal(6, 4), "int4", 1))
    for method in METHODS:
        levels, _ = method.choose(w, rows, params_of(normal(6, 4), "int4", 1), seen)
        assert np.isfinite(levels).all()
        assert (levels >= lattice.first).all()
        assert (levels <= lattice.last).all()


# the methods on arrays


@dataclass(frozen=True)
class Problem:
    """A layer with correlated inputs, on which rounding each weight by itself is far from the best."""

    weight: Floats
    rows: Rows
    params: QuantParams
    seen: Moments

    def error(self, levels: Floats, params: QuantParams | None = None) -> float:
        real = self.rows.lattice(params or self.params).reals(levels)
        return float(loss(real - self.seen.target(self.weight), self.seen.damped).sum())

    @property
    def nearest(self) -> Floats:
        return self.rows.lattice(self.params).nearest(self.weight)


def problem(inputs: int, outputs: int, *, dtype: str = "int4", block: int | None = None, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((400, 3)) @ rng.standard_normal((3, inputs)) + 0.1 * rng.standard_normal((400, inputs))
    x = mixed.astype(np.float32)
    z = (x + 0.05 * rng.standard_normal(x.shape)).astype(np.float32)
    rows, w = Rows("MatMul", (inputs, outputs)), rng.standard_normal((inputs, outputs)).astype(np.float32)
    params, split = params_of(w, dtype, 0 if block else 1, block), rows.split(w).astype(np.float64)
    return Problem(split, rows, params, moments(rows, [(x, z)], split))


def by_elimination(given_: Problem) -> Floats:
    """GPTQ by its definition: round one input, then the others change so that they make good as much as they can."""
    gram, rest = given_.seen.damped[0], given_.seen.target(given_.weight)[0].copy()
    lattice, levels = given_.rows.lattice(given_.params), np.zeros_like(rest)
    todo = list(np.argsort(-np.diag(gram), kind="stable"))
    while todo:
        i = todo.pop(0)
        scale = lattice.scale[0, :, i]
        levels[:, i] = np.clip(np.rint(rest[:, i] / scale), lattice.first[0, :, i], lattice.last[0, :, i])
        if todo:
            error = rest[:, i] - scale * levels[:, i]
            rest[:, todo] += np.linalg.solve(gram[np.ix_(todo, todo)], np.outer(gram[todo, i], error)).T
    return np.asarray(levels[None])


@pytest.mark.parametrize("block", [None, 5])
@pytest.mark.parametrize("inputs", [12, 150])
def test_gptq_is_the_elimination_that_defines_it(inputs: int, block: int | None) -> None:
    """150 inputs take two blocks of columns."""
    one = problem(inputs, 4, block=block)
    got = gptq(one.weight, one.rows.lattice(one.params), one.seen)
    want = by_elimination(one)
    assert (got == want).mean() > 0.99
    assert one.error(got) == pytest.approx(one.error(want), rel=0.02)
    assert one.error(got) < 0.3 * one.error(one.nearest)


def best_of_all(one: Problem) -> float:
    """The least error of all ways to round up or down."""
    lattice, target = one.rows.lattice(one.params), one.seen.target(one.weight)
    lower = np.clip(np.floor(target / lattice.scale), lattice.first, lattice.last)
    ways = np.array(list(itertools.product((0, 1), repeat=lower.shape[2])))
    total = 0.0
    for o in range(lower.shape[1]):
        levels = np.minimum(lower[0, o] + ways, lattice.last[0, o])
        errors = lattice.scale[0, o] * levels - target[0, o]
        total += float(np.einsum("wk,kl,wl->w", errors, one.seen.damped[0], errors).min())
    return total


def test_descent_ends_where_no_single_level_can_be_better() -> None:
    one = problem(140, 3)
    lattice, target, gram = one.rows.lattice(one.params), one.seen.target(one.weight), one.seen.damped
    found = descend(one.nearest, target, lattice, gram, sweeps=100)
    least = loss(lattice.reals(found) - target, gram)
    assert least.sum() < 0.5 * one.error(one.nearest)
    for k, change in itertools.product(range(140), (-1, 1)):
        other = found.copy()
        other[:, :, k] = np.clip(other[:, :, k] + change, lattice.first[:, :, k], lattice.last[:, :, k])
        assert (loss(lattice.reals(other) - target, gram) >= least * (1 - 1e-9)).all()


def test_adaround_comes_near_the_best_of_all_roundings() -> None:
    """On small random problems; what nearest rounding and AdaRound lose to the best is a matter of chance in each."""
    problems = [problem(9, 6, seed=seed) for seed in range(4)]
    best = np.array([best_of_all(one) for one in problems])
    found = np.array([one.error(AdaRound().choose(one.weight, one.rows, one.params, one.seen)[0]) for one in problems])
    assert (found >= best * (1 - 1e-9)).all()
    nearest = np.array([one.error(one.nearest) for one in problems])
    assert np.mean(found / best) < 0.4 * np.mean(nearest / best)
    assert np.median(found / best) < 3


def test_a_step_of_adaround_is_what_plain_numpy_computes() -> None:
    rng = np.random.default_rng(0)
    n = 1000
    v, mean, square = 3 * rng.standard_normal(n), rng.standard_normal(n), rng.random(n)
    scale, below, slope = rng.random(n), rng.standard_normal(n), rng.standard_normal(n)
    room, pull, power, rate, unbias = (rng.random(n) < 0.9).astype(float), 0.7, 5.0, 0.1, (2.0, 3.0)
    state = np.array([v, 1 / (1 + np.exp(-v)), mean, square, np.zeros(n)], np.float32)
    fixed = np.array([scale, below, room], np.float32)
    relax(state, fixed, slope.astype(np.float32), np.array([pull, power, rate, *unbias], np.float32))
    soft = 1 / (1 + np.exp(-v))
    h = 1.2 * soft - 0.1
    gradient = slope * scale - pull * power * 2 * np.abs(2 * h - 1) ** (power - 1) * np.sign(2 * h - 1)
    gradient *= 1.2 * soft * (1 - soft) * ((h > 0) & (h < 1)) * (room > 0)
    mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
    v -= rate * mean * unbias[0] / np.sqrt(square * unbias[1])
    want = scale * room * np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1) + below
    np.testing.assert_allclose(state[0], v, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(state[4], want, rtol=1e-3, atol=1e-3)


@every_method
@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("dtype", ["int2", "int4", "uint4", "int8"])
def test_no_method_does_worse_than_nearest_rounding(method: Rounding, dtype: str, block: int | None) -> None:
    one = problem(24, 8, dtype=dtype, block=block)
    plain = one.nearest, one.params
    found = method.choose(one.weight, one.rows, one.params, one.seen)
    levels, params = better(one.weight, one.rows, one.seen, plain, found)
    lattice = one.rows.lattice(params)
    np.testing.assert_array_equal(levels, np.clip(np.rint(levels), lattice.first, lattice.last))
    assert one.error(levels, params) <= one.error(one.nearest) * (1 + 1e-9)
    assert params.scale.shape == one.params.scale.shape


@every_method
def test_what_lies_on_the_grid_stays_there(method: Rounding) -> None:
    one = problem(20, 6)
    exact = replace(one, weight=one.rows.lattice(one.params).reals(one.nearest))
    exact = replace(exact, seen=replace(one.seen, cross=one.seen.gram))
    levels, params = method.choose(exact.weight, exact.rows, exact.params, exact.seen)
    np.testing.assert_array_equal(levels, one.nearest)
    np.testing.assert_allclose(params.scale, one.params.scale, rtol=1e-6)


def test_adaquant_finds_the_scale_that_weights_were_made_with() -> None:
    one = problem(30, 5)
    made = replace(one, weight=0.97 * one.rows.lattice(one.params).reals(one.nearest))
    levels, params = AdaQuant(steps=2000).choose(made.weight, made.rows, made.params, made.seen)
    assert made.error(levels, params) < 0.2 * made.error(one.rows.lattice(one.params).nearest(made.weight))
    assert np.median(params.scale / one.params.scale) == pytest.approx(0.97, abs=0.01)


def test_clipping_gives_up_a_weight_that_nothing_is_multiplied_with() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 8)).astype(np.float32)
    x[:, 3] = 1e-6
    w = 0.1 * rng.standard_normal((8, 2)).astype(np.float32)
    w[3] = 0.4
    rows, params = Rows("MatMul", (8, 2)), params_of(w, "int4", 1)
    seen = moments(rows, [(x, x)], rows.split(w).astype(np.float64))
    _, found = Clipping().choose(rows.split(w).astype(np.float64), rows, params, seen)
    assert (found.scale < 0.65 * params.scale).all()


@pytest.mark.parametrize(("axis", "block"), [(None, None), (1, None), (0, 4)])
def test_clipping_of_a_group_judges_that_group_alone(axis: int | None, block: int | None) -> None:
    one = problem(12, 3, block=block)
    w = one.rows.join(one.weight).astype(np.float32)
    params = params_of(w, "int4", axis, block)
    levels, found = Clipping().choose(one.weight, one.rows, params, one.seen)
    known, gram = shares(one.rows, params), one.seen.damped[0]
    target = one.seen.target(one.weight)[0]

    def errors(chosen: QuantParams) -> Floats:
        lattice, total = one.rows.lattice(chosen), np.zeros(known.count)
        error = lattice.reals(lattice.nearest(one.weight))[0] - target
        for number in range(known.count):
            for row in range(3):
                part = np.where(known.index[0, row] == number, error[row], 0.0)
                total[number] += part @ gram @ part
        return total

    tried = np.array(
        [errors(replace(params, scale=(params.scale * s).astype(np.float32))) for s in np.linspace(0.5, 1.25, 30)]
    )
    np.testing.assert_allclose(errors(found), np.minimum(tried.min(0), errors(params)), rtol=1e-6)
    np.testing.assert_array_equal(levels, one.rows.lattice(found).nearest(one.weight))


# hqq


def norms(w: Array, params: QuantParams, power: float) -> Floats:
    """``sum |w - w~|^p`` by column."""
    return np.asarray((np.abs(w - fake_quantize(w, params)).astype(np.float64) ** power).sum(0))


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2"])
def test_hqq_lowers_the_norm_of_every_channel(dtype: str) -> None:
    w = np.random.default_rng(0).standard_t(3, (64, 20)).astype(np.float32)
    params = params_of(w, dtype, 1, symmetric=dtype.startswith("int"))
    found = Hqq().grid(w.astype(np.float64), params)
    before, after = norms(w, params, 0.7), norms(w, found, 0.7)
    assert (after <= before * (1 + 1e-4)).all()
    assert after.sum() < 0.98 * before.sum()
    assert (found.zero_point == np.clip(found.zero_point, params.qmin, params.qmax)).all()
    assert dtype != "int4" or not found.zero_point.any()


# the methods on models

OPSET = 21
NET = """
h = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
r = Relu (h)
d = Conv <group = 8, pads = [1, 1, 1, 1]> (r, w2)
u = ConvTranspose <strides = [2, 2]> (d, w3, b3)
p = GlobalAveragePool (u)
f = Flatten (p)
y = Gemm <transB = 1> (f, w4, b4)
"""
WEIGHTS = {
    "w1": weight(8, 3, 3, 3),
    "b1": normal(8),
    "w2": weight(8, 1, 3, 3),
    "w3": weight(8, 6, 2, 2),
    "b3": normal(6),
    "w4": weight(5, 6),
    "b4": normal(5),
}
SHARED_NET = """
a = MatMul (x, w)
b = Relu (a)
c = MatMul (b, w)
e = Gather <axis = 0> (table, i)
s = Add (c, e)
y = MatMul (s, v)
"""


def net() -> tuple[ir.Model, list[Feeds]]:
    graph = model(NET, weights=WEIGHTS, opset=OPSET)
    samples: list[Feeds] = [{"x": normal(1, 3, 8, 8, seed=seed)} for seed in range(8)]
    prepare(graph, samples[:1])
    return graph, samples


def static_work(scheme: str, dtype: str) -> tuple[Work, Context]:
    graph, samples = net()
    wanted = policy(f"defaults:\n  weights: {{dtype: {dtype}, scheme: {scheme}, calibrator: mse}}\n")
    plan = planned(graph, [dict(sample) for sample in samples], wanted)
    return Work(graph, graph, plan), Context(samples)


def weights_of(graph: ir.Model, plan: Plan) -> dict[str, Array]:
    nodes = {op.name: op for op in operators(graph)}
    found = {}
    for entry in plan.of("weight"):
        array = constant(operand(nodes[entry.sites[0].operator].node, entry.sites[0].operand))
        found[entry.sites[0].operator] = np.asarray(array, np.float32)
    return found


def sqnr(work: Work, context: Context) -> float:
    """Of the written model's output, dB."""
    graph = work.graph.clone()
    raise_opset(graph, needed_opset(work.plan))
    sessions = open_session(work.reference), open_session(to_qdq(graph, work.plan), optimize=False)
    before, after = (np.concatenate([run(one, probe)[0] for probe in context.probes]) for one in sessions)
    return float(10 * np.log10(np.square(before).sum() / np.square(before - after).sum()))


@every_method
@pytest.mark.parametrize("scheme", ["per-tensor", "per-channel"])
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_levels_are_written_as_they_were_chosen(method: Rounding, scheme: str, dtype: str) -> None:
    work, context = static_work(scheme, dtype)
    before = serialize(work.graph)
    done = method.apply(work, context)
    assert serialize(work.graph) == before
    chosen = weights_of(done.graph, done.plan)
    written = to_qdq(done.graph.clone(), done.plan)
    stored = {value.name: tensor.numpy() for value, tensor in _constants(written)}
    for entry in done.plan.of("weight"):
        array = chosen[entry.sites[0].operator]
        np.testing.assert_array_equal(fake_quantize(array, entry.params), array)
        np.testing.assert_array_equal(
            stored[f"{entry.tensor}_quantized"].astype(np.int32), quantize(array, entry.params)
        )
    assert any((chosen[name] != array).any() for name, array in weights_of(work.graph, work.plan).items())
    assert sqnr(done, context) > sqnr(work, context) - 0.5


def _constants(graph: ir.Model) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    return [(value, value.const_value) for value in graph.graph.initializers.values() if value.const_value is not None]


@pytest.mark.parametrize("method", [Gptq(), AdaRound(steps=300)], ids=lambda method: method.name)
def test_chosen_levels_win_over_nearest_ones(method: Rounding) -> None:
    work, context = static_work("per-channel", "int4")
    assert sqnr(method.apply(work, context), context) > sqnr(work, context) + 3


def test_a_grid_that_changes_takes_its_bias_with_it() -> None:
    work, context = static_work("per-channel", "int4")
    done = Clipping().apply(work, context)
    inputs = {site.operator: entry.params for entry in done.plan.of("activation") for site in entry.sites}
    scales = {entry.sites[0].operator: entry.params.scale for entry in done.plan.of("weight")}
    assert any((entry.params.scale != scales[entry.sites[0].operator]).any() for entry in work.plan.of("weight"))
    for entry in done.plan.of("bias"):
        name = entry.sites[0].operator
        np.testing.assert_allclose(entry.params.scale, inputs[name].scale * scales[name], rtol=1e-6)


def weight_only_work(body: str, weights: Mapping[str, Array], inputs: str, text_: str) -> tuple[ir.Model, Plan]:
    graph = model(body, weights=weights, inputs=inputs, opset=OPSET)
    prepare(graph, (), fold=False)
    return graph, make_weight_plan(graph, policy(f"defaults:\n  weights: {{{text_}}}\n"))


def test_shared_weights_and_lookups_are_left_out_aloud() -> None:
    weights = {"w": weight(16, 16), "v": weight(16, 16), "table": normal(4, 16)}
    graph, plan = weight_only_work(
        SHARED_NET, weights, "float[4,16] x, int64[4] i", "dtype: int4, scheme: per-group, group_size: 16"
    )
    context = Context([{"x": normal(4, 16, seed=seed), "i": i64(0, 3, 1, 2)} for seed in range(8)])
    done = Gptq().apply(Work(graph, graph, plan), context)
    (note,) = done.notes
    assert note.startswith("gptq: 1 layers changed; ")
    assert "whose weight is shared (a, c)" in note
    assert "whose weight a Gather reads (e)" in note
    before, after = weights_of(graph, plan), weights_of(done.graph, done.plan)
    assert {name for name in before if (before[name] != after[name]).any()} == {"y"}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
@pytest.mark.parametrize("dtype", [pytest.param(2, marks=pytest.mark.skipif(RUNTIME < (1, 24), reason="2 bits")), 4, 8])
def test_packed_levels_are_those_that_were_chosen(dtype: int, target: str, symmetric: bool) -> None:
    kind = f"int{dtype}" if symmetric else f"uint{dtype}"
    text_ = f"dtype: {kind}, scheme: per-group, group_size: 16, symmetric: {str(symmetric).lower()}"
    graph = model("a = MatMul (x, w)\nb = Relu (a)\ny = MatMul (b, v)", opset=OPSET, inputs="float[6,32] x",
                  weights={"w": weight(32, 48), "v": weight(48, 10)})  # fmt: skip
    prepare(graph, (), fold=False)
    plan = make_weight_plan(graph, policy(f"defaults:\n  weights: {{{text_}}}\n", target=target))
    mixed = normal(4, 32)
    context = Context([{"x": normal(6, 4, seed=seed) @ mixed} for seed in range(20)])
    done = Gptq().apply(Work(graph, graph, plan), context)
    want = [run(open_session(done.graph, optimize=False), probe)[0] for probe in context.probes]
    copy = done.graph.clone()
    raise_opset(copy, stored_opset(readings(copy, done.plan)))
    written = open_session(to_weight_only(copy, done.plan).model, optimize=False)
    for probe, y in zip(context.probes, want, strict=True):
        np.testing.assert_allclose(run(written, probe)[0], y, rtol=1e-4, atol=1e-4)
    for entry in done.plan.of("weight"):
        array = weights_of(done.graph, done.plan)[entry.sites[0].operator]
        np.testing.assert_array_equal(fake_quantize(array, entry.params), array)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_factors_are_the_best_of_their_rank(rank: int) -> None:
    """By the eigenvectors of the weighted errors, and by chance: no other pair that is tried does better."""
    one = problem(12, 7)
    error, gram = (one.rows.lattice(one.params).reals(one.nearest) - one.weight)[0], one.seen.damped[0]
    first, second = factors(error, one.seen, rank)
    assert (first.shape, second.shape) == ((rank, 12), (7, rank))
    left = float(loss((error - second @ first)[None], gram[None]).sum())
    values = np.linalg.eigvalsh(error @ gram @ error.T)
    assert left == pytest.approx(values[: 7 - rank].sum(), rel=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = (second + 0.01 * rng.standard_normal(second.shape)) @ first
        assert float(loss((error - other)[None], gram[None]).sum()) >= left


LINEAR = """
a = MatMul (x, w)
s = Add (a, b)
r = Relu (s)
g = Gemm <alpha = 0.5, transB = 1> (r, v, c)
h = Relu (g)
t = MatMul (h, u)
y = Relu (t)
"""
LINEAR_WEIGHTS = {"w": weight(24, 32), "b": normal(32), "v": weight(20, 32), "c": normal(20), "u": weight(20, 6)}


def linear_work(*, static: bool) -> tuple[Work, Context]:
    graph = model(LINEAR, inputs="float[5,24] x", weights=LINEAR_WEIGHTS, opset=OPSET)
    mixed = normal(3, 24)
    samples: list[Feeds] = [
        {"x": normal(5, 3, seed=seed) @ mixed + 0.1 * normal(5, 24, seed=seed)} for seed in range(20)
    ]
    prepare(graph, samples[:1], fold=static)
    if static:
        wanted = policy("defaults:\n  weights: {dtype: int4, scheme: per-channel}\n")
        plan = planned(graph, [dict(sample) for sample in samples], wanted)
    else:
        scheme = "dtype: int4, scheme: per-group, group_size: 16"
        plan = make_weight_plan(graph, policy(f"defaults:\n  weights: {{{scheme}}}\n"))
    return Work(graph, graph, plan), Context(samples)


@pytest.mark.parametrize("static", [True, False])
def test_low_rank_parts_win_back_accuracy_and_are_written(static: bool) -> None:
    work, context = linear_work(static=static)
    before = serialize(work.graph)
    done = LowRank(share=1.0).apply(work, context)
    assert serialize(work.graph) == before
    (note,) = done.notes
    layers = 2 if static else 3  # a Gemm with a factor has no integer kernel
    assert note == f"lowrank-compensation: {layers} layers changed"
    added = [op for op in operators(done.graph) if "low_rank" in op.name]
    assert sorted(op.op_type for op in added) == ["Add"] * layers + ["MatMul"] * 2 * layers
    assert sqnr(done, context) > sqnr(work, context) + 1
    if static:
        for entry in done.plan.of("activation"):
            readers = {site.operator for site in entry.sites}
            assert ("a" in readers) == ("a_low_rank_down" in readers)


def test_convolutions_get_no_low_rank_parts() -> None:
    work, context = static_work("per-channel", "int4")
    (note,) = LowRank().apply(work, context).notes
    assert "2 left out, that are convolutions or lookups" in note
    assert "1 left out, that make an output of the model (y)" in note


def test_hqq_needs_no_samples_and_says_what_it_did() -> None:
    weights = {"w": weight(16, 16), "v": weight(16, 16), "table": normal(4, 16)}
    graph, plan = weight_only_work(
        SHARED_NET, weights, "float[4,16] x, int64[4] i", "dtype: int4, scheme: per-group, group_size: 16"
    )
    done = Hqq().apply(Work(graph, graph, plan), Context(()))
    assert done.notes == ("hqq: 3 layers changed",)
    assert all(entry.method == "hqq" for entry in done.plan.entries)
    static, _ = static_work("per-channel", "int4")
    found = Hqq().apply(static, Context(()))
    assert found.plan == static.plan
    assert found.notes == ("hqq: 0 layers changed; 3 left out, whose inputs are quantized, too (h, d, y)",)


def test_the_same_samples_give_the_same_bytes() -> None:
    work, context = static_work("per-channel", "int4")
    for method in (Gptq(), AdaRound(steps=50), AdaQuant(steps=20)):
        one, other = (serialize(method.apply(work, context).graph) for _ in range(2))
        assert one == other


@pytest.mark.parametrize("method", [*METHODS, Hqq(), LowRank()], ids=lambda method: method.name)
def test_methods_say_what_they_are(method: Step) -> None:
    assert method.title.endswith(tuple("abcdefghijklmnopqrstuvwxyz"))
    assert len(f"{method.name}: {method.title}") < 120


def test_means_of_outputs_are_those_of_the_float_model_after_rounding() -> None:
    work, context = static_work("per-channel", "int4")
    done = Gptq().apply(work, context)
    raised = done.graph.clone()
    raise_opset(raised, needed_opset(done.plan))
    plain = work.graph.clone()
    raise_opset(plain, needed_opset(work.plan))
    sessions = (
        open_session(work.reference),
        open_session(to_qdq(plain, work.plan), optimize=False),
        open_session(to_qdq(raised, done.plan), optimize=False),
    )
    rows = [np.concatenate([run(one, probe)[0] for probe in context.probes]) for one in sessions]
    exact, before, after = (array.mean(0) for array in rows)
    assert np.abs(after - exact).max() < 0.25 * np.abs(before - exact).max()
