"""The QDQ format: float operators between QuantizeLinear/DequantizeLinear pairs, which runtimes fuse into kernels.

A pair is inserted per value, after its producer in the graph that owns it; then readers move to the dequantized value.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.graph import add_constant, constant, operators, tidy
from qconvert.numerics import INT8, UINT8, QuantParams, QuantType, quantize
from qconvert.plan import Absorbed, Entry, Plan, Site
from qconvert.targets import get_target

_STORAGE = {
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
}

WIDE_OPSET = 21
"""The first opset whose Q/DQ take 16- and 4-bit types."""


def needed_opset(plan: Plan) -> int:
    """The opset that the plan's types and granularities need."""
    return WIDE_OPSET if any(entry.params.dtype.bits in {4, 16} for entry in plan.entries) else 13


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
    return tidy(model)


class _Writer:
    def __init__(self, model: ir.Model, plan: Plan) -> None:
        self.model = model
        self.graph = model.graph
        self.widen = get_target(plan.target).cast_low_bits
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
        scale, zero = self._grid(name, entry.params)
        attributes = {} if entry.params.axis is None else {"axis": entry.params.axis}
        q = ir.node("QuantizeLinear", [value, scale, zero], attributes, name=f"{name}_QuantizeLinear")
        dq = ir.node("DequantizeLinear", [q.outputs[0], scale, zero], attributes, name=f"{name}_DequantizeLinear")
        q.outputs[0].name, dq.outputs[0].name = f"{name}_quantized", f"{name}_dequantized"
        dq.outputs[0].type, dq.outputs[0].shape = value.type, value.shape
        if producer is None:
            owner.insert_before(owner[0], [q, dq])
        else:
            owner.insert_after(producer, [q, dq])
        self._move_readers(value, dq.outputs[0], entry.sites)

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
        params, first = entry.params, self._node(entry.sites[0].operator)
        stored = add_constant(self.graph, f"{entry.tensor}_quantized", _levels(array, params))
        nodes, grid = [], params.dtype
        if self.widen and params.dtype.bits < INT8.bits:
            # onnxruntime folds the Cast and keeps its integer kernels; directly dequantized 4-bit weights run in float.
            grid = INT8 if params.dtype.signed else UINT8
            nodes.append(ir.node("Cast", [stored], {"to": ir.DataType[grid.onnx]}, name=f"{entry.tensor}_Cast"))
            nodes[0].outputs[0].name = f"{entry.tensor}_cast"
            stored = nodes[0].outputs[0]
        scale, zero = self._grid(entry.tensor, params, grid)
        attributes = {} if params.axis is None else {"axis": params.axis}
        inputs = [stored, scale] if entry.role == "bias" else [stored, scale, zero]
        dq = ir.node("DequantizeLinear", inputs, attributes, name=f"{entry.tensor}_DequantizeLinear")
        dq.outputs[0].name = f"{entry.tensor}_dequantized"
        self.graph.insert_before(first, [*nodes, dq])
        for site in entry.sites:
            self._node(site.operator).replace_input_with(site.operand, dq.outputs[0])

    def _grid(self, name: str, params: QuantParams, dtype: QuantType | None = None) -> tuple[ir.Value, ir.Value]:
        scale = add_constant(self.graph, f"{name}_scale", params.scale)
        zero = add_constant(
            self.graph, f"{name}_zero_point", params.zero_point.astype(_STORAGE[(dtype or params.dtype).name])
        )
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


def _levels(array: npt.NDArray[Any], params: QuantParams) -> npt.NDArray[Any]:
    levels = quantize(array.astype(np.float32), params)
    return levels.astype(_STORAGE[params.dtype.name])
