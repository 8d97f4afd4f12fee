"""Runs the float model over samples and reduces every tensor at once to its statistics; activations are never kept.

Samples run in parallel, each in a single-threaded onnxruntime run, so results do not depend on the number of threads,
and reducing one sample overlaps with running the next. Where memory is short, groups of values take turns, each in a
pass over all samples. Now and then every thread hands in what it has: then statistics and the numbers of the samples
in them belong together, and a run that was stopped can go on from there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.accumulate import Accumulators
from qconvert.channels import ChannelAccumulator, ChannelStats
from qconvert.errors import CalibrationError
from qconvert.expose import open_exposed
from qconvert.fetch import Fetcher
from qconvert.files import Spill
from qconvert.graph import operators
from qconvert.histogram import Detail, TensorStats
from qconvert.samples import Sample, SampleSet
from qconvert.session import Feeds
from qconvert.visit import Progress, State, Visit
from qconvert.workers import release_memory

CHECKPOINT_SECONDS = 5.0
"""How often threads hand in what they have, where somebody keeps it."""


@dataclass(frozen=True)
class Captured:
    """What the passes over the samples found.

    Attributes:
        stats: Statistics by value name.
        channels: Statistics of each channel, of the values for which they were asked.
        samples: How many samples were run.
        skipped: Samples that could not be read: ``(name, reason)``.
        gathered: The samples that were to be kept, as far as this run read them, by number.
    """

    stats: Mapping[str, TensorStats]
    channels: Mapping[str, ChannelStats]
    samples: int
    skipped: tuple[tuple[str, str], ...]
    gathered: Mapping[int, Sample] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Way:
    """How a run goes about it; only ``detail`` and ``channels`` change what is found.

    Attributes:
        detail: Which values are counted.
        channels: Values of which every channel has statistics of its own, and the axis of the channels.
        provider: Execution provider.
        threads: Samples in flight at once; 0 means one for each CPU.
        sizes: Bytes of values in one sample, as far as they are known.
        strict: Whether a sample that cannot be read is an error.
        progress: Told after every sample, of all passes.
        keep: Given the state now and then, and when the run is interrupted.
        ready: Gives samples that were read already, by number; asked once, when the first is needed.
        gather: Numbers of samples to keep.
        spill: Where to keep their arrays; None keeps them in memory.
    """

    detail: Detail = "exact"
    channels: Mapping[str, int] = field(default_factory=dict)
    provider: str = "cpu"
    threads: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    strict: bool = False
    progress: Progress | None = None
    keep: Callable[[State], None] | None = None
    ready: Callable[[], Mapping[int, Sample]] = dict
    gather: frozenset[int] = frozenset()
    spill: Spill | None = None


def capture(model: ir.Model, state: State, samples: SampleSet, way: Way) -> Captured:
    """Statistics of the values of all groups over all samples.

    Args:
        model: A prepared float graph; left as it is.
        state: Where to begin: ``State(groups)``, or what a run that was stopped had kept.
        samples: What to run.
        way: How.

    Raises:
        CalibrationError: If a NaN or Inf appears where no attention mask explains it.
        DataError: If no sample could be read, or any with ``strict``.
        ModelError: If onnxruntime refuses the model or a sample.
    """
    tally = _Tally(state, way.keep)
    for number in range(state.passes, len(state.groups)):
        if number > state.passes:  # graphs are full of cycles, and the last session's would be kept beside the next
            gc.collect()
            release_memory()
        visit = _pass(model, tally, number, way, samples)
        way = replace(way, ready=partial(dict, visit.gathered))
    names = [name for group in state.groups for name in group]
    stats = {name: tally.stats[name] for name in names}
    channels = {name: tally.channels[name] for name in names if name in way.channels}
    return Captured(stats, channels, visit.done, visit.skipped, visit.gathered)


class _Tally:
    """What all threads have found so far."""

    def __init__(self, state: State, keep: Callable[[State], None] | None) -> None:
        self.groups, self.passes, self.done = state.groups, state.passes, set(state.done)
        self.stats, self.channels = dict(state.stats), dict(state.channels)
        self.whole: Accumulators | None = None
        self.keep, self.kept = keep, time.monotonic()

    def add(self, part: _Part) -> None:
        """A thread's statistics and the samples in them; called by one thread at a time."""
        if self.whole is None:
            self.whole = part.whole
        else:
            self.whole.absorb(part.whole)
        for name, channels in part.channels.items():
            _add(self.channels, name, channels.stats())
        self.done.update(part.done)
        if time.monotonic() - self.kept >= CHECKPOINT_SECONDS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Gives the state away."""
        if self.keep is not None:
            self.keep(State(self.groups, self.passes, frozenset(self.done), self._sums(), dict(self.channels)))
            self.kept = time.monotonic()

    def _sums(self) -> dict[str, TensorStats]:
        """What was found before this pass, and in it."""
        sums = dict(self.stats)
        if self.whole is not None:
            for name, stats in zip(self.groups[self.passes], self.whole.stats(), strict=True):
                _add(sums, name, stats)
        return sums

    def next_pass(self) -> None:
        """All samples of a pass are done."""
        self.stats, self.whole = self._sums(), None
        self.passes, self.done = self.passes + 1, set()


_S = TypeVar("_S", TensorStats, ChannelStats)


def _add(sums: dict[str, _S], name: str, part: _S) -> None:
    """Adds to what there is; nothing and a part are that part, and need no sum of histograms."""
    sums[name] = sums[name] + part if name in sums else part


def _pass(model: ir.Model, tally: _Tally, number: int, way: Way, samples: SampleSet) -> Visit:
    """One pass over the samples."""
    names = tally.groups[number]
    inputs = {value.name for value in model.graph.inputs}
    outputs = [value.name or "" for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
    fetched = list(dict.fromkeys(name for name in (*names, *outputs) if name not in inputs))
    exposed = open_exposed(model, fetched, provider=way.provider, ordered=way.channels, sizes=way.sizes)
    axes = {name: axis for name, axis in way.channels.items() if name in names}
    wanted = _Wanted(names, [name for name in names if name in inputs], _masks(model), way.detail, axes)
    release_memory()
    before = number * len(samples)

    def progress(done: int) -> None:
        if way.progress is not None:
            way.progress(before + done)

    visit = Visit(
        samples,
        way.strict,
        progress,
        skip=frozenset(tally.done),
        gather=way.gather,
        gathered=dict(way.ready()),
        spill=way.spill,
    )

    def work() -> None:
        _observe(visit, Fetcher(exposed), wanted, tally)

    try:
        visit.run(work, way.threads)
    except KeyboardInterrupt:
        tally.checkpoint()
        raise
    tally.next_pass()
    return visit


@dataclass(frozen=True)
class _Wanted:
    """The values of a pass, the inputs among them, which may hold -Inf on purpose, what is counted, channels' axes."""

    names: Sequence[str]
    inputs: Sequence[str]
    masks: frozenset[str]
    detail: Detail
    axes: Mapping[str, int]

    def empty(self) -> _Part:
        whole, channels = Accumulators(len(self.names), self.detail), {name: ChannelAccumulator() for name in self.axes}
        return _Part(whole, channels, [], time.monotonic())


