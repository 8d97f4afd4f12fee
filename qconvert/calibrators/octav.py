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

from qconvert.calibrators.base import Calibrator, Floats, Rows, grid_steps, used
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

    def search_rows(
        self, rows: Rows, dtype: QuantType, *, symmetric: bool, narrow_range: bool
    ) -> tuple[Floats, Floats]:
        """The balance of the values themselves."""
        values = rows.values.astype(np.float64)
        below, above = (values[:, :0], np.abs(values)) if symmetric else (-values, values)
        low, high = row_balance(below, above, grid_steps(dtype, symmetric=symmetric, narrow_range=narrow_range))
        return (-high, high) if symmetric else (-low, high)


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


@dataclass(frozen=True, eq=False)
class _Side:
    """One side of rows: the excess beyond each of its magnitudes and beyond 0.

    Attributes:
        place: Magnitudes, ascending from a 0, ``[R, n + 1]``.
        excess: What lies beyond each, descending to 0.
        zeros: How many values of each row are not on this side, ``[R, 1]``.
    """

    place: Floats
    excess: Floats
    zeros: Floats

    @classmethod
    def of(cls, magnitudes: Floats) -> _Side:
        place = np.sort(np.maximum(magnitudes, 0.0), axis=1)
        place = np.concatenate([np.zeros((place.shape[0], 1)), place], axis=1)
        beyond = np.cumsum(place[:, ::-1], axis=1)[:, ::-1] - place
        excess = beyond - np.arange(place.shape[1] - 1, -1, -1) * place
        return cls(place, np.maximum(excess, 0.0), (place[:, 1:] == 0).sum(1, keepdims=True).astype(np.float64))

    def at(self, loss: Floats) -> tuple[Floats, Floats]:
        """Where the excess is this, and how many values lie inside, each ``[R, 1]``; as ``_place``."""
        passed = (self.excess >= loss).sum(1, keepdims=True)
        one, two = np.maximum(passed - 1, 0), np.minimum(passed, self.place.shape[1] - 1)
        start, end = (np.take_along_axis(self.excess, knot, 1) for knot in (one, two))
        share = np.where(start > end, (start - loss) / np.where(start > end, start - end, 1.0), 0.0)
        place, following = (np.take_along_axis(self.place, knot, 1) for knot in (one, two))
        return place + np.clip(share, 0.0, 1.0) * (following - place), np.maximum(passed - 1 - self.zeros, 0.0)


def row_balance(below: Floats, above: Floats, steps: int) -> tuple[Floats, Floats]:
    """The ends of the best ranges of rows: ``balance`` with magnitudes in place of bins.

    Args:
        below: Magnitudes on the lower side, ``[R, n]``; negative or 0 where a value is not on it.
        above: The same of the upper side.
        steps: Steps of the grid between its ends.
    """
    sides = _Side.of(below), _Side.of(above)
    losses = np.sort(np.concatenate([side.excess for side in sides], axis=1), axis=1)

    def gap(loss: Floats) -> tuple[Floats, Floats, Floats]:
        (low, low_inside), (high, high_inside) = (side.at(loss) for side in sides)
        noise = (low_inside + high_inside) / (12 * steps**2)
        return loss - (low + high) * noise, low + high, noise

    first, last = np.zeros((below.shape[0], 1), np.intp), np.full((below.shape[0], 1), losses.shape[1] - 1)
    while (first < last).any():  # the first loss that is at least the noise
        middle = (first + last) // 2
        enough = gap(np.take_along_axis(losses, middle, 1))[0] >= 0
        first, last = np.where(enough, first, middle + 1), np.where(enough, middle, last)
        first = np.minimum(first, last)
    before, after = np.take_along_axis(losses, np.maximum(last - 1, 0), 1), np.take_along_axis(losses, last, 1)
    over, _, noise = gap(after)
    short = before - gap(before)[1] * noise  # what lies between two losses is inside up to the greater one
    share = np.where(short < 0, short / np.where(short < 0, short - over, 1.0), 0.0)
    loss = before + share * (after - before)
    return sides[0].at(loss)[0][:, 0], sides[1].at(loss)[0][:, 0]
