"""MSE: the clipping with the least expected error ``E |x - fake_quantize(x)|**p``.

Source: Choukroun et al. 2019 (OMSE), arXiv:1902.06822; for other powers Nahshan et al. 2019 (LAPQ), arXiv:1911.07190.

The error follows from the histogram, values taken as evenly spread inside their bin. On a grid of step s whose levels,
counted from zero, are ``first..last``, it is ``|x - n s|`` with ``n = clip(rint(x / s), first, last)``: rounding and
clipping in one. With ``r = x / s - n``

    F(x) = integral_0^x |error|**p = s**(p + 1) / (p + 1) * (n / 2**p + sign(r) |r|**(p + 1))

so a bin ``[u, v)`` of ``c`` values adds ``c (F(v) - F(u)) / (v - u)``, exactly, be the step wider than the bin (4 bits:
rounding of single values) or narrower (16 bits: noise ``s**2 / 12``). Exact zeros cost nothing. Bins are merged in
pairs until ``EDGES`` edges suffice. The grid of a candidate is the one ``params_from_range`` builds.

Search: one threshold for both ends in ``steps`` even steps of the largest magnitude (an end stops at its own extreme);
for two-sided data on an asymmetric grid then the high and the low end in turn, in as many steps of their own; at last
steps ten times finer around the best. Of equals the widest wins. An end that clips its extreme by more than the whole
unclipped error cannot win and is not tried, which leaves few candidates for small data.

Weights are searched by their values: at power 2 for the least squares among all scales (``least_squares``), else with
the same candidates.

The parameter that matters is ``power``: larger ones clip less.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from qconvert.calibrators.base import Calibrator, Floats, Rows, extremes, falls, last_argmin
from qconvert.histogram import TensorStats
from qconvert.numerics import LevelArray, QuantParams, QuantType, Range, params_from_range

CHUNK = 1 << 15
"""Edges times candidates evaluated at once, so that the arrays stay in the cache."""

TIE = 1e-9
"""Errors closer than this, relative, count as equal."""

FINE = 10
"""How much finer the last steps are."""

Loss = Callable[[Floats, Floats], Floats]
"""The errors of the ranges ``[-below, above]``, in bins."""

Grid = Callable[[Floats, Floats], QuantParams]
"""The grids that cover the ranges ``[low, high]``."""


@dataclass(frozen=True)
class MSE(Calibrator):
    """The range of the least expected error.

    Attributes:
        power: The error is raised to this power.
        steps: Steps between zero and the largest magnitude.
    """

    power: float = field(default=2.0, metadata={"minimum": 1, "maximum": 8})
    steps: int = field(default=100, metadata={"minimum": 4, "maximum": 10_000})

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:
        """The least error over magnitudes where the grid is symmetric, else over signed values."""
        below, above = extremes(stats, symmetric=symmetric)
        edges, weights, width = falls(stats, folded=symmetric and narrow_range and dtype.signed)
        grid = partial(params_from_range, dtype=dtype, symmetric=symmetric, narrow_range=narrow_range)
        loss = partial(range_errors, edges, weights, grid, power=self.power)
        unclipped = float(loss(np.array([below]), np.array([above]))[0])
        slack = max(unclipped, 0.0) ** (1 / self.power) + width + (below + above) / (2**dtype.bits - 2)
        low, high = _search(loss, below, above, steps=self.steps, slack=slack, tied=symmetric)
        unit = stats.histogram.width
        return Range(-low * unit, high * unit)

    def search_rows(
        self, rows: Rows, dtype: QuantType, *, symmetric: bool, narrow_range: bool
    ) -> tuple[Floats, Floats]:
        """The least error of the values themselves."""
        from qconvert.calibrators import by_rows  # noqa: PLC0415 - loads a compiler, for weights alone

        grid = partial(params_from_range, dtype=dtype, symmetric=symmetric, narrow_range=narrow_range)
        if self.power == 2:
            return by_rows.least_squares(rows, grid, symmetric=symmetric)
        return by_rows.scan(rows, grid, dtype, power=self.power, steps=self.steps, tied=symmetric)


def _search(loss: Loss, below: float, above: float, *, steps: int, slack: float, tied: bool) -> tuple[float, float]:
    """The magnitudes of the best low and high end, either at most ``slack`` short of its extreme."""

    def even(_: float, extreme: float) -> Floats:
        return extreme * np.arange(max(1, math.ceil((1 - slack / extreme) * steps)), steps + 1) / steps

    def near(value: float, extreme: float) -> Floats:
        offsets = extreme * np.arange(1 - FINE, FINE) / (steps * FINE)
        return np.clip(value + offsets, extreme / (steps * FINE), extreme)

    def both(limit: Floats) -> Floats:
        return loss(np.minimum(limit, below), np.minimum(limit, above))

    extreme = max(below, above)
    limit = _best(both, even(extreme, extreme))
    if tied or not (below and above):
        limit = _best(both, near(limit, extreme))
        return min(limit, below), min(limit, above)
    low, high = min(limit, below), min(limit, above)

    def beside_low(at: Floats) -> Floats:
        return loss(np.array(low), at)

    def beside_high(at: Floats) -> Floats:
        return loss(at, np.array(high))

    for candidates in (even, near):
        high = _best(beside_low, np.append(candidates(high, above), high))
        low = _best(beside_high, np.append(candidates(low, below), low))
    return low, high


def _best(loss: Callable[[Floats], Floats], candidates: Floats) -> float:
    """The candidate of the least loss, the largest of equals."""
    ascending = np.sort(candidates)
    losses = loss(ascending)
    return float(ascending[last_argmin(losses, tolerance=TIE * float(np.abs(losses).min()))])


def range_errors(edges: Floats, weights: Floats, grid: Grid, low: Floats, high: Floats, *, power: float) -> Floats:
    """``E |x - fake_quantize(x)|**power`` times the number of values, on the grids of the ranges ``[-low, high]``."""
    params = grid(*np.broadcast_arrays(-low, high))
    first, last = params.qmin - params.zero_point, params.qmax - params.zero_point
    return errors(edges, weights, params.scale.astype(np.float64), first, last, power=power)


def errors(
    edges: Floats, weights: Floats, scale: Floats, first: LevelArray, last: LevelArray, *, power: float
) -> Floats:
    """``E |x - fake_quantize(x)|**power`` times the number of values, for grids of shape ``[n]``."""
    step = max(CHUNK // max(edges.size, 1), 1)
    chunks = (slice(i, i + step) for i in range(0, scale.size, step))
    sums = np.concatenate([_moments(edges, weights, scale[c], first[c], last[c], power=power) for c in chunks])
    return np.asarray(sums * scale ** (power + 1) / (power + 1))


def _moments(
    edges: Floats, weights: Floats, scale: Floats, first: LevelArray, last: LevelArray, *, power: float
) -> Floats:
    """The sums in units of ``scale``, in place where that saves a pass over memory."""
    rest = edges / scale[:, None]
    level = np.rint(rest)
    np.clip(level, first[:, None], last[:, None], out=level)
    rest -= level
    moment = rest * rest * rest if power == 2 else np.copysign(np.abs(rest) ** (power + 1), rest)
    level *= 0.5**power
    moment += level
    return np.asarray(np.einsum("ij,j->i", moment, weights))
