"""What depends on one 8-bit tensor and constants alone is a table of 256 levels, whatever it computes.

A constant with a number for each channel gives a table for each channel. A table holds the level nearest to the real
result, so it is as exact as a grid can be; Gather reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.graph import attributes, shape_of
from qconvert.rewrite.integer.emit import INT32, Emitter
from qconvert.rewrite.integer.functions import FUNCTIONS
from qconvert.rewrite.integer.levels import (
    BYTES,
    FloatArray,
    Levels,
    NoIntegerFormError,
    Sink,
    dequantized,
    known,
)

LIMIT = 4096
"""The most tables of one tensor: a megabyte."""


@dataclass
class _Region:
    """The operators between a tensor of levels and a result.

    Attributes:
        source: The levels, once they are found.
        results: What the operators compute at all 256 levels, along a last axis of their own.
    """

    source: Levels | None = None
    results: dict[ir.Value, FloatArray] = field(default_factory=dict)

    def add(self, value: ir.Value, found: Levels) -> bool:
        """Enters the tensor of levels; False where there is another one already."""
        if self.source is not None and self.source.value is not found.value:
            return False
        self.source = found
        self.results[value] = found.grid.reals()
        return True


def table(emit: Emitter, value: ir.Value, sink: Sink) -> ir.Value | None:
    """The levels of a function of one 8-bit tensor on the sink's grid; None of what is no such function.

    Raises:
        NoIntegerFormError: If the function has no value at some level, or needs more tables than ``LIMIT``.
    """
    region = _Region()
    if not _enter(region, value) or region.source is None:
        return None
    reals = region.results[value]
    node = value.producer()
    if np.isnan(reals).any() and node is not None:
        raise NoIntegerFormError(node, "it has no value at some levels of its operand")
    if reals.size > 256 * LIMIT and node is not None:
        raise NoIntegerFormError(node, f"it needs {reals.size // 256} tables of 256 levels, {LIMIT} are allowed")
    return look_up(emit, region.source, sink.grid.levels_of(reals).clip(sink.low, sink.high), sink.grid.dtype)


def rescaled(emit: Emitter, source: Levels, sink: Sink) -> ir.Value:
    """The same reals on the sink's grid."""
    if source.grid == sink.grid and sink.whole:
        return source.value
    found = sink.grid.levels_of(source.grid.reals()).clip(sink.low, sink.high)
    return look_up(emit, source, found, sink.grid.dtype)


def look_up(emit: Emitter, source: Levels, entries: npt.NDArray[np.int64], dtype: ir.DataType) -> ir.Value:
    """``entries[..., level]``.

    Args:
        emit: Writes the nodes.
        source: The levels.
        entries: Integers, shape ``[256]`` or ``[..., 256]``, whose leading axes broadcast against the levels.
        dtype: The type of the entries.
    """
    index = emit.cast(source.value, INT32)
    lowest = int(BYTES[source.grid.dtype].min)
    first = 256 * np.arange(entries.size // 256).reshape(entries.shape[:-1]) - lowest
    if first.any():
        index = emit.node("Add", index, emit.constant("first", first, np.int32))
    flat = emit.constant("table", entries.reshape(-1), dtype.numpy())
    return emit.node("Gather", flat, index)


def _enter(region: _Region, value: ir.Value) -> bool:
    """Computes a value of the region and what it depends on, or finds that it is not in a region."""
    if value in region.results:
        return True
    array = known(value)
    if array is not None:
        region.results[value] = np.asarray(array, np.float64)[..., None]
        return True
    found = dequantized(value)
    if found is not None:
        return found.grid.dtype in BYTES and found.grid.axis is None and region.add(value, found)
    node = value.producer()
    if node is None or node.op_type not in FUNCTIONS or value is not node.outputs[0]:
        return False
    if not all(operand is None or _enter(region, operand) for operand in node.inputs):
        return False
    reals = [None if operand is None else region.results[operand] for operand in node.inputs]
    if node.op_type == "BatchNormalization":
        reals[1:] = [_along_channels(array, node) for array in reals[1:]]
    with np.errstate(all="ignore"):
        region.results[value] = np.asarray(FUNCTIONS[node.op_type](*reals, **attributes(node)), np.float64)
    return True


def _along_channels(array: FloatArray | None, node: ir.Node) -> FloatArray | None:
    shape = shape_of(node.outputs[0])
    if array is None or shape is None:
        raise NoIntegerFormError(node, "the rank of its result is not known")
    return array.reshape(-1, *[1] * (len(shape) - 1))


def is_function(op_type: str) -> bool:
    """Whether an operator computes each number of its result from one number of each operand."""
    return op_type in FUNCTIONS
