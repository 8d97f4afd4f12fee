"""Bounds on reports: what passes, what does not, what cannot be compared, and how commands end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert.errors import DataError
from qconvert.evidence import with_culprits
from qconvert.gates import Bounds, check_baseline, check_bounds
from qconvert.intervals import bootstrap, wilson
from qconvert.layers import Layers
from qconvert.report import document
from qconvert.reports import Data, Direction, Measure, Report, Value
from tests.bad_inputs import Result, run

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
CNN, DIGITS = SAMPLES / "digits_cnn" / "model.onnx", SAMPLES / "digits"


def measure(key: str, value: float, unit: str, better: Direction = "up", samples: int | None = 400) -> Measure:
    return Measure(key, key.replace("/", " of "), Value(value, samples=samples), unit, better)


def report(*measures: Measure, samples: int = 400, fingerprint: str = "aa") -> Report:
    return Report("t", "evaluate", (), Data("d", "images", samples, 0, fingerprint), measures, ())


DROP, SQNR = measure("top1_drop", 0.75, "points", "down"), measure("sqnr_db/y", 25.0, "dB")


@pytest.mark.parametrize(
    ("bounds", "passed"),
    [
        (Bounds(), []),
        (Bounds(max_drop=1.0), [True]),
        (Bounds(max_drop=0.75), [True]),
        (Bounds(max_drop=0.7), [False]),
        (Bounds(min_sqnr=25.0), [True, False]),
        (Bounds(max_drop=0, min_sqnr=9), [False, True, True]),
    ],
)
def test_bounds(bounds: Bounds, passed: list[bool]) -> None:
    gates = check_bounds(report(DROP, SQNR, measure("sqnr_db/z", 10.0, "dB")), bounds)
    assert [gate.passed for gate in gates] == passed


def test_a_bound_is_met_by_its_own_decimals() -> None:
    lost = measure("top1_drop", 1.1 - 0.8, "points", "down")
    assert lost.value.value > 0.3
    assert check_bounds(report(lost), Bounds(max_drop=0.3))[0].passed


def test_without_labels_the_argmax_counts() -> None:
    found = report(SQNR, measure("agreement/y", 98.0, "%"))
    gate = check_bounds(found, Bounds(max_drop=1.0))[0]
    assert (gate.measured, gate.unit, gate.passed) == (2.0, "points", False)
    with pytest.raises(DataError, match="neither labels nor outputs with classes"):
        check_bounds(report(SQNR), Bounds(max_drop=1.0))
    with pytest.raises(DataError, match="the model has none"):
        check_bounds(report(DROP), Bounds(min_sqnr=1.0))


@pytest.mark.parametrize(
    ("stored", "now", "passed"),
    [
        (SQNR, replace(SQNR, value=Value(24.5)), True),
        (SQNR, replace(SQNR, value=Value(24.4)), False),
        (SQNR, replace(SQNR, value=Value(60.0)), True),
        (DROP, replace(DROP, value=Value(1.25)), True),
        (DROP, replace(DROP, value=Value(1.5)), False),
        (measure("top1", 90.0, "%", samples=40), measure("top1", 87.5, "%"), True),
        (measure("top1", 90.0, "%", samples=40), measure("top1", 85.0, "%"), False),
        (measure("size_bytes", 1000.0, "B", "down"), measure("size_bytes", 1010.0, "B", "down"), True),
        (measure("size_bytes", 1000.0, "B", "down"), measure("size_bytes", 1011.0, "B", "down"), False),
    ],
)
def test_the_tolerance_of_a_stored_report(stored: Measure, now: Measure, passed: bool) -> None:
    """0.5 points, 0.5 dB and 1 % of size; of shares at least one sample: 2.5 % of 40."""
    assert [gate.passed for gate in check_baseline(report(now), report(stored), name="b.json")] == [passed]


def test_times_are_not_compared() -> None:
    slow, fast = (report(measure("latency_ratio", value, "x", "none")) for value in (3.0, 1.0))
    assert check_baseline(slow, fast, name="b.json") == ()


@pytest.mark.parametrize(
    ("now", "error"),
    [
        (report(SQNR, samples=399), "measured on other inputs: 400 samples aa, .* now 399 samples aa"),
        (report(SQNR, fingerprint="bb"), "measured on other inputs"),
        (replace(report(SQNR), command="sensitivity"), "is a report of 'evaluate', not of 'sensitivity'"),
        (report(DROP), "holds 'sqnr_db of y', which was not measured now"),
    ],
)
def test_what_cannot_be_compared_is_refused(now: Report, error: str) -> None:
    with pytest.raises(DataError, match=error):
        check_baseline(now, report(SQNR), name="b.json")


def test_the_folder_of_the_samples_may_move() -> None:
    moved = replace(report(SQNR), data=Data("elsewhere", "images", 400, 7, "aa"))
    assert check_baseline(moved, report(SQNR), name="b.json")[0].passed


def test_only_missed_gates_name_culprits() -> None:
    gates = check_bounds(report(DROP, SQNR), Bounds(max_drop=0, min_sqnr=9))
    nothing = Layers(Path("a"), Path("b"), (), 1)
    assert with_culprits(gates, nothing) == gates


# intervals


@given(st.floats(0, 100), st.integers(1, 10_000))
def test_wilson_holds_the_share_and_narrows_with_samples(percent: float, count: int) -> None:
    low, high = wilson(percent, count)
    assert 0 <= low <= percent + 1e-9
    assert percent - 1e-9 <= high <= 100
    narrower = wilson(percent, 4 * count)
    assert narrower[1] - narrower[0] <= high - low


def test_wilson_is_the_published_one() -> None:
    """81 of 263: Newcombe, Stat. Med. 17 (1998), table I."""
    assert wilson(100 * 81 / 263, 263) == pytest.approx((25.53, 36.62), abs=0.005)


def test_the_bootstrap_covers_a_mean() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(40):
        rows = np.stack([rng.normal(3.0, 1.0, 50), np.ones(50)], axis=1)
        low, high = bootstrap(rows, lambda sums: sums[:, 0] / sums[:, 1]) or (0.0, 0.0)
        hits += low <= 3.0 <= high
        assert high - low == pytest.approx(2 * 1.96 / np.sqrt(50), rel=0.4)
    assert hits >= 33
    assert bootstrap(rows[:1], lambda sums: sums[:, 0]) is None


# the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CNN well and badly quantized, and a stored report of the good one."""
    path = tmp_path_factory.mktemp("gates")
    calibrate = f"quantize {CNN} --data {DIGITS / 'calibration'} --preprocess centered -n 40 -q"
    for command in (
        f"{calibrate} -o {path / 'good.onnx'}",
        f"{calibrate} -o {path / 'bad.onnx'} --weights int4 --scheme per-tensor",
        f"evaluate {CNN} {path / 'good.onnx'} {OPTIONS} --report {path / 'good.json'}",
    ):
        assert run(command).code == 0
    return path


