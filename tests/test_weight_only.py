"""Weights alone in few bits: grids, forms, packing, streaming, proofs; always against plain numpy and onnxruntime."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qconvert.tensors
import qconvert.weight_only
from qconvert.errors import DataError, ModelError, OutputError, PlanError, PolicyError, QConvertError, TargetError
from qconvert.float8 import FLOAT8_TYPES
from qconvert.graph import initializers, load_model, operators
from qconvert.listener import Listener
from qconvert.metrics import sqnr_db
from qconvert.numerics import QUANT_TYPES, QuantParams, fake_quantize
from qconvert.plan import Plan
from qconvert.plan.weight_only import make_weight_plan
from qconvert.policy import Policy, loads
from qconvert.prepare import prepare, raise_opset
from qconvert.random_inputs import random_feeds
from qconvert.rewrite.packing import Stored, native, pack, packed_sizes, rows, unpack, weight_sqnr
from qconvert.rewrite.weight_forms import needed_opset, readings
from qconvert.rewrite.weight_only import Written, to_weight_only
from qconvert.session import open_session, run
from qconvert.weight_only import QuantizedWeights, quantize_weights
from tests.big_model import Size, decoder, write
from tests.models import RUNTIME, f32, i64, model, weight
from tests.tiny import saved

SHARED = Path(__file__).resolve().parents[2] / "shared" / "bench"
VIT = Path(__file__).resolve().parents[1] / "sample_models" / "digits_vit" / "model.onnx"

Array = npt.NDArray[Any]
TWO_BITS = pytest.mark.skipif(RUNTIME < (1, 24), reason="this onnxruntime has no 2-bit types")
EVEN = [
    pytest.param(name, marks=TWO_BITS if dtype.bits == 2 else ())
    for name, dtype in (QUANT_TYPES | FLOAT8_TYPES).items()
    if dtype.signed
]
DTYPES = [
    pytest.param(name, marks=TWO_BITS if dtype.bits == 2 else ())
    for name, dtype in (QUANT_TYPES | FLOAT8_TYPES).items()
]
TARGETS = ("ort-cpu", "generic")
EXACT = 100.0
"""dB: the same products added in another order."""


@dataclass(frozen=True)
class Case:
    """A model with one weight, its inputs, and the axes of output channels and of the sum."""

    body: str
    weights: Mapping[str, Array]
    feeds: Mapping[str, Array]
    channel: int
    inner: int | None
    inputs: str = "float[2,3,50] x"


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


ROWS = {"x": normal(2, 3, 50)}
FLAT, FLAT_INPUT = {"x": normal(4, 50)}, "float[4,50] x"
PIXELS, PIXELS_INPUT = {"x": normal(1, 4, 6, 6)}, "float[1,4,6,6] x"
CASES = {
    "matmul": Case("y = MatMul (x, w)", {"w": weight(50, 7)}, ROWS, 1, 0),
    "batched": Case("y = MatMul (x, w)", {"w": normal(2, 50, 7)}, ROWS, 2, 1),
    "vector": Case("y = MatMul (x, w)", {"w": normal(50)}, ROWS, 0, None),
    "transposed": Case("t = Transpose <perm = [1, 0]> (w)\ny = MatMul (x, t)", {"w": normal(7, 50)}, ROWS, 0, 1),
    "gemm": Case("y = Gemm (x, w, b)", {"w": weight(50, 7), "b": normal(7)}, FLAT, 1, 0, FLAT_INPUT),
    "gemm_t": Case("y = Gemm <transB = 1> (x, w)", {"w": normal(7, 50)}, FLAT, 0, 1, FLAT_INPUT),
    "gemm_alpha": Case("y = Gemm <alpha = 0.5> (x, w)", {"w": weight(50, 7)}, FLAT, 1, 0, FLAT_INPUT),
    "gemm_row": Case("y = Gemm (x, w, b)", {"w": weight(50, 7), "b": normal(1, 7)}, FLAT, 1, 0, FLAT_INPUT),
    "conv": Case("y = Conv (x, w)", {"w": weight(8, 4, 3, 3)}, PIXELS, 0, None, PIXELS_INPUT),
    "depthwise": Case("y = Conv <group = 4> (x, w)", {"w": weight(8, 1, 3, 3)}, PIXELS, 0, None, PIXELS_INPUT),
    "conv_transpose": Case("y = ConvTranspose (x, w)", {"w": weight(4, 5, 3, 3)}, PIXELS, 1, None, PIXELS_INPUT),
    "gather": Case("y = Gather (w, x)", {"w": normal(9, 50)}, {"x": i64(0, 8, 3, -1)}, 0, 1, "int64[4] x"),
}
every_case = pytest.mark.parametrize("name", CASES)
every_target = pytest.mark.parametrize("target", TARGETS)


class Notes(Listener):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)

    def __str__(self) -> str:
        return "\n".join(self.texts)


def policy(
    dtype: str = "int4",
    scheme: str = "per-channel",
    *,
    group: int | None = None,
    target: str = "ort-cpu",
    symmetric: bool | None = None,
    calibrator: str = "",
    rules: str = "",
) -> Policy:
    """The policy that a file with these settings is."""
    keys = {"dtype": dtype, "scheme": scheme, "group_size": group, "symmetric": symmetric, "calibrator": calibrator}
    weights = ", ".join(f"{key}: {str(value).lower()}" for key, value in keys.items() if value not in {None, ""})
    return loads(f"version: 1\ntarget: {target}\ndefaults:\n  weights: {{{weights}}}\n{rules}")


def built(case: Case, *, opset: int = 17) -> ir.Model:
    return model(case.body, inputs=case.inputs, weights=case.weights, opset=opset)


def rewritten(graph: ir.Model, wanted: Policy) -> tuple[Plan, Written]:
    prepare(graph, (), fold=False)
    plan = make_weight_plan(graph, wanted)
    raise_opset(graph, needed_opset(readings(graph, plan)))
    return plan, to_weight_only(graph, plan)


def fake(array: Array, params: QuantParams) -> Array:
    """The weight on its grid, by plain numpy."""
    if params.dtype.name in FLOAT8_TYPES:
        shape = [-1 if axis == params.axis else 1 for axis in range(array.ndim)]
        scale = params.scale if params.axis is None else params.scale.reshape(shape)
        kind = {"float8e4m3fn": ml_dtypes.float8_e4m3fn, "float8e5m2": ml_dtypes.float8_e5m2}[params.dtype.name]
        return np.asarray((array / scale).astype(kind).astype(np.float32) * scale, np.float32)
    return fake_quantize(array, params)


def outputs(graph: ir.Model | Path, feeds: Mapping[str, Array], *, optimize: bool = False) -> list[Array]:
    return run(open_session(graph, optimize=optimize), feeds)


def expected(case: Case, plan: Plan) -> Array:
    """What the float model gives with every weight on its grid."""
    held = {entry.tensor: fake(case.weights[entry.tensor], entry.params) for entry in plan.entries}
    return outputs(model(case.body, inputs=case.inputs, weights={**case.weights, **held}), case.feeds)[0]


def stored(graph: ir.Model) -> dict[str, ir.TensorProtocol]:
    return {value.name or "": tensor for value, tensor in initializers(graph)}


def kinds(graph: ir.Model) -> list[str]:
    return [op.op_type for op in operators(graph)]


# every operator, type and granularity


@every_case
@every_target
@pytest.mark.parametrize("dtype", EVEN)
@pytest.mark.parametrize("scheme", ["per-tensor", "per-channel", "per-group"])
def test_it_computes_what_numpy_says(name: str, target: str, dtype: str, scheme: str) -> None:
    if scheme == "per-group" and dtype in FLOAT8_TYPES:
        pytest.skip("8-bit floats have no groups")
    case = CASES[name]
    plan, written = rewritten(
        built(case), policy(dtype, scheme, group=16 if "group" in scheme else None, target=target)
    )
    params = plan.entries[0].params
    grouped = scheme == "per-group" and case.inner is not None
    channelled = scheme != "per-tensor" and name != "vector"
    assert params.axis == (case.inner if grouped else case.channel if channelled else None)
    assert params.block_size == (16 if grouped else None)
    want = expected(case, plan)
    assert sqnr_db(want, outputs(written.model, case.feeds)[0]) > EXACT
    if target == "ort-cpu":  # elsewhere onnxruntime rounds activations
        assert sqnr_db(want, outputs(written.model, case.feeds, optimize=True)[0]) > EXACT
    assert "w" not in stored(written.model)
    source = case.weights["w"]
    for one in written.stored:
        found = weight_sqnr(ir.Tensor(source), stored(written.model)[one.tensor], one)
        assert found == pytest.approx(sqnr_db(source, fake(source, params)), abs=1e-6)


@every_case
@every_target
@pytest.mark.parametrize(
    ("dtype", "group"),
    [
        ("uint16", None),
        ("uint8", None),
        ("uint8", 16),
        ("uint4", None),
        ("uint4", 25),
        pytest.param("uint2", 16, marks=TWO_BITS),
    ],
)
def test_zero_points_and_odd_groups(name: str, target: str, dtype: str, group: int | None) -> None:
    case = CASES[name]
    case = Case(
        case.body,
        {**case.weights, "w": case.weights["w"] + 0.4 * case.weights["w"].std()},
        case.feeds,
        0,
        0,
        case.inputs,
    )
    scheme = "per-group" if group else "per-channel"
    plan, written = rewritten(built(case), policy(dtype, scheme, group=group, target=target, symmetric=False))
    assert plan.entries[0].params.zero_point.any()
    for optimize in (False, True) if target == "ort-cpu" else (False,):
        assert sqnr_db(expected(case, plan), outputs(written.model, case.feeds, optimize=optimize)[0]) > EXACT


@pytest.mark.parametrize(
    ("name", "dtype", "group", "form"),
    [
        ("matmul", "int4", 16, "com.microsoft::MatMulNBits"),
        ("matmul", "int4", None, "com.microsoft::MatMulNBits"),
        ("matmul", "int8", None, "Mul"),
        ("transposed", "int4", 32, "com.microsoft::MatMulNBits"),
        ("gemm", "int4", 16, "com.microsoft::MatMulNBits"),
        ("gemm_t", "int4", 16, "com.microsoft::MatMulNBits"),
        ("gather", "int4", 16, "com.microsoft::GatherBlockQuantized"),
        ("gather", "int8", None, "com.microsoft::GatherBlockQuantized"),
        ("matmul", "int16", None, "Mul"),
        ("matmul", "int4", 25, "Reshape"),
        ("matmul", "int4", 12, "DequantizeLinear"),
        ("gemm_alpha", "int4", None, "Mul"),
        ("gemm_row", "int4", None, "Mul"),
        ("batched", "int4", None, "Mul"),
        ("conv", "int4", None, "Mul"),
    ],
)
def test_forms_of_onnxruntime(name: str, dtype: str, group: int | None, form: str) -> None:
    wanted = policy(dtype, "per-group" if group else "per-channel", group=group)
    _, written = rewritten(built(CASES[name]), wanted)
    found = kinds(written.model)
    assert form in found
    assert "DequantizeLinear" not in found or form == "DequantizeLinear"
    assert ("com.microsoft" in written.model.opset_imports) == form.startswith("com")
    assert not ("Transpose" in found and form.startswith("com"))


@pytest.mark.parametrize("name", ["conv", "depthwise", "matmul", "gemm_alpha"])
def test_onnxruntime_computes_folded_weights_once(name: str, tmp_path: Path) -> None:
    _, written = rewritten(built(CASES[name]), policy("int16"))
    optimized = tmp_path / "optimized.onnx"
    open_session(written.model, optimized_path=optimized)
    left = [node.op_type for node in onnx.load(optimized).graph.node]
    assert not {"Cast", "Sub", "Mul", "DequantizeLinear"} & set(left)


def test_matmul_nbits_rounds_no_activations() -> None:
    _, written = rewritten(built(CASES["matmul"]), policy())
    node = next(op.node for op in operators(written.model) if op.node.op_type == "MatMulNBits")
    assert node.attributes["accuracy_level"].as_int() == 1
    assert node.outputs[0].name == "y"


def test_other_runtimes_get_no_operators_of_onnxruntime() -> None:
    for target, dtype in (("generic", "int4"), ("openvino", "uint4"), ("tensorrt", "int8")):
        _, written = rewritten(built(CASES["matmul"]), policy(dtype, target=target))
        assert kinds(written.model) == ["DequantizeLinear", "MatMul"]
        assert "com.microsoft" not in written.model.opset_imports


# grids


def mse(array: Array, entry_params: QuantParams) -> float:
    return float(np.square(array - fake_quantize(array, entry_params)).sum())


def test_low_bits_are_searched_and_others_cover_all() -> None:
    for dtype, method in (
        ("int4", "mse"),
        ("int8", "minmax"),
        ("int16", "minmax"),
        ("float8e5m2", "largest magnitude"),
    ):
        plan, _ = rewritten(built(CASES["matmul"]), policy(dtype))
        assert plan.entries[0].method == method
    plan, _ = rewritten(built(CASES["matmul"]), policy("int4", calibrator="minmax"))
    assert plan.entries[0].method == "minmax"
    assert np.abs(plan.entries[0].params.high - np.abs(CASES["matmul"].weights["w"]).max(0)).max() < 1e-6


def test_a_grid_is_turned_around_where_that_is_better() -> None:
    array = np.abs(normal(64, 6)) * np.array([1, -1, 1, -1, 1, -1], np.float32)
    graph = model("y = MatMul (x, w)", inputs="float[2,3,64] x", weights={"w": array})
    turned = make_weight_plan(prepare(graph, ()).model, policy("int4")).entries[0].params
    straight = make_weight_plan(graph, policy("int4", target="generic")).entries[0].params
    assert (turned.scale[::2] < 0).all()
    assert (straight.scale > 0).all()
    assert mse(array, turned) < mse(array, straight)
    assert (turned.low <= 0).all()
    assert (turned.high >= 0).all()


@pytest.mark.parametrize("dtype", FLOAT8_TYPES)
def test_the_largest_weight_is_the_largest_float(dtype: str) -> None:
    plan, written = rewritten(built(CASES["matmul"]), policy(dtype))
    levels = stored(written.model)[written.stored[0].tensor].numpy().astype(np.float32)
    assert (np.abs(levels).max(0) == FLOAT8_TYPES[dtype].largest).all()
    assert plan.entries[0].params.high == pytest.approx(np.abs(CASES["matmul"].weights["w"]).max(0), rel=1e-6)


@every_case
@pytest.mark.parametrize("dtype", ["int8", "int4", "uint4", "float8e4m3fn"])
def test_slabs_change_nothing(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, wanted = CASES[name], policy(dtype, "per-channel" if "float" in dtype else "per-group")
    plan, written = rewritten(built(case), wanted)
    monkeypatch.setattr(qconvert.tensors, "SLAB", 1)
    other, small = rewritten(built(case), wanted)
    assert plan.entries == other.entries
    large = stored(written.model)
    assert {key: one.tobytes() for key, one in stored(small.model).items()} == {
        k: t.tobytes() for k, t in large.items()
    }
    source = ir.Tensor(case.weights["w"])
    for one in small.stored:
        cut = weight_sqnr(source, large[one.tensor], one)
        monkeypatch.undo()
        assert cut == pytest.approx(weight_sqnr(source, large[one.tensor], one), abs=1e-9)


# weights with several readers


TABLE = normal(12, 32)
TIED = """
e = Gather (table, x)
h = Relu (e)
t = Transpose <perm = [1, 0]> (table)
y = MatMul (h, t)
"""


def tied() -> ir.Model:
    return model(TIED, inputs="int64[1,3] x", weights={"table": TABLE})


@every_target
@pytest.mark.parametrize(("dtype", "group"), [("int4", 16), ("int8", 32), ("uint4", None), ("int16", None)])
def test_a_tied_embedding_is_stored_once(target: str, dtype: str, group: int | None) -> None:
    wanted = policy(dtype, "per-group" if group else "per-channel", group=group, target=target)
    plan, written = rewritten(tied(), wanted)
    assert [entry.tensor for entry in plan.entries] == ["table"]
    assert len(plan.entries[0].sites) == 2
    assert len(written.stored) == 1
    held = fake_quantize(TABLE, plan.entries[0].params)
    feeds = {"x": i64(3, 0, 11)[None]}
    want = outputs(model(TIED, inputs="int64[1,3] x", weights={"table": held}), feeds)[0]
    for optimize in (False, True) if target == "ort-cpu" else (False,):
        assert sqnr_db(want, outputs(written.model, feeds, optimize=optimize)[0]) > EXACT
    packed = {"com.microsoft::MatMulNBits", "com.microsoft::GatherBlockQuantized"} & set(kinds(written.model))
    assert len(packed) == (2 if target == "ort-cpu" and "4" in dtype else 0)


def test_a_table_whose_rows_fill_no_blocks_is_stored_twice() -> None:
    body, table = TIED, normal(12, 40)
    _, written = rewritten(model(body, inputs="int64[1,3] x", weights={"table": table}), policy("int4"))
    assert len(written.stored) == 2
    source = stored(written.model)
    assert len({weight_sqnr(ir.Tensor(table), source[one.tensor], one) for one in written.stored}) == 1


def test_operators_share_a_weight() -> None:
    graph = model("a = MatMul (x, w)\nb = Relu (a)\ny = MatMul (b, w)", weights={"w": weight(8, 8)})
    plan, written = rewritten(graph, policy())
    assert len(plan.entries) == len(written.stored) == 1
    assert kinds(written.model) == ["com.microsoft::MatMulNBits", "Relu", "com.microsoft::MatMulNBits"]


def test_a_weight_that_one_operator_reads_in_float_stays_beside_the_other() -> None:
    graph = model("a = MatMul (x, w)\nb = Relu (a)\ny = MatMul (b, w)", weights={"w": weight(8, 8)})
    plan, written = rewritten(graph, policy().override(exclude=["y"]))
    assert kinds(written.model) == ["com.microsoft::MatMulNBits", "Relu", "MatMul"]
    assert "w" in stored(written.model)
    assert [(op.operator, op.chosen) for op in plan.floats] == [("y", True)]


def test_a_transpose_that_others_read_in_float_stays() -> None:
    body = "t = Transpose <perm = [1, 0]> (w)\na = MatMul (x, t)\nb = Add (a, v)\ny = MatMul (b, v)\nz = Relu (t)"
    graph = model(body, outputs="float[] y, float[] z", weights={"w": normal(8, 8), "v": weight(8, 8)})
    plan, written = rewritten(graph, policy())
    assert [entry.tensor for entry in plan.entries] == ["v"]
    assert "others read in float" in next(op.reason for op in plan.floats if op.operator == "a")
    assert "w" in stored(written.model)


@every_target
def test_weights_in_branches(target: str) -> None:
    body = """
    y = If (c) <
      then_branch = g1 () => (float[2,8] a) { a = MatMul (x, w) },
      else_branch = g2 () => (float[2,8] b) { r = Relu (x)\n b = MatMul (r, w) }
    >
    """
    graph = model(body, inputs="float[2,8] x, bool c", weights={"w": weight(8, 8)})
    plan, written = rewritten(graph, policy("int8", target=target))
    held = fake_quantize(weight(8, 8), plan.entries[0].params)
    for flag in (True, False):
        feeds = {"x": normal(2, 8), "c": np.array(flag)}
        want = outputs(model(body, inputs="float[2,8] x, bool c", weights={"w": held}), feeds)[0]
        assert sqnr_db(want, outputs(written.model, feeds)[0]) > EXACT


# what stays float, and why


def reasons(graph: ir.Model, wanted: Policy) -> dict[str, str]:
    prepare(graph, (), fold=False)
    return {op.operator: op.reason for op in make_weight_plan(graph, wanted).floats}


def test_every_operator_that_stays_float_says_why() -> None:
    body = """
    a = MatMul (x, w)
    b = MatMul (a, x)
    s = Gather (sines, p)
    f = Mul (b, s)
    y = MatMul (f, w)
    """
    graph = model(body, inputs="float[8,8] x, int64[8] p", weights={"w": weight(8, 8), "sines": normal(20, 8)})
    found = reasons(graph, policy().override(exclude=["y"]))
    assert found["b"] == "its weight is computed, not stored"
    assert found["y"] == "left float by --exclude y"
    assert "factors" in found["s"]


def test_large_weights_of_other_operators_are_named() -> None:
    body = "a = Add (x, big)\ny = MatMul (a, w)"
    graph = model(body, inputs="float[32,32] x", weights={"big": normal(32, 32), "w": weight(32, 4)})
    assert reasons(graph, policy())["a"] == "weights of Add are not stored in fewer bits"


def test_an_embedding_scaled_by_a_constant_is_no_factor() -> None:
    graph = model("e = Gather (w, x)\ny = Mul (e, k)", inputs="int64[3] x", weights={"w": normal(9, 8), "k": f32(8)})
    prepare(graph, (), fold=False)
    assert [entry.tensor for entry in make_weight_plan(graph, policy()).entries] == ["w"]


def test_rules_decide_for_single_operators() -> None:
    rules = "rules:\n  - match: {names: [a]}\n    weights: {dtype: int8, scheme: per-tensor}\n"
    graph = model("a = MatMul (x, w)\ny = MatMul (a, v)", weights={"w": weight(8, 8), "v": weight(8, 8, seed=1)})
    prepare(graph, (), fold=False)
    entries = make_weight_plan(graph, policy("int4", rules=rules)).entries
    assert [(entry.params.dtype.name, entry.params.axis) for entry in entries] == [("int8", None), ("int4", 1)]
    assert "rules[0]" in entries[0].reason
    assert all(entry.role == "weight" for entry in entries)


@pytest.mark.parametrize(
    ("wanted", "error", "text"),
    [
        (policy("uint4", target="tensorrt"), TargetError, "target tensorrt stores int8, not uint4"),
        (policy("int8", target="tensorrt", symmetric=False), TargetError, "zero points of 0 only"),
        (policy("float8e5m2", "per-group"), TargetError, "has one scale a channel or a tensor"),
        (policy().override(exclude=["*"]), PlanError, "no weight to quantize: left float by --exclude"),
        (policy().override(exclude=["nothing"]), PolicyError, "match no operator"),
    ],
)
def test_refusals(wanted: Policy, error: type[QConvertError], text: str) -> None:
    graph = built(CASES["matmul"])
    with pytest.raises(error, match=re.escape(text)):
        rewritten(graph, wanted)


def test_nan_is_refused() -> None:
    array = weight(50, 7)
    array[3, 3] = np.nan
    graph = model("y = MatMul (x, w)", inputs="float[2,3,50] x", weights={"w": array})
    for dtype in ("int4", "float8e4m3fn"):
        with pytest.raises(PlanError, match="weight 'w' holds NaN or Inf"):
            rewritten(graph, policy(dtype))


def test_floats_of_8_bits_are_for_weights_alone() -> None:
    from qconvert.plan import make_placement

    with pytest.raises(TargetError, match=r"weights\.dtype: target ort-cpu takes int8"):
        make_placement(built(CASES["matmul"]), policy("float8e4m3fn"))


# packing


@given(st.data(), st.sampled_from([2, 4, 8]), st.integers(1, 33))
def test_packing_is_undone(data: st.DataObject, bits: int, count: int) -> None:
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=2 * count, max_size=2 * count))
    levels = np.array(numbers, np.int32).reshape(2, count)
    packed = pack(levels, bits)
    assert packed.shape == (2, -(-count * bits // 8))
    assert (unpack(packed, bits, count) == levels).all()
    first = sum(int(level) << (bits * place) for place, level in enumerate(levels[0, : 8 // bits]))
    assert packed[0, 0] == first


@pytest.mark.parametrize("dtype", DTYPES)
def test_native_tensors_are_those_of_onnx(dtype: str) -> None:
    source = ir.Tensor(normal(7, 5))
    plan, _ = rewritten(
        model("y = MatMul (x, w)", inputs="float[2,7] x", weights={"w": source.numpy()}),
        policy(dtype, target="generic"),
    )
    made = native(source, plan.entries[0].params, "t")
    kind = made.numpy().dtype
    assert made.dtype == ir.DataType[plan.entries[0].params.dtype.onnx]
    assert ir.Tensor(made.numpy(), name="t").tobytes() == made.tobytes()
    assert made.nbytes == len(made.tobytes()) == math.ceil(35 * made.dtype.bitwidth / 8)
    assert kind == made.dtype.numpy()


def test_rows_of_blocks_are_filled_up() -> None:
    plan, _ = rewritten(built(CASES["matmul"]), policy("int4", "per-group", group=16))
    made = rows(ir.Tensor(CASES["matmul"].weights["w"]), plan.entries[0].params, "t", transposed=True, block=16)
    assert made.numpy().shape == (7, 4, 8)
    assert not made.numpy()[:, 3, 1:].any()


def file_bytes(path: Path) -> dict[str, int]:
    """What every tensor takes, read off the file by onnx."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        beside = {one.key: one.value for one in tensor.external_data}
        found[tensor.name] = int(beside["length"]) if beside else len(tensor.raw_data)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@every_target
