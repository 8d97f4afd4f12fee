"""Statistics and thresholds: tables, a histogram in the terminal, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.text import Text

from qconvert.calibrators import CALIBRATORS
from qconvert.report import tables
from qconvert.report.json import plain
from qconvert.thresholds import coarse, rows

if TYPE_CHECKING:
    from qconvert.calibration import Calibration
    from qconvert.channels import ChannelStats
    from qconvert.histogram import TensorStats
    from qconvert.numerics import Range
    from qconvert.thresholds import Grid, Threshold

ROWS = 24
"""Rows of a histogram in the terminal."""

BAR = 32
"""Columns of its longest bar."""

BINS = 512
"""Bins of a histogram as JSON and in plots, at most."""

EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Overview:
    """All values of a calibration.

    Attributes:
        calibration: The statistics.
        grid: What ranges are for.
        method: The calibrator of ``found``, or "" where none was asked for.
        found: The thresholds of values that have one.
        missing: Why the others have none.
        other: Ranges of another tool's file.
        other_name: That file.
    """

    calibration: Calibration
    grid: Grid
    method: str = ""
    found: Mapping[str, Threshold] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    other: Mapping[str, Range] | None = None
    other_name: str = ""


@dataclass(frozen=True)
class Detail:
    """One value.

    Attributes:
        name: The value.
        stats: Its statistics.
        grid: What the ranges are for.
        methods: The threshold of each method, by name; none where no range follows.
        missing: Why there are none, or "".
        channels: Statistics of each channel, where they were kept.
    """

    name: str
    stats: TensorStats
    grid: Grid
    methods: Mapping[str, Threshold]
    missing: str = ""
    channels: ChannelStats | None = None


# numbers


def total(stats: TensorStats) -> int:
    """How many values were seen, NaN and Inf too."""
    return stats.values + stats.nan + stats.negative_inf + stats.positive_inf


def zeros_percent(stats: TensorStats) -> float:
    """Percent of the counted values that are exactly 0; NaN where none were counted."""
    counted = stats.histogram.count
    return 100 * stats.histogram.zeros / counted if counted else math.nan


def zeros(stats: TensorStats) -> str:
    """``12.3 % exact zeros``, and of how many where not all were counted."""
    counted = stats.histogram.count
    if not counted:
        return "no histogram"
    of = f" of {_amount(counted)} counted" if counted < stats.values else ""
    return f"{zeros_percent(stats):.1f} % exact zeros{of}"


def number(value: float) -> str:
    """A real in at most 10 columns; ``-`` where there is none."""
    return f"{value:.4g}" if math.isfinite(value) else "-"


def percent(value: float) -> str:
    """A share that tells nothing from next to nothing."""
    if math.isnan(value):
        return "-"
    return "0" if value == 0 else "<0.001" if value < 0.001 else f"{value:.3f}"


def _amount(count: int) -> str:
    value = float(count)
    for unit in ("", "k", "M", "G"):
        if value < 1000 or unit == "G":
            break
        value /= 1000
    return f"{value:.0f}" if not unit else f"{value:.3g} {unit}"


def _share(stats: TensorStats) -> str:
    return f"{zeros_percent(stats):.1f}" if stats.histogram.count else "-"


def _not_finite(stats: TensorStats) -> str:
    return "-" if stats.finite else f"{stats.nan}/{stats.negative_inf + stats.positive_inf}"


# all values


def overview(view: Overview) -> None:
    """The tables of all values."""
    console = tables.stdout()
    stats = view.calibration.stats
    head = f"{'samples':>7} {'values':>7} {'low':>10} {'high':>10} {'NaN/Inf':>8} {'zeros %':>7}"
    lines = [("", head)]
    lines += [(name, _seen(one)) for name, one in stats.items()]
    title = f"{tables.many(len(stats), 'value')} over {tables.many(view.calibration.samples, 'sample')}"
    parts: list[RenderableType] = [_block(title, lines, console)]
    if view.method:
        parts.append(_block(f"ranges of {view.method} for {view.grid}", _found(view), console))
    if view.other is not None:
        parts.append(_block(f"these ranges and those of {view.other_name}", _compared(view, view.other), console))
        parts += _unmatched(view, view.other)
    tables.show(*parts, console=console)


def _block(title: str, lines: Sequence[tuple[str, str]], console: Console) -> Text:
    return tables.titled(title, tables.pairs(lines, console, max(len(text) for _, text in lines)))


def _seen(stats: TensorStats) -> str:
    return (
        f"{stats.samples:>7} {_amount(total(stats)):>7} {number(stats.low):>10} {number(stats.high):>10} "
        f"{_not_finite(stats):>8} {_share(stats):>7}"
    )


def _found(view: Overview) -> list[tuple[str, str]]:
    lines = [("", f"{'low':>10} {'high':>10} {'% below':>8} {'% above':>8} {'SQNR':>9}")]
    for name in view.calibration.stats:
        one = view.found.get(name)
        lines.append((name, f"{'-':>10} {view.missing[name]}" if one is None else _judged(one)))
    return lines


def _judged(one: Threshold) -> str:
    clipped = f"{percent(one.clipped_low_percent):>8} {percent(one.clipped_high_percent):>8}"
    return f"{number(one.low):>10} {number(one.high):>10} {clipped} {tables.decibels(one.sqnr_db):>9}"


def _compared(view: Overview, other: Mapping[str, Range]) -> list[tuple[str, str]]:
    lines = [("", f"{'low':>10} {'high':>10} {'its low':>10} {'its high':>10} {'width':>6}")]
    for name, ours in view.found.items():
        if name in other:
            theirs = other[name]
            width = theirs.high - theirs.low
            ratio = f"{(ours.high - ours.low) / width:.2f}x" if width > 0 else "-"
            ends = " ".join(f"{number(end):>10}" for end in (ours.low, ours.high, theirs.low, theirs.high))
            lines.append((name, f"{ends} {ratio:>6}"))
    return lines


def _unmatched(view: Overview, other: Mapping[str, Range]) -> list[RenderableType]:
    ours, theirs = set(view.calibration.stats), set(other)
    sides = (
        (f"only in {view.other_name}", sorted(theirs - ours)),
        ("only in the statistics", sorted(ours - theirs)),
    )
    return [
        Text(f"{title}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}")
        for title, names in sides
        if names
    ]


def overview_json(view: Overview) -> dict[str, Any]:
    """All values, machine-readable."""
    found: dict[str, Any] = {
        "model": view.calibration.model,
        "samples": view.calibration.samples,
        "type": view.grid.dtype.name,
        "symmetric": view.grid.symmetric,
        "calibrator": view.method or None,
        "values": [_value_json(name, view) for name in view.calibration.stats],
    }
    if view.other is not None:
        found["only_in_compared"] = sorted(set(view.other) - set(view.calibration.stats))
    return found


def _value_json(name: str, view: Overview) -> dict[str, Any]:
    found = _stats_json(name, view.calibration.stats[name])
    if view.method:
        found["range"] = plain(view.found.get(name))
        found["reason_for_no_range"] = view.missing.get(name)
    if view.other is not None:
        found["compared"] = plain(view.other.get(name))
    return found


def _stats_json(name: str, stats: TensorStats) -> dict[str, Any]:
    return {
        "name": name,
        "samples": stats.samples,
        "values": total(stats),
        "low": plain(stats.low),
        "high": plain(stats.high),
        "mean_low": plain(stats.mean_low) if stats.samples else None,
        "mean_high": plain(stats.mean_high) if stats.samples else None,
        "nan": stats.nan,
        "negative_inf": stats.negative_inf,
        "positive_inf": stats.positive_inf,
        "zeros": stats.histogram.zeros,
        "zeros_percent": plain(zeros_percent(stats)),
        "counted": stats.histogram.count,
    }


# one value


def detail(view: Detail, *, log: bool) -> None:
    """All methods side by side, and the histogram."""
    console, stats = tables.stdout(), view.stats
    facts = [
        ("value", view.name),
        ("samples", str(stats.samples)),
        ("values", f"{total(stats)}, of them {stats.nan} NaN, {stats.negative_inf} -Inf, {stats.positive_inf} +Inf"),
    ]
    if stats.values:
        facts += [
            ("seen", f"{number(stats.low)} to {number(stats.high)}, {zeros(stats)}"),
            ("mean of a sample's extremes", f"{number(stats.mean_low)} to {number(stats.mean_high)}"),
        ]
    if view.channels is not None:
        facts.append(("channels", _channels(view.channels)))
    parts: list[RenderableType] = [tables.facts(*facts), _methods(view)]
    if stats.histogram.count > stats.histogram.zeros:
        parts.append(_histogram(view, log=log, unicode=console.encoding.startswith("utf")))
    tables.show(*parts, console=console)


def _channels(channels: ChannelStats) -> str:
    """How much the channels differ: one scale for all of them wastes levels on the narrow ones."""
    reach = np.maximum(np.maximum(-channels.low, channels.high), 0)
    narrow, middle, wide = np.quantile(reach, [0, 0.5, 1])
    spread = f"{number(narrow)} to {number(wide)}, median {number(middle)}"
    return f"{reach.size}, their largest magnitudes {spread}"


def _channels_json(channels: ChannelStats) -> dict[str, Any]:
    return {
        "low": plain(channels.low.tolist()),
        "high": plain(channels.high.tolist()),
        "mean": plain(channels.mean().tolist()),
        "std": plain(channels.std().tolist()),
    }


def _methods(view: Detail) -> RenderableType:
    if view.missing:
        return Text(f"no range for {view.grid}: {view.missing}")
    table = tables.table(
        "method", "low", "high", "% below", "% above", "SQNR", numbers=(1, 2, 3, 4, 5), title=f"ranges for {view.grid}"
    )
    best = max(one.sqnr_db for one in view.methods.values())
    for name, one in view.methods.items():
        cells = (
            number(one.low),
            number(one.high),
            percent(one.clipped_low_percent),
            percent(one.clipped_high_percent),
        )
        style = "bold" if one.sqnr_db == best else None
        table.add_row(escape(name), *cells, tables.decibels(one.sqnr_db), style=style)
    measured = ", ".join(name for name, kind in CALIBRATORS.items() if kind.needs_samples)
    table.caption = f"{measured}: need samples, so quantize finds them"
    return table


def _histogram(view: Detail, *, log: bool, unicode: bool) -> Text:
    edges, counts = rows(view.stats, ROWS)
    heights = [math.log1p(count) if log else count for count in counts]
    tallest = max(heights)
    lines = []
    for index, (count, height) in enumerate(zip(counts, heights, strict=True)):
        bar = _bar(height / tallest, unicode=unicode)
        left = f"{number(edges[index]):>10} {bar:<{BAR}} {percent(100 * count / view.stats.histogram.count):>7}"
        last = index == len(counts) - 1
        lines.append(f"{left} {_marks(view, edges[index], math.inf if last else edges[index + 1])}")
    zeros = view.stats.histogram.zeros
    title = f"histogram: from, share of values in %{', log scale' if log else ''}, where ranges end"
    return tables.titled(title + (f"\n{zeros} exact zeros left out" if zeros else ""), lines)


def _bar(share: float, *, unicode: bool) -> str:
    """A bar of ``share`` of the columns; what is not empty shows."""
    if not unicode:
        return "#" * max(round(share * BAR), int(share > 0))
    eighths = max(round(share * BAR * 8), int(share > 0))
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _marks(view: Detail, low: float, high: float) -> str:
    """The methods whose range ends between, as many as there is room for."""
    here = [
        f"{name} {side}"
        for side in ("low", "high")
        for name, one in view.methods.items()
        if low <= getattr(one, side) < high or (side == "low" and one.low < low <= view.stats.low)
    ]
    room, shown = tables.WIDTH - BAR - 21, ""
    for index, mark in enumerate(here):
        rest = len(here) - index - 1
        longer = f"{shown}, {mark}" if shown else mark
        if len(longer) + (len(f" +{rest}") if rest else 0) > room:
            return f"{shown} +{rest + 1}" if shown else f"{rest + 1} ends"
        shown = longer
    return shown


def detail_json(view: Detail) -> dict[str, Any]:
    """One value, machine-readable; the histogram leaves exact zeros out."""
    edges, counts = coarse(view.stats, BINS)
    return {
        **_stats_json(view.name, view.stats),
        "type": view.grid.dtype.name,
        "symmetric": view.grid.symmetric,
        "methods": plain(view.methods),
        "reason_for_no_range": view.missing or None,
        "channels": None if view.channels is None else _channels_json(view.channels),
        "histogram": {"edges": edges.tolist(), "counts": counts.astype(int).tolist()},
    }
