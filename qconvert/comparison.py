"""Compares a model with its original on real samples: accuracy, fidelity, size, latency and kernels that really run.

Fidelity is pooled over all samples and elements. Per-sample sums are added in the order of the samples, so reports do
not depend on threads.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from qconvert.errors import CorruptSampleError, DataError, ModelError
from qconvert.graph import external_tensors, load_model
from qconvert.kernel_census import Kernel, census
from qconvert.metrics import ratio_db
from qconvert.samples import Sample, SampleSet
from qconvert.session import Feeds, open_session, run
from qconvert.workers import default_workers, run_workers

Progress = Callable[[int], None]
TOP_K = 5
WARM_UP = 3
"""Runs of each model before its runs are timed."""


@dataclass(frozen=True)
class Fidelity:
    """How close one output of the candidate is to the reference's.

    Attributes:
        output: Name of the output.
        sqnr_db: ``10 log10(sum ref^2 / sum (ref - out)^2)`` pooled over all samples and elements, dB.
        cosine: Mean over the samples of the cosine of the two flattened outputs.
        argmax_agreement: Percent of rows whose largest element is at the same place; None where the last axis has one
            element.
        rows: How many rows that is a percentage of.
        samples: Over how many samples.
    """

    output: str
    sqnr_db: float
    cosine: float
    argmax_agreement: float | None
    rows: int
    samples: int


@dataclass(frozen=True)
class Accuracy:
    """Percent of labelled items whose label is the largest (top1) or among the five largest (top5) of output 0."""

    top1: float
    top5: float | None
    items: int


@dataclass(frozen=True)
class Latency:
    """Time of one run, milliseconds: median and quartiles over interleaved runs of both models."""

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    threads: int


@dataclass(frozen=True)
class Side:
    """What was measured of one of the two models."""

    path: Path
    size_bytes: int
    accuracy: Accuracy | None
    latency: Latency | None
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Evaluation:
    """A comparison of two models.

    Attributes:
        reference: The original.
        candidate: The model that should do the same.
        fidelity: One for each float output.
        samples: How many samples were run.
        skipped: Samples that could not be read: ``(name, reason)``.
        notes: What the reader should know, one line each.
    """

    reference: Side
    candidate: Side
    fidelity: tuple[Fidelity, ...]
    samples: int
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def compare_models(
    reference: Path,
    candidate: Path,
    samples: SampleSet,
    *,
    provider: str = "cpu",
    threads: int = 0,
    latency_runs: int = 30,
    strict: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Runs both models over the samples.

    Args:
        reference: The original model.
        candidate: The model to judge.
        samples: What to run; top-1 and top-5 need labels.
        provider: Execution provider of both.
        threads: Samples in flight, and threads of a timed run; 0 means one for each CPU.
        latency_runs: Timed runs of each model; 0 leaves latency out.
        strict: Whether a sample that cannot be read is an error.
        progress: Told after every sample.

    Raises:
        DataError: If no sample could be read, or any with ``strict``.
        ModelError: If a model is refused, or they differ in their number of outputs.
    """
    workers = threads or default_workers()
    before, after = (open_session(path, provider=provider, threads=1) for path in (reference, candidate))
    pair = _pair(before, after, candidate)
    rows, skipped = _rows(pair, samples, workers=workers, strict=strict, progress=progress)
    if not rows:
        raise DataError(
            f"none of the {len(samples)} samples can be read; the first: {skipped[0][1]}",
            hint="mend them, or give others with --data",
        )
    first = next(sample for index in range(len(samples)) if (sample := _try_load(samples, index)) is not None)
    times = _latencies((reference, candidate), first.feeds, provider=provider, threads=workers, runs=latency_runs)
    fidelity = tuple(_fidelity(name, [row.outputs[index] for row in rows]) for index, name in enumerate(pair.names))
    accuracy = [_accuracy([row.hits[side] for row in rows]) for side in (0, 1)]
    sides = [
        Side(path, file_size(path), accuracy[side], times[side], census(path, provider=provider))
        for side, path in enumerate((reference, candidate))
    ]
    return Evaluation(sides[0], sides[1], tuple(f for f in fidelity if f is not None), len(rows), tuple(skipped))


