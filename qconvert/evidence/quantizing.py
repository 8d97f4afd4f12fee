"""The report of ``quantize``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from qconvert.evidence import common
from qconvert.evidence.evaluating import kernel_section
from qconvert.pipeline import Quantized
from qconvert.plan import Entry, Plan
from qconvert.policy import Policy, dump
from qconvert.reports import Column, Data, Distribution, Mark, Measure, Report, Section, Table, Value
from qconvert.thresholds import coarse

if TYPE_CHECKING:
    from qconvert.calibration import Calibration
    from qconvert.histogram import TensorStats

BINS = 96
"""Bins of a histogram: as many as a phone has room for."""


def quantized_report(result: Quantized, policy: Policy, calibrated: Calibration | None = None) -> Report:
    """What was planned, with reasons and histograms, and what was seen of the written model.

    Args:
        result: What quantize wrote and saw.
        policy: What was asked for.
        calibrated: The statistics behind the ranges; None where there are none.
    """
    plan, proof = result.plan, result.proof
    caption = f"over {proof.samples} samples, as onnxruntime runs the model here"
    measures = common.fidelity_measures(proof.fidelity)
    measures.append(Measure("size_bytes", "size of the written model", Value(float(result.size_after)), "B", "down"))
    sections = [
        Section("Fidelity of the outputs", tables=(common.fidelity_table(proof.fidelity, caption),)),
        _summary(result),
        *_tried(result),
        kernel_section(proof.kernels),
        *_floats(plan),
        *_grids(plan),
        *_histograms(plan, calibrated),
    ]
    return Report(
        title=f"{result.path.name}: {result.model.name} quantized for {plan.target}",
        command="quantize",
        models=(
            common.model("original", result.model, result.size_before),
            common.model("written", result.path, result.size_after),
        ),
        data=_data(calibrated),
        measures=tuple(measures),
        sections=tuple(sections),
        policy=dump(policy),
        citations=common.citations(entry.method for entry in plan.entries),
        notes=plan.notes,
        versions=common.versions(),
    )


def _data(calibrated: Calibration | None) -> Data | None:
    return None if calibrated is None else common.data(calibrated.data, calibrated.samples)


def _summary(result: Quantized) -> Section:
    plan = result.plan
    roles = Counter(entry.role for entry in plan.entries)
    methods = Counter(entry.method for entry in plan.of("activation"))
    rows = [
        ("operators on integers", len(plan.integer)),
        ("operators in float", len(plan.floats)),
        ("clamps absorbed by grids", len(plan.absorbed)),
        *((f"quantized {role} tensors", count) for role, count in roles.items()),
        *((f"activation ranges by {method}", count) for method, count in methods.most_common()),
        ("size before, MB", result.size_before / 1e6),
        ("size after, MB", result.size_after / 1e6),
    ]
    return Section("What was done", tables=(Table((Column("", text=True), Column("")), tuple(rows)),))


def _tried(result: Quantized) -> list[Section]:
    if not result.tried:
        return []
    columns = (
        Column("method", text=True),
        Column("SQNR without it", "dB"),
        Column("with it", "dB"),
        Column("time, s", digits=1),
        Column("", text=True),
    )
    rows = tuple(
        (one.method, one.before_db, one.after_db, one.seconds, ("kept" if one.kept else one.why or "not kept"))
        for one in result.tried
    )
    caption = "of the outputs, on samples of the calibration; each on top of what was kept before it"
    return [Section("Winning back accuracy", tables=(Table(columns, rows, caption),))]


def _floats(plan: Plan) -> list[Section]:
    if not plan.floats:
        return []
    columns = (Column("operator", text=True), Column("type", text=True), Column("why in float", text=True))
    rows = tuple((op.operator, op.op_type, op.reason) for op in plan.floats)
    return [Section("Operators that stay float", tables=(Table(columns, rows),), folded=True)]


def _grids(plan: Plan) -> list[Section]:
    entries = [entry for entry in plan.entries if entry.role != "bias"]
    columns = (
        Column("tensor", text=True),
        Column("is", text=True),
        Column("type", text=True),
        Column("low", digits=4),
        Column("high", digits=4),
        Column("range from", text=True),
        Column("why", text=True),
    )
    rows = tuple(
        (entry.tensor, entry.role, entry.params.dtype.name, *_ends(entry), entry.method, entry.reason)
        for entry in entries
    )
    caption = "the grid of every tensor but the biases; where it has several scales, the widest ends"
    return [Section("The plan", tables=(Table(columns, rows, caption),), folded=True)] if rows else []


def _ends(entry: Entry) -> tuple[float, float]:
    return float(entry.params.low.min()), float(entry.params.high.max())


def _histograms(plan: Plan, calibrated: Calibration | None) -> list[Section]:
    if calibrated is None:
        return []
    figures = tuple(
        _histogram(entry, calibrated.stats[entry.tensor])
        for entry in plan.of("activation")
        if entry.tensor in calibrated.stats
    )
    text = (f"Over {calibrated.samples} samples. Exact zeros are left out; lines are the ends of the chosen range.",)
    drawn = tuple(figure for figure in figures if figure.counts)
    return [Section("Activations and their ranges", text, figures=drawn, folded=True)] if drawn else []


def _histogram(entry: Entry, stats: TensorStats) -> Distribution:
    edges, counts = coarse(stats, BINS)
    low, high = _ends(entry)
    marks = (Mark(f"{entry.method}: low", low), Mark(f"{entry.method}: high", high))
    return Distribution(
        entry.tensor, tuple(map(float, edges)), tuple(int(count) for count in counts), marks, entry.reason
    )
