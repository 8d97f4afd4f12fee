"""The integer format: what onnxruntime computes is what TensorFlow Lite's formulas say, to the bit, without a float."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qconvert import pipeline
from qconvert.calibration import Calibration
from qconvert.errors import PlanError
from qconvert.graph import load_model, operators, serialize, tidy, write_model
from qconvert.plan import Plan, make_plan
from qconvert.policy import Policy
from qconvert.prepare import prepare, raise_opset
from qconvert.preprocess import PRESETS
from qconvert.rewrite.integer import FloatIsland, IntegerModel, Rounding, float_tensors, to_integer
from qconvert.rewrite.integer.emit import Emitter
from qconvert.rewrite.integer.levels import Grid, Sink
from qconvert.rewrite.integer.multiplier import multiplier, multiply
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.session import open_session, run
from tests.integer_reference import MULTIPLY, quantize_multiplier, reference, requantize
from tests.models import (
    RUNTIME,
    Array,
    Feeds,
    f32,
    fetch,
    i64,
    images,
    model,
    planned,
    policy,
    pooled_sqnr,
    weight,
)
from tests.test_placement import ATTENTION, ATTENTION_WEIGHTS, CONV, RESIDUAL, SAMPLES, W

ROUNDINGS: tuple[Rounding, ...] = ("single", "double")
every_rounding = pytest.mark.parametrize("rounding", ROUNDINGS)
SIGNED = "defaults:\n  activations: {dtype: int8}"
no_signed = pytest.mark.skipif(RUNTIME < (1, 24), reason="this onnxruntime's ConvInteger takes no int8 with uint8")
every_activation = pytest.mark.parametrize(
    "wanted", [pytest.param("", id="uint8"), pytest.param(SIGNED, id="int8", marks=no_signed)]
)


@dataclass(frozen=True)
class Lowered:
    """One plan, carried out in both formats, and what the integer model computes."""

    qdq: ir.Model
    integer: IntegerModel
    plan: Plan
    samples: list[Feeds]
    outputs: list[list[Array]]
    float_outputs: list[list[Array]]

    @property
    def sqnr(self) -> float:
        return pooled_sqnr(self.float_outputs, self.outputs)

    def qdq_outputs(self) -> list[list[Array]]:
        session = open_session(self.qdq, threads=1, optimize=False)
        return [run(session, feeds) for feeds in self.samples]

    def count(self, op_type: str) -> int:
        return sum(op.op_type == op_type for op in operators(self.integer.model))


def lowered(
    graph: ir.Model,
    samples: list[Feeds],
    rounding: Rounding = "single",
    wanted: Policy | None = None,
    *,
    plan: Plan | None = None,
    allow_float: bool = False,
) -> Lowered:
    """The integer model; free of floats, it gives the same bits with onnxruntime's optimizations and without them."""
    before = open_session(copy(graph), threads=1, optimize=False)
    expected = [run(before, feeds) for feeds in samples]
    if plan is None:
        prepare(graph, samples)
    plan = plan or planned(graph, samples, wanted)
    raise_opset(graph, needed_opset(plan))
    twin = to_qdq(copy(graph), plan)
    found = to_integer(graph, plan, requant=rounding, allow_float=allow_float)
    written = load(serialize(found.model))
    onnx.checker.check_model(ir.to_proto(written))
    rows = []
    for optimize in (False, True):
        session = open_session(written, threads=1, optimize=optimize)
        rows.append([run(session, feeds) for feeds in samples])
    if not found.islands:
        same(*rows)
    return Lowered(twin, found, plan, samples, rows[0], expected)


def copy(graph: ir.Model) -> ir.Model:
    return load(serialize(graph))


def load(blob: bytes) -> ir.Model:
    graph: ir.Model = ir.from_proto(onnx.load_from_string(blob))
    return graph


def same(found: list[list[Array]], expected: list[list[Array]]) -> None:
    for row, wanted in zip(found, expected, strict=True):
        for output, array in zip(row, wanted, strict=True):
            assert output.shape == array.shape
            assert np.array_equal(output, array), f"{(output != array).mean():.1%} of the numbers differ"


def exact(graph: ir.Model, samples: list[Feeds], rounding: Rounding, wanted: Policy | None = None) -> Lowered:
    """Float-free, and equal to the reference to the bit."""
    found = lowered(graph, samples, rounding, wanted)
    assert float_tensors(found.integer.model) == []
    assert found.integer.islands == ()
    same(found.outputs, [reference(found.qdq, feeds, rounding) for feeds in samples])
    return found


