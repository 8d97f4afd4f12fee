"""What lies between the first QuantizeLinear and the last DequantizeLinear of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes

from qconvert.graph import FLOATS, STANDARD_DOMAINS

_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS
_ENDS = {"QuantizeLinear", "DequantizeLinear"}


SHAPES = frozenset({"Shape", "Size"})
"""Operators that read no number of their operand."""


@dataclass(frozen=True)
class FloatIsland:
    """An operator that computes on floats between integer ones.

    Attributes:
        operator: Its name: that of its first output.
        op_type: Its type.
        reason: Why it has no integer form.
    """

    operator: str
    op_type: str
    reason: str


def float_tensors(model: ir.Model) -> list[str]:
    """Names of the float tensors between the first QuantizeLinear and the last DequantizeLinear, in graph order.

    These are what operators read and write that depend on a QuantizeLinear and that a DequantizeLinear depends on;
    a tensor of unknown type counts. An integer model has none.
    """
    typed = model.clone()
    passes.ShapeInferencePass(strict_mode=False, data_prop=True)(typed)
    order = list(typed.graph)
    inside = _behind(order, {"QuantizeLinear"}) & _before(order, {"DequantizeLinear"})
    found: dict[str, None] = {}
    for node in order:
        if node in inside:
            for value in (*_data(node), *node.outputs):
                if value.dtype is None or value.dtype in FLOATS:
                    found[value.name or ""] = None
    return list(found)


def _data(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads; of the ends, not their scales."""
    for value in node.inputs[:1] if node.op_type in _ENDS else node.inputs:
        if value is not None:
            yield value


def island_nodes(model: ir.Model) -> list[ir.Node]:
    """The operators between a DequantizeLinear and a QuantizeLinear, in graph order."""
    order = list(model.graph)
    inside = _behind(order, {"DequantizeLinear"}) & _before(order, {"QuantizeLinear"})
    return [node for node in order if node in inside and not is_end(node) and _touches_float(node)]


def is_end(node: ir.Node) -> bool:
    """Whether a node is a QuantizeLinear or a DequantizeLinear."""
    return node.op_type in _ENDS and node.domain in STANDARD_DOMAINS


def _touches_float(node: ir.Node) -> bool:
    if node.op_type in SHAPES:
        return False
    return any(value.dtype is None or value.dtype in FLOATS for value in reads(node)) or any(
        value.dtype is None or value.dtype in FLOATS for value in node.outputs
    )


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """Every value that a node depends on, also those that only its bodies read."""
    for attribute in node.attributes.values():
        for body in {_GRAPH: [attribute.value], _GRAPHS: attribute.value}.get(attribute.type, ()):
            for inner in body:
                yield from reads(inner)
    for value in node.inputs:
        if value is not None:
            yield value


def _behind(order: list[ir.Node], kinds: set[str]) -> set[ir.Node]:
    """The nodes that depend on one of some kinds."""
    marked: set[ir.Node] = set()
    for node in order:
        sources = {value.producer() for value in reads(node)}
        if any(source is not None and (source in marked or source.op_type in kinds) for source in sources):
            marked.add(node)
    return marked


def _before(order: list[ir.Node], kinds: set[str]) -> set[ir.Node]:
    """The nodes that one of some kinds depends on."""
    marked: set[ir.Node] = set()
    for node in reversed(order):
        if node in marked or node.op_type in kinds:
            marked |= {source for value in reads(node) if (source := value.producer()) is not None}
    return marked
