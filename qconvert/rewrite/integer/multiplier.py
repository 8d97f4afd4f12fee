"""Multiplication by a real number with integers alone: a 31-bit mantissa, a power of two, a rounding shift.

``M = mantissa * 2^(exponent - 31)`` with ``mantissa = round(frexp(M) * 2^31)`` (Jacob et al. 2018, arXiv:1712.05877,
section 2.2). Two roundings are in use and differ where a result lies half way between two levels:

* ``single``: ``(x * mantissa + 2^(30 - exponent)) >> (31 - exponent)``, TensorFlow Lite with TFLITE_SINGLE_ROUNDING;
* ``double``: gemmlowp's SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT, which rounds halves away from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Rounding = Literal["single", "double"]
Int64Array = npt.NDArray[np.int64]

_LEAST, _LARGEST = -31, 30
"""Exponents beyond these become a factor of 0, or the largest there is, as in TensorFlow Lite."""


@dataclass(frozen=True, eq=False)
class Multiplier:
    """``M = mantissa * 2^(exponent - 31)``.

    Attributes:
        mantissa: int64 in ``[2^30, 2^31)``, or 0; shape ``[]`` or one that broadcasts against the accumulator.
        exponent: int64 in ``[-31, 30]``, same shape.
    """

    mantissa: Int64Array
    exponent: Int64Array

    @property
    def left(self) -> Int64Array:
        """By how many bits ``double`` shifts left before it multiplies."""
        return np.maximum(self.exponent, 0)

    @property
    def right(self) -> Int64Array:
        """By how many bits ``double`` shifts right after it multiplied."""
        return np.maximum(-self.exponent, 0)


def multiplier(real: npt.ArrayLike) -> Multiplier:
    """The mantissa and the exponent of positive factors, in their shape."""
    fraction, exponent = np.frexp(np.asarray(real, np.float64))
    mantissa = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    whole = mantissa == 1 << 31
    mantissa, exponent = np.where(whole, 1 << 30, mantissa), np.where(whole, exponent + 1, exponent).astype(np.int64)
    small, large = exponent < _LEAST, exponent > _LARGEST
    mantissa = np.where(small, 0, np.where(large, (1 << 31) - 1, mantissa))
    return Multiplier(mantissa, np.where(small, 0, np.minimum(exponent, _LARGEST)))


def multiply(x: npt.NDArray[np.integer[Any]], by: Multiplier, *, rounding: Rounding) -> Int64Array:
    """``round(x * M)`` for ``|x| * 2^left < 2^31``, int64, in the shape that ``x`` and ``by`` broadcast to."""
    wide = x.astype(np.int64)
    if rounding == "single":
        return _shifted(wide * by.mantissa, 31 - by.exponent)
    high = _shifted(wide * (by.mantissa << by.left), np.asarray(31, np.int64))
    return _shifted(high - ((high < 0) & (by.right > 0)), by.right)


def _shifted(x: Int64Array, bits: Int64Array) -> Int64Array:
    return np.asarray((x + half(bits)) >> bits, np.int64)


def half(bits: Int64Array) -> Int64Array:
    """What a rounding shift adds first: ``2^(bits - 1)``, and nothing where nothing is shifted."""
    return np.asarray(np.where(bits > 0, np.left_shift(1, np.maximum(bits - 1, 0)), 0), np.int64)
