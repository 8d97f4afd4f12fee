"""The int32 accumulator of a Conv, Gemm or MatMul as a tensor of its own: ConvInteger or MatMulInteger, plus the bias.

``sum((x - z_x) (w - z_w)) + b`` in int32, which stands for ``s_x s_w`` times it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.graph import add_constant, attributes, operand
from qconvert.numerics import INT32, QuantParams
from qconvert.rewrite.kernels import CONV, group_of, stored_shape
from qconvert.rewrite.pairs import Levels, given_levels, is_operator


@dataclass(frozen=True, eq=False)
class Accumulator:
    """What is summed up.

    Attributes:
        node: The operator that does it now, float between Q/DQ pairs or an integer one.
        data: Its input.
        weight: Its weight.
        bias: int32, or None.
    """

    node: ir.Node
    data: Levels
    weight: Levels
    bias: ir.Value | None

    @property
    def is_conv(self) -> bool:
        """Whether channels lie along axis 1, with the positions behind them."""
        return self.node.op_type.endswith("Conv")

    @property
    def params(self) -> QuantParams:
        """The grid of the sums; axis -1 is the last one."""
        factor = np.float32(attributes(self.node).get("alpha", 1.0))
        scale = np.asarray(self.data.params.scale.reshape(()) * self.weight.params.scale * factor, np.float32)
        axis = None if scale.size == 1 else 1 if self.is_conv else -1
        return QuantParams(scale, np.zeros(scale.shape, np.int32), INT32, axis)


def find_accumulator(value: ir.Value) -> Accumulator | str:
    """The accumulator that a float value is made from, or why there is none."""
    node = value.producer()
    if node is not None and is_operator(node, "DequantizeLinear"):
        levels = node.inputs[0]
        node = levels.producer() if levels is not None else None
        if node is not None and is_operator(node, "QuantizeLinear") and node.inputs[0] is not None:
            node = node.inputs[0].producer()
    if node is None:
        return "no operator makes it"
    found = _integer(node) if node.op_type in _OPERANDS else _float(node)
    return _refusal(found) or found if isinstance(found, Accumulator) else found


_OPERANDS = {
    "QLinearConv": (0, 1, 2, 3, 4, 5, 8),
    "QLinearMatMul": (0, 1, 2, 3, 4, 5, None),
    "QGemm": (0, 1, 2, 3, 4, 5, 6),
    "MatMulIntegerToFloat": (0, 2, 4, 1, 3, 5, None),
}
"""Where the levels, scales and zero points of data and weight are, and the bias."""


def _integer(node: ir.Node) -> Accumulator | str:
    *places, last = _OPERANDS[node.op_type]
    x, x_scale, x_zero, w, w_scale, w_zero = (operand(node, place) for place in places if place is not None)
    axis = 0 if node.op_type == "QLinearConv" else -1
    data, weight = given_levels(x, x_scale, x_zero, None), given_levels(w, w_scale, w_zero, axis)
    if data is None or weight is None:
        return f"the grids of {node.op_type} are not constants"
    return Accumulator(node, data, weight, operand(node, last) if last is not None else None)


def _float(node: ir.Node) -> Accumulator | str:
    group = group_of(node, lambda _: None)
    if is_operator(node, "Add"):
        makers = [value.producer() for value in node.inputs if value is not None]
        groups = [group_of(maker, lambda _: None) for maker in makers if maker is not None]
        group = next((one for one in groups if one.end is node), group)
    if not is_operator(group.node, "Conv", "Gemm", "MatMul"):
        return f"it comes out of {node.op_type}, not of a Conv, Gemm or MatMul"
    data, weight = group.operands[0], group.operands[1]
    if data is None or weight is None:
        return f"{'input' if data is None else 'weight'} of its {group.node.op_type} is not quantized to 8 bits"
    if operand(group.node, 2) is not None and group.bias is None:
        return f"the bias of its {group.node.op_type} is float"
    return Accumulator(group.node, data, weight, group.bias.value if group.bias is not None else None)


def _refusal(found: Accumulator) -> str:
    if found.bias is not None and any(attributes(found.node).get(key, 1.0) != 1.0 for key in ("alpha", "beta")):
        return "its bias has a factor"
    if found.is_conv and len(set(found.weight.params.zero_point.reshape(-1).tolist())) > 1:
        return "its weight has several zero points, and ConvInteger takes one"
    if found.is_conv and stored_shape(found.weight.value) is None:
        return "the shape of its weight is not known"
    return ""


def write_accumulator(graph: ir.Graph, found: Accumulator, name: str) -> ir.Value:
    """Adds the operators that compute an accumulator before the one that does it now, and gives their output."""
    node = _conv(graph, found, name) if found.is_conv else _matmul(graph, found, name)
    node.outputs[0].type, node.outputs[0].name = ir.TensorType(ir.DataType.INT32), f"{name}_accumulator"
    if found.bias is None:
        return node.outputs[0]
    bias = _column(graph, found, found.bias, name) if found.is_conv else found.bias
    add = ir.node("Add", [node.outputs[0], bias], name=f"{name}_bias_Add")
    add.outputs[0].type = node.outputs[0].type
    graph.insert_before(found.node, add)
    return add.outputs[0]


def _conv(graph: ir.Graph, found: Accumulator, name: str) -> ir.Node:
    params = found.weight.params
    zero = params.zero_point.reshape(-1)[0].astype(ir.DataType[params.dtype.onnx].numpy())
    one = add_constant(graph, f"{name}_weight_zero_point", zero)
    kept = {key: found.node.attributes[key] for key in CONV if key in found.node.attributes}
    inputs = [found.data.value, found.weight.value, found.data.zero, one]
    node = ir.node("ConvInteger", inputs, kept, name=f"{name}_ConvInteger")
    graph.insert_before(found.node, node)
    return node


def _matmul(graph: ir.Graph, found: Accumulator, name: str) -> ir.Node:
    inputs = []
    for levels, key in ((found.data, "transA"), (found.weight, "transB")):
        value = levels.value
        if attributes(found.node).get(key):
            turned = ir.node("Transpose", [value], {"perm": [1, 0]}, name=f"{name}_{key}")
            turned.outputs[0].name = f"{name}_{key}_levels"
            graph.insert_before(found.node, turned)
            value = turned.outputs[0]
        inputs.append(value)
    node = ir.node("MatMulInteger", [*inputs, found.data.zero, found.weight.zero], name=f"{name}_MatMulInteger")
    graph.insert_before(found.node, node)
    return node


def _column(graph: ir.Graph, found: Accumulator, bias: ir.Value, name: str) -> ir.Value:
    """The bias of a Conv, one number for each channel, with an axis for each axis of positions."""
    rank = len(stored_shape(found.weight.value) or ())
    shape = add_constant(graph, f"{name}_bias_shape", np.array([-1, *[1] * (rank - 2)], np.int64))
    node = ir.node("Reshape", [bias, shape], name=f"{name}_bias_Reshape")
    node.outputs[0].name = f"{name}_bias"
    graph.insert_before(found.node, node)
    return node.outputs[0]
