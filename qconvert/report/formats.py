"""The table of supported cells, fit for 80 columns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from rich.text import Text

from qconvert.report import tables

if TYPE_CHECKING:
    from qconvert.support import Row


def formats(rows: Sequence[Row], *, operators: bool) -> None:
    """What each target takes in each mode and format.

    Args:
        rows: Of the targets to show.
        operators: Whether to list the operators, too.
    """
    table = tables.table("target", "mode, format", "what it takes")
    for above, row in zip((None, *rows), rows, strict=False):
        name = row.target if above is None or above.target != row.target else ""
        table.add_row(name, _kind(row), _facts(row))
    lines = ["operators: 'qconvert formats --target NAME'"]
    if operators:
        lines = [line for row in rows for line in tables.wrapped(_operators(row), tables.WIDTH, "", "  ")]
    tables.show(table, Text("\n".join(lines)))


def _kind(row: Row) -> str:
    return f"static {row.format}" if row.mode == "static" else row.mode


def _facts(row: Row) -> str:
    lines = [f"weights {_types(row.weights)}"]
    weighted = set(row.schemes.get("per-tensor", row.operators))
    if set(row.low_bits) < weighted and any(not name.endswith("8") for name in row.weights):
        lines.append(f"  below 8 bits: {', '.join(row.low_bits)}")
    sizes = f" of {' or '.join(map(str, row.group_sizes))}" if row.group_sizes else ""
    scales = (f"{scheme}{sizes}{_of(takers, weighted)}" for scheme, takers in row.schemes.items())
    lines.append(f"  {', '.join(scales)}")
    if row.mode != "weight-only":
        tokens = ", per-tensor, per-token" if "per-token" in row.activation_schemes else ""
        lines.append(f"activations {_types(row.activations)}{tokens}")
    for activations in dict.fromkeys(activations for activations, _ in row.apart):
        weights = [weights for other, weights in row.apart if other == activations]
        lines.append(f"  {activations}: not with {_types(weights)} weights")
    if row.mode == "static":
        lines += [f"inputs {_types(row.inputs)}", f"outputs {_types(row.outputs)}"]
    return "\n".join(lines)


def _of(takers: Sequence[str], all_of: AbstractSet[str]) -> str:
    return "" if set(takers) == all_of else f" ({', '.join(takers)})"


def _types(names: Iterable[str]) -> str:
    """``int8/4, uint8``: the types of one family together."""
    families: dict[str, list[str]] = {}
    for name in names:
        family, width = re.fullmatch(r"(float8|[a-z]+)(.+)", name).groups()  # type: ignore[union-attr]
        families.setdefault(family, []).append(width)
    return ", ".join(f"{family}{'/'.join(widths)}" for family, widths in families.items())


def _operators(row: Row) -> str:
    return f"{_kind(row)}: {', '.join(row.operators)}"
