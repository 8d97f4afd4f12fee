"""The dynamic mode: what onnxruntime computes is what numpy computes from the formulas, optimized and not."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import QuantType, quantize_dynamic
from PIL import Image

from qconvert.errors import CalibrationError, PlanError, PolicyError, TargetError
from qconvert.graph import load_model, operators, opset, serialize, write_model
from qconvert.histogram import TensorStats
from qconvert.kernel_census import census
from qconvert.numerics import QuantParams, quantize
from qconvert.plan import Plan, candidate_values, make_placement
from qconvert.plan.dynamic import make_dynamic_plan
from qconvert.plan.types import Bounds
from qconvert.policy import Policy, loads
from qconvert.prepare import prepare, raise_opset
from qconvert.rewrite.dynamic import needed_opset, to_dynamic
from qconvert.session import open_session, run
from tests.models import RUNTIME, Array, Feeds, f32, fetch, image, model, pooled_sqnr, statistics, weight
from tests.models import Result as Run

ROWS = "float[B,16] x"
SEQUENCE = "float[B,S,16] x"
W = {
    "a": weight(16, 12),
    "k": weight(16, 8, seed=1),
    "t": weight(12, 16),
    "bias": weight(12, gain=0.3),
    "w": weight(6, 3, 3, 3),
    "p": weight(6, 3, 1, 1),
    "b": weight(6, gain=0.3),
}
CLOSE = 1e-5
"""Of the largest output: kernels multiply scales in another order than the file says."""

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent / "sample_models"
BENCH = HERE.parents[1] / "shared" / "bench"


def dynamic(graph: ir.Model, samples: list[Feeds], wanted: Policy | None = None, **how: Any) -> Run:  # noqa: ANN401
    """Prepares, plans, rewrites, writes, and runs the file with and without onnxruntime's optimizations."""
    chosen = wanted or Policy()
    original: ir.Model = ir.from_proto(onnx.load_from_string(serialize(graph)))
    notes = prepare(graph, samples).notes
    stats = None
    if how.get("bounded"):
        stats = statistics(graph, candidate_values(graph, *make_placement(graph, chosen)[1:]), samples)
    plan = make_dynamic_plan(graph, chosen, stats, **how)
    return executed(graph, original, plan, samples, notes)


def executed(graph: ir.Model, original: ir.Model, plan: Plan, samples: list[Feeds], notes: tuple[str, ...] = ()) -> Run:
    raise_opset(graph, needed_opset(plan))
    to_dynamic(graph, plan)
    with tempfile.TemporaryDirectory() as folder:
        path, optimized = Path(folder) / "q.onnx", Path(folder) / "optimized.onnx"
        write_model(graph, path)
        written = load_model(path)
        fast = open_session(path, threads=1, optimized_path=optimized)
        kernels = Counter(op.node.op_type for op in operators(load_model(optimized)))
        slow = open_session(path, threads=1, optimize=False)
        before = open_session(original, threads=1, optimize=False)
        rows = [[run(session, feeds) for feeds in samples] for session in (before, fast, slow)]
    return Run(plan, written, kernels, rows[0], rows[1], rows[2], notes)


def near(result: Run, expected: Array, index: int = 0) -> None:
    """Both ways of running the file give what numpy says."""
    largest = np.abs(expected).max()
    for output in (result.optimized[index][0], result.plain[index][0]):
        assert output.shape == expected.shape
        assert np.abs(output - expected).max() <= CLOSE * max(largest, 1e-30)


# the formulas, in numpy


def tensor_grid(x: Array) -> tuple[np.float32, int]:
    """Scale and zero point of ONNX DynamicQuantizeLinear."""
    low, high = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    scale = np.float32((high - low) / np.float32(255))
    return scale, 0 if scale == 0 else int(np.clip(np.rint(-low / scale), 0, 255))


def steps(x: Array, scale: Array | np.float32, zero: int, low: int = 0, high: int = 255) -> npt.NDArray[np.int64]:
    """Levels less the zero point."""
    if np.all(scale == 0):
        return np.zeros(x.shape, np.int64)
    levels = np.rint((x / scale).astype(np.float32)).astype(np.int64) + zero
    return np.asarray(np.clip(levels, low, high) - zero)


def per_tensor(x: Array) -> tuple[npt.NDArray[np.int64], np.float32]:
    scale, zero = tensor_grid(x)
    return steps(x, scale, zero), scale


def per_token(x: Array, least: float = 0, most: float = np.inf) -> tuple[npt.NDArray[np.int64], Array]:
    largest = np.clip(np.abs(x).max(-1, keepdims=True), np.float32(least), np.float32(most))
    scale = np.maximum(largest / np.float32(127), np.finfo(np.float32).tiny)
    return steps(x, scale, 0, -128, 127), scale


