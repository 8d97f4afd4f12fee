"""Adam: steps downhill in which a gradient's magnitude does not count.

Source: Kingma & Ba 2014, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qconvert.recover.rows import Floats
from qconvert.rounding_kernels import FIRST, SECOND

_EPSILON = 1e-30
"""Keeps variables without a gradient where they are."""


@dataclass(frozen=True)
class Adam:
    """Variables on their way down.

    Attributes:
        value: They.
        mean: The running mean of their gradients.
        square: That of the squares.
        steps: How many were taken.
    """

    value: Floats
    mean: Floats
    square: Floats
    steps: int = 0

    @classmethod
    def at_rest(cls, value: Floats) -> Adam:
        """Where they start."""
        return cls(value, np.zeros_like(value), np.zeros_like(value))

    def descend(self, gradient: Floats, rate: float) -> Adam:
        """One step."""
        count = self.steps + 1
        mean = FIRST * self.mean + (1 - FIRST) * gradient
        square = SECOND * self.square + (1 - SECOND) * gradient * gradient
        size = np.sqrt(square / (1 - SECOND**count)) + _EPSILON
        return Adam(self.value - rate * mean / (1 - FIRST**count) / size, mean, square, count)
