"""Where two models that were made of one part ways: what they share is run once, what is behind it for each of them.

Two values are the same when the operators behind them are, down to the inputs and constants: that is a key by induction
(hash-consing, as in A. P. Ershov, "On programming of arithmetic operations", CACM 1(8), 1958).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from qconvert.graph import initializers, is_constant, operators, shape_of

Key = bytes
"""Of a value: equal keys, equal values in every run."""


@dataclass(frozen=True)
class Origin:
    """The tensors of the model that all others are made of, by identity: what is not touched need not be read.

    Attributes:
        tensors: They, held so that no other takes their place in memory.
        names: Their names by ``id``.
    """

    tensors: tuple[ir.TensorProtocol, ...]
    names: Mapping[int, str]

    @classmethod
    def of(cls, model: ir.Model) -> Origin:
        """Of the prepared model."""
        held = [(value.name or "", tensor) for value, tensor in initializers(model)]
        return cls(tuple(tensor for _, tensor in held), {id(tensor): name for name, tensor in held})

    def key(self, tensor: ir.TensorProtocol) -> Key:
        """Of a constant."""
        known = self.names.get(id(tensor))
        if known is not None:
            return _hash("origin", known)
        return _hash("constant", str(tensor.dtype), str(tensor.shape), tensor.tobytes())


@dataclass(frozen=True)
class Base:
    """A model whose values others may start from.

    Attributes:
        model: It.
        values: Names of the values that may be handed out, by key.
        widths: Bytes of an element of each of them, by name.
        constants: Its tensors by key, which variants need not hold a second time.
        origin: Tensors that are known by identity.
    """

    model: ir.Model
    values: Mapping[Key, str]
    widths: Mapping[str, int]
    constants: Mapping[Key, ir.TensorProtocol]
    origin: Origin


@dataclass(frozen=True)
class Tail:
    """What a variant does not share with its base.

    Attributes:
        model: From the cut to the outputs; None where it shares all of them.
        feeds: Inputs of the tail: names of the base's values.
        outputs: For each output asked for its name in the tail, or None where the base has it.
        shared: For each output asked for its name in the base, or None where the tail makes it.
    """

    model: ir.Model | None
    feeds: Mapping[str, str]
    outputs: tuple[str | None, ...]
    shared: tuple[str | None, ...]

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the base's values that are needed."""
        return tuple(dict.fromkeys((*self.feeds.values(), *(name for name in self.shared if name is not None))))


def base_of(model: ir.Model, origin: Origin) -> Base:
    """A written model as the base of others."""
    found = keys(model, origin)
    typed = {value: dtype for value in _exposable(model) if (dtype := _dtype(value)) is not None and _is_array(dtype)}
    values = {found[value]: value.name or "" for value in typed}
    widths = {value.name or "": int(dtype.itemsize) for value, dtype in typed.items()}
    constants = {found[value]: tensor for value, tensor in initializers(model) if value in found}
    return Base(model, values, widths, constants, origin)


def _exposable(model: ir.Model) -> Iterator[ir.Value]:
    """Values that can be asked for without a change to what onnxruntime computes.

    Between DequantizeLinear and QuantizeLinear it runs integer kernels, which have no float result; there the levels
    are handed out.
    """
    yield from model.graph.inputs
    yield from model.graph.outputs
    for op in operators(model):
        node = op.node
        fused = any(_made_by(value, "DequantizeLinear") for value in node.inputs)
        if op.subgraph or fused or node.op_type == "DequantizeLinear":
            continue
        for value in node.outputs:
            if value.is_graph_output():
                continue
            if value.name and not any(use.node.op_type == "QuantizeLinear" for use in value.uses()):
                yield value


def _made_by(value: ir.Value | None, op_type: str) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == op_type


def tail_of(base: Base, variant: ir.Model, outputs: Sequence[str]) -> Tail:
    """Cuts a variant behind everything that the base computes as well.

    Args:
        base: It.
        variant: A model made of the same prepared graph; it becomes the tail.
        outputs: Values of the variant's main graph that are asked for.
    """
    own = keys(variant, base.origin)
    values = {value.name: value for value in variant.graph.inputs}
    values.update({value.name: value for op in operators(variant) if not op.subgraph for value in op.node.outputs})
    asked = [values[name] for name in outputs]
    shared = tuple(base.values.get(own[value]) for value in asked)
    left = [value for value, name in zip(asked, shared, strict=True) if name is None]
    cut = _cut(base, own, left)
    feeds = {value.name or "": name for value, name in cut.items()}
    if left:
        _keep(variant, left, list(cut))
        for value, _ in initializers(variant):
            value.const_value = base.constants.get(own.get(value, b""), value.const_value)
    names = tuple(value.name if name is None else None for value, name in zip(asked, shared, strict=True))
    return Tail(variant if left else None, feeds, names, shared)


