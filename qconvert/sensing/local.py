"""The error of every subject's own output given float inputs, and the error accumulated there, from a single pass.

For each sample the float model and the quantized one hand out their inner values, every subject is run by itself on
float ones, and only sums are kept. All channels of a value count alike: pooled, one large channel would hide that the
others are lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import onnx_ir as ir

from qconvert.graph import operators
from qconvert.plan import Plan
from qconvert.sensing.cut import Base, Tail, base_of, tail_of
from qconvert.sensing.engine import Lab, Values, Watch, each, opened, run_tail, value_sizes
from qconvert.sensing.measures import Floats, measure_channels
from qconvert.sensing.subjects import Subject, only
from qconvert.session import open_session, run
from qconvert.workers import release_memory

COPIES = 3
"""Of what a subject reads and writes: in float, in the quantized model, and in the memory of its own session."""


@dataclass(frozen=True)
class Found:
    """Rows ``[samples, ends + 1, columns]`` of each subject: alone, and in the quantized model."""

    own: dict[str, Floats]
    accumulated: dict[str, Floats]


def measure_all(lab: Lab, plan: Plan, subjects: Sequence[Subject], watch: Watch) -> Found:
    """Runs every sample once.

    Args:
        lab: What experiments share.
        plan: Everything quantized.
        subjects: What to measure.
        watch: Told of progress; where its time is over, the samples that are left are not run.

    Raises:
        ModelError: If onnxruntime refuses a part of the model or a sample.
    """
    base = base_of(lab.written(None), lab.origin)
    tails = [_tail(lab, base, plan, subject) for subject in subjects]
    found = Found({}, {})
    for group in _groups(lab, base, subjects, tails):
        rows = _pass(lab, _Bench(lab, plan, base, group), watch, len(found.own) * lab.samples)
        for index, (subject, _) in enumerate(group):
            both = np.stack([row[index] for row in rows])
            found.own[subject.name], found.accumulated[subject.name] = both[:, 0], both[:, 1]
        release_memory()
    return found


def _pass(lab: Lab, bench: _Bench, watch: Watch, before: int) -> list[list[Floats]]:
    """What the bench says of each sample that the time sufficed for, at least one."""
    rows: dict[int, list[Floats]] = {}
    lock = Lock()

    def one(position: int) -> None:
        if watch.over and rows:
            return
        measured = bench(position)
        with lock:
            rows[position] = measured
            watch.ran(before + len(rows) * len(measured))

    each(range(lab.samples), one, lab.workers)
    return [rows[position] for position in sorted(rows)]


def _tail(lab: Lab, base: Base, plan: Plan, subject: Subject) -> Tail:
    """The subject by itself."""
    written = lab.written(only(plan, subject))
    return tail_of(base, written, [dequantized(written, end) for end in subject.ends])


Parts = Sequence[tuple[Subject, Tail]]


def _groups(lab: Lab, base: Base, subjects: Sequence[Subject], tails: Sequence[Tail]) -> Iterator[Parts]:
    """All subjects at once where there is room for what they read and write, else as many as there is."""
    sizes = value_sizes(base, lab.load(0).feeds)
    group: list[tuple[Subject, Tail]] = []
    taken = 0
    for subject, tail in zip(subjects, tails, strict=True):
        values = sum(sizes.get(name, 0) for name in {*tail.wanted, *subject.ends})
        needed = COPIES * lab.workers * values
        if group and taken + needed > lab.room:
            yield group
            group, taken = [], 0
        group.append((subject, tail))
        taken += needed
    yield group


class _Bench:
    """Opened models: the float one, the quantized one, and every subject's own."""

    def __init__(self, lab: Lab, plan: Plan, base: Base, parts: Parts) -> None:
        self.lab = lab
        self.parts = [
            (subject, tail, open_session(tail.model, threads=1) if tail.model is not None else None)
            for subject, tail in parts
        ]
        ends = [end for subject, _ in parts for end in subject.ends]
        wanted = dict.fromkeys((*ends, *(name for _, tail in parts for name in tail.wanted)))
        self.floats, self.float_names = opened(base.model, tuple(wanted))
        quantized = lab.written(plan)
        self.names = {end: dequantized(quantized, end) for end in ends}
        self.quantized, self.quantized_names = opened(quantized, tuple(dict.fromkeys(self.names.values())))

    def __call__(self, position: int) -> list[Floats]:
        """Rows ``[2, ends + 1, columns]`` of a sample, for each subject: alone, and in the quantized model."""
        feeds = self.lab.load(position).feeds
        floats = {**feeds, **_named(self.float_names, run(self.floats, feeds, self.float_names))}
        others = _named(self.quantized_names, run(self.quantized, feeds, self.quantized_names))
        found = []
        for subject, tail, session in self.parts:
            before = [floats[end] for end in subject.ends]
            alone = run_tail(session, tail, floats)
            within = [others[self.names[end]] for end in subject.ends]
            found.append(np.stack([measure_channels(before, alone), measure_channels(before, within)]))
        return found


def _named(names: Sequence[str], arrays: Sequence[Any]) -> Values:
    return dict(zip(names, arrays, strict=True))


def dequantized(model: ir.Model, name: str) -> str:
    """What a value of the float model is called in a written one, behind its grid where it has one."""
    behind = f"{name}_dequantized"
    return behind if any(value.name == behind for op in operators(model) for value in op.node.outputs) else name
