"""Fast accumulation of TensorStats, one sample at a time; ``TensorStats.of`` and ``+`` say what it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qconvert import kernels
from qconvert.histogram import BINS, MIN_EXPONENT, Histogram, TensorStats, exact, grid_exponent

FLOAT32_SAFE_EXPONENT = -100
"""Below this grid the kernel's float32 scale would overflow; such tensors take the float64 path."""


@dataclass
class Accumulator:
    """Statistics of one value under construction; one for each thread, merged at the end."""

    histogram: Histogram = field(default_factory=Histogram)
    low: float = math.inf
    high: float = -math.inf
    samples: int = 0
    low_sum: int = 0
    high_sum: int = 0
    nan: int = 0
    negative_inf: int = 0
    positive_inf: int = 0

    def add(self, values: npt.NDArray[Any], tables: npt.NDArray[np.uint32]) -> bool:
        """Adds one sample's tensor; returns whether all its values were finite.

        Args:
            values: The tensor, any shape, float.
            tables: Scratch memory of the thread, uint32 ``[kernels.TABLES, 2 * BINS]``, all 0.
        """
        x = np.ascontiguousarray(values, np.float32).reshape(-1)
        self.samples += 1
        if x.size == 0:
            return True
        low, high = float(x.min()), float(x.max())
        finite = math.isfinite(low) and math.isfinite(high)
        if not finite:
            self._count_non_finite(x)
            x = x[np.isfinite(x)]
            if x.size == 0:
                return False
            low, high = float(x.min()), float(x.max())
        self.low, self.high = min(self.low, low + 0.0), max(self.high, high + 0.0)
        self.low_sum += exact(low)
        self.high_sum += exact(high)
        self._fill(x, grid_exponent(max(-low, high)), tables)
        return finite

    def _count_non_finite(self, x: npt.NDArray[np.float32]) -> None:
        self.nan += int(np.isnan(x).sum())
        self.negative_inf += int(np.isneginf(x).sum())
        self.positive_inf += int(np.isposinf(x).sum())

    def _fill(self, x: npt.NDArray[np.float32], exponent: int, tables: npt.NDArray[np.uint32]) -> None:
        exponent = max(exponent, self.histogram.exponent)
        if exponent <= max(FLOAT32_SAFE_EXPONENT, MIN_EXPONENT):
            self.histogram += Histogram.of(x)
            return
        base = self.histogram.at(exponent)
        kernels.fill(x, np.float32(math.ldexp(BINS, -exponent)), tables)
        counts = tables.sum(0, dtype=np.int64)
        tables[:] = 0
        zeros = x.size - int(np.count_nonzero(x))
        counts[0] -= zeros
        self.histogram = Histogram(exponent, base.negative + counts[BINS:], base.positive + counts[:BINS], base.zeros + zeros)

    def stats(self) -> TensorStats:
        """The statistics so far."""
        return TensorStats(
            self.histogram,
            self.low,
            self.high,
            self.samples,
            self.low_sum,
            self.high_sum,
            self.nan,
            self.negative_inf,
            self.positive_inf,
        )


def scratch() -> npt.NDArray[np.uint32]:
    """Scratch memory for one thread."""
    return np.zeros((kernels.TABLES, 2 * BINS), np.uint32)
