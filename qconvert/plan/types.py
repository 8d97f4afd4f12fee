"""A Plan is a value: printed, compared, stored; two plans that differ in one entry are the experiment on that entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qconvert.numerics import QuantParams, Range

Role = Literal["activation", "constant", "weight", "bias"]

ActivationScheme = Literal["per-tensor", "per-token"]
"""Which values share a scale where scales are computed at run time: all of them, or those along the last axis."""


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
class Given:
    """The range of an activation that was found elsewhere, in place of a calibrator's.

    Attributes:
        range: It.
        method: How it was found, for the entry's ``method``.
        reason: Appended to the entry's reason, unless empty.
    """

    range: Range
    method: str
    reason: str = ""


@dataclass(frozen=True)
class GivenGrid:
    """The grid of a weight that was found elsewhere.

    Attributes:
        params: It.
        method: How it was found, for the entry's ``method``.
    """

    params: QuantParams
    method: str


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
class Bounds:
    """What holds the range of an activation that is taken at run time.

    Attributes:
        low: The range never reaches below this; at most 0.
        high: Nor above this; at least 0.
        least: Nor is it narrower than this.
    """

    low: float
    high: float
    least: float


@dataclass(frozen=True)
class Dynamic:
    """An activation whose grid is computed at run time from its own values.

    Attributes:
        tensor: Name of the value.
        scheme: Which of its values share a scale.
        sites: Where its levels are read.
        reason: Why it is quantized, and which settings applied.
        bounds: What holds its range, or None.
    """

    tensor: str
    scheme: ActivationScheme
    sites: tuple[Site, ...]
    reason: str
    bounds: Bounds | None = None


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
        dynamic: The activations that are quantized at run time.
    """

    target: str
    entries: tuple[Entry, ...]
    absorbed: tuple[Absorbed, ...]
    integer: tuple[tuple[str, str], ...]
    floats: tuple[FloatOp, ...]
    notes: tuple[str, ...] = ()
    dynamic: tuple[Dynamic, ...] = ()

    def of(self, role: Role) -> list[Entry]:
        """The entries of one role."""
        return [entry for entry in self.entries if entry.role == role]
