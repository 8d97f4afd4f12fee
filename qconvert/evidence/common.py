"""What every report says: models, samples, versions, and where methods come from."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qconvert.calibrators import CALIBRATORS
from qconvert.comparison import file_size
from qconvert.graph import file_hash
from qconvert.machine import examine
from qconvert.metrics import EXACT_DB
from qconvert.reports import Citation, Column, Data, Measure, Model, Section, Table, Value
from qconvert.scores import Fidelity

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_SOURCE = re.compile(r"Source:\s*(.+?arXiv:\d{4}\.\d{4,5}|[^.]+)", re.DOTALL)


def model(role: str, path: Path, size_bytes: int | None = None) -> Model:
    """A model file with its hash."""
    return Model(role, path.as_posix(), file_hash(path), file_size(path) if size_bytes is None else size_bytes)


def data(description: Mapping[str, Any], samples: int) -> Data:
    """The samples, from what their set says of itself."""
    preprocess = description.get("preprocess")
    return Data(
        path=str(description.get("path", "")),
        kind=str(description.get("kind", "")),
        samples=samples,
        seed=int(description.get("seed") or 0),
        fingerprint=str(description.get("fingerprint", "")),
        preprocess=json.dumps(preprocess, sort_keys=True) if preprocess else "",
    )


def versions() -> tuple[tuple[str, str], ...]:
    """Of what results depend on: packages and the CPU's integer instructions."""
    machine = examine()
    return (*machine.versions, ("cpu", ", ".join((machine.architecture, *machine.instructions))))


def citations(methods: Iterable[str]) -> tuple[Citation, ...]:
    """The sources of calibrators, by name, as their modules document them; of names that are none: nothing."""
    found = []
    for name in dict.fromkeys(methods):
        kind = CALIBRATORS.get(name.partition(":")[0])
        document = None if kind is None else sys.modules[kind.__module__].__doc__
        if not document:  # another tool's ranges, or Python without docstrings
            continue
        title = " ".join(document.split("\n\n")[0].split())
        source = _SOURCE.search(document)
        text = title if source is None else f"{title} {' '.join(source.group(1).split())}."
        paper = _ARXIV.search(text)
        found.append(Citation(name, text.replace("``", ""), f"https://arxiv.org/abs/{paper.group(1)}" if paper else ""))
    return tuple(found)


# fidelity


FIDELITY = (
    Column("output", text=True),
    Column("SQNR", "dB"),
    Column("cosine", digits=6),
    Column("argmax agrees", "%"),
    Column("samples", digits=0),
)


def sqnr(one: Fidelity) -> Value:
    """The SQNR of an output with its interval."""
    low, high = one.sqnr_interval_db or (None, None)
    return Value(one.sqnr_db, low, high, one.samples)


def fidelity_table(fidelity: Sequence[Fidelity], caption: str) -> Table:
    """One row an output."""
    rows = [(one.output, sqnr(one), one.cosine, one.argmax_agreement, one.samples) for one in fidelity]
    return Table(FIDELITY, tuple(rows), caption)


def fidelity_measures(fidelity: Sequence[Fidelity]) -> list[Measure]:
    """SQNR and agreement of every output, for gates."""
    found = []
    for one in fidelity:
        found.append(Measure(f"sqnr_db/{one.output}", f"SQNR of {one.output}", sqnr(one), "dB", "up"))
        if one.argmax_agreement is not None:
            agreement = Value(one.argmax_agreement, samples=one.rows)
            found.append(Measure(f"agreement/{one.output}", f"argmax of {one.output} agrees", agreement, "%", "up"))
    return found


def is_exact(sqnr_db: float) -> bool:
    """Whether there is no noise at all."""
    return sqnr_db >= EXACT_DB


def skipped(names: Sequence[tuple[str, str]]) -> list[Section]:
    """The samples that could not be read."""
    if not names:
        return []
    table = Table((Column("sample", text=True), Column("reason", text=True)), tuple(names))
    return [Section("Samples that could not be read", tables=(table,), folded=True)]
