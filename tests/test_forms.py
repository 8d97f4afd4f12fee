"""Every format with every interface, and every mode, from the pipeline and as a user types it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qconvert import calibration, pipeline
from qconvert.errors import CalibrationError, PlanError, TargetError
from qconvert.graph import load_model
from qconvert.pipeline import Way
from qconvert.preprocess import preset
from qconvert.rewrite.forms import Form
from qconvert.rewrite.interface import InputType, OutputType
from qconvert.rewrite.limits import LIMITS
from tests.bad_inputs import run

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
MODEL, DIGITS = SAMPLES / "digits_cnn" / "model.onnx", SAMPLES / "digits"


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / "model.calib"
    pipeline.calibrate(MODEL, DIGITS / "calibration", output=path, preprocess=preset("centered"), limit=40)
    return path


@pytest.mark.parametrize("file_format", LIMITS)
@pytest.mark.parametrize("input_type", get_args(InputType))
@pytest.mark.parametrize("output_type", get_args(OutputType))
def test_every_format_with_every_interface(
    calibrated: Path, tmp_path: Path, file_format: str, input_type: str, output_type: str
) -> None:
    form = Form(file_format, input_type, output_type)  # type: ignore[arg-type]
    written = tmp_path / "q.onnx"
    result = pipeline.quantize(MODEL, calibration.load(calibrated), output=written, form=form)
    assert all(kernel.integer for kernel in result.proof.kernels)
    session = ort.InferenceSession(written, providers=["CPUExecutionProvider"])
    (fed,), (given,) = session.get_inputs(), session.get_outputs()
    assert (fed.name, given.name) == ("image", "logits")
    assert fed.type == f"tensor({input_type.replace('float32', 'float')})"
    assert given.type == f"tensor({output_type.replace('float32', 'float')})"
    found = json.loads(session.get_modelmeta().custom_metadata_map["qconvert"])
    assert found["format"] == file_format
    assert ("interface" in found) == (form != Form(file_format))  # type: ignore[arg-type]
    if result.interface is not None:
        assert bool(result.interface.inputs[0].scale) == (input_type != "float32")
        assert bool(result.interface.outputs[0].scale) == (output_type != "float32")
    seen = pipeline.evaluate(MODEL, written, DIGITS / "evaluation", limit=100, latency_runs=1)
    assert seen.fidelity[0].sqnr_db > 30
    assert seen.candidate.accuracy is not None
    assert seen.candidate.accuracy.top1 >= 0.97


def test_levels_of_an_interface_are_those_of_its_grid(calibrated: Path, tmp_path: Path) -> None:
    """What a device computes by hand from the metadata: feed levels, read sums."""
    paths = tmp_path / "float.onnx", tmp_path / "levels.onnx"
    for path, form in zip(paths, (Form(), Form(input_type="int8", output_type="int32")), strict=True):
        result = pipeline.quantize(MODEL, calibration.load(calibrated), output=path, form=form)
    assert result.interface is not None
    sessions = [ort.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths]
    fed, given = result.interface.inputs[0], result.interface.outputs[0]
    for probe in calibration.load(calibrated).probes[:4]:
        levels = np.rint(probe["image"] / fed.scale[0]) + fed.zero_point[0]
        (sums,) = sessions[1].run(None, {"image": np.clip(levels, -128, 127).astype(np.int8)})
        (expected,) = sessions[0].run(None, {"image": probe["image"]})
        np.testing.assert_allclose(sums * np.array(given.scale), expected, atol=1e-4)


@pytest.mark.parametrize("way", [Way("dynamic"), Way("dynamic", "per-token"), Way("dynamic", bounded=True)])
def test_dynamic(calibrated: Path, tmp_path: Path, way: Way) -> None:
    found = calibration.load(calibrated)
    result = pipeline.quantize(MODEL, found, output=tmp_path / "d.onnx", way=way)
    assert all(kernel.integer for kernel in result.proof.kernels)
    assert result.proof.fidelity[0].sqnr_db > 30


def test_dynamic_without_samples(tmp_path: Path) -> None:
    result = pipeline.quantize(MODEL, None, output=tmp_path / "d.onnx", way=Way("dynamic"))
    assert result.proof.fidelity[0].sqnr_db > 20
    with pytest.raises(CalibrationError, match="bounds come from statistics"):
        pipeline.quantize(MODEL, None, output=tmp_path / "b.onnx", way=Way("dynamic", bounded=True))
    with pytest.raises(CalibrationError, match="static ranges come from statistics"):
        pipeline.quantize(MODEL, None, output=tmp_path / "s.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.onnx"]


def test_a_format_without_a_form_for_a_plan_writes_nothing(calibrated: Path, tmp_path: Path) -> None:
    found = calibration.load(calibrated)
    with pytest.raises(TargetError, match="dynamic models have one form"):
        pipeline.quantize(MODEL, found, output=tmp_path / "d.onnx", way=Way("dynamic"), form=Form("qoperator"))
    with pytest.raises(PlanError, match="of the integer format"):
        pipeline.quantize(MODEL, found, output=tmp_path / "d.onnx", form=Form(requant="double"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def work(calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(MODEL, tmp_path / "model.onnx")
    shutil.copy(calibrated, tmp_path / "model.calib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ("--format integer --requant double", "model.int8.onnx"),
        ("--format qoperator --input-type int8 --output-type int8", "model.int8.onnx"),
        ("--mode dynamic", "model.int8.dynamic.onnx"),
        ("--mode dynamic --activation-scheme per-token --bounded", "model.int8.dynamic.onnx"),
        ("--mode weight-only", "model.int8.weight-only.onnx"),
        ("--mode weight-only --weights int4 --scheme per-group --group-size 16", "model.int4.weight-only.onnx"),
        ("--weights int4", "model.int4.onnx"),
    ],
)
def test_as_a_user_types_it(work: Path, options: str, written: str) -> None:
    result = run(f"quantize model.onnx {options}")
    assert result.code == 0, result.stderr
    assert f"{written}: written" in result.stderr
    assert (work / written).is_file()
    shown = run(f"quantize model.onnx {options} --json --force")
    assert json.loads(shown.stdout)["output"] == written


@pytest.mark.usefixtures("work")
def test_scales_of_an_interface_are_shown() -> None:
    result = run("quantize model.onnx --input-type uint8 --output-type int32")
    assert "uint8, scale 0.00784314, zero point 128" in result.stderr
    assert "int32, scale one of 10 for each channel, zero point 0" in result.stderr


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--bounded", "are of --mode dynamic"),
        ("--mode dynamic --format qoperator", "dynamic models have one form"),
        ("--mode weight-only --input-type int8", "weight-only models have one form"),
        ("--mode weight-only --calibration model.calib", "needs no statistics"),
        ("--shard-size 1MB", "--shard-size is of --mode weight-only"),
        ("--format integer --exclude Add", "Add '"),
        ("--format onnx", "'onnx' is not one of"),
    ],
)
def test_what_does_not_go_together_is_one_line(work: Path, options: str, error: str) -> None:
    before = sorted(work.iterdir())
    result = run(f"quantize model.onnx {options}")
    assert result.code == 2
    assert error in result.lines("error")[0]
    assert result.lines("hint")
    assert sorted(work.iterdir()) == before


@pytest.mark.usefixtures("work")
def test_an_excluded_operator_stays_float_in_every_format() -> None:
    for command in ("--format qoperator", "--format integer --allow-float", ""):
        result = run(f"quantize model.onnx --exclude Add {command} --force")
        assert result.code == 0, result.stderr
        kinds = Counter(node.op_type for node in load_model(Path("model.int8.onnx")).graph if _reads_float(node))
        assert kinds["Add"] == 3


def _reads_float(node: ir.Node) -> bool:
    """Whether an operator computes on what DequantizeLinear gives."""
    return any(value is not None and _comes_from(value, "DequantizeLinear") for value in node.inputs)


def _comes_from(value: ir.Value, op_type: str) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == op_type
