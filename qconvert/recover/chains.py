"""Pairs of layers between which channels can be scaled: what one makes smaller the other makes good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.graph import Operator, attributes, constant, operand, operators
from qconvert.plan import Site
from qconvert.plan.operands import clamp_bounds
from qconvert.recover.bias import bias_place
from qconvert.recover.edits import in_bodies
from qconvert.recover.scaling import Array
from qconvert.rules import OP_RULES, Channels, channels
from qconvert.targets import HEAVY

HOMOGENEOUS = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
        *("LpPool", "GlobalLpPool", "Resize", "Upsample", "Pad", "Identity", "Dropout", "Flatten", "Clip"),
    }
)
"""Operators with ``f(s x) = s f(x)`` channel by channel for every ``s > 0``; Clip only as far as nothing is clipped."""


@dataclass(frozen=True)
class Chain:
    """Two layers with nothing between but operators through which the scale of a channel passes.

    Attributes:
        first: The operator that makes the channels.
        bias: Who adds its bias, and the operand; that may be left out.
        second: The one that reads them, as its operand 0.
        made: Name of the value that has the channels first, bias included.
        axis: Of the channels there.
        size: How many channels.
        repeats: How many inputs of ``second`` belong to each, one after another: more than 1 behind a Flatten.
        between: The operators on the way.
    """

    first: Operator
    bias: tuple[ir.Node, int]
    second: Operator
    made: str
    axis: int
    size: int
    repeats: int
    between: tuple[ir.Node, ...]

    @property
    def bounds(self) -> tuple[float, float]:
        """Within which nothing is clipped: those of the Clips on the way, but for a bound of 0."""
        found = [clamp_bounds(node) or (0.0, 0.0) for node in self.between if node.op_type == "Clip"]
        low = max((low for low, _ in found if low < 0), default=-np.inf)
        return low, min((high for _, high in found if high > 0), default=np.inf)


def find_chains(model: ir.Model) -> tuple[list[Chain], dict[str, str]]:
    """All of them in topological order, and why other layers make none, by name."""
    by_node = {op.node: op for op in operators(model)}
    found, refused = [], in_bodies(model)
    for op in by_node.values():
        if op.op_type in HEAVY and not op.subgraph:
            chain = _chain(op, by_node)
            if isinstance(chain, Chain):
                found.append(chain)
            else:
                refused[op.name] = chain
    return found, refused


def _chain(op: Operator, by_node: Mapping[ir.Node, Operator]) -> Chain | str:
    """The chain that begins at an operator, or why there is none."""
    source = _source(op)
    if isinstance(source, str):
        return source
    owner, position, where = source
    way = _way(owner.outputs[0], by_node)
    if isinstance(way, str):
        return way
    second = by_node[way[-1]]
    repeats = _repeats(second, where.size, way[:-1])
    if repeats is None:
        return "whose reader's weight is computed or shared"
    made = owner.outputs[0].name or ""
    return Chain(op, (owner, position), second, made, where.axis, where.size, repeats, way[:-1])


def _source(op: Operator) -> tuple[ir.Node, int, Channels] | str:
    """Who adds the bias of an operator, at which operand, and its channels; or why they cannot be scaled."""
    weight = own_weight(op)
    if weight is None:
        return "whose weight is computed or shared"
    where = channels(op.op_type, weight.shape, attributes(op.node))
    if len(where) < 2:
        return "whose output has no channels"
    owner, position = bias_place(op)
    bias = operand(owner, position) if owner is not None else None
    if bias is not None and not _is_own(bias, where[1].size):
        return "whose bias is computed or shared"
    return owner or op.node, position, where[1]


def _way(value: ir.Value, by_node: Mapping[ir.Node, Operator]) -> tuple[ir.Node, ...] | str:
    """The operators from a value to the heavy one that alone reads it, that included; or why there is none."""
    found: list[ir.Node] = []
    while True:
        uses = tuple(value.uses())
        if value.is_graph_output() or len(uses) != 1:
            return "whose result several operators read" if len(uses) > 1 else "whose result is an output"
        reader, place = uses[0]
        if reader not in by_node or by_node[reader].subgraph or place != 0:
            return "whose result meets others"
        found.append(reader)
        if by_node[reader].op_type in HEAVY:
            return tuple(found)
        if not _passes(reader):
            return f"whose result {by_node[reader].op_type} reads"
        value = reader.outputs[0]


def own_weight(op: Operator) -> Array | None:
    """The constant weight of an operator that no other reads."""
    position = OP_RULES[op.op_type].weight
    value = operand(op.node, position) if position is not None else None
    array = constant(value)
    if value is None or array is None or len(tuple(value.uses())) != 1 or value.is_graph_output():
        return None
    return array if array.dtype == np.float32 and array.ndim >= 2 else None


def weight_site(op: Operator) -> Site:
    """Where an operator reads its weight."""
    return Site(op.name, OP_RULES[op.op_type].weight or 0)


def _is_own(value: ir.Value, size: int) -> bool:
    array = constant(value)
    return array is not None and array.size == size and len(tuple(value.uses())) == 1 and not value.is_graph_output()


def _passes(node: ir.Node) -> bool:
    """Whether the scale of a channel passes through an operator."""
    if node.op_type not in HOMOGENEOUS or any(value.uses() for value in node.outputs[1:]):
        return False
    if node.op_type == "Clip":
        bounds = clamp_bounds(node)
        return bounds is not None and bounds[0] <= 0 <= bounds[1]
    if node.op_type == "Pad":
        fill = operand(node, 2)
        array = constant(fill)
        constant_mode = attributes(node).get("mode", "constant") == "constant"
        return not constant_mode or fill is None or (array is not None and not array.any())
    return node.op_type != "Flatten" or int(attributes(node).get("axis", 1)) == 1


def _repeats(op: Operator, size: int, between: tuple[ir.Node, ...]) -> int | None:
    """How many inputs of an operator belong to each of so many channels; None if that is not whole."""
    weight = own_weight(op)
    if weight is None or attributes(op.node).get("transA"):
        return None
    inputs = channels(op.op_type, weight.shape, attributes(op.node))[0].size
    flat = any(node.op_type == "Flatten" for node in between)
    fits = inputs % size == 0 if flat else inputs == size
    return inputs // size if fits else None
