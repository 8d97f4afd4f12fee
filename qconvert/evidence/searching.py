"""The report of ``search``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qconvert.evidence import common
from qconvert.reports import (
    Cell,
    Citation,
    Column,
    Direction,
    Front,
    Gate,
    Measure,
    Point,
    Report,
    Section,
    Table,
    Value,
)
from qconvert.searching.front import undominated

if TYPE_CHECKING:
    from qconvert.searching.types import Candidate, Found, Verification
    from qconvert.sensing.types import Estimate, Scores

METHOD = Citation(
    "search",
    "H. Everett III, Generalized Lagrange multiplier method for solving problems of optimum allocation of resources, "
    "Operations Research 11 (1963); bit-operations: C. Baskin et al., UNIQ, arXiv:1804.10969.",
    "https://arxiv.org/abs/1804.10969",
)
"""How assignments are chosen, and how they are priced."""

SCORES = (Column("SQNR", "dB"), Column("top-1 drop", "points"), Column("argmax agrees", "%"))


def search_report(found: Found, model: Path, written: Path | None = None) -> Report:
    """The policy that was found, what it was chosen from, and what samples without a part in it say.

    Args:
        found: What the search found.
        model: The float model.
        written: The model of the policy, where it was written.
    """
    quantized = () if written is None else (common.model("quantized model", written),)
    return Report(
        title=f"Mixed precision for {model.name}: {found.bound}",
        command="search",
        models=(common.model("float model", model, found.float_bytes), *quantized),
        data=common.data(found.data, found.samples + found.held_back),
        measures=tuple(_measures(found)),
        sections=(_candidates(found), _verification(found), *_choices(found), _how(found)),
        gates=(_gate(found),),
        policy=found.chosen.policy,
        citations=(METHOD,),
        notes=found.notes,
        versions=common.versions(),
    )


def _measures(found: Found) -> list[Measure]:
    one, scores = found.chosen, found.confirmed.scores
    measures = [
        Measure("size_bytes", "size of the quantized model", Value(float(one.size_bytes)), "B", "down"),
        Measure("size_share", "of the float model's", Value(100 * one.size_bytes / found.float_bytes), "%", "down"),
        Measure("bit_operations", "bit-operations, times the float model's", Value(_work(one, found)), "x", "none"),
    ]
    named: tuple[tuple[str, str, Estimate | None, Direction], ...] = (
        ("top1_drop", "top-1 drop, samples held back", scores.top1_drop, "down"),
        ("sqnr_db", "SQNR, samples held back", scores.sqnr_db, "up"),
        ("agreement", "argmax agrees, samples held back", scores.agreement, "up"),
    )
    measures += [
        Measure(key, title, _value(value), value.unit, better)
        for key, title, value, better in named
        if value is not None
    ]
    return measures


def _value(estimate: Estimate) -> Value:
    return Value(estimate.value, estimate.low, estimate.high, estimate.samples)


def _work(one: Candidate, found: Found) -> float:
    return one.bit_operations / found.float_bit_operations if found.float_bit_operations else 1.0


def _gate(found: Found) -> Gate:
    """The goal: of a loss on the samples held back, of a budget on what was written."""
    goal, one = found.goal, found.chosen
    if goal.max_size is not None:
        bound, size = goal.max_size.of(found.float_bytes), float(one.size_bytes)
        return Gate("max-size", "size", "at most", bound, size, "B", found.met)
    if goal.max_latency is not None and one.times is not None:
        whole = one.times.float_model.median_ms if goal.max_latency.relative else 1.0
        unit, runs = "x" if goal.max_latency.relative else "ms", one.times.own.runs
        measured = one.times.own.median_ms / whole
        return Gate("max-latency", "latency", "at most", goal.max_latency.value, measured, unit, found.met, runs)
    judged = found.confirmed
    held = (judged.harm.value, "samples held back", found.held_back)
    overall = (judged.overall, "all samples", found.samples + found.held_back)
    harm, which, count = held if found.met else max(held, overall)
    if goal.min_sqnr is not None:
        title = f"output SQNR, {which},"
        return Gate("min-sqnr", title, "at least", goal.min_sqnr, -harm, "dB", found.met, count)
    title = f"{found.bound.split(' <= ')[0]}, {which},"
    return Gate("max-drop", title, "at most", goal.max_drop or 0.0, harm, "points", found.met, count)


def _candidates(found: Found) -> Section:
    columns = (
        Column("policy", text=True),
        Column("operators on each rung", text=True),
        Column("size", "B"),
        Column("bit-operations", "x", digits=3),
        *((Column("latency", "x"),) if found.chosen.times is not None else ()),
        *SCORES,
    )
    rows = tuple(_row(one, found) for one in found.candidates)
    caption = (
        f"smallest first, run whole on {found.samples} samples; a policy k/n is the assignment after k of n steps from "
        "the cheapest rungs towards the least harmful ones, some with later steps; 95 % intervals"
    )
    text = f"{found.bound}: {'met' if found.met else 'not met; the nearest'} by {found.chosen.name}."
    return Section("What there is to choose from", (text,), (Table(columns, rows, caption),), (_front(found),))


def _row(one: Candidate, found: Found) -> tuple[Cell, ...]:
    rungs = ", ".join(f"{count} {rung}" for rung, count in one.rungs)
    name = f"{one.name} (chosen)" if one == found.chosen else one.name
    times = () if one.times is None else (one.times.own.median_ms / one.times.float_model.median_ms,)
    return (name, rungs, one.size_bytes, _work(one, found), *times, *_cells(one.scores))


def _cells(scores: Scores) -> tuple[Cell, ...]:
    return tuple(None if one is None else _value(one) for one in (scores.sqnr_db, scores.top1_drop, scores.agreement))


def _front(found: Found) -> Front:
    """Size against loss; what is exact has no place on an axis of decibels."""
    sqnr = found.metric == "sqnr"
    shown = [one for one in found.candidates if not (sqnr and common.is_exact(-one.harm))]
    best = undominated([(one.size_bytes, one.harm) for one in shown])
    points = [
        Point(one.name, float(one.size_bytes), -one.harm if sqnr else one.harm, on_front, one == found.chosen)
        for one, on_front in zip(shown, best, strict=True)
    ]
    y = Column("SQNR", "dB") if sqnr else Column(found.bound.split(" <= ")[0], "points")
    return Front("size and loss of whole policies", Column("size", "B"), y, tuple(points))


def _verification(found: Found) -> Section:
    overall = Column("SQNR, all samples", "dB") if found.metric == "sqnr" else Column("loss, all samples", "points")
    columns = (Column("policy", text=True), Column("bound", text=True), *SCORES, overall)
    rows = tuple((*_verified(one), -one.overall if found.metric == "sqnr" else one.overall) for one in found.verified)
    caption = f"{found.held_back} samples that had no part in the search; 95 % intervals"
    return Section("Verification", tables=(Table(columns, rows, caption),))


def _verified(one: Verification) -> tuple[Cell, ...]:
    settled = ", settled" if one.settled else ""
    return (one.candidate, f"{'met' if one.met else 'not met'}{settled}", *_cells(one.scores))


def _choices(found: Found) -> list[Section]:
    if not found.choices:
        return []
    columns = (
        Column(found.by, text=True),
        Column("type", text=True),
        Column("rung", text=True),
        Column("SQNR of it alone", "dB"),
        Column("weights saved", "B"),
    )
    rows = tuple((one.subject, one.op_type, one.rung, one.sqnr_db, one.saved_bytes) for one in found.choices)
    caption = f"in the order of the graph; each alone on {found.probes} samples, the rest float"
    return [Section("The rungs", tables=(Table(columns, rows, caption),), folded=True)]


def _how(found: Found) -> Section:
    text = (
        f"{found.experiments} pairs of {found.by} and rung were run by themselves on {found.probes} samples, which "
        f"orders the assignments; {len(found.candidates)} whole policies were run on {found.samples} samples, "
        f"{len(found.verified)} on {found.held_back} others."
    )
    return Section("How it was measured", (text,), folded=True)
