"""From a QDQ graph to an integer one: every QuantizeLinear becomes integer nodes that compute what it is fed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from qconvert.graph import constant, operand, tidy
from qconvert.rewrite.integer import arithmetic, averages
from qconvert.rewrite.integer.between import SHAPES, FloatIsland, island_nodes
from qconvert.rewrite.integer.emit import Emitter
from qconvert.rewrite.integer.levels import BYTES, Accumulator, Grid, NoIntegerFormError, Sink, dequantized, grid_of
from qconvert.rewrite.integer.moves import move
from qconvert.rewrite.integer.multiplier import Rounding
from qconvert.rewrite.integer.products import PRODUCTS, accumulate
from qconvert.rewrite.integer.softmax import softmax
from qconvert.rewrite.integer.tables import is_function, rescaled, table
from qconvert.targets import MOVES

RULES: Mapping[str, Callable[[Emitter, ir.Node, Sink], ir.Value]] = {
    "Add": arithmetic.add,
    "Sub": arithmetic.add,
    "Mul": arithmetic.mul,
    "Concat": arithmetic.on_one_grid,
    "Max": arithmetic.on_one_grid,
    "Min": arithmetic.on_one_grid,
    "AveragePool": averages.average_pool,
    "GlobalAveragePool": averages.mean,
    "ReduceMean": averages.mean,
    "GlobalMaxPool": averages.extreme,
    "ReduceMax": averages.extreme,
    "ReduceMin": averages.extreme,
    "Softmax": softmax,
}
"""The integer forms that are neither sums of products nor tables nor moves, by operator type."""


CHOSEN = "left float by the policy"
"""Why an operator stays float that has an integer form."""


def lower(
    model: ir.Model, rounding: Rounding, *, chosen: AbstractSet[ir.Node] = frozenset()
) -> tuple[FloatIsland, ...]:
    """Makes a QDQ model an integer one; what has no integer form stays float and is listed.

    Args:
        model: As ``to_qdq`` writes it.
        rounding: How sums are requantized.
        chosen: Operators that the user wants in float.
    """
    _type_levels(model)
    run = _Run(model, rounding, chosen)
    for node in [node for node in model.graph if node.op_type == "QuantizeLinear"]:
        run.quantize(node)
    tidy(model)
    for node in reversed(list(model.graph)):
        run.dequantize(node)
    _read_shapes_of_levels(model)
    tidy(model)
    return tuple(FloatIsland(_name(node), node.op_type, run.why(node)) for node in island_nodes(model))


def _type_levels(model: ir.Model) -> None:
    """Types of the levels that ``to_qdq`` wrote."""
    for node in model.graph:
        levels, zero = node.outputs[0], operand(node, 2)
        if node.op_type == "QuantizeLinear":
            levels.type = ir.TensorType(ir.DataType.UINT8) if zero is None else zero.type
        elif node.op_type == "Clip" and levels.type is None and node.inputs[0] is not None:
            levels.type = node.inputs[0].type


def _read_shapes_of_levels(model: ir.Model) -> None:
    """Shape and Size need no real: levels have the same."""
    for node in model.graph:
        source = node.inputs[0].producer() if node.op_type in SHAPES and node.inputs[0] is not None else None
        if source is not None and source.op_type == "DequantizeLinear":
            node.replace_input_with(0, source.inputs[0])


@dataclass
class _Run:
    model: ir.Model
    rounding: Rounding
    chosen: AbstractSet[ir.Node]
    sums: dict[ir.Value, Accumulator] = field(default_factory=dict)
    moved: dict[ir.Node, ir.Node] = field(default_factory=dict)
    weights: dict[ir.Value, ir.Value] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def emitter(self, anchor: ir.Node, name: str) -> Emitter:
        return Emitter(self.model, self.rounding, anchor, name, self.moved, self.sums, self.weights)

    def quantize(self, node: ir.Node) -> None:
        """Moves the readers of a QuantizeLinear to integer nodes, where there are some that compute its levels."""
        value, levels = node.inputs[0], node.outputs[0]
        zero = operand(node, 2)
        grid = grid_of(node, ir.DataType.UINT8 if zero is None else zero.dtype)
        if value is None or grid is None or grid.dtype not in BYTES or grid.axis is not None:
            return
        if self.chosen & _float_region(value):
            return
        emit = self.emitter(node, levels.name or "")
        try:
            found = _levels(emit, value, grid)
        except NoIntegerFormError as error:
            self.reasons[_name(error.node)] = str(error)
            return
        if found is None:
            return
        if levels.is_graph_output():
            found = emit.node("Identity", found)
            public, levels.name = levels.name, f"{levels.name}_float"
            found.name, found.shape = public, levels.shape
        levels.replace_all_uses_with(found, replace_graph_outputs=True)

    def dequantize(self, node: ir.Node) -> None:
        """Moves the float readers of a product to a DequantizeLinear of its sums."""
        value = node.outputs[0]
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            self.model.graph.remove(node, safe=True)
            return
        if node in self.chosen:
            return
        emit = self.emitter(node, value.name or "")
        try:
            sums = accumulate(emit, value)
        except NoIntegerFormError as error:
            self.reasons[_name(error.node)] = str(error)
            return
        if sums is None:
            return
        scale = emit.constant("scale", sums.scale, np.float32)
        attributes = {} if sums.axis is None else {"axis": sums.axis}
        real = emit.node("DequantizeLinear", sums.value, scale, attributes=attributes, dtype=ir.DataType.FLOAT)
        real.shape = value.shape
        public, value.name = value.name, f"{value.name}_float"
        value.replace_all_uses_with(real, replace_graph_outputs=True)
        real.name = public
        self.model.graph.remove(node, safe=True)

    def why(self, node: ir.Node) -> str:
        """Why an operator stays float."""
        if node in self.chosen:
            return CHOSEN
        if self.chosen & _float_region(node.outputs[0]):
            return "it feeds on an operator that the policy leaves float"
        if _name(node) in self.reasons:
            return self.reasons[_name(node)]
        known = node.op_type in PRODUCTS or node.op_type in RULES or node.op_type in MOVES or is_function(node.op_type)
        if known:
            return "the plan has no 8-bit grid for its result or an operand"
        return f"{node.op_type} has no integer form"


def _float_region(value: ir.Value) -> set[ir.Node]:
    """The operators between a float value and the levels that it comes from."""
    found: set[ir.Node] = set()
    todo = [value]
    while todo:
        node = todo.pop().producer()
        if node is not None and node not in found and node.op_type != "DequantizeLinear":
            found.add(node)
            todo += [operand for operand in node.inputs if operand is not None]
    return found


def _levels(emit: Emitter, value: ir.Value, grid: Grid) -> ir.Value | None:
    """The levels of a float value on a grid; None of one that no integer operator makes."""
    limits = BYTES[grid.dtype]
    sink = Sink(grid, int(limits.min), int(limits.max))
    source = dequantized(value)
    if source is not None and source.grid.dtype in BYTES and source.grid.axis is None:
        return rescaled(emit, source, sink)
    found = table(emit, value, sink)
    if found is not None:
        return found
    value, sink = _past_clamps(value, sink)
    sums = accumulate(emit, value)
    if sums is not None:
        return emit.requantize(sums.value, sums.broadcast, sink)
    node = value.producer()
    if node is None:
        return None
    if node.op_type in MOVES:
        return move(emit, node, value, sink)
    return RULES[node.op_type](emit, node, sink) if node.op_type in RULES else None


def _past_clamps(value: ir.Value, sink: Sink) -> tuple[ir.Value, Sink]:
    """What Relu and constant Clips in front of a QuantizeLinear clamp, and the levels that they leave."""
    node = value.producer()
    while node is not None and node.op_type in {"Relu", "Clip"} and node.inputs[0] is not None:
        bounds = _bounds(node)
        if bounds is None:
            break
        low, high = (int(level) for level in sink.grid.levels_of(bounds))
        sink = Sink(sink.grid, min(max(sink.low, low), sink.high), max(min(sink.high, high), sink.low))
        value = node.inputs[0]
        node = value.producer()
    return value, sink


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, np.inf
    ends = []
    for index, open_end in ((1, -np.inf), (2, np.inf)):
        end = constant(operand(node, index))
        if end is None and operand(node, index) is not None:
            return None
        ends.append(open_end if end is None else float(end.reshape(-1)[0]))
    return ends[0], ends[1]


def _name(node: ir.Node) -> str:
    return next((value.name for value in node.outputs if value.name), "") or node.name or ""
