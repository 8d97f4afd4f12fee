"""The command line as a user types it, on the sample models."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qconvert import __version__
from qconvert.cli.terminal import Terminal
from tests.bad_inputs import Result, run, snapshot

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
CALIBRATION, EVALUATION = SAMPLES / "digits" / "calibration", SAMPLES / "digits" / "evaluation"
LABELS = SAMPLES / "digits" / "evaluation_labels.csv"
COMMANDS = (
    ("inspect",),
    ("calibrate",),
    ("stats",),
    ("quantize",),
    ("evaluate",),
    ("compare",),
    ("convert",),
    ("targets",),
    ("doctor",),
    ("demo",),
    ("policy", "init"),
    ("policy", "check"),
    ("policy", "schema"),
    ("policy", "show"),
)
FEW = "--samples 40 --latency-runs 2"
QCONVERT = (sys.executable, "-m", "qconvert")


def ok(command: str) -> Result:
    result = run(command)
    assert result.code == 0, result.stderr
    assert not result.lines("error")
    return result


def as_json(command: str) -> dict[str, Any]:
    found = json.loads(ok(command).stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the CNN, its statistics and its quantized model."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(SAMPLES / "digits_cnn" / "model.onnx", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ok(f"calibrate model.onnx --data {CALIBRATION} --preprocess centered")
        ok("quantize")
    return folder


@pytest.fixture
def work(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in."""
    folder = tmp_path / "work"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)


# the three commands


