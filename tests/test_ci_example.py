"""The workflow in ``.github`` as a CI server runs it: one pull request passes, one is too aggressive."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import xmlschema
from ruamel.yaml import YAML

from qconvert.report import document

ROOT = Path(__file__).resolve().parent.parent
LAYER = "block3/depthwise/norm/BatchNormalization_output_0"
AGGRESSIVE = f"""
rules:
  - match: {{names: ["{LAYER}"]}}
    weights: {{dtype: int4, scheme: per-tensor}}
"""
BASH = shutil.which("bash") or "bash"


@dataclass(frozen=True)
class Job:
    """What a job did.

    Attributes:
        code: Exit code of the first step that failed, or 0.
        failed: Its name, or "".
        log: What all steps wrote.
        folder: The working tree.
    """

    code: int
    failed: str
    log: str
    folder: Path

    @property
    def summary(self) -> str:
        return (self.folder / "summary").read_text(encoding="utf-8")


def play(folder: Path, policy: str = "") -> Job:
    """Runs the commands of the workflow but the installation, in a tree where this is appended to the policy."""
    shutil.copytree(ROOT / ".github", folder / ".github")
    (folder / "sample_models").symlink_to(ROOT / "sample_models")
    with (folder / ".github" / "quantization.yaml").open("a", encoding="utf-8") as file:
        file.write(policy)
    workflow = YAML(typ="safe").load((ROOT / ".github" / "workflows" / "quantization.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["gate"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **job["env"], "GITHUB_STEP_SUMMARY": str(folder / "summary"), "PATH": path}
    code, failed, log = 0, "", ""
    for step in job["steps"]:
        if "run" not in step or step["name"] == "Install" or (code and "if" not in step):
            continue
        done = subprocess.run(
            [BASH, "-e", "-c", step["run"]], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        log += done.stdout + done.stderr
        if done.returncode and not code:
            code, failed = done.returncode, step["name"]
    return Job(code, failed, log, folder)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return play(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return play(tmp_path_factory.mktemp("bad"), AGGRESSIVE)


def test_a_good_policy_passes(good: Job) -> None:
    assert (good.code, good.failed) == (0, ""), good.log
    assert "✅ **passed: 2 gates**" in good.summary
    assert not document.read(good.folder / "quantization.json").missed


def test_a_too_aggressive_one_exits_1_and_names_the_layer(bad: Job) -> None:
    assert (bad.code, bad.failed) == (1, "Gate"), bad.log
    missed = [line for line in bad.log.splitlines() if line.startswith("missed: ")]
    assert missed[0].startswith("missed: --min-sqnr: SQNR of logits ")
    assert missed[1].startswith(f"missed: Conv '{LAYER}' adds ")
    assert "❌ **1 of 2 gates missed**" in bad.summary
    assert LAYER.replace("_", "\\_") in bad.summary.split("\n\n")[2]


def test_the_reports_of_a_failed_run_are_written_and_say_the_same(bad: Job) -> None:
    report = document.read(bad.folder / "quantization.json")
    assert [gate.name for gate in report.missed] == ["min-sqnr"]
    assert LAYER in report.missed[0].lines[0]
    found = xmlschema.XMLSchema(str(ROOT / "tests" / "junit.xsd")).to_dict(str(bad.folder / "quantization.xml"))
    assert isinstance(found, dict)
    assert (found["@tests"], found["@failures"]) == (2, 1)
    assert LAYER in found["testsuite"][0]["testcase"][1]["failure"][0]["$"]
    assert LAYER in (bad.folder / "quantization.html").read_text(encoding="utf-8")


def test_the_same_commit_gives_the_same_bytes(good: Job, tmp_path: Path) -> None:
    again = play(tmp_path)
    for name in ("html", "md", "json", "xml"):
        file = f"quantization.{name}"
        assert (again.folder / file).read_bytes() == (good.folder / file).read_bytes()
