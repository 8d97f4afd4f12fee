"""What a report says, as a value: numbers with units, sample counts and intervals; figures as data; gates.

Every command that measures makes a ``Report``; room ``report`` writes it as HTML, Markdown, JSON or JUnit XML. No
clock is in it: the same numbers give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

FORMAT = 1
"""The version of the stored form; a stored report is a baseline for later ones."""

Direction = Literal["up", "down", "none"]
"""Where better values lie."""

Sense = Literal["at most", "at least"]
"""On which side of a bound a number has to be."""


@dataclass(frozen=True)
class Value:
    """A number, and what is known of it: ``low <= value <= high`` where there is an interval.

    Attributes:
        value: It.
        low: Lower end of its 95 % interval, or None.
        high: Upper end, or None.
        samples: Over how many samples (of an accuracy: labels); None where it is no statistic.
    """

    value: float
    low: float | None = None
    high: float | None = None
    samples: int | None = None


Cell: TypeAlias = "str | int | float | Value | None"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: What stands in it.
        unit: ``dB``, ``points``, ``%``, ``ms``, ``B`` (bytes), ``x`` (times) or "".
        digits: Decimals of its numbers; those of bytes follow from their size.
        text: Whether it holds words, and not numbers.
    """

    title: str
    unit: str = ""
    digits: int = 2
    text: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of typed cells, one for each column; None is an empty cell.

    Attributes:
        columns: The columns.
        rows: The rows.
        caption: What they are, with the number of samples behind them.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: What it is of.
        value: Its length, with interval.
        note: A few words behind the name.
        marked: Whether it stands out.
    """

    name: str
    value: Value
    note: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Bars:
    """Ranked bars, longest first, from 0 on or from the least of them where that is negative."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    kind: Literal["bars"] = "bars"


@dataclass(frozen=True)
class Series:
    """A line of a trend: one number for each of its names, None where there is none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Trend:
    """Numbers along the network.

    Attributes:
        title: What they are.
        unit: Of the numbers.
        names: The places, in the order of the network.
        series: The lines.
        marked: Numbers of the places that stand out, the first one first.
    """

    title: str
    unit: str
    names: tuple[str, ...]
    series: tuple[Series, ...]
    marked: tuple[int, ...] = ()
    kind: Literal["trend"] = "trend"


@dataclass(frozen=True)
class Mark:
    """A place on the axis of a histogram: where a range ends."""

    name: str
    at: float


@dataclass(frozen=True)
class Distribution:
    """A histogram: ``counts[i]`` values in ``[edges[i], edges[i + 1])``, exact zeros left out, and thresholds."""

    title: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    marks: tuple[Mark, ...] = ()
    note: str = ""
    kind: Literal["distribution"] = "distribution"


@dataclass(frozen=True)
class Point:
    """One candidate: ``on_front`` where no other is better in both directions, ``chosen`` where it was taken."""

    name: str
    x: float
    y: float
    on_front: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class Front:
    """Candidates between two aims, and those that nothing beats in both (Pareto)."""

    title: str
    x: Column
    y: Column
    points: tuple[Point, ...]
    kind: Literal["front"] = "front"


Figure: TypeAlias = "Bars | Trend | Distribution | Front"


@dataclass(frozen=True)
class Section:
    """Text, tables and figures under a title; ``folded`` where few readers need it."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Measure:
    """A headline number, which gates and later reports find by its key.

    Attributes:
        key: Its name for machines: ``top1_drop``, ``sqnr_db/logits``.
        title: Its name for people.
        value: The number.
        unit: Its unit.
        better: Where better values lie; ``none`` where that is not for a gate to say.
    """

    key: str
    title: str
    value: Value
    unit: str
    better: Direction


@dataclass(frozen=True)
class Gate:
    """A bound, and whether it was met.

    Attributes:
        name: The option that set it: ``max-drop``, ``min-sqnr``, ``baseline``.
        title: What was measured.
        sense: On which side of the bound the number has to be.
        bound: The bound, itself allowed.
        measured: The number.
        unit: Of both.
        passed: Whether it was met.
        samples: Over how many samples.
        lines: Where a missed bound comes from, one line each.
    """

    name: str
    title: str
    sense: Sense
    bound: float
    measured: float
    unit: str
    passed: bool
    samples: int | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A model file: its part here (``reference``, ``candidate``), path as given, SHA-256 with weight files, bytes."""

    role: str
    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Data:
    """The samples.

    Attributes:
        path: Name of the folder or file; "" where inputs were random.
        kind: ``images``, ``arrays``, ``test-data`` or ``random``.
        samples: How many were used.
        seed: Which were chosen.
        fingerprint: SHA-256 of names and sizes of the chosen samples; "" where there are none.
        preprocess: How images became inputs, as one line; "" where they were fed as they are.
    """

    path: str
    kind: str
    samples: int
    seed: int
    fingerprint: str = ""
    preprocess: str = ""


@dataclass(frozen=True)
class Citation:
    """A method that was used, and its source."""

    method: str
    text: str
    url: str = ""


@dataclass(frozen=True)
class Report:
    """Everything a reader or a pipeline wants to know of one run.

    Attributes:
        title: What was done.
        command: The command that made it: ``evaluate``.
        models: What was measured.
        data: On what; None where nothing was run.
        measures: The headline numbers.
        sections: The rest.
        gates: The bounds that were set.
        policy: The policy as YAML, or "".
        citations: The methods used.
        notes: What the reader should know, one line each.
        versions: ``(package, version)``.
        format: Version of the stored form.
    """

    title: str
    command: str
    models: tuple[Model, ...]
    data: Data | None
    measures: tuple[Measure, ...]
    sections: tuple[Section, ...]
    gates: tuple[Gate, ...] = ()
    policy: str = ""
    citations: tuple[Citation, ...] = ()
    notes: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = field(default=())
    format: int = FORMAT

    @property
    def missed(self) -> tuple[Gate, ...]:
        """The bounds that were not met."""
        return tuple(gate for gate in self.gates if not gate.passed)

    def measure(self, key: str) -> Measure | None:
        """The headline number with this key, if there is one."""
        return next((one for one in self.measures if one.key == key), None)

    def with_gates(self, gates: tuple[Gate, ...]) -> Report:
        """The same report with more gates."""
        return replace(self, gates=(*self.gates, *gates))

    def with_section(self, *sections: Section) -> Report:
        """The same report with more sections."""
        return replace(self, sections=(*self.sections, *sections))
