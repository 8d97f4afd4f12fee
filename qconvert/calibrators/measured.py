"""What the calibrators share that measure on samples: from statistics alone they give no range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

from qconvert.calibrators.base import Calibrator
from qconvert.errors import CalibrationError
from qconvert.histogram import TensorStats
from qconvert.numerics import QuantType, Range


@dataclass(frozen=True)
class Measured(Calibrator):
    """A method whose ranges come from runs of the model; room ``choose`` makes these runs, for quantize."""

    needs_samples: ClassVar[bool] = True

    def __call__(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool = False) -> Range:  # noqa: ARG002 - no range follows
        """Refuses.

        Raises:
            CalibrationError: Always.
        """
        self._refuse()

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:  # noqa: ARG002 - no range follows
        """Refuses.

        Raises:
            CalibrationError: Always.
        """
        self._refuse()

    def _refuse(self) -> NoReturn:
        message = f"{self.name} measures on samples: no range follows from statistics alone"
        raise CalibrationError(message, hint=f"'qconvert quantize --calibrator {self.name}' finds those of activations")
