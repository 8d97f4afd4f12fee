"""Ranges to other tools and back; onnxruntime's own loader and quantizer read what is written for it."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert import pipeline
from qconvert.calibration import load
from qconvert.errors import CalibrationError, OutputError
from qconvert.exchange import FORMATS, exchange_format, read_ranges, with_clamp_inputs, write_ranges
from qconvert.exchange import ort as ort_json
from qconvert.exchange import tensorrt as cache
from qconvert.graph import load_model
from qconvert.listener import Listener
from qconvert.numerics import QuantParams, Range
from qconvert.plan import Entry
from qconvert.policy import Policy
from qconvert.preprocess import PRESETS
from tests.bad_inputs import run, save_model
from tests.models import RUNTIME

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"

RANGES = {
    "image": Range(-1.0, 1.0),
    "wide below": Range(-10.0, 2.0),
    "onnx::Conv_3:0": Range(0.0, 6.0),
    "zero": Range(0.0, 0.0),
    "ü/名": Range(-1e-30, 3e30),
}

ends = st.floats(width=32, allow_nan=False, allow_infinity=False)
some_ranges = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=8),
    st.tuples(ends, ends).map(lambda pair: Range(min(pair), max(pair))),
    max_size=5,
)


def refusal(path: Path) -> CalibrationError:
    with pytest.raises(CalibrationError) as caught:
        read_ranges(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    return caught.value


# the way to the file and back


def test_json_keeps_ranges(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_ranges(path, RANGES)
    assert read_ranges(path) == RANGES


def test_cache_makes_ranges_symmetric(tmp_path: Path) -> None:
    path = tmp_path / "r.cache"
    write_ranges(path, RANGES)
    found = read_ranges(path)
    assert list(found) == list(RANGES)
    for name, one in RANGES.items():
        limit = max(-one.low, one.high) or 127.0  # an all-zero range gets scale 1
        assert found[name].high == pytest.approx(limit, rel=1e-6)
        assert found[name].low == -found[name].high
    assert found["wide below"].high == pytest.approx(10.0), "the side that onnxruntime's write_calibration_table loses"


def test_cache_is_nvidias_format(tmp_path: Path) -> None:
    path = tmp_path / "r.cache"
    write_ranges(path, {"data": Range(-1.0, 0.5), "conv1": Range(0.0, 127.0)})
    assert (
        path.read_bytes()
        == (f"TRT-8601-EntropyCalibration2\ndata: {struct.pack('>f', 1 / 127).hex()}\nconv1: 3f800000\n").encode()
    )


def test_cache_of_tensorrt_itself(tmp_path: Path) -> None:
    path = tmp_path / "CalibrationTable.cache"
    path.write_bytes(
        b"TRT-7000-EntropyCalibration2\r\ndata: 3c008912\r\n"
        b"(Unnamed Layer* 4) [Constant]_output: 0\r\nin:0: 3DDC858B\r\n"
    )
    found = read_ranges(path)
    assert list(found) == ["data", "(Unnamed Layer* 4) [Constant]_output", "in:0"]
    assert found["data"].high == pytest.approx(0.9962, rel=1e-3)  # images in [0, 1]
    assert found["(Unnamed Layer* 4) [Constant]_output"] == Range(0.0, 0.0)
    assert found["in:0"].high == pytest.approx(127 * 0.107677, rel=1e-4)


@given(some_ranges)
def test_texts_come_back(ranges: dict[str, Range]) -> None:
    assert ort_json.parse(ort_json.dump(ranges)) == ranges
    once = cache.parse(cache.dump(ranges)) if all(len(name.splitlines()) == 1 for name in ranges) else {}
    for name, one in once.items():
        assert one.low == -one.high
        assert one.high >= max(-ranges[name].low, ranges[name].high) * (1 - 1e-6)
    again = cache.parse(cache.dump(once))
    assert all(again[name].high == pytest.approx(one.high, rel=1e-6) for name, one in once.items() if one.high)


# onnxruntime


peer_has_a_cache = pytest.mark.skipif(
    RUNTIME < (1, 31), reason="this onnxruntime.quantization reads no calibration cache"
)


@peer_has_a_cache
def test_onnxruntime_loads_it(tmp_path: Path) -> None:
    from onnxruntime.quantization.calibrate import CalibrationMethod, load_tensors_data

    path = tmp_path / "r.json"
    write_ranges(path, RANGES)
    found = load_tensors_data(path)
    assert found.calibration_method is CalibrationMethod.MinMax
    assert set(found.keys()) == set(RANGES)
    for name, one in RANGES.items():
        low, high = found[name].range_value
        assert (low, high) == (np.float32(one.low), np.float32(one.high))
        assert low.dtype == high.dtype == np.float32


@peer_has_a_cache
def test_what_onnxruntime_saves_is_read(tmp_path: Path) -> None:
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData, save_tensors_data

    scalars = {name: (np.float32(one.low), np.float32(one.high)) for name, one in RANGES.items()}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, scalars), tmp_path / "scalars.json")
    expected = {name: Range(float(low), float(high)) for name, (low, high) in scalars.items()}
    assert read_ranges(tmp_path / "scalars.json") == expected
    arrays = {
        name: (np.array(low), np.array([high]), np.arange(3), np.arange(4.0, dtype=np.float32))
        for name, (low, high) in scalars.items()
    }
    save_tensors_data(TensorsData(CalibrationMethod.Entropy, arrays), tmp_path / "arrays.json")
    assert read_ranges(tmp_path / "arrays.json") == expected
    channels = {"x": (np.zeros(3, np.float32), np.ones(3, np.float32))}
    save_tensors_data(TensorsData(CalibrationMethod.MinMax, channels), tmp_path / "channels.json")
    assert "'x': lowest has 3 channels" in str(refusal(tmp_path / "channels.json"))


@pytest.mark.filterwarnings("ignore")
@peer_has_a_cache
def test_onnxruntime_quantizes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    monkeypatch.chdir(tmp_path)
    shutil.copy(SAMPLES / "digits_cnn" / "model.onnx", tmp_path)
    data = SAMPLES / "digits" / "calibration"
    assert run(f"calibrate model.onnx --data {data} --preprocess centered -n 10").code == 0
    result = run("stats --calibrator mse --export r.json")
    assert result.code == 0, result.stderr
    assert "CalibrationMethod.MinMax" in result.stderr
    quant_pre_process("model.onnx", "prepared.onnx")
    quantize_static("prepared.onnx", "q.onnx", None, calibration_cache_path="r.json")
    model = onnx.load("q.onnx")
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    ranges = read_ranges(Path("r.json"))
    checked = 0
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in ranges:
            one = ranges[node.input[0]]
            assert float(constants[node.input[1]]) == pytest.approx((one.high - one.low) / 255, rel=1e-5)
            checked += 1
    assert checked > 20


# quantize with ranges of a file


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sample model and its statistics."""
    folder = tmp_path_factory.mktemp("digits")
    model = Path(shutil.copy(SAMPLES / "digits_cnn" / "model.onnx", folder))
    data, output = SAMPLES / "digits" / "calibration", folder / "model.calib"
    pipeline.calibrate(model, data, output=output, preprocess=PRESETS["centered"], limit=12)
    return model, output