def bounded(x: Array, bounds: Bounds) -> tuple[npt.NDArray[np.int64], np.float32]:
    low = np.float32(np.clip(x.min(), bounds.low, 0))
    high = np.float32(np.clip(x.max(), 0, bounds.high))
    scale = np.maximum((high - low) / np.float32(255), np.float32(bounds.least / 255))
    return steps(x, scale, int(np.rint(-low / scale))), scale


def columns(array: Array, grid: QuantParams, axis: int) -> tuple[npt.NDArray[np.int64], Array]:
    """Steps of a weight, and its scales so that they broadcast over a product's last axis."""
    shape = [-1 if d == axis % array.ndim else 1 for d in range(array.ndim)]
    zero = grid.zero_point.reshape(shape) if grid.zero_point.ndim else grid.zero_point
    return np.asarray(quantize(array, grid) - zero, np.int64), grid.scale


def matmul(result: Run, x: Array, name: str = "a", scheme: str = "per-tensor") -> Array:
    levels, scale = per_tensor(x) if scheme == "per-tensor" else per_token(x)
    w, s = columns(W[name], result.entry(name).params, -1)
    return np.asarray((levels @ w).astype(np.float64) * scale * s)


def conv2d(x: Array, w: Array, *, stride: int = 1, pad: int = 0, groups: int = 1) -> Array:
    """A convolution in the type of its operands, padded with zeros."""
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    parts = [
        np.einsum("nchwij,ocij->nohw", part, kernel)
        for part, kernel in zip(np.split(windows, groups, 1), np.split(w, groups, 0), strict=True)
    ]
    return np.concatenate(parts, 1)


# MatMul


@pytest.mark.parametrize("scheme", ["per-tensor", "per-token"])
@pytest.mark.parametrize("weights", ["per-tensor", "per-channel"])
def test_matmul_is_what_numpy_says(scheme: str, weights: str) -> None:
    feeds = image(3, 5, 16)
    result = dynamic(
        model("y = MatMul(x, a)", inputs=SEQUENCE, weights=W),
        [feeds],
        Policy().override(scheme=weights),
        activation_scheme=scheme,
    )
    near(result, matmul(result, feeds["x"], scheme=scheme))
    assert result.sqnr > 35
    assert result.entry("a").params.scale.shape == (() if weights == "per-tensor" else (12,))
    assert result.kernels["MatMul"] == 0


def test_per_tensor_is_one_fused_kernel_with_its_bias() -> None:
    feeds = image(3, 5, 16)
    result = dynamic(model("h = MatMul(x, a) y = Add(bias, h)", inputs=SEQUENCE, weights=W), [feeds])
    near(result, matmul(result, feeds["x"]) + W["bias"])
    assert result.kernels == Counter(DynamicQuantizeMatMul=1)


def test_readers_of_a_value_share_its_levels() -> None:
    feeds = image(3, 5, 16)
    graph = model("h = MatMul(x, a) g = MatMul(x, k) y = Concat<axis=2>(h, g)", inputs=SEQUENCE, weights=W)
    result = dynamic(graph, [feeds])
    expected = np.concatenate([matmul(result, feeds["x"], name) for name in "ak"], -1)
    near(result, expected)
    assert result.count("DynamicQuantizeLinear") == 1
    assert result.kernels["MatMulIntegerToFloat"] == 2
    assert [[site.operator for site in one.sites] for one in result.plan.dynamic] == [["h", "g"]]


def test_operators_share_a_weight() -> None:
    graph = model("h = MatMul(x, q) y = MatMul(h, q)", inputs=SEQUENCE, weights={"q": weight(16, 16)})
    result = dynamic(graph, [image(2, 3, 16)])
    assert result.sqnr > 35
    assert sum("q_quantized" in (value.name or "") for value in result.model.graph.initializers.values()) == 1
    assert not any(value.name == "q" for value in result.model.graph.initializers.values())


@pytest.mark.parametrize("scheme", ["per-tensor", "per-token"])
def test_sequences_of_any_length_and_single_rows(scheme: str) -> None:
    samples = [image(batch, length, 16, seed=length) for batch, length in ((1, 1), (2, 7), (4, 3))]
    result = dynamic(model("y = MatMul(x, a)", inputs=SEQUENCE, weights=W), samples, activation_scheme=scheme)
    for index, feeds in enumerate(samples):
        near(result, matmul(result, feeds["x"], scheme=scheme), index)


