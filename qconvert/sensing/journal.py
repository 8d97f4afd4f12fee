"""What a run keeps, so that a later one with the same question need not run it again."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qconvert.errors import DataError
from qconvert.files import atomic_output
from qconvert.plan import Plan
from qconvert.sensing.measures import Floats

FORMAT = 1

CHECKPOINT_SECONDS = 10.0
"""How often what was found is kept, where somebody asked for that."""


@dataclass(frozen=True)
class Journal:
    """A file of finished experiments.

    Attributes:
        path: The file.
        about: Digest of everything that the experiments depend on.
    """

    path: Path
    about: str

    def read(self) -> dict[str, Floats]:
        """What was kept; nothing where there is no file.

        Raises:
            DataError: If the file cannot be read, or belongs to another model, policy, or other samples.
        """
        if not self.path.is_file():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                header = json.loads(bytes(archive["header"]))
                same = header["format"] == FORMAT and header["about"] == self.about
                found = {name: archive[f"rows_{index}"] for index, name in enumerate(header["names"])} if same else None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{self.path}: not a readable file of finished experiments", hint="remove it, and begin anew"
            ) from error
        if found is None:
            raise DataError(
                f"{self.path}: belongs to a run with another model, policy, mode or other samples",
                hint="give the same ones, or leave --resume out",
            )
        return found

    def keep(self, tables: Mapping[str, Floats]) -> None:
        """Writes what was found so far."""
        header = json.dumps({"format": FORMAT, "about": self.about, "names": list(tables)}).encode()
        arrays = {f"rows_{index}": rows for index, rows in enumerate(tables.values())}
        with atomic_output(self.path, force=True) as temporary, temporary.open("wb") as file:
            np.savez(file, header=np.frombuffer(header, np.uint8), **arrays)  # type: ignore[arg-type]

    def drop(self) -> None:
        """Forgets the run."""
        self.path.unlink(missing_ok=True)


@dataclass
class Checkpoints:
    """Keeps rows now and then, where there is a journal.

    Attributes:
        journal: Where; None: nothing is kept.
        tables: The rows.
        last: When they were kept last, on the clock of ``time.monotonic``.
    """

    journal: Journal | None
    tables: Mapping[str, Floats]
    last: float = field(default_factory=time.monotonic)

    def __call__(self) -> None:
        """There are more rows."""
        if time.monotonic() - self.last >= CHECKPOINT_SECONDS:
            self.keep()

    def keep(self) -> None:
        """Keeps them now."""
        self.last = time.monotonic()
        if self.journal is not None:
            self.journal.keep(dict(self.tables))


def digest(plan: Plan, *facts: object) -> str:
    """Of a plan, grids included, and of what else decides the outcome."""
    found = hashlib.sha256()
    for entry in plan.entries:
        params = entry.params
        found.update(repr((entry.tensor, entry.role, params.dtype.name, params.axis, entry.sites)).encode())
        found.update(params.scale.tobytes() + params.zero_point.tobytes())
    found.update(repr(plan.absorbed).encode())
    found.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return found.hexdigest()
