"""The QDQ format: float operators between QuantizeLinear/DequantizeLinear pairs, which runtimes fuse into kernels.

A pair is inserted per value, after its producer in the graph that owns it; then readers move to the dequantized value.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.graph import add_constant, constant, operators, tidy
from qconvert.numerics import INT8, QUANT_TYPES, UINT8, QuantParams, QuantType, quantize
from qconvert.plan import Absorbed, Entry, Plan, Site
from qconvert.rewrite.settle import settle_int8
from qconvert.targets import Target, get_target

_STORAGE = {
    "int2": ml_dtypes.int2,
    "uint2": ml_dtypes.uint2,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
}

OPSETS = {2: 25, 4: 21, 16: 21}
"""The first opset that stores levels of so many bits; 13 has Q/DQ per channel, and a Clip of 8-bit integers."""

BLOCKED_OPSET = 21
"""The first opset with a scale for each block."""


def needed_opset(plan: Plan) -> int:
    """The opset that the plan's types and granularities need."""
    target = get_target(plan.target)
    grids = [_stored(entry, target) for entry in plan.entries]
    types = [OPSETS.get(grid.dtype.bits, 13) for grid in grids]
    return max([13, *types, *(BLOCKED_OPSET for grid in grids if grid.block_size is not None)])


def _stored(entry: Entry, target: Target) -> QuantParams:
    """The grid that an entry's levels have in the file; the same reals, but for the levels that a Clip leaves out."""
    params = entry.params
    if entry.role not in {"activation", "constant"} or params.dtype.name not in target.clipped:
        return params
    dtype = QUANT_TYPES[target.clipped[params.dtype.name]]
    zero_point = params.zero_point + np.int32(_shift(params.dtype, dtype))
    return replace(params, zero_point=zero_point, dtype=dtype, narrow_range=False)


def _shift(dtype: QuantType, stored: QuantType) -> int:
    return 0 if dtype.signed == stored.signed else -dtype.qmin


def to_qdq(model: ir.Model, plan: Plan) -> ir.Model:
    """Carries out a plan on a prepared graph, which becomes the QDQ model.

    Raises:
        PlanError: If the plan names a tensor or operator that the graph does not have.
    """
    writer = _Writer(model, plan)
    for absorbed in plan.absorbed:
        writer.drop_clamp(absorbed)
    for entry in plan.entries:
        if entry.role == "activation":
            writer.activation(entry)
        else:
            writer.constant(entry)
    settle_int8(model)
    return tidy(model)


