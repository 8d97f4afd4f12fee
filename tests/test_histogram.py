"""The algebra of statistics: any order and any split of the samples gives the same value."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qconvert.histogram import BINS, MIN_EXPONENT, Histogram, TensorStats, exact, grid_exponent

Array = npt.NDArray[np.float32]

SMALLEST, LARGEST = 2.0**-149, float(np.finfo(np.float32).max)
EDGES = [0.0, -0.0, 1.0, -1.0, SMALLEST, -SMALLEST, 1e-40, 2.0**-126, 1e30, -1e30, LARGEST, -LARGEST, 2.0, 4096.0, 0.1]

finite = st.one_of(st.sampled_from(EDGES), st.floats(width=32, allow_nan=False, allow_infinity=False))
anything = st.one_of(finite, st.floats(width=32))
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
finite_arrays = hnp.arrays(np.float32, shapes, elements=finite)
arrays = hnp.arrays(np.float32, shapes, elements=anything)
samples = st.lists(arrays, max_size=6)
law = settings(max_examples=50, deadline=None)


def f32(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def total(parts: list[Array]) -> TensorStats:
    return reduce(add, map(TensorStats.of, parts), TensorStats())


def reference(x: Array, exponent: int) -> Histogram:
    """Every value dropped into its bin with exact arithmetic, one at a time."""
    negative, positive = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    zeros = 0
    width = Fraction(2) ** exponent / BINS
    for value in map(float, x.reshape(-1)):
        if value == 0:
            zeros += 1
        else:
            (positive if value > 0 else negative)[math.floor(abs(Fraction(value)) / width)] += 1
    return Histogram(exponent, negative, positive, zeros)


# --- one histogram ---


@law
@given(finite_arrays)
def test_counts_equal_exact_arithmetic(x: Array) -> None:
    made = Histogram.of(x)
    assert made == reference(x, made.exponent)
    assert made.count == x.size


@law
@given(finite_arrays.filter(lambda x: bool(np.any(x))))
def test_largest_magnitude_lies_in_the_upper_half(x: Array) -> None:
    made = Histogram.of(x)
    used = int(np.flatnonzero(made.negative + made.positive).max())
    assert BINS // 2 <= used < BINS
    assert float(np.abs(x).max()) < math.ldexp(1, made.exponent)


@pytest.mark.parametrize("kind", ["gauss", "uniform", "heavy", "halves"])
def test_signed_counts_equal_numpy_on_the_same_edges(kind: str) -> None:
    rng = np.random.default_rng(0)
    x = {
        "gauss": rng.standard_normal(20_000),
        "uniform": rng.uniform(-3, 5, 20_000),
        "heavy": rng.standard_cauchy(20_000),
        "halves": rng.integers(-4096, 4096, 20_000) / 512,
    }[kind].astype(np.float32)
    edges, counts = Histogram.of(x).signed()
    assert (str(edges.dtype), str(counts.dtype)) == ("float64", "int64")
    assert (len(edges), len(counts)) == (2 * BINS + 1, 2 * BINS)
    # below zero the bins are closed on the other side
    positive, _ = np.histogram(x[x >= 0].astype(np.float64), edges[BINS:])
    negative, _ = np.histogram(-x[x < 0].astype(np.float64), edges[BINS:])
    np.testing.assert_array_equal(counts, np.concatenate([negative[::-1], positive]))


def test_magnitudes_hold_everything() -> None:
    made = Histogram.of(f32(-0.75, 0.75, 0.5, 0, -0.0))
    magnitudes = made.magnitudes()
    assert {int(k): int(magnitudes[k]) for k in np.flatnonzero(magnitudes)} == {0: 2, 2048: 1, 3072: 2}
    assert made.magnitudes().sum() == made.count == 5
    assert made.positive[0] == 0, "asking for magnitudes must not change the histogram"


def test_zeros_of_both_signs_are_counted_apart() -> None:
    made = Histogram.of(f32(0.0, -0.0, 0.0))
    assert (made.zeros, made.exponent, int(made.negative.sum()), int(made.positive.sum())) == (3, MIN_EXPONENT, 0, 0)


def test_smallest_and_largest_floats() -> None:
    small = Histogram.of(f32(SMALLEST, -SMALLEST, 3 * SMALLEST))
    assert (small.zeros, small.count) == (0, 3)
    assert small.exponent == -147
    assert small.positive[1024] == small.negative[1024] == small.positive[3072] == 1
    large = Histogram.of(f32(LARGEST, -LARGEST))
    assert large.exponent == 128
    assert large.positive[-1] == large.negative[-1] == 1


def test_an_outlier_pushes_the_rest_into_the_first_bin() -> None:
    x = np.append(np.random.default_rng(0).standard_normal(1000), 1e30).astype(np.float32)
    made = Histogram.of(x)
    assert made.count == 1001
    assert made.positive[0] + made.negative[0] == 1000
    assert Histogram.of(x[:-1]) + Histogram.of(x[-1:]) == made


@pytest.mark.parametrize(
    ("value", "exponent"), [(0, -149), (1, 1), (0.99, 0), (2, 2), (SMALLEST, -148), (LARGEST, 128)]
)
def test_grid_exponent(value: float, exponent: int) -> None:
    assert grid_exponent(value) == exponent
    assert value < 2.0**exponent


@law
@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-64, 64, width=32)), st.integers(-20, 20))
def test_scaling_by_a_power_of_two_moves_the_grid_alone(x: Array, power: int) -> None:
    x = np.where(np.abs(x) < 2.0**-60, 0, x).astype(np.float32)
    before, after = Histogram.of(x), Histogram.of(np.ldexp(x, power))
    np.testing.assert_array_equal(before.positive, after.positive)
    np.testing.assert_array_equal(before.negative, after.negative)
    assert before.zeros == after.zeros
    if np.any(x):
        assert after.exponent - before.exponent == power


@law
@given(finite_arrays)
def test_negation_swaps_the_sides(x: Array) -> None:
    a, b = Histogram.of(x), Histogram.of(-x)
    assert Histogram(a.exponent, a.positive, a.negative, a.zeros) == b


# --- coarser grids ---


@law
@given(finite_arrays, st.integers(0, 30))
def test_a_coarser_grid_is_the_grid_of_the_values(x: Array, steps: int) -> None:
    made = Histogram.of(x)
    assert made.at(made.exponent + steps) == reference(x, made.exponent + steps)
    assert made.at(made.exponent) == made


def test_a_finer_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be refined"):
        Histogram.of(f32(1)).at(0)


# --- the algebra ---


@law
@given(finite_arrays, finite_arrays, finite_arrays)
def test_histograms_form_a_commutative_monoid(x: Array, y: Array, z: Array) -> None:
    a, b, c = map(Histogram.of, (x, y, z))
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Histogram() == a == Histogram() + a
    assert a + b + c == Histogram.of(np.concatenate([x.ravel(), y.ravel(), z.ravel()]))


@law
@given(arrays, arrays, arrays)
def test_statistics_form_a_commutative_monoid(x: Array, y: Array, z: Array) -> None:
    a, b, c = map(TensorStats.of, (x, y, z))
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + TensorStats() == a == TensorStats() + a


@law
@given(samples, st.randoms(use_true_random=False), st.integers(1, 4))
def test_any_order_and_any_split_agree(parts: list[Array], order: random.Random, shards: int) -> None:
    shuffled = list(parts)
    order.shuffle(shuffled)
    split = [total(shuffled[k::shards]) for k in range(shards)]
    order.shuffle(split)
    assert reduce(add, split) == total(parts)


@law
@given(samples)
def test_statistics_equal_a_plain_reference(parts: list[Array]) -> None:
    made = total(parts)
    flat = np.concatenate([f32(), *(x.ravel() for x in parts)])
    values = flat[np.isfinite(flat)]
    assert (made.samples, made.values) == (sum(bool(np.isfinite(x).any()) for x in parts), values.size)
    assert (made.nan, made.negative_inf, made.positive_inf) == (
        np.isnan(flat).sum(),
        np.isneginf(flat).sum(),
        np.isposinf(flat).sum(),
    )
    assert made.finite == (values.size == flat.size)
    assert made.low == (values.min() if values.size else math.inf)
    assert made.high == (values.max() if values.size else -math.inf)
    lows = [Fraction(float(x[np.isfinite(x)].min())) for x in parts if np.isfinite(x).any()]
    highs = [Fraction(float(x[np.isfinite(x)].max())) for x in parts if np.isfinite(x).any()]
    assert made.mean_low == float(sum(lows, Fraction()) / max(len(lows), 1))
    assert made.mean_high == float(sum(highs, Fraction()) / max(len(lows), 1))


def test_sums_of_extremes_do_not_round() -> None:
    parts = [f32(LARGEST), f32(SMALLEST), f32(-LARGEST)]
    assert total(parts).mean_high == SMALLEST / 3
    assert total(parts[::-1]).mean_high == SMALLEST / 3


def test_means_are_correctly_rounded() -> None:
    numbers = f32(
        -1.599658958184591e-06, 2.395117437714589e-09, 923.837890625
    )  # where rounding the sum first is 1 ulp off
    assert total([f32(x) for x in numbers]).mean_low == float(sum(map(Fraction, numbers.tolist())) / 3)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@law
def test_every_float32_is_a_whole_number_of_the_smallest(value: float) -> None:
    assert Fraction(exact(value)) / 2**149 == Fraction(value)


def test_minus_zero_is_zero() -> None:
    a, b = TensorStats.of(f32(-0.0)), TensorStats.of(f32(0.0))
    assert a == b
    assert math.copysign(1, a.low) == math.copysign(1, a.high) == 1


def test_equality_sees_every_field() -> None:
    x = f32(-1, 2)
    different = [f32(-1, 2, np.nan), f32(-1, 2, np.inf), f32(-1, 2, -np.inf), f32(-1, 2, 2), f32(-1, 2, 0), f32(-1, 3)]
    assert all(TensorStats.of(other) != TensorStats.of(x) for other in different)
    assert TensorStats.of(x) + TensorStats(samples=1) != TensorStats.of(x)
    assert TensorStats.of(x) != "statistics"
    assert Histogram.of(x) != "histogram"
    for value in (TensorStats.of(x), Histogram.of(x)):
        with pytest.raises(TypeError):
            hash(value)


def test_adding_leaves_both_sides_as_they_were() -> None:
    a, b = Histogram.of(f32(1, 2)), Histogram.of(f32(-8))
    before = Histogram.of(f32(1, 2)), Histogram.of(f32(-8))
    assert (a + b).count == 3
    assert (a, b) == before
