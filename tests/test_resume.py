"""A calibration that is killed goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert import calibration, capture, pipeline
from qconvert.calibration import Calibration
from qconvert.errors import CalibrationError
from qconvert.histogram import TensorStats
from qconvert.listener import Listener
from qconvert.resume import Journal
from qconvert.visit import State

MODEL = Path(__file__).resolve().parent.parent / "sample_models" / "digits_cnn" / "model.onnx"

PROGRAM = """
import sys
from qconvert import capture
from qconvert.cli import main
capture.CHECKPOINT_SECONDS = 0.02
main()
"""


class Notes(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    shutil.copy(MODEL, tmp_path)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.standard_normal((1500, 1, 32, 32)).astype(np.float32))
    return tmp_path


def calibrate(work: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, "calibrate", "model.onnx", "--data", "x.npy", *options]
    return subprocess.Popen(command, cwd=work, stderr=subprocess.PIPE, text=True)


def written(path: Path) -> int:
    """When; 0 for never."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def finished(process: subprocess.Popen[str]) -> str:
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stderr


def test_killed_at_random_moments_it_ends_with_the_same_bytes(work: Path) -> None:
    finished(calibrate(work, "-o", "whole.calib"))
    moment, goes_on = np.random.default_rng(0), 0
    part = work / "killed.calib.part"
    for _ in range(4):
        before = written(part)
        process = calibrate(work, "-o", "killed.calib", "--resume")
        while written(part) == before and process.poll() is None:
            time.sleep(0.001)
        try:
            process.wait(moment.uniform(0.0, 0.4))
        except subprocess.TimeoutExpired:
            process.kill()
        stderr = process.communicate()[1]
        if (work / "killed.calib").exists():
            break
        goes_on += "resuming:" in stderr
    if not (work / "killed.calib").exists():
        assert "resuming:" in finished(calibrate(work, "-o", "killed.calib", "--resume"))
    assert goes_on
    assert (work / "killed.calib").read_bytes() == (work / "whole.calib").read_bytes()
    assert sorted(path.name for path in work.iterdir()) == ["killed.calib", "model.onnx", "whole.calib", "x.npy"]


@pytest.fixture
def unfinished(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run stopped in the middle; the folder holds its part."""
    monkeypatch.chdir(work)
    monkeypatch.setattr(capture, "CHECKPOINT_SECONDS", 0.0)

    class Stop(Notes):
        def advance(self, done: int) -> None:
            if done == 30:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.calibrate(Path("model.onnx"), Path("x.npy"), output=Path("m.calib"), limit=60, listener=Stop())
    assert sorted(path.name for path in work.iterdir()) == ["m.calib.part", "model.onnx", "x.npy"]
    return work


def again(*, resume: bool = True, limit: int = 60, detail: str = "exact", max_memory: int | None = None) -> Notes:
    notes = Notes()
    pipeline.calibrate(
        Path("model.onnx"),
        Path("x.npy"),
        output=Path("m.calib"),
        limit=limit,
        detail=detail,  # type: ignore[arg-type]
        max_memory=max_memory,
        resume=resume,
        listener=notes,
    )
    return notes


def test_it_goes_on(unfinished: Path) -> None:
    notes = again()
    assert any(line.startswith("resuming: ") and "samples are done" in line for line in notes.lines)
    whole = pipeline.calibrate(Path("model.onnx"), Path("x.npy"), output=Path("w.calib"), limit=60)
    assert calibration.load(Path("m.calib")) == whole
    assert Path("m.calib").read_bytes() == Path("w.calib").read_bytes()
    assert not (unfinished / "m.calib.part").exists()


def test_without_being_asked_it_begins_anew(unfinished: Path) -> None:
    notes = again(resume=False)
    assert "m.calib.part of an unfinished run is discarded (--resume goes on with it)" in notes.lines
    assert not (unfinished / "m.calib.part").exists()


@pytest.mark.parametrize("change", [{"limit": 59}, {"detail": "sampled"}])
def test_another_run_is_not_gone_on_with(unfinished: Path, change: dict[str, object]) -> None:
    with pytest.raises(CalibrationError, match=r"m\.calib\.part: belongs to a run with another model") as caught:
        again(**change)  # type: ignore[arg-type]
    assert "leave --resume out" in caught.value.hint
    assert (unfinished / "m.calib.part").exists()
    assert not (unfinished / "m.calib").exists()


def test_a_damaged_part_is_refused(unfinished: Path) -> None:
    part = unfinished / "m.calib.part"
    part.write_bytes(part.read_bytes()[:5000])
    with pytest.raises(CalibrationError, match="not a readable calibration file"):
        again()


def test_nothing_to_resume_is_said(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    assert "nothing to resume: there is no m.calib.part; beginning with the first sample" in again().lines


def test_a_part_is_no_calibration(unfinished: Path) -> None:
    with pytest.raises(CalibrationError, match="what an unfinished run has kept") as caught:
        calibration.load(unfinished / "m.calib.part")
    assert "--resume" in caught.value.hint


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text("ab", min_size=1), min_size=1, unique=True), st.sets(st.integers(0, 10**6)), st.integers(0, 3))
def test_every_state_survives(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], done: set[int], at: int
) -> None:
    folder = tmp_path_factory.mktemp("part")
    stats = {name: TensorStats.of(np.arange(k + 1, dtype=np.float32), index=k) for k, name in enumerate(names)}
    journal = Journal.beside(folder / "m.calib", Calibration("m.onnx", "hash", {"kind": "arrays"}, 0, (), {}))
    groups = (tuple(names[:at]), tuple(names[at:]))
    state = State(groups, 1, frozenset(done), stats)
    journal.keep(state)
    fresh, notes = State((tuple(names),)), Notes()
    assert journal.begin(fresh, resume=True, note=notes.note) == state
    journal.drop()
    assert journal.begin(fresh, resume=False, note=notes.note) is fresh
    assert not list(folder.iterdir())


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".m.calib.part.xyz.tmp").mkdir()
    (tmp_path / ".m.calib.part.xyz.tmp" / "m.calib.part").write_bytes(b"half")
    (tmp_path / ".other.calib.part.xyz.tmp").mkdir()
    about = Calibration("m.onnx", "hash", {}, 0, (), {})
    Journal.beside(tmp_path / "m.calib", about).begin(State(()), resume=False, note=print)
    assert [path.name for path in tmp_path.iterdir()] == [".other.calib.part.xyz.tmp"]
