"""A layer's weight as rows that are multiplied with columns of its input, whatever the operator.

``Y[g] = W[g] X[g]`` with ``W [G, O, K]``: G convolution groups (1 elsewhere), O outputs of each, K inputs of an output;
``X [G, K, N]`` holds one column for each position that the weight is applied to. All methods that round weights work on
these, so they know neither operators nor granularities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from qconvert.numerics import QuantParams, along, dequantize

Reals = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

COLUMNS = 1 << 22
"""Elements of the columns that are made at a time."""


@dataclass(frozen=True)
class Lattice:
    """What every weight may become: ``scale * q`` with whole ``first <= q <= last``; each ``[G, O, K]``.

    Attributes:
        scale: The step, not 0; negative where a grid is turned around.
        first: The lowest level, counted from the zero point.
        last: The highest.
    """

    scale: Floats
    first: Floats
    last: Floats

    def nearest(self, weight: Floats) -> Floats:
        """The levels nearest to weights of the same shape."""
        return np.clip(np.rint(weight / self.scale), self.first, self.last)

    def reals(self, levels: Floats) -> Floats:
        """``scale * levels``."""
        return self.scale * levels


@dataclass(frozen=True)
class Rows:
    """How the weight of one operator lies in ``[G, O, K]``, and how its input becomes columns.

    Attributes:
        op_type: ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul``.
        shape: Of the weight: 2 axes of Gemm and MatMul, at least 3 of the others.
        attributes: The operator's attributes by name, as Python values.
    """

    op_type: str
    shape: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        """Of a convolution, else 1."""
        return int(self.attributes.get("group", 1))

    @property
    def size(self) -> tuple[int, int, int]:
        """``(G, O, K)``."""
        groups, outputs, inputs = self.split(np.empty(self.shape, np.bool_)).shape
        return groups, outputs, inputs

    def split(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A weight, or what belongs to its elements, as ``[G, O, K]``."""
        if self.op_type == "Conv":
            return weight.reshape(self.groups, self.shape[0] // self.groups, -1)
        if self.op_type == "ConvTranspose":
            apart = weight.reshape(self.groups, self.shape[0] // self.groups, *self.shape[1:])
            return np.ascontiguousarray(apart.swapaxes(1, 2)).reshape(self.groups, self.shape[1], -1)
        return (weight if self._row_major else weight.T)[None]

    def join(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The inverse of ``split``."""
        if self.op_type == "Conv":
            return rows.reshape(self.shape)
        if self.op_type == "ConvTranspose":
            apart = rows.reshape(self.groups, self.shape[1], self.shape[0] // self.groups, *self.shape[2:])
            return np.ascontiguousarray(apart.swapaxes(1, 2)).reshape(self.shape)
        return np.ascontiguousarray(rows[0] if self._row_major else rows[0].T)

    def lattice(self, params: QuantParams) -> Lattice:
        """The grid of a weight of any granularity, element by element."""
        ends = (params.scale, params.qmin - params.zero_point, params.qmax - params.zero_point)
        whole = (np.broadcast_to(along(one, params, self.shape), self.shape) for one in ends)
        return Lattice(*(np.ascontiguousarray(self.split(one), np.float64) for one in whole))

    def rounded(self, levels: Floats, params: QuantParams) -> Reals:
        """The weight that levels counted from the zero point stand for; quantizing it gives these levels again."""
        zero = np.broadcast_to(along(params.zero_point, params, self.shape), self.shape)
        return dequantize(np.rint(self.join(levels)).astype(np.int64) + zero, params)

    def columns(self, x: Reals) -> Iterator[Reals]:
        """The input of the operator as columns ``[G, K, n]``, about ``COLUMNS`` elements at a time."""
        if self.op_type in {"Gemm", "MatMul"}:
            flat = x.T if self.attributes.get("transA") else x.reshape(-1, x.shape[-1])
            step = max(COLUMNS // flat.shape[1], 1)
            for start in range(0, len(flat), step):
                yield np.ascontiguousarray(flat[None, start : start + step].swapaxes(1, 2))
            return
        windows = self._upsampled(x) if self.op_type == "ConvTranspose" else self._windows(x)
        rank = len(self.shape) - 2
        each = int(np.prod(windows.shape, dtype=np.int64)) // windows.shape[2]
        step = max(COLUMNS // each, 1)
        for start in range(0, windows.shape[2], step):
            part = windows[:, :, start : start + step]  # [N, C, *out, *kernel]
            moved = np.moveaxis(part, range(2 + rank, 2 + 2 * rank), range(2, 2 + rank))
            apart = moved.reshape(len(x), self.groups, -1, int(np.prod(part.shape[2 : 2 + rank])))
            yield np.ascontiguousarray(apart.transpose(1, 2, 0, 3)).reshape(self.groups, apart.shape[2], -1)

    @property
    def _row_major(self) -> bool:
        return self.op_type == "Gemm" and bool(self.attributes.get("transB"))

    def _windows(self, x: Reals) -> Reals:
        """What each output of a Conv sees, a view ``[N, C, *out, *kernel]``."""
        kernel = self.shape[2:]
        strides, dilations = self._along("strides", kernel), self._along("dilations", kernel)
        spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
        pads = _same_pads(self.attributes.get("auto_pad", "NOTSET"), x.shape[2:], strides, spans)
        pads = pads or _pairs(self.attributes.get("pads") or [0] * 2 * len(kernel))
        return _cut(np.pad(x, [(0, 0), (0, 0), *pads]), spans, strides, dilations)

    def _upsampled(self, x: Reals) -> Reals:
        """What each output of a ConvTranspose sees: a Conv of stride 1 over its input with zeros in between."""
        kernel = self.shape[2:]
        strides, dilations = self._along("strides", kernel), self._along("dilations", kernel)
        spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
        lengths = [stride * (size - 1) + 1 for stride, size in zip(strides, x.shape[2:], strict=True)]
        apart = np.zeros((*x.shape[:2], *lengths), np.float32)
        apart[(slice(None), slice(None), *(slice(None, None, stride) for stride in strides))] = x
        around = [(0, 0), (0, 0), *((span - 1, span - 1) for span in spans)]
        ones = (1,) * len(kernel)
        whole = _cut(np.pad(apart, around), spans, ones, dilations)
        kept = [slice(low, size - high) for (low, high), size in zip(self._trimmed(x), whole.shape[2:], strict=False)]
        turned = [slice(None, None, -1)] * len(kernel)
        return whole[(slice(None), slice(None), *kept, *turned)]

    def _trimmed(self, x: Reals) -> list[tuple[int, int]]:
        """What ``pads`` of a ConvTranspose cuts off; ``output_padding`` only adds positions that see no input."""
        kernel = self.shape[2:]
        mode, strides = self.attributes.get("auto_pad", "NOTSET"), self._along("strides", kernel)
        if mode not in {"SAME_UPPER", "SAME_LOWER"}:
            return _pairs(self.attributes.get("pads") or [0] * 2 * len(kernel))
        dilations = self._along("dilations", kernel)
        found = []
        for size, stride, dilation, length in zip(kernel, strides, dilations, x.shape[2:], strict=True):
            over = max(stride * (length - 1) + dilation * (size - 1) + 1 - stride * length, 0)
            small = over // 2
            found.append((small, over - small) if mode == "SAME_UPPER" else (over - small, small))
        return found

    def _along(self, name: str, kernel: Sequence[int]) -> Sequence[int]:
        return self.attributes.get(name) or [1] * len(kernel)


def _pairs(pads: Sequence[int]) -> list[tuple[int, int]]:
    half = len(pads) // 2
    return list(zip(pads[:half], pads[half:], strict=True))


def _same_pads(
    mode: str, sizes: Sequence[int], strides: Sequence[int], spans: Sequence[int]
) -> list[tuple[int, int]] | None:
    """What ``auto_pad`` adds; None where it says nothing, ``VALID`` being no padding at all."""
    if mode not in {"SAME_UPPER", "SAME_LOWER"}:
        return None if mode == "NOTSET" else [(0, 0)] * len(sizes)
    found = []
    for size, stride, span in zip(sizes, strides, spans, strict=True):
        missing = max((-(-size // stride) - 1) * stride + span - size, 0)
        small = missing // 2
        found.append((small, missing - small) if mode == "SAME_UPPER" else (missing - small, small))
    return found


def _cut(x: Reals, spans: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Reals:
    """Windows of the last axes, a view ``[N, C, *out, *kernel]``."""
    whole = sliding_window_view(x, spans, axis=tuple(range(2, x.ndim)))
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    return np.asarray(whole[(slice(None), slice(None), *steps)])
