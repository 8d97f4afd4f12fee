"""``qconvert formats``."""

from __future__ import annotations

from qconvert.cli import options as o


def command(target: o.TargetName = None, as_json: o.AsJson = False) -> None:
    """Show what can be made for each runtime: modes, formats, types, granularities, interfaces and operators.

    What is not listed is refused. Without --target, operators are listed where they differ by format alone.

    Example: qconvert formats --target tensorrt
    """
    from qconvert import report  # noqa: PLC0415 - --help does without
    from qconvert.support import rows  # noqa: PLC0415
    from qconvert.targets import get_target  # noqa: PLC0415

    wanted = get_target(target).name if target is not None else None
    found = [row for row in rows() if wanted in {None, row.target}]
    if as_json:
        report.json.print_json(report.json.plain(found))
    else:
        report.formats.formats(found, operators=wanted is not None)
