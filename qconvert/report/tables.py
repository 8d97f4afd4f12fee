"""What all tables are made of: columns, facts, lines fit for the terminal, numbers with units."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qconvert.metrics import EXACT_DB

WIDTH = 80
"""Columns of running text where the output is not a terminal."""


def table(*columns: str, numbers: Sequence[int] = (), title: str = "", header: bool = True) -> Table:
    """An empty table; the columns whose numbers are given are aligned to the right and never wrapped."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="bold",
        show_edge=False,
        show_header=header,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for index, column in enumerate(columns):
        right = index in numbers
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def facts(*rows: tuple[str, str]) -> Table:
    """Names and values, two columns without a head; texts are shown as they are."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    return table


def stdout() -> Console:
    """Where results go."""
    return Console(highlight=False, emoji=False)


def show(*parts: RenderableType, console: Console | None = None) -> None:
    """Prints the parts with a blank line between them and no blanks at the ends of lines."""
    console = console or stdout()
    with console.capture() as captured:
        for index, part in enumerate(parts):
            if index:
                console.print()
            console.print(part, soft_wrap=isinstance(part, Text))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    console.file.write("\n".join(lines) + "\n")


def size(count: int) -> str:
    """Bytes for people: ``3.6 MB``."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"


def decibels(value: float) -> str:
    """An SQNR: ``17.9 dB``, ``exact``, or ``-`` where it is not known."""
    if math.isnan(value):
        return "-"
    return "exact" if value >= EXACT_DB else f"{value:.2f} dB"


def many(count: int, one: str) -> str:
    """``1 bias``, ``18 biases``."""
    ending = "" if count == 1 else "es" if one.endswith("s") else "s"
    return f"{count} {one}{ending}"


def percent(part: float, whole: float) -> str:
    """``27 %``."""
    return f"{100 * part / whole:.0f} %"


def pairs(rows: Sequence[tuple[str, str]], console: Console, right: int) -> list[str]:
    """Two columns, the second at most ``right`` wide; where a terminal is too narrow, a text stands below its name."""
    left = max((len(name) for name, _ in rows), default=0)
    if not console.is_terminal:
        return [f"{name:<{left}}  {text}" for name, text in rows]
    room = console.width - right - 2
    left, indent = (min(left, room), min(left, room) + 2) if room >= WIDTH // 4 else (min(left, WIDTH // 4), 6)
    lines = []
    for name, text in rows:
        if len(name) <= left and left + 2 + len(text) <= console.width:
            lines.append(f"{name:<{left}}  {text}")
        else:
            lines += [name, *wrapped(text, console.width, " " * indent, " " * indent)]
    return lines


def wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    """The text in lines of ``width``; names are not broken."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def titled(title: str, lines: Sequence[str]) -> Text:
    """Lines under a title."""
    return Text.assemble((f"{title}\n", "bold"), "\n".join(lines))
