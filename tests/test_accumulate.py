"""The compiled accumulator is judged by the plain one."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qconvert import kernels
from qconvert.accumulate import Accumulators
from qconvert.histogram import RECORDED, SAMPLED, Detail, Histogram, TensorStats

Array = npt.NDArray[Any]

SMALLEST, LARGEST = 2.0**-149, float(np.finfo(np.float32).max)
EDGES = [0.0, -0.0, SMALLEST, -SMALLEST, 2.0**-113, 2.0**-112, 2.0**-101, 2.0**-100, 1.0, -1.0, 1e30, LARGEST, -LARGEST]

numbers = st.one_of(st.sampled_from(EDGES), st.floats(width=32))
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6), elements=numbers)


def check(parts: list[Array]) -> TensorStats:
    """The accumulator's statistics, after they were found to be those of the reference, with clean scratch memory."""
    accumulators = Accumulators(1)
    for part in parts:
        assert accumulators.add([part]).tolist() == [bool(np.isfinite(part).all())]
        assert not accumulators.tables.any()
    (stats,) = accumulators.stats()
    assert stats == reduce(add, map(TensorStats.of, parts), TensorStats())
    return stats


@settings(max_examples=80, deadline=None)
@given(st.lists(arrays, max_size=6))
def test_equals_the_sum_of_the_parts(parts: list[Array]) -> None:
    check(parts)


@pytest.mark.parametrize("size", [1, 3, 2047, 2048, 2049, 4096, 6145, 50_000])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e30, 1e-30, 1e-38, 1e-43])
def test_equals_the_sum_of_the_parts_in_every_loop_of_the_kernel(size: int, scale: float) -> None:
    rng = np.random.default_rng(size)
    parts = [(rng.standard_normal(size) * scale * 4.0**k).astype(np.float32) for k in range(3)]
    parts.append(np.maximum(parts[0], 0))
    parts.append(-parts[-1])
    assert check(parts).values == 5 * size


def test_values_on_the_edges_of_bins() -> None:
    for exponent in (-99, -98, 0, 5, 127):
        width = np.float32(math.ldexp(1.0, exponent - 12))
        edges = np.arange(-4095, 4096, dtype=np.float32) * width
        below, above = np.nextafter(edges, np.float32(-np.inf)), np.nextafter(edges, np.float32(np.inf))
        check([edges, below, above])


def test_non_finite_values_are_counted_and_left_out() -> None:
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    x[7], x[8], x[9], x[4999] = np.nan, -np.inf, np.inf, np.nan
    stats = check([x, x[:5]])
    assert (stats.nan, stats.negative_inf, stats.positive_inf, stats.values) == (2, 1, 1, 5001)
    nothing = check([np.full((2, 3), np.nan, np.float32), np.array([np.inf, -np.inf], np.float32)])
    assert (nothing.values, nothing.samples, nothing.low, nothing.high) == (0, 0, math.inf, -math.inf)


def test_tensors_without_values_do_not_move_the_means() -> None:
    stats = check([np.zeros((0, 4), np.float32), np.zeros((3, 0), np.float32)])
    assert (stats.samples, stats.values) == (0, 0)
    assert check([]) == TensorStats()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.uint8])
def test_other_types_are_read_as_float32(dtype: npt.DTypeLike) -> None:
    x = (np.random.default_rng(0).standard_normal((4, 700)) * 20 + 50).astype(dtype)
    assert check([x]) == TensorStats.of(x.astype(np.float32))
    if dtype is np.float16:
        check([np.array([6e-8, -6e-8, 65504, np.inf, np.nan], np.float16)])


def test_memory_layout_does_not_matter() -> None:
    x = np.random.default_rng(0).standard_normal((4, 60, 50)).astype(np.float32)
    frozen = x.copy()
    frozen.flags.writeable = False
    padded = np.zeros((4, 60, 100), np.float32)
    padded[:, :, ::2] = x
    whole = TensorStats.of(x)
    for view in (x.transpose(2, 0, 1), x[:, ::-1], np.asfortranarray(x), padded[:, :, ::2], frozen, x.astype(">f4")):
        assert check([view]) == whole
    assert check([np.float32(3) * np.ones((), np.float32)]).values == 1


def test_the_accumulator_leaves_its_input_alone() -> None:
    x = np.array([1, -2, np.nan, np.inf, -0.0] * 1000, np.float32)
    before = x.tobytes()
    check([x])
    assert x.tobytes() == before


def test_stats_are_a_value_that_later_samples_do_not_change() -> None:
    accumulators = Accumulators(1)
    accumulators.add([np.ones(10, np.float32)])
    (first,) = accumulators.stats()
    accumulators.add([np.full(10, 64, np.float32)])
    assert first == TensorStats.of(np.ones(10, np.float32))


def test_threads_share_nothing() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal(20_000) * 3.0 ** (k % 5)).astype(np.float32) for k in range(12)]

    def shard(k: int) -> TensorStats:
        accumulators = Accumulators(1)
        for part in parts[k::4]:
            accumulators.add([part])
        return next(accumulators.stats())

    with ThreadPoolExecutor(4) as pool:
        assert reduce(add, pool.map(shard, range(4))) == check(parts)


bit_patterns = hnp.arrays(np.int32, st.integers(0, 50), elements=st.integers(-(2**31), 2**31 - 1))


