"""The laws that every calibrator obeys, and slow references for the two that search."""

import math
import random
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.calibrators import CALIBRATORS, FROM_STATISTICS, Calibrator, make_calibrator
from qconvert.calibrators.average import Average
from qconvert.calibrators.entropy import SMOOTHING, Entropy, divergences, window
from qconvert.calibrators.minmax import MinMax
from qconvert.calibrators.mse import MSE, errors
from qconvert.calibrators.percentile import Percentile
from qconvert.errors import CalibrationError
from qconvert.histogram import BINS, TensorStats
from qconvert.numerics import INT8, QUANT_TYPES, UINT8, QuantType, Range, fake_quantize, params_from_range

Array = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """The arguments of a calibrator that are not the statistics."""

    dtype: QuantType
    symmetric: bool
    narrow_range: bool = False

    def __call__(self, calibrator: Calibrator, x: npt.ArrayLike | TensorStats) -> Range:
        stats = x if isinstance(x, TensorStats) else TensorStats.of(np.asarray(x, np.float32))
        return calibrator(stats, self.dtype, symmetric=self.symmetric, narrow_range=self.narrow_range)


GRIDS = [
    Grid(dtype, symmetric, narrow_range)
    for dtype in QUANT_TYPES.values()
    for symmetric in (True, False)
    for narrow_range in ((True, False) if dtype.signed else (False,))
]
ASYMMETRIC = [grid for grid in GRIDS if not grid.symmetric]
SYMMETRIC_INT8 = Grid(INT8, symmetric=True)
ASYMMETRIC_UINT8 = Grid(UINT8, symmetric=False)


def silu(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(x / (1 + np.exp(-x)))


SHAPES: dict[str, Callable[[np.random.Generator], npt.NDArray[np.float64]]] = {
    "gauss": lambda r: r.standard_normal(3000),
    "laplace": lambda r: r.laplace(size=3000),
    "relu": lambda r: np.maximum(r.standard_normal(3000), 0),
    "relu6": lambda r: np.clip(4 * r.standard_normal(3000), 0, 6),
    "silu": lambda r: silu(3 * r.standard_normal(3000)),
    "shifted": lambda r: r.gamma(2, 1, 3000) - 1,
    "heavy": lambda r: r.standard_t(2, 3000),
    "negative": lambda r: -r.gamma(2, 1, 3000),
    "integers": lambda r: r.integers(-3, 9, 3000).astype(np.float64),
}


def sampled(shape: str, seed: int) -> Array:
    return SHAPES[shape](np.random.default_rng(seed)).astype(np.float32)


few = st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=40).map(lambda v: np.array(v, np.float32) / 1024)
many = st.builds(sampled, st.sampled_from(sorted(SHAPES)), st.integers(0, 2**32 - 1))
data = few | many
grids = st.sampled_from(GRIDS)
every_calibrator = pytest.mark.parametrize("name", FROM_STATISTICS)
lawful = settings(max_examples=60, deadline=None)


def mean_error(x: Array, chosen: Range, grid: Grid, power: float = 2) -> float:
    params = params_from_range(
        chosen.low, chosen.high, grid.dtype, symmetric=grid.symmetric, narrow_range=grid.narrow_range
    )
    return float((np.abs(x.astype(np.float64) - fake_quantize(x, params)) ** power).mean())


# --- laws of every calibrator


@every_calibrator
@given(x=data, grid=grids)
@lawful
def test_the_range_lies_in_the_data_and_around_zero(name: str, x: Array, grid: Grid) -> None:
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    chosen = grid(make_calibrator(name), x)
    assert chosen.low <= 0 <= chosen.high
    assert (chosen.low < chosen.high) == bool(x.any())
    if grid.symmetric and (grid.dtype.signed or low < 0):
        assert -chosen.low == chosen.high <= max(-low, high)
    else:
        assert low <= chosen.low
        assert chosen.high <= high


@every_calibrator
@given(x=data, grid=grids, exponent=st.integers(-60, 60))
@lawful
def test_a_power_of_two_scales_the_range_exactly(name: str, x: Array, grid: Grid, exponent: int) -> None:
    calibrator, factor = make_calibrator(name), math.ldexp(1.0, exponent)
    chosen, scaled = grid(calibrator, x), grid(calibrator, x * np.float32(factor))
    assert scaled == Range(chosen.low * factor, chosen.high * factor)


