"""Statistics by channel are judged by exact fractions, one value at a time."""

from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qconvert import channels, kernels
from qconvert.channels import MAX_CHANNELS, ChannelAccumulator, ChannelStats
from qconvert.errors import CalibrationError
from qconvert.graph import attributes, constant, operators
from qconvert.plan.channels import channel_axes
from qconvert.prepare import prepare
from qconvert.rules import OP_RULES
from qconvert.rules import channels as mixed_channels
from tests.models import fetch, image, model, weight

Array = npt.NDArray[Any]

SMALLEST, LARGEST = 2.0**-149, float(np.finfo(np.float32).max)
EDGES = [
    0.0,
    -0.0,
    SMALLEST,
    -SMALLEST,
    1e-40,
    2.0**-126,
    -(2.0**-126),
    2.0**-109,
    1.0,
    -1.0,
    0.1,
    1e30,
    LARGEST,
    -LARGEST,
]

numbers = st.one_of(st.sampled_from(EDGES), st.floats(width=32), st.floats(-8, 8, width=32))
CHANNELS = 3
parts_of_3 = st.lists(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 3), st.just(CHANNELS), st.integers(0, 5)), elements=numbers),
    max_size=4,
)
law = settings(max_examples=80, deadline=None)


def total(parts: list[Array], axis: int = 1) -> ChannelStats:
    return reduce(add, (ChannelStats.of(part, axis=axis) for part in parts), ChannelStats())


def accumulated(parts: list[Array], axis: int = 1) -> ChannelStats:
    accumulator = ChannelAccumulator()
    for part in parts:
        accumulator.add(part, axis=axis)
    return accumulator.stats()


def number(digits: npt.NDArray[np.uint32]) -> int:
    """A two's complement number, digit by digit."""
    plain = sum(int(digit) << (32 * k) for k, digit in enumerate(digits))
    return plain - (1 << (32 * len(digits))) if digits[-1] >> 31 else plain


def check(stats: ChannelStats, rows: list[Array]) -> None:
    """Against exact arithmetic on the values of each channel."""
    assert stats.counts.shape == (len(rows),)
    for c, row in enumerate(rows):
        seen = [Fraction(float(v)) for v in row if math.isfinite(v)]
        assert stats.counts[c] == len(seen)
        assert Fraction(number(stats.sums[c])) / 2**149 == sum(seen)
        assert Fraction(number(stats.squares[c])) / 2**298 == sum(v * v for v in seen)
        if not seen:
            assert (stats.low[c], stats.high[c]) == (math.inf, -math.inf)
            assert all(math.isnan(found()[c]) for found in (stats.mean, stats.second_moment, stats.std))
            continue
        assert (stats.low[c], stats.high[c]) == (min(seen), max(seen))
        assert not (np.signbit(stats.low[c]) and stats.low[c] == 0)
        assert not (np.signbit(stats.high[c]) and stats.high[c] == 0)
        mean, square = sum(seen) / Fraction(len(seen)), sum(v * v for v in seen) / Fraction(len(seen))
        assert stats.mean()[c] == float(mean)
        assert stats.second_moment()[c] == float(square)
        assert_rounded_root(float(stats.std()[c]), square - mean * mean)


def assert_rounded_root(found: float, square: Fraction) -> None:
    """No float64 is nearer to the root: it lies between the middles to both neighbours."""
    assert found >= 0
    below = (Fraction(found) + Fraction(math.nextafter(found, -math.inf))) / 2
    above = (Fraction(found) + Fraction(math.nextafter(found, math.inf))) / 2
    assert max(below, Fraction(0)) ** 2 <= square <= above**2


def rows_of(parts: list[Array], axis: int) -> list[Array]:
    moved = [np.moveaxis(part, axis, 0) for part in parts]
    return [np.concatenate([part[c].ravel() for part in moved]) for c in range(len(moved[0]))]


# --- the value ---


@law
@given(parts_of_3.filter(bool))
def test_equals_exact_arithmetic(parts: list[Array]) -> None:
    check(accumulated(parts), rows_of(parts, 1))


