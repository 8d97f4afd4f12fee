"""EMD: the clipping that moves the distribution least, by the earth mover's distance (Rubner et al. 2000).

The 1-Wasserstein distance between the distributions of x and of ``Q(x) = fake_quantize(x)`` is the least mean way that
mass must go to make one of the other. Rounding and clipping keep the order of values, and in one dimension a map that
keeps order is an optimal transport, so

    W1(x, Q(x)) = integral |F_x - F_Q(x)| = E |x - Q(x)|

and no distance between histograms need be summed: it is ``mse`` with ``power: 1``, whose exact integral over the bins
and whose search are used. An error counts by its size, not by its square, so it clips more than ``mse``.

Not Paddle's observer of that name, ``|mean x - mean Q(x)| + |std x - std Q(x)|``: there the variance that rounding adds
and clipping takes away cancel, so it has several minima that are no better than their neighbours, mostly near ``max``.

The parameter that matters is ``steps``, how finely ranges are tried.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qconvert.calibrators.base import Calibrator, Floats, Rows
from qconvert.calibrators.mse import MSE
from qconvert.histogram import TensorStats
from qconvert.numerics import QuantType, Range


@dataclass(frozen=True)
class EMD(Calibrator):
    """The range of the least 1-Wasserstein distance.

    Attributes:
        steps: Steps between zero and the largest magnitude.
    """

    steps: int = field(default=100, metadata={"minimum": 4, "maximum": 10_000})

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:
        """The least expected magnitude of the error."""
        least = MSE(power=1.0, steps=self.steps)
        return least.search(stats, dtype, symmetric=symmetric, narrow_range=narrow_range)

    def search_rows(
        self, rows: Rows, dtype: QuantType, *, symmetric: bool, narrow_range: bool
    ) -> tuple[Floats, Floats]:
        """The least sum of the magnitudes of the errors."""
        least = MSE(power=1.0, steps=self.steps)
        return least.search_rows(rows, dtype, symmetric=symmetric, narrow_range=narrow_range)
