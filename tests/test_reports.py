"""Reports in every form: any report at all by Hypothesis, and those of real runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import jsonschema  # type: ignore[import-untyped, unused-ignore]
import pytest
import xmlschema
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qconvert import evidence, pipeline
from qconvert.calibration import Calibration
from qconvert.calibrators import CALIBRATORS
from qconvert.errors import DataError
from qconvert.evidence.common import citations
from qconvert.policy import Policy
from qconvert.preprocess import preset
from qconvert.report import document, geometry, html, junit, markdown, store, words
from qconvert.reports import (
    Bar,
    Bars,
    Cell,
    Column,
    Data,
    Front,
    Gate,
    Measure,
    Point,
    Report,
    Section,
    Series,
    Table,
    Trend,
    Value,
)
from tests.bad_inputs import run
from tests.report_strategies import BARS, FRONTS, REPORTS, distributions, trends

ROOT = Path(__file__).resolve().parent.parent
CNN, DIGITS = ROOT / "sample_models" / "digits_cnn" / "model.onnx", ROOT / "sample_models" / "digits"
JUNIT = xmlschema.XMLSchema(str(ROOT / "tests" / "junit.xsd"))
VOID = {"meta", "br", "rect", "path"}
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Page(HTMLParser):
    """Reads a page, and holds that every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or (tag == "path" and not (self.get_starttag_text() or "").endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["title"]):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag]


EMPTY = Report("t", "evaluate", (), None, (), ())


# any report


@MANY
@given(REPORTS)
def test_json_comes_back_as_it_was_and_obeys_the_published_schema(report: Report) -> None:
    text = document.render(report)
    jsonschema.validate(json.loads(text), json.loads(document.SCHEMA.read_text()))
    assert document._adapter().validate_json(text) == report
    assert document.render(report) == text


@MANY
@given(REPORTS)
def test_junit_obeys_its_schema_and_counts_the_missed_gates(report: Report) -> None:
    found = JUNIT.to_dict(junit.render(report))
    assert isinstance(found, dict)
    assert found["@tests"] == max(len(report.gates), 1)
    assert found["@failures"] == len(report.missed)
    cases = found["testsuite"][0]["testcase"]
    assert [bool(case.get("failure")) for case in cases] == ([not gate.passed for gate in report.gates] or [False])


@MANY
@given(REPORTS)
def test_html_is_one_closed_page_without_scripts_or_network(report: Report) -> None:
    page = Page(html.render(report))
    assert not page.all("script")
    assert {tag for tag, found in page.tags if "src" in found} == set()
    links = {found.get("href") for found in page.all("a")}
    assert links <= {one.url for one in report.citations}
    figures = [figure for section in report.sections for figure in section.figures]
    assert len(page.all("figure")) == len(figures)
    shown = [table for section in report.sections for table in section.tables if table.rows]
    assert len(page.all("table")) == len(shown)


@MANY
@given(REPORTS)
def test_markdown_tables_are_even_and_nothing_in_names_is_markup(report: Report) -> None:
    text = markdown.render(report)
    assert len(text) < 65_536
    widths: list[int] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
        elif widths:
            assert len(set(widths)) == 1, line
            widths = []
    assert "<script>" not in text


@MANY
@given(BARS)
@example(Bars("", "dB", (Bar("", Value(5e-324)),)))
def test_bars_and_whiskers_stay_inside_and_order_is_kept(figure: Bars) -> None:
    drawn = geometry.bars(figure)
    for bar in drawn:
        assert 0 <= bar.left <= bar.right <= 100
        assert bar.low is None or bar.high is None or 0 <= bar.low <= bar.high <= 100
    for one, other in pairwise(drawn):
        if float(one.text) > float(other.text) >= 0:
            assert one.right >= other.right


@MANY
@given(st.one_of(trends().map(geometry.trend), distributions().map(geometry.distribution), FRONTS.map(geometry.front)))
def test_everything_is_drawn_inside_the_plot(plot: geometry.Plot) -> None:
    numbers = [float(one) for line in plot.lines for one in re.findall(r"[-\d.e]+", line.path.replace("V", " "))]
    numbers += [end for dot in plot.dots for end in (dot.x, dot.y)]
    assert all(0 <= number <= 100 for number in numbers)
    for axis in (plot.x, plot.y):
        places = [tick.at for tick in axis.ticks]
        assert places == sorted(places)
        assert all(0 <= place <= 100 for place in places)
        assert len({tick.text for tick in axis.ticks}) == len(axis.ticks)


def test_labels_that_would_cover_each_other_are_lifted() -> None:
    flat = Trend("t", "dB", tuple("abcdef"), (), ())
    figure = Trend("t", "dB", tuple(map(str, range(100))), (Series("s", (10.0,) * 100),), (50, 51, 52, 90))
    lifts = {dot.label: dot.lift for dot in geometry.trend(figure).dots if dot.label}
    assert lifts == {"1": 0, "2": 1, "3": 2, "4": 0}
    assert geometry.trend(flat).dots == ()


