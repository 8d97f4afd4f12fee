"""One measurement of ``make bench``, in a process of its own; prints one line of JSON."""

from __future__ import annotations

import time

_BEGAN = time.perf_counter()

import json  # noqa: E402 - imports are part of what is measured
import resource  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import onnxruntime as ort  # noqa: E402

RUNS = 150


def prepared(folder: Path) -> Path:
    """Where the samples lie as the model takes them, so that decoding is not measured."""
    return folder / "samples.npy"


def plain(model: Path, folder: Path) -> dict[str, float]:
    """Inference of every sample, nothing else."""
    samples = np.load(prepared(folder), mmap_mode="r")
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    ready = time.perf_counter()
    for sample in samples:
        session.run(None, {name: sample[None]})
    return {"seconds": time.perf_counter() - ready, "samples": len(samples)}


def calibrate(model: Path, folder: Path) -> dict[str, float]:
    """The whole of ``qconvert calibrate`` but its imports."""
    from qconvert import pipeline

    ready = time.perf_counter()
    found = pipeline.calibrate(model, prepared(folder), output=folder / "model.calib", force=True)
    return {"seconds": time.perf_counter() - ready, "samples": found.samples}


def latency(model: Path, folder: Path) -> dict[str, float]:
    """Float, ours and onnxruntime.quantization's, in turn, one thread."""
    samples = np.load(prepared(folder), mmap_mode="r")
    paths = {"float": model, "qconvert": _ours(model, folder), "peer": _peer(model, folder, samples)}
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


def _ours(model: Path, folder: Path) -> Path:
    from qconvert import calibration, pipeline

    output = folder / "ours.onnx"
    if not output.exists():
        pipeline.quantize(model, calibration.load(folder / "model.calib"), output=output)
    return output


def _peer(model: Path, folder: Path, samples: npt.NDArray[Any]) -> Path:
    from onnxruntime import quantization as peer

    output = folder / "peer.onnx"
    if output.exists():
        return output
    name = ort.InferenceSession(model).get_inputs()[0].name

    class Reader(peer.CalibrationDataReader):  # type: ignore[misc] # the peer has no types
        def __init__(self) -> None:
            self.rows: Iterator[npt.NDArray[Any]] = iter(samples)

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            row = next(self.rows, None)
            return None if row is None else {name: row[None]}

    simplified = folder / "peer.pre.onnx"
    peer.quant_pre_process(model, simplified)
    types = {"activation_type": peer.QuantType.QUInt8, "weight_type": peer.QuantType.QInt8}  # what it recommends on x86
    peer.quantize_static(simplified, output, Reader(), per_channel=True, **types)
    return output


def save_samples(model: Path, data: Path, preprocess: str, folder: Path) -> None:
    """Decodes the images once."""
    from qconvert.graph import load_model, ports
    from qconvert.preprocess import preset
    from qconvert.samples import InputSpec, open_samples

    inputs, _ = ports(load_model(model))
    specs = [InputSpec(port.name, port.dtype, port.shape) for port in inputs if port.dtype is not None]
    samples = open_samples(data, specs, preprocess=preset(preprocess))
    rows = [next(iter(samples.load(index).feeds.values()))[0] for index in range(len(samples))]
    np.save(prepared(folder), np.stack(rows))


KINDS: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "plain": plain,
    "calibrate": calibrate,
    "latency": latency,
}


def main(kind: str, model: str, data: str, preprocess: str, folder: str) -> None:
    """Measures one thing."""
    if kind == "samples":
        save_samples(Path(model), Path(data), preprocess, Path(folder))
        return
    found = KINDS[kind](Path(model), Path(folder))
    found["whole_seconds"] = time.perf_counter() - _BEGAN
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
