"""The QOperator format: the same levels as the QDQ model, in integer operators, and a reason for all that is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qconvert.errors import TargetError
from qconvert.graph import load_model, operators, serialize, write_model
from qconvert.kernel_census import census
from qconvert.numerics import QuantParams, quantize
from qconvert.plan import Entry, FloatOp, Plan
from qconvert.policy import Policy
from qconvert.prepare import prepare, raise_opset
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.rewrite.qoperator import to_qoperator
from qconvert.session import open_session, run
from tests.models import (
    RUNTIME,
    Array,
    Feeds,
    f32,
    fetch,
    i64,
    image,
    images,
    model,
    planned,
    policy,
    pooled_sqnr,
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
from tests.test_rewrite_qdq import ROWS, model_name, plausible, rows

EIGHT_BIT = (ir.DataType.UINT8, ir.DataType.INT8)
REAL = {
    "digits_cnn": 23,
    "digits_gru": 1,
    "digits_vit": 51,
    "cifar_resnet20_bn": 37,
    "mobilenetv2_tv": 65,
    "ultraface_rfb320": 55,
}
"""How many tensors of levels there are."""


@dataclass(frozen=True)
class Both:
    """One plan in both formats."""

    plan: Plan
    original: ir.Model
    qdq: ir.Model
    qoperator: ir.Model
    left: tuple[FloatOp, ...]
    samples: list[Feeds]

    def kinds(self) -> Counter[str]:
        return Counter(op.node.op_type for op in operators(self.qoperator))

    def outputs(self, which: str, *, optimize: bool = True) -> list[list[Array]]:
        session = open_session(getattr(self, which), threads=1, optimize=optimize)
        return [run(session, feeds) for feeds in self.samples]

    def levels(self) -> list[str]:
        """The 8-bit values that both graphs have."""
        made = {value.name for op in operators(self.qdq) for value in op.node.outputs}
        ops = list(operators(self.qoperator))
        found = [value for op in ops for value in op.node.outputs if value.dtype in EIGHT_BIT]
        found += [op.node.outputs[0] for op in ops if op.op_type == "QuantizeLinear"]
        return [value.name for value in found if value.name and value.name in made]


def clone(graph: ir.Model) -> ir.Model:
    copied: ir.Model = ir.from_proto(onnx.load_from_string(serialize(graph)))
    return copied


def written(graph: ir.Model, samples: list[Feeds], wanted: Policy | None = None) -> Both:
    original = clone(graph)
    prepare(graph, samples)
    plan = planned(graph, samples, wanted)
    raise_opset(graph, needed_opset(plan))
    qdq = to_qdq(clone(graph), plan)
    qoperator, left = to_qoperator(graph, plan)
    onnx.checker.check_model(ir.to_proto(_standard(qoperator)))
    return Both(plan, original, qdq, qoperator, left, samples)


def _standard(graph: ir.Model) -> ir.Model:
    """The graph with a shape on every output, which onnx's checker wants."""
    found = clone(graph)
    for value in found.graph.outputs:
        value.shape = value.shape or ir.Shape([])
    return found


def agree(both: Both, *, equal: float = 0.97, drift: float = 60) -> Both:
    """Levels within one step of those that the QDQ file describes; the same with optimizations on and off."""
    names = both.levels()
    assert names
    for feeds in both.samples:
        described, computed = fetch(both.qdq, names, feeds), fetch(both.qoperator, names, feeds)
        for name in names:
            assert np.abs(described[name].astype(int) - computed[name].astype(int)).max() <= 1, name
            assert (described[name] == computed[name]).mean() > equal, name
    fast, slow = both.outputs("qoperator"), both.outputs("qoperator", optimize=False)
    assert pooled_sqnr(slow, fast) > drift
    reference = both.outputs("original", optimize=False)
    for optimize in (True, False):
        ours = pooled_sqnr(reference, both.outputs("qoperator", optimize=optimize))
        assert abs(ours - pooled_sqnr(reference, both.outputs("qdq", optimize=optimize))) < 0.3
    return both


def pure(both: Both) -> Both:
    """Nothing was left in float."""
    assert not both.left
    assert both.kinds()["QuantizeLinear"] == len(both.samples[0])
    return agree(both)


