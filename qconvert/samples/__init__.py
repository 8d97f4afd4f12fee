"""Samples: image folders, ``.npy`` and ``.npz`` files, ONNX test data; read one at a time, in any order."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qconvert.errors import DataError
from qconvert.preprocess import Preprocess
from qconvert.samples.find import Found, find
from qconvert.samples.labels import array_labels, read_labels
from qconvert.samples.types import InputSpec, Json, Label, Sample, SampleSet, Source

__all__ = ["InputSpec", "Label", "Sample", "SampleSet", "open_samples"]


def open_samples(
    path: Path | str,
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | None = None,
    labels: Path | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    classes_hint: int | None = None,
) -> SampleSet:
    """Opens a set of samples for a model; names and headers are read now, samples when they are loaded.

    Args:
        path: A folder of images, of arrays or of ONNX test data; or one file.
        inputs: The model's inputs, without those that are initializers.
        preprocess: How images become inputs; None infers it from the input and says so in the notes.
        labels: A CSV file ``file,label``, or an ``.npy`` with one row an item; wins over class folders and ``y`` keys.
        limit: How many images or array rows to choose.
        seed: Which ones: the same seed chooses the same.
        classes_hint: How many columns the model's first output has, where that is known.

    Raises:
        DataError: There are no samples, or they do not fit the model.
    """
    path = Path(path)
    found = find(path)
    source = _read(found, inputs, preprocess, classes_hint)
    if labels is not None:
        source = _relabel(source, found, Path(labels))
    chosen, notes = _choose(len(source.names), limit, seed)
    batches = tuple(tuple(chosen[k : k + source.batch]) for k in range(0, len(chosen), source.batch))
    notes = [
        *source.notes,
        *notes,
        *([] if labels else _class_notes(found, classes_hint)),
        *_batch_notes(source, batches),
    ]
    return SampleSet(source, batches, _describe(path, source, chosen, seed), tuple(notes))


def _read(found: Found, inputs: Sequence[InputSpec], preprocess: Preprocess | None, classes: int | None) -> Source:
    """The reader of a kind; Pillow and onnx are imported only where they are needed."""
    if found.kind == "images":
        from qconvert.samples.images import open_images  # noqa: PLC0415

        return open_images(found, inputs, preprocess=preprocess, classes=classes)
    if preprocess is not None:
        raise DataError(
            f"preprocessing is for images, the samples are {found.kind}",
            hint="leave out --preprocess: arrays are fed as they are",
        )
    if found.kind == "arrays":
        from qconvert.samples.arrays import open_arrays  # noqa: PLC0415

        return open_arrays(found, inputs)
    from qconvert.samples.protobuf import open_test_data  # noqa: PLC0415

    return open_test_data(found, inputs)


def _relabel(source: Source, found: Found, labels: Path) -> Source:
    if labels.suffix.lower() == ".npy":
        rows = array_labels(labels, len(source.names))
        return replace(source, label=rows.tolist().__getitem__ if rows.ndim == 1 else rows.__getitem__)
    numbers, notes = read_labels(labels, source.names, found.classes)
    return replace(source, label=numbers.__getitem__, notes=source.notes + notes)


def _choose(count: int, limit: int | None, seed: int) -> tuple[list[int], list[str]]:
    """Which items, in order."""
    if limit is None or limit == count:
        return list(range(count)), []
    if limit < 1:
        raise DataError(f"--samples: expected at least 1, got {limit}")
    if limit > count:
        return list(range(count)), [f"{limit} samples asked for, all {count} are used"]
    return sorted(random.Random(seed).sample(range(count), limit)), []  # noqa: S311 - a choice, no secret


def _class_notes(found: Found, classes: int | None) -> list[str]:
    names = found.classes
    if not names:
        return []
    if all(name.isdecimal() for name in names):
        return [f"labels: the numbers of {len(names)} class folders"]
    said = f"labels: {len(names)} class folders in alphabetical order, '{names[0]}' is 0"
    doubt = (
        f"; the model has {classes} outputs, so say with --labels if that is not their order"
        if classes not in (None, len(names))
        else ""
    )
    return [said + doubt]


def _batch_notes(source: Source, batches: Sequence[Sequence[int]]) -> list[str]:
    if source.batch == 1:
        return []
    spare = source.batch - len(batches[-1])
    filled = f"; the last one is filled by repeating its last item {spare} times" if spare else ""
    return [f"the model fixes a batch of {source.batch}: {len(batches)} batches{filled}"]


def _describe(path: Path, source: Source, chosen: Sequence[int], seed: int) -> dict[str, Json]:
    """The set as JSON, the same on every machine that holds the same files."""
    listing = "\n".join(f"{source.names[i]}\t{source.sizes[i]}" for i in chosen)
    return {
        "kind": source.kind,
        "path": path.name if path.is_absolute() else path.as_posix(),
        "count": len(chosen),
        "available": len(source.names),
        "batch": source.batch,
        "seed": seed,
        "preprocess": source.preprocess,
        "fingerprint": hashlib.sha256(listing.encode()).hexdigest(),
    }