@pytest.mark.parametrize(("name", "heavy"), [("digits_cnn", 18), ("digits_vit", 26), ("digits_gru", 1)])
def test_calibrate_quantize_evaluate_in_one_folder(
    name: str, heavy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = SAMPLES / name / "model.onnx"
    assert "model.calib: " in ok(f"calibrate {model} --data {CALIBRATION} --preprocess centered").stderr
    assert "model.int8.onnx: written" in ok("quantize --scheme per-channel").stderr
    found = as_json(f"evaluate --data {EVALUATION} --latency-runs 3 --json")
    assert sorted(snapshot(tmp_path)) == ["model.calib", "model.int8.onnx"]
    before, after = found["reference"], found["candidate"]
    expected = json.loads((SAMPLES / "accuracy.json").read_text())
    assert before["accuracy"]["items"] == after["accuracy"]["items"] == found["samples"] == 400
    assert before["accuracy"]["top1"] == expected[name]["top1"]
    assert after["accuracy"]["top1"] >= before["accuracy"]["top1"] - 1.0
    assert found["fidelity"][0]["sqnr_db"] > 20
    assert found["fidelity"][0]["samples"] == 400
    assert after["heavy_integer"] == heavy
    assert after["size_bytes"] < before["size_bytes"]
    assert after["latency"]["runs"] == 3
    assert Path(after["path"]) == Path("model.int8.onnx")


@pytest.mark.usefixtures("work")
def test_the_table_says_what_the_json_says() -> None:
    options = f"--data {EVALUATION} {FEW}"
    table, found = ok(f"evaluate {options}").stdout, as_json(f"evaluate {options} --json")
    top1, sqnr = found["candidate"]["accuracy"]["top1"], found["fidelity"][0]["sqnr_db"]
    assert re.search(rf"^top-1 \(40 labels\) +[\d.]+ % +{top1:.2f} % +[+-][\d.]+ points$", table, re.MULTILINE)
    assert re.search(rf"^logits +{sqnr:.2f} dB +0\.\d+ +[\d.]+ % +40$", table, re.MULTILINE)
    assert re.search(r"^heavy operators in integer kernels +0 of 18 +18 of 18$", table, re.MULTILINE)
    assert re.search(r"^size +[\d.]+ kB +[\d.]+ kB +\d+ %$", table, re.MULTILINE)
    assert re.search(r"^latency \(\d+ threads?, median of 2\) +[\d.]+ ms +[\d.]+ ms +[\d.]+x$", table, re.MULTILINE)
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.usefixtures("work")
def test_labels_from_a_file_and_from_folders_agree() -> None:
    options = f"--data {EVALUATION} {FEW} --json"
    folders, file = as_json(f"evaluate {options}"), as_json(f"evaluate {options} --labels {LABELS}")
    assert folders["candidate"]["accuracy"] == file["candidate"]["accuracy"]


def test_the_seed_chooses_the_samples(work: Path) -> None:
    for seed in (1, 2):
        ok(f"calibrate model.onnx --data {CALIBRATION} --preprocess centered -n 9 --seed {seed} -o {seed}.calib")
    ok(f"calibrate model.onnx --data {CALIBRATION} --preprocess centered --samples 9 --seed 1 -o again.calib")
    files = snapshot(work)
    assert files["1.calib"] == files["again.calib"]
    assert files["1.calib"] != files["2.calib"]


@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_give_the_same_bytes(threads: int, work: Path) -> None:
    ok(f"calibrate model.onnx --data {CALIBRATION} --preprocess centered -o again.calib --threads {threads}")
    ok("quantize --calibration again.calib -o again.onnx")
    files = snapshot(work)
    assert files["again.calib"] == files["model.calib"]
    assert files["again.onnx"] == files["model.int8.onnx"]


def test_an_output_is_overwritten_with_force_alone(work: Path) -> None:
    (work / "model.int8.onnx").write_bytes(b"precious")
    assert run("quantize").code == 2
    assert (work / "model.int8.onnx").read_bytes() == b"precious"
    ok("quantize --force")
    onnx.load(work / "model.int8.onnx")


@pytest.mark.usefixtures("work")
def test_the_statistics_named_after_the_model_are_its_own() -> None:
    shutil.copy("model.calib", "second.calib")
    assert run("quantize -o new.onnx").code == 2
    result = ok("quantize model.onnx -o new.onnx")
    assert "statistics of 100 samples from model.calib" in result.stderr


def test_statistics_and_model_move_together(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    ok("quantize -o new.onnx")


def test_from_another_folder(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    ok(f"calibrate ../work/model.onnx --data {CALIBRATION} --preprocess centered")
    assert "model ../work/model.onnx, which model.calib belongs to" in ok("quantize").stderr
    assert (tmp_path / "sub" / "model.int8.onnx").read_bytes() == (work / "model.int8.onnx").read_bytes()


# options of quantize


def test_quantize_straight_from_data(work: Path) -> None:
    (work / "model.calib").unlink()
    ok(f"quantize model.onnx --data {CALIBRATION} --preprocess centered -o new.onnx")
    files = snapshot(work)
    assert files["new.onnx"] == files["model.int8.onnx"]
    assert "model.calib" not in files


@pytest.mark.usefixtures("work")
def test_exclude_by_type_and_by_name() -> None:
    plan = as_json("quantize --exclude Gemm --exclude 'block1/depthwise/*' -o new.onnx --json --force")["plan"]
    reasons = {op["operator"]: op["reason"] for op in plan["floats"]}
    assert reasons["logits"] == "left float by --exclude Gemm"
    assert [name for name, why in reasons.items() if why == "left float by --exclude block1/depthwise/*"]
    assert not {op["operator"] for op in plan["integer"]} & set(reasons)


def test_a_policy_decides(work: Path) -> None:
    (work / "policy.yaml").write_text(
        "version: 1\nrules:\n"
        "  - match: {op_types: [Gemm]}\n    float: true\n"
        "  - match: {op_types: [Conv]}\n    weights: {scheme: per-tensor}\n"
    )
    plan = as_json("quantize --policy policy.yaml -o new.onnx --json")["plan"]
    assert {op["operator"]: op["reason"] for op in plan["floats"]}["logits"] == "left float by rules[0] (policy.yaml:3)"
    weights = [entry for entry in plan["entries"] if entry["role"] == "weight"]
    assert len(weights) == 17
    assert {entry["params"]["axis"] for entry in weights} == {None}
    assert all("rules[1] (policy.yaml:5)" in entry["reason"] for entry in weights)


@pytest.mark.parametrize(("scheme", "shapes"), [("per-tensor", {0}), ("per-channel", {1}), ("per-group", {1, 2})])
@pytest.mark.usefixtures("work")
def test_scheme(scheme: str, shapes: set[int]) -> None:
    plan = as_json(f"quantize --scheme {scheme} -o new.onnx --json")["plan"]
    weights = [entry for entry in plan["entries"] if entry["role"] == "weight"]
    assert {np.ndim(entry["params"]["scale"]) for entry in weights} == shapes


@pytest.mark.usefixtures("work")
def test_weights_have_options_of_their_own() -> None:
    options = "--scheme per-group --group-size 16 --weights int4 --weight-calibrator mse:steps=50"
    plan = as_json(f"quantize {options} -o new.onnx --json")["plan"]
    weights = {entry["tensor"]: entry for entry in plan["entries"] if entry["role"] == "weight"}
    assert {entry["method"] for entry in weights.values()} == {"mse"}
    assert {entry["params"]["dtype"] for entry in weights.values()} == {"int4"}
    assert {entry["params"]["block_size"] for entry in weights.values()} == {None, 16}


def test_tensorrt_gets_symmetric_int8(work: Path) -> None:
    found = as_json("quantize --target tensorrt --json")
    assert found["output"] == "model.int8.tensorrt.onnx"
    model = onnx.load("model.int8.tensorrt.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = [
        constants[node.input[2]] for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}
    ]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert not [entry for entry in found["plan"]["entries"] if entry["role"] == "bias"]
    assert run(f"evaluate model.onnx --data {EVALUATION} {FEW}").code == 2, "two candidates"
    (work / "model.int8.onnx").unlink()
    assert "candidate model.int8.tensorrt.onnx" in ok(f"evaluate model.onnx --data {EVALUATION} {FEW}").stderr


@pytest.mark.usefixtures("work")
def test_generic_keeps_every_clamp() -> None:
    ok("quantize --target generic")
    kinds = [node.op_type for node in onnx.load("model.int8.generic.onnx").graph.node]
    clips = [node.op_type for node in onnx.load("model.onnx").graph.node if node.op_type == "Clip"]
    assert kinds.count("Clip") == len(clips) > 0


@pytest.mark.parametrize("calibrator", ["minmax", "average", "percentile", "entropy", "mse"])
@pytest.mark.usefixtures("work")
def test_every_calibrator_from_the_same_statistics(calibrator: str) -> None:
    found = as_json(f"quantize --calibrator {calibrator} -o new.onnx --json")
    methods = {entry["method"] for entry in found["plan"]["entries"] if entry["role"] == "activation"}
    assert calibrator in methods
    assert found["proof"]["fidelity"][0]["sqnr_db"] > 20


@pytest.mark.usefixtures("work")
def test_parameters_of_a_calibrator_matter() -> None:
    scales = []
    for percentile in ("99.9", "90"):
        plan = as_json(f"quantize --calibrator percentile:percentile={percentile} -o new.onnx --force --json")["plan"]
        scales.append([entry["params"]["scale"] for entry in plan["entries"] if entry["method"] == "percentile"])
    assert sum(wide > narrow for wide, narrow in zip(*scales, strict=True)) > len(scales[0]) / 2


@pytest.mark.usefixtures("work")
def test_types_on_the_command_line() -> None:
    plan = as_json("quantize --weights uint8 --activations int8 -o new.onnx --json")["plan"]
    types = {
        role: {e["params"]["dtype"] for e in plan["entries"] if e["role"] == role} for role in ("weight", "activation")
    }
    assert types == {"weight": {"uint8"}, "activation": {"int8"}}


# what is printed where


@pytest.mark.usefixtures("work")
def test_results_go_to_stdout_and_the_rest_to_stderr() -> None:
    for command in (
        f"calibrate model.onnx --data {CALIBRATION} --force",
        "quantize --force",
        "policy init",
        "policy check",
    ):
        result = ok(command)
        assert result.stdout == ""
        assert result.stderr != ""
    result = ok(f"evaluate --data {EVALUATION} {FEW}")
    assert "note: labels: the numbers of 10 class folders" in result.stderr
    assert "note" not in result.stdout
    for command in ("inspect model.onnx", "targets", "doctor", "policy show", "policy schema"):
        result = ok(command)
        assert result.stdout != ""
        assert result.stderr == ""


@pytest.mark.usefixtures("work")
def test_quiet_says_nothing() -> None:
    for command in (f"calibrate model.onnx --data {CALIBRATION} --force -q", "quantize --force --quiet"):
        result = ok(command)
        assert (result.stdout, result.stderr) == ("", "")
    result = ok(f"evaluate --data {EVALUATION} {FEW} -q --json")
    assert result.stderr == ""
    json.loads(result.stdout)


@pytest.mark.usefixtures("work")
def test_a_bad_result_is_said_even_when_quiet() -> None:
    result = ok("quantize --calibrator percentile:percentile=51 -o new.onnx -q")
    assert re.search(r"^warning: output 'logits' has an SQNR of -?[\d.]+ dB on 4 samples", result.stderr, re.MULTILINE)


@pytest.mark.parametrize("command", ["inspect model.onnx", "targets", "doctor", "policy show", "evaluate --samples 8"])
@pytest.mark.usefixtures("work")
def test_tables_are_tidy(command: str) -> None:
    data = f" --data {EVALUATION}" if command.startswith("evaluate") else ""
    for line in ok(command + data).stdout.splitlines():
        assert line == line.rstrip()
        assert line.isprintable()


@pytest.mark.usefixtures("work")
def test_json_of_inspect() -> None:
    found = as_json("inspect model.onnx --json")
    assert found["opset"] == 17
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 32, 32]}]
    assert found["operators"]["Conv"] == 17
    assert found["target"] == "ort-cpu"
    assert {op["op_type"] for op in found["integer"]} >= {"Conv", "Gemm"}
    assert all(value["reason"] for value in found["values"])
    assert found["plan"] is None
    with_ranges = as_json("inspect model.onnx --calibration model.calib --json --exclude Gemm")
    entries = with_ranges["plan"]["entries"]
    assert all(entry["reason"] and entry["method"] for entry in entries)
    left = {"operator": "logits", "op_type": "Gemm", "reason": "left float by --exclude Gemm", "chosen": True}
    assert left in with_ranges["float"]


