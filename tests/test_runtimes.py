"""What single runtimes are particular about: TensorFlow Lite's fixed grids, Qualcomm's wholeness, TensorRT's groups."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.graph import load_model, operators
from qconvert.numerics import QuantParams
from qconvert.plan import Plan
from qconvert.plan.weight_only import make_weight_plan
from qconvert.policy import Policy
from qconvert.prepare import prepare
from qconvert.rewrite.integer import float_tensors
from qconvert.rewrite.settle import CARRIED, settle_int8
from qconvert.rewrite.weight_forms import readings
from qconvert.rewrite.weight_only import to_weight_only
from tests.cells import MODELS
from tests.models import Result, f32, i64, image, images, model, planned, policy, quantized, weight
from tests.test_integer import exact
from tests.test_placement import CONV, W, attention

MCU, QNN = policy(target="integer-mcu"), policy(target="qnn")

FIXED = {
    "Softmax<axis=1>(h)": (1 / 256, -128),
    "Sigmoid(h)": (1 / 256, -128),
    "LogSoftmax<axis=1>(h)": (16 / 256, 127),
    "Tanh(h)": (1 / 128, 0),
    "LpNormalization<axis=1>(h)": (1 / 128, 0),
}


def grid(plan: Plan, tensor: str) -> QuantParams:
    return next(entry.params for entry in plan.entries if entry.tensor == tensor)


def dtypes(result: Result) -> set[str]:
    return {entry.params.dtype.name for entry in result.plan.of("activation")}


# TensorFlow Lite's 8-bit specification


@pytest.mark.parametrize("body", FIXED)
def test_outputs_without_a_choice(body: str) -> None:
    graph = model(f"h {CONV}(x, w) s = {body} y {CONV}(s, a)", weights=W)
    result = quantized(graph, images(), MCU)
    scale, zero = FIXED[body]
    assert float(grid(result.plan, "s").scale) == scale
    assert int(grid(result.plan, "s").zero_point) == zero
    assert result.entry("s").method == "grid of integer-mcu"
    assert min(result.sqnr, result.plain_sqnr) > 20
    assert {"h", "s", "y"} <= {entry.tensor for entry in result.plan.entries}


def test_fixed_outputs_at_the_end_of_a_model() -> None:
    graph = model(f"h {CONV}(x, w) y = Softmax<axis=1>(h)", weights=W)
    result = quantized(graph, images(), MCU)
    assert (float(grid(result.plan, "y").scale), int(grid(result.plan, "y").zero_point)) == (1 / 256, -128)
    assert result.integer() == ["Conv", "Softmax"]


@pytest.mark.parametrize(
    "body",
    [
        f"h {CONV}(x, w) p = AveragePool<kernel_shape=[2,2]>(h) y {CONV}(p, a)",
        f"h {CONV}(x, w) p = MaxPool<kernel_shape=[2,2]>(h) y {CONV}(p, a)",
        f"h {CONV}(x, w) g {CONV}(x, v) p = Concat<axis=1>(h, g) y = Transpose<perm=[0,2,3,1]>(p)",
        f"h {CONV}(x, w) g {CONV}(x, v) p = Max(h, g) y {CONV}(p, a)",
    ],
)
def test_inputs_and_outputs_on_one_grid(body: str) -> None:
    graph = model(body, weights=W | {"v": weight(8, 3, 3, 3, seed=5)})
    plan = quantized(graph, images(), MCU).plan
    assert grid(plan, "p") == grid(plan, "h")
    if " g " in body:
        assert grid(plan, "p") == grid(plan, "g")


def test_a_fixed_grid_does_not_reach_what_it_is_joined_with() -> None:
    graph = model(
        f"h {CONV}(x, w) s = Sigmoid(h) g {CONV}(x, v) p = Concat<axis=1>(g, s) y = Transpose<perm=[0,2,3,1]>(p)",
        weights=W | {"v": 4 * weight(8, 3, 3, 3, seed=5)},
    )
    result = quantized(graph, images(), MCU)
    assert grid(result.plan, "p") == grid(result.plan, "g") != grid(result.plan, "s")
    assert min(result.sqnr, result.plain_sqnr) > 25


def test_weights_of_microcontrollers() -> None:
    graph = model(
        f"h {CONV}(x, w) p = GlobalAveragePool(h) f = Flatten(p) m = MatMul(f, g) s = Add(m, c) y = Gemm(s, k, b)",
        weights=W | {"g": weight(8, 6), "c": weight(6), "k": weight(6, 5), "b": weight(5)},
    )
    plan = quantized(graph, images(), MCU).plan
    for entry in plan.of("weight"):
        assert entry.params.narrow_range
        assert not entry.params.zero_point.any()
        assert (entry.params.axis is None) == (entry.tensor != "w"), "one scale for each channel of Conv alone"
    assert {entry.tensor for entry in plan.of("bias")} == {"c", "b"}
    assert grid(plan, "s") is not None
    assert not [entry for entry in plan.entries if entry.tensor == "m"], "the Add is the MatMul's bias"
    assert grid(plan, "y").dtype.name == "int8"


def test_a_microcontroller_computes_no_float() -> None:
    graph = model(
        f"h {CONV}(x, w) r = Relu(h) g {CONV}(r, a) d = Sub(g, r) t = Tanh(d) u = Add(t, shift) q = Relu(u) "
        "p = GlobalAveragePool(q) f = Reshape(p, shape) z = Gemm(f, k, b) y = Softmax<axis=1>(z)",
        weights=W | {"shift": f32(*range(8)).reshape(8, 1, 1), "k": weight(8, 5), "b": weight(5), "shape": i64(1, 8)},
    )
    found = exact(graph, images(), "single", MCU)
    assert float_tensors(found.integer.model) == []
    assert not found.plan.floats
    assert found.sqnr > 15


# Qualcomm


def test_everything_is_quantized_for_qualcomm() -> None:
    result = quantized(attention(), [image(1, 9, 16, seed=seed) for seed in range(3)], QNN)
    kinds = set(result.integer())
    assert {"MatMul", "Softmax", "LayerNormalization", "Add", "Mul", "Div"} <= kinds
    assert {op.op_type for op in result.plan.floats} == {"Erf"}
    assert result.why_float("Erf") == "no integer kernel for Erf"
    assert min(result.sqnr, result.plain_sqnr) > 20
    assert dtypes(result) == {"uint8"}


def test_normalizations_read_levels_alone() -> None:
    graph = model(
        "h = MatMul(x, m) n = LayerNormalization<axis=-1>(h, s, b) y = MatMul(n, k)",
        inputs="float[1,8,16] x",
        weights={"m": weight(16, 16), "k": weight(16, 16, seed=1), "s": weight(16, seed=2), "b": weight(16, seed=3)},
    )
    result = quantized(graph, [image(1, 8, 16, seed=seed) for seed in range(3)], QNN)
    node = next(op.node for op in operators(result.model) if op.op_type == "LayerNormalization")
    readers = [value.producer() for value in node.inputs if value is not None]
    assert [reader.op_type for reader in readers if reader is not None] == ["DequantizeLinear"] * 3
    assert result.entry("s").role == "weight"
    assert result.entry("b").params.dtype.name == "int32"
    assert min(result.sqnr, result.plain_sqnr) > 25


@pytest.mark.parametrize(("kind", "scale", "zero"), [("Sigmoid", 1 / 65536, 0), ("Tanh", 1 / 32768, 32768)])
def test_fixed_16_bit_grids(kind: str, scale: float, zero: int) -> None:
    graph = model(f"h {CONV}(x, w) s = {kind}(h) y {CONV}(s, a)", weights=W)
    result = quantized(graph, images(), QNN.override(activations="uint16"))
    assert (float(grid(result.plan, "s").scale), int(grid(result.plan, "s").zero_point)) == (scale, zero)
    narrow = planned(graph_of(kind), images(), QNN)
    assert float(grid(narrow, "s").scale) != scale
    assert min(result.sqnr, result.plain_sqnr) > 35


def graph_of(kind: str) -> ir.Model:
    graph = model(f"h {CONV}(x, w) s = {kind}(h) y {CONV}(s, a)", weights=W)
    prepare(graph, images())
    return graph


def test_four_bits_for_convolutions_alone() -> None:
    graph = model(
        f"h {CONV}(x, w) p = GlobalAveragePool(h) f = Flatten(p) y = Gemm(f, k)", weights=W | {"k": weight(8, 5)}
    )
    plan = quantized(graph, images(), QNN.override(weights="int4")).plan
    assert {entry.tensor: entry.params.dtype.name for entry in plan.of("weight")} == {"w": "int4", "k": "int8"}


# TensorRT's groups


def test_groups_are_those_that_divide_the_inputs() -> None:
    graph = model(
        "h = MatMul(x, m) i = MatMul(h, k) y = MatMul(i, s)",
        inputs="float[1,8,256] x",
        weights={"m": weight(256, 192), "k": weight(192, 48), "s": weight(48, 8)},
    )
    prepare(graph, ())
    plan = make_weight_plan(graph, Policy(target="trt-int4"))
    assert {entry.tensor: entry.params.block_size for entry in plan.entries} == {"m": 128, "k": 64}
    assert all(entry.params.dtype.name == "int4" and (entry.params.scale > 0).all() for entry in plan.entries)
    assert [op.reason for op in plan.floats] == ["its 48 inputs are no whole number of groups of 128 or 64"]
    asked = make_weight_plan(graph, Policy().override(target="trt-int4", scheme="per-group", group_size=128))
    assert [entry.tensor for entry in asked.entries] == ["m"]
    assert {one.form for one in readings(graph, plan)} == {"dequantize"}


def test_other_operators_of_tensorrt_stay_float() -> None:
    path = MODELS / "digits_vit" / "model.onnx"
    graph = load_model(path)
    prepare(graph, (), original=path, fold=False)
    plan = make_weight_plan(graph, Policy(target="trt-int4"))
    assert any(op.reason == "trt-int4 stores no weights of Conv" for op in plan.floats)
    written = to_weight_only(graph, plan).model
    blocked = [node for node in written.graph if node.op_type == "DequantizeLinear"]
    assert len(blocked) == len(plan.entries) > 10
    assert {node.attributes["block_size"].as_int() for node in blocked} == {64, 128}
    assert {node.inputs[0].dtype for node in blocked if node.inputs[0] is not None} == {ir.DataType.INT4}


# int8 levels that are moved


@pytest.mark.parametrize("move", ["Reshape(h, s)", "Transpose<perm=[0,1,3,2]>(h)", "Slice(h, zero, four, two)"])
def test_int8_levels_are_moved_in_pairs(move: str) -> None:
    graph = model(
        f"h {CONV}(x, w) r = {move} e = Erf(r) u = Reshape(e, t) y = MatMul(u, k)",
        weights=W
        | {"s": i64(1, 8, 8, 8), "t": i64(8, -1), "zero": i64(0), "four": i64(8), "two": i64(2), "k": weight(64, 4)},
    )
    chosen = policy().override(weights="int4", activations="int8")
    result = quantized(graph, images(), chosen)
    assert result.drift > 60
    assert not _unsettled(result.model)
    again = [node.name for node in result.model.graph]
    settle_int8(result.model)
    assert [node.name for node in result.model.graph] == again


@pytest.mark.parametrize(("weights", "activations"), [("int8", "int8"), ("int4", "uint8")])
def test_other_levels_need_no_pairs(weights: str, activations: str) -> None:
    graph = model(
        f"h {CONV}(x, w) r = Reshape(h, s) e = Erf(r) y = MatMul(e, k)",
        weights=W | {"s": i64(8, 64), "k": weight(64, 4)},
    )
    result = quantized(graph, images(), policy().override(weights=weights, activations=activations))
    assert _unsettled(result.model) == ["Reshape"]


def _unsettled(graph: ir.Model) -> list[str]:
    """The moves between DequantizeLinear and a float operator."""
    found = []
    for node in graph.graph:
        source = node.inputs[0].producer() if node.op_type in CARRIED and node.inputs[0] is not None else None
        readers = {use.node.op_type for use in node.outputs[0].uses()}
        if source is not None and source.op_type == "DequantizeLinear" and "QuantizeLinear" not in readers:
            found.append(node.op_type)
    return found


@pytest.mark.parametrize("weights", ["int4", "uint4"])
def test_a_transposed_narrow_weight_is_an_integer_product(weights: str) -> None:
    graph = model(
        f"h {CONV}(x, w) f = Flatten(h) y = Gemm<transB=1>(f, k, b)", weights=W | {"k": weight(5, 512), "b": weight(5)}
    )
    found = exact(graph, images(), "single", policy().override(weights=weights))
    assert not [op for op in operators(found.integer.model) if op.op_type in {"Gemm", "MatMul", "Conv"}]
    assert np.isfinite(found.sqnr)
