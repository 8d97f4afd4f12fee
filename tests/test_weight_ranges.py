"""Ranges of weights row by row, and scales for groups: the fast code against plain numpy, and what onnxruntime runs."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert import row_kernels
from qconvert.calibrators import CALIBRATORS, FROM_STATISTICS, Calibrator, make_calibrator
from qconvert.calibrators.base import LONG
from qconvert.calibrators.octav import row_balance
from qconvert.errors import CalibrationError, PolicyError, TargetError
from qconvert.graph import operators, opset
from qconvert.numerics import (
    INT8,
    QUANT_TYPES,
    UINT8,
    QuantParams,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
)
from qconvert.plan.weights import weight_params
from qconvert.policy import Scheme
from tests.models import RUNTIME, Result, image, images, model, policy, quantized, weight
from tests.test_calibrators import GRIDS, SHAPES, Grid
from tests.test_placement import CONV

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

WEIGHT_GRIDS = [Grid(QUANT_TYPES[name], True, True) for name in ("int2", "int4", "int8", "int16")] + [
    Grid(QUANT_TYPES[name], False) for name in ("uint2", "uint4", "uint8", "uint16")
]
every_calibrator = pytest.mark.parametrize("name", FROM_STATISTICS)
every_grid = pytest.mark.parametrize("grid", WEIGHT_GRIDS, ids=str)
lawful = settings(max_examples=25, deadline=None)

numbers = st.integers(-(2**20), 2**20).map(lambda v: v / 1024)
few = st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=1, max_size=5))
drawn = st.tuples(st.sampled_from(sorted(SHAPES)), st.integers(0, 99), st.integers(1, 300)).map(
    lambda key: rows_of(key[0], key[1], key[2], 5)
)
tables = few.map(lambda v: np.array(v, np.float32)) | drawn


def rows_of(shape: str, seed: int, size: int, count: int) -> Float32:
    """Rows of one of the shapes that calibrators are tested with."""
    whole = SHAPES[shape](np.random.default_rng(seed)).astype(np.float32)
    return np.resize(whole, (count, size))


def ranges(calibrator: Calibrator, x: Float32, grid: Grid) -> tuple[Floats, Floats]:
    return calibrator.rows(x, grid.dtype, symmetric=grid.symmetric, narrow_range=grid.narrow_range)


def from_histograms(calibrator: Calibrator, x: Float32, grid: Grid) -> tuple[Floats, Floats]:
    found = [grid(calibrator, row) for row in x]
    return np.array([one.low for one in found]), np.array([one.high for one in found])


def error(x: Float32, low: Floats, high: Floats, grid: Grid, power: float = 2) -> Floats:
    """The true errors, one sum for each row, on the grids that the ranges get."""
    params = params_from_range(low, high, grid.dtype, symmetric=grid.symmetric, narrow_range=grid.narrow_range)
    scale, zero = params.scale.astype(np.float64)[:, None], params.zero_point[:, None]
    levels = np.clip(np.rint(x / scale), params.qmin - zero, params.qmax - zero)
    return np.asarray((np.abs(x - scale * levels) ** power).sum(1))


# --- laws of every method


@every_calibrator
@given(x=tables, grid=st.sampled_from(GRIDS))
@lawful
def test_every_range_lies_in_its_row_and_around_zero(name: str, x: Float32, grid: Grid) -> None:
    low, high = ranges(make_calibrator(name), x, grid)
    least, most = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    assert (low <= 0).all()
    assert (high >= 0).all()
    assert np.array_equal(low < high, x.any(1))
    if grid.symmetric and (grid.dtype.signed or least.any()):
        assert np.array_equal(-low, high)
        assert (high <= np.maximum(-least, most)).all()
    else:
        assert (least <= low).all()
        assert (high <= most).all()


@every_calibrator
@given(x=tables, grid=st.sampled_from(GRIDS), exponent=st.integers(-60, 60))
@lawful
def test_a_power_of_two_scales_every_range_exactly(name: str, x: Float32, grid: Grid, exponent: int) -> None:
    factor = math.ldexp(1.0, exponent)
    low, high = ranges(make_calibrator(name), x, grid)
    scaled_low, scaled_high = ranges(make_calibrator(name), x * np.float32(factor), grid)
    assert np.array_equal(scaled_low, low * factor)
    assert np.array_equal(scaled_high, high * factor)


@every_calibrator
@pytest.mark.parametrize("grid", [Grid(INT8, True, True), Grid(QUANT_TYPES["uint4"], False)], ids=str)
def test_a_row_has_the_range_that_it_has_alone(name: str, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.concatenate([rows_of(shape, 3, 20, 2) for shape in SHAPES])
    x[5] = 0
    together = ranges(make_calibrator(name), x, grid)
    alone = [ranges(make_calibrator(name), row[None], grid) for row in x]
    assert np.array_equal(together, np.concatenate(alone, axis=1))
    monkeypatch.setattr("qconvert.calibrators.base.CHUNK", 40)
    assert np.array_equal(together, ranges(make_calibrator(name), x, grid))


@pytest.mark.parametrize("name", [name for name in CALIBRATORS if name not in FROM_STATISTICS])
def test_methods_that_measure_have_no_ranges_for_values_alone(name: str) -> None:
    with pytest.raises(CalibrationError, match=f"{name} measures on samples"):
        ranges(make_calibrator(name), np.ones((1, 3), np.float32), WEIGHT_GRIDS[0])


def test_a_row_with_inf_is_refused() -> None:
    with pytest.raises(CalibrationError, match="got 1 NaN, 1 \\+Inf"):
        ranges(make_calibrator("mse"), np.array([[1, np.nan], [np.inf, 2]], np.float32), WEIGHT_GRIDS[0])


def test_rows_without_values_have_the_empty_range() -> None:
    low, high = ranges(make_calibrator("mse"), np.zeros((2, 0), np.float32), WEIGHT_GRIDS[0])
    assert not low.any()
    assert not high.any()


def test_one_row_with_negatives_makes_all_unsigned_ranges_symmetric() -> None:
    x = np.array([[1, 2, 3], [-1, 2, 3]], np.float32)
    low, high = ranges(make_calibrator("minmax"), x, Grid(UINT8, symmetric=True))
    assert (low.tolist(), high.tolist()) == ([-3, -3], [3, 3])
    low, high = ranges(make_calibrator("minmax"), x[:1], Grid(UINT8, symmetric=True))
    assert (low.tolist(), high.tolist()) == ([0], [3])


@pytest.mark.parametrize("name", ["mse", "admm", "octav"])
def test_long_rows_are_searched_by_their_histogram(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((1, LONG + 1)).astype(np.float32)
    for grid in (Grid(INT8, True, True), Grid(UINT8, False)):
        assert np.array_equal(ranges(make_calibrator(name), x, grid), from_histograms(make_calibrator(name), x, grid))


# --- the methods


@pytest.mark.parametrize("name", ["minmax", "average", "moving_average"])
def test_the_range_of_one_sample_is_its_extremes(name: str) -> None:
    x = rows_of("shifted", 1, 50, 4)
    low, high = ranges(make_calibrator(name), x, Grid(UINT8, symmetric=False))
    assert np.array_equal(low, x.min(1))
    assert np.array_equal(high, x.max(1))


@given(x=tables, percentile=st.floats(51, 100))
@lawful
def test_no_more_than_the_share_lies_beyond_a_percentile(x: Float32, percentile: float) -> None:
    low, high = ranges(make_calibrator("percentile", percentile=percentile), x, Grid(UINT8, symmetric=False))
    share = int((100 - percentile) / 100 * x.shape[1])
    ascending = np.sort(x, axis=1)
    least, most = np.minimum(ascending[:, share], 0), np.maximum(ascending[:, -1 - share], 0)
    some = least < most  # else all the data
    assert np.array_equal(low[some], least[some])
    assert np.array_equal(high[some], most[some])
    assert ((x > high[:, None]).sum(1) <= share)[some].all()


@every_grid
@pytest.mark.parametrize("size", [3, 9, 32, 200])
def test_mse_is_at_least_as_good_as_by_the_histogram_on_every_row(grid: Grid, size: int) -> None:
    x = np.concatenate([rows_of(shape, seed, size, 4) for shape in SHAPES for seed in range(4)])
    mine = error(x, *ranges(make_calibrator("mse"), x, grid), grid)
    theirs = error(x, *from_histograms(make_calibrator("mse"), x, grid), grid)
    assert (mine <= theirs * (1 + 1e-6) + 1e-13 * (x.astype(np.float64) ** 2).sum(1)).all()


@pytest.mark.parametrize("dtype", ["int2", "int4", "int8"])
@pytest.mark.parametrize("narrow_range", [True, False])
@given(x=tables)
@lawful
def test_no_scale_is_better_than_that_of_mse(dtype: str, narrow_range: bool, x: Float32) -> None:
    grid = Grid(QUANT_TYPES[dtype], True, narrow_range)
    found = error(x, *ranges(make_calibrator("mse"), x, grid), grid)
    for share in np.arange(1, 400) / 400:
        limit = np.abs(x).max(1).astype(np.float64) * share
        assert (found <= error(x, -limit, limit, grid) * (1 + 1e-6) + 1e-13 * (x.astype(np.float64) ** 2).sum(1)).all()


@pytest.mark.parametrize("grid", [Grid(QUANT_TYPES["uint4"], False), Grid(QUANT_TYPES["int2"], False)], ids=str)
def test_two_ends_on_a_fine_raster_are_not_better_than_those_of_mse(grid: Grid) -> None:
    x = np.concatenate([rows_of(shape, 7, 12, 1) for shape in SHAPES])
    found = error(x, *ranges(make_calibrator("mse"), x, grid), grid)
    for below in np.arange(0, 41) / 40:
        for above in np.arange(0, 41) / 40:
            low, high = np.minimum(x.min(1), 0) * below, np.maximum(x.max(1), 0) * above
            assert (found <= error(x, low, high, grid) * 1.02 + 1e-12).all()


@every_grid
@pytest.mark.parametrize(("name", "power"), [("emd", 1.0), ("mse", 3.0)])
def test_other_powers_agree_with_the_histogram(grid: Grid, name: str, power: float) -> None:
    calibrator = make_calibrator(name) if name == "emd" else make_calibrator(name, power=power)
    x = np.concatenate([rows_of(shape, seed, 120, 3) for shape in SHAPES for seed in range(2)])
    mine = error(x, *ranges(calibrator, x, grid), grid, power)
    theirs = error(x, *from_histograms(calibrator, x, grid), grid, power)
    assert mine.sum() <= 1.001 * theirs.sum()
    assert (mine <= 1.1 * theirs + 1e-9).all()


@every_grid
def test_admm_is_nearly_as_good_as_mse(grid: Grid) -> None:
    x = np.concatenate([rows_of(shape, seed, 64, 4) for shape in SHAPES for seed in range(4)])
    admm = error(x, *ranges(make_calibrator("admm"), x, grid), grid)
    assert admm.sum() < 1.05 * error(x, *ranges(make_calibrator("mse"), x, grid), grid).sum()
    octav = error(x, *ranges(make_calibrator("octav"), x, grid), grid)
    assert (admm <= octav * (1 + 1e-6) + 1e-12).all()


@every_grid
@pytest.mark.parametrize("name", ["octav", "aciq"])
@pytest.mark.parametrize("shape", ["gauss", "laplace", "relu", "shifted"])
def test_many_values_have_the_range_of_their_histogram(name: str, shape: str, grid: Grid) -> None:
    x = rows_of(shape, 0, 3000, 1)
    mine, theirs = ranges(make_calibrator(name), x, grid), from_histograms(make_calibrator(name), x, grid)
    assert np.allclose(mine, theirs, rtol=0.01, atol=1e-3)


@given(x=tables, bits=st.integers(2, 8))
@lawful
def test_octav_is_where_noise_and_excess_cross(x: Float32, bits: int) -> None:
    x = x[x.any(1)]
    if not x.size:
        return
    steps, a = 2**bits - 1, np.abs(x.astype(np.float64))
    _, found = row_balance(a[:, :0], a, steps)

    def gap(s: Floats) -> Floats:
        inside = ((a > 0) & (a <= s[:, None])).sum(1)
        return np.asarray(s * inside / (12 * steps**2) - np.maximum(a - s[:, None], 0).sum(1))

    assert (gap(found * (1 - 1e-9)) <= 1e-9 * a.sum(1)).all()
    assert (gap(found * (1 + 1e-9)) >= -1e-9 * a.sum(1)).all()


@given(x=tables, bits=st.integers(2, 8))
@lawful
def test_both_ends_of_octav_lose_the_same(x: Float32, bits: int) -> None:
    values = x[x.any(1)].astype(np.float64)
    low, high = row_balance(-values, values, 2**bits - 1)
    below, above = (np.maximum(side, 0).sum(1) for side in (-values - low[:, None], values - high[:, None]))
    both = (low > 0) & (high > 0)
    assert np.allclose(below[both], above[both], atol=1e-9 * np.abs(values).sum(1)[both], rtol=1e-9)
    assert (below[low == 0] <= above[low == 0] * (1 + 1e-9) + 1e-12).all()


# --- the compiled loops


def candidates(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats, Floats]:
    return (
        rng.uniform(0.05, 1, shape),
        -rng.integers(0, 9, shape).astype(float),
        rng.integers(1, 9, shape).astype(float),
    )


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_compiled_errors_are_those_of_numpy(power: float) -> None:
    rng = np.random.default_rng(0)
    x, (scale, first, last) = rng.standard_normal((7, 11)).astype(np.float32), candidates(rng, (7, 5))
    scale[2, 3] = 0
    found = row_kernels.errors(x, scale, first, last, power)
    assert math.isinf(found[2, 3])
    scale[2, 3] = 1
    wide, step = x[:, None, :].astype(np.float64), scale[:, :, None]
    levels = np.clip(np.rint(wide / step), first[:, :, None], last[:, :, None])
    expected = (np.abs(wide - step * levels) ** power).sum(2)
    expected[2, 3] = np.inf
    assert np.allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 8, 19])
@pytest.mark.parametrize("rounds", [1, 3])
def test_compiled_projections_are_those_of_numpy(size: int, rounds: int) -> None:
    rng = np.random.default_rng(size)
    x, (scale, first, last) = rng.standard_normal((6, size)).astype(np.float32), candidates(rng, (6, 4))
    x[1] = 0
    found = row_kernels.projections(x, scale, first, last, rounds)
    wide, expected = x[:, None, :].astype(np.float64), scale.copy()
    for _ in range(rounds):
        levels = np.clip(np.rint(wide / expected[:, :, None]), first[:, :, None], last[:, :, None])
        norm = (levels**2).sum(2)
        expected = np.where(norm > 0, (levels * wide).sum(2) / np.where(norm > 0, norm, 1), expected)
    assert np.allclose(found, expected, rtol=1e-6)


def test_the_compiled_sweep_finds_what_every_assignment_of_levels_gives() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        x = rng.laplace(size=rng.integers(1, 12)).astype(np.float32)
        first, last = -float(rng.integers(0, 5)), float(rng.integers(1, 5))
        if not (np.minimum(x, 0) * first + np.maximum(x, 0) * last).any():
            continue
        top = float(np.abs(x).max()) / max(last, -first)
        wide, best = x.astype(np.float64), math.inf
        breaks = np.unique(np.abs(wide)[:, None] / (np.arange(5) + 0.5))
        for scale in np.append((breaks[1:] + breaks[:-1]) / 2, [breaks[0] / 2, top]):
            levels = np.clip(np.rint(wide / scale), first, last)
            if levels.any():
                fitted = min(float(levels @ wide / (levels @ levels)), top)
                best = min(best, float(((wide - np.clip(np.rint(wide / fitted), first, last) * fitted) ** 2).sum()))
        arguments = (np.array([number]) for number in (first, last, top, np.inf))
        scales, errors = row_kernels.least_squares(x[None], *arguments)
        assert errors[0] <= best * (1 + 1e-9) + 1e-12
        assert 0 < scales[0] <= top


def test_an_error_above_the_bound_is_none() -> None:
    x, one = np.array([[1.0, 0.3]], np.float32), np.ones(1)
    _, errors = row_kernels.least_squares(x, -one, one, one, one * 1e-9)
    assert math.isinf(errors[0])


# --- scales for groups: arithmetic


@pytest.mark.parametrize(
    ("shape", "axis", "size"), [((7, 3), 0, 3), ((3, 7), 1, 4), ((3, 7), -1, 7), ((2, 6, 3), 1, 2)]
)
@pytest.mark.parametrize("dtype", ["int8", "uint4"])
def test_blocks_have_scales_of_their_own(shape: tuple[int, ...], axis: int, size: int, dtype: str) -> None:
    x = weight(*shape)
    scheme = Scheme(dtype=dtype, symmetric=dtype == "int8", narrow_range=False)
    params = weight_params(x, scheme, axis=axis, block_size=size)
    where = axis % len(shape)
    count = -(-shape[where] // size)
    assert params.scale.shape == tuple(count if d == where else n for d, n in enumerate(shape))
    levels, reals = quantize(x, params), fake_quantize(x, params)
    assert np.array_equal(reals, dequantize(levels, params))
    for index in np.ndindex(*shape):
        at = tuple(i // size if d == where else i for d, i in enumerate(index))
        one = QuantParams(params.scale[at], params.zero_point[at], params.dtype)
        assert levels[index] == quantize(x[index].reshape(1), one)[0]
        assert reals[index] == fake_quantize(x[index].reshape(1), one)[0]
        assert abs(float(reals[index]) - float(x[index])) <= float(params.scale[at]) * 0.501


def test_the_last_block_is_searched_without_filling() -> None:
    x = weight(1, 10)
    scheme = Scheme(
        dtype="int4", symmetric=True, narrow_range=True, calibrator=make_calibrator("percentile", percentile=75)
    )
    params = weight_params(x, scheme, axis=1, block_size=8)
    tail = weight_params(np.ascontiguousarray(x[:, 8:]), scheme, axis=0)
    assert params.scale[0, 1] == tail.scale[0]
    assert weight_params(x[:, :3], scheme, axis=1, block_size=8).scale.shape == (1, 1)


def test_grids_with_other_blocks_differ() -> None:
    x = weight(4, 4)
    scheme = Scheme(dtype="int8", symmetric=True, narrow_range=True)
    two = weight_params(x, scheme, axis=1, block_size=2)
    assert two == weight_params(x, scheme, axis=1, block_size=2)
    assert two != QuantParams(two.scale, two.zero_point, two.dtype, 1, True, 3)


# --- scales for groups: models

MATMUL = f"h {CONV}(x, w) p = GlobalAveragePool(h) f = Flatten(p) y = MatMul(f, m)"
BODIES: dict[str, str] = {
    "MatMul": "y = MatMul(x, m)",
    "Gemm": "y = Gemm(x, m, c)",
    "Gemm transB": "y = Gemm<transB=1>(x, n, c)",
    "MatMul and Add": "h = MatMul(x, m) y = Add(h, c)",
}
two_bit_types = pytest.mark.skipif(RUNTIME < (1, 24), reason="this onnxruntime has no 2-bit types")
TYPES = ["int8", "uint8", "int4", "uint4", pytest.param("int2", marks=two_bit_types)]


def grouped(body: str, weights: str, *, target: str = "ort-cpu", more: str = "") -> Result:
    text = f"defaults: {{weights: {{scheme: per-group, group_size: 16, {weights}}}}}\n{more}"
    arrays = {"m": weight(40, 8), "n": np.ascontiguousarray(weight(40, 8).T), "c": weight(8, 1).ravel()}
    graph = model(body, inputs="float[N,40] x", weights=arrays)
    return quantized(graph, [image(4, 40, seed=k) for k in range(3)], policy(text, target=target))


@pytest.mark.parametrize("target", ["ort-cpu", "generic"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("body", BODIES)
def test_grouped_weights_compute_what_the_file_says(body: str, dtype: str, target: str) -> None:
    result = grouped(BODIES[body], f"dtype: {dtype}, calibrator: mse", target=target)
    name = "n" if "transB" in body else "m"
    params = result.entry(name).params
    assert (params.axis, params.block_size) == ((1, 16) if name == "n" else (0, 16))
    assert params.scale.shape == ((8, 3) if name == "n" else (3, 8))
    assert result.drift > 60
    assert result.sqnr > {"8": 35, "4": 15, "2": 2}[dtype[-1]]
    assert opset(result.model) >= 21
    assert not {"MatMulNBits", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat"} & set(result.kernels)


def test_groups_are_better_than_channels() -> None:
    channel = "defaults: {weights: {dtype: int4, scheme: per-channel}}\n"
    graph = model("y = MatMul(x, m)", inputs="float[N,40] x", weights={"m": weight(40, 8)})
    assert (
        grouped("y = MatMul(x, m)", "dtype: int4").sqnr
        > 1 + quantized(graph, [image(4, 40, seed=k) for k in range(3)], policy(channel)).sqnr
    )


def test_the_bias_of_a_grouped_weight_stays_float() -> None:
    result = grouped(BODIES["Gemm"], "dtype: int8")
    assert not result.plan.of("bias")
    assert "the bias stays float" in result.entry("m").reason
    assert "per group of 16 of axis 0" in result.entry("m").reason


def test_what_takes_no_groups_says_so() -> None:
    graph = model(MATMUL, weights={"w": weight(8, 3, 3, 3), "m": weight(8, 4)})
    result = quantized(graph, images(), policy("defaults: {weights: {scheme: per-group}}"))
    conv, matmul = result.entry("w", "weight"), result.entry("m")
    assert (conv.params.axis, conv.params.block_size) == (0, None)
    assert "per channel of axis 0 (target ort-cpu takes groups in Gemm and MatMul only)" in conv.reason
    assert matmul.params.block_size == 32
    assert matmul.params.scale.shape == (1, 4)


def test_a_batched_matmul_has_groups_too() -> None:
    graph = model("y = MatMul(x, b)", inputs="float[2,5,40] x", weights={"b": weight(2, 40, 8)})
    result = quantized(graph, [image(2, 5, 40)], policy("defaults: {weights: {scheme: per-group, group_size: 16}}"))
    assert result.entry("b").params.scale.shape == (2, 3, 8)
    assert result.drift > 60


def test_a_written_group_is_one_dequantize_and_a_reshape() -> None:
    nodes = {op.node.name: op.node for op in operators(grouped("y = MatMul(x, m)", "dtype: int4").model)}
    dq = nodes["m_DequantizeLinear"]
    assert (dq.attributes["block_size"].as_int(), dq.attributes["axis"].as_int()) == (16, 0)
    assert dq.inputs[0] is not None
    assert str(dq.inputs[0].dtype) == "INT4"
    assert nodes["m_Reshape"].inputs[0] is dq.outputs[0]


REFUSED: list[tuple[str, str, type[Exception], str]] = [
    (
        "weights: {scheme: per-group}",
        "tensorrt",
        TargetError,
        "defaults: weights.scheme: target tensorrt takes no per-g",
    ),
    ("activations: {scheme: per-group}", "ort-cpu", TargetError, "no runtime takes per-group activations"),
    (
        "weights: {group_size: 8}",
        "ort-cpu",
        PolicyError,
        "defaults: weights.group_size: scheme per-channel has no groups",
    ),
    ("activations: {group_size: 8}", "ort-cpu", PolicyError, "activations.group_size: scheme per-tensor has no groups"),
]


@pytest.mark.parametrize(("text", "target", "kind", "message"), REFUSED)
def test_what_cannot_be_grouped_is_refused(text: str, target: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        quantized(
            model("y = MatMul(x, m)", inputs="float[N,8] x", weights={"m": weight(8, 4)}),
            [image(4, 8)],
            policy(f"defaults: {{{text}}}", target=target),
        )


def test_a_group_size_for_another_scheme_is_refused_where_it_stands() -> None:
    with pytest.raises(PolicyError, match=r"policy.yaml:2: .*group_size: scheme per-tensor has no groups"):
        policy("defaults: {weights: {scheme: per-tensor, group_size: 8}}")
