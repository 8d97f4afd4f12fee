"""``qconvert quantize``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qconvert.cli import options as o
from qconvert.cli import reporting
from qconvert.errors import CalibrationError, DataError, PlanError

if TYPE_CHECKING:
    from qconvert.calibration import Calibration
    from qconvert.cli.terminal import Terminal
    from qconvert.pipeline import Quantized, Way
    from qconvert.policy import Policy
    from qconvert.preprocess import Preprocess


def _methods() -> list[str]:
    from qconvert.recover import AUTO, METHODS, NONE  # noqa: PLC0415 - --help does without

    return [AUTO, NONE, *METHODS]


MaybeModel = Annotated[
    Path | None,
    typer.Argument(
        metavar="MODEL",
        help="The float ONNX model. Default: the one that the .calib file here belongs to.",
        show_default=False,
    ),
]
Ranges = Annotated[
    Path | None,
    typer.Option(
        "--ranges",
        metavar="FILE",
        help="Take activations' ranges from another tool's .cache (TensorRT) or .json (onnxruntime); others from the "
        "calibrator.",
        rich_help_panel=o.QUANTIZATION,
        show_default=False,
    ),
]


Recover = Annotated[
    str | None,
    typer.Option(
        "--recover",
        metavar="METHODS",
        help="Win back accuracy: names of methods with commas between, or auto: what proves itself is kept.",
        rich_help_panel=o.QUANTIZATION,
        autocompletion=_methods,
        show_default=False,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        parser=o.seconds,
        help="When --recover begins no other method, e.g. 90s, 5m or 1h.",
        rich_help_panel=o.QUANTIZATION,
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Keep what --recover makes of layers in OUTPUT.recover.part until all is done, and go on from there.",
        rich_help_panel=o.EXECUTION,
    ),
]


FORM = "Form"
"""The panel of options about the file that is written."""

Mode = Annotated[
    Literal["static", "dynamic", "weight-only"],
    typer.Option(
        "--mode",
        help="Activations: quantized to calibrated ranges, to their own at run time, or left float.",
        rich_help_panel=o.QUANTIZATION,
    ),
]
ActivationScheme = Annotated[
    Literal["per-tensor", "per-token"],
    typer.Option(
        "--activation-scheme",
        help="Scales of dynamic activations: one for each tensor, or for each row of the last axis.",
        rich_help_panel=o.QUANTIZATION,
    ),
]
Bounded = Annotated[
    bool,
    typer.Option(
        "--bounded",
        help="Dynamic scales stay within what calibration saw.",
        rich_help_panel=o.QUANTIZATION,
    ),
]
FormatName = Annotated[
    Literal["qdq", "qoperator", "integer"],
    typer.Option(
        "--format",
        help="Float operators between Q/DQ pairs; onnxruntime's operators on levels; or no float tensor in between.",
        rich_help_panel=FORM,
    ),
]
InputTypeName = Annotated[
    Literal["float32", "uint8", "int8"],
    typer.Option("--input-type", help="What float inputs become.", rich_help_panel=FORM),
]
OutputTypeName = Annotated[
    Literal["float32", "uint8", "int8", "int32"],
    typer.Option(
        "--output-type", help="What float outputs become; int32: the sums of the last operator.", rich_help_panel=FORM
    ),
]
RequantName = Annotated[
    Literal["single", "double"],
    typer.Option(
        "--requant", help="Rounding of the integer format: TFLite's single or gemmlowp's double.", rich_help_panel=FORM
    ),
]
AllowFloat = Annotated[
    bool,
    typer.Option(
        "--allow-float",
        help="Operators without an integer form stay float in the integer format.",
        rich_help_panel=FORM,
    ),
]
ShardSize = Annotated[
    int | None,
    typer.Option(
        "--shard-size",
        metavar="SIZE",
        parser=o.size,
        help="Weights of weight-only models in files of at most this size, e.g. 2GB.",
        rich_help_panel=FORM,
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
    group_size: o.GroupSize = None,
    calibrator: o.CalibratorName = None,
    weight_calibrator: o.WeightCalibratorName = None,
    ranges: Ranges = None,
    mode: Mode = "static",
    activation_scheme: ActivationScheme = "per-tensor",
    bounded: Bounded = False,
    weights: o.WeightsType = None,
    activations: o.ActivationsType = None,
    exclude: o.Exclude = None,
    recover: Recover = None,
    budget: Budget = None,
    resume: Resume = False,
    file_format: FormatName = "qdq",
    input_type: InputTypeName = "float32",
    output_type: OutputTypeName = "float32",
    requant: RequantName = "single",
    allow_float: AllowFloat = False,
    shard_size: ShardSize = None,
    output: o.Output = None,
    reports: reporting.Reports = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    provider: o.Provider = "cpu",
    threads: o.Threads = 0,
    max_memory: o.MaxMemory = None,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Write the quantized model, proved on real samples, to MODEL.int8.onnx.

    Example: qconvert quantize --scheme per-channel

    Example: qconvert quantize model.onnx --data images/ --policy policy.yaml -o small.onnx

    Example: qconvert quantize --scheme per-channel --recover auto --budget 5m

    Example: qconvert quantize model.onnx --mode weight-only --weights int4 --scheme per-group
    """
    from qconvert import evidence, pipeline, report  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import Terminal, short  # noqa: PLC0415
    from qconvert.machine import saturation_warning  # noqa: PLC0415
    from qconvert.rewrite.forms import Form  # noqa: PLC0415
    from qconvert.support import check  # noqa: PLC0415

    terminal = Terminal(quiet=quiet)
    reporting.check(reports, force=force)
    wanted = o.read_policy(
        policy,
        target=target,
        scheme=scheme,
        group_size=group_size,
        calibrator=calibrator,
        weights=weights,
        weight_calibrator=weight_calibrator,
        activations=activations,
        exclude=exclude,
        recover=recover,
    )
    form = Form(file_format, input_type, output_type, requant, allow_float)
    way = pipeline.Way("dynamic" if mode == "dynamic" else "static", activation_scheme, bounded)
    given = _Given(model, calibration, data, o.read_preprocess(preprocess), samples, seed, strict)
    _check_mode(mode, way, given, shard_size)
    _check_recover(wanted, mode, budget, resume=resume)
    check(wanted, mode, form, activation_scheme=activation_scheme)
    place = _Place(output, force, provider, threads, max_memory, budget, resume)
    if mode == "weight-only" and model is not None:
        found = None
        result = _weights_only(model, given, wanted, place, shard_size, terminal)
    else:
        model, found = _statistics(given, wanted, way, place, terminal)
        result = pipeline.quantize(
            model,
            found,
            output=place.of(model, wanted, mode),
            policy=wanted,
            ranges=ranges,
            way=way,
            form=form,
            provider=provider,
            budget=budget,
            resume=resume,
            force=force,
            listener=terminal,
        )
    report.console.warn_proof(result.proof, terminal.warn)
    if wanted.target == "ort-cpu" and mode != "weight-only" and (saturation := saturation_warning()):
        terminal.warn(saturation)
    if as_json:
        report.json.print_json(report.json.quantized(result))
    elif not quiet:
        report.console.quantized(result, terminal.console)
    if reports:
        reporting.finish(evidence.quantized_report(result, wanted, found), reports, terminal, force=force)
    path = place.of(model, wanted, mode)
    implied = data is None and calibration is None and output is None and mode == "static"
    pair = "" if implied else f"{short(model)} {short(path)} "
    terminal.done(f"{short(path)}: written; next: qconvert evaluate {pair}--data LABELLED_SAMPLES")