@pytest.mark.usefixtures("work")
def test_inspect_gives_every_decision_a_line_and_a_reason() -> None:
    shown, found = ok("inspect model.onnx --exclude Gemm").stdout, as_json("inspect model.onnx --exclude Gemm --json")
    for value in found["values"]:
        assert re.search(rf"^{re.escape(value['value'])} +{re.escape(value['reason'])}$", shown, re.MULTILINE)
    for op in found["float"]:
        assert op["reason"] in shown
        assert op["operator"] in shown
    ranges = ok("inspect model.onnx --calibration model.calib").stdout
    assert re.search(r"^image +uint8 +-[\d.]+ +[\d.]+  entropy$", ranges, re.MULTILINE)


def test_json_of_quantize_and_what_it_wrote(work: Path) -> None:
    found = as_json("quantize -o new.onnx --json")
    assert found["output"] == "new.onnx"
    assert found["size_after_bytes"] == (work / "new.onnx").stat().st_size
    assert found["size_before_bytes"] == (work / "model.onnx").stat().st_size
    assert found["proof"]["samples"] == 4
    assert found["proof"]["heavy_integer"] == 18
    assert found["proof"]["heavy_float"] == 0
    assert len(found["proof"]["fidelity"]) == len(found["proof"]["unoptimized"]) == 1


