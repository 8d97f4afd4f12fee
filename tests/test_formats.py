"""Whatever ``qconvert formats`` claims is built from a sample model and runs; the rest is refused with a way out."""

from __future__ import annotations

import contextlib
import json
from dataclasses import fields, replace
from itertools import product

import pytest

from qconvert.errors import PlanError, TargetError
from qconvert.graph import operators
from qconvert.numerics import QUANT_TYPES
from qconvert.plan.settings import settings_table
from qconvert.policy import Policy
from qconvert.rewrite.forms import Form
from qconvert.rewrite.limits import LIMITS
from qconvert.support import Cell, cells, check, nearest, refusal, rows
from qconvert.targets import TARGETS, Target
from tests.bad_inputs import run
from tests.cells import chosen, float_products, ran, sample, title
from tests.models import RUNTIME, model, pooled_sqnr
from tests.test_placement import CONV, W

LEAST_DB = {16: 80.0, 8: 31.0, 4: 12.0, 2: -6.0}
"""SQNR against the float model that a cell reaches, by the bits of its narrower type; at 2 bits the model is lost."""

LEAST_FLOAT8_DB = 15.0
"""The same of weights in 8-bit floats, which have 2 or 3 bits behind the point."""

LEAST_EXACT_DB = 35.0
"""SQNR of the other formats against the numpy interpreter: of all values, a few in a thousand are a step apart."""

LEAST_AGREED_DB = 28.0
"""SQNR of what a cell computes with onnxruntime's optimizations against without them: pools round otherwise."""

MODELS = ("digits_cnn", "digits_vit")

CELLS = [
    pytest.param(
        name,
        cell,
        id=f"{name}-{title(cell)}",
        marks=pytest.mark.skipif(RUNTIME < (1, 24) and "int2" in cell.weights, reason="no 2-bit types"),
    )
    for name in MODELS
    for cell in chosen(name)
]


def least(cell: Cell) -> float:
    """The SQNR that is stated for a cell."""
    if cell.weights.startswith("float8"):
        return LEAST_FLOAT8_DB
    types = (cell.weights, cell.activations, cell.input_type, cell.output_type)
    return LEAST_DB[min(QUANT_TYPES[name].bits for name in types if name in QUANT_TYPES)]


@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_every_cell_runs_as_stated(name: str, cell: Cell) -> None:
    found = ran(cell, sample(name))
    assert min(found.sqnr) > least(cell)
    assert pooled_sqnr(found.plain, found.optimized) > LEAST_AGREED_DB
    if cell.format == "integer" and name == "digits_cnn":
        assert float_products(found.written.model) == []
        assert found.levels, "not the same to the bit"
    elif found.exact is not None:
        assert min(found.exact) > LEAST_EXACT_DB
    if cell.input_type == cell.output_type == "float32":
        assert found.written.interface is None
    else:
        ports = found.written.interface
        assert ports is not None
        assert (ports.inputs[0].dtype, ports.outputs[0].dtype) == (cell.input_type, cell.output_type)


def test_the_integer_cells_are_compared_to_the_bit() -> None:
    """The interpreter must know them, whatever is at their ends."""
    known = [cell for cell in chosen("digits_cnn") if cell.format == "integer"]
    assert len(known) > 90
    assert ran(known[0], sample("digits_cnn")).exact is not None


# the claims


def test_every_target_mode_and_format_has_a_cell() -> None:
    found = {(row.target, row.mode, row.format) for row in rows()}
    wanted = {
        (target.name, mode, form)
        for target in TARGETS.values()
        for mode in target.modes
        for form in (target.formats if mode == "static" else ("qdq",))
    }
    assert found == wanted


def test_every_row_is_tried() -> None:
    tried = {(cell.target, cell.mode, cell.format, cell.weights) for name in MODELS for cell in chosen(name)}
    assert tried >= {(row.target, row.mode, row.format, dtype) for row in rows() for dtype in row.weights}
    tried = {(cell.target, cell.mode, cell.format, cell.activations) for name in MODELS for cell in chosen(name)}
    assert tried >= {(row.target, row.mode, row.format, dtype) for row in rows() for dtype in row.activations}


def test_claims_follow_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    wider = replace(LIMITS["qoperator"], bits=16)
    cell = Cell("ort-cpu", "static", "qoperator", "int8", "uint16", "per-channel")
    assert "take 8 bits" in refusal(cell)
    monkeypatch.setitem(LIMITS, "qoperator", wider)
    assert refusal(cell) == ""


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_what_is_claimed_passes_the_planner(target: Target) -> None:
    """The planner, which completes settings operator by operator, agrees with the table; and only that."""
    ops = tuple(operators(model(f"y {CONV}(x, w)", weights=W)))
    claimed = {(cell.weights, cell.activations, cell.scheme) for cell in cells(target) if cell.mode == "static"}
    if "static" not in target.modes:
        return
    for asked in product(("int8", "uint8", "int4"), ("int8", "uint8", "uint16"), ("per-channel", "per-group")):
        weights, activations, scheme = asked
        wanted = Policy().override(target=target.name, weights=weights, activations=activations, scheme=scheme)
        with contextlib.nullcontext() if asked in claimed else pytest.raises(TargetError):
            settings_table(wanted, ops, target)


