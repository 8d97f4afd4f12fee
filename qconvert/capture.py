"""Runs the float model over samples and reduces every tensor at once to its statistics; activations are never kept.

Samples run in parallel, each in a single-threaded onnxruntime run, so results do not depend on the number of threads,
and reducing one sample overlaps with running the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.accumulate import Accumulator, scratch
from qconvert.errors import CalibrationError
from qconvert.fetch import Fetcher
from qconvert.graph import is_constant, operators
from qconvert.histogram import TensorStats
from qconvert.samples import SampleSet
from qconvert.session import open_session
from qconvert.visit import Progress, Visit
from qconvert.workers import release_memory


@dataclass(frozen=True)
class Captured:
    """What one pass over the samples found.

    Attributes:
        stats: Statistics by value name.
        samples: How many samples were run.
        skipped: Samples that could not be read: ``(name, reason)``.
    """

    stats: Mapping[str, TensorStats]
    samples: int
    skipped: tuple[tuple[str, str], ...]


def capture(
    model: ir.Model,
    names: Sequence[str],
    samples: SampleSet,
    *,
    provider: str = "cpu",
    threads: int = 0,
    strict: bool = False,
    progress: Progress | None = None,
) -> Captured:
    """Statistics of the named values over all samples.

    Args:
        model: A prepared float graph; left as it is.
        names: Values to observe.
        samples: What to run.
        provider: Execution provider.
        threads: Samples in flight at once; 0 means one for each CPU.
        strict: Whether a sample that cannot be read is an error.
        progress: Told after every sample.

    Raises:
        CalibrationError: If a NaN or Inf appears where no attention mask explains it.
        DataError: If no sample could be read, or any with ``strict``.
        ModelError: If onnxruntime refuses the model or a sample.
    """
    inputs = {value.name for value in model.graph.inputs}
    outputs = [value.name or "" for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
    fetched = list(dict.fromkeys(name for name in (*names, *outputs) if name not in inputs))
    with _exposed(model, fetched) as augmented:
        session = open_session(augmented, provider=provider, threads=1)
    release_memory()
    visit, masks = Visit(samples, strict, progress), _masks(model)
    parts: list[dict[str, Accumulator]] = []

    def work() -> None:
        part = _observe(visit, Fetcher(session, fetched), names, masks)
        with visit.lock:
            parts.append(part)

    visit.run(work, threads)
    merged = {name: sum((part[name].stats() for part in parts), TensorStats()) for name in names}
    return Captured(merged, visit.done, visit.skipped)


def _observe(visit: Visit, fetch: Fetcher, names: Sequence[str], masks: frozenset[str]) -> dict[str, Accumulator]:
    """One thread's share of the samples."""
    part = {name: Accumulator() for name in names}
    watched = [name for name in fetch.names if name not in part]
    tables = scratch()
    for _, sample in visit:
        results = {**sample.feeds, **fetch(sample.feeds)}
        for name in names:
            if not part[name].add(results[name], tables):
                _check_non_finite(name, np.asarray(results[name]), sample.name, masks)
        for name in watched:
            _check_non_finite(name, np.asarray(results[name]), sample.name, frozenset())
    return part


def _check_non_finite(name: str, values: npt.NDArray[Any], sample: str, masks: frozenset[str]) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    nan, positive = int(np.isnan(values).sum()), int(np.isposinf(values).sum())
    if name in masks and not nan and not positive:
        return
    kind = f"{nan} NaN" if nan else f"{int((~finite).sum())} Inf"
    raise CalibrationError(
        f"sample '{sample}': value '{name}' holds {kind} of {values.size} values: the float model itself makes them",
        hint="check the preprocessing of the samples, or leave that operator out with --exclude",
    )


_MASK_PATH = frozenset(
    ("Add", "Where", "Mul", "Reshape", "Transpose", "Expand", "Unsqueeze", "Squeeze", "Slice", "Concat", "Tile", "Cast")
)


def _masks(model: ir.Model) -> frozenset[str]:
    """Values that may hold -Inf on purpose: what reaches a Softmax through additions, selections and moves."""
    found: set[str] = set()
    for op in reversed(list(operators(model))):
        reaches = any(value.name in found for value in op.node.outputs) and op.op_type in _MASK_PATH
        if op.op_type in {"Softmax", "LogSoftmax"} or reaches:
            found.update(value.name or "" for value in op.node.inputs if value is not None)
    return frozenset(found)


@contextmanager
def _exposed(model: ir.Model, names: Sequence[str]) -> Iterator[ir.Model]:
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
