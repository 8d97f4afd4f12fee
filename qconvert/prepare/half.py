"""float16 models computed in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qconvert.graph import operators
from qconvert.tensors import array_of


def is_half(model: ir.Model) -> bool:
    """Whether weights or inputs are float16."""
    return any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values()) or any(
        value.dtype == ir.DataType.FLOAT16 for value in model.graph.inputs
    )


def widen_half(model: ir.Model) -> str:
    """float16 tensors become float32; inputs and outputs keep their type behind a Cast.

    onnxruntime's CPU provider does the same at run time.
    """
    if not is_half(model):
        return ""
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    outputs = enumerate(model.graph.outputs)
    half_outputs = [index for index, value in outputs if value.dtype == half and not value.is_graph_input()]
    for op in operators(model):
        widen_node(op.node)
    for graph in (model.graph, *model.graph.subgraphs()):
        bodies = () if graph is model.graph else graph.inputs
        for value in [value for value in (*bodies, *graph.initializers.values()) if value.dtype == half]:
            value.type = ir.TensorType(single)
            if value.const_value is not None:
                value.const_value = _widened(value.const_value)
    for value in model.graph.inputs:
        if value.dtype == half:
            cast = ir.node("Cast", [value], {"to": single})
            cast.outputs[0].name = f"{value.name}_float32"
            uses = [use for use in value.uses() if use.node is not cast]
            model.graph.insert_before(model.graph[0], cast)
            for use in uses:
                use.node.replace_input_with(use.idx, cast.outputs[0])
    for index in half_outputs:
        value = model.graph.outputs[index]
        cast = ir.node("Cast", [value], {"to": half})
        cast.outputs[0].name, value.name = value.name, f"{value.name}_float32"
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(half), value.shape
        model.graph.append(cast)
        model.graph.outputs[index] = cast.outputs[0]
    return "float16 computed as float32; inputs and outputs keep float16"


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A float16 tensor as float32; one in a file stays there and is read whenever it is needed."""

    def read() -> ir.TensorProtocol:
        return ir.Tensor(array_of(tensor).astype(np.float32), name=tensor.name)

    if isinstance(tensor, ir.ExternalTensor):
        return ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape(tensor.shape), name=tensor.name)
    return read()


def widen_node(node: ir.Node) -> None:
    """Makes an operator compute in float32 what it computed in float16, where its operands are float32."""
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == half:
        node.attributes["to"] = ir.AttrInt64("to", single)
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == half:
            node.attributes[name] = ir.AttrTensor(name, ir.Tensor(attribute.value.numpy().astype(np.float32)))
    for value in node.outputs:
        if value.dtype == half:
            value.type = ir.TensorType(single)