# one row of the table after the other

STEPS = {
    "Conv": "Conv<group=8, pads=[1,1,1,1]>(h, g)",
    "Add": "Add(h, k)",
    "Mul": "Mul(h, k)",
    "Concat": "Concat<axis=2>(h, k)",
    "GlobalAveragePool": "GlobalAveragePool(h)",
    "AveragePool": "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1>(h)",
    "Sigmoid": "Sigmoid(h)",
    "LeakyRelu": "LeakyRelu<alpha=0.2>(h)",
    "MaxPool": "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(h)",
    "Pad": "Pad(h, pads)",
    "Resize": 'Resize<mode="nearest">(h, , scales)',
    "Reshape": "Reshape(h, shape)",
    "Transpose": "Transpose<perm=[0,1,3,2]>(h)",
    "Slice": "Slice(h, start, end)",
    "Gather": "Gather<axis=2>(h, some)",
    "GatherElements": "GatherElements<axis=2>(h, picks)",
    "DepthToSpace": "DepthToSpace<blocksize=2>(deep)",
    "Expand": "Expand(h, shape)",
    "Tile": "Tile(h, twice)",
}
CONSTANTS = {
    "v": weight(8, 3, 3, 3, seed=5),
    "g": weight(8, 1, 3, 3),
    "deep_w": weight(32, 3, 3, 3),
    "pads": i64(0, 0, 1, 1, 0, 0, 2, 2),
    "scales": f32(1, 1, 2, 2),
    "shape": i64(1, 8, 8, 8),
    "start": i64(0, 0, 2, 2),
    "end": i64(1, 8, 7, 7),
    "some": i64(0, 3, 5),
    "picks": np.random.default_rng(0).integers(0, 8, (1, 8, 8, 8)),
    "twice": i64(1, 1, 2, 1),
}


def between(step: str, wanted: Policy | None = None) -> Both:
    deep = f"deep {CONV}(x, deep_w) " if "deep" in step else ""
    body = f"h {CONV}(x, w) k {CONV}(x, v) {deep}m = {step} y {CONV}(m, a)"
    return written(model(body, inputs="float[1,3,8,8] x", weights=W | CONSTANTS), images(), wanted)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("op_type", STEPS)
def test_rows_between_two_convs(op_type: str, activations: str) -> None:
    if (op_type, activations) == ("DepthToSpace", "int8"):
        pytest.skip("onnxruntime 1.24 takes uint8 only, so this row does")
    text = f"defaults:\n  activations: {{dtype: {activations}, symmetric: false}}"
    both = pure(between(STEPS[op_type], policy(text)))
    kernel = both.kinds()[f"QLinear{op_type}"] or both.kinds()["QLinearConv" if op_type == "Conv" else op_type]
    assert kernel
    assert both.kinds()["DequantizeLinear"] == 1


def test_split() -> None:
    body = f"h {CONV}(x, w) l, r = Split<axis=1>(h, halves) s = Add(l, r) y = Conv(s, q)"
    graph = model(body, weights=W | {"halves": i64(4, 4), "q": weight(8, 4, 1, 1)})
    assert pure(written(graph, images())).kinds()["QLinearAdd"] == 1


@pytest.mark.parametrize("move", ["Flatten(h)", "Reshape(Identity(h), row)"])
def test_from_a_conv_to_a_gemm(move: str) -> None:
    middle = "f = Flatten(h)" if move.startswith("Flatten") else "i = Identity(h) f = Reshape(i, row)"
    graph = model(
        f"h {CONV}(x, w) {middle} y = Gemm<transB=1>(f, g, b)",
        inputs="float[1,3,8,8] x",
        weights=W | {"g": weight(5, 512), "b": weight(5), "row": i64(1, -1)},
    )
    both = pure(written(graph, images()))
    assert (both.kinds()["QGemm"], both.kinds()["DequantizeLinear"]) == (1, 0)