def test_json_of_targets_and_doctor() -> None:
    assert as_json("targets --json")["tensorrt"]["symmetric_activations"] is True
    found = as_json("doctor --json")
    assert ["qconvert", __version__] in found["versions"]
    assert ["cpu", True] in found["providers"]


def test_doctor_names_the_extra_that_brings_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "qconvert[gpu]" in ok("doctor").stdout


# policy


def test_policy_from_the_first_line_to_a_model(work: Path) -> None:
    import jsonschema  # type: ignore[import-untyped, unused-ignore]
    from ruamel.yaml import YAML

    assert "policy.yaml: written" in ok("policy init").stderr
    assert "policy.yaml: valid, target ort-cpu, 0 rules" in ok("policy check").stderr
    jsonschema.validate(YAML(typ="safe").load(work / "policy.yaml"), as_json("policy schema"))
    ok("policy init other.yaml --target tensorrt")
    assert "target: tensorrt" in (work / "other.yaml").read_text()
    shown = ok("policy show policy.yaml --calibrator mse --exclude Gemm --scheme per-tensor").stdout
    (work / "third.yaml").write_text(shown)
    assert "1 rules, each matches something in model.onnx" in ok("policy check third.yaml --model model.onnx").stderr
    assert ok("policy show third.yaml").stdout == shown
    ok("quantize -p third.yaml -o third.onnx")
    ok("quantize --calibrator mse --exclude Gemm --scheme per-tensor -o fourth.onnx")
    files = snapshot(work)
    assert files["third.onnx"] == files["fourth.onnx"]