@settings(max_examples=80, deadline=None)
@given(st.one_of(bit_patterns, arrays.map(lambda x: np.ravel(x).view(np.int32))))
def test_extremes_of_any_bits(bits: npt.NDArray[np.int32]) -> None:
    """NaN of either sign included."""
    x = bits.view(np.float32)
    low, high = kernels.extremes(bits)
    least, greatest = kernels.reals(np.array([low, high], np.int32)).tolist()
    if x.size and np.isfinite(x).all():
        assert (least, greatest) == (x.min(), x.max())
        assert math.copysign(1, least) == math.copysign(1, float(x.min()) + 0.0)
    elif x.size:
        assert not (math.isfinite(least) and math.isfinite(greatest))


@pytest.mark.parametrize("size", [245_759, 245_760, 300_000, 2 * 245_760 + 3])
def test_narrow_tables_do_not_overflow(size: int) -> None:
    """All values in one bin, more of them than a uint16 counts."""
    assert check([np.full(size, 0.75, np.float32)]).histogram.positive.max() == size


@pytest.mark.parametrize("detail", ["exact", "sampled", "range"])
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 60_000), max_size=4), st.integers(0, 3))
def test_every_detail_equals_the_sum_of_the_parts(detail: Detail, sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = [(rng.standard_normal(size) * 4.0**k).astype(np.float32) for k, size in enumerate(sizes)]
    accumulators = Accumulators(2, detail)
    for index, part in enumerate(parts):
        accumulators.add([part, -part[::2]], index=index)
    halves = [-part[::2] for part in parts]
    for place, mine in enumerate((parts, halves)):
        expected = [TensorStats.of(part, detail=detail, index=index) for index, part in enumerate(mine)]
        assert list(accumulators.stats())[place] == reduce(add, expected, TensorStats())


def test_a_sampled_histogram_counts_a_share_of_the_values_and_all_extremes() -> None:
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    exact, sampled, bare = (TensorStats.of(x, detail=detail) for detail in ("exact", "sampled", "range"))
    assert exact.scalars() == sampled.scalars() == bare.scalars()
    assert SAMPLED <= sampled.histogram.count < 4 * SAMPLED
    assert bare.histogram.count == 0
    assert sampled.histogram.exponent == exact.histogram.exponent
    small = TensorStats.of(x[:SAMPLED], detail="sampled")
    assert small.histogram == Histogram.of(x[:SAMPLED])


def test_ranges_of_so_many_samples_are_kept() -> None:
    accumulators = Accumulators(1, "range")
    for index in reversed(range(3 * RECORDED)):
        accumulators.add([np.array([-1.0, index], np.float32)], index=index)
    ranges = next(accumulators.stats()).ranges
    assert ranges.index.tolist() == ranges.high.tolist() == list(range(RECORDED))


@pytest.mark.parametrize("detail", ["exact", "sampled", "range"])
@settings(max_examples=60, deadline=None)
@given(st.lists(arrays, max_size=4), st.lists(arrays, max_size=4))
def test_what_others_found_is_added(detail: Detail, mine: list[Array], others: list[Array]) -> None:
    one, other = Accumulators(1, detail), Accumulators(1, detail)
    for index, part in enumerate(mine):
        one.add([part], index=index)
    for index, part in enumerate(others, len(mine)):
        other.add([part], index=index)
    one.absorb(other)
    expected = [TensorStats.of(part, detail=detail, index=index) for index, part in enumerate((*mine, *others))]
    assert next(one.stats()) == reduce(add, expected, TensorStats())


@pytest.mark.parametrize("counts", [(10, 3 * RECORDED), (3 * RECORDED, 10), (3 * RECORDED, 3 * RECORDED)])
def test_ranges_of_so_many_samples_are_kept_of_what_others_found(counts: tuple[int, int]) -> None:
    whole = list(range(sum(counts)))
    parts = whole[: counts[0]], whole[counts[0] :]
    one, other = Accumulators(1, "range"), Accumulators(1, "range")
    for accumulators, numbers in zip((one, other), parts, strict=True):
        for index in reversed(numbers):
            accumulators.add([np.array([-1.0, index], np.float32)], index=index)
    one.absorb(other)
    (stats,) = one.stats()
    assert stats.ranges.index.tolist() == stats.ranges.high.tolist() == whole[:RECORDED]
    assert (stats.samples, stats.high) == (len(whole), len(whole) - 1)


def test_a_sequence_that_comes_again_has_new_values() -> None:
    accumulators = Accumulators(2)
    tensors = [np.full(5, 2, np.float32), np.full(3, 3, np.float32)]
    values = ([1.0, -2.0, 0.0, 4.0, 8.0], [np.nan, 1.0, 2.0]), ([0.5] * 5, [64.0] * 3)
    places, expected = np.arange(2), [TensorStats(), TensorStats()]
    for index, row in enumerate(values):
        for place, (tensor, new) in enumerate(zip(tensors, row, strict=True)):
            tensor[:] = new
            expected[place] += TensorStats.of(tensor, index=index)
        accumulators.add_part(places, tensors)
        accumulators.end(index)
    assert list(accumulators.stats()) == expected


def test_a_sequence_with_nan_comes_again() -> None:
    accumulators, expected = Accumulators(2), [TensorStats(), TensorStats()]
    tensors = [np.full(4, np.nan, np.float32), np.array([1.0, np.inf, -3.0], np.float32)]
    for index, value in enumerate((np.nan, 2.0, np.inf, -8.0)):
        tensors[0][1:] = value
        tensors[1][0] = value
        for place, tensor in enumerate(tensors):
            expected[place] += TensorStats.of(tensor, index=index)
        accumulators.add_part(np.arange(2), tensors)
        accumulators.end(index)
    assert list(accumulators.stats()) == expected
