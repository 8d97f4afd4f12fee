"""One walk over the samples by several threads: reading, counting, skipping and stopping in one place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconvert.errors import CorruptSampleError, DataError
from qconvert.files import Spill
from qconvert.histogram import TensorStats
from qconvert.samples import Sample, SampleSet
from qconvert.samples.pack import packed
from qconvert.workers import default_workers, run_workers

if TYPE_CHECKING:
    from qconvert.channels import ChannelStats

Progress = Callable[[int], None]
"""Called with the number of samples done or skipped, from any thread, one at a time."""


@dataclass(frozen=True)
class State:
    """How far a run came: all of the statistics of some values, and those of others over some samples.

    Attributes:
        groups: Values of each pass over the samples.
        passes: How many passes are over.
        done: Numbers of the samples that the next pass has used already.
        stats: Statistics by value name.
        channels: Statistics of each channel, of the values for which they are kept.
    """

    groups: tuple[tuple[str, ...], ...]
    passes: int = 0
    done: frozenset[int] = frozenset()
    stats: Mapping[str, TensorStats] = field(default_factory=dict)
    channels: Mapping[str, ChannelStats] = field(default_factory=dict)


@dataclass
class Visit:
    """Hands out the samples, each to one thread.

    Attributes:
        samples: What to walk over.
        strict: Whether a sample that cannot be read is an error.
        progress: Told after every sample.
        skip: Numbers of samples that were used in an earlier walk, and count as done.
        gather: Numbers of samples that are to be kept in ``gathered``.
        gathered: Samples that were read, by number; those that are there already are not read again.
        spill: Where to keep their arrays; None keeps them in memory.
        lock: For what the threads share.
        done: How many samples were used.
    """

    samples: SampleSet
    strict: bool
    progress: Progress | None
    skip: AbstractSet[int] = frozenset()
    gather: AbstractSet[int] = frozenset()
    gathered: dict[int, Sample] = field(default_factory=dict)
    spill: Spill | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _next: int = 0
    _skipped: dict[int, tuple[str, str]] = field(default_factory=dict)

    def run(self, work: Callable[[], None], threads: int) -> None:
        """Runs ``work``, which iterates over this visit, in that many threads; 0 means one for each CPU.

        Raises:
            DataError: If no sample could be read, or any with ``strict``.
        """
        self.done = len(self.skip)
        run_workers(min(threads or default_workers(), max(len(self.samples), 1)), work, self._stop)
        if self.done == 0:
            raise _none_readable(self.samples, self.skipped[0][1])

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Samples that could not be read, in order: ``(name, reason)``."""
        return tuple(self._skipped[index] for index in sorted(self._skipped))

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        """Samples with their numbers; one counts as done when the next is asked for."""
        while (index := self._take()) < len(self.samples):
            if index in self.skip:
                continue
            sample = self._load(index)
            if sample is not None:
                yield index, sample
            with self.lock:
                self.done += sample is not None
                if self.progress is not None:
                    self.progress(self.done + len(self._skipped))

    def _take(self) -> int:
        if self._stop.is_set():
            return len(self.samples)
        with self.lock:
            self._next += 1
            return self._next - 1

    def _load(self, index: int) -> Sample | None:
        try:
            found = self.gathered.get(index)
            sample = found or self.samples.load(index)
        except CorruptSampleError as error:
            if self.strict:
                raise
            with self.lock:
                self._skipped[index] = (error.sample, str(error))
            return None
        if found is None and index in self.gather:
            self.gathered[index] = packed(sample, self.spill)
        return sample


def readable(samples: SampleSet, order: Iterable[int] | None = None) -> Iterator[tuple[int, Sample]]:
    """The samples that can be read with their numbers, in this or their own order, read when they are asked for.

    Raises:
        DataError: If there is none.
    """
    reasons, found = [], False
    for index in range(len(samples)) if order is None else order:
        try:
            sample = samples.load(index)
        except CorruptSampleError as error:
            reasons.append(str(error))
            continue
        found = True
        yield index, sample
    if not found:
        raise _none_readable(samples, reasons[0])


def _none_readable(samples: SampleSet, reason: str) -> DataError:
    return DataError(
        f"none of the {len(samples)} samples can be read; the first: {reason}",
        hint="mend them, or give others with --data",
    )