class Notes(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def quantized(
    digits: tuple[Path, Path],
    folder: Path,
    ranges: Path | None,
    **wishes: Any,  # noqa: ANN401 - options of the command line
) -> tuple[dict[str, Entry], list[str]]:
    """The activations of the plan, and what was said about the file."""
    notes = Notes()
    wanted = Policy().override(**wishes)
    result = pipeline.quantize(
        digits[0], load(digits[1]), output=folder / "q.onnx", policy=wanted, ranges=ranges, force=True, listener=notes
    )
    said = [line for line in notes.lines if ranges is not None and str(ranges) in line]
    return {entry.tensor: entry for entry in result.plan.of("activation")}, said


def same_grid(a: QuantParams, b: QuantParams) -> bool:
    return a.dtype == b.dtype and int(a.zero_point) == int(b.zero_point) and np.allclose(a.scale, b.scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("ending", "target", "options"),
    [
        (".cache", "tensorrt", "--type int8 --symmetric"),
        (".json", "tensorrt", "--type int8 --symmetric"),
        (".json", "ort-cpu", "--type uint8"),
        (".json", "generic", "--type uint8"),
    ],
)
def test_exported_ranges_give_the_calibrators_grids(
    ending: str, target: str, options: str, digits: tuple[Path, Path], tmp_path: Path
) -> None:
    method = "mse"
    path = tmp_path / f"r{ending}"
    assert run(f"stats {digits[1]} --calibrator {method} {options} --export {path} -q").code == 0
    own, _ = quantized(digits, tmp_path, None, target=target, calibrator=method)
    found, said = quantized(digits, tmp_path, path, target=target, calibrator="admm")
    assert set(found) == set(own)
    for name, entry in found.items():
        assert same_grid(entry.params, own[name].params), name
        assert entry.method == ("same scale" if own[name].method == "same scale" else "file")
        assert entry.reason.endswith(f"; range from r{ending}")
    assert len(said) == (ending == ".cache") + 1
    assert "name no quantized value: " in said[-1]
    assert said[-1].endswith("logits") == (target != "tensorrt"), "the value before a clamp is not worth a word"


def test_limits_of_values_that_are_never_negative_are_one_sided(digits: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "r.cache"
    stats = load(digits[1]).stats
    write_ranges(path, {name: Range(-2.0, 2.0) for name in stats})
    found, said = quantized(digits, tmp_path, path)
    for name, entry in found.items():
        assert float(entry.params.high) == pytest.approx(2.0, rel=0.01)
        assert float(entry.params.low) == pytest.approx(0.0 if stats[name].low >= 0 else -2.0, abs=0.02)
    assert "TensorRT calibration cache holds only limits: ranges are -/+ limit, and 0 to limit for 1" in said[0]


def test_what_file_and_model_do_not_share_is_said(digits: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_ranges(path, {"image": Range(-3.0, 1.0), **{f"stray{number}": Range(0.0, 1.0) for number in range(5)}})
    own, _ = quantized(digits, tmp_path, None, calibrator="mse")
    found, said = quantized(digits, tmp_path, path, calibrator="mse")
    assert float(found["image"].params.scale) == pytest.approx(4 / 255)
    others = {name for name in own if name != "image"}
    assert all(found[name] == own[name] for name in others)
    assert said[0] == f"{path}: 5 of 6 ranges name no quantized value: stray0, stray1, stray2, ..."
    apart = sum(own[name].method != "same scale" for name in others)
    assert f"no range for {apart} of {len(own)} quantized values, which get one without it: " in said[1]


def test_a_file_of_another_model_is_refused(digits: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_ranges(path, {"data": Range(0.0, 1.0)})
    with pytest.raises(CalibrationError, match="none of its 1 ranges names a value that is quantized here") as caught:
        quantized(digits, tmp_path, path)
    assert str(path) in str(caught.value)
    assert "image" in caught.value.hint
    assert not (tmp_path / "q.onnx").exists()


def test_ranges_on_the_command_line(digits: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert run(f"stats {digits[1]} --calibrator minmax --export {path} -q").code == 0
    command = f"quantize {digits[0]} --calibration {digits[1]} -o {tmp_path}/a.onnx"
    result = run(f"{command} --ranges {path} --json")
    assert result.code == 0, result.stderr
    assert result.stdout.count(f"; range from {path.name}") > 20
    assert result.lines("note")[-1].endswith("1 of 36 ranges name no quantized value: logits")
    path.write_text(path.read_text()[:-20])
    result = run(f"{command} --force --ranges {path}")
    assert result.code == 2
    assert f"{path}: not a readable onnxruntime calibration JSON" in result.lines("error")[0]


@pytest.mark.filterwarnings("ignore")
@peer_has_a_cache
def test_ranges_that_onnxruntime_really_wrote(digits: tuple[Path, Path], tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.quant_utils import write_calibration_table
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([dict(feeds) for feeds in load(digits[1]).probes])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    prepared = tmp_path / "prepared.onnx"
    quant_pre_process(digits[0], prepared)
    quantize_static(prepared, tmp_path / "theirs.onnx", Reader(), calibration_cache_path=tmp_path / "static.json")
    calibrator = create_calibrator(
        prepared, augmented_model_path=str(tmp_path / "augmented.onnx"), calibrate_method=CalibrationMethod.Entropy
    )
    calibrator.collect_data(Reader())
    write_calibration_table(calibrator.compute_data().data, str(tmp_path))
    for path in (tmp_path / "static.json", tmp_path / "calibration.json"):
        ranges = read_ranges(path)
        found, _ = quantized(digits, tmp_path, path)
        taken = [name for name, entry in found.items() if entry.method == "file"]
        assert len(taken) > 15, path
        for name in taken:
            low, high = min(ranges[name].low, 0.0), max(ranges[name].high, 0.0)
            assert float(found[name].params.scale) == pytest.approx((high - low) / 255, rel=1e-6)


# values before clamps


def test_the_value_before_a_clamp_has_its_range(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_model(path, "a = Neg(image) b = Relu(a) c = Relu(b) y = Add(c, b)", outputs="float[N,1,8,8] y")
    model = load_model(path)
    one, own = Range(0.0, 3.0), Range(-1.0, 5.0)
    assert with_clamp_inputs({"c": one, "y": own}, model) == {"c": one, "y": own, "b": one, "a": one}
    assert with_clamp_inputs({"c": one, "a": own}, model) == {"c": one, "a": own, "b": one}
    assert with_clamp_inputs({"y": own}, model) == {"y": own}


# what is refused


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "line 1: expected TRT-<version>-<calibrator>, got ''"),
        ("image: 3c010a14\n", "line 1"),
        ("TRT-8601-EntropyCalibration2\nimage 3c010a14\n", "line 2: expected 'name: <hexadecimal float32>'"),
        ("TRT-8601-EntropyCalibration2\nimage: 3c010a14\nx: 3c01zz14\n", "line 3"),
        ("TRT-8601-EntropyCalibration2\nx: 3c010a1422\n", "line 2"),
        ("TRT-8601-EntropyCalibration2\nx: 7fc00000\n", "line 2: the scale of 'x' is nan"),
        ("TRT-8601-EntropyCalibration2\nx: 7f800000\n", "line 2: the scale of 'x' is inf"),
        ("TRT-8601-EntropyCalibration2\nx: bf800000\n", "line 2: the scale of 'x' is -1.0"),
        ("TRT-8601-EntropyCalibration2\nx: 3f800000\nx: 3f800000\n", "line 3: 'x' is there twice"),
    ],
)
def test_damaged_caches(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "r.cache"
    path.write_text(text)
    assert why in str(refusal(path))


GOOD = '{"lowest": 0.0, "highest": 1.0, "CLS": "TensorData"}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ('{"CLS": "TensorsData", "data": {"x": {"lowest": 0.0', "line 1"),
        ("[1, 2]", "expected an object of tensors, got list"),
        ('{"CLS": "TensorsData", "data": 3}', "expected an object of tensors, got int"),
        ('{"x": [0.0, 1.0]}', "'x': expected a TensorData object"),
        (GOOD, "'lowest': expected a TensorData object"),
        (f'{{"x": {GOOD.replace("0.0", "2.0")}}}', "'x': lowest 2.0 is above highest 1.0"),
        (f'{{"x": {GOOD.replace("0.0", "NaN")}}}', "'x': lowest is NaN, not a finite float32"),
        (f'{{"x": {GOOD.replace("1.0", "1e39")}}}', "'x': highest is 1e+39, not a finite float32"),
        (f'{{"x": {GOOD.replace("1.0", "true")}}}', "'x': highest is true"),
        ('{"x": {"avg": 1.0, "CLS": "TensorData"}}', "'x': lowest is null"),
        ("[" * 100_000, ""),
    ],
)
def test_damaged_jsons(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    assert why in str(refusal(path))


@pytest.mark.parametrize("ending", FORMATS)
def test_files_that_are_none(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"r{ending}"
    assert "No such file" in str(refusal(path))
    path.write_bytes(b"\xff\xfe\x00binary")
    assert "not a readable" in str(refusal(path))
    path.unlink()
    path.mkdir()
    assert "cannot be read" in str(refusal(path))


def test_endings(tmp_path: Path) -> None:
    assert "ends in '.txt'" in str(refusal(tmp_path / "r.txt"))
    assert exchange_format(Path("R.JSON")).title == FORMATS[".json"].title
    with pytest.raises(CalibrationError, match="no format of ranges ends in ''"):
        write_ranges(tmp_path / "r", RANGES)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "r.cache"
    with pytest.raises(CalibrationError, match="there is no range to write"):
        write_ranges(path, {})
    with pytest.raises(CalibrationError, match="no line for the name"):
        write_ranges(path, {"a\nb": Range(0.0, 1.0)})
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        write_ranges(path, RANGES)
    assert path.read_text() == "precious"
    write_ranges(path, RANGES, force=True)
    read_ranges(path)


def test_ranges_of_statistics_come_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = SAMPLES / "digits_vit" / "model.onnx"
    data = SAMPLES / "digits" / "calibration"
    assert run(f"calibrate {model} --data {data} --preprocess centered -n 4").code == 0
    stats = load(Path("model.calib")).stats
    assert run("stats --calibrator minmax --export r.json -q").stderr == ""
    found = read_ranges(Path("r.json"))
    assert set(stats) <= set(found)
    assert all(found[name] == Range(min(one.low, 0.0), max(one.high, 0.0)) for name, one in stats.items())
