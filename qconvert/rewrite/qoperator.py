"""The QOperator format: onnxruntime's own integer operators, which read and write levels.

The QDQ graph is written first; then each ``DequantizeLinear -> operator -> QuantizeLinear`` becomes the one integer
operator that onnxruntime would make of it (table ``KERNELS``), and pairs that nothing reads any more go. A clamp before
QuantizeLinear becomes one of levels: rounding is monotone, so ``quantize(clip(x)) = clip(quantize(x))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qconvert.errors import TargetError
from qconvert.graph import STANDARD_DOMAINS, add_constant, operators, shape_of, tidy
from qconvert.numerics import QuantParams, quantize
from qconvert.plan import FloatOp, Plan, Site
from qconvert.plan.operands import clamp_bounds
from qconvert.rewrite.kernels import KERNELS, MICROSOFT, Group, Kernel, group_of
from qconvert.rewrite.limits import pair_refusal, type_refusal
from qconvert.rewrite.pairs import Levels, dequantized, is_operator, quantized, quantizer, same_grid
from qconvert.rewrite.qdq import to_qdq
from qconvert.targets import HEAVY, TARGETS, get_target


def check_plan(plan: Plan) -> None:
    """Whether onnxruntime has an integer kernel for every pair of types that a plan brings together.

    Raises:
        TargetError: If it does not, or the target is another runtime.
    """
    if "qoperator" not in get_target(plan.target).formats:
        able = " or ".join(name for name, target in TARGETS.items() if "qoperator" in target.formats)
        raise TargetError(
            f"format qoperator: target {plan.target} does not have onnxruntime's integer operators",
            hint=f"use the QDQ format, or target {able}",
        )
    for entry in plan.entries:
        if entry.role == "bias":
            continue
        refusal = type_refusal("qoperator", f"{entry.role} '{entry.tensor}'", entry.params.dtype.name)
        if refusal:
            hint = "use the QDQ format, or uint8 activations and int8 weights"
            raise TargetError(f"format qoperator: {refusal}", hint=hint)
    _check_pairs(plan)


def _check_pairs(plan: Plan) -> None:
    read = {site: entry for entry in plan.entries for site in entry.sites}
    clipped = get_target(plan.target).clipped
    for name, op_type in plan.integer:
        data, weight = read.get(Site(name, 0)), read.get(Site(name, 1))
        if op_type not in HEAVY or data is None or weight is None:
            continue
        kinds = data.params.dtype.name, weight.params.dtype.name
        refusal = pair_refusal("qoperator", clipped.get(kinds[0], kinds[0]), kinds[1])
        if refusal:
            raise TargetError(
                f"format qoperator: {op_type} '{name}' reads {kinds[0]} '{data.tensor}' and "
                f"{kinds[1]} '{weight.tensor}': {refusal}",
                hint="use int8 weights, or uint8 activations, or the QDQ format",
            )


def to_qoperator(model: ir.Model, plan: Plan) -> tuple[ir.Model, tuple[FloatOp, ...]]:
    """Carries out a plan on a prepared graph, which becomes the QOperator model.

    Returns:
        The model, and the operators that the plan has as integer but that stay float, between Q/DQ pairs, with the
        reason.

    Raises:
        TargetError: If onnxruntime has no operator for the types of the plan; the graph is left as it was.
        PlanError: If the plan names a tensor or operator that the graph does not have.
    """
    check_plan(plan)
    names = {op.node: op.name for op in operators(model) if not op.subgraph}
    chosen = {op.operator for op in plan.floats if op.chosen}
    planned = {name for name, _ in plan.integer}
    written = to_qdq(model, plan)
    written.graph.opset_imports.setdefault(MICROSOFT, 1)
    left = []
    for node, name in names.items():
        if node.graph is not written.graph or name in chosen:
            continue
        if name in planned or _is_between(node):
            reason = _fuse(written.graph, node)
            if reason and name in planned:
                left.append(FloatOp(name, node.op_type, reason))
    _ask_levels_for_shapes(written)
    return tidy(written), tuple(left)


def _ask_levels_for_shapes(model: ir.Model) -> None:
    for op in operators(model):
        levels = dequantized(op.node.inputs[0]) if is_operator(op.node, "Shape", "Size") else None
        if levels is not None:
            op.node.replace_input_with(0, levels.value)


@dataclass(frozen=True)
class _Writer:
    """What makes levels of an output: the clamp behind it, if any, and the QuantizeLinear."""

    value: ir.Value
    clamp: ir.Node | None
    quantize: ir.Node
    levels: Levels


def _is_between(node: ir.Node) -> bool:
    """Whether an operator reads levels past DequantizeLinear, and writes some unless it need not."""
    if is_operator(node, "QuantizeLinear", "DequantizeLinear"):
        return False
    return any(dequantized(value) for value in node.inputs) and (is_operator(node, *HEAVY) or bool(_writers(node)))


def _writers(node: ir.Node) -> list[_Writer]:
    """Those of all outputs that are read at all; none where one is read in float."""
    found = [_writer(value) for value in node.outputs if value.uses() or value.is_graph_output()]
    writers = [one for one in found if one is not None]
    return writers if len(writers) == len(found) else []


def _writer(value: ir.Value) -> _Writer | None:
    behind = quantizer(value)
    uses, clamp = tuple(value.uses()), None
    if behind is None and len(uses) == 1 and uses[0].idx == 0 and not value.is_graph_output():
        clamp = uses[0].node
        if not is_operator(clamp, "Relu", "Clip") or clamp_bounds(clamp) is None:
            return None
        behind = quantizer(clamp.outputs[0])
    levels = quantized(behind) if behind is not None else None
    return _Writer(value, clamp, behind, levels) if behind is not None and levels is not None else None


def _out(node: ir.Node) -> Levels | None:
    """The levels of an operator's outputs: of the first one, where all have one grid."""
    found = [writer.levels for writer in _writers(node)]
    return found[0] if found and all(same_grid(one, found[0]) for one in found) else None


