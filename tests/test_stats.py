"""What thresholds do to a tensor, against slow references; ``qconvert stats`` as a user types it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qconvert import calibration
from qconvert.calibrators import FROM_STATISTICS, make_calibrator
from qconvert.errors import CalibrationError, OutputError
from qconvert.histogram import TensorStats
from qconvert.metrics import EXACT_DB, sqnr_db
from qconvert.numerics import QUANT_TYPES, Range, fake_quantize, params_from_range
from qconvert.report import plot
from qconvert.report.stats import BINS, Detail
from qconvert.thresholds import Grid, all_thresholds, choose, coarse, judge, rows, threshold
from tests.bad_inputs import Result, run, snapshot

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
UINT8 = Grid(QUANT_TYPES["uint8"], symmetric=False)

Array = npt.NDArray[np.float32]
arrays = hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def normal(count: int = 200_000, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def ok(command: str) -> Result:
    result = run(command)
    assert result.code == 0, result.stderr
    return result


def refused(command: str, error: str, hint: str = "") -> None:
    result = run(command)
    assert result.code == 2, result.stderr
    assert error in result.lines("error")[0]
    assert hint in "".join(result.lines("hint"))


# what a range does


@pytest.mark.parametrize("found", [Range(-3.0, 3.0), Range(-1.0, 2.5), Range(-0.5, 0.75), Range(0.0, 1.5)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int4", "int2", "int16"])
@pytest.mark.parametrize("shape", ["normal", "relu", "images"])
def test_against_the_tensor_itself(shape: str, dtype: str, symmetric: bool, found: Range) -> None:
    x = normal()
    if shape == "relu":
        x = np.maximum(x, 0)
    if shape == "images":  # 256 levels, many at either end
        x = (np.rint(np.clip(x, -1, 1) * 127.5 + 127.5) / 127.5 - 1).astype(np.float32)
    stats, grid = TensorStats.of(x), Grid(QUANT_TYPES[dtype], symmetric)
    one = judge(stats, found, grid)
    params = params_from_range(found.low, found.high, grid.dtype, symmetric=symmetric)
    expected = sqnr_db(x, fake_quantize(x, params))
    slack = 0.05 if shape != "images" else 1.0  # a histogram does not know that a bin holds one value alone
    if dtype == "int16" and shape == "images":
        slack = 12.0  # ... which that grid may hit
    assert one.sqnr_db == pytest.approx(expected, abs=slack)
    assert one.clipped_low_percent == pytest.approx(100 * float((x < found.low).mean()), abs=0.3)
    assert one.clipped_high_percent == pytest.approx(100 * float((x > found.high).mean()), abs=0.3)


@given(arrays)
def test_all_that_was_seen_clips_nothing(x: Array) -> None:
    one = threshold(TensorStats.of(x), make_calibrator("minmax"), UINT8)
    assert one.clipped_low_percent == one.clipped_high_percent == 0
    assert one.low <= x.min()
    assert one.high >= x.max()


@given(arrays, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_shares_stay_shares(x: Array, below: float, above: float) -> None:
    stats = TensorStats.of(x)
    low, high = below * min(stats.low, 0.0), above * max(stats.high, 0.0)
    one = judge(stats, Range(low, high), UINT8)
    assert 0 <= one.clipped_low_percent <= 100
    assert 0 <= one.clipped_high_percent <= 100
    assert -EXACT_DB <= one.sqnr_db <= EXACT_DB


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_a_constant_is_exact_or_nearly(value: float) -> None:
    for one in all_thresholds(TensorStats.of(np.full(10, value, np.float32)), UINT8).values():
        assert one.sqnr_db > 100
        assert one.clipped_low_percent == one.clipped_high_percent == 0


def test_values_without_a_range_say_why() -> None:
    for x in ([np.nan, 1.0], [np.inf], []):
        with pytest.raises(CalibrationError):
            all_thresholds(TensorStats.of(np.array(x, np.float32)), UINT8)


# bins


@given(arrays, st.integers(1, 600))
def test_coarse_bins_hold_every_count(x: Array, limit: int) -> None:
    stats = TensorStats.of(x)
    edges, counts = coarse(stats, limit)
    assert counts.sum() == np.count_nonzero(x)
    assert counts.size <= max(limit, 2)
    if counts.size:
        assert edges.size == counts.size + 1
        assert edges[0] <= x[x != 0].min()
        assert edges[-1] >= x[x != 0].max()
        assert np.allclose(np.diff(edges), edges[1] - edges[0])


@given(arrays, st.integers(1, 40))
def test_rows_hold_every_count(x: Array, count: int) -> None:
    stats = TensorStats.of(x)
    edges, counts = rows(stats, count)
    assert edges.size == counts.size + 1
    assert counts.sum() == pytest.approx(np.count_nonzero(x))
    assert (counts >= -1e-9).all()


def test_rows_are_a_histogram() -> None:
    x = normal()
    edges, counts = rows(TensorStats.of(x), 24)
    expected, _ = np.histogram(x, edges)
    assert np.abs(counts - expected).max() < 0.002 * x.size


# names


def test_names_and_globs() -> None:
    names = ["image", "block1/conv", "block1/relu", "a[0]", "logits"]
    assert choose(names, "logits") == "logits"
    assert choose(names, "*relu") == "block1/relu"
    assert choose(names, "a[0]") == "a[0]"
    with pytest.raises(CalibrationError, match=r"2 values fit 'block1/\*'") as several:
        choose(names, "block1/*")
    assert several.value.hint == "choose one: 'block1/conv', 'block1/relu'"
    with pytest.raises(CalibrationError, match="no value is called 'logit'") as close:
        choose(names, "logit")
    assert close.value.hint == "the closest are 'logits'"
    with pytest.raises(CalibrationError) as far:
        choose(names, "@@")
    assert "'image'" in far.value.hint


# the command


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    shutil.copy(SAMPLES / "digits_cnn" / "model.onnx", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ok(f"calibrate model.onnx --data {SAMPLES / 'digits' / 'calibration'} --preprocess centered -n 20")
    return folder


@pytest.fixture
def work(calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(calibrated, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    return folder


def spoiled(path: Path = Path("model.calib")) -> None:
    """Statistics in which one value held a NaN and another one nothing finite."""
    found = calibration.load(path)
    stats = dict(found.stats)
    stats["logits"] = TensorStats.of(np.array([1.0, np.nan, -np.inf], np.float32))
    stats["image"] = TensorStats()
    calibration.save(dataclasses.replace(found, stats=stats), path, force=True)


@pytest.mark.usefixtures("work")
def test_the_table_says_what_the_json_says() -> None:
    stats = calibration.load(Path("model.calib")).stats
    shown = ok("stats --calibrator mse --type int8 --symmetric").stdout
    found = json.loads(ok("stats --calibrator mse --type int8 --symmetric --json").stdout)
    assert (found["type"], found["symmetric"], found["calibrator"], found["samples"]) == ("int8", True, "mse", 20)
    assert [value["name"] for value in found["values"]] == list(stats)
    for value in found["values"]:
        one, name = stats[value["name"]], re.escape(value["name"])
        assert (value["low"], value["high"], value["values"]) == (one.low, one.high, one.values)
        assert re.search(rf"^{name} +20 .* {one.low:.4g} +{one.high:.4g} +- +[\d.]+$", shown, re.MULTILINE)
        found_range = value["range"]
        assert found_range["low"] == -found_range["high"]
        assert re.search(rf"^{name} +{found_range['low']:.4g} .* {found_range['sqnr_db']:.2f} dB$", shown, re.MULTILINE)
    for line in shown.splitlines():
        assert line == line.rstrip()
        assert line.isprintable()


@pytest.mark.usefixtures("work")
def test_calibrate_shows_the_same_table() -> None:
    data = SAMPLES / "digits" / "calibration"
    shown = ok(f"calibrate model.onnx --data {data} --preprocess centered -n 20 --force --show").stdout
    assert shown == ok("stats model.calib").stdout
    assert shown.startswith("24 values over 20 samples\n")


@pytest.mark.usefixtures("work")
def test_one_value_has_all_methods_and_a_histogram() -> None:
    shown = ok("stats block5/Add*").stdout
    found = json.loads(ok("stats model.calib block5/Add_output_0 --json").stdout)
    assert list(found["methods"]) == list(FROM_STATISTICS)
    for name, one in found["methods"].items():
        assert re.search(
            rf"^{name} +{one['low']:.4g} +{one['high']:.4g} .* {one['sqnr_db']:.2f} dB$", shown, re.MULTILINE
        )
    assert max(map(len, shown.splitlines())) <= 80
    assert len(re.findall(r"█", shown)) > 100
    assert "minmax low" in shown
    assert sum(found["histogram"]["counts"]) == found["values"] - found["zeros"]
    assert len(found["histogram"]["edges"]) == len(found["histogram"]["counts"]) + 1 <= BINS + 1
    logarithmic = ok("stats block5/Add_output_0 --log").stdout
    assert logarithmic.count("█") > shown.count("█")
    assert "% exact zeros left out" not in shown
    assert " exact zeros left out" in ok("stats stem/relu6/Clip_output_0").stdout


@pytest.mark.usefixtures("work")
def test_a_method_with_parameters_and_another_grid() -> None:
    shown = ok("stats logits --calibrator percentile:percentile=90 --type int4").stdout
    assert "ranges for int4 asymmetric" in shown
    assert re.search(r"^percentile:percentile=90 +-", shown, re.MULTILINE)


@pytest.mark.usefixtures("work")
def test_values_without_ranges_are_shown_all_the_same() -> None:
    spoiled()
    shown = ok("stats --calibrator entropy").stdout
    assert re.search(r"^logits +1 +3 +1 +1 +1/1 +0\.0$", shown, re.MULTILINE)
    assert re.search(r"^image +0 +0 +- +- +- +-$", shown, re.MULTILINE)
    assert re.search(r"^logits +- expected finite values, got 1 NaN, 1 -Inf$", shown, re.MULTILINE)
    values = {value["name"]: value for value in json.loads(ok("stats --calibrator entropy --json").stdout)["values"]}
    assert values["image"]["low"] is None
    assert values["logits"]["range"] is None
    assert values["logits"]["reason_for_no_range"] == "expected finite values, got 1 NaN, 1 -Inf"
    assert "no range for uint8 asymmetric: expected finite values, got 1 NaN, 1 -Inf" in ok("stats logits").stdout
    assert "no range for uint8 asymmetric: no value was seen" in ok("stats image").stdout
    assert json.loads(ok("stats image --json").stdout)["histogram"]["counts"] == []
    ok("stats --plot p.html")
    result = ok("stats --calibrator entropy --export r.json")
    assert "warning: logits is left out: expected finite values" in result.stderr
    assert "warning: image is left out: no value was seen" in result.stderr


@pytest.mark.usefixtures("work")
def test_without_unicode_the_bars_are_ascii() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(SAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "qconvert", "stats", "logits"], capture_output=True, check=True, env=env
    )
    assert b" ######" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.usefixtures("work")
def test_export_and_compare() -> None:
    result = ok("stats --calibrator minmax --export r.cache")
    assert "holds symmetric ranges only: 23 of 24 become -/+ max(|low|, |high|)" in result.stderr
    assert "TRT-8601: edit that to the version of TensorRT" in result.stderr
    symmetric = ok("stats --calibrator minmax --export s.cache --type int8 --symmetric")
    assert "become" not in symmetric.stderr
    assert Path("r.cache").read_bytes() == Path("s.cache").read_bytes()
    with Path("r.cache").open("a") as file:
        file.write("elsewhere: 3f800000\n")
    shown = ok("stats --calibrator minmax --compare r.cache").stdout
    assert re.search(r"^image +-1 +1 +-1 +1 +1\.00x$", shown, re.MULTILINE)
    assert re.search(r"^stem/relu6/Clip_output_0 +0 +([\d.]+) +-\1 +\1 +0\.50x$", shown, re.MULTILINE)
    assert re.search(r"^only in r\.cache: .*and \d+ more$", shown, re.MULTILINE)
    found = json.loads(ok("stats --calibrator minmax --compare r.cache --json").stdout)
    assert found["values"][0]["compared"] == {"low": -1.0, "high": 1.0}
    assert "elsewhere" in found["only_in_compared"]
    one = json.loads(ok("stats stem/relu6/Clip_output_0 --compare r.cache --json").stdout)["methods"]
    assert one["r.cache"]["sqnr_db"] == pytest.approx(one["minmax"]["sqnr_db"] - 6.0, abs=0.5)
    assert one["r.cache"]["clipped_high_percent"] < 1e-3


def test_without_the_model_ranges_before_clamps_are_not_added(work: Path) -> None:
    ok("stats --calibrator minmax --export with.json")
    (work / "model.onnx").unlink()
    result = ok("stats --calibrator minmax --export without.json")
    assert "note: ranges before Relu and Clip are not added" in result.stderr
    whole, part = (json.loads(Path(name).read_text())["data"] for name in ("with.json", "without.json"))
    assert set(part) < set(whole)
    assert len(part) == 24


def test_what_is_refused(work: Path) -> None:
    before = snapshot(work)
    refused("stats nothing.calib", "nothing.calib: no such file", "qconvert calibrate")
    refused("stats logitz", "no value is called 'logitz'", "'logits'")
    refused("stats model.calib 'block*'", "values fit 'block*'", "choose one: ")
    refused("stats --type int7", "--type: unknown type 'int7'", "uint8")
    refused("stats --calibrator entropi", "--calibrator: ", "entropy")
    refused("stats --export r.cache", "--export needs --calibrator")
    refused("stats --compare r.cache", "--compare needs --calibrator")
    refused("stats --calibrator mse --export r.txt", "r.txt: no format of ranges ends in '.txt'", ".cache")
    refused("stats --calibrator mse --compare r.cache", "r.cache: cannot be read")
    refused("stats --plot out/p.html", "out/p.html: the folder 'out' does not exist")
    refused("stats --plot model.onnx", "model.onnx: exists already", "--force")
    assert snapshot(work) == before
    shutil.copy("model.calib", "second.calib")
    refused("stats", "2 .calib files in this folder", "as the first argument")
    for path in work.glob("*.calib"):
        path.unlink()
    refused("stats logits", "no .calib file in this folder", "as the first argument")


# the plot


class Page(HTMLParser):
    """The tags of a page and the texts of its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.scripts: list[str] = []
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1][0] == "script":
            self.scripts.append(data)
        if self.tags[-1][0] == "h2" and data.strip():
            self.names.append(data)

    @property
    def figures(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.scripts[0])
        return found


