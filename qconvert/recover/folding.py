"""Where the scales of a value's channels can be folded into constants before it, so that it is divided for nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.graph import Operator, attributes, constant, is_constant, operand
from qconvert.plan import Site
from qconvert.recover.chains import own_weight, weight_site
from qconvert.recover.edits import NO_PLAN, set_constant
from qconvert.recover.scaling import over_outputs
from qconvert.rules import channels

_ByNode = Mapping[ir.Node, Operator]

NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
"""Operators that normalize along their last axis, with gains at operand 1 and, if at all, biases at operand 2."""


@dataclass(frozen=True)
class Fold:
    """What to divide for a value's channels to be divided.

    Attributes:
        vectors: Constants with a number for each channel along their last axis, where they are read.
        weights: Weights whose output channels these are.
        values: Names of the values that change by it.
    """

    vectors: tuple[Site, ...] = ()
    weights: tuple[Operator, ...] = ()
    values: tuple[str, ...] = ()

    def __add__(self, other: Fold) -> Fold:
        return Fold(self.vectors + other.vectors, self.weights + other.weights, self.values + other.values)

    def divide(self, nodes: Mapping[str, ir.Node], scale: npt.NDArray[np.float64]) -> None:
        """Divides constants of a graph by the scale of each channel.

        Args:
            nodes: Its operators by name; edited.
            scale: ``[C]``.
        """
        for site in self.vectors:
            array = constant(operand(nodes[site.operator], site.operand))
            if array is not None:
                set_constant(nodes, NO_PLAN, (site,), (array / scale).astype(np.float32))
        for op in self.weights:
            site = weight_site(op)
            array = constant(operand(nodes[op.name], site.operand))
            if array is not None:
                factor = over_outputs(op.op_type, array.shape, attributes(op.node), 1 / scale)
                set_constant(nodes, NO_PLAN, (site,), (array * factor).astype(np.float32))


def find_fold(value: ir.Value, size: int, by_node: _ByNode) -> Fold | str:
    """How to divide the channels of a value, which lie along its last axis, or why that cannot be done.

    Whoever reads the value reads it divided; values on the way have no other readers.

    Args:
        value: It.
        size: How many channels.
        by_node: The operators of the graph.
    """
    producer = value.producer()
    op = by_node.get(producer) if producer is not None else None
    if producer is None or op is None or op.subgraph:
        return "an input of the model"
    fold = _FOLDS.get(op.op_type.rpartition("::")[2])
    return fold(op, size, by_node, value) if fold is not None else f"made by {op.op_type}"


def _vectors(op: Operator, positions: tuple[int, ...], size: int, value: ir.Value) -> Fold | str:
    """The constants of an operator that hold one number for each channel."""
    found = [place for place in positions if operand(op.node, place) is not None]
    if any(not _is_vector(operand(op.node, place), size) for place in found):
        return f"made by {op.op_type} with operands that are no constants of one number a channel"
    if any(one.uses() or one.is_graph_output() for one in op.node.outputs[1:]):
        return f"made by {op.op_type} with results that others read"
    return Fold(tuple(Site(op.name, place) for place in found), values=(value.name or "",))


def _add(op: Operator, size: int, by_node: _ByNode, value: ir.Value) -> Fold | str:
    """Of a bias, and of what it is added to."""
    for row, data in ((1, 0), (0, 1)):
        if _is_vector(operand(op.node, row), size):
            own = _vectors(op, (row,), size, value)
            return own if isinstance(own, str) else _before(operand(op.node, data), size, by_node, own)
    return "a sum"


def _mul(op: Operator, size: int, by_node: _ByNode, value: ir.Value) -> Fold | str:
    """Of a gain, or else of either factor."""
    for place in (1, 0):
        if _is_vector(operand(op.node, place), size):
            return _vectors(op, (place,), size, value)
    for place in (1, 0):
        factor = operand(op.node, place)
        if factor is not None and not is_constant(factor):
            found = _before(factor, size, by_node, Fold(values=(value.name or "",)))
            if isinstance(found, Fold):
                return found
    return "a product of which no factor can be scaled"


def _linear(op: Operator, size: int, by_node: _ByNode, value: ir.Value) -> Fold | str:
    """Of the columns of its weight, and its bias."""
    del by_node
    weight = own_weight(op)
    where = channels(op.op_type, weight.shape, attributes(op.node)) if weight is not None else ()
    if len(where) < 2 or where[1].size != size:
        return f"made by {op.op_type} with a weight that is computed or shared"
    own = Fold(weights=(op,), values=(value.name or "",))
    if op.op_type == "MatMul" or operand(op.node, 2) is None:
        return own
    bias = _vectors(op, (2,), size, value)
    return bias if isinstance(bias, str) else own + bias


def _normalization(op: Operator, size: int, by_node: _ByNode, value: ir.Value) -> Fold | str:
    """Of its gains and its bias."""
    del by_node
    return _vectors(op, (1, 2), size, value)


def _passed(op: Operator, size: int, by_node: _ByNode, value: ir.Value) -> Fold | str:
    """Of what goes through an operator that scales with its input."""
    return _before(op.node.inputs[0], size, by_node, Fold(values=(value.name or "",)))


def _before(value: ir.Value | None, size: int, by_node: _ByNode, own: Fold) -> Fold | str:
    """What divides a value that one operator alone reads, beside what that operator needs."""
    if value is None or len(tuple(value.uses())) != 1 or value.is_graph_output():
        return "made of what others read, too"
    found = find_fold(value, size, by_node)
    return found if isinstance(found, str) else own + found


def _is_vector(value: ir.Value | None, size: int) -> bool:
    array = constant(value)
    return array is not None and array.dtype == np.float32 and array.size == size and array.shape[-1] == size


_FOLDS: Mapping[str, Callable[[Operator, int, _ByNode, ir.Value], Fold | str]] = {
    "Add": _add,
    "Mul": _mul,
    "MatMul": _linear,
    "Gemm": _linear,
    **dict.fromkeys(NORMS, _normalization),
    **dict.fromkeys(("Relu", "LeakyRelu", "Identity", "Dropout"), _passed),
}
"""How what an operator of a type makes is divided."""
