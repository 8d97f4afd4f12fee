"""Operators that only move values: the same operators on levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from qconvert.graph import attributes, constant, operand
from qconvert.rewrite.integer.emit import INT64, Emitter
from qconvert.rewrite.integer.levels import Levels, NoIntegerFormError, Sink, levels
from qconvert.rewrite.integer.tables import rescaled


def move(emit: Emitter, node: ir.Node, output: ir.Value, sink: Sink) -> ir.Value:
    """One of the results of a moved tensor, on the sink's grid."""
    source = levels(node, 0)
    if node not in emit.made:
        if any(value.uses() or value.is_graph_output() for value in node.outputs[1:] if node.op_type == "MaxPool"):
            raise NoIntegerFormError(node, "its indices are read")
        others = _OPERANDS.get(node.op_type, _same_operands)(emit, node, source)
        count = 1 if node.op_type == "MaxPool" else len(node.outputs)
        emit.made[node] = emit.nodes(node.op_type, [source.value, *others], attributes(node), outputs=count)
    moved = emit.made[node].outputs[node.outputs.index(output)]
    return rescaled(emit, Levels(moved, source.grid, source.zero), sink)


def _same_operands(_: Emitter, node: ir.Node, __: Levels) -> list[ir.Value | None]:
    return list(node.inputs[1:])


def _pad_operands(emit: Emitter, node: ir.Node, source: Levels) -> list[ir.Value | None]:
    """What is padded is the zero point, where it is real 0."""
    fill = constant(operand(node, 2))
    if operand(node, 2) is not None and fill is None:
        raise NoIntegerFormError(node, "the value that it pads with is no constant")
    real = 0.0 if fill is None else float(fill.reshape(-1)[0])
    level = emit.constant("fill", source.grid.levels_of(real), source.grid.dtype.numpy())
    return [operand(node, 1), level, *list(node.inputs[3:])]


def _resize_operands(emit: Emitter, node: ir.Node, source: Levels) -> list[ir.Value | None]:
    """Sizes in place of float factors, which are whole numbers."""
    if attributes(node).get("mode", "nearest") != "nearest":
        raise NoIntegerFormError(node, "it interpolates: only mode 'nearest' has an integer form")
    if operand(node, 3) is not None:
        return [None, None, operand(node, 3)]
    factors = constant(operand(node, 2))
    if factors is None or (factors != np.rint(factors)).any():
        raise NoIntegerFormError(node, "its factors are not whole numbers")
    shape = emit.node("Shape", source.value, dtype=INT64)
    return [None, None, emit.node("Mul", shape, emit.constant("factors", factors, np.int64))]


_OPERANDS: Mapping[str, Callable[[Emitter, ir.Node, Levels], list[ir.Value | None]]] = {
    "Pad": _pad_operands,
    "Resize": _resize_operands,
}
"""Where the operands behind the first one are not those of the float operator."""