@every_calibrator
@given(parts=st.lists(data, min_size=1, max_size=4), grid=grids, order=st.permutations(range(4)))
@lawful
def test_the_order_of_the_samples_does_not_matter(name: str, parts: list[Array], grid: Grid, order: list[int]) -> None:
    stats = [TensorStats.of(part) for part in parts]
    forwards = grid(make_calibrator(name), reduce(add, stats))
    shuffled = [stats[i] for i in order if i < len(stats)]
    assert grid(make_calibrator(name), reduce(add, shuffled)) == forwards


@every_calibrator
@pytest.mark.parametrize("grid", ASYMMETRIC, ids=str)
def test_one_sided_data_keeps_its_zero_end(name: str, grid: Grid) -> None:
    x = sampled("relu", 0)
    positive, negative = grid(make_calibrator(name), x), grid(make_calibrator(name), -x)
    assert positive.low == 0.0 < positive.high
    assert negative.high == 0.0 > negative.low
    assert math.copysign(1, positive.low) == math.copysign(1, negative.high) == 1


@every_calibrator
def test_a_symmetric_unsigned_grid_wastes_no_level_on_data_without_negatives(name: str) -> None:
    x = sampled("relu", 1)
    assert Grid(UINT8, symmetric=True)(make_calibrator(name), x) == ASYMMETRIC_UINT8(make_calibrator(name), x)


@every_calibrator
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_all_zeros(name: str, grid: Grid) -> None:
    assert grid(make_calibrator(name), np.zeros(5)) == Range(0.0, 0.0)


@every_calibrator
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("value", [3.0, -0.1, 1e-30, -3.4e38, 3.4e38])
def test_a_constant_survives_quantization(name: str, grid: Grid, value: float) -> None:
    x = np.full(7, value, np.float32)
    bin_width = 2.0 / BINS  # relative: the largest magnitude lies in the upper half of the bins
    assert mean_error(x, grid(make_calibrator(name), x), grid, power=1) <= bin_width * abs(value)


@every_calibrator
@given(values=st.lists(st.integers(-9, 9), min_size=1), grid=grids)
@lawful
def test_denormals(name: str, values: list[int], grid: Grid) -> None:
    x = np.array(values, np.float32) * np.float32(2.0**-149)
    chosen = grid(make_calibrator(name), x)
    assert math.isfinite(chosen.low)
    assert math.isfinite(chosen.high)
    assert (chosen.low < chosen.high) == any(values)


@every_calibrator
def test_nothing_seen_is_refused(name: str) -> None:
    for stats in (TensorStats(), TensorStats.of(np.zeros(0, np.float32))):
        with pytest.raises(CalibrationError, match="no value was seen") as caught:
            SYMMETRIC_INT8(make_calibrator(name), stats)
        assert caught.value.hint


@every_calibrator
@pytest.mark.parametrize(
    ("values", "seen"),
    [([1, np.nan], "1 NaN"), ([np.inf, 1, np.inf], "2 \\+Inf"), ([-np.inf, np.nan], "1 NaN, 1 -Inf")],
)
def test_nan_and_inf_are_refused(name: str, values: list[float], seen: str) -> None:
    with pytest.raises(CalibrationError, match=seen):
        SYMMETRIC_INT8(make_calibrator(name), values)


# --- the table


def test_the_table_is_in_order_and_its_rows_are_frozen() -> None:
    assert list(CALIBRATORS) == [
        *("minmax", "moving_average", "average", "percentile", "entropy", "mse"),
        *("octav", "aciq", "admm", "emd", "auto", "easyquant", "isotone"),
    ]
    for name, cls in CALIBRATORS.items():
        assert name == cls().name
        assert make_calibrator(name) == cls()
    with pytest.raises(FrozenInstanceError):
        make_calibrator("percentile").percentile = 99.0  # type: ignore[attr-defined]  # there is no such assignment


def test_parameters_reach_the_fields() -> None:
    assert make_calibrator("percentile", percentile=99) == Percentile(99)
    assert make_calibrator("entropy", bins=1024, coverage=0.9) == Entropy(bins=1024, coverage=0.9)
    assert make_calibrator("mse", power=2.4, steps=50) == MSE(power=2.4, steps=50)
    assert make_calibrator("mse") != make_calibrator("mse", power=2.4)


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(CalibrationError, match="unknown calibrator 'percentil'") as caught:
        make_calibrator("percentil")
    assert caught.value.hint == f"did you mean percentile? choices: {', '.join(CALIBRATORS)}"
    with pytest.raises(CalibrationError) as caught:
        make_calibrator("xyzzy")
    assert caught.value.hint == f"choices: {', '.join(CALIBRATORS)}"


