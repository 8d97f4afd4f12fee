"""What the stages share: samples that fit the model, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from qconvert.errors import ModelError
from qconvert.graph import ports
from qconvert.listener import Listener
from qconvert.preprocess import Preprocess
from qconvert.samples import InputSpec, SampleSet, open_samples
from qconvert.samples.find import find as find_samples

PROOF = 4
"""How many samples a written or prepared model is compared on."""


def are_images(data: Path) -> bool:
    """Whether these samples are images."""
    return find_samples(data).kind == "images"


def open_data(
    model: Path,
    graph: ir.Model,
    data: Path,
    preprocess: Preprocess | None,
    *,
    limit: int | None,
    seed: int,
    listener: Listener,
    labels: Path | None = None,
) -> SampleSet:
    """The samples of a model; what was inferred is said.

    Raises:
        DataError: If they cannot be read or do not fit.
        ModelError: If an input is no tensor.
    """
    inputs, outputs = ports(graph)
    strange = [port.name for port in inputs if port.dtype is None]
    if strange:
        raise ModelError(
            f"{model}: input '{strange[0]}' is not a tensor", hint="only tensor inputs can be fed from files"
        )
    specs = [InputSpec(port.name, port.dtype, port.shape) for port in inputs if port.dtype is not None]
    last = outputs[0].shape[-1] if outputs and outputs[0].shape else None
    samples = open_samples(
        data,
        specs,
        preprocess=preprocess,
        labels=labels,
        limit=limit,
        seed=seed,
        classes_hint=last if isinstance(last, int) else None,
    )
    for note in samples.notes:
        listener.note(note)
    return samples


def say_skipped(skipped: Sequence[tuple[str, str]], listener: Listener) -> None:
    """Names every sample that could not be read."""
    for name, reason in skipped:
        listener.note(f"skipped {reason if name in reason else f'{name}: {reason}'}")
