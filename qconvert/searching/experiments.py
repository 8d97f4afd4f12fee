"""Every subject alone on every rung: what that harms and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qconvert.listener import Listener
from qconvert.plan import Plan
from qconvert.searching.cost import Cost, Work, cost
from qconvert.searching.front import Option
from qconvert.searching.ladder import Rung
from qconvert.sensing.engine import Lab, Tables, Variant, Watch, extend
from qconvert.sensing.journal import digest
from qconvert.sensing.measures import sqnr
from qconvert.sensing.subjects import Subject, only, subjects
from qconvert.sensing.types import Granularity

PROBES = 16
"""Samples of an experiment: it only orders what whole models then decide."""


@dataclass(frozen=True)
class Reading:
    """A subject alone on a rung.

    Attributes:
        rungs: The rung, and those that are the same to it.
        plan: Its share of that rung's plan; None in float.
        cost: What its operators cost so.
        saved_bytes: Bytes of weights that this saves.
        sqnr_db: Of the outputs; None in float, where they are exact, or where it was not run.
    """

    rungs: tuple[Rung, ...]
    plan: Plan | None
    cost: Cost
    saved_bytes: int
    sqnr_db: float | None = None

    @property
    def name(self) -> str:
        """Of the rung that it is called by."""
        return self.rungs[0].name

    @property
    def noise(self) -> float:
        """Noise over signal in the outputs: powers of independent errors add up."""
        return 0.0 if self.sqnr_db is None else float(10 ** (-self.sqnr_db / 10))

    def option(self, price: Callable[[Cost], float]) -> Option:
        """As a choice of the knapsack."""
        return Option(self.name, price(self.cost), self.noise)


Readings = dict[str, tuple[Reading, ...]]
"""By subject, in the order of the graph."""


@dataclass(frozen=True)
class Shares:
    """What has a rung of its own.

    Attributes:
        subjects: They, in the order of the graph.
        readings: What each may be put on, not run yet.
    """

    subjects: tuple[Subject, ...]
    readings: Readings


def shares(lab: Lab, plans: Mapping[Rung, Plan | None], by: Granularity, works: Mapping[str, Work]) -> Shares:
    """The subjects of the rungs' uniform plans, with what they may be put on.

    Args:
        lab: What experiments share.
        plans: By rung everything on it; None in float.
        by: What is a subject.
        works: What operators do.
    """
    members: dict[str, Subject] = {}
    readings: dict[str, dict[str, Reading]] = {}
    quantized = {rung: plan for rung, plan in plans.items() if plan is not None}
    for rung, plan in quantized.items():
        for one in subjects(lab.model, plan, by):
            alone = only(plan, one)
            members.setdefault(one.name, one)
            found = Reading((rung,), alone, cost(alone, one.operators, works), one.saved_bytes)
            _add(readings.setdefault(one.name, {}), digest(alone), found)
    for rung in plans.keys() - quantized.keys():
        for name, one in members.items():
            readings[name][""] = Reading((rung,), None, cost(None, one.operators, works), 0)
    ordered = sorted(members.values(), key=lambda one: one.order)
    return Shares(tuple(ordered), {one.name: tuple(readings[one.name].values()) for one in ordered})


def _add(known: dict[str, Reading], key: str, found: Reading) -> None:
    """One reading for rungs that are the same to a subject."""
    same = known.get(key)
    known[key] = found if same is None else replace(same, rungs=(*same.rungs, *found.rungs))


def run(
    lab: Lab,
    given: Shares,
    tables: Tables,
    *,
    deadline: float | None,
    kept: Callable[[], None],
    listener: Listener,
) -> tuple[Readings, int, int]:
    """Runs every subject alone on every rung.

    Args:
        lab: What they share.
        given: The subjects.
        tables: What was found so far; rows are added.
        deadline: On the clock of ``time.monotonic``; subjects that were not run on all their rungs by then may only
            take the one that costs most.
        kept: Told now and then that there are more rows.
        listener: Hears progress.

    Returns:
        The readings, how many pairs of subject and rung were run, and on how many samples each.
    """
    probes = min(PROBES, lab.samples)
    variants = [
        Variant(_key(name, one), one.plan)
        for name, readings in given.readings.items()
        for one in readings
        if one.plan is not None
    ]
    listener.start(f"{len(variants)} pairs of operator and rung", len(variants) * probes)
    done = sum(len(tables[one.name]) for one in variants if one.name in tables)

    def ran(count: int) -> None:
        nonlocal done
        listener.advance(done := done + count)
        kept()

    try:
        extend(lab, lab.base(None), variants, tables, probes, watch=Watch(ran, deadline))
    finally:
        listener.finish()
    found = {name: _read(name, readings, tables, probes) for name, readings in given.readings.items()}
    return found, len(variants), probes


def _key(subject: str, reading: Reading) -> str:
    return f"{reading.name}:{subject}"


def _read(name: str, readings: Sequence[Reading], tables: Tables, probes: int) -> tuple[Reading, ...]:
    found = []
    for one in readings:
        if one.plan is None:
            found.append(one)
            continue
        rows = tables[_key(name, one)]
        if len(rows) < probes:
            return (max(readings, key=lambda reading: reading.cost.moved),)
        found.append(replace(one, sqnr_db=float(sqnr(rows.sum(0)))))
    return tuple(found)
