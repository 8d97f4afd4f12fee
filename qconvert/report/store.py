"""Writes reports; the ending of a file says in which form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qconvert.errors import OutputError
from qconvert.files import atomic_output, check_writable
from qconvert.report import document, html, junit, markdown
from qconvert.reports import Report

RENDERERS: Mapping[str, Callable[[Report], str]] = {
    ".html": html.render,
    ".md": markdown.render,
    ".json": document.render,
    ".xml": junit.render,
}
"""By ending of the file."""


def check(paths: Sequence[Path], *, force: bool) -> None:
    """Says before the work starts what would stop reports from being written.

    Raises:
        OutputError: If an ending is none of ``RENDERERS``, two names are the same, or a file cannot be written.
    """
    for index, path in enumerate(paths):
        if path.suffix not in RENDERERS:
            raise OutputError(
                f"--report {path}: expected a name that ends in {', '.join(RENDERERS)}",
                hint="the ending says in which form the report is written",
            )
        if path in paths[:index]:
            raise OutputError(f"--report {path}: given twice", hint="leave one out")
        check_writable(path, force=force)


def write(report: Report, path: Path, *, force: bool) -> None:
    """Writes a report in the form that its name ends in, whole or not at all.

    Raises:
        OutputError: If the file exists and ``force`` is not given, or cannot be written.
    """
    text = RENDERERS[path.suffix](report)
    with atomic_output(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")
