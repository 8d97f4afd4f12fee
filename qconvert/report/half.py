"""What convert shows and says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape

from qconvert.metrics import EXACT_DB
from qconvert.report import tables
from qconvert.report.json import plain

if TYPE_CHECKING:
    from qconvert.conversion import Converted
    from qconvert.rewrite.half import HalfReport
    from qconvert.scores import Fidelity

LISTED = 12
"""Rows of a list before the rest is counted."""

LOW_DB = 30.0
"""Below this SQNR half precision costs a model more than it should: 3 % relative error."""

MOVED = 0.01
"""The relative error from which on a weight is listed; half of the last bit of float16 is 0.0005."""

NAMES = {"fp16": "float16", "bf16": "bfloat16"}


def converted(result: Converted, console: Console) -> None:
    """The summary of convert."""
    report, proof = result.report, result.proof
    name, before, after = NAMES[report.to], result.size_before, result.size_after
    runs = tables.many(proof.samples, "random input" if proof.random else "sample")
    facts = tables.facts(
        ("operators", _operators(report)),
        ("weights", _weights(report)),
        ("size", f"{tables.size(before)} -> {tables.size(after)} ({tables.percent(after, before)})"),
        *((f"SQNR {one.output}", f"{_match(one)} on {runs}, as onnxruntime runs it here") for one in proof.here),
        *((f"simulated {one.output}", f"{_match(one)} with every value rounded to {name}") for one in proof.simulated),
    )
    tables.show(facts, *_kept(report), *_losses(report), console=console)


def _operators(report: HalfReport) -> str:
    casts = tables.many(report.casts, "Cast")
    if report.storage_only:
        return f"all in float32, {casts} of weights when the model is loaded"
    return f"{report.operators} in float16, {len(report.kept)} in float32, {casts} between"


def _weights(report: HalfReport) -> str:
    sums = [sum(getattr(one, key) for one in report.tensors) for key in ("clamped", "subnormal", "zeroed")]
    elements = sum(one.elements for one in report.tensors)
    return (
        f"{tables.many(len(report.tensors), 'tensor')}, {elements} elements: "
        f"{sums[0]} clamped, {sums[1]} subnormal, {sums[2]} now 0"
    )


def _match(one: Fidelity) -> str:
    agreement = "" if one.argmax_agreement is None else f", argmax agrees {one.argmax_agreement:.1f} %,"
    return f"{_decibels(one)}{agreement}"


def _decibels(one: Fidelity) -> str:
    return "not finite" if one.sqnr_db <= -EXACT_DB else tables.decibels(one.sqnr_db)


def _kept(report: HalfReport) -> list[RenderableType]:
    groups = Counter((one.op_type, one.reason) for one in report.kept)
    if not groups:
        return []
    table = tables.table("stay float32", "count", "reason", numbers=(1,))
    for (op_type, reason), count in groups.most_common(LISTED):
        table.add_row(escape(op_type), str(count), escape(reason))
    if len(groups) > LISTED:
        table.add_row("...", str(sum(count for _, count in groups.most_common()[LISTED:])), "--json lists all")
    return [table]


def _losses(report: HalfReport) -> list[RenderableType]:
    """The weights with elements that moved by much, the worst first."""
    moved = (one for one in report.tensors if one.clamped or (one.lossy and one.worst_error > MOVED))
    lossy = sorted(moved, key=lambda one: (-one.clamped, -one.zeroed, -one.worst_error))
    if not lossy:
        return []
    table = tables.table("weight", "clamped", "subnormal", "became 0", "worst error", numbers=(1, 2, 3, 4))
    for one in lossy[:LISTED]:
        counts = (str(count) for count in (one.clamped, one.subnormal, one.zeroed))
        table.add_row(escape(one.name), *counts, f"{100 * one.worst_error:.3g} %")
    if len(lossy) > LISTED:
        table.add_row(f"... {len(lossy) - LISTED} more: --json lists all", "", "", "", "")
    return [table]


def warn(result: Converted, say: Callable[[str], None]) -> None:
    """Says what in a result should worry the user."""
    proof = result.proof
    if result.size_after >= result.size_before:
        say("the file did not get smaller: its large tensors are not float32, or what reads them stays float32")
    for value in proof.overflows[:LISTED]:
        options = " ".join(f"--block '{name}'" for name in value.operators)
        say(
            f"'{value.value}' ({value.op_type}) reaches {value.peak:.3g}, beyond float16's 65504: infinite on hardware "
            f"that computes in float16; {options} keeps it in float32"
        )
    if len(proof.overflows) > LISTED:
        say(f"{len(proof.overflows) - LISTED} more values overflow float16: --json lists all")
    for place, found in (("here", proof.here), ("simulated", proof.simulated)):
        for low in (one for one in found if one.sqnr_db < LOW_DB):
            say(f"output '{low.output}': SQNR {place} {_decibels(low)}: half precision costs this model much")


def as_json(result: Converted) -> dict[str, Any]:
    """What convert wrote and saw."""
    return {
        "model": result.model.as_posix(),
        "output": result.path.as_posix(),
        "size_before_bytes": result.size_before,
        "size_after_bytes": result.size_after,
        "report": plain(result.report),
        "proof": plain(result.proof),
    }
