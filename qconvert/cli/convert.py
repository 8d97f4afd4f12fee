"""``qconvert convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qconvert.cli import options as o
from qconvert.errors import DataError

CONVERSION = "Conversion"

To = Annotated[
    Literal["fp16", "bf16"],
    typer.Option(
        "--to",
        help="fp16: compute in float16. bf16: store weights in bfloat16, compute in float32.",
        rich_help_panel=CONVERSION,
        show_default=False,
    ),
]
KeepIo = Annotated[
    bool,
    typer.Option("--keep-io/--no-keep-io", help="Inputs and outputs stay float32.", rich_help_panel=CONVERSION),
]
Block = Annotated[
    list[str] | None,
    typer.Option(
        "--block",
        metavar="GLOB",
        help="Keep these operators in float32, by name or type. Repeatable.",
        rich_help_panel=CONVERSION,
        show_default=False,
    ),
]
StorageOnly = Annotated[
    bool,
    typer.Option(
        "--storage-only",
        help="Only store weights in half precision: a smaller file that computes in float32.",
        rich_help_panel=CONVERSION,
    ),
]


def command(
    model: o.ModelArgument,
    to: To,
    keep_io: KeepIo = True,
    block: Block = None,
    storage_only: StorageOnly = False,
    data: o.MaybeData = None,
    preprocess: o.PreprocessName = None,
    samples: o.Samples = None,
    seed: o.Seed = 0,
    output: o.Output = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Write the model in half precision, compared with the original, to MODEL.fp16.onnx.

    No calibration; without --data the comparison is on random inputs.

    Example: qconvert convert model.onnx --to fp16 --data images/ --samples 16
    """
    from qconvert import report  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import Terminal, short  # noqa: PLC0415
    from qconvert.conversion import convert  # noqa: PLC0415
    from qconvert.report import half  # noqa: PLC0415

    if data is None and (preprocess is not None or samples is not None):
        raise DataError("--preprocess and --samples are about samples", hint="give --data, or leave them out")
    terminal = Terminal(quiet=quiet)
    path = output or Path(f"{model.stem}.{to}.onnx")
    result = convert(
        model,
        output=path,
        to=to,
        data=data,
        preprocess=o.read_preprocess(preprocess),
        limit=samples,
        seed=seed,
        keep_io=keep_io,
        block=tuple(block or ()),
        storage_only=storage_only,
        force=force,
        listener=terminal,
    )
    half.warn(result, terminal.warn)
    if as_json:
        report.json.print_json(half.as_json(result))
    elif not quiet:
        half.converted(result, terminal.console)
    terminal.done(
        f"{short(path)}: written; next: qconvert evaluate {short(model)} {short(path)} --data LABELLED_SAMPLES"
    )
