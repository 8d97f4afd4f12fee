"""Average: the mean over the samples of each sample's least and greatest value (PaddleSlim's ``avg`` observer).

    low = mean_i min(x_i),  high = mean_i max(x_i)

Symmetric: the larger magnitude of the two. No parameter: the sample is the unit, so one outlier moves the range by its
distance over the number of samples, and neither the order nor the size of batches matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qconvert.calibrators.base import Calibrator
from qconvert.histogram import TensorStats
from qconvert.numerics import QuantType, Range


@dataclass(frozen=True)
class Average(Calibrator):
    """The mean of the samples' ranges; all of the data where that mean is empty, as for samples -1 and +1."""

    needs_histogram: ClassVar[bool] = False

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:  # noqa: ARG002 - the same for every grid
        """The mean least and the mean greatest value."""
        return Range(stats.mean_low, stats.mean_high)
