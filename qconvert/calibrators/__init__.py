"""Calibrators: from the statistics of a tensor to the range that its grid covers. To add one, add a file and a row to the table."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from qconvert.calibrators.average import Average
from qconvert.calibrators.base import Calibrator
from qconvert.calibrators.entropy import Entropy
from qconvert.calibrators.minmax import MinMax
from qconvert.calibrators.mse import MSE
from qconvert.calibrators.percentile import Percentile
from qconvert.errors import CalibrationError

__all__ = ["CALIBRATORS", "Calibrator", "make_calibrator"]

CALIBRATORS: dict[str, type[Calibrator]] = {
    "minmax": MinMax,
    "average": Average,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": MSE,
}
"""The methods, by their name in a policy."""


def make_calibrator(name: str, /, **parameters: Any) -> Calibrator:
    """The calibrator of this name with these fields.

    Raises:
        CalibrationError: If there is no such calibrator or field, or a value is out of its limits.
    """
    if name not in CALIBRATORS:
        raise _unknown("calibrator", name, list(CALIBRATORS))
    cls = CALIBRATORS[name]
    known = [f.name for f in fields(cls)]
    for key in parameters:
        if key not in known:
            raise _unknown(f"field of {name}", key, known)
    return cls(**parameters)


def _unknown(kind: str, name: str, known: list[str]) -> CalibrationError:
    """The error for a name that is not among the known ones, with the closest one as the hint."""
    close = difflib.get_close_matches(str(name), known, n=1)
    choices = ", ".join(known)
    message = f"unknown {kind} {name!r}, expected {f'one of {choices}' if known else 'none'}"
    return CalibrationError(
        message, hint=f"Did you mean {close[0]}?" if close else f"Choose from {choices}." if known else "Leave it out."
    )
