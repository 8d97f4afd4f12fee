"""Ranges of a file in place of a calibrator's: what a plan is given, and what of the two does not match."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert.errors import CalibrationError
from qconvert.exchange import CLAMPS, exchange_format, read_ranges
from qconvert.graph import operand, operators
from qconvert.histogram import TensorStats
from qconvert.numerics import Range
from qconvert.plan import Given, Plan

SHOWN = 3
"""How many names a note tells."""


@dataclass(frozen=True)
class GivenRanges:
    """The ranges of a file.

    Attributes:
        path: It.
        ranges: By name of the value, as a plan takes them.
        notes: What was made of them, one line each.
    """

    path: Path
    ranges: Mapping[str, Given]
    notes: tuple[str, ...]


def given_ranges(path: Path, stats: Mapping[str, TensorStats]) -> GivenRanges:
    """Reads a file of ranges for a plan.

    Where the format holds only ``[-limit, limit]``, a value that calibration never saw below 0 gets ``[0, limit]``: the
    half that it does not use would cost it a bit of an asymmetric grid, and keep its Relu from vanishing into that.

    Raises:
        CalibrationError: If the file is missing, damaged or of another kind.
    """
    kind, found = exchange_format(path), read_ranges(path)
    notes = []
    if kind.symmetric:
        halves = {name for name in found if name in stats and 0 <= stats[name].low < math.inf}
        found = {name: Range(0.0, one.high) if name in halves else one for name, one in found.items()}
        notes.append(
            f"{path}: a {kind.title} holds only limits: ranges are -/+ limit, "
            f"and 0 to limit for {len(halves)} values that are never negative"
        )
    reason = f"range from {path.name}"
    return GivenRanges(path, {name: Given(one, "file", reason) for name, one in found.items()}, tuple(notes))


def unmatched_notes(given: GivenRanges, plan: Plan, model: ir.Model) -> tuple[str, ...]:
    """Which ranges of the file no grid came from, and which grids came from elsewhere.

    The value before a Relu or Clip belongs to the value behind it, and one that an operator only moves to its source.

    Args:
        given: The file's.
        plan: Made with them.
        model: The graph that the plan was made for.

    Raises:
        CalibrationError: If no range of the file is used.
    """
    entries = plan.of("activation")
    known = {entry.tensor for entry in entries}
    lost = [name for name in given.ranges if name not in known | _before_clamps(model, known)]
    without = [entry.tensor for entry in entries if entry.method not in {"file", "same scale"}]
    if not known & set(given.ranges):
        message = f"{given.path}: none of its {len(given.ranges)} ranges names a value that is quantized here"
        raise CalibrationError(
            message,
            hint=f"names differ between exporters; quantized here: {_some([entry.tensor for entry in entries])}",
        )
    notes = []
    if lost:
        notes.append(f"{given.path}: {len(lost)} of {len(given.ranges)} ranges name no quantized value: {_some(lost)}")
    if without:
        notes.append(
            f"{given.path}: no range for {len(without)} of {len(entries)} quantized values, "
            f"which get one without it: {_some(without)}"
        )
    return tuple(notes)


def _before_clamps(model: ir.Model, names: set[str]) -> set[str]:
    """The inputs of the clamps whose outputs are among ``names``."""
    clamps = [operator for operator in operators(model) if operator.op_type in CLAMPS and operator.name in names]
    sources = [operand(clamp.node, 0) for clamp in clamps]
    return {source.name for source in sources if source is not None and source.name}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
