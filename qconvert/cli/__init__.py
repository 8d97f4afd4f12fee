"""The command line: parse, call one public function, render, exit code. One file a command.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import NamedTuple

import typer

from qconvert import __version__
from qconvert.cli import (
    calibrate,
    compare,
    convert,
    demo,
    doctor,
    evaluate,
    formats,
    inspect,
    policy,
    quantize,
    search,
    sensitivity,
    stats,
    targets,
)
from qconvert.errors import QConvertError
from qconvert.workers import collect_rarely

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Typer's base of all wrong command lines; where it lives depends on the version of Typer."""

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="qconvert",
    help="Quantize ONNX models and prove that they still work.",
    epilog="Start with: qconvert calibrate model.onnx --data images/ ; qconvert quantize ; "
    "qconvert evaluate --data labelled/",
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
app.command("stats")(stats.command)
app.command("quantize")(quantize.command)
app.command("evaluate")(evaluate.command)
app.command("compare")(compare.command)
app.command("sensitivity")(sensitivity.command)
app.command("search")(search.command)
app.command("convert")(convert.command)
app.add_typer(policy.app, name="policy")
app.command("formats")(formats.command)
app.command("targets")(targets.command)
app.command("doctor")(doctor.command)
app.command("demo")(demo.command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 a gate was missed, 2 the user can mend it, 3 a bug, 130 Ctrl-C."""
    collect_rarely()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" not in given:
        logging.basicConfig(handlers=[logging.NullHandler()])  # what libraries log is for developers
    sys.exit(_run(given))


def _run(arguments: Sequence[str]) -> int:
    try:
        code = app(args=list(arguments), prog_name="qconvert", standalone_mode=False)
        if code != INTERRUPTED:  # which Typer returns after Ctrl-C, without a word
            return code if isinstance(code, int) else 0
        failure = _INTERRUPTION
    except (KeyboardInterrupt, typer.Abort):
        failure = _INTERRUPTION
    except Exception as error:
        if "--debug" in arguments and not isinstance(error, _UsageError):
            raise
        failure = _failure(error, arguments)
    if failure.message:
        from qconvert.cli.terminal import error_line  # noqa: PLC0415 - rich is not needed until something is shown

        error_line(failure.message, failure.hint)
    return failure.code


class _Failure(NamedTuple):
    message: str
    hint: str
    code: int


_INTERRUPTION = _Failure("interrupted, no half-written file is left", "", INTERRUPTED)


def _failure(error: Exception, arguments: Sequence[str]) -> _Failure:
    """What an error means to the user."""
    if isinstance(error, QConvertError):
        return _Failure(str(error), error.hint, 2)
    if isinstance(error, _UsageError):  # without a message where there was no command: then the help has been shown
        return _Failure(_usage(error), f"see '{' '.join(('qconvert', *_command(arguments), '--help'))}'", 2)
    if _interrupted(error):
        return _INTERRUPTION
    if isinstance(
        error, OSError
    ):  # every path that is given is checked where it is used; this is what no check foresees
        place = f"{error.filename}: " if error.filename else ""
        return _Failure(
            f"{place}{error.strerror or error}", "check the rights on that file and the space on its disk", 2
        )
    if isinstance(error, MemoryError):
        return _Failure("out of memory", "use fewer samples at once: --threads 1", 2)
    message = f"a bug in qconvert: {type(error).__name__}: {error}"
    return _Failure(message, "please report it with the output of the same command and --debug", 3)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: libraries in C turn it into others while they are being loaded."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _usage(error: Exception) -> str:
    format_message = getattr(error, "format_message", None)
    return str(format_message() if format_message is not None else error).rstrip(".")


def _command(arguments: Sequence[str]) -> list[str]:
    """The words at the start that are commands."""
    found: list[str] = []
    commands = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    for word in arguments[:2]:
        if word not in commands:
            break
        found.append(word)
        commands = {command.name for command in policy.app.registered_commands} if word == "policy" else set()
    return found
