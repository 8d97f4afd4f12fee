"""``qconvert policy init | check | schema | show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qconvert.cli import options as o

app = typer.Typer(help="Write, check and show the policy file.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The policy file.")]


@app.command()
def init(
    file: File = Path("policy.yaml"),
    target: o.TargetName = None,
    force: o.Force = False,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Write a commented policy file to start from.

    Example: qconvert policy init
    """
    from qconvert.cli.terminal import Terminal  # noqa: PLC0415 - --help does without
    from qconvert.files import atomic_output  # noqa: PLC0415
    from qconvert.policy import template  # noqa: PLC0415
    from qconvert.targets import get_target  # noqa: PLC0415

    text = template(get_target(target or "ort-cpu").name)
    with atomic_output(file, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")
    Terminal().done(f"{file}: written; 'qconvert policy check {file}' validates it")


@app.command()
def check(
    file: File = Path("policy.yaml"),
    model: Annotated[
        Path | None, typer.Option("--model", help="Also check that every rule matches something.", show_default=False)
    ] = None,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Validate a policy file; with a model, also that every rule matches.

    Example: qconvert policy check policy.yaml --model model.onnx
    """
    from qconvert.cli.terminal import Terminal  # noqa: PLC0415 - --help does without
    from qconvert.policy import load  # noqa: PLC0415
    from qconvert.targets import get_target  # noqa: PLC0415

    found = load(file)
    get_target(found.target)
    matched = ""
    if model is not None:
        from qconvert import inspection  # noqa: PLC0415 - not needed without a model

        inspection.inspect(model, policy=found)
        matched = f", each matches something in {model}"
    Terminal().done(f"{file}: valid, target {found.target}, {len(found.rules)} rules{matched}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of policy files, for editors.

    Example: qconvert policy schema > policy.schema.json
    """
    from qconvert import report  # noqa: PLC0415 - --help does without
    from qconvert.policy import json_schema  # noqa: PLC0415

    report.json.print_json(json_schema())


@app.command()
def show(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The policy file. Default: none.", show_default=False)
    ] = None,
    target: o.TargetName = None,
    scheme: o.SchemeName = None,
    calibrator: o.CalibratorName = None,
    weights: o.WeightsType = None,
    activations: o.ActivationsType = None,
    exclude: o.Exclude = None,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Print a policy as it is after the options of the command line.

    Example: qconvert policy show policy.yaml --calibrator entropy --exclude '/head/*'
    """
    from qconvert.policy import dump  # noqa: PLC0415 - --help does without

    found = o.read_policy(
        file,
        target=target,
        scheme=scheme,
        calibrator=calibrator,
        weights=weights,
        activations=activations,
        exclude=exclude,
    )
    typer.echo(dump(found), nl=False)
