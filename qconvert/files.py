"""Files appear whole or not at all."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from qconvert.errors import OutputError

TEMPORARY = ".tmp"
"""How the folders end in which files are made."""


def check_writable(path: Path, *, force: bool, keep: Path | None = None) -> None:
    """Says before the work starts what would stop the result from being written.

    Args:
        path: The output.
        force: Whether it may exist already.
        keep: A file that even ``force`` does not overwrite.

    Raises:
        OutputError: If the file exists and ``force`` is not given, or its folder is missing or not writable.
    """
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError as error:  # the name is too long, or a folder above may not be entered
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}", hint="give another name") from error
    if is_folder:
        raise OutputError(f"{path}: is a folder", hint="give a file name")
    if exists and keep is not None and keep.exists() and path.samefile(keep):
        raise OutputError(f"{path}: is the model that is read", hint="-o names another file")
    if exists and not force:
        raise OutputError(f"{path}: exists already", hint="--force overwrites it; or name another file")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder '{folder}' does not exist", hint="create it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: no permission to write in '{folder}'", hint="-o names another place")


@contextmanager
def atomic_output(path: Path, *, force: bool) -> Iterator[Path]:
    """A file in a temporary folder beside ``path`` that becomes it when the block ends well, and vanishes when not.

    Files that the block writes beside it move along: a model's weights keep their name.

    Raises:
        OutputError: If a file cannot be written: it exists, the folder is missing, no permission, disk full.
    """
    check_writable(path, force=force)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent) as folder:
            yield Path(folder) / path.name
            staged = sorted(
                Path(folder).iterdir(), key=lambda file: file.name == path.name
            )  # the file itself comes last
            for file in staged:
                check_writable(path.with_name(file.name), force=force)
            for file in staged:
                file.replace(path.with_name(file.name))
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path}: cannot be written: {reason}", hint="nothing was written") from error


class Spill:
    """Arrays in a temporary file: they take memory only where they are looked at, and stay readable when it is closed.

    Threads may share it.
    """

    def __init__(self) -> None:
        """Opens none yet."""
        self._file: IO[bytes] | None = None
        self._lock = Lock()

    def put(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same array, read from the file."""
        if not array.size:
            return array
        with self._lock:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="qconvert.")  # noqa: SIM115 - closed by ``close``
            start = self._file.seek(0, 2)
            self._file.write(np.ascontiguousarray(array).data)
            self._file.flush()
            return np.memmap(self._file, array.dtype, "r", start, array.shape)

    @staticmethod
    def release(array: npt.NDArray[Any]) -> None:
        """Says that an array that was looked at is not needed in memory now; one that lies nowhere else stays."""
        pages = getattr(array, "_mmap", None)
        if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Ends writing; the file goes with the last array in it."""
        if self._file is not None:
            self._file.close()
