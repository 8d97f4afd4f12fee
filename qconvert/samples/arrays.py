"""Samples from ``.npy`` and ``.npz`` files: which array feeds which input, and how many items there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qconvert.errors import CorruptSampleError, DataError
from qconvert.samples.columns import Column, column, model_batch
from qconvert.samples.find import Found
from qconvert.samples.fit import fit, is_float
from qconvert.samples.npy import Member, members
from qconvert.samples.types import Array, InputSpec, Label, Source

LABEL_KEYS = ("y", "label", "labels")
NPZ_HINT = "save one key a model input: numpy.savez(path, name=array, ...)"


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of one file, all of ``count`` items, and its labels; or the error that its items raise.

    Attributes:
        name: The file's name.
        columns: One a model input.
        count: Items.
        labels: One row an item.
        error: Why the file cannot be read; such a file counts as one item.
    """

    name: str
    columns: tuple[Column, ...]
    count: int
    labels: Member | None = None
    error: str = ""


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Item numbers to feeds; ``place[i]`` is the table and the row of item ``i``."""

    tables: tuple[Table, ...]
    place: tuple[tuple[int, int], ...]
    names: tuple[str, ...]

    def __call__(self, items: Sequence[int]) -> dict[str, Array]:
        """One feed of these items."""
        parts = [self._one(i) for i in items]
        if len(parts) == 1:
            return parts[0]
        return {
            key: np.concatenate([part[key] for part in parts]) if part0.ndim else part0
            for key, part0 in parts[0].items()
        }

    def _one(self, i: int) -> dict[str, Array]:
        table, row = self.tables[self.place[i][0]], self.place[i][1]
        if table.error:
            raise CorruptSampleError(self.names[i], table.error)
        return {c.spec.name: fit(c.item(row), c.spec, f"{self.names[i]}: '{c.spec.name}'") for c in table.columns}

    def label(self, i: int) -> Label:
        """The label of item ``i``: a number, or an array where each item has several."""
        table, row = self.tables[self.place[i][0]], self.place[i][1]
        if table.labels is None:
            return None
        labels = table.labels.rows(row, row + 1)[0] if table.labels.shape else table.labels.whole()
        return int(labels) if labels.ndim == 0 else np.asarray(labels)


@dataclass(frozen=True, eq=False)
class Bundle:
    """One file's arrays, or one folder's where each ``.npy`` is named after an input.

    Attributes:
        name: As shown to the user.
        size: Bytes.
        arrays: By key; "" in a lone ``.npy``.
        error: Why it cannot be read.
    """

    name: str
    size: int
    arrays: Mapping[str, Member]
    error: str = ""


def open_arrays(found: Found, inputs: Sequence[InputSpec]) -> Source:
    """Reads the headers of every file and matches arrays to inputs."""
    bundles = _bundles(found, inputs)
    notes: list[str] = []
    held = {b.name: _by_input(b, inputs, notes) for b in bundles if not b.error}
    batch = model_batch(inputs, list(held.values()))
    tables = [_table(b, held.get(b.name, {}), inputs, batch, notes) for b in bundles]
    place = tuple((t, row) for t, table in enumerate(tables) for row in range(table.count))
    if not place:
        raise DataError(f"{tables[0].name}: no samples, the first axis is empty", hint="save one row a sample")
    names = tuple(f"{tables[t].name}[{row}]" if tables[t].count > 1 else tables[t].name for t, row in place)
    reader = ArrayReader(tuple(tables), place, names)
    sizes = tuple(bundles[t].size for t, _ in place)
    label = reader.label if _labelled(tables) else None
    return Source("arrays", names, sizes, batch, reader, label, tuple(dict.fromkeys(notes)))


def _bundles(found: Found, inputs: Sequence[InputSpec]) -> list[Bundle]:
    stems = {p.stem: p for p in found.files if p.suffix.lower() == ".npy"}
    wanted = {spec.name for spec in inputs}
    data = [s for s in stems if s in wanted or not _is_label(s, wanted)]
    one_a_file = len(stems) == len(found.files) > 1 and (wanted <= {*stems} if len(inputs) > 1 else len(data) == 1)
    if not one_a_file:
        return [_bundle(p, found.name(p), alone=len(found.files) == 1) for p in found.files]
    arrays = {stem: members(p, found.name(p))[""] for stem, p in stems.items()}
    return [Bundle(found.root.resolve().name, sum(p.stat().st_size for p in found.files), arrays)]


def _bundle(path: Path, name: str, *, alone: bool) -> Bundle:
    """A file's arrays. One broken file among many counts as one sample that raises when it is loaded."""
    try:
        return Bundle(name, path.stat().st_size, members(path, name))
    except CorruptSampleError as error:
        if alone:
            raise
        return Bundle(name, path.stat().st_size, {}, str(error))


