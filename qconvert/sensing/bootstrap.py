"""Intervals from resampled samples: paired, seeded, vectorised; numpy only.

B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7 (1979): percentile intervals. All models
see the same resamples, so differences between models are paired.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from qconvert.sensing.types import Estimate

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95


@lru_cache(maxsize=8)
def weights(samples: int, seed: int) -> Floats:
    """How often each sample is in each resample, ``[RESAMPLES, samples]``; the same for the same seed."""
    rng = np.random.default_rng([seed, samples])
    drawn = rng.multinomial(samples, np.full(samples, 1 / samples), size=RESAMPLES).astype(np.float64)
    drawn.flags.writeable = False
    return drawn


def drawn(rows: Floats, seed: int) -> Floats:
    """Sums of rows ``[samples, ...]``: as seen, then over every resample; ``[1 + RESAMPLES, ...]``."""
    flat = rows.reshape(len(rows), -1)
    found: Floats = np.concatenate([flat.sum(0)[None], weights(len(rows), seed) @ flat])
    return found.reshape(1 + RESAMPLES, *rows.shape[1:])


def interval(draws: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The draws between which a share of ``level`` of them lies."""
    cut = int((1 - level) / 2 * len(draws))  # np.quantile takes ten times as long
    ends = np.partition(draws, (cut, len(draws) - 1 - cut))
    return float(ends[cut]), float(ends[-1 - cut])


def estimate(values: Floats, unit: str, samples: int) -> Estimate:
    """A value as seen, which comes first, with the interval of its resamples; a few samples may leave it outside."""
    value, (low, high) = float(values[0]), interval(values[1:])
    return Estimate(value, min(low, value), max(high, value), samples, unit)


def is_apart(draws: Floats, level: float = LEVEL) -> bool:
    """Whether draws of a difference exclude 0."""
    low, high = interval(draws, level)
    return low > 0 or high < 0
