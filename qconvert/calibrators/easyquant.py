"""EasyQuant: the scales of weights and inputs, layer by layer, that keep the layer's output in its direction.

Source: Wu et al. 2020, "EasyQuant", arXiv:2006.16669; ncnn's ``eq``. The search is in room ``choose``.

The parameter that matters is the interval ``[least, most]`` of factors on the scale that the search starts from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qconvert.calibrators.measured import Measured


@dataclass(frozen=True)
class EasyQuant(Measured):
    """The scales with the greatest cosine between the float and the quantized output of a layer.

    Attributes:
        least: The smallest factor on the scale at the start.
        most: The greatest one.
        steps: How many factors are tried, evenly spaced.
        samples: How many of the calibration's samples are run, at most.
    """

    least: float = field(default=0.5, metadata={"exclusiveMinimum": 0, "maximum": 1})
    most: float = field(default=2.0, metadata={"minimum": 1})
    steps: int = field(default=100, metadata={"minimum": 2})
    samples: int = field(default=16, metadata={"minimum": 1})