def test_a_front_numbers_the_chosen_point_and_names_bytes() -> None:
    points = (
        Point("a", 2.05e6, 9, on_front=True),
        Point("b", 3.1e6, 2, on_front=True),
        Point("c", 3.8e6, 3, chosen=True),
    )
    drawn = geometry.front(Front("f", Column("size", "B"), Column("drop", "points"), points))
    assert [(dot.name, dot.label) for dot in drawn.dots] == [("a", "1"), ("b", "2"), ("c", "3")]
    assert [tick.text for tick in drawn.x.ticks] == ["2.0 MB", "2.5 MB", "3.0 MB", "3.5 MB"]
    assert drawn.lines[0].path.count("L") == 1  # the chosen one is beaten and not joined


def test_labels_do_not_lie_on_other_dots() -> None:
    points = tuple(Point(str(number), 95.0 + number / 100, y, on_front=True) for number, y in enumerate((33, 34.5, 40)))
    column = Column("x", "dB")
    drawn = geometry.front(Front("f", column, column, (Point("far", 60, -3, on_front=True), *points))).dots
    for height in geometry.HEIGHTS:
        labels = [dot.y / 100 * height - geometry.LINE * (1 + dot.lift) for dot in drawn[1:]]
        assert all(abs(label - dot.y / 100 * height) > 10 for label in labels for dot in drawn[1:])
        assert all(abs(one - other) >= geometry.LINE for one, other in pairwise(sorted(labels)))


# numbers as words


@pytest.mark.parametrize(
    ("value", "column", "text", "between"),
    [
        (Value(28.149, 27.0, 29.5, 64), Column("SQNR", "dB"), "28.15", "27.00 to 29.50"),
        (200.0, Column("SQNR", "dB"), "exact", ""),
        (None, Column("SQNR", "dB"), "-", ""),
        (3_600_000, Column("size", "B"), "3.6 MB", ""),
        (12, Column("n", digits=4), "12", ""),
        (0.00001, Column("KL", "nats", digits=3), "1.0e-05", ""),
        (0.0012, Column("drop", "points"), "0.0012", ""),
        (-0.0456, Column("drop", "points"), "-0.046", ""),
        (0, Column("drop", "points"), "0", ""),
        (float("nan"), Column("x"), "-", ""),
        ("a name", Column("x", text=True), "a name", ""),
        (Value(0.25, 0.0, 0.75, 400), Column("drop", "points"), "0.25", "0.00 to 0.75"),
    ],
)
def test_cells(value: Cell, column: Column, text: str, between: str) -> None:
    assert (words.cell(value, column), words.interval(value, column)) == (text, between)


def test_a_gate_in_words() -> None:
    gate = Gate("min-sqnr", "SQNR of y", "at least", 20, 8.123, "dB", passed=False, samples=1)
    assert words.gate(gate) == "SQNR of y 8.12 dB, at least 20.00 dB demanded (1 sample)"
    assert words.verdict((gate,)) == "1 of 1 gate missed"
    assert words.verdict(()) == ""


# JSON


def test_the_published_schema_is_that_of_the_types() -> None:
    """Where it is not, ``document.SCHEMA`` has to be written again from ``document.schema()``."""
    published, made = json.loads(document.SCHEMA.read_text()), document.schema()
    assert set(published["$defs"]) == set(made["$defs"])
    for name, one in {**made["$defs"], "": made}.items():
        stored = published["$defs"][name] if name else published
        assert stored["properties"].keys() == one["properties"].keys(), name
        assert stored["required"] == one["required"], name


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "not a report of qconvert: Invalid JSON"),
        ("{}", "not a report of qconvert: title: Field required"),
        (document.render(replace(EMPTY, format=99)), "a report in format 99, and this qconvert reads 1"),
    ],
)
def test_other_files_are_no_reports(text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=error):
        document.read(tmp_path / "r.json")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        document.read(tmp_path / "none.json")


# what a page shows


def test_a_page_says_what_the_report_says() -> None:
    table = Table((Column("name", text=True), Column("drop", "points")), (("a", 1.5),))
    report = replace(
        EMPTY,
        title="q.onnx",
        data=Data("images", "images", 64, 3, "ab" * 32),
        measures=(Measure("sqnr_db/y", "SQNR of y", Value(8.5, 8.0, 9.0, 64), "dB", "up"),),
        sections=(
            Section("Ranking", figures=(Bars("noise", "%", (Bar("conv<1>", Value(4.0, 3.0, 5.0, 64)),)),)),
            Section("Table", tables=(table,), folded=True),
        ),
        gates=(Gate("min-sqnr", "SQNR of y", "at least", 20, 8.5, "dB", passed=False, samples=64, lines=("conv<1>",)),),
    )  # fmt: skip
    page = Page(html.render(report))
    for text in ("q.onnx", "✗", "8.50 dB", "8.00 to 9.00; 64 samples", "conv<1>", "at least 20.00 dB demanded", "1.50"):
        assert text in page.text
    assert "64 of images (images), seed 3" in " ".join(page.text.split())
    assert len(page.all("details")) == 1
    assert "verdict missed" in [found.get("class") for found in page.all("p")]
    policy = next(found for found in page.all("meta") if found.get("http-equiv"))
    assert policy.get("content") == "default-src 'none'; style-src 'unsafe-inline'"