def test_squeezes() -> None:
    body = (
        f"h {CONV}(x, w) g = GlobalAveragePool(h) s = Squeeze(g, axes) m = Gemm(s, e, bias) r = Relu(m) "
        f"u = Unsqueeze(r, axes) z = Mul(h, u) y {CONV}(z, a)"
    )
    weights = W | {"axes": i64(2, 3), "e": weight(8, 8), "bias": weight(8)}
    assert pure(written(model(body, weights=weights), images())).kinds()["QGemm"] == 1


def test_where() -> None:
    graph = model(
        f"h {CONV}(x, w) k {CONV}(x, v) m = Where(mask, h, k) y {CONV}(m, a)",
        inputs="float[1,3,8,8] x, bool[1,8,8,8] mask",
        weights=W | CONSTANTS,
    )
    rng = np.random.default_rng(0)
    samples = [{**feeds, "mask": rng.random((1, 8, 8, 8)) < 0.5} for feeds in images()]
    both = agree(written(graph, samples))
    assert both.kinds()["QLinearWhere"] == 1


@pytest.mark.parametrize("spatial", ["8", "4,4,4"])
def test_convs_of_other_ranks(spatial: str) -> None:
    rank = spatial.count(",") + 1
    kernels = {name: weight(8, size, *[3] * rank, seed=size) for name, size in (("w", 3), ("a", 8))}
    same = f"<pads={[1] * 2 * rank}>"
    graph = model(
        f"h = Conv{same}(x, w, b) r = Relu(h) y = Conv{same}(r, a)",
        inputs=f"float[1,3,{spatial}] x",
        weights=kernels | {"b": weight(8)},
    )
    assert pure(written(graph, images(1, 3, *map(int, spatial.split(","))))).kinds()["QLinearConv"] == 2


def test_operands_that_are_broadcast_or_constant() -> None:
    graph = model(
        f"h {CONV}(x, w) e = Add(h, three) g = GlobalAveragePool(e) t = Sigmoid(g) m = Mul(t, h) y {CONV}(m, a)",
        weights=W | {"three": f32(3).reshape(())},
    )
    kinds = pure(written(graph, images())).kinds()
    assert (kinds["QLinearAdd"], kinds["QLinearMul"], kinds["QLinearSigmoid"]) == (1, 1, 1)


def test_shapes_are_asked_of_levels() -> None:
    graph = model(
        f"h {CONV}(x, w) s = Shape(h) n = Gather(s, first) c = Concat<axis=0>(n, rest) k {CONV}(h, a) "
        f"r = Reshape(k, c) y {CONV}(r, b)",
        weights=W | {"first": i64(0), "rest": i64(8, 4, 16)},
    )
    both = pure(written(graph, images()))
    assert (both.kinds()["Shape"], both.kinds()["DequantizeLinear"]) == (1, 1)


def test_pairs_that_the_model_brought_along() -> None:
    graph = model(
        f"k {CONV}(x, w) {PAIR.format('k')} ad = DequantizeLinear(aq, ws, wz) h {CONV}(kd, ad) {PAIR.format('h')} "
        f"y {CONV}(hd, b)",
        weights=W | GRID | WEIGHT_GRID,
    )
    both = agree(written(graph, images()))
    assert (both.kinds()["QLinearConv"], both.kinds()["Conv"]) == (2, 1)
    assert [op.operator for op in both.plan.floats] == ["h", "y"]


@pytest.mark.parametrize("axis", [1, -1])
def test_softmax_between_convs(axis: int) -> None:
    """Its kernel is one step off in every eighth place, and so is what onnxruntime makes of the QDQ model."""
    both = written(model(f"h {CONV}(x, w) m = Softmax<axis={axis}>(h) y {CONV}(m, a)", weights=W), images())
    assert both.kinds()["QLinearSoftmax"] == 1
    described, computed = (
        fetch(graph, ["m_quantized"], image())["m_quantized"].astype(int) for graph in (both.qdq, both.qoperator)
    )
    assert np.abs(described - computed).max() <= 1
    assert np.array_equal(both.outputs("qdq")[0][0], both.outputs("qoperator")[0][0])


# clamps


