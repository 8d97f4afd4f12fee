"""The public functions, one for each command: the only room that knows the order of the stages.

They take paths and values, return values, raise ``QConvertError`` and print nothing; a ``Listener`` hears notes and
progress.
"""

from __future__ import annotations

from qconvert.pipeline.calibrating import calibrate
from qconvert.pipeline.comparing import compare
from qconvert.pipeline.evaluating import evaluate
from qconvert.pipeline.quantizing import Proof, Quantized, Way, quantize
from qconvert.pipeline.searching import Searched, Wanted, search
from qconvert.pipeline.sensing import PART_SUFFIX, Question, sensitivity

__all__ = [
    "PART_SUFFIX",
    "Proof",
    "Quantized",
    "Question",
    "Searched",
    "Wanted",
    "Way",
    "calibrate",
    "compare",
    "evaluate",
    "quantize",
    "search",
    "sensitivity",
]
