"""In which operators a quantized weight becomes float again: one form for each place where it is read.

Measured on onnxruntime 1.31, x86-64: all forms are exact with optimizations on and off, but for the first with them on.

* ``dequantize``: DequantizeLinear before the float operator, as ONNX defines it. It runs at every inference, and before
  a MatMul or Gemm onnxruntime makes a MatMulNBits of the two that rounds activations to 8 bits (accuracy level 4).
* ``nbits``: MatMulNBits, accuracy level 1: weights stay packed in memory and the products are float32. Only 4 bits are
  about as fast as float weights; of 8 and 2 bits all weights become float at every run, which took 100 times as long
  for a single row.
* ``gather``: GatherBlockQuantized: only the rows that are looked up become float.
* ``folded``: Cast, Sub, Mul, which onnxruntime computes once, when it loads the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.float8 import Float8
from qconvert.graph import attributes, operand, operators, shape_of
from qconvert.numerics import QuantParams
from qconvert.plan import Entry, Plan, Site
from qconvert.targets import Target, get_target
from qconvert.tensors import dims

Form = Literal["dequantize", "nbits", "gather", "folded"]

BLOCKS = (16, 32, 64, 128, 256)
"""Sizes of the blocks that onnxruntime's operators take."""

_CAST_OPSETS = {2: 25, 4: 21, 8: 13, 16: 13}
_DEQUANTIZE_OPSETS = {2: 25, 4: 21, 8: 13, 16: 21}
_FLOAT8_OPSET = 19
_BLOCKED_OPSET = 21


@dataclass(frozen=True)
class Reading:
    """A place where a quantized weight is read.

    Attributes:
        entry: The weight.
        site: The place.
        form: How it becomes float there.
        why: Why not in the form that stays packed, or "".
        matmuls: Names of the operators that become MatMulNBits: that of the place, or those behind its Transpose.
    """

    entry: Entry
    site: Site
    form: Form
    why: str = ""
    matmuls: tuple[str, ...] = ()


def readings(model: ir.Model, plan: Plan) -> list[Reading]:
    """The form for each place where the plan's weights are read.

    Raises:
        PlanError: If the plan names a tensor or operator that the graph does not have.
    """
    target = get_target(plan.target)
    names = {op.node: op.name for op in operators(model)}
    nodes = {name: node for node, name in names.items()}
    found = []
    for entry in plan.entries:
        for site in entry.sites:
            node = nodes.get(site.operator)
            value = operand(node, site.operand) if node is not None else None
            if node is None or value is None or value.const_value is None:
                raise PlanError(f"the graph has no weight '{entry.tensor}' at operator '{site.operator}'")
            found.append(_reading(entry, site, node, value.const_value, target=target, names=names))
    floats = {id(one.entry) for one in found if one.form == "folded"}
    return [_as_float(one) if one.form == "gather" and id(one.entry) in floats else one for one in found]


def _as_float(lookup: Reading) -> Reading:
    """A lookup in a weight that becomes float for another operator anyway."""
    return replace(lookup, form="folded", why="shared with an operator that reads it in float")


def _reading(
    entry: Entry,
    site: Site,
    node: ir.Node,
    weight: ir.TensorProtocol,
    *,
    target: Target,
    names: Mapping[ir.Node, str],
) -> Reading:
    shape = dims(weight)
    params = entry.params
    if isinstance(params.dtype, Float8):
        return Reading(entry, site, "folded", "8-bit floats")
    if not target.own_operators:
        return Reading(entry, site, "dequantize")
    why = ""
    if node.op_type in {"Gather", "MatMul", "Gemm", "Transpose"}:
        transposed = rows_are_columns(node)
        why = _unpackable(params, shape, transposed=transposed)
        if node.op_type == "Gather":
            why = why or ("" if params.dtype.bits in {4, 8} else f"no lookup of packed {params.dtype}")
            if not why:
                return Reading(entry, site, "gather")
        else:
            matmuls = _matmuls(node)
            why = why or ("" if params.dtype.bits == 4 else f"no fast float32 kernel for packed {params.dtype}")
            why = why or next(filter(None, map(_unfit, matmuls)), "")
            if matmuls and not why:
                return Reading(entry, site, "nbits", matmuls=tuple(names[matmul] for matmul in matmuls))
    if params.block_size is None or shape[params.axis or 0] % params.block_size == 0:
        return Reading(entry, site, "folded", why or f"no packed weights in {node.op_type}")
    return Reading(entry, site, "dequantize", why)


def rows_are_columns(node: ir.Node) -> bool:
    """Whether the outputs of the operator are the columns of its stored weight."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not attributes(node).get("transB"))


def block_of(params: QuantParams, width: int) -> int:
    """The size of the blocks in which a weight of so many inputs is packed."""
    if params.block_size is not None:
        return params.block_size
    return next((block for block in BLOCKS if block >= width), BLOCKS[-1])


def _unpackable(params: QuantParams, shape: tuple[int, ...], *, transposed: bool) -> str:
    """Why onnxruntime's operators do not take a grid, or ""."""
    if len(shape) != 2:
        return f"no kernel for packed weights of {len(shape)} axes"
    inner = 0 if transposed else 1
    if params.block_size is not None and params.axis != inner:
        return "the groups lie along another axis"
    if params.block_size is None and params.axis == inner:
        return "the channels lie along another axis"
    if params.block_size is not None and params.block_size not in BLOCKS:
        return f"no kernel for groups of {params.block_size}"
    return ""


def _matmuls(node: ir.Node) -> Sequence[ir.Node]:
    """The operators that multiply by the weight: the node itself, or all readers of the Transpose."""
    if node.op_type != "Transpose":
        return (node,)
    return tuple(dict.fromkeys(use.node for use in node.outputs[0].uses()))


def _unfit(node: ir.Node) -> str:
    """Why an operator cannot become MatMulNBits, or ""."""
    data, found = operand(node, 0), attributes(node)
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    if producer is not None and (producer.op_type != "Transpose" or data is node.inputs[1]):
        return "both operands are the weight"
    if node.op_type == "MatMul":
        rank = len(shape_of(data) or ()) if data is not None else 0
        return "" if rank >= 2 else "the rank of its input is not known, or 1"
    if node.op_type != "Gemm":
        return f"no packed weights in {node.op_type}"
    if producer is not None and found.get("transB"):
        return "a Gemm that transposes a Transpose"
    bias = operand(node, 2)
    if found.get("transA") or found.get("alpha", 1.0) != 1.0 or (bias is not None and found.get("beta", 1.0) != 1.0):
        return "a Gemm with transA, alpha or beta"
    columns = (shape_of(node.inputs[1]) or (None, None))[0 if found.get("transB") else 1] if node.inputs[1] else None
    return "" if bias is None or shape_of(bias) == (columns,) else "a Gemm whose bias is not one number a column"


def needed_opset(found: Sequence[Reading]) -> int:
    """The first opset that has the types and operators of all forms."""
    return max((_needed(reading) for reading in found), default=13)


def _needed(reading: Reading) -> int:
    params = reading.entry.params
    if reading.form in {"nbits", "gather"}:
        return 13
    if isinstance(params.dtype, Float8):
        return _FLOAT8_OPSET
    if reading.form == "folded":
        return _CAST_OPSETS[params.dtype.bits]
    return max(_DEQUANTIZE_OPSETS[params.dtype.bits], _BLOCKED_OPSET if params.block_size is not None else 0)
