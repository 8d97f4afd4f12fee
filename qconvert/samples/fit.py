"""Whether an array fits a model input, and the cast that changes no value (but float rounding)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qconvert.errors import DataError
from qconvert.preprocess import fixed, show_shape
from qconvert.samples.types import Array, InputSpec


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a type is floating point, bfloat16 and float8 included."""
    return dtype.name.startswith(("float", "bfloat"))


def check_dtype(dtype: np.dtype[Any], spec: InputSpec, where: str) -> None:
    """Raises a DataError where values of ``dtype`` could only become the input's type by losing what they say."""
    to = spec.dtype
    numbers = dtype.kind in "biu" and (to.kind in "biu" or is_float(to))
    texts = dtype.kind in "US" and to.kind in "OUS"
    if not (dtype == to or numbers or texts or (is_float(dtype) and is_float(to))):
        hint = f"convert the data first: array.astype('{to.name}')" if to.kind != "O" else ""
        raise DataError(f"{where} is {dtype.name}, model input '{spec.name}' wants {to.name}", hint=hint)


def check_shape(shape: Sequence[int], spec: InputSpec, where: str, *, shown: Sequence[int] | None = None) -> None:
    """Raises a DataError where a feed of ``shape`` contradicts the input's fixed axes; the message says ``shown``."""
    agree = len(shape) == len(spec.shape) and all(
        fixed(want) in (None, have) for want, have in zip(spec.shape, shape, strict=True)
    )
    if not agree:
        raise DataError(
            f"{where} has shape {show_shape(shape if shown is None else shown)}, "
            f"model input '{spec.name}' wants {show_shape(spec.shape)}",
            hint="samples lie along the first axis, each with or without a batch axis",
        )


def fit(array: Array, spec: InputSpec, where: str) -> Array:
    """The array in the input's type, contiguous.

    Raises:
        DataError: It holds NaN or infinities, or a value that the input's type cannot hold.
    """
    if is_float(array.dtype) and (bad := array.size - np.count_nonzero(np.isfinite(array))):
        raise DataError(
            f"{where}: {bad} of {array.size} values are NaN or infinite",
            hint="mend the data: no range can be computed from such values",
        )
    if array.dtype == spec.dtype:
        return np.ascontiguousarray(array).reshape(array.shape)
    with np.errstate(over="ignore"):
        cast = array.astype(spec.dtype, order="C")
    if array.dtype.kind in "biu" and np.any(cast.astype(array.dtype) != array):
        raise DataError(f"{where}: {array.dtype.name} values do not fit {spec.dtype.name} of model input '{spec.name}'")
    if is_float(array.dtype) and not np.all(np.isfinite(cast)):
        raise DataError(f"{where}: {array.dtype.name} values overflow {spec.dtype.name} of model input '{spec.name}'")
    return cast
