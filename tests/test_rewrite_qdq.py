"""Plans carried out: the file loads, computes what the float model does, and runs on integers where it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.errors import PlanError, PolicyError, TargetError
from qconvert.graph import load_model, opset, serialize, shape_of, write_model
from qconvert.numerics import QuantParams, fake_quantize
from qconvert.plan import candidate_values, make_placement, make_plan
from qconvert.policy import Policy
from qconvert.prepare import prepare, raise_opset
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.session import open_session, run
from qconvert.targets import TARGETS
from tests.models import (
    NEWEST_OPSET,
    RUNTIME,
    Array,
    Feeds,
    Result,
    f32,
    fetch,
    i64,
    image,
    images,
    model,
    planned,
    policy,
    pooled_sqnr,
    quantized,
    statistics,
    weight,
)
from tests.test_placement import (
    ATTENTION,
    ATTENTION_WEIGHTS,
    BENCH,
    CONV,
    GRID,
    PAIR,
    RESIDUAL,
    SAMPLES,
    WEIGHT_GRID,
    W,
)

ROWS = {"a": weight(16, 16), "b": weight(16, 16, seed=1), "bias": weight(16, gain=0.3)}


def rows(*shape: int, count: int = 3) -> list[Feeds]:
    return images(*shape, count=count)


def good(result: Result, *, least: float = 25, drift: float = 30) -> Result:
    """Both ways of running the file agree with each other and with the float model."""
    assert result.sqnr > least
    assert result.plain_sqnr > least
    assert result.drift > drift
    return result


def integer_convs(result: Result) -> int:
    return result.kernels["QLinearConv"]


# against arithmetic written out here


def conv1x1(x: Array, w: Array, b: Array | float = 0.0) -> Array:
    y: Array = np.einsum("nchw,oc->nohw", x.astype(np.float64), w[:, :, 0, 0].astype(np.float64))
    y += np.reshape(b, (1, -1, 1, 1))
    return y


def test_conv_relu_conv_is_what_numpy_says() -> None:
    weights = {"w": weight(8, 3, 1, 1), "b": weight(8, gain=0.3), "k": weight(4, 8, 1, 1)}
    graph = model("h = Conv(x, w, b) r = Relu(h) y = Conv(r, k)", weights=weights)
    feeds = image()
    result = good(quantized(graph, [feeds]))

    def grid(tensor: str) -> QuantParams:
        return result.entry(tensor).params

    x = fake_quantize(feeds["x"], grid("x"))
    w, k = fake_quantize(weights["w"], grid("w")), fake_quantize(weights["k"], grid("k"))
    assert np.allclose(grid("b").scale, grid("x").scale * grid("w").scale)
    b = fake_quantize(weights["b"], grid("b"))
    r = fake_quantize(conv1x1(x, w, b).astype(np.float32), grid("r"))
    y = fake_quantize(conv1x1(r, k).astype(np.float32), grid("y"))
    for output in (result.plain, result.optimized):
        assert np.abs(output[0][0] - y).max() <= 1.001 * grid("y").scale
        assert (output[0][0] == y).mean() > 0.99


def test_matmul_is_what_numpy_says() -> None:
    graph = model("h = MatMul(x, a) y = Add(h, bias)", inputs="float[2,16] x", weights=ROWS)
    feeds = image(2, 16)
    result = good(quantized(graph, [feeds]))
    x, a = fake_quantize(feeds["x"], result.entry("x").params), fake_quantize(ROWS["a"], result.entry("a").params)
    assert np.allclose(result.optimized[0][0], x @ a + ROWS["bias"], atol=1e-4)
    assert result.kernels["QGemm"] == 1


# shared, renamed and public tensors


def test_weight_shared_by_two_convs() -> None:
    result = good(quantized(model("h = Conv(x, c) y = Conv(h, c)", weights={"c": weight(3, 3, 3, 3)}), images()))
    assert integer_convs(result) == 2
    assert len(result.plan.of("weight")) == 1
    assert sum(value.name == "c_quantized" for value in result.model.graph.initializers.values()) == 1


def test_weight_shared_by_a_matmul_and_an_embedding() -> None:
    graph = model(
        "e = Gather(table, ids) t = Transpose<perm=[1,0]>(table) h = MatMul(e, table) y = MatMul(h, table)",
        inputs="int64[5] ids",
        weights={"table": weight(16, 16)},
    )
    result = good(quantized(graph, [{"ids": i64(0, 3, 5, 7, 15)}]))
    assert result.integer() == ["MatMul", "MatMul"]
    assert "table" in result.model.graph.initializers


def test_tensors_that_have_our_names_already() -> None:
    graph = model(
        f"x_quantized {CONV}(x, w) x_dequantized = Relu(x_quantized) x_zero_point {CONV}(x_dequantized, a) "
        f"y_float = Add(x_zero_point, x_scale) y {CONV}(y_float, w_quantized)",
        inputs="float[1,3,8,8] x, float[1,8,8,8] x_scale",
        weights=W | {"w_quantized": W["b"]},
    )
    samples = [{**image(1, 3, 8, 8, seed=seed), "x_scale": image(1, 8, 8, 8, seed=seed)["x"]} for seed in range(3)]
    result = good(quantized(graph, samples))
    assert integer_convs(result) == 3
    assert [value.name for value in result.model.graph.outputs] == ["y"]


def test_a_weight_that_is_an_output() -> None:
    graph = model(f"y {CONV}(x, w)", outputs="float[] y, float[8,3,3,3] w", weights=W)
    result = good(quantized(graph, images()))
    assert integer_convs(result) == 1
    assert np.array_equal(result.optimized[0][1], W["w"])


def test_an_activation_that_is_an_output_and_an_input() -> None:
    graph = model(f"h {CONV}(x, w) y {CONV}(h, a)", outputs="float[] h, float[] y", weights=W)
    result = good(quantized(graph, images()))
    assert integer_convs(result) == 2


def test_one_bias_with_two_input_scales() -> None:
    graph = model(f"h {CONV}(x, w, bias) k {CONV}(h, a, bias) y = Add(h, k)", weights=W | {"bias": weight(8)})
    result = good(quantized(graph, images()))
    assert integer_convs(result) == 2
    first, second = result.plan.of("bias")
    assert first.tensor == second.tensor == "bias"
    assert first.params != second.params


def test_duplicated_node_names_become_unique() -> None:
    """onnxruntime refuses a file with two nodes of one name, so only the graph can be tried."""

    def built() -> ir.Model:
        graph = model(f"h {CONV}(x, w) r = Relu(h) k {CONV}(r, a) y {CONV}(k, b)", weights=W)
        prepare(graph, ())
        return graph

    plan, graph = planned(built(), images()), built()
    for node in graph.graph:
        node.name = "same"
    to_qdq(graph, plan)
    open_session(graph)


def test_input_that_is_an_output() -> None:
    graph = model(f"y {CONV}(x, w)", outputs="float[] y, float[N,3,8,8] x", weights=W)
    result = good(quantized(graph, images()))
    assert np.array_equal(result.optimized[0][1], result.expected[0][1])


def test_several_inputs_with_dynamic_axes() -> None:
    graph = model(
        f"h {CONV}(x, w) k {CONV}(z, v) s = Add(h, k) y {CONV}(s, a)",
        inputs="float[N,3,H,W] x, float[N,3,H,W] z",
        weights=W | {"v": weight(8, 3, 3, 3, seed=1)},
    )
    samples = [{"x": image(n, 3, 7, 5, seed=n)["x"], "z": image(n, 3, 7, 5, seed=9)["x"]} for n in (1, 2, 3)]
    result = good(quantized(graph, samples))
    assert result.kernels["QLinearAdd"] == 1


def test_branches_read_quantized_values_or_float_ones() -> None:
    then = f"then_branch = t () => (float[] o) {{ o {CONV}(h, a) }}"
    graph = model(
        f"h {CONV}(x, w) chosen = If(flag) <{then}, else_branch = e () => (float[] o) {{ o = Relu(h) }}> "
        f"y {CONV}(chosen, b)",
        inputs="float[N,3,8,8] x, bool flag",
        weights=W,
    )
    result = good(quantized(graph, [{**image(seed=seed), "flag": np.array(seed % 2 == 0)} for seed in range(4)]))
    assert integer_convs(result) == 2


def test_names_shared_by_the_branches_of_a_partly_quantized_model() -> None:
    then = f"then_branch = t () => (float[] o) {{ g {CONV}(k, a) o = Neg(g) }}"
    other = f"else_branch = e () => (float[] o) {{ g {CONV}(k, b) o = Neg(g) }}"
    graph = model(
        f"{PAIR.format('x')} k {CONV}(x, c) chosen = If(flag) <{then}, {other}> y = Add(chosen, xd)",
        inputs="float[N,8,8,8] x, bool flag",
        weights=W | GRID,
    )
    result = good(quantized(graph, [{**image(1, 8, 8, 8), "flag": np.array(flag)} for flag in (True, False)]))
    assert {site.operator for site in result.entry("k").sites} == {"g", "g_2"}


# clamps


@pytest.mark.parametrize(("target", "kept"), [("ort-cpu", 0), ("generic", 1), ("tensorrt", 1)])
@pytest.mark.parametrize("clamp", ["Relu", "Clip"])
def test_clamps_are_absorbed_where_the_target_wants_it(clamp: str, target: str, kept: int) -> None:
    body = {"Relu": "Relu(h)", "Clip": "Clip(h, zero, six)"}[clamp]
    bounds = {"zero": f32(0).reshape(()), "six": f32(6).reshape(())}
    graph = model(f"h {CONV}(x, w) r = {body} y {CONV}(r, a)", weights=W | bounds)
    result = good(quantized(graph, images(), policy(target=target)))
    assert result.count(clamp) == kept
    assert len(result.plan.absorbed) == 1 - kept
    assert integer_convs(result) == (0 if target == "tensorrt" else 2)


@pytest.mark.parametrize("narrow", ["false", "true"])
@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize(("low", "high"), [(0, 6), (-1, 1), (-0.5, 0.5), (-0.3, 0.1)])
def test_clips_with_any_bounds(low: float, high: float, activations: str, narrow: str) -> None:
    bounds = {"low": f32(low).reshape(()), "high": f32(high).reshape(())}
    graph = model(f"h {CONV}(x, w) r = Clip(h, low, high) y {CONV}(r, a)", weights=W | bounds)
    text = f"defaults:\n  activations: {{dtype: {activations}, narrow_range: {narrow}}}"
    result = good(quantized(graph, images(), policy(text)))
    absorbed = activations == "uint8" or narrow == "false"
    assert integer_convs(result) == (2 if absorbed else 1)
    assert result.count("Clip") == (0 if absorbed else 1)


def test_symmetric_int8_keeps_the_relu() -> None:
    graph = model(f"h {CONV}(x, w) r = Relu(h) y {CONV}(r, a)", weights=W)
    result = good(quantized(graph, images(), policy("defaults:\n  activations: {dtype: int8, symmetric: true}")))
    assert result.count("Relu") == 1


# operators


def test_residual_blocks_run_on_integers() -> None:
    result = good(quantized(model(RESIDUAL, weights=W), images()))
    assert result.kernels["QLinearAdd"] == 1
    assert integer_convs(result) == 3
    assert not result.kernels["Relu"]


def test_depthwise_conv_per_channel() -> None:
    graph = model(
        "h = Conv<group=3, pads=[1,1,1,1]>(x, w, b) y = Conv(h, k)",
        weights={"w": weight(6, 1, 3, 3), "b": weight(6), "k": weight(4, 6, 1, 1)},
    )
    result = good(quantized(graph, images()))
    assert integer_convs(result) == 2
    assert result.entry("w").params.scale.shape == (6,)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(group: int, target: str) -> None:
    graph = model(
        f"h {CONV}(x, w) t = ConvTranspose<group={group}, strides=[2,2]>(h, k, b) y {CONV}(t, a)",
        weights=W | {"k": weight(8, 8 // group, 2, 2), "b": weight(8)},
    )
    result = good(quantized(graph, images(), policy(target=target)))
    assert ("ConvTranspose" in result.integer()) == (target != "ort-cpu")
    if target == "generic":
        assert result.entry("k").params.scale.shape == (8 // group,)
        assert result.entry("b").params.scale.shape == (8,)


@pytest.mark.parametrize("bias", ["", "bias", "one", "row", "matrix"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int, bias: str) -> None:
    biases = {"one": f32(0.3), "row": weight(1, 16), "matrix": weight(2, 16, seed=3), "bias": ROWS["bias"]}
    operands = f"x, a, {bias}" if bias else "x, a"
    graph = model(
        f"h = Gemm<transB={transposed}>({operands}) r = Relu(h) y = Gemm(r, b, bias)",
        inputs="float[2,16] x",
        weights=ROWS | biases,
    )
    result = good(quantized(graph, rows(2, 16)))
    assert result.kernels["QGemm"] == 2
    assert result.entry("a").params.axis == (None if bias in {"one", "matrix"} else 1 - transposed)


@pytest.mark.parametrize(
    ("first", "kernels"),
    [("Gemm<beta=0.5>(x, a, bias)", 1), ("Gemm<alpha=0.5>(x, a, bias)", 1), ("Gemm<alpha=0.5>(x, a)", 2)],
)
def test_gemm_with_factors(first: str, kernels: int) -> None:
    graph = model(f"h = {first} y = Gemm(h, b, bias)", inputs="float[2,16] x", weights=ROWS)
    result = good(quantized(graph, rows(2, 16)))
    assert result.kernels["QGemm"] == len(result.integer()) == kernels


@pytest.mark.parametrize("clamp", ["Relu", "Identity", "Tanh"])
@pytest.mark.parametrize(("dims", "fused"), [("2,16", True), ("N,16", True), ("1,2,16", True), ("N,2,16", False)])
def test_matmul_with_a_bias(dims: str, fused: bool, clamp: str) -> None:
    """onnxruntime makes a Gemm of MatMul and Add where shapes are static: integer only with an int32 bias."""
    graph = model(
        f"h = MatMul(x, a) k = Add(bias, h) r = {clamp}(k) y = MatMul(r, b)", inputs=f"float[{dims}] x", weights=ROWS
    )
    result = good(quantized(graph, rows(2, 16) if dims.count(",") == 1 else rows(1, 2, 16)))
    assert len(result.plan.of("bias")) == fused
    kernels = result.kernels
    assert kernels["QGemm"] + kernels["MatMulIntegerToFloat"] + kernels["QLinearMatMul"] == 2
    assert not kernels["Gemm"] + kernels["MatMul"]


def test_batched_matmul_with_a_constant_takes_one_scale() -> None:
    graph = model("y = MatMul(x, k)", inputs="float[3,4,16] x", weights={"k": weight(3, 16, 5)})
    result = good(quantized(graph, rows(3, 4, 16)))
    assert result.entry("k").params.axis is None
    assert result.kernels["MatMulIntegerToFloat"] == 1


def test_matmul_with_the_constant_first() -> None:
    graph = model("h = MatMul(a, x) y = MatMul(h, b)", inputs="float[16,16] x", weights=ROWS)
    result = good(quantized(graph, rows(16, 16)))
    assert result.integer() == ["MatMul", "MatMul"]


def test_matmul_by_a_vector() -> None:
    graph = model("h = MatMul(x, a) y = MatMul(h, v)", inputs="float[4,16] x", weights=ROWS | {"v": weight(16)})
    good(quantized(graph, rows(4, 16)))


def test_matmul_of_two_activations() -> None:
    graph = model(
        "p = MatMul(x, a) q = MatMul(x, b) t = Transpose<perm=[1,0]>(q) y = MatMul(p, t)",
        inputs="float[4,16] x",
        weights=ROWS,
    )
    result = good(quantized(graph, rows(4, 16)))
    assert result.kernels["QLinearMatMul"] == 2
    assert result.kernels["MatMulIntegerToFloat"] == 1


def test_attention_runs_on_integers() -> None:
    graph = model(ATTENTION, inputs="float[1,9,16] x", weights=ATTENTION_WEIGHTS)
    result = good(quantized(graph, rows(1, 9, 16)))
    heavy = sum(result.kernels[kind] for kind in ("QLinearMatMul", "MatMulIntegerToFloat", "QGemm"))
    assert heavy == 8
    assert not result.kernels["MatMul"] + result.kernels["Gemm"]


@pytest.mark.parametrize("gate", ["Sigmoid", "HardSigmoid"])
def test_squeeze_and_excite(gate: str) -> None:
    graph = model(
        f"h {CONV}(x, w) g = GlobalAveragePool(h) s = Conv(g, p) r = Relu(s) e = Conv(r, p) "
        f"t = {gate}(e) m = Mul(h, t) y {CONV}(m, a)",
        weights=W,
    )
    result = good(quantized(graph, images()))
    assert integer_convs(result) == 4
    assert result.kernels["QLinearMul"] == 1
    assert result.entry("t").params.high == pytest.approx(1.0, rel=1e-5)
    assert result.entry("t").method == f"range of {gate}"


def test_silu_runs_on_integers() -> None:
    graph = model(f"h {CONV}(x, w) s = Sigmoid(h) m = Mul(h, s) y {CONV}(m, a)", weights=W)
    result = good(quantized(graph, images()))
    assert (integer_convs(result), result.kernels["QLinearSigmoid"], result.kernels["QLinearMul"]) == (2, 1, 1)


def test_written_out_hard_swish() -> None:
    constants = {"three": f32(3).reshape(()), "zero": f32(0).reshape(()), "six": f32(6).reshape(())}
    graph = model(
        f"h {CONV}(x, w) e = Add(h, three) f = Clip(e, zero, six) m = Mul(h, f) g = Div(m, six) y {CONV}(g, a)",
        weights=W | constants,
    )
    result = good(quantized(graph, images()))
    assert integer_convs(result) == 2


def test_channels_near_zero_leave_room_for_the_bias() -> None:
    w = W["w"].copy()
    w[0], w[1], w[2] = 0.0, 1e-38, 1e-9
    bias = f32(1000, -300, 20, 0, 0, 0, 0, 0)
    graph = model(f"h {CONV}(x, w, bias) y {CONV}(h, a)", weights=W | {"w": w, "bias": bias})
    result = good(quantized(graph, images()))
    assert np.isfinite(result.entry("bias").params.scale).all()
    levels = bias / result.entry("bias").params.scale
    assert np.abs(levels).max() < 1.001 * 2**30
    assert integer_convs(result) == 2


def test_an_activation_that_is_always_zero() -> None:
    graph = model(
        f"h {CONV}(x, w, low) r = Relu(h) k {CONV}(r, a, bias) l {CONV}(x, w) y = Add(k, l)",
        weights=W | {"low": f32(*[-99.0] * 8), "bias": weight(8)},
    )
    result = good(quantized(graph, images()), least=20)
    assert result.entry("r").params.scale == 1


@pytest.mark.parametrize("start", [7, 9, 11, 12, 13, 18, 21, NEWEST_OPSET - 2, NEWEST_OPSET])
def test_every_opset(start: int) -> None:
    graph = model(
        f"h {CONV}(x, w) r = Relu(h) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) e = Dropout(m) y {CONV}(e, a)",
        opset=start,
        weights=W,
    )
    result = good(quantized(graph, images()))
    assert opset(result.model) == max(start, 13)
    assert integer_convs(result) == 2


def test_float16_models_keep_their_inputs_and_outputs() -> None:
    graph = model(
        f"h {CONV}(x, w) r = Relu(h) y {CONV}(r, a)",
        inputs="float16[N,3,8,8] x",
        outputs="float16[] y",
        weights={name: W[name].astype(np.float16) for name in ("w", "a")},
    )
    samples = [{"x": feeds["x"].astype(np.float16)} for feeds in images()]
    result = good(quantized(graph, samples))
    assert integer_convs(result) == 2


def test_functions_and_contrib_operators() -> None:
    functions = '<domain: "local", opset_import: ["": 17]> block (p, k) => (c) { t = MatMul(p, k) c = Tanh(t) }'
    graph = model(
        "h = local.block(x, a) g = com.microsoft.Gelu(h) y = MatMul(g, b)",
        inputs="float[2,16] x",
        weights=ROWS,
        domains=["local", "com.microsoft"],
        functions=functions,
    )
    result = good(quantized(graph, rows(2, 16)))
    assert result.kernels["MatMulIntegerToFloat"] == 2


def test_the_rest_of_a_partly_quantized_model_is_quantized_once() -> None:
    graph = model(
        f"k {CONV}(x, w) {PAIR.format('k')} ad = DequantizeLinear(aq, ws, wz) h {CONV}(kd, ad) {PAIR.format('h')} "
        f"y {CONV}(hd, b)",
        weights=W | GRID | WEIGHT_GRID,
    )
    result = good(quantized(graph, images()))
    assert result.count("QuantizeLinear") == 3
    assert integer_convs(result) == 2


def test_external_weights(tmp_path: Path) -> None:
    ir.save(model(RESIDUAL, weights=W), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    graph = load_model(tmp_path / "m.onnx")
    prepare(graph, images())
    to_qdq(graph, planned(graph, images()))
    write_model(graph, tmp_path / "q.onnx")
    expected = [run(open_session(tmp_path / "m.onnx"), feeds) for feeds in images()]
    (tmp_path / "m.data").unlink()
    assert pooled_sqnr(expected, [run(open_session(tmp_path / "q.onnx"), feeds) for feeds in images()]) > 25


# dtypes


CHAIN = f"h {CONV}(x, w, bias) r = Relu(h) y {CONV}(r, a)"


def chain(text: str, *, target: str = "ort-cpu") -> Result:
    return quantized(model(CHAIN, weights=W | {"bias": weight(8)}), images(), policy(text, target=target))


def test_int4_weights_reach_integer_kernels_behind_a_cast() -> None:
    result = chain("defaults:\n  weights: {dtype: int4}")
    assert result.drift > 30
    assert result.sqnr > 10
    assert (integer_convs(result), result.count("Cast"), opset(result.model)) == (2, 2, 21)
    assert result.model.graph.initializers["w_quantized"].dtype == ir.DataType.INT4


def test_int4_weights_are_dequantized_directly_elsewhere() -> None:
    result = chain("defaults:\n  weights: {dtype: int4}", target="generic")
    assert result.sqnr > 10
    assert result.count("Cast") == 0


@pytest.mark.parametrize(
    "text", ["weights: {dtype: int16}", "activations: {dtype: uint16}", "activations: {dtype: int16}"]
)
def test_sixteen_bits_raise_the_opset(text: str) -> None:
    result = chain(f"defaults:\n  {text}")
    assert opset(result.model) == 21
    assert result.sqnr > 33


def test_sixteen_bits_everywhere_are_nearly_exact() -> None:
    assert chain("defaults:\n  weights: {dtype: int16}\n  activations: {dtype: uint16}").sqnr > 80


@pytest.mark.skipif(RUNTIME < (1, 28), reason="this onnxruntime takes one zero point for all channels")
@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_asymmetric_weights(activations: str) -> None:
    text = f"defaults:\n  weights: {{dtype: uint8, symmetric: false}}\n  activations: {{dtype: {activations}}}"
    result = chain(text)
    assert result.sqnr > 25
    assert result.plain_sqnr > 25


def test_one_scale_for_a_weight() -> None:
    result = good(chain("defaults:\n  weights: {scheme: per-tensor}"))
    assert result.entry("w").params.scale.shape == ()
    assert result.entry("bias").params.scale.shape == ()
    assert integer_convs(result) == 2


@pytest.mark.parametrize(("narrow", "lowest"), [("true", -127), ("false", -128)])
def test_narrow_range(narrow: str, lowest: int) -> None:
    result = good(chain(f"defaults:\n  weights: {{narrow_range: {narrow}}}"))
    assert result.entry("w").params.qmin == lowest


def test_float_bias() -> None:
    result = chain("defaults:\n  bias: float")
    assert not result.plan.of("bias")
    assert result.sqnr > 25


def test_a_rule_for_one_operator() -> None:
    text = (
        "rules:\n  - match: {names: [h]}\n    weights: {scheme: per-tensor}\n    activations: {calibrator: {method: "
        "percentile, percentile: 99.0}}\n  - match: {position: last}\n    float: true"
    )
    result = chain(text)
    assert result.entry("r").method == "percentile"
    assert "rules[0]" in result.entry("r").reason
    assert result.entry("w").params.axis is None
    assert result.plan.floats[0].reason.startswith("left float by rules[1]")


def test_a_target_refuses_what_it_cannot_take() -> None:
    for text in (
        "weights: {dtype: uint8}",
        "activations: {dtype: uint8}",
        "activations: {symmetric: false}",
        "bias: int32",
    ):
        with pytest.raises(TargetError, match="target tensorrt takes"):
            chain(f"defaults:\n  {text}", target="tensorrt")


def test_a_rule_that_matches_nothing_is_refused() -> None:
    with pytest.raises(PolicyError, match="match no operator"):
        chain("rules:\n  - match: {names: ['nowhere*']}\n    float: true")


# TensorRT


def test_tensorrt_form() -> None:
    graph = model(
        RESIDUAL.replace("h = Conv<pads=[1,1,1,1]>(x, w)", "h = Conv<pads=[1,1,1,1]>(x, w, bias)"),
        weights=W | {"bias": weight(8)},
    )
    result = good(quantized(graph, images(), policy(target="tensorrt")))
    assert all((entry.params.zero_point == 0).all() for entry in result.plan.entries)
    assert {entry.params.dtype.name for entry in result.plan.entries} == {"int8"}
    assert not result.plan.of("bias")
    assert result.count("Relu") == 2
    before = [node.inputs[0] for node in result.model.graph if node.op_type == "QuantizeLinear"]
    makers = [value.producer() for value in before if value is not None]
    assert {maker.op_type for maker in makers if maker is not None} == {"Relu"}


# the writer


def test_the_same_plan_gives_the_same_bytes() -> None:
    def written() -> bytes:
        graph = model(RESIDUAL, weights=W)
        prepare(graph, images())
        return serialize(to_qdq(graph, planned(graph, images())))

    assert written() == written()


def test_a_plan_of_another_graph_is_refused() -> None:
    graph = model(CHAIN, weights=W | {"bias": weight(8)})
    prepare(graph, images())
    plan = planned(graph, images())
    other = model(CHAIN.replace("r =", "q =").replace("(r, a)", "(q, a)"), weights=W | {"bias": weight(8)})
    with pytest.raises(PlanError, match="which the graph does not have"):
        to_qdq(other, plan)


def test_needed_opset() -> None:
    graph = model(CHAIN, weights=W | {"bias": weight(8)})
    prepare(graph, ())
    _, table, target = make_placement(graph, Policy())
    stats = statistics(graph, candidate_values(graph, table, target), images())
    assert needed_opset(make_plan(graph, Policy(), stats)) == 13
    wide = make_plan(graph, policy("defaults:\n  weights: {dtype: int4}"), stats)
    assert needed_opset(wide) == 21
    raise_opset(graph, 21)
    assert fetch(graph, ["r"], image())["r"].shape == (1, 8, 8, 8)


# real models

FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "MatMul", "FusedGemm", "FusedMatMul")
KERNELS = {
    "digits_cnn": {"QLinearConv": 17, "QGemm": 1, "QLinearAdd": 3, "QLinearGlobalAveragePool": 1},
    "digits_gru": {"QGemm": 1},
    "digits_vit": {"QLinearConv": 1, "QGemm": 1, "MatMulIntegerToFloat": 21, "QLinearMatMul": 3},
    "cifar_resnet20_bn": {"QLinearConv": 19, "QGemm": 1, "QLinearAdd": 9},
    "mobilenetv2_tv": {"QLinearConv": 52, "QGemm": 1, "QLinearAdd": 10, "QLinearGlobalAveragePool": 1},
    "ultraface_rfb320": {"QLinearConv": 52, "QLinearAdd": 1, "QLinearConcat": 1},
    "stories260k": {"QLinearMatMul": 10, "MatMulIntegerToFloat": 36},
}


def model_name(path: Path) -> str:
    return path.parent.name if path.name == "model.onnx" else path.stem


def plausible(graph: ir.Model) -> Feeds:
    """One sample of the shapes and types that a model wants."""
    rng = np.random.default_rng(0)
    feeds: Feeds = {}
    for value in (value for value in graph.graph.inputs if value.name not in graph.graph.initializers):
        shape = [size if isinstance(size, int) else 1 for size in shape_of(value) or ()]
        integers, reals = rng.integers(0, 100, shape), rng.standard_normal(shape).astype(np.float32)
        feeds[value.name or ""] = integers if value.dtype == ir.DataType.INT64 else reals
    return feeds


@pytest.mark.parametrize(
    "path",
    [*SAMPLES, *(pytest.param(path, marks=pytest.mark.bench) for path in BENCH if path.stem in KERNELS)],
    ids=model_name,
)
def test_real_models_run_on_integers(path: Path) -> None:
    graph = load_model(path)
    result = quantized(graph, [plausible(graph)])
    expected = KERNELS[model_name(path)]
    assert {kind: result.kernels[kind] for kind in expected} == expected
    assert not [kind for kind in FLOAT_KERNELS if result.kernels[kind]]
    assert result.sqnr > 10
    assert result.drift > 20
