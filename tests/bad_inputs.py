"""What users give by mistake, as a table; ``python -m tests.bad_inputs`` prints it with what qconvert says to each."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx.parser
from PIL import Image

from qconvert.cli import main

Break = Callable[[Path], object]
Around = Callable[[], contextlib.AbstractContextManager[Any]]

CALIBRATE = "calibrate model.onnx --data images -o new.calib"
QUANTIZE = "quantize model.onnx --calibration model.calib -o new.onnx"
WEIGHTS = "quantize model.onnx --mode weight-only -o new.onnx"
EVALUATE = "evaluate model.onnx model.int8.onnx --data images"
GOOD_POLICY = "version: 1\ntarget: ort-cpu\n"


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        what: The mistake in words.
        command: What is typed in a folder that holds ``model.onnx``, ``images/``, ``model.calib`` and ``model.int8.onnx``.
        error: Part of the line that says what is wrong.
        hint: Part of the line that says what to do, or "" where the error says it.
        spoil: Makes the mistake in the folder.
        around: What is different about the machine meanwhile.
        code: The exit code.
    """

    what: str
    command: str
    error: str
    hint: str = ""
    spoil: Break = Path.resolve
    around: Around = contextlib.nullcontext
    code: int = 2


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    stdout: str
    stderr: str

    def lines(self, kind: str) -> list[str]:
        """The lines on stderr of a kind: ``error``, ``hint``, ``note``."""
        return [line for line in self.stderr.splitlines() if line.startswith(f"{kind}: ")]


def run(command: str) -> Result:
    """Types a command in the current folder."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(shlex.split(command))
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# models


def save_model(
    path: Path, body: str, *, inputs: str = "float[N,1,8,8] image", outputs: str = "float[] y", weights: str = ""
) -> None:
    """Writes a model from onnx's text form."""
    held = f"<{weights}>" if weights else ""
    text = f'<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]> graph ({inputs}) => ({outputs}) {held} {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), path)


def _numbers(count: int) -> str:
    return ", ".join(f"{value:.4f}" for value in np.random.default_rng(7).standard_normal(count))


CONV_WEIGHT = f"float[2,1,3,3] w = {{{_numbers(18)}}}"
CONV = "y = Conv<pads=[1,1,1,1]>(image, w)"


def conv_model(path: Path, *, before: str = "", reads: str = "image") -> None:
    """One Conv, behind the operators ``before`` which make ``reads``."""
    body = f"{before} y = Conv<pads=[1,1,1,1]>({reads}, w)"
    save_model(path, body, outputs="float[N,2,8,8] y", weights=f"{CONV_WEIGHT}, float one = {{1.0}}")


TREES = (
    "y = ai.onnx.ml.TreeEnsembleRegressor<n_targets=1, nodes_treeids=[0,0,0], nodes_nodeids=[0,1,2], nodes_featureids=[0,0,0],"
    'nodes_modes=["BRANCH_LEQ","LEAF","LEAF"], nodes_values=[0.5,0.0,0.0], nodes_truenodeids=[1,0,0], nodes_falsenodeids=[2,0,0],'
    "target_treeids=[0,0], target_nodeids=[1,2], target_ids=[0,0], target_weights=[1.0,2.0]>(x)"
)


