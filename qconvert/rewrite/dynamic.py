"""The dynamic format: integer products of constant weights with activations that are quantized at run time.

Per tensor: ``DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(s_x * s_w) [-> Add]``, the form of which onnxruntime
makes one DynamicQuantizeMatMul, and the same with ConvInteger, which pads with the zero point of its input. Per token:
a scale for each row, multiplied after those of the columns. LSTM becomes onnxruntime's DynamicQuantizeLSTM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.graph import attributes, constant, operand, operators, tidy
from qconvert.numerics import LevelArray, QuantParams, quantize
from qconvert.plan import Entry, Plan, Site
from qconvert.plan.types import Dynamic
from qconvert.rewrite.kernels import MICROSOFT
from qconvert.rewrite.qdq import OPSETS
from qconvert.rewrite.run_time import Emitter, Levels, levels_of

_STORAGE = {
    "int8": np.int8,
    "uint8": np.uint8,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "int2": ml_dtypes.int2,
    "uint2": ml_dtypes.uint2,
}


def needed_opset(plan: Plan) -> int:
    """The opset that the types of a plan of ``make_dynamic_plan`` need; it has no blocks in the file."""
    return max([13, *(OPSETS.get(entry.params.dtype.bits, 13) for entry in plan.entries)])


def to_dynamic(model: ir.Model, plan: Plan) -> ir.Model:
    """Carries out a plan of ``make_dynamic_plan`` on a prepared graph, which becomes the dynamic model.

    Raises:
        PlanError: If the plan names an operator or a weight that the graph does not have.
    """
    writer = _Writer(model, plan)
    for name, _ in plan.integer:
        writer.replace(name)
    return tidy(model)


@dataclass(frozen=True)
class _Weight:
    """A weight in the layout of an integer product.

    Attributes:
        value: Its levels in 8 bits.
        scale: float32 in a shape that broadcasts over the product.
        zero: Its zero point, or None for 0.
    """

    value: ir.Value
    scale: npt.NDArray[np.float32]
    zero: ir.Value | None


class _Writer:
    def __init__(self, model: ir.Model, plan: Plan) -> None:
        self.model, self.emit = model, Emitter(model)
        self.nodes = {op.name: op.node for op in operators(model) if not op.subgraph}
        self.weights: Mapping[Site, Entry] = {site: entry for entry in plan.entries for site in entry.sites}
        self.dynamic: Mapping[Site, Dynamic] = {site: one for one in plan.dynamic for site in one.sites}
        self.levels: dict[tuple[str, str], Levels] = {}
        self.stored: dict[tuple[int, str], _Weight] = {}

    def replace(self, name: str) -> None:
        """Writes the integer form of an operator in its place."""
        if name not in self.nodes:
            raise PlanError(
                f"the plan names operator '{name}', which the graph does not have", hint="make the plan again"
            )
        node = self.nodes[name]
        write: Mapping[str, Callable[[ir.Node, str], Sequence[ir.Value]]] = {
            "MatMul": self._matmul,
            "Gemm": self._gemm,
            "Conv": self._conv,
            "LSTM": self._lstm,
        }
        for old, new in zip(node.outputs, write[node.op_type](node, name), strict=True):
            new.type, new.shape = old.type, old.shape
            new.name, old.name = old.name, None
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.model.graph.remove(node, safe=True)

    def _matmul(self, node: ir.Node, name: str) -> list[ir.Value]:
        return [self._product(node, name, "MatMulInteger", self._weight(node, name, "columns"))]

    def _gemm(self, node: ir.Node, name: str) -> list[ir.Value]:
        found = attributes(node)
        weight = self._weight(node, name, "rows" if found.get("transB") else "columns")
        result = self._product(node, name, "MatMulInteger", weight, factor=found.get("alpha", 1.0))
        bias = operand(node, 2)
        if bias is None:
            return [result]
        return [self.emit.node(node, "Add", [result, self._gemm_bias(node, name, bias)], f"{name}_biased")]

    def _gemm_bias(self, node: ir.Node, name: str, bias: ir.Value) -> ir.Value:
        """``beta * C``; a constant row becomes a vector, which onnxruntime fuses."""
        beta, array = float(attributes(node).get("beta", 1.0)), constant(bias)
        if array is None:
            return bias if beta == 1 else self.emit.node(node, "Mul", [bias, self.emit.scalar(beta)], f"{name}_beta")
        row = array.ndim == 2 and array.shape[0] == 1
        return self.emit.constant(f"{name}_bias", (array.reshape(-1) if row else array) * np.float32(beta))

    def _conv(self, node: ir.Node, name: str) -> list[ir.Value]:
        weight = self._weight(node, name, "conv")
        result = self._product(node, name, "ConvInteger", weight, attributes=attributes(node))
        bias = operand(node, 2)
        if bias is None:
            return [result]
        array, shape = constant(bias), (-1, *[1] * (len(weight.value.shape or ()) - 2))
        if array is None:
            size = self.emit.constant(f"{name}_bias_shape", np.array(shape, np.int64))
            column = self.emit.node(node, "Reshape", [bias, size], f"{name}_bias")
        else:
            column = self.emit.constant(f"{name}_bias", array.reshape(shape))
        return [self.emit.node(node, "Add", [result, column], f"{name}_biased")]

    def _product(
        self,
        node: ir.Node,
        name: str,
        op_type: str,
        weight: _Weight,
        *,
        factor: float = 1.0,
        attributes: Mapping[str, object] | None = None,
    ) -> ir.Value:
        """``factor`` times the product of the real activation and weight, as one of their levels."""
        levels = self._activation(node, name)
        inputs = [levels.value, weight.value, levels.zero, weight.zero]
        total = self.emit.node(node, op_type, inputs, f"{name}_integer", attributes)
        real = self.emit.node(node, "Cast", [total], f"{name}_real", {"to": ir.DataType.FLOAT})
        columns = self.emit.constant(f"{name}_weight_scale", weight.scale * np.float32(factor))
        if levels.rows:
            # onnxruntime 1.31 fuses Mul(Cast, Mul(rows, columns)), too, and takes the first row's scale for all
            real, other = self.emit.node(node, "Mul", [real, columns], f"{name}_columns_scaled"), levels.scale
        else:
            other = self.emit.node(node, "Mul", [levels.scale, columns], f"{name}_scale")
        return self.emit.node(node, "Mul", [real, other], f"{name}_scaled")

    def _lstm(self, node: ir.Node, name: str) -> Sequence[ir.Value]:
        """Weights as ``[directions, inputs, gates]``, with a scale for each gate of a direction or each direction."""
        self.model.opset_imports.setdefault(MICROSOFT, 1)
        inputs = [operand(node, index) for index in range(8)]
        grids: list[ir.Value | None] = []
        for index in (1, 2):
            entry = self._entry(name, index)
            levels = _quantized(node, entry, index).transpose(0, 2, 1)
            inputs[index] = self.emit.constant(f"{entry.tensor}_quantized", levels.astype(np.int8, order="C"))
            scale = entry.params.scale.reshape((levels.shape[0], -1) if entry.params.block_size is not None else -1)
            grids += [
                self.emit.constant(f"{entry.tensor}_scale", scale),
                self.emit.constant(f"{entry.tensor}_zero_point", np.zeros(scale.shape, np.int8)),
            ]
        made = ir.node(
            "DynamicQuantizeLSTM",
            [*inputs, *grids],
            {key: value for key, value in attributes(node).items() if key != "layout"},
            domain=MICROSOFT,
            num_outputs=len(node.outputs),
            name=f"{name}_DynamicQuantizeLSTM",
        )
        self.model.graph.insert_before(node, made)
        return made.outputs

    def _activation(self, node: ir.Node, name: str) -> Levels:
        """The levels that an operator reads; the first reader of a value makes them for all."""
        dynamic, value = self.dynamic.get(Site(name, 0)), operand(node, 0)
        if dynamic is None or value is None:
            raise PlanError(f"the plan has no grid for the input of operator '{name}'", hint="make the plan again")
        key = dynamic.tensor, dynamic.scheme
        if key not in self.levels:
            self.levels[key] = levels_of(self.emit, node, value, dynamic)
        return self.levels[key]

    def _weight(self, node: ir.Node, name: str, layout: str) -> _Weight:
        """The weight of an operator, stored once for all that read it in the same layout.

        Args:
            node: The operator.
            name: Its name.
            layout: Whether its outputs are ``columns`` or ``rows`` of a matrix, or the weight is that of a ``conv``.
        """
        entry = self._entry(name, 1)
        key = id(entry), layout
        if key not in self.stored:
            self.stored[key] = self._store(entry, _quantized(node, entry, 1), layout)
        return self.stored[key]

    def _store(self, entry: Entry, levels: LevelArray, layout: str) -> _Weight:
        """A Conv's levels are unsigned: onnxruntime has a fast ConvInteger for these alone, and below 1.24 no other."""
        params, is_conv = entry.params, layout == "conv"
        shift = -params.dtype.qmin if is_conv else 0
        kind = f"u{params.dtype.name.removeprefix('u')}" if is_conv else params.dtype.name
        wide = np.uint8 if kind.startswith("u") else np.int8
        held = levels.T if layout == "rows" else levels
        value = self.emit.constant(
            f"{entry.tensor}_quantized", np.ascontiguousarray(held + shift).astype(_STORAGE[kind])
        )
        if params.dtype.bits < 8:
            value = self._widened(value, ir.DataType.from_numpy(np.dtype(wide)))
        scale, zeros = params.scale, _shared_zero(params) + shift
        if is_conv and scale.ndim:
            scale = scale.reshape(-1, *[1] * (levels.ndim - 2))
        zero = self.emit.constant(f"{entry.tensor}_zero_point", zeros.astype(wide)) if zeros.any() else None
        return _Weight(value, scale, zero)

    def _widened(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """Levels of fewer bits in 8: onnxruntime folds the Cast when it loads the model."""
        wide = self.emit.node(self.model.graph[0], "Cast", [value], f"{value.name}_cast", {"to": to})
        wide.shape = value.shape
        return wide

    def _entry(self, name: str, index: int) -> Entry:
        if Site(name, index) not in self.weights:
            raise PlanError(f"the plan has no grid for the weight of operator '{name}'", hint="make the plan again")
        return self.weights[Site(name, index)]


def _quantized(node: ir.Node, entry: Entry, index: int) -> LevelArray:
    array = constant(operand(node, index))
    if array is None:
        raise PlanError(f"'{entry.tensor}' is not a constant", hint="make the plan again")
    return quantize(array.astype(np.float32), entry.params)


def _shared_zero(params: QuantParams) -> LevelArray:
    """The zero points, as one number where all are the same: ConvInteger takes no other."""
    zeros = params.zero_point
    return np.asarray(zeros.reshape(-1)[0]) if (zeros == zeros.reshape(-1)[0]).all() else zeros
