"""Samples as members of a zip of ``.npy`` arrays, packed ones as they are.

All codes and all tables are a member each, one after another, since members have a cost of their own.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qconvert.files import Spill
from qconvert.samples.pack import Codes, PackedFeeds, parts_of
from qconvert.samples.types import Array

Feeds = Mapping[str, Array]


def describe_samples(samples: Sequence[Feeds]) -> list[list[list[Any]]]:
    """What ``read_samples`` needs to know of them, as JSON values: names, and the shapes of what is held as codes."""
    return [[_described(*item) for item in parts_of(sample).items()] for sample in samples]


def _described(name: str, part: Array | Codes) -> list[Any]:
    return [name, part.axis, part.tables.shape, part.codes.shape] if isinstance(part, Codes) else [name]


def put_samples(archive: zipfile.ZipFile, samples: Sequence[Feeds]) -> None:
    """Writes them."""
    coded = list[Codes]()
    plain: dict[str, Array] = {}
    for i, sample in enumerate(samples):
        for j, part in enumerate(parts_of(sample).values()):
            if isinstance(part, Codes):
                coded.append(part)
            else:
                plain[_name(i, j)] = part
    tables = [part.tables.reshape(-1) for part in coded]
    put_array(archive, "tables", joined(tables, np.float32))
    for name, array in plain.items():
        put_array(archive, name, array, zipfile.ZIP_STORED)  # samples hardly shrink
    _put_codes(archive, [part.codes for part in coded])


def put_array(
    archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any], compression: int = zipfile.ZIP_DEFLATED
) -> None:
    """Writes one member."""
    member = io.BytesIO()
    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    archive.writestr(_member(name), member.getbuffer(), compression, compresslevel=1)  # a view: no copy


def joined(arrays: Sequence[npt.NDArray[Any]], kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """One after another; where there are none, nothing of this kind."""
    return np.concatenate([np.zeros(0, kind), *arrays])


def _put_codes(archive: zipfile.ZipFile, codes: Sequence[npt.NDArray[np.uint8]]) -> None:
    """One after another, uncopied."""
    size = sum(part.size for part in codes)
    info = _member("codes")
    info.file_size = size + 1024  # at most: whether it must be one for large files
    with archive.open(info, "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
        for part in codes:
            member.write(np.ascontiguousarray(part).data)
            Spill.release(part)


def _name(sample: int, part: int) -> str:
    return f"probe_{sample}_{part}"


def _member(name: str) -> zipfile.ZipInfo:
    """Whose date is always the same."""
    return zipfile.ZipInfo(f"{name}.npy")


def read_samples(described: Sequence[Sequence[Sequence[Any]]], archive: Mapping[str, Any]) -> Iterator[PackedFeeds]:
    """The samples that ``describe_samples`` described.

    Raises:
        ValueError: If codes are not of their table, or too few.
    """
    codes, tables = archive["codes"], archive["tables"]
    for i, inputs in enumerate(described):
        parts: dict[str, Array | Codes] = {}
        for j, (name, *coded) in enumerate(inputs):
            if not coded:
                parts[name] = archive[_name(i, j)]
                continue
            axis, table_shape, shape = coded
            own, codes = _split(codes, shape)
            table, tables = _split(tables, table_shape)
            parts[name] = _checked(Codes(own, table, axis))
        yield PackedFeeds(parts)


def _split(flat: npt.NDArray[Any], shape: Sequence[int]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The array of this shape that comes first, and what follows it."""
    size = math.prod(shape)
    return flat[:size].reshape(shape), flat[size:]


def _checked(part: Codes) -> Codes:
    """Codes of a file, which are looked up without a look at the size of the table."""
    if part.codes.dtype != np.uint8 or int(part.codes.max()) >= part.tables.shape[1]:
        message = "codes that are not of their table"
        raise ValueError(message)
    return part
