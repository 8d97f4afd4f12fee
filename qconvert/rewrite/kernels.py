"""onnxruntime's integer operators: for each float operator between Q/DQ pairs, the one that computes on the levels.

Sources: ONNX QLinearConv-10, QLinearMatMul-10; onnxruntime docs/ContribOperators.md (QGemm, QLinearAdd, ...), and the
types of the CPU kernels that onnxruntime 1.31 registers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qconvert.graph import attributes, operand, shape_of
from qconvert.numerics import INT8, INT32, UINT8
from qconvert.rewrite.pairs import Levels, dequantized, is_operator, same_grid
from qconvert.rules import weight_axis

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Group:
    """An operator of the written graph with its Q/DQ pairs.

    Attributes:
        node: The float operator.
        operands: The levels behind each operand, None where it is float or left out.
        out: The levels that QuantizeLinear makes of its output, None where that stays float.
        bias: The int32 levels of a bias, its own or that of the Add behind a MatMul.
        end: The last float operator of the group: the Add, else ``node``.
    """

    node: ir.Node
    operands: tuple[Levels | None, ...]
    out: Levels | None
    bias: Levels | None
    end: ir.Node


@dataclass(frozen=True)
class Kernel:
    """An integer operator to be written.

    Attributes:
        op_type: Its type.
        inputs: Its operands.
        attributes: Its attributes.
        domain: Its domain.
        columns: Where it takes a matrix only and the operand is none: how many columns the operand has as one.
    """

    op_type: str
    inputs: Sequence[ir.Value | None]
    attributes: Mapping[str, Any]
    domain: str = MICROSOFT
    columns: int = 0


Row = Callable[[Group], "Kernel | str"]
"""The kernel of a group, or why there is none."""

CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
"""The attributes of Conv, which its integer forms take as they are."""

_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")


def group_of(node: ir.Node, out: Callable[[ir.Node], Levels | None]) -> Group:
    """The group of a node; ``out`` finds the levels that are made of an operator's output."""
    operands = tuple(dequantized(value) for value in node.inputs)
    bias, end = None, node
    if is_operator(node, "Conv", "Gemm"):
        bias = operands[2] if len(operands) > 2 else None
    elif is_operator(node, "MatMul"):
        bias, end = _added(node)
    return Group(node, operands, out(end), bias, end)


def _added(matmul: ir.Node) -> tuple[Levels | None, ir.Node]:
    """The int32 bias that is added to a MatMul of what is, or can become, a matrix, and the Add."""
    weight, shape = dequantized(operand(matmul, 1)), shape_of(matmul.outputs[0])
    if weight is None or len(stored_shape(weight.value) or ()) != 2 or shape is None:
        return None, matmul
    if len(shape) != 2 and not all(isinstance(size, int) for size in shape):
        return None, matmul
    uses = tuple(matmul.outputs[0].uses())
    if len(uses) == 1 and is_operator(uses[0].node, "Add") and not matmul.outputs[0].is_graph_output():
        add = uses[0].node
        bias = dequantized(operand(add, 1 - uses[0].idx))
        if bias is not None and bias.params.dtype == INT32:
            return bias, add
    return None, matmul


def stored_shape(weight: ir.Value) -> tuple[int | str | None, ...] | None:
    """The shape of a weight, also of one that is stored in fewer bits and cast."""
    producer = weight.producer()
    source = producer.inputs[0] if producer is not None and is_operator(producer, "Cast") else weight
    return shape_of(source) if source is not None else None


def _triple(levels: Levels) -> list[ir.Value | None]:
    return [levels.value, levels.scale, levels.zero]


def _grid(levels: Levels) -> list[ir.Value | None]:
    return [levels.scale, levels.zero]


def _kept(node: ir.Node, names: Sequence[str]) -> dict[str, Any]:
    return {name: node.attributes[name] for name in names if name in node.attributes}


def _opaque(group: Group, count: int, *, weight: int | None = None) -> str:
    """Why the first operands, and the output where there is one, are not levels of types that go together."""
    read = group.operands[:count]
    for index, levels in enumerate(read):
        if levels is None or levels.params.dtype == INT32:
            return "its weight is not quantized" if index == weight else f"its operand {index} is not quantized"
        if not levels.per_tensor and index != weight:
            return f"its operand {index} has more than one scale"
    found = [levels for levels in (*read, group.out) if levels is not None]
    kinds = [levels.params.dtype for levels in found]
    free = weight is not None and kinds[0] == UINT8 and kinds[weight] == INT8
    if any(kind != kinds[0] for index, kind in enumerate(kinds) if not (free and index == weight)):
        return f"no integer kernel takes {' and '.join(map(str, dict.fromkeys(kinds)))} together"
    return ""


