"""Opens a graph with inner values among its outputs, at the least cost to the run.

onnxruntime computes convolutions on x86 in blocks of channels and copies every value that is asked for back into the
order of the graph. Statistics of a whole tensor do not depend on the order of its values, so these copies are left
out: measured on MobileNetV2, asking for all 65 values costs 19 % over plain inference instead of 55 %.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from qconvert.errors import ModelError
from qconvert.graph import attributes, is_constant, operators, weight_bytes, write_model
from qconvert.parts import cut
from qconvert.session import open_session

BLOCKED = "com.microsoft.nchwc"
"""The domain of the operators on blocks of channels."""

WIDEST_BLOCK = 16
"""Channels of the widest block (AVX-512); where it divides their number, no block of any machine is padded."""

REOPEN_LIMIT = 500_000_000
"""Bytes of weights beyond which the optimized graph is not written out to be changed."""


@dataclass(frozen=True)
class Exposed:
    """Sessions, and where their values are.

    Attributes:
        sessions: They run with one thread each, one after another; what one makes may be an input of a later one.
        outputs: Name of a session's output for each value. Its elements may be in another order than the graph's.
    """

    sessions: Sequence[ort.InferenceSession]
    outputs: Mapping[str, str]


def open_exposed(
    model: ir.Model,
    names: Sequence[str],
    *,
    provider: str,
    ordered: Collection[str] = (),
    sizes: Mapping[str, int] | None = None,
) -> Exposed:
    """Opens sessions from which the named values can be fetched.

    Args:
        model: A prepared float graph; left as it is.
        names: Values of its main graph that are not constants.
        provider: Execution provider.
        ordered: Values whose elements must come in the order of the graph.
        sizes: Bytes of values in one sample, by which the graph may be cut into parts; None makes one session.

    Raises:
        ModelError: If onnxruntime refuses the model.
    """
    with exposing(model, names) as augmented:
        if provider == "cpu" and weight_bytes(model) <= REOPEN_LIMIT and _has_convolution(model):
            with suppress(ModelError, OSError):  # no room for the file, or an onnxruntime that does not read its own
                return _reopened(augmented, names, ordered, sizes or {})
        return Exposed([open_session(augmented, provider=provider, threads=1)], {name: name for name in names})


def _reopened(model: ir.Model, names: Sequence[str], ordered: Collection[str], sizes: Mapping[str, int]) -> Exposed:
    """Sessions of the graph that onnxruntime has optimized, without the copies."""
    with tempfile.TemporaryDirectory(prefix="qconvert.") as folder:
        source, changed = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        write_model(model, source, inline=0)  # onnxruntime maps weights in files, and copies those in bytes
        session = open_session(source, threads=1, optimized_path=changed)
        optimized = ir.load(changed)
        _describe_blocked(optimized, model)
        moved = _drop_copies(optimized, set(names) - set(ordered))
        outputs = {name: moved.get(name, name) for name in names}
        parts = cut(optimized, outputs.values(), {outputs[name]: sizes.get(name, 0) for name in names})
        if not moved and len(parts) == 1:
            return Exposed([session], outputs)
        del session  # before the next are opened: each holds the weights
        sessions = []
        for number, part in enumerate(parts):
            path = changed.with_name(f"{number}.onnx")  # beside the file with the weights
            ir.save(part, path)
            sessions.append(open_session(path, threads=1, optimize=False))
        return Exposed(sessions, outputs)


def _has_convolution(model: ir.Model) -> bool:
    return any(op.op_type in {"Conv", "MaxPool", "AveragePool"} for op in operators(model))


def _describe_blocked(optimized: ir.Model, model: ir.Model) -> None:
    """Tensors that onnxruntime copies out of blocks come without type and shape; the first is needed at an input."""
    shapes = {value.name: value.shape for node in model.graph for value in node.outputs}
    for node in optimized.graph:
        if _is_copy(node) and node.inputs[0] is not None:
            node.inputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            if not _padded(node):
                node.inputs[0].shape = shapes.get(node.outputs[0].name)


def _is_copy(node: ir.Node) -> bool:
    """Whether it copies a blocked tensor into the order of the graph."""
    return node.domain == BLOCKED and node.op_type == "ReorderOutput"


def _padded(node: ir.Node) -> bool:
    """Whether the blocked tensor may have more channels, or its copy has them last."""
    keys = attributes(node)
    return bool(keys.get("channels_last") or keys["channels"] % WIDEST_BLOCK)


def _drop_copies(model: ir.Model, names: Collection[str]) -> dict[str, str]:
    """Makes the blocked tensor an output in place of its copy in the order of the graph; says which for which."""
    moved: dict[str, str] = {}
    for index, value in enumerate(model.graph.outputs):
        node = value.producer()
        if node is None or not _is_copy(node) or value.name not in names:
            continue
        source = node.inputs[0]
        if source is None or source.is_graph_output() or _padded(node):
            continue
        model.graph.outputs[index] = source
        if not value.uses():
            model.graph.remove(node, safe=True)
        moved[value.name or ""] = source.name or ""
    return moved


@contextmanager
def exposing(model: ir.Model, names: Sequence[str]) -> Iterator[ir.Model]:
    """The model with more outputs, for as long as it takes to open a session."""
    outputs = model.graph.outputs
    before = list(outputs)
    have = {value.name for value in before}
    values = {value.name: value for op in operators(model) for value in op.node.outputs if not op.subgraph}
    outputs.extend(values[name] for name in names if name not in have and not is_constant(values[name]))
    try:
        yield model
    finally:
        while len(outputs) > len(before):
            outputs.pop()
