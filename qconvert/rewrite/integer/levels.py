"""Integers in place of a float value: levels on an 8-bit grid, and the int32 sums of products of levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.graph import constant, operand

FloatArray = npt.NDArray[np.float64]

BYTES = {ir.DataType.UINT8: np.iinfo(np.uint8), ir.DataType.INT8: np.iinfo(np.int8)}
"""The types that integer kernels read."""

NARROW = {
    ir.DataType.UINT4: ir.DataType.UINT8,
    ir.DataType.UINT2: ir.DataType.UINT8,
    ir.DataType.INT4: ir.DataType.INT8,
    ir.DataType.INT2: ir.DataType.INT8,
}
"""The types of stored weights that become one of them by a Cast."""


class NoIntegerFormError(PlanError):
    """An operator cannot be computed on integers.

    Attributes:
        node: It.
    """

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node


@dataclass(frozen=True, eq=False)
class Grid:
    """``real = scale * (level - zero)``.

    Attributes:
        scale: float64, shape ``[]`` or ``[C]``.
        zero: int64, same shape.
        dtype: INT8, UINT8 or a narrower type.
        axis: The axis with a scale for each index, or None.
    """

    scale: FloatArray
    zero: npt.NDArray[np.int64]
    dtype: ir.DataType
    axis: int | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        same = self.dtype == other.dtype and self.axis == other.axis
        return same and np.array_equal(self.scale, other.scale) and np.array_equal(self.zero, other.zero)

    __hash__ = None  # type: ignore[assignment]

    def levels_of(self, reals: float | tuple[float, ...] | FloatArray) -> npt.NDArray[np.int64]:
        """``saturate(round_half_even(real / scale) + zero)`` of a per-tensor grid, in the shape of ``reals``."""
        limits = BYTES[self.dtype]
        return np.asarray(
            np.clip(np.rint(np.asarray(reals, np.float64) / self.scale) + self.zero, limits.min, limits.max), np.int64
        )

    def reals(self) -> FloatArray:
        """The reals of all 256 levels of a per-tensor grid, lowest level first."""
        return np.asarray(self.scale * (self.levels() - self.zero), np.float64)

    def levels(self) -> npt.NDArray[np.int64]:
        """All 256 levels, lowest first."""
        limits = BYTES[self.dtype]
        return np.arange(limits.min, limits.max + 1, dtype=np.int64)


@dataclass(frozen=True)
class Levels:
    """A float value as levels.

    Attributes:
        value: The levels.
        grid: What they stand for.
        zero: The zero point as a value of the graph, or None for 0.
    """

    value: ir.Value
    grid: Grid
    zero: ir.Value | None


@dataclass(frozen=True)
class Accumulator:
    """``real = scale * sum``.

    Attributes:
        value: The sums, int32.
        scale: float64, shape ``[]`` or ``[C]``.
        axis: The axis with a scale for each index: 1, or -1 for the last one; None per tensor.
        rank: How many axes the sums have, where ``axis`` is 1.
    """

    value: ir.Value
    scale: FloatArray
    axis: int | None = None
    rank: int = 0

    @property
    def broadcast(self) -> FloatArray:
        """``scale`` in a shape that broadcasts against ``value``."""
        return self.scale.reshape(-1, *[1] * (self.rank - 2)) if self.axis == 1 else self.scale


@dataclass(frozen=True)
class Sink:
    """Where a result goes.

    Attributes:
        grid: The grid that it is written on, per tensor.
        low: The lowest level that clamps on the way leave.
        high: The highest one.
    """

    grid: Grid
    low: int
    high: int

    @property
    def whole(self) -> bool:
        """Whether nothing but the type limits the levels."""
        limits = BYTES[self.grid.dtype]
        return (self.low, self.high) == (limits.min, limits.max)


def grid_of(node: ir.Node, dtype: ir.DataType | None) -> Grid | None:
    """The grid of a QuantizeLinear or DequantizeLinear whose levels are of a type; None where it is not constant."""
    scale, zero = constant(operand(node, 1)), constant(operand(node, 2))
    if scale is None or dtype is None or (zero is None and operand(node, 2) is not None):
        return None
    if "block_size" in node.attributes and node.attributes["block_size"].value:
        return None
    wide = np.asarray(scale, np.float64)
    known = np.zeros(wide.shape, np.int64) if zero is None else zero.astype(np.int64)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    if wide.size == 1:
        return Grid(wide.reshape(()), known.reshape(()), dtype)
    return Grid(wide, known, dtype, axis)


def dequantized(value: ir.Value | None) -> Levels | None:
    """The levels behind a float value that a DequantizeLinear makes, else None."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    source, zero = operand(producer, 0), operand(producer, 2)
    dtype = source.dtype if source is not None and source.dtype is not None else _type_of(zero)
    grid = grid_of(producer, dtype)
    return None if source is None or grid is None else Levels(source, grid, zero)


def _type_of(zero: ir.Value | None) -> ir.DataType | None:
    return ir.DataType.UINT8 if zero is None else zero.dtype


def levels(node: ir.Node, index: int) -> Levels:
    """Operand ``index`` of a node as levels of 8 bits on one grid.

    Raises:
        NoIntegerFormError: If the plan has no such grid for it.
    """
    value = operand(node, index)
    found = dequantized(value)
    name = value.name if value is not None else index
    if found is None:
        raise NoIntegerFormError(node, f"the plan has no grid for its operand '{name}'")
    if found.grid.dtype not in BYTES:
        raise NoIntegerFormError(node, f"its operand '{name}' has levels of type {found.grid.dtype.name}")
    if found.grid.axis is not None:
        raise NoIntegerFormError(node, f"its operand '{name}' has a scale for each channel")
    return found


def known(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of a constant, also of one that is stored as levels; None of what a run can change."""
    array = constant(value)
    if array is not None or value is None:
        return array
    found = dequantized(value)
    stored = stored_levels(found.value) if found is not None else None
    if found is None or stored is None:
        return None
    shape = [1] * stored.ndim
    if found.grid.axis is not None:
        shape[found.grid.axis] = -1
    steps = stored.astype(np.int64) - found.grid.zero.reshape(shape)
    return np.asarray(found.grid.scale.reshape(shape) * steps, np.float64).reshape(stored.shape)


def stored_levels(value: ir.Value) -> npt.NDArray[Any] | None:
    """The array of constant levels, past the Cast of a narrow type."""
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast":
        return constant(operand(producer, 0))
    return constant(value)
