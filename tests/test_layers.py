"""Two models value by value: what is read, what it is compared with, and where the error is said to enter."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qconvert import layers, pipeline
from qconvert.calibration import Calibration
from qconvert.errors import ModelError
from qconvert.graph import load_model, operators
from qconvert.layers import Layer, Layers, compare_layers
from qconvert.listener import SILENT
from qconvert.metrics import sqnr_db
from qconvert.pipeline.data import open_data
from qconvert.policy import Policy, loads
from qconvert.preprocess import preset
from qconvert.rewrite.forms import Form
from qconvert.session import open_session
from qconvert.session import run as run_session
from qconvert.weight_only import quantize_weights
from tests.bad_inputs import run
from tests.tiny import Step, build, normal, npy_samples, saved

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
CNN, DIGITS = SAMPLES / "digits_cnn" / "model.onnx", SAMPLES / "digits"
CENTERED = preset("centered")
COUNT = 12


@pytest.fixture(scope="module")
def calibrated() -> Calibration:
    return pipeline.calibrate(CNN, DIGITS / "calibration", preprocess=CENTERED, limit=40)


@pytest.fixture(scope="module")
def written(calibrated: Calibration, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The CNN in every form."""
    folder = tmp_path_factory.mktemp("written")
    forms = {
        "qdq": Form(),
        "qoperator": Form("qoperator"),
        "integer": Form("integer"),
        "uint8": Form(input_type="uint8", output_type="int32"),
    }
    paths = {name: folder / f"{name}.onnx" for name in (*forms, "dynamic", "weight-only", "uint4")}
    for name, form in forms.items():
        pipeline.quantize(CNN, calibrated, output=paths[name], form=form)
    pipeline.quantize(CNN, calibrated, output=paths["dynamic"], way=pipeline.Way("dynamic"))
    quantize_weights(CNN, output=paths["weight-only"], policy=Policy().override(weights="int4"))
    few = Policy().override(activations="uint4")
    pipeline.quantize(CNN, calibrated, output=paths["uint4"], policy=few)
    return paths


def compared(candidate: Path) -> Layers:
    return pipeline.compare(CNN, candidate, DIGITS / "evaluation", preprocess=CENTERED, limit=COUNT)


def row(result: Layers, value: str) -> Layer:
    return next(one for one in result.rows if one.value == value)


EVERY = ("qdq", "qoperator", "integer", "uint8", "dynamic", "weight-only", "uint4")


@pytest.mark.parametrize("form", EVERY)
def test_the_last_value_is_the_output_that_evaluate_compares(form: str, written: dict[str, Path]) -> None:
    found = row(compared(written[form]), "logits").fidelity
    expected = pipeline.evaluate(
        CNN, written[form], DIGITS / "evaluation", preprocess=CENTERED, limit=COUNT, latency_runs=0
    ).fidelity[0]
    assert found.samples == expected.samples == COUNT
    assert found.sqnr_db == pytest.approx(expected.sqnr_db, abs=1e-4)


@pytest.mark.parametrize(("form", "convolutions"), [("qdq", 17), ("qoperator", 17), ("uint4", 17)])
def test_looking_inside_leaves_integer_kernels_as_they_are(
    form: str, convolutions: int, written: dict[str, Path], tmp_path: Path
) -> None:
    """Asking for the floats that go by the same names would undo every one of them."""

    def kernels(names: Sequence[str]) -> Counter[str]:
        graph = load_model(written[form])
        outputs = {value.name for value in graph.graph.outputs}
        made = {value.name: value for op in operators(graph) for value in op.node.outputs}
        graph.graph.outputs.extend(made[name] for name in names if name in made and name not in outputs)
        open_session(graph, optimized_path=tmp_path / "optimized.onnx")
        return Counter(op.node.op_type for op in operators(load_model(tmp_path / "optimized.onnx")))

    taps = layers._taps(load_model(written[form]))
    assert kernels([tap.source for tap in taps.values()])["QLinearConv"] == convolutions
    if form == "qdq":
        assert kernels(list(taps))["QLinearConv"] == 0