def test_an_unknown_field_is_refused_with_the_choices() -> None:
    with pytest.raises(CalibrationError, match="mse: unknown field 'step'") as caught:
        make_calibrator("mse", step=3)
    assert caught.value.hint == "did you mean steps? choices: power, steps"
    with pytest.raises(CalibrationError, match="minmax: unknown field 'bins'") as caught:
        make_calibrator("minmax", bins=3)
    assert caught.value.hint == "it has no fields"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *(("percentile", "percentile", v) for v in (50, 100.1, -1, "99", None, True, math.nan, [99])),
        *(("entropy", "bins", v) for v in (511, 4097, 1024.0, False)),
        *(("entropy", "coverage", v) for v in (0, 1.01, math.inf)),
        *(("mse", "power", v) for v in (0.5, 9, "2")),
        *(("mse", "steps", v) for v in (3, 10_001, 20.5)),
        *(("emd", "steps", v) for v in (3, 10_001, 20.5)),
        *(("aciq", "distribution", v) for v in ("normal", "", 1, None, ["gauss"])),
        *(("admm", "rounds", v) for v in (0, 10_001, 1.5)),
    ],
)
def test_a_bad_value_is_refused(name: str, key: str, value: object) -> None:
    with pytest.raises(CalibrationError, match=f"^{name}: {key}: expected .*, got ") as caught:
        make_calibrator(name, **{key: value})
    assert repr(value) in str(caught.value)
    assert caught.value.hint


@every_calibrator
def test_the_limits_of_the_fields_are_json_schema(name: str) -> None:
    for field in fields(CALIBRATORS[name]):
        if "enum" in field.metadata:
            assert field.metadata["type"] == "string"
            assert field.default in field.metadata["enum"]
            for choice in field.metadata["enum"]:
                make_calibrator(name, **{field.name: choice})
            continue
        assert set(field.metadata) <= {"exclusiveMinimum", "minimum", "maximum"}
        for word in set(field.metadata) - {"exclusiveMinimum"}:
            make_calibrator(name, **{field.name: field.metadata[word]})


# --- minmax, average, percentile


@given(x=data)
@lawful
def test_minmax_is_the_range_of_the_data(x: Array) -> None:
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    assert ASYMMETRIC_UINT8(MinMax(), x) == Range(low, high)
    assert SYMMETRIC_INT8(MinMax(), x).high == max(-low, high)


@given(parts=st.lists(data, min_size=1, max_size=5))
@lawful
def test_average_is_the_mean_of_the_samples_ranges(parts: list[Array]) -> None:
    stats = reduce(add, map(TensorStats.of, parts))
    low = min(float(np.mean([part.min() for part in parts], dtype=np.float64)), 0.0)
    high = max(float(np.mean([part.max() for part in parts], dtype=np.float64)), 0.0)
    chosen = ASYMMETRIC_UINT8(Average(), stats)
    if low < high:
        assert chosen.low == pytest.approx(low)
        assert chosen.high == pytest.approx(high)
    else:
        assert chosen == ASYMMETRIC_UINT8(MinMax(), stats)


@lawful
@given(st.lists(data, min_size=1, max_size=12), st.floats(0.001, 1), st.randoms(use_true_random=False))
def test_moving_average_is_the_plain_loop_over_the_samples_by_number(
    parts: list[Array], constant: float, order: random.Random
) -> None:
    low, high = (float(end(parts[0])) for end in (np.min, np.max))
    for x in parts[1:]:
        low += constant * (float(x.min()) - low)
        high += constant * (float(x.max()) - high)
    shuffled = list(enumerate(parts))
    order.shuffle(shuffled)
    stats = sum((TensorStats.of(x, index=index) for index, x in shuffled), TensorStats())
    found = make_calibrator("moving_average", constant=constant).search(
        stats, QUANT_TYPES["int8"], symmetric=False, narrow_range=False
    )
    reach = max(abs(stats.low), abs(stats.high))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9 * reach)


@every_calibrator
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_one_outlier_of_1e30_neither_breaks_nor_escapes(name: str, grid: Grid) -> None:
    x = np.append(np.random.default_rng(0).standard_normal(10_000), 1e30).astype(np.float32)
    found = make_calibrator(name)(TensorStats.of(x), grid.dtype, symmetric=grid.symmetric)
    assert -1e30 * (1 + 1e-6) <= found.low <= 0 < found.high <= 1e30 * (1 + 1e-6)


