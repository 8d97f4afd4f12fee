"""The one thin adapter over onnx_ir: load, save, look, insert, tidy. ``onnx_ir.Model`` is *the* graph everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as passes
from google.protobuf.message import DecodeError

from qconvert.errors import ModelError

STANDARD_DOMAINS = ("", "ai.onnx")
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})
INLINE_LIMIT = 1_800_000_000
"""Weights beyond this many bytes do not fit a protobuf (2 GiB) with room for the graph; they go to a second file."""

_SERIALIZING = Lock()
"""One model at a time: onnx_ir renames tensors on the way, and models that threads write at once may share them."""


@dataclass(frozen=True)
class Operator:
    """A node with the names people can rely on.

    Attributes:
        node: The node.
        name: The name of its first output: unique and stable, where node names are often empty.
        subgraph: Path of the subgraph that holds it, e.g. ``If_3/then_branch``; "" in the main graph.
    """

    node: ir.Node
    name: str
    subgraph: str

    @property
    def op_type(self) -> str:
        """``Conv``, or ``com.microsoft::Gelu`` outside the default domain."""
        node = self.node
        return node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}::{node.op_type}"

    @property
    def names(self) -> tuple[str, ...]:
        """Every name a pattern may match: the outputs' and the node's own."""
        own = (self.node.name,) if self.node.name else ()
        return tuple(value.name for value in self.node.outputs if value.name) + own


@dataclass(frozen=True)
class Port:
    """An input or output of a model.

    Attributes:
        name: Its name.
        dtype: Element type, or None for sequences and maps.
        shape: Fixed sizes as int, free ones as name or None; empty also where the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]


def ports(model: ir.Model) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """What a model is fed and gives; weights that are listed as inputs do not count."""

    def port(value: ir.Value) -> Port:
        tensor = isinstance(value.type, ir.TensorType) and value.dtype not in {None, ir.DataType.UNDEFINED}
        dtype = value.dtype.numpy() if tensor and value.dtype is not None else None
        return Port(value.name or "", dtype, shape_of(value) or ())

    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return tuple(map(port, inputs)), tuple(map(port, model.graph.outputs))


def load_model(path: Path) -> ir.Model:
    """Reads an ONNX file; weights in external files stay there until they are used.

    Raises:
        ModelError: If the file is missing, not ONNX, truncated, or holds no operator.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: {problem}", hint="give the path of an .onnx file")
    try:
        model = ir.load(path)
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path}: not a readable ONNX model: {reason}", hint="the file may be truncated or of another kind"
        ) from error
    if not len(model.graph):
        raise ModelError(f"{path}: the model holds no operator", hint="the file may be truncated or of another kind")
    _check_inputs(model, path)
    _check_external_data(model, path)
    return model


def _check_inputs(model: ir.Model, path: Path) -> None:
    for op in operators(model):
        for value in op.node.inputs:
            if value is None or value.producer() is not None or value.is_graph_input() or value.is_initializer():
                continue
            raise ModelError(
                f"{path}: not a valid model: '{value.name}', an input of {op.op_type} {op.name}, comes from nowhere",
                hint="export it again; onnx.checker.check_model names every such fault",
            )


def _check_external_data(model: ir.Model, path: Path) -> None:
    for tensor in external_tensors(model):
        location = Path(tensor.path)
        needed = (tensor.offset or 0) + (tensor.length or 0)
        if not location.is_file():
            raise ModelError(
                f"{path}: its weights file '{tensor.location}' is missing", hint="keep it beside the .onnx file"
            )
        size = location.stat().st_size
        if size < needed:
            raise ModelError(
                f"{path}: its weights file '{tensor.location}' is truncated: {size} bytes, {needed} needed",
                hint="copy the file again",
            )


def initializers(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Every constant that is stored in the model, with its tensor; subgraphs included."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value


def external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """The weights that live in files beside the model."""
    return [tensor for _, tensor in _external_values(model)]


def _external_values(model: ir.Model) -> list[tuple[ir.Value, ir.ExternalTensor]]:
    return [(value, tensor) for value, tensor in initializers(model) if isinstance(tensor, ir.ExternalTensor)]


def file_hash(path: Path, model: ir.Model | None = None) -> str:
    """SHA-256 of an ONNX file together with the weight files it refers to; ``model`` is what it holds, where known."""
    return hash_of(files_of(path, model or load_model(path)))


def files_of(path: Path, model: ir.Model) -> list[Path]:
    """An ONNX file and the weight files it refers to."""
    return [path, *map(Path, sorted({str(tensor.path) for tensor in external_tensors(model)}))]


def hash_of(files: Iterable[Path]) -> str:
    """SHA-256 of what files hold, one after another."""
    digest, buffer = hashlib.sha256(), bytearray(1 << 18)  # one for all: the first touch of a page takes long
    for path in files:
        with path.open("rb") as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers as stored."""
    return sum(tensor.nbytes for _, tensor in initializers(model))


