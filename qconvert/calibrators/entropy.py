"""Entropy: the clipping that loses the least information (KL divergence; Migacz, NVIDIA GTC 2017).

A candidate window of bins holds the reference ``P``: its counts, and in its end bins the counts outside, which saturate
there. ``Q`` is what the grid's levels keep of the counts inside: the window is cut into ``levels`` equal parts (a bin
on a cut is shared in proportion), the mass of a part is spread over the bins of it that ``P`` fills. The least

    KL = sum P ln(P / Q)  over P > 0,  both normalised

wins, the widest window of equals; "no clipping" is a candidate, and a window ends at the edge of a bin. Where the
published pseudo-code is silent or fails: where ``P > 0`` and no mass reaches, ``Q`` is 1e-6 of the mass; exact zeros
are not counted, since every grid holds them, and the bin beside zero is set to its neighbour; ``levels`` is the number
that the grid has over the window: 256 at 8 bits, 128 over magnitudes. A grid of more levels than there are bins
(16 bits) clips nothing.

Two-sided data on an asymmetric grid: one window over the signed bins. A threshold for both ends is scanned (an end
stops at its own extreme), then twice the high and the low end in turn, the other one held; these scans try 64
candidates, then all around the best. Magnitudes and one-sided data are scanned in full.

The parameter that matters is ``coverage``, the share of the non-zero values that stay inside (half of the rest may go
at each of two ends): without it a spike at the upper end, such as ReLU6 leaves, is cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from qconvert.calibrators.base import Calibrator, Floats, Ints, last_argmin, merge, used
from qconvert.histogram import BINS, Counts, TensorStats
from qconvert.numerics import QuantType, Range

SMOOTHING = 1e-6
"""The share of the mass that Q holds in an end bin that only P fills."""

TIE = 1e-9
"""Divergences closer than this, in nat, count as equal."""

COARSE = 64
"""Candidates of the first pass of a scan for two-sided data."""

ROUNDS = 2
"""How often the ends of two-sided data are scanned in turn."""

Loss = Callable[[Ints, Ints], Floats]
"""The divergences of windows, by the bins they take below and above zero."""

CHUNK = 1 << 15
"""Levels times candidates evaluated at once, so that the arrays stay in the cache."""


@dataclass(frozen=True)
class Entropy(Calibrator):
    """The window with the least divergence from the data.

    Attributes:
        bins: Bins between zero and the largest magnitude, at most; half as many at least.
        coverage: The share of the non-zero values that no candidate clips.
    """

    bins: int = field(default=2048, metadata={"minimum": 512, "maximum": BINS})
    coverage: float = field(default=0.999, metadata={"exclusiveMinimum": 0, "maximum": 1})

    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:
        """The least divergence over magnitudes, over the one side that holds data, or over both."""
        histogram = stats.histogram
        below, above = histogram.negative, histogram.positive
        levels = dtype.qmax - dtype.qmin + 1 - (narrow_range and dtype.signed)
        if symmetric:
            above, below, levels = below + above, np.zeros_like(below), 1 << (dtype.bits - 1)
        merged = 1
        while -(-max(used(below), used(above)) // merged) > self.bins:
            merged *= 2
        low, high = window(merge(below, merged), merge(above, merged), levels, coverage=self.coverage)
        width = histogram.width * merged
        return Range(-max(low, high) * width if symmetric else -low * width, high * width)


def window(below: Counts, above: Counts, levels: int, *, coverage: float) -> tuple[int, int]:
    """The best window: how many bins of ``below`` and of ``above`` it takes, each counted from zero outwards."""
    low_end, high_end = used(below), used(above)
    counts = np.concatenate([_without_zero_bin(below)[:low_end][::-1], _without_zero_bin(above)[:high_end]])
    if low_end + high_end <= levels or not counts.any():
        return low_end, high_end
    spare = (1 - coverage) * float(below.sum() + above.sum()) / (2 if low_end and high_end else 1)
    lows, highs = (np.arange(_floor(side, spare), used(side) + 1) for side in (below, above))

    def loss(low: Ints, high: Ints) -> Floats:
        low, high = np.broadcast_arrays(low, high)
        return divergences(counts, low_end - low, low_end + high, levels)

    if low_end and high_end:
        return _descend(loss, lows, highs, levels)
    low, high = lows[lows >= levels] if low_end else lows, highs[highs >= levels] if high_end else highs
    best = last_argmin(loss(low, high), tolerance=TIE)
    return int(low[best]) if low_end else 0, int(high[best]) if high_end else 0


def _descend(loss: Loss, lows: Ints, highs: Ints, levels: int) -> tuple[int, int]:
    """One threshold for both ends, then ``ROUNDS`` times the high end and the low end in turn; no step loses."""

    def ends(limit: Ints) -> tuple[Ints, Ints]:
        return limit.clip(lows[0], lows[-1]), limit.clip(highs[0], highs[-1])

    def beside_low(at: Ints) -> Floats:
        return loss(low, at)

    def beside_high(at: Ints) -> Floats:
        return loss(at, high)

    limits = np.arange(max(lows[-1], highs[-1]) + 1)
    limits = limits[np.add(*ends(limits)) >= levels]
    low, high = ends(_scan(lambda limit: loss(*ends(limit)), limits, coarse=COARSE, start=limits[-1:]))
    for _ in range(ROUNDS):
        high = _scan(beside_low, highs[highs >= levels - low], coarse=COARSE, start=high)
        low = _scan(beside_high, lows[lows >= levels - high], coarse=COARSE, start=low)
    return int(low[0]), int(high[0])


def _scan(loss: Callable[[Ints], Floats], candidates: Ints, *, coarse: int, start: Ints) -> Ints:
    """The candidate of the least loss, shape ``[1]``.

    Of ``coarse`` evenly spaced ones and ``start``, then of all around the best of these.
    """
    size = candidates.size
    stride = -(-size // coarse)
    first = np.union1d(np.arange(size - 1, -1, -stride), np.searchsorted(candidates, start))
    best = int(first[last_argmin(loss(candidates[first]), tolerance=TIE)])
    if stride > 1:
        near = np.arange(max(best - stride + 1, 0), min(best + stride, size))
        best = int(near[last_argmin(loss(candidates[near]), tolerance=TIE)])
    return candidates[best : best + 1]


def _without_zero_bin(counts: Counts) -> Counts:
    """The counts with the bin beside zero set to its neighbour."""
    return np.concatenate([counts[1:2], counts[1:]])


def _floor(counts: Counts, spare: float) -> int:
    """The least number of bins from zero outwards that leaves at most ``spare`` values outside."""
    beyond = np.append(np.cumsum(counts[::-1])[::-1], 0)
    return int(np.argmax(beyond <= spare))


def divergences(counts: Counts, starts: Ints, stops: Ints, levels: int) -> Floats:
    """KL(P || Q) in nat of the windows ``counts[start:stop]``, each at least ``levels`` bins wide; shape ``[n]``."""
    step = max(CHUNK // levels, 1)
    parts = [
        _divergences(counts, starts[i : i + step], stops[i : i + step], levels) for i in range(0, starts.size, step)
    ]
    return np.concatenate(parts)


def _divergences(counts: Counts, starts: Ints, stops: Ints, levels: int) -> Floats:
    """Q is constant within a level, so ``sum P ln Q`` needs cumulative counts at the cuts, and the cut bins alone."""
    filled = np.append(counts, 0).astype(np.float64)
    mass, support, information = (np.append(0.0, np.cumsum(a[:-1])) for a in (filled, filled > 0, _xlogx(filled)))
    total = mass[-1]
    outside = np.stack([mass[starts], total - mass[stops]])
    ends = np.stack([filled[starts], filled[stops - 1]])

    cuts = starts[:, None] + (stops - starts)[:, None] * np.arange(levels + 1) / levels
    whole = np.floor(cuts).astype(np.intp)
    share = cuts - whole
    cut_bins = filled[whole]
    level_mass = np.diff(mass[whole] + share * cut_bins)
    level_support = np.diff(support[whole] + share * (cut_bins > 0))
    level_support[:, [0, -1]] += ((outside > 0) & (ends == 0)).T
    density = level_mass / np.where(level_support > 0, level_support, 1)

    cut_bins = (cut_bins * (share > 0))[:, 1:-1]
    uncut = mass[whole[:, 1:]] - mass[whole[:, :-1] + (share[:, :-1] > 0)]
    shared = share[:, 1:-1] * density[:, :-1] + (1 - share[:, 1:-1]) * density[:, 1:]
    cross = (uncut * _log(density)).sum(1) + (cut_bins * _log(shared)).sum(1)
    end_density = density[:, [0, -1]].T
    bare = (outside > 0) & (end_density == 0)
    cross += (outside * _log(np.where(bare, SMOOTHING * total, end_density))).sum(0)
    kept = mass[stops] - mass[starts] + SMOOTHING * total * bare.sum(0)
    own = information[stops] - information[starts] + (_xlogx(ends + outside) - _xlogx(ends)).sum(0)
    return np.asarray((own - cross) / total + np.log(kept / total))


def _log(values: Floats) -> Floats:
    """``ln`` where positive, 0 elsewhere."""
    return np.log(np.where(values > 0, values, 1))


def _xlogx(values: Floats) -> Floats:
    return np.asarray(values * _log(values))
