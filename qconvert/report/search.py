"""The tables of ``qconvert search``, fit for 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qconvert.report import sensitivity, tables, words

if TYPE_CHECKING:
    from qconvert.searching.types import Candidate, Found


def show(found: Found) -> None:
    """Candidates, the chosen one and what the samples held back say, on stdout."""
    notes = [Text("\n".join(found.notes))] if found.notes else []
    tables.show(_candidates(found), _facts(found), *notes)


def _candidates(found: Found) -> Table:
    heads = ["policy", "operators on each rung", "size", "bit-ops", *(["latency"] if found.chosen.times else [])]
    heads.append(sensitivity.TITLES[found.metric])
    table = tables.table("", *heads, numbers=range(3, len(heads) + 1))
    for one in found.candidates:
        table.add_row("*" if one == found.chosen else "", *_row(one, found))
    return table


def _row(one: Candidate, found: Found) -> list[str]:
    rungs = ", ".join(f"{count} {rung}" for rung, count in one.rungs)
    share = f"{one.bit_operations / found.float_bit_operations:.3f}x" if found.float_bit_operations else words.NOTHING
    times = [f"{one.times.own.median_ms / one.times.float_model.median_ms:.2f}x"] if one.times is not None else []
    loss = tables.decibels(-one.harm) if found.metric == "sqnr" else f"{one.harm:.2f}"
    return [escape(one.name), rungs, tables.size(one.size_bytes), share, *times, loss]


def _facts(found: Found) -> Table:
    one = found.chosen
    state = "met" if found.met else "not met, the nearest"
    share = tables.percent(one.size_bytes, found.float_bytes)
    return tables.facts(
        (found.bound, f"{state}: {one.name}"),
        ("size", f"{tables.size(one.size_bytes)}, {share} of the float model's {tables.size(found.float_bytes)}"),
        (f"{tables.many(found.samples, 'sample')} of the search", sensitivity.summary(one.scores)),
        (f"{found.held_back} held back", sensitivity.summary(found.confirmed.scores)),
    )
