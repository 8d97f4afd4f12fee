"""Grids of 2 and 4 bits: what is written, that integer kernels run it, and that it computes what numpy says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qconvert.errors import TargetError
from qconvert.graph import constant, load_model, operators, opset
from qconvert.numerics import (
    QUANT_TYPES,
    QuantParams,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
)
from qconvert.plan import Entry
from qconvert.rewrite.qdq import _shift, _stored
from qconvert.rules import OP_RULES
from qconvert.session import check_opset
from qconvert.targets import TARGETS
from tests.models import (
    NEWEST_OPSET,
    RUNTIME,
    Array,
    Feeds,
    Result,
    f32,
    i64,
    image,
    images,
    model,
    policy,
    quantized,
    weight,
)
from tests.test_placement import CONV, SAMPLES, W
from tests.test_rewrite_qdq import FLOAT_KERNELS, conv1x1, plausible
from tests.test_rules import BUILDERS, CHANNELS

LOW = ("uint4", "int4", "uint2", "int2")
WRITERS = [name for name, target in TARGETS.items() if target.clipped]
CLIPPING = "calibrator: {method: percentile, percentile: 90}"
"""So many values lie outside of the grid that the work of the integer Clip shows."""

two_bit_weights = pytest.mark.skipif(RUNTIME < (1, 24), reason="this onnxruntime has no 2-bit types")
every_low = pytest.mark.parametrize("dtype", LOW)
every_writer = pytest.mark.parametrize("target", WRITERS)


def low(dtype: str, weights: str = "int8", more: str = CLIPPING) -> str:
    return f"defaults:\n  weights: {{dtype: {weights}}}\n  activations: {{dtype: {dtype}, {more}}}\n"


def loud() -> list[Feeds]:
    """Samples, one of them three times as large as the others."""
    return [{name: array * (1 + 2 * (seed == 1)) for name, array in image(seed=seed).items()} for seed in range(3)]


def within_a_step(result: Result, step: float) -> bool:
    pairs = zip(result.plain, result.optimized, strict=True)
    return all(np.abs(a[0] - b[0]).max() <= 1.001 * step for a, b in pairs)


# the arithmetic


@st.composite
def grids(draw: st.DrawFn) -> QuantParams:
    ends = draw(st.tuples(*[st.floats(-50, 50, width=32)] * 2))
    dtype = QUANT_TYPES[draw(st.sampled_from(LOW))]
    return params_from_range(
        min(ends), max(ends), dtype, symmetric=draw(st.booleans()), narrow_range=draw(st.booleans())
    )


@every_writer
@given(params=grids(), x=hnp.arrays(np.float32, 20, elements=st.floats(-1e4, 1e4, width=32)))
def test_eight_bits_and_a_clip_are_the_low_bit_grid(target: str, params: QuantParams, x: Array) -> None:
    entry = Entry("x", "activation", params, (), "", "")
    stored = _stored(entry, TARGETS[target])
    assert stored.dtype.bits == 8
    shift = _shift(params.dtype, stored.dtype)
    clipped = np.clip(quantize(x, stored), params.qmin + shift, params.qmax + shift)
    assert np.array_equal(dequantize(clipped, stored), fake_quantize(x, params))


BODY = """c = Conv(x, w, b) r = Relu(c) d = Conv(r, k) s = Add(d, r)
m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(s) f = Reshape(m, shape) y = Gemm(f, g, bias)"""
WEIGHTS = {
    "w": weight(8, 3, 1, 1),
    "b": weight(8, gain=0.3),
    "k": weight(8, 8, 1, 1),
    "shape": i64(1, 128),
    "g": weight(128, 5),
    "bias": weight(5),
}


def reference(result: Result, x: Array) -> Array:
    """The model in numpy, every tensor on its grid."""

    def fake(name: str, array: Array) -> Array:
        return fake_quantize(array.astype(np.float32), result.entry(name).params)

    w, k, g = (fake(name, WEIGHTS[name]) for name in ("w", "k", "g"))
    r = fake("r", np.maximum(conv1x1(fake("x", x), w, fake("b", WEIGHTS["b"])), 0))
    s = fake("s", fake("d", conv1x1(r, k)) + r)
    pooled = s.reshape(1, 8, 4, 2, 4, 2).max((3, 5))
    found: Array = pooled.reshape(1, 128).astype(np.float64) @ g + fake("bias", WEIGHTS["bias"])
    return found


@every_writer
@every_low
@pytest.mark.parametrize("weights", ["int8", "int4", "uint4", pytest.param("int2", marks=two_bit_weights)])
def test_conv_relu_add_pool_gemm_is_what_numpy_says(weights: str, dtype: str, target: str) -> None:
    samples = loud()
    result = quantized(model(BODY, weights=WEIGHTS), samples, policy(low(dtype, weights), target=target))
    assert {entry.params.dtype.name for entry in result.plan.of("activation")} == {dtype}
    assert result.count("Clip") == len(result.plan.of("activation")) == 6
    for feeds, (plain,), (fast,) in zip(samples, result.plain, result.optimized, strict=True):
        expected = reference(result, feeds["x"])
        assert np.allclose(plain, expected, atol=1e-4)
        assert np.allclose(fast, expected, atol=1e-4)
    if target == "ort-cpu":
        assert (result.kernels["QLinearConv"], result.kernels["QLinearAdd"], result.kernels["QGemm"]) == (2, 1, 1)
        assert not [kind for kind in FLOAT_KERNELS if result.kernels[kind]]


# the form


def test_what_is_written() -> None:
    result = quantized(model(f"y {CONV}(x, w)", weights=W), images(), policy(low("int4")))
    assert opset(result.model) == 17, "a Clip of 8-bit integers is old enough"
    q, bounds, zero = around_clip(result, "x")
    assert [(str(array.dtype), int(array)) for array in bounds] == [("uint8", 0), ("uint8", 15)]
    own = int(result.entry("x").params.zero_point)
    assert (str(zero.dtype), int(zero)) == ("uint8", own + 8), "uint8 is the type that integer kernels take"
    assert sum("level" in name for name in result.model.graph.initializers) == 2, "all Clips share their bounds"
    assert [node.op_type for node in q.successors()] == ["Clip"]


def test_other_runtimes_keep_signed_levels_signed() -> None:
    text = low("int4", more="symmetric: true")
    result = quantized(model(f"y {CONV}(x, w)", weights=W), images(), policy(text, target="generic"))
    _, bounds, zero = around_clip(result, "x")
    assert [(str(array.dtype), int(array)) for array in (*bounds, zero)] == [("int8", -8), ("int8", 7), ("int8", 0)]


def around_clip(result: Result, name: str) -> tuple[ir.Node, list[Array], Array]:
    """The QuantizeLinear of a value, and the bounds and the zero point of its grid in the file."""
    clip = next(op.node for op in operators(result.model) if op.name == f"{name}_clipped")
    (q,) = clip.predecessors()
    (dq,) = clip.successors()
    assert (q.op_type, dq.op_type) == ("QuantizeLinear", "DequantizeLinear")
    assert q.inputs[1:] == dq.inputs[1:]
    lowest, highest, zero = (constant(value) for value in (*clip.inputs[1:], q.inputs[2]))
    assert lowest is not None
    assert highest is not None
    assert zero is not None
    return q, [lowest, highest], zero


@every_low
def test_constants_of_light_operators(dtype: str) -> None:
    shift = f32(*range(-4, 4)).reshape(8, 1, 1)
    graph = model(f"h {CONV}(x, w) s = Add(h, shift) y {CONV}(s, a)", weights=W | {"shift": shift})
    result = quantized(graph, images(), policy(low(dtype, more="calibrator: minmax")))
    assert opset(result.model) == 17
    assert result.kernels["QLinearAdd"] == 1
    assert result.drift > 30
    assert result.model.graph.initializers["shift_quantized"].dtype == ir.DataType.UINT8


# clamps


@pytest.mark.parametrize(
    ("clamp", "more", "absorbed"),
    [
        ("Relu(h)", "symmetric: false", True),
        ("Relu(h)", "symmetric: true", False),
        ("Relu(h)", "symmetric: false, narrow_range: true", True),
        ("Clip(h, zero, six)", "symmetric: false", True),
        ("Clip(h, two, six)", "symmetric: false", False),
        ("Clip(h, below, six)", "symmetric: true, narrow_range: true", False),
        ("Clip(h, minus, six)", "symmetric: true, narrow_range: true", True),
    ],
)
@pytest.mark.parametrize("dtype", ["int4", "int2"])
def test_clamps_that_the_clip_does(dtype: str, clamp: str, more: str, absorbed: bool) -> None:
    ends = {"zero": 0.0, "two": 2.0, "six": 6.0, "below": -0.9, "minus": -6.0}
    scalars = {name: f32(end).reshape(()) for name, end in ends.items()}
    result, kept = (
        quantized(
            model(f"h {CONV}(x, w) r = {clamp} y {CONV}(r, a)", weights=W | scalars),
            loud(),
            policy(low(dtype, more=more), target=target),
        )
        for target in ("ort-cpu", "generic")
    )
    assert len(result.plan.absorbed) == absorbed
    assert result.drift > 30
    assert not kept.plan.absorbed
    assert within_a_step(kept, float(kept.entry("y").params.scale))
    for a, b in zip(kept.plain, result.plain, strict=True):
        assert np.abs(a[0] - b[0]).max() < 1e-5, "the same values with the clamp and without"


# every operator


@pytest.mark.parametrize("dtype", ["uint4", "int2"])
@pytest.mark.parametrize("op_type", [name for name, rule in OP_RULES.items() if rule.kind in {"same", "light"}])
def test_operator_between_two_convs(op_type: str, dtype: str) -> None:
    between = BUILDERS[op_type]
    if between.opset > NEWEST_OPSET:
        pytest.skip(f"this onnxruntime knows opsets up to {NEWEST_OPSET}")
    if op_type == "Resize" and RUNTIME < (1, 31):
        pytest.skip("an onnxruntime that cuts the means of integers off instead of rounding them")
    graph = model(
        f"a = Conv<pads=[1,1,1,1]>(x, first, bias) {between.body} y = Conv(b, last)",
        opset=between.opset,
        weights={
            "first": weight(CHANNELS, 3, 3, 3),
            "bias": weight(CHANNELS, gain=0.3),
            "last": weight(6, between.channels, 1, 1),
            **between.weights,
        },
    )
    result = quantized(graph, loud(), policy(low(dtype)))
    assert result.drift > 60
    assert result.kernels["QLinearConv"] == result.integer().count("Conv")


# mixtures


@pytest.mark.parametrize("narrow", LOW)
def test_one_operator_on_fewer_bits(narrow: str) -> None:
    text = f"rules:\n  - match: {{names: [r, h]}}\n    activations: {{dtype: {narrow}, {CLIPPING}}}\n"
    graph = model(f"u {CONV}(x, w) h {CONV}(u, a) r = Relu(h) s = Add(r, u) y {CONV}(s, b)", weights=W)
    result = quantized(graph, loud(), policy(text))
    types = {entry.tensor: entry.params.dtype.name for entry in result.plan.of("activation")}
    assert types == {"x": "uint8", "u": "uint8", "r": narrow, "s": "uint8", "y": "uint8"}
    assert result.count("Clip") == 1
    assert (result.kernels["QLinearConv"], result.kernels["QLinearAdd"]) == (3, 1)
    assert within_a_step(result, float(result.entry("y").params.scale))


@every_writer
@every_low
@pytest.mark.parametrize("weights", ["int16", "int4"])
def test_few_bits_beside_others(weights: str, dtype: str, target: str) -> None:
    text = f"{low(dtype, weights)}rules:\n  - match: {{names: [y]}}\n    activations: {{dtype: uint16}}\n"
    graph = model(f"h {CONV}(x, w) r = Relu(h) y {CONV}(r, a)", weights=W)
    result = quantized(graph, loud(), policy(text, target=target))
    types = {entry.tensor: entry.params.dtype.name for entry in result.plan.of("activation")}
    assert types == {"x": dtype, "r": dtype, "y": "uint16"}
    assert result.drift > 60
    assert opset(result.model) == 21


def test_tensorrt_takes_none() -> None:
    graph = model(f"y {CONV}(x, w)", weights=W)
    for dtype in LOW:
        with pytest.raises(TargetError, match=rf"target tensorrt takes int8, not {dtype}"):
            quantized(graph, images(), policy(low(dtype), target="tensorrt"))


# weights of 2 bits


@two_bit_weights
@every_writer
@pytest.mark.parametrize("dtype", ["int2", "uint2"])
def test_two_bit_weights_are_stored_as_such_and_run_on_integers(dtype: str, target: str) -> None:
    text = f"defaults:\n  weights: {{dtype: {dtype}, calibrator: mse}}"
    result = quantized(model(f"h {CONV}(x, w) y {CONV}(h, a)", weights=W), images(), policy(text, target=target))
    stored = result.model.graph.initializers["a_quantized"]
    assert stored.dtype == ir.DataType[dtype.upper()]
    assert stored.const_value is not None
    assert stored.const_value.nbytes == W["a"].size // 4
    assert (opset(result.model), result.model.ir_version) == (25, 13)
    assert result.kernels["QLinearConv"] == result.count("Cast") == 2
    assert result.drift > 60
    assert result.sqnr > 4


def test_two_bits_and_old_runtimes() -> None:
    check_opset(21, version="1.23.2")
    check_opset(25, version="1.24.0")
    with pytest.raises(TargetError, match=r"onnxruntime reads from 1\.24 on; here is 1\.23\.2"):
        check_opset(25, version="1.23.2")


# real models


@pytest.mark.parametrize("dtype", ["uint4", "int2"])
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.parent.name)
def test_sample_models_stay_on_integers(path: Path, dtype: str) -> None:
    graph = load_model(path)
    result = quantized(graph, [plausible(graph)], policy(low(dtype, "int4")))
    assert not [kind for kind in FLOAT_KERNELS if result.kernels[kind]]
    assert result.drift > 15
