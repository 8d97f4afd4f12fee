"""Runs many models that differ in little: shared parts once, and of each only what is behind its first difference.

Variants are taken in groups, in the order of the graph. A group's base runs over the samples and hands out the values
from which the group's variants part; then each variant's tail is opened once and run from there. Samples and variants
run side by side, each in a single-threaded run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.graph import operators
from qconvert.memory import value_bytes
from qconvert.plan import Plan
from qconvert.rewrite.qdq import to_qdq
from qconvert.samples import Sample
from qconvert.scores import without_padding
from qconvert.sensing.cut import Base, Origin, Tail, base_of, prune, tail_of
from qconvert.sensing.measures import COLUMNS, Custom, Floats, measure
from qconvert.session import Feeds, open_session, run
from qconvert.workers import release_memory, run_workers

GROUP = 64
"""Variants whose graphs are held at once, at most."""

Values = dict[str, npt.NDArray[Any]]
Tables = MutableMapping[str, Floats]
"""By variant ``[samples, outputs + 1, COLUMNS]``: the first samples of the lab's order that it was run on."""


@dataclass(frozen=True)
class Variant:
    """One of many plans for the same model; None leaves it float."""

    name: str
    plan: Plan | None


@dataclass(frozen=True)
class Lab:
    """Everything that experiments share.

    Attributes:
        model: The prepared graph, with the opset that the plans need; left as it is.
        origin: Its tensors.
        outputs: Names of its outputs.
        load: The sample at a position of the order in which all variants see them.
        samples: How many there are.
        batch: Items of a sample, where the model fixes that.
        workers: Runs side by side.
        room: Bytes that handed-out values may take.
        custom: The user's metric.
        references: The float model's outputs by position, as far as they were needed.
    """

    model: ir.Model
    origin: Origin
    outputs: tuple[str, ...]
    load: Callable[[int], Sample]
    samples: int
    batch: int
    workers: int
    room: int
    custom: Custom | None = None
    references: dict[int, list[Any]] = field(default_factory=dict)

    def written(self, plan: Plan | None) -> ir.Model:
        """A copy of the model, quantized by a plan; float without one."""
        copy = self.model.clone()
        return copy if plan is None else to_qdq(copy, plan)

    def base(self, plan: Plan | None) -> Base:
        """The same as the base of others."""
        return base_of(self.written(plan), self.origin)


@dataclass(frozen=True)
class Watch:
    """Who is told of runs, and when there is no more time.

    Attributes:
        ran: Told how many runs of a sample ended, one call at a time.
        deadline: On the clock of ``time.monotonic``; None: there is none.
    """

    ran: Callable[[int], None] = lambda _: None
    deadline: float | None = None

    @property
    def over(self) -> bool:
        """Whether the time is spent."""
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True)
class _Group:
    """Variants that run from the same values over the same samples."""

    tails: tuple[tuple[str, Tail], ...]
    names: tuple[str, ...]
    start: int
    chunk: int


def extend(
    lab: Lab, base: Base, variants: Sequence[Variant], tables: Tables, upto: int, *, watch: Watch | None = None
) -> bool:
    """Runs variants until each has been run on the first ``upto`` samples.

    Args:
        lab: What they share.
        base: Where they start from.
        variants: They, in the order of the graph.
        tables: What was found so far; rows are added.
        upto: How many samples.
        watch: Told of progress; where its time is over, the variants that are left keep the rows they have.

    Returns:
        Whether all were run.

    Raises:
        ModelError: If onnxruntime refuses a variant or a sample.
    """
    watch = watch or Watch()
    refer(lab, upto)
    empty = np.zeros((0, len(lab.outputs) + 1, COLUMNS))
    pending = [one for one in variants if len(tables.setdefault(one.name, empty)) < upto]
    sizes = value_sizes(base, lab.load(0).feeds) if pending else {}
    for group in _ahead(_groups(lab, base, pending, tables=tables, upto=upto, sizes=sizes)):
        for first in range(group.start, upto, group.chunk):
            positions = range(first, min(first + group.chunk, upto))
            if watch.over:
                return False
            handed = _handed_out(lab, base, group.names, positions)
            _run_tails(lab, group, handed, positions=positions, tables=tables, watch=watch)
            del handed  # before the next are computed
            release_memory()
    return all(len(tables[one.name]) >= upto for one in variants)


