"""The parts of the sensitivity room: numbers against plain references, ranking, blocks, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert import intervals
from qconvert.cli import main
from qconvert.errors import CalibrationError, DataError
from qconvert.intervals import drawn
from qconvert.metrics import sqnr_db
from qconvert.policy import load
from qconvert.sensing.blocks import blocks
from qconvert.sensing.custom import load_metric
from qconvert.sensing.measures import COLUMNS, METRICS, ROWS, SIGNAL, measure, measure_channels
from qconvert.sensing.ranking import FIRST, harms_of, rank, schedule
from qconvert.sensing.room import USUAL_ROOM, Needs, plan_room
from qconvert.sensing.scoring import estimate
from tests.models import model, weight
from tests.test_sensitivity import DIGITS, FRAGILE, MODEL, plant

Floats = npt.NDArray[np.float64]


def logits(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(x: Floats) -> Floats:
    powers = np.exp(x - x.max(-1, keepdims=True))
    result: Floats = powers / powers.sum(-1, keepdims=True)
    return result


# numbers


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 7), st.integers(1, 3))
def test_metrics_are_what_their_definitions_say(seed: int, samples: int, classes: int, outputs: int) -> None:
    before = [[logits(seed + 10 * s + o, 2, classes) for o in range(outputs)] for s in range(samples)]
    after = [[a + logits(seed + 999 + 10 * s, *a.shape) for a in row] for s, row in enumerate(before)]
    labels = np.arange(2) % classes
    total = np.stack([measure(a, b, labels) for a, b in zip(before, after, strict=True)]).sum(0)
    noises = [
        10 ** (-sqnr_db(np.stack([r[o] for r in before]), np.stack([r[o] for r in after])) / 10) for o in range(outputs)
    ]
    assert METRICS["sqnr"].value(total) == pytest.approx(-10 * np.log10(np.mean(noises)))
    first = [(row[0].astype(np.float64), other[0].astype(np.float64)) for row, other in zip(before, after, strict=True)]
    pairs = [(softmax(a), softmax(b)) for a, b in first]
    divergences = [(p * np.log(p / q)).sum(-1) for p, q in pairs]
    assert METRICS["kl"].value(total) == pytest.approx(np.mean(divergences))
    same = [a.argmax(-1) == b.argmax(-1) for a, b in first]
    assert METRICS["agreement"].value(total) == pytest.approx(100 * np.mean(same))
    lost = [np.mean(a.argmax(-1) == labels) - np.mean(b.argmax(-1) == labels) for a, b in first]
    assert METRICS["top1"].value(total) == pytest.approx(100 * np.mean(lost))


def test_distributions_are_taken_as_they_are() -> None:
    p, q = np.array([[0.2, 0.8]], np.float32), np.array([[0.5, 0.5]], np.float32)
    total = measure([p], [q], None)
    expected = 0.2 * np.log(0.2 / 0.5) + 0.8 * np.log(0.8 / 0.5)
    assert METRICS["kl"].value(total) == pytest.approx(expected, rel=1e-6)


def test_equal_outputs_do_no_harm() -> None:
    x = logits(0, 3, 4)
    total = measure([x], [x], np.arange(3))
    found = {name: float(metric.harm(total)) for name, metric in METRICS.items()}
    assert found.pop("sqnr") == -200
    assert all(harm == pytest.approx(0, abs=1e-9) for harm in found.values())


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_broken_outputs_are_numbers(broken: float) -> None:
    x = logits(0, 3, 4)
    y = x.copy()
    y[0, 0] = broken
    rows = measure([x], [y], None)
    assert np.isfinite(rows).all()
    assert METRICS["sqnr"].value(rows) == -200


def test_outputs_that_are_no_floats_count_nothing() -> None:
    rows = measure([np.array([3]), logits(0, 2, 3)], [np.array([4]), logits(1, 2, 3)], None)
    assert not rows[0].any()
    assert rows[1, ROWS] == 2


def test_one_large_channel_does_not_hide_the_others() -> None:
    x = logits(0, 1, 4, 8, 8)
    x[:, 0] *= 1000
    y = x.copy()
    y[:, 1:] = 0
    pooled, by_channel = (
        float(METRICS["sqnr"].value(f([x], [y]))) for f in (lambda a, b: measure(a, b, None), measure_channels)
    )
    assert pooled > 40
    assert by_channel == pytest.approx(-10 * np.log10(3 / 4))


# resamples


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(0, 99))
def test_resamples_weigh_every_sample_once_on_average(samples: int, seed: int) -> None:
    weights = intervals.weights(samples, seed)
    assert (weights.sum(1) == samples).all()
    assert weights.mean(0) == pytest.approx(np.ones(samples), abs=0.2)
    rows = np.random.default_rng(seed).random((samples, 2, 3))
    assert drawn(rows, seed)[6] == pytest.approx(sum(w * row for w, row in zip(weights[5], rows, strict=True)))


def test_intervals_of_a_mean_cover_it() -> None:
    """95 % intervals hold the true mean about as often as they say."""
    rng = np.random.default_rng(7)
    hits = 0
    for seed in range(200):
        rows = rng.normal(3.0, 1.0, (40, 1))
        found = estimate(drawn(rows, seed)[:, 0] / 40, "", 40)
        assert found.low <= found.value <= found.high
        hits += found.low <= 3.0 <= found.high
    assert 0.88 < hits / 200 < 0.99


# ranking


def rows_of(noise: Floats) -> Floats:
    rows = np.zeros((len(noise), 2, COLUMNS))
    rows[:, 0, SIGNAL], rows[:, 0, 1] = 1.0, noise
    return rows


def ranked(noises: dict[str, Floats], *, exhaustive: bool = False) -> tuple[tuple[str, ...], dict[str, int]]:
    samples = len(next(iter(noises.values())))
    tables = {name: rows_of(noise)[:0] for name, noise in noises.items()}

    def run(names: object, upto: int) -> bool:
        for name in list(names):  # type: ignore[call-overload]
            tables[name] = rows_of(noises[name])[:upto]
        return True

    order = rank(list(noises), tables, run, harms_of(METRICS["sqnr"], 0, None), samples=samples, exhaustive=exhaustive)
    return order.names, {name: len(rows) for name, rows in tables.items()}


def test_clear_ranks_cost_few_samples_and_close_ones_all() -> None:
    rng = np.random.default_rng(0)
    noises = {f"clear{i}": 10.0**-i * rng.uniform(0.9, 1.1, 128) for i in range(4)}
    noises |= {f"close{i}": 10.0**-6 * rng.uniform(0.5, 1.5, 128) for i in range(2)}
    names, samples = ranked(noises)
    assert names[:4] == ("clear0", "clear1", "clear2", "clear3")
    assert [samples[f"clear{i}"] for i in range(4)] == [FIRST] * 4
    assert [samples[f"close{i}"] for i in range(2)] == [128, 128]
    assert set(ranked(noises, exhaustive=True)[1].values()) == {128}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_the_order_is_that_of_all_samples(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = 10.0 ** -rng.uniform(1, 5, 12)
    noises = {f"n{i}": level * rng.uniform(0.8, 1.2, 64) for i, level in enumerate(levels)}
    first = ranked(noises)[0]
    whole = sorted(noises, key=lambda name: -noises[name].sum())
    assert first[:3] == tuple(whole[:3])


def test_equals_stay_in_the_order_of_the_graph() -> None:
    noise = np.full(32, 0.1)
    assert ranked({"a": noise, "b": noise, "c": noise})[0] == ("a", "b", "c")


def test_rounds_grow() -> None:
    assert schedule(100, exhaustive=False) == [20, 80, 100]
    assert schedule(64, exhaustive=False) == [20, 64]
    assert schedule(20, exhaustive=False) == [20]
    assert schedule(10, exhaustive=False) == [10]
    assert schedule(100, exhaustive=True) == [100]


# blocks


def test_residual_blocks_are_found_from_the_graph() -> None:
    graph = model(
        """
        a = Conv <pads=[1,1,1,1]> (x, w0)
        r = Relu(a)
        b = Conv <pads=[1,1,1,1]> (r, w1)
        c = Conv <pads=[1,1,1,1]> (b, w1)
        s = Add(r, c)
        t = Relu(s)
        d = Conv <pads=[1,1,1,1]> (t, w1)
        e = Add(d, t)
        y = Conv (e, w1)
        """,
        weights={"w0": weight(4, 3, 3, 3), "w1": weight(4, 4, 3, 3)},
    )
    assert list(blocks(graph).values()) == [("a", "r"), ("b", "c", "s", "t"), ("d", "e"), ("y",)]


def scoped(*names: str) -> dict[str, tuple[str, ...]]:
    """Blocks of a chain of operators whose nodes are called like this."""
    body = [
        f"v{i + 1} = {'Conv' if name.endswith('Conv') else 'Relu'} (v{i}{', w' * name.endswith('Conv')})"
        for i, name in enumerate(names)
    ]
    graph = model(
        "\n".join(body), inputs="float[N,3,8,8] v0", outputs=f"float[] v{len(names)}", weights={"w": weight(3, 3, 1, 1)}
    )
    for node, name in zip(graph.graph, names, strict=True):
        node.name = name
    return blocks(graph)


def test_scopes_of_names_are_blocks() -> None:
    found = scoped(
        "/stem/Conv", "/n.0/a/Conv", "/n.0/act/Relu", "/n.0/b/Conv", "/n.1/a/Conv", "/n.1/act/Relu", "/n.1/b/Conv"
    )
    assert found == {"/stem": ("v1",), "/n.0": ("v2", "v3", "v4"), "/n.1": ("v5", "v6", "v7")}


def test_a_scope_for_every_operator_tells_nothing() -> None:
    assert list(scoped("/w.0/Conv", "/w.1/Conv", "/w.2/Conv")) == ["v1", "v2", "v3"]


# memory


def test_memory_takes_runs_away_before_it_gives_up() -> None:
    needs = Needs(weights=1_000_000, largest=10_000_000, values=100_000_000, kept=0, nodes=0, samples=64)
    free = plan_room(needs, base=0, workers=8, limit=None)
    assert free.workers == 8
    assert free.values == pytest.approx(USUAL_ROOM)
    tight = plan_room(needs, base=0, workers=8, limit=200_000_000)
    assert 0 < tight.workers < 8
    assert tight.peak <= 200_000_000
    with pytest.raises(CalibrationError, match="one run at a time takes"):
        plan_room(needs, base=0, workers=8, limit=50_000_000)


# metrics of one's own


def test_a_module_in_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text("def score(before, after, labels):\n    return after[0].sum()\n")
    monkeypatch.chdir(tmp_path)
    name, metric = load_metric("own_metric:score")
    assert name == "custom"
    assert metric is not None
    assert metric([], [np.ones(3)], None) == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("snr", "expected one of sqnr"),
        ("nowhere_at_all:f", "No module named"),
        ("math:nothing", "no attribute"),
        ("math:pi", "is not a function"),
    ],
)
def test_wrong_metrics(name: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        load_metric(name)


def test_a_metric_that_fails_is_named() -> None:
    metric = load_metric("math:sqrt")[1]
    assert metric is not None
    with pytest.raises(DataError, match="math:sqrt fails: TypeError"):
        metric([], [], None)


# the command


def qconvert(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    code = stop.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    plant(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


DATA = ("--data", DIGITS / "evaluation", "--preprocess", "centered", "-n", 20, "--scheme", "per-tensor")


def test_the_command_suggests_a_policy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qconvert("sensitivity", "model.onnx", *DATA, "--suggest", "p.yaml", "--min-sqnr", 20, "--top", 3) == 0
    shown = capsys.readouterr()
    assert FRAGILE[:30] in shown.out
    assert "20 more" in shown.out or "more (--top 0 shows all)" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 120
    assert [rule.float for rule in load(folder / "p.yaml").rules] == [True]
    assert qconvert("sensitivity", "model.onnx", *DATA, "--suggest", "p.yaml", "--min-sqnr", 20) == 2
    assert "--force" in capsys.readouterr().err


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert qconvert("sensitivity", folder / "model.onnx", *DATA, "--mode", "local", "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["subject"] == FRAGILE
    assert found["rows"][0]["harm"]["samples"] == 20


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--suggest", "p.yaml"), "needs one bound"),
        (("--suggest", "p.yaml", "--max-drop", 1, "--min-sqnr", 20), "needs one bound"),
        (("--remedy", "16-bit"), "--remedy is of --suggest"),
        (("--metric", "snr"), "expected one of sqnr"),
        (("--time-budget", "soon"), "expected a time"),
    ],
)
def test_wrong_options(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], text: str
) -> None:
    assert qconvert("sensitivity", folder / "model.onnx", *DATA, *options) == 2
    assert text in " ".join(capsys.readouterr().err.split())


def test_statistics_of_another_model_are_not_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate = ("calibrate", MODEL, "--data", DIGITS / "calibration", "--preprocess", "centered", "-n", 4)
    assert qconvert(*calibrate, "-o", folder / "model.calib", "-q") == 0
    assert qconvert("sensitivity", "model.onnx", *DATA, "-n", 4) == 0
    assert "belongs to another model" in capsys.readouterr().err
