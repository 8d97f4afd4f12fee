"""Labels: class folders, and files that give one label a sample."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from qconvert.errors import DataError
from qconvert.samples.types import Array

FILE_COLUMNS = ("file", "filename", "file_name", "image", "path", "name", "sample")
LABEL_COLUMNS = ("label", "class", "target", "y", "category")
HINT = "write one line a sample: file,label"


def class_numbers(folders: Sequence[str]) -> dict[str, int]:
    """The number of each class: the folder's name where all are whole numbers, else its place in the sorted list."""
    if all(name.isdecimal() for name in folders):
        return {name: int(name) for name in folders}
    return {name: k for k, name in enumerate(sorted(folders))}


def read_labels(
    path: Path, names: Sequence[str], classes: Sequence[str] = ()
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """One label a sample from a CSV file (comma, semicolon, tab or space; with or without a header).

    Samples are matched by their name relative to the folder, else by the file's name where that is unique.

    Args:
        path: The file.
        names: The samples.
        classes: Class folders, whose names the file may use for numbers.

    Returns:
        The labels in the order of ``names``, and notes.

    Raises:
        DataError: The file cannot be read, a sample has no label, or a label is no number and no class.
    """
    given = _rows(path)
    keys = _match(names, given)
    missing = [n for n in names if n not in keys]
    if missing:
        raise DataError(
            f"{path}: no label for '{missing[0]}' ({len(missing)} of {len(names)} samples have none)", hint=HINT
        )
    numbers = class_numbers(classes) if classes else {}
    labels = tuple(_number(path, *given[key], numbers) for key in keys.values())
    spare = len(given) - len({*keys.values()})
    return labels, (f"{path.name}: {spare} labels belong to no sample",) if spare else ()


def _rows(path: Path) -> dict[str, tuple[int, str]]:
    """``{file: (line, label)}``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0].strip()
        table = csv.reader(text.splitlines(), delimiter=next((d for d in ",;\t " if d in first), ","))
        rows = [(line, [cell.strip() for cell in row]) for line, row in enumerate(table, 1) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (error.strerror or "") if isinstance(error, OSError) else f"not CSV text ({error})"
        raise DataError(f"{path}: labels cannot be read: {reason}", hint=HINT) from error
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    file_at, label_at = _column(header, FILE_COLUMNS, 0), _column(header, LABEL_COLUMNS, 1)
    if {*header} & {*FILE_COLUMNS, *LABEL_COLUMNS}:
        rows = rows[1:]
    return _by_file(path, rows, file_at, label_at)


def _match(names: Sequence[str], given: Iterable[str]) -> dict[str, str]:
    """``{sample: key in the file}`` of those that have one."""
    tails = Counter(PurePosixPath(name).name for name in names)
    keys = {key: key for key in given}
    short = Counter(PurePosixPath(key).name for key in keys)
    short_keys = {tail: key for key in keys if short[tail := PurePosixPath(key).name] == 1}
    unique = {name: PurePosixPath(name).name for name in names if tails[PurePosixPath(name).name] == 1}
    found = {name: keys.get(name) or short_keys.get(unique.get(name, "")) for name in names}
    return {name: key for name, key in found.items() if key is not None}


def _column(header: Sequence[str], known: Sequence[str], default: int) -> int:
    return next((k for k, cell in enumerate(header) if cell in known), default)


def _by_file(
    path: Path, rows: Sequence[tuple[int, list[str]]], file_at: int, label_at: int
) -> dict[str, tuple[int, str]]:
    given: dict[str, tuple[int, str]] = {}
    for line, row in rows:
        if len(row) <= max(file_at, label_at):
            raise DataError(f"{path}:{line}: expected a file and a label, got '{' '.join(row)}'", hint=HINT)
        file = row[file_at].replace("\\", "/").removeprefix("./")
        if file in given and given[file][1] != row[label_at]:
            raise DataError(
                f"{path}:{line}: '{file}' is '{row[label_at]}' here, '{given[file][1]}' in line {given[file][0]}"
            )
        given[file] = (line, row[label_at])
    return given


def _number(path: Path, line: int, label: str, numbers: Mapping[str, int]) -> int:
    if label in numbers:
        return numbers[label]
    try:
        return int(label)
    except ValueError:
        expected = (
            f"a whole number or one of the class folders ({', '.join(list(numbers)[:3])}, ...)"
            if numbers
            else "a whole number"
        )
        raise DataError(
            f"{path}:{line}: expected {expected}, got '{label}'",
            hint="a label is the index of the class in the model's output",
        ) from None


def array_labels(path: Path, count: int) -> Array:
    """The labels in a .npy file, one row a sample, in the order of the samples.

    Raises:
        DataError: The file cannot be read, holds no whole numbers, or too few or too many of them.
    """
    try:
        labels: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: labels cannot be read: {' '.join(str(error).split())}", hint="save them with numpy.save"
        ) from error
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: labels must be one .npy array of whole numbers",
            hint="save them with numpy.save(path, labels.astype('int64'))",
        )
    if labels.ndim == 0 or len(labels) != count:
        raise DataError(
            f"{path}: labels have shape {labels.shape} for {count} samples",
            hint="one row a sample, in the samples' order",
        )
    return labels