# multiplication by integers

VECTORS: list[tuple[float, int, int, int, int, int]] = [
    (0.0003712345, 1632706598, -11, 123456, 46, 46),
    (0.0003712345, 1632706598, -11, -1048576, -389, -389),
    (0.25, 1073741824, -1, 1, 0, 1),
    (0.25, 1073741824, -1, 2, 1, 1),
    (0.25, 1073741824, -1, -2, 0, -1),
    (0.5, 1073741824, 0, 1, 1, 1),
    (0.5, 1073741824, 0, -1, 0, 0),
    (0.0078125, 1073741824, -6, 123456, 965, 965),
    (0.0078125, 1073741824, -6, -123456, -964, -965),
    (0.9999999, 2147483433, 0, 1048576, 1048576, 1048576),
    (1.5, 1610612736, 1, -1, -1, -1),
    (1.5, 1610612736, 1, 127, 191, 191),
]
"""Factor, mantissa, exponent, sum, and the result with a single and with a double rounding."""


@pytest.mark.parametrize("vector", VECTORS)
def test_vectors_of_the_requantization(vector: tuple[float, int, int, int, int, int]) -> None:
    factor, mantissa, exponent, x, once, twice = vector
    by = multiplier(factor)
    assert (int(by.mantissa), int(by.exponent)) == (mantissa, exponent) == quantize_multiplier(factor)
    for rounding, expected in zip(ROUNDINGS, (once, twice), strict=True):
        assert int(multiply(np.array([x]), by, rounding=rounding)[0]) == expected
        assert int(MULTIPLY[rounding](np.array([x]), mantissa, exponent)[0]) == expected


@given(st.floats(2.0**-30, 2.0**20), st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8))
def test_a_product_is_within_one_of_the_real_one(factor: float, numbers: list[int]) -> None:
    by, sums = multiplier(factor), np.array(numbers)
    kept = sums[np.abs(sums) << int(by.left) < 1 << 31]
    for rounding in ROUNDINGS:
        found = multiply(kept, by, rounding=rounding)
        assert np.array_equal(found, MULTIPLY[rounding](kept, *quantize_multiplier(factor)))
        assert (np.abs(found - kept * factor) <= 1 + np.abs(kept * factor) * 2.0**-30).all()


def test_factors_beyond_any_use() -> None:
    assert multiplier(1e-30).mantissa == 0
    assert multiplier(1e30).exponent == 30
    assert multiplier([0.5, 1 - 2.0**-40]).mantissa.tolist() == [1 << 30, 1 << 30]


def requantizer(factors: Array, sink: Sink, rounding: Rounding) -> ir.Model:
    """A model that requantizes its int32 input, shape [N, channels, 2]."""
    graph = model("y = Identity(x)", inputs=f"int32[N,{factors.shape[0]},2] x", outputs="uint8[] y")
    anchor = graph.graph[0]
    found = Emitter(graph, rounding, anchor, "r").requantize(graph.graph.inputs[0], factors, sink)
    anchor.replace_input_with(0, found)
    return tidy(graph)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.just(1)), elements=st.floats(2.0**-30, 8)),
    st.integers(0, 255),
    st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted),
    st.data(),
)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_requantization_in_onnxruntime(
    rounding: Rounding, factors: Array, zero: int, ends: list[int], data: st.DataObject
) -> None:
    largest = 2**31 - 1 if rounding == "single" else 2**27 - 1
    near = st.integers(-3000, 3000) | st.integers(-largest, largest)
    sums = data.draw(hnp.arrays(np.int32, (3, len(factors), 2), elements=near))
    grid = Grid(np.asarray(1.0), np.asarray(zero), ir.DataType.UINT8)
    graph = requantizer(factors, Sink(grid, *ends), rounding)
    expected = np.clip(requantize(sums, factors, rounding) + zero, ends[0], ends[1])
    for optimize in (False, True):
        found = run(open_session(graph, threads=1, optimize=optimize), {"x": sums})[0]
        assert np.array_equal(found, expected)


# operators, to the bit

