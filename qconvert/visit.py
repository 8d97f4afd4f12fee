"""One walk over the samples by several threads: reading, counting, skipping and stopping in one place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from qconvert.errors import CorruptSampleError, DataError
from qconvert.samples import Sample, SampleSet
from qconvert.workers import default_workers, run_workers

Progress = Callable[[int], None]
"""Called with the number of samples done or skipped, from any thread, one at a time."""


@dataclass
class Visit:
    """Hands out the samples, each to one thread.

    Attributes:
        samples: What to walk over.
        strict: Whether a sample that cannot be read is an error.
        progress: Told after every sample.
        lock: For what the threads share.
        done: How many samples were used.
    """

    samples: SampleSet
    strict: bool
    progress: Progress | None
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
            return self.samples.load(index)
        except CorruptSampleError as error:
            if self.strict:
                raise
            with self.lock:
                self._skipped[index] = (error.sample, str(error))
            return None


def readable(samples: SampleSet) -> Iterator[Sample]:
    """The samples that can be read, in order, read when they are asked for.

    Raises:
        DataError: If there is none.
    """
    reasons, found = [], False
    for index in range(len(samples)):
        try:
            sample = samples.load(index)
        except CorruptSampleError as error:
            reasons.append(str(error))
            continue
        found = True
        yield sample
    if not found:
        raise _none_readable(samples, reasons[0])


def _none_readable(samples: SampleSet, reason: str) -> DataError:
    return DataError(
        f"none of the {len(samples)} samples can be read; the first: {reason}",
        hint="mend them, or give others with --data",
    )
