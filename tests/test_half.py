"""convert: half precision, operator by operator, and its proof."""

from __future__ import annotations

import json
import re
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

from qconvert.conversion import Converted, convert
from qconvert.errors import DataError, ModelError, OutputError
from qconvert.graph import load_model, operators, serialize, write_model
from qconvert.metrics import sqnr_db
from qconvert.prepare.types import infer_types
from qconvert.preprocess import preset
from qconvert.rewrite.half import HalfReport, to_half
from qconvert.rewrite.half_choice import DEFAULT_BLOCK
from qconvert.rewrite.half_tensors import HALF_TYPES, look, narrow
from qconvert.session import Feeds, open_session, run
from qconvert.simulate import simulate
from tests.bad_inputs import run as command
from tests.models import f32, i64, image, model, quantized, weight

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = REPOSITORY / "sample_models"
DIGITS = SAMPLES / "digits" / "calibration"
BENCH = REPOSITORY.parent / "shared" / "bench"

CONV = "y = Conv(x, w)"
CONV_WEIGHTS = {"w": weight(4, 3, 3, 3)}


def half(graph: ir.Model, **options: Any) -> tuple[ir.Model, HalfReport]:  # noqa: ANN401 - those of to_half
    infer_types(graph)
    found, report = to_half(graph, **options)
    return ir.from_proto(onnx.load_from_string(serialize(found))), report


def outputs(graph: ir.Model, feeds: Feeds) -> list[Any]:
    fast, slow = (run(open_session(graph, optimize=optimize), feeds) for optimize in (True, False))
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=2e-2, atol=1e-2)
    return fast


def dtypes(graph: ir.Model) -> dict[str, str]:
    """The type of every value that the file gives one, by name."""
    values = [value for op in operators(graph) for value in op.node.outputs]
    values += [value for part in (graph.graph, *graph.graph.subgraphs()) for value in part.initializers.values()]
    return {value.name or "": value.dtype.name for value in (*values, *graph.graph.inputs) if value.dtype is not None}


def kinds(graph: ir.Model) -> list[str]:
    return [op.op_type for op in operators(graph)]


def converts(
    body: str,
    *,
    feeds: Feeds | None = None,
    least_db: float = 50.0,
    **options: Any,  # noqa: ANN401 - of model and half
) -> tuple[ir.Model, HalfReport]:
    """Converts a model with float32 ports and compares it, and its simulation, with the original."""
    made = {key: options.pop(key) for key in ("inputs", "outputs", "opset", "weights", "domains") if key in options}
    feeds = feeds or image()
    expected = outputs(model(body, **made), feeds)
    written, report = half(model(body, **made), **options)
    found = outputs(written, feeds)
    simulated = run(open_session(simulate(ir.from_proto(ir.to_proto(written))).model), feeds)
    for a, b, c in zip(expected, found, simulated, strict=False):
        assert a.dtype == b.dtype == c.dtype
        if a.dtype.kind == "f":
            assert sqnr_db(a, b) > least_db
            assert sqnr_db(a, c) > least_db - 6
        else:
            np.testing.assert_array_equal(a, b)
    return written, report


# weights


@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.sampled_from(["fp16", "bf16"]))
def test_narrowing_keeps_signs_and_finiteness_and_rounds_to_the_nearest(numbers: list[float], to: str) -> None:
    kind = HALF_TYPES[to]
    array = np.array(numbers, np.float32)
    found = narrow(array, kind).astype(np.float64)
    finite = np.isfinite(array)
    np.testing.assert_array_equal(np.isfinite(found), finite)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(array))
    np.testing.assert_array_equal(np.signbit(found[~np.isnan(array)]), np.signbit(array[~np.isnan(array)]))
    found, array = found[finite], array[finite]
    inside = (np.abs(array) <= kind.largest) & (np.abs(array) >= kind.smallest)
    step = 2.0**-11 if to == "fp16" else 2.0**-8
    assert (np.abs(found - array)[inside] <= step * np.abs(array[inside], dtype=np.float64)).all()
    assert (np.abs(found) <= kind.largest).all()


