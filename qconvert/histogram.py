"""Statistics of a tensor as values: ``a + b`` is exact, associative and commutative.

So any order and any split of the samples agree. The bins of a histogram are ``2**exponent / BINS`` wide on each side of
zero: edges are integer multiples of a power of two, so the bins of two histograms nest and merging never moves a count
across an edge (what the order of the batches changes elsewhere).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

BINS = 4096
"""Bins on each side of zero; the largest magnitude lies in the upper half of them."""

MIN_EXPONENT = -149
"""Exponent of the smallest float32; sums are integer multiples of ``2**-149``, in which every float32 is whole."""

Counts = npt.NDArray[np.int64]

Detail = Literal["exact", "sampled", "range"]
"""Which values a histogram counts: all, every ``stride``-th, or none. Extremes are exact in any case."""

SAMPLED = 1024
"""At least so many values of a tensor in each sample are counted where not all are."""

_STRIDES = (1009, 499, 251, 127, 61, 31, 13, 7, 3)
"""Primes, so that a stride shares no factor with the sizes of a tensor but by rare chance."""


def stride(size: int) -> int:
    """Every how-manieth value of a tensor of this many is counted in a sampled histogram."""
    return next((step for step in _STRIDES if size >= SAMPLED * step and size % step), 1)


def grid_exponent(magnitude: float) -> int:
    """The smallest ``e`` with ``magnitude < 2**e``; ``MIN_EXPONENT`` for 0."""
    return math.frexp(magnitude)[1] if magnitude else MIN_EXPONENT


def _coarsen(counts: Counts, steps: int) -> Counts:
    """Merges ``2**steps`` neighbouring bins into one, from zero outwards."""
    if steps == 0:
        return counts
    merged = np.zeros(BINS, np.int64)
    width = 1 << min(steps, BINS.bit_length() - 1)
    merged[: BINS // width] = counts.reshape(-1, width).sum(1)
    return merged


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of finite values by sign and magnitude.

    ``positive[k]`` counts values in ``[k*w, (k+1)*w)`` above zero and ``negative[k]`` those in ``(-(k+1)*w, -k*w]``
    below it, with ``w = 2**exponent / BINS``; exact zeros are counted apart.

    Attributes:
        exponent: Every magnitude is below ``2**exponent``.
        negative: int64 ``[BINS]``.
        positive: int64 ``[BINS]``.
        zeros: How many values are exactly 0.
    """

    exponent: int = MIN_EXPONENT
    negative: Counts = field(default_factory=lambda: np.zeros(BINS, np.int64))
    positive: Counts = field(default_factory=lambda: np.zeros(BINS, np.int64))
    zeros: int = 0

    @classmethod
    def of(cls, values: npt.NDArray[np.float32]) -> Histogram:
        """The histogram of finite values of any shape."""
        x = np.asarray(values, np.float64).ravel()
        exponent = grid_exponent(float(np.abs(x).max())) if x.size else MIN_EXPONENT
        index = np.floor(np.ldexp(np.abs(x), BINS.bit_length() - 1 - exponent)).astype(np.int64)
        return cls(
            exponent,
            np.bincount(index[x < 0], minlength=BINS),
            np.bincount(index[x > 0], minlength=BINS),
            int((x == 0).sum()),
        )

    @property
    def width(self) -> float:
        """Width of one bin, in the unit of the tensor."""
        return math.ldexp(1.0, self.exponent) / BINS

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self.negative.sum() + self.positive.sum()) + self.zeros

    def at(self, exponent: int) -> Histogram:
        """The same counts on a grid at least as coarse; exact."""
        steps = exponent - self.exponent
        if steps < 0:
            message = f"a histogram cannot be refined from 2**{self.exponent} to 2**{exponent}"
            raise ValueError(message)
        return replace(
            self, exponent=exponent, negative=_coarsen(self.negative, steps), positive=_coarsen(self.positive, steps)
        )

    def magnitudes(self) -> Counts:
        """Counts by magnitude, ``[BINS]``, zeros in the first bin."""
        counts = self.negative + self.positive
        counts[0] += self.zeros
        return counts

    def signed(self) -> tuple[npt.NDArray[np.float64], Counts]:
        """Edges ``[2*BINS + 1]`` and counts ``[2*BINS]``, lowest value first; zeros count as just above 0."""
        counts = np.concatenate([self.negative[::-1], self.positive])
        counts[BINS] += self.zeros
        return np.arange(-BINS, BINS + 1, dtype=np.float64) * self.width, counts

    def __add__(self, other: Histogram) -> Histogram:
        exponent = max(self.exponent, other.exponent)
        a, b = self.at(exponent), other.at(exponent)
        return Histogram(exponent, a.negative + b.negative, a.positive + b.positive, a.zeros + b.zeros)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (
            self.exponent == other.exponent
            and self.zeros == other.zeros
            and np.array_equal(self.negative, other.negative)
            and np.array_equal(self.positive, other.positive)
        )

    __hash__ = None  # type: ignore[assignment]


def exact(value: float) -> int:
    """A float32 as an integer multiple of ``2**-149``, so that sums of any order agree to the last bit."""
    return int(float(value) * 2.0**-MIN_EXPONENT)


RECORDED = 1024
"""The ranges of so many samples are kept one by one, those of the lowest numbers."""


