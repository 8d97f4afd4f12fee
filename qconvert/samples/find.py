"""What lies at a path: images, arrays or ONNX test data; told apart by names alone, nothing is opened."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qconvert.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
HINT = (
    "supported: a folder of images (.jpg .png .bmp .webp .tif .gif), flat or one folder a class; .npy and .npz files; "
    "ONNX test data (test_data_set_*/input_*.pb)"
)
Kind = Literal["images", "arrays", "test-data"]


@dataclass(frozen=True)
class Found:
    """The files of one set of samples.

    Attributes:
        kind: Which reader they are for.
        root: The folder that names are relative to.
        files: Image and array files, or the folders of test data, sorted.
        classes: The class folders, sorted; empty for everything but images in class folders.
    """

    kind: Kind
    root: Path
    files: tuple[Path, ...]
    classes: tuple[str, ...] = ()

    def name(self, path: Path) -> str:
        """A path as shown to the user, with forward slashes."""
        return path.relative_to(self.root).as_posix() if path != self.root else path.resolve().name


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts ``input_10`` after ``input_2``."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part)


def find(path: Path) -> Found:
    """Looks at a file or folder.

    Raises:
        DataError: There is nothing, nothing that can be read, or more than one kind.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder", hint=HINT)
    return _folder(path) if path.is_dir() else _file(path)


def _file(path: Path) -> Found:
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return Found("arrays", path.parent, (path,))
    if suffix in IMAGE_SUFFIXES:
        return Found("images", path.parent, (path,))
    raise DataError(
        f"{path}: samples cannot be read from {f'a {suffix} file' if suffix else 'a file without an ending'}", hint=HINT
    )


def _folder(root: Path) -> Found:
    entries = _visible(root)
    folders = [e for e in entries if e.is_dir()]
    sets = sorted((f for f in folders if f.name.startswith("test_data_set_")), key=lambda f: natural(f.name))
    if any(e.match("input_*.pb") for e in entries):
        sets = [root, *sets]
    images, arrays = _with_suffix(entries, IMAGE_SUFFIXES), _with_suffix(entries, ARRAY_SUFFIXES)
    classes = [f for f in folders if f not in sets]
    inside = [p for f in classes for p in _with_suffix(_visible(f), IMAGE_SUFFIXES)]
    if images and inside:
        raise DataError(
            f"{root}: {len(images)} images lie beside class folders with {len(inside)} more",
            hint="point --data at one of the folders, or move the images into class folders",
        )
    kinds = {"images": images + inside, "arrays": arrays, "test-data": sets}
    if sum(map(bool, kinds.values())) > 1:
        held = ", ".join(f"{len(files)} {kind}" for kind, files in kinds.items() if files)
        raise DataError(
            f"{root}: one kind of samples is wanted, found {held}", hint="put each kind into a folder of its own"
        )
    if sets:
        return Found("test-data", root, tuple(sets))
    if arrays:
        return Found("arrays", root, tuple(arrays))
    if images or inside:
        return Found("images", root, tuple(images or inside), tuple(f.name for f in classes) if inside else ())
    raise DataError(
        f"{root}: no samples (0 images, 0 .npy/.npz, 0 test_data_set_*); it holds {_census(entries)}", hint=HINT
    )


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _with_suffix(paths: Iterable[Path], suffixes: frozenset[str]) -> list[Path]:
    return [p for p in paths if p.suffix.lower() in suffixes and p.is_file()]


def _census(entries: Iterable[Path]) -> str:
    counts = Counter("folder" if p.is_dir() else f"{p.suffix or 'unnamed'} file" for p in entries)
    return ", ".join(f"{n} {what}{'s' * (n > 1)}" for what, n in sorted(counts.items())) or "nothing"
