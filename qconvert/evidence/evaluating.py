"""The report of ``evaluate``."""

from __future__ import annotations

from collections.abc import Sequence

from qconvert.comparison import Evaluation, Latency, Side
from qconvert.evidence import common
from qconvert.intervals import wilson
from qconvert.kernel_census import Kernel
from qconvert.reports import Cell, Column, Measure, Report, Section, Table, Value
from qconvert.scores import Accuracy


def evaluation_report(result: Evaluation) -> Report:
    """Accuracy, fidelity, size, latency and kernels of a model beside those of its original."""
    before, after = result.reference, result.candidate
    caption = f"over {result.samples} samples; intervals hold 95 %, by resampling the samples"
    sections = [
        *_accuracy(result),
        Section("Fidelity of the outputs", tables=(common.fidelity_table(result.fidelity, caption),)),
        Section("Size and latency", tables=(_costs(before, after),)),
        kernel_section(after.kernels),
        *common.skipped(result.skipped),
    ]
    return Report(
        title=f"{after.path.name} compared with {before.path.name}",
        command="evaluate",
        models=tuple(
            common.model(role, side.path, side.size_bytes)
            for role, side in (("reference", before), ("candidate", after))
        ),
        data=common.data(result.data, result.samples),
        measures=tuple(_measures(result)),
        sections=tuple(sections),
        notes=result.notes,
        versions=common.versions(),
    )


def _measures(result: Evaluation) -> list[Measure]:
    before, after = result.reference, result.candidate
    found = []
    if before.accuracy is not None and after.accuracy is not None:
        found += [
            Measure("top1", "top-1 of the candidate", _share(after.accuracy.top1, after.accuracy), "%", "up"),
            Measure("top1_drop", "top-1 drop", _drop(result), "points", "down"),
        ]
    found += common.fidelity_measures(result.fidelity)
    found.append(Measure("size_bytes", "size of the candidate", Value(float(after.size_bytes)), "B", "down"))
    if before.latency is not None and after.latency is not None:
        ratio = Value(after.latency.median_ms / before.latency.median_ms, samples=after.latency.runs)
        found.append(Measure("latency_ratio", "latency, times the reference's", ratio, "x", "none"))
    integer = Value(float(sum(kernel.integer for kernel in after.kernels)))
    found.append(
        Measure("integer_kernels", f"in integer kernels, of {len(after.kernels)} heavy operators", integer, "", "none")
    )
    return found


def _share(percent: float, accuracy: Accuracy) -> Value:
    low, high = wilson(percent, accuracy.items)
    return Value(percent, low, high, accuracy.items)


def _drop(result: Evaluation, *, top5: bool = False) -> Value:
    before, after = result.reference.accuracy, result.candidate.accuracy
    ends = result.top5_drop_interval if top5 else result.top1_drop_interval
    low, high = ends or (None, None)
    if before is None or after is None:
        message = "a drop of accuracy needs labels"
        raise ValueError(message)
    lost = (before.top5 or 0) - (after.top5 or 0) if top5 else before.top1 - after.top1
    return Value(lost, low, high, after.items)


def _accuracy(result: Evaluation) -> list[Section]:
    before, after = result.reference.accuracy, result.candidate.accuracy
    if before is None or after is None:
        return []
    columns = (
        Column("", text=True),
        Column("reference", "%"),
        Column("candidate", "%"),
        Column("drop", "points"),
        Column("labels", digits=0),
    )
    rows: list[tuple[Cell, ...]] = [
        ("top-1", _share(before.top1, before), _share(after.top1, after), _drop(result), after.items)
    ]
    if before.top5 is not None and after.top5 is not None:
        drop = _drop(result, top5=True)
        rows.append(("top-5", _share(before.top5, before), _share(after.top5, after), drop, after.items))
    caption = f"over {after.items} labels; 95 % intervals: Wilson's of shares, by resampling of the paired drop"
    return [Section("Accuracy", tables=(Table(columns, tuple(rows), caption),))]


def _costs(before: Side, after: Side) -> Table:
    columns = (
        Column("", text=True),
        Column("reference", digits=3),
        Column("candidate", digits=3),
        Column("candidate / reference", "x"),
    )
    rows: list[tuple[Cell, ...]] = [
        ("size, MB", before.size_bytes / 1e6, after.size_bytes / 1e6, after.size_bytes / before.size_bytes)
    ]
    caption = ""
    if before.latency is not None and after.latency is not None:
        one, other = before.latency, after.latency
        rows.append(("latency, ms", _time(one), _time(other), other.median_ms / one.median_ms))
        threads = f"{one.threads} thread{'' if one.threads == 1 else 's'}"
        caption = f"latency: median and quartiles of {one.runs} interleaved runs, {threads}, one sample a run"
    return Table(columns, tuple(rows), caption)


def _time(latency: Latency) -> Value:
    return Value(latency.median_ms, latency.low_ms, latency.high_ms, latency.runs)


def kernel_section(kernels: Sequence[Kernel]) -> Section:
    """Which heavy operators run on integers, and why the others do not."""
    floats = [kernel for kernel in kernels if not kernel.integer]
    integer = f"{len(kernels) - len(floats)} of {len(kernels)} heavy operators"
    text = f"{integer} run in integer kernels in the graph that onnxruntime executes."
    columns = (Column("operator", text=True), Column("kernel", text=True), Column("why in float", text=True))
    rows = tuple((kernel.operator, kernel.op_type, kernel.reason) for kernel in floats)
    tables = (Table(columns, rows),) if rows else ()
    return Section("Kernels that really run", (text,), tables, folded=bool(rows))