@dataclass(frozen=True, eq=False)
class SampleRanges:
    """The least and greatest finite value of single samples, in the order of the samples' numbers; ``+`` merges.

    Attributes:
        index: Number of each sample, int64 ``[n]``, ``n <= RECORDED``.
        low: float32 ``[n]``.
        high: float32 ``[n]``.
    """

    index: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    low: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    high: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def of(cls, index: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike) -> SampleRanges:
        """Of any order; equal numbers, as of two sets of samples, in the order of their ranges."""
        numbers, lows, highs = np.asarray(index, np.int64), np.asarray(low, np.float32), np.asarray(high, np.float32)
        order = np.lexsort((highs, lows, numbers))[:RECORDED]
        return cls(numbers[order], lows[order], highs[order])

    def __add__(self, other: SampleRanges) -> SampleRanges:
        if not (self.index.size and other.index.size):
            return other if other.index.size else self
        return SampleRanges.of(*(np.concatenate(pair) for pair in zip(self.parts(), other.parts(), strict=True)))

    def parts(self) -> tuple[npt.NDArray[Any], ...]:
        """The fields."""
        return self.index, self.low, self.high

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SampleRanges):
            return NotImplemented
        return all(np.array_equal(*pair) for pair in zip(self.parts(), other.parts(), strict=True))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class TensorStats:
    """What one value of the graph looked like over some samples; the empty statistics are the neutral element of ``+``.

    ``histogram.count <= values``: all of them, a regular sample of them, or none (see ``Detail``).

    Attributes:
        histogram: Counts of finite values.
        low: The least finite value, ``+inf`` where nothing was seen.
        high: The greatest finite value, ``-inf`` where nothing was seen.
        samples: In how many samples there was a finite value.
        values: How many finite values were seen.
        low_sum: Sum over the samples of each one's least finite value, in units of ``2**-149``.
        high_sum: The same of the greatest.
        nan: How many values were NaN.
        negative_inf: How many values were -Inf.
        positive_inf: How many values were +Inf.
        ranges: The ranges of the samples with the lowest numbers.
    """

    histogram: Histogram = field(default_factory=Histogram)
    low: float = math.inf
    high: float = -math.inf
    samples: int = 0
    values: int = 0
    low_sum: int = 0
    high_sum: int = 0
    nan: int = 0
    negative_inf: int = 0
    positive_inf: int = 0
    ranges: SampleRanges = field(default_factory=SampleRanges)

    @classmethod
    def of(cls, values: npt.NDArray[Any], *, detail: Detail = "exact", index: int = 0) -> TensorStats:
        """The statistics of one sample's tensor, any shape, float.

        Args:
            values: The tensor.
            detail: Which values are counted in the histogram.
            index: The sample's number.
        """
        x = np.asarray(values, np.float32).ravel()
        finite = x[np.isfinite(x)]
        nan, negative, positive = (int(found(x).sum()) for found in (np.isnan, np.isneginf, np.isposinf))
        if not finite.size:
            return cls(nan=nan, negative_inf=negative, positive_inf=positive)
        low, high = float(finite.min()) + 0.0, float(finite.max()) + 0.0
        counted = finite[:: stride(finite.size)] if detail == "sampled" else finite
        histogram = Histogram.of(counted).at(grid_exponent(max(-low, high)))
        return cls(
            Histogram() if detail == "range" else histogram,
            low,
            high,
            1,
            finite.size,
            exact(low),
            exact(high),
            nan,
            negative,
            positive,
            SampleRanges.of([index], [low], [high]),
        )

    @property
    def finite(self) -> bool:
        """Whether no NaN or Inf was seen."""
        return not (self.nan or self.negative_inf or self.positive_inf)

    @property
    def not_finite(self) -> str:
        """What was seen beside finite values, e.g. ``3 NaN, 1 -Inf``."""
        kinds = (("NaN", self.nan), ("-Inf", self.negative_inf), ("+Inf", self.positive_inf))
        return ", ".join(f"{count} {kind}" for kind, count in kinds if count)

    @property
    def mean_low(self) -> float:
        """Mean over the samples of each one's least value, correctly rounded."""
        return self.low_sum / (max(self.samples, 1) << -MIN_EXPONENT)

    @property
    def mean_high(self) -> float:
        """Mean over the samples of each one's greatest value, correctly rounded."""
        return self.high_sum / (max(self.samples, 1) << -MIN_EXPONENT)

    def __add__(self, other: TensorStats) -> TensorStats:
        return TensorStats(
            self.histogram + other.histogram,
            min(self.low, other.low),
            max(self.high, other.high),
            self.samples + other.samples,
            self.values + other.values,
            self.low_sum + other.low_sum,
            self.high_sum + other.high_sum,
            self.nan + other.nan,
            self.negative_inf + other.negative_inf,
            self.positive_inf + other.positive_inf,
            self.ranges + other.ranges,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorStats):
            return NotImplemented
        same = self.scalars() == other.scalars() and self.ranges == other.ranges
        return same and self.histogram == other.histogram

    __hash__ = None  # type: ignore[assignment]

    def scalars(self) -> tuple[float, float, int, int, int, int, int, int, int]:
        """The fields that are numbers."""
        seen = self.samples, self.values, self.low_sum, self.high_sum
        return self.low, self.high, *seen, self.nan, self.negative_inf, self.positive_inf
