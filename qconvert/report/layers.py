"""Two models value by value, as tables for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from qconvert.report import tables
from qconvert.report.json import plain

if TYPE_CHECKING:
    from qconvert.layers import Layer, Layers

NAMED = 5
"""Places where the error enters that are named first."""


def layers(result: Layers) -> None:
    """Where the error enters, then every value in the order of the network."""
    console = tables.stdout()
    facts = tables.facts(
        ("reference", str(result.reference)), ("candidate", str(result.candidate)), ("samples", str(result.samples))
    )
    parts: list[RenderableType] = [facts]
    worst = [row for row in result.ranked[:NAMED] if row.added > 0]
    if worst:
        lines = tables.pairs([(_name(row), _added(row)) for row in worst], console, max(map(len, map(_added, worst))))
        parts.append(tables.titled("where the error enters, in % of the signal's power", lines))
    rows = [("", f"{'SQNR':>9} {'before it':>9} {'added %':>8} {'cosine':>8}  by")]
    rows += [(row.value, _numbers(row)) for row in result.rows]
    title = f"{tables.many(len(result.rows), 'value')} in the order of the network"
    parts.append(tables.titled(title, tables.pairs(rows, console, max(len(text) for _, text in rows))))
    tables.show(
        *parts, Text(f"noise of {tables.many(result.samples, 'sample')}, all earlier errors included"), console=console
    )


def _name(row: Layer) -> str:
    return f"{row.op_type} {row.operator or row.value}"


def _added(row: Layer) -> str:
    before = f"{tables.decibels(row.before_db)} -> " if row.before_db is not None else ""
    return f"{100 * row.added:>7.3g} %  {before}{tables.decibels(row.fidelity.sqnr_db)}"


def _numbers(row: Layer) -> str:
    before = "-" if row.before_db is None else tables.decibels(row.before_db)
    one = row.fidelity
    return f"{tables.decibels(one.sqnr_db):>9} {before:>9} {100 * row.added:>8.3g} {one.cosine:>8.6f}  {row.op_type}"


def as_json(result: Layers) -> dict[str, Any]:
    """Every value, machine-readable, and where the error enters: names of operators, the most first."""
    found: dict[str, Any] = plain(result)
    found["enters"] = [row.operator or row.value for row in result.ranked if row.added > 0]
    return found