def test_a_long_report_fits_a_comment() -> None:
    table = Table((Column("name", text=True),), tuple((f"operator {index}",) for index in range(4000)))
    text = markdown.render(replace(EMPTY, sections=(Section("short", ("x",)), Section("long", tables=(table,)))))
    assert "### short" in text
    assert "_Too long for here, see the HTML report: long._" in text


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrators_cite_their_source(name: str) -> None:
    found = citations([name, name, "same scale"])
    assert [one.method for one in found] == [name]
    assert len(found[0].text) > 20
    assert "``" not in found[0].text
    assert bool(found[0].url) == ("arXiv:" in found[0].text)


# real runs


@pytest.fixture(scope="module")
def calibrated() -> Calibration:
    return pipeline.calibrate(CNN, DIGITS / "calibration", preprocess=preset("centered"), limit=20)


@pytest.fixture(scope="module")
def runs(calibrated: Calibration, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """A report of every command."""
    path = tmp_path_factory.mktemp("runs") / "q.onnx"
    written = pipeline.quantize(CNN, calibrated, output=path)
    data, few = DIGITS / "evaluation", {"preprocess": preset("centered"), "limit": 24}
    evaluated = pipeline.evaluate(CNN, path, data, latency_runs=0, **few)  # type: ignore[arg-type]
    found = pipeline.sensitivity(CNN, data, calibrated=calibrated, **few)  # type: ignore[arg-type]
    return {
        "quantize": evidence.quantized_report(written, Policy(), calibrated),
        "evaluate": evidence.evaluation_report(evaluated),
        "compare": evidence.layers_report(pipeline.compare(CNN, path, data, **few)),  # type: ignore[arg-type]
        "sensitivity": evidence.sensitivity_report(found, CNN, Policy()),
    }


@pytest.mark.parametrize("command", ["quantize", "evaluate", "compare", "sensitivity"])
def test_reports_of_real_runs(command: str, runs: dict[str, Report]) -> None:
    report = runs[command]
    assert report.command == command
    assert {model.sha256 for model in report.models if Path(model.path) == CNN} != set()
    assert all(len(model.sha256) == 64 and model.size_bytes > 0 for model in report.models)
    assert report.data is not None
    assert len(report.data.fingerprint) == 64
    assert report.data.samples == (20 if command == "quantize" else 24)
    sqnr = report.measure("sqnr_db/logits")
    assert sqnr is not None
    assert sqnr.value.low is not None
    assert sqnr.value.high is not None
    assert sqnr.value.low <= sqnr.value.value <= sqnr.value.high
    for render in store.RENDERERS.values():
        assert render(report) == render(report)
    Page(html.render(report))
    jsonschema.validate(json.loads(document.render(report)), json.loads(document.SCHEMA.read_text()))
    JUNIT.validate(junit.render(report))
    assert document._adapter().validate_json(document.render(report)) == report


def test_the_report_of_quantize_shows_every_activation(runs: dict[str, Report], calibrated: Calibration) -> None:
    report = runs["quantize"]
    drawn = {figure.title: figure for section in report.sections for figure in section.figures}
    assert set(drawn) == set(calibrated.stats) - {"logits"}  # which stays float
    assert [one.method for one in report.citations] == ["entropy", "minmax"]
    assert "target: ort-cpu" in report.policy


def test_a_report_is_written_or_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = f"quantize {CNN} --mode weight-only -q -o q.onnx"
    done = run(f"{command} --report r.html --report r.md --report r.json --report r.xml")
    assert done.code == 0, done.stderr
    assert document.read(Path("r.json")).title == "q.onnx: model.onnx quantized for ort-cpu"
    for option, error in (
        ("--report r.pdf", "--report r.pdf: expected a name that ends in .html, .md, .json, .xml"),
        ("--report r.md", "r.md: exists already"),
        ("--report a.md --report a.md", "--report a.md: given twice"),
        ("--report none/a.md", "none/a.md: the folder 'none' does not exist"),
    ):
        refused = run(f"{command.replace('q.onnx', 'new.onnx')} {option}")
        assert (refused.code, refused.lines("error")) == (2, [f"error: {error}"])
        assert not Path("new.onnx").exists()