@pytest.mark.parametrize(
    ("form", "values", "heavy"),
    [
        ("qdq", 24, 18),
        ("qoperator", 24, 18),
        ("uint8", 23, 18),
        ("dynamic", 23, 18),
        ("weight-only", 23, 18),
        ("uint4", 24, 18),
    ],
)
def test_every_heavy_operator_has_a_value_of_its_own(
    form: str, values: int, heavy: int, written: dict[str, Path]
) -> None:
    result = compared(written[form])
    assert len(result.rows) == values
    assert sum(one.op_type in {"Conv", "Gemm"} for one in result.rows) == heavy
    assert not result.notes
    assert [one.value for one in result.rows][-1] == "logits"


def test_the_integer_format_says_what_it_cannot_show(written: dict[str, Path]) -> None:
    result = compared(written["integer"])
    assert [one.value for one in result.rows] == ["image", "logits"]
    assert "17 heavy operators are compared only together" in result.notes[0]
    assert "compare the QDQ model" in result.notes[0]


def test_levels_of_both_formats_are_the_same(written: dict[str, Path]) -> None:
    """The same plan, as pairs that onnxruntime fuses and as its operators on levels."""
    assert compared(written["qdq"]).rows == compared(written["qoperator"]).rows


def test_the_numbers_are_those_of_a_plain_loop(written: dict[str, Path]) -> None:
    result = compared(written["qdq"])
    name = "block1/project/norm/BatchNormalization_output_0"
    graph = load_model(written["qdq"])
    constants = {key: value.const_value.numpy() for key, value in graph.graph.initializers.items() if value.const_value}
    before, after = _exposed(load_model(CNN), name), _exposed(graph, f"{name}_quantized")
    samples = open_data(CNN, load_model(CNN), DIGITS / "evaluation", CENTERED, limit=COUNT, seed=0, listener=SILENT)
    references, reals = [], []
    for index in range(COUNT):
        feeds = samples.load(index).feeds
        levels = run_session(after, feeds, [f"{name}_quantized"])[0].astype(np.float32)
        references.append(run_session(before, feeds, [name])[0])
        reals.append((levels - constants[f"{name}_zero_point"].astype(np.float32)) * constants[f"{name}_scale"])
    expected = sqnr_db(np.stack(references), np.stack(reals))
    found = row(result, name)
    assert found.fidelity.sqnr_db == pytest.approx(expected, abs=1e-6)
    assert 20 < expected < 60
    low, high = found.fidelity.sqnr_interval_db or (math.nan, math.nan)
    assert low < expected < high


def _exposed(model: ir.Model, name: str) -> Any:  # noqa: ANN401 - an onnxruntime session
    value = next(value for op in operators(model) for value in op.node.outputs if value.name == name)
    model.graph.outputs.append(value)
    return open_session(model, threads=1)


def test_what_enters_is_the_growth_of_the_relative_noise(written: dict[str, Path]) -> None:
    result = compared(written["qdq"])
    found = {one.value: one for one in result.rows}
    merged = found["block1/Add_output_0"]
    assert merged.operators == ("Add",)
    inputs = ("stem/relu6/Clip_output_0", "block1/project/norm/BatchNormalization_output_0")
    assert merged.before_db == min(found[name].fidelity.sqnr_db for name in inputs)
    stem = found["stem/relu6/Clip_output_0"]
    assert (stem.operator, stem.operators) == ("stem/norm/BatchNormalization_output_0", ("Conv", "Clip"))
    for one in result.rows:
        start = 0.0 if one.before_db is None else 10 ** (-one.before_db / 10)
        assert one.added == pytest.approx(max(0.0, 10 ** (-one.fidelity.sqnr_db / 10) - start), abs=1e-12)
    assert [one.added for one in result.ranked] == sorted((one.added for one in result.rows), reverse=True)


