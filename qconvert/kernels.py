"""The loops over every activation value, compiled; judged in the tests by ``Histogram.of``.

Measured on one core: 0.14 ns a value for the extremes and 0.6 to 0.9 ns for the counts, against 13 ns for
``numpy.histogram``. The GIL is released, so that samples are reduced while others run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numba
import numpy as np

from qconvert.histogram import BINS

if TYPE_CHECKING:
    import numpy.typing as npt

TABLES = 4
"""Counts go to this many tables in turn, so that neighbours with equal values do not wait for each other's store."""

_F = TypeVar("_F", bound=Callable[..., Any])
_SIGN_SHIFT = BINS.bit_length() - 1
_CHUNK = 2048
_VALUES = numba.types.Array(numba.float32, 1, "C", readonly=True)
"""A signature without it refuses arrays that may not be written to; with it, both kinds are taken."""
_SIGNATURE = numba.void(_VALUES, numba.float32, numba.uint32[:, ::1])


def _compiled(signature: object) -> Callable[[_F], _F]:
    """Compiles now, and keeps the code for the next start where a folder can be written to."""

    def compiler(function: _F) -> _F:
        try:
            compiled: _F = numba.njit(signature, nogil=True, cache=True)(function)
        except (RuntimeError, OSError):  # numba finds no folder for its cache, or the disk is full
            compiled = numba.njit(signature, nogil=True)(function)
        return compiled

    return compiler


@_compiled(_SIGNATURE)
def fill(values: npt.NDArray[np.float32], scale: np.float32, tables: npt.NDArray[np.uint32]) -> None:
    """Adds finite values to ``tables`` ``[TABLES, 2 * BINS]``: bin ``floor(|v| * scale)``, negatives ``BINS`` further.

    Exact where ``scale`` is a power of two and every ``|v| * scale`` is below ``BINS``.
    """
    index = np.empty(_CHUNK, np.int32)
    zero = np.float32(0)
    whole = values.size - values.size % _CHUNK
    for start in range(0, whole, _CHUNK):
        for i in range(_CHUNK):
            v = values[start + i]
            index[i] = np.int32(abs(v) * scale) | (np.int32(v < zero) << _SIGN_SHIFT)
        for i in range(0, _CHUNK, TABLES):
            tables[0, index[i]] += np.uint32(1)
            tables[1, index[i + 1]] += np.uint32(1)
            tables[2, index[i + 2]] += np.uint32(1)
            tables[3, index[i + 3]] += np.uint32(1)
    for i in range(whole, values.size):
        v = values[i]
        tables[0, np.int32(abs(v) * scale) | (np.int32(v < zero) << _SIGN_SHIFT)] += np.uint32(1)


@_compiled(numba.types.UniTuple(numba.int64, 3)(numba.types.Array(numba.int32, 1, "C", readonly=True)))
def extremes(bits: npt.NDArray[np.int32]) -> tuple[int, int, int]:
    """Least and greatest value of float32 ``bits``, as ordered integers (see ``real``), and how many are 0; one pass.

    NaN and Inf lie outside of the finite values in this order, so they show in the result.
    """
    low, high, zeros = np.int32(0x7FFFFFFF), np.int32(-0x80000000), 0
    for i in range(bits.size):
        b = bits[i]
        ordered = b ^ ((b >> np.int32(31)) & np.int32(0x7FFFFFFF))
        low, high = min(low, ordered), max(high, ordered)
        zeros += int((b & np.int32(0x7FFFFFFF)) == 0)
    return int(low), int(high), zeros


def real(ordered: int) -> float:
    """The float32 of an ordered integer, -0.0 as 0.0."""
    bits = np.int32(ordered ^ ((ordered >> 31) & 0x7FFFFFFF))
    return float(bits.view(np.float32)) + 0.0


@_compiled(numba.void(numba.uint32[:, ::1], numba.int64[::1]))
def drain(tables: npt.NDArray[np.uint32], counts: npt.NDArray[np.int64]) -> None:
    """Moves what ``fill`` counted from ``tables`` into ``counts`` ``[2 * BINS]``."""
    for i in range(counts.size):
        counts[i] += np.int64(tables[0, i]) + np.int64(tables[1, i]) + np.int64(tables[2, i]) + np.int64(tables[3, i])
    tables[:] = 0
