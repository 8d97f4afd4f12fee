"""Levels in, levels or accumulators out: the same numbers as the model with float inputs and outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.errors import PlanError
from qconvert.graph import load_model, operators, serialize, write_model
from qconvert.kernel_census import census
from qconvert.numerics import QUANT_TYPES, QuantParams, dequantize, quantize
from qconvert.plan.outputs import quantize_outputs
from qconvert.prepare import prepare, raise_opset
from qconvert.rewrite.interface import InputType, Interface, OutputType, PortGrid, interface_record, with_interface
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.rewrite.qoperator import to_qoperator
from qconvert.session import open_session, run
from tests.models import (
    RUNTIME,
    Array,
    Feeds,
    fetch,
    i64,
    images,
    model,
    planned,
    policy,
    pooled_sqnr,
    statistics,
    weight,
)
from tests.test_placement import BENCH, CONV, SAMPLES, W
from tests.test_qoperator import clone
from tests.test_rewrite_qdq import ROWS, model_name, plausible, rows

FORMATS = ("qdq", "qoperator")


class Written:
    """One plan in one format, with float inputs and outputs and with others."""

    def __init__(
        self, graph: ir.Model, samples: list[Feeds], form: str, text: str = "", *, outputs: bool = False
    ) -> None:
        prepare(graph, samples)
        self.samples = samples
        self.plan = planned(graph, samples, policy(text))
        if outputs:
            names = [value.name or "" for value in graph.graph.outputs]
            self.plan = quantize_outputs(graph, self.plan, statistics(graph, names, samples))
        raise_opset(graph, needed_opset(self.plan))
        self.model = to_qdq(graph, self.plan) if form == "qdq" else to_qoperator(graph, self.plan)[0]

    def change(self, **types: str) -> tuple[ir.Model, Interface]:
        return with_interface(clone(self.model), self.plan, **cast("dict[str, Any]", types))


def outputs(graph: ir.Model, samples: list[Feeds], *, optimize: bool = True) -> list[list[Array]]:
    session = open_session(graph, threads=1, optimize=optimize)
    return [run(session, feeds) for feeds in samples]


def params(port: PortGrid) -> QuantParams:
    scale, zero = np.array(port.scale, np.float32), np.array(port.zero_point, np.int32)
    if len(port.scale) == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    return QuantParams(scale, zero, QUANT_TYPES[port.dtype], port.axis)


def levels_of(samples: list[Feeds], interface: Interface) -> list[Feeds]:
    """The samples as a program on the device would feed them."""
    grids = {port.name: port for port in interface.inputs if port.scale}
    return [
        {
            name: quantize(array, params(grids[name])).astype(grids[name].dtype) if name in grids else array
            for name, array in feeds.items()
        }
        for feeds in samples
    ]


def reals(levels: Array, port: PortGrid) -> Array:
    """``scale * (level - zero_point)``."""
    scale, zero = np.array(port.scale), np.array(port.zero_point)
    if port.axis is not None:
        shape = [1] * levels.ndim
        shape[port.axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    real: Array = scale * (levels.astype(np.int64) - zero)
    return real


def two_convs(form: str, text: str = "") -> Written:
    graph = model(f"h {CONV}(x, w, bias) r = Relu(h) y {CONV}(r, a)", weights=W | {"bias": weight(8)})
    return Written(graph, images(), form, text)


# levels in


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("plan_type", ["uint8", "int8", "uint4"])
@pytest.mark.parametrize("wanted", ["uint8", "int8"])
def test_levels_in(wanted: InputType, plan_type: str, form: str) -> None:
    text = f"defaults:\n  activations: {{dtype: {plan_type}, symmetric: false}}"
    written = two_convs(form, text)
    changed, interface = written.change(input_type=wanted)
    assert [(port.name, port.dtype) for port in interface.inputs] == [("x", wanted)]
    assert [(port.name, port.dtype, port.scale) for port in interface.outputs] == [("y", "float32", ())]
    assert changed.graph.inputs[0].dtype == ir.DataType[wanted.upper()]
    fed = levels_of(written.samples, interface)
    for optimize in (True, False):
        before = outputs(written.model, written.samples, optimize=optimize)
        after = outputs(changed, fed, optimize=optimize)
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(before, after, strict=True))


def test_the_grid_of_an_input_is_that_of_the_plan() -> None:
    written = two_convs("qdq")
    entry = next(entry for entry in written.plan.entries if entry.tensor == "x")
    _, as_uint8 = written.change(input_type="uint8")
    _, as_int8 = written.change(input_type="int8")
    assert params(as_uint8.inputs[0]) == entry.params
    assert as_int8.inputs[0].zero_point[0] == as_uint8.inputs[0].zero_point[0] - 128
    assert as_int8.inputs[0].scale == as_uint8.inputs[0].scale


def test_every_level_keeps_its_real_in_the_other_type() -> None:
    written = two_convs("qoperator")
    every = np.arange(256).reshape(4, 1, 8, 8).repeat(3, 1)
    unsigned, signed = written.change(input_type="uint8")[0], written.change(input_type="int8")[0]
    first = outputs(unsigned, [{"x": every.astype(np.uint8)}])[0][0]
    assert np.array_equal(first, outputs(signed, [{"x": (every - 128).astype(np.int8)}])[0][0])


@pytest.mark.parametrize("form", FORMATS)
def test_inputs_that_are_not_float_stay(form: str) -> None:
    graph = model(
        f"h {CONV}(x, w) g = Gather<axis=1>(h, which) y = Conv(g, q)",
        inputs="float[1,3,8,8] x, int64[4] which",
        weights=W | {"q": weight(8, 4, 1, 1)},
    )
    samples = [{**feeds, "which": i64(0, 2, 3, 5)} for feeds in images()]
    written = Written(graph, samples, form)
    changed, interface = written.change(input_type="uint8")
    assert [port.dtype for port in interface.inputs] == ["uint8", "int64"]
    assert pooled_sqnr(outputs(written.model, samples), outputs(changed, levels_of(samples, interface))) > 100


# levels out


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("plan_type", ["uint8", "int8", "int4"])
@pytest.mark.parametrize("wanted", ["uint8", "int8"])
def test_levels_out(wanted: OutputType, plan_type: str, form: str) -> None:
    written = two_convs(form, f"defaults:\n  activations: {{dtype: {plan_type}, symmetric: false}}")
    changed, interface = written.change(output_type=wanted)
    assert [(port.name, port.dtype) for port in interface.outputs] == [("y", wanted)]
    for optimize in (True, False):
        before = outputs(written.model, written.samples, optimize=optimize)
        after = outputs(changed, written.samples, optimize=optimize)
        for a, b in zip(before, after, strict=True):
            assert b[0].dtype == np.dtype(wanted)
            assert np.array_equal(a[0], dequantize(b[0], params(interface.outputs[0])))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tail", ["", "Softmax", "HardSigmoid"])
def test_outputs_that_the_plan_leaves_float_can_be_given_a_grid(tail: str, form: str) -> None:
    body = "h = MatMul(x, a) y = Gemm(h, b, bias)" if not tail else f"h = Gemm(x, a) y = {tail}(h)"
    written = Written(model(body, inputs="float[2,16] x", weights=ROWS), rows(2, 16), form, outputs=True)
    changed, interface = written.change(input_type="uint8", output_type="int8")
    found = outputs(changed, levels_of(written.samples, interface))
    expected = outputs(written.model, written.samples)
    assert all(
        np.array_equal(a[0], dequantize(b[0], params(interface.outputs[0])))
        for a, b in zip(expected, found, strict=True)
    )
    if not tail and form == "qoperator":
        assert not [op for op in operators(changed) if op.op_type in {"QuantizeLinear", "DequantizeLinear"}]


@pytest.mark.parametrize("form", FORMATS)
def test_an_output_that_others_read_too(form: str) -> None:
    graph = model(f"h {CONV}(x, w) y {CONV}(h, a)", outputs="float[] y, float[] h", weights=W)
    written = Written(graph, images(), form)
    changed, interface = written.change(output_type="uint8")
    before, after = outputs(written.model, written.samples), outputs(changed, written.samples)
    for a, b in zip(before, after, strict=True):
        for real, levels, port in zip(a, b, interface.outputs, strict=True):
            assert np.array_equal(real, dequantize(levels, params(port)))


# accumulators

HEAVY = {
    "Conv": (f"h {CONV}(x, w) y = Conv<strides=[2,2]>(h, a)", "float[1,3,8,8] x"),
    "Conv with bias": (f"h {CONV}(x, w) y = Conv<group=2>(h, grouped, bias8)", "float[1,3,8,8] x"),
    "Gemm": ("h = MatMul(x, a) y = Gemm<transB=1>(h, b, bias)", "float[2,16] x"),
    "Gemm turned": ("h = MatMul(x, a) y = Gemm<transA=1, alpha=0.5>(h, b)", "float[16,16] x"),
    "MatMul": ("h = MatMul(x, a) y = MatMul(h, b)", "float[2,16] x"),
    "MatMul with bias": ("h = MatMul(x, a) k = MatMul(h, b) y = Add(k, bias)", "float[2,16] x"),
    "MatMul of activations": ("h = MatMul(x, a) y = MatMul(h, x)", "float[16,16] x"),
    "one Gemm": ("y = Gemm(x, a, bias)", "float[2,16] x"),
}
WEIGHTS = {"grouped": weight(8, 4, 3, 3), "bias8": weight(8), "bias": weight(16)}


def heavy(name: str, form: str, text: str = "") -> Written:
    body, inputs = HEAVY[name]
    shape = [int(size) for size in inputs[inputs.index("[") + 1 : inputs.index("]")].split(",")]
    return Written(
        model(body, inputs=inputs, weights=(W if "Conv" in name else ROWS) | WEIGHTS), images(*shape), form, text
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", HEAVY)
def test_accumulators_out(name: str, form: str) -> None:
    if "Conv" in name and RUNTIME < (1, 24):
        pytest.skip("this onnxruntime's ConvInteger takes uint8 weights only")
    written = heavy(name, form)
    changed, interface = written.change(output_type="int32")
    port = interface.outputs[0]
    assert (port.name, port.dtype, set(port.zero_point)) == ("y", "int32", {0})
    float_y = "y_float" if any(v.name == "y_float" for op in operators(written.model) for v in op.node.outputs) else "y"
    for feeds, found in zip(written.samples, outputs(changed, written.samples), strict=True):
        assert found[0].dtype == np.int32
        if form == "qdq":  # the float value before requantization
            expected = fetch(written.model, [float_y], feeds)[float_y]
            assert np.allclose(reals(found[0], port), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        else:
            expected, real = outputs(written.model, [feeds])[0][0], reals(found[0], port).astype(np.float32)
            grid = next((entry.params for entry in written.plan.entries if entry.tensor == "y"), None)
            if grid is None:
                assert np.allclose(real, expected, atol=1e-5 * np.abs(expected).max())
            else:
                assert np.abs(quantize(real, grid) - quantize(expected, grid)).max() <= 1
                assert (quantize(real, grid) == quantize(expected, grid)).mean() > 0.99


def test_an_accumulator_is_the_sum_of_integers() -> None:
    written = heavy("one Gemm", "qdq")
    changed, interface = written.change(input_type="int8", output_type="int32")
    fed = levels_of(written.samples, interface)
    grids = {(entry.tensor, entry.role): entry.params for entry in written.plan.entries}
    w, b = quantize(ROWS["a"], grids["a", "weight"]), quantize(WEIGHTS["bias"], grids["bias", "bias"])
    for feeds, found in zip(fed, outputs(changed, fed), strict=True):
        x = feeds["x"].astype(np.int64) - interface.inputs[0].zero_point[0]
        assert np.array_equal(found[0], x @ w + b)
    assert np.allclose(interface.outputs[0].scale, grids["bias", "bias"].scale)
    assert interface.outputs[0].axis == -1
    left = {op.op_type for op in operators(changed)}
    assert left == {"Cast", "Add", "MatMulInteger"}


# refusals


def refused(written: Written, match: str, **types: str) -> None:
    before = serialize(written.model)
    with pytest.raises(PlanError, match=match) as caught:
        with_interface(written.model, written.plan, **cast("dict[str, Any]", types))
    assert caught.value.hint
    assert serialize(written.model) == before


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("body", "given", "types", "message"),
    [
        (
            f"t = Tanh(x) h {CONV}(x, w) y = Mul(h, h)",
            "float[] t",
            {"input_type": "uint8"},
            "Tanh 't' reads it in float",
        ),
        (f"y {CONV}(x, w)", "float[N,3,8,8] x", {"input_type": "uint8"}, "input 'x' .* it is an output, too"),
        (f"h {CONV}(x, w) y = Softmax(h)", "", {"output_type": "uint8"}, "'y' .* comes out of Softmax in float"),
        (f"h {CONV}(x, w) y = Softmax(h)", "", {"output_type": "int32"}, "'y' .* comes out of Softmax, not of a Conv"),
        (f"h {CONV}(x, w) y = Relu(h)", "", {"output_type": "int32"}, "a Relu stands behind the accumulator"),
        (f"h {CONV}(x, w) k {CONV}(x, w) y = Add(h, k)", "", {"output_type": "int32"}, "comes out of .*Add, not of a"),
    ],
)
def test_what_cannot_be_is_refused(body: str, given: str, types: dict[str, str], message: str, form: str) -> None:
    outs = "float[] y" + (f", {given}" if given else "")
    refused(Written(model(body, outputs=outs, weights=W), images(), form), message, **types)


def test_an_input_that_no_operator_quantizes_is_refused() -> None:
    text = "rules:\n  - match: {position: first}\n    float: true"
    refused(two_convs("qdq", text), "Conv '.*' reads it in float", input_type="int8")


def test_other_widths_are_refused() -> None:
    text = "defaults:\n  activations: {dtype: uint16}"
    refused(two_convs("qdq", text), "have no 8 bits", input_type="int8")
    refused(two_convs("qdq", text), "comes out of DequantizeLinear", output_type="int8")
    refused(two_convs("qdq", text), "not quantized to 8 bits", output_type="int32")


def test_a_model_without_float_inputs_is_refused() -> None:
    graph = model(
        "e = Gather(table, ids) h = MatMul(e, a) y = MatMul(h, b)",
        inputs="int64[5] ids",
        weights=ROWS | {"table": weight(20, 16)},
    )
    refused(Written(graph, [{"ids": i64(0, 3, 5, 7, 15)}], "qdq"), "the model has no float input", input_type="uint8")


def test_a_float_bias_is_no_part_of_an_accumulator() -> None:
    refused(heavy("Gemm", "qdq", "defaults:\n  bias: float"), "the bias of its Gemm is float", output_type="int32")


def test_a_clamp_that_no_grid_absorbed_is_no_part_of_an_accumulator() -> None:
    """The grid of a Relu's output does its work anyway, and so hides it."""
    graph = model("k = MatMul(x, a) s = Add(k, bias) y = Relu(s)", inputs="float[2,16] x", weights=ROWS)
    written = Written(graph, rows(2, 16), "qoperator", outputs=True)
    assert not written.plan.absorbed
    refused(written, "comes out of Clip, not of a", output_type="int32")


