"""What a range does to a tensor, read off its histogram: the share of values it clips, and the SQNR that is left.

Values are taken as evenly spread inside their bin, the outermost bins cut off at the extremes; exact zeros are apart
and cost nothing. On a grid of step s with levels ``first..last`` counted from zero, the squared error
``(x - n s)**2`` with ``n = clip(rint(x / s), first, last)`` has the integral, with ``r = x / s - n``,

    F(x) = s**3 (r**3 / 3 + n / 12)

so a bin ``[u, v)`` of ``c`` values adds ``c (F(v) - F(u)) / (v - u)`` to the noise and ``c (u**2 + u v + v**2) / 3`` to
the signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np

from qconvert.calibrators import CALIBRATORS, FROM_STATISTICS, Calibrator, make_calibrator
from qconvert.calibrators.base import Floats
from qconvert.errors import CalibrationError
from qconvert.histogram import BINS, TensorStats
from qconvert.metrics import ratio_db
from qconvert.numerics import QuantParams, QuantType, Range, params_from_range

POINT = 1e-6
"""A bin narrower than this many steps is one point: differences of F would be rounding."""


@dataclass(frozen=True)
class Grid:
    """What ranges are judged for.

    Attributes:
        dtype: The levels.
        symmetric: Whether they are symmetric about 0.
    """

    dtype: QuantType
    symmetric: bool

    def __str__(self) -> str:
        return f"{self.dtype} {'symmetric' if self.symmetric else 'asymmetric'}"


@dataclass(frozen=True)
class Threshold:
    """One range and what it does to one tensor.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        clipped_low_percent: Percent of the counted values below ``low``; NaN where none were counted.
        clipped_high_percent: Percent of the counted values above ``high``.
        sqnr_db: The expected SQNR of the tensor on the grid that covers the range.
    """

    low: float
    high: float
    clipped_low_percent: float
    clipped_high_percent: float
    sqnr_db: float


@dataclass(frozen=True)
class Bins:
    """The histogram without its exact zeros: ``counts[i]`` values evenly spread over ``[left[i], right[i]]``."""

    left: Floats
    right: Floats
    counts: Floats

    @classmethod
    def of(cls, stats: TensorStats) -> Bins:
        """The bins that hold something, lowest first."""
        edges, counts = stats.histogram.signed()
        counts[BINS] -= stats.histogram.zeros
        filled = np.flatnonzero(counts)
        ends = np.clip(edges, stats.low, stats.high)
        return cls(ends[filled], ends[filled + 1], counts[filled].astype(np.float64))

    def below(self, point: float) -> float:
        """How many values lie below a point."""
        width = self.right - self.left
        spread = np.clip((point - self.left) / np.where(width > 0, width, 1.0), 0.0, 1.0)
        return float((self.counts * np.where(width > 0, spread, self.left < point)).sum())

    def above(self, point: float) -> float:
        """How many values lie above a point."""
        return Bins(-self.right, -self.left, self.counts).below(-point)


def judge(stats: TensorStats, found: Range, grid: Grid) -> Threshold:
    """What the range does to the finite values of a tensor, of which there must be one."""
    if not stats.histogram.count:
        return Threshold(found.low, found.high, math.nan, math.nan, math.nan)
    bins = Bins.of(stats)
    signal = float((bins.counts * (bins.left**2 + bins.left * bins.right + bins.right**2)).sum()) / 3
    noise = _noise(bins, params_from_range(found.low, found.high, grid.dtype, symmetric=grid.symmetric))
    return Threshold(
        found.low,
        found.high,
        100 * bins.below(found.low) / stats.histogram.count,
        100 * bins.above(found.high) / stats.histogram.count,
        ratio_db(signal, noise),
    )


def _noise(bins: Bins, grid: QuantParams) -> float:
    """The expected sum of squared errors."""
    step = float(grid.scale)
    first, last = (int(end - grid.zero_point) for end in (grid.qmin, grid.qmax))

    def split(x: Floats) -> tuple[Floats, Floats]:
        level = np.clip(np.rint(x / step), first, last)
        return level, x / step - level

    (n, r), (m, q) = split(bins.left), split(bins.right)
    width = (bins.right - bins.left) / step
    integral = ((q**3 - r**3) / 3 + (m - n) / 12) / np.where(width > POINT, width, 1.0)
    point = split((bins.left + bins.right) / 2)[1] ** 2
    return float((bins.counts * np.where(width > POINT, integral, point)).sum()) * step**2


def threshold(stats: TensorStats, calibrator: Calibrator, grid: Grid) -> Threshold:
    """What the range of a calibrator does.

    Raises:
        CalibrationError: If no range follows from the statistics.
    """
    return judge(stats, calibrator(stats, grid.dtype, symmetric=grid.symmetric), grid)


def all_thresholds(stats: TensorStats, grid: Grid) -> dict[str, Threshold]:
    """Those of every calibrator that these statistics suffice for, with its default parameters, by name.

    Raises:
        CalibrationError: If no range follows from the statistics.
    """
    counted = stats.histogram.count
    usable = [name for name in FROM_STATISTICS if counted or not CALIBRATORS[name].needs_histogram]
    return {name: threshold(stats, make_calibrator(name), grid) for name in usable}


def ranges(
    stats: Mapping[str, TensorStats], calibrator: Calibrator, grid: Grid
) -> tuple[dict[str, Threshold], dict[str, str]]:
    """The thresholds of all values that have one, and why the others have none."""
    found, missing = {}, {}
    for name, one in stats.items():
        try:
            found[name] = threshold(one, calibrator, grid)
        except CalibrationError as error:  # noqa: PERF203 - the next value may have one
            missing[name] = str(error)
    return found, missing


def choose(names: Iterable[str], wanted: str) -> str:
    """The one name that ``wanted`` is, or fits as a glob in which ``*`` crosses ``/`` too.

    Raises:
        CalibrationError: If none fits, or several do.
    """
    known = list(names)
    if wanted in known:
        return wanted
    fitting = [name for name in known if fnmatchcase(name, wanted)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise CalibrationError(f"{len(fitting)} values fit '{wanted}'", hint=f"choose one: {_listed(fitting)}")
    close = get_close_matches(wanted, known, n=3, cutoff=0.4) or [n for n in known if wanted.strip("*") in n][:3]
    message = f"no value is called '{wanted}'"
    raise CalibrationError(message, hint=f"{'the closest are' if close else 'there are'} {_listed(close or known)}")


def _listed(names: list[str], limit: int = 6) -> str:
    return ", ".join(f"'{name}'" for name in names[:limit]) + (", ..." if len(names) > limit else "")


def coarse(stats: TensorStats, limit: int) -> tuple[Floats, Floats]:
    """Edges ``[n + 1]`` and counts ``[n]`` without the exact zeros: at most ``limit`` equal bins around the data.

    Each is a power of two of the histogram's, so none is split.
    """
    edges, counts = stats.histogram.signed()
    counts[BINS] -= stats.histogram.zeros
    filled = np.flatnonzero(counts)
    if not filled.size:
        return np.zeros(1), np.zeros(0)
    width = 1
    while filled[-1] // width - filled[0] // width + 1 > limit:
        width *= 2
    first, last = int(filled[0]) // width, int(filled[-1]) // width
    merged = counts.reshape(-1, width).sum(1)[first : last + 1]
    return edges[first * width : (last + 1) * width + 1 : width], merged.astype(np.float64)


def rows(stats: TensorStats, count: int) -> tuple[Floats, Floats]:
    """Edges ``[count + 1]`` and counts ``[count]`` without the exact zeros: equal bins between the extremes.

    A bin of the histogram that an edge splits is taken as evenly spread.
    """
    bins = Bins.of(stats)
    low, high = stats.low, stats.high
    if not low < high:
        return np.array([low, high]), np.array([bins.counts.sum()])
    edges = np.linspace(low, high, count + 1)
    inner = np.array([bins.below(math.nextafter(edge, math.inf)) for edge in edges[1:]])
    inner[-1] = bins.counts.sum()
    return edges, np.diff(inner, prepend=0.0)
