"""Options that mean the same on every command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qconvert.policy import Policy
    from qconvert.preprocess import Preprocess

INPUT, CALIBRATION, QUANTIZATION, OUTPUT, EXECUTION = "Input", "Calibration", "Quantization", "Output", "Execution"


def _complete(module: str, table: str, incomplete: str) -> Iterator[str]:
    from importlib import import_module  # noqa: PLC0415 - only while the shell completes

    return (name for name in getattr(import_module(module), table) if name.startswith(incomplete))


def _calibrators(incomplete: str) -> Iterator[str]:
    return _complete("qconvert.calibrators", "CALIBRATORS", incomplete)


def _targets(incomplete: str) -> Iterator[str]:
    return _complete("qconvert.targets", "TARGETS", incomplete)


def _presets(incomplete: str) -> Iterator[str]:
    return _complete("qconvert.preprocess", "PRESETS", incomplete)


def _schemes(incomplete: str) -> Iterator[str]:
    return (name for name in ("per-tensor", "per-channel", "per-group") if name.startswith(incomplete))


def _providers(incomplete: str) -> Iterator[str]:
    return (name for name in ("cpu", "cuda", "tensorrt") if name.startswith(incomplete))


def _weights(incomplete: str) -> Iterator[str]:
    return _complete("qconvert.numerics", "QUANT_TYPES", incomplete)


ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="The float ONNX model.", show_default=False)]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Samples: a folder of images, of .npy/.npz files or of ONNX test data; or one file.",
        rich_help_panel=INPUT,
        show_default=False,
    ),
]
MaybeData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Samples: a folder of images, of .npy/.npz files or of ONNX test data; or one file.",
        rich_help_panel=INPUT,
        show_default=False,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", help="CSV file,label; class folders need none.", rich_help_panel=INPUT, show_default=False
    ),
]
PreprocessName = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        help="How images become inputs: a preset (imagenet, unit, centered, ...). Default: inferred, and said.",
        rich_help_panel=INPUT,
        autocompletion=_presets,
        show_default=False,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples",
        "-n",
        min=1,
        help="Use N samples, chosen by --seed. Default: all.",
        rich_help_panel=INPUT,
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Which samples are chosen.", rich_help_panel=INPUT)]
Strict = Annotated[
    bool, typer.Option("--strict", help="A sample that cannot be read is an error.", rich_help_panel=INPUT)
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        "-p",
        help="Policy file ('qconvert policy init' writes one).",
        rich_help_panel=QUANTIZATION,
        show_default=False,
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Runtime the model is for ('qconvert targets'). Default: ort-cpu.",
        rich_help_panel=QUANTIZATION,
        autocompletion=_targets,
        show_default=False,
    ),
]
SchemeName = Annotated[
    str | None,
    typer.Option(
        "--scheme",
        help="Scales of weights: per-tensor, per-channel or per-group. Default: per-channel.",
        rich_help_panel=QUANTIZATION,
        autocompletion=_schemes,
        show_default=False,
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        "--group-size",
        min=2,
        help="Inputs of a channel that share a scale where the scheme is per-group. Default: 32.",
        rich_help_panel=QUANTIZATION,
        show_default=False,
    ),
]
CalibratorName = Annotated[
    str | None,
    typer.Option(
        "--calibrator",
        help="How ranges are found: minmax, average, percentile, entropy, mse, octav, aciq, admm or emd; "
        "with parameters: percentile:percentile=99.9.",
        rich_help_panel=QUANTIZATION,
        autocompletion=_calibrators,
        show_default=False,
    ),
]
WeightCalibratorName = Annotated[
    str | None,
    typer.Option(
        "--weight-calibrator",
        help="How weights' ranges are found, written as for --calibrator. Default: their whole range.",
        rich_help_panel=QUANTIZATION,
        autocompletion=_calibrators,
        show_default=False,
    ),
]
WeightsType = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Type of weights: int8, uint8, int4, ... Default: the target's.",
        rich_help_panel=QUANTIZATION,
        autocompletion=_weights,
        show_default=False,
    ),
]
ActivationsType = Annotated[
    str | None,
    typer.Option(
        "--activations",
        help="Type of activations: uint8, int8, uint4, ... Default: the target's.",
        rich_help_panel=QUANTIZATION,
        autocompletion=_weights,
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="GLOB",
        help="Leave these operators float, by name or type. Repeatable.",
        rich_help_panel=QUANTIZATION,
        show_default=False,
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="A .calib file. Default: the one in this folder.",
        rich_help_panel=CALIBRATION,
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Where to write.", rich_help_panel=OUTPUT, show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.", rich_help_panel=OUTPUT)]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress.", rich_help_panel=OUTPUT)]
Provider = Annotated[
    str,
    typer.Option(
        "--provider",
        help="Where models run: cpu, cuda or tensorrt.",
        rich_help_panel=EXECUTION,
        autocompletion=_providers,
    ),
]
Threads = Annotated[
    int,
    typer.Option("--threads", min=0, help="Samples in flight; 0: one for each CPU.", rich_help_panel=EXECUTION),
]


def size(text: str) -> int:
    """Bytes of ``800MB`` or ``2GiB``."""
    from pydantic import ByteSize, TypeAdapter, ValidationError  # noqa: PLC0415 - --help does without

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"expected a size as 800MB or 2GiB, got '{text}'") from None


def seconds(text: str) -> float:
    """Of ``90``, ``90s``, ``5m`` or ``1h``."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    with contextlib.suppress(ValueError):
        if float(number) >= 0:
            return float(number) * unit
    raise typer.BadParameter(f"expected a time as 90s, 5m or 1h, got '{text}'")


MaxMemory = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        parser=size,
        help="Memory the process may take, e.g. 800MB or 2GiB: values are observed in several passes to stay below.",
        rich_help_panel=EXECUTION,
        show_default=False,
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on where a run that was stopped had come to.", rich_help_panel=EXECUTION),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=EXECUTION)]


def read_policy(
    path: Path | None,
    *,
    target: str | None = None,
    scheme: str | None = None,
    group_size: int | None = None,
    calibrator: str | None = None,
    weight_calibrator: str | None = None,
    weights: str | None = None,
    activations: str | None = None,
    exclude: list[str] | None = None,
    recover: str | None = None,
) -> Policy:
    """The policy file with the options of the command line over it."""
    from qconvert.policy import Policy, load  # noqa: PLC0415 - --help does without

    policy = load(path) if path is not None else Policy()
    return policy.override(
        target=target,
        scheme=scheme,
        group_size=group_size,
        calibrator=calibrator,
        weight_calibrator=weight_calibrator,
        weights=weights,
        activations=activations,
        exclude=tuple(exclude or ()),
        recover=None if recover is None else [name.strip() for name in recover.split(",") if name.strip()],
    )


def read_preprocess(name: str | None) -> Preprocess | None:
    """The preset of that name."""
    from qconvert.preprocess import preset  # noqa: PLC0415 - --help does without

    return None if name is None else preset(name)
