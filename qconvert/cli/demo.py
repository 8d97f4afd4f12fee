"""``qconvert demo``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from qconvert.cli import options as o
from qconvert.errors import DataError

Folder = Annotated[
    Path | None, typer.Option("--folder", help="Where to work. Default: a new temporary folder.", show_default=False)
]


def command(folder: Folder = None, debug: o.Debug = False) -> None:  # noqa: ARG001 - debug is read by main
    """Calibrate, quantize and evaluate the sample model, with every command shown.

    Example: qconvert demo
    """
    from qconvert.cli import calibrate, evaluate, quantize  # noqa: PLC0415 - the commands import each other only here

    samples = sample_models()
    work = folder or Path(tempfile.mkdtemp(prefix="qconvert-demo-"))
    work.mkdir(parents=True, exist_ok=True)
    model, digits = samples / "digits_cnn" / "model.onnx", samples / "digits"
    before = Path.cwd()
    os.chdir(work)
    try:
        typer.secho(f"working in {work}", err=True)
        _show("calibrate", model, "--data", digits / "calibration", "--preprocess", "centered")
        calibrate.command(model, digits / "calibration", preprocess="centered", force=True)
        _show("quantize", "--scheme", "per-channel")
        quantize.command(scheme="per-channel", force=True)
        _show("evaluate", "--data", digits / "evaluation")
        evaluate.command(digits / "evaluation")
    finally:
        os.chdir(before)


def _show(*words: object) -> None:
    typer.secho(f"\n$ qconvert {' '.join(map(str, words))}", bold=True, err=True)


def sample_models() -> Path:
    """The folder of the sample models: in the installed package, or in the source tree."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "sample_models", package.parent / "sample_models"):
        if (folder / "digits_cnn" / "model.onnx").is_file():
            return folder
    raise DataError("the sample models are not installed", hint="reinstall qconvert, or run from its source tree")
