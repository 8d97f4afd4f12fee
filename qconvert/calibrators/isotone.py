"""Isotone: for class scores, the range that keeps the largest score the largest; minmax for all other tensors.

Source: PPQ's ``TorchIsotoneObserver``. The search is in room ``choose``. It has no parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

from qconvert.calibrators.measured import Measured


@dataclass(frozen=True)
class Isotone(Measured):
    """The range that keeps the argmax of the most samples."""
