"""What every calibrator shares: its laws, the check of its fields, and how bins of a histogram are read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from qconvert.errors import CalibrationError
from qconvert.histogram import BINS, Counts, TensorStats
from qconvert.numerics import QuantType, Range

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

LIMITS = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most"}
"""The JSON Schema words that a number's ``metadata`` may hold, and how a message says them."""

EDGES = 1024
"""Edges of a histogram that a loss is summed over, at most."""

LONG = 1 << 16
"""Rows of more values than this are searched by their histogram."""

CHUNK = 1 << 18
"""So many values of short rows are searched at once."""


def choices(*names: str) -> dict[str, object]:
    """The ``metadata`` of a field that takes one of these names, as JSON Schema has it."""
    return {"type": "string", "enum": list(names)}


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of finite values, each with a range of its own and a value that is not 0.

    Attributes:
        values: float32 ``[R, n]``.
        below: How far each may reach below zero, float64 ``[R]``.
        above: How far above; the same where ranges are symmetric.
    """

    values: Float32
    below: Floats
    above: Floats


@dataclass(frozen=True)
class Calibrator(ABC):
    """Chooses the range that a grid covers, from a tensor's statistics; the fields are its keys in a policy.

    With ``[a, b]`` the range of the data extended to contain 0, the chosen ``[low, high]`` obeys

    * ``a <= low <= 0 <= high <= b``; where ``symmetric``, ``-low == high <= max(-a, b)`` instead, but an unsigned grid
      over data without negatives starts at 0 and wastes no level;
    * ``low < high`` unless every value is 0;
    * ``range(2**k * x) == 2**k * range(x)`` exactly: everything is computed in units of the histogram's bins.
    """

    needs_histogram: ClassVar[bool] = True
    """Whether the ranges of the data alone do not suffice."""

    needs_samples: ClassVar[bool] = False
    """Whether the model has to run on samples again, so that statistics do not suffice."""

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(self.name, field.name, getattr(self, field.name), type(field.default), field.metadata)

    def __call__(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool = False) -> Range:
        """The range for these statistics.

        Args:
            stats: Statistics of finite values only, at least one.
            dtype: The grid the range is for.
            symmetric: Whether the grid is symmetric about 0.
            narrow_range: Whether the lowest level of a signed grid is left out.

        Raises:
            CalibrationError: If nothing was seen, or a NaN or an Inf.
        """
        _require_finite(stats)
        below, above = max(-stats.low, 0.0), max(stats.high, 0.0)
        if not (below or above):
            return Range(0.0, 0.0)
        mirrored = symmetric and (dtype.signed or below > 0)
        if mirrored:
            below = above = max(below, above)
        if self.needs_histogram and not stats.histogram.count:
            message = f"{self.name} needs a histogram, and only the ranges were calibrated"
            raise CalibrationError(message, hint="calibrate without --stats range, or use minmax or average")
        found = self.search(stats, dtype, symmetric=mirrored, narrow_range=narrow_range)
        low, high = max(-below, min(found.low, 0.0)), min(above, max(found.high, 0.0))
        if mirrored:
            low, high = -max(-low, high), max(-low, high)
        return Range(low + 0.0, high + 0.0) if low < high else Range(-below + 0.0, above + 0.0)

    def rows(
        self, values: Float32, dtype: QuantType, *, symmetric: bool, narrow_range: bool = False
    ) -> tuple[Floats, Floats]:
        """The ranges of rows from the values themselves, as they are for weights; the same laws, and one zero point.

        On a symmetric unsigned grid all ranges are symmetric as soon as one row has negatives.

        Args:
            values: Finite values, ``[R, n]``.
            dtype: The grid that the ranges are for.
            symmetric: Whether the grid is symmetric about 0.
            narrow_range: Whether the lowest level of a signed grid is left out.

        Returns:
            Low and high ends, each ``[R]``.

        Raises:
            CalibrationError: If a value is NaN or Inf, or no range follows from values alone.
        """
        if not np.isfinite(values).all():
            _require_finite(TensorStats.of(values))
        below = -values.min(1, initial=0.0).astype(np.float64)
        above = values.max(1, initial=0.0).astype(np.float64)
        mirrored = symmetric and (dtype.signed or bool(below.any()))
        if mirrored:
            below = above = np.maximum(below, above)
        low, high = np.zeros_like(below), np.zeros_like(above)
        filled = np.flatnonzero(below + above)
        step = max(CHUNK // max(values.shape[1], 1), 1)
        exact = values.shape[1] <= LONG or not self.needs_histogram
        search = self.search_rows if exact else self._search_each
        for some in (filled[i : i + step] for i in range(0, filled.size, step)):
            one = Rows(np.ascontiguousarray(values[some]), below[some], above[some])
            low[some], high[some] = search(one, dtype, symmetric=mirrored, narrow_range=narrow_range)
        low, high = np.clip(low, -below, 0.0), np.clip(high, 0.0, above)
        if mirrored:
            high = np.maximum(-low, high)
            low = -high
        empty = low >= high
        return np.where(empty, -below, low) + 0.0, np.where(empty, above, high) + 0.0

    @property
    def name(self) -> str:
        """The method's name in a policy, which is that of its file."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def search(self, stats: TensorStats, dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> Range:
        """The range before it is fitted into the data and around 0; ``symmetric`` asks for ``low == -high``."""

    def search_rows(
        self, rows: Rows, dtype: QuantType, *, symmetric: bool, narrow_range: bool
    ) -> tuple[Floats, Floats]:
        """The ranges of rows before they are fitted; one after the other, where a method knows no shorter way.

        A row is one sample, so that without a histogram its range is what every method makes of it.
        """
        if not self.needs_histogram:
            return -rows.below, rows.above
        return self._search_each(rows, dtype, symmetric=symmetric, narrow_range=narrow_range)

    def _search_each(
        self, rows: Rows, dtype: QuantType, *, symmetric: bool, narrow_range: bool
    ) -> tuple[Floats, Floats]:
        stats = (TensorStats.of(row) for row in rows.values)
        found = [self.search(one, dtype, symmetric=symmetric, narrow_range=narrow_range) for one in stats]
        return np.array([one.low for one in found]), np.array([one.high for one in found])


