"""What can be said of an operator and its operands without looking further."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from qconvert.graph import STANDARD_DOMAINS, Operator, attributes, constant, operand
from qconvert.rules import OP_RULES, OpRule


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is known to be float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def activation_values(op: Operator, rule: OpRule) -> list[ir.Value]:
    """The operands of an operator that its rule calls activations, constants included."""
    positions: Iterable[int] = range(len(op.node.inputs)) if rule.activations is None else rule.activations
    found = (operand(op.node, position) for position in positions)
    return [value for value in found if value is not None]


def fused_clamp(value: ir.Value) -> ir.Node | None:
    """The Relu or constant Clip that alone reads ``value``, so that runtimes compute both in one kernel."""
    producer = value.producer()
    rule = OP_RULES.get(producer.op_type) if producer is not None and producer.domain in STANDARD_DOMAINS else None
    if rule is None or rule.kind not in {"heavy", "light"} or value.is_graph_output():
        return None
    uses = tuple(value.uses())
    if len(uses) != 1 or uses[0].idx != 0:
        return None
    reader = uses[0].node
    if reader.domain not in STANDARD_DOMAINS or reader.graph is not producer.graph:  # type: ignore[union-attr]
        return None
    return reader if clamp_bounds(reader) is not None else None


def clamp_bounds(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of a Relu or a Clip with constant bounds, else None."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = []
    for position, default in ((1, float("-inf")), (2, float("inf"))):
        value = operand(node, position)
        array = constant(value)
        if value is not None and array is None:
            return None
        bounds.append(default if array is None else float(array.reshape(-1)[0]))
    return bounds[0], bounds[1]


def is_dequantized(value: ir.Value) -> bool:
    """Whether a value comes out of a DequantizeLinear that the model brought along."""
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def operand_refusal(values: list[ir.Value]) -> str:
    """Why operands cannot be quantized, or ""."""
    if not values or not all(is_float(value) for value in values):
        return "not float32"
    if any(is_dequantized(value) for value in values):
        return "already quantized in the model"
    return ""


def attribute_refusal(op: Operator) -> str:
    """Why no integer kernel takes the attributes of an operator, or ""."""
    found = attributes(op.node)
    if op.op_type == "Gemm" and operand(op.node, 2) is not None:
        factor = next((key for key in ("alpha", "beta") if found.get(key, 1.0) != 1.0), "")
        if factor:
            return f"Gemm with a bias and {factor} = {found[factor]:g}: no integer kernel computes that"
    if op.op_type == "Pad":
        fill = constant(operand(op.node, 2))
        if operand(op.node, 2) is not None and (fill is None or fill.reshape(-1)[0] != 0):
            return "Pad with a value other than 0"
    if op.op_type in {"Resize", "Upsample"} and found.get("mode", "nearest") == "cubic":
        return "cubic Resize leaves the range of its input"
    return ""


def is_activation(node: ir.Node, position: int) -> bool:
    """Whether an operand is what the operator's rule calls an activation."""
    rule = OP_RULES.get(node.op_type) if node.domain in STANDARD_DOMAINS else None
    return rule is not None and (rule.activations is None or position in rule.activations)
