"""Integer nodes, written where a QuantizeLinear stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.graph import add_constant, opset
from qconvert.rewrite.integer.levels import Accumulator, Sink
from qconvert.rewrite.integer.multiplier import Multiplier, Rounding, half, multiplier

INT32, INT64, UINT64 = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT64

_LIFT = 1 << 62
"""Makes products positive: BitShift takes unsigned numbers only. A multiple of every ``2^bits``, it leaves again
exactly behind the shift; a sum beyond 2^63 wraps to the right unsigned number."""


@dataclass
class Emitter:
    """Writes nodes into a graph.

    Attributes:
        model: The model.
        rounding: How sums are requantized.
        anchor: The node before which new ones stand.
        name: The start of the names of what is written.
        made: The nodes written for float ones that move values, so that readers of several results share one.
        sums: The sums written for float values.
        weights: What became of weights.
    """

    model: ir.Model
    rounding: Rounding
    anchor: ir.Node
    name: str
    made: dict[ir.Node, ir.Node] = field(default_factory=dict)
    sums: dict[ir.Value, Accumulator] = field(default_factory=dict)
    weights: dict[ir.Value, ir.Value] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return opset(self.model)

    def constant(self, name: str, array: npt.ArrayLike, dtype: npt.DTypeLike) -> ir.Value:
        """An initializer."""
        return add_constant(self.model.graph, f"{self.name}_{name}", np.asarray(array, dtype))

    def nodes(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        dtype: ir.DataType | None = None,
        outputs: int = 1,
    ) -> ir.Node:
        """A node; its results have the type of its first operand unless ``dtype`` is another."""
        label = f"{self.name}_{op_type}"
        node = ir.node(op_type, inputs, dict(attributes or {}), name=label, num_outputs=outputs)
        for index, value in enumerate(node.outputs):
            value.name = f"{label}_{index}" if index else label
            value.type = ir.TensorType(dtype) if dtype else inputs[0].type if inputs[0] is not None else None
        graph = self.anchor.graph
        (graph if graph is not None else self.model.graph).insert_before(self.anchor, [node])
        return node

    def node(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        attributes: Mapping[str, Any] | None = None,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """A node's only result."""
        return self.nodes(op_type, inputs, attributes, dtype=dtype).outputs[0]

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The same numbers in another type."""
        return value if value.dtype == dtype else self.node("Cast", value, attributes={"to": dtype}, dtype=dtype)

    def reduce(self, op_type: str, value: ir.Value, axes: Sequence[int], *, keepdims: bool) -> ir.Value:
        """A reduction; its axes became an operand with opset 18, those of ReduceSum with 13."""
        options: dict[str, Any] = {"keepdims": int(keepdims)}
        if self.opset >= 18 or op_type == "ReduceSum":
            return self.node(op_type, value, self.constant("axes", axes, np.int64), attributes=options)
        return self.node(op_type, value, attributes={**options, "axes": list(axes)})

    def requantize(self, sums: ir.Value, scale: npt.ArrayLike, sink: Sink) -> ir.Value:
        """Levels on the sink's grid: ``clip(round(sum * scale / sink.scale) + zero, low, high)``.

        Args:
            sums: int32.
            scale: Of the sums, positive float64, in a shape that broadcasts against them.
            sink: Where they go.
        """
        by = multiplier(np.asarray(scale, np.float64) / sink.grid.scale)
        wide = self.cast(self._bounded(sums, by), INT64)
        if self.rounding == "single":
            product = self.node("Mul", wide, self.constant("mantissa", by.mantissa, np.int64))
            moved = self._shift(product, 31 - by.exponent, plus=sink.grid.zero)
        else:
            moved = self._double(wide, by, plus=sink.grid.zero)
        low, high = (self.constant(name, end, np.int64) for name, end in (("low", sink.low), ("high", sink.high)))
        return self.cast(self.node("Clip", moved, low, high), sink.grid.dtype)

    def _bounded(self, sums: ir.Value, by: Multiplier) -> ir.Value:
        """Sums that stay below 2^30 when they are multiplied; what is cut off is far beyond any level.

        ``double`` would shift larger ones out of 32 bits, and onnxruntime's Clip of int64 is wrong beyond int32
        (microsoft/onnxruntime#25280). Factors below 0.5 keep every int32 in bounds.
        """
        if (by.exponent < 0).all():
            return sums
        bound = np.int64((1 << 31) - 1) >> np.maximum(by.exponent + 1, 0)
        above = self.node("Max", sums, self.constant("least", -bound, np.int32))
        return self.node("Min", above, self.constant("largest", bound, np.int32))

    def _double(self, wide: ir.Value, by: Multiplier, *, plus: npt.NDArray[np.int64]) -> ir.Value:
        """The doubling high product of gemmlowp rounds like a shift by 31, its division by 2^n halves away from 0."""
        product = self.node("Mul", wide, self.constant("mantissa", by.mantissa << by.left, np.int64))
        high = self._shift(product, np.asarray(31, np.int64), plus=np.asarray(0, np.int64))
        below = self.node("Less", high, self.constant("zero", 0, np.int64), dtype=ir.DataType.BOOL)
        negative = self.cast(below, INT64)
        if (by.right == 0).any():
            negative = self.node("Mul", negative, self.constant("divided", by.right > 0, np.int64))
        return self._shift(self.node("Sub", high, negative), by.right, plus=plus)

    def _shift(self, value: ir.Value, bits: npt.NDArray[np.int64], *, plus: npt.NDArray[np.int64]) -> ir.Value:
        """``((value + half) >> bits) + plus`` on int64, rounding towards minus infinity after the half is added."""
        lifted = self.node("Add", value, self.constant("half", half(bits) + _LIFT, np.int64))
        moved = self.node(
            "BitShift", self.cast(lifted, UINT64), self.constant("bits", bits, np.uint64), attributes=_RIGHT
        )
        return self.node("Add", self.cast(moved, INT64), self.constant("plus", plus - (_LIFT >> bits), np.int64))


_RIGHT = {"direction": "RIGHT"}