class _Writer:
    def __init__(self, model: ir.Model, plan: Plan) -> None:
        self.model = model
        self.graph = model.graph
        self.target = get_target(plan.target)
        self.levels: dict[str, ir.Value] = {}
        self.nodes = {op.name: op.node for op in operators(model)}
        self.values = {value.name: value for value in (*model.graph.inputs, *model.graph.initializers.values())}
        self.values.update({value.name: value for op in operators(model) for value in op.node.outputs})

    def drop_clamp(self, absorbed: Absorbed) -> None:
        clamp, output = self._node(absorbed.operator), self._value(absorbed.tensor)
        source = clamp.inputs[0]
        if source is None:
            raise PlanError(f"clamp '{absorbed.operator}' has no input")
        output.replace_all_uses_with(source, replace_graph_outputs=True)
        self.graph.remove(clamp, safe=True)
        source.name = absorbed.tensor
        self.values[absorbed.tensor] = source

    def activation(self, entry: Entry) -> None:
        value = self._value(entry.tensor)
        name, producer, owner = entry.tensor, value.producer(), value.graph or self.graph
        stored = _stored(entry, self.target)
        scale, zero = self._grid(name, stored)
        attributes = {} if entry.params.axis is None else {"axis": entry.params.axis}
        nodes = [ir.node("QuantizeLinear", [value, scale, zero], attributes, name=f"{name}_QuantizeLinear")]
        nodes[0].outputs[0].name = f"{name}_quantized"
        if stored.dtype != entry.params.dtype:
            nodes.append(self._clip(name, nodes[0].outputs[0], entry.params, stored.dtype))
        levels = nodes[-1].outputs[0]
        dq = ir.node("DequantizeLinear", [levels, scale, zero], attributes, name=f"{name}_DequantizeLinear")
        dq.outputs[0].name = f"{name}_dequantized"
        dq.outputs[0].type, dq.outputs[0].shape = value.type, value.shape
        if producer is None:
            owner.insert_before(owner[0], [*nodes, dq])
        else:
            owner.insert_after(producer, [*nodes, dq])
        self._move_readers(value, dq.outputs[0], entry.sites)

    def _clip(self, name: str, levels: ir.Value, params: QuantParams, stored: QuantType) -> ir.Node:
        """Holds levels on a grid that is smaller than their type.

        onnxruntime keeps its integer kernels around it; beside Q/DQ of 4-bit types it builds kernels that it lacks.
        """
        shift = _shift(params.dtype, stored)
        ends = [self._level(level + shift, stored) for level in (params.qmin, params.qmax)]
        clip = ir.node("Clip", [levels, *ends], name=f"{name}_Clip")
        clip.outputs[0].name = f"{name}_clipped"
        return clip

    def _level(self, level: int, dtype: QuantType) -> ir.Value:
        name = f"{dtype}_level_{level}"
        if name not in self.levels:
            self.levels[name] = add_constant(self.graph, name, np.asarray(level, _STORAGE[dtype.name]))
        return self.levels[name]

    def _move_readers(self, value: ir.Value, dequantized: ir.Value, sites: tuple[Site, ...]) -> None:
        for site in sites:
            if site.operator:
                self._node(site.operator).replace_input_with(site.operand, dequantized)
            else:
                public = value.name
                value.name = f"{public}_float"
                dequantized.name = public
                self.graph.outputs[site.operand] = dequantized

    def constant(self, entry: Entry) -> None:
        array = constant(self._value(entry.tensor))
        if array is None:
            raise PlanError(f"'{entry.tensor}' is not a constant")
        params, first = _stored(entry, self.target), self._node(entry.sites[0].operator)
        levels = quantize(array.astype(np.float32), entry.params) + _shift(entry.params.dtype, params.dtype)
        stored = add_constant(self.graph, f"{entry.tensor}_quantized", levels.astype(_STORAGE[params.dtype.name]))
        nodes = []
        if params.dtype.bits < self.target.cast_below and params.block_size is None:
            params = replace(params, dtype=INT8 if params.dtype.signed else UINT8)
            to = ir.DataType[params.dtype.onnx]
            nodes.append(ir.node("Cast", [stored], {"to": to}, name=f"{entry.tensor}_Cast"))
            nodes[0].outputs[0].name = f"{entry.tensor}_cast"
            stored = nodes[0].outputs[0]
        scale, zero = self._grid(entry.tensor, params)
        attributes = {"axis": params.axis, "block_size": params.block_size}
        attributes = {key: value for key, value in attributes.items() if value is not None}
        inputs = [stored, scale] if entry.role == "bias" else [stored, scale, zero]
        dq = ir.node("DequantizeLinear", inputs, attributes, name=f"{entry.tensor}_DequantizeLinear")
        dq.outputs[0].name = f"{entry.tensor}_dequantized"
        nodes.append(dq)
        if params.block_size is not None:
            nodes.append(self._kept_apart(entry.tensor, dq.outputs[0], array.shape))
        self.graph.insert_before(first, nodes)
        for site in entry.sites:
            self._node(site.operator).replace_input_with(site.operand, nodes[-1].outputs[0])

    def _kept_apart(self, name: str, dequantized: ir.Value, shape: tuple[int, ...]) -> ir.Node:
        """A Reshape to the same shape, so that no runtime fuses scales of blocks with the operator that reads them.

        onnxruntime 1.31 makes a QLinearMatMul of a MatMul behind int8 or int2, which then refuses to run, and where the
        other operand is float, one with activations in 8 bits (MatMulNBits).
        """
        sizes = add_constant(self.graph, f"{name}_shape", np.array(shape, np.int64))
        kept = ir.node("Reshape", [dequantized, sizes], name=f"{name}_Reshape")
        kept.outputs[0].name = f"{name}_reshaped"
        return kept

    def _grid(self, name: str, params: QuantParams) -> tuple[ir.Value, ir.Value]:
        scale = add_constant(self.graph, f"{name}_scale", params.scale)
        zero = add_constant(self.graph, f"{name}_zero_point", params.zero_point.astype(_STORAGE[params.dtype.name]))
        return scale, zero

    def _node(self, name: str) -> ir.Node:
        if name not in self.nodes:
            raise PlanError(
                f"the plan names operator '{name}', which the graph does not have", hint="make the plan again"
            )
        return self.nodes[name]

    def _value(self, name: str) -> ir.Value:
        if name not in self.values:
            raise PlanError(
                f"the plan names tensor '{name}', which the graph does not have", hint="make the plan again"
            )
        return self.values[name]