@dataclass(frozen=True)
class _Given:
    """What the user gave to quantize from."""

    model: Path | None
    calibration: Path | None
    data: Path | None
    preprocess: Preprocess | None
    samples: int | None
    seed: int
    strict: bool


@dataclass(frozen=True)
class _Place:
    """Where the work is done, what it may take, and where its result goes."""

    output: Path | None
    force: bool
    provider: str
    threads: int
    max_memory: int | None
    budget: float | None
    resume: bool

    def of(self, model: Path, policy: Policy, mode: str) -> Path:
        """The file to write."""
        return self.output or default_output(model, policy, mode)


def _check_mode(mode: str, way: Way, given: _Given, shard_size: int | None) -> None:
    """Refuses options that have no use, or exclude each other."""
    if mode != "dynamic" and (way.activation_scheme != "per-tensor" or way.bounded):
        raise PlanError("--activation-scheme and --bounded are of --mode dynamic", hint="add it, or leave them out")
    if mode == "weight-only" and given.calibration is not None:
        raise CalibrationError("--mode weight-only needs no statistics", hint="leave --calibration out")
    if mode != "weight-only" and shard_size is not None:
        raise DataError("--shard-size is of --mode weight-only", hint="leave it out")
    if given.data is None and (given.preprocess is not None or given.samples is not None or given.strict):
        raise DataError("--preprocess, --samples and --strict are about samples", hint="give --data, or leave them out")
    if given.data is not None and given.calibration is not None:
        raise CalibrationError("--data and --calibration exclude each other", hint="give one of them")
    if given.model is None and (given.data is not None or mode == "weight-only"):
        option, value = ("--data", " SAMPLES") if given.data is not None else ("--mode weight-only", "")
        raise CalibrationError(f"{option} needs MODEL", hint=f"qconvert quantize MODEL {option}{value}")


