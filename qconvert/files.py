"""Files appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qconvert.errors import OutputError


def check_writable(path: Path, *, force: bool) -> None:
    """Says before the work starts what would stop the result from being written.

    Raises:
        OutputError: If the file exists and ``force`` is not given, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a folder", hint="give a file name")
    if path.exists() and not force:
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
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}", hint="nothing was written") from error
    finally:
        temporary.unlink(missing_ok=True)
