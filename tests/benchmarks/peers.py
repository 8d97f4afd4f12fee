"""What other tools take for the same calibration, through their public functions; each is imported by its own kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tests.benchmarks.job import Job


def _simplified(job: Job) -> Path:
    """The model as onnxruntime recommends to prepare it; not part of what is measured."""
    from onnxruntime.quantization import quant_pre_process

    output = job.folder / "peer.pre.onnx"
    if not output.exists():
        quant_pre_process(job.model, output)
    return output


def _reader(name: str, samples: npt.NDArray[Any]) -> Any:  # noqa: ANN401 - a class of the peer, which has no types
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc] # the peer has no types
        def __init__(self) -> None:
            self.rows: Iterator[npt.NDArray[Any]] = iter(samples)

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            row = next(self.rows, None)
            return None if row is None else {name: row[None]}

    return Reader()


def _input(model: Path) -> str:
    import onnxruntime as ort

    return str(ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()[0].name)


def onnxruntime(job: Job, method: str) -> dict[str, float]:
    """Its calibrator of that name, at its defaults, over the operators that it quantizes."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    model = _simplified(job)
    samples, name = job.rows(), _input(model)
    ready = time.perf_counter()
    calibrator = create_calibrator(
        model,
        sorted({*QDQRegistry, *QLinearOpsRegistry}),
        augmented_model_path=str(job.folder / "peer.augmented.onnx"),
        calibrate_method=getattr(CalibrationMethod, method),
    )
    calibrator.collect_data(_reader(name, samples))
    collected = time.perf_counter()
    calibrator.compute_data()
    done = time.perf_counter()
    return {"seconds": done - ready, "search_seconds": done - collected, "samples": len(samples)}


def nncf(job: Job) -> dict[str, float]:
    """Ranges and the model in one: it has no calibration apart."""
    import nncf as peer
    import onnx

    samples, name = job.rows(), _input(job.model)
    model = onnx.load(_simplified(job))
    ready = time.perf_counter()
    data = peer.Dataset(range(len(samples)), lambda index: {name: np.ascontiguousarray(samples[index : index + 1])})
    peer.quantize(model, data, subset_size=len(samples), preset=peer.QuantizationPreset.MIXED)
    return {"seconds": time.perf_counter() - ready, "samples": len(samples)}


def onnxsim(job: Job) -> dict[str, float]:
    """Its entropy method; ranges and the model in one."""
    import onnx
    import onnxsim as peer

    samples, name = job.rows(), _input(job.model)
    model = onnx.load(_simplified(job))
    ready = time.perf_counter()
    peer.quantize_static(model, [{name: samples[k : k + 1]} for k in range(len(samples))], method="entropy")
    return {"seconds": time.perf_counter() - ready, "samples": len(samples)}


def quantized(job: Job) -> Path:
    """The model that onnxruntime.quantization writes, with the types that it recommends on x86."""
    from onnxruntime import quantization as peer

    output = job.folder / "peer.onnx"
    if not output.exists():
        model = _simplified(job)
        types = {"activation_type": peer.QuantType.QUInt8, "weight_type": peer.QuantType.QInt8}
        peer.quantize_static(model, output, _reader(_input(model), job.rows()), per_channel=True, **types)
    return output


KINDS: dict[str, Callable[[Job], dict[str, float]]] = {
    "onnxruntime MinMax": partial(onnxruntime, method="MinMax"),
    "onnxruntime Percentile": partial(onnxruntime, method="Percentile"),
    "onnxruntime Entropy": partial(onnxruntime, method="Entropy"),
    **({"nncf (with quantize)": nncf} if find_spec("nncf") else {}),
    **({"onnxsim entropy (with quantize)": onnxsim} if find_spec("onnxsim") else {}),
}
"""Those that are installed."""
