"""Fast accumulation of TensorStats, one sample at a time; ``TensorStats.of`` and ``+`` say what it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qconvert import kernels
from qconvert.histogram import (
    BINS,
    MIN_EXPONENT,
    RECORDED,
    Detail,
    Histogram,
    SampleRanges,
    TensorStats,
    exact,
    grid_exponent,
    stride,
)

FLOAT32_SAFE_EXPONENT = -100
"""Below this grid the kernel's float32 scale would overflow; such tensors take the float64 path."""


@dataclass
class Accumulator:
    """Statistics of one value under construction; one for each thread, merged at the end.

    ``counts`` holds the positive side of the histogram, then the negative one; zeros are counted apart.
    """

    detail: Detail = "exact"
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))
    exponent: int = MIN_EXPONENT
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf
    samples: int = 0
    values: int = 0
    low_sum: int = 0
    high_sum: int = 0
    nan: int = 0
    negative_inf: int = 0
    positive_inf: int = 0
    ranges: list[tuple[int, float, float]] = field(default_factory=list)

    def add(self, values: npt.NDArray[Any], tables: npt.NDArray[np.uint16], *, index: int = 0) -> bool:
        """Adds one sample's tensor; returns whether all its values were finite.

        Args:
            values: The tensor, any shape, float.
            tables: Scratch memory of the thread, as ``scratch`` makes it.
            index: The sample's number.
        """
        x = np.ascontiguousarray(values, np.float32).reshape(-1)
        if x.size == 0:
            return True
        low, high, zeros = _extremes(x)
        finite = math.isfinite(low) and math.isfinite(high)
        if not finite:
            self._count_non_finite(x)
            x = x[np.isfinite(x)]
            if x.size == 0:
                return False
            low, high, zeros = _extremes(x)
        self.samples += 1
        self.values += x.size
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.low_sum += exact(low)
        self.high_sum += exact(high)
        self.ranges.append((index, low, high))
        if len(self.ranges) > 2 * RECORDED:
            self.ranges = SampleRanges.of(self.ranges).rows()
        if self.detail == "sampled" and (step := stride(x.size)) > 1:
            x = np.ascontiguousarray(x[::step])
            zeros = x.size - int(np.count_nonzero(x))
        if self.detail != "range":
            self._fill(x, grid_exponent(max(-low, high)), zeros, tables)
        return finite

    def _count_non_finite(self, x: npt.NDArray[np.float32]) -> None:
        self.nan += int(np.isnan(x).sum())
        self.negative_inf += int(np.isneginf(x).sum())
        self.positive_inf += int(np.isposinf(x).sum())

    def _fill(self, x: npt.NDArray[np.float32], exponent: int, zeros: int, tables: npt.NDArray[np.uint16]) -> None:
        if exponent > self.exponent:
            self._set(self._histogram().at(exponent))
        if self.exponent <= FLOAT32_SAFE_EXPONENT:
            self._set(self._histogram() + Histogram.of(x))
            return
        scale = np.float32(math.ldexp(BINS, -self.exponent))
        for start in range(0, x.size, kernels.BLOCK):
            kernels.fill(x[start : start + kernels.BLOCK], scale, tables)
            kernels.drain(tables, self.counts)
        self.counts[0] -= zeros
        self.zeros += zeros

    def _histogram(self) -> Histogram:
        return Histogram(self.exponent, self.counts[BINS:].copy(), self.counts[:BINS].copy(), self.zeros)

    def _set(self, histogram: Histogram) -> None:
        self.exponent, self.zeros = histogram.exponent, histogram.zeros
        self.counts[:BINS], self.counts[BINS:] = histogram.positive, histogram.negative

    def stats(self) -> TensorStats:
        """The statistics so far."""
        return TensorStats(
            self._histogram(),
            self.low,
            self.high,
            self.samples,
            self.values,
            self.low_sum,
            self.high_sum,
            self.nan,
            self.negative_inf,
            self.positive_inf,
            SampleRanges.of(self.ranges),
        )


def _extremes(x: npt.NDArray[np.float32]) -> tuple[float, float, int]:
    """Least value, greatest value, zeros; the first two are not finite where the data is not."""
    low, high, zeros = kernels.extremes(x.view(np.int32))
    return kernels.real(low), kernels.real(high), zeros


def scratch() -> npt.NDArray[np.uint16]:
    """Scratch memory for one thread, ``[kernels.TABLES, 2 * BINS]``, all 0 between uses."""
    return np.zeros((kernels.TABLES, 2 * BINS), np.uint16)