# the record


def test_the_record_is_plain_json() -> None:
    _, interface = two_convs("qdq").change(input_type="int8", output_type="uint8")
    found = json.loads(json.dumps(interface_record(interface)))
    assert [port["dtype"] for port in (*found["inputs"], *found["outputs"])] == ["int8", "uint8"]
    assert set(found["inputs"][0]) == {"name", "dtype", "scale", "zero_point", "axis"}


def test_float_on_both_sides_changes_nothing() -> None:
    written = two_convs("qoperator")
    changed, interface = written.change()
    assert serialize(changed) == serialize(written.model)
    assert not any(port.scale for port in (*interface.inputs, *interface.outputs))


# real models


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "path",
    [
        *(path for path in SAMPLES if model_name(path) == "digits_cnn"),
        *(pytest.param(path, marks=pytest.mark.bench) for path in BENCH if path.stem == "mobilenetv2_tv"),
    ],
    ids=model_name,
)
def test_real_models(path: Path, form: str, tmp_path: Path) -> None:
    graph = load_model(path)
    written = Written(graph, [plausible(graph)], form)
    expected = outputs(written.model, written.samples)
    for wanted in ("uint8", "int8"):
        changed, interface = written.change(input_type=wanted)
        found = outputs(changed, levels_of(written.samples, interface))
        assert np.array_equal(expected[0][0], found[0][0])
        write_model(changed, tmp_path / f"{wanted}.onnx")
        assert all(kernel.integer for kernel in census(tmp_path / f"{wanted}.onnx"))
    changed, interface = written.change(input_type="uint8", output_type="int32")
    found = outputs(changed, levels_of(written.samples, interface))
    assert pooled_sqnr(expected, [[reals(found[0][0], interface.outputs[0]).astype(np.float32)]]) > 100
