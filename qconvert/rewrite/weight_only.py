"""Weights alone in few bits: every operator computes in float32 on weights that become float where it reads them.

The weights' tensors are made when the model is written, one after the other, so that a model of any size passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir import convenience

from qconvert.errors import PlanError
from qconvert.graph import add_constant, add_tensor, operand, operators, tidy
from qconvert.numerics import QuantParams
from qconvert.plan import Entry, Plan
from qconvert.rewrite.packing import Stored, native, pack, rows, scale_shape, turned
from qconvert.rewrite.weight_forms import BLOCKS, Reading, block_of, readings, rows_are_columns
from qconvert.targets import get_target
from qconvert.tensors import dims

_Number = TypeVar("_Number", bound=np.generic)

DOMAIN = "com.microsoft"
"""Of onnxruntime's own operators."""

FLOAT_PRODUCTS = 1
"""The accuracy level at which MatMulNBits rounds no activations."""


@dataclass(frozen=True)
class Written:
    """A model with quantized weights whose tensors are made when they are read.

    Attributes:
        model: It.
        stored: The weights as they stand in it.
        notes: In which forms they are read, one line each.
    """

    model: ir.Model
    stored: tuple[Stored, ...]
    notes: tuple[str, ...]


def to_weight_only(model: ir.Model, plan: Plan) -> Written:
    """Carries out a plan of weights on a prepared graph of the opset that ``needed_opset`` says; edits it.

    Raises:
        PlanError: If the plan names a tensor or operator that the graph does not have.
    """
    found = readings(model, plan)
    writer = _Writer(model, {op.name: op.node for op in operators(model)}, get_target(plan.target).own_operators)
    for reading in sorted(found, key=lambda one: one.form == "gather"):  # a lookup shares what MatMulNBits reads
        writer.write(reading)
    return Written(tidy(model), tuple(writer.stored), _notes(plan, model, found))


@dataclass(frozen=True)
class _Rows:
    """A weight in packed rows."""

    levels: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    block: int
    count: int
    width: int


