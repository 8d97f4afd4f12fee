"""Quantization arithmetic on arrays: ``real = scale * (level - zero_point)``.

Rounding is half-to-even and saturating, exactly as ONNX QuantizeLinear defines it, computed in float32 as onnxruntime
does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
LevelArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class QuantType:
    """One integer grid.

    Attributes:
        name: The name in policies and reports, e.g. ``int8``.
        bits: Width of one level.
        signed: Whether levels may be negative.
    """

    name: str
    bits: int
    signed: bool

    @property
    def qmin(self) -> int:
        """The lowest level."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The highest level."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def onnx(self) -> str:
        """The ONNX storage type, e.g. ``INT8``."""
        return self.name.upper()

    def __str__(self) -> str:
        return self.name


QUANT_TYPES: dict[str, QuantType] = {
    t.name: t
    for t in (
        QuantType(f"{'' if signed else 'u'}int{bits}", bits, signed)
        for bits in (2, 4, 8, 16)
        for signed in (True, False)
    )
}
INT8, UINT8 = QUANT_TYPES["int8"], QUANT_TYPES["uint8"]
INT32 = QuantType("int32", 32, signed=True)
"""Biases and accumulators; not a type a policy can ask for."""


@dataclass(frozen=True)
class Range:
    """The reals ``[low, high]`` that a grid must cover; ``low <= high``, both finite."""

    low: float
    high: float

    def __or__(self, other: Range) -> Range:
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, eq=False)
class QuantParams:
    """Scale and zero point: ``real = scale * (level - zero_point)``.

    The shape of ``scale`` is the granularity: ``[]`` per tensor; ``[C]`` per channel along ``axis``; per group, where
    ``block_size`` is given, that of the tensor with ``ceil(n / block_size)`` in place of the ``n`` along ``axis``:
    index ``i`` there has the scale of block ``i // block_size``, and the last block may be a part of one.

    Attributes:
        scale: float32, finite and not 0, shape as above; negative where a grid of weights is turned around, so that its
            one level more lies above 0.
        zero_point: int32, same shape, within the dtype's levels.
        dtype: The grid.
        axis: The channel axis or the one that is cut into blocks, or None per tensor.
        narrow_range: The lowest level of a signed grid is left out, so the grid is symmetric about 0.
        block_size: Length of a block along ``axis``, or None where it is not cut.
    """

    scale: npt.NDArray[np.float32]
    zero_point: LevelArray
    dtype: QuantType
    axis: int | None = None
    narrow_range: bool = False
    block_size: int | None = None

    @property
    def qmin(self) -> int:
        """The lowest level in use."""
        return self.dtype.qmin + (1 if self.narrow_range and self.dtype.signed else 0)

    @property
    def qmax(self) -> int:
        """The highest level in use."""
        return self.dtype.qmax

    @property
    def low(self) -> npt.NDArray[np.float32]:
        """The lowest real on the grid, in the shape of ``scale``."""
        return np.minimum(*self._ends)

    @property
    def high(self) -> npt.NDArray[np.float32]:
        """The highest real on the grid, in the shape of ``scale``."""
        return np.maximum(*self._ends)

    @property
    def _ends(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        return _real(self.qmin - self.zero_point, self.scale), _real(self.qmax - self.zero_point, self.scale)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantParams):
            return NotImplemented
        return (
            self.dtype == other.dtype
            and self.axis == other.axis
            and self.block_size == other.block_size
            and self.narrow_range == other.narrow_range
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    __hash__ = None  # type: ignore[assignment]


def params_from_range(
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    dtype: QuantType,
    *,
    symmetric: bool,
    narrow_range: bool = False,
    axis: int | None = None,
    block_size: int | None = None,
) -> QuantParams:
    """The grid that covers ``[low, high]`` extended to contain 0, which it represents exactly.

    Asymmetric: ``s = (high - low) / (qmax - qmin)``, ``z = clip(round(qmin - low / s))``.
    Symmetric, signed: ``s = max|x| / qmax``, ``z = 0``; symmetric, unsigned: ``z`` is the middle of the grid (0 where
    ``low >= 0``).
    An all-zero range gets scale 1 (Jacob et al. 2018, arXiv:1712.05877; ONNX DynamicQuantizeLinear).

    Args:
        low: Lower ends, shape ``[]``, ``[C]`` or that of the blocks.
        high: Upper ends, same shape.
        dtype: The grid.
        symmetric: Whether the grid is symmetric about 0.
        narrow_range: Leave the lowest level of a signed grid out.
        axis: The channel axis for shape ``[C]``, or the axis that is cut into blocks.
        block_size: Length of a block.

    Raises:
        ValueError: If an end is not a finite float32 or ``low > high``.
    """
    lo, hi = np.asarray(low, np.float64), np.asarray(high, np.float64)
    largest = float(np.finfo(np.float32).max)
    if not ((lo >= -largest) & (lo <= hi) & (hi <= largest)).all():
        message = f"no grid covers [{low!r}, {high!r}]"
        raise ValueError(message)
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    qmin = dtype.qmin + (1 if narrow_range and dtype.signed else 0)
    qmax = dtype.qmax
    if symmetric:
        # one zero point for all channels: runtimes do not take several
        zero = np.full(lo.shape, 0 if dtype.signed or (lo >= 0).all() else (qmax + 1) // 2)
        scale = np.maximum(-lo, hi) / (qmax - zero)
    else:
        scale = (hi - lo) / (qmax - qmin)
        zero = np.zeros(lo.shape)
    scale = np.where((lo == 0) & (hi == 0), 1.0, np.maximum(scale, float(np.finfo(np.float32).tiny)))
    if not symmetric:
        zero = np.clip(np.rint(qmin - lo / scale), qmin, qmax)
    return QuantParams(np.asarray(scale, np.float32), np.asarray(zero, np.int32), dtype, axis, narrow_range, block_size)


def along(values: npt.NDArray[Any], params: QuantParams, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """What has the shape of the scale, so that it broadcasts over a tensor of this shape."""
    if params.axis is None or values.ndim == 0:
        return values
    axis = params.axis % len(shape)
    if params.block_size is not None:
        return values.take(np.arange(shape[axis]) // params.block_size, axis)
    return values.reshape([-1 if d == axis else 1 for d in range(len(shape))])


def quantize(x: FloatArray, params: QuantParams) -> LevelArray:
    """Levels of the reals: ``saturate(round_half_even(x / scale) + zero_point)``, int32, in the shape of ``x``.

    Raises:
        ValueError: If ``x`` holds a NaN, for which no level exists.
    """
    if np.isnan(x).any():
        message = "a NaN has no level"
        raise ValueError(message)
    scale, zero = along(params.scale, params, x.shape), along(params.zero_point, params, x.shape)
    wide = np.float64 if params.dtype.bits > 16 else np.float32  # float32 has no room for the levels of a bias
    with np.errstate(over="ignore"):
        levels = np.rint(x.astype(wide) / scale.astype(wide))
    return np.asarray(np.clip(levels.astype(np.float64) + zero, params.qmin, params.qmax), np.int32)


def dequantize(levels: npt.NDArray[Any], params: QuantParams) -> npt.NDArray[np.float32]:
    """Reals of the levels: ``scale * (level - zero_point)``, float32."""
    scale, zero = along(params.scale, params, levels.shape), along(params.zero_point, params, levels.shape)
    return _real(levels.astype(np.int64) - zero, scale)


def _real(steps: npt.NDArray[Any], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``scale * steps`` in float32; Inf, as in onnxruntime, where a grid reaches beyond the largest float32."""
    with np.errstate(over="ignore"):
        return np.asarray(steps.astype(np.float32) * scale, np.float32)


def fake_quantize(x: FloatArray, params: QuantParams) -> npt.NDArray[np.float32]:
    """``dequantize(quantize(x))``: the reals that the integer model sees instead of ``x``."""
    return dequantize(quantize(x, params), params)


def bias_params(input_params: QuantParams, weight_params: QuantParams) -> QuantParams:
    """The int32 grid of a bias: ``scale = s_x * s_w``, zero point 0, so that it adds to the accumulator as it is."""
    scale = np.asarray(input_params.scale * weight_params.scale, np.float32)
    return QuantParams(scale, np.zeros(scale.shape, np.int32), INT32, 0 if scale.ndim else None)


def with_scale(params: QuantParams, scale: npt.NDArray[np.float32]) -> QuantParams:
    """The same grid with another scale of the same shape."""
    return replace(params, scale=np.asarray(scale, np.float32).reshape(params.scale.shape))
