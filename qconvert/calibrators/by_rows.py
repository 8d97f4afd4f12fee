"""Ranges of many rows at once by the error of their values: what ``mse``, ``emd`` and ``admm`` do to weights.

``least_squares`` is exact: the error of a symmetric grid is least over all scales, not over tried ones. Between two
neighbouring scales at which a value changes its level q, ``|x - s q|**2`` is a parabola in s, least at
``s = <q, x> / <q, q>``, so one pass over the sorted scales finds the least of all (the compiled loop). On asymmetric
grids that is done for the zero points around that of the whole range, until ``PATIENCE`` in a row are no better.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qconvert import row_kernels
from qconvert.calibrators.base import Float32, Floats, Rows
from qconvert.calibrators.mse import FINE, TIE, Grid
from qconvert.numerics import QuantParams, QuantType

PATIENCE = 4
"""So many zero points in a row that are no better end the search in their direction."""

HALF = 0.499
"""How far, in steps, a zero point may be from where the range has it: less than half, so that rounding finds it."""

Chosen = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


def end_levels(params: QuantParams) -> tuple[Floats, Floats]:
    """The lowest and the highest level in use, counted from zero, in the shape of the scale."""
    first, last = params.qmin - params.zero_point, params.qmax - params.zero_point
    return first.astype(np.float64), last.astype(np.float64)


def losses(
    values: Float32,
    grid: Grid,
    below: Floats,
    above: Floats,
    *,
    power: float,
    tried: npt.NDArray[np.bool_] | None = None,
) -> Floats:
    """``sum |x - fake_quantize(x)|**power`` of rows ``[R, n]`` on the grids of the ranges ``[-below, above]``.

    Args:
        values: The rows.
        grid: The grids that cover ranges.
        below: Lower ends of the candidates, ``[R, C]``.
        above: Upper ends.
        power: The error is raised to this power.
        tried: Which candidates count; the loss of others is infinite.
    """
    params = grid(-below, above)
    first, last = end_levels(params)
    scale = params.scale.astype(np.float64)
    return row_kernels.errors(values, scale if tried is None else scale * tried, first, last, power)


def last_least(found: Floats) -> Chosen:
    """For each row of ``[R, C]`` the index of its least loss, of equals the last."""
    least = found.min(1, keepdims=True)
    best = found.shape[1] - 1 - np.argmax(found[:, ::-1] <= least * (1 + TIE), axis=1)
    return np.arange(found.shape[0]), best


def least_squares(rows: Rows, grid: Grid, *, symmetric: bool) -> tuple[Floats, Floats]:
    """The ranges of the least squared error; that of the data, where none is better."""
    params = grid(-rows.below, rows.above)
    first, last = end_levels(params)
    bound = (1 - TIE) * losses(rows.values, grid, rows.below[:, None], rows.above[:, None], power=2.0)[:, 0]
    if symmetric:
        scale, error = row_kernels.least_squares(rows.values, first, last, rows.above / last, bound)
        high = np.where(np.isfinite(error), scale * last, rows.above)
        return -high, high
    scale, zero, error = _zero_points(rows, -first, last - first, bound)
    low, high = _range(rows, scale, zero, last - first)
    found = np.isfinite(error)
    return np.where(found, low, -rows.below), np.where(found, high, rows.above)


def _zero_points(rows: Rows, start: Floats, steps: Floats, bound: Floats) -> tuple[Floats, Floats, Floats]:
    """Scale, zero point (levels below zero) and error of the best grid that a range inside of the data has."""
    best, best_scale, best_zero = np.where(bound > 0, np.inf, bound), np.zeros_like(bound), start.copy()
    for direction, begin in ((1.0, 0.0), (-1.0, 1.0)):
        zero, misses = start + direction * begin, np.zeros(start.size, np.int64)
        active = np.flatnonzero((bound > 0) & (zero >= 0) & (zero <= steps))
        while active.size:
            z, n = zero[active], steps[active]
            top = _largest_scale(rows.below[active], rows.above[active], z, n)
            least = np.minimum(best[active], bound[active])
            scale, error = row_kernels.least_squares(np.ascontiguousarray(rows.values[active]), -z, n - z, top, least)
            better = error < least
            won = active[better]
            best[won], best_scale[won], best_zero[won] = error[better], scale[better], z[better]
            misses[active] = np.where(better, 0, misses[active] + 1)
            zero[active] += direction
            active = active[(misses[active] < PATIENCE) & (zero[active] >= 0) & (zero[active] <= steps[active])]
    return best_scale, best_zero, np.where(best_scale > 0, best, np.inf)


def _largest_scale(below: Floats, above: Floats, zero: Floats, steps: Floats) -> Floats:
    """The largest scale of a range inside of the data whose zero point this is; 0 where there is none."""
    top = (below + above) / steps
    for extreme, levels in ((below, zero - HALF), (above, steps - zero - HALF)):
        top = np.where(levels > 0, np.minimum(top, extreme / np.where(levels > 0, levels, 1.0)), top)
    return top


def _range(rows: Rows, scale: Floats, zero: Floats, steps: Floats) -> tuple[Floats, Floats]:
    """The range inside of the data that has this grid, as near to the grid's ends as can be."""
    least = np.maximum(-rows.below, -np.minimum(zero + HALF, steps) * scale)
    most = np.minimum(np.minimum(rows.above - steps * scale, -(zero - HALF) * scale), 0.0)
    low = np.maximum(np.minimum(-zero * scale, most), least)
    return low, low + steps * scale


