"""Half precision: float32 tensors become float16, or weights are merely stored in float16 or bfloat16.

Every operator that ONNX lets take float16 does, but for those in ``half_choice``; a Cast stands where the two widths
meet. Weights are rounded to nearest even and clamped to the finite range, as in onnxruntime's ``float16.py``, except
that what is smaller than the smallest half becomes zero rather than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from qconvert.errors import ModelError
from qconvert.graph import initializers, is_constant, operators, tidy
from qconvert.rewrite.half_choice import FLOAT_OPERANDS, Choice, Kept, choose, match_block
from qconvert.rewrite.half_tensors import HALF_TYPES, HalfType, Narrowed, lazy, look, narrow
from qconvert.schemas import complete_types

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16

STORED = 64
"""Elements of the smallest weight that is stored in a half type: a Cast costs about a hundred bytes."""

_GRIDS = frozenset({"QuantizeLinear", "DequantizeLinear"})

_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

To = Literal["fp16", "bf16"]


@dataclass(frozen=True)
class HalfReport:
    """What a conversion did.

    Attributes:
        to: The half type.
        storage_only: Whether weights are stored in it and computed with in float32.
        operators: How many operators compute in it.
        kept: The operators on float tensors that stay in float32; empty where only the storage changes.
        casts: How many Cast operators stand where the widths meet.
        tensors: The weights, each with what it lost.
    """

    to: str
    storage_only: bool
    operators: int
    kept: tuple[Kept, ...]
    casts: int
    tensors: tuple[Narrowed, ...]


def to_half(
    model: ir.Model, *, to: To = "fp16", keep_io: bool = True, block: Sequence[str] = (), storage_only: bool = False
) -> tuple[ir.Model, HalfReport]:
    """Converts a graph whose types are inferred (``prepare.infer_types``) and whose functions are inlined; edits it.

    Args:
        model: The float32 graph.
        to: ``fp16``, or ``bf16``, which is always storage only: onnxruntime's CPU provider computes nothing in it.
        keep_io: Whether inputs and outputs stay float32.
        block: Patterns for names or types of operators that stay in float32.
        storage_only: Whether only weights change, with a Cast to float32 behind each.

    Raises:
        ModelError: If a pattern matches no operator, or there is nothing in float32 to convert.
    """
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    half = HALF_TYPES[to]
    if storage_only or to == "bf16":
        report = _store(model, half, block)
    else:
        complete_types(model)
        report = _Writer(model, half, choose(model, block)).write(keep_io=keep_io)
    return tidy(model), report


def _store(model: ir.Model, half: HalfType, block: Sequence[str]) -> HalfReport:
    """Weights in the half type, each behind a Cast to float32 that takes its place."""
    blocked = match_block(model, block)
    stored = []
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in [value for value in graph.initializers.values() if _is_stored(value, blocked)]:
            tensor, uses = value.const_value, list(value.uses())
            if tensor is None:
                continue
            stored.append(look(value.name or "", tensor, half))
            value.const_value, value.type = lazy(tensor, half), ir.TensorType(half.dtype)
            wide = _insert_cast(graph, value, FLOAT)
            for use in uses:
                use.node.replace_input_with(use.idx, wide)
    if not stored:
        raise _nothing(model)
    return HalfReport(half.name, storage_only=True, operators=0, kept=(), casts=len(stored), tensors=tuple(stored))


def _is_stored(value: ir.Value, blocked: dict[ir.Node, str]) -> bool:
    """Whether a weight is large enough, and no operand that must be a plain float32 constant."""
    if value.dtype != FLOAT or not is_constant(value) or value.is_graph_output():
        return False
    readers = list(value.uses())
    return (
        value.const_value is not None
        and value.const_value.size >= STORED
        and bool(readers)
        and not any(
            use.node in blocked or use.node.op_type in _GRIDS or use.idx in FLOAT_OPERANDS.get(use.node.op_type, ())
            for use in readers
        )
    )


def _nothing(model: ir.Model) -> ModelError:
    halves = {tensor.dtype.name.lower() for _, tensor in initializers(model) if tensor.dtype in _HALVES}
    if halves:
        return ModelError(f"nothing to convert: the model is {min(halves)} already", hint="give the float32 original")
    return ModelError(
        "nothing to convert: the model has no float32 weights or operators that could be half",
        hint="'qconvert inspect' shows its types",
    )


def _insert_cast(graph: ir.Graph, value: ir.Value, to: ir.DataType) -> ir.Value:
    """A Cast of a value directly behind what makes it."""
    cast = ir.node("Cast", [value], {"to": to}, name=f"{value.name}_to_{to.name.lower()}")
    result = cast.outputs[0]
    result.name, result.type, result.shape = f"{value.name}_{to.name.lower()}", ir.TensorType(to), value.shape
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, cast)
    elif len(graph):
        graph.insert_before(graph[0], cast)
    else:
        graph.append(cast)
    return result


@dataclass
class _Writer:
    """Carries out a choice: values first, with a Cast for readers of the other width, then what operators say."""

    model: ir.Model
    half: HalfType
    choice: Choice
    tensors: list[Narrowed] = field(default_factory=list)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)

    def write(self, *, keep_io: bool) -> HalfReport:
        if all(node.op_type == "Cast" for node in self.choice.half):
            raise _nothing(self.model)
        main = self.model.graph
        graphs = (main, *main.subgraphs())
        inputs = [(value, graph is main and not keep_io) for graph in graphs for value in graph.inputs]
        results = [(value, self._is_half(value)) for op in operators(self.model) for value in op.node.outputs]
        weights = [value for graph in graphs for value in graph.initializers.values() if _is_float(value)]
        outputs = [
            (graph, place, FLOAT16 if graph is main and not keep_io else FLOAT)
            for graph in graphs
            for place, value in enumerate(graph.outputs)
            if _is_float(value)
        ]
        for value in weights:
            self._weight(value)
        for value, half in [(value, half) for value, half in (*inputs, *results) if _is_float(value)]:
            self._value(value, half=half)
        for graph, place, dtype in outputs:
            self._output(graph, place, dtype)
        for node, slots in self.choice.half.items():
            if slots.outputs:
                _say_half(node)
        count = sum(not _drop_idle_cast(node) for node in self.choice.half)
        return HalfReport(
            "fp16",
            storage_only=False,
            operators=count,
            kept=self.choice.kept,
            casts=len(self.casts),
            tensors=tuple(self.tensors),
        )

    def _is_half(self, value: ir.Value) -> bool:
        maker = value.producer()
        slots = self.choice.half.get(maker) if maker is not None else None
        return slots is not None and value.index() in slots.outputs

    def _wants_half(self, node: ir.Node, place: int) -> bool:
        return node in self.choice.half and place in self.choice.half[node].inputs

    def _weight(self, value: ir.Value) -> None:
        """Halves a weight; what reads it in float32 keeps all its bits."""
        tensor, graph = value.const_value, value.graph
        halves = [use for use in value.uses() if self._wants_half(use.node, use.idx)]
        if tensor is None or graph is None or not halves:
            return
        self.tensors.append(look(value.name or "", tensor, self.half))
        narrowed = lazy(tensor, self.half)
        if len(halves) == len(value.uses()) and not value.is_graph_output():
            value.const_value, value.type = narrowed, ir.TensorType(FLOAT16)
            return
        name = f"{value.name}_float16"
        copy = ir.Value(name=name, shape=narrowed.shape, type=ir.TensorType(FLOAT16), const_value=narrowed)
        graph.register_initializer(copy)
        for use in halves:
            use.node.replace_input_with(use.idx, copy)

    def _value(self, value: ir.Value, *, half: bool) -> None:
        others = [use for use in value.uses() if self._wants_half(use.node, use.idx) != half]
        if half:
            value.type = ir.TensorType(FLOAT16)
        for use in others:
            use.node.replace_input_with(use.idx, self._cast(value, FLOAT if half else FLOAT16))

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        graph = value.graph or self.model.graph
        if (value, to) not in self.casts:
            self.casts[value, to] = _insert_cast(graph, value, to)
        return self.casts[value, to]

    def _output(self, graph: ir.Graph, place: int, dtype: ir.DataType) -> None:
        """Gives an output its type under its name."""
        value = graph.outputs[place]
        if value.dtype == dtype:
            return
        cast = self._cast(value, dtype)
        if not cast.is_graph_output():
            name = value.name
            value.name = f"{name}_{'float' if dtype == FLOAT16 else 'float16'}"
            cast.name = name
        graph.outputs[place] = cast


def _is_float(value: ir.Value) -> bool:
    return value.dtype == FLOAT and isinstance(value.type, ir.TensorType)


def _say_half(node: ir.Node) -> None:
    """Changes the attributes in which an operator names the type that it makes."""
    for key in ("to", "output_dtype"):
        if key in node.attributes and node.attributes[key].as_int() == FLOAT:
            node.attributes[key] = ir.AttrInt64(key, FLOAT16)
    if node.op_type == "ConstantOfShape":
        fill = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(narrow(fill, HALF_TYPES["fp16"])))


def _drop_idle_cast(node: ir.Node) -> bool:
    """Takes a Cast out whose operand has the type already; says whether the operator is a Cast at all."""
    if node.op_type != "Cast":
        return False
    source, result = node.inputs[0], node.outputs[0]
    if source is not None and source.dtype == result.dtype and not result.is_graph_output():
        result.replace_all_uses_with(source)
    return True
