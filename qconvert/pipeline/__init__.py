"""The public functions, one for each command: the only room that knows the order of the stages.

They take paths and values, return values, raise ``QConvertError`` and print nothing; a ``Listener`` hears notes and
progress.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconvert.lazy import imported_late

if TYPE_CHECKING:
    from qconvert.pipeline.calibrating import calibrate as calibrate
    from qconvert.pipeline.comparing import compare as compare
    from qconvert.pipeline.evaluating import evaluate as evaluate
    from qconvert.pipeline.quantizing import Proof as Proof
    from qconvert.pipeline.quantizing import Quantized as Quantized
    from qconvert.pipeline.quantizing import Way as Way
    from qconvert.pipeline.quantizing import quantize as quantize
    from qconvert.pipeline.searching import Searched as Searched
    from qconvert.pipeline.searching import Wanted as Wanted
    from qconvert.pipeline.searching import search as search
    from qconvert.pipeline.sensing import PART_SUFFIX as PART_SUFFIX
    from qconvert.pipeline.sensing import Question as Question
    from qconvert.pipeline.sensing import sensitivity as sensitivity

_HOMES = {
    "PART_SUFFIX": "qconvert.pipeline.sensing",
    "Proof": "qconvert.pipeline.quantizing",
    "Quantized": "qconvert.pipeline.quantizing",
    "Question": "qconvert.pipeline.sensing",
    "Searched": "qconvert.pipeline.searching",
    "Wanted": "qconvert.pipeline.searching",
    "Way": "qconvert.pipeline.quantizing",
    "calibrate": "qconvert.pipeline.calibrating",
    "compare": "qconvert.pipeline.comparing",
    "evaluate": "qconvert.pipeline.evaluating",
    "quantize": "qconvert.pipeline.quantizing",
    "search": "qconvert.pipeline.searching",
    "sensitivity": "qconvert.pipeline.sensing",
}

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

__getattr__ = imported_late(__name__, _HOMES)
