"""``qconvert doctor``."""

from __future__ import annotations

from qconvert.cli import options as o


def command(as_json: o.AsJson = False) -> None:
    """Show what this machine has - versions, providers, CPU instructions - and what that means for quantized models.

    Example: qconvert doctor
    """
    from qconvert import machine, report  # noqa: PLC0415 - --help does without

    found = machine.examine()
    if as_json:
        report.json.print_json(report.json.plain(found))
    else:
        report.console.machine(found)
