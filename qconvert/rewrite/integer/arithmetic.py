"""Operators on several 8-bit tensors: Add and Sub as TensorFlow Lite computes them, Mul, Concat, Min and Max."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qconvert.graph import attributes
from qconvert.rewrite.integer.emit import INT32, Emitter
from qconvert.rewrite.integer.levels import Levels, NoIntegerFormError, Sink, levels
from qconvert.rewrite.integer.multiplier import multiplier, multiply
from qconvert.rewrite.integer.tables import look_up, rescaled

LEFT_SHIFT = 20
"""Bits of room below a level before two scales are brought together (TensorFlow Lite's Add of 8 bits)."""


def add(emit: Emitter, node: ir.Node, sink: Sink) -> ir.Value:
    """Both operands, 20 bits to the left, are multiplied to the scale ``2 max(s_1, s_2)``; then added, requantized.

    An operand has 256 levels, so the shift and the first multiplication are a table.
    """
    if len(node.inputs) != 2:
        raise NoIntegerFormError(node, f"it has {len(node.inputs)} operands")
    one, other = levels(node, 0), levels(node, 1)
    twice = 2 * max(float(one.grid.scale), float(other.grid.scale))
    terms = [_term(emit, operand, twice) for operand in (one, other)]
    return emit.requantize(emit.node(node.op_type, *terms), twice / (1 << LEFT_SHIFT), sink)


def _term(emit: Emitter, operand: Levels, twice: float) -> ir.Value:
    lifted = (operand.grid.levels() - operand.grid.zero) << LEFT_SHIFT
    entries = multiply(lifted, multiplier(operand.grid.scale / twice), rounding=emit.rounding)
    return look_up(emit, operand, entries, INT32)


def mul(emit: Emitter, node: ir.Node, sink: Sink) -> ir.Value:
    """``(q_1 - z_1) (q_2 - z_2)``, requantized from ``s_1 s_2``."""
    if len(node.inputs) != 2:
        raise NoIntegerFormError(node, f"it has {len(node.inputs)} operands")
    one, other = levels(node, 0), levels(node, 1)
    product = emit.node("Mul", centred(emit, one), centred(emit, other))
    return emit.requantize(product, one.grid.scale * other.grid.scale, sink)


def centred(emit: Emitter, operand: Levels) -> ir.Value:
    """``level - zero`` as int32."""
    wide = emit.cast(operand.value, INT32)
    return emit.node("Sub", wide, emit.constant("zero", operand.grid.zero, np.int32)) if operand.grid.zero else wide


def on_one_grid(emit: Emitter, node: ir.Node, sink: Sink) -> ir.Value:
    """Concat, Min and Max: every operand is brought to the result's grid, on which they keep their order."""
    operands = [rescaled(emit, levels(node, index), sink) for index in range(len(node.inputs))]
    if node.op_type == "Concat":
        return emit.node("Concat", *operands, attributes=attributes(node))
    wide = [emit.cast(operand, INT32) for operand in operands]  # onnxruntime 1.23 has no Max of 8 bits
    return emit.cast(emit.node(node.op_type, *wide), sink.grid.dtype)
