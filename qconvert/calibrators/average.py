"""Average: the mean over the samples of each sample's least and greatest value (PaddleSlim's ``avg`` observer).

``low = mean_i min(x_i), high = mean_i max(x_i)``, extended to 0; symmetric: the larger magnitude of the two. No parameter: the sample is
the unit, so batches must be taken apart before (``TensorStats`` does), and the result depends on neither their order nor their size.
One sample's outlier moves the range by ``1 / samples`` of its distance.
"""

from __future__ import annotations

from dataclasses import dataclass

from qconvert.calibrators.base import Calibrator
from qconvert.histogram import TensorStats
from qconvert.numerics import QuantType, Range


@dataclass(frozen=True)
class Average(Calibrator):
    """The mean of the samples' ranges; all of the data where that mean is empty, as for samples -1 and +1."""

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:  # noqa: ARG002 - the same for every grid
        """The mean least and the mean greatest value."""
        return Range(stats.mean_low, stats.mean_high)
