"""``qconvert sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qconvert.cli import options as o
from qconvert.cli import reporting
from qconvert.errors import CalibrationError, DataError

if TYPE_CHECKING:
    from qconvert.calibration import Calibration
    from qconvert.cli.terminal import Terminal
    from qconvert.sensing.suggest import Bound

EXPERIMENT = "Experiment"

Mode = Annotated[
    Literal["only", "all-but", "local"],
    typer.Option(
        "--mode",
        help="Quantize one and nothing else; all but one; or compare the output of each alone, given float inputs.",
        rich_help_panel=EXPERIMENT,
    ),
]
By = Annotated[
    Literal["operator", "block", "op-type", "tensor"],
    typer.Option("--by", help="What is ranked.", rich_help_panel=EXPERIMENT),
]
MetricName = Annotated[
    str,
    typer.Option(
        "--metric",
        help="What ranks: sqnr, cosine, kl, agreement, top1, top5, or your own, module:function, which gets the float "
        "outputs, those to judge and the labels of a sample; greater is better.",
        rich_help_panel=EXPERIMENT,
    ),
]
Exhaustive = Annotated[
    bool,
    typer.Option(
        "--exhaustive", help="Run everything on all samples, also what a few have ranked.", rich_help_panel=EXPERIMENT
    ),
]
Suggest = Annotated[
    Path | None,
    typer.Option(
        "--suggest",
        metavar="POLICY",
        help="Write a policy with the fewest exclusions that meets --max-drop or --min-sqnr.",
        rich_help_panel=o.OUTPUT,
        show_default=False,
    ),
]
Remedy = Annotated[
    Literal["float", "16-bit"],
    typer.Option("--remedy", help="What --suggest does to operators that harm.", rich_help_panel=EXPERIMENT),
]
Top = Annotated[int, typer.Option("--top", min=0, help="Rows to show; 0: all.", rich_help_panel=o.OUTPUT)]


TimeBudget = Annotated[
    float | None,
    typer.Option(
        "--time-budget",
        metavar="TIME",
        parser=o.seconds,
        help="End after this time, e.g. 60s or 5m, and say what is not settled.",
        rich_help_panel=o.EXECUTION,
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Keep finished experiments in MODEL.sensitivity.part until all are done, and go on from there.",
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
    weights: o.WeightsType = None,
    activations: o.ActivationsType = None,
    exclude: o.Exclude = None,
    mode: Mode = "only",
    by: By = "operator",
    metric: MetricName = "sqnr",
    exhaustive: Exhaustive = False,
    max_drop: reporting.MaxDrop = None,
    min_sqnr: reporting.MinSqnr = None,
    remedy: Remedy = "float",
    suggest: Suggest = None,
    baseline: reporting.Baseline = None,
    reports: reporting.Reports = None,
    top: Top = 20,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    threads: o.Threads = 0,
    max_memory: o.MaxMemory = None,
    time_budget: TimeBudget = None,
    resume: Resume = False,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Rank operators by the harm their quantization does, with intervals; --suggest writes the policy that mends it.

    Example: qconvert sensitivity model.onnx --data images/ -n 64

    Example: qconvert sensitivity model.onnx --data labelled/ --suggest policy.yaml --max-drop 0.5
    """
    from qconvert import evidence, pipeline, report  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import Terminal, short  # noqa: PLC0415
    from qconvert.files import atomic_output, check_writable  # noqa: PLC0415
    from qconvert.gates import Bounds  # noqa: PLC0415
    from qconvert.sensing.custom import load_metric  # noqa: PLC0415

    terminal = Terminal(quiet=quiet)
    bound = _bound(suggest, max_drop, min_sqnr, remedy)
    stored = reporting.check(reports, baseline, force=force)
    if suggest is not None:
        check_writable(suggest, force=force, keep=policy)
    wanted = o.read_policy(
        policy,
        target=target,
        scheme=scheme,
        group_size=group_size,
        calibrator=calibrator,
        weight_calibrator=weight_calibrator,
        weights=weights,
        activations=activations,
        exclude=exclude,
    )
    name, custom = load_metric(metric)
    result = pipeline.sensitivity(
        model,
        data,
        question=pipeline.Question(mode, by, name, custom, exhaustive, time_budget, bound),
        calibrated=statistics(model, calibration, terminal),
        policy=wanted,
        labels=labels,
        preprocess=o.read_preprocess(preprocess),
        limit=samples,
        seed=seed,
        threads=threads,
        max_memory=max_memory,
        journal=Path(f"{model.stem}{pipeline.PART_SUFFIX}") if resume else None,
        strict=strict,
        listener=terminal,
    )
    if as_json:
        report.json.print_json(report.json.plain(result))
    else:
        report.sensitivity.show(result, top=top or len(result.rows))
    if suggest is not None and result.suggestion is not None:
        with atomic_output(suggest, force=force) as temporary:
            temporary.write_text(result.suggestion.policy, encoding="utf-8")
        terminal.done(f"{short(suggest)}: written; next: qconvert quantize {short(model)} --policy {short(suggest)}")
        if not result.suggestion.met:
            terminal.missed(f"--suggest: {result.suggestion.bound}")
    made = evidence.sensitivity_report(result, model, wanted)
    limits = Bounds() if bound is not None else Bounds(max_drop, min_sqnr)
    gates = evidence.with_subjects(reporting.gates(made, limits, stored, baseline), result)
    reporting.finish(made.with_gates(gates), reports, terminal, force=force)
    if result.suggestion is not None and not result.suggestion.met:
        raise typer.Exit(reporting.MISSED)


def _bound(suggest: Path | None, max_drop: float | None, min_sqnr: float | None, remedy: str) -> Bound | None:
    from qconvert.sensing.suggest import Bound  # noqa: PLC0415 - --help does without

    if suggest is None:
        if remedy != "float":
            raise DataError("--remedy is of --suggest", hint="add --suggest POLICY, or leave it out")
        return None
    if (max_drop is None) == (min_sqnr is None):
        raise DataError("--suggest needs one bound", hint="give --max-drop POINTS or --min-sqnr DB")
    return Bound(max_drop, min_sqnr, "16-bit" if remedy == "16-bit" else "float")


def statistics(model: Path, given: Path | None, terminal: Terminal) -> Calibration | None:
    """The file that was named, or ``MODEL.calib`` in this folder where it is of this model."""
    from qconvert import calibration as files  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import short  # noqa: PLC0415

    if given is not None:
        return files.load(given)
    path = Path(model.with_suffix(files.SUFFIX).name)
    if not path.is_file():
        return None
    found = files.load(path)
    try:
        files.check_model(found, model)
    except CalibrationError:
        terminal.note(f"{short(path)} belongs to another model and is not used")
        return None
    terminal.note(f"statistics of {found.samples} samples from {short(path)}")
    return found