def test_the_limits_are_those_of_the_types() -> None:
    for name, dtype in (("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
        assert HALF_TYPES[name].largest == float(info.max)
        assert HALF_TYPES[name].smallest == float(info.smallest_normal)


def test_what_a_weight_loses_is_counted() -> None:
    array = f32(1.0, 1e6, -7e4, 1e-10, 3e-6, 0.0, np.inf, np.nan, 2049.0)
    found = look("w", ir.Tensor(array), HALF_TYPES["fp16"])
    assert (found.elements, found.clamped, found.subnormal, found.zeroed) == (9, 2, 1, 1)
    assert found.worst_error == 1.0
    kept = narrow(array, HALF_TYPES["fp16"])
    np.testing.assert_array_equal(kept, np.array([1, 65504, -65504, 0, 3e-6, 0, np.inf, np.nan, 2048], np.float16))
    fine = look("w", ir.Tensor(f32(2049.0)), HALF_TYPES["fp16"])
    assert fine.worst_error == pytest.approx(1 / 2049)
    assert not fine.lossy


def test_large_weights_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    array = (weight(50, 30) * 1e5).astype(np.float32)
    whole = look("w", ir.Tensor(array), HALF_TYPES["fp16"])
    monkeypatch.setattr("qconvert.rewrite.half_tensors.CHUNK", 7)
    assert look("w", ir.Tensor(array), HALF_TYPES["fp16"]) == whole
    assert whole.clamped == (np.abs(array) > 65504).sum()


# operators


def test_a_graph_computes_in_float16_between_two_casts() -> None:
    written, report = converts("a = Conv(x, w)\nb = Relu(a)\ny = GlobalAveragePool(b)", weights=CONV_WEIGHTS)
    assert kinds(written) == ["Cast", "Conv", "Relu", "GlobalAveragePool", "Cast"]
    assert (report.operators, report.casts, report.kept) == (3, 2, ())
    found = dtypes(written)
    assert {found[name] for name in ("w", "a", "b", "x_float16")} == {"FLOAT16"}
    assert found["x"] == found["y"] == "FLOAT"
    assert [one.name for one in report.tensors] == ["w"]


def test_inputs_and_outputs_become_half_on_request() -> None:
    written, report = half(model(CONV, weights=CONV_WEIGHTS), keep_io=False)
    assert kinds(written) == ["Conv"]
    assert report.casts == 0
    feeds = {"x": image()["x"].astype(np.float16)}
    (found,) = outputs(written, feeds)
    (expected,) = outputs(model(CONV, weights=CONV_WEIGHTS), image())
    assert found.dtype == np.float16
    assert sqnr_db(expected, found) > 50
    (rounded,) = run(open_session(simulate(written).model), feeds, ["y"])
    assert rounded.dtype == np.float16
    assert sqnr_db(expected, rounded) > 50


SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "a Constant operator": (
        "c = Constant <value_floats=[1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5]> ()\ny = Add(x, c)",
        {},
    ),
    "Resize by constant scales": (
        'y = Resize<mode="nearest">(x, , s)',
        {"weights": {"s": f32(1, 1, 2, 2)}},
    ),
    "Resize with a region": (
        'y = Resize<coordinate_transformation_mode="tf_crop_and_resize", mode="linear">(x, r, s)',
        {"weights": {"s": f32(1, 1, 2, 2), "r": f32(0, 0, 0.2, 0.2, 1, 1, 0.7, 0.7)}},
    ),
    "Resize by computed scales": (
        't = Shape(x)\nf = Cast<to=1>(t)\nd = Div(f, f)\ns = Mul(d, k)\ny = Resize<mode="nearest">(x, , s)',
        {"weights": {"k": f32(1, 1, 2, 2)}},
    ),
    "Resize of opset 10": ('y = Resize<mode="nearest">(x, s)', {"weights": {"s": f32(1, 1, 2, 2)}, "opset": 10}),
    "ConstantOfShape": ("s = Shape(x)\nc = ConstantOfShape<value=float[1] {2.5}>(s)\ny = Add(x, c)", {}),
    "ConstantOfShape without a value": ("s = Shape(x)\nc = ConstantOfShape(s)\ny = Add(x, c)", {}),
    "Cast from integers": ("i = Cast<to=7>(x)\nf = Cast<to=1>(i)\ny = Mul(x, f)", {}),
    "Cast from bool": ("b = Greater(x, z)\nf = Cast<to=1>(b)\ny = Mul(x, f)", {"weights": {"z": f32(0)}}),
    "Cast to the type it has": ("a = Cast<to=1>(x)\ny = Relu(a)", {}),
    "Cast through float64": ("a = Cast<to=11>(x)\nb = Exp(a)\nc = Cast<to=1>(b)\ny = Sqrt(c)", {}),
    "EyeLike": (
        "m = Squeeze(x, a)\ne = EyeLike<dtype=1>(m)\ny = MatMul(x, e)",
        {"inputs": "float[1,8,8] x", "weights": {"a": i64(0)}, "feeds": image(1, 8, 8)},
    ),
    "Range and CumSum": (
        "r = Range(a, b, c)\ns = CumSum(r, k)\ny = Add(x, s)",
        {"weights": {"a": np.float32(0), "b": np.float32(8), "c": np.float32(1), "k": np.int64(0)}},
    ),
    "TopK": ("a = Relu(x)\ny, i = TopK(a, k)", {"weights": {"k": i64(3)}, "outputs": "float[] y, int64[] i"}),
    "Min, Max, OneHot": (
        "a = Min(x, u)\nb = Max(a, l)\nh = OneHot(i, n, v)\ny = MatMul(b, h)",
        {"weights": {"u": f32(1), "l": f32(-1), "i": i64(*range(8)), "n": i64(8), "v": f32(0, 1)}},
    ),
    "ScatterND with a sum": (
        'a = Relu(x)\ny = ScatterND<reduction="add">(a, i, u)',
        {"weights": {"i": i64(0).reshape(1, 1), "u": weight(1, 3, 8, 8)}, "opset": 18},
    ),
    "LayerNormalization": (
        "y = LayerNormalization<axis=-1>(x, g, b)",
        {"weights": {"g": weight(8), "b": weight(8, seed=1)}},
    ),
    "GRU": (
        "y, h = GRU<hidden_size=5>(x, w, r)",
        {
            "inputs": "float[4,1,3] x",
            "outputs": "float[] y, float[] h",
            "weights": {"w": weight(1, 15, 3), "r": weight(1, 15, 5)},
            "feeds": image(4, 1, 3),
        },
    ),
    "an operator of another domain": (
        "a = Relu(x)\nb = com.microsoft.Gelu(a)\ny = Mul(b, b)",
        {"domains": ["com.microsoft"]},
    ),
    "sequences": ("a = Relu(x)\ns = SequenceConstruct(a, a)\ny = ConcatFromSequence<axis=1>(s)", {}),
    "dynamic quantization": (
        "q, s, z = DynamicQuantizeLinear(x)\nm = MatMulInteger(q, w, z)\nf = Cast<to=1>(m)\na = Mul(f, s)\ny = Relu(a)",
        {"weights": {"w": np.full((8, 8), 100, np.int8)}, "least_db": 50},
    ),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_operators(name: str) -> None:
    body, options = SPECIAL[name]
    converts(body, **options)


def test_random_numbers_are_made_in_float32() -> None:
    graph = model("r = RandomNormalLike(x)\nu = RandomNormal<shape=[8]>()\na = Add(x, r)\nb = Mul(a, u)\ny = Relu(b)")
    written, report = half(graph)
    assert [(one.op_type, one.reason) for one in report.kept] == [
        ("RandomNormalLike", DEFAULT_BLOCK["RandomNormalLike"]),
        ("RandomNormal", DEFAULT_BLOCK["RandomNormal"]),
    ]
    assert np.isfinite(run(open_session(written), image())[0]).all()


def test_sizes_are_not_computed_in_float16() -> None:
    """2049 is no float16."""
    body = "s = Shape(x)\nf = Cast<to=1>(s)\ng = Mul(f, k)\nn = Cast<to=7>(g)\na = Relu(x)\ny = Expand(a, n)"
    feeds = {"x": np.ones((1, 1), np.float32)}
    written, report = half(model(body, inputs="float[N,M] x", weights={"k": f32(3, 2049)}))
    assert run(open_session(written), feeds)[0].shape == (3, 2049)
    assert {one.operator for one in report.kept if one.reason == "computes sizes, not contents"} == {"f", "g", "n"}


def test_a_weight_that_both_widths_read_keeps_its_bits_for_float32() -> None:
    written, report = converts("a = Mul(x, w)\nb = Add(a, w)\ny = Relu(b)", weights={"w": weight(8)}, block=["Add"])
    found = dtypes(written)
    assert (found["w"], found["w_float16"]) == ("FLOAT", "FLOAT16")
    assert [one.reason for one in report.kept] == ["--block Add"]


def test_only_float32_is_left_alone() -> None:
    graph = model("a = Cast<to=11>(x)\ny = Cast<to=1>(a)\nz = Mul(x, x)", outputs="float[] y, float[] z")
    written, _ = half(graph)
    assert "DOUBLE" in dtypes(written).values()


IF = """
m = ReduceMean<keepdims=0>(x)
c = Greater(m, z)
h = Relu(x)
t = If (c) <
  then_branch = yes () => (float[N,4,6,6] p) { k = Constant<value_floats=[0.5]>() a = Mul(h, k) p = Conv(a, w) },
  else_branch = no () => (float[N,4,6,6] q) { q = Conv(h, v) }
>
y = Relu(t)
"""
IF_WEIGHTS = {"z": np.float32(0), "w": weight(4, 3, 3, 3), "v": weight(4, 3, 3, 3, seed=1)}


@pytest.mark.parametrize("sign", [-1, 1])
def test_bodies_are_converted_between_float32_ports(sign: int) -> None:
    feeds = {"x": np.float32(sign) * np.abs(image()["x"])}
    if sign < 0:
        feeds = {"x": feeds["x"] + (np.arange(8) == 0).astype(np.float32) * 2}
    written, report = converts(IF, weights=IF_WEIGHTS, feeds=feeds)
    inside = {op.names[0]: op for op in operators(written) if op.subgraph}
    convolutions = [op for op in inside.values() if op.op_type == "Conv"]
    assert len(convolutions) == 2
    assert all(op.node.inputs[1] is not None and op.node.inputs[1].dtype == ir.DataType.FLOAT16 for op in convolutions)
    assert [(one.op_type, one.reason) for one in report.kept] == [("If", DEFAULT_BLOCK["If"])]


def test_a_loop() -> None:
    body = """
n = Constant<value_int=3>()
t = Constant<value_int=1>()
k = Cast<to=9>(t)
s = Loop (n, k, x) <
  body = step (int64 i, bool on, float[N,3,8,8] a) => (bool go, float[N,3,8,8] b) {
    go = Identity(on) d = Mul(a, w) b = Add(d, x) }
>
y = Relu(s)
"""
    converts(body, weights={"w": weight(8)})


# what stays float32 on request


def test_block_by_name_and_type() -> None:
    body = "a = Conv(x, w)\nb = Exp(a)\nc = Exp(b)\ny = Relu(c)"
    written, report = converts(body, weights=CONV_WEIGHTS, block=["b", "Re*"], feeds={"x": image()["x"] / 8})
    assert [(one.operator, one.reason) for one in report.kept] == [("b", "--block b"), ("y", "--block Re*")]
    assert dtypes(written)["b"] == "FLOAT"
    assert dtypes(written)["c"] == "FLOAT16"


def test_a_pattern_that_matches_nothing_names_the_closest() -> None:
    with pytest.raises(ModelError, match=r"^--block 'Convv' matches no operator$") as caught:
        half(model(CONV, weights=CONV_WEIGHTS), block=["Convv"])
    assert caught.value.hint == "closest: Conv"


@pytest.mark.parametrize("options", [{}, {"storage_only": True}, {"to": "bf16"}])
def test_what_is_half_already_is_an_error(options: dict[str, Any]) -> None:
    graph = model("y = Conv(x, w)", weights={"w": weight(8, 3, 3, 3)})
    written, _ = half(graph)
    with pytest.raises(ModelError, match="nothing to convert: the model is float16 already"):
        half(written, **options)


def test_a_model_without_floats_is_an_error() -> None:
    graph = model("y = Add(x, x)", inputs="int64[4] x", outputs="int64[] y")
    with pytest.raises(ModelError, match="nothing to convert: the model has no float32"):
        half(graph)


# integers


def qdq() -> ir.Model:
    """A quantized Conv, then a float32 Softmax that stays outside."""
    found = quantized(
        model(
            "a = Conv(x, w)\nb = Relu(a)\nc = Conv(b, v)\nd = Flatten(c)\ne = Softmax(d)\nf = Exp(e)\ny = Mul(f, f)",
            opset=21,
            weights={"w": weight(4, 3, 3, 3), "v": weight(4, 4, 3, 3)},
        ),
        [image()],
    )
    return found.model


def test_a_quantized_model_keeps_its_integers_and_halves_the_rest(tmp_path: Path) -> None:
    before = serialize(qdq())
    written, report = half(ir.from_proto(onnx.load_from_string(before)))
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= {one.op_type for one in report.kept}
    found = dtypes(written)
    assert found["f"] == "FLOAT16"
    scales = [op.node.inputs[1] for op in operators(written) if op.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert all(value is not None and value.dtype == ir.DataType.FLOAT for value in scales)
    path = tmp_path / "optimized.onnx"
    session = open_session(written, optimized_path=path)
    assert [op.node.op_type for op in operators(load_model(path))].count("QLinearConv") == 2
    expected = run(open_session(ir.from_proto(onnx.load_from_string(before))), image())[0]
    assert sqnr_db(expected, run(session, image())[0]) > 50


@pytest.mark.parametrize(("opset", "dtype"), [(13, "FLOAT"), (21, "FLOAT16")])
def test_scales_of_weights_alone_follow_where_onnx_allows_it(opset: int, dtype: str) -> None:
    body = "d = DequantizeLinear(q, s)\na = MatMul(x, d)\ny = Relu(a)"
    weights: dict[str, npt.NDArray[Any]] = {
        "q": np.arange(-32, 32, dtype=np.int8).reshape(8, 8),
        "s": np.array(0.01, np.float32),
    }
    written, _ = converts(body, weights=weights, opset=opset, least_db=45)
    assert dtypes(written)["s"] == dtype


def test_a_scale_that_float16_holds_badly_stays() -> None:
    body = "d = DequantizeLinear(q, s)\na = MatMul(x, d)\ny = Relu(a)"
    weights: dict[str, npt.NDArray[Any]] = {
        "q": np.arange(-32, 32, dtype=np.int8).reshape(8, 8),
        "s": np.array(1e-5, np.float32),
    }
    written, _ = half(model(body, weights=weights, opset=21))
    assert dtypes(written)["s"] == "FLOAT"


# storage only


@pytest.mark.parametrize(("to", "dtype", "least"), [("fp16", "FLOAT16", 65), ("bf16", "BFLOAT16", 45)])
def test_storage_only_is_exact_but_for_the_weights(to: str, dtype: str, least: float) -> None:
    big = weight(4, 3, 3, 3)
    body = 'a = Conv(x, w, b)\ny = Resize<mode="nearest">(a, , s)'
    given = {"w": big, "b": weight(4), "s": f32(1, 1, 2, 2)}
    written, report = half(model(body, weights=given), to=to, storage_only=True)
    assert kinds(written) == ["Cast", "Conv", "Resize"]
    assert dtypes(written)["w"] == dtype
    assert dtypes(written)["b"] == dtypes(written)["s"] == "FLOAT"
    rounded = narrow(big, HALF_TYPES[to]).astype(np.float32)
    (same,) = outputs(model(body, weights={**given, "w": rounded}), image())
    (found,) = outputs(written, image())
    np.testing.assert_array_equal(found, same)
    (expected,) = outputs(model(body, weights=given), image())
    assert sqnr_db(expected, found) > least
    assert report.storage_only
    assert report.operators == 0


def test_storage_only_leaves_what_is_blocked() -> None:
    graph = model("a = Conv(x, w)\ny = Conv(a, v)", weights={"w": weight(4, 3, 3, 3), "v": weight(4, 4, 3, 3)})
    written, _ = half(graph, to="bf16", block=["y"])
    assert (dtypes(written)["w"], dtypes(written)["v"]) == ("BFLOAT16", "FLOAT")


# the simulation


def test_the_simulation_rounds_as_numpy_does() -> None:
    x = image()["x"]
    written, _ = half(model("a = Mul(x, x)\nb = Add(a, k)\ny = Sqrt(b)", weights={"k": f32(1.0003)}))
    for optimize in (True, False):
        graph = simulate(ir.from_proto(ir.to_proto(written))).model
        found = run(open_session(graph, optimize=optimize), {"x": x})[0]

        def rounded(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return array.astype(np.float16).astype(np.float32)

        h = rounded(x)
        step = rounded(rounded(h * h) + rounded(f32(1.0003)))
        np.testing.assert_array_equal(found, rounded(np.sqrt(step)))


def test_what_overflows_is_named_though_it_does_not_here() -> None:
    body = "a = Mul(x, k)\nb = Mul(a, a)\nc = Sqrt(b)\ny = Div(c, k)"
    feeds = {"x": np.full((1, 3, 8, 8), 3, np.float32)}
    written, _ = half(model(body, weights={"k": f32(100)}))
    (here,) = outputs(written, feeds)
    np.testing.assert_allclose(here, 3, rtol=2e-3)
    found = simulate(ir.from_proto(ir.to_proto(written)))
    values = run(open_session(found.model), feeds)
    assert np.isinf(values[0]).all()
    peaks = {found.peaks[name].value: value for name, value in zip(found.peaks, values[1:], strict=True)}
    assert peaks["b"] == 90000
    assert next(peak for peak in found.peaks.values() if peak.value == "b").operators == ("b", "c")


# files


def file(tmp_path: Path, body: str = "a = Conv(x, w)\ny = Relu(a)", **options: Any) -> Path:  # noqa: ANN401 - of model
    path = tmp_path / "model.onnx"
    path.write_bytes(serialize(model(body, **{"weights": CONV_WEIGHTS, **options})))
    return path


def test_random_inputs_are_said_and_the_same_bytes_come_out(tmp_path: Path) -> None:
    path = file(tmp_path)
    blobs = []
    for name in ("a.onnx", "b.onnx"):
        result = convert(path, output=tmp_path / name)
        assert result.proof.random
        assert result.proof.samples == 4
        assert result.proof.here[0].sqnr_db > 50
        blobs.append((tmp_path / name).read_bytes())
    assert blobs[0] == blobs[1]
    kept = json.loads(load_model(tmp_path / "a.onnx").metadata_props["qconvert"])["converted"]
    assert (kept["to"], kept["keep_io"], kept["source"]) == ("fp16", True, "model.onnx")


def test_following_the_advice_mends_an_overflow(tmp_path: Path) -> None:
    path = file(tmp_path, "a = Mul(x, k)\nb = Mul(a, a)\nc = Sqrt(b)\ny = Div(c, k)", weights={"k": f32(400)})
    first = convert(path, output=tmp_path / "a.onnx")
    assert [one.value for one in first.proof.overflows] == ["b"]
    assert first.proof.simulated[0].sqnr_db < 0
    block = first.proof.overflows[0].operators
    second = convert(path, output=tmp_path / "b.onnx", block=block)
    assert second.proof.overflows == ()
    assert second.proof.simulated[0].sqnr_db > 50


def test_an_output_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "y = Mul(x, k)", weights={"k": f32(60000)})
    with pytest.raises(ModelError, match="output 'y' is not finite") as caught:
        convert(path, output=tmp_path / "a.onnx", keep_io=False, data=_samples(tmp_path, 100 * image()["x"]))
    assert caught.value.hint == "keep in float32 what overflows: --block y"
    assert not (tmp_path / "a.onnx").exists()


def _samples(folder: Path, array: npt.NDArray[Any]) -> Path:
    path = folder / "samples"
    path.mkdir()
    np.save(path / "0.npy", array[0])
    return path


def test_an_old_opset_is_raised_for_bfloat16(tmp_path: Path) -> None:
    result = convert(file(tmp_path, opset=9), output=tmp_path / "a.onnx", to="bf16")
    assert load_model(result.path).opset_imports[""] == 13
    assert result.proof.simulated == ()


def test_weights_beside_the_file_are_read_and_written(tmp_path: Path) -> None:
    body, weights = "a = MatMul(x, w)\ny = MatMul(a, v)", {"w": weight(256, 256), "v": weight(256, 256, seed=1)}
    path = tmp_path / "model.onnx"
    ir.save(model(body, inputs="float[N,256] x", weights=weights), path, external_data="model.data")
    inside = convert(path, output=tmp_path / "inside.onnx")
    assert inside.size_before > 1.9 * inside.size_after
    graph = load_model(path)
    infer_types(graph)
    write_model(to_half(graph)[0], tmp_path / "outside.onnx", inline=0)
    assert (tmp_path / "outside.onnx.data").stat().st_size >= 2 * 256 * 256 * 2
    feeds = image(1, 256)
    one, two = (run(open_session(tmp_path / f"{name}.onnx"), feeds)[0] for name in ("inside", "outside"))
    np.testing.assert_array_equal(one, two)


def test_weights_are_narrowed_when_they_are_written_and_kept_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(model(CONV, weights=CONV_WEIGHTS), path, external_data="model.data")
    for storage_only in (False, True):
        graph = load_model(path)
        infer_types(graph)
        to_half(graph, storage_only=storage_only)
        (tensor,) = [value.const_value for value in graph.graph.initializers.values()]
        assert isinstance(tensor, ir.LazyTensor)
        assert not tensor.cache
        np.testing.assert_array_equal(tensor.numpy(), CONV_WEIGHTS["w"].astype(np.float16))


# the sample models, and others


@pytest.mark.parametrize(("name", "share"), [("digits_cnn", 0.58), ("digits_vit", 0.54), ("digits_gru", 0.53)])
def test_the_sample_models(name: str, share: float, tmp_path: Path) -> None:
    result = _sample(name, tmp_path)
    assert result.size_after < share * result.size_before
    assert result.proof.here[0].sqnr_db > 50
    assert result.proof.simulated[0].sqnr_db > 50
    assert result.proof.here[0].argmax_agreement == 100
    assert result.proof.overflows == ()
    stored = _sample(name, tmp_path, to="bf16")
    assert stored.proof.here[0].sqnr_db > 40


def _sample(name: str, folder: Path, **options: Any) -> Converted:  # noqa: ANN401 - of convert
    path = SAMPLES / name / "model.onnx"
    output = folder / f"{len(list(folder.iterdir()))}.onnx"
    return convert(path, output=output, data=DIGITS, limit=16, **options)


@pytest.mark.bench
@pytest.mark.skipif(not BENCH.is_dir(), reason="the shared benchmark models are not here")
def test_mobilenet(tmp_path: Path) -> None:
    source = BENCH / "models" / "mobilenetv2_tv.onnx"
    data = BENCH / "data" / "imagenet" / "eval"
    result = convert(source, output=tmp_path / "a.onnx", data=data, preprocess=preset("imagenet"), limit=100)
    assert result.size_after < 0.51 * result.size_before
    for one in (*result.proof.here, *result.proof.simulated):
        assert one.sqnr_db > 40
        assert one.argmax_agreement == 100


@pytest.mark.bench
@pytest.mark.skipif(not BENCH.is_dir(), reason="the shared benchmark models are not here")
def test_a_model_with_branches(tmp_path: Path) -> None:
    source = BENCH / "models" / "silero_vad_16k_op15.onnx"
    result = convert(source, output=tmp_path / "a.onnx", data=BENCH / "data" / "silero", limit=8)
    assert result.size_after < 0.56 * result.size_before
    assert all(one.sqnr_db > 50 for one in (*result.proof.here, *result.proof.simulated))


# the command


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return file(tmp_path)


@pytest.mark.usefixtures("work")
def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    found = command("convert model.onnx --to fp16")
    assert found.code == 0, found.stderr
    assert (tmp_path / "model.fp16.onnx").is_file()
    assert "random inputs" in found.stderr
    assert "SQNR y" in found.stderr + found.stdout
    assert "simulated y" in found.stderr + found.stdout
    assert "2 in float16, 0 in float32, 2 Casts between" in found.stderr + found.stdout
    assert "model.fp16.onnx: written" in found.stderr
    said = json.loads(command("convert model.onnx --to bf16 --json").stdout)
    assert said["report"]["storage_only"] is True
    assert said["proof"]["random"] is True
    assert said["size_after_bytes"] == (tmp_path / "model.bf16.onnx").stat().st_size
    assert "model.fp16.onnx" in command("convert --help").stdout.lower()


@pytest.mark.usefixtures("work")
def test_the_command_warns_of_overflow(tmp_path: Path) -> None:
    file(tmp_path, "a = Mul(x, k)\nb = Mul(a, a)\nc = Sqrt(b)\ny = Div(c, k)", weights={"k": f32(400)})
    found = command("convert model.onnx --to fp16 -q")
    assert found.code == 0, found.stderr
    assert "warning: 'b' (Mul) reaches" in found.stderr
    assert "--block 'b' --block 'c'" in found.stderr
    assert not found.lines("note")


@pytest.mark.usefixtures("work")
def test_the_command_says_what_weights_lose(tmp_path: Path) -> None:
    file(tmp_path, "a = Min(x, w)\ny = Add(a, v)", weights={"w": f32(*[1e6] * 8), "v": f32(1, 1e-10, *[1e-6] * 6)})
    found = command("convert model.onnx --to fp16")
    assert found.code == 0, found.stderr
    said = found.stderr + found.stdout
    assert "8 clamped, 6 subnormal, 1 now 0" in said
    assert re.search(r"^w +8 +0 +0 +93.4 %$", said, re.MULTILINE)
    assert re.search(r"^v +0 +6 +1 +100 %$", said, re.MULTILINE)


BAD = {
    "--to fp8": "fp8",
    "": "--to",
    "--to fp16 --block Nothing": "--block 'Nothing' matches no operator",
    "--to fp16 --samples 3": "--preprocess and --samples are about samples",
    "--to bf16 --no-keep-io": "stay float32 where only the storage changes",
    "--to fp16 --data missing": "missing",
    "--to fp16 -o model.onnx --force": "is the model that is read",
}


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("options", BAD)
def test_bad_input_is_one_line(options: str, tmp_path: Path) -> None:
    found = command(f"convert model.onnx {options}")
    assert found.code == 2
    assert len(found.lines("error")) == 1
    assert BAD[options] in found.lines("error")[0]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.onnx"]


def test_outputs_are_not_overwritten(work: Path) -> None:
    convert(work, output=work.with_name("a.onnx"))
    with pytest.raises(OutputError, match="exists already"):
        convert(work, output=work.with_name("a.onnx"))


def test_samples_that_do_not_fit_are_an_error(work: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        convert(work, output=work.with_name("a.onnx"), data=_samples(tmp_path, np.zeros((1, 5, 5), np.float32)))


def test_random_inputs_that_a_model_refuses_ask_for_samples(tmp_path: Path) -> None:
    path = file(tmp_path, "y = Reshape(x, s)", inputs="float[N,M] x", weights={"s": i64(7)})
    with pytest.raises(ModelError, match=r"^random inputs: onnxruntime fails") as caught:
        convert(path, output=tmp_path / "a.onnx")
    assert caught.value.hint == "give real samples with --data"
