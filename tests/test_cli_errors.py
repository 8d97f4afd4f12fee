"""Every mistake of ``bad_inputs``: exit code 2, one line that says what is wrong, one that helps, no file left."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.bad_inputs import CASES, Case, conv_model, good_folder, run, snapshot

ONE_LINE = 320
"""Characters of an error line that a person still reads."""


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "work"
    good_folder(folder)
    return folder


@pytest.fixture
def work(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(good, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    return folder


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_a_mistake_gets_one_clear_line_and_leaves_no_file(case: Case, work: Path) -> None:
    case.spoil(work)
    before = snapshot(work)
    with case.around():
        result = run(case.command)
    assert result.code == case.code, result.stderr
    assert "Traceback" not in result.stderr
    if case.code == 0:
        assert not result.lines("error")
        assert any(case.error in line for line in result.lines("note"))
        return
    assert result.stdout == ""
    (error,) = result.lines("error")
    hints = result.lines("hint")
    assert case.error in error
    assert len(error) < ONE_LINE
    assert len(hints) == 1, "every mistake has a way out"
    assert case.hint in hints[0]
    assert len(hints[0]) < ONE_LINE
    assert result.stderr.splitlines()[-2:] == [error, hints[0]]
    assert snapshot(work) == before, "nothing was written"


def test_ids_are_unique() -> None:
    assert len({case.what for case in CASES}) == len(CASES)


def test_a_corrupt_image_is_counted(work: Path) -> None:
    (work / "images" / "b.png").write_bytes(b"no image")
    result = run("calibrate model.onnx --data images -o new.calib")
    assert "new.calib: 2 values over 3 samples, 1 skipped" in result.stderr
    assert run("quantize model.onnx --calibration new.calib -o new.onnx").code == 0


def test_debug_shows_the_traceback(work: Path) -> None:
    from qconvert.errors import ModelError

    with pytest.raises(ModelError, match="no such file"):
        run(f"calibrate {work}/mode.onnx --data images --debug")


def test_a_bug_says_that_it_is_one(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("one too many")

    monkeypatch.setattr("qconvert.inspection.load_model", broken)
    result = run(f"inspect {work}/model.onnx")
    assert result.code == 3
    assert result.lines("error") == ["error: a bug in qconvert: ZeroDivisionError: one too many"]
    assert "--debug" in result.lines("hint")[0]
    with pytest.raises(ZeroDivisionError):
        run(f"inspect {work}/model.onnx --debug")


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("command", ["", "policy"])
def test_without_a_command_the_help_is_shown(command: str) -> None:
    result = run(command)
    assert result.code == 2
    assert "Commands" in result.stdout
    assert result.stderr == ""


def test_a_full_disk_behind_stdout() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from qconvert.cli import main; main()", "policy", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "error: No space left on device" in done.stderr


@pytest.mark.parametrize(
    "command",
    ["calibrate model.onnx --data many.npy -o new.calib", "evaluate model.onnx model.int8.onnx --data many.npy"],
)
def test_control_c_leaves_nothing(command: str, work: Path) -> None:
    rows = np.lib.format.open_memmap(work / "many.npy", mode="w+", dtype=np.float32, shape=(3_000_000, 1, 8, 8))
    del rows  # a sparse file: no block of it was written
    before = sizes(work)
    listen = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # it may be ignored where tests run
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{listen}; from qconvert.cli import main; main()", *shlex.split(command)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=work,
    )
    assert process.stderr is not None
    time.sleep(2.5)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.search(r"^error: interrupted, no half-written file is left$", stderr, re.MULTILINE)
    assert "Traceback" not in stderr
    assert sizes(work) == before


def sizes(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*")}


def test_the_good_folder_is_good(work: Path) -> None:
    assert run("evaluate --data images --latency-runs 0").code == 0
    conv_model(work / "again.onnx")
    assert (work / "again.onnx").read_bytes() == (work / "model.onnx").read_bytes()
