"""The report of ``compare``, and where the error of a missed gate enters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qconvert.evidence import common
from qconvert.layers import Layer, Layers
from qconvert.reports import Bar, Bars, Column, Gate, Measure, Report, Section, Series, Table, Trend, Value

SHOWN = 15
"""Bars of a ranking."""

NAMED = 3
"""Values that stand out along the network, and culprits that a missed gate names."""

COLUMNS = (
    Column("value", text=True),
    Column("operators", text=True),
    Column("SQNR", "dB"),
    Column("before it", "dB"),
    Column("noise added", "%", digits=3),
    Column("cosine", digits=6),
    Column("samples", digits=0),
)


def layers_report(result: Layers) -> Report:
    """Every matched value of two models, and where the error enters."""
    return Report(
        title=f"{result.candidate.name} beside {result.reference.name}, value by value",
        command="compare",
        models=(common.model("reference", result.reference), common.model("candidate", result.candidate)),
        data=common.data(result.data, result.samples),
        measures=tuple(_measures(result)),
        sections=(*layers_section(result), *common.skipped(result.skipped)),
        notes=result.notes,
        versions=common.versions(),
    )


def layers_section(result: Layers) -> tuple[Section, Section]:
    """Where the error enters, and the table of all values."""
    ranked = [row for row in result.ranked if row.added > 0]
    worst = {row.value for row in ranked[:NAMED]}
    bars = Bars(
        "Where noise enters",
        "% of the signal's power",
        tuple(_bar(row, marked=row.value in worst) for row in ranked[:SHOWN]),
    )
    place = {row.value: index for index, row in enumerate(result.rows)}
    trend = Trend(
        "SQNR along the network",
        "dB",
        tuple(row.value for row in result.rows),
        (Series("SQNR", tuple(_height(row.fidelity.sqnr_db) for row in result.rows)),),
        tuple(place[row.value] for row in ranked[:NAMED]),
    )
    text = (
        "Noise over signal of every value, less the greatest of the values before it: what operators in between add.",
        f"Over {result.samples} samples, all earlier errors included.",
        "What enters need not reach the outputs: 'qconvert sensitivity' measures that.",
    )
    table = Table(COLUMNS, tuple(_row(row) for row in result.rows), f"over {result.samples} samples; 95 % intervals")
    return (
        Section("Where the error enters", text, figures=(bars, trend)),
        Section("Every value, in the order of the network", tables=(table,), folded=True),
    )


def with_culprits(gates: Sequence[Gate], result: Layers) -> tuple[Gate, ...]:
    """The gates, those that were missed with the places where the most noise enters."""
    lines = tuple(culprit(row) for row in result.ranked[:NAMED] if row.added > 0)
    return tuple(gate if gate.passed else replace(gate, lines=lines) for gate in gates)


def culprit(row: Layer) -> str:
    """``Conv 'conv3' adds 41.2 % noise: 23.10 dB before, 3.85 dB after (value 'relu3', 16 samples)``."""
    name = f"{row.op_type} '{row.operator}'" if row.operator else f"input '{row.value}'"
    before = "" if row.before_db is None else f"{row.before_db:.2f} dB before, "
    where = f"(value '{row.value}', {row.fidelity.samples} samples)"
    return f"{name} adds {100 * row.added:.3g} % noise: {before}{row.fidelity.sqnr_db:.2f} dB after {where}"


def _measures(result: Layers) -> list[Measure]:
    fidelity = [row.fidelity for row in result.rows if row.value == result.rows[-1].value]
    found = common.fidelity_measures(fidelity)
    for row in result.ranked[:1]:
        title = f"noise that {row.op_type} {row.operator or row.value} adds, the most"
        found.append(Measure("worst_noise", title, Value(100 * row.added, samples=result.samples), "%", "none"))
    return found


def _height(sqnr_db: float) -> float | None:
    return None if common.is_exact(sqnr_db) else sqnr_db


def _bar(row: Layer, *, marked: bool) -> Bar:
    return Bar(row.operator or row.value, Value(100 * row.added, samples=row.fidelity.samples), row.op_type, marked)


def _row(row: Layer) -> tuple[str | float | Value | None, ...]:
    return (
        row.value,
        operators(row),
        common.sqnr(row.fidelity),
        row.before_db,
        100 * row.added,
        row.fidelity.cosine,
        row.fidelity.samples,
    )


def operators(row: Layer) -> str:
    """The operators of a layer in a few words: ``Conv, Clip`` or ``Conv and 12 more``."""
    if len(row.operators) <= 4:
        return ", ".join(row.operators) or "input"
    return f"{row.op_type} and {len(row.operators) - 1} more"
