"""Where figures draw what: everything in percent of the plot, so that one drawing fits every screen and paper.

A plot is an SVG of 100 x 100 units that is stretched to its box, with strokes that are not; names and numbers stand
around it as text, so that they keep their size, wrap and can be read aloud.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qconvert.report import words
from qconvert.reports import Bar, Bars, Distribution, Front, Trend

TICKS = 6
"""Steps of an axis, at most one more."""

ROOM = 0.04
"""Free space beyond the outermost points, as a share of the axis."""


FAINT = 1e-300
"""Numbers nearer to each other are drawn as one: below, their steps would be 0."""

BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
"""Units of file sizes."""

LABEL = 6.0
"""Percent of the plot's width that a label takes on a phone."""

LINE, HEIGHTS = 15, (200, 260)
"""Pixels: the height of a label, as in ``report.html``; those of the plot on a phone and on a desktop."""


@dataclass(frozen=True)
class Tick:
    """A number on an axis, at ``at`` percent of its length."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Numbers to percent: ``low`` at 0, ``high`` at 100."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, number: float) -> float:
        """Where a number is, cut off at the ends."""
        span = self.high - self.low
        return round(100 * min(1.0, max(0.0, (number - self.low) / span)), 3) if span > 0 else 50.0


@dataclass(frozen=True)
class DrawnBar:
    """A bar from ``left`` to ``right`` percent, its interval from ``low`` to ``high``."""

    name: str
    note: str
    text: str
    interval: str
    marked: bool
    left: float
    right: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Dot:
    """A point in percent from the left and from the top, with what a pointer on it shows.

    A ``label`` stands above it, ``lift`` lines higher where another label is in the way.
    """

    x: float
    y: float
    title: str
    name: str
    text: str
    label: str = ""
    on_front: bool = False
    chosen: bool = False
    lift: int = 0

    @property
    def number(self) -> int:
        """The label, for sorting; 0 where there is none."""
        return int(self.label or 0)


@dataclass(frozen=True)
class Line:
    """A path through points, or a mark across the plot."""

    name: str
    path: str
    number: int


@dataclass(frozen=True)
class Plot:
    """Everything in a plot."""

    x: Axis
    y: Axis
    x_title: str
    y_title: str
    area: str = ""
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()


def axis(numbers: Sequence[float], *, zero: bool = False, room: float = ROOM, unit: str = "") -> Axis:
    """An axis that holds these numbers, and 0 if wanted, with even ticks; of bytes they carry their unit."""
    finite = [number for number in numbers if math.isfinite(number)] or [0.0]
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < FAINT:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    pad = room * (high - low)
    low, high = (low - pad if not zero or low < 0 else low), (high + pad if not zero or high > 0 else high)
    step = _step((high - low) / TICKS)
    first = math.ceil(low / step - 1e-9)
    marks = [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
    made = Axis(low, high, ())
    return Axis(low, high, tuple(Tick(made.at(mark), _tick(mark, step, unit)) for mark in marks))


def _tick(mark: float, step: float, unit: str) -> str:
    """A mark with as many decimals as its steps have."""

    def digits(size: float) -> int:
        return max(0, -math.floor(math.log10(step / size) + 1e-9))

    if unit != "B":
        return _short(mark, digits(1))
    name, size = next(((name, size) for name, size in BYTES if abs(mark) >= size), ("B", 1.0))
    return f"{mark / size:.{digits(size)}f} {name}"


def _step(least: float) -> float:
    """The least of 1, 2, 5, 10, ... times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _short(number: float, digits: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if digits == 0 and abs(number) >= 10 * size:
            return f"{number / size:g} {unit}"
    return f"{number + 0.0:.{digits}f}" if digits < 8 else f"{number:.12g}"


def bars(figure: Bars) -> tuple[DrawnBar, ...]:
    """Bars from zero, or from below the least where numbers are negative; intervals are cut off at the ends."""
    values = [bar.value.value for bar in figure.bars]
    ends = [end for bar in figure.bars for end in (bar.value.low, bar.value.high) if end is not None]
    longest = max((abs(value) for value in values), default=0.0)
    held = [end for end in ends if abs(end) <= 2 * longest]  # one wide interval must not flatten all bars
    scale = axis([*values, *held], zero=True, room=0.0)
    return tuple(_bar(bar, scale) for bar in figure.bars)


def _bar(bar: Bar, scale: Axis) -> DrawnBar:
    value, low, high = bar.value.value, bar.value.low, bar.value.high
    left, right = sorted((scale.at(0.0), scale.at(value)))
    if low is None or high is None:
        return DrawnBar(bar.name, bar.note, f"{value:.3g}", "", bar.marked, left, right, None, None)
    ends = f"{low:.3g} to {high:.3g}"
    return DrawnBar(bar.name, bar.note, f"{value:.3g}", ends, bar.marked, left, right, scale.at(low), scale.at(high))


def trend(figure: Trend) -> Plot:
    """Lines along the network; the places that stand out are numbered, the first one first."""
    count = len(figure.names)
    y = axis([value for line in figure.series for value in line.values if value is not None])
    across = Axis(0, max(count - 1, 1), ())
    steps = range(0, count, max(1, math.ceil(count / 5)))
    x = Axis(0, max(count - 1, 1), tuple(Tick(across.at(index), str(index + 1)) for index in steps))
    lines = tuple(
        Line(
            series.name, _path([(x.at(i), 100 - y.at(v)) for i, v in enumerate(series.values) if v is not None]), number
        )
        for number, series in enumerate(figure.series)
    )
    first = figure.series[0].values if figure.series else ()
    dots = []
    for index, value in enumerate(first):
        if value is not None:
            label = str(figure.marked.index(index) + 1) if index in figure.marked else ""
            text = words.amount(value, figure.unit)
            dots.append(
                Dot(
                    x.at(index),
                    round(100 - y.at(value), 3),
                    f"{figure.names[index]}: {text}",
                    figure.names[index],
                    text,
                    label,
                )
            )
    return Plot(x, y, "place in the network", figure.unit, lines=lines, dots=_lifted(dots))


def distribution(figure: Distribution) -> Plot:
    """Counts on a logarithmic scale, for tails are what ranges are about; marks as lines."""
    heights = [math.log10(count) + 0.3 if count else 0.0 for count in figure.counts]
    x = axis([*figure.edges, *(mark.at for mark in figure.marks)], room=0.02)
    top = max(heights)
    powers = range(0, int(top) + 1, max(1, math.ceil(top / 3)))
    y = Axis(0.0, top * 1.05, ())
    y = Axis(y.low, y.high, tuple(Tick(y.at(power + 0.3), _short(10.0**power, 0)) for power in powers))
    outline = [(x.at(figure.edges[0]), 100.0)]
    for index, height in enumerate(heights):
        level = round(100 - y.at(height), 3)
        outline += [(x.at(figure.edges[index]), level), (x.at(figure.edges[index + 1]), level)]
    outline.append((x.at(figure.edges[-1]), 100.0))
    lines = tuple(
        Line(f"{mark.name} {mark.at:.4g}", f"M{x.at(mark.at):g} 0V100", number)
        for number, mark in enumerate(figure.marks)
    )
    return Plot(x, y, "value", "values in a bin (log)", area=f"{_path(outline)}Z", lines=lines)


def front(figure: Front) -> Plot:
    """Points between two aims; those on the front are joined, and with the chosen one numbered from the left."""
    x = axis([point.x for point in figure.points], unit=figure.x.unit)
    y = axis([point.y for point in figure.points], unit=figure.y.unit)
    ordered = sorted(figure.points, key=lambda point: (point.x, point.y))
    number = 0
    dots = []
    for point in ordered:
        number += point.on_front or point.chosen
        text = f"{words.amount(point.x, figure.x.unit, digits=figure.x.digits)}, " + words.amount(
            point.y, figure.y.unit, digits=figure.y.digits
        )
        label = str(number) if point.on_front or point.chosen else ""
        place = x.at(point.x), round(100 - y.at(point.y), 3)
        dots.append(Dot(*place, f"{point.name}: {text}", point.name, text, label, point.on_front, point.chosen))
    joined = _path([(dot.x, dot.y) for dot in dots if dot.on_front])
    lines = (Line("not beaten in both", joined, 0),) if joined else ()
    return Plot(x, y, words.head(figure.x), words.head(figure.y), lines=lines, dots=_lifted(dots))


def _lifted(dots: Sequence[Dot]) -> tuple[Dot, ...]:
    """The dots with labels that cover neither each other nor another dot that has one, from the left."""
    labelled = [dot for dot in dots if dot.label]
    done: list[Dot] = []
    for dot in dots:
        near = [other for other in labelled if abs(dot.x - other.x) < LABEL and other is not dot]
        placed = [other for other in done if other.label and dot.x - other.x < LABEL]
        lifts = (replace(dot, lift=lift) for lift in range(3 * len(dots)))
        free = (one for one in lifts if not any(_covers(one, near, placed, height) for height in HEIGHTS))
        done.append(next(free, dot) if dot.label else dot)
    return tuple(done)


def _covers(dot: Dot, near: Sequence[Dot], placed: Sequence[Dot], height: int) -> bool:
    """Whether the label of a dot lies on one of the dots near it, or on one of the labels placed before."""

    def middle(one: Dot) -> float:
        return one.y / 100 * height - LINE * (1 + one.lift)

    return any(abs(middle(dot) - other.y / 100 * height) < LINE - 1 for other in near) or any(
        abs(middle(dot) - middle(other)) < LINE for other in placed
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if index else 'M'}{x:g} {y:g}" for index, (x, y) in enumerate(points))
