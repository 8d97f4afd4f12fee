"""95 % intervals of what was measured on samples; numpy only.

Ratios of sums (SQNR) and differences of paired counts (a drop of accuracy) are resampled: the percentile bootstrap over
samples (B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7, 1979). A seed draws the
resamples, so that the same numbers give the same interval and differences between models that saw the same samples are
paired. A single share (accuracy) has Wilson's score interval (1927), which holds at 0 and 100 %, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
"""Bootstrap resamples: the ends of an interval move by some percent of its width from seed to seed."""

LEVEL = 0.95
SEED = 0
NORMAL_975 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""

HELD = 4096
"""Of so many samples the resamples are kept for the next numbers; of more they are drawn part by part."""


def bootstrap(rows: Floats, statistic: Callable[[Floats], Floats]) -> tuple[float, float] | None:
    """The interval of a statistic of sums over samples.

    Args:
        rows: What each sample adds, ``[samples, sums]``, finite.
        statistic: Sums ``[resamples, sums]`` to the statistic ``[resamples]``.

    Returns:
        Both ends, or None for fewer than two samples.
    """
    return interval(statistic(drawn(rows, SEED)[1:])) if len(rows) > 1 else None


def drawn(rows: Floats, seed: int) -> Floats:
    """Sums of rows ``[samples, ...]``: as seen, then over every resample; ``[1 + RESAMPLES, ...]``."""
    flat = rows.reshape(len(rows), -1)
    sums = [flat.sum(0)[None], *(part @ flat for part in _weights(len(rows), seed))]
    return np.concatenate(sums).reshape(1 + RESAMPLES, *rows.shape[1:])


def _weights(samples: int, seed: int) -> Iterator[Floats]:
    """How often each sample is in each resample, ``[resamples, samples]``, part by part."""
    if samples <= HELD:
        yield weights(samples, seed)
        return
    rng = np.random.default_rng([seed, samples])
    for _ in range(RESAMPLES):
        yield _resample(rng, samples)[None]


@lru_cache(maxsize=8)
def weights(samples: int, seed: int) -> Floats:
    """How often each sample is in each resample, ``[RESAMPLES, samples]``; the same for the same seed."""
    rng = np.random.default_rng([seed, samples])
    found = np.stack([_resample(rng, samples) for _ in range(RESAMPLES)])
    found.flags.writeable = False
    return found


def _resample(rng: np.random.Generator, samples: int) -> Floats:
    return np.bincount(rng.integers(0, samples, samples), minlength=samples).astype(np.float64)


def interval(draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The draws between which a share of ``level`` of them lies."""
    cut = int((1 - level) / 2 * len(draws))  # np.quantile takes ten times as long
    ends = np.partition(draws, (cut, len(draws) - 1 - cut))
    return float(ends[cut]), float(ends[-1 - cut])


def is_apart(draws: Floats, level: float = LEVEL) -> bool:
    """Whether draws of a difference exclude 0."""
    low, high = interval(draws, level)
    return low > 0 or high < 0


def wilson(percent: float, count: int) -> tuple[float, float]:
    """Wilson's interval of a share, both in percent, seen on ``count`` items, at least one."""
    share, z = percent / 100, NORMAL_975**2 / count
    middle = (share + z / 2) / (1 + z)
    half = NORMAL_975 * math.sqrt((share * (1 - share) + z / 4) / count) / (1 + z)
    return 100 * max(0.0, min(share, middle - half)), 100 * min(1.0, max(share, middle + half))
