"""What a deployed model is fed and gives: reals, 8-bit levels, or the int32 accumulators of its last heavy operators.

``real = scale * (level - zero_point)`` on both sides. Between int8 and uint8, levels and zero points move by 128.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.graph import FLOATS, add_constant, tidy
from qconvert.numerics import INT8, INT32, UINT8, QuantParams, QuantType, dequantize, quantize
from qconvert.plan import Plan
from qconvert.rewrite.accumulator import Accumulator, find_accumulator, write_accumulator
from qconvert.rewrite.pairs import Levels, dequantized, quantized

InputType = Literal["float32", "uint8", "int8"]
OutputType = Literal["float32", "uint8", "int8", "int32"]

_EIGHT_BIT = {"uint8": UINT8, "int8": INT8}
_SHIFT = 128


@dataclass(frozen=True)
class PortGrid:
    """What the numbers of one input or output mean.

    Attributes:
        name: Its name.
        dtype: Its element type, e.g. ``uint8``.
        scale: One number, or one for each channel; empty where the numbers are no levels.
        zero_point: As many numbers.
        axis: The axis of the channels, -1 for the last one, or None.
    """

    name: str
    dtype: str
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int | None = None

    def levels(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The levels of reals; what is no level stays as it is."""
        return quantize(x, self._params).astype(self.dtype) if self.scale else x

    def reals(self, levels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The reals of levels."""
        return dequantize(levels, self._params) if self.scale else levels

    @property
    def _params(self) -> QuantParams:
        shape = (len(self.scale),) if self.axis is not None else ()
        scale, zero = (
            np.array(self.scale, np.float32).reshape(shape),
            np.array(self.zero_point, np.int32).reshape(shape),
        )
        return QuantParams(scale, zero, INT32 if self.dtype == "int32" else _EIGHT_BIT[self.dtype], self.axis)


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a written model, in its order."""

    inputs: tuple[PortGrid, ...]
    outputs: tuple[PortGrid, ...]

    def to_levels(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """What the model is fed for these reals."""
        grids = {port.name: port for port in self.inputs}
        return {name: grids[name].levels(array) if name in grids else array for name, array in feeds.items()}


def interface_of(record: Mapping[str, Any]) -> Interface:
    """The interface that ``interface_record`` wrote down."""

    def port(one: Mapping[str, Any]) -> PortGrid:
        return PortGrid(one["name"], one["dtype"], tuple(one["scale"]), tuple(one["zero_point"]), one["axis"])

    return Interface(tuple(map(port, record["inputs"])), tuple(map(port, record["outputs"])))


def interface_record(interface: Interface) -> dict[str, Any]:
    """The same as plain values for JSON."""
    return asdict(interface)


def with_interface(
    model: ir.Model, plan: Plan, *, input_type: InputType = "float32", output_type: OutputType = "float32"
) -> tuple[ir.Model, Interface]:
    """Changes what a written QDQ or QOperator graph is fed and gives; names stay, and what was not float stays.

    Args:
        model: The graph; changed in place.
        plan: What was carried out on it; a clamp that a grid has absorbed is no part of an accumulator.
        input_type: Of every float input; ``uint8`` and ``int8`` take levels in place of reals.
        output_type: Of every float output; ``int32`` gives the sums, bias included, of the Conv, Gemm or MatMul that
            the output comes from.

    Returns:
        The graph, and the grids of all its inputs and outputs.

    Raises:
        PlanError: If an input or output cannot have the type; the graph is left as it was.
    """
    grids: dict[str, QuantParams] = {}
    fed = [] if input_type == "float32" else [(value, _fed(value, input_type)) for value in _floats(model, "input")]
    given = [] if output_type == "float32" else [(v, _given(v, plan, output_type)) for v in _floats(model, "output")]
    for value, source in given:
        name = value.name or ""
        grids[name] = _give(model.graph, value, source, output_type)
    for value, levels in fed:
        name = value.name or ""
        grids[name] = _feed(model.graph, value, levels, _EIGHT_BIT[input_type])
    tidy(model)
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return model, Interface(
        tuple(_port(value, grids) for value in inputs), tuple(_port(value, grids) for value in model.graph.outputs)
    )


def _port(value: ir.Value, grids: dict[str, QuantParams]) -> PortGrid:
    name, dtype = value.name or "", value.dtype.numpy().name if value.dtype is not None else ""
    params = grids.get(name)
    if params is None:
        return PortGrid(name, dtype)
    scale, zero = params.scale.reshape(-1).tolist(), params.zero_point.reshape(-1).tolist()
    return PortGrid(name, dtype, tuple(scale), tuple(zero), params.axis)


def _floats(model: ir.Model, side: Literal["input", "output"]) -> list[ir.Value]:
    values = model.graph.outputs if side == "output" else model.graph.inputs
    found = [value for value in values if value.dtype in FLOATS and value.name not in model.graph.initializers]
    if not found:
        kinds = ", ".join(f"'{value.name}' is {value.dtype}" for value in values)
        raise PlanError(f"--{side}-type: the model has no float {side}: {kinds}", hint="leave it out")
    return list(dict.fromkeys(found))


def _refuse(side: str, value: ir.Value, wanted: str, reason: str, hint: str) -> PlanError:
    return PlanError(f"--{side}-type {wanted}: {side} '{value.name}' cannot be {wanted}: {reason}", hint=hint)


# inputs


def _fed(value: ir.Value, wanted: str) -> Levels:
    """The levels that are made of an input, and of which alone the graph reads."""
    hint = "leave --input-type out, or let every reader of the input be quantized"
    if value.is_graph_output():
        raise _refuse("input", value, wanted, "it is an output, too", hint)
    readers = [use.node for use in value.uses()]
    if not readers:
        raise _refuse("input", value, wanted, "nothing reads it", hint)
    for node in readers:
        if node.op_type != "QuantizeLinear":
            name = node.outputs[0].name if node.outputs else node.name
            raise _refuse("input", value, wanted, f"{node.op_type} '{name}' reads it in float", hint)
    found = [levels for node in readers if (levels := quantized(node)) is not None]
    if len(found) < len(readers) or len(found) > 1:
        reason = "it is quantized on several grids" if len(found) > 1 else "its levels have no 8 bits and one scale"
        raise _refuse("input", value, wanted, reason, hint)
    return found[0]


def _feed(graph: ir.Graph, value: ir.Value, levels: Levels, wanted: QuantType) -> QuantParams:
    value.type = ir.TensorType(ir.DataType[wanted.onnx])
    fed, node = value, levels.value.producer()
    if levels.params.dtype != wanted and node is not None:
        fed = _shifted(graph, value, levels.params.dtype, f"{value.name}_levels", node)
    levels.value.replace_all_uses_with(fed, replace_graph_outputs=True)
    if node is not None:
        graph.remove(node, safe=True)
    return _regrid(levels.params, wanted)


def _regrid(params: QuantParams, dtype: QuantType) -> QuantParams:
    """The grid in the other 8-bit type: the same reals."""
    move = np.int32(dtype.qmin - params.dtype.qmin)
    return replace(params, dtype=dtype, zero_point=params.zero_point + move)


def _shifted(graph: ir.Graph, levels: ir.Value, dtype: QuantType, name: str, before: ir.Node) -> ir.Value:
    """The same levels in the other 8-bit type, moved by 128; by way of int32, which has room for both."""
    move = add_constant(graph, f"{name}_shift", np.array(-_SHIFT if dtype.signed else _SHIFT, np.int32))
    wide = ir.node("Cast", [levels], {"to": ir.DataType.INT32}, name=f"{name}_widen")
    add = ir.node("Add", [wide.outputs[0], move], name=f"{name}_Add")
    back = ir.node("Cast", [add.outputs[0]], {"to": ir.DataType[dtype.onnx]}, name=f"{name}_Cast")
    for node, suffix in ((wide, "_wide"), (add, "_moved"), (back, "")):
        node.outputs[0].name = f"{name}{suffix}"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT32), levels.shape
    back.outputs[0].type = ir.TensorType(ir.DataType[dtype.onnx])
    graph.insert_before(before, [wide, add, back])
    return back.outputs[0]


# outputs


def _given(value: ir.Value, plan: Plan, wanted: str) -> Levels | Accumulator:
    """What an output shall be instead of reals."""
    levels, maker = dequantized(value), value.producer()
    if wanted == "int32":
        if levels is not None and levels.params.dtype == INT32:  # the integer format has the sums already
            return levels
        clamp = next((one for one in plan.absorbed if one.tensor == value.name), None)
        found = find_accumulator(value) if clamp is None else f"a {clamp.op_type} stands behind the accumulator"
        if isinstance(found, str):
            raise _refuse("output", value, wanted, found, "int32 is the sum of a quantized Conv, Gemm or MatMul")
        return found
    if levels is None or levels.params.dtype.bits > 8:
        kind = maker.op_type if maker is not None else "no operator"
        reason = f"it comes out of {kind} in float, not of a quantized tensor"
        raise _refuse("output", value, wanted, reason, "leave --output-type out, or let the output be quantized")
    return levels


def _give(graph: ir.Graph, value: ir.Value, source: Levels | Accumulator, wanted: str) -> QuantParams:
    name, last = value.name or "", value.producer()
    if isinstance(source, Accumulator):
        _publish(graph, value, write_accumulator(graph, source, name))
        return source.params
    levels, dtype = source.value, INT32 if wanted == "int32" else _EIGHT_BIT[wanted]
    if source.params.dtype != dtype and last is not None:
        levels = _shifted(graph, levels, dtype, f"{name}_levels", last)
    maker = levels.producer()
    fed = maker is not None and any(one is not None and one.is_graph_input() for one in maker.inputs)
    if (levels.is_graph_output() or maker is None or fed) and last is not None:
        copy = ir.node("Identity", [levels], name=f"{name}_Identity")
        copy.outputs[0].type = ir.TensorType(ir.DataType[dtype.onnx])
        graph.insert_before(last, copy)
        levels = copy.outputs[0]
    levels.type = ir.TensorType(ir.DataType[dtype.onnx])
    _publish(graph, value, levels)
    return source.params if dtype == INT32 else _regrid(source.params, dtype)


def _publish(graph: ir.Graph, value: ir.Value, levels: ir.Value) -> None:
    """Puts levels in the place of a float output, under its name."""
    levels.name, levels.shape = value.name, value.shape
    value.name = f"{levels.name}_float"
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = levels
