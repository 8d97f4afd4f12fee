"""Samples in a quarter of their bytes, exactly: arrays of few different numbers as codes into tables of these.

An image of 8 bits has at most 256 numbers a channel, whatever scale, mean and standard deviation made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qconvert.files import Spill
from qconvert.samples.types import Array, Sample

CHANNELS = 4
"""An axis with more sizes than this is not that of an image's channels."""

LEAST = 1024
"""Arrays of fewer elements stay as they are."""


@dataclass(frozen=True, eq=False)
class Codes:
    """A float32 array as codes.

    Attributes:
        codes: ``uint8`` in the order of the array with ``axis`` moved to the front.
        tables: The numbers that codes stand for, ``[C, n]``: a row for each index along ``axis``, or one for all.
        axis: Of the channels; None where all share a table.
    """

    codes: npt.NDArray[np.uint8]
    tables: npt.NDArray[np.float32]
    axis: int | None

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return self.codes.nbytes + self.tables.nbytes

    def array(self) -> Array:
        """The array, to the bit."""
        from qconvert.kernels import decode  # noqa: PLC0415 - see _coded

        values = np.empty(self.codes.shape, np.float32)
        rows = len(self.tables), -1
        decode(np.asarray(self.codes).reshape(rows), self.tables, values.reshape(rows))
        Spill.release(self.codes)
        return values if self.axis is None else np.ascontiguousarray(np.moveaxis(values, 0, self.axis))


class PackedFeeds(Mapping[str, Array]):
    """Arrays by name, some of them as codes; made anew whenever they are asked for."""

    def __init__(self, parts: Mapping[str, Array | Codes]) -> None:
        """Holds ``parts``."""
        self.parts = parts

    def __getitem__(self, name: str) -> Array:
        part = self.parts[name]
        return part.array() if isinstance(part, Codes) else part

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def pack(feeds: Mapping[str, Array]) -> PackedFeeds:
    """The same arrays in fewer bytes where that is exact."""
    parts = dict(parts_of(feeds))
    for name, part in parts.items():
        parts[name] = part if isinstance(part, Codes) else _coded(part) or part
    return PackedFeeds(parts)


def packed(sample: Sample, spill: Spill | None = None) -> Sample:
    """A sample with its arrays so, and where given in a temporary file."""
    feeds = pack(sample.feeds)
    return replace(sample, feeds=feeds if spill is None else PackedFeeds(_spilled(feeds.parts, spill)))


def _spilled(parts: Mapping[str, Array | Codes], spill: Spill) -> Mapping[str, Array | Codes]:
    return {
        name: replace(part, codes=spill.put(part.codes)) if isinstance(part, Codes) else spill.put(part)
        for name, part in parts.items()
    }


def parts_of(feeds: Mapping[str, Array]) -> Mapping[str, Array | Codes]:
    """What is held of each array."""
    return feeds.parts if isinstance(feeds, PackedFeeds) else feeds


def held_bytes(feeds: Mapping[str, Array]) -> int:
    """What they take as they are held."""
    return sum(part.nbytes for part in parts_of(feeds).values())


def _coded(array: Array) -> Codes | None:
    """An array as codes, or None where it has too many different numbers."""
    if array.dtype != np.float32 or array.size < LEAST:
        return None
    axis = _channel_axis(array.shape)
    moved = np.ascontiguousarray(array if axis is None else np.moveaxis(array, axis, 0))
    rows = moved.reshape(1 if axis is None else len(moved), -1)
    codes, tables = np.empty(rows.shape, np.uint8), np.zeros((len(rows), 256), np.uint32)
    from qconvert.kernels import encode  # noqa: PLC0415 - numba, which those who only read samples do without

    used = [encode(row, code, table) for row, code, table in zip(rows.view(np.uint32), codes, tables, strict=True)]
    if min(used) < 0:
        return None
    return Codes(codes.reshape(moved.shape), tables.view(np.float32)[:, : max(used)].copy(), axis)


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """Of what may be images, channels first or last."""
    places = (1, len(shape) - 1) if len(shape) == 4 else ()
    return next((axis for axis in places if 1 < shape[axis] <= CHANNELS), None)
