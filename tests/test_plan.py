"""The grids of a plan: their equations, and that every decision says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.calibrators.percentile import Percentile
from qconvert.errors import CalibrationError, PlanError
from qconvert.graph import load_model, serialize
from qconvert.histogram import TensorStats
from qconvert.numerics import INT8, INT32, UINT8, QuantParams, QuantType, Range, params_from_range, quantize
from qconvert.plan import Entry, Given, Plan, candidate_values, make_placement, make_plan
from qconvert.plan.activations import _saturates
from qconvert.plan.weights import room_for_bias, weight_params
from qconvert.policy import Policy, Scheme
from qconvert.prepare import prepare
from qconvert.targets import TARGETS
from tests.models import Array, f32, i64, images, model, planned, policy, statistics, weight
from tests.test_placement import CONV, RESIDUAL, SAMPLES, W

BIASED = f"h {CONV}(x, w, bias) r = Relu(h) k {CONV}(r, a, bias) y = Add(k, r)"


def prepared(body: str, **more: Array) -> ir.Model:
    graph = model(body, weights=W | more)
    prepare(graph, images())
    return graph


def by_name(plan: Plan) -> dict[str, QuantParams]:
    return {entry.tensor: entry.params for entry in plan.entries if entry.role != "bias"}


def test_every_entry_says_where_and_why() -> None:
    graph = prepared(BIASED, bias=weight(8))
    plan = planned(graph, images())
    nodes = {value.name for node in graph.graph for value in node.outputs}
    for entry in plan.entries:
        assert entry.reason.endswith("defaults")
        assert entry.method
        assert entry.sites
        assert {site.operator for site in entry.sites} <= {*nodes, ""}
        assert entry.params.dtype == {"weight": INT8, "bias": INT32}.get(entry.role, UINT8)


def test_plans_are_values() -> None:
    graph = prepared(RESIDUAL)
    before = serialize(graph)
    plan = planned(graph, images())
    assert plan == planned(graph, images())
    assert serialize(graph) == before
    other = replace(plan, entries=plan.entries[1:])
    assert other != plan


def test_activations_cover_what_was_seen() -> None:
    graph = prepared(RESIDUAL)
    _, table, target = make_placement(graph, policy())
    stats = statistics(graph, candidate_values(graph, table, target), images())
    plan = make_plan(graph, policy(), stats)
    for entry in plan.of("activation"):
        low, high = min(stats[entry.tensor].low, 0), max(stats[entry.tensor].high, 0)
        step = float(entry.params.scale)
        assert float(entry.params.low) <= low + 0.51 * step
        assert float(entry.params.high) >= high - 0.51 * step


def test_biases_have_the_scale_of_their_products() -> None:
    plan = planned(prepared(BIASED, bias=weight(8)), images())
    grids = by_name(plan)
    first, second = plan.of("bias")
    assert np.allclose(first.params.scale, grids["x"].scale * grids["w"].scale, rtol=1e-6)
    assert np.allclose(second.params.scale, grids["r"].scale * grids["a"].scale, rtol=1e-6)
    assert all((entry.params.zero_point == 0).all() and entry.params.axis == 0 for entry in (first, second))


def test_moves_share_one_grid_and_add_nothing_to_its_range() -> None:
    moves = "m = MaxPool<kernel_shape=[2,2]>(h) t = Transpose<perm=[0,1,3,2]>(m)"
    grids = by_name(planned(prepared(f"h {CONV}(x, w) {moves} y {CONV}(t, a)"), images()))
    assert grids["h"] == grids["m"] == grids["t"]


def test_concat_operands_cover_the_union_on_tensorrt() -> None:
    body = f"h {CONV}(x, w) k {CONV}(x, v) l = Concat<axis=1>(k, h) y = Conv(l, e)"
    graph = prepared(body, v=8 * weight(4, 3, 3, 3), e=weight(2, 12, 1, 1))
    plan = planned(graph, images(), policy(target="tensorrt"))
    grids = by_name(plan)
    assert grids["h"] == grids["k"] == grids["l"]
    assert [entry.method for entry in plan.of("activation") if entry.tensor in "hkl"].count("same scale") == 2


def test_outputs_are_never_clipped() -> None:
    text = "defaults:\n  activations: {calibrator: {method: percentile, percentile: 90}}"
    plan = planned(prepared(f"h {CONV}(x, w) y {CONV}(h, a)"), images(), policy(text))
    methods = {entry.tensor: entry.method for entry in plan.of("activation")}
    assert methods == {"x": "percentile", "h": "percentile", "y": "minmax (model output)"}


def stats_of(**arrays: Array) -> dict[str, TensorStats]:
    return {name: TensorStats.of(array) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (f32(1, np.nan), "value 'x' held 1 NaN"),
        (f32(1, -np.inf, np.inf), r"value 'x' held 1 -Inf, 1 \+Inf"),
        (f32(), "value 'x' saw no finite data"),
    ],
)
def test_bad_statistics_are_refused(x: Array, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        make_plan(prepared(f"y {CONV}(x, w)"), Policy(), stats_of(x=x, y=f32(1)))


def test_missing_statistics_are_refused() -> None:
    with pytest.raises(CalibrationError, match="value 'x' has no statistics"):
        make_plan(prepared(f"y {CONV}(x, w)"), Policy(), {})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    w = W["w"].copy()
    w[0, 0, 0, 0] = bad
    graph = model(f"y {CONV}(x, w)", weights={"w": w})
    prepare(graph, ())
    with pytest.raises(PlanError, match=r"weight 'w' holds NaN or Inf") as caught:
        make_plan(graph, Policy(), stats_of(x=f32(1), y=f32(1)))
    assert caught.value.hint == "--exclude y leaves its operator float"


def test_candidates_hold_for_every_target_and_survive_other_policies() -> None:
    graph = prepared(RESIDUAL)
    _, table, target = make_placement(graph, Policy())
    names = set(candidate_values(graph, table, target))
    for name in ("ort-cpu", "tensorrt", "generic", "openvino", "qnn", "integer-mcu"):
        placement, _, _ = make_placement(graph, policy(target=name))
        assert set(placement.values) <= names


@pytest.mark.parametrize("excluded", ["r", "h", "s", "Relu", "Conv"])
def test_candidates_follow_the_policy_they_are_asked_for(excluded: str) -> None:
    graph = prepared(RESIDUAL)
    chosen = policy().override(exclude=[excluded])
    placement, table, target = make_placement(graph, chosen)
    assert set(placement.values) <= set(candidate_values(graph, table, target))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("target", TARGETS)
def test_candidates_of_the_sample_models(path: Path, target: str) -> None:
    graph = load_model(path)
    prepare(graph, ())
    placement, table, found = make_placement(graph, policy(target=target))
    assert set(placement.values) <= set(candidate_values(graph, table, found))


# laws

finite = st.floats(-1e4, 1e4, width=32)
ranges = st.tuples(finite, finite).map(sorted)


def grid(ends: list[float], dtype: QuantType, kind: str) -> QuantParams:
    return params_from_range(ends[0], ends[1], dtype, symmetric=kind == "symmetric", narrow_range=kind == "narrow")


grids = st.builds(grid, ranges, st.sampled_from([UINT8, INT8]), st.sampled_from(["symmetric", "narrow", "asymmetric"]))


@settings(max_examples=300, deadline=None)
@given(grids, ranges, st.lists(st.floats(-2e4, 2e4, width=32), min_size=1))
def test_an_absorbed_clamp_changes_only_ties(params: QuantParams, bounds: list[float], values: list[float]) -> None:
    low, high = bounds
    if not _saturates(params, low, high):
        return
    whole = replace(params, narrow_range=False)
    x = np.array(values, np.float32)
    clipped, free = quantize(np.clip(x, low, high).astype(np.float32), whole), quantize(x, whole)
    assert np.abs(clipped - free).max() <= 1
    moved = x[clipped != free]
    near = np.minimum(np.abs(moved - low), np.abs(moved - high)) <= float(whole.scale) * 0.502
    outside = (moved < low) | (moved > high)
    assert (near | outside).all()


@pytest.mark.parametrize("dtype", [UINT8, INT8])
@pytest.mark.parametrize("top", [0.1, 1.0, 3.7, 6.0])
def test_relu_and_relu6_are_absorbed_by_asymmetric_grids(top: float, dtype: QuantType) -> None:
    params = params_from_range(0.0, top, dtype, symmetric=False)
    assert _saturates(params, 0.0, float("inf"))
    assert _saturates(params, 0.0, 6.0)
    assert not _saturates(params, 0.0, 0.9 * top)
    assert not _saturates(params, 0.1 * top, 6.0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=4, max_size=4),
    st.lists(st.floats(0, 100, width=32), min_size=4, max_size=4),
    st.floats(1e-6, 1e6),
    st.booleans(),
)
def test_biases_fit_int32(bias: list[float], magnitudes: list[float], scale: float, per_channel: bool) -> None:
    array = np.array(magnitudes, np.float32).reshape(4, 1)
    axis = 0 if per_channel else None
    params = weight_params(array, Scheme(dtype="int8", symmetric=True, narrow_range=True), axis=axis)
    wide = room_for_bias(params, scale, np.array(bias, np.float32))
    assert (wide.scale >= params.scale).all()
    levels = np.abs(np.array(bias)) / (wide.scale.astype(np.float64) * scale)
    assert levels.max() < 1.001 * 2**30


def test_a_grouped_transpose_leaves_room_in_every_group() -> None:
    params = weight_params(np.zeros((4, 2, 1, 1), np.float32) + 1e-20, Scheme(dtype="int8", symmetric=True), axis=1)
    wide = room_for_bias(params, 1.0, f32(1, 0, 0, 100))
    assert np.allclose(wide.scale * 2**30, [1, 100], rtol=1e-3)


def test_a_weight_may_have_a_calibrator() -> None:
    w = weight(8, 64)
    w[3, 5] = 100
    whole = Scheme(dtype="int8", symmetric=True)
    tight = whole.model_copy(update={"calibrator": Percentile(95.0)})
    assert weight_params(w, tight, axis=0).scale[3] < 0.1 * weight_params(w, whole, axis=0).scale[3]


def test_unused_results_carry_no_pair() -> None:
    body = f"h {CONV}(x, w) f, g = Split<axis=1>(h, parts) y = Conv(f, e)"
    plan = planned(prepared(body, parts=i64(5, 3), e=weight(2, 5, 1, 1)), images())
    assert "g" not in by_name(plan)


# ranges from elsewhere


GIVEN = Given(Range(-3.0, 5.0), "elsewhere", "because")


def with_given(body: str, elsewhere: Mapping[str, Given]) -> dict[str, Entry]:
    graph = prepared(body)
    chosen = policy()
    names = candidate_values(graph, *make_placement(graph, chosen)[1:])
    stats = {name: one for name, one in statistics(graph, names, images()).items() if name not in elsewhere}
    plan = make_plan(graph, chosen, stats, given=elsewhere)
    return {entry.tensor: entry for entry in plan.of("activation")}


@pytest.mark.parametrize("name", ["x", "h", "s", "y"])
def test_a_given_range_needs_no_statistics_and_wins_over_every_rule(name: str) -> None:
    body = f"h {CONV}(x, w) s = Sigmoid(h) y {CONV}(s, a)"
    found, without = with_given(body, {name: GIVEN}), with_given(body, {})
    entry = found[name]
    assert entry.params == params_from_range(-3.0, 5.0, UINT8, symmetric=False)
    assert (entry.method, entry.reason) == ("elsewhere", f"{without[name].reason}; because")
    assert all(found[other] == without[other] for other in without if other != name)
    assert without["s"].method == "range of Sigmoid"
    assert without["y"].method == "minmax (model output)"


@pytest.mark.parametrize(
    "elsewhere", [{"h": GIVEN}, {"m": GIVEN}, {"h": GIVEN, "m": Given(Range(0.0, 99.0), "elsewhere")}]
)
def test_moved_values_have_the_range_of_their_source(elsewhere: dict[str, Given]) -> None:
    body = f"h {CONV}(x, w) m = MaxPool<kernel_shape=[2,2]>(h) y {CONV}(m, a)"
    found = with_given(body, elsewhere)
    assert found["h"].params == found["m"].params == params_from_range(-3.0, 5.0, UINT8, symmetric=False)
    assert {found["h"].method, found["m"].method} == {"elsewhere", "same scale"}


def test_given_ranges_contain_zero() -> None:
    found = with_given(f"y {CONV}(x, w)", {"x": Given(Range(2.0, 4.0), "elsewhere")})
    assert found["x"].params == params_from_range(0.0, 4.0, UINT8, symmetric=False)
    assert ";" not in found["x"].reason.partition("; ")[2], "no reason is no words"
