"""``qconvert quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qconvert.cli import options as o
from qconvert.errors import CalibrationError, DataError

if TYPE_CHECKING:
    from qconvert.calibration import Calibration
    from qconvert.cli.terminal import Terminal

MaybeModel = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        help="The float ONNX model. Default: the one that the .calib file here belongs to.",
        show_default=False,
    ),
]


def command(
    model: MaybeModel = None,
    calibration: o.CalibrationFile = None,
    data: o.MaybeData = None,
    preprocess: o.PreprocessName = None,
    samples: o.Samples = None,
    seed: o.Seed = 0,
    strict: o.Strict = False,
    policy: o.PolicyFile = None,
    target: o.TargetName = None,
    scheme: o.SchemeName = None,
    calibrator: o.CalibratorName = None,
    weights: o.WeightsType = None,
    activations: o.ActivationsType = None,
    exclude: o.Exclude = None,
    output: o.Output = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    provider: o.Provider = "cpu",
    threads: o.Threads = 0,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Write the quantized model, proved on real samples, to MODEL.int8.onnx.

    Example: qconvert quantize --scheme per-channel

    Example: qconvert quantize model.onnx --data images/ --policy policy.yaml -o small.onnx
    """
    from qconvert import pipeline, report  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import Terminal, short  # noqa: PLC0415
    from qconvert.files import check_writable  # noqa: PLC0415
    from qconvert.machine import saturation_warning  # noqa: PLC0415

    terminal = Terminal(quiet=quiet)
    wanted = o.read_policy(
        policy,
        target=target,
        scheme=scheme,
        calibrator=calibrator,
        weights=weights,
        activations=activations,
        exclude=exclude,
    )
    if data is None and (preprocess is not None or samples is not None or strict):
        raise DataError("--preprocess, --samples and --strict are about samples", hint="give --data, or leave them out")
    if data is not None:
        if calibration is not None:
            raise CalibrationError("--data and --calibration exclude each other", hint="give one of them")
        if model is None:
            raise CalibrationError("--data needs MODEL", hint="qconvert quantize MODEL --data SAMPLES")
        check_writable(output or default_output(model, wanted.target), force=force, keep=model)
        found = pipeline.calibrate(
            model,
            data,
            policy=wanted,
            preprocess=o.read_preprocess(preprocess),
            limit=samples,
            seed=seed,
            provider=provider,
            threads=threads,
            strict=strict,
            listener=terminal,
        )
    else:
        model, found = _stored(model, calibration, terminal)
    found_here = data is None and calibration is None
    path = output or default_output(model, wanted.target)
    result = pipeline.quantize(
        model, found, output=path, policy=wanted, provider=provider, force=force, listener=terminal
    )
    report.console.warn_proof(result.proof, terminal.warn)
    if wanted.target == "ort-cpu" and (saturation := saturation_warning()):
        terminal.warn(saturation)
    if as_json:
        report.json.print_json(report.json.quantized(result))
    elif not quiet:
        report.console.quantized(result, terminal.console)
    pair = "" if found_here and output is None else f"{short(model)} {short(path)} "
    terminal.done(f"{short(path)}: written; next: qconvert evaluate {pair}--data LABELLED_SAMPLES")


def default_output(model: Path, target: str) -> Path:
    """``MODEL.int8.onnx`` in the current folder; other targets put their name before the ending."""
    middle = "int8" if target == "ort-cpu" else f"int8.{target}"
    return Path(f"{model.stem}.{middle}.onnx")


def _stored(model: Path | None, calibrated: Path | None, terminal: Terminal) -> tuple[Path, Calibration]:
    """The statistics from a file, and the model that they belong to where none was given."""
    from qconvert import calibration as files  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import short  # noqa: PLC0415

    path = calibrated or _beside(model) or files.find(Path())
    found = files.load(path)
    if calibrated is None:
        terminal.note(f"statistics of {found.samples} samples from {short(path)}")
    if model is None:
        model = files.model_path(found, path)
        terminal.note(f"model {short(model)}, which {short(path)} belongs to")
    return model, found


def _beside(model: Path | None) -> Path | None:
    """``MODEL.calib`` in the current folder, where calibrate writes it."""
    from qconvert.calibration import SUFFIX  # noqa: PLC0415 - --help does without

    path = Path(model.with_suffix(SUFFIX).name) if model is not None else None
    return path if path is not None and path.is_file() else None