@pytest.mark.parametrize(("activations", "symmetric"), [("uint8", "false"), ("int8", "false"), ("int8", "true")])
def test_a_relu_with_quantized_input_and_output(activations: str, symmetric: str) -> None:
    body = f"h {CONV}(x, w) r = Relu(h) k {CONV}(r, a) l {CONV}(h, b) y = Add(k, l)"
    text = f"defaults:\n  activations: {{dtype: {activations}, symmetric: {symmetric}}}"
    both = pure(written(model(body, weights=W), images(), policy(text)))
    assert both.kinds()["QLinearLeakyRelu"] == 1


@pytest.mark.parametrize(("low", "high"), [(0, 6), (-1, 1), (-0.3, 0.1), (0, 0.2)])
@pytest.mark.parametrize("clamp", ["Relu", "Clip"])
def test_clamps_that_no_grid_absorbs_become_clips_of_levels(clamp: str, low: float, high: float) -> None:
    bounds = {"low": f32(low).reshape(()), "high": f32(high).reshape(())}
    made = "Relu(h)" if clamp == "Relu" else "Clip(h, low, high)"
    graph = model(f"h {CONV}(x, w) r = {made} y {CONV}(r, a)", weights=W | bounds)
    both = pure(written(graph, images(), policy("defaults:\n  activations: {dtype: int8, symmetric: true}")))
    assert both.kinds()["QLinearConv"] == 2
    assert both.kinds()["Clip"] == (both.plan.absorbed == ())
    assert not both.kinds()["Relu"]


# Gemm and MatMul


@pytest.mark.parametrize("bias", ["", "bias", "one", "row", "matrix"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int, bias: str) -> None:
    biases = {"one": f32(0.3), "row": weight(1, 16), "matrix": weight(2, 16, seed=3)}
    operands = f"x, a, {bias}" if bias else "x, a"
    graph = model(
        f"h = Gemm<transB={transposed}>({operands}) r = Relu(h) y = Gemm(r, b, bias)",
        inputs="float[2,16] x",
        weights=ROWS | biases,
    )
    both = pure(written(graph, rows(2, 16)))
    assert both.kinds() == {"QuantizeLinear": 1, "QGemm": 2}


def test_gemm_with_a_factor_and_a_turned_input() -> None:
    graph = model("h = Gemm<alpha=0.5, transA=1>(x, a) y = Gemm(h, b)", inputs="float[16,2] x", weights=ROWS)
    assert pure(written(graph, rows(16, 2))).kinds()["QGemm"] == 2


@pytest.mark.parametrize(
    ("dims", "kernels"),
    [
        ("2,16", {"QGemm": 1, "MatMulIntegerToFloat": 1}),
        ("1,2,16", {"QGemm": 1, "MatMulIntegerToFloat": 1, "Reshape": 2}),
        ("N,2,16", {"MatMulIntegerToFloat": 2, "Add": 1}),
    ],
)
def test_matmul_with_a_bias(dims: str, kernels: dict[str, int]) -> None:
    graph = model(
        "h = MatMul(x, a) k = Add(bias, h) r = Relu(k) y = MatMul(r, b)", inputs=f"float[{dims}] x", weights=ROWS
    )
    both = agree(written(graph, rows(2, 16) if dims.count(",") == 1 else rows(1, 2, 16)))
    found = {kind: count for kind, count in both.kinds().items() if kind not in {"QuantizeLinear", "Relu"}}
    assert found == kernels


def test_matmuls_of_activations_and_of_batches() -> None:
    graph = model(
        "p = MatMul(x, a) q = MatMul(x, b) t = Transpose<perm=[1,0]>(q) y = MatMul(p, t)",
        inputs="float[4,16] x",
        weights=ROWS,
    )
    kinds = pure(written(graph, rows(4, 16))).kinds()
    assert (kinds["QLinearMatMul"], kinds["MatMulIntegerToFloat"], kinds["Transpose"]) == (2, 1, 1)
    batched = model(
        "h = MatMul(x, k) s = Add(h, bias) y = MatMul(s, a)",
        inputs="float[3,4,16] x",
        weights=ROWS | {"k": weight(3, 16, 16)},
    )
    assert agree(written(batched, rows(3, 4, 16))).kinds()["MatMulIntegerToFloat"] == 2


def test_attention() -> None:
    both = agree(written(model(ATTENTION, inputs="float[1,9,16] x", weights=ATTENTION_WEIGHTS), rows(1, 9, 16)))
    kinds = both.kinds()
    assert kinds["QLinearMatMul"] + kinds["MatMulIntegerToFloat"] + kinds["QGemm"] == 8
    assert not kinds["MatMul"]


# fewer bits


@pytest.mark.parametrize("weights", ["int4", "uint4", "int8"])
@pytest.mark.parametrize("activations", ["uint4", "int4", "uint8"])
def test_low_bits(weights: str, activations: str) -> None:
    text = f"defaults:\n  weights: {{dtype: {weights}}}\n  activations: {{dtype: {activations}}}"
    graph = model(f"h {CONV}(x, w, bias) r = Relu(h) y {CONV}(r, a)", weights=W | {"bias": weight(8)})
    both = pure(written(graph, images(), policy(text)))
    assert both.kinds()["QLinearConv"] == 2
    assert both.kinds()["Cast"] == (2 if weights.endswith("4") else 0)
    assert both.kinds()["Clip"] == (3 if activations.endswith("4") else 0)
    assert both.qoperator.graph.initializers["w_quantized"].dtype == ir.DataType[weights.upper()]


@pytest.mark.skipif(RUNTIME < (1, 28), reason="this onnxruntime takes one zero point for all channels")
def test_asymmetric_weights() -> None:
    text = "defaults:\n  weights: {dtype: uint8, symmetric: false}"
    assert pure(written(model(RESIDUAL, weights=W), images(), policy(text))).kinds()["QLinearConv"] == 3


# refused before anything is written


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("activations: {dtype: uint16}", "ort-cpu", "activation 'x' is uint16: .* take 8 bits"),
        ("weights: {dtype: int16}", "ort-cpu", "weight 'w' is int16: .* take 8 bits"),
        ("activations: {dtype: int8}\n  weights: {dtype: uint8}", "ort-cpu", "Conv 'h' reads int8 'x' and uint8 'w'"),
        ("activations: {dtype: int8}\n  weights: {dtype: uint4}", "ort-cpu", "Conv 'h' reads int8 'x' and uint4 'w'"),
        ("bias: float", "tensorrt", "target tensorrt does not have"),
        ("bias: int32", "generic", "target generic does not have"),
    ],
)
def test_types_without_an_operator_are_refused(text: str, target: str, message: str) -> None:
    graph = model(f"h {CONV}(x, w) y {CONV}(h, a)", weights=W)
    prepare(graph, images())
    plan = planned(graph, images(), policy(f"defaults:\n  {text}", target=target))
    before = serialize(graph)
    with pytest.raises(TargetError, match=message) as caught:
        to_qoperator(graph, plan)
    assert "QDQ format" in caught.value.hint
    assert serialize(graph) == before


