"""The experiments of a question, in rounds, and what they say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from qconvert.errors import DataError, PlanError
from qconvert.graph import operators
from qconvert.listener import Listener
from qconvert.plan import Plan
from qconvert.sensing import local
from qconvert.sensing.cut import Base
from qconvert.sensing.engine import Lab, Variant, Watch, extend, whole
from qconvert.sensing.journal import Checkpoints, Journal
from qconvert.sensing.measures import CUSTOM_METRIC, ITEMS, ITEMS5, METRICS, ROWS, Floats, Metric
from qconvert.sensing.ranking import Order, harms_of, rank
from qconvert.sensing.scoring import accuracy, effects, scores, sqnr_of
from qconvert.sensing.subjects import Subject, all_but, only, subjects
from qconvert.sensing.types import Estimate, Granularity, Mode, Sensitivity

CHEAP = 0.6
"""Behind this share of a model's operators, what is left to run costs little: such subjects see all samples at once."""


@dataclass(frozen=True)
class Question:
    """What is asked of a plan.

    Attributes:
        mode: The experiment.
        by: What is a subject.
        metric: What ranks: a name of ``METRICS``, or ``custom``.
        exhaustive: Whether every subject is run on all samples.
        deadline: When the experiments end, on the clock of ``time.monotonic``; None: when they are done.
        seed: Of the resamples.
    """

    mode: Mode = "only"
    by: Granularity = "operator"
    metric: str = "sqnr"
    exhaustive: bool = False
    deadline: float | None = None
    seed: int = 0


def analyse(lab: Lab, plan: Plan, asked: Question, *, journal: Journal | None, listener: Listener) -> Sensitivity:
    """Runs the experiments of a question.

    Args:
        lab: What they share.
        plan: Everything quantized.
        asked: The question.
        journal: What keeps finished experiments, or None.
        listener: Hears notes and progress.

    Raises:
        DataError: If the metric needs labels or classes that there are not.
        ModelError: If onnxruntime refuses a variant or a sample.
        PlanError: If mode and granularity do not go together.
    """
    began = time.monotonic()
    _check(asked)
    found = subjects(lab.model, plan, asked.by)
    tables = dict(journal.read()) if journal is not None else {}
    checkpoints = Checkpoints(journal if asked.mode != "local" else None, tables)
    run = _Run(lab, plan, asked, found, tables, checkpoints, listener)
    if run.tables:
        listener.note(f"resuming: {sum(map(len, run.tables.values()))} runs are done")
    listener.start(f"sensitivity ({asked.mode}, {len(found)} {asked.by}s)", len(found) * lab.samples)
    try:
        quantized = run.whole()
        metric = metric_of(asked.metric, quantized, lab)
        order = run.local() if asked.mode == "local" else run.ranked(metric, quantized)
    finally:
        listener.finish()
        checkpoints.keep()
    return _result(run, order, metric, quantized, time.monotonic() - began)


def _check(asked: Question) -> None:
    if asked.mode != "local":
        return
    if asked.by not in {"operator", "block"}:
        raise PlanError(
            f"mode local compares the outputs of operators or blocks, not of one {asked.by}",
            hint="use --by operator or --by block, or --mode only",
        )
    if asked.metric not in {"sqnr", "cosine"}:
        raise PlanError(
            f"mode local compares inner values: metric {asked.metric} is of a model's outputs",
            hint="use --metric sqnr or cosine, or --mode only",
        )


def metric_of(name: str, quantized: Floats, lab: Lab) -> Metric:
    """The metric of a name.

    Raises:
        DataError: If it needs labels or classes that rows of a model over the samples show none of.
    """
    if name == CUSTOM_METRIC.name:
        return CUSTOM_METRIC
    metric, total = METRICS[name], quantized.sum(0)
    if metric.needs == "labels" and not total[-1, ITEMS5 if name == "top5" else ITEMS]:
        few = name == "top5" and total[-1, ITEMS]
        raise DataError(
            f"metric {name}: " + ("the model has no more than five classes" if few else "the samples have no labels"),
            hint="use --metric top1" if few else "give --labels FILE or folders named by class, or another --metric",
        )
    if metric.needs == "classes" and not total[:-1, ROWS].any():
        raise DataError(
            f"metric {name}: no output of {len(lab.outputs)} has classes", hint="use --metric sqnr or cosine"
        )
    return metric