EXTRA = W | {
    "bias": weight(8, gain=0.3),
    "dw": weight(8, 1, 3, 3),
    "gw": weight(8, 4, 3, 3),
    "v": weight(8, 3, 3, 3, seed=5),
    "e": weight(8, 16, 1, 1),
    "zero": f32(0).reshape(()),
    "six": f32(0.7).reshape(()),
    "slope": weight(8, 1, 1, gain=0.5),
    "half": f32(0.5).reshape(()),
    "one": f32(1).reshape(()),
    "root": f32(2**0.5).reshape(()),
    "plane": weight(8, 8, 8, gain=0.4),
    "start": i64(0, 0, 1, 1),
    "end": i64(1, 8, 7, 7),
    "pads": i64(0, 0, 1, 2, 0, 0, 1, 0),
    "none": f32(),
    "scales": f32(1, 1, 2, 2),
    "shape": i64(1, 8, 4, 16),
    "axis": i64(2),
    "tiles": i64(1, 1, 2, 1),
    "channel": i64(3, 0, 7, 7, 1, 2, 2, 4),
}

CONVS = {
    "plain": f"y {CONV}(x, w)",
    "bias": f"y {CONV}(x, w, bias)",
    "strides": "y = Conv<strides=[2,1], pads=[1,0,1,2], dilations=[1,2]>(x, w, bias)",
    "same": 'y = Conv<auto_pad="VALID">(x, w)',
    "depthwise": f"h {CONV}(x, w) y = Conv<group=8, pads=[1,1,1,1]>(h, dw, bias)",
    "groups": f"h {CONV}(x, w) y = Conv<group=2, pads=[1,1,1,1]>(h, gw)",
    "relu": f"h {CONV}(x, w, bias) r = Relu(h) y {CONV}(r, a, bias)",
    "clip": f"h {CONV}(x, w, bias) r = Clip(h, zero, six) y {CONV}(r, a)",
}

FUNCTIONS = {
    **{name: f"{name}(h)" for name in ("Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu", "Celu", "Mish")},
    **{name: f"{name}(h)" for name in ("Softplus", "Softsign", "ThresholdedRelu", "Exp", "Erf", "Neg", "Abs")},
    "LeakyRelu": "LeakyRelu<alpha=0.2>(h)",
    "PRelu": "PRelu(h, slope)",
    "scaled": "Mul(h, half)",
    "channels": "Mul(h, slope)",
    "shifted": "Add(h, one)",
    "subtracted": "Sub(one, h)",
    "Gelu": "Gelu(h)",
    "Batch": "Div(h, root)",
}
CHAINS = {
    "gelu": "d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(h, f) m = Mul(g, half)",
    "swish": "s = HardSigmoid(h) m = Mul(h, s)",
    "clamped": "s = Tanh(h) t = Add(s, half) m = Relu(t)",
}

NEAREST = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
MOVES = {
    "MaxPool": "MaxPool<kernel_shape=[2,2]>(h)",
    "padded MaxPool": "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(h)",
    "Transpose": "Transpose<perm=[0,1,3,2]>(h)",
    "Slice": "Slice(h, start, end)",
    "Pad": "Pad(h, pads)",
    "edge": 'Pad<mode="edge">(h, pads)',
    "Resize": f"Resize<{NEAREST}>(h, none, scales)",
    "Reshape": "Reshape(h, shape)",
    "DepthToSpace": "DepthToSpace<blocksize=2>(h4)",
    "Tile": "Tile(h, tiles)",
    "Gather": "Gather<axis=1>(h, channel)",
    "Identity": "Identity(h)",
}

SEVERAL = {
    "Add": f"k {CONV}(x, v) m = Add(h, k)",
    "Sub": f"k {CONV}(x, v) m = Sub(h, k)",
    "Mul": f"k {CONV}(x, v) m = Mul(h, k)",
    "Max": f"k {CONV}(x, v) m = Max(h, k)",
    "Add and Relu": f"k {CONV}(x, v) s = Add(h, k) m = Relu(s)",
    "Add to itself": "s = Sigmoid(h) m = Add(s, s)",
    "Add of a plane": "m = Add(h, plane)",
    "gate": "g = GlobalAveragePool(h) s = Conv(g, p) t = Sigmoid(s) m = Mul(h, t)",
    "Softmax": "m = Softmax<axis=1>(h)",
    "last Softmax": "m = Softmax(h)",
}

