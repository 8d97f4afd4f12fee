"""Compares a model with its original on real samples: accuracy, fidelity, size, latency and kernels that really run.

Fidelity is pooled over all samples and elements. Per-sample sums are added in the order of the samples, so reports do
not depend on threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from qconvert.errors import ModelError
from qconvert.graph import external_tensors, load_model
from qconvert.kernel_census import Kernel, census
from qconvert.provenance import recorded_interface
from qconvert.rewrite.interface import Interface
from qconvert.samples import Sample, SampleSet
from qconvert.samples.types import Json
from qconvert.scores import (
    Accuracy,
    Fidelity,
    Hits,
    Sums,
    drop_interval,
    pool_accuracy,
    pool_fidelity,
    sample_hits,
    sample_sums,
    without_padding,
)
from qconvert.session import Feeds, open_session, run
from qconvert.visit import Progress, Visit, readable
from qconvert.workers import default_workers

WARM_UP = 3
"""Runs of each model before its runs are timed."""


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
        data: Which samples, as JSON values.
        top1_drop_interval: 95 % interval of the top-1 accuracy that is lost, points; None without labels.
        top5_drop_interval: The same of top-5.
    """

    reference: Side
    candidate: Side
    fidelity: tuple[Fidelity, ...]
    samples: int
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    data: Mapping[str, Json] = field(default_factory=dict)
    top1_drop_interval: tuple[float, float] | None = None
    top5_drop_interval: tuple[float, float] | None = None


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
    before, after = (open_session(path, provider=provider, threads=1) for path in (reference, candidate))
    pair, visit = _pair(before, after, candidate), Visit(samples, strict, progress)
    rows = _rows(pair, visit, threads)
    _, first = next(readable(samples))
    models = ((reference, first.feeds), (candidate, pair.fed(first.feeds)))
    workers = threads or default_workers()
    times = latencies(models, provider=provider, threads=workers, runs=latency_runs) if latency_runs else (None, None)
    fidelity = tuple(pool_fidelity(name, [row.outputs[index] for row in rows]) for index, name in enumerate(pair.names))
    accuracy = [pool_accuracy([row.hits[side] for row in rows]) for side in (0, 1)]
    sides = [
        Side(path, file_size(path), accuracy[side], times[side], census(path, provider=provider))
        for side, path in enumerate((reference, candidate))
    ]
    hits = [row.hits[0] for row in rows], [row.hits[1] for row in rows]
    return Evaluation(
        sides[0],
        sides[1],
        tuple(f for f in fidelity if f is not None),
        len(rows),
        visit.skipped,
        data=samples.description,
        top1_drop_interval=drop_interval(*hits, "top1"),
        top5_drop_interval=drop_interval(*hits, "top5"),
    )


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
    rows = [[sample_sums(a, b) for a, b in pair.run(feeds)] for feeds in probes]
    found = [pool_fidelity(name, [row[index] for row in rows]) for index, name in enumerate(pair.names)]
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
    interface: Interface | None

    def run(self, feeds: Feeds) -> list[tuple[Any, Any]]:
        given = run(self.after, self.fed(feeds), self.after_names)
        if self.interface is not None:
            meaning = {port.name: port for port in self.interface.outputs}
            given = [meaning[name].reals(output) for name, output in zip(self.after_names, given, strict=True)]
        return list(zip(run(self.before, feeds, self.names), given, strict=True))

    def fed(self, feeds: Feeds) -> Feeds:
        """What the second model is fed in place of this."""
        return feeds if self.interface is None else self.interface.to_levels(feeds)


def _pair(before: ort.InferenceSession, after: ort.InferenceSession, candidate: Path) -> _Pair:
    names, after_names = (tuple(value.name for value in session.get_outputs()) for session in (before, after))
    if len(names) != len(after_names):
        raise ModelError(
            f"{candidate}: has {len(after_names)} outputs, the reference has {len(names)}",
            hint="compare a model with what was made of it",
        )
    in_order = names if set(names) == set(after_names) else after_names
    return _Pair(before, after, names, in_order, recorded_interface(after.get_modelmeta().custom_metadata_map))


@dataclass(frozen=True)
class _Row:
    """What one sample adds to everything."""

    outputs: tuple[Sums | None, ...]
    hits: tuple[Hits | None, Hits | None]


def _rows(pair: _Pair, visit: Visit, threads: int) -> list[_Row]:
    found: dict[int, _Row] = {}
    batch = visit.samples.source.batch

    def work() -> None:
        for index, sample in visit:
            outputs = [
                (without_padding(a, sample.count, batch), without_padding(b, sample.count, batch))
                for a, b in pair.run(sample.feeds)
            ]
            found[index] = _compare(sample, outputs)

    visit.run(work, threads)
    return [found[index] for index in sorted(found)]


def _compare(sample: Sample, outputs: Sequence[tuple[Any, Any]]) -> _Row:
    labels = None if sample.label is None else np.asarray(sample.label).reshape(-1)
    before, after = outputs[0]
    return _Row(tuple(sample_sums(a, b) for a, b in outputs), (sample_hits(before, labels), sample_hits(after, labels)))


def latencies(models: Sequence[tuple[Path, Feeds]], *, provider: str, threads: int, runs: int) -> tuple[Latency, ...]:
    """Models in turn, so that noise of the machine falls on all alike; the first runs of each are not counted.

    Args:
        models: Their files, and what each is run on.
        provider: Where.
        threads: Of a run.
        runs: How many are timed.

    Raises:
        ModelError: If onnxruntime refuses a model.
    """
    sessions = [(open_session(path, provider=provider, threads=threads), feeds) for path, feeds in models]
    times: list[list[float]] = [[] for _ in models]
    for turn in range(runs + WARM_UP):
        for (session, feeds), row in zip(sessions, times, strict=True):
            start = time.perf_counter()
            run(session, feeds)
            if turn >= WARM_UP:
                row.append(1e3 * (time.perf_counter() - start))
    quartiles = [tuple(map(float, np.quantile(row, (0.5, 0.25, 0.75)))) for row in times]
    return tuple(Latency(middle, low, high, runs, threads) for middle, low, high in quartiles)
