"""Reports and gates on the command line: the options, and how a command that has them ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qconvert.cli import options as o

if TYPE_CHECKING:
    from qconvert.cli.terminal import Terminal
    from qconvert.gates import Bounds
    from qconvert.reports import Gate, Report

GATES = "Gates (exit code 1 where one is missed)"
"""The panel of bounds."""

MISSED = 1
"""The exit code where a gate was missed."""

Reports = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write a report; the ending says how: .html, .md, .json or .xml (JUnit). Repeatable.",
        rich_help_panel=o.OUTPUT,
        show_default=False,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="POINTS",
        min=0,
        help="Points of top-1 accuracy that may be lost; of argmax agreement where there are no labels.",
        rich_help_panel=GATES,
        show_default=False,
    ),
]
MinSqnr = Annotated[
    float | None,
    typer.Option(
        "--min-sqnr",
        metavar="DB",
        help="The SQNR that every output must reach, dB.",
        rich_help_panel=GATES,
        show_default=False,
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="FILE.json",
        help="A stored report of the same samples: no worse by 0.5 points, 0.5 % of agreement, 0.5 dB or 1 % of size.",
        rich_help_panel=GATES,
        show_default=False,
    ),
]


def check(reports: Sequence[Path] | None, baseline: Path | None = None, *, force: bool) -> Report | None:
    """Says before the work starts what would stop reports from being written; reads the stored report.

    Raises:
        OutputError: If a report cannot be written.
        DataError: If the baseline is no report.
    """
    from qconvert import report  # noqa: PLC0415 - --help does without

    report.store.check(reports or (), force=force)
    return None if baseline is None else report.document.read(baseline)


def gates(report: Report, bounds: Bounds, baseline: Report | None = None, name: Path | None = None) -> tuple[Gate, ...]:
    """The gates that were asked for.

    Raises:
        DataError: If what they bound was not measured.
    """
    from qconvert.gates import check_baseline, check_bounds  # noqa: PLC0415 - --help does without

    stored = () if baseline is None else check_baseline(report, baseline, name=str(name))
    return (*check_bounds(report, bounds), *stored)


def finish(report: Report, reports: Sequence[Path] | None, terminal: Terminal, *, force: bool) -> None:
    """Writes the reports, says which gates were missed and where the error comes from, and ends with their exit code.

    Raises:
        OutputError: If a report cannot be written.
        Exit: If a gate was missed.
    """
    from qconvert.cli.terminal import short  # noqa: PLC0415 - --help does without
    from qconvert.report import store, words  # noqa: PLC0415 - --help does without

    for path in reports or ():
        store.write(report, path, force=force)
        terminal.done(f"{short(path)}: written")
    for gate in report.gates:
        if gate.passed:
            terminal.note(f"passed --{gate.name}: {words.gate(gate)}")
        else:
            terminal.missed(f"--{gate.name}: {words.gate(gate)}")
    for line in dict.fromkeys(line for gate in report.missed for line in gate.lines):
        terminal.missed(line)
    if report.missed:
        raise typer.Exit(MISSED)