def scan(rows: Rows, grid: Grid, dtype: QuantType, *, power: float, steps: int, tied: bool) -> tuple[Floats, Floats]:
    """The search of ``mse`` over candidates, for all rows at once."""
    below, above = rows.below[:, None], rows.above[:, None]
    unclipped = losses(rows.values, grid, below, above, power=power)
    slack = unclipped ** (1 / power) + (below + above) / (2**dtype.bits - 2)

    def best(low: Floats, high: Floats, tried: npt.NDArray[np.bool_] | None = None) -> tuple[Floats, Floats]:
        low, high = (np.ascontiguousarray(a) for a in np.broadcast_arrays(low, high))
        chosen = last_least(losses(rows.values, grid, low, high, power=power, tried=tried))
        return low[chosen][:, None], high[chosen][:, None]

    def even(_: Floats, extreme: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        shares = np.arange(1, steps + 1) / steps
        return extreme * shares, np.asarray(extreme * (1 - shares) <= slack)

    def near(value: Floats, extreme: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        offsets = extreme * np.arange(1 - FINE, FINE) / (steps * FINE)
        found = np.clip(value + offsets, extreme / (steps * FINE), extreme)
        return found, np.ones(found.shape, np.bool_)

    extreme = np.maximum(below, above)
    limit, tried = even(extreme, extreme)
    low, high = best(np.minimum(limit, below), np.minimum(limit, above), tried)
    if tied:
        limit, tried = near(np.maximum(low, high), extreme)
        low, high = best(np.minimum(limit, below), np.minimum(limit, above), tried)
        return -low[:, 0], high[:, 0]
    for candidates in (even, near):
        low, high = best(low, *_with(candidates(high, above), high))
        at, tried = _with(candidates(low, below), low)
        low, high = best(at, high, tried)
    return -low[:, 0], high[:, 0]


def _with(candidates: tuple[Floats, npt.NDArray[np.bool_]], value: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The candidates and one more, ascending."""
    at = np.concatenate([candidates[0], value], axis=1)
    tried = np.concatenate([candidates[1], np.ones(value.shape, np.bool_)], axis=1)
    order = np.argsort(at, axis=1, kind="stable")
    return np.take_along_axis(at, order, 1), np.take_along_axis(tried, order, 1)
