"""onnxruntime sessions: providers without silent fall-back, errors as one line, models of any size."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from qconvert.errors import ModelError, ProviderError, TargetError
from qconvert.graph import INLINE_LIMIT, serialize, weight_bytes, write_model

Feeds = Mapping[str, npt.NDArray[Any]]

GPU_INSTALL = "pip install 'qconvert[gpu]' && pip install --force-reinstall --no-deps onnxruntime-gpu"
"""Both builds of onnxruntime share one folder: the GPU build has to be written last."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}

TWO_BIT_OPSET, TWO_BIT_RUNTIME = 25, (1, 24)
"""Where INT2 and UINT2 came to ONNX, and to onnxruntime."""

_NUMPY_TYPES: dict[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.str_,
}


def check_provider(provider: str) -> None:
    """Whether onnxruntime here has the provider at all.

    Raises:
        ProviderError: If the name is unknown or this build of onnxruntime lacks it.
    """
    if provider not in PROVIDERS:
        raise ProviderError(
            f"unknown provider '{provider}': expected one of {', '.join(PROVIDERS)}",
            hint="'qconvert doctor' shows which work here",
        )
    if PROVIDERS[provider] not in ort.get_available_providers():
        raise ProviderError(
            f"provider '{provider}': this onnxruntime {ort.__version__} has only "
            f"{', '.join(ort.get_available_providers())}",
            hint=f"{GPU_INSTALL}, on a machine with an NVIDIA driver and CUDA"
            + (" and TensorRT" if provider == "tensorrt" else ""),
        )


def check_opset(needed: int, *, version: str = ort.__version__) -> None:
    """Whether onnxruntime here reads models of an opset that 2-bit types need; what else is written, every one reads.

    Raises:
        TargetError: If it does not.
    """
    if needed >= TWO_BIT_OPSET and tuple(int(part) for part in version.split(".")[:2]) < TWO_BIT_RUNTIME:
        least = ".".join(map(str, TWO_BIT_RUNTIME))
        raise TargetError(
            f"2-bit weights need opset {needed}, which onnxruntime reads from {least} on; here is {version}",
            hint="use 4-bit weights, or update onnxruntime (for Python 3.11 or later)",
        )


def open_session(
    model: ir.Model | Path,
    *,
    provider: str = "cpu",
    threads: int = 0,
    optimize: bool = True,
    integer: bool = True,
    optimized_path: Path | None = None,
) -> ort.InferenceSession:
    """Opens a model for running.

    Args:
        model: A graph, or the path of a file.
        provider: ``cpu``, ``cuda`` or ``tensorrt``; operators the provider lacks run on the CPU, a missing provider is
            an error.
        threads: Threads inside one run; 0 lets onnxruntime choose.
        optimize: Whether onnxruntime may rewrite the graph.
        integer: Whether it may compute on integers between Q/DQ pairs.
        optimized_path: Where onnxruntime writes the graph that it really runs, with its weights in ``NAME.data``.

    Raises:
        ModelError: If onnxruntime refuses the model.
        ProviderError: If the provider cannot be used.
    """
    check_provider(provider)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_pattern = False  # measured: less memory at the same speed
    options.intra_op_num_threads = threads
    if not integer:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
        prefix = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{prefix}file_name", f"{optimized_path.name}.data")
        options.add_session_config_entry(f"{prefix}min_size_in_bytes", "1024")
    wanted = [PROVIDERS[provider]] if provider == "cpu" else [PROVIDERS[provider], PROVIDERS["cpu"]]
    with tempfile.TemporaryDirectory(prefix="qconvert.") as folder:
        try:
            session = ort.InferenceSession(_source(model, Path(folder)), options, providers=wanted)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes, some of them bare Exception
            place = f"{model}: " if isinstance(model, Path) else ""
            raise ModelError(
                f"{place}onnxruntime refuses the model: {one_line(error)}",
                hint="mend or re-export it, or update onnxruntime ('qconvert doctor' shows the version)",
            ) from error
    session.disable_fallback()
    if session.get_providers()[0] != wanted[0]:
        message = f"provider '{provider}' could not start: its libraries did not load"
        raise ProviderError(message, hint="see 'qconvert doctor'")
    return session


def _source(model: ir.Model | Path, folder: Path) -> str | bytes:
    if isinstance(model, Path):
        return str(model)
    if weight_bytes(model) <= INLINE_LIMIT:
        return serialize(model)
    path = folder / "model.onnx"
    write_model(model, path, inline=0)
    return str(path)


def run(session: ort.InferenceSession, feeds: Feeds, outputs: Sequence[str] | None = None) -> list[Any]:
    """One run; outputs in order.

    Raises:
        ModelError: If onnxruntime fails on these feeds.
    """
    try:
        results: list[Any] = session.run(outputs, dict(feeds))
    except Exception as error:  # onnxruntime raises a dozen unrelated classes, some of them bare Exception
        raise failed(feeds, error) from error
    return results


def failed(feeds: Feeds, error: BaseException) -> ModelError:
    """What onnxruntime raised of a run with these inputs, to be raised."""
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
    return ModelError(f"onnxruntime fails on inputs {shapes}: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """The message of a foreign exception without its line breaks and status code."""
    text = " ".join(str(error).split())
    return text.split(" : ", 2)[-1] if text.startswith("[ONNXRuntimeError]") else text or type(error).__name__


def numpy_type(name: str) -> np.dtype[Any]:
    """The element type of onnxruntime's ``tensor(float)`` and the like.

    Raises:
        ModelError: If numpy has no such type.
    """
    if name not in _NUMPY_TYPES:
        raise ModelError(f"values of type {name} cannot be read")
    return np.dtype(_NUMPY_TYPES[name])
