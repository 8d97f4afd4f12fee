"""Grids of 8-bit floats: ``real = scale * value`` with the scale such that the largest weight is the largest value.

Source: Micikevicius et al. 2022, arXiv:2209.05433. ONNX stores both types from opset 19 on.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qconvert.numerics import FloatArray, QuantParams, QuantType


@dataclass(frozen=True)
class Float8(QuantType):
    """An 8-bit float type; its levels are its own values.

    Attributes:
        largest: Its largest finite value.
    """

    largest: int = 0

    @property
    def qmin(self) -> int:
        """The lowest finite value."""
        return -self.largest

    @property
    def qmax(self) -> int:
        """The largest finite value."""
        return self.largest


FLOAT8_TYPES: dict[str, Float8] = {
    dtype.name: dtype
    for dtype in (
        Float8("float8e4m3fn", 8, signed=True, largest=448),
        Float8("float8e5m2", 8, signed=True, largest=57344),
    )
}
"""4 bits of exponent and 3 of mantissa, or 5 and 2; named as in ONNX."""

_NUMPY = {"float8e4m3fn": ml_dtypes.float8_e4m3fn, "float8e5m2": ml_dtypes.float8_e5m2}


def float8_params(largest: npt.ArrayLike, dtype: Float8, *, axis: int | None = None) -> QuantParams:
    """The grid on which magnitudes up to ``largest``, shape ``[]`` or ``[C]``, are finite; scale 1 where that is 0."""
    top = np.asarray(largest, np.float64)
    scale = np.where(top == 0, 1.0, np.maximum(top / dtype.largest, float(np.finfo(np.float32).tiny)))
    return QuantParams(np.asarray(scale, np.float32), np.zeros(scale.shape, np.int32), dtype, axis)


def to_float8(scaled: FloatArray, dtype: Float8) -> npt.NDArray[np.generic]:
    """The nearest values of the type, ties to even; finite values beyond the largest become that."""
    return np.asarray(np.clip(scaled, -dtype.largest, dtype.largest).astype(_NUMPY[dtype.name]))
