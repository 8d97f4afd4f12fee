"""Which values methods look at channel by channel."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qconvert.channels import MAX_CHANNELS
from qconvert.graph import attributes, is_constant, operand, operators
from qconvert.plan.operands import is_float
from qconvert.rules import OP_RULES, channels


def channel_axes(model: ir.Model) -> Mapping[str, int]:
    """The channel axis of every value that a constant weight reads or makes, by name, in the order of the graph.

    Operators inside of If, Loop and Scan do not count, nor do axes longer than ``MAX_CHANNELS``, as of a vocabulary. A
    value that two operators read along different axes has that of the first one, its producer before all others.
    """
    found: dict[str, int] = {}
    for op in operators(model):
        rule = OP_RULES.get(op.op_type)
        if rule is None or rule.kind != "heavy" or rule.weight is None or op.subgraph:
            continue
        weight = operand(op.node, rule.weight)
        if weight is None or not is_constant(weight) or weight.const_value is None:
            continue
        shape = tuple(int(size) for size in weight.const_value.shape.numpy())
        values = op.node.inputs[0], op.node.outputs[0]
        for value, where in zip(values, channels(op.op_type, shape, attributes(op.node)), strict=False):
            if value is not None and is_float(value) and not is_constant(value) and where.size <= MAX_CHANNELS:
                found.setdefault(value.name or "", where.axis)
    return found