def parse(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    return page


def test_the_plot_is_one_file_that_loads_nothing(work: Path) -> None:
    result = ok("stats --plot p.html")
    assert "p.html: written, 24 histograms" in result.stderr
    text = (work / "p.html").read_text(encoding="utf-8")
    assert len(text) < 6_000_000
    page = parse(text)
    assert not [
        tag for tag, attrs in page.tags if tag in {"link", "img", "iframe"} or "src" in attrs or "href" in attrs
    ]
    policy = next(attrs["content"] or "" for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    stats = calibration.load(work / "model.calib").stats
    assert page.names == list(stats)
    for figure, one in zip(page.figures, stats.values(), strict=True):
        bars, *lines = figure["data"]
        assert len(bars["y"]) <= BINS
        assert sum(bars["y"]) == one.values - one.histogram.zeros
        assert [line["name"] for line in lines] == list(FROM_STATISTICS)
        minmax = lines[0]
        assert [minmax["x"][0], minmax["x"][-1]] == [min(one.low, 0.0), max(one.high, 0.0)]
        assert len({(line["line"]["color"], line["line"]["dash"]) for line in lines}) == len(lines)


def test_the_plot_of_one_value_and_force(work: Path) -> None:
    ok("stats logits --plot p.html --log")
    assert [figure["layout"]["yaxis"]["type"] for figure in parse((work / "p.html").read_text()).figures] == ["log"]
    refused("stats --plot p.html", "p.html: exists already", "--force")
    ok("stats logits --plot p.html --force")
    assert parse((work / "p.html").read_text()).figures[0]["layout"]["yaxis"]["type"] == "linear"


def test_66_histograms_stay_small_and_names_are_text() -> None:
    stats = TensorStats.of(normal())
    name = "</script><b>&@@PLOTLY@@"
    view = Detail(name, stats, UINT8, all_thresholds(stats, UINT8))
    text = plot.page(name, "", [view] * 66, log=False)
    assert len(text) < 8_000_000
    page = parse(text)
    assert "b" not in {tag for tag, _ in page.tags}
    assert page.names == [name] * 66


def test_without_plotly_one_line_says_what_to_install(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    refused("stats --plot p.html", "--plot needs plotly, which is not installed", "pip install 'qconvert[plot]'")
    assert not (work / "p.html").exists()
    with pytest.raises(OutputError):
        plot.page("", "", [], log=False)


# completion


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("stats model.calib log", ["logits"]),
        ("stats log", ["logits"]),
        ("stats mod", ["model.calib"]),
        ("stats missing.calib log", []),
        ("stats model.calib logits --type int1", ["int16"]),
    ],
)
@pytest.mark.usefixtures("work")
def test_completion_knows_the_names_in_the_file(words: str, expected: list[str]) -> None:
    env = {
        **os.environ,
        "PYTHONPATH": str(SAMPLES.parent),
        "_QCONVERT_COMPLETE": "complete_bash",
        "COMP_WORDS": f"qconvert {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    done = subprocess.run([sys.executable, "-m", "qconvert"], capture_output=True, text=True, check=False, env=env)
    assert done.stdout.split() == expected
    assert done.stderr == ""


# what was counted


@pytest.fixture
def only_ranges(work: Path) -> None:
    command = f"calibrate model.onnx --data {SAMPLES / 'digits' / 'calibration'} -n 20 --stats range --channels --force"
    assert ok(command).stderr
    assert calibration.load(work / "model.calib").data["statistics"] == "range"


@pytest.mark.usefixtures("only_ranges")
def test_ranges_alone_give_what_follows_from_them() -> None:
    name = next(iter(calibration.load(Path("model.calib")).stats))
    found = json.loads(ok(f"stats {name} --json").stdout)
    assert list(found["methods"]) == ["minmax", "moving_average", "average"]
    assert (found["counted"], found["zeros_percent"]) == (0, None)
    assert all(one["sqnr_db"] is None for one in found["methods"].values())
    assert len(found["channels"]["mean"]) == 1
    shown = ok(f"stats {name}").stdout
    assert "no histogram" in shown
    assert re.search(r"^channels +1, their largest magnitudes", shown, re.MULTILINE)
    assert "nan" not in ok("stats --calibrator average").stdout.lower().replace("nan/inf", "")


@pytest.mark.usefixtures("only_ranges")
def test_a_method_that_needs_more_says_so() -> None:
    refused("quantize --calibrator entropy", "entropy needs a histogram, and only the ranges", "without --stats range")
    assert "written" in ok("quantize --calibrator average").stderr


@pytest.mark.usefixtures("only_ranges")
def test_the_plot_of_ranges_alone(work: Path) -> None:
    ok("stats --plot p.html")
    cells = re.findall(r"<td>([^<]*)", (work / "p.html").read_text(encoding="utf-8"))
    assert "-" in cells
    assert not {"nan", "NaN"} & set(cells)