# what stays float is said


@pytest.mark.parametrize(
    ("step", "activations", "reason"),
    [
        ('Resize<mode="linear">(h, , scales)', "uint8", "onnxruntime's 8-bit Resize only copies exactly"),
        ("DepthToSpace<blocksize=2>(deep)", "int8", "onnxruntime 1.24 takes uint8 only"),
        ("SpaceToDepth<blocksize=1>(h)", "uint8", "onnxruntime has no integer operator for SpaceToDepth"),
    ],
)
def test_operators_without_an_integer_one_are_listed(step: str, activations: str, reason: str) -> None:
    text = f"defaults:\n  activations: {{dtype: {activations}, symmetric: false}}"
    both = between(step, policy(text))
    ((op, why),) = [(one.operator, one.reason) for one in both.left]
    assert op == "m"
    assert reason in why
    assert both.kinds()["QLinearConv"] == 2
    assert pooled_sqnr(both.outputs("qdq", optimize=False), both.outputs("qoperator", optimize=False)) > 40


def test_an_operator_that_the_plan_has_as_float_is_not_listed_again() -> None:
    both = agree(between("HardSwish(h)"))
    assert not both.left
    assert [op.operator for op in both.plan.floats] == ["m"]
    assert (both.kinds()["HardSwish"], both.kinds()["QLinearConv"]) == (1, 2)


