"""A report as Markdown, for comments on pull requests and ``$GITHUB_STEP_SUMMARY``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qconvert.report import geometry, words
from qconvert.reports import Bars, Figure, Gate, Report, Section, Table, Trend

SHOWN = 20
"""Rows of an open table before the rest is folded away: comments are read on the way."""

LIMIT = 60_000
"""Characters; GitHub refuses comments of more than 65536."""

BAR = 16
"""Columns of the longest bar."""


def render(report: Report) -> str:
    """The text; sections that do not fit a comment are named, not shown."""
    parts = [f"## {_text(report.title)}", *_verdict(report.gates), *_measures(report)]
    left = []
    for section in report.sections:
        text = "\n\n".join(_section(section))
        if sum(map(len, parts)) + len(text) > LIMIT:
            left.append(section.title)
        elif text:
            parts.append(text)
    if left:
        parts.append(f"_Too long for here, see the HTML report: {_text(', '.join(left))}._")
    if report.notes:
        parts.append("\n".join(f"- {_text(note)}" for note in report.notes))
    parts.append(_basis(report))
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(gates: tuple[Gate, ...]) -> Iterator[str]:
    if not gates:
        return
    missed = any(not gate.passed for gate in gates)
    yield f"{'❌' if missed else '✅'} **{words.verdict(gates)}**"
    lines = []
    for gate in gates:
        lines.append(f"- {'✅' if gate.passed else '❌'} **--{_text(gate.name)}** {_text(words.gate(gate))}")
        lines += [f"  - {_text(line)}" for line in gate.lines]
    yield "\n".join(lines)


def _measures(report: Report) -> Iterator[str]:
    if report.measures:
        rows = [
            (
                one.title,
                words.amount(one.value.value, one.unit, digits=words.digits(one)),
                words.basis(one),
            )
            for one in report.measures
        ]
        yield _grid(("", "measured", "95 % interval; over"), rows, right=(False, True, False))


def _section(section: Section) -> Iterator[str]:
    parts = [_text(text) for text in section.text]
    for figure in section.figures:
        parts += _figure(figure)
    for table in section.tables:
        parts += _table(table, fold=not section.folded)
    if not parts:
        return
    if section.folded:
        yield f"<details><summary>{_text(section.title)}</summary>"
        yield from parts
        yield "</details>"
    else:
        yield f"### {_text(section.title)}"
        yield from parts


def _figure(figure: Figure) -> Iterator[str]:
    """Bars of blocks; of lines the places that stand out; other figures need the HTML report."""
    if isinstance(figure, Bars):
        rows = [
            (f"{bar.name} {f'({bar.note})' if bar.note else ''}", f"{bar.text} {_bracketed(bar.interval)}", _block(bar))
            for bar in geometry.bars(figure)
        ]
        yield _grid((figure.title, figure.unit, ""), rows, right=(False, True, False))
    elif isinstance(figure, Trend) and figure.marked and figure.series:
        values = figure.series[0].values
        lines = [
            f"{place}. {_text(figure.names[index])}: {words.amount(value, figure.unit)}"
            for place, index in enumerate(figure.marked, 1)
            if (value := values[index]) is not None
        ]
        yield "\n".join((f"{_text(figure.title)}, where it stands out:", "", *lines))


def _block(bar: geometry.DrawnBar) -> str:
    return "█" * max(1, round((bar.right - bar.left) / 100 * BAR))


def _bracketed(text: str) -> str:
    return f"({text})" if text else ""


def _table(table: Table, *, fold: bool) -> Iterator[str]:
    rows = [
        [
            f"{words.cell(cell, column)} {_bracketed(words.interval(cell, column))}"
            for cell, column in zip(row, table.columns, strict=True)
        ]
        for row in table.rows
    ]
    if not rows:
        return
    heads = [words.head(column) for column in table.columns]
    right = [not column.text for column in table.columns]
    grid = _grid(heads, rows, right=right)
    yield (
        f"<details><summary>{len(rows)} rows</summary>\n\n{grid}\n\n</details>" if fold and len(rows) > SHOWN else grid
    )
    if table.caption:
        yield f"<sub>{_text(table.caption)}</sub>"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[bool]) -> str:
    rule = "|".join("---:" if one else "---" for one in right)
    lines = [_line(heads), f"|{rule}|", *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_text(cell.strip()) for cell in cells)} |"


def _basis(report: Report) -> str:
    models = "; ".join(
        f"{model.role} {model.path}, {words.amount(model.size_bytes, 'B')}, SHA-256 {model.sha256[:12]}"
        for model in report.models
    )
    data = report.data
    samples = "" if data is None else f"; {data.samples} samples of {_text(data.path)}, seed {data.seed}"
    versions = ", ".join(f"{_text(name)} {_text(version)}" for name, version in report.versions[:3])
    return f"<sub>{_text(models)}{samples}; {versions}</sub>"


_SPECIAL = str.maketrans(
    {mark: f"\\{mark}" for mark in "\\`*_[]|~#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " "}
)


def _text(text: str) -> str:
    """Text in which Markdown means nothing: names of operators have underscores and stars."""
    return text.translate(_SPECIAL)