# folders


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Works in a folder for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def good_folder(folder: Path) -> None:
    """A model, images, statistics and the quantized model, all well."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name in ("a.png", "b.png", "c.png", "d.png"):
        Image.fromarray(rng.integers(1, 255, (8, 8), np.uint8)).save(folder / "images" / name)
    conv_model(folder / "model.onnx")
    (folder / "policy.yaml").write_text(GOOD_POLICY)
    with inside(folder):
        for command in ("calibrate model.onnx --data images", "quantize"):
            result = run(command)
            if result.code:
                raise AssertionError(result.stderr)


def _text(name: str, text: str) -> Break:
    return lambda folder: (folder / name).write_text(text)


def _cut(name: str, keep: float) -> Break:
    def spoil(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(keep * len(data))])

    return spoil


def _remove(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def _empty_folder(folder: Path) -> None:
    (folder / "nothing").mkdir()


def _corrupt_images(*names: str) -> Break:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / "images" / name).write_bytes(b"\x89PNG\r\n\x1a\n not really")

    return spoil


def _cut_array(folder: Path) -> None:
    np.save(folder / "x.npy", ROWS)
    _cut("x.npy", 0.05)(folder)


def _array(array: np.ndarray[Any, Any]) -> Break:
    return lambda folder: np.save(folder / "x.npy", array)


def _with_nan(folder: Path) -> None:
    array = np.ones((4, 1, 8, 8), np.float32)
    array[2, 0, 3, 3:5] = np.nan
    np.save(folder / "x.npy", array)


def _model(before: str, reads: str) -> Break:
    return lambda folder: conv_model(folder / "model.onnx", before=before, reads=reads)


def _other_model(folder: Path) -> None:
    conv_model(folder / "other.onnx", before="r = Relu(image)", reads="r")


def _two_channels(folder: Path) -> None:
    weights = f"float[2,2,3,3] w = {{{_numbers(36)}}}"
    save_model(folder / "model.onnx", CONV, inputs="float[N,2,8,8] image", outputs="float[N,2,8,8] y", weights=weights)


def _mixed_sizes(folder: Path) -> None:
    Image.new("L", (12, 10), 90).save(folder / "images" / "b.png")
    Image.new("L", (8, 6), 90).save(folder / "images" / "c.png")
    (folder / "policy.yaml").write_text("version: 1\npreprocess: {crop: [8, 8]}\n")


def _trees(folder: Path) -> None:
    save_model(folder / "model.onnx", TREES, inputs="float[N,2] x", outputs="float[N,1] y")
    np.save(folder / "x.npy", np.ones((4, 2), np.float32))


def _two_inputs(folder: Path) -> None:
    inputs = "float[N,1,8,8] image, float[N,2,8,8] other"
    save_model(
        folder / "model.onnx",
        "c = Conv<pads=[1,1,1,1]>(image, w) y = Add(c, other)",
        inputs=inputs,
        outputs="float[N,2,8,8] y",
        weights=CONV_WEIGHT,
    )


def _erf(folder: Path) -> None:
    save_model(folder / "model.onnx", "y = Erf(image)")


def _two_outputs(folder: Path) -> None:
    save_model(folder / "other.onnx", "y = Relu(image) z = Relu(y)", outputs="float[] y, float[] z")


def _unknown_operator(folder: Path) -> None:
    save_model(folder / "model.onnx", "y = Frobnicate(image)")


def _second_calibration(folder: Path) -> None:
    shutil.copy(folder / "model.calib", folder / "second.calib")


def _second_candidate(folder: Path) -> None:
    shutil.copy(folder / "model.int8.onnx", folder / "model.int8.tensorrt.onnx")


# machines


@contextlib.contextmanager
def _no_room() -> Iterator[None]:
    """A disk on which no file can grow beyond a few bytes; the real error of the system, not a mock."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _disk_full() -> Iterator[None]:
    """Files can be created, and nothing written into them."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        mock.patch("pathlib.Path.write_bytes", side_effect=error),
        mock.patch("zipfile.ZipFile.writestr", side_effect=error),
    ):
        yield


def _read_only() -> contextlib.AbstractContextManager[Any]:
    """What a user without rights sees; the tests may run as root, who may do everything."""
    access = os.access
    return mock.patch("os.access", lambda path, mode: mode != os.W_OK and access(path, mode))


def _unreadable() -> contextlib.AbstractContextManager[Any]:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "images")
    return mock.patch("pathlib.Path.iterdir", side_effect=error)


def _cpu_only() -> contextlib.AbstractContextManager[Any]:
    return mock.patch("onnxruntime.get_available_providers", return_value=["CPUExecutionProvider"])


RULE = "version: 1\nrules:\n  - match: {names: [convolution_1]}\n    float: true\n"
IMAGES = ("a.png", "b.png", "c.png", "d.png")
ROWS = np.ones((4, 1, 8, 8), np.float32)
ARRAY = "calibrate model.onnx --data x.npy -o new.calib"

# ruff: noqa: E501 - a table, one row a line
# fmt: off
CASES = (
    # the model
    Case("model missing", "calibrate mode.onnx --data images", "mode.onnx: no such file", "path of an .onnx file"),
    Case("model is a folder", "calibrate images --data images", "images: is a folder", "path of an .onnx file"),
    Case("not ONNX", CALIBRATE, "model.onnx: not a readable ONNX model", "another kind", _text("model.onnx", "hello " * 99)),
    Case("truncated ONNX", CALIBRATE, "model.onnx: not a readable ONNX model", "truncated", _cut("model.onnx", 0.7)),
    Case("empty model file", CALIBRATE, "model.onnx: the model holds no operator", "truncated", _cut("model.onnx", 0)),
    Case("truncated ONNX, inspect", "inspect model.onnx", "model.onnx: not a readable ONNX model", "truncated", _cut("model.onnx", 0.7)),
    Case("truncated ONNX, evaluate", EVALUATE, "model.int8.onnx: not a readable ONNX model", "truncated", _cut("model.int8.onnx", 0.7)),
    Case("only an operator that nobody knows", CALIBRATE, "nothing to quantize: no integer kernel for Frobnicate", "qconvert inspect", _unknown_operator),
    Case("operator that onnxruntime does not know", CALIBRATE, "onnxruntime refuses the model: INVALID_GRAPH", "re-export", _model("r = Frobnicate(image)", "r")),
    Case("operator that reads what nobody makes", CALIBRATE, "model.onnx: not a valid model: 'q', an input of Add s, comes from nowhere", "onnx.checker", _model("s = Add(image, q)", "s")),
    Case("model quantized already", "calibrate model.int8.onnx --data images", "nothing to quantize: already quantized", "qconvert inspect"),
    Case("tree ensemble", ARRAY, "nothing to quantize", "qconvert inspect", _trees),
    Case("no operator that can be quantized", CALIBRATE, "nothing to quantize: no integer kernel for Erf", "qconvert inspect", _erf),
    Case("models with different outputs", "evaluate model.onnx other.onnx --data images", "has 2 outputs, the reference has 1", "", _two_outputs),
    # the samples
    Case("data folder missing", "calibrate model.onnx --data pictures -o new.calib", "pictures: no such file or folder", "supported"),
    Case("data folder empty", "calibrate model.onnx --data nothing -o new.calib", "nothing: no samples", "supported", _empty_folder),
    Case("data of another kind", "calibrate model.onnx --data policy.yaml -o new.calib", "cannot be read from a .yaml file", "supported"),
    Case("data folder may not be read", CALIBRATE, "images: Permission denied", "rights", around=_unreadable),
    Case("one corrupt image", CALIBRATE, "skipped b.png: not an image", "", _corrupt_images("b.png"), code=0),
    Case("one corrupt image, --strict", CALIBRATE + " --strict", "b.png: not an image", "mend or remove", _corrupt_images("b.png")),
    Case("first image corrupt, --strict", CALIBRATE + " --strict", "a.png: not an image", "mend or remove", _corrupt_images("a.png")),
    Case("half an image, --strict", CALIBRATE + " --strict", "b.png: cannot be read as an image", "mend or remove", _cut("images/b.png", 0.6)),
    Case("one corrupt image, evaluate", EVALUATE, "skipped b.png: not an image", "", _corrupt_images("b.png"), code=0),
    Case("one corrupt image, evaluate --strict", EVALUATE + " --strict", "b.png: not an image", "mend or remove", _corrupt_images("b.png")),
    Case("all images corrupt", CALIBRATE, "none of the 4 samples can be read; the first: a.png", "--data", _corrupt_images(*IMAGES)),
    Case("all images corrupt, evaluate", EVALUATE, "none of the 4 samples c", "", _corrupt_images(*IMAGES)),
    Case("images of mixed sizes, only cropped", CALIBRATE + " -p policy.yaml", "c.png: 6x8 (height x width) is smaller than the crop 8x8", "resize", _mixed_sizes),
    Case("images for a model with 2 channels", CALIBRATE, "images fit inputs of 1 or 3 channels", ".npy", _two_channels),
    Case("images for a model with 2 inputs", CALIBRATE, "this one has 2 ('image', 'other')", ".npz", _two_inputs),
    Case("array of another shape", ARRAY, "x.npy has shape [4, 3, 8, 8], model input 'image' wants [N, 1, 8, 8]", "first axis", _array(np.ones((4, 3, 8, 8), np.float32))),
    Case("array without rows", ARRAY, "x.npy: no samples, the first axis is empty", "", _array(ROWS[:0])),
    Case("array of text", ARRAY, "model input 'image' wants float32", "astype", _array(np.full((4, 1, 8, 8), "a"))),
    Case("NaN in an array", ARRAY, "x.npy[2]: 'image': 2 of 64 values are NaN or infinite", "mend the data", _with_nan),
    Case("truncated array", ARRAY, "x.npy: ", "mend or remove", _cut_array),
    Case("labels missing", EVALUATE + " --labels l.csv", "l.csv: labels cannot be read: No such file", "file,label"),
    Case("labels for other images", EVALUATE + " --labels l.csv", "no label for 'b.png' (3 of 4 samples", "file,label", _text("l.csv", "file,label\na.png,1\n")),
    Case("--samples 0", CALIBRATE + " --samples 0", "--samples", "qconvert calibrate --help"),
    Case("preprocessing for arrays", ARRAY + " --preprocess unit", "preprocessing is for images, the samples are arrays", "leave out", _array(ROWS)),
    Case("unknown preset", CALIBRATE + " --preprocess imagenett", "--preprocess: expected one of imagenet", "did you mean imagenet?"),
    Case("NaN made inside the model", CALIBRATE, "png': value 'n' holds 64 NaN of 64 values", "preprocessing", _model("m = Neg(image) n = Log(m)", "n")),
    Case("Inf made inside the model", CALIBRATE, "png': value 'n' holds 64 Inf of 64 values", "preprocessing", _model("z = Sub(image, image) n = Div(one, z)", "n")),
    # the statistics
    Case("statistics missing", "quantize model.onnx --calibration m.calib", "m.calib: no such file", "qconvert calibrate"),
    Case("no statistics in the folder", "quantize", "no .calib file in this folder", "qconvert calibrate", _remove("model.calib")),
    Case("two statistics in the folder", "quantize", "2 .calib files in this folder: model.calib, second.calib", "--calibration", _second_calibration),
    Case("statistics of another model", "quantize other.onnx --calibration model.calib", "belongs to another model ('model.onnx'", "qconvert calibrate other.onnx", _other_model),
    Case("the model changed since", QUANTIZE, "belongs to another model", "qconvert calibrate model.onnx", _model("r = Relu(image)", "r")),
    Case("damaged statistics", QUANTIZE, "model.calib: not a readable calibration file", "calibrate again", _cut("model.calib", 0.6)),
    Case("statistics of another kind", "quantize model.onnx --calibration policy.yaml -o new.onnx", "policy.yaml: not a readable calibration file", "calibrate again"),
    Case("the model of the statistics is gone", "quantize", "its model 'model.onnx' is not there", "first argument", _remove("model.onnx")),
    Case("--data and --calibration", QUANTIZE + " --data images", "--data and --calibration exclude each other", "one of them"),
    Case("--data without a model", "quantize --data images", "--data needs MODEL", "MODEL --data"),
    Case("nothing to evaluate", "evaluate model.onnx --data images", "no model.int8.onnx in this folder", "second argument", _remove("model.int8.onnx")),
    Case("two models to evaluate", "evaluate model.onnx --data images", "2 quantized models in this folder", "second argument", _second_candidate),
    # the policy
    Case("policy missing", QUANTIZE + " -p p.yaml", "p.yaml: no such file", "policy init"),
    Case("policy is not YAML", QUANTIZE + " -p policy.yaml", "policy.yaml:2:17: expected the node content", "brackets", _text("policy.yaml", "version: 1\nrules: [{match: ]\n")),
    Case("policy with a misspelt key", QUANTIZE + " -p policy.yaml", "policy.yaml:3: defaults.weigths: unknown key", "did you mean 'weights'?", _text("policy.yaml", "version: 1\ndefaults:\n  weigths: {dtype: int8}\n")),
    Case("policy with a misspelt type", QUANTIZE + " -p policy.yaml", "policy.yaml:2: defaults.weights.dtype: expected one of", "did you mean 'int8'?", _text("policy.yaml", "version: 1\ndefaults: {weights: {dtype: int88}}\n")),
    Case("policy with an unknown target", "policy check policy.yaml", "policy.yaml:2: target: expected one of", "did you mean 'tensorrt'", _text("policy.yaml", "version: 1\ntarget: tensort\n")),
    Case("rule without a match", QUANTIZE + " -p policy.yaml", "policy.yaml:3: rules[0]: names ['convolution_1'] match no operator", "closest: ", _text("policy.yaml", RULE)),
    Case("rule without a match, inspect", "inspect model.onnx -p policy.yaml", "policy.yaml:3: rules[0]: names ['convolution_1'] match no operator", "closest: ", _text("policy.yaml", RULE)),
    Case("rule without a match, policy check", "policy check policy.yaml --model model.onnx", "policy.yaml:3: rules[0]: names", "closest: ", _text("policy.yaml", RULE)),
    Case("--exclude without a match", QUANTIZE + " --exclude Convv", "--exclude Convv", "closest: Conv"),
    Case("--exclude without a match, calibrate", CALIBRATE + " --exclude Convv", "--exclude Convv", "closest: Conv"),
    Case("everything excluded", QUANTIZE + " --exclude Conv", "nothing to quantize: left float by --exclude Conv", "qconvert inspect"),
    Case("samples without data", QUANTIZE + " --samples 3", "are about samples", "give --data"),
    Case("unknown target", QUANTIZE + " --target tensorr", "--target: expected one of ort-cpu, tensorrt, generic", "did you mean 'tensorrt'?"),
    Case("unknown target, policy init", "policy init p.yaml --target openvinoo", "unknown target 'openvinoo'", "did you mean 'openvino'"),
    Case("unknown calibrator", QUANTIZE + " --calibrator entrpy", "--calibrator: expected one of minmax", "did you mean 'entropy'?"),
    Case("unknown parameter of a calibrator", QUANTIZE + " --calibrator percentile:percent=9", "--calibrator: percent: unknown key", "percentile"),
    Case("parameter of a calibrator out of its limits", QUANTIZE + " --calibrator percentile:percentile=101", "--calibrator: percentile: expected a number", "default"),
    Case("unknown scheme", QUANTIZE + " --scheme per-chanel", "--scheme: expected one of per-tensor, per-channel, per-group", "did you mean 'per-channel'?"),
    Case("unknown type", QUANTIZE + " --weights int5", "--weights: expected one of", "did you mean 'int8'?"),
    Case("type that the target does not take", QUANTIZE + " --target tensorrt --activations uint8", "--target tensorrt --activations uint8: target tensorrt takes int8, not uint8", "nearest: --activations int8 ('qconvert formats'"),
    # cells that 'qconvert formats' does not list
    Case("format that the target does not read", QUANTIZE + " --target tensorrt --format qoperator", "--target tensorrt --format qoperator: target tensorrt reads qdq models", "nearest: --format qdq"),
    Case("format that a microcontroller does not read", QUANTIZE + " --target integer-mcu --format qoperator", "target integer-mcu reads qdq and integer models", "nearest: --format qdq"),
    Case("mode that the target does not have", QUANTIZE + " --target qnn --mode dynamic", "--target qnn --mode dynamic: target qnn takes static models only", "nearest: --mode static"),
    Case("static mode for weights alone", QUANTIZE + " --target trt-int4", "--target trt-int4: target trt-int4 takes weight-only models only", "nearest: --mode weight-only"),
    Case("groups that the target does not store", WEIGHTS + " --target tensorrt --scheme per-group", "target tensorrt stores int8 per-channel, per-tensor, not per-group", "nearest: --scheme per-channel"),
    Case("groups of a size that the target does not take", WEIGHTS + " --target trt-int4 --scheme per-group --group-size 32", "target trt-int4 takes groups of 128 or 64, not 32", "nearest: --group-size 128"),
    Case("groups of 8-bit floats", WEIGHTS + " --weights float8e5m2 --scheme per-group", "float8e5m2 has one scale a channel or a tensor", "nearest: --scheme per-channel"),
    Case("type that weight-only models do not have", WEIGHTS + " --target openvino --weights int2", "target openvino stores int8, uint8, int4, uint4, not int2", "nearest: --weights int8"),
    Case("groups in a static model", QUANTIZE + " --target qnn --scheme per-group", "target qnn takes no per-group weights", "nearest: --scheme per-channel"),
    Case("groups in a format without", QUANTIZE + " --format integer --scheme per-group", "--format integer --scheme per-group: format integer has no scale for each group", "nearest: --scheme per-channel"),
    Case("16 bits in integer operators", QUANTIZE + " --format qoperator --activations uint16", "activations is uint16: onnxruntime's integer operators take 8 bits", "nearest: --activations uint8"),
    Case("16-bit weights in the integer format", QUANTIZE + " --format integer --weights int16", "weights is int16: sums, tables and products are made for 8 bits", "nearest: --weights int8"),
    Case("types that do not go together", QUANTIZE + " --format qoperator --activations int8 --weights uint8", "no integer operator for signed activations and unsigned weights", "nearest: --weights int8"),
    Case("input type of 16-bit activations", QUANTIZE + " --activations uint16 --input-type int8", "uint16 levels do not fit into int8 inputs", "nearest: --activations uint8"),
    Case("sums without their bias", QUANTIZE + " --target tensorrt --output-type int32", "target tensorrt adds biases in float, so that no int32 sum has them", "nearest: --output-type float32"),
    Case("format of a dynamic model", QUANTIZE + " --mode dynamic --format qoperator", "dynamic models have one form, with float inputs and outputs", "nearest: --format qdq"),
    Case("dynamic activations of another type", QUANTIZE + " --mode dynamic --activations int8", "per-tensor activations are uint8", "nearest: --activations uint8"),
    Case("16-bit weights in dynamic mode", QUANTIZE + " --mode dynamic --weights int16", "dynamic mode takes at most 8 bits, not int16", "nearest: --weights int8"),
    Case("rule that the target does not take", QUANTIZE + " --policy rule.yaml", "rules[0] (rule.yaml:4): --target tensorrt --weights uint4: target tensorrt takes int8, not uint4", "nearest: --weights int8", _text("rule.yaml", "version: 1\ntarget: tensorrt\nrules:\n  - match: {op_types: [Conv]}\n    weights: {dtype: uint4}\n")),
    # the machine and the output
    Case("unknown provider", CALIBRATE + " --provider cudaa", "unknown provider 'cudaa': expected one of cpu, cuda, tensorrt", "qconvert doctor"),
    Case("provider that is not here", CALIBRATE + " --provider cuda", "provider 'cuda': this onnxruntime", "qconvert[gpu]", around=_cpu_only),
    Case("TensorRT is not here", CALIBRATE + " --provider tensorrt", "provider 'tensorrt': this onnxruntime", "TensorRT", around=_cpu_only),
    Case("TensorRT is not here, quantize", QUANTIZE + " --provider tensorrt", "provider 'tensorrt': this onnxruntime", "TensorRT", around=_cpu_only),
    Case("CUDA is not here, evaluate", EVALUATE + " --provider cuda", "provider 'cuda': this onnxruntime", "qconvert[gpu]", around=_cpu_only),
    Case("output exists", "calibrate model.onnx --data images", "model.calib: exists already", "--force"),
    Case("output exists, quantize", "quantize", "model.int8.onnx: exists already", "--force"),
    Case("output exists, policy init", "policy init", "policy.yaml: exists already", "--force"),
    Case("folder of the output missing", "calibrate model.onnx --data images -o out/m.calib", "out/m.calib: the folder 'out' does not exist", "create it"),
    Case("output is a folder", "calibrate model.onnx --data images -o images", "images: is a folder", "file name"),
    Case("output would replace the model", "quantize -o model.onnx --force", "model.onnx: is the model that is read", "-o"),
    Case("output would replace the model, calibrate", "calibrate model.onnx --data images -o model.onnx --force", "model.onnx: is the model that is read", "-o"),
    Case("no permission to write", CALIBRATE, "new.calib: no permission to write in '.'", "-o names another place", around=_read_only),
    Case("no permission to write, quantize", QUANTIZE, "new.onnx: no permission to write in '.'", "-o names another place", around=_read_only),
    Case("files may not grow any more", CALIBRATE, "new.calib: cannot be written: File too large", "nothing was written", around=_no_room),
    Case("files may not grow any more, quantize", QUANTIZE, "new.onnx: cannot be written: File too large", "nothing was written", around=_no_room),
    Case("disk full", QUANTIZE, "new.onnx: cannot be written: No space left on device", "nothing was written", around=_disk_full),
    Case("disk full, calibrate", CALIBRATE, "new.calib: cannot be written: No space left on device", "nothing was written", around=_disk_full),
    # the command line
    Case("unknown command", "calibrat model.onnx", "No such command 'calibrat'", "'qconvert --help'"),
    Case("unknown command of policy", "policy chek", "No such command 'chek'", "'qconvert policy --help'"),
    Case("unknown option", CALIBRATE + " --dta images", "No such option: --dta", "qconvert calibrate --help"),
    Case("argument missing", "calibrate --data images", "Missing argument 'MODEL'", "qconvert calibrate --help"),
    Case("option missing", "calibrate model.onnx", "Missing option '--data'", "qconvert calibrate --help"),
    Case("value missing", "calibrate model.onnx --data", "Option '--data' requires an argument", "qconvert calibrate --help"),
    Case("number expected", CALIBRATE + " --seed soon", "Invalid value for '--seed'", "qconvert calibrate --help"),
    Case("one argument too many", "inspect model.onnx model.onnx", "unexpected extra argument", "qconvert inspect --help"),
)
# fmt: on


def main_table() -> None:
    """Prints the table as Markdown."""
    with tempfile.TemporaryDirectory() as root:
        good = Path(root) / "good"
        good_folder(good)
        write = sys.stdout.write
        write("| what is wrong | typed | exit | printed on stderr |\n|---|---|---|---|\n")
        for number, case in enumerate(CASES):
            folder = Path(root) / str(number)
            shutil.copytree(good, folder)
            case.spoil(folder)
            with inside(folder), case.around():
                result = run(case.command)
            shown = [
                line
                for line in result.stderr.splitlines()
                if not line.startswith("note: ") or (not result.code and case.error in line)
            ]
            cell = "<br>".join(line.replace("|", "\\|") for line in shown)
            write(f"| {case.what} | `{case.command}` | {result.code} | {cell} |\n")


if __name__ == "__main__":
    main_table()
