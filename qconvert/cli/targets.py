"""``qconvert targets``."""

from __future__ import annotations

from qconvert.cli import options as o


def command(as_json: o.AsJson = False) -> None:
    """Show the runtimes that models can be made for, and what each one takes.

    Example: qconvert targets --json
    """
    from qconvert import report  # noqa: PLC0415 - --help does without
    from qconvert.targets import TARGETS  # noqa: PLC0415

    if as_json:
        report.json.print_json({name: report.json.plain(target) for name, target in TARGETS.items()})
    else:
        report.console.targets(tuple(TARGETS.values()))
