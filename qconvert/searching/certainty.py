"""Whether samples tell on which side of a bound a loss is, and how many would.

Intervals shrink with the root of the number of samples. Where ``n`` samples show no loss at all, the interval of their
resamples has no width, and yet ``3 / n`` of others may show one (J. Hanley, A. Lippman-Hand, "If nothing goes wrong, is
everything all right?", JAMA 249, 1983): the rule of three is the least of shares that are counted.
"""

from __future__ import annotations

import math

from qconvert.sensing.types import Estimate

COUNTED = frozenset({"points", "%"})
"""Units of shares that are counted, in percent."""

UNSEEN = 300.0
"""Percent times samples: what none of them shows."""


def needed(harm: Estimate, limit: float) -> int | None:
    """About how many samples would tell with 95 % confidence, were the harm exactly what it was measured as.

    Args:
        harm: What was measured, greater is worse.
        limit: The most that is allowed.

    Returns:
        The number, no greater than ``harm.samples`` where these do tell; None where the harm is the limit itself.
    """
    far = abs(limit - harm.value)
    if not far:
        return None
    within = harm.value < limit
    half = harm.high - harm.value if within else harm.value - harm.low
    least = UNSEEN / far if within and harm.unit in COUNTED else 0.0
    return math.ceil(max(harm.samples * (half / far) ** 2, least))