def compare_outputs(
    reference: Path, candidate: Path, probes: Sequence[Feeds], *, provider: str = "cpu", optimize: bool = True
) -> tuple[Fidelity, ...]:
    """Fidelity over a few feeds, with or without onnxruntime's optimizations of the candidate.

    Raises:
        ModelError: If a model is refused, they differ in their number of outputs, or the candidate's are not finite.
    """
    before = open_session(reference, provider=provider)
    after = open_session(candidate, provider=provider, optimize=optimize)
    pair = _pair(before, after, candidate)
    rows = [[_sums(a, b) for a, b in pair.run(feeds)] for feeds in probes]
    found = [_fidelity(name, [row[index] for row in rows]) for index, name in enumerate(pair.names)]
    broken = [one.output for one in found if one is not None and not math.isfinite(one.cosine)]
    if broken:
        message = f"the written model's output '{broken[0]}' is not finite"
        raise ModelError(message, hint="this should not happen; nothing was written")
    return tuple(one for one in found if one is not None)


def file_size(path: Path) -> int:
    """Bytes on disk of a model together with its weight files."""
    extra = {str(tensor.path) for tensor in external_tensors(load_model(path))}
    return path.stat().st_size + sum(Path(name).stat().st_size for name in extra)


@dataclass(frozen=True)
class _Pair:
    """Both models, and which output of the one is which of the other: the same name, or else the same position."""

    before: ort.InferenceSession
    after: ort.InferenceSession
    names: tuple[str, ...]
    after_names: tuple[str, ...]

    def run(self, feeds: Feeds) -> list[tuple[Any, Any]]:
        return list(zip(run(self.before, feeds, self.names), run(self.after, feeds, self.after_names), strict=True))


def _pair(before: ort.InferenceSession, after: ort.InferenceSession, candidate: Path) -> _Pair:
    names, after_names = (tuple(value.name for value in session.get_outputs()) for session in (before, after))
    if len(names) != len(after_names):
        raise ModelError(
            f"{candidate}: has {len(after_names)} outputs, the reference has {len(names)}",
            hint="compare a model with what was made of it",
        )
    return _Pair(before, after, names, names if set(names) == set(after_names) else after_names)


@dataclass(frozen=True)
class _Sums:
    """What one sample adds to the fidelity of one output."""

    signal: float
    noise: float
    cosine: float
    agree: int
    rows: int


@dataclass(frozen=True)
class _Hits:
    top1: int
    top5: int
    items: int
    classes: int


@dataclass(frozen=True)
class _Row:
    """What one sample adds to everything."""

    outputs: tuple[_Sums | None, ...]
    hits: tuple[_Hits | None, _Hits | None]


