"""Statistics of every channel of a value: extremes, mean and second moment, with an exact ``+``.

Sums and sums of squares are integers in units of ``2**-149`` and ``2**-298``, of which every float32 and its square are
multiples; nothing is rounded before ``mean`` and its kin. So any order and any split of the samples give the same bits.
For what weighs channels against each other: cross-layer equalization and bias correction (Nagel et
al., arXiv 1906.04721), SmoothQuant (Xiao et al., arXiv 2211.10438).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from qconvert import kernels
from qconvert.errors import CalibrationError
from qconvert.histogram import MIN_EXPONENT
from qconvert.kernels import CHANNEL_SQUARE_DIGITS, CHANNEL_SUM_DIGITS

MAX_CHANNELS = 16384
"""Statistics take 140 bytes a channel; axes longer than this are those of vocabularies, not of channels."""

_UNIT = -MIN_EXPONENT
_MANTISSA = 55
"""Two bits more than a float64 has, the last of them set where anything was cut off, decide how a root is rounded."""

Reals = npt.NDArray[np.float64]
Digits = npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class ChannelStats:
    """What the ``C`` channels of a value looked like; without channels, the neutral element of ``+``.

    A number of ``L`` digits is ``sum(digits[k] * 2**(32*k))`` modulo ``2**(32*L)``, negative from half of that on: each
    integer has one form, so equal statistics are equal arrays. Values that are not finite do not enter.

    Attributes:
        low: The least finite value of each channel, float32 ``[C]``; ``+inf`` where nothing was seen.
        high: The greatest one, float32 ``[C]``; ``-inf`` where nothing was seen.
        counts: How many finite values were seen, int64 ``[C]``.
        sums: Their sum in units of ``2**-149``, uint32 ``[C, CHANNEL_SUM_DIGITS]``, lowest digit first.
        squares: The sum of their squares in units of ``2**-298``, uint32 ``[C, CHANNEL_SQUARE_DIGITS]``.
    """

    low: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    high: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sums: Digits = field(default_factory=lambda: np.zeros((0, CHANNEL_SUM_DIGITS), np.uint32))
    squares: Digits = field(default_factory=lambda: np.zeros((0, CHANNEL_SQUARE_DIGITS), np.uint32))

    @classmethod
    def unseen(cls, channels: int) -> ChannelStats:
        """The statistics of this many channels before the first value.

        Raises:
            CalibrationError: If there are more than ``MAX_CHANNELS``.
        """
        if channels > MAX_CHANNELS:
            raise CalibrationError(
                f"statistics of {channels} channels: at most {MAX_CHANNELS} are kept", hint="leave the value out"
            )
        return cls(
            np.full(channels, np.inf, np.float32),
            np.full(channels, -np.inf, np.float32),
            np.zeros(channels, np.int64),
            np.zeros((channels, CHANNEL_SUM_DIGITS), np.uint32),
            np.zeros((channels, CHANNEL_SQUARE_DIGITS), np.uint32),
        )

    @classmethod
    def of(cls, values: npt.NDArray[Any], *, axis: int) -> ChannelStats:
        """The statistics of a tensor whose channels lie along ``axis``; see ``ChannelAccumulator.add``."""
        accumulator = ChannelAccumulator()
        accumulator.add(values, axis=axis)
        return accumulator.stats()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> ChannelStats:
        """The inverse of ``to_arrays``.

        Raises:
            CalibrationError: If an array is missing or has another type or shape than ``to_arrays`` gives it.
        """
        made = cls(*(np.asarray(arrays.get(name)) for name in FIELDS))
        expected = cls.unseen(made.counts.size)
        for name, array in made.to_arrays().items():
            model = getattr(expected, name)
            if array.dtype != model.dtype or array.shape != model.shape:
                found = f"{array.dtype} {list(array.shape)}"
                message = f"channel statistics: '{name}': expected {model.dtype} {list(model.shape)}, got {found}"
                raise CalibrationError(message, hint="the file may be damaged; calibrate again")
        return made

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The fields by name, all plain numpy arrays with the channels along axis 0."""
        return {name: getattr(self, name) for name in FIELDS}

    def mean(self) -> Reals:
        """The mean of each channel, float64 ``[C]``, correctly rounded; NaN where nothing was seen."""
        pairs = zip(_integers(self.sums), self.counts.tolist(), strict=True)
        return np.array([total / (n << _UNIT) if n else math.nan for total, n in pairs], np.float64)

    def second_moment(self) -> Reals:
        """The mean square of each channel, float64 ``[C]``, correctly rounded; NaN where nothing was seen."""
        pairs = zip(_integers(self.squares), self.counts.tolist(), strict=True)
        return np.array([total / (n << 2 * _UNIT) if n else math.nan for total, n in pairs], np.float64)

    def std(self) -> Reals:
        """The standard deviation of each channel around its mean over all values seen, float64 ``[C]``.

        ``sqrt(E[x**2] - E[x]**2)`` in integers, without cancellation; correctly rounded; NaN where nothing was seen.
        """
        rows = zip(_integers(self.sums), _integers(self.squares), self.counts.tolist(), strict=True)
        roots = (_root(n * square - total * total, (n << _UNIT) ** 2) if n else math.nan for total, square, n in rows)
        return np.fromiter(roots, np.float64, self.counts.size)

    def __add__(self, other: ChannelStats) -> ChannelStats:
        if not (self.counts.size and other.counts.size):
            return other if other.counts.size else self
        _check_equal(self.counts.size, other.counts.size)
        return ChannelStats(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.counts + other.counts,
            _plus(self.sums, other.sums),
            _plus(self.squares, other.squares),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelStats):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]