OPTIONS = f"--data {DIGITS / 'evaluation'} --preprocess centered -n 80 --latency-runs 0 -q"


def judge(folder: Path, model: str, options: str) -> Result:
    return run(f"evaluate {CNN} {folder / model} {OPTIONS} {options}")


def test_no_gate_no_word(folder: Path) -> None:
    done = judge(folder, "good.onnx", "")
    assert (done.code, done.stderr) == (0, "")


def test_a_met_bound_is_quiet(folder: Path) -> None:
    done = judge(folder, "good.onnx", f"--max-drop 1 --min-sqnr 25 --baseline {folder / 'good.json'}")
    assert (done.code, done.stderr) == (0, "")


def test_a_missed_bound_is_said_and_still_reported(folder: Path, tmp_path: Path) -> None:
    done = judge(folder, "bad.onnx", f"--min-sqnr 25 --baseline {folder / 'good.json'} --report {tmp_path / 'r.json'}")
    assert done.code == 1
    lines = done.lines("missed")
    assert lines[0].startswith("missed: --min-sqnr: SQNR of logits ")
    assert any(line.startswith("missed: --baseline: SQNR of logits, stored ") for line in lines)
    assert sum(" adds " in line for line in lines) == 3
    stored = document.read(tmp_path / "r.json")
    assert {gate.name for gate in stored.missed} == {"min-sqnr", "baseline"}
    assert [section.title for section in stored.sections][-2:] == [
        "Where the error enters",
        "Every value, in the order of the network",
    ]


def test_the_same_run_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        reports = " ".join(f"--report {tmp_path / name}.{ending}" for ending in ("html", "md", "json", "xml"))
        assert judge(folder, "bad.onnx", f"--min-sqnr 25 {reports}").code == 1
    for ending in ("html", "md", "json", "xml"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_json_on_stdout_stays_whole_where_a_gate_is_missed(folder: Path) -> None:
    done = judge(folder, "bad.onnx", "--json --min-sqnr 25")
    assert done.code == 1
    assert json.loads(done.stdout)["samples"] == 80


def test_a_broken_baseline_is_refused_before_the_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("[]")
    done = judge(folder, "good.onnx", f"--baseline {tmp_path / 'b.json'}")
    assert (done.code, done.stdout) == (2, "")
    assert "not a report of qconvert" in done.lines("error")[0]


def test_sensitivity_has_the_same_gates(tmp_path: Path) -> None:
    command = (
        f"sensitivity {CNN} --data {DIGITS / 'evaluation'} --preprocess centered -n 16 -q --weights int4 "
        f"--scheme per-tensor --min-sqnr 25 --report {tmp_path / 's.json'}"
    )
    done = run(command)
    assert done.code == 1, done.stderr
    lines = done.lines("missed")
    assert lines[0].startswith("missed: --min-sqnr: SQNR of logits ")
    stored = document.read(tmp_path / "s.json")
    figure = stored.sections[0].figures[0]
    assert figure.kind == "bars"
    assert f"'{figure.bars[0].name}' hurts most of " in lines[1]
    assert run(f"{command.replace('s.json', 't.json')} --baseline {tmp_path / 's.json'} --scheme per-channel").code == 1