def _cut(base: Base, own: Mapping[ir.Value, Key], wanted: Sequence[ir.Value]) -> dict[ir.Value, str]:
    """The values from which the wanted ones can be computed: as late as the base has them."""
    found: dict[ir.Value, str] = {}
    seen: set[ir.Value] = set()
    todo = list(reversed(wanted))
    while todo:
        value = todo.pop()
        if value in seen or is_constant(value):
            continue
        seen.add(value)
        name = base.values.get(own[value])
        if name is not None:
            found[value] = name
            continue
        producer = value.producer()
        if producer is not None:
            todo.extend(reversed(list(reads(producer))))
    return found


def _keep(model: ir.Model, outputs: Sequence[ir.Value], inputs: Sequence[ir.Value]) -> None:
    """Leaves of a model what leads from the inputs to the outputs."""
    graph = model.graph
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    fed = []
    for value in inputs:
        if value.is_graph_input():
            fed.append(value)
            continue
        name = value.name
        value.name = f"{name}_cut"
        dtype = _dtype(value)
        entry = ir.Value(name=name, type=ir.TensorType(dtype) if dtype is not None else None, shape=_open(value))
        value.replace_all_uses_with(entry)
        fed.append(entry)
    graph.inputs.clear()
    graph.inputs.extend(fed)
    prune(graph)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


def prune(graph: ir.Graph) -> None:
    """Removes the nodes that lead to no output."""
    for node in reversed(graph):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        for inner in (inner for body in _nested(node) for inner in body):  # else they keep what they read alive
            for position in range(len(inner.inputs)):
                inner.replace_input_with(position, None)
        graph.remove(node, safe=True)


def _dtype(value: ir.Value) -> ir.DataType | None:
    """Its element type; of levels that of their zero point, since rewrites leave it out."""
    producer = value.producer()
    if (
        value.type is None
        and producer is not None
        and producer.op_type == "QuantizeLinear"
        and len(producer.inputs) > 2
    ):
        zero = producer.inputs[2]
        return zero.dtype if zero is not None else None
    return value.dtype if isinstance(value.type, ir.TensorType) else None


def _is_array(dtype: ir.DataType) -> bool:
    """Whether onnxruntime hands it out as numbers of whole bytes."""
    return dtype not in {ir.DataType.UNDEFINED, ir.DataType.STRING} and dtype.itemsize >= 1


def _open(value: ir.Value) -> ir.Shape | None:
    """The shape with every axis open but fixed ones: samples may differ in what the graph calls by one name."""
    shape = shape_of(value)
    return None if shape is None else ir.Shape([dim if isinstance(dim, int) else None for dim in shape])


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, and what its bodies read from outside."""
    yield from (value for value in node.inputs if value is not None)
    inside = list(_nested(node))
    for body in inside:
        for inner in body:
            for value in inner.inputs:
                if value is not None and value.graph not in inside:
                    yield value
        yield from (value for value in body.outputs if value.graph not in inside)


def _nested(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of a node, and theirs."""
    for body in _bodies(node):
        yield body
        yield from body.subgraphs()


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.value


def keys(model: ir.Model, origin: Origin) -> dict[ir.Value, Key]:
    """The key of every value of the main graph, and of the constants that it reads."""
    found = {value: _hash("input", value.name or "") for value in model.graph.inputs}

    def key(value: ir.Value) -> Key:
        if value not in found:
            tensor = value.const_value
            found[value] = origin.key(tensor) if tensor is not None else _hash("unknown", str(id(value)))
        return found[value]

    for node in model.graph:
        bodies = [ir.to_proto(node).SerializeToString(deterministic=True)] if any(_bodies(node)) else []
        operands = [b"" if value is None else key(value) for value in node.inputs]
        outer = sorted(key(value) for value in reads(node)) if bodies else []
        own = _hash(node.domain, node.op_type, *_settings(node), *operands, "outer", *outer, *bodies)
        for index, value in enumerate(node.outputs):
            found[value] = _hash(own, str(index))
    return found


def _settings(node: ir.Node) -> Iterator[str | bytes]:
    for name in sorted(node.attributes):
        attribute = node.attributes[name]
        if attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
            continue  # hashed as a whole
        value: Any = attribute.value
        yield name
        yield value.tobytes() if isinstance(value, (ir.TensorProtocol, np.ndarray)) else repr(value)


def _hash(*parts: str | bytes) -> Key:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
