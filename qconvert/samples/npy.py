"""Rows of ``.npy`` files and of ``.npz`` members, read one at a time at their place in the file.

``numpy.savez`` stores its members uncompressed, so a row lies at a known offset and memory stays flat however large the
file is. Members of ``savez_compressed`` (and the rare column-major arrays) are read whole, once.
"""

from __future__ import annotations

import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from qconvert.errors import CorruptSampleError, DataError
from qconvert.samples.types import Array

BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError)
_LOCK = threading.Lock()
_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class _Kept:
    """At most one array, read on first use; travels empty to other processes."""

    array: Array | None = None

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


@dataclass(frozen=True, eq=False)
class Member:
    """One array on disk.

    Attributes:
        path: The file.
        name: The file's name as shown to the user.
        key: The key inside an ``.npz``; "" for an ``.npy``.
        shape: Its shape.
        dtype: Its type.
        offset: Where its first byte lies; None where it can only be read whole.
    """

    path: Path
    name: str
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None
    _kept: _Kept = field(default_factory=_Kept, repr=False)

    @property
    def where(self) -> str:
        """File and key, for messages."""
        return f"{self.name}: '{self.key}'" if self.key else self.name

    def rows(self, start: int, stop: int) -> Array:
        """``array[start:stop]``."""
        if self.offset is None:
            return self.whole()[start:stop]
        inner = self.shape[1:]
        count = int(np.prod(inner, dtype=np.int64))
        with _reading(self.name), self.path.open("rb") as file:
            file.seek(self.offset + start * count * self.dtype.itemsize)
            flat = np.fromfile(file, self.dtype, (stop - start) * count)
            if flat.size < (stop - start) * count:
                raise EOFError("the file ends before the array does")
        return flat.reshape(stop - start, *inner)

    def whole(self) -> Array:
        """The array; what cannot be read by rows is kept."""
        if self.offset is not None and self.shape:
            return self.rows(0, self.shape[0])
        with _LOCK, _reading(self.name):
            if self._kept.array is None:
                loaded = np.load(self.path, allow_pickle=False)
                self._kept.array = np.asarray(loaded[self.key] if self.key else loaded)
            return self._kept.array


class _reading:  # noqa: N801 - used like a function
    """Turns what numpy and zipfile raise on a broken file into a CorruptSampleError that names it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BROKEN):
            raise CorruptSampleError(
                self.name, f"{self.name}: {' '.join(str(error).split()) or type(error).__name__}"
            ) from error


def members(path: Path, name: str) -> dict[str, Member]:
    """The arrays of a file by key; an ``.npy`` has the one key "". Reads headers only.

    Raises:
        CorruptSampleError: The file is broken.
        DataError: It holds Python objects, which are never unpickled.
    """
    with _reading(name):
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return {"": _member(file, path, name, "", 0)}
        with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
            found = {}
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    key = info.filename.removesuffix(".npy")
                    base = _data_offset(raw, info) if info.compress_type == zipfile.ZIP_STORED else None
                    with archive.open(info) as file:
                        found[key] = _member(file, path, name, key, base)
            return found


def _data_offset(raw: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: after its local header of 30 bytes, its name and its extra field."""
    raw.seek(info.header_offset)
    name, extra = struct.unpack("<26xHH", raw.read(30))
    return int(info.header_offset + 30 + name + extra)


def _member(file: IO[bytes], path: Path, name: str, key: str, base: int | None) -> Member:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"array format version {version} is not supported")
    shape, by_column, dtype = _HEADERS[version](file)
    if dtype.hasobject or dtype.names:
        where = f"{name}: '{key}'" if key else name
        what = "Python objects (pickle)" if dtype.hasobject else "records"
        raise DataError(
            f"{where} holds {what}, numbers are wanted",
            hint="save plain arrays: numpy.save(path, numpy.asarray(x, 'float32'))",
        )
    by_row = base is not None and not by_column and len(shape) > 0
    return Member(path, name, key, shape, dtype, (base or 0) + file.tell() if by_row else None)
