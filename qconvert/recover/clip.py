"""Clips weights where that lowers the error of a layer's output: a smaller scale for all at the price of the largest.

Source: Lin et al. 2023, "AWQ", arXiv:2306.00978, section 3 and ``auto_clip.py``: shares of the range down to 0.5,
judged by the output, for each scale by itself. What is judged is ``e G e^T`` with the errors e of the weights of a
scale and the gram G of their inputs, so that no sample is run again. The shares are of the grid that the plan has, and
may be above 1: the least squared error of the weights (calibrator ``mse``) is not that of the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qconvert.numerics import QuantParams
from qconvert.recover.grids import shares, with_scales
from qconvert.recover.moments import Moments
from qconvert.recover.rounding import Chosen, Rounding
from qconvert.recover.rows import Floats, Rows


@dataclass(frozen=True)
class Clipping(Rounding):
    """Searches shares of ranges; levels are the nearest ones.

    Attributes:
        least: The smallest share of the range.
        most: The greatest.
        steps: How many are tried beside 1.
    """

    name: ClassVar[str] = "clip"
    title: ClassVar[str] = "weight clipping: ranges of weights with the least error of the layer's output"
    place: ClassVar[int] = -1  # methods that choose levels start from its grids

    least: float = 0.5
    most: float = 1.25
    steps: int = 30

    def choose(self, weight: Floats, rows: Rows, params: QuantParams, seen: Moments) -> Chosen:
        """See ``Rounding``."""
        known, start = shares(rows, params), params.scale.reshape(-1).astype(np.float64)
        target, gram = seen.target(weight), known.within(seen.damped)
        best, least = start, np.full(known.count, np.inf)
        for share in (1.0, *np.linspace(self.least, self.most, self.steps)):
            lattice = rows.lattice(with_scales(params, start * share))
            error = lattice.reals(lattice.nearest(weight)) - target
            found = known.sums((error @ gram) * error)
            best, least = np.where(found < least, start * share, best), np.minimum(found, least)
        chosen = with_scales(params, best)
        return rows.lattice(chosen).nearest(weight), chosen
