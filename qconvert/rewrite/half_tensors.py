"""Weights in 16-bit floats: rounded to nearest even, clamped to the finite range, and what that does to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.tensors import array_of, dims

CHUNK = 1 << 20
"""Elements that are looked at together, so that a large weight needs little memory beside it."""


@dataclass(frozen=True)
class HalfType:
    """A 16-bit float type.

    Attributes:
        name: As on the command line.
        dtype: The type in ONNX.
        largest: The largest finite value.
        smallest: The smallest positive value with all bits of precision.
    """

    name: str
    dtype: ir.DataType
    largest: float
    smallest: float


HALF_TYPES = {
    "fp16": HalfType("fp16", ir.DataType.FLOAT16, 65504.0, 2.0**-14),
    "bf16": HalfType("bf16", ir.DataType.BFLOAT16, (2 - 2.0**-7) * 2.0**127, 2.0**-126),
}


@dataclass(frozen=True)
class Narrowed:
    """What became of one weight.

    Attributes:
        name: Its name.
        elements: How many elements it has.
        clamped: How many of them were beyond the largest finite value, which they became.
        subnormal: How many became smaller than the smallest value with full precision, but not zero.
        zeroed: How many became zero that were not.
        worst_error: The largest ``|x - half(x)| / |x|`` of the finite elements that are not zero.
    """

    name: str
    elements: int
    clamped: int = 0
    subnormal: int = 0
    zeroed: int = 0
    worst_error: float = 0.0

    @property
    def lossy(self) -> bool:
        """Whether any element lost more than the last bits."""
        return bool(self.clamped or self.subnormal or self.zeroed)


def narrow(array: npt.NDArray[Any], half: HalfType) -> npt.NDArray[Any]:
    """The array in the half type; finite values beyond its range become its largest, NaN and infinities stay."""
    finite = np.isfinite(array)
    clipped = np.where(finite, np.clip(array, -half.largest, half.largest), array)
    with np.errstate(invalid="ignore", over="ignore"):
        return clipped.astype(half.dtype.numpy())


def lazy(tensor: ir.TensorProtocol, half: HalfType) -> ir.LazyTensor:
    """A tensor that is narrowed whenever it is read and kept nowhere: large weights pass one after the other."""

    def read() -> ir.TensorProtocol:
        return ir.Tensor(narrow(array_of(tensor), half), name=tensor.name)

    return ir.LazyTensor(read, half.dtype, ir.Shape(dims(tensor)), name=tensor.name)


def look(name: str, tensor: ir.TensorProtocol, half: HalfType) -> Narrowed:
    """What narrowing does to a weight."""
    clamped = subnormal = zeroed = 0
    worst = 0.0
    for chunk in _chunks(array_of(tensor)):
        before = chunk[np.isfinite(chunk) & (chunk != 0)]
        after = narrow(before, half).astype(np.float32)
        size = np.abs(after)
        clamped += int((np.abs(before) > half.largest).sum())
        subnormal += int(((size > 0) & (size < half.smallest)).sum())
        zeroed += int((size == 0).sum())
        if before.size:
            worst = max(
                worst, float((np.abs(before.astype(np.float64) - after) / np.abs(before, dtype=np.float64)).max())
            )
    return Narrowed(name, tensor.size, clamped, subnormal, zeroed, worst)


def _chunks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    flat = array.reshape(-1)
    return (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
