"""``qconvert compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qconvert.cli import options as o
from qconvert.cli import reporting

Reference = Annotated[Path, typer.Argument(metavar="FLOAT", help="The original model.", show_default=False)]
Candidate = Annotated[Path, typer.Argument(metavar="QUANTIZED", help="What was made of it.", show_default=False)]


def command(
    reference: Reference,
    candidate: Candidate,
    data: o.Data,
    preprocess: o.PreprocessName = None,
    samples: o.Samples = None,
    seed: o.Seed = 0,
    strict: o.Strict = False,
    reports: reporting.Reports = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    threads: o.Threads = 0,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Compare a quantized model with its original value by value, and show where the error enters.

    Example: qconvert compare model.onnx model.int8.onnx --data images/ -n 32 --report layers.html
    """
    from qconvert import evidence, pipeline, report  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import Terminal  # noqa: PLC0415

    terminal = Terminal(quiet=quiet)
    reporting.check(reports, force=force)
    result = pipeline.compare(
        reference,
        candidate,
        data,
        preprocess=o.read_preprocess(preprocess),
        limit=samples,
        seed=seed,
        threads=threads,
        strict=strict,
        listener=terminal,
    )
    if as_json:
        report.json.print_json(report.layers.as_json(result))
    else:
        report.layers.layers(result)
    if reports:
        reporting.finish(evidence.layers_report(result), reports, terminal, force=force)
