"""Tables for people, fit for 80 columns; numbers aligned, with units and sample counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from qconvert.evaluate import Accuracy, Evaluation, Fidelity, Latency
from qconvert.kernel_census import Kernel
from qconvert.machine import Machine
from qconvert.metrics import EXACT_DB
from qconvert.pipeline import Inspection, Proof, Quantized
from qconvert.plan import FloatOp
from qconvert.session import Port
from qconvert.targets import Target

LOW_DB = 10.0
"""Below this SQNR a quantized model rarely does its work."""

APART_DB = 3.0
"""Optimizations that change the SQNR by more than this deserve a word."""

LISTED = 12
"""Rows of a list before the rest is counted."""


def _table(*columns: str, numbers: Sequence[int] = (), title: str = "") -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        right = index in numbers
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def _show(*parts: RenderableType) -> None:
    Console(highlight=False).print(Group(*parts))


def size(count: int) -> str:
    """Bytes for people: ``3.6 MB``."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:  # noqa: PLR2004 - decimal units
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.2f} GB"


def decibels(value: float) -> str:
    """An SQNR: ``17.9 dB``, or ``exact``."""
    return "exact" if value >= EXACT_DB else f"{value:.2f} dB"


# quantize


def quantized(result: Quantized, console: Console) -> None:
    """The summary of quantize."""
    plan, proof = result.plan, result.proof
    methods = Counter(entry.method for entry in plan.of("activation") if entry.method != "same scale")
    table = _table("", "")
    table.show_header = False
    table.add_row("model", escape(str(result.model)))
    table.add_row("target", plan.target)
    table.add_row("operators", f"{len(plan.integer)} on integers, {len(plan.floats)} in float, {len(plan.absorbed)} clamps absorbed")
    table.add_row(
        "tensors",
        f"{len(plan.of('activation'))} activations, {len(plan.of('weight'))} weights, {len(plan.of('bias'))} biases",
    )
    table.add_row("ranges", ", ".join(f"{name} {count}" for name, count in methods.most_common()))
    table.add_row("size", f"{size(result.size_before)} -> {size(result.size_after)} ({100 * result.size_after / result.size_before:.0f} %)")
    table.add_row("heavy kernels", _kernel_line(proof.kernels))
    for one in proof.fidelity:
        table.add_row(f"SQNR {escape(one.output)}", f"{decibels(one.sqnr_db)} on {one.samples} calibration samples")
    console.print(table)
    if plan.floats:
        console.print(_float_table(plan.floats))


def warn_proof(proof: Proof, warn: Callable[[str], None]) -> None:
    """Says what in a proof should worry the user."""
    for on, off in zip(proof.fidelity, proof.unoptimized, strict=True):
        if on.sqnr_db < LOW_DB:
            warn(
                f"output '{on.output}' has an SQNR of {on.sqnr_db:.1f} dB on {on.samples} samples: the model likely lost its accuracy; "
                "try another --calibrator, or leave operators float with --exclude"
            )
        if abs(on.sqnr_db - off.sqnr_db) > APART_DB:
            warn(
                f"output '{on.output}': SQNR {on.sqnr_db:.1f} dB with onnxruntime's optimizations, {off.sqnr_db:.1f} dB without "
                f"({on.samples} samples): its fused kernels compute something else on this machine ('qconvert doctor')"
            )


def _kernel_line(kernels: Sequence[Kernel]) -> str:
    integer = sum(kernel.integer for kernel in kernels)
    return f"{integer} of {len(kernels)} on integers in the graph onnxruntime runs"


def _float_table(floats: Sequence[FloatOp]) -> Table:
    groups = Counter((op.op_type, op.reason) for op in floats)
    table = _table("stay float", "count", "reason", numbers=(1,))
    for (op_type, reason), count in groups.most_common(LISTED):
        table.add_row(op_type, str(count), escape(reason))
    if len(groups) > LISTED:
        table.add_row("...", str(sum(count for _, count in groups.most_common()[LISTED:])), "'qconvert inspect' lists all")
    return table


# evaluate


def evaluation(result: Evaluation) -> None:
    """The tables of evaluate."""
    before, after = result.reference, result.candidate
    table = _table("", "reference", "candidate", "change", numbers=(0, 1, 2, 3))
    table.columns[0].justify = "left"
    if before.accuracy and after.accuracy:
        table.add_row(f"top-1 ({before.accuracy.items} labels)", *_points(before.accuracy.top1, after.accuracy.top1))
        if before.accuracy.top5 is not None and after.accuracy.top5 is not None:
            table.add_row(f"top-5 ({before.accuracy.items} labels)", *_points(before.accuracy.top5, after.accuracy.top5))
    table.add_row("size", size(before.size_bytes), size(after.size_bytes), f"{100 * after.size_bytes / before.size_bytes:.0f} %")
    if before.latency and after.latency:
        ratio = after.latency.median_ms / before.latency.median_ms
        label = f"latency ({before.latency.threads} threads, median of {before.latency.runs})"
        table.add_row(label, _milliseconds(before.latency), _milliseconds(after.latency), f"{ratio:.2f}x")
    heavy = [(sum(k.integer for k in side.kernels), len(side.kernels)) for side in (before, after)]
    table.add_row("heavy operators in integer kernels", *(f"{integer} of {total}" for integer, total in heavy), "")
    names = f"reference {escape(str(before.path))}\ncandidate {escape(str(after.path))}, {result.samples} samples"
    _show(names, table, _fidelity_table(result.fidelity), *_float_kernels(after.kernels))