def test_average_of_samples_that_cancel_keeps_the_data() -> None:
    stats = TensorStats.of(np.ones(3, np.float32)) + TensorStats.of(-np.ones(3, np.float32))
    assert ASYMMETRIC_UINT8(Average(), stats) == Range(-1.0, 1.0)


@given(x=data, percentile=st.floats(50.5, 100))
@lawful
def test_percentile_loses_its_share_at_each_end(x: Array, percentile: float) -> None:
    share = (100 - percentile) / 100 * x.size
    width = TensorStats.of(x).histogram.width
    chosen = ASYMMETRIC_UINT8(Percentile(percentile), x)
    if chosen != ASYMMETRIC_UINT8(MinMax(), x):  # what an empty percentile range falls back to
        assert (x > chosen.high + width).sum() <= share
        assert (x < chosen.low - width).sum() <= share
        assert chosen.high == 0 or (x >= chosen.high - width).sum() >= share
        assert chosen.low == 0 or (x <= chosen.low + width).sum() >= share
    mirrored = SYMMETRIC_INT8(Percentile(percentile), x)
    assert (np.abs(x) > mirrored.high + width).sum() <= share


@pytest.mark.parametrize("shape", ["gauss", "laplace", "relu", "silu", "heavy"])
def test_percentile_agrees_with_numpy(shape: str) -> None:
    x = sampled(shape, 3)
    width = TensorStats.of(x).histogram.width
    chosen = ASYMMETRIC_UINT8(Percentile(99.0), x)
    gap = 2 * width + float(np.diff(np.sort(np.abs(x)))[-60:].max())
    assert chosen.high == pytest.approx(float(np.percentile(x, 99)), abs=gap)
    assert chosen.low == pytest.approx(min(float(np.percentile(x, 1)), 0), abs=gap)
    assert SYMMETRIC_INT8(Percentile(99.0), x).high == pytest.approx(float(np.percentile(np.abs(x), 99)), abs=gap)


def test_percentile_counts_zeros_and_never_clips_everything() -> None:
    x = np.zeros(10_000, np.float32)
    x[:200] = np.linspace(1, 2, 200)
    assert ASYMMETRIC_UINT8(Percentile(99), x).high == pytest.approx(1.5, abs=0.01)
    assert ASYMMETRIC_UINT8(Percentile(97), x) == Range(0.0, 2.0)
    assert ASYMMETRIC_UINT8(Percentile(100), x) == Range(0.0, 2.0)


# --- entropy


def slow_quantized(counts: npt.ArrayLike, levels: int, support: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
    """Q of one window: each level's mass over the filled bins, bins on a cut shared in proportion."""
    counts = np.asarray(counts, np.float64)
    filled = counts > 0 if support is None else np.asarray(support)
    q = np.zeros(counts.size)
    for level in range(levels):
        start, stop = level * counts.size / levels, (level + 1) * counts.size / levels
        overlap = np.array([max(0.0, min(stop, k + 1) - max(start, k)) for k in range(counts.size)])
        spread = (overlap * filled).sum()
        if spread > 0:
            q += overlap * filled * (overlap * counts).sum() / spread
    return q


def slow_divergence(counts: Counts, start: int, stop: int, levels: int) -> float:
    p = counts[start:stop].astype(np.float64)
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    q = slow_quantized(counts[start:stop], levels, p > 0)
    q = np.where((p > 0) & (q == 0), SMOOTHING * counts.sum(), q)
    p, q = p / p.sum(), q / q.sum()
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


histograms = st.lists(st.integers(0, 60) | st.just(0), min_size=8, max_size=40).filter(any).map(np.array)


def test_the_example_of_the_talk() -> None:
    p = np.array([1, 0, 2, 3, 5, 3, 1, 7])
    assert slow_quantized(p, 2).tolist() == [2, 0, 2, 2, 4, 4, 4, 4]
    assert slow_divergence(p, 0, 8, 2) == pytest.approx(0.15031526533674186, rel=1e-12)
    assert divergences(p, np.array([0]), np.array([8]), 2)[0] == pytest.approx(0.15031526533674186, rel=1e-12)


@given(counts=histograms, levels=st.integers(2, 8), draw=st.data())
@lawful
def test_the_divergence_agrees_with_the_slow_one(counts: Counts, levels: int, draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, counts.size - levels))
    stop = draw.draw(st.integers(start + levels, counts.size))
    fast = float(divergences(counts, np.array([start]), np.array([stop]), levels)[0])
    assert fast == pytest.approx(slow_divergence(counts, start, stop, levels), rel=1e-9, abs=1e-12)
    assert fast >= -1e-12