def write_model(
    model: ir.Model,
    path: Path,
    *,
    inline: int | None = None,
    shard: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes a model as one file; weights of more than ``inline`` bytes go to ``NAME.data`` beside it, one by one.

    Args:
        model: It.
        path: The file.
        inline: Bytes of weights that the file itself may hold; None takes ``INLINE_LIMIT``.
        shard: Bytes that a file of weights may hold; where they take several, these are numbered.
        progress: Told the number of weights that are written beside the file.
    """
    if shard is None and weight_bytes(model) <= (INLINE_LIMIT if inline is None else inline):
        path.write_bytes(serialize(model))
        return
    told = (lambda _, info: progress(info.index + 1)) if progress is not None else None
    with _SERIALIZING:
        ir.save(model, path, external_data=f"{path.name}.data", max_shard_size_bytes=shard, callback=told)


def serialize(model: ir.Model) -> bytes:
    """The bytes of a model below 2 GB with all its weights; the same model always gives the same bytes."""
    with _SERIALIZING:
        outside = _external_values(model)
        try:
            for value, tensor in outside:  # a tensor of its own: others may hold the bytes of this
                value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)
            blob: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
        finally:
            for value, tensor in outside:
                value.const_value = tensor
    return blob


def operators(model: ir.Model) -> Iterator[Operator]:
    """Every operator in topological order, bodies of If, Loop and Scan after the operator that holds them."""
    yield from _operators(model.graph, "")


def _operators(graph: ir.Graph, path: str) -> Iterator[Operator]:
    for node in graph:
        name = next((value.name for value in node.outputs if value.name), "") or node.name or ""
        yield Operator(node, name, path)
        for attribute in node.attributes.values():
            bodies = {ir.AttributeType.GRAPH: (attribute.value,), ir.AttributeType.GRAPHS: attribute.value}.get(
                attribute.type, ()
            )
            for body in bodies:
                yield from _operators(body, f"{path}/{node.op_type}({name}).{attribute.name}".lstrip("/"))


def attributes(node: ir.Node) -> Mapping[str, Any]:
    """The attributes of a node as Python values."""
    return {name: attribute.value for name, attribute in node.attributes.items() if not attribute.is_ref()}


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Operand ``index`` of a node; None where it is left out (also by an empty name)."""
    return node.inputs[index] if index < len(node.inputs) else None


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of a value that no run can change, else None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def is_constant(value: ir.Value) -> bool:
    """Whether no run can change the value; does not read it."""
    return value.const_value is not None and not value.is_graph_input()


def shape_of(value: ir.Value) -> tuple[int | str | None, ...] | None:
    """Dimensions of a value, or None where the rank is unknown."""
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def opset(model: ir.Model) -> int:
    """The version of the default operator set."""
    return next((model.opset_imports[domain] for domain in STANDARD_DOMAINS if domain in model.opset_imports), 1)


def add_constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Registers an initializer under a name not yet taken and returns its value."""
    return add_tensor(graph, ir.Tensor(array, name=name))


def add_tensor(graph: ir.Graph, tensor: ir.Tensor[Any] | ir.LazyTensor) -> ir.Value:
    """Registers a tensor under its own name, or one like it that is not yet taken, and returns its value."""
    name, count = tensor.name or "", 1
    while tensor.name in graph.initializers:
        count += 1
        tensor.name = f"{name}_{count}"
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _drop_unread_constants(model: ir.Model) -> None:
    """Removes initializers that only operators outside of the model read: those of an If that was folded."""
    nodes = {op.node for op in operators(model)}
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, value in list(graph.initializers.items()):
            kept = value.is_graph_input() or value.is_graph_output()
            if not kept and not any(use.node in nodes for use in value.uses()):
                del graph.initializers[name]


def tidy(model: ir.Model) -> ir.Model:
    """Removes what nothing uses, gives every value a unique name and sorts the nodes; the end of every rewrite."""
    for step in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.TopologicalSortPass(),
    ):
        step(model)
    _drop_unread_constants(model)
    values = [value for op in operators(model) for value in op.node.outputs]
    left_out = [value for value in values if not value.name and not value.uses() and not value.is_graph_output()]
    passes.NameFixPass()(model)
    for value in left_out:
        value.name = ""  # an output that a node does not compute
    return model