MEANS = {
    "AveragePool": "AveragePool<kernel_shape=[2,2], strides=[2,2]>(h)",
    "padded": "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(h)",
    "padding counts": "AveragePool<kernel_shape=[3,2], pads=[1,0,1,1], strides=[2,1], count_include_pad=1>(h)",
    "GlobalAveragePool": "GlobalAveragePool(h)",
    "ReduceMean": "ReduceMean<axes=[2,3]>(h)",
    "ReduceMax": "ReduceMax<axes=[2]>(h)",
    "GlobalMaxPool": "GlobalMaxPool(h)",
}

BODIES = {
    **CONVS,
    **{name: f"h {CONV}(x, w, bias) m = {body} y {CONV}(m, a)" for name, body in FUNCTIONS.items() if name != "Gelu"},
    **{name: f"h {CONV}(x, w, bias) {body} y {CONV}(m, a)" for name, body in (CHAINS | SEVERAL).items()},
    **{name: f"h {CONV}(x, w, bias) m = {body} y {CONV}(m, a)" for name, body in MEANS.items()},
    **{name: f"h {CONV}(x, w, bias) m = {body} y {CONV}(m, a)" for name, body in MOVES.items() if "h4" not in body},
    "Concat": f"h {CONV}(x, w) k {CONV}(x, v) m = Concat<axis=1>(h, k) y = Conv(m, e)",
    "residual": RESIDUAL,
    "two outputs": f"h {CONV}(x, w) r = Relu(h) y {CONV}(r, a) z {CONV}(r, b)",
}


@every_rounding
@every_activation
@pytest.mark.parametrize("name", BODIES)
def test_operators_are_what_the_formulas_say(name: str, wanted: str, rounding: Rounding) -> None:
    outputs = "float[] y, float[] z" if name == "two outputs" else "float[] y"
    graph = model(BODIES[name], inputs="float[1,3,8,8] x", outputs=outputs, weights=EXTRA, opset=17 + (name == "Mish"))
    found = exact(graph, images(1, 3, 8, 8), rounding, policy(wanted))
    assert found.sqnr > 10


# other heavy operators

ROWS = {
    "a": weight(16, 16),
    "b": weight(16, 16, seed=1),
    "bias": weight(16, gain=0.3),
    "batch": weight(3, 16, 5),
    "quarter": f32(0.25).reshape(()),
    "vector": weight(16),
    "matrix": weight(2, 16, seed=3),
}
PRODUCTS = {
    "Gemm": "h = Gemm(x, a, bias) y = Gemm(h, b, bias)",
    "Gemm transposed": "h = Gemm<transB=1>(x, a, bias) r = Relu(h) y = Gemm<transB=1>(r, b)",
    "Gemm with a factor": "h = Gemm<alpha=0.5>(x, a) y = Gemm(h, b)",
    "Gemm with a matrix": "h = Gemm(x, a, matrix) y = Gemm(h, b, bias)",
    "MatMul": "h = MatMul(x, a) y = MatMul(h, b)",
    "MatMul and Add": "h = MatMul(x, a) k = Add(bias, h) r = Relu(k) y = MatMul(r, b)",
    "MatMul and Mul": "h = MatMul(x, a) k = Mul(h, quarter) y = MatMul(k, b)",
    "activations": "p = MatMul(x, a) q = MatMul(x, b) t = Transpose<perm=[1,0]>(q) y = MatMul(p, t)",
    "vector": "h = MatMul(x, a) y = MatMul(h, vector)",
}


@every_rounding
@every_activation
@pytest.mark.parametrize("body", PRODUCTS.values(), ids=PRODUCTS)
def test_products_of_matrices(body: str, wanted: str, rounding: Rounding) -> None:
    graph = model(body, inputs="float[2,16] x", weights=ROWS)
    assert exact(graph, images(2, 16), rounding, policy(wanted)).sqnr > 20


def test_batched_product() -> None:
    graph = model("h = MatMul(x, a) y = MatMul(h, batch)", inputs="float[3,4,16] x", weights=ROWS)
    exact(graph, images(3, 4, 16), "single")


def test_conv_along_one_axis() -> None:
    weights = {"w": weight(6, 4, 3), "k": weight(5, 6, 1), "b": weight(6, gain=0.3)}
    graph = model("h = Conv<pads=[1,1]>(x, w, b) y = Conv(h, k)", inputs="float[N,4,9] x", weights=weights)
    exact(graph, images(2, 4, 9), "single")


TRANSPOSED = {
    "strides": "strides=[2,2]",
    "plain": "pads=[1,1,1,1]",
    "uneven": "strides=[2,3], pads=[1,0,0,2], output_padding=[1,0]",
    "dilated": "strides=[1,2], dilations=[2,1]",
}


