"""AdaQuant: levels and scales are learned together, levels as far from the nearest as they like.

Source: Hubara et al. 2020, "Improving Post Training Neural Quantization: Layer-wise Calibration and Integer
Programming", arXiv:2006.10518, section 3. For continuous variables u, in steps of the grid, and scales s,

    min over u, s:  |W X - s clip(round(u)) Z|^2,   X of the float model, Z of the quantized one so far

by Adam with the straight-through estimator: round() passes gradients as they are, clip() none outside. As in AdaRound
the layer is linear, so the gradient is exact and comes from the moments of the inputs. A straight-through estimator
dithers about its optimum: of all steps the one with the least error counts, for each set of rows that shares scales;
the length of the steps falls to 0 along a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qconvert.numerics import QuantParams
from qconvert.recover.adam import Adam
from qconvert.recover.grids import Shares, shares, with_scales
from qconvert.recover.moments import Moments
from qconvert.recover.rounding import Chosen, Rounding
from qconvert.recover.rows import Floats, Rows
from qconvert.recover.types import LEVELS


@dataclass(frozen=True)
class AdaQuant(Rounding):
    """Learned levels and scales.

    Attributes:
        steps: Steps of Adam.
        rate: Their length at first, in steps of the grid.
        scale_rate: That of scales, as a share of them.
    """

    name: ClassVar[str] = "adaquant"
    title: ClassVar[str] = "AdaQuant: learns levels and scales of weights"
    decides: ClassVar[frozenset[str]] = frozenset({LEVELS})

    steps: int = 300
    rate: float = 0.1
    scale_rate: float = 0.001

    def choose(self, weight: Floats, rows: Rows, params: QuantParams, seen: Moments) -> Chosen:
        """See ``Rounding``."""
        known, lattice = shares(rows, params), rows.lattice(params)
        target, gram = seen.target(weight), seen.damped.astype(np.float32)  # half the time, and as good
        start = params.scale.reshape(-1).astype(np.float64)
        u, factor = Adam.at_rest(target / lattice.scale), Adam.at_rest(np.ones(known.count))
        best = _Best(np.full(known.count, np.inf), lattice.nearest(weight), start)
        for step in range(self.steps + 1):
            levels = np.clip(np.rint(u.value), lattice.first, lattice.last)
            scale = (start * factor.value).astype(np.float32).astype(np.float64)
            spread = scale[known.index]
            error = spread * levels - target
            slope = (error.astype(np.float32) @ gram).astype(np.float64)
            best = best.or_better(known, (slope * error).sum(2), levels, scale)
            inside = (u.value > lattice.first - 0.5) & (u.value < lattice.last + 0.5)
            length = (1 + math.cos(math.pi * step / (self.steps + 1))) / 2
            u = u.descend(slope * spread * inside, self.rate * length)
            factor = factor.descend(known.sums(slope * levels) * start, self.scale_rate * length)
        return best.levels, with_scales(params, best.scale)


@dataclass(frozen=True)
class _Best:
    """What had the least error so far; rows that share scales are judged together."""

    loss: Floats
    levels: Floats
    scale: Floats

    def or_better(self, known: Shares, losses: Floats, levels: Floats, scale: Floats) -> _Best:
        """This, or what is given where its losses ``[G, O]`` are less."""
        found = known.by_owner(losses)
        better = found < self.loss
        return _Best(
            np.minimum(found, self.loss),
            np.where(better[known.owner][:, :, None], levels, self.levels),
            np.where(better[known.owner_of_scale], scale, self.scale),
        )
