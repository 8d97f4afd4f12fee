"""A report as JSON, and back: what is stored is the baseline of a later run.

Its JSON Schema is ``report.schema.json`` in this folder; ``schema`` makes it from the types.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qconvert.errors import DataError
from qconvert.reports import FORMAT, Report

SCHEMA = Path(__file__).with_name("report.schema.json")
"""The published schema."""


def render(report: Report) -> str:
    """The text: the fields of ``Report``; numbers that are not finite are null."""
    return _adapter().dump_json(report, indent=2).decode() + "\n"


def read(path: Path) -> Report:
    """A report that was stored as JSON.

    Raises:
        DataError: If there is no such file, or it holds something else.
    """
    hint = "give a file that --report NAME.json wrote"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", hint=hint) from error
    try:
        found = _adapter().validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{path}: not a report of qconvert: {f'{place}: ' if place else ''}{first['msg']}"
        raise DataError(message, hint=hint) from error
    if found.format != FORMAT:
        raise DataError(
            f"{path}: a report in format {found.format}, and this qconvert reads {FORMAT}",
            hint="store it again with this version",
        )
    return found


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a stored report."""
    made = _adapter().json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "qconvert report"}


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Report]:
    return TypeAdapter(Report)