@law
@given(parts_of_3, parts_of_3, parts_of_3)
def test_merging_is_associative_and_commutative_with_a_neutral_element(
    a: list[Array], b: list[Array], c: list[Array]
) -> None:
    x, y, z = total(a), total(b), total(c)
    assert (x + y) + z == x + (y + z)
    assert x + y == y + x
    assert x + ChannelStats() == x == ChannelStats() + x
    assert x + y == accumulated([*a, *b])


@law
@given(st.data(), hnp.arrays(np.float32, (6, CHANNELS, 4), elements=numbers))
def test_any_batch_split_and_order_gives_the_same_bits(data: st.DataObject, x: Array) -> None:
    whole = ChannelStats.of(x, axis=1)
    order = data.draw(st.permutations(range(6)))
    cuts = sorted(data.draw(st.lists(st.integers(0, 6), max_size=3)))
    split = np.split(x[order], cuts)
    assert accumulated(split) == total(split) == whole
    for name, array in whole.to_arrays().items():
        assert accumulated(split).to_arrays()[name].tobytes() == array.tobytes()
    within = np.split(x, [1], axis=2)
    assert accumulated(within) == whole


@law
@given(
    hnp.arrays(np.float32, (4, CHANNELS), elements=st.integers(-(2**24), 2**24).map(lambda n: n / 2**20)),
    st.integers(-100, 100),
)
def test_scaling_by_a_power_of_two_is_exact(x: Array, exponent: int) -> None:
    one, scaled = (ChannelStats.of(np.ldexp(x, e).astype(np.float32), axis=1) for e in (0, exponent))
    np.testing.assert_array_equal(scaled.mean(), np.ldexp(one.mean(), exponent))
    np.testing.assert_array_equal(scaled.second_moment(), np.ldexp(one.second_moment(), 2 * exponent))
    np.testing.assert_array_equal(scaled.std(), np.ldexp(one.std(), exponent))
    np.testing.assert_array_equal(scaled.low, np.ldexp(one.low, exponent))
    negative = ChannelStats.of(-x, axis=1)
    np.testing.assert_array_equal(negative.squares, one.squares)
    np.testing.assert_array_equal(negative.mean(), -one.mean())


@law
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=4), elements=numbers), st.data())
def test_every_axis(x: Array, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    stats = ChannelStats.of(x, axis=axis)
    check(stats, rows_of([x], axis))
    assert stats == ChannelStats.of(np.moveaxis(x, axis, 0), axis=0)


def test_an_outlier_hides_nothing() -> None:
    """The float64 sum of these is 0."""
    x = np.array([[1e30, SMALLEST, -1e30, 2.0**-140, LARGEST, -LARGEST]], np.float32)
    stats = ChannelStats.of(x, axis=0)
    assert stats.mean()[0] == (SMALLEST + 2.0**-140) / 6
    check(stats, [x[0]])


def test_the_deviation_does_not_cancel() -> None:
    x = np.array([[4096.0, np.nextafter(np.float32(4096), np.float32(np.inf))] * 50], np.float32)
    stats = ChannelStats.of(x, axis=0)
    assert stats.std()[0] == (float(x[0, 1]) - 4096) / 2
    assert ChannelStats.of(np.full((1, 999), 0.1, np.float32), axis=0).std()[0] == 0


def test_values_that_are_not_finite_are_left_out_of_their_channel_alone() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 40)).astype(np.float32)
    clean = ChannelStats.of(x, axis=1)
    x[0, 1, 3], x[1, 2, 4], x[1, 2, 5], x[:, 4] = np.nan, np.inf, -np.inf, np.nan
    stats = ChannelStats.of(x, axis=1)
    assert stats.counts.tolist() == [80, 79, 78, 80, 0]
    check(stats, rows_of([x], 1))
    for name, array in stats.to_arrays().items():
        np.testing.assert_array_equal(array[[0, 3]], clean.to_arrays()[name][[0, 3]])


