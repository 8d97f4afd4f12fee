"""What every reader of samples takes and gives: inputs, samples, and a lazy set of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Label: TypeAlias = "int | Array | None"
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


@dataclass(frozen=True)
class InputSpec:
    """One input of the model.

    Attributes:
        name: Its name.
        dtype: Its element type.
        shape: Sizes of fixed axes; a name or None where an axis is open.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """What one run of the model is fed.

    Attributes:
        name: Where it comes from, relative to the folder of the set: ``cat/1.jpg``, ``calib.npz[7]``, ``a.jpg +3``.
        feeds: One contiguous array an input, of the input's type, batch axis included.
        label: The class, or an array of labels; in a batch the labels of its ``count`` real rows. None: there is none.
        count: How many items the batch holds; rows after them repeat the last, where the model fixes a batch size.
    """

    name: str
    feeds: Mapping[str, Array]
    label: Label
    count: int = 1


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader found: items in order, of which ``batch`` make one sample.

    Attributes:
        kind: ``images``, ``arrays`` or ``test-data``.
        names: One name an item.
        sizes: Bytes of the file behind each item.
        batch: Items stacked in one feed; above 1 only where the model fixes its batch size.
        read: Item numbers, ``batch`` of them, to feeds.
        label: Item number to label; None for a set without labels.
        notes: What was inferred, one line each.
        preprocess: The preprocessing as JSON, where there is one.
    """

    kind: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    batch: int
    read: Callable[[Sequence[int]], dict[str, Array]]
    label: Callable[[int], Label] | None = None
    notes: tuple[str, ...] = ()
    preprocess: Json = None


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Samples that are read when they are asked for; nothing is kept. Safe to share between threads, and to pickle.

    ``batches[i]`` are the items of sample ``i``: ``source.batch`` of them, but the last sample may have fewer.

    Attributes:
        source: The reader.
        batches: The items of each sample.
        description: What the set is, as JSON for files and reports.
        notes: What was inferred or is odd, one line each.
    """

    source: Source
    batches: tuple[tuple[int, ...], ...]
    description: dict[str, Json]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of every sample."""
        return tuple(self._name(items) for items in self.batches)

    @property
    def labelled(self) -> bool:
        """Whether samples carry labels."""
        return self.source.label is not None

    def number(self, i: int) -> int:
        """The number of sample ``i`` among all that the reader found, which no choice and no order changes."""
        return self.batches[i][0]

    def load(self, i: int) -> Sample:
        """Reads sample ``i``.

        Raises:
            CorruptSampleError: Its file is broken; the other samples may be fine.
            DataError: Its values do not fit the model.
        """
        items = self.batches[i]
        padded = items + items[-1:] * (self.source.batch - len(items))
        return Sample(self._name(items), self.source.read(padded), self._label(items), len(items))

    def _name(self, items: tuple[int, ...]) -> str:
        first = self.source.names[items[0]]
        return first if len(items) == 1 else f"{first} +{len(items) - 1}"

    def _label(self, items: tuple[int, ...]) -> Label:
        if self.source.label is None:
            return None
        if self.source.batch == 1:
            return self.source.label(items[0])
        return np.stack([np.asarray(self.source.label(i)) for i in items])