def _check_recover(policy: Policy, mode: str, budget: float | None, *, resume: bool) -> None:
    """Refuses options that have no use; weights alone are recovered unasked."""
    from qconvert.recover import asked_names  # noqa: PLC0415 - --help does without

    if asked_names(policy):
        return
    if budget is not None:
        raise PlanError("--budget is of --recover", hint="add --recover auto, or leave it out")
    if resume and mode != "weight-only":
        raise PlanError("--resume is of --recover", hint="add --recover auto, or leave it out")


def _weights_only(
    model: Path, given: _Given, policy: Policy, place: _Place, shard_size: int | None, terminal: Terminal
) -> Quantized:
    from qconvert.weight_only import quantize_weights  # noqa: PLC0415 - --help does without

    return quantize_weights(
        model,
        output=place.of(model, policy, "weight-only"),
        policy=policy,
        data=given.data,
        preprocess=given.preprocess,
        limit=given.samples,
        seed=given.seed,
        provider=place.provider,
        max_memory=place.max_memory,
        shard_size=shard_size,
        budget=place.budget,
        resume=place.resume,
        force=place.force,
        listener=terminal,
    )


def _statistics(
    given: _Given, policy: Policy, way: Way, place: _Place, terminal: Terminal
) -> tuple[Path, Calibration | None]:
    """The model, and its statistics: made now, read from a file, or none where nothing needs them."""
    from qconvert import pipeline  # noqa: PLC0415 - --help does without
    from qconvert.files import check_writable  # noqa: PLC0415

    model = given.model
    if given.data is not None and model is not None:
        check_writable(place.of(model, policy, way.mode), force=place.force, keep=model)
        return model, pipeline.calibrate(
            model,
            given.data,
            policy=policy,
            preprocess=given.preprocess,
            limit=given.samples,
            seed=given.seed,
            provider=place.provider,
            threads=place.threads,
            max_memory=place.max_memory,
            strict=given.strict,
            listener=terminal,
        )
    needless = way.mode == "dynamic" and not way.bounded and given.calibration is None
    if needless and model is not None and not _beside(model):
        return model, None
    return _stored(model, given.calibration, terminal)


def default_output(model: Path, policy: Policy, mode: str = "static") -> Path:
    """``MODEL.int8.onnx`` in the current folder, by the type of the weights; other targets and modes are named, too."""
    weights = policy.defaults.weights.dtype or "int8"
    middle = weights if mode == "static" else f"{weights}.{mode}"
    return Path(f"{model.stem}.{middle if policy.target == 'ort-cpu' else f'{middle}.{policy.target}'}.onnx")


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
