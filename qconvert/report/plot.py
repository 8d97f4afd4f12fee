"""Histograms with the thresholds of all methods: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from qconvert.errors import OutputError
from qconvert.report import tables
from qconvert.report.stats import BINS, Detail, number, percent, total, zeros
from qconvert.thresholds import coarse

if TYPE_CHECKING:
    from qconvert.thresholds import Threshold

COLOURS = (
    *("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    *("#6b4fa0", "#8c564b", "#1f2933", "#b5003c", "#7f9f00", "#00868b"),
)
DASHES = ("solid", "dash", "dot", "dashdot")


def page(title: str, subtitle: str, views: Sequence[Detail], *, log: bool) -> str:
    """The HTML of the plots.

    Raises:
        OutputError: If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise OutputError(
            "--plot needs plotly, which is not installed", hint="pip install 'qconvert[plot]', or pip install plotly"
        ) from error
    figures = json.dumps([_figure(view, log=log) for view in views], separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "TITLE": escape(title),
        "SUBTITLE": escape(subtitle),
        "CHECKED": " checked" if log else "",
        "SECTIONS": "\n".join(_section(index, view) for index, view in enumerate(views)),
        "FIGURES": figures,
        "PLOTLY": get_plotlyjs(),
    }
    pieces = PAGE.split("@@")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _figure(view: Detail, *, log: bool) -> dict[str, Any]:
    """One chart as plotly's JSON."""
    import plotly.graph_objects as go  # noqa: PLC0415 - an extra

    edges, counts = coarse(view.stats, BINS)
    figure = go.Figure()
    if counts.size:
        centers = [float(f"{(a + b) / 2:.6g}") for a, b in pairwise(edges)]
        whole = [int(count) for count in counts]
        figure.add_bar(
            x=centers,
            y=whole,
            width=float(edges[1] - edges[0]),
            marker={"color": "#9aa5b1", "line": {"width": 0}},
            name="values",
            showlegend=False,
        )
        for name, one, colour, dash in _styled(view.methods):
            figure.add_scatter(
                x=[one.low, one.low, None, one.high, one.high],
                y=[0.5, max(whole), None, 0.5, max(whole)],
                mode="lines",
                line={"color": colour, "dash": dash, "width": 2},
                name=name,
                hoverinfo="name+x",
            )
    figure.update_layout(
        template=None,
        autosize=True,
        margin={"l": 64, "r": 12, "t": 8, "b": 36},
        height=300,
        bargap=0,
        xaxis={"title": None, "zeroline": True, "zerolinecolor": "#c0c6cc", "automargin": True},
        yaxis={"type": "log" if log else "linear", "title": "values in a bin", "exponentformat": "SI"},
        legend={"orientation": "h", "y": -0.14, "yanchor": "top"},
        plot_bgcolor="#ffffff",
    )
    found: dict[str, Any] = json.loads(figure.to_json())
    return found


def _styled(methods: Mapping[str, Threshold]) -> Iterator[tuple[str, Threshold, str, str]]:
    for index, (name, one) in enumerate(methods.items()):
        turn = index // len(COLOURS)
        yield name, one, COLOURS[index % len(COLOURS)], DASHES[(index + turn) % len(DASHES)]


def _section(index: int, view: Detail) -> str:
    stats = view.stats
    facts = f"{total(stats)} values in {stats.samples} samples"
    if stats.values:
        facts += f", {number(stats.low)} to {number(stats.high)}, {zeros(stats)} (not drawn)"
    if not stats.finite:
        facts += f", {stats.nan} NaN, {stats.negative_inf} -Inf, {stats.positive_inf} +Inf"
    empty = "" if stats.histogram.count > stats.histogram.zeros else " empty"
    return (
        f'<section data-name="{escape(view.name.lower())}"><h2>{escape(view.name)}</h2><p>{escape(facts)}</p>'
        f'<div class="chart{empty}" data-figure="{index}"></div>{_table(view)}</section>'
    )