@dataclass
class _Step:
    """Values that come together: those of a pass and their places in it, those only watched, and axes of channels."""

    names: Sequence[str]
    places: npt.NDArray[np.int64]
    watched: Sequence[str]
    axes: Mapping[str, int]
    _came: Feeds | None = None
    _tensors: Sequence[npt.NDArray[Any]] = ()

    @staticmethod
    def of(come: Sequence[str], wanted: _Wanted) -> _Step:
        """What is wanted of what comes; what a run made last is looked at first, as it is still in the cache."""
        place = {name: index for index, name in enumerate(wanted.names)}
        names = [name for name in reversed(come) if name in place]
        watched = [name for name in come if name not in place]
        axes = {name: wanted.axes[name] for name in names if name in wanted.axes}
        return _Step(names, np.array([place[name] for name in names], np.int64), watched, axes)

    def tensors(self, values: Feeds) -> Sequence[npt.NDArray[Any]]:
        """Those of the pass; the same list of the same mapping, so that the accumulators know it again."""
        if values is not self._came:
            self._came, self._tensors = values, [values[name] for name in self.names]
        return self._tensors


@dataclass(frozen=True)
class _Part:
    """What a thread has and did not hand in yet, since when."""

    whole: Accumulators
    channels: dict[str, ChannelAccumulator]
    done: list[int]
    began: float


def _observe(visit: Visit, fetch: Fetcher, wanted: _Wanted, tally: _Tally) -> None:
    """One thread's share of the samples."""
    steps = [_Step.of(names, wanted) for names in (wanted.inputs, *fetch.parts)]
    part = wanted.empty()
    for index, sample in visit:
        feeds = dict(sample.feeds)  # packed ones are made anew whenever they are asked for
        for step, values in zip(steps, chain((feeds,), fetch(feeds)), strict=True):
            strange = part.whole.add_part(step.places, step.tensors(values))
            for row in reversed(strange):  # where it began
                _check_non_finite(step.names[row], np.asarray(values[step.names[row]]), sample.name, wanted.masks)
            for name in step.watched:
                _check_non_finite(name, np.asarray(values[name]), sample.name, frozenset())
            for name, axis in step.axes.items():
                part.channels[name].add(values[name], axis=axis)
        part.whole.end(visit.samples.number(index))
        part.done.append(index)
        if tally.keep is not None and time.monotonic() - part.began >= CHECKPOINT_SECONDS:
            with visit.lock:
                tally.add(part)
            del part  # before the next is made: each holds a histogram of every value
            part = wanted.empty()
    with visit.lock:
        tally.add(part)


def _check_non_finite(name: str, values: npt.NDArray[Any], sample: str, masks: frozenset[str]) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    nan, positive = int(np.isnan(values).sum()), int(np.isposinf(values).sum())
    if name in masks and not nan and not positive:
        return
    kind = f"{nan} NaN" if nan else f"{int((~finite).sum())} Inf"
    raise CalibrationError(
        f"sample '{sample}': value '{name}' holds {kind} of {values.size} values: the float model itself makes them",
        hint="check the preprocessing of the samples, or leave that operator out with --exclude",
    )


_MASK_PATH = frozenset(
    ("Add", "Where", "Mul", "Reshape", "Transpose", "Expand", "Unsqueeze", "Squeeze", "Slice", "Concat", "Tile", "Cast")
)


def _masks(model: ir.Model) -> frozenset[str]:
    """Values that may hold -Inf on purpose: what reaches a Softmax through additions, selections and moves."""
    found: set[str] = set()
    for op in reversed(list(operators(model))):
        reaches = any(value.name in found for value in op.node.outputs) and op.op_type in _MASK_PATH
        if op.op_type in {"Softmax", "LogSoftmax"} or reaches:
            found.update(value.name or "" for value in op.node.inputs if value is not None)
    return frozenset(found)
