"""One measurement of ``make bench``, in a process of its own; prints one line of JSON."""

from __future__ import annotations

import time

_BEGAN = time.perf_counter()

import collections  # noqa: E402 - imports are part of what is measured
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import onnxruntime as ort  # noqa: E402

from tests.benchmarks import peers  # noqa: E402

if TYPE_CHECKING:
    from qconvert.histogram import Detail
    from qconvert.samples import SampleSet

RUNS = 150


@dataclass(frozen=True)
class Job:
    """What is measured on.

    Attributes:
        model: A float model.
        data: Its samples as they come.
        preprocess: How they become inputs.
        folder: For files; ``samples.npy`` holds the samples as the model takes them.
    """

    model: Path
    data: Path
    preprocess: str
    folder: Path

    @property
    def prepared(self) -> Path:
        return self.folder / "samples.npy"

    def rows(self) -> npt.NDArray[Any]:
        rows: npt.NDArray[Any] = np.load(self.prepared, mmap_mode="r")
        return rows


Measured = dict[str, float]


def plain(job: Job) -> Measured:
    """Inference of every sample, one after another, with as many threads each as onnxruntime likes."""
    samples = job.rows()
    session = ort.InferenceSession(job.model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    ready = time.perf_counter()
    for sample in samples:
        session.run(None, {name: sample[None]})
    return {"seconds": time.perf_counter() - ready, "samples": len(samples)}


def parallel(job: Job) -> Measured:
    """Inference of every sample, one sample a thread: the fastest way to run them."""
    samples = job.rows()
    session, name = _single(job.model)
    ready = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        collections.deque(pool.map(lambda sample: session.run(None, {name: sample[None]}), samples), maxlen=0)
    return {"seconds": time.perf_counter() - ready, "samples": len(samples)}


def images(job: Job) -> Measured:
    """Decoding, preprocessing and inference of every sample, one sample a thread."""
    session, _ = _single(job.model)
    samples = _open(job)
    ready = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        run = pool.map(lambda index: session.run(None, dict(samples.load(index).feeds)), range(len(samples)))
        collections.deque(run, maxlen=0)
    return {"seconds": time.perf_counter() - ready, "samples": len(samples)}


def _single(model: Path) -> tuple[ort.InferenceSession, str]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session, session.get_inputs()[0].name


def calibrate(job: Job, detail: Detail = "exact", *, decoded: bool = True) -> Measured:
    """The whole of ``qconvert calibrate`` but its imports."""
    from qconvert.workers import collect_rarely

    collect_rarely()  # as the command line does
    from qconvert import calibrate as whole
    from qconvert.preprocess import preset

    data, preprocess = (job.prepared, None) if decoded else (job.data, preset(job.preprocess))
    output = job.folder / f"{detail}.calib"
    output.unlink(missing_ok=True)  # freeing the pages of the last one is no part of a first calibration
    ready = time.perf_counter()
    found = whole(job.model, data, preprocess=preprocess, output=output, detail=detail)
    return {"seconds": time.perf_counter() - ready, "samples": found.samples}


def search(job: Job) -> Measured:
    """Every method's ranges of all values, from statistics that are there; in milliseconds a method."""
    from qconvert import calibration, thresholds
    from qconvert.calibrators import FROM_STATISTICS, make_calibrator
    from qconvert.numerics import UINT8

    stats = calibration.load(job.folder / "exact.calib").stats
    grid, found = thresholds.Grid(UINT8, symmetric=False), {}
    for name in FROM_STATISTICS:
        calibrator, ready = make_calibrator(name), time.perf_counter()
        for one in stats.values():
            calibrator(one, grid.dtype, symmetric=grid.symmetric)
        found[f"{name}_ms"] = 1e3 * (time.perf_counter() - ready)
    return {**found, "values": len(stats)}


def latency(job: Job) -> Measured:
    """Float, ours and onnxruntime.quantization's, in turn, one thread."""
    samples = job.rows()
    paths = {"float": job.model, "qconvert": _ours(job), "peer": peers.quantized(job)}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    cpu = ["CPUExecutionProvider"]
    sessions = {name: ort.InferenceSession(path, options, providers=cpu) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    feeds = {next(iter(sessions.values())).get_inputs()[0].name: np.ascontiguousarray(samples[:1])}
    order = list(sessions.items())
    for turn in range(RUNS + 5):
        order = [*order[1:], order[0]]  # whoever runs behind the float model finds a cold cache
        if turn % 3 == 0:
            order.reverse()
        for name, session in order:
            start = time.perf_counter()
            session.run(None, feeds)
            if turn >= 5:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {f"{name}_ms": float(np.median(row)) for name, row in times.items()}


def _ours(job: Job) -> Path:
    from qconvert import calibration, pipeline

    output = job.folder / "ours.onnx"
    if not output.exists():
        pipeline.quantize(job.model, calibration.load(job.folder / "exact.calib"), output=output)
    return output


def _open(job: Job) -> SampleSet:
    from qconvert.graph import load_model, ports
    from qconvert.preprocess import preset
    from qconvert.samples import InputSpec, open_samples

    inputs, _ = ports(load_model(job.model))
    specs = [InputSpec(port.name, port.dtype, port.shape) for port in inputs if port.dtype is not None]
    return open_samples(job.data, specs, preprocess=preset(job.preprocess))


def save_samples(job: Job) -> Measured:
    """Decodes the images once."""
    samples = _open(job)
    rows = [next(iter(samples.load(index).feeds.values()))[0] for index in range(len(samples))]
    np.save(job.prepared, np.stack(rows))
    return {}


KINDS: dict[str, Callable[[Job], Measured]] = {
    "samples": save_samples,
    "plain": plain,
    "parallel": parallel,
    "exact": calibrate,
    "sampled": partial(calibrate, detail="sampled"),
    "range": partial(calibrate, detail="range"),
    "images": images,
    "exact_images": partial(calibrate, decoded=False),
    "search": search,
    "latency": latency,
    **peers.KINDS,
}


def main(kind: str, model: str, data: str, preprocess: str, folder: str) -> None:
    """Measures one thing."""
    found = KINDS[kind](Job(Path(model), Path(data), preprocess, Path(folder)))
    found["whole_seconds"] = time.perf_counter() - _BEGAN
    found["peak_mb"] = peak() / 1e6
    sys.stdout.write(json.dumps(found) + "\n")


def peak() -> int:
    """Bytes this process held at most; ``getrusage`` would count the process that it was started from."""
    words = Path("/proc/self/status").read_text(encoding="utf-8").split()
    return 1024 * int(words[words.index("VmHWM:") + 1])


if __name__ == "__main__":
    main(*sys.argv[1:])
