"""A Plan is a value: printed, compared, stored; two plans that differ in one entry are the experiment on that entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qconvert.numerics import QuantParams

Role = Literal["activation", "constant", "weight", "bias"]


@dataclass(frozen=True)
class Site:
    """A place where a value is read.

    Attributes:
        operator: Name of the reading operator, or "" for the graph's outputs.
        operand: Position among its operands, or number of the output.
    """

    operator: str
    operand: int


@dataclass(frozen=True)
class Entry:
    """One tensor on an integer grid.

    Attributes:
        tensor: Name of the value.
        role: What it is to its readers.
        params: Its grid.
        sites: Where the dequantized tensor is read instead of the float one.
        method: How its range was found, e.g. ``percentile`` or ``same scale``.
        reason: Why it is quantized, and which settings applied.
    """

    tensor: str
    role: Role
    params: QuantParams
    sites: tuple[Site, ...]
    method: str
    reason: str


@dataclass(frozen=True)
class FloatOp:
    """An operator that stays float, and why.

    Attributes:
        operator: Its name.
        op_type: Its type.
        reason: Why.
        chosen: Whether the user's policy says so.
    """

    operator: str
    op_type: str
    reason: str
    chosen: bool = False


@dataclass(frozen=True)
class Absorbed:
    """A clamp that disappears because the grid of ``tensor`` does its work."""

    operator: str
    op_type: str
    tensor: str


@dataclass(frozen=True)
class Plan:
    """Everything that rewrite needs to know.

    Attributes:
        target: Name of the target.
        entries: The tensors that are quantized.
        absorbed: The clamps that vanish.
        integer: Operators between quantized tensors, ``(name, op_type)``.
        floats: Operators that stay float.
        notes: What the user should know, one line each.
    """

    target: str
    entries: tuple[Entry, ...]
    absorbed: tuple[Absorbed, ...]
    integer: tuple[tuple[str, str], ...]
    floats: tuple[FloatOp, ...]
    notes: tuple[str, ...] = ()

    def of(self, role: Role) -> list[Entry]:
        """The entries of one role."""
        return [entry for entry in self.entries if entry.role == role]
