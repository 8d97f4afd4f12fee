"""Tiny models built with onnx_ir, and sample sets made of real files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from PIL import Image

from qconvert.preprocess import Preprocess
from qconvert.samples import InputSpec, SampleSet, open_samples

Array: TypeAlias = npt.NDArray[Any]
Spec: TypeAlias = "tuple[int | str, ...]"
Step: TypeAlias = "tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]"

RAW = Preprocess(scale=1)


def build(
    inputs: Mapping[str, Spec],
    steps: Sequence[Step],
    outputs: Sequence[str],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    types: Mapping[str, ir.DataType] | None = None,
) -> ir.Model:
    """A model of operators ``(type, inputs, outputs, attributes)``; its ports are float where ``types`` is silent."""
    tensors = [ir.Tensor(array, name=name) for name, array in (weights or {}).items()]
    values = {
        tensor.name: ir.Value(
            name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        for tensor in tensors
    }
    kinds = {name: (types or {}).get(name, ir.DataType.FLOAT) for name in (*inputs, *outputs)}
    for name, shape in inputs.items():
        values[name] = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(kinds[name]))
    nodes = []
    for op_type, read, written, attributes in steps:
        made = [ir.Value(name=name) for name in written]
        values.update(zip(written, made, strict=True))
        nodes.append(ir.node(op_type, [values[name] for name in read], dict(attributes), outputs=made))
    for name in outputs:
        values[name].type = ir.TensorType(kinds[name])
    graph = ir.Graph(
        [values[name] for name in inputs],
        [values[name] for name in outputs],
        nodes=nodes,
        initializers=[values[tensor.name] for tensor in tensors],
        opset_imports={"": opset},
        name="tiny",
    )
    return ir.Model(graph, ir_version=9 if opset < 21 else 10)


def saved(model: ir.Model, path: Path) -> Path:
    ir.save(model, path)
    return path


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def specs(inputs: Mapping[str, Spec]) -> list[InputSpec]:
    return [InputSpec(name, np.dtype(np.float32), shape) for name, shape in inputs.items()]


def npy_samples(
    folder: Path, arrays: Sequence[Array], shape: Spec, *, labels: Sequence[int] | None = None
) -> SampleSet:
    """One ``.npy`` file a sample for the input ``x``."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, array in enumerate(arrays):
        np.save(folder / f"{k:03}.npy", array)
    written = None
    if labels is not None:
        written = folder.parent / f"{folder.name}.labels.npy"
        np.save(written, np.array(labels))
    return open_samples(folder, specs({"x": shape}), labels=written)


def png_samples(folder: Path, count: int, shape: Spec, *, broken: Sequence[int] = ()) -> SampleSet:
    """Random 8x8 images, some of them cut off in the middle."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(count):
        path = folder / f"{k:03}.png"
        Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)
        if k in broken:
            path.write_bytes(path.read_bytes()[:100])
    return open_samples(folder, specs({"x": shape}), preprocess=RAW)


def chosen(samples: SampleSet, indices: Sequence[int]) -> SampleSet:
    """The same samples in another order, or some of them."""
    return replace(samples, batches=tuple(samples.batches[i] for i in indices))
