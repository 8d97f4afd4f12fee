"""ADMM: levels and scale fitted to each other in turn (MNN; the quantizer of Leng et al. 2018, arXiv:1707.09870).

    q <- clip(rint(x / s), first, last),    s <- <q, x> / <q, q>

Each half is the least squares of ``|x - s q|`` with the other half held, so the error never grows and ends in a local
minimum, but slowly: at 8 bits a round closes some thousandths of the distance to it, so that 300 rounds from MNN's
start for activations, a clip of ``max / 2.5``, end 9 % below the optimum of a Laplace distribution. So it starts from
there, from MNN's ``max / 1.25`` for weights, from the whole range and from OCTAV's, and the result with the least
squared error wins, the widest of equals.

The sums follow from the histogram, values taken as evenly spread inside their bin: with ``n = q(x)`` and
``r = x / s - n``, the integrals from 0 to x of ``q x`` and ``q**2`` are

    s**2 (n**3 / 3 + n / 24 + n**2 r + n r**2 / 2),    s (n**3 / 3 + n / 6 + n**2 r)

Asymmetric grids: the levels ``first..last``, counted from zero, hold the zero point of the start.

The parameter that matters is ``rounds``: 300 are MNN's for activations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from qconvert.calibrators.base import Calibrator, Floats, Rows, extremes, falls, last_argmin
from qconvert.calibrators.mse import TIE, range_errors
from qconvert.calibrators.octav import OCTAV
from qconvert.histogram import TensorStats
from qconvert.numerics import LevelArray, QuantType, Range, params_from_range

STARTS = 1.0, 1 / 1.25, 1 / 2.5
"""Shares of the whole range that are started from."""

SETTLED = 1e-7
"""Relative change of every scale below which the rounds end."""


@dataclass(frozen=True)
class ADMM(Calibrator):
    """The best of the ranges that alternating projection makes of several starts.

    Attributes:
        rounds: Projections from each start, at most.
    """

    rounds: int = field(default=300, metadata={"minimum": 1, "maximum": 10_000})

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:
        """Alternating projection from all starts at once; then the least squared error."""
        unit = stats.histogram.width
        ends = np.array(extremes(stats, symmetric=symmetric))
        octav = OCTAV()(stats, dtype, symmetric=symmetric, narrow_range=narrow_range)
        starts = np.array([*(ends * share for share in STARTS), (-octav.low / unit, octav.high / unit)])

        grid = partial(params_from_range, dtype=dtype, symmetric=symmetric, narrow_range=narrow_range)
        params = grid(-starts[:, 0], starts[:, 1])
        first, last = params.qmin - params.zero_point, params.qmax - params.zero_point
        edges, weights, _ = falls(stats, folded=symmetric and narrow_range and dtype.signed)
        scale = alternate(edges, weights, params.scale.astype(np.float64), first, last, rounds=self.rounds)

        lows, highs = _reach(scale, first, last, ends[0], ends[1], symmetric=symmetric)
        order = np.argsort(lows + highs)
        losses = range_errors(edges, weights, grid, lows[order], highs[order], power=2)
        best = order[last_argmin(losses, tolerance=TIE * float(np.abs(losses).min()))]
        return Range(-float(lows[best]) * unit, float(highs[best]) * unit)

    def search_rows(
        self, rows: Rows, dtype: QuantType, *, symmetric: bool, narrow_range: bool
    ) -> tuple[Floats, Floats]:
        """The same on the values themselves."""
        from qconvert.calibrators.by_rows import (  # noqa: PLC0415 - loads a compiler, for weights alone
            end_levels,
            last_least,
            losses,
        )
        from qconvert.row_kernels import projections  # noqa: PLC0415

        low, high = OCTAV().search_rows(rows, dtype, symmetric=symmetric, narrow_range=narrow_range)
        shares = np.array(STARTS)
        starts = np.column_stack([rows.below[:, None] * shares, np.minimum(-low, rows.below)])
        ends = np.column_stack([rows.above[:, None] * shares, np.minimum(high, rows.above)])
        grid = partial(params_from_range, dtype=dtype, symmetric=symmetric, narrow_range=narrow_range)
        params = grid(-starts, ends)
        first, last = end_levels(params)
        scale = projections(rows.values, params.scale.astype(np.float64), first, last, self.rounds)

        lows, highs = _reach(scale, first, last, rows.below[:, None], rows.above[:, None], symmetric=symmetric)
        lows, highs = np.hstack([lows, starts]), np.hstack([highs, ends])  # the data may cut where a start led to
        order = np.argsort(lows + highs, axis=1, kind="stable")
        lows, highs = np.take_along_axis(lows, order, 1), np.take_along_axis(highs, order, 1)
        best = last_least(losses(rows.values, grid, lows, highs, power=2.0))
        return -lows[best], highs[best]


def _reach(
    scale: Floats,
    first: Floats | LevelArray,
    last: Floats | LevelArray,
    below: Floats,
    above: Floats,
    *,
    symmetric: bool,
) -> tuple[Floats, Floats]:
    """How far grids reach below and above zero, inside of the data."""
    highs = np.clip(last * scale, 0.0, above)
    return (highs if symmetric else np.clip(-first * scale, 0.0, below)), highs


def alternate(
    edges: Floats, weights: Floats, scale: Floats, first: LevelArray, last: LevelArray, *, rounds: int
) -> Floats:
    """The scales, shape ``[n]``, that projections make of these; ``edges`` and ``weights`` as from ``falls``."""
    for _ in range(rounds):
        before, scale = scale, project(edges, weights, scale, first, last)
        if (np.abs(scale - before) <= SETTLED * before).all():
            break
    return scale


def project(edges: Floats, weights: Floats, scale: Floats, first: LevelArray, last: LevelArray) -> Floats:
    """``<q, x> / <q, q>`` with the levels of each scale; the scale itself where every level is 0."""
    rest = edges / scale[:, None]
    level = np.clip(np.rint(rest), first[:, None], last[:, None])
    rest -= level
    square = level * level
    common = square * (level / 3 + rest)
    along = (common + level * (rest * rest / 2 + 1 / 24)) @ weights
    norm = (common + level / 6) @ weights
    return np.asarray(scale * np.where(norm > 0, along / np.where(norm > 0, norm, 1), 1))
