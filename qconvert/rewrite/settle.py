"""Q/DQ pairs around operators that only move int8 values, where onnxruntime would put invalid ones.

onnxruntime carries a Q/DQ pair across Reshape and its like. From opset 21 on it names the type in the pair that it
inserts, and on x86-64 it then turns int8 levels into uint8 ones without changing that name, and refuses the model that
it has made (1.31: "output_dtype INT8 does not match y_zero_point"). Where the pair stands already, it inserts none.
What is moved are levels, so that the pair changes nothing.
"""

from __future__ import annotations

import onnx_ir as ir

from qconvert.graph import opset
from qconvert.rewrite.pairs import is_operator

NAMED_TYPES_OPSET = 21
"""The first opset whose QuantizeLinear names its type."""

CARRIED = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")
"""The operators that onnxruntime carries pairs across."""


def settle_int8(model: ir.Model) -> None:
    """Adds the pairs to a QDQ model where it needs them."""
    if opset(model) < NAMED_TYPES_OPSET:
        return
    for node in list(model.graph):
        if is_operator(node, "QuantizeLinear") and _is_int8(node):
            _settle_before(model.graph, node)
        elif is_operator(node, "DequantizeLinear") and _is_int8(node) and not _is_constant(node):
            _settle_behind(model.graph, node)


def _is_int8(node: ir.Node) -> bool:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return zero is not None and zero.dtype == ir.DataType.INT8 and zero.const_value is not None


def _is_constant(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is None or source.is_initializer() or is_operator(source.producer(), "Cast")


def _settle_behind(graph: ir.Graph, dequantize: ir.Node) -> None:
    for use in tuple(dequantize.outputs[0].uses()):
        if use.idx == 0 and is_operator(use.node, *CARRIED):
            moved = use.node.outputs[0]
            if not any(is_operator(reader.node, "QuantizeLinear") for reader in moved.uses()) and moved.uses():
                _settle_behind(graph, _insert(graph, moved, dequantize, after=use.node))


def _settle_before(graph: ir.Graph, quantize: ir.Node) -> None:
    node = quantize.inputs[0].producer() if quantize.inputs[0] is not None else None
    source = node.inputs[0] if node is not None and node.inputs else None
    if node is None or source is None or not is_operator(node, *CARRIED) or len(node.outputs[0].uses()) != 1:
        return
    if source.producer() is None or is_operator(source.producer(), "DequantizeLinear"):
        return
    pair = _insert(graph, source, quantize, before=node)
    made = pair.inputs[0].producer() if pair.inputs[0] is not None else None
    if made is not None:
        _settle_before(graph, made)


def _insert(
    graph: ir.Graph, value: ir.Value, like: ir.Node, *, after: ir.Node | None = None, before: ir.Node | None = None
) -> ir.Node:
    """A pair with the grid of another operator: after a node, for all that read its result, or for one before it."""
    readers = tuple(value.uses())
    quantize = ir.node("QuantizeLinear", [value, *like.inputs[1:3]], name=f"{value.name}_settled_QuantizeLinear")
    pair = ir.node("DequantizeLinear", [quantize.outputs[0], *like.inputs[1:3]], name=f"{value.name}_settled")
    quantize.outputs[0].name, pair.outputs[0].name = f"{value.name}_settled_levels", f"{value.name}_settled_reals"
    pair.outputs[0].type, pair.outputs[0].shape = value.type, value.shape
    if before is not None:
        graph.insert_before(before, [quantize, pair])
        before.replace_input_with(0, pair.outputs[0])
    elif after is not None:
        graph.insert_after(after, [quantize, pair])
        for use in readers:
            use.node.replace_input_with(use.idx, pair.outputs[0])
    return pair