@pytest.mark.parametrize("inline", [True, False])
def test_sizes_are_those_of_the_file(
    dtype: str, target: str, inline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not inline:
        monkeypatch.setattr(qconvert.weight_only, "INLINE", 0)
    path = saved(built(CASES["matmul"]), tmp_path / "m.onnx")
    result = quantize_weights(path, output=tmp_path / "q.onnx", policy=policy(dtype, target=target))
    sizes = packed_sizes(load_model(result.path))
    assert {name: size for name, (size, _) in sizes.items()} == file_bytes(result.path)
    one = result.weights[0]
    width = (QUANT_TYPES | FLOAT8_TYPES)[dtype].bits
    rows_packed = target == "ort-cpu" and width == 4
    assert one.elements == 350
    zeros = math.ceil(7 * width / 8) if dtype.startswith("uint") and not rows_packed else 0
    assert one.bytes == math.ceil((7 * 64 if rows_packed else 350) * width / 8) + 4 * 7 + zeros
    assert sizes[next(name for name in sizes if name in {"w_packed", "w_quantized"})][1] == (
        f"uint{width}" if rows_packed else dtype
    )
    assert (tmp_path / "q.onnx.data").exists() == (not inline)


# the pipeline


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return write(folder / "big.onnx", Size())


def test_a_decoder_is_quantized_and_compared(small: Path, tmp_path: Path) -> None:
    said = Notes()
    result = quantize_weights(small, output=tmp_path / "q.onnx", policy=policy("int8"), listener=said)
    assert isinstance(result, QuantizedWeights)
    assert result.random
    assert result.proof.samples == 1
    assert "random inputs" in str(said)
    logits = next(one for one in result.proof.fidelity if one.output == "logits")
    assert logits.sqnr_db > 25
    plain = next(one for one in result.proof.unoptimized if one.output == "logits")
    assert logits.sqnr_db == pytest.approx(plain.sqnr_db, abs=0.01)
    assert not any(one.integer for one in result.proof.kernels)
    assert all(one.sqnr_db > 40 for one in result.weights)
    assert {"cos", "sin"}.isdisjoint(one.tensor for one in result.weights)
    assert result.size_after == (tmp_path / "q.onnx").stat().st_size < 0.5 * result.size_before


def test_samples_are_used_where_there_are_some(small: Path, tmp_path: Path) -> None:
    feeds = random_feeds(load_model(small), 7)
    for name, array in feeds.items():
        (tmp_path / "test_data_set_0").mkdir(exist_ok=True)
        index = list(feeds).index(name)
        proto = onnx.numpy_helper.from_array(np.asarray(array), name)
        (tmp_path / "test_data_set_0" / f"input_{index}.pb").write_bytes(proto.SerializeToString())
    said = Notes()
    result = quantize_weights(
        small, output=tmp_path / "q.onnx", policy=policy("int8"), data=tmp_path / "test_data_set_0", listener=said
    )
    assert not result.random
    assert "random" not in str(said)
    assert result.proof.samples == 1
    assert '"kind": "test-data"' in load_model(result.path).metadata_props["qconvert"]


@pytest.mark.parametrize("tie", [False, True])
@every_target
def test_a_model_that_does_not_fit_is_compared_weight_by_weight(
    target: str, tie: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "big.onnx", Size(tied=tie))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(qconvert.weight_only, "COMPARED", 0)
    said = Notes()
    result = quantize_weights(
        path,
        output=tmp_path / "out" / "q.onnx",
        policy=policy("int4", "per-group", group=32, target=target),
        shard_size=20_000,
        listener=said,
    )
    assert result.proof.fidelity == ()
    assert result.proof.samples == 1
    assert "outputs are not compared" in str(said)
    assert all(18 < one.sqnr_db < 30 for one in result.weights)
    shards = {name for name in names(tmp_path / "out") if name != "q.onnx"}
    assert len(shards) > 2
    assert all((tmp_path / "out" / name).stat().st_size <= 20_000 for name in shards)
    assert result.size_after == sum(one.stat().st_size for one in (tmp_path / "out").iterdir())
    feeds = random_feeds(load_model(path), 3)
    before, after = outputs(path, feeds)[0], outputs(result.path, feeds)[0]
    assert sqnr_db(before, after) > 8


def test_weights_that_become_float_count_as_float(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qconvert.weight_only, "COMPARED", 0)
    monkeypatch.setattr(qconvert.weight_only, "RUN", 200_000)
    for dtype, runs in (("int4", 1), ("int8", 0)):
        result = quantize_weights(small, output=tmp_path / f"{dtype}.onnx", policy=policy(dtype))
        assert result.size_after < 200_000
        assert result.proof.samples == runs


def test_nothing_is_run_beyond_the_limit(small: Path, tmp_path: Path) -> None:
    said = Notes()
    result = quantize_weights(small, output=tmp_path / "q.onnx", policy=policy(), max_memory=1, listener=said)
    assert result.proof.samples == 0
    assert "the written model was not run" in str(said)


def test_random_inputs_that_the_original_refuses_are_not_used(tmp_path: Path) -> None:
    body = "t = Reshape (x, sizes)\ny = MatMul (t, w)"
    weights = {"w": weight(8, 4), "sizes": i64(2, 8)}
    path = saved(model(body, inputs="float[M,N] x", weights=weights), tmp_path / "m.onnx")
    said = Notes()
    result = quantize_weights(path, output=tmp_path / "q.onnx", policy=policy("int8"), listener=said)
    assert "the original fails on random inputs" in str(said)
    assert result.proof.samples == 0
    assert len(result.proof.kernels) == 1


@pytest.mark.parametrize("error", [ModelError("no"), KeyboardInterrupt()], ids=["refused", "interrupted"])
@pytest.mark.parametrize("stage", ["_prove", "_read_back", "_write"])
def test_a_failure_leaves_nothing_behind(
    error: BaseException, stage: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(qconvert.weight_only, "INLINE", 0)
    monkeypatch.setattr(qconvert.weight_only, stage, fail)
    before = names(tmp_path)
    with pytest.raises(type(error)):
        quantize_weights(small, output=tmp_path / "q.onnx", policy=policy())
    assert names(tmp_path) == before


def test_files_are_only_overwritten_by_force(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qconvert.weight_only, "INLINE", 0)
    quantize_weights(small, output=tmp_path / "q.onnx", policy=policy())
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("q.onnx", "q.onnx.data")]
    with pytest.raises(OutputError, match="exists already"):
        quantize_weights(small, output=tmp_path / "q.onnx", policy=policy())
    quantize_weights(small, output=tmp_path / "q.onnx", policy=policy(), force=True)
    assert digests == [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("q.onnx", "q.onnx.data")]


def test_notes_say_where_weights_become_float(tmp_path: Path) -> None:
    path = saved(built(CASES["matmul"]), tmp_path / "m.onnx")
    found = {}
    for target, group in (("generic", 16), ("generic", 12), ("ort-cpu", 16), ("ort-cpu", 12)):
        said = Notes()
        wanted = policy("int4", "per-group", group=group, target=target)
        quantize_weights(path, output=tmp_path / "q.onnx", policy=wanted, force=True, listener=said)
        found[target, group] = str(said)
    assert "session.qdq_matmulnbits_accuracy_level=1" in found["generic", 16]
    assert "accuracy_level" not in found["generic", 12]
    assert "MatMulNBits" in found["ort-cpu", 16]
    assert "become float at every run (DequantizeLinear): no kernel for groups of 12" in found["ort-cpu", 12]


def test_onnxruntime_rounds_activations_where_the_note_says_so() -> None:
    case = CASES["matmul"]
    plan, written = rewritten(built(case), policy("int4", "per-group", group=32, target="generic"))
    drift = sqnr_db(expected(case, plan), outputs(written.model, case.feeds, optimize=True)[0])
    assert drift < 70 or RUNTIME < (1, 25)


def test_halves_are_widened_as_they_are_read(tmp_path: Path) -> None:
    graph = model("y = MatMul (x, w)", inputs="float16[2,64] x", outputs="float16[] y", weights={"w": half(64, 8)})
    path = tmp_path / "m.onnx"
    ir.save(graph, path, external_data="m.data")
    result = quantize_weights(path, output=tmp_path / "q.onnx", policy=policy("int8"))
    assert result.weights[0].sqnr_db > 40
    assert result.proof.fidelity[0].sqnr_db > 35


def half(*shape: int) -> Array:
    return weight(*shape).astype(np.float16)


# random inputs


def test_random_inputs_respect_types_shapes_and_tables() -> None:
    feeds = random_feeds(decoder(Size(vocabulary=5, positions=3)))
    assert feeds["input_ids"].shape == (1, 4)
    assert feeds["attention_mask"].shape == (1, 8)
    assert (np.asarray(feeds["attention_mask"]) == 1).all()
    assert feeds["past.0.key"].shape == (1, 2, 4, 16)
    assert feeds["past.0.key"].dtype == np.float32
    assert 0 <= int(np.min(feeds["input_ids"])) <= int(np.max(feeds["input_ids"])) < 5
    assert int(np.max(feeds["position_ids"])) < 3
    for seed in range(30):
        assert int(np.max(random_feeds(decoder(Size(vocabulary=5)), seed)["input_ids"])) < 5


def test_random_inputs_need_numbers() -> None:
    graph = model("y = StringNormalizer (x)", inputs="string[3] x", outputs="string[] y")
    with pytest.raises(DataError, match="input 'x' is a tensor of"):
        random_feeds(graph)


# beside onnxruntime's quantizer, and sizes


def ort_sqnr(path: Path, *, block: int, symmetric: bool) -> Iterator[tuple[str, float]]:
    """The SQNR of every MatMul weight that onnxruntime's quantizer packs in 4 bits."""
    from onnxruntime.quantization import matmul_nbits_quantizer as peer

    config = peer.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=4)
    quantizer = peer.MatMulNBitsQuantizer(onnx.load(path), algo_config=config)
    quantizer.process()
    held = {one.name: onnx.numpy_helper.to_array(one) for one in quantizer.model.model.graph.initializer}
    source = {name: tensor.numpy() for name, tensor in stored(load_model(path)).items()}
    readers = {node.output[0]: node.input[1] for node in onnx.load(path).graph.node if node.op_type == "MatMul"}
    for node in quantizer.model.model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        given = {one.name: one.i for one in node.attribute}
        count, blocks = given["N"], -(-given["K"] // block)
        levels = unpack(held[node.input[1]].reshape(count, -1), 4, blocks * block).reshape(count, blocks, block)
        zero = 8 if symmetric else unpack(held[node.input[3]].reshape(count, -1), 4, blocks)[..., None].astype(int)
        real = (levels.astype(int) - zero) * held[node.input[2]].reshape(count, blocks, 1)
        name = readers[node.output[0]]
        yield name, sqnr_db(source[name], real.reshape(count, -1)[:, : given["K"]].T)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [128, 64, 32, 16])
