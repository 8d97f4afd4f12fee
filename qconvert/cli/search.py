"""``qconvert search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qconvert.cli import options as o
from qconvert.cli import reporting, sensitivity
from qconvert.errors import DataError
from qconvert.searching.types import Found, Goal, Limit

SEARCH = "Search"
SUFFIX = ".policy.yaml"
"""How the policy's file ends where no name is given."""

MIXED = ".mixed.onnx"
"""How the model's file ends, in place of the policy's ending."""

ENDINGS = {"%": 0.01, "x": 1.0, "ms": 1.0}
"""Of limits, but for bytes."""


def limit(text: str) -> Limit:
    """``25%`` and ``0.6x`` as a share, ``3MB`` as bytes, ``12ms`` as milliseconds."""
    ending, factor = next(((one, by) for one, by in ENDINGS.items() if text.endswith(one)), ("", 1.0))
    if not ending:
        return Limit(float(o.size(text)), relative=False)
    try:
        found = factor * float(text.removesuffix(ending))
    except ValueError:
        found = -1.0
    if not 0 < found < float("inf"):
        message = f"expected a number above 0 before '{ending}', got '{text}'"
        raise typer.BadParameter(message)
    return Limit(found, relative=ending != "ms")


MaxSize = Annotated[
    Limit | None,
    typer.Option(
        "--max-size",
        metavar="SIZE",
        parser=limit,
        help="Bytes of the file that are the most, e.g. 3MB, or 25% of the float model's.",
        rich_help_panel=reporting.GATES,
        show_default=False,
    ),
]
MaxLatency = Annotated[
    Limit | None,
    typer.Option(
        "--max-latency",
        metavar="TIME",
        parser=limit,
        help="Time of a run in onnxruntime that is the most, e.g. 12ms, or 0.6x of the float model's.",
        rich_help_panel=reporting.GATES,
        show_default=False,
    ),
]
Ladder = Annotated[
    str | None,
    typer.Option(
        "--ladder",
        metavar="RUNGS",
        help="What an operator may be, e.g. W2A8,W4A8,W8A8,float. Default: W4A8,W8A8,W8A16,float, as far as the target "
        "takes them.",
        rich_help_panel=SEARCH,
        show_default=False,
    ),
]
By = Annotated[
    Literal["operator", "block"], typer.Option("--by", help="What has a rung of its own.", rich_help_panel=SEARCH)
]
PolicyOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="POLICY",
        help="Where to write the policy, NAME.policy.yaml; its model lies beside it, NAME.mixed.onnx. Default: "
        "MODEL.policy.yaml in this folder.",
        rich_help_panel=o.OUTPUT,
        show_default=False,
    ),
]

Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Keep what was run in MODEL.search.part until all is done, and go on from there.",
        rich_help_panel=o.EXECUTION,
    ),
]


def command(
    model: o.ModelArgument,
    data: o.Data,
    labels: o.Labels = None,
    preprocess: o.PreprocessName = None,
    samples: o.Samples = None,
    seed: o.Seed = 0,
    strict: o.Strict = False,
    calibration: o.CalibrationFile = None,
    policy: o.PolicyFile = None,
    target: o.TargetName = None,
    scheme: o.SchemeName = None,
    group_size: o.GroupSize = None,
    calibrator: o.CalibratorName = None,
    weight_calibrator: o.WeightCalibratorName = None,
    exclude: o.Exclude = None,
    ladder: Ladder = None,
    by: By = "operator",
    max_drop: reporting.MaxDrop = None,
    min_sqnr: reporting.MinSqnr = None,
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    output: PolicyOutput = None,
    reports: reporting.Reports = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    threads: o.Threads = 0,
    max_memory: o.MaxMemory = None,
    time_budget: sensitivity.TimeBudget = None,
    resume: Resume = False,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Find and write a model with every operator's own precision under a bound; verified on samples held back.

    Example: qconvert search model.onnx --data labelled/ --max-drop 0.5

    Example: qconvert search model.onnx --data images/ --max-size 25% --ladder W4A8,W8A8
    """
    from qconvert import evidence, pipeline, report  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import Terminal, short  # noqa: PLC0415
    from qconvert.files import atomic_output, check_writable  # noqa: PLC0415
    from qconvert.pipeline.searching import PART_SUFFIX  # noqa: PLC0415

    terminal = Terminal(quiet=quiet)
    goal = _goal(max_drop, min_sqnr, max_size, max_latency)
    reporting.check(reports, force=force)
    written = output or Path(f"{model.stem}{SUFFIX}")
    check_writable(written, force=force, keep=policy)
    mixed = written.with_name(written.name.removesuffix(".yaml").removesuffix(".policy") + MIXED)
    wanted = o.read_policy(
        policy,
        target=target,
        scheme=scheme,
        group_size=group_size,
        calibrator=calibrator,
        weight_calibrator=weight_calibrator,
        exclude=exclude,
    )
    rungs = tuple(name for name in ladder.split(",") if name.strip()) if ladder is not None else None
    result = pipeline.search(
        model,
        data,
        wanted=pipeline.Wanted(goal, rungs, by, time_budget),
        output=mixed,
        calibrated=sensitivity.statistics(model, calibration, terminal),
        policy=wanted,
        labels=labels,
        preprocess=o.read_preprocess(preprocess),
        limit=samples,
        seed=seed,
        threads=threads,
        max_memory=max_memory,
        journal=Path(f"{model.stem}{PART_SUFFIX}") if resume else None,
        strict=strict,
        force=force,
        listener=terminal,
    )
    found, quantized = result.found, result.quantized
    if as_json:
        report.json.print_json(report.json.searched(result))
    else:
        report.search.show(found)
    with atomic_output(written, force=force) as temporary:
        temporary.write_text(found.chosen.policy, encoding="utf-8")
    if quantized is None:
        terminal.done(f"{short(written)}: written{_without_model(found, short(model), short(written))}")
    else:
        report.console.warn_proof(quantized.proof, terminal.warn)
        terminal.done(f"{short(written)}: written")
        labelled = "" if labels is None else f" --labels {short(labels)}"
        pair = f"{short(model)} {short(mixed)}"
        terminal.done(f"{short(mixed)}: written; next: qconvert evaluate {pair} --data {short(data)}{labelled}")
    made = evidence.search_report(found, model, mixed if quantized is not None else None)
    reporting.finish(made, reports, terminal, force=force)


def _without_model(found: Found, model: str, written: str) -> str:
    """What is to say of a policy whose model was not written."""
    if found.chosen.stays_float:
        return ": everything stays float, there is no model to write"
    nearest = "" if found.met else f" with the nearest, {found.chosen.name}"
    return f"{nearest}; next: qconvert quantize {model} --policy {written}"


def _goal(
    max_drop: float | None,
    min_sqnr: float | None,
    max_size: Limit | None,
    max_latency: Limit | None,
) -> Goal:
    if sum(bound is not None for bound in (max_drop, min_sqnr, max_size, max_latency)) != 1:
        raise DataError("search needs one bound", hint="give --max-drop, --min-sqnr, --max-size or --max-latency")
    return Goal(max_drop, min_sqnr, max_size, max_latency)