@dataclass
class _Writer:
    model: ir.Model
    nodes: dict[str, ir.Node]
    own_operators: bool
    stored: list[Stored] = field(default_factory=list)
    packed: dict[tuple[int, bool], _Rows] = field(default_factory=dict)
    floats: dict[int, ir.Value] = field(default_factory=dict)

    def write(self, reading: Reading) -> None:
        node, key = self.nodes[reading.site.operator], id(reading.entry)
        value = node.inputs[reading.site.operand]
        if value is None or value.const_value is None:
            raise PlanError(f"'{reading.entry.tensor}' is not a constant")
        if reading.form == "nbits":
            weight = self._rows(reading.entry, value, transposed=rows_are_columns(node))
            for name in reading.matmuls:
                self._matmul(self.nodes[name], weight, reading.entry.params.dtype.bits)
        elif reading.form == "gather":
            self._gather(node, reading.entry, value)
        else:
            if node.op_type == "Transpose" and "perm" not in node.attributes:
                node.attributes["perm"] = ir.AttrInt64s("perm", [1, 0])  # onnxruntime up to 1.30 crashes without it
            if key not in self.floats:
                self.floats[key] = self._float(reading, value, node)
            node.replace_input_with(reading.site.operand, self.floats[key])

    # weights that become float before the operator

    def _float(self, reading: Reading, value: ir.Value, reader: ir.Node) -> ir.Value:
        entry, graph = reading.entry, value.graph or self.model.graph
        levels = add_tensor(graph, native(_tensor(value), entry.params, f"{entry.tensor}_quantized"))
        if reading.form == "folded":
            nodes = _folded(graph, levels, entry)
        else:
            nodes = _dequantized(graph, levels, entry)
            if self.own_operators and entry.params.block_size is not None:
                nodes.append(_reshape(graph, nodes[-1].outputs[0], dims(_tensor(value)), f"{entry.tensor}_apart"))
        given = [value for node in nodes for value in node.inputs if value is not None and value is not levels]
        beside = tuple(
            value.name or "" for value in given if value.is_initializer() and value.dtype != ir.DataType.INT64
        )
        folded = reading.form == "folded"
        stored = Stored(entry.tensor, levels.name or "", entry.params, "native", beside=beside, folded=folded)
        self.stored.append(stored)
        made = nodes[-1].outputs[0]
        made.name, made.type, made.shape = f"{entry.tensor}_dequantized", value.type, value.shape
        graph.insert_before(reader if reader.graph is graph else graph[0], nodes)
        return made

    # weights that stay packed

    def _rows(self, entry: Entry, value: ir.Value, *, transposed: bool, blocked: bool = True) -> _Rows:
        if (id(entry), transposed) in self.packed:
            return self.packed[id(entry), transposed]
        source, params, graph = _tensor(value), entry.params, value.graph or self.model.graph
        count, width = reversed(dims(source)) if transposed else dims(source)
        block = block_of(params, width)
        name = f"{entry.tensor}_packed"
        levels = add_tensor(graph, rows(source, params, name, transposed=transposed, block=block if blocked else None))
        grid, shape = turned(params) if transposed else params, (count, -(-width // block))
        scale = add_tensor(graph, _spread_later(f"{entry.tensor}_scale", grid.scale, shape))
        points = _zero_points(grid, shape)
        zero = add_constant(graph, f"{entry.tensor}_zero_point", points) if points is not None else None
        beside = tuple(value.name or "" for value in (scale, zero) if value is not None)
        self.stored.append(Stored(entry.tensor, levels.name or "", params, "rows", transposed, beside))
        found = _Rows(levels, scale, zero, block, count, width)
        self.packed[id(entry), transposed] = found
        return found

    def _matmul(self, node: ir.Node, weight: _Rows, bits: int) -> None:
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            raise PlanError(f"operator '{node.name}' is in no graph")
        inputs = [node.inputs[0], weight.levels, weight.scale, weight.zero, None, operand(node, 2)]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {
            "K": weight.width,
            "N": weight.count,
            "bits": bits,
            "block_size": weight.block,
            "accuracy_level": FLOAT_PRODUCTS,
        }
        self._replace(graph, node, ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=node.name))

    def _gather(self, node: ir.Node, entry: Entry, value: ir.Value) -> None:
        graph, bits = node.graph, entry.params.dtype.bits
        if not isinstance(graph, ir.Graph):
            raise PlanError(f"operator '{node.name}' is in no graph")
        weight = self.packed.get((id(entry), False))
        if weight is None or weight.width % weight.block:
            self.packed.pop((id(entry), False), None)
            weight = self._rows(entry, value, transposed=False, blocked=False)
        levels = weight.levels
        if len(levels.shape or ()) == 3:
            nodes = [_reshape(graph, levels, (weight.count, weight.width * bits // 8), f"{entry.tensor}_rows")]
            graph.insert_before(node, nodes)
            levels = nodes[0].outputs[0]
        inputs = [levels, node.inputs[1], weight.scale, weight.zero]
        attributes = {"bits": bits, "block_size": weight.block, "gather_axis": 0, "quantize_axis": 1}
        made = inputs if weight.zero is not None else inputs[:3]
        self._replace(graph, node, ir.node("GatherBlockQuantized", made, attributes, domain=DOMAIN, name=node.name))

    def _replace(self, graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
        self.model.opset_imports.setdefault(DOMAIN, 1)
        convenience.replace_nodes_and_values(graph, old, [old], [new], [old.outputs[0]], [new.outputs[0]])


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise PlanError(f"'{value.name}' is not a constant")
    return value.const_value


def _spread_later(name: str, values: npt.NDArray[np.float32], shape: tuple[int, int]) -> ir.LazyTensor:
    """Numbers for each block as a tensor that is made when it is written."""
    return ir.LazyTensor(lambda: ir.Tensor(_spread(values, shape)), ir.DataType.FLOAT, ir.Shape(shape), name=name)


def _spread(values: npt.NDArray[_Number], shape: tuple[int, int]) -> npt.NDArray[_Number]:
    """Numbers of a tensor, of rows or of blocks, one for each block."""
    return np.ascontiguousarray(np.broadcast_to(values if values.ndim != 1 else values[:, None], shape))


def _zero_points(grid: QuantParams, shape: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    """Packed zero points of unsigned levels; None where all are the middle, which the operators take by default."""
    zero = grid.zero_point - grid.dtype.qmin
    return None if (zero == 1 << (grid.dtype.bits - 1)).all() else pack(_spread(zero, shape), grid.dtype.bits)


def _dequantized(graph: ir.Graph, levels: ir.Value, entry: Entry) -> list[ir.Node]:
    params, name = entry.params, entry.tensor
    inputs = [levels, add_constant(graph, f"{name}_scale", params.scale)]
    if params.zero_point.any():
        inputs.append(add_constant(graph, f"{name}_zero_point", _zeros(params)))
    given = {"axis": params.axis, "block_size": params.block_size}
    attributes = {key: number for key, number in given.items() if number is not None}
    return [ir.node("DequantizeLinear", inputs, attributes, name=f"{name}_DequantizeLinear")]


def _zeros(params: QuantParams) -> npt.NDArray[np.generic]:
    return params.zero_point.astype(ir.DataType[params.dtype.onnx].numpy())


def _folded(graph: ir.Graph, levels: ir.Value, entry: Entry) -> list[ir.Node]:
    """Cast, Sub where zero points are not 0, Mul; between two Reshapes where there are groups."""
    params, name, shape = entry.params, entry.tensor, dims(_tensor(levels))
    nodes = [_cast(levels, f"{name}_Cast")]
    broadcast = scale_shape(params, len(shape))
    if params.block_size is not None and params.axis is not None:
        cut = (*shape[: params.axis], -1, params.block_size, *shape[params.axis + 1 :])
        nodes.append(_reshape(graph, nodes[-1].outputs[0], cut, f"{name}_blocks"))
        broadcast = [*params.scale.shape[: params.axis + 1], 1, *params.scale.shape[params.axis + 1 :]]
    if params.zero_point.any():
        zero = _cast(add_constant(graph, f"{name}_zero_point", _zeros(params).reshape(broadcast)), f"{name}_zero_Cast")
        nodes += [zero, ir.node("Sub", [nodes[-1].outputs[0], zero.outputs[0]], name=f"{name}_Sub")]
    scale = add_constant(graph, f"{name}_scale", params.scale.reshape(broadcast))
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], scale], name=f"{name}_Mul"))
    if params.block_size is not None:
        nodes.append(_reshape(graph, nodes[-1].outputs[0], shape, f"{name}_whole"))
    return nodes


def _cast(value: ir.Value, name: str) -> ir.Node:
    return ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=name)


def _reshape(graph: ir.Graph, value: ir.Value, shape: Sequence[int], name: str) -> ir.Node:
    sizes = add_constant(graph, f"{name}_shape", np.array(shape, np.int64))
    return ir.node("Reshape", [value, sizes], name=f"{name}_Reshape")


_FUSED = (
    "at its default optimization onnxruntime makes MatMulNBits of DequantizeLinear and MatMul or Gemm and rounds "
    "activations to 8 bits (0.5-1 % error); session option session.qdq_matmulnbits_accuracy_level=1 keeps them float"
)


def _is_fused(reading: Reading) -> bool:
    params = reading.entry.params
    return reading.form == "dequantize" and params.dtype.bits in {2, 4, 8} and params.block_size in {None, *BLOCKS}


def _notes(plan: Plan, model: ir.Model, found: Sequence[Reading]) -> tuple[str, ...]:
    names = {reading.site.operator for reading in found if _is_fused(reading)}
    multiplied = any(op.op_type in {"MatMul", "Gemm"} and op.name in names for op in operators(model))
    if not get_target(plan.target).own_operators:
        return (_FUSED,) if multiplied else ()
    says = {
        "nbits": "are multiplied as they are stored, in float32 (MatMulNBits)",
        "gather": "are looked up as they are stored (GatherBlockQuantized)",
        "folded": "become float once, when onnxruntime loads the model",
        "dequantize": "become float at every run (DequantizeLinear)",
    }
    notes = []
    for form, text in says.items():
        some = [reading for reading in found if reading.form == form]
        whys = "; ".join(dict.fromkeys(reading.why for reading in some if reading.why))
        if some:
            notes.append(f"{len(some)} weight{'s' if len(some) > 1 else ''} {text}{f': {whys}' if whys else ''}")
    return tuple(notes)