# refusals


def every_cell() -> list[Cell]:
    """Supported ones and others, thinned out."""
    dtypes = ("int8", "uint8", "uint16", "int4", "float32")
    return [
        Cell(target, mode, form, weights, activations, scheme)
        for target in TARGETS
        for mode in ("static", "dynamic", "weight-only")
        for form in LIMITS
        for weights in dtypes[:4]
        for activations in dtypes
        for scheme in ("per-channel", "per-group")
        if (activations == "float32") == (mode == "weight-only")
    ]


def test_a_cell_is_claimed_or_refused_with_a_near_one() -> None:
    claimed = {replace(cell, group_size=None) for target in TARGETS.values() for cell in cells(target)}
    everything = frozenset(field.name for field in fields(Cell))
    for cell in every_cell():
        assert (refusal(cell) == "") == (cell in claimed)
    for cell in every_cell()[::29]:
        near = nearest(cell, everything)
        assert refusal(near) == ""
        assert (replace(near, group_size=None) == cell) == (cell in claimed)


@pytest.mark.parametrize(
    ("given", "mode", "form", "error", "hint"),
    [
        ({"target": "tensorrt"}, "static", Form("qoperator"), "reads qdq models", "--format qdq"),
        ({"target": "tensorrt"}, "static", Form("integer"), "reads qdq models", "--format qdq"),
        ({"weights": "int4", "target": "tensorrt"}, "static", Form(), "takes int8, not int4", "--weights int8"),
        ({"target": "qnn"}, "weight-only", Form(), "takes static models only", "--mode static"),
        ({"target": "openvino"}, "dynamic", Form(), "static and weight-only models only", "--mode static"),
        ({"target": "trt-int4"}, "static", Form(), "weight-only models only", "--mode weight-only"),
        (
            {"target": "trt-int4", "scheme": "per-channel"},
            "weight-only",
            Form(),
            "per-group, not",
            "--scheme per-group",
        ),
        ({"scheme": "per-group"}, "static", Form("qoperator"), "no scale for each group", "--scheme per-channel"),
        ({"scheme": "per-group"}, "dynamic", Form(), "no scale for each group", "--scheme per-channel"),
        ({"weights": "uint16"}, "static", Form(), "not uint16", "--weights int8"),
        (
            {"target": "qnn", "activations": "uint16"},
            "static",
            Form(output_type="int8"),
            "do not fit",
            "--activations uint8",
        ),
        ({"weights": "int16"}, "static", Form(output_type="int32"), "sums are of 8-bit weights", "--weights int8"),
    ],
)
def test_refusals_name_the_nearest_cell(given: dict[str, str], mode: str, form: Form, error: str, hint: str) -> None:
    with pytest.raises(TargetError) as caught:
        check(Policy().override(**given), mode, form)  # type: ignore[arg-type]
    assert error in str(caught.value)
    assert caught.value.hint == f"nearest: {hint} ('qconvert formats' shows all)"


def test_options_of_another_format_are_refused() -> None:
    with pytest.raises(PlanError, match="of the integer format"):
        check(Policy(), "dynamic", Form(requant="double"))


def test_rules_are_compared_with_the_target_alone() -> None:
    wide = Policy.model_validate(
        {"rules": [{"match": {"op_types": ["Gemm"]}, "weights": {"dtype": "int16"}, "activations": {"dtype": "int16"}}]}
    )
    check(wide, "static", Form("integer", allow_float=True))
    with pytest.raises(TargetError, match=r"rules\[0\]: --target tensorrt --weights int16 --activations int16"):
        check(wide.override(target="tensorrt"), "static")


# the command


def test_the_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("formats")
    assert shown.code == 0
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert all(name in shown.stdout for name in TARGETS)
    assert "int8: not with uint8/4/2 weights" in shown.stdout
    assert "per-group of 128 or 64" in shown.stdout


def test_one_target_with_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("formats --target qnn").stdout
    assert "LayerNormalization" in shown
    assert "below 8 bits: Conv, ConvTranspose" in shown
    assert "tensorrt" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert run("formats --target qn").code == 2


def test_as_json() -> None:
    found = json.loads(run("formats --json").stdout)
    assert len(found) == len(rows())
    row = next(one for one in found if (one["target"], one["format"]) == ("ort-cpu", "qoperator"))
    assert ["int8", "uint8"] in row["apart"]
    assert row["schemes"]["per-channel"] == ["Conv", "Gemm", "MatMul"]
    assert "QLinearConv" not in row["operators"]
    assert "Conv" in row["operators"]
