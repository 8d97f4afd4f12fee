"""Levels of activations whose grid is computed at run time, as nodes in a graph; always uint8.

onnxruntime multiplies int8 by int8 six times slower than uint8 by int8 (1.31, x86-64, measured), so that symmetric
levels are stored about a zero point of 128: the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.graph import add_constant, opset
from qconvert.plan.types import Bounds, Dynamic

_TINY = float(np.finfo(np.float32).tiny)
"""The least scale: of zeros, whose levels are all the zero point."""

_AXES_OPSET = 18
"""The first opset in which ReduceMax reads its axes as an operand."""

_MIDDLE = 128


@dataclass(frozen=True)
class Levels:
    """An activation in uint8.

    Attributes:
        value: The levels.
        scale: One for the tensor, or one for each row with a last axis of 1.
        zero: The zero point, uint8 ``[]``.
        rows: Whether there is a scale for each row.
    """

    value: ir.Value
    scale: ir.Value
    zero: ir.Value
    rows: bool


@dataclass
class Emitter:
    """Writes nodes into the main graph of a model, and each scalar once."""

    model: ir.Model
    scalars: dict[tuple[str, str], ir.Value] = field(default_factory=dict)

    def node(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, object] | None = None,
    ) -> ir.Value:
        """Inserts an operator with one output, which is called ``name``."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        made = ir.node(op_type, inputs, dict(attributes or {}), name=f"{name}_{op_type}")
        made.outputs[0].name = name
        self.model.graph.insert_before(before, made)
        return made.outputs[0]

    def constant(self, name: str, array: npt.ArrayLike) -> ir.Value:
        """Adds an initializer."""
        return add_constant(self.model.graph, name, np.asarray(array))

    def scalar(self, number: float, dtype: npt.DTypeLike = np.float32) -> ir.Value:
        """An initializer without axes."""
        array = np.array(number, dtype)
        key = array.dtype.name, repr(number)
        if key not in self.scalars:
            self.scalars[key] = self.constant(f"{key[0]}_{key[1]}", array)
        return self.scalars[key]

    def clip(self, before: ir.Node, value: ir.Value, low: float, high: float, name: str) -> ir.Value:
        """Holds a value between constants."""
        return self.node(before, "Clip", [value, self.scalar(low), self.scalar(high)], name)


def levels_of(emit: Emitter, before: ir.Node, value: ir.Value, how: Dynamic) -> Levels:
    """Quantizes a value at run time.

    Args:
        emit: Writes into the graph.
        before: The node before which the new ones stand.
        value: The activation, float32, any shape.
        how: Its granularity and bounds.
    """
    if how.scheme == "per-token":
        return _tokens(emit, before, value, how.bounds)
    return _tensor(emit, before, value) if how.bounds is None else _bounded(emit, before, value, how.bounds)


def _tensor(emit: Emitter, before: ir.Node, value: ir.Value) -> Levels:
    made = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{value.name}_DynamicQuantizeLinear")
    for output, what in zip(made.outputs, ("quantized", "scale", "zero_point"), strict=True):
        output.name = f"{value.name}_{what}"
    emit.model.graph.insert_before(before, made)
    return Levels(made.outputs[0], made.outputs[1], made.outputs[2], rows=False)


def _tokens(emit: Emitter, before: ir.Node, value: ir.Value, bounds: Bounds | None) -> Levels:
    """``s = max|row| / 127``, the maximum held between its bounds."""
    name = f"{value.name}_tokens"
    size = emit.node(before, "Abs", [value], f"{name}_magnitude")
    if opset(emit.model) >= _AXES_OPSET:
        inputs, given = [size, emit.constant(f"{name}_axes", np.array([-1], np.int64))], {}
    else:
        inputs, given = [size], {"axes": [-1]}
    largest = emit.node(before, "ReduceMax", inputs, f"{name}_largest", given)
    if bounds is not None:
        largest = emit.clip(before, largest, bounds.least, bounds.high, f"{name}_bounded")
    scale = emit.node(before, "Div", [largest, emit.scalar(127.0)], f"{name}_ratio")
    scale = emit.node(before, "Max", [scale, emit.scalar(_TINY)], f"{name}_scale")
    steps = emit.node(before, "Div", [value, scale], f"{name}_steps")
    zero = emit.scalar(_MIDDLE, np.uint8)
    levels = emit.node(before, "QuantizeLinear", [steps, emit.scalar(1.0), zero], f"{name}_quantized")
    return Levels(levels, scale, zero, rows=True)


def _bounded(emit: Emitter, before: ir.Node, value: ir.Value, bounds: Bounds) -> Levels:
    """The data's ends, each held between 0 and its bound, then the formula of DynamicQuantizeLinear."""
    name = f"{value.name}_bounded"
    ends = []
    for reduce, low, high in (("ReduceMin", bounds.low, 0.0), ("ReduceMax", 0.0, bounds.high)):
        end = emit.node(before, reduce, [value], f"{name}_{reduce}", {"keepdims": 0})
        ends.append(emit.clip(before, end, low, high, f"{name}_{reduce}_clipped"))
    width = emit.node(before, "Sub", [ends[1], ends[0]], f"{name}_width")
    ratio = emit.node(before, "Div", [width, emit.scalar(255.0)], f"{name}_ratio")
    scale = emit.node(before, "Max", [ratio, emit.scalar(max(bounds.least / 255, _TINY))], f"{name}_scale")
    below = emit.node(before, "Neg", [ends[0]], f"{name}_below")
    steps = emit.node(before, "Round", [emit.node(before, "Div", [below, scale], f"{name}_steps")], f"{name}_whole")
    zero = emit.node(before, "Cast", [steps], f"{name}_zero_point", {"to": ir.DataType.UINT8})
    levels = emit.node(before, "QuantizeLinear", [value, scale, zero], f"{name}_quantized")
    return Levels(levels, scale, zero, rows=False)