def _heavy(group: Group) -> str:
    """Why a Conv, Gemm or MatMul has no integer kernel."""
    data, weight = group.operands[0], group.operands[1]
    refused = _opaque(group, 2, weight=1)
    if refused or data is None or weight is None:
        return refused
    if not weight.per_tensor:
        shape = stored_shape(weight.value)
        own = weight_axis(group.node.op_type, len(shape), attributes(group.node)) if shape is not None else None
        if weight.params.axis != own:
            return "the scales of its weight are not those of its output channels"
    if operand(group.node, 2) is not None and group.bias is None:
        return "its bias is float"
    return _bias_refusal(group, data, weight)


def _bias_refusal(group: Group, data: Levels, weight: Levels) -> str:
    if group.bias is None:
        return ""
    expected = data.params.scale * weight.params.scale
    fits = group.bias.params.scale.size in {1, expected.size} and np.allclose(group.bias.params.scale, expected, 1e-5)
    return "" if fits else "its bias is on another grid than its accumulator"


def _needs_output(group: Group) -> str:
    return "" if group.out is not None else "its output is read in float"


def conv(group: Group) -> Kernel | str:
    """Conv: QLinearConv, int32 bias inside."""
    refused = _needs_output(group) or _heavy(group)
    data, weight, out = group.operands[0], group.operands[1], group.out
    if refused or data is None or weight is None or out is None:
        return refused
    bias = [group.bias.value] if group.bias is not None else []
    inputs = [*_triple(data), *_triple(weight), *_grid(out), *bias]
    return Kernel("QLinearConv", inputs, _kept(group.node, CONV), "")


