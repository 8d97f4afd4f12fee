"""Files appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qconvert.errors import OutputError


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
        raise OutputError(f"{path}: exists already", hint="--force overwrites it; -o names another file")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: the folder '{folder}' does not exist", hint="create it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: no permission to write in '{folder}'", hint="-o names another place")


@contextmanager
def atomic_output(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary file beside ``path`` that becomes it when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: If the file cannot be written: it exists, the folder is missing, no permission, disk full.
    """
    check_writable(path, force=force)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path}: cannot be written: {reason}", hint="nothing was written") from error
    finally:
        temporary.unlink(missing_ok=True)