# help, version, demo


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_for_a_person_in_a_hurry(command: tuple[str, ...]) -> None:
    typed = " ".join(command)
    result = ok(f"{typed} --help")
    text = " ".join(result.stdout.split())
    assert f"Usage: qconvert {typed}" in text
    assert f"Example: qconvert {typed}" in text
    assert ok(f"{typed} -h").stdout == result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stderr == ""


def test_help_lists_every_command() -> None:
    text = ok("--help").stdout
    assert all(command[0] in text for command in COMMANDS)


@pytest.mark.usefixtures("work")
def test_examples_use_options_that_exist() -> None:
    for command in COMMANDS:
        text = ok(f"{' '.join(command)} --help").stdout
        example = text[text.index("Example:") : text.index("╭")]
        assert all(option in text[text.index("╭") :] for option in re.findall(r"--\w+", example))


def test_version() -> None:
    assert ok("--version").stdout == f"qconvert {__version__}\n"


def test_demo(tmp_path: Path) -> None:
    here = Path.cwd()
    result = ok(f"demo --folder {tmp_path / 'demo'}")
    assert re.findall(r"^\$ qconvert (\w+)", result.stderr, re.MULTILINE) == ["calibrate", "quantize", "evaluate"]
    assert "top-1 (400 labels)" in result.stdout
    assert sorted(snapshot(tmp_path / "demo")) == ["model.calib", "model.int8.onnx"]
    assert Path.cwd() == here


# terminals


def on_a_terminal(command: list[str], folder: Path, **environment: str) -> tuple[int, str]:
    """Runs a command with stderr and stdout on a terminal of 80 columns; gives its exit code and all that it showed."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment}
    process = subprocess.Popen([*QCONVERT, *command], stdout=theirs, stderr=theirs, stdin=theirs, cwd=folder, env=env)
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    return process.wait(timeout=60), shown.decode()


def test_a_terminal_gets_colour_and_progress(work: Path) -> None:
    command = ["calibrate", "model.onnx", "--data", str(CALIBRATION), "--force"]
    code, shown = on_a_terminal(command, work)
    assert code == 0
    assert "\x1b[" in shown
    assert "calibrating" in shown
    assert "/100" in shown
    code, shown = on_a_terminal(["quantize"], work, NO_COLOR="1")
    assert code == 2
    assert "model.int8.onnx: exists already" in shown
    assert not re.search(r"\x1b\[[\d;]*3\d", shown)


def test_a_pipe_gets_no_control_characters(work: Path) -> None:
    command = [*QCONVERT, "evaluate", "--data", str(EVALUATION), "--samples", "8", "--latency-runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, done.stderr):
        assert text
        assert all(line.isprintable() for line in text.splitlines())


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 10.0, 11.0, 25.0])
    monkeypatch.setattr("qconvert.cli.terminal.time.monotonic", lambda: next(clock))
    terminal = Terminal()
    terminal.start("calibrating", 100)
    for done in (4, 40, 44, 100):
        terminal.advance(done)
    terminal.finish()
    assert capsys.readouterr().err.splitlines() == [
        "calibrating: 40/100, 4.0/s, 15 s left",
        "calibrating: 100/100, 4.0/s, 0 s left",
    ]


def test_names_are_no_markup_and_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().note("layer:x:0 [bold]b[/bold] a:b:c")
    assert capsys.readouterr().err == "note: layer:x:0 [bold]b[/bold] a:b:c\n"


def test_long_paths_and_brackets_are_shown_as_they_are(work: Path) -> None:
    folder = work / ("long " * 12) / "[red]"
    folder.mkdir(parents=True)
    shutil.copy("model.onnx", folder)
    result = ok(f"calibrate '{folder}/model.onnx' --data {CALIBRATION} -o '{folder}/model.calib'")
    assert f"{folder.relative_to(work)}/model.calib: " in result.stderr
    assert "".join(str(folder).split()) in "".join(ok(f"inspect '{folder}/model.onnx'").stdout.split())