def test_zeros_have_no_sign_beside_values_that_are_not_finite() -> None:
    stats = ChannelStats.of(np.array([[np.nan, -0.0], [-np.inf, -0.0]], np.float32), axis=0)
    assert (stats.low.tolist(), stats.high.tolist()) == ([0, 0], [0, 0])
    assert not np.signbit([*stats.low, *stats.high]).any()


def test_zeros_denormals_and_nothing() -> None:
    zeros = ChannelStats.of(np.array([[0.0, -0.0], [-0.0, -0.0]], np.float32), axis=1)
    assert (zeros.mean().tolist(), zeros.second_moment().tolist(), zeros.std().tolist()) == ([0, 0], [0, 0], [0, 0])
    assert not np.signbit([*zeros.low, *zeros.high]).any()
    assert zeros == ChannelStats.of(np.zeros((2, 2), np.float32), axis=1)
    tiny = np.full((4, 1), SMALLEST, np.float32)
    assert ChannelStats.of(tiny, axis=1).second_moment()[0] == 2.0**-298
    empty = ChannelStats.of(np.zeros((0, 7, 2), np.float32), axis=1)
    assert empty == ChannelStats.unseen(7) != ChannelStats()
    assert np.isnan(empty.mean()).all()
    assert ChannelStats.of(np.zeros((1, 0, 4), np.float32), axis=1) == ChannelStats()
    assert accumulated([]) == ChannelStats()


def test_the_largest_sums_fit() -> None:
    """``2**62`` times the largest value, by doubling."""
    for sign in (1, -1):
        stats = ChannelStats.of(np.full((1, 1), sign * LARGEST, np.float32), axis=0)
        for _ in range(62):
            stats += stats
        assert number(stats.sums[0]) == (int(sign * LARGEST) << 149) << 62
        assert stats.mean()[0] == sign * LARGEST
        assert stats.second_moment()[0] == float(Fraction(LARGEST) ** 2)
        assert stats.std()[0] == 0


def test_arrays_round_trip_through_a_file() -> None:
    stats = ChannelStats.of(np.random.default_rng(0).standard_normal((4, 9, 3)).astype(np.float32), axis=1)
    file = io.BytesIO()
    np.savez(file, **stats.to_arrays())  # type: ignore[arg-type]
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        assert ChannelStats.from_arrays(archive) == stats
    assert ChannelStats.from_arrays(ChannelStats().to_arrays()) == ChannelStats()


@pytest.mark.parametrize("name", ["low", "high", "counts", "sums", "squares"])
def test_damaged_arrays_are_refused(name: str) -> None:
    arrays = ChannelStats.unseen(4).to_arrays()
    for damaged in (
        {k: v for k, v in arrays.items() if k != name},
        {**arrays, name: arrays[name][:-1]},
        {**arrays, name: arrays[name].astype(np.float64)},
    ):
        with pytest.raises(CalibrationError, match="channel statistics: '"):
            ChannelStats.from_arrays(damaged)


def test_too_many_channels_and_changing_numbers_are_refused() -> None:
    with pytest.raises(CalibrationError, match=rf"of {MAX_CHANNELS + 1} channels: at most {MAX_CHANNELS}"):
        ChannelStats.of(np.zeros((1, MAX_CHANNELS + 1), np.float32), axis=1)
    assert ChannelStats.of(np.ones((1, MAX_CHANNELS), np.float32), axis=1).counts.sum() == MAX_CHANNELS
    with pytest.raises(CalibrationError, match="had 4 channels and now has 5"):
        accumulated([np.zeros((1, 4), np.float32), np.zeros((1, 5), np.float32)])
    with pytest.raises(CalibrationError, match="had 4 channels and now has 5"):
        total([np.zeros((1, 4), np.float32), np.zeros((1, 5), np.float32)])


# --- the accumulator and its kernels ---


