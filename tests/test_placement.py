"""Where the integers are: which operators, which values carry a Q/DQ pair, and why the rest stays float."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest

from qconvert.errors import PlanError, PolicyError
from qconvert.graph import load_model, operators
from qconvert.plan import Placement, make_placement, make_plan
from qconvert.policy import Policy
from qconvert.prepare import prepare
from qconvert.targets import TARGETS
from tests.models import f32, i64, image, model, placed, policy, weight

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
SAMPLES = sorted((HERE.parent / "sample_models").glob("*/model.onnx"))
BENCH = sorted((HERE.parents[1] / "shared" / "bench" / "models").glob("*.onnx"))

W = {name: weight(8, 8, 3, 3, seed=seed) for seed, name in enumerate("abcd")} | {
    "w": weight(8, 3, 3, 3),
    "p": weight(8, 8, 1, 1),
}
CONV = "= Conv<pads=[1,1,1,1]>"


def kinds(found: Placement) -> list[str]:
    return [op.op_type for op in found.integer.values()]


def why(found: Placement, name: str) -> str:
    return next(op.reason for op in found.floats if op.operator == name)


def pairs(found: Placement) -> set[str]:
    return set(found.values)


# clamps


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("clamp", ["Relu(h)", "Clip(h, zero, six)"])
def test_no_pair_between_conv_and_its_clamp(clamp: str, target: str) -> None:
    bounds = {"zero": f32(0).reshape(()), "six": f32(6).reshape(())}
    graph = model(f"h {CONV}(x, w) r = {clamp} y {CONV}(r, a)", weights=W | bounds)
    found = placed(graph, policy(target=target))
    assert pairs(found) == ({"x", "r"} if TARGETS[target].outputs == "free" else {"x", "r", "y"})


def test_a_clip_with_computed_bounds_is_no_clamp() -> None:
    graph = model(
        f"h {CONV}(x, w) top = ReduceMax<keepdims=0>(x) r = Clip(h, , top) y {CONV}(r, a)", weights=W, opset=13
    )
    found = placed(graph)
    assert pairs(found) == {"x", "h", "r", "y"}
    assert not found.clamps


def test_a_conv_with_two_readers_is_quantized_before_its_relu() -> None:
    found = placed(model(f"h {CONV}(x, w) r = Relu(h) k {CONV}(r, a) l {CONV}(h, b) y = Add(k, l)", weights=W))
    assert {"h", "r"} <= pairs(found)
    assert not found.clamps


def test_a_conv_that_is_an_output_is_quantized_before_its_relu() -> None:
    graph = model(f"h {CONV}(x, w) r = Relu(h) y {CONV}(r, a)", outputs="float[] y, float[] h", weights=W)
    found = placed(graph)
    assert {(site.operator, site.operand) for site in found.values["h"]} == {("r", 0), ("", 1)}


def test_an_excluded_clamp_is_not_fused() -> None:
    graph = model(f"h {CONV}(x, w) r = Relu(h) y {CONV}(r, a)", weights=W)
    found = placed(graph, policy().override(exclude=["r"]))
    assert pairs(found) == {"x", "h", "r", "y"}
    assert why(found, "r") == "left float by --exclude r"


# residuals, concatenations, moves


RESIDUAL = f"h {CONV}(x, w) r = Relu(h) k {CONV}(r, a) s = Add(k, r) t = Relu(s) y {CONV}(t, b)"


def test_residual_add_on_ort() -> None:
    found = placed(model(RESIDUAL, weights=W))
    assert kinds(found) == ["Conv", "Conv", "Add", "Conv"]
    assert pairs(found) == {"x", "r", "k", "t", "y"}


def test_residual_add_on_tensorrt_quantizes_the_skip_branch_alone() -> None:
    found = placed(model(RESIDUAL, weights=W), policy(target="tensorrt"))
    assert pairs(found) == {"x", "r", "t"}
    assert ("s", 1) in {(site.operator, site.operand) for site in found.values["r"]}


@pytest.mark.parametrize("order", ["h, k", "k, h", "h, k, h", "h, m"])
def test_concat_operands_share_a_scale_on_tensorrt(order: str) -> None:
    graph = model(
        f"h {CONV}(x, w) k {CONV}(x, v) m = MaxPool<kernel_shape=[1,1]>(k) "
        f"c = Concat<axis=1>({order}) d = Concat<axis=1>(k, c) y = Conv(d, e)",
        weights={"w": W["w"], "v": weight(8, 3, 3, 3, seed=1), "e": weight(8, 8 * (order.count(",") + 2), 1, 1)},
    )
    found = placed(graph, policy(target="tensorrt"))
    tied = {found.root(name) for name in ("h", "k", "c", "d")}
    assert len(tied) == 1


@pytest.mark.parametrize(
    "move",
    [
        "MaxPool<kernel_shape=[2,2]>(h)",
        "Transpose<perm=[0,1,3,2]>(h)",
        "Slice(h, start, end)",
        "Pad(h, pads)",
        'Resize<mode="linear">(h, none, scales)',
        "Reshape(h, shape)",
    ],
)
def test_moves_keep_the_scale_of_their_input(move: str) -> None:
    extra = {
        "start": i64(0, 0, 1, 1),
        "end": i64(1, 8, 7, 7),
        "pads": i64(0, 0, 1, 1, 0, 0, 1, 1),
        "none": f32(),
        "scales": f32(1, 1, 2, 2),
        "shape": i64(1, 8, 4, 16),
    }
    found = placed(model(f"h {CONV}(x, w) m = {move} y {CONV}(m, a)", weights=W | extra))
    assert found.root("m") == found.root("h")
    assert found.root("y") != found.root("h")
    assert found.why["m"] == "same scale as h"


def test_only_float_results_of_a_move_are_quantized() -> None:
    graph = model(
        f"h {CONV}(x, w) m, where = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h) k {CONV}(m, a) "
        "y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(k, where)",
        weights=W,
    )
    assert "where" not in pairs(placed(graph))


def test_a_pad_with_another_value_stays_float() -> None:
    extra = {"pads": i64(0, 0, 1, 1, 0, 0, 1, 1), "one": f32(1).reshape(())}
    found = placed(model(f"h {CONV}(x, w) m = Pad(h, pads, one) y {CONV}(m, a)", weights=W | extra))
    assert why(found, "m") == "Pad with a value other than 0"
    assert {"h", "m"} <= pairs(found)


def test_a_cubic_resize_stays_float() -> None:
    extra = {"none": f32(), "scales": f32(1, 1, 2, 2)}
    graph = model(f'h {CONV}(x, w) m = Resize<mode="cubic">(h, none, scales) y {CONV}(m, a)', weights=W | extra)
    assert why(placed(graph), "m") == "cubic Resize leaves the range of its input"


# what stays float


def test_box_decoding_stays_float() -> None:
    graph = model(
        f"h {CONV}(x, w) k {CONV}(h, a) r = Reshape(k, shape) t = Slice(r, zero, four, last) "
        "e = Exp(t) m = Mul(e, anchors) q = Slice(r, four, eight, last) n = Add(q, anchors) y = Concat<axis=2>(n, m)",
        weights=W
        | {
            "shape": i64(1, 64, 8),
            "zero": i64(0),
            "four": i64(4),
            "eight": i64(8),
            "last": i64(2),
            "anchors": weight(64, 4),
        },
    )
    found = placed(graph)
    assert kinds(found) == ["Conv", "Conv"]
    assert why(found, "e") == "no integer kernel for Exp"
    assert why(found, "m") == "not every input comes from an integer operator"
    assert why(found, "r") == "no integer operator reads its result"


ATTENTION = """
    q = MatMul(x, wq) qb = Add(q, bq) k = MatMul(x, wk) v = MatMul(x, wv)
    kt = Transpose<perm=[0,2,1]>(k) s = MatMul(qb, kt) sc = Mul(s, scale) pr = Softmax(sc) o = MatMul(pr, v)
    ob = MatMul(o, wo) res = Add(ob, x) n = LayerNormalization(res, g, bq)
    u = MatMul(n, wu) ub = Add(u, bu) d = Div(ub, root) e = Erf(d) f = Add(e, one) m = Mul(ub, f) gl = Mul(m, half)
    w2 = MatMul(gl, wd) y = Add(w2, bq)
