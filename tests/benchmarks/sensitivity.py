"""The sensitivity engine against the naive loop on MobileNetV2, both in this process, in turn.

    python -m tests.benchmarks.sensitivity [--samples 64] [--workers 2] [--max-memory 800MB] [--mode only] [--turns 2]

Naive: for each operator the whole model is written with that operator alone quantized (mode all-but: left float),
opened, and run on all samples, one after another and, as a second bar, side by side. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

import qconvert
from qconvert.calibration import Calibration
from qconvert.cli.options import size
from qconvert.graph import load_model, write_model
from qconvert.metrics import ratio_db
from qconvert.pipeline import Question
from qconvert.plan import Plan, make_plan
from qconvert.policy import Policy
from qconvert.prepare import prepare
from qconvert.preprocess import preset
from qconvert.rewrite.qdq import to_qdq
from qconvert.samples import InputSpec, open_samples
from qconvert.sensing.engine import each
from qconvert.sensing.subjects import Subject, all_but, only, subjects
from qconvert.sensing.types import Mode, Sensitivity
from qconvert.session import Feeds, open_session, run

BENCH = Path(__file__).resolve().parents[3] / "shared" / "bench"
MODEL, CALIB, EVAL = (
    BENCH / part for part in ("models/mobilenetv2_tv.onnx", "data/imagenet/calib", "data/imagenet/eval")
)


def spearman(first: dict[str, float], second: dict[str, float]) -> float:
    """Of two rankings of the same names; ties share their mean rank."""
    names = sorted(first)

    def ranks(values: dict[str, float]) -> list[float]:
        array = np.array([values[name] for name in names])
        return [float((array < one).sum() + ((array == one).sum() - 1) / 2) for one in array]

    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


class Naive:
    """One operator after another, whole models.

    With one worker as the loop is written down: onnxruntime's own threads, one sample after another. With more, samples
    side by side in single-threaded runs, as the engine has them.
    """

    def __init__(self, model: ir.Model, plan: Plan, mode: Mode, *, probes: list[Feeds], workers: int) -> None:
        self.model, self.plan, self.mode, self.probes, self.workers = model, plan, mode, probes, workers
        self.float_outputs = self._outputs(model)
        self.signal = sum(float(np.square(out, dtype=np.float64).sum()) for out in self.float_outputs)

    def _outputs(self, model: ir.Model) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            write_model(model, path := Path(folder) / "model.onnx")
            session = open_session(path, threads=0 if self.workers == 1 else 1)
        found: dict[int, np.ndarray] = {}

        def one(index: int) -> None:
            found[index] = run(session, self.probes[index])[0]

        each(range(len(self.probes)), one, self.workers)
        return [found[index] for index in sorted(found)]

    def __call__(self, subject: Subject) -> float:
        """Pooled SQNR, dB."""
        plan = only(self.plan, subject) if self.mode == "only" else all_but(self.plan, subject)
        outputs = self._outputs(to_qdq(self.model.clone(), plan))
        noise = sum(
            float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(self.float_outputs, outputs, strict=True)
        )
        return ratio_db(self.signal, noise)


def main() -> None:
    """Runs both and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--max-memory", type=size, default=None)
    parser.add_argument("--mode", choices=["only", "all-but"], default="only")
    parser.add_argument("--turns", type=int, default=2)
    asked = parser.parse_args()
    calibrated = qconvert.calibrate(MODEL, CALIB, preprocess=preset("imagenet"), limit=64)
    graph = load_model(MODEL)
    prepare(graph, calibrated.probes[:4], original=MODEL)
    plan = make_plan(graph, Policy(), calibrated.stats)
    found = subjects(graph, plan, "operator")
    probes = _probes(graph, asked.samples)
    times: dict[str, list[float]] = {name: [] for name in ("naive", "naive_parallel", "rounds", "exhaustive")}
    cpu: dict[str, list[float]] = {name: [] for name in times}
    naive: dict[str, float] = {}
    results: dict[str, Sensitivity] = {}
    for _ in range(asked.turns):
        for name, workers in (("naive", 1), ("naive_parallel", asked.workers)):
            began, work = time.perf_counter(), time.process_time()
            loop = Naive(graph, plan, asked.mode, probes=probes, workers=workers)
            naive = {one.name: loop(one) for one in found}
            times[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - work)
        for name in ("rounds", "exhaustive"):
            began, work = time.perf_counter(), time.process_time()
            results[name] = _ours(calibrated, asked, exhaustive=name == "exhaustive")
            times[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - work)
    report = {name: _compared(naive, result, asked.mode) for name, result in results.items()}
    outcome = {
        "mode": asked.mode,
        "operators": len(found),
        "samples": asked.samples,
        "seconds": times,
        "ratio": {name: min(times[name]) / min(times["naive"]) for name in report},
        "cpu_seconds": cpu,
        "ratio_to_parallel": {name: min(times[name]) / min(times["naive_parallel"]) for name in report},
        "cpu_ratio": {name: min(cpu[name]) / min(cpu["naive_parallel"]) for name in report},
        "agreement": report,
    }
    sys.stdout.write(json.dumps(outcome, indent=2) + "\n")


def _probes(graph: ir.Model, count: int) -> list[Feeds]:
    value = graph.graph.inputs[0]
    spec = InputSpec(value.name or "", np.dtype(np.float32), (None, 3, 224, 224))
    samples = open_samples(EVAL, [spec], preprocess=preset("imagenet"), limit=count)
    return [samples.load(index).feeds for index in range(len(samples))]


def _ours(calibrated: Calibration, asked: argparse.Namespace, *, exhaustive: bool) -> Sensitivity:
    return qconvert.sensitivity(
        MODEL,
        EVAL,
        question=Question(mode=asked.mode, exhaustive=exhaustive),
        calibrated=calibrated,
        preprocess=preset("imagenet"),
        limit=asked.samples,
        threads=asked.workers,
        max_memory=asked.max_memory,
    )


def _compared(naive: dict[str, float], result: Sensitivity, mode: Mode) -> dict[str, object]:
    sign = -1 if mode == "only" else 1  # SQNR is low where an operator harms alone, high where only it is float
    harm = {name: sign * value for name, value in naive.items()}
    place = {row.subject: -float(index) for index, row in enumerate(result.rows)}
    top = [sorted(harm, key=lambda name: -harm[name])[:5], [row.subject for row in result.rows[:5]]]
    value = {row.subject: row.scores.sqnr_db.value for row in result.rows if row.samples == result.samples}
    return {
        "spearman": spearman(harm, place),
        "top5_equal": set(top[0]) == set(top[1]),
        "greatest_difference_db": max((abs(value[name] - naive[name]) for name in value), default=None),
        "rounds": [(one.subjects, one.samples) for one in result.rounds],
    }


if __name__ == "__main__":
    main()
