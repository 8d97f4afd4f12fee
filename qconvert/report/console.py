"""Tables for people, fit for 80 columns; numbers aligned, with units and sample counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qconvert.report import tables

if TYPE_CHECKING:
    from qconvert.comparison import Evaluation, Latency
    from qconvert.graph import Port
    from qconvert.inspection import Inspection
    from qconvert.kernel_census import Kernel
    from qconvert.machine import Machine
    from qconvert.pipeline import Proof, Quantized
    from qconvert.plan import FloatOp, Plan, Role
    from qconvert.rewrite.interface import PortGrid
    from qconvert.scores import Fidelity
    from qconvert.targets import Target

LOW_DB = 10.0
"""Below this SQNR a quantized model rarely does its work."""

APART_DB = 3.0
"""Optimizations that change the SQNR by more than this deserve a word."""

LISTED = 12
"""Rows of a list before the rest is counted."""


# quantize


def quantized(result: Quantized, console: Console) -> None:
    """The summary of quantize."""
    plan, proof = result.plan, result.proof
    methods = Counter(entry.method for entry in plan.of("activation") if entry.method != "same scale")
    roles: tuple[Role, ...] = ("activation", "weight", "bias")
    before, after, absorbed = result.size_before, result.size_after, tables.many(len(plan.absorbed), "clamp")
    ranges = [("ranges", ", ".join(f"{name} {count}" for name, count in methods.most_common()))] if methods else []
    facts = tables.facts(
        ("target", plan.target),
        ("operators", f"{len(plan.integer)} on integers, {len(plan.floats)} in float, {absorbed} absorbed"),
        ("tensors", ", ".join(tables.many(len(plan.of(role)), role) for role in roles)),
        *ranges,
        ("size", f"{tables.size(before)} -> {tables.size(after)} ({tables.percent(after, before)})"),
        ("heavy kernels", _kernel_line(proof.kernels)),
        *(
            (
                f"SQNR {one.output}",
                f"{tables.decibels(one.sqnr_db)} on {tables.many(one.samples, 'calibration sample')}",
            )
            for one in proof.fidelity
        ),
        *(_port_line(port, "input") for port in (result.interface.inputs if result.interface else ())),
        *(_port_line(port, "output") for port in (result.interface.outputs if result.interface else ())),
    )
    tables.show(facts, *([_float_table(plan.floats)] if plan.floats else []), console=console)


def warn_proof(proof: Proof, warn: Callable[[str], None]) -> None:
    """Says what in a proof should worry the user."""
    for on, off in zip(proof.fidelity, proof.unoptimized, strict=True):
        if on.sqnr_db < LOW_DB:
            warn(
                f"output '{on.output}' has an SQNR of {on.sqnr_db:.1f} dB on {on.samples} samples: the model likely "
                "lost its accuracy; try another --calibrator, or leave operators float with --exclude"
            )
        if abs(on.sqnr_db - off.sqnr_db) > APART_DB:
            warn(
                f"output '{on.output}': SQNR {on.sqnr_db:.1f} dB with onnxruntime's optimizations, "
                f"{off.sqnr_db:.1f} dB without ({on.samples} samples): its fused kernels compute something else "
                "on this machine ('qconvert doctor')"
            )


def _port_line(port: PortGrid, side: str) -> tuple[str, str]:
    """What the numbers of an input or output mean."""
    if not port.scale:
        return f"{side} {port.name}", port.dtype
    scale = f"{port.scale[0]:.6g}" if len(port.scale) == 1 else f"one of {len(port.scale)} for each channel"
    return f"{side} {port.name}", f"{port.dtype}, scale {scale}, zero point {port.zero_point[0]}"


def _kernel_line(kernels: Sequence[Kernel]) -> str:
    integer = sum(kernel.integer for kernel in kernels)
    return f"{integer} of {len(kernels)} on integers in the graph onnxruntime runs"


def _float_table(floats: Sequence[FloatOp]) -> Table:
    groups = Counter((op.op_type, _shared(op.reason)) for op in floats)
    table = tables.table("stay float", "count", "reason", numbers=(1,))
    for (op_type, reason), count in groups.most_common(LISTED):
        table.add_row(op_type, str(count), escape(reason))
    if len(groups) > LISTED:
        table.add_row(
            "...", str(sum(count for _, count in groups.most_common()[LISTED:])), "'qconvert inspect' lists all"
        )
    return table


# evaluate


def evaluation(result: Evaluation) -> None:
    """The tables of evaluate."""
    before, after = result.reference, result.candidate
    table = tables.table("", "reference", "candidate", "change", numbers=(0, 1, 2, 3))
    table.columns[0].justify = "left"
    if before.accuracy and after.accuracy:
        table.add_row(f"top-1 ({before.accuracy.items} labels)", *_points(before.accuracy.top1, after.accuracy.top1))
        if before.accuracy.top5 is not None and after.accuracy.top5 is not None:
            table.add_row(
                f"top-5 ({before.accuracy.items} labels)", *_points(before.accuracy.top5, after.accuracy.top5)
            )
    table.add_row(
        "size",
        tables.size(before.size_bytes),
        tables.size(after.size_bytes),
        tables.percent(after.size_bytes, before.size_bytes),
    )
    if before.latency and after.latency:
        ratio = after.latency.median_ms / before.latency.median_ms
        label = f"latency ({tables.many(before.latency.threads, 'thread')}, median of {before.latency.runs})"
        table.add_row(label, _milliseconds(before.latency), _milliseconds(after.latency), f"{ratio:.2f}x")
    heavy = [(sum(k.integer for k in side.kernels), len(side.kernels)) for side in (before, after)]
    table.add_row("heavy operators in integer kernels", *(f"{integer} of {total}" for integer, total in heavy), "")
    names = tables.facts(
        ("reference", str(before.path)), ("candidate", str(after.path)), ("samples", str(result.samples))
    )
    tables.show(names, table, _fidelity_table(result.fidelity), *_float_kernels(after.kernels))


def _points(before: float, after: float) -> tuple[str, str, str]:
    return f"{before:.2f} %", f"{after:.2f} %", f"{after - before:+.2f} points"


def _milliseconds(latency: Latency) -> str:
    return f"{latency.median_ms:.2f} ms"


def _fidelity_table(fidelity: Sequence[Fidelity]) -> Table:
    table = tables.table("output", "SQNR", "cosine", "argmax agrees", "samples", numbers=(1, 2, 3, 4))
    for one in fidelity:
        agreement = "-" if one.argmax_agreement is None else f"{one.argmax_agreement:.2f} %"
        table.add_row(
            escape(one.output), tables.decibels(one.sqnr_db), f"{one.cosine:.6f}", agreement, str(one.samples)
        )
    return table


def _float_kernels(kernels: Sequence[Kernel]) -> list[RenderableType]:
    floats = [kernel for kernel in kernels if not kernel.integer]
    if not floats:
        return []
    table = tables.table("heavy operator in float", "kernel", "reason")
    for kernel in floats[:LISTED]:
        table.add_row(escape(kernel.operator), kernel.op_type, escape(kernel.reason))
    if len(floats) > LISTED:
        table.add_row(f"... {len(floats) - LISTED} more", "", "--json lists all")
    return [table]


# inspect


def inspection(result: Inspection) -> None:
    """What is in the file, then every decision of the plan with its reason, one line each."""
    facts = [("file", f"{result.path}, {tables.size(result.size_bytes)}, opset {result.opset}")]
    facts += [
        (title, _port(port))
        for title, ports in (("input", result.inputs), ("output", result.outputs))
        for port in ports
    ]
    facts += [
        ("weights", f"{tables.many(count, f'{dtype} tensor')}, {tables.size(total)}")
        for dtype, count, total in result.weights
    ]
    facts += [("preparation", note) for note in result.notes]
    counts = tables.table("operator", "count", "on integers", numbers=(1, 2), title="operators in the file")
    integer = Counter(op.op_type for op in result.placement.integer.values())
    for op_type, count in result.operators:
        counts.add_row(op_type, str(count), str(integer.get(op_type, 0) or "-"))
    console = tables.stdout()
    parts: list[RenderableType] = [tables.facts(*facts), counts, _reasons(result, console)]
    if result.plan is not None:
        parts.append(_ranges(result.plan, console))
    if result.placement.floats:
        parts.append(_floats(result.placement.floats, console))
    tables.show(*parts, console=console)


def _port(port: Port) -> str:
    dims = ", ".join("?" if dim is None else str(dim) for dim in port.shape)
    return f"{port.name} {port.dtype.name if port.dtype is not None else 'not a tensor'} [{dims}]"


def _reasons(result: Inspection, console: Console) -> Text:
    """The tensors of the plan; without statistics those that are known before."""
    placement = result.placement
    rows = [(name, placement.why.get(name, "constant operand")) for name in (*placement.values, *placement.constants)]
    if result.plan is not None:
        rows = [(entry.tensor, entry.reason) for entry in result.plan.entries]
    title = f"{tables.many(len(rows), 'tensor')} on integers for {result.target.name}, and why"
    return tables.titled(title, tables.pairs(rows, console, max((len(reason) for _, reason in rows), default=0)))


def _ranges(plan: Plan, console: Console) -> Text:
    """The grid of every tensor but the biases, whose scale follows from those of input and weight."""
    entries = [entry for entry in plan.entries if entry.role != "bias"]
    rows = [("", f"{'type':<6} {'low':>10} {'high':>10}  range from")]
    for entry in entries:
        low, high = float(entry.params.low.min()), float(entry.params.high.max())
        rows.append((entry.tensor, f"{entry.params.dtype.name:<6} {low:>10.4g} {high:>10.4g}  {entry.method}"))
    return tables.titled("ranges", tables.pairs(rows, console, max(len(text) for _, text in rows)))


def _floats(floats: Sequence[FloatOp], console: Console) -> Text:
    """The operators that stay float, below the reason that they share; names are whole, to be used in a policy."""
    groups: dict[str, dict[str, list[str]]] = {}
    for op in floats:
        groups.setdefault(_shared(op.reason), {}).setdefault(op.op_type, []).append(op.operator)
    width = console.width if console.is_terminal else tables.WIDTH
    lines = []
    for reason, kinds in sorted(groups.items(), key=lambda item: -sum(map(len, item[1].values()))):
        lines.append(f"  {reason}")
        for op_type, names in kinds.items():
            lines += tables.wrapped(f"{len(names)} {op_type}: {', '.join(names)}", width, " " * 4, " " * 6)
    return tables.titled(f"{tables.many(len(floats), 'operator')} in float, and why", lines)


def _shared(reason: str) -> str:
    """The reason without the path of one subgraph, so that all subgraphs stand together; --json has the paths."""
    inside, colon, why = reason.partition(": ")
    return f"inside subgraphs: {why}" if colon and inside.startswith("inside ") else reason


# targets and doctor


def targets(found: Sequence[Target]) -> None:
    """What each target takes."""
    rows: list[tuple[str, str]] = []
    for target in found:
        symmetric = ", symmetric" if target.symmetric_activations else ""
        limits = f"activations {', '.join(target.activations)}{symmetric}\nweights {', '.join(target.weights)}"
        rows += [(target.name, f"{target.title}\n{limits}"), ("", "")]
    tables.show(tables.facts(*rows))


def machine(found: Machine) -> None:
    """What this machine has."""
    facts = tables.facts(
        *found.versions,
        ("cpu", f"{found.cpus} x {found.architecture}: {', '.join(found.instructions) or 'instructions unknown'}"),
        *((f"provider {name}", "available" if available else "missing") for name, available in found.providers),
    )
    tables.show(facts, tables.facts(*(("-", text) for text in found.meaning)))