@every_rounding
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("options", TRANSPOSED.values(), ids=TRANSPOSED)
def test_conv_transpose(options: str, group: int, rounding: Rounding) -> None:
    graph = model(
        f"h {CONV}(x, w) t = ConvTranspose<group={group}, {options}>(h, k, b) y {CONV}(t, a)",
        weights=W | {"k": weight(8, 8 // group, 3, 2), "b": weight(8, gain=0.3)},
    )
    exact(graph, images(), rounding, policy(target="generic"))


# grids

GRIDS = {
    "one scale": "weights: {scheme: per-tensor}",
    "uint8 weights": "weights: {dtype: uint8}",
    "asymmetric weights": "weights: {symmetric: false}",
    "4-bit weights": "weights: {dtype: int4}",
    "2 bits of uint4": "weights: {dtype: uint4}",
    "4-bit activations": "activations: {dtype: uint4}",
    "signed 4-bit activations": "activations: {dtype: int4}",
    "symmetric": "activations: {symmetric: true}",
}


@no_signed
@every_rounding
def test_a_clamp_that_the_grid_does_not_absorb(rounding: Rounding) -> None:
    graph = model(BODIES["relu"], weights=EXTRA)
    found = exact(graph, images(), rounding, policy("defaults:\n  activations: {dtype: int8, symmetric: true}"))
    assert found.plan.absorbed == ()


@every_rounding
@pytest.mark.parametrize("settings", GRIDS.values(), ids=GRIDS)
def test_every_8_bit_grid(settings: str, rounding: Rounding) -> None:
    body = f"h {CONV}(x, w, bias) r = Relu(h) k = Conv<group=2, pads=[1,1,1,1]>(r, gw) s = Add(k, r) y {CONV}(s, a)"
    exact(model(body, weights=EXTRA), images(), rounding, policy(f"defaults:\n  {settings}"))


@pytest.mark.parametrize("target", [pytest.param("tensorrt", marks=no_signed), "generic"])
def test_plans_of_other_targets(target: str) -> None:
    graph = model(f"h {CONV}(x, w, bias) r = Relu(h) y {CONV}(r, a, bias)", weights=EXTRA)
    lowered(graph, images(), "single", policy(target=target))


@pytest.mark.parametrize("setting", ["activations: {dtype: uint16}", "weights: {dtype: int16}"])
def test_16_bits_have_no_integer_form(setting: str) -> None:
    graph = model(f"h {CONV}(x, w) y {CONV}(h, a)", weights=EXTRA)
    with pytest.raises(PlanError, match="INT16"):
        lowered(graph, images(), "single", policy(f"defaults:\n  {setting}"))


@every_rounding
def test_gelu_and_depth_to_space(rounding: Rounding) -> None:
    weights = {"w": weight(8, 3, 3, 3), "a": weight(4, 2, 3, 3)}
    graph = model(
        f"h {CONV}(x, w) g = Gelu(h) m = DepthToSpace<blocksize=2>(g) y {CONV}(m, a)", weights=weights, opset=20
    )
    exact(graph, images(), rounding)


@every_rounding
def test_split_and_concat(rounding: Rounding) -> None:
    graph = model(
        f"h {CONV}(x, w) l, r = Split<axis=1>(h, parts) s = Sigmoid(r) m = Concat<axis=1>(l, s) y {CONV}(m, a)",
        weights=EXTRA | {"parts": i64(3, 5)},
    )
    assert exact(graph, images(), rounding).count("Split") == 1


def test_a_batch_normalization_is_a_table_for_each_channel() -> None:
    batch = {name: weight(8, seed=seed) for seed, name in enumerate(("gain", "shift", "mean"))}
    graph = model(
        f"h {CONV}(x, w) r = Relu(h) n = BatchNormalization(r, gain, shift, mean, var) m = Relu(n) y {CONV}(m, a)",
        weights=EXTRA | batch | {"var": np.abs(weight(8, seed=9)) + np.float32(0.1)},
    )
    found = lowered(graph, images())
    assert float_tensors(found.integer.model) == []
    assert pooled_sqnr(found.qdq_outputs(), found.outputs) > 35


@every_rounding
def test_an_integer_softmax_is_within_one_level(rounding: Rounding) -> None:
    graph = model(f"h {CONV}(x, w) m = Softmax<axis=1>(h) y {CONV}(m, a)", weights=EXTRA)
    found = lowered(graph, images(), rounding)
    reader = [op.node for op in operators(found.integer.model) if op.op_type == "ConvInteger"][-1]
    assert reader.inputs[0] is not None
    name = reader.inputs[0].name or ""
    for feeds in found.samples:
        levels = fetch(copy(found.integer.model), [name], feeds)[name].astype(int)
        expected = fetch(copy(found.qdq), ["m_quantized"], feeds)["m_quantized"].astype(int)
        assert np.abs(levels - expected).max() <= 1
        assert np.ptp(expected) > 50


# what has no integer form


def test_operators_without_an_integer_form_are_refused() -> None:
    graph = model(ATTENTION, inputs="float[1,9,16] x", weights=ATTENTION_WEIGHTS)
    with pytest.raises(PlanError, match=r"LayerNormalization has no integer form") as caught:
        lowered(graph, images(1, 9, 16))
    assert "--allow-float" in caught.value.hint


@every_rounding
def test_islands_are_named(rounding: Rounding) -> None:
    graph = model(ATTENTION, inputs="float[1,9,16] x", weights=ATTENTION_WEIGHTS)
    found = lowered(graph, images(1, 9, 16), rounding, allow_float=True)
    islands = {island.operator: island for island in found.integer.islands}
    assert islands["n"] == FloatIsland("n", "LayerNormalization", "LayerNormalization has no integer form")
    assert "grid" in islands["pr"].reason
    assert not {"MatMul", "Conv", "Gemm", "MatMulInteger"} & {island.op_type for island in islands.values()}
    assert {"n", "pr"} <= set(float_tensors(found.integer.model))
    assert found.count("MatMulInteger") == 8
    assert found.count("MatMul") == 0
    assert pooled_sqnr(found.qdq_outputs(), found.outputs) > 30
    assert found.sqnr > 25


def test_a_linear_resize_is_an_island() -> None:
    graph = model(f'h {CONV}(x, w) m = Resize<mode="linear">(h, none, scales) y {CONV}(m, a)', weights=EXTRA)
    found = lowered(graph, images(), allow_float=True)
    assert [(island.operator, island.op_type) for island in found.integer.islands] == [("m", "Resize")]
    assert "nearest" in found.integer.islands[0].reason


def test_an_average_of_unknown_size_is_an_island() -> None:
    graph = model(f"h {CONV}(x, w) m = GlobalAveragePool(h) y = Conv(m, p)", inputs="float[N,3,H,W] x", weights=EXTRA)
    found = lowered(graph, images(), allow_float=True)
    assert [island.op_type for island in found.integer.islands] == ["GlobalAveragePool"]


def test_operators_that_the_user_left_float_are_islands() -> None:
    graph = model(f"h {CONV}(x, w) k {CONV}(h, a) y {CONV}(k, b)", weights=EXTRA)
    wanted = policy("rules:\n  - match: {names: [k]}\n    float: true")
    found = lowered(graph, images(), "single", wanted, allow_float=True)
    assert [(island.operator, island.op_type) for island in found.integer.islands] == [("k", "Conv")]
    assert found.count("ConvInteger") == 2


# what is float at the ends


def test_float_tensors_of_a_qdq_model_are_named() -> None:
    found = lowered(model(f"h {CONV}(x, w) r = Relu(h) y {CONV}(r, a)", weights=EXTRA), images())
    named = float_tensors(found.qdq)
    assert {"x_dequantized", "r", "r_dequantized", "y_float"} <= set(named)
    assert not {"x", "y", "x_scale"} & set(named)


def test_head_and_tail_may_be_float() -> None:
    graph = model(f"n = Neg(x) h {CONV}(n, w) r = Relu(h) k {CONV}(r, a) y = Softmax<axis=1>(k)", weights=EXTRA)
    found = lowered(graph, images())
    assert found.integer.islands == ()
    assert float_tensors(found.integer.model) == []


def test_dynamic_shapes_come_from_levels() -> None:
    graph = model(
        f"h {CONV}(x, w) s = Shape(h) r = Reshape(h, s) y {CONV}(r, a)", inputs="float[N,3,H,W] x", weights=EXTRA
    )
    found = lowered(graph, images(1, 3, 8, 8) + images(2, 3, 6, 7))
    assert float_tensors(found.integer.model) == []
    same(found.outputs, [reference_without_shapes(found, feeds) for feeds in found.samples])


def reference_without_shapes(found: Lowered, feeds: Feeds) -> list[Array]:
    """The reference of the model without its Reshape, which changes nothing."""
    twin = copy(found.qdq)
    for node in list(twin.graph):
        if node.op_type == "Reshape":
            assert node.inputs[0] is not None
            node.outputs[0].replace_all_uses_with(node.inputs[0])
    return reference(tidy(twin), feeds, "single")


def test_levels_that_are_an_output_keep_their_name() -> None:
    grid = {"s": f32(0.05).reshape(()), "z": np.array(128, np.uint8)}
    graph = model(
        f"h {CONV}(x, w) k {CONV}(h, a) m = Tanh(k) y = QuantizeLinear(m, s, z) q {CONV}(k, b)",
        outputs="uint8[N,8,8,8] y, float[N,8,8,8] q",
        weights=EXTRA | grid,
    )
    found = lowered(graph, images())
    assert [value.name for value in found.integer.model.graph.outputs] == ["y", "q"]
    assert float_tensors(found.integer.model) == []
    same(found.outputs, [reference(found.qdq, feeds, "single") for feeds in found.samples])


# whole models


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    def built() -> ir.Model:
        return model(RESIDUAL, weights=EXTRA)

    blobs = [serialize(lowered(built(), images()).integer.model) for _ in range(2)]
    assert blobs[0] == blobs[1]
    write_model(load(blobs[0]), tmp_path / "integer.onnx")
    assert float_tensors(load_model(tmp_path / "integer.onnx")) == []


def digits() -> tuple[Path, list[Feeds]]:
    path = next(path for path in SAMPLES if path.parent.name == "digits_cnn")
    shape = [size if isinstance(size, int) else 1 for size in load_model(path).graph.inputs[0].shape or ()]
    name = load_model(path).graph.inputs[0].name or ""
    return path, [{name: feeds["x"]} for feeds in images(*shape, count=4)]


@every_rounding
def test_digits_to_the_bit(rounding: Rounding) -> None:
    path, samples = digits()
    found = exact(load_model(path), samples, rounding)
    assert pooled_sqnr(found.qdq_outputs(), found.outputs) > 15
    assert found.count("ConvInteger") > 10


DATA = SAMPLES[0].parents[2].parent / "shared" / "bench"
REAL = {
    "cifar_resnet20_bn": ("cifar10/calib", "cifar10/eval", None, "cifar"),
    "mobilenetv2_tv": ("imagenet/calib", "imagenet/eval", "imagenet/eval_labels.csv", "imagenet"),
}


@functools.cache
def calibrated(name: str) -> Calibration:
    calib, _, _, preset = REAL[name]
    return pipeline.calibrate(DATA / "models" / f"{name}.onnx", DATA / "data" / calib, preprocess=PRESETS[preset])


def judged(name: str, built: ir.Model, folder: Path) -> tuple[float, float]:
    """Top-1 and SQNR of a model on the evaluation data, at most 500 images."""
    _, data, labels, preset = REAL[name]
    write_model(built, folder / "model.onnx")
    found = pipeline.evaluate(
        DATA / "models" / f"{name}.onnx",
        folder / "model.onnx",
        DATA / "data" / data,
        labels=None if labels is None else DATA / "data" / labels,
        preprocess=PRESETS[preset],
        limit=500,
        latency_runs=0,
    )
    assert found.candidate.accuracy is not None
    return found.candidate.accuracy.top1, found.fidelity[0].sqnr_db


@pytest.mark.bench
@pytest.mark.skipif(not DATA.exists(), reason="shared benchmark data is absent")
@every_rounding
@pytest.mark.parametrize("name", REAL)
def test_real_models_keep_their_accuracy(name: str, rounding: Rounding, tmp_path: Path) -> None:
    statistics = calibrated(name)
    samples = [dict(feeds) for feeds in statistics.probes[:1]]
    graph = load_model(DATA / "models" / f"{name}.onnx")
    prepare(graph, samples)
    found = lowered(graph, samples, rounding, plan=make_plan(graph, Policy(), statistics.stats))
    assert float_tensors(found.integer.model) == []
    (before, before_db), (after, after_db) = (
        judged(name, built, tmp_path) for built in (found.qdq, found.integer.model)
    )
    assert after >= before - 1
    assert after_db > before_db - 1
