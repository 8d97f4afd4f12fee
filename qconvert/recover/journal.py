"""What steps made of layers, kept in a folder so that a run that was stopped goes on where it was.

Every layer has a file, named after everything that its change depends on: what is there is right, whatever else was
asked for meanwhile, and a file of another model or of other samples is never looked at.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qconvert import __version__
from qconvert.errors import OutputError
from qconvert.files import atomic_output
from qconvert.float8 import Float8
from qconvert.graph import initializers, operators
from qconvert.numerics import QuantParams, QuantType
from qconvert.plan import Entry, Site
from qconvert.recover.types import Context, Step, Work
from qconvert.sensing.journal import digest

PART_SUFFIX = ".recover.part"
"""Behind the name of a model that is to be written: the folder of what was learned for it."""

Array = npt.NDArray[Any]

Change = tuple[str, int, tuple[Any, ...]]
"""What was done to a layer of a walk: the name of what does it, the layer's number and the other arguments."""

_RECORDS = {kind.__name__: kind for kind in (Entry, Float8, QuantParams, QuantType, Site)}


@dataclass(frozen=True)
class Done:
    """What became of a layer.

    Attributes:
        why: Why it was left as it was, as the end of a sentence, or "".
        changes: In this order.
    """

    why: str
    changes: tuple[Change, ...]


@dataclass
class Journal:
    """The folder.

    Attributes:
        folder: It; made when there is something to keep.
        used: How many layers were taken from it.
    """

    folder: Path
    used: int = 0

    @classmethod
    def beside(cls, output: Path) -> Journal:
        """That of the run that is to write ``output``."""
        return cls(output.with_name(output.name + PART_SUFFIX))

    def count(self) -> int:
        """How many layers are kept."""
        return sum(1 for _ in self.folder.glob("*.npz"))

    def drop(self) -> None:
        """Forgets all."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self, name: str) -> Done | None:
        """What is kept under a name; a file that cannot be read is as none."""
        try:
            with (self.folder / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
                why, changes = _decoded(json.loads(bytes(archive["header"])), archive)
        except Exception:  # noqa: BLE001 - numpy, zipfile, zlib and json raise a dozen unrelated ones on damaged bytes
            return None
        self.used += 1
        return Done(why, changes)

    def keep(self, name: str, done: Done) -> None:
        """Writes one.

        Raises:
            OutputError: If the folder cannot be written.
        """
        arrays: list[Array] = []
        header = json.dumps(_encoded((done.why, done.changes), arrays)).encode()
        members = {f"array_{place}": array for place, array in enumerate(arrays)}
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"{self.folder}: cannot be made: {reason}", hint="leave --resume out") from error
        with atomic_output(self.folder / f"{name}.npz", force=True) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, header=np.frombuffer(header, np.uint8), **members)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Section:
    """What the journal of a run has of one step on one model.

    Attributes:
        context: Of the run; where it has no journal, nothing is known and nothing is kept.
        about: Digest of everything that the changes depend on.
    """

    context: Context
    about: str = ""

    @classmethod
    def of(cls, step: Step, work: Work, context: Context, part: str) -> Section:
        """The section of a part of a step."""
        if context.journal is None:
            return cls(context)
        arrays = hashlib.sha256()
        for value, tensor in initializers(work.graph):
            arrays.update(f"{value.name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
        for name, array in (item for probe in context.probes for item in sorted(probe.items())):
            arrays.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        names = [(op.op_type, op.name) for op in operators(work.graph)]
        only = sorted((name, sorted(methods)) for name, methods in context.only.items())
        facts = __version__, repr(step), part, arrays.hexdigest(), names, only, context.seed, context.damping
        return cls(context, digest(work.plan, *facts))

    def read(self, layer: str) -> Done | None:
        """What became of a layer."""
        journal = self.context.journal
        return None if journal is None else journal.read(self._name(layer))

    def keep(self, layer: str, done: Done) -> None:
        """Keeps it, but where time ran out meanwhile: with more of it, more may come of the layer."""
        journal = self.context.journal
        if journal is not None and self.context.seconds_left > 0:
            journal.keep(self._name(layer), done)

    def _name(self, layer: str) -> str:
        return hashlib.sha256(f"{self.about} {layer}".encode()).hexdigest()


def _encoded(value: object, arrays: list[Array]) -> object:
    """A value as JSON has it, its arrays apart."""
    if isinstance(value, np.ndarray | np.generic):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, tuple):
        return [_encoded(one, arrays) for one in value]
    if is_dataclass(value):
        parts = {one.name: _encoded(getattr(value, one.name), arrays) for one in fields(value)}
        return {"record": type(value).__name__, "parts": parts}
    return value


def _decoded(found: Any, arrays: Mapping[str, Array]) -> Any:  # noqa: ANN401 - whatever was encoded
    if isinstance(found, list):
        return tuple(_decoded(one, arrays) for one in found)
    if not isinstance(found, dict):
        return found
    if "array" in found:
        return arrays[f"array_{found['array']}"]
    return _RECORDS[found["record"]](**{name: _decoded(one, arrays) for name, one in found["parts"].items()})