def _fuse(graph: ir.Graph, node: ir.Node) -> str:
    """Writes the integer operator in the place of a group, or says why there is none."""
    if node.op_type not in KERNELS or node.domain not in STANDARD_DOMAINS:
        return f"onnxruntime has no integer operator for {node.op_type}"
    group = group_of(node, _out)
    kernel = KERNELS[node.op_type](group)
    if isinstance(kernel, str):
        return kernel
    writers = _writers(group.end) if group.out is not None else []
    for value, written in zip(group.end.outputs, _place(graph, group, kernel), strict=True):
        writer = next((one for one in writers if one.value is value), None)
        _stand_in(graph, value, written, writer)
    graph.remove([group.node] if group.end is group.node else [group.end, group.node], safe=True)
    return ""


def _place(graph: ir.Graph, group: Group, kernel: Kernel) -> Sequence[ir.Value]:
    """Inserts the integer operator; where it takes a matrix alone, between two Reshapes."""
    name = group.end.outputs[0].name or ""
    inputs = list(kernel.inputs)
    nodes = []
    if kernel.columns:
        nodes.append(_reshape(graph, inputs[0], (-1, kernel.columns), f"{name}_rows"))
        inputs[0] = nodes[0].outputs[0]
    count = len(group.end.outputs)
    own = f"{name}_{kernel.op_type}"
    nodes.append(ir.node(kernel.op_type, inputs, kernel.attributes, domain=kernel.domain, num_outputs=count, name=own))
    if kernel.columns:
        shape = [size if isinstance(size, int) else -1 for size in shape_of(group.end.outputs[0]) or ()]
        nodes[-1].outputs[0].name = f"{name}_matrix"
        nodes.append(_reshape(graph, nodes[-1].outputs[0], shape, f"{name}_shaped"))
    graph.insert_before(group.node, nodes)
    return nodes[-1].outputs


def _reshape(graph: ir.Graph, value: ir.Value | None, shape: Sequence[int], name: str) -> ir.Node:
    size = add_constant(graph, f"{name}_shape", np.array(shape, np.int64))
    node = ir.node("Reshape", [value, size], name=f"{name}_Reshape")
    node.outputs[0].name = name
    return node


def _stand_in(graph: ir.Graph, value: ir.Value, written: ir.Value, writer: _Writer | None) -> None:
    """Gives the output of an integer operator to the readers of the float value, or of the levels made of that."""
    written.shape = value.shape
    replaced = value
    if writer is None:
        written.type = value.type
    else:
        written.type, replaced = ir.TensorType(ir.DataType[writer.levels.params.dtype.onnx]), writer.levels.value
        written = _clamped(graph, written, writer)
    written.name, replaced.name = replaced.name, None
    replaced.replace_all_uses_with(written, replace_graph_outputs=True)
    if writer is not None:
        graph.remove([writer.quantize, *([writer.clamp] if writer.clamp is not None else [])], safe=True)


def _clamped(graph: ir.Graph, levels: ir.Value, writer: _Writer) -> ir.Value:
    """The levels between those of the bounds of a clamp, if there is one.

    One that changes nothing is written only before outputs, whose accumulators shall not be mistaken for them.
    """
    bounds = clamp_bounds(writer.clamp) if writer.clamp is not None else None
    if bounds is None:
        return levels
    grid = _per_tensor(writer.levels.params)
    low, high = quantize(np.array(bounds, np.float32), grid).astype(ir.DataType[grid.dtype.onnx].numpy())
    given = any(value.is_graph_output() for use in writer.levels.value.uses() for value in use.node.outputs)
    if (low, high) == (grid.qmin, grid.qmax) and not given:
        return levels
    name = levels.name = f"{writer.value.name}_unclamped"
    ends = add_constant(graph, f"{name}_low", low), add_constant(graph, f"{name}_high", high)
    clip = ir.node("Clip", [levels, *ends], name=f"{name}_Clip")
    clip.outputs[0].type, clip.outputs[0].shape = levels.type, levels.shape
    graph.insert_before(writer.quantize, clip)
    return clip.outputs[0]


def _per_tensor(params: QuantParams) -> QuantParams:
    return replace(params, scale=params.scale.reshape(()), zero_point=params.zero_point.reshape(()))
