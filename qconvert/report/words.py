"""Numbers of a report as words: the same in every format."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qconvert.report import tables
from qconvert.reports import Value

if TYPE_CHECKING:
    from qconvert.reports import Cell, Column, Gate, Measure

NOTHING = "-"

SIGNIFICANT, SMALL = 10, 1e-4
"""Numbers below so many units of the last decimal get two significant digits; below this they are powers of ten."""


def amount(number: float, unit: str, *, digits: int = 2) -> str:
    """A number with its unit: ``28.15 dB``, ``3.6 MB``, ``exact``."""
    if unit == "B":
        return tables.size(round(number))
    if unit == "dB":
        return tables.decibels(number)
    text = _plain(number, digits)
    return f"{text} {unit}" if unit and math.isfinite(number) else text


def cell(value: Cell, column: Column) -> str:
    """What stands in a cell, without the unit where the column's head has it."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    number = value.value if isinstance(value, Value) else value
    return bare(number, column.unit, digits=0 if isinstance(number, int) else column.digits)


def interval(value: Cell, column: Column) -> str:
    """The interval of a cell: ``27.10 to 29.03``, or "" where it has none."""
    if not isinstance(value, Value) or value.low is None or value.high is None:
        return ""
    return (
        f"{bare(value.low, column.unit, digits=column.digits)} to {bare(value.high, column.unit, digits=column.digits)}"
    )


def bare(number: float, unit: str, *, digits: int = 2) -> str:
    """A number whose unit stands elsewhere."""
    return (
        amount(number, unit, digits=digits).removesuffix(f" {unit}")
        if unit and unit != "B"
        else amount(number, unit, digits=digits)
    )


def head(column: Column) -> str:
    """A column's title with its unit."""
    return f"{column.title}, {column.unit}" if column.unit and column.unit != "B" else column.title


def digits(one: Measure) -> int:
    """Decimals of a headline number: none of a count."""
    return 0 if float(one.value.value).is_integer() and not one.unit else 2


def basis(one: Measure) -> str:
    """What a headline number rests on: ``27.10 to 29.03; 400 samples``."""
    value, found = one.value, []
    if value.low is not None and value.high is not None:
        found.append(f"{bare(value.low, one.unit)} to {bare(value.high, one.unit)}")
    if value.samples is not None:
        found.append(tables.many(value.samples, "run" if one.unit == "x" else "sample"))
    return "; ".join(found)


def gate(one: Gate) -> str:
    """A bound and what was measured: ``SQNR of logits 8.12 dB, at least 20.00 dB demanded (64 samples)``."""
    basis = "" if one.samples is None else f" ({tables.many(one.samples, 'sample')})"
    verb = "allowed" if one.sense == "at most" else "demanded"
    return f"{one.title} {amount(one.measured, one.unit)}, {one.sense} {amount(one.bound, one.unit)} {verb}{basis}"


def verdict(gates: tuple[Gate, ...]) -> str:
    """All gates in a line, or "" where there are none."""
    missed = sum(not one.passed for one in gates)
    if not gates:
        return ""
    return (
        f"{missed} of {tables.many(len(gates), 'gate')} missed"
        if missed
        else f"passed: {tables.many(len(gates), 'gate')}"
    )


def _plain(number: float, digits: int) -> str:
    if not math.isfinite(number):
        return NOTHING
    if not number or abs(number) >= min(1.0, SIGNIFICANT * 10.0**-digits):
        return f"{number:.{digits}f}"
    return f"{number:.1e}" if abs(number) < SMALL else f"{number:.{1 - math.floor(math.log10(abs(number)))}f}"
