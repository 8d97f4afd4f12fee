"""Softmax from a table of exponentials in fixed point, an integer sum and an integer division.

``p = e / sum(e)`` with ``e = round(2^23 exp(-s (max - q)))``: I-BERT (arXiv:2101.01321) without its polynomial, which
256 levels do not need.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qconvert.graph import attributes
from qconvert.rewrite.integer.emit import INT32, Emitter
from qconvert.rewrite.integer.levels import Sink, levels

EXP_BITS, OUT_BITS = 23, 15
"""Bits behind the point of an exponential, and of the levels that probability 1 spans."""


def softmax(emit: Emitter, node: ir.Node, sink: Sink) -> ir.Value:
    """``(e round(2^15 / s_y) + 2^14 sum) / (2^15 sum) + z_y``, rounding halves up."""
    source = levels(node, 0)
    axis = int(attributes(node).get("axis", -1))
    entries = np.rint(np.exp(-source.grid.scale * np.arange(256)) * (1 << EXP_BITS))
    top = emit.reduce("ReduceMax", source.value, [axis], keepdims=True)
    below = emit.node("Sub", emit.cast(top, INT32), emit.cast(source.value, INT32))
    part = emit.node("Gather", emit.constant("exp", entries, np.int64), below)
    whole = emit.reduce("ReduceSum", part, [axis], keepdims=True)
    span = emit.constant("span", np.rint((1 << OUT_BITS) / sink.grid.scale), np.int64)
    half = emit.node("Mul", whole, emit.constant("half", 1 << (OUT_BITS - 1), np.int64))
    dividend = emit.node("Add", emit.node("Mul", part, span), half)
    divisor = emit.node("Mul", whole, emit.constant("one", 1 << OUT_BITS, np.int64))
    moved = emit.node("Add", emit.node("Div", dividend, divisor), emit.constant("zero", sink.grid.zero, np.int64))
    low, high = (emit.constant(name, end, np.int64) for name, end in (("low", sink.low), ("high", sink.high)))
    return emit.cast(emit.node("Clip", moved, low, high), sink.grid.dtype)
