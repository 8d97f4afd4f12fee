"""A report as one HTML file: no network, no scripts; readable on a phone, in the dark and on paper."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from qconvert.report import geometry, words
from qconvert.reports import Report, Table

NARROW = 3
"""Columns that a phone has room for side by side; rows of more become blocks there."""


def render(report: Report) -> str:
    """The file's text."""
    return _template().render(report=report, verdict=words.verdict(report.gates))


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("qconvert.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(words=words, geometry=geometry, stacks=_stacks)
    return environment.get_template("report.html")


def _stacks(table: Table) -> bool:
    return len(table.columns) > NARROW