@pytest.mark.parametrize("scheme", ["per-tensor", "per-token"])
@pytest.mark.parametrize("fill", [0.0, 1.5, -2.0, 1e-39])
def test_constant_inputs(scheme: str, fill: float) -> None:
    feeds = {"x": np.full((2, 3, 16), fill, np.float32)}
    result = dynamic(model("y = MatMul(x, a)", inputs=SEQUENCE, weights=W), [feeds], activation_scheme=scheme)
    for output in (result.optimized[0][0], result.plain[0][0]):
        assert np.isfinite(output).all()
        assert np.abs(output - result.expected[0][0]).max() <= 0.02 * abs(fill) + 1e-38  # no scale is denormal


def test_rows_of_zeros_stay_zeros_beside_others() -> None:
    feeds = image(2, 4, 16)
    feeds["x"][:, 1] = 0
    feeds["x"][:, 2] *= 1e-6
    result = dynamic(model("y = MatMul(x, a)", inputs=SEQUENCE, weights=W), [feeds], activation_scheme="per-token")
    near(result, matmul(result, feeds["x"], scheme="per-token"))
    assert np.isfinite(fetch(result.model, ["x_tokens_steps"], feeds)["x_tokens_steps"]).all()  # no 0 / 0
    for output in (result.optimized[0][0], result.plain[0][0]):
        assert not output[:, 1].any()
        assert pooled_sqnr([[result.expected[0][0][:, 2]]], [[output[:, 2]]]) > 35  # a row of its own size


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.floats(-6, 6), min_size=4, max_size=4),
    st.sampled_from(["per-tensor", "per-token"]),
    st.integers(0, 2**31),
)
def test_every_output_is_within_half_a_step_of_each_operand(exponents: list[float], scheme: str, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((4, 16)) * 10.0 ** np.array(exponents)[:, None]
    x = rows.astype(np.float32)
    result = dynamic(model("y = MatMul(x, a)", inputs=ROWS, weights=W), [{"x": x}], activation_scheme=scheme)
    scale = np.asarray(per_tensor(x)[1] if scheme == "per-tensor" else per_token(x)[1], np.float64)
    column = result.entry("a").params.scale.astype(np.float64)
    error_x, error_w = np.broadcast_to(0.5 * scale, (4, 1)), 0.5 * column
    bound = error_x * np.abs(W["a"]).sum(0) + np.abs(x).sum(1, keepdims=True) * error_w + 16 * error_x * error_w
    for output in (result.optimized[0][0], result.plain[0][0]):
        exact = x.astype(np.float64) @ W["a"].astype(np.float64)
        assert (np.abs(output - exact) <= 1.01 * bound + 1e-5 * np.abs(exact).max()).all()


@pytest.mark.parametrize("scheme", ["per-tensor", "per-token"])
def test_batched_weights_take_one_scale(scheme: str) -> None:
    weights = {"m": weight(4, 16, 8)}
    graph = model("y = MatMul(x, m)", inputs="float[4,S,16] x", weights=weights)
    feeds = image(4, 5, 16)
    result = dynamic(graph, [feeds], activation_scheme=scheme)
    levels, scale = per_tensor(feeds["x"]) if scheme == "per-tensor" else per_token(feeds["x"])
    grid = result.entry("m").params
    near(result, (levels @ quantize(weights["m"], grid)) * scale.astype(np.float64) * grid.scale)
    assert "a batched MatMul takes one scale" in result.entry("m").reason


@pytest.mark.parametrize("new", [17, 18, 21])
def test_every_opset(new: int) -> None:
    feeds = image(3, 5, 16)
    graph = model("y = MatMul(x, a)", inputs=SEQUENCE, weights=W, opset=new)
    result = dynamic(graph, [feeds], activation_scheme="per-token")
    near(result, matmul(result, feeds["x"], scheme="per-token"))
    assert opset(result.model) == new


@pytest.mark.parametrize(
    "dtype",
    ["uint8", "int4", "uint4", pytest.param("int2", marks=pytest.mark.skipif(RUNTIME < (1, 24), reason="2 bits"))],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_other_types_of_weights(dtype: str, symmetric: bool) -> None:
    feeds = image(3, 5, 16)
    wanted = loads(f"version: 1\ndefaults: {{weights: {{dtype: {dtype}, symmetric: {str(symmetric).lower()}}}}}")
    result = dynamic(model("y = MatMul(x, a)", inputs=SEQUENCE, weights=W), [feeds], wanted)
    near(result, matmul(result, feeds["x"]))
    assert result.kernels["MatMul"] == 0
    assert result.kernels["Cast"] == 0


# Gemm


@pytest.mark.parametrize("scheme", ["per-tensor", "per-token"])
@pytest.mark.parametrize(
    ("call", "alpha", "beta"),
    [
        ("Gemm(x, a)", 1, 0),
        ("Gemm(x, a, bias)", 1, 1),
        ("Gemm(x, a, row)", 1, 1),
        ("Gemm(x, a, column)", 1, 1),
        ("Gemm(x, a, made)", 1, 1),
        ("Gemm<alpha=0.5, beta=-2.0>(x, a, bias)", 0.5, -2),
        ("Gemm<alpha=-0.5, beta=2.0>(x, a, made)", -0.5, 2),
        ("Gemm<transB=1>(x, t, bias)", 1, 1),
    ],
)
def test_gemm(call: str, alpha: float, beta: float, scheme: str) -> None:
    biases = {"bias": W["bias"], "row": W["bias"][None], "column": weight(3, 1), "made": np.sqrt(np.abs(W["bias"]))}
    feeds = image(3, 16)
    weights = {**W, **biases, "m": np.abs(W["bias"])}
    graph = model(f"made = Sqrt(z) y = {call}", inputs=f"{ROWS}, float[12] z", weights=weights)
    feeds["z"] = np.abs(W["bias"])
    result = dynamic(graph, [feeds], activation_scheme=scheme)
    transposed = "transB" in call
    name = "t" if transposed else "a"
    levels, scale = per_tensor(feeds["x"]) if scheme == "per-tensor" else per_token(feeds["x"])
    w, s = columns(W[name], result.entry(name).params, 0 if transposed else 1)
    expected = alpha * ((levels @ (w.T if transposed else w)).astype(np.float64) * scale * s)
    expected = expected + beta * next((biases[key] for key in biases if f" {key})" in call), 0)
    near(result, expected)
    assert result.sqnr > 30
    assert not result.kernels["Gemm"]


# Conv


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("weights", ["per-tensor", "per-channel"])
def test_conv_is_what_numpy_says(weights: str, groups: int, stride: int, pad: int) -> None:
    held = {"w": weight(6, 3 // groups, 3, 3), "b": W["b"]}
    body = f"y = Conv<pads=[{pad},{pad},{pad},{pad}], strides=[{stride},{stride}], group={groups}>(x, w, b)"
    feeds = image(2, 3, 8, 8)
    feeds["x"] += 1  # a zero point that is neither 0 nor the middle
    result = dynamic(model(body, weights=held), [feeds], Policy().override(scheme=weights))
    levels, scale = per_tensor(feeds["x"])
    w, s = columns(held["w"], result.entry("w").params, 0)
    total = conv2d(levels, w, stride=stride, pad=pad, groups=groups).astype(np.float64)
    near(result, total * scale * np.reshape(s, (1, -1, 1, 1)) + held["b"].reshape(1, -1, 1, 1))
    assert result.kernels["ConvInteger"] == 1
    assert result.sqnr > 30


def test_depthwise_pointwise_and_one_dimension() -> None:
    depthwise = dynamic(
        model("h = Conv<group=3, pads=[1,1,1,1]>(x, d) y = Conv(h, p, b)", weights={**W, "d": weight(3, 1, 3, 3)}),
        [image(2, 3, 8, 8)],
    )
    assert depthwise.sqnr > 30
    assert depthwise.kernels["ConvInteger"] == 2
    line = dynamic(
        model(
            "y = Conv<pads=[2,1], dilations=[2]>(x, l, b)", inputs="float[N,3,L] x", weights={**W, "l": weight(6, 3, 3)}
        ),
        [image(2, 3, 20), image(1, 3, 9)],
    )
    assert line.sqnr > 30
    assert line.drift > 100
    same = dynamic(model('y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w, b)', weights=W), [image(2, 3, 8, 8)])
    assert same.sqnr > 30


def test_a_conv_with_a_computed_bias() -> None:
    graph = model("c = Sqrt(z) y = Conv(x, w, c)", inputs="float[N,3,8,8] x, float[6] z", weights=W)
    result = dynamic(graph, [{**image(1, 3, 8, 8), "z": np.abs(W["b"])}])
    assert result.sqnr > 30
    assert result.drift > 100


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4"])
def test_weights_of_a_conv_have_one_zero_point(dtype: str) -> None:
    wanted = loads(f"version: 1\ndefaults: {{weights: {{dtype: {dtype}, symmetric: false}}}}")
    feeds = image(1, 3, 8, 8)
    result = dynamic(model("y = Conv(x, w)", weights=W), [feeds], wanted)
    levels, scale = per_tensor(feeds["x"])
    grid = result.entry("w").params
    near(
        result,
        conv2d(levels, np.asarray(quantize(W["w"], grid) - grid.zero_point, np.int64)) * float(scale) * grid.scale,
    )
    assert "ConvInteger takes one zero point" in result.entry("w").reason


def test_a_conv_stays_per_tensor_where_tokens_are_asked_for() -> None:
    graph = model("y = Conv(x, w) z = MatMul(x, m)", outputs="float[] y, float[] z", weights={**W, "m": weight(8, 8)})
    result = dynamic(graph, [image(1, 3, 8, 8)], activation_scheme="per-token")
    assert [(one.tensor, one.scheme) for one in result.plan.dynamic] == [("x", "per-tensor"), ("x", "per-token")]
    assert "Conv has no tokens" in result.plan.dynamic[0].reason
    assert result.sqnr > 30


# bounds


@pytest.mark.parametrize("scheme", ["per-tensor", "per-token"])
def test_ranges_stay_within_what_calibration_saw(scheme: str) -> None:
    seen = [image(2, 5, 16, seed=seed) for seed in range(3)]
    graph = model("y = MatMul(x, a)", inputs=SEQUENCE, weights=W)
    original: ir.Model = ir.from_proto(onnx.load_from_string(serialize(graph)))
    prepare(graph, seen)
    stats = statistics(graph, ["x"], seen)
    wanted = Policy().override(calibrator="minmax")
    plan = make_dynamic_plan(graph, wanted, stats, activation_scheme=scheme, bounded=True)  # type: ignore[arg-type]
    bounds = plan.dynamic[0].bounds
    assert bounds is not None
    loud, quiet = {"x": 10 * seen[0]["x"]}, {"x": seen[0]["x"] / 1e4}
    outlier = {"x": seen[1]["x"].copy()}
    outlier["x"][0, 0, 0] = 1e3
    positive = {"x": np.abs(seen[0]["x"]) + 1}
    silent = {"x": np.zeros((1, 2, 16), np.float32)}
    samples: list[Feeds] = [*seen, loud, quiet, outlier, positive, silent]
    result = executed(graph, original, plan, samples)
    w, s = columns(W["a"], result.entry("a").params, -1)
    for index, feeds in enumerate(samples):
        x = feeds["x"]
        levels, scale = bounded(x, bounds) if scheme == "per-tensor" else per_token(x, bounds.least, bounds.high)
        near(result, (levels @ w).astype(np.float64) * scale * s, index)


def test_bounds_are_those_of_the_calibrator_and_of_the_quietest_sample() -> None:
    seen: list[Feeds] = [{"x": np.linspace(-gain, 2 * gain, 32, dtype=np.float32).reshape(2, 16)} for gain in (4, 1, 2)]
    graph = model("y = MatMul(x, a)", inputs=ROWS, weights=W)
    prepare(graph, seen)
    stats, wanted = statistics(graph, ["x"], seen), Policy().override(calibrator="minmax")
    found = make_dynamic_plan(graph, wanted, stats, bounded=True).dynamic[0].bounds
    assert found == Bounds(-4, 8, 3)
    found = make_dynamic_plan(graph, wanted, stats, bounded=True, activation_scheme="per-token").dynamic[0].bounds
    assert found == Bounds(-8, 8, 2 / 256)


def test_a_bounded_conv() -> None:
    samples = [image(1, 3, 8, 8, seed=seed) for seed in range(3)]
    result = dynamic(model("y = Conv<pads=[1,1,1,1]>(x, w, b)", weights=W), samples, bounded=True)
    assert result.sqnr > 30
    assert result.drift > 100


def test_bounds_need_statistics() -> None:
    graph = model("y = MatMul(x, a)", inputs=ROWS, weights=W)
    prepare(graph, ())
    with pytest.raises(CalibrationError, match="bounded ranges need statistics"):
        make_dynamic_plan(graph, Policy(), bounded=True)
    with pytest.raises(CalibrationError, match="value 'x' has no statistics"):
        make_dynamic_plan(graph, Policy(), {}, bounded=True)
    with pytest.raises(CalibrationError, match="value 'x' held 1 NaN"):
        make_dynamic_plan(graph, Policy(), {"x": TensorStats.of(f32(1, np.nan))}, bounded=True)


# LSTM and GRU


def lstm(direction: str = "forward", attributes: str = "") -> tuple[str, dict[str, Array]]:
    count = 2 if direction == "bidirectional" else 1
    held = {
        "wi": weight(count, 32, 6, gain=2),
        "wr": weight(count, 32, 8, seed=1, gain=2),
        "wb": weight(count, 64, gain=0.3),
    }
    return f'y, h, c = LSTM<hidden_size=8, direction="{direction}"{attributes}>(x, wi, wr, wb)', held


@pytest.mark.parametrize("weights", ["per-tensor", "per-channel"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(direction: str, weights: str) -> None:
    body, held = lstm(direction)
    graph = model(body, inputs="float[S,B,6] x", outputs="float[] y, float[] h, float[] c", weights=held)
    samples = [image(5, 3, 6), image(9, 2, 6, seed=1)]
    result = dynamic(graph, samples, Policy().override(scheme=weights))
    assert result.kernels["DynamicQuantizeLSTM"] == 1
    assert result.sqnr > 28
    assert result.drift > 100
    count = len(held["wi"])
    assert result.entry("wi").params.scale.size == count * (32 if weights == "per-channel" else 1)
    assert f"{weights.replace('-', ' ')} of each direction" in result.entry("wi").reason
    assert result.plan.notes == ()


def test_an_lstm_quantizes_its_input_itself() -> None:
    body, held = lstm()
    graph = model(body, inputs="float[S,B,6] x", outputs="float[] y, float[] h", weights=held)
    result = dynamic(graph, [image(5, 3, 6)], activation_scheme="per-token", bounded=True)
    assert result.plan.dynamic == ()
    assert result.plan.notes[0].startswith("per tensor and without bounds, as their kernel quantizes what they read: y")


def test_the_weights_of_an_lstm_are_what_numpy_says() -> None:
    """With the float operator on dequantized weights, only the kernel's own activations differ."""
    body, held = lstm("bidirectional")
    inputs, outputs, samples = "float[S,B,6] x", "float[] y, float[] h, float[] c", [image(5, 3, 6)]
    result = dynamic(model(body, inputs=inputs, outputs=outputs, weights=held), samples)
    near_weights = dict(held)
    for name in ("wi", "wr"):
        scale = np.abs(held[name]).max(2, keepdims=True) / 127
        near_weights[name] = (np.rint(held[name] / scale) * scale).astype(np.float32)
    session = open_session(model(body, inputs=inputs, outputs=outputs, weights=near_weights), threads=1)
    assert pooled_sqnr([run(session, samples[0])], result.plain) > result.plain_sqnr - 1
    assert pooled_sqnr([run(session, samples[0])], result.plain) > 30


def test_an_lstm_with_states_lengths_and_unread_outputs() -> None:
    _, held = lstm()
    body = "y, h, _c = LSTM<hidden_size=8>(x, wi, wr, wb, n, h0, c0)".replace("_c", '""')
    body = body.replace(', ""', "")
    inputs = "float[S,B,6] x, int32[B] n, float[1,B,8] h0, float[1,B,8] c0"
    graph = model(body, inputs=inputs, outputs="float[] y, float[] h", weights=held)
    rng = np.random.default_rng(0)
    feeds = {**image(5, 3, 6), "n": np.array([5, 2, 4], np.int32)}
    feeds |= {name: rng.standard_normal((1, 3, 8)).astype(np.float32) for name in ("h0", "c0")}
    result = dynamic(graph, [feeds])
    assert result.kernels["DynamicQuantizeLSTM"] == 1
    assert result.sqnr > 28


@pytest.mark.parametrize(
    ("attributes", "policy", "reason"),
    [
        (", layout=1", Policy(), "batch first"),
        ("", Policy(target="generic"), "no integer kernel for LSTM"),
        ("", Policy().override(weights="uint8"), "takes symmetric int8 weights only"),
        ("", Policy().override(exclude=["LSTM"]), "left float by --exclude LSTM"),
    ],
)
def test_an_lstm_that_stays_float(attributes: str, policy: Policy, reason: str) -> None:
    body, held = lstm(attributes=attributes)
    shape = "float[B,S,6] x" if attributes else "float[S,B,6] x"
    graph = model(
        f"{body} z = MatMul(x, m)", inputs=shape, outputs="float[] z, float[] y", weights={**held, "m": weight(6, 6)}
    )
    prepare(graph, ())
    plan = make_dynamic_plan(graph, policy)
    assert [op_type for _, op_type in plan.integer] == ["MatMul"]
    assert reason in next(op.reason for op in plan.floats if op.op_type == "LSTM")


def test_gru_stays_float() -> None:
    held = {"gi": weight(1, 24, 6), "gr": weight(1, 24, 8), "m": weight(8, 4)}
    graph = model("g, h = GRU<hidden_size=8>(x, gi, gr) y = MatMul(g, m)", inputs="float[S,B,6] x", weights=held)
    result = dynamic(graph, [image(5, 3, 6)])
    assert result.kernels["GRU"] == 1
    assert result.why_float("GRU") == "dynamic mode has no integer kernel for GRU"
    assert result.integer() == ["MatMul"]


# decisions


def plan_of(body: str, *, wanted: Policy | None = None, inputs: str = ROWS, **weights: Array) -> Plan:
    graph = model(body, inputs=inputs, weights={**W, **weights})
    prepare(graph, ())
    return make_dynamic_plan(graph, wanted or Policy())


def test_what_stays_float_and_why() -> None:
    plan = plan_of(
        "h = MatMul(x, a) r = Relu(h) q = MatMul(r, c) v = MatMul(q, u) y = Gemm<transA=1>(q, d)",
        inputs=f"{ROWS}, float[12,12] c",
        u=weight(12),
        d=weight(3, 4),
    )
    assert plan.integer == (("h", "MatMul"),)
    assert {op.operator: op.reason for op in plan.floats} == {
        "r": "dynamic mode has no integer kernel for Relu",
        "q": "its weight is not constant",
        "v": "its weight is a vector",
        "y": "its input is transposed (transA): its rows are no tokens",
    }


def test_rules_decide() -> None:
    wanted = loads(
        "version: 1\nrules:\n"
        "- {match: {names: [h]}, float: true}\n"
        "- {match: {names: [y]}, weights: {scheme: per-tensor}}\n"
    )
    plan = plan_of("h = MatMul(x, q) y = MatMul(h, q)", wanted=wanted, q=weight(16, 16))
    assert plan.integer == (("y", "MatMul"),)
    assert plan.floats[0].chosen
    assert plan.floats[0].reason.startswith("left float by rules[0]")
    assert plan.entries[0].params.scale.shape == ()
    with pytest.raises(PolicyError, match="nothing"):
        plan_of("y = MatMul(x, a)", wanted=Policy().override(exclude=["nothing"]))


def test_a_weight_with_two_grids_is_stored_twice() -> None:
    wanted = loads("version: 1\nrules: [{match: {names: [y]}, weights: {scheme: per-tensor}}]")
    graph = model("h = MatMul(x, q) y = MatMul(h, q)", inputs=ROWS, weights={"q": weight(16, 16)})
    result = dynamic(graph, [image(4, 16)], wanted)
    assert [entry.params.scale.shape for entry in result.plan.entries] == [(16,), ()]
    assert sum("q_quantized" in (value.name or "") for value in result.model.graph.initializers.values()) == 2
    assert result.sqnr > 30
    assert result.drift > 60


def test_subgraphs_stay_float() -> None:
    branch = "{op} = If(c) <then_branch = t () => (float[N,12] p) {{ p = MatMul(x, a) }}, "
    branch += "else_branch = e () => (float[N,12] r) {{ r = MatMul(x, o) }}>"
    body = "y = MatMul(x, a) " + branch.format(op="z")
    graph = model(
        body, inputs=f"{ROWS}, bool c", outputs="float[] y, float[] z", weights={**W, "o": weight(16, 12, seed=3)}
    )
    result = dynamic(graph, [{**image(3, 16), "c": np.array(flag)} for flag in (True, False)])
    assert result.integer() == ["MatMul"]
    assert all("inside If" in op.reason for op in result.plan.floats if op.operator in {"p", "r"})
    assert sum(op.op_type == "MatMul" for op in result.plan.floats) == 2
    assert result.sqnr > 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: tensorrt", "target tensorrt has no operators"),
        ("defaults: {weights: {dtype: int16}}", "weights.dtype: dynamic mode takes at most 8 bits, not int16"),
        ("defaults: {weights: {scheme: per-group}}", "integer products have no scale for each group"),
        ("defaults: {activations: {dtype: int8}}", "per-tensor activations are uint8, not int8"),
        ("rules: [{match: {names: [y]}, activations: {dtype: uint16}}]", "are uint8, not uint16"),
        ("defaults: {activations: {symmetric: true}}", "per-tensor activations are asymmetric"),
        ("defaults: {bias: int32}", "biases are added in float"),
    ],
)
def test_what_the_mode_does_not_take(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message.replace(".", r"\.")) as caught:
        plan_of("y = MatMul(x, a)", wanted=loads(f"version: 1\n{text}"))
    assert caught.value.hint


def test_tokens_are_symmetric_int8() -> None:
    graph = model("y = MatMul(x, a)", inputs=ROWS, weights=W)
    prepare(graph, ())
    wanted = loads("version: 1\ndefaults: {activations: {dtype: int8, symmetric: true}}")
    assert make_dynamic_plan(graph, wanted, activation_scheme="per-token").dynamic
    with pytest.raises(TargetError, match="per-token activations are symmetric"):
        make_dynamic_plan(
            graph, loads("version: 1\ndefaults: {activations: {symmetric: false}}"), activation_scheme="per-token"
        )


def test_nothing_to_quantize_and_bad_weights() -> None:
    with pytest.raises(PlanError, match="nothing to quantize"):
        plan_of("y = Relu(x)")
    with pytest.raises(PlanError, match="weight 'n' holds NaN or Inf"):
        plan_of("y = MatMul(x, n)", n=np.full((16, 4), np.nan, np.float32))


def test_a_plan_of_another_graph_is_refused() -> None:
    graph = model("y = MatMul(x, a)", inputs=ROWS, weights=W)
    prepare(graph, ())
    plan = make_dynamic_plan(graph, Policy())
    for broken, message in (
        (replace(plan, integer=(("z", "MatMul"),)), "operator 'z'"),
        (replace(plan, entries=()), "no grid for the weight of operator 'y'"),
        (replace(plan, dynamic=()), "no grid for the input of operator 'y'"),
    ):
        with pytest.raises(PlanError, match=message):
            to_dynamic(graph.clone(), broken)


def test_same_input_same_bytes() -> None:
    def written() -> bytes:
        graph = model(
            "h = MatMul(x, a) y = Gemm<transB=1>(x, t, bias)", inputs=ROWS, outputs="float[] y, float[] h", weights=W
        )
        prepare(graph, ())
        return serialize(to_dynamic(graph, make_dynamic_plan(graph, Policy(), activation_scheme="per-token")))

    assert written() == written()


@pytest.mark.parametrize("scheme", ["per-tensor", "per-token"])
def test_the_census_counts_integer_kernels(scheme: str, tmp_path: Path) -> None:
    body, held = lstm()
    graph = model(
        f"{body} z = MatMul(x, m) k = Conv(x, l)",
        inputs="float[S,B,6] x",
        outputs="float[] y, float[] z, float[] k",
        weights={**held, "m": weight(6, 6), "l": weight(3, 4, 3)},
    )
    graph.graph.inputs[0].shape = ir.Shape(["S", 4, 6])
    prepare(graph, ())
    to_dynamic(graph, make_dynamic_plan(graph, Policy(), activation_scheme=scheme))  # type: ignore[arg-type]
    write_model(graph, tmp_path / "d.onnx")
    found = census(tmp_path / "d.onnx")
    assert {kernel.op_type for kernel in found} <= {
        "DynamicQuantizeLSTM",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
    }
    assert len(found) == 3
    assert all(kernel.integer for kernel in found)


# whole models


def digits(part: str, count: int) -> list[Feeds]:
    paths = sorted((DIGITS / "digits" / part).rglob("*.png"))
    images = [Image.open(path).convert("L").resize((32, 32)) for path in paths[:: len(paths) // count][:count]]
    return [{"image": (np.asarray(one, np.float32) / 255)[None, None]} for one in images]


@pytest.mark.parametrize("how", ["per-tensor", "per-token", "bounded"])
@pytest.mark.parametrize(("name", "least"), [("digits_vit", 36), ("digits_gru", 36), ("digits_cnn", 30)])
def test_sample_models(name: str, least: float, how: str) -> None:
    options = {"bounded": True} if how == "bounded" else {"activation_scheme": how}
    wanted = Policy().override(calibrator="minmax")
    result = dynamic(load_model(DIGITS / name / "model.onnx"), digits("calibration", 12), wanted, **options)
    assert result.sqnr > least
    assert result.drift > 60
    labels = [[row[0].argmax(-1).tolist() for row in rows] for rows in (result.expected, result.optimized)]
    assert labels[0] == labels[1]


def bench_samples(name: str) -> list[Feeds]:
    if name == "mobilenetv2_tv":
        paths = sorted((BENCH / "data" / "imagenet" / "eval").glob("*.jpg"))[:6]
        pixels = [np.asarray(Image.open(path).convert("RGB").resize((224, 224)), np.float32) / 255 for path in paths]
        scaled = [(one - f32(0.485, 0.456, 0.406)) / f32(0.229, 0.224, 0.225) for one in pixels]
        return [{"input": one.transpose(2, 0, 1)[None]} for one in scaled]
    if name == "silero_vad_16k_op15":
        held = np.load(BENCH / "data" / "silero" / "eval.npz")
        return [{key: np.asarray(held[key][index]) for key in held.files} for index in range(40)]
    held = np.load(BENCH / "data" / "stories260k" / "eval.npz")
    return [{"ids": held["x"][index : index + 1]} for index in range(16)]


@pytest.mark.bench
@pytest.mark.skipif(not BENCH.is_dir(), reason="no models beside the repository")
@pytest.mark.parametrize("name", ["silero_vad_16k_op15", "stories260k", "mobilenetv2_tv"])
def test_at_least_as_good_as_quantize_dynamic(name: str, tmp_path: Path) -> None:
    path, samples = BENCH / "models" / f"{name}.onnx", bench_samples(name)
    ours = dynamic(load_model(path), samples)
    tokens = dynamic(load_model(path), samples, activation_scheme="per-token")
    quantize_dynamic(str(path), str(tmp_path / "ort.onnx"), per_channel=True, weight_type=QuantType.QInt8)
    session = open_session(tmp_path / "ort.onnx", threads=1)
    theirs = pooled_sqnr(ours.expected, [run(session, feeds) for feeds in samples])
    assert ours.sqnr >= theirs
    assert tokens.sqnr >= ours.sqnr - 0.1