def _is_label(key: str, wanted: set[str]) -> bool:
    return key not in wanted and (key in LABEL_KEYS or key.startswith("meta_"))


def _by_input(bundle: Bundle, inputs: Sequence[InputSpec], notes: list[str]) -> dict[str, Member]:
    """The array for each input: by name, and for a model with one input the only array, whatever its name."""
    wanted = {spec.name for spec in inputs}
    data = [key for key in bundle.arrays if not _is_label(key, wanted)]
    if len(inputs) == 1 and len(data) == 1:
        return {inputs[0].name: bundle.arrays[data[0]]}
    missing = sorted(wanted - {*data})
    if missing:
        holds = ", ".join(f"'{key}'" for key in data if key) or ("one array" if data else "none")
        names = ", ".join(f"'{name}'" for name in missing)
        raise DataError(f"{bundle.name}: no array for model input {names}; it holds {holds}", hint=NPZ_HINT)
    if spare := [key for key in data if key not in wanted]:
        notes.append(f"{bundle.name}: {', '.join(spare)} ignored, the model has no such input")
    return {name: bundle.arrays[name] for name in wanted}


def _table(
    bundle: Bundle, held: Mapping[str, Member], inputs: Sequence[InputSpec], batch: int, notes: list[str]
) -> Table:
    if bundle.error:
        return Table(bundle.name, (), 1, error=bundle.error)
    columns = tuple(column(spec, held[spec.name], batch) for spec in inputs)
    counts = {c.spec.name: c.count for c in columns if c.count is not None}
    if len({*counts.values()}) > 1:
        each = ", ".join(f"'{name}' {count}" for name, count in counts.items())
        raise DataError(
            f"{bundle.name}: inputs differ in their number of samples ({each})",
            hint="save as many rows for every input",
        )
    count = next(iter(counts.values()), 1)
    notes += [
        f"{c.member.where} is {c.member.dtype.name}: fed as {c.spec.dtype.name}, values as they are"
        for c in columns
        if c.member.dtype.kind in "biu" and is_float(c.spec.dtype)
    ]
    return Table(bundle.name, columns, count, _labels(bundle, {s.name for s in inputs}, count, notes))


def _labels(bundle: Bundle, wanted: set[str], count: int, notes: list[str]) -> Member | None:
    member = next((bundle.arrays[key] for key in LABEL_KEYS if key in bundle.arrays and key not in wanted), None)
    if member is None:
        return None
    if member.dtype.kind not in "biu":
        notes.append(f"{member.where} is {member.dtype.name}, not class numbers: ignored")
        return None
    if (member.shape[0] if member.shape else 1) != count:
        raise DataError(
            f"{member.where} has {member.shape[0] if member.shape else 1} labels for {count} samples",
            hint="one row a sample",
        )
    return member


def _labelled(tables: Sequence[Table]) -> bool:
    readable = [t for t in tables if not t.error]
    bare = [t for t in readable if t.labels is None]
    if bare and len(bare) < len(readable):
        raise DataError(
            f"{bare[0].name}: no labels, as in {len(bare)} of {len(readable)} files",
            hint="add a key 'y' to every file, or to none",
        )
    return bool(readable) and not bare