@pytest.mark.parametrize("shape", [(1, 3, 4095), (2, 2, 4096), (1, 3, 64, 65), (1, 9001, 2)])
@pytest.mark.parametrize("kind", ["normal", "relu", "lognormal", "bits", "denormal"])
def test_long_rows_and_every_window(shape: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(shape)
    x = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "lognormal": np.exp(10 * normal),
        "denormal": normal * 1e-39,
        "bits": rng.integers(-(2**31), 2**31, shape).astype(np.int32).view(np.float32),
    }[kind].astype(np.float32)
    axis = 2 if shape[-1] == 2 else 1
    stats = ChannelStats.of(x, axis=axis)
    moved = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    for c, row in enumerate(moved):
        whole = [int(math.ldexp(float(v), 149)) for v in row[np.isfinite(row)]]
        assert (stats.counts[c], number(stats.sums[c])) == (len(whole), sum(whole))
        assert number(stats.squares[c]) == sum(v * v for v in whole)


def test_equal_magnitudes_fill_a_window_to_its_brim() -> None:
    """The most that one window may hold: rows of the greatest mantissa on its highest exponent."""
    for exponent in (-126, -100, 0, 127):
        brim = np.ldexp(np.float32(2 - 2**-23), exponent).astype(np.float32)
        for sign in (1, -1):
            x = np.full((1, 4096 * 3 + 5), sign * brim, np.float32)
            x[0, 1] = np.ldexp(np.float32(1), max(exponent - 17, -149))
            check(ChannelStats.of(x, axis=0), [x[0]])


def test_sums_that_cross_zero_borrow_from_every_digit() -> None:
    steps = [SMALLEST, -2 * SMALLEST, LARGEST, -LARGEST, SMALLEST, -1.0, 1.0, -SMALLEST]
    accumulator = ChannelAccumulator()
    for k, step in enumerate(steps):
        accumulator.add(np.array([[step]], np.float32), axis=1)
        check(accumulator.stats(), [np.array(steps[: k + 1], np.float32)])


@law
@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 250)), max_size=20))
def test_deposits_add_up(amounts: list[tuple[int, int]]) -> None:
    digits = np.zeros(kernels.CHANNEL_SUM_DIGITS, np.uint32)
    for amount, position in amounts:
        kernels._deposit(digits, amount, position)
    assert number(digits) == sum(amount << position for amount, position in amounts)


def test_rows_are_the_channels() -> None:
    for shape in [(3, 5), (1, 40, 70), (33, 64), (2, 3, 1)]:
        x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
        for axis in range(-x.ndim, x.ndim):
            expected = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
            np.testing.assert_array_equal(channels._rows(x, axis), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.uint8])
def test_other_types_are_read_as_float32(dtype: npt.DTypeLike) -> None:
    x = (np.random.default_rng(0).standard_normal((4, 70)) * 20 + 90).astype(dtype)
    assert ChannelStats.of(x, axis=0) == ChannelStats.of(x.astype(np.float32), axis=0)


def test_memory_layout_does_not_matter_and_the_input_is_left_alone() -> None:
    x = np.random.default_rng(0).standard_normal((4, 60, 50)).astype(np.float32)
    x[0, 0, :3] = np.nan, np.inf, -0.0
    before, whole = x.tobytes(), ChannelStats.of(x, axis=1)
    frozen = x.copy()
    frozen.flags.writeable = False
    padded = np.zeros((4, 60, 100), np.float32)
    padded[:, :, ::2] = x
    for view in (x[:, :, ::-1], np.asfortranarray(x), padded[:, :, ::2], frozen, x.astype(">f4"), x[::-1]):
        assert ChannelStats.of(view, axis=1) == whole
    assert ChannelStats.of(frozen.transpose(0, 2, 1), axis=-1) == whole
    assert x.tobytes() == before


def test_stats_are_a_value_that_later_samples_do_not_change() -> None:
    accumulator = ChannelAccumulator()
    accumulator.add(np.ones((1, 2), np.float32), axis=1)
    first = accumulator.stats()
    accumulator.add(np.full((1, 2), -64, np.float32), axis=1)
    assert first == ChannelStats.of(np.ones((1, 2), np.float32), axis=1)


def test_threads_share_nothing() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal((1, 8, 3000)) * 3.0 ** (k % 5)).astype(np.float32) for k in range(12)]
    with ThreadPoolExecutor(4) as pool:
        shards = list(pool.map(lambda k: accumulated(parts[k::4]), range(4)))
    assert reduce(add, shards) == reduce(add, reversed(shards)) == accumulated(parts)