FIELDS = tuple(one.name for one in fields(ChannelStats))
"""The names of the arrays that it is."""


@dataclass
class ChannelAccumulator:
    """Statistics of the channels of one value under construction; one for each thread, merged at the end."""

    state: ChannelStats = field(default_factory=ChannelStats)

    def add(self, values: npt.NDArray[Any], *, axis: int) -> None:
        """Adds a tensor; what is not finite is left out.

        Args:
            values: The tensor, float, of rank 1 or more.
            axis: Where its channels lie; negative from the end.

        Raises:
            CalibrationError: If there are more than ``MAX_CHANNELS``, or not as many as before.
        """
        x = np.asarray(values, np.float32)
        channels = x.shape[axis]
        if not self.state.counts.size:
            self.state = ChannelStats.unseen(channels)
        _check_equal(self.state.counts.size, channels)
        if not x.size:
            return
        rows = _rows(x, axis)
        low, high = _extremes(rows)
        counts = np.full(channels, rows.shape[1])
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            finite = np.isfinite(rows)
            low = np.where(finite, rows, np.float32(np.inf)).min(1) + np.float32(0)
            high = np.where(finite, rows, -np.float32(np.inf)).max(1) + np.float32(0)
            rows, counts = np.where(finite, rows, np.float32(0)), finite.sum(1)
        state = self.state
        np.minimum(state.low, low, out=state.low)
        np.maximum(state.high, high, out=state.high)
        np.add(state.counts, counts, out=state.counts)
        kernels.channel_sums(rows.view(np.int32), state.sums, state.squares)

    def stats(self) -> ChannelStats:
        """The statistics so far."""
        return ChannelStats(**{name: array.copy() for name, array in self.state.to_arrays().items()})


def _rows(x: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """The values of each channel in a row, ``[C, n]``."""
    if x.ndim > 1 and axis % x.ndim == x.ndim - 1:
        return kernels.transposed(np.ascontiguousarray(x).reshape(-1, x.shape[-1]))
    return np.ascontiguousarray(np.moveaxis(x, axis, 0)).reshape(x.shape[axis], -1)


def _extremes(rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Least and greatest value of each row, not finite where the data is not; -0.0 as 0.0."""
    low, high = kernels.channel_extremes(rows.view(np.int32))
    return kernels.reals(low), kernels.reals(high)


def _check_equal(before: int, now: int) -> None:
    if before != now:
        message = f"a value had {before} channels and now has {now}: statistics by channel need a fixed number"
        raise CalibrationError(message, hint="leave the value out")


def _plus(a: Digits, b: Digits) -> Digits:
    """The sums of two columns of numbers."""
    total = np.empty_like(a)
    carry = np.zeros(a.shape[0], np.uint64)
    for k in range(a.shape[1]):
        carry += a[:, k].astype(np.uint64) + b[:, k]
        total[:, k] = carry & np.uint64(0xFFFFFFFF)
        carry >>= np.uint64(32)
    return total


def _integers(digits: Digits) -> list[int]:
    """The numbers as Python's."""
    data, width = digits.astype("<u4").tobytes(), 4 * digits.shape[1]
    return [int.from_bytes(data[k : k + width], "little", signed=True) for k in range(0, len(data), width)]


def _root(numerator: int, denominator: int) -> float:
    """The square root of a fraction, correctly rounded."""
    bits = 2 * _MANTISSA + denominator.bit_length() - numerator.bit_length()
    shift = max(0, -(-bits // 2))
    scaled = numerator << 2 * shift
    root = math.isqrt(scaled // denominator)
    return (root | (root * root * denominator != scaled)) / (1 << shift)
