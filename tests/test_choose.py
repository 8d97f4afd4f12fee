"""Ranges chosen by measured error: the simulation is the quantized model, and each search finds what it promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert import pipeline
from qconvert.calibrators import CALIBRATORS, FROM_STATISTICS, make_calibrator
from qconvert.calibrators.auto import Auto
from qconvert.choose import Chosen, auto, choose
from qconvert.choose.easyquant import best_by_channel
from qconvert.choose.isotone import isotone_range, top_two
from qconvert.choose.layer import Layer, Sample
from qconvert.choose.observe import Observer
from qconvert.choose.simulation import Simulation
from qconvert.choose.task import grid_of, spread
from qconvert.errors import CalibrationError
from qconvert.graph import operators, opset
from qconvert.histogram import TensorStats
from qconvert.numerics import UINT8, QuantParams, Range, fake_quantize, quantize
from qconvert.pipeline import calibrating
from qconvert.pipeline.data import PROOF
from qconvert.plan import Given, Plan, make_plan, make_planner
from qconvert.policy import Policy, Scheme, loads
from qconvert.prepare import prepare, raise_opset
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.session import open_session, run
from tests.models import images, model, weight

Array = npt.NDArray[Any]

BODY = """
h = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
r = Relu(h)
s = Conv <pads = [1, 1, 1, 1]> (r, w2)
a = Add(s, r)
p = GlobalAveragePool(a)
f = Flatten(p)
y = Gemm(f, w3, b3)
"""
MEASURED = [name for name in CALIBRATORS if name not in FROM_STATISTICS]


def ready(body: str, weights: Mapping[str, Array], **options: Any) -> ir.Model:  # noqa: ANN401 - options of ``model``
    """A prepared graph."""
    return prepare(model(body, weights=weights, **options), ()).model


def net() -> ir.Model:
    """Two Convs with a residual and a classifier, whose weights make outliers in some channels."""
    first = weight(8, 3, 3, 3)
    first[0] *= 30
    second = weight(8, 8, 3, 3)
    second[:, 0] /= 300
    return ready(
        BODY,
        {
            "w1": first,
            "b1": np.linspace(-1, 1, 8).astype(np.float32),
            "w2": second,
            "w3": weight(8, 5),
            "b3": np.zeros(5, np.float32),
        },
    )


PROBES = images(1, 3, 8, 8, count=20)


def statistics(graph: ir.Model, probes: Sequence[Mapping[str, Array]] = PROBES) -> dict[str, TensorStats]:
    """Of every float value."""
    names = ["x", *(value.name or "" for op in operators(graph) for value in op.node.outputs)]
    observe = Observer(graph, names)
    found = dict.fromkeys(names, TensorStats())
    for probe in probes:
        found = {name: found[name] + TensorStats.of(array) for name, array in observe(names, probe).items()}
    return found


def policy(calibrator: str, **options: Any) -> Policy:  # noqa: ANN401 - options of ``override``
    return Policy().override(calibrator=calibrator, **options)


def planned(graph: ir.Model, calibrator: str, **options: str) -> Plan:
    """The plan with what a calibrator chooses on the probes."""
    wish, stats = policy(calibrator, **options), statistics(graph)
    found = choose(graph, wish, stats, PROBES)
    return make_plan(graph, wish, stats, given=found.ranges, weights=found.weights)


def grids(plan: Plan) -> dict[str, QuantParams]:
    return {entry.tensor: entry.params for entry in plan.of("activation")}


def output_db(graph: ir.Model, plan: Plan, probes: Sequence[Mapping[str, Array]] = PROBES) -> float:
    """Output SQNR of the written model against the float one, plain numpy."""
    before = open_session(graph)
    copy = graph.clone()
    raise_opset(copy, max(opset(copy), needed_opset(plan)))
    after = open_session(to_qdq(copy, plan), optimize=False)
    pairs = [(run(before, probe)[0], run(after, probe)[0]) for probe in probes]
    noise = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return float(10 * np.log10(sum(float((a**2).sum()) for a, _ in pairs) / noise))


# --- the simulation


@pytest.mark.parametrize("types", [{}, {"weights": "int4"}, {"activations": "uint4"}, {"target": "tensorrt"}])
def test_the_simulation_is_the_quantized_model(types: dict[str, str]) -> None:
    graph = net()
    stats = statistics(graph)
    plan = make_plan(graph, policy("minmax", **types), stats)
    other = make_plan(graph, policy("percentile:percentile=99", **types), stats)
    simulation = Simulation(graph, plan, PROBES)
    for one in (plan, other):
        assert simulation.sqnr_db(simulation.noise(grids(one))) == pytest.approx(output_db(graph, one), abs=0.1)
    assert grids(plan) != grids(other)


def test_noise_is_the_same_in_every_run_and_for_some_samples() -> None:
    graph = net()
    plan = make_plan(graph, policy("minmax"), statistics(graph))
    simulation = Simulation(graph, plan, PROBES)
    whole = simulation.noise(grids(plan))
    assert (whole == simulation.noise(grids(plan))).all()
    assert (whole[[3, 1]] == simulation.noise(grids(plan), [3, 1])).all()
    assert whole.shape == (len(PROBES), 1)
    assert (whole > 0).all()


def test_the_model_is_left_as_it_is() -> None:
    graph = net()
    before = [(op.op_type, op.name) for op in operators(graph)]
    planned(graph, "auto")
    planned(graph, "easyquant")
    assert [(op.op_type, op.name) for op in operators(graph)] == before
    assert [value.name for value in graph.graph.outputs] == ["y"]


# --- auto


@pytest.mark.parametrize("types", [{}, {"activations": "uint4"}, {"weights": "int4"}])
def test_auto_is_at_least_as_good_as_each_method(types: dict[str, str]) -> None:
    graph = net()
    stats = statistics(graph)
    found = output_db(graph, planned(graph, "auto", **types))
    others = [output_db(graph, make_plan(graph, policy(method, **types), stats)) for method in auto.METHODS]
    assert found >= max(others) - 0.05
    assert found > min(others) + 1


@pytest.mark.parametrize("types", [{}, {"activations": "uint4"}, {"weights": "int4"}])
def test_auto_is_better_on_unseen_samples_than_what_seems_best_on_few(types: dict[str, str]) -> None:
    graph, unseen = net(), images(1, 3, 8, 8, count=220)[20:]
    stats = statistics(graph)
    plans = {method: make_plan(graph, policy(method, **types), stats) for method in auto.METHODS}
    found = planned(graph, "auto", **types)
    known = {method: output_db(graph, plan) for method, plan in plans.items()}
    best = max(known, key=lambda method: known[method])
    assert output_db(graph, found, unseen) > output_db(graph, plans[best], unseen) + 0.3


def test_what_the_samples_do_not_tell_apart_meets_midway() -> None:
    graph = net()
    stats = statistics(graph)
    found = choose(graph, policy("auto"), stats, PROBES).ranges["x"]
    best, rest = found.reason.removeprefix("auto: ").split(",")[0], found.reason.split("the mean of ")[1]
    rivals = rest.split(", which the samples")[0].split(", ")
    assert found.method == f"auto: midway from {best}"
    assert "average" not in rivals
    ranges = {name: make_calibrator(name)(stats["x"], UINT8, symmetric=False) for name in (best, *rivals)}
    low, high = (np.mean([getattr(ranges[name], end) for name in rivals]) for end in ("low", "high"))
    assert found.range.low == pytest.approx((ranges[best].low + low) / 2)
    assert found.range.high == pytest.approx((ranges[best].high + high) / 2)


@given(*[st.lists(st.tuples(*[st.floats(-1e30, 1e30)] * 2), min_size=count, max_size=9) for count in (1, 0)])
def test_midway_lies_between(ends: list[tuple[float, float]], others: list[tuple[float, float]]) -> None:
    one, *_ = found = [Range(*sorted(pair)) for pair in ends[:1] + others]
    between = auto.midway(one, found[1:])
    assert min(one.low for one in found) <= between.low <= max(one.low for one in found)
    assert min(one.high for one in found) <= between.high <= max(one.high for one in found)
    assert auto.midway(one, [one] * 3) == one
    mirrored = auto.midway(Range(-one.high, -one.low), [Range(-other.high, -other.low) for other in found[1:]])
    assert mirrored == Range(-between.high, -between.low)


def test_auto_takes_another_method_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {"minmax": make_calibrator("minmax"), "narrow": make_calibrator("percentile", percentile=99)}
    monkeypatch.setattr(auto, "METHODS", methods)
    graph = net()
    stats = statistics(graph)
    stats["s"] += TensorStats.of(np.array([50 * stats["s"].high], np.float32))  # as if one sample had been far out
    found = choose(graph, policy("auto"), stats, PROBES).ranges
    assert found["s"].method == "auto: narrow"
    assert "auto: narrow here raises output SQNR from" in found["s"].reason
    assert found["x"].method == "auto: minmax"


def test_what_one_sample_gains_is_chance() -> None:
    old, signal = np.full((50, 2), 1e-3), np.ones((50, 2))
    lucky, better, rows = old.copy(), 0.9 * old, np.arange(50)
    lucky[7] = 0
    assert lucky.sum() < 0.985 * old.sum()
    assert not auto.is_surely_less(lucky, old, signal)
    assert auto.is_surely_less(better, old, signal)
    assert not auto.is_surely_less(old, better, signal)
    mostly = np.where((rows % 3 == 0)[:, None], 1.1 * old, better)
    assert auto.is_surely_less(mostly, old, signal)
    assert not auto.is_surely_less(mostly[:3], old[:3], signal[:3])  # as good a share of too few


def test_one_sample_and_noise_without_end_decide_by_what_is_known() -> None:
    old, signal = np.full((4, 1), 1e-3), np.ones((4, 1))
    endless = np.full((4, 1), np.inf)
    assert auto.is_surely_less(0.9 * old[:1], old[:1], signal[:1])
    assert auto.is_surely_less(old, endless, signal)


def test_auto_says_what_it_measured_and_is_the_same_in_every_run() -> None:
    graph = net()
    one, other = planned(graph, "auto"), planned(graph, "auto")
    assert one == other
    entry = next(entry for entry in one.of("activation") if entry.tensor == "r")
    assert entry.method.startswith("auto: ")
    assert "output SQNR" in entry.reason
    assert "dB on 20 samples" in entry.reason


@pytest.mark.parametrize("name", ["auto", "easyquant"])
def test_outputs_of_the_model_keep_all_their_values(name: str) -> None:
    graph = ready("h = Conv(x, w)\ny = Conv(h, v)", {"w": weight(4, 3, 1, 1), "v": weight(4, 4, 1, 1)})
    entries = {entry.tensor: entry.method for entry in planned(graph, name).of("activation")}
    assert entries["y"] == "minmax (model output)"
    assert entries["h"].startswith(name)


def test_auto_hears_a_rule_and_what_is_given() -> None:
    graph = net()
    stats = statistics(graph)
    wish = loads(
        "version: 1\ndefaults: {activations: {calibrator: minmax}}\n"
        "rules: [{match: {names: [s]}, activations: {calibrator: auto}}]\n"
    )
    found = choose(graph, wish, stats, PROBES)
    assert set(found.ranges) == {"s"}
    elsewhere = {"s": Given(Range(-1.0, 2.0), "elsewhere")}
    assert choose(graph, wish, stats, PROBES, given=elsewhere) == Chosen(elsewhere)
    assert choose(graph, policy("minmax"), stats, PROBES) == Chosen({})


def test_ranges_without_histograms_leave_auto_the_methods_that_need_none() -> None:
    graph = net()
    stats = {name: replace(one, histogram=type(one.histogram)()) for name, one in statistics(graph).items()}
    found = choose(graph, policy("auto"), stats, PROBES).ranges
    assert {one.method for one in found.values()} <= {"auto: minmax", "auto: average"}  # easyquant starts from entropy


def test_values_that_share_a_grid_change_together() -> None:
    body = "a = Conv(x, w)\nm = MaxPool <kernel_shape = [2, 2]> (a)\ny = Conv(m, v)"
    graph = ready(body, {"w": weight(4, 3, 1, 1), "v": weight(4, 4, 1, 1)})
    plan = planned(graph, "auto")
    entries = {entry.tensor: entry for entry in plan.of("activation")}
    assert entries["a"].params == entries["m"].params
    assert entries["m"].method == "same scale"


# --- what all have in common


@pytest.mark.parametrize("name", MEASURED)
def test_statistics_alone_do_not_suffice(name: str) -> None:
    graph = net()
    stats = statistics(graph)
    with pytest.raises(CalibrationError, match="statistics alone") as caught:
        make_calibrator(name)(stats["r"], UINT8, symmetric=False)
    assert f"--calibrator {name}" in caught.value.hint
    with pytest.raises(CalibrationError, match="kept none"):
        choose(graph, policy(name), stats, ())


@pytest.mark.parametrize("name", MEASURED)
def test_quantize_finds_the_ranges(name: str, tmp_path: Path) -> None:
    graph = net()
    path, data = tmp_path / "net.onnx", tmp_path / "data"
    ir.save(graph, path)
    data.mkdir()
    for index, probe in enumerate(PROBES):
        np.save(data / f"{index:02}.npy", probe["x"])
    calibrated = pipeline.calibrate(path, data, output=tmp_path / "net.calib")
    assert len(calibrated.probes) == len(PROBES)
    found = pipeline.quantize(path, calibrated, output=tmp_path / "int8.onnx", policy=policy(name))
    assert found.proof.samples == PROOF
    assert found.proof.fidelity[0].sqnr_db > 20
    again = pipeline.quantize(path, calibrated, output=tmp_path / "again.onnx", policy=policy(name))
    assert again.plan == found.plan
    assert (tmp_path / "int8.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()


def test_the_first_few_probes_are_spread_over_the_samples() -> None:
    order = calibrating.spread(1000)
    assert sorted(order) == list(range(1000))
    for count in (2, 4, 16, 128):
        chosen = sorted(order[:count])
        assert max(np.diff([*chosen, 1000])) == 1000 // count + (1000 % count > 0)
    assert sorted(calibrating.spread(3)) == [0, 1, 2]


@given(st.integers(1, 50), st.integers(1, 60))
def test_spread_takes_each_once_and_in_order(have: int, wish: int) -> None:
    probes = [{"n": np.array(index)} for index in range(have)]
    found = [int(one["n"]) for one in spread(probes, wish)]
    assert found == sorted(set(found))
    assert len(found) == min(have, wish)


# --- isotone

SCHEME = Scheme(dtype="uint8", symmetric=False, scheme="per-tensor", narrow_range=False)
scores = st.lists(
    st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=12
).map(lambda rows: np.array(rows, np.float32))  # fmt: skip


def kept(rows: Array, found: Range) -> int:
    levels = quantize(rows, grid_of(found, SCHEME))
    return sum(int(level[0] > level[1]) for level in levels)


@given(scores)
@settings(deadline=None)
def test_isotone_keeps_at_least_what_minmax_keeps_and_stays_in_the_data(values: Array) -> None:
    rows, whole = top_two(values, -1), Range(min(float(values.min()), 0), max(float(values.max()), 0))
    found, most = isotone_range(rows, whole, SCHEME)
    assert most == kept(rows, found) >= kept(rows, whole)
    assert whole.low <= found.low <= found.high <= whole.high


def test_isotone_narrows_a_range_in_which_the_order_is_lost() -> None:
    rows, whole = np.array([[1.1, 1.0], [0.8, 0.5]], np.float32), Range(0.0, 100.0)
    found, most = isotone_range(rows, whole, SCHEME)
    assert kept(rows, whole) < 2
    assert most == 2
    assert found.high < 100
    assert isotone_range(rows, Range(0.0, 1.1), SCHEME) == (Range(0.0, 1.1), 2)


def test_isotone_is_for_class_scores_alone() -> None:
    body = "h = Conv(x, w)\nc = Conv(h, v)\ny = Softmax <axis = 1> (c)"
    graph = ready(body, {"w": weight(4, 3, 1, 1), "v": weight(4, 4, 1, 1)}, outputs="float[N,4,8,8] y")
    entries = {entry.tensor: entry for entry in planned(graph, "isotone").of("activation")}
    assert entries["c"].method == "isotone"
    assert f"of {20 * 64} rows" in entries["c"].reason
    assert entries["x"].method == "isotone: minmax"
    assert "no class scores" in entries["x"].reason


def test_top_two_goes_along_the_axis() -> None:
    values = np.array([[[1, 5], [3, 2], [2, 9]]], np.float32)
    assert (top_two(values, 1) == [[3, 2], [9, 5]]).all()
    assert (top_two(values, -1) == [[5, 1], [3, 2], [9, 2]]).all()


# --- easyquant

LAYERS = {
    "Conv <pads = [1, 1, 1, 1], group = 2> (x, w, b)": ((1, 4, 5, 5), (6, 2, 3, 3), 6),
    "Gemm <transB = 1> (x, w, b)": ((3, 4), (6, 4), 6),
    "MatMul(x, w)": ((2, 3, 4), (4, 6), 6),
}


@pytest.mark.parametrize("text", LAYERS)
def test_the_sums_of_a_layer_are_those_of_its_operator(text: str) -> None:
    shape, of_weight, channels = LAYERS[text]
    rng = np.random.default_rng(0)
    w, b = (rng.standard_normal(size).astype(np.float32) for size in (of_weight, channels))
    dims = ",".join(map(str, shape))
    graph = model(f"y = {text}", inputs=f"float[{dims}] x", weights={"w": w, "b": b})
    half = (w / 2).astype(np.float32)
    rough = model(f"y = {text}", inputs=f"float[{dims}] x", weights={"w": half, "b": b})
    x = rng.standard_normal(shape).astype(np.float32)
    grid = grid_of(Range(-1.0, 1.5), SCHEME)
    y, z = run(open_session(graph), {"x": x})[0], run(open_session(rough), {"x": fake_quantize(x, grid)})[0]
    axis = 1 if text.startswith("Conv") else z.ndim - 1
    over = tuple(i for i in range(z.ndim) if i != axis)
    layer = Layer(next(operators(graph)), [Sample(x, y)], 17)
    found = layer.sums(grid, half)
    np.testing.assert_allclose(found, [[(y * z).sum(over), (z * z).sum(over)]], rtol=1e-4, atol=1e-4)
    expected = (y * z).sum() / np.sqrt((y * y).sum() * (z * z).sum())
    assert layer.cosine(found.sum(-1)) == pytest.approx(expected, abs=1e-6)


def test_each_channel_has_the_factor_that_is_best_for_the_whole_output() -> None:
    rng = np.random.default_rng(1)
    y = rng.standard_normal((2, 3, 50))  # samples, channels, values
    z = np.array([y + noise * rng.standard_normal(y.shape) for noise in (0.5, 0.1, 0.3, 0.9)])
    z[0, :, 1] = y[:, 1]
    sums = np.stack([(y * z).sum(-1), (z * z).sum(-1)], -2)  # factors, samples, 2, channels
    layer = Layer.__new__(Layer)
    layer.norms = (y * y).sum((1, 2))
    best = best_by_channel(layer, sums[3], sums)
    chosen = sums[3].copy()
    for channel in range(3):
        trials = []
        for factor in range(4):
            one = chosen.copy()
            one[..., channel] = sums[factor, ..., channel]
            total = one.sum(-1)
            trials.append(np.mean(total[:, 0] / np.sqrt(total[:, 1] * layer.norms)))
        assert best[channel] == np.argmax(trials)
        chosen[..., channel] = sums[best[channel], ..., channel]
    assert best[1] == 0


def test_easyquant_brings_scales_of_weights_that_help_at_four_bits() -> None:
    graph = net()
    plain = output_db(graph, make_plan(graph, policy("entropy", weights="int4"), statistics(graph)))
    plan = planned(graph, "easyquant", weights="int4")
    assert output_db(graph, plan) > plain
    assert {entry.method for entry in plan.of("weight")} == {"easyquant"}
    entries = {entry.tensor: entry for entry in plan.of("activation")}
    assert entries["r"].method == "easyquant"
    assert "x entropy" in entries["r"].reason
    assert entries["s"].method == "easyquant: entropy"  # no Conv reads it


def test_auto_brings_scales_of_weights_where_they_win() -> None:
    graph = net()
    plan = planned(graph, "auto", weights="int4")
    assert {entry.method for entry in plan.of("weight")} == {"easyquant"}
    plain = make_plan(graph, policy("minmax", weights="int4"), statistics(graph))
    assert output_db(graph, plan) > output_db(graph, plain) + 1


@pytest.mark.parametrize("name", ["auto", "easyquant"])
def test_weights_whose_calibrator_is_named_keep_it(name: str) -> None:
    graph, stats = net(), statistics(net())
    wish = loads(
        "version: 1\ndefaults: {weights: {dtype: int4, calibrator: mse}, activations: {calibrator: " + name + "}}\n"
    )
    found = choose(graph, wish, stats, PROBES)
    assert not found.weights
    plan = make_plan(graph, wish, stats, given=found.ranges, weights=found.weights)
    assert {entry.method for entry in plan.of("weight")} == {"mse"}


def test_grids_of_weights_that_do_not_fit_the_settings_do_not_count() -> None:
    graph = net()
    stats = statistics(graph)
    found = choose(graph, policy("easyquant"), stats, PROBES)
    plan = make_plan(graph, policy("minmax", weights="int4"), stats, weights=found.weights)
    assert {entry.method for entry in plan.of("weight")} == {"minmax"}
    assert {entry.params.dtype.name for entry in plan.of("weight")} == {"int4"}


def test_deciding_values_leave_out_what_has_a_range_of_its_own() -> None:
    body = "a = MatMul(x, w)\ns = Softmax(a)\ny = MatMul(s, v)"
    graph = ready(body, {"w": weight(4, 4), "v": weight(4, 4)}, inputs="float[N,4] x")
    assert set(make_planner(graph, policy("auto"), {}).deciding()) == {"x"}
    assert isinstance(make_planner(graph, policy("auto"), {}).deciding()["x"].calibrator, Auto)
