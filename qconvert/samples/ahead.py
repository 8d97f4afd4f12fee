"""Reading samples while nothing needs them yet: on a CPU that is idle while a model is read and opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from threading import Event, Thread

from qconvert.files import Spill
from qconvert.samples.pack import packed
from qconvert.samples.types import Sample, SampleSet


class ReadAhead:
    """Samples that a thread of its own reads, one after another, until somebody takes them or it is closed."""

    def __init__(self, samples: SampleSet, numbers: Iterable[int], known: Mapping[int, Sample], spill: Spill) -> None:
        """Begins with the first of these ``numbers`` that is not ``known``; arrays are kept in ``spill``."""
        self._found = dict(known)
        self._stop = Event()
        self._thread = Thread(target=self._read, args=(samples, numbers, spill), name="read-ahead")
        self._thread.start()

    def _read(self, samples: SampleSet, numbers: Iterable[int], spill: Spill) -> None:
        for number in numbers:
            if self._stop.is_set():
                return
            if number in self._found:
                continue
            with suppress(Exception):  # whatever it is, who needs this sample reads it again and meets it then
                self._found[number] = packed(samples.load(number), spill)

    def take(self) -> Mapping[int, Sample]:
        """Those that are known and those that were read, by number; no more are."""
        self.close()
        return self._found

    def close(self) -> None:
        """Stops reading."""
        self._stop.set()
        self._thread.join()