"""
ATTENTION_WEIGHTS = {
    **{name: weight(16, 16, seed=seed) for seed, name in enumerate(("wq", "wk", "wv", "wo"))},
    "bq": weight(16),
    "g": f32(*[1.0] * 16),
    "scale": f32(0.25).reshape(()),
    "wu": weight(16, 32),
    "bu": weight(32),
    "wd": weight(32, 16),
    "root": f32(2**0.5).reshape(()),
    "one": f32(1).reshape(()),
    "half": f32(0.5).reshape(()),
}


def attention() -> ir.Model:
    return model(ATTENTION, inputs="float[1,9,16] x", weights=ATTENTION_WEIGHTS)


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if not target.whole])
def test_attention(target: str) -> None:
    found = placed(attention(), policy(target=target))
    assert kinds(found).count("MatMul") == 8
    assert set(kinds(found)) == {"MatMul", "Transpose"}
    assert {op.op_type for op in found.floats} == {"Add", "Mul", "Div", "Erf", "Softmax", "LayerNormalization"}
    assert why(found, "qb") == "bias of a MatMul: added in float by its kernel"
    assert pairs(found) == {"x", "qb", "k", "kt", "v", "pr", "o", "n", "gl"} - ({"x"} if not found else set())


def test_recurrent_operators_stay_float() -> None:
    extra = {"wl": weight(1, 64, 16), "rl": weight(1, 64, 16)}
    graph = model(
        "h = MatMul(x, a) l, hn, cn = LSTM<hidden_size=16>(h, wl, rl) s = Squeeze(l, axes) y = MatMul(s, a)",
        inputs="float[5,1,16] x",
        weights=extra | {"a": weight(16, 16), "axes": i64(1)},
    )
    found = placed(graph)
    assert kinds(found) == ["MatMul", "MatMul"]
    assert why(found, "l") == "no integer kernel for LSTM"


def test_contrib_operators_stay_float_and_what_follows_is_quantized() -> None:
    graph = model(
        "h = MatMul(x, a) g = com.microsoft.Gelu(h) y = MatMul(g, b)",
        inputs="float[2,16] x",
        weights={"a": weight(16, 16), "b": weight(16, 16, seed=1)},
        domains=["com.microsoft"],
    )
    found = placed(graph)
    assert kinds(found) == ["MatMul", "MatMul"]
    assert why(found, "g") == "no integer kernel for com.microsoft::Gelu"
    assert pairs(found) == {"x", "g"}


@pytest.mark.parametrize("factor", ["alpha", "beta"])
def test_gemms_that_no_kernel_computes(factor: str) -> None:
    graph = model(
        f"h = Gemm(x, w, b) y = Gemm<{factor}=0.5>(h, w, b)",
        inputs="float[2,8] x",
        weights={"w": weight(8, 8), "b": weight(8)},
    )
    assert why(placed(graph), "y") == f"Gemm with a bias and {factor} = 0.5: no integer kernel computes that"


def test_operators_in_branches_stay_float() -> None:
    graph = model(
        f"h {CONV}(x, w) z = If(c) <then_branch = t () => (float[] o) {{ o {CONV}(h, a) }}, "
        f"else_branch = e () => (float[] o) {{ o = Relu(h) }}> y {CONV}(z, b)",
        inputs="float[N,3,8,8] x, bool c",
        weights=W,
    )
    found = placed(graph)
    assert kinds(found) == ["Conv", "Conv"]
    assert {site.operator for site in found.values["h"]} == {"o", "o_2"}
    reasons = {op.operator: op.reason for op in found.floats}
    assert reasons["o"].startswith("inside If(z).")
    assert reasons["o_2"].endswith("values in a subgraph cannot be observed from outside")


def nothing(graph: ir.Model) -> str:
    prepare(graph, ())
    with pytest.raises(PlanError) as caught:
        make_plan(graph, Policy(), {})
    assert caught.value.hint
    return str(caught.value)


def test_nothing_to_quantize() -> None:
    graph = model(
        "z = If(c) <then_branch = t () => (float[] o) { o = Conv(x, w) }, "
        "else_branch = e () => (float[] o) { o = Neg(x) }> y = Relu(z)",
        inputs="float[N,3,8,8] x, bool c",
        weights=W,
    )
    assert nothing(graph).startswith("nothing to quantize: inside If(z).then_branch")
    doubles = model(
        "y = MatMul(x, w)", inputs="double[2,8] x", outputs="double[] y", weights={"w": weight(8, 8).astype(float)}
    )
    assert nothing(doubles) == "nothing to quantize: not float32"
    text = "y = ai.onnx.ml.Normalizer(x)"
    assert "no integer kernel for ai.onnx.ml::Normalizer" in nothing(
        model(text, inputs="float[2,8] x", domains=["ai.onnx.ml"])
    )
    assert nothing(model("y = Neg(x)", inputs="int64[2] x", outputs="int64[2] y")) == (
        "nothing to quantize: it computes on no float tensor"
    )


PAIR = "{0}q = QuantizeLinear({0}, s, z) {0}d = DequantizeLinear({0}q, s, z)"
GRID = {"s": f32(0.02).reshape(()), "z": i64(128).astype("uint8").reshape(())}
WEIGHT_GRID = {
    "aq": (100 * W["a"]).astype("int8"),
    "ws": f32(0.01).reshape(()),
    "wz": i64(0).astype("int8").reshape(()),
}


def test_a_quantized_model_has_nothing_left() -> None:
    graph = model(
        f"{PAIR.format('x')} ad = DequantizeLinear(aq, ws, wz) h {CONV}(xd, ad) {PAIR.format('h')} y = Relu(hd)",
        inputs="float[N,8,8,8] x",
        weights=GRID | WEIGHT_GRID,
    )
    assert nothing(graph) == "nothing to quantize: already quantized in the model"


def test_the_rest_of_a_partly_quantized_model() -> None:
    graph = model(
        f"k {CONV}(x, w) {PAIR.format('k')} ad = DequantizeLinear(aq, ws, wz) h {CONV}(kd, ad) {PAIR.format('h')} "
        f"y {CONV}(hd, b)  l {CONV}(x, w) m {CONV}(l, a) ",
        outputs="float[] y, float[] m",
        weights=W | GRID | WEIGHT_GRID,
    )
    found = placed(graph)
    assert [op.name for op in found.integer.values()] == ["k", "l", "m"]
    assert pairs(found) == {"x", "l", "m"}
    assert why(found, "h") == why(found, "y") == "already quantized in the model"


# the policy


def rules(text: str, graph: ir.Model) -> Placement:
    return placed(graph, policy(f"rules:\n{text}"))


CHAIN = f"h {CONV}(x, w) k {CONV}(h, a) l {CONV}(k, b) y {CONV}(l, c)"


@pytest.mark.parametrize(
    ("match", "left"),
    [
        ("position: first", ["h"]),
        ("position: last", ["y"]),
        ("op_types: [Conv]", ["h", "k", "l", "y"]),
        ("names: ['[kl]']", ["k", "l"]),
        ("any: ['h', 'y']", ["h", "y"]),
    ],
)
def test_rules_leave_operators_float(match: str, left: list[str]) -> None:
    found = rules(f"  - match: {{{match}}}\n    float: true", model(CHAIN, weights=W))
    assert [op.operator for op in found.floats] == left
    assert all(op.reason.startswith("left float by rules[0]") and op.chosen for op in found.floats)


def test_a_rule_without_a_match_is_an_error() -> None:
    with pytest.raises(PolicyError, match=r"rules\[0\].*Convv"):
        rules("  - match: {op_types: [Convv]}\n    float: true", model(CHAIN, weights=W))


def test_placement_leaves_the_graph_alone() -> None:
    graph = model(RESIDUAL, weights=W)
    prepare(graph, [image()])
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    for target in TARGETS:
        make_placement(graph, policy(target=target))
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before


# golden decisions


def decisions(path: Path) -> list[str]:
    graph = load_model(path)
    prepare(graph, ())
    found, _, _ = make_placement(graph, Policy())
    decided = {op.operator: op.reason for op in found.floats}
    decided.update(dict.fromkeys(found.clamps, "fused"))
    decided.update(dict.fromkeys(found.integer, "integer"))
    marks = {name: " | Q/DQ" if name in found.values else "" for name in decided}
    return [
        f"{op.name} | {op.op_type} | {decided[op.name]}{marks[op.name]}"
        for op in operators(graph)
        if op.name in decided
    ]


@pytest.mark.parametrize(
    "path",
    [*SAMPLES, *(pytest.param(path, marks=pytest.mark.bench) for path in BENCH)],
    ids=lambda path: path.parent.name if path.name == "model.onnx" else path.stem,
)
def test_golden_decisions(path: Path, request: pytest.FixtureRequest) -> None:
    """Delete a file under tests/golden to record the decisions anew."""
    name = path.parent.name if path.name == "model.onnx" else path.stem
    golden = GOLDEN / f"{name}.json"
    found = decisions(path)
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n")
        pytest.fail(f"{golden} written: read it and run again")
    assert found == json.loads(golden.read_text()), request.node.name


def test_expectations_over_a_softmax_at_the_end_are_decoding() -> None:
    graph = model(
        f"h {CONV}(x, w) s = Softmax<axis=1>(h) t = Transpose<perm=[0,1,3,2]>(s) d = Conv(t, e) y = Exp(d)",
        weights={**W, "e": weight(1, *W["w"].shape[:1], 1, 1)},
    )
    found = placed(graph)
    assert why(found, "d") == "post-processing: an expectation over a Softmax, no heavy operator follows"
    assert pairs(found) == {"x", "h"}


@pytest.mark.parametrize("last", [f"y {CONV}(s, a)", f"d = Conv(s, e) y {CONV}(d, f)"])
def test_a_softmax_inside_the_network_is_not_decoding(last: str) -> None:
    weights = {**W, "e": weight(1, *W["w"].shape[:1], 1, 1), "f": weight(4, 1, 3, 3)}
    found = placed(model(f"h {CONV}(x, w) s = Softmax<axis=1>(h) {last}", weights=weights))
    assert "y" in found.integer
