"""Moving average: an exponential mean of the samples' ranges (Jacob et al. 2018, arXiv:1712.05877, section 3.1).

    low_0 = min(x_0),   low_i = low_{i-1} + c (min(x_i) - low_{i-1})       and the same of max

over the samples by number, that is by file name, one at a time: no batch, thread, shard or order of reading matters.
The names do, as in every tool that has this method: the last ``1 / c`` samples weigh most, the first one with a small
``c`` too. Where that is not wanted, ``average`` weighs all alike: it is the mean of this over all orders. The ranges of
the first ``RECORDED`` samples are kept one by one, so these take part.

The parameter that matters is ``constant``: onnxruntime's ``averaging_constant``, 0.01 there and here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from qconvert.calibrators.base import Calibrator
from qconvert.histogram import TensorStats
from qconvert.numerics import QuantType, Range


@dataclass(frozen=True)
class MovingAverage(Calibrator):
    """The exponential mean of the samples' ranges.

    Attributes:
        constant: Weight of each new sample.
    """

    needs_histogram: ClassVar[bool] = False

    constant: float = field(default=0.01, metadata={"exclusiveMinimum": 0, "maximum": 1})

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:  # noqa: ARG002 - the same for every grid
        """The moving ends; all of the data where only later samples had any."""
        ranges = stats.ranges
        if not ranges.index.size:
            return Range(stats.low, stats.high)
        return Range(self._mean(ranges.low), self._mean(ranges.high))

    def _mean(self, ends: npt.NDArray[np.float32]) -> float:
        shares = np.full(ends.size, self.constant)
        shares[0] = 1.0
        kept = np.append(np.cumprod(1 - shares[:0:-1])[::-1], 1.0)
        return float(np.sum(shares * kept * ends))
