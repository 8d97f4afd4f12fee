"""Calibrators: from the statistics of a tensor to the range that its grid covers.

To add one, add a file and a row to the table.
"""

from __future__ import annotations

import difflib
from dataclasses import fields

from qconvert.calibrators.aciq import ACIQ
from qconvert.calibrators.admm import ADMM
from qconvert.calibrators.auto import Auto
from qconvert.calibrators.average import Average
from qconvert.calibrators.base import Calibrator
from qconvert.calibrators.easyquant import EasyQuant
from qconvert.calibrators.emd import EMD
from qconvert.calibrators.entropy import Entropy
from qconvert.calibrators.isotone import Isotone
from qconvert.calibrators.minmax import MinMax
from qconvert.calibrators.moving_average import MovingAverage
from qconvert.calibrators.mse import MSE
from qconvert.calibrators.octav import OCTAV
from qconvert.calibrators.percentile import Percentile
from qconvert.errors import CalibrationError

__all__ = ["CALIBRATORS", "FROM_STATISTICS", "Calibrator", "make_calibrator"]

CALIBRATORS: dict[str, type[Calibrator]] = {
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "average": Average,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": MSE,
    "octav": OCTAV,
    "aciq": ACIQ,
    "admm": ADMM,
    "emd": EMD,
    "auto": Auto,
    "easyquant": EasyQuant,
    "isotone": Isotone,
}
"""The methods, by their name in a policy."""

FROM_STATISTICS = tuple(name for name, cls in CALIBRATORS.items() if not cls.needs_samples)
"""The methods that need no samples beside the statistics."""


def make_calibrator(name: str, /, **parameters: object) -> Calibrator:
    """The calibrator of this name with these fields.

    Raises:
        CalibrationError: If there is no such calibrator or field, or a value is out of its limits.
    """
    if name not in CALIBRATORS:
        message = f"unknown calibrator {name!r}"
        raise CalibrationError(message, hint=_choices(name, list(CALIBRATORS)))
    cls = CALIBRATORS[name]
    known = [field.name for field in fields(cls)]
    for key in parameters:
        if key not in known:
            message = f"{name}: unknown field {key!r}"
            raise CalibrationError(message, hint=_choices(key, known))
    return cls(**parameters)


def _choices(name: object, known: list[str]) -> str:
    """The hint for a name that is not known: the closest one, and all of them."""
    if not known:
        return "it has no fields"
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"{f'did you mean {close[0]}? ' if close else ''}choices: {', '.join(known)}"