def _table(view: Detail) -> str:
    if view.missing:
        return f"<p>no range: {escape(view.missing)}</p>"
    best = max((one.sqnr_db for one in view.methods.values()), default=0.0)
    head = "<tr><th>method<th>low<th>high<th>% below<th>% above<th>SQNR dB</tr>"
    lines = []
    for name, one, colour, _ in _styled(view.methods):
        cells = (
            number(one.low),
            number(one.high),
            percent(one.clipped_low_percent),
            percent(one.clipped_high_percent),
            tables.decibels(one.sqnr_db).removesuffix(" dB"),
        )
        mark = ' class="best"' if one.sqnr_db == best else ""
        lines.append(
            f'<tr{mark}><td><i style="background:{colour}"></i>{escape(name)}'
            + "".join(f"<td>{cell}" for cell in cells)
            + "</tr>"
        )
    return f'<div class="wide"><table>{head}{"".join(lines)}</table></div>'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>@@TITLE@@</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 0; color: #1f2933; background: #f5f7fa; }
header { position: sticky; top: 0; z-index: 2000; background: #fff; padding: 10px 16px; }
header { border-bottom: 1px solid #d9dee4; }
header h1 { font-size: 18px; margin: 0; overflow-wrap: anywhere; }
header p { margin: 2px 0 8px; color: #52606d; font-size: 13px; }
header input[type=search] { width: min(24em, 60%); padding: 5px 8px; font: inherit; }
header input[type=search] { border: 1px solid #b8c1cb; border-radius: 5px; }
header label { margin-left: 12px; white-space: nowrap; }
main { max-width: 1100px; margin: 0 auto; padding: 12px; }
section { background: #fff; border: 1px solid #e1e6eb; border-radius: 8px; padding: 12px 14px; margin-bottom: 14px; }
section[hidden] { display: none; }
h2 { font-size: 15px; margin: 0; overflow-wrap: anywhere; }
section p { margin: 2px 0 6px; color: #52606d; font-size: 13px; }
.chart { height: 300px; overflow: hidden; } .chart.empty { display: none; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 2px 0 2px 14px; font-weight: normal; white-space: nowrap; }
th { color: #52606d; border-bottom: 1px solid #d9dee4; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.best td { font-weight: 600; }
td i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
@media (max-width: 480px) {
  th, td { padding-left: 6px; font-size: 11px; } main { padding: 8px; } section { padding: 10px; }
}
</style></head><body>
<header><h1>@@TITLE@@</h1><p>@@SUBTITLE@@</p>
<input type="search" placeholder="filter by name" aria-label="filter by name">
<label><input type="checkbox" id="log"@@CHECKED@@> log counts</label></header>
<main>
@@SECTIONS@@
</main>
<script type="application/json" id="figures">@@FIGURES@@</script>
<script>@@PLOTLY@@</script>
<script>
const figures = JSON.parse(document.getElementById("figures").textContent);
const log = document.getElementById("log");
const drawn = new Set();
function draw(chart) {
  const figure = figures[chart.dataset.figure];
  figure.layout.yaxis.type = log.checked ? "log" : "linear";
  Plotly.newPlot(chart, figure.data, figure.layout, {responsive: true, displayModeBar: false});
  drawn.add(chart);
}
const watcher = new IntersectionObserver(entries => entries.forEach(entry => {
  if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); }
}), {rootMargin: "400px"});
document.querySelectorAll(".chart:not(.empty)").forEach(chart => watcher.observe(chart));
log.addEventListener("change", () => drawn.forEach(chart =>
  Plotly.relayout(chart, {"yaxis.type": log.checked ? "log" : "linear", "yaxis.autorange": true})));
document.querySelector("input[type=search]").addEventListener("input", event => {
  const wanted = event.target.value.toLowerCase();
  document.querySelectorAll("section").forEach(one => { one.hidden = !one.dataset.name.includes(wanted); });
});
</script></body></html>
"""