@dataclass
class _Run:
    """The state of one analysis."""

    lab: Lab
    plan: Plan
    asked: Question
    subjects: tuple[Subject, ...]
    tables: dict[str, Floats]
    checkpoints: Checkpoints
    listener: Listener
    settled: int = 0
    accumulated: dict[str, Estimate] = field(default_factory=dict)

    def whole(self) -> Floats:
        """Rows of the fully quantized model over all samples; the time budget is not asked, for all else needs them."""
        extend(self.lab, self.lab.base(None), [whole(self.plan)], self.tables, self.lab.samples)
        return self.tables[whole(self.plan).name]

    def ranked(self, metric: Metric, quantized: Floats) -> Order:
        """The subjects in order, in rounds."""
        asked, change = self.asked, self.asked.mode == "all-but"
        base = self.lab.base(self.plan if change else None)
        variant = all_but if change else only
        variants = {one.name: Variant(one.name, variant(self.plan, one)) for one in self.subjects}

        def run(names: Sequence[str], upto: int) -> bool:
            self.settled = (len(self.subjects) - len(names)) * self.lab.samples
            wanted = set(names)
            return self._extend(base, [variants[one.name] for one in self.subjects if one.name in wanted], upto)

        harms = harms_of(metric, asked.seed, quantized if change else None)
        for one in self.subjects:
            self.tables.setdefault(one.name, quantized[:0])
        behind = CHEAP * sum(1 for _ in operators(self.lab.model))
        cheap = {one.name for one in self.subjects if one.order >= behind and asked.deadline is None}
        return rank(
            list(variants),
            self.tables,
            run,
            harms,
            samples=self.lab.samples,
            cheap=cheap if not asked.exhaustive else (),
            exhaustive=asked.exhaustive,
        )

    def _extend(self, base: Base, variants: Sequence[Variant], upto: int) -> bool:
        names = [one.name for one in variants]
        done = self.settled + sum(len(self.tables[name]) for name in names)

        def ran(count: int) -> None:
            nonlocal done
            done += count
            self.listener.advance(done)
            self.checkpoints()

        return extend(self.lab, base, variants, self.tables, upto, watch=Watch(ran, self.asked.deadline))

    def local(self) -> Order:
        """The subjects by the error of their own outputs."""
        metric = METRICS[self.asked.metric]
        watch = Watch(self.listener.advance, self.asked.deadline)
        found = local.measure_all(self.lab, self.plan, self.subjects, watch)
        self.tables.update(found.own)
        self.accumulated = {name: sqnr_of(rows, self.asked.seed) for name, rows in found.accumulated.items()}
        complete = all(len(self.tables[one.name]) == self.lab.samples for one in self.subjects)
        harms = harms_of(metric, self.asked.seed, None)
        names = [one.name for one in self.subjects]
        return rank(names, self.tables, lambda *_: complete, harms, samples=self.lab.samples, exhaustive=True)


def _result(run: _Run, order: Order, metric: Metric, quantized: Floats, seconds: float) -> Sensitivity:
    lab, asked = run.lab, run.asked
    by_name = {one.name: one for one in run.subjects}
    ranked = [by_name[name] for name in order.names]
    local_mode, change = asked.mode == "local", asked.mode == "all-but"
    rows = effects(
        ranked,
        run.tables,
        lab.outputs,
        metric=metric,
        harms=harms_of(metric, asked.seed, quantized if change else None),
        seed=asked.seed,
        change=change,
        custom=lab.custom is not None and not local_mode,
        ends={one.name: one.ends for one in run.subjects} if local_mode else None,
        accumulated=run.accumulated if local_mode else None,
    )
    top1, top5 = accuracy(quantized)
    return Sensitivity(
        model="",
        mode=asked.mode,
        granularity=asked.by,
        metric=asked.metric,
        rows=rows,
        quantized=scores(quantized, lab.outputs, seed=asked.seed, custom=lab.custom is not None),
        float_top1=top1,
        float_top5=top5,
        samples=lab.samples,
        labelled=top1 is not None,
        seed=asked.seed,
        rounds=order.rounds,
        seconds=seconds,
        peak_bytes=0,
        notes=tuple(_notes(run, order)),
        unsettled=order.open,
    )


def _notes(run: _Run, order: Order) -> list[str]:
    samples, total = run.lab.samples, len(run.subjects)
    notes = []
    if order.open:
        left = total - len(order.names)
        missing = f", {left} were not run at all" if left else ""
        notes.append(f"the time budget ended: the rank of {len(order.open)} of {total} subjects is open{missing}")
    elif any(one.samples < samples for one in order.rounds):
        steps = ", ".join(f"{one.subjects} on {one.samples}" for one in order.rounds)
        notes.append(f"run on more samples where that is cheap or ranks were open: {steps} samples (--exhaustive: all)")
    if run.lab.batch > 1:
        notes.append(f"a sample is a batch of {run.lab.batch} items: intervals are over batches")
    return notes
