"""How much memory a calibration takes, and how the values are split into passes so that it takes less.

What one run asks for is all held at once, for each sample in flight; so fewer values a run, in several passes over the
samples, take less. The estimate: what the process holds already, the weights as onnxruntime keeps them, and for each
sample in flight the values asked for, onnxruntime's own workspace and the histograms; or, where that is more, what
opening a session takes. It came out 1 to 15 % above what was measured on CNNs and transformers, and more where graphs
run in parts (``qconvert.parts``): then it is what they could take at most.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert.errors import CalibrationError
from qconvert.graph import operators, shape_of
from qconvert.histogram import BINS
from qconvert.session import Feeds, open_session, run

WEIGHT_COPIES = 3
"""While it runs: the graph's, onnxruntime's own, and the one it packs for its kernels."""

OPENING_COPIES = 7
"""While a session opens: the graph's, the serialized, parsed and optimized ones, written and read again."""

WORKSPACE = 4
"""onnxruntime's memory for the values in between, in units of the largest one: measured on CNNs and transformers."""

USUAL = 250_000_000
"""Bytes of Python, onnxruntime, numba and onnx_ir once they are loaded."""

HISTOGRAM = 2 * BINS * 8
"""Bytes of a value's statistics."""


@dataclass(frozen=True)
class Passes:
    """Which values are observed together.

    Attributes:
        groups: Values of each pass over the samples.
        workers: Samples in flight.
        peak: Expected peak of the process, bytes.
    """

    groups: tuple[tuple[str, ...], ...]
    workers: int
    peak: int

    def __str__(self) -> str:
        passes = f", in {len(self.groups)} passes over the samples" if len(self.groups) > 1 else ""
        return f"memory: a peak of about {text(self.peak)} expected with {self.workers} samples in flight{passes}"


def plan_passes(sizes: Mapping[str, int], *, weights: int, base: int, workers: int, limit: int | None) -> Passes:
    """As few passes as the limit allows, over as many samples in flight as wanted where they fit.

    Args:
        sizes: Bytes of each value in one sample, in the order of the graph.
        weights: Bytes of the model's weights.
        base: Bytes that the process holds already.
        workers: Samples in flight.
        limit: Bytes that the process may take; None: no limit, one pass.

    Raises:
        CalibrationError: If the largest value alone does not fit.
    """
    largest = max(sizes.values(), default=0)

    def peak(group: Sequence[str], count: int) -> int:
        each = sum(sizes[name] for name in group) + WORKSPACE * largest + len(group) * HISTOGRAM
        running = WEIGHT_COPIES * weights + 2 * len(sizes) * HISTOGRAM + count * each
        return base + max(running, OPENING_COPIES * weights)

    if limit is None:
        return Passes((tuple(sizes),), workers, peak(tuple(sizes), workers))
    for count in range(workers, 0, -1):
        if all(peak((name,), count) <= limit for name in sizes):
            break
    else:
        needed = max(peak((name,), 1) for name in sizes)
        raise CalibrationError(
            f"--max-memory {text(limit)}: one value at a time takes {text(needed)}",
            hint=f"give at least {text(needed)}, or smaller samples",
        )
    groups: list[list[str]] = [[]]
    for name in sizes:
        if groups[-1] and peak([*groups[-1], name], count) > limit:
            groups.append([])
        groups[-1].append(name)
    return Passes(tuple(map(tuple, groups)), count, max(peak(group, count) for group in groups))


def resident() -> int:
    """Bytes of memory that this process holds now; what it usually holds by then where the system does not tell."""
    try:
        with Path("/proc/self/statm").open() as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return USUAL


def value_bytes(model: ir.Model, names: Sequence[str], feeds: Feeds) -> dict[str, int]:
    """Bytes of each named value for one sample, as float32.

    From the shapes in the graph; a model in which some are open is run once to ask for those.

    Raises:
        ModelError: If onnxruntime fails on the sample.
    """
    known = {axis: size for value in model.graph.inputs for axis, size in _axes(value, feeds)}
    values = {value.name or "": value for op in operators(model) for value in op.node.outputs}
    values.update({value.name or "": value for value in model.graph.inputs})
    sizes = {name: _elements(values[name], known) for name in names}
    unknown = [name for name, size in sizes.items() if size is None]
    if unknown:
        fed = {name: feeds[name].size for name in unknown if name in feeds}
        sizes.update({**_measured(model, [name for name in unknown if name not in fed], feeds), **fed})
    return {name: 4 * (size or 0) for name, size in sizes.items()}


def _axes(value: ir.Value, feeds: Feeds) -> list[tuple[str, int]]:
    """The sizes that this sample gives to the named axes of an input."""
    shape, array = shape_of(value), feeds.get(value.name or "")
    if shape is None or array is None:
        return []
    return [(axis, size) for axis, size in zip(shape, array.shape, strict=False) if isinstance(axis, str)]


def _elements(value: ir.Value, known: Mapping[str, int]) -> int | None:
    shape = shape_of(value)
    if shape is None:
        return None
    sizes = [known.get(axis, 0) if isinstance(axis, str) else axis for axis in shape]
    return math.prod(size for size in sizes if size) if all(sizes) else None


def _measured(model: ir.Model, names: Sequence[str], feeds: Feeds) -> dict[str, int]:
    """Elements of values whose shapes the graph leaves open; the model tells them itself, so none is fetched."""
    graph, values = model.graph, {value.name or "": value for op in operators(model) for value in op.node.outputs}
    nodes = [ir.node("Size", [values[name]]) for name in names]
    for index, node in enumerate(nodes):
        size = node.outputs[0]
        size.name, size.type, size.shape = f"qconvert_size_{index}", ir.TensorType(ir.DataType.INT64), ir.Shape([])
        graph.append(node)
        graph.outputs.append(size)
    try:
        session = open_session(model, threads=1)
    finally:
        for node in reversed(nodes):
            graph.outputs.pop()
            graph.remove(node, safe=True)
    asked = [node.outputs[0].name or "" for node in nodes]
    return {name: int(size) for name, size in zip(names, run(session, feeds, asked), strict=True)}


def text(size: int) -> str:
    """``412 MB``."""
    return f"{size / 1e6:.0f} MB"