def test_average_pools_with_dilations_stay_float() -> None:
    """onnxruntime 1.31 makes an invalid kernel of the QDQ model, so only the graph can be looked at."""
    graph = model(
        f"h {CONV}(x, w) m = AveragePool<kernel_shape=[3,3], dilations=[2,2]>(h) y {CONV}(m, a)", weights=W, opset=19
    )
    both = written(graph, images())
    assert [op.reason for op in both.left] == ["no integer kernel for AveragePool with dilations"]


def test_a_float_bias_keeps_its_conv_float() -> None:
    graph = model(f"h {CONV}(x, w, bias) y {CONV}(h, a)", weights=W | {"bias": weight(8)})
    both = agree(written(graph, images(), policy("defaults:\n  bias: float")), drift=40)
    assert both.left == (FloatOp("h", "Conv", "its bias is float"),)
    assert (both.kinds()["Conv"], both.kinds()["QLinearConv"]) == (1, 1)


def test_types_that_change_within_an_operator_keep_it_float() -> None:
    text = "rules:\n  - match: {names: [h]}\n    activations: {dtype: int8, symmetric: false}"
    both = written(model(f"h {CONV}(x, w) y {CONV}(h, a)", weights=W), images(), policy(text))
    assert [op.operator for op in both.left] == ["y"]
    assert "takes int8 and uint8 together" in both.left[0].reason


def test_what_the_policy_leaves_float_stays_float() -> None:
    graph = model(f"h {CONV}(x, w) k {CONV}(x, v) m = Add(h, k) y {CONV}(m, a)", weights=W | CONSTANTS)
    both = agree(written(graph, images(), policy().override(exclude=["m"])))
    assert both.kinds()["Add"] == 1
    assert not both.left


# against arithmetic on integers


def requantized(total: Array, scale: Array, out: QuantParams) -> Array:
    """``clip(round(M total) + z)`` with ``M = s_x s_w / s_y``."""
    levels = np.rint(total * (scale.astype(np.float64) / out.scale)) + out.zero_point
    return np.clip(levels, out.qmin, out.qmax)


def test_a_network_is_what_numpy_computes_on_integers() -> None:
    weights = {"w": weight(8, 3, 1, 1), "b": weight(8, gain=0.3), "k": weight(8, 8, 1, 1), "g": weight(5, 512)}
    graph = model(
        "h = Conv(x, w, b) r = Relu(h) k1 = Conv(r, k) s = Add(k1, r) f = Flatten(s) y = Gemm<transB=1>(f, g, c)",
        inputs="float[1,3,8,8] x",
        weights=weights | {"c": weight(5, seed=2)},
    )
    both = pure(written(graph, images()))
    entries = {(entry.tensor, entry.role): entry.params for entry in both.plan.entries}
    grids = {tensor: params for (tensor, role), params in entries.items() if role == "activation"}

    def conv(levels: Array, tensor: str, kernel: str, bias: Array | int, out: str) -> Array:
        grid = entries[kernel, "weight"]
        w = quantize(weights[kernel], grid)[:, :, 0, 0].astype(np.int64)
        total = np.einsum("nchw,oc->nohw", levels.astype(np.int64) - grids[tensor].zero_point, w)
        scale = (grids[tensor].scale * grid.scale).reshape(-1, 1, 1)
        return requantized(total + np.reshape(bias, (-1, 1, 1)), scale, grids[out])

    x = quantize(both.samples[0]["x"], grids["x"])
    r = conv(x, "x", "w", quantize(weights["b"], entries["b", "bias"]), "r")
    k1 = conv(r, "r", "k", 0, "k1")
    reals = [float(grids[name].scale) * (a - grids[name].zero_point) for name, a in (("k1", k1), ("r", r))]
    s = np.clip(np.rint((reals[0] + reals[1]) / grids["s"].scale) + grids["s"].zero_point, 0, 255)
    total = (s.reshape(1, -1) - grids["s"].zero_point) @ quantize(weights["g"], entries["g", "weight"]).T
    y = (total + quantize(weight(5, seed=2), entries["c", "bias"])) * grids["s"].scale * entries["g", "weight"].scale
    found = fetch(both.qoperator, ["x_quantized", "r_quantized", "k1_quantized", "s_quantized", "y"], both.samples[0])
    assert np.array_equal(found["x_quantized"], x)
    for name, expected in (("r", r), ("k1", k1), ("s", s)):
        assert (found[f"{name}_quantized"] == expected).mean() > 0.999
        assert np.abs(found[f"{name}_quantized"] - expected).max() <= 1
    assert np.allclose(found["y"], y, atol=1e-3 * np.abs(y).max())