def _points(before: float, after: float) -> tuple[str, str, str]:
    return f"{before:.2f} %", f"{after:.2f} %", f"{after - before:+.2f} points"


def _milliseconds(latency: Latency) -> str:
    return f"{latency.median_ms:.2f} ms"


def _fidelity_table(fidelity: Sequence[Fidelity]) -> Table:
    table = _table("output", "SQNR", "cosine", "argmax agrees", "samples", numbers=(1, 2, 3, 4))
    for one in fidelity:
        agreement = "-" if one.argmax_agreement is None else f"{one.argmax_agreement:.2f} %"
        table.add_row(escape(one.output), decibels(one.sqnr_db), f"{one.cosine:.6f}", agreement, str(one.samples))
    return table


def _float_kernels(kernels: Sequence[Kernel]) -> list[RenderableType]:
    floats = [kernel for kernel in kernels if not kernel.integer]
    if not floats:
        return []
    table = _table("heavy operator in float", "kernel", "reason")
    for kernel in floats[:LISTED]:
        table.add_row(escape(kernel.operator), kernel.op_type, escape(kernel.reason))
    if len(floats) > LISTED:
        table.add_row(f"... {len(floats) - LISTED} more", "", "--json lists all")
    return [table]


def accuracy(value: Accuracy) -> str:
    """One line: ``top-1 84.33 % of 300``."""
    return f"top-1 {value.top1:.2f} % of {value.items}"


# inspect


def inspection(result: Inspection) -> None:
    """The tables of inspect."""
    head = _table("", "")
    head.show_header = False
    head.add_row("file", f"{escape(str(result.path))}, {size(result.size_bytes)}, opset {result.opset}")
    for title, ports in (("input", result.inputs), ("output", result.outputs)):
        for port in ports:
            head.add_row(title, escape(_port(port)))
    for dtype, count, total in result.weights:
        head.add_row("weights", f"{count} {dtype} tensors, {size(total)}")
    for note in result.notes:
        head.add_row("preparation", escape(note))
    counts = _table("operator", "count", "on integers", numbers=(1, 2), title="operators in the file")
    integer = Counter(op.op_type for op in result.placement.integer.values())
    for op_type, count in result.operators:
        counts.add_row(op_type, str(count), str(integer.get(op_type, 0) or "-"))
    parts: list[RenderableType] = [head, counts, _integer_table(result)]
    if result.placement.floats:
        parts.append(_all_floats(result.placement.floats))
    _show(*parts)


def _port(port: Port) -> str:
    dims = ", ".join("?" if dim is None else str(dim) for dim in port.shape)
    return f"{port.name} {port.dtype.name if port.dtype is not None else 'not a tensor'} [{dims}]"


def _integer_table(result: Inspection) -> Table:
    """Every tensor of the plan with its reason; ranges where statistics were given."""
    placement = result.placement
    if result.plan is not None:
        table = _table("tensor", "type", "low", "high", "method", "reason", numbers=(2, 3), title=f"plan for {result.target.name}")
        for entry in result.plan.entries:
            low, high = float(entry.params.low.min()), float(entry.params.high.max())
            table.add_row(escape(entry.tensor), entry.params.dtype.name, f"{low:.4g}", f"{high:.4g}", entry.method, escape(entry.reason))
        return table
    table = _table("value", "reason", title=f"values with a Q/DQ pair for {result.target.name}")
    for name in placement.values:
        table.add_row(escape(name), escape(placement.why[name]))
    for name in placement.constants:
        table.add_row(escape(name), escape(placement.why.get(name, "constant operand")))
    return table


def _all_floats(floats: Sequence[FloatOp]) -> Table:
    table = _table("stays float", "operator", "reason")
    for op in floats:
        table.add_row(escape(op.operator), op.op_type, escape(op.reason))
    return table


# targets and doctor


def targets(found: Sequence[Target]) -> None:
    """What each target takes."""
    table = _table("target", "activations", "weights", "what it is")
    for target in found:
        symmetric = ", symmetric" if target.symmetric_activations else ""
        table.add_row(target.name, ", ".join(target.activations) + symmetric, ", ".join(target.weights), target.title)
    _show(table)


def machine(found: Machine) -> None:
    """What this machine has."""
    table = _table("", "")
    table.show_header = False
    for name, version in found.versions:
        table.add_row(name, version)
    table.add_row("cpu", f"{found.cpus} x {found.architecture}: {', '.join(found.instructions) or 'instructions unknown'}")
    for name, available in found.providers:
        table.add_row(f"provider {name}", "available" if available else "missing")
    _show(table, *(f"- {text}" for text in found.meaning))