def gemm(group: Group) -> Kernel | str:
    """Gemm: QGemm, which also writes float."""
    refused = _heavy(group)
    data, weight = group.operands[0], group.operands[1]
    if refused or data is None or weight is None:
        return refused
    if group.bias is not None and any(attributes(group.node).get(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "its bias has a factor"
    return Kernel("QGemm", _qgemm(data, weight, group), _kept(group.node, ("alpha", "transA", "transB")))


def _qgemm(data: Levels, weight: Levels, group: Group) -> list[ir.Value | None]:
    """The operands of a QGemm; its output is float where it is given no grid."""
    bias = group.bias.value if group.bias is not None else None
    out = _grid(group.out) if group.out is not None else []
    return [*_triple(data), *_triple(weight), *([bias] if bias is not None or out else []), *out]


def matmul(group: Group) -> Kernel | str:
    """MatMul: QLinearMatMul, or MatMulIntegerToFloat before float readers; with an int32 bias QGemm."""
    refused = _heavy(group)
    data, weight = group.operands[0], group.operands[1]
    if refused or data is None or weight is None:
        return refused
    if group.bias is not None:
        rows, _ = stored_shape(weight.value) or (0, 0)
        columns = int(str(rows)) if len(shape_of(group.node.outputs[0]) or ()) != 2 else 0
        return Kernel("QGemm", _qgemm(data, weight, group), {}, columns=columns)
    if group.out is not None:
        return Kernel("QLinearMatMul", [*_triple(data), *_triple(weight), *_grid(group.out)], {}, "")
    inputs = [data.value, weight.value, data.scale, weight.scale, data.zero, weight.zero]
    return Kernel("MatMulIntegerToFloat", inputs, {})


def _elementwise(op_type: str, *, operands: int = 1, kept: Sequence[str] = ()) -> Row:
    """Operators that take each operand with its grid, then the grid of the output."""

    def row(group: Group) -> Kernel | str:
        refused = _needs_output(group) or _opaque(group, operands)
        if refused or group.out is None:
            return refused
        read = [value for levels in group.operands[:operands] if levels is not None for value in _triple(levels)]
        return Kernel(op_type, [*read, *_grid(group.out)], _kept(group.node, kept))

    return row


def relu(group: Group) -> Kernel | str:
    """Relu: a QLinearLeakyRelu whose slope is 0 below 0."""
    found = _elementwise("QLinearLeakyRelu")(group)
    return found if isinstance(found, str) else Kernel(found.op_type, found.inputs, {"alpha": 0.0})


def leaky_relu(group: Group) -> Kernel | str:
    """LeakyRelu: QLinearLeakyRelu."""
    return _elementwise("QLinearLeakyRelu", kept=("alpha",))(group)


def average_pool(group: Group) -> Kernel | str:
    """AveragePool: QLinearAveragePool, which knows no dilations."""
    if any(size != 1 for size in attributes(group.node).get("dilations", ())):
        return "no integer kernel for AveragePool with dilations"
    return _elementwise("QLinearAveragePool", kept=_POOL)(group)


def softmax(group: Group) -> Kernel | str:
    """Softmax along one axis: QLinearSoftmax."""
    found = _elementwise("QLinearSoftmax")(group)
    if isinstance(found, str):
        return found
    return Kernel(found.op_type, found.inputs, {"axis": int(attributes(group.node).get("axis", -1)), "opset": 13})


def concat(group: Group) -> Kernel | str:
    """Concat: QLinearConcat."""
    refused = _needs_output(group) or _opaque(group, len(group.operands))
    if refused or group.out is None:
        return refused
    read = [value for levels in group.operands if levels is not None for value in _triple(levels)]
    return Kernel("QLinearConcat", [*_grid(group.out), *read], _kept(group.node, ("axis",)))


def where(group: Group) -> Kernel | str:
    """Where: QLinearWhere; the condition stays as it is."""
    chosen = Group(group.node, group.operands[1:], group.out, None, group.end)
    refused = _needs_output(group) or _opaque(chosen, 2)
    if refused or group.out is None:
        return refused
    read = [value for levels in chosen.operands if levels is not None for value in _triple(levels)]
    return Kernel("QLinearWhere", [group.node.inputs[0], *read, *_grid(group.out)], {})


def move(group: Group) -> Kernel | str:
    """What only moves values does so with levels, where both sides have one grid."""
    refused = _needs_output(group) or _opaque(group, 1)
    data = group.operands[0]
    if refused or data is None or group.out is None:
        return refused
    if not same_grid(data, group.out):
        return "its input and output are on different grids"
    inputs = [data.value, *group.node.inputs[1:]]
    return Kernel(group.node.op_type, inputs, dict(group.node.attributes), group.node.domain)


def pad(group: Group) -> Kernel | str:
    """Pad with zeros: with the level of 0."""
    found = move(group)
    data = group.operands[0]
    if isinstance(found, str) or data is None:
        return found
    inputs = [*found.inputs, None, None][: max(3, len(found.inputs))]
    inputs[2] = data.zero
    return Kernel("Pad", inputs, found.attributes, found.domain)


def resize(group: Group) -> Kernel | str:
    """Resize: levels are copied; between levels onnxruntime's 8-bit kernel cuts off where QuantizeLinear rounds."""
    found = attributes(group.node)
    if found.get("mode", "nearest") != "nearest" or found.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "onnxruntime's 8-bit Resize only copies exactly: no integer kernel for this mode"
    return move(group)


def depth_to_space(group: Group) -> Kernel | str:
    """DepthToSpace: of uint8, which onnxruntime takes from before 1.23 on; int8 and SpaceToDepth came after 1.24."""
    data = group.operands[0]
    return move(group) if data is not None and data.params.dtype == UINT8 else "onnxruntime 1.24 takes uint8 only"


_COPIES = (
    *("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"),
    *("Gather", "GatherElements", "Expand", "Tile", "Identity"),
)

KERNELS: dict[str, Row] = {
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": matmul,
    "Add": _elementwise("QLinearAdd", operands=2),
    "Mul": _elementwise("QLinearMul", operands=2),
    "Concat": concat,
    "GlobalAveragePool": _elementwise("QLinearGlobalAveragePool"),
    "AveragePool": average_pool,
    "Sigmoid": _elementwise("QLinearSigmoid"),
    "LeakyRelu": leaky_relu,
    "Relu": relu,
    "Softmax": softmax,
    "Where": where,
    "Pad": pad,
    "Resize": resize,
    "DepthToSpace": depth_to_space,
    **dict.fromkeys(_COPIES, move),
}
"""One row an operator."""
