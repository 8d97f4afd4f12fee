"""The command line: parse, call one public function, render, exit code. One file a command; heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from qconvert import __version__
from qconvert.cli import calibrate, demo, doctor, evaluate, inspect, policy, quantize, targets
from qconvert.errors import QConvertError

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Typer's base of all wrong command lines; where it lives depends on the version of Typer."""

app = typer.Typer(
    name="qconvert",
    help="Quantize ONNX models and prove that they still work.",
    epilog="Start with: qconvert calibrate model.onnx --data images/ ; qconvert quantize ; qconvert evaluate --data labelled/",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),  # noqa: FBT001, FBT003
) -> None:
    if version:
        typer.echo(f"qconvert {__version__}")
        raise typer.Exit


app.command("inspect")(inspect.command)
app.command("calibrate")(calibrate.command)
app.command("quantize")(quantize.command)
app.command("evaluate")(evaluate.command)
app.add_typer(policy.app, name="policy")
app.command("targets")(targets.command)
app.command("doctor")(doctor.command)
app.command("demo")(demo.command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 a gate was missed, 2 the user can mend it, 3 a bug, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(given))


def _run(arguments: Sequence[str]) -> int:
    try:
        code = app(args=list(arguments), standalone_mode=False)
    except QConvertError as error:
        if "--debug" in arguments:
            raise
        return _fail(str(error), error.hint, 2)
    except _UsageError as error:
        return _fail(_usage(error), f"see 'qconvert {' '.join(_command(arguments))} --help'".replace("  ", " "), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing was written", "", 130)
    except BrokenPipeError:
        return 0
    except MemoryError:
        return _fail("out of memory", "use fewer samples at once: --threads 1", 2)
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _fail(f"a bug in qconvert: {type(error).__name__}: {error}", "please report it with the output of the same command and --debug", 3)
    return code if isinstance(code, int) else 0


def _usage(error: Exception) -> str:
    format_message = getattr(error, "format_message", None)
    return str(format_message() if format_message is not None else error).rstrip(".")


def _command(arguments: Sequence[str]) -> list[str]:
    words = []
    for word in arguments:
        if word.startswith("-") or len(words) == (2 if words[:1] == ["policy"] else 1):
            break
        words.append(word)
    return words


def _fail(message: str, hint: str, code: int) -> int:
    from qconvert.cli.terminal import error_line  # noqa: PLC0415 - rich is not needed until something is shown

    error_line(message, hint)
    return code