# the writer


def test_the_same_plan_gives_the_same_bytes() -> None:
    def blob() -> bytes:
        graph = model(RESIDUAL, weights=W)
        prepare(graph, images())
        return serialize(to_qoperator(graph, planned(graph, images()))[0])

    assert blob() == blob()


def test_grids_are_compared_by_their_numbers() -> None:
    both = written(model(f"h {CONV}(x, w) m = Transpose<perm=[0,1,3,2]>(h) y {CONV}(m, a)", weights=W), images())
    h, m = both.plan.of("activation")[1:3]
    assert h.params == m.params
    other = replace(both.plan, entries=tuple(_moved(e) if e is m else e for e in both.plan.entries))
    graph = clone(both.original)
    prepare(graph, images())
    _, left = to_qoperator(graph, other)
    assert [(op.operator, op.reason) for op in left] == [("m", "its input and output are on different grids")]


def test_a_bias_on_another_grid_than_its_accumulator_keeps_its_conv_float() -> None:
    graph = model(f"h {CONV}(x, w, bias) y {CONV}(h, a)", weights=W | {"bias": weight(8)})
    prepare(graph, images())
    plan = planned(graph, images())
    (bias,) = plan.of("bias")
    doubled = replace(bias, params=replace(bias.params, scale=2 * bias.params.scale))
    other = replace(plan, entries=tuple(doubled if entry is bias else entry for entry in plan.entries))
    _, left = to_qoperator(graph, other)
    assert [(op.operator, op.reason) for op in left] == [("h", "its bias is on another grid than its accumulator")]


def _moved(entry: Entry) -> Entry:
    return replace(entry, params=replace(entry.params, zero_point=entry.params.zero_point + 1))


def cut(graph: ir.Model, names: list[str]) -> ir.Model:
    """The graph with every tensor of levels as an output, and a new input for those who read it."""
    found = clone(graph)
    values = {value.name: value for op in operators(found) for value in op.node.outputs}
    for name in names:
        value = values[name]
        zero = next(use.node.inputs[2] for use in value.uses() if use.node.op_type == "DequantizeLinear")
        assert zero is not None
        assert zero.dtype is not None
        fed = ir.Value(name=f"{name}_fed", type=ir.TensorType(zero.dtype))
        value.replace_all_uses_with(fed)
        found.graph.inputs.append(fed)
        found.graph.outputs.append(value)
    return found


@pytest.mark.parametrize(
    "path",
    [*SAMPLES, *(pytest.param(path, marks=pytest.mark.bench) for path in BENCH if path.stem in REAL)],
    ids=model_name,
)
def test_real_models(path: Path, tmp_path: Path) -> None:
    graph = load_model(path)
    both = written(graph, [plausible(graph)])
    assert not both.left
    assert len(both.levels()) == REAL[model_name(path)]
    fused, ours = both.outputs("qdq")[0], both.outputs("qoperator")[0]
    assert all(np.array_equal(a, b) for a, b in zip(fused, ours, strict=True))
    expected = both.outputs("original", optimize=False)
    assert abs(pooled_sqnr(expected, [ours]) - pooled_sqnr(expected, both.outputs("qdq"))) < 0.3
    computed = fetch(both.qoperator, both.levels(), both.samples[0])
    fed = {f"{name}_fed": levels for name, levels in computed.items()}
    described = fetch(cut(both.qdq, both.levels()), both.levels(), {**both.samples[0], **fed})
    for name, levels in computed.items():  # every operator on its own: what it reads is what integer operators computed
        assert np.abs(levels.astype(int) - described[name].astype(int)).max() <= 1, name
        assert (levels == described[name]).mean() > 0.97, name
    write_model(both.qoperator, tmp_path / "q.onnx")
    assert all(kernel.integer or kernel.op_type == "GRU" for kernel in census(tmp_path / "q.onnx"))