def test_no_weight_is_worse_than_that_of_onnxruntimes_quantizer(symmetric: bool, block: int) -> None:
    graph = load_model(VIT)
    dtype = "int4" if symmetric else "uint4"
    _, written = rewritten(graph, policy(dtype, "per-group", group=block, symmetric=symmetric))
    source, made = stored(load_model(VIT)), stored(written.model)
    ours = {one.weight: weight_sqnr(source[one.weight], made[one.tensor], one) for one in written.stored}
    theirs = dict(ort_sqnr(VIT, block=block, symmetric=symmetric))
    assert len(theirs) == 18
    assert [name for name, found in theirs.items() if ours[name] < found - 1e-6] == []


@pytest.mark.bench
@pytest.mark.skipif(not SHARED.exists(), reason="the shared benchmark models are not here")
@every_target
@pytest.mark.parametrize(
    ("dtype", "share"), [("int8", 0.27), ("int4", 0.16), pytest.param("int2", 0.10, marks=TWO_BITS)]
)
def test_sizes_of_mobilenet(target: str, dtype: str, share: float, tmp_path: Path) -> None:
    path = SHARED / "models" / "mobilenetv2_tv.onnx"
    result = quantize_weights(path, output=tmp_path / "q.onnx", policy=policy(dtype, target=target))
    assert result.size_after <= share * result.size_before


def test_stored_is_a_value() -> None:
    plan, written = rewritten(built(CASES["matmul"]), policy())
    assert written.stored == (
        Stored("w", "w_packed", plan.entries[0].params, "rows", transposed=True, beside=("w_scale",)),
    )
