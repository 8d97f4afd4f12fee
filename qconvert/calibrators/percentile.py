"""Percentile: clips a fixed share of the values at either end.

Source: McKinstry et al. 2018, arXiv:1809.04191; Wu et al. 2020, arXiv:2004.09602.

``high`` is the ``percentile``-th percentile of x and ``low`` the ``(100 - percentile)``-th: each end loses the share
``t = 1 - percentile / 100`` of all values. Symmetric: the percentile of ``|x|``, which loses ``t`` in all. Zeros count
as values: where ``t`` of them or fewer lie above 0, ``high`` is 0. Inside a bin the values are taken as evenly spread.

The parameter that matters is ``percentile``: 99.99 is NVIDIA's, 100 is minmax; fewer bits want a lower one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from qconvert.calibrators.base import Calibrator, Floats, Rows
from qconvert.histogram import Counts, TensorStats
from qconvert.numerics import QuantType, Range


@dataclass(frozen=True)
class Percentile(Calibrator):
    """The range beyond whose ends lie ``100 - percentile`` percent of the values each; all the data where it is empty.

    Attributes:
        percentile: Percent of the values at or below the high end.
    """

    percentile: float = field(default=99.99, metadata={"exclusiveMinimum": 50, "maximum": 100})

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:  # noqa: ARG002 - the same for every grid
        """The two percentiles, or the one of the magnitudes."""
        histogram = stats.histogram
        share = (100 - self.percentile) / 100 * stats.histogram.count
        if symmetric:
            limit = upper_quantile(histogram.negative + histogram.positive, share) * histogram.width
            return Range(-limit, limit)
        return Range(
            -upper_quantile(histogram.negative, share) * histogram.width,
            upper_quantile(histogram.positive, share) * histogram.width,
        )

    def search_rows(
        self,
        rows: Rows,
        dtype: QuantType,  # noqa: ARG002 - the same for every grid
        *,
        symmetric: bool,
        narrow_range: bool,  # noqa: ARG002
    ) -> tuple[Floats, Floats]:
        """The least magnitudes that no more than the share of the row's values exceed."""
        size = rows.values.shape[1]
        kept = size - 1 - int((100 - self.percentile) / 100 * size)
        if symmetric:
            limit = np.partition(np.abs(rows.values), kept, axis=1)[:, kept].astype(np.float64)
            return -limit, limit
        low, high = np.partition(-rows.values, kept, axis=1), np.partition(rows.values, kept, axis=1)
        return -np.maximum(low[:, kept], 0).astype(np.float64), np.maximum(high[:, kept], 0).astype(np.float64)


def upper_quantile(counts: Counts, share: float) -> float:
    """The position, in bins from zero, beyond which ``share`` values lie; 0 where there are not that many."""
    beyond = np.append(np.cumsum(counts[::-1])[::-1], 0)
    over = np.flatnonzero(beyond > share)
    if not over.size:
        return 0.0
    last = int(over[-1])
    return last + 1 - float(share - beyond[last + 1]) / float(counts[last])
