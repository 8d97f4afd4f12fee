"""``make bench``: costs as ratios to plain onnxruntime inference of the same samples, interleaved in one run.

Every measurement is a process of its own, so that peak memory is its own too. Writes RESULTS.md beside this file.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from qconvert import __version__
from qconvert.cli.demo import sample_models
from qconvert.machine import examine
from tests.benchmarks import peers

HERE = Path(__file__).parent
SHARED = HERE.parents[2] / "shared" / "bench"
REPEATS = 11
PATIENCE = 30.0
"""Seconds after which a kind is not measured once more."""

TITLES = {
    "plain": "plain inference, one sample at a time",
    "parallel": "plain inference, one sample a thread",
    "images": "decoding, preprocessing and plain inference, one sample a thread",
    "exact": "qconvert",
    "sampled": "qconvert --stats sampled",
    "range": "qconvert --stats range",
    "exact_images": "qconvert",
}
"""What is said of a kind; the first of a table is what the others are divided by."""


@dataclass(frozen=True)
class Work:
    """A model with samples to calibrate on."""

    name: str
    model: Path
    data: Path
    preprocess: str


def works() -> list[Work]:
    """The sample models, and MobileNetV2 where the shared models are there."""
    samples = sample_models()
    digits = samples / "digits" / "calibration"
    found = [Work(name, samples / name / "model.onnx", digits, "centered") for name in ("digits_cnn", "digits_vit")]
    mobilenet = Work("mobilenetv2", SHARED / "models/mobilenetv2_tv.onnx", SHARED / "data/imagenet/calib", "imagenet")
    return [*found, mobilenet] if mobilenet.model.is_file() else found


def measure(kind: str, work: Work, folder: Path) -> dict[str, float]:
    """One measurement in a process of its own: seconds, seconds without imports, peak MB, and what else it reports."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.job", kind, str(work.model), str(work.data)]
    cached = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as installed
    finished = subprocess.run(
        [*command, work.preprocess, str(folder)], capture_output=True, text=True, check=False, env=cached
    )
    if finished.returncode:
        sys.exit(f"{kind} on {work.name} failed:\n{finished.stderr}")
    found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1]) if finished.stdout else {}
    return found


def median(rows: Sequence[Mapping[str, float]], key: str) -> tuple[float, float]:
    """Median and half the distance of the quartiles."""
    values = sorted(row[key] for row in rows)
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (0.0, 0.0, 0.0)
    return statistics.median(values), (high - low) / 2


Rows = dict[str, list[dict[str, float]]]


def calibration_tables(work: Work, folder: Path) -> list[str]:
    """Wall time and memory of calibrate next to plain inference and to other tools; then the search for ranges."""
    others = _interleaved(tuple(peers.KINDS), work, folder)
    rows = _interleaved(("plain", "parallel", "exact", "sampled", "range"), work, folder)
    costs = _costs(f"{work.name}: calibrate, samples from an array file", {**rows, **others})
    return [*costs, *search_table(work, folder, others)]


def images_table(work: Work, folder: Path) -> list[str]:
    """The same from the image files: decoding and preprocessing overlap with inference."""
    return _costs(
        f"{work.name}: calibrate, samples from image files", _interleaved(("images", "exact_images"), work, folder)
    )


def _interleaved(kinds: Sequence[str], work: Work, folder: Path) -> Rows:
    """Each kind in turn, again and again; what takes long only as often as there is patience for."""
    rows: Rows = {kind: [] for kind in kinds}
    for _ in range(REPEATS):
        for kind, found in rows.items():
            if sum(row["whole_seconds"] for row in found) < PATIENCE:
                found.append(measure(kind, work, folder))
    return rows


def _costs(title: str, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    first = next(iter(rows.values()))
    base, whole_base = median(first, "seconds")[0], median(first, "whole_seconds")[0]
    lines = [f"### {title}, {int(first[0]['samples'])} samples", ""]
    lines += ["| | seconds | ratio | with imports | ratio | peak memory | runs |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for kind, found in rows.items():
        seconds, spread = median(found, "seconds")
        whole, memory = median(found, "whole_seconds")[0], median(found, "peak_mb")[0]
        cells = (
            f"{seconds:.2f} ± {spread:.2f}",
            f"{seconds / base:.2f}x",
            f"{whole:.2f} s",
            f"{whole / whole_base:.2f}x",
        )
        lines.append(f"| {TITLES.get(kind, kind)} | {' | '.join(cells)} | {memory:.0f} MB | {len(found)} |")
    return [*lines, ""]


def search_table(work: Work, folder: Path, others: Rows) -> list[str]:
    """Time of the threshold search of every method, all values of the model."""
    rows = [measure("search", work, folder) for _ in range(REPEATS)]
    names = [key for key in rows[0] if key.endswith("_ms")]
    values = int(rows[0]["values"])
    lines = [
        f"### {work.name}: ranges of {values} values from their statistics",
        "",
        "| method | ms |",
        "| --- | ---: |",
    ]
    for name in names:
        value, spread = median(rows, name)
        lines.append(f"| {name.removesuffix('_ms')} | {value:.0f} ± {spread:.0f} |")
    total = sum(median(rows, name)[0] for name in names)
    lines.append(f"| all | {total:.0f} |")
    for kind in ("onnxruntime Percentile", "onnxruntime Entropy"):
        seconds, spread = median(others[kind], "search_seconds")
        lines.append(f"| {kind} | {1e3 * seconds:.0f} ± {1e3 * spread:.0f} |")
    return [*lines, ""]


def latency_table(work: Work, folder: Path) -> list[str]:
    """Latency of the float model, ours, and onnxruntime.quantization's, interleaved."""
    rows = [measure("latency", work, folder) for _ in range(REPEATS)]
    names = [key for key in rows[0] if key.endswith("_ms")]
    base = median(rows, "peer_ms")[0]
    lines = [f"### {work.name}: latency, one thread, median of 150 interleaved runs, {REPEATS} times", ""]
    lines += ["| | ms | ratio to onnxruntime.quantization |", "| --- | ---: | ---: |"]
    for name in names:
        value, spread = median(rows, name)
        lines.append(f"| {name.removesuffix('_ms')} | {value:.3f} ± {spread:.3f} | {value / base:.3f}x |")
    return [*lines, ""]


def main() -> None:
    """Measures everything and writes the table."""
    machine = examine()
    versions = f"qconvert {__version__}, onnxruntime {ort.__version__}, Python {platform.python_version()}"
    cpus = f"{machine.cpus} CPUs ({', '.join(machine.instructions)})"
    spread = f"Medians ± half the interquartile distance of {REPEATS} runs."
    lines = ["# Benchmark results", "", f"{versions}, {cpus}. {spread}", ""]
    with tempfile.TemporaryDirectory(prefix="qconvert-bench.") as name:
        for work in works():
            folder = Path(name) / work.name
            folder.mkdir()
            measure("samples", work, folder)
            for table in (calibration_tables, images_table, latency_table):
                found = table(work, folder)
                sys.stdout.write("\n".join(found) + "\n")
                lines += found
    (HERE / "RESULTS.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
