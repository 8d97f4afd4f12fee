"""MinMax: the range of everything seen, nothing clipped (Jacob et al. 2018, arXiv:1712.05877).

``low = min(x), high = max(x)`` over all samples. No parameter: one outlier sets the step of the whole grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qconvert.calibrators.base import Calibrator
from qconvert.histogram import TensorStats
from qconvert.numerics import QuantType, Range


@dataclass(frozen=True)
class MinMax(Calibrator):
    """The least and the greatest value."""

    needs_histogram: ClassVar[bool] = False

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:  # noqa: ARG002 - the same for every grid
        """The range of the data."""
        return Range(stats.low, stats.high)
