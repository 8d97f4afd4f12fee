"""The report of ``sensitivity``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qconvert.evidence import common
from qconvert.policy import Policy, dump
from qconvert.reports import (
    Bar,
    Bars,
    Cell,
    Column,
    Gate,
    Measure,
    Report,
    Section,
    Series,
    Table,
    Trend,
    Value,
)
from qconvert.sensing.measures import CUSTOM_METRIC, METRICS

if TYPE_CHECKING:
    from qconvert.sensing.types import Effect, Estimate, Scores, Sensitivity

SHOWN = 20
"""Bars of the ranking; the table has all subjects."""

NAMED = 3
"""Subjects that stand out, and culprits that a missed gate names."""

EXPERIMENT = {
    "only": "each quantized alone, the rest float",
    "all-but": "each left float alone, the rest quantized",
    "local": "each by itself on float inputs",
}


def sensitivity_report(result: Sensitivity, model: Path, policy: Policy) -> Report:
    """What hurts, ranked, with intervals, along the network, and what to do about it.

    Args:
        result: What the analysis found.
        model: The float model.
        policy: What was asked for.
    """
    sections = [_ranking(result), _table(result), *_suggested(result), _rounds(result)]
    return Report(
        title=f"What hurts when {model.name} is quantized",
        command="sensitivity",
        models=(common.model("float model", model),),
        data=common.data(result.data, result.samples),
        measures=tuple(_measures(result.quantized)),
        sections=tuple(sections),
        policy=dump(policy),
        notes=result.notes,
        versions=common.versions(),
    )


def with_subjects(gates: Sequence[Gate], result: Sensitivity) -> tuple[Gate, ...]:
    """The gates of the fully quantized model, those that were missed with what hurts most."""
    lines = tuple(_culprit(row, result) for row in result.rows[:NAMED] if row.harmful)
    return tuple(gate if gate.passed else replace(gate, lines=lines) for gate in gates)


def _culprit(row: Effect, result: Sensitivity) -> str:
    """``Conv 'conv3' hurts most of 23: quantized alone, the rest float, SQNR 12.10 dB (48 samples)``."""
    place = result.rows.index(row)
    rank = f"most of {len(result.rows)}" if not place else f"as number {place + 1}"
    experiment = EXPERIMENT[result.mode].removeprefix("each ")
    sqnr = f"SQNR {row.scores.sqnr_db.value:.2f} dB"
    return f"{row.op_type} '{row.subject}' hurts {rank}: {experiment}, {sqnr} ({row.samples} samples)"


def _measures(scores: Scores) -> list[Measure]:
    found = []
    if scores.top1_drop is not None:
        found.append(
            Measure("top1_drop", "top-1 drop of the quantized model", _value(scores.top1_drop), "points", "down")
        )
    for one in scores.outputs:
        found.append(Measure(f"sqnr_db/{one.output}", f"SQNR of {one.output}", _value(one.sqnr_db), "dB", "up"))
        if one.agreement is not None:
            title = f"argmax of {one.output} agrees"
            found.append(Measure(f"agreement/{one.output}", title, _value(one.agreement), "%", "up"))
    return found


def _value(estimate: Estimate) -> Value:
    return Value(estimate.value, estimate.low, estimate.high, estimate.samples)


def _is_noise(result: Sensitivity) -> bool:
    """Whether harm is minus an SQNR: then it is drawn as noise over signal, which has a zero."""
    return result.metric == "sqnr" and result.mode != "all-but"


def _noise(harm: Estimate) -> Value:
    low, value, high = (100 * 10 ** (end / 10) for end in (harm.low, harm.value, harm.high))
    return Value(value, low, high, harm.samples)


def _ranking(result: Sensitivity) -> Section:
    noise = _is_noise(result)
    bars = tuple(
        Bar(
            row.subject,
            _noise(row.harm) if noise else _value(row.harm),
            row.op_type if row.distinguishable else f"{row.op_type}, not distinguishable from the next",
            marked=index < NAMED and row.harmful,
        )
        for index, row in enumerate(result.rows[:SHOWN])
    )
    unit = "noise, % of the signal's power" if noise else (result.rows[0].harm.unit if result.rows else "")
    metric = METRICS.get(result.metric, CUSTOM_METRIC)
    title = f"{result.granularity}s by {metric.title}, worst first"
    more = f" The worst {SHOWN} of {len(result.rows)}." if len(result.rows) > SHOWN else ""
    basis = f"Whiskers are 95 % intervals over up to {result.samples} samples.{more}"
    text = f"{EXPERIMENT[result.mode].capitalize()}."
    return Section("What hurts", (text, basis), figures=(Bars(title, unit, bars), _along(result)))


def _along(result: Sensitivity) -> Trend:
    rows = sorted(result.rows, key=lambda row: row.order)
    own = Series(EXPERIMENT[result.mode], tuple(_height(row.scores.sqnr_db) for row in rows))
    so_far = Series("with all errors before it", tuple(_height(row.accumulated) for row in rows))
    series = (own, so_far) if any(row.accumulated is not None for row in rows) else (own,)
    marked = tuple(rows.index(row) for row in result.rows[:NAMED] if row.harmful)
    return Trend("SQNR along the network", "dB", tuple(row.subject for row in rows), series, marked)


def _height(estimate: Estimate | None) -> float | None:
    return None if estimate is None or common.is_exact(estimate.value) else estimate.value


def _table(result: Sensitivity) -> Section:
    columns = (
        Column(result.granularity, text=True),
        Column("type", text=True),
        Column("SQNR", "dB"),
        Column("top-1 drop", "points"),
        Column("argmax agrees", "%"),
        Column("KL", "nats", digits=4),
        Column("samples", digits=0),
        Column("tells from the next", text=True),
        Column("weights saved", "B"),
    )
    rows = tuple(_row(row) for row in result.rows)
    caption = "worst first; 95 % intervals, by resampling the samples; each on as many as its rank needed"
    return Section("All of them", tables=(Table(columns, rows, caption),), folded=True)


def _row(row: Effect) -> tuple[Cell, ...]:
    scores = row.scores
    optional = (None if one is None else _value(one) for one in (scores.top1_drop, scores.agreement, scores.kl))
    known = "yes" if row.distinguishable else "no"
    return (row.subject, row.op_type, _value(scores.sqnr_db), *optional, row.samples, known, row.saved_bytes)


def _suggested(result: Sensitivity) -> list[Section]:
    found = result.suggestion
    if found is None:
        return []
    state = "met" if found.met else "not met"
    kept = "left float" if found.remedy == "float" else "kept in 16 bits"
    count = len(found.operators)
    text = f"{found.bound}: {state} with {count} operators {kept}, run on {found.verified_on} samples."
    columns = (
        Column("", text=True),
        Column("SQNR", "dB"),
        Column("top-1 drop", "points"),
        Column("argmax agrees", "%"),
    )
    pairs = (("all quantized", found.before), ("with the suggestion", found.after))
    rows: list[tuple[Cell, ...]] = []
    for name, scores in pairs:
        if scores is not None:
            ends = (scores.top1_drop, scores.agreement)
            rows.append((name, _value(scores.sqnr_db), *(None if one is None else _value(one) for one in ends)))
    names = Table((Column(kept, text=True),), tuple((name,) for name in found.operators))
    return [Section("What helps", (text,), (Table(columns, tuple(rows)), names))]


def _rounds(result: Sensitivity) -> Section:
    columns = (
        Column("round", digits=0),
        Column("subjects run", digits=0),
        Column("samples of each", digits=0),
    )
    rows = tuple((index, one.subjects, one.samples) for index, one in enumerate(result.rounds, 1))
    left = (f"Not settled when the time was up: {', '.join(result.unsettled)}.",) if result.unsettled else ()
    return Section("How it was measured", left, (Table(columns, rows),), folded=True)