def _require_finite(stats: TensorStats) -> None:
    """Refuses statistics from which no range follows."""
    if not stats.finite:
        message = f"expected finite values, got {stats.not_finite}"
        raise CalibrationError(message, hint="the float model makes them on these samples; check their preprocessing")
    if stats.values == 0:
        message = "no value was seen"
        raise CalibrationError(message, hint="calibrate with samples that reach this tensor")


def _check(name: str, key: str, value: object, kind: type, limits: Mapping[str, Any]) -> None:
    """Refuses a field of the wrong kind or outside its limits; NaN is outside all of them."""
    if "enum" in limits:
        if value in limits["enum"]:
            return
        wanted = f"one of {', '.join(limits['enum'])}"
    else:
        if isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool):
            above = value > limits.get("exclusiveMinimum", -math.inf) and value >= limits.get("minimum", -math.inf)
            if above and value <= limits.get("maximum", math.inf):
                return
        bounds = " and ".join(f"{LIMITS[word]} {limit}" for word, limit in limits.items())
        wanted = f"{'a whole number' if kind is int else 'a number'} {bounds}"
    message = f"{name}: {key}: expected {wanted}, got {value!r}"
    raise CalibrationError(message, hint=f"leave {key} out to take its default")


def grid_steps(dtype: QuantType, *, symmetric: bool, narrow_range: bool) -> int:
    """How many steps of the grid lie between its two ends; where symmetric, between zero and either end."""
    return (1 << (dtype.bits - 1)) - 1 if symmetric else (1 << dtype.bits) - 1 - (narrow_range and dtype.signed)


def used(counts: Counts) -> int:
    """How many bins reach from zero to the last one that holds a value."""
    filled = np.flatnonzero(counts)
    return int(filled[-1]) + 1 if filled.size else 0


def merge(counts: Counts, width: int) -> Counts:
    """Merges ``width`` neighbouring bins into one; a power of two, so the edges stay on the grid."""
    return np.asarray(counts.reshape(-1, width).sum(1))


def last_argmin(values: Floats, *, tolerance: float) -> int:
    """The index of the smallest value; of those at most ``tolerance`` above it (rounding cannot tell), the last."""
    return int(np.flatnonzero(values <= values.min() + tolerance)[-1])


def extremes(stats: TensorStats, *, symmetric: bool) -> tuple[float, float]:
    """How far the data reach below and above zero, in bins; where symmetric, twice the larger one."""
    below, above = max(-stats.low, 0.0) / stats.histogram.width, max(stats.high, 0.0) / stats.histogram.width
    return (max(below, above),) * 2 if symmetric else (below, above)


def falls(stats: TensorStats, *, folded: bool) -> tuple[Floats, Floats, int]:
    """Where the density of the values falls, in bins from zero, by how much, and the width of the merged bins.

    So that an error is a sum over the edges: ``sum_e fall(e) F(e) == sum_bins count (F(v) - F(u)) / (v - u)``.
    """
    below, above = stats.histogram.negative, stats.histogram.positive
    counts = below + above if folded else np.concatenate([below[::-1], above])
    width, zero = 1, 0 if folded else BINS
    drops = -np.diff(counts, prepend=0, append=0)
    while np.count_nonzero(drops) > EDGES:
        counts, width = merge(counts, 2), width * 2
        drops = -np.diff(counts, prepend=0, append=0)
    at = np.flatnonzero(drops)
    edges: Floats = at * np.float64(width) - zero
    density: Floats = drops[at] / np.float64(width)
    return edges, density, width
