"""Writes constants of a graph and keeps its plan in step; the only place of this room that does either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.graph import Operator, add_constant, constant, operand, operators
from qconvert.numerics import fake_quantize
from qconvert.plan import Entry, Plan, Site
from qconvert.prepare import raise_opset
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.targets import HEAVY

Array = npt.NDArray[Any]

NO_PLAN = Plan("generic", (), (), (), ())
"""Of a float model."""


def nodes_of(graph: ir.Model) -> dict[str, ir.Node]:
    """The operators by name."""
    return {op.name: op.node for op in operators(graph)}


def in_bodies(graph: ir.Model) -> dict[str, str]:
    """The heavy operators that no method changes, since what they read is not seen from outside: why, by name."""
    inner = (op for op in operators(graph) if op.subgraph and op.op_type in HEAVY)
    return {op.name: body_of(op) for op in inner}


def body_of(op: Operator) -> str:
    """Where an operator of a body is, as the end of a sentence."""
    return f"inside a body of {op.subgraph.partition('(')[0]}"


def set_constant(nodes: Mapping[str, ir.Node], plan: Plan, sites: Sequence[Site], array: Array) -> Plan:
    """Gives sites another constant; whoever else reads the old one keeps it.

    Args:
        nodes: The operators of a graph, which is edited.
        plan: Of the graph.
        sites: Where one constant is read: all of an entry's, or of none.
        array: What they shall read, in the shape of the old one.

    Returns:
        The plan, whose entry of these sites has the constant's name.

    Raises:
        PlanError: If a site reads no constant.
    """
    first = nodes[sites[0].operator]
    old = operand(first, sites[0].operand)
    if old is None or constant(old) is None:
        raise PlanError(f"operand {sites[0].operand} of '{sites[0].operator}' is not a constant")
    wanted = {(nodes[site.operator], site.operand) for site in sites}
    if {(use.node, use.idx) for use in old.uses()} == wanted and not old.is_graph_output():
        old.const_value = ir.Tensor(np.ascontiguousarray(array), name=old.name)
        return plan
    new = add_constant(_owner(first), f"{old.name}_{sites[0].operator}", np.ascontiguousarray(array))
    for node, position in wanted:
        node.replace_input_with(position, new)
    entries = tuple(
        replace(entry, tensor=new.name or "") if entry.tensor == old.name and set(entry.sites) == set(sites) else entry
        for entry in plan.entries
    )
    return replace(plan, entries=entries)


def add_operand(node: ir.Node, position: int, array: Array, name: str) -> str:
    """Gives an operator a constant where it reads nothing; its name, which is like the one asked for."""
    value = add_constant(_owner(node), name, np.ascontiguousarray(array))
    if len(node.inputs) <= position:
        node.resize_inputs(position + 1)
    node.replace_input_with(position, value)
    return value.name or ""


def insert_branch(node: ir.Node, first: Array, second: Array) -> tuple[str, str]:
    """Adds ``x @ first @ second`` to what an operator makes of its operand ``x``.

    Returns:
        The names of the operator that reads ``x`` and of the one that makes the sum, which are those of their outputs.
    """
    graph, made = _owner(node), node.outputs[0]
    weights = [add_constant(graph, f"{made.name}_low_rank_{part}", one) for part, one in enumerate((first, second))]
    down = ir.node("MatMul", [node.inputs[0], weights[0]])
    up = ir.node("MatMul", [down.outputs[0], weights[1]])
    both = ir.node("Add", [made, up.outputs[0]])
    for part, name in ((down, "down"), (up, "up"), (both, "sum")):
        part.name = part.outputs[0].name = f"{made.name}_low_rank_{name}"
        part.outputs[0].type = made.type
    both.outputs[0].shape = made.shape
    ir.convenience.replace_all_uses_with(made, both.outputs[0])
    both.replace_input_with(0, made)
    graph.insert_after(node, [down, up, both])
    return down.outputs[0].name or "", both.outputs[0].name or ""


def _owner(node: ir.Node) -> ir.Graph:
    if not isinstance(node.graph, ir.Graph):
        message = f"operator '{node.name}' is in no graph"
        raise TypeError(message)
    return node.graph


@dataclass(frozen=True)
class Simulated:
    """A quantized model in float arithmetic.

    Attributes:
        model: It.
        nodes: Its operators by the names that they have in the prepared graph.
    """

    model: ir.Model
    nodes: Mapping[str, ir.Node]


def simulated(graph: ir.Model, plan: Plan) -> Simulated:
    """The quantized model with weights and biases as float constants at the operators that read them.

    Weights are the reals of their levels, biases are not rounded and clamps stay: the same arithmetic, up to the
    rounding of biases to int32, in which a constant can be changed without a look at the plan.

    Args:
        graph: The prepared graph; left as it is.
        plan: Its plan.

    Raises:
        PlanError: If the plan is of another graph.
    """
    copy = graph.clone()
    kept = tuple(entry for entry in plan.entries if entry.role in {"activation", "constant"})
    pairs = replace(plan, entries=kept, absorbed=())
    raise_opset(copy, needed_opset(pairs))
    nodes = nodes_of(copy)
    for entry in plan.of("weight"):
        array = constant(operand(nodes[entry.sites[0].operator], entry.sites[0].operand))
        set_constant(nodes, plan, entry.sites, as_read(array, entry))
    written = to_qdq(copy, pairs)
    for op in operators(written):
        if op.node.op_type == "QuantizeLinear":
            _set_type(op.node)
    return Simulated(written, nodes)


def as_read(array: Array | None, entry: Entry) -> npt.NDArray[np.float32]:
    """A weight as the quantized operator sees it.

    Raises:
        PlanError: If it is not a constant.
    """
    if array is None:
        raise PlanError(f"'{entry.tensor}' is not a constant", hint="make the plan again")
    return fake_quantize(np.asarray(array, np.float32), entry.params)


def _set_type(node: ir.Node) -> None:
    """Levels have the type of their zero point; the Clip behind them likewise."""
    zero, levels = operand(node, 2), node.outputs[0]
    levels.type = zero.type if zero is not None else None
    for use in levels.uses():
        if use.node.op_type == "Clip":
            use.node.outputs[0].type = levels.type
