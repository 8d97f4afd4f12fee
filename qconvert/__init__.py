"""Quantize ONNX models and prove that they still work.

Every command of ``qconvert`` is one public function here: ``inspect``, ``calibrate``, ``quantize``, ``evaluate``,
``compare``, ``sensitivity``, ``search``, ``convert``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconvert.lazy import imported_late

if TYPE_CHECKING:
    from qconvert.calibration import Calibration as Calibration
    from qconvert.comparison import Evaluation as Evaluation
    from qconvert.conversion import convert as convert
    from qconvert.inspection import inspect as inspect
    from qconvert.pipeline import calibrate as calibrate
    from qconvert.pipeline import compare as compare
    from qconvert.pipeline import evaluate as evaluate
    from qconvert.pipeline import quantize as quantize
    from qconvert.pipeline import search as search
    from qconvert.pipeline import sensitivity as sensitivity
    from qconvert.plan import Plan as Plan
    from qconvert.reports import Report as Report

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "qconvert.calibration",
    "Evaluation": "qconvert.comparison",
    "Plan": "qconvert.plan",
    "Report": "qconvert.reports",
    "calibrate": "qconvert.pipeline",
    "compare": "qconvert.pipeline",
    "convert": "qconvert.conversion",
    "evaluate": "qconvert.pipeline",
    "inspect": "qconvert.inspection",
    "quantize": "qconvert.pipeline",
    "search": "qconvert.pipeline",
    "sensitivity": "qconvert.pipeline",
}

__all__ = [
    "Calibration",
    "Evaluation",
    "Plan",
    "Report",
    "__version__",
    "calibrate",
    "compare",
    "convert",
    "evaluate",
    "inspect",
    "quantize",
    "search",
    "sensitivity",
]


__getattr__ = imported_late(__name__, _HOMES)
