"""OCTAV: the clipping where rounding noise and clipping error balance (Sakr et al. 2022, arXiv:2206.06501).

The squared error of a clip ``s`` is taken as ``s**2 / (12 n**2)`` for each value inside, the noise of even rounding to
``n`` steps between zero and ``s``, and ``(|x| - s)**2`` for each outside. It is least at the fixed point of

    s <- sum |x| 1{|x| > s} / (#{0 < |x| <= s} / (12 n**2) + #{|x| > s})

The paper's Newton-Raphson divisor ``4**-b / 3`` (signed) or ``4**-b / 12`` (one-sided, unsigned) is ``1 / (12 n**2)``
for ``n = 2**(b - 1)`` or ``2**b``; here ``n`` is what the grid has, one less, which matters below 8 bits. Exact zeros
are on every grid and make no noise. No step is iterated: with the excess ``E(s) = sum max(|x| - s, 0)`` the fixed point
is ``s #{|x| <= s} / (12 n**2) = E(s)``, whose left side grows and whose right side falls, so that it has one solution,
found between two edges of the histogram.

Two-sided data on an asymmetric grid of ``n`` steps from ``-l`` to ``h``: setting both derivatives of the same error to
zero gives

    (l + h) #{-l <= x <= h} / (12 n**2) = E_below(l) = E_above(h)

so both ends lose the same excess, and an end whose whole side holds less than it is 0; again there is one solution.

No parameter; what matters is the grid: ``n`` alone says how much clipping is worth. It is the optimum of ``mse`` as far
as rounding noise is even, so for data that lie on few points or steps wider than the data (2 bits) take ``mse``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qconvert.calibrators.base import Calibrator, Floats, grid_steps, used
from qconvert.histogram import Counts, TensorStats
from qconvert.numerics import QuantType, Range


@dataclass(frozen=True)
class OCTAV(Calibrator):
    """The range of the least squared error under even rounding noise."""

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:
        """The balance over magnitudes where the grid is symmetric, else over both sides of zero."""
        below, above = stats.histogram.negative, stats.histogram.positive
        if symmetric:
            below, above = np.zeros_like(below), below + above
        steps = grid_steps(dtype, symmetric=symmetric, narrow_range=narrow_range)
        low, high = balance(below, above, steps)
        width = stats.histogram.width
        return Range(-max(low, high) * width if symmetric else -low * width, high * width)


def balance(below: Counts, above: Counts, steps: int) -> tuple[float, float]:
    """The ends of the best range, in bins from zero, of a grid with this many steps between them."""
    (low_excess, low_inside), (high_excess, high_inside) = _side(below), _side(above)
    losses = np.union1d(low_excess, high_excess)
    low, high = _place(losses, low_excess), _place(losses, high_excess)
    inside = _at(low, low_inside) + _at(high, high_inside)
    # rounding noise grows with the range, so it falls with what the ends lose; at a loss of 0 it is the greater one
    gap = losses - (low + high) * inside / (12 * steps**2)
    loss = np.interp(0.0, gap, losses)
    return float(_place(loss, low_excess)), float(_place(loss, high_excess))


def _side(counts: Counts) -> tuple[Floats, Floats]:
    """At each edge from zero to the last value: the excess beyond it, in bins times values, and the values inside."""
    counts = counts[: used(counts)]
    inside = np.append(0.0, np.cumsum(counts))
    beyond = inside[-1] - inside
    excess = np.append(np.cumsum((beyond[1:] + counts / 2)[::-1])[::-1], 0.0)
    return excess, inside


def _place(loss: Floats | float, excess: Floats) -> Floats:
    """Where, in bins from zero, the excess is this; 0 where it is nowhere as large."""
    return np.asarray(np.interp(loss, excess[::-1], np.arange(excess.size - 1.0, -1.0, -1.0)))


def _at(place: Floats, inside: Floats) -> Floats:
    """The values inside of these places."""
    return np.asarray(np.interp(place, np.arange(inside.size), inside))