@given(above=histograms, levels=st.integers(2, 8), coverage=st.sampled_from([0.5, 0.9, 0.999]))
@lawful
def test_the_scan_of_one_side_agrees_with_the_slow_one(above: Counts, levels: int, coverage: float) -> None:
    end = int(np.flatnonzero(above)[-1]) + 1
    low, high = window(np.zeros_like(above), above, levels, coverage=coverage)
    assert low == 0
    assert window(above, np.zeros_like(above), levels, coverage=coverage) == (high, 0)
    counts = np.concatenate([above[1:2], above[1:end]])
    if end <= levels or not counts.any():
        assert high == end
        return
    spare = (1 - coverage) * above.sum()
    candidates = [i for i in range(levels, end + 1) if above[i:].sum() <= spare]
    losses = [slow_divergence(counts, 0, i, levels) for i in candidates]
    assert slow_divergence(counts, 0, high, levels) <= min(losses) + 1e-8
    assert high in candidates


@given(below=histograms, above=histograms, levels=st.integers(2, 12))
@lawful
def test_the_scan_of_two_sides_beats_every_single_threshold(below: Counts, above: Counts, levels: int) -> None:
    size = max(below.size, above.size)
    below, above = np.pad(below, (0, size - below.size)), np.pad(above, (0, size - above.size))
    low_end, high_end = (int(np.flatnonzero(side)[-1]) + 1 for side in (below, above))
    counts = np.concatenate([below[1:low_end][::-1], below[1:2], above[1:2], above[1:high_end]])
    low, high = window(below, above, levels, coverage=0.9)
    assert below[low:].sum() + above[high:].sum() <= 0.1 * (below.sum() + above.sum()) + 1e-9
    if low_end + high_end <= levels or not counts.any():
        assert (low, high) == (low_end, high_end)
        return
    spare = (1 - 0.9) * float(below.sum() + above.sum()) / 2
    low_floor, high_floor = (int(np.argmax([s[i:].sum() <= spare for i in range(size + 1)])) for s in (below, above))
    ends = [(min(max(i, low_floor), low_end), min(max(i, high_floor), high_end)) for i in range(size + 1)]
    losses = [slow_divergence(counts, low_end - a, low_end + b, levels) for a, b in ends if a + b >= levels]
    assert slow_divergence(counts, low_end - low, low_end + high, levels) <= min(losses) + 1e-8


@given(x=many, grid=grids)
@lawful
def test_entropy_never_clips_more_than_its_coverage_allows(x: Array, grid: Grid) -> None:
    chosen = grid(Entropy(), x)
    assert ((x < chosen.low) | (x > chosen.high)).sum() <= 0.001 * np.count_nonzero(x)


@pytest.mark.parametrize("grid", [SYMMETRIC_INT8, ASYMMETRIC_UINT8, Grid(QUANT_TYPES["int4"], symmetric=True)], ids=str)
def test_entropy_is_not_minmax_where_there_is_an_outlier(grid: Grid) -> None:
    x = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    x[0] = 100
    chosen = grid(Entropy(), x)
    assert chosen.high < 20 < grid(MinMax(), x).high
    assert chosen.high > 1


def test_entropy_keeps_the_spike_of_relu6() -> None:
    x = np.clip(3 * np.random.default_rng(0).standard_normal(50_000), 0, 6)
    assert ASYMMETRIC_UINT8(Entropy(), x).high == 6
    assert SYMMETRIC_INT8(Entropy(), x).high == 6


def test_entropy_clips_nothing_where_levels_outnumber_bins() -> None:
    x = sampled("heavy", 0)
    for symmetric in (True, False):
        grid = Grid(QUANT_TYPES["int16"], symmetric=symmetric)
        assert grid(Entropy(), x) == grid(MinMax(), x)


# --- mse


