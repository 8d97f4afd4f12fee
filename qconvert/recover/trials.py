"""Which methods a model gets: all that were asked for, or those that proved themselves on samples kept back.

Methods have one order, whatever the order in which they are asked for: rewrites of the float model, then the plan, then
steps on it. What a set of methods shares with one that was tried before is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from qconvert.errors import QConvertError
from qconvert.histogram import TensorStats
from qconvert.plan import Plan
from qconvert.recover.judge import Judge
from qconvert.recover.restate import restate
from qconvert.recover.types import Context, Method, Rewrite, Step, Work

GAIN_DB = 0.05
"""What a method must gain to be kept."""

CHANCE_DB = 1.0
"""By how much the result with all samples may come out below the one with fewer: so little tells nothing, more does."""

KEPT_BACK = 4
"""One of so many samples is kept back to judge by."""

SEEN = 96
"""Samples that methods see, at most: more cost time and tell little more, but judge better. Measured on MobileNetV2,
8 bits per tensor, ``equalize`` and ``gptq``: 21.5 dB with 31, 22.3 with 64, 22.5 with 91, 22.4 with 122; 4-bit weights,
``brecq``: 11.8 dB with 92, 11.9 with 122."""

ENOUGH = 0.9
"""The share of these that methods have seen where applying them once more with the others is not worth its time."""

PlanOf = Callable[[ir.Model, Mapping[str, TensorStats]], Plan]
"""Plans a float model with these statistics."""


@dataclass(frozen=True)
class Tried:
    """What a method gave and cost.

    Attributes:
        method: Its name.
        before_db: Output SQNR without it, dB; None where that was not measured.
        after_db: With it; None where that was not measured.
        seconds: How long it took, planning and measuring included.
        kept: Whether the model has it.
        why: What ended it, or "".
    """

    method: str
    before_db: float | None
    after_db: float | None
    seconds: float
    kept: bool
    why: str = ""

    def __str__(self) -> str:
        end = "kept" if self.kept else "not kept"
        cost = f"in {self.seconds:.0f} s, {end}" if self.seconds else end
        if self.before_db is None or self.after_db is None:
            return f"{self.method}: {f'{self.why}, ' if self.why else ''}{cost}"
        change = f"{self.after_db - self.before_db:+.2f} dB ({self.before_db:.2f} -> {self.after_db:.2f})"
        return f"{self.method}: {change} {cost}"


@dataclass(frozen=True)
class Recovered:
    """A model and its plan with what methods made of them.

    Attributes:
        work: They.
        stats: Statistics of the values of ``work.reference``.
        tried: What was tried, in this order.
        samples: On how many samples the SQNRs were measured.
        kept_back: Whether no method saw these.
    """

    work: Work
    stats: Mapping[str, TensorStats]
    tried: tuple[Tried, ...]
    samples: int
    kept_back: bool


def win_back(
    model: ir.Model,
    methods: Sequence[Method],
    plan_of: PlanOf,
    context: Context,
    *,
    proved: bool,
    kind: str = "samples",
) -> Recovered:
    """``recover_best`` where methods must prove themselves, else ``recover_all``; says what SQNRs were measured on.

    What the context's journal has of an earlier run is said, too.
    """
    there = context.journal.count() if context.journal is not None else 0
    found = (recover_best if proved else recover_all)(model, methods, plan_of, context)
    judged = "that no method saw" if found.kept_back else "that the methods saw, too"
    context.listener.note(f"recover: dB of the output on {found.samples} {kind} {judged}")
    if context.journal is not None and there:
        folder, used = context.journal.folder.name, context.journal.used
        why = "" if used else ": the others are of another model, other samples or other settings"
        context.listener.note(f"resumed: {used} of {there} layers in {folder} were used again{why}")
    return found


def recover_all(model: ir.Model, methods: Sequence[Method], plan_of: PlanOf, context: Context) -> Recovered:
    """Applies methods, whatever they give.

    Args:
        model: A prepared float graph; left as it is.
        methods: They; their order does not count.
        plan_of: Plans a float model.
        context: Samples, statistics of ``model``, limits.

    Raises:
        QConvertError: If one cannot be carried out.
    """
    seen, unseen = context.probes[:SEEN], context.probes[SEEN:]
    runs, judge = _Runs(model, plan_of, replace(context, probes=seen)), Judge(model, unseen or seen)
    chosen = _ordered(methods)
    tried: list[Tried] = []
    known: float | None = None
    for count in range(1, len(chosen) + 1):
        part, before, start = chosen[:count], known, time.monotonic()
        if isinstance(part[-1], Rewrite):
            runs.floats(part)
        else:
            before = judge.sqnr_db(*runs.result(part[:-1])) if before is None else before
            start = time.monotonic()
            known = judge.sqnr_db(*runs.result(part))
        tried.append(Tried(part[-1].name, before, known, time.monotonic() - start, kept=True))
        context.listener.note(f"recover: {tried[-1]}")
    stats = runs.floats(chosen).stats
    return Recovered(runs.work(chosen), stats, tuple(tried), len(judge.probes), kept_back=bool(unseen))


def recover_best(model: ir.Model, methods: Sequence[Method], plan_of: PlanOf, context: Context) -> Recovered:
    """Tries methods one after another and keeps those that raise the SQNR of outputs on samples that none of them saw.

    Cheap ones come first, so that others are judged with what they leave to be gained. Where the deadline has passed,
    no other is begun. What was kept is applied once more with all samples in the end.

    Args:
        model: A prepared float graph; left as it is.
        methods: They; their order does not count.
        plan_of: Plans a float model.
        context: Samples, statistics of ``model``, limits.

    Raises:
        QConvertError: If the model cannot be quantized even without methods.
    """
    seen, kept_back = split(len(context.probes))
    runs = _Runs(model, plan_of, replace(context, probes=[context.probes[index] for index in seen]))
    judge = Judge(model, [context.probes[index] for index in kept_back])
    chosen: tuple[Method, ...] = ()
    best = judge.sqnr_db(*runs.result(chosen))
    tried: list[Tried] = []
    for method in sorted(methods, key=_cost):
        start, score, why = time.monotonic(), None, ""
        rivals = [one for one in chosen if one.decides & method.decides]
        trial = _ordered((*(one for one in chosen if one not in rivals), method))
        try:
            if context.seconds_left <= 0:
                why = "no time left"
            elif isinstance(method, Rewrite) and runs.floats(trial).model is runs.floats(chosen).model:
                why = "nothing to change"
            else:
                score = judge.sqnr_db(*runs.result(trial))
        except QConvertError as error:
            why = str(error)
        better = score is not None and score > best + GAIN_DB
        tried.append(Tried(method.name, best, score, 0.0 if why else time.monotonic() - start, better, why))
        context.listener.note(f"recover: {tried[-1]}")
        if score is not None and better:
            chosen, best = trial, score
            replaced = {rival.name for rival in rivals}
            tried = [_given_way(one, method) if one.method in replaced else one for one in tried]
    again = _Runs(model, plan_of, replace(context, probes=context.probes[:SEEN]))
    if chosen and len(seen) < ENOUGH * min(len(context.probes), SEEN) and context.seconds_left > 0:
        tried.append(_with_all(chosen, again, judge, best))
        context.listener.note(f"recover: {tried[-1]}")
        runs = again if tried[-1].kept else runs
    return Recovered(runs.work(chosen), runs.floats(chosen).stats, tuple(tried), len(kept_back), kept_back=True)


def _with_all(chosen: tuple[Method, ...], again: _Runs, judge: Judge, best: float) -> Tried:
    """What was chosen, with the samples to judge by as well: more tell more, if only what they make is not worse."""
    start = time.monotonic()
    why = ""
    try:
        kept = judge.sqnr_db(*again.result(chosen)) > best - CHANCE_DB
    except QConvertError as error:
        kept, why = False, str(error)
    return Tried("once more with all samples", None, None, time.monotonic() - start, kept, why)


def _given_way(one: Tried, method: Method) -> Tried:
    return replace(one, kept=False, why=f"gave way to {method.name}")


def split(count: int) -> tuple[list[int], list[int]]:
    """The numbers of samples that methods see, and of those kept back; one sample alone is both."""
    seen = [index for index in range(count) if index % KEPT_BACK != KEPT_BACK - 1][:SEEN]
    kept_back = [index for index in range(count) if index not in seen] or [count - 1]
    return [index for index in seen if index not in kept_back] or [0], kept_back


def _cost(method: Method) -> int:
    """Quick steps, then rewrites, which want another plan, then steps that take long."""
    return 1 if isinstance(method, Rewrite) else 2 if method.slow else 0


def _ordered(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Rewrites first."""
    return tuple(sorted(methods, key=lambda method: (isinstance(method, Step), method.place, method.name)))