# --- which values ---


def axes(body: str, weights: dict[str, Array], inputs: str = "float[1,3,8,8] x") -> dict[str, int]:
    graph = model(body, inputs=inputs, weights=weights)
    prepare(graph, ())
    return dict(channel_axes(graph))


def test_convolutions_and_products_with_weights_have_channels() -> None:
    found = axes(
        "a = Conv(x, w) r = Relu(a) t = ConvTranspose<group=2>(r, v) f = Flatten(t) g = Gemm<transB=1>(f, m) "
        "h = Tanh(g) y = MatMul(h, n)",
        {"w": weight(4, 3, 1, 1), "v": weight(4, 3, 1, 1), "m": weight(5, 384), "n": weight(5, 7)},
    )
    assert found == {"x": 1, "a": 1, "r": 1, "t": 1, "f": 1, "g": 1, "h": -1, "y": -1}


def test_products_of_activations_and_long_axes_have_no_channels() -> None:
    weights = {"k": weight(6, 8), "vocabulary": np.ones((8, MAX_CHANNELS + 1), np.float32)}
    found = axes(
        "q = MatMul(x, k) t = Transpose<perm=[0,2,1]>(q) s = MatMul(q, t) u = MatMul(s, q) y = MatMul(u, vocabulary)",
        weights,
        "float[1,5,6] x",
    )
    assert found == {"x": -1, "q": -1, "u": -1}


def test_the_producer_decides_where_readers_differ() -> None:
    body = "a = Conv(x, w) y = MatMul(a, m)"
    assert axes(body, {"w": weight(4, 3, 1, 1), "m": weight(8, 2)}) == {"x": 1, "a": 1, "y": -1}


def test_a_weight_that_is_a_vector_leaves_no_output_channels() -> None:
    assert axes("y = MatMul(x, v)", {"v": weight(6)}, "float[2,5,6] x") == {"x": -1}


def test_a_weight_that_may_be_fed_is_no_constant() -> None:
    graph = model("y = Conv(x, w)", inputs="float[1,3,8,8] x, float[4,3,1,1] w", weights={"w": weight(4, 3, 1, 1)})
    assert "w" in graph.graph.initializers
    assert channel_axes(graph) == {}


def test_operators_in_bodies_do_not_count() -> None:
    found = axes(
        "y = If(c) <then_branch = yes () => (float[1,4,8,8] p) { p = Conv(x, w) }, "
        "else_branch = no () => (float[1,4,8,8] q) { q = Conv(x, w) }>",
        {"w": weight(4, 3, 1, 1)},
        "float[1,3,8,8] x, bool c",
    )
    assert found == {}


OPERATORS = {
    "Conv": ("y = Conv<group=2, pads=[1,1,1,1]>(x, w)", (6, 2, 3, 3), (1, 4, 5, 5)),
    "ConvTranspose": ("y = ConvTranspose<group=2>(x, w)", (4, 3, 2, 2), (1, 4, 5, 5)),
    "Gemm": ("y = Gemm<transA=1, transB=1>(x, w)", (7, 4), (4, 3)),
    "MatMul": ("y = MatMul(x, w)", (4, 6), (2, 3, 4)),
}


@pytest.mark.parametrize("op_type", [rule.op_type for rule in OP_RULES.values() if rule.kind == "heavy"])
def test_the_sizes_are_those_that_onnxruntime_makes(op_type: str) -> None:
    body, shape, input_shape = OPERATORS[op_type]
    graph = model(body, inputs=f"float[{','.join(map(str, input_shape))}] x", weights={"w": weight(*shape)})
    node = next(operators(graph)).node
    array = constant(node.inputs[1])
    assert array is not None
    before, after = mixed_channels(op_type, array.shape, attributes(node))
    values = fetch(graph, ["x", "y"], image(*input_shape))
    assert (values["x"].shape[before.axis], values["y"].shape[after.axis]) == (before.size, after.size)