@pytest.mark.parametrize("layer", ["stem/conv", "block2/depthwise/conv", "block5/expand/conv", "head/conv"])
def test_the_operator_that_was_spoiled_is_named_first(layer: str, written: dict[str, Path], tmp_path: Path) -> None:
    graph = load_model(written["qdq"])
    weight = graph.graph.initializers[f"{layer.replace('/', '.')}.weight_quantized"]
    assert weight.const_value is not None
    levels = weight.const_value.numpy()
    noise = np.random.default_rng(0).integers(-20, 21, levels.shape)
    weight.const_value = ir.Tensor(np.clip(levels + noise, -127, 127).astype(np.int8), name=weight.name)
    spoiled = saved(graph, tmp_path / "spoiled.onnx")
    name = f"{layer.replace('conv', 'norm')}/BatchNormalization_output_0"
    assert compared(written["qdq"]).ranked[0].operator != name
    first = compared(spoiled).ranked[0]
    assert (first.op_type, first.operator) == ("Conv", name)


def test_a_policy_that_spoils_one_operator_is_found_out(calibrated: Calibration, tmp_path: Path) -> None:
    """By the very name that the policy has."""
    name = "block4/expand/norm/BatchNormalization_output_0"
    rule = f"rules:\n- match: {{names: ['{name}']}}\n  weights: {{dtype: int4, scheme: per-tensor}}\n"
    pipeline.quantize(CNN, calibrated, output=tmp_path / "q.onnx", policy=loads(f"version: 1\n{rule}"))
    assert compared(tmp_path / "q.onnx").ranked[0].operator == name


def test_a_model_beside_itself_is_as_good_as_exact() -> None:
    result = compared(CNN)
    assert min(one.fidelity.sqnr_db for one in result.rows) > 110
    assert max(one.added for one in result.rows) < 1e-11


def test_models_without_common_values_are_refused(tmp_path: Path) -> None:
    def made(name: str) -> Path:
        steps: list[Step] = [("MatMul", ["x", "w"], [f"{name}_y"], {})]
        return saved(build({"x": ("n", 4)}, steps, [f"{name}_y"], {"w": normal(4, 3)}), tmp_path / f"{name}.onnx")

    samples = npy_samples(tmp_path / "data", [normal(1, 4)], ("n", 4))
    with pytest.raises(ModelError, match="no value in it has the name of one in"):
        compare_layers(made("a"), made("b"), samples)


def test_threads_do_not_matter(written: dict[str, Path]) -> None:
    one, two = (
        pipeline.compare(CNN, written["qdq"], DIGITS / "evaluation", preprocess=CENTERED, limit=COUNT, threads=threads)
        for threads in (1, 2)
    )
    assert one == two


# the command


def test_the_command_shows_and_writes_the_same(written: dict[str, Path], tmp_path: Path) -> None:
    command = f"compare {CNN} {written['qdq']} --data {DIGITS / 'evaluation'} -n {COUNT} --quiet"
    shown, listed = run(command), run(f"{command} --json --report {tmp_path / 'layers.json'}")
    assert (shown.code, listed.code) == (0, 0), shown.stderr + listed.stderr
    found = json.loads(listed.stdout)
    assert found["enters"][0] == "block5/project/norm/BatchNormalization_output_0"
    lines = shown.stdout.splitlines()
    first = lines.index("where the error enters, in % of the signal's power") + 1
    assert lines[first].startswith(f"Conv {found['enters'][0]} ")
    logits = next(one for one in found["rows"] if one["value"] == "logits")["fidelity"]
    assert any(line.split()[:3] == ["logits", f"{logits['sqnr_db']:.2f}", "dB"] for line in lines)
    stored = json.loads((tmp_path / "layers.json").read_text())
    assert (stored["command"], stored["data"]["samples"]) == ("compare", COUNT)
    assert stored["sections"][0]["figures"][0]["bars"][0]["name"] == found["enters"][0]