@dataclass(frozen=True)
class _Floats:
    """A float model that rewrites have changed."""

    model: ir.Model
    stats: Mapping[str, TensorStats]
    notes: tuple[str, ...]


class _Runs:
    """What sets of methods make of a model, each once."""

    def __init__(self, model: ir.Model, plan_of: PlanOf, context: Context) -> None:
        self._plan_of, self._context = plan_of, context
        self._floats: dict[tuple[Method, ...], _Floats] = {(): _Floats(model, context.stats, ())}
        self._works: dict[tuple[Method, ...], Work] = {}

    def result(self, methods: tuple[Method, ...]) -> tuple[ir.Model, Plan]:
        """What is to be written."""
        work = self.work(methods)
        return work.graph, work.plan

    def floats(self, methods: tuple[Method, ...]) -> _Floats:
        """The float model after the rewrites among them."""
        rewrites = tuple(method for method in methods if isinstance(method, Rewrite))
        if rewrites not in self._floats:
            before = self.floats(rewrites[:-1])
            found = rewrites[-1].rewrite(before.model, replace(self._context, stats=before.stats))
            stats = restate(found.model, before.stats, found.changed, self._context.probes)
            self._floats[rewrites] = _Floats(found.model, stats, (*before.notes, *found.notes))
        return self._floats[rewrites]

    def work(self, methods: tuple[Method, ...]) -> Work:
        """The model and its plan after all of them."""
        if methods not in self._works:
            last = methods[-1] if methods else None
            if isinstance(last, Step):
                stats = self.floats(methods).stats
                self._works[methods] = last.apply(self.work(methods[:-1]), replace(self._context, stats=stats))
            else:
                found = self.floats(methods)
                self._works[methods] = Work(
                    found.model, found.model, self._plan_of(found.model, found.stats), found.notes
                )
        return self._works[methods]
