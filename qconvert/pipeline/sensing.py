"""The stages of ``sensitivity``."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qconvert import calibration
from qconvert.calibration import Calibration
from qconvert.choose import choose
from qconvert.errors import CorruptSampleError, DataError
from qconvert.graph import FLOATS, file_hash, load_model, operators, weight_bytes
from qconvert.listener import SILENT, Listener
from qconvert.memory import resident, value_bytes
from qconvert.pipeline.calibrating import calibrate
from qconvert.pipeline.data import PROOF, are_images, open_data, say_skipped
from qconvert.plan import Plan, make_plan
from qconvert.policy import Policy, dump
from qconvert.prepare import prepare, raise_opset
from qconvert.preprocess import Preprocess
from qconvert.rewrite.qdq import needed_opset
from qconvert.samples import Sample, SampleSet
from qconvert.sensing import analysis
from qconvert.sensing.cut import Origin
from qconvert.sensing.engine import Lab
from qconvert.sensing.journal import Journal, digest
from qconvert.sensing.measures import Custom
from qconvert.sensing.room import Needs, Room, plan_room
from qconvert.sensing.suggest import SIXTEEN_OPSET, Bound, suggest
from qconvert.sensing.types import Granularity, Mode, Sensitivity
from qconvert.session import check_opset
from qconvert.workers import default_workers

PART_SUFFIX = ".sensitivity.part"
"""How files of finished experiments end."""

HELD = 256 << 20
"""Bytes of samples that stay in memory; others are read again for every group of experiments."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model.

    Attributes:
        mode: The experiment.
        by: What is a subject.
        metric: What ranks: a name of ``measures.METRICS``; ``custom`` for the user's own.
        custom: The user's metric.
        exhaustive: Whether every subject is run on all samples, also where its rank is clear before.
        time_budget: Seconds after which the experiments end, finished or not; None: no limit.
        bound: What exclusions shall meet, for a suggestion; None: none is wanted.
    """

    mode: Mode = "only"
    by: Granularity = "operator"
    metric: str = "sqnr"
    custom: Custom | None = None
    exhaustive: bool = False
    time_budget: float | None = None
    bound: Bound | None = None


def sensitivity(
    model: Path,
    data: Path,
    *,
    question: Question = Question(),
    calibrated: Calibration | None = None,
    policy: Policy | None = None,
    labels: Path | None = None,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 0,
    max_memory: int | None = None,
    journal: Path | None = None,
    strict: bool = False,
    listener: Listener = SILENT,
) -> Sensitivity:
    """Finds out which parts of a model lose accuracy when they are quantized.

    Args:
        model: The float model.
        data: Samples.
        question: What is asked.
        calibrated: Its statistics; None takes them of the same samples.
        policy: What to quantize and how.
        labels: A CSV ``file,label``; None takes labels from class folders or ``y`` arrays where there are any.
        preprocess: How images become inputs; None takes the policy's or the calibration's, else infers it.
        limit: How many samples to choose; None takes all.
        seed: Which ones, in which order they are run, and the resamples of the intervals.
        threads: Runs side by side; 0 means one for each CPU.
        max_memory: Bytes that the process may take.
        journal: A file that keeps finished experiments, and from which they are taken; removed at the end.
        strict: Whether a sample that cannot be read is an error.
        listener: Hears notes and progress.

    Raises:
        QConvertError: If anything the user can mend stops the work.
    """
    policy = policy or Policy()
    began = time.monotonic()
    deadline = None if question.time_budget is None else began + question.time_budget
    graph = load_model(model)
    if preprocess is None and are_images(data):
        preprocess = policy.preprocess or _recorded(calibrated)
    samples = open_data(model, graph, data, preprocess, labels=labels, limit=limit, seed=seed, listener=listener)
    if calibrated is None:
        listener.note("ranges from the same samples: give --calibration to judge ranges found on others")
        calibrated = calibrate(
            model, data, policy=policy, preprocess=preprocess, limit=limit, seed=seed, threads=threads, strict=strict,
            max_memory=max_memory,
        )  # fmt: skip
    calibration.check_model(calibrated, model)
    for note in prepare(graph, calibrated.probes[:PROOF], original=model).notes:
        listener.note(note)
    plan = _make_plan(graph, policy, calibrated, listener)
    _raise_opset(graph, plan, question.bound)
    store = _Store(samples, seed, strict=strict, listener=listener)
    room = _room(graph, store, threads=threads, limit=max_memory)
    listener.note(str(room))
    lab = Lab(
        graph,
        Origin.of(graph),
        tuple(value.name or "" for value in graph.graph.outputs),
        store.load,
        len(store.order),
        samples.source.batch,
        room.workers,
        room.values,
        question.custom,
    )
    asked = analysis.Question(question.mode, question.by, question.metric, question.exhaustive, deadline, seed)
    kept = _journal(
        journal, model, plan, dump(policy), samples.description, samples.labelled, question.mode, question.by, seed
    )
    found = analysis.analyse(lab, plan, asked, journal=kept, listener=listener)
    if question.bound is not None:
        statistics = calibrated
        suggestion = suggest(
            lab, lambda wanted: _make_plan(graph, wanted, statistics), policy, found, question.bound, listener=listener
        )
        found = replace(found, suggestion=suggestion)
    if kept is not None and not found.unsettled:
        kept.drop()
    return replace(
        found, model=model.name, data=samples.description, peak_bytes=room.peak, seconds=time.monotonic() - began
    )


def _recorded(calibrated: Calibration | None) -> Preprocess | None:
    recorded = calibrated.data.get("preprocess") if calibrated is not None else None
    return Preprocess.model_validate(recorded) if isinstance(recorded, dict) else None


def _make_plan(graph: ir.Model, policy: Policy, calibrated: Calibration, listener: Listener = SILENT) -> Plan:
    chosen = choose(graph, policy, calibrated.stats, calibrated.probes, listener=listener)
    return make_plan(graph, policy, calibrated.stats, given=chosen.ranges, weights=chosen.weights)


def _raise_opset(graph: ir.Model, plan: Plan, bound: Bound | None) -> None:
    """To what all plans need that will be made, so that their models share what they can."""
    needed = needed_opset(plan)
    if bound is not None and bound.remedy == "16-bit":
        needed = max(needed, SIXTEEN_OPSET)
    check_opset(needed)
    raise_opset(graph, needed)


class _Store:
    """The samples that can be read, in the order of a seed; as many as there is room for stay in memory.

    Attributes:
        order: Their numbers in the set.
        bytes: What stays.
    """

    def __init__(self, samples: SampleSet, seed: int, *, strict: bool, listener: Listener) -> None:
        self.samples = samples
        self.order: list[int] = []
        self.bytes = 0
        self.held: dict[int, Sample] = {}
        shuffled = list(range(len(samples)))
        random.Random(seed).shuffle(shuffled)  # noqa: S311 - an order, no secret
        skipped = [broken for index in shuffled if (broken := self._read(index, strict=strict))]
        say_skipped(skipped, listener)
        if not self.order:
            raise DataError(
                f"none of the {len(samples)} samples can be read; the first: {skipped[0][1]}",
                hint="mend them, or give others with --data",
            )

    def _read(self, index: int, *, strict: bool) -> tuple[str, str] | None:
        """Adds a sample; its name and what is wrong with it where it cannot be read."""
        try:
            self._add(index, self.samples.load(index))
        except CorruptSampleError as error:
            if strict:
                raise
            return error.sample, str(error)
        return None

    def _add(self, index: int, sample: Sample) -> None:
        size = sum(array.nbytes for array in sample.feeds.values())
        if self.bytes + size <= HELD or not self.held:
            self.held[len(self.order)] = sample
            self.bytes += size
        self.order.append(index)

    def load(self, position: int) -> Sample:
        """The sample at a position of the order."""
        return self.held.get(position) or self.samples.load(self.order[position])


def _room(graph: ir.Model, store: _Store, *, threads: int, limit: int | None) -> Room:
    feeds, count = store.load(0).feeds, len(store.order)
    outputs = [value.name or "" for value in graph.graph.outputs]
    made = (value for op in operators(graph) if not op.subgraph for value in op.node.outputs)
    names = [value.name or "" for value in made if value.dtype in FLOATS]
    sizes = value_bytes(graph, tuple(dict.fromkeys((*names, *outputs))), feeds)
    needs = Needs(
        weights=weight_bytes(graph),
        largest=max(sizes.values()),
        values=sum(sizes.values()),
        kept=count * sum(sizes[name] for name in outputs),
        samples=count,
    )
    return plan_room(needs, base=resident(), workers=threads or default_workers(), limit=limit)


def _journal(path: Path | None, model: Path, plan: Plan, *facts: object) -> Journal | None:
    return None if path is None else Journal(path, digest(plan, file_hash(model), *facts))
