"""Winning back accuracy goes on where a run was stopped, and ends with the same model."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qconvert import pipeline
from qconvert.cli import main
from qconvert.cli.demo import sample_models
from qconvert.errors import OutputError
from qconvert.graph import serialize
from qconvert.policy import Policy
from qconvert.recover import Context, Journal, Step, Work
from qconvert.recover.adaquant import AdaQuant
from qconvert.recover.adaround import AdaRound
from qconvert.recover.bias import BiasCorrection
from qconvert.recover.brecq import Brecq
from qconvert.recover.clip import Clipping
from qconvert.recover.gptq import Gptq
from qconvert.recover.journal import PART_SUFFIX, Done
from qconvert.recover.lowrank import LowRank
from qconvert.recover.reconstruct import Pace
from tests.models import images, policy
from tests.test_recover import PROBES, residual, work_of
from tests.test_resume import Notes, finished

STEPS = [BiasCorrection(), Gptq(), AdaRound(steps=20), AdaQuant(), Clipping(), LowRank()]
CONTEXT = Context(PROBES)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.beside(tmp_path / "q.onnx")


def begun() -> Work:
    return work_of(residual(), wanted=policy().override(weights="int4"))


def same(one: Work, other: Work) -> bool:
    return serialize(one.graph) == serialize(other.graph) and (one.plan, one.notes) == (other.plan, other.notes)


def stopped(step: Step, journal: Journal, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends when so many layers are kept."""
    keep = Journal.keep

    def keep_some(self: Journal, name: str, done: Done) -> None:
        keep(self, name, done)
        if self.count() == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "keep", keep_some)
        with pytest.raises(KeyboardInterrupt):
            step.apply(begun(), replace(CONTEXT, journal=journal))


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_goes_on_and_ends_with_the_same_model(
    step: Step, after: int, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = step.apply(begun(), CONTEXT)
    stopped(step, journal, after, monkeypatch)
    again = Journal(journal.folder)
    assert same(step.apply(begun(), replace(CONTEXT, journal=again)), whole)
    assert (again.used, again.count()) == (after, 3)
    all_known = Journal(journal.folder)
    assert same(step.apply(begun(), replace(CONTEXT, journal=all_known)), whole)
    assert all_known.used == 3


@pytest.mark.parametrize("after", [3, 4])
def test_blocks_go_on_too(after: int, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    step = Brecq(steps=20, pace=Pace(steps=40))
    whole = step.apply(begun(), CONTEXT)
    assert "brecq: 1 blocks changed" in whole.notes
    stopped(step, journal, after, monkeypatch)
    again = Journal(journal.folder)
    assert same(step.apply(begun(), replace(CONTEXT, journal=again)), whole)
    assert (again.used, again.count()) == (after, 4)


OTHERS = {
    "samples": (Gptq(), replace(CONTEXT, probes=images(1, 3, 8, 8, count=13)[1:])),
    "damping": (Gptq(), replace(CONTEXT, damping=0.02)),
    "method": (AdaRound(steps=20), CONTEXT),
    "parameters": (AdaRound(steps=21), CONTEXT),
    "rules": (Gptq(), replace(CONTEXT, only={"h": ("bias",)})),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_of_another_run_is_not_looked_at(other: str, journal: Journal) -> None:
    first = AdaRound(steps=20) if other == "parameters" else Gptq()
    first.apply(begun(), replace(CONTEXT, journal=journal))
    step, context = OTHERS[other]
    assert same(step.apply(begun(), replace(context, journal=journal)), step.apply(begun(), context))
    assert journal.used == 0


def test_a_model_with_other_weights_is_another(journal: Journal) -> None:
    Gptq().apply(begun(), replace(CONTEXT, journal=journal))
    work = begun()
    changed = BiasCorrection().apply(work, CONTEXT)
    assert same(Gptq().apply(changed, replace(CONTEXT, journal=journal)), Gptq().apply(changed, CONTEXT))
    assert journal.used == 0


def test_damaged_files_are_made_anew(journal: Journal) -> None:
    whole = Gptq().apply(begun(), replace(CONTEXT, journal=journal))
    for number, path in enumerate(sorted(journal.folder.iterdir())):
        content = path.read_bytes()
        path.write_bytes([b"", content[: len(content) // 2], bytes(len(content))][number])
    assert same(Gptq().apply(begun(), replace(CONTEXT, journal=journal)), whole)
    assert journal.used == 0
    assert same(Gptq().apply(begun(), replace(CONTEXT, journal=journal)), whole)
    assert journal.used == 3


def test_what_time_cut_short_is_not_kept(journal: Journal) -> None:
    Gptq().apply(begun(), replace(CONTEXT, journal=journal, deadline=time.monotonic() - 1))
    assert journal.count() == 0


DIGITS = sample_models() / "digits"
COMMAND = ["quantize", "model.onnx", "--data", str(DIGITS / "calibration"), "--recover", "bias,gptq", "-q"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(sample_models() / "digits_cnn" / "model.onnx", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qconvert", *COMMAND, *options]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)


def code(*arguments: str) -> int | str | None:
    """What the command line, run here, ends with."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_a_killed_run_goes_on_to_the_same_bytes(folder: Path) -> None:
    finished(run(folder, "-o", "whole.onnx"))
    part = folder / f"killed.onnx{PART_SUFFIX}"
    process = run(folder, "-o", "killed.onnx", "--resume")
    while not list(part.glob("*.npz")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not (folder / "killed.onnx").exists()
    notes, kept = Notes(), Journal(part).count()
    calibrated = pipeline.calibrate(folder / "model.onnx", DIGITS / "calibration")
    pipeline.quantize(
        folder / "model.onnx",
        calibrated,
        output=folder / "killed.onnx",
        policy=Policy().override(recover=("bias", "gptq")),
        resume=True,
        listener=notes,
    )
    assert f"resumed: {kept} of {kept} layers in killed.onnx{PART_SUFFIX} were used again" in notes.lines
    assert (folder / "killed.onnx").read_bytes() == (folder / "whole.onnx").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["killed.onnx", "model.onnx", "whole.onnx"]


def test_layers_of_another_run_are_said_to_be_of_no_use(folder: Path) -> None:
    part = folder / f"q.onnx{PART_SUFFIX}"
    Gptq().apply(begun(), replace(CONTEXT, journal=Journal(part)))
    calibrated, notes = pipeline.calibrate(folder / "model.onnx", DIGITS / "calibration", limit=8), Notes()
    wanted = Policy().override(recover=("gptq",))
    pipeline.quantize(
        folder / "model.onnx", calibrated, output=folder / "q.onnx", policy=wanted, resume=True, listener=notes
    )
    why = "the others are of another model, other samples or other settings"
    assert f"resumed: 0 of 3 layers in {part.name} were used again: {why}" in notes.lines


def test_weights_alone_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["quantize", "model.onnx", "--mode", "weight-only", "--weights", "int4", "-q"]
    keep = Journal.keep

    def keep_one(self: Journal, name: str, done: Done) -> None:
        keep(self, name, done)
        raise KeyboardInterrupt

    assert code(*command, "-o", "whole.onnx") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "keep", keep_one)
        assert code(*command, "-o", "q.onnx", "--resume") == 130
    assert len(list((folder / f"q.onnx{PART_SUFFIX}").iterdir())) == 1
    assert code(*command, "-o", "q.onnx", "--resume") == 0
    assert (folder / "q.onnx").read_bytes() == (folder / "whole.onnx").read_bytes()
    assert not (folder / f"q.onnx{PART_SUFFIX}").exists()


def test_there_must_be_something_to_keep(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("quantize", "model.onnx", "--data", str(DIGITS / "calibration"), "--resume") == 2
    assert "--resume is of --recover" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]


def test_a_folder_that_cannot_be_made_is_said(journal: Journal) -> None:
    journal.folder.write_text("in the way")
    with pytest.raises(OutputError, match=r"q\.onnx\.recover\.part: cannot be made"):
        Gptq().apply(begun(), replace(CONTEXT, journal=journal))


def test_arrays_come_back_as_they_were(journal: Journal) -> None:
    arrays = np.float32(0.5), np.arange(6, dtype=np.int8).reshape(2, 3), np.zeros((0, 4), np.float32)
    entry = begun().plan.entries[0]
    done = Done("why", (("set_weight", 2, arrays), ("set_entries", 1, ((entry, replace(entry, role="bias")), None))))
    journal.keep("x", done)
    found = journal.read("x")
    assert found is not None
    (_, _, back), other = found.changes
    assert [(one.dtype, one.shape, one.tolist()) for one in back] == [
        (one.dtype, one.shape, one.tolist()) for one in map(np.asarray, arrays)
    ]
    assert (found.why, other) == (done.why, done.changes[1])
