"""Measures of how close two arrays are; numpy only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

EXACT_DB = 200.0
"""SQNR of identical arrays; finite so that it can be averaged and stored."""


def sqnr_db(reference: npt.NDArray[Any], output: npt.NDArray[Any]) -> float:
    """``10 log10(sum ref^2 / sum (ref - out)^2)`` in dB, pooled over all elements; 200 where they are identical."""
    ref, out = np.asarray(reference, np.float64), np.asarray(output, np.float64)
    return ratio_db(float(np.square(ref).sum()), float(np.square(ref - out).sum()))


def ratio_db(signal: float, noise: float) -> float:
    """The SQNR of summed squares, within [-200, 200] dB."""
    if noise == 0:
        return EXACT_DB
    if signal == 0 or not math.isfinite(noise):
        return -EXACT_DB
    return max(-EXACT_DB, min(EXACT_DB, 10 * (math.log10(signal) - math.log10(noise))))
