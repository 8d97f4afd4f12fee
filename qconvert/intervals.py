"""95 % intervals of what was measured on samples; numpy only.

Ratios of sums (SQNR) and differences of paired counts (a drop of accuracy) are resampled: Efron's percentile bootstrap
over samples, whose weights a fixed seed draws, so that the same numbers give the same interval. A single share
(accuracy) has Wilson's score interval (1927), which holds at 0 and 100 %, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
"""Bootstrap resamples: the ends of an interval move by some percent of its width from seed to seed."""

SEED = 0
NORMAL_975 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def bootstrap(rows: Floats, statistic: Callable[[Floats], Floats]) -> tuple[float, float] | None:
    """The 2.5 and 97.5 % quantiles of a statistic of sums over samples.

    Args:
        rows: What each sample adds, ``[samples, sums]``, finite.
        statistic: Sums ``[resamples, sums]`` to the statistic ``[resamples]``.

    Returns:
        Both ends, or None for fewer than two samples.
    """
    count = len(rows)
    if count < 2:
        return None
    rng = np.random.default_rng(SEED)
    draws = (np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(RESAMPLES))
    sums = np.stack([weights @ rows for weights in draws])
    low, high = np.quantile(statistic(sums), (0.025, 0.975))
    return float(low), float(high)


def wilson(percent: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a share, both in percent, seen on ``count`` items, at least one."""
    share, z = percent / 100, NORMAL_975**2 / count
    middle = (share + z / 2) / (1 + z)
    half = NORMAL_975 * math.sqrt((share * (1 - share) + z / 4) / count) / (1 + z)
    return 100 * max(0.0, min(share, middle - half)), 100 * min(1.0, max(share, middle + half))
