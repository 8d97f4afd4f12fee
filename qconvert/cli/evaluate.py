"""``qconvert evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qconvert.cli import options as o
from qconvert.cli import reporting
from qconvert.errors import CalibrationError, ModelError, QConvertError

if TYPE_CHECKING:
    from qconvert.cli.terminal import Terminal
    from qconvert.layers import Layers
    from qconvert.preprocess import Preprocess

LOCATED = 16
"""Samples on which a missed gate is traced to operators, at most."""

Reference = Annotated[
    Path | None,
    typer.Argument(
        metavar="REFERENCE",
        help="The original model. Default: the one that the .calib file here belongs to.",
        show_default=False,
    ),
]
Candidate = Annotated[
    Path | None,
    typer.Argument(
        metavar="CANDIDATE", help="The model to judge. Default: REFERENCE.int8.onnx in this folder.", show_default=False
    ),
]
LatencyRuns = Annotated[
    int,
    typer.Option(
        "--latency-runs", min=0, help="Timed runs of each model, interleaved; 0: none.", rich_help_panel=o.EXECUTION
    ),
]


def command(
    data: o.Data,
    reference: Reference = None,
    candidate: Candidate = None,
    labels: o.Labels = None,
    preprocess: o.PreprocessName = None,
    samples: o.Samples = None,
    seed: o.Seed = 0,
    strict: o.Strict = False,
    max_drop: reporting.MaxDrop = None,
    min_sqnr: reporting.MinSqnr = None,
    baseline: reporting.Baseline = None,
    reports: reporting.Reports = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    provider: o.Provider = "cpu",
    threads: o.Threads = 0,
    latency_runs: LatencyRuns = 30,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Compare a model with its original: accuracy, fidelity, size, latency, and which operators really run on integers.

    Example: qconvert evaluate model.onnx model.int8.onnx --data labelled/ --labels labels.csv

    Example: qconvert evaluate --data labelled/ --max-drop 1 --report report.html --report report.json
    """
    from qconvert import evidence, pipeline, report  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import Terminal  # noqa: PLC0415
    from qconvert.gates import Bounds  # noqa: PLC0415

    terminal = Terminal(quiet=quiet)
    stored = reporting.check(reports, baseline, force=force)
    before = reference or _reference(terminal)
    after = candidate or _candidate(before, terminal)
    chosen = o.read_preprocess(preprocess)
    result = pipeline.evaluate(
        before,
        after,
        data,
        labels=labels,
        preprocess=chosen,
        limit=samples,
        seed=seed,
        provider=provider,
        threads=threads,
        latency_runs=latency_runs,
        strict=strict,
        listener=terminal,
    )
    if as_json:
        report.json.print_json(report.json.evaluation(result))
    else:
        report.console.evaluation(result)
    bounds = Bounds(max_drop, min_sqnr)
    if not reports and stored is None and bounds == Bounds():
        return
    made = evidence.evaluation_report(result)
    gates = reporting.gates(made, bounds, stored, baseline)
    if not all(gate.passed for gate in gates):
        found = _layers(
            before, after, data, chosen, limit=min(samples or LOCATED, LOCATED), seed=seed, terminal=terminal
        )
        if found is not None:
            gates = evidence.with_culprits(gates, found)
            made = made.with_section(*evidence.layers_section(found))
    reporting.finish(made.with_gates(gates), reports, terminal, force=force)


def _layers(
    reference: Path,
    candidate: Path,
    data: Path,
    preprocess: Preprocess | None,
    *,
    limit: int,
    seed: int,
    terminal: Terminal,
) -> Layers | None:
    """Where the error of a missed gate enters; None, with a note, where the models have no inner value in common."""
    from qconvert import pipeline  # noqa: PLC0415 - --help does without
    from qconvert.listener import SILENT  # noqa: PLC0415

    try:
        return pipeline.compare(
            reference, candidate, data, preprocess=preprocess, limit=limit, seed=seed, listener=SILENT
        )
    except QConvertError as error:
        terminal.note(f"where the error enters is not known: {error}")
        return None


def _reference(terminal: Terminal) -> Path:
    from qconvert import calibration as files  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import short  # noqa: PLC0415

    path = files.find(Path())
    model = files.model_path(files.load(path), path)
    terminal.note(f"reference {short(model)}, which {short(path)} belongs to")
    return model


def _candidate(reference: Path, terminal: Terminal) -> Path:
    """The one quantized model of the reference in the current folder."""
    found = sorted(Path().glob(f"{reference.stem}.int8*.onnx"))
    if not found:
        raise ModelError(
            f"no {reference.stem}.int8.onnx in this folder", hint="give the model to judge as the second argument"
        )
    if len(found) > 1:
        raise CalibrationError(
            f"{len(found)} quantized models in this folder: {', '.join(map(str, found))}",
            hint="give one as the second argument",
        )
    terminal.note(f"candidate {found[0]}")
    return found[0]