@dataclass
class _State:
    """What the threads share."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)
    next_index: int = 0
    done: int = 0

    def take(self) -> int:
        with self.lock:
            self.next_index += 1
            return self.next_index - 1


def _rows(
    pair: _Pair, samples: SampleSet, *, workers: int, strict: bool, progress: Progress | None
) -> tuple[list[_Row], list[tuple[str, str]]]:
    state = _State()

    def look(index: int) -> _Row | tuple[str, str]:
        try:
            sample = samples.load(index)
        except CorruptSampleError as error:
            if strict:
                raise
            return error.sample, str(error)
        batch = samples.source.batch
        return _compare(sample, [(_real(a, sample, batch), _real(b, sample, batch)) for a, b in pair.run(sample.feeds)])

    def work() -> None:
        while not state.stop.is_set() and (index := state.take()) < len(samples):
            found[index] = look(index)
            with state.lock:
                state.done += 1
                if progress is not None:
                    progress(state.done)

    found: dict[int, _Row | tuple[str, str]] = {}
    run_workers(min(workers, max(len(samples), 1)), work, state.stop)
    results = [found[index] for index in sorted(found)]
    return [row for row in results if isinstance(row, _Row)], [row for row in results if not isinstance(row, _Row)]


def _try_load(samples: SampleSet, index: int) -> Sample | None:
    try:
        return samples.load(index)
    except CorruptSampleError:
        return None


def _real(output: Any, sample: Sample, batch: int) -> Any:  # noqa: ANN401 - see _sums
    """The output without the rows of repeated items that fill the last batch."""
    padded = sample.count < batch and isinstance(output, np.ndarray) and output.shape[:1] == (batch,)
    return output[: sample.count] if padded else output


def _compare(sample: Sample, outputs: Sequence[tuple[Any, Any]]) -> _Row:
    labels = None if sample.label is None else np.asarray(sample.label).reshape(-1)
    before, after = outputs[0]
    return _Row(tuple(_sums(a, b) for a, b in outputs), (_hits(before, labels), _hits(after, labels)))


def _sums(before: Any, after: Any) -> _Sums | None:  # noqa: ANN401 - onnxruntime outputs are arrays, lists or dictionaries
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray) or before.dtype.kind != "f":
        return None
    if before.shape != after.shape:
        return _Sums(0.0, math.inf, 0.0, 0, 1)
    a, b = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(invalid="ignore"):  # Inf - Inf
        signal, noise = float(np.square(a).sum()), float(np.square(a - b).sum())
        norm = math.sqrt(signal) * float(np.linalg.norm(b))
        cosine = float((a * b).sum()) / norm if norm else float(signal == 0 and not b.any())
    if a.ndim < 2 or a.shape[-1] < 2 or a.size == 0:
        return _Sums(signal, noise, cosine, 0, 0)
    same = a.argmax(-1) == b.argmax(-1)
    return _Sums(signal, noise, cosine, int(same.sum()), same.size)


def _hits(output: Any, labels: npt.NDArray[Any] | None) -> _Hits | None:  # noqa: ANN401 - see _sums
    if labels is None or not labels.size or not isinstance(output, np.ndarray):
        return None
    if output.dtype.kind != "f":
        predicted = output.reshape(-1)[: labels.size]
        return _Hits(int((predicted == labels).sum()), 0, labels.size, 1) if predicted.size == labels.size else None
    classes = output.shape[-1] if output.ndim else 1
    if classes < 2 or output.size != classes * labels.size:
        return None
    top = np.argsort(-output.reshape(-1, classes), axis=1, kind="stable")[:, :TOP_K]
    hits = top == labels[:, None]
    return _Hits(int(hits[:, 0].sum()), int(hits.any(1).sum()), labels.size, classes)


def _fidelity(name: str, sums: Sequence[_Sums | None]) -> Fidelity | None:
    rows = [row for row in sums if row is not None]
    if not rows:
        return None
    total = sum(row.rows for row in rows)
    agreement = 100 * sum(row.agree for row in rows) / total if total else None
    sqnr = ratio_db(math.fsum(row.signal for row in rows), math.fsum(row.noise for row in rows))
    return Fidelity(name, sqnr, math.fsum(row.cosine for row in rows) / len(rows), agreement, total, len(rows))


def _accuracy(hits: Sequence[_Hits | None]) -> Accuracy | None:
    rows = [row for row in hits if row is not None]
    items = sum(row.items for row in rows)
    if not items:
        return None
    top5 = 100 * sum(row.top5 for row in rows) / items if all(row.classes > TOP_K for row in rows) else None
    return Accuracy(100 * sum(row.top1 for row in rows) / items, top5, items)


def _latencies(
    paths: Sequence[Path], feeds: Feeds, *, provider: str, threads: int, runs: int
) -> tuple[Latency | None, ...]:
    """Both models in turn, so that noise of the machine falls on both alike; the first runs of each are not counted."""
    if not runs:
        return (None,) * len(paths)
    sessions = [open_session(path, provider=provider, threads=threads) for path in paths]
    times: list[list[float]] = [[] for _ in paths]
    for turn in range(runs + WARM_UP):
        for session, row in zip(sessions, times, strict=True):
            start = time.perf_counter()
            run(session, feeds)
            if turn >= WARM_UP:
                row.append(1e3 * (time.perf_counter() - start))
    quartiles = [tuple(map(float, np.quantile(row, (0.5, 0.25, 0.75)))) for row in times]
    return tuple(Latency(middle, low, high, runs, threads) for middle, low, high in quartiles)