def _ahead(groups: Iterator[_Group]) -> Iterator[_Group]:
    """The same groups, each built while the one before it runs."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, groups, None)
        while (group := following.result()) is not None:
            following = pool.submit(next, groups, None)
            yield group


def refer(lab: Lab, upto: int) -> None:
    """Makes sure that the float model was run on the first samples."""
    missing = [position for position in range(upto) if position not in lab.references]
    if missing:
        session = open_session(lab.model, threads=1)

        def one(position: int) -> None:
            lab.references[position] = run(session, lab.load(position).feeds, lab.outputs)

        each(missing, one, lab.workers)


def _groups(
    lab: Lab,
    base: Base,
    variants: Sequence[Variant],
    *,
    tables: Tables,
    upto: int,
    sizes: Mapping[str, int],
) -> Iterator[_Group]:
    """As many variants at once as there is room for what they start from."""
    held: list[tuple[str, Tail]] = []
    names: dict[str, None] = {}
    start = 0

    def total(chosen: Iterable[str]) -> int:
        return sum(sizes[name] for name in chosen)

    def group() -> _Group:
        return _Group(tuple(held), tuple(names), start, max(1, lab.room // max(total(names), 1)))

    for variant in variants:
        tail = tail_of(base, lab.written(variant.plan), lab.outputs)
        done, grown = len(tables[variant.name]), {**names, **dict.fromkeys(tail.wanted)}
        full = total(grown) * (upto - done) > lab.room
        if held and (full or done != start or len(held) >= GROUP):
            yield group()
            held, grown = [], dict.fromkeys(tail.wanted)
        held.append((variant.name, tail))
        names, start = grown, done
    if held:
        yield group()


def value_sizes(base: Base, feeds: Feeds) -> dict[str, int]:
    """Bytes of each of the base's values in one sample."""
    names = tuple(base.values.values())
    return {name: size * base.widths[name] // 4 for name, size in value_bytes(base.model, names, feeds).items()}


def _handed_out(lab: Lab, base: Base, names: Sequence[str], positions: Sequence[int]) -> dict[int, Values]:
    """The base's values of each sample; it is run no further than they need."""
    session, made = opened(base.model, names)

    def one(position: int) -> None:
        feeds = lab.load(position).feeds
        found = dict(zip(made, run(session, feeds, made), strict=True)) if session is not None else {}
        handed[position] = {name: found[name] if name in found else feeds[name] for name in names}

    handed: dict[int, Values] = {}
    each(positions, one, lab.workers)
    return handed


def opened(model: ir.Model, names: Sequence[str]) -> tuple[Any, list[str]]:
    """A session that gives the named values and computes no others, and which of them are no inputs; left as it is."""
    copy = model.clone()
    values = {value.name: value for op in operators(copy) if not op.subgraph for value in op.node.outputs}
    made = [name for name in names if name in values]
    if not made:
        return None, []
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in made)
    prune(copy.graph)
    return open_session(copy, threads=1), made


def _run_tails(
    lab: Lab, group: _Group, handed: Mapping[int, Values], *, positions: Sequence[int], tables: Tables, watch: Watch
) -> None:
    slices = max(1, -(-lab.workers // len(group.tails)))
    size = -(-len(positions) // slices)
    tasks = [
        (name, tail, positions[at : at + size]) for name, tail in group.tails for at in range(0, len(positions), size)
    ]
    rows: dict[tuple[str, int], Floats] = {}
    lock = Lock()

    def one(task: tuple[str, Tail, Sequence[int]]) -> None:
        name, tail, part = task
        if watch.over:
            return
        session = open_session(tail.model, threads=1) if tail.model is not None else None
        for position in part:
            rows[name, position] = compare(lab, position, run_tail(session, tail, handed[position]))
        with lock:
            watch.ran(len(part))

    each(tasks, one, lab.workers)
    for name, _ in group.tails:
        found = [rows[name, position] for position in positions if (name, position) in rows]
        if len(found) == len(positions) and len(tables[name]) == positions[0]:
            tables[name] = np.concatenate([tables[name], np.stack(found)])


def run_tail(session: Any, tail: Tail, handed: Values) -> list[Any]:  # noqa: ANN401 - onnxruntime's, or None
    """What was asked of a variant, from the base's values."""
    made = [name for name in tail.outputs if name is not None]
    feeds = {name: handed[source] for name, source in tail.feeds.items()}
    found = iter(run(session, feeds, made) if made else ())
    return [handed[name] if name is not None else next(found) for name in tail.shared]


def compare(lab: Lab, position: int, outputs: Sequence[Any]) -> Floats:
    """What a sample's outputs add to the metrics."""
    sample = lab.load(position)
    labels = None if sample.label is None else np.asarray(sample.label).reshape(-1)
    before, after = (
        [without_padding(output, sample.count, lab.batch) for output in side]
        for side in (lab.references[position], outputs)
    )
    return measure(before, after, labels, lab.custom)


def each(tasks: Sequence[Any], work: Callable[[Any], None], workers: int) -> None:
    """Does every task, some side by side, in their order."""
    todo = deque(tasks)
    stop = Event()

    def share() -> None:
        while not stop.is_set():
            try:
                task = todo.popleft()
            except IndexError:
                return
            work(task)

    run_workers(min(workers, max(len(tasks), 1)), share, stop)


def whole(plan: Plan) -> Variant:
    """Everything quantized."""
    return Variant("", plan)