@given(
    bins=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 50)), min_size=1, max_size=8),
    start=st.integers(-90, 20),
    scale=st.sampled_from([0.3, 1.0, 2.5, 7.0, 40.0]),
    levels=st.tuples(st.integers(-8, 0), st.integers(0, 8)),
    power=st.sampled_from([1.0, 2.0, 2.4, 3.0]),
)
@lawful
def test_the_error_agrees_with_numerical_integration(
    *, bins: list[tuple[int, int]], start: int, scale: float, levels: tuple[int, int], power: float
) -> None:
    edges = start + np.cumsum([0, *(width for width, _ in bins)])
    wanted = 0.0
    for edge, (width, count) in zip(edges, bins, strict=False):
        x = edge + width * (np.arange(4000) + 0.5) / 4000
        wanted += count * (np.abs(x - scale * np.clip(np.rint(x / scale), *levels)) ** power).mean()
    falls = -np.diff([count / width for width, count in bins], prepend=0, append=0)
    first, last = (np.array([level], np.int32) for level in levels)
    got = errors(edges.astype(np.float64), falls, np.array([scale]), first, last, power=power)
    assert got[0] == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["int2", "uint2", "int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("power", [2.0, 3.0])
def test_mse_is_as_good_as_the_best_of_many_symmetric_ranges(shape: str, dtype: str, power: float) -> None:
    x, grid = sampled(shape, 5), Grid(QUANT_TYPES[dtype], symmetric=True)
    whole = grid(MinMax(), x)
    tried = [Range(whole.low * k / 100, whole.high * k / 100) for k in range(1, 101)]
    best = min(mean_error(x, chosen, grid, power) for chosen in tried)
    assert mean_error(x, grid(MSE(power=power), x), grid, power) <= 1.02 * best


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["uint2", "uint4", "int8"])
def test_mse_is_nearly_as_good_as_the_best_of_many_asymmetric_ranges(shape: str, dtype: str) -> None:
    x, grid = sampled(shape, 6), Grid(QUANT_TYPES[dtype], symmetric=False)
    whole = grid(MinMax(), x)
    tried = {(whole.low * i / 20, whole.high * j / 20) for i in range(1, 21) for j in range(1, 21)}
    best = min(mean_error(x, Range(low, high), grid) for low, high in tried)
    assert mean_error(x, grid(MSE(), x), grid) <= 1.05 * best


@given(x=few.filter(np.any), bits=st.sampled_from([2, 4, 8]), narrow_range=st.booleans())
@lawful
def test_mse_of_few_values_is_as_good_as_the_best_of_many_ranges(x: Array, bits: int, narrow_range: bool) -> None:
    grid = Grid(QUANT_TYPES[f"int{bits}"], symmetric=True, narrow_range=narrow_range)
    whole = grid(MinMax(), x)
    best = min(mean_error(x, Range(whole.low * k / 100, whole.high * k / 100), grid) for k in range(1, 101))
    bin_noise = TensorStats.of(x).histogram.width
    assert math.sqrt(mean_error(x, grid(MSE(), x), grid)) <= math.sqrt(best) + 2 * bin_noise


@pytest.mark.parametrize("name", ["entropy", "mse", "octav", "aciq", "admm", "emd"])
@given(x=many, grid=grids, zeros=st.integers(1, 10_000))
@lawful
def test_exact_zeros_do_not_move_what_is_searched(name: str, x: Array, grid: Grid, zeros: int) -> None:
    padded = np.concatenate([x, np.zeros(zeros, np.float32)])
    assert grid(make_calibrator(name), padded) == grid(make_calibrator(name), x)


# --- thresholds of other implementations: int8 symmetric, 200 000 samples, seed 1234

TABLE = [
    # data, entropy of ncnn, MNN, NVIDIA and Paddle (least, greatest), best squared error
    ("laplace", 9.67, 9.91, 9.89),
    ("gauss", 4.27, 4.50, 3.92),
    ("relu", 4.06, 4.24, 3.85),
]


@pytest.fixture(scope="module")
def published() -> dict[str, Array]:
    random = np.random.default_rng(1234)
    n = 200_000
    drawn = [random.laplace(size=n), random.standard_normal(n), np.maximum(random.standard_normal(n), 0)]
    return {row[0]: x.astype(np.float32) for row, x in zip(TABLE, drawn, strict=True)}


@pytest.mark.parametrize(("shape", "least", "greatest", "squared"), TABLE)
def test_thresholds_agree_with_other_implementations(
    published: dict[str, Array], shape: str, least: float, greatest: float, squared: float
) -> None:
    x = published[shape]
    assert least - 0.01 <= SYMMETRIC_INT8(Entropy(), x).high <= greatest + 0.01
    assert SYMMETRIC_INT8(MSE(), x).high == pytest.approx(squared, rel=0.025)
