"""Weights a slab at a time, so that a model of many gigabytes passes through little memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.workers import default_workers, run_workers

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

SLAB = 1 << 21
"""Elements that are worked on together."""


def array_of(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    """The array of a tensor; a file that it lies in stays mapped only as long as the array is kept."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor = ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            base_dir=tensor.base_dir,
        )
    return tensor.numpy()


def dims(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a tensor."""
    return tuple(int(size) for size in tensor.shape.numpy())


def slabs(shape: Sequence[int], axis: int, *, multiple: int = 1) -> list[slice]:
    """Parts of an axis with about ``SLAB`` elements each, all but the last a multiple of so many indices long."""
    length = shape[axis]
    beside = max(int(np.prod(shape, dtype=np.int64)) // max(length, 1), 1)
    step = max(SLAB // beside // multiple, 1) * multiple
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def read_slab(tensor: ir.TensorProtocol, axis: int, part: slice) -> npt.NDArray[np.float32]:
    """A part of a weight along an axis, float32; nothing of it stays in memory elsewhere."""
    whole = array_of(tensor)
    return np.array(whole[(slice(None),) * axis + (part,)], np.float32, order="C")


def in_order(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """``[work(item) for item in items]``, by one thread for each CPU."""
    found: dict[int, _Result] = {}
    left, stop = deque(enumerate(items)), Event()

    def worker() -> None:
        while not stop.is_set():
            try:
                index, item = left.popleft()
            except IndexError:
                return
            found[index] = work(item)

    run_workers(max(min(default_workers(), len(items)), 1), worker, stop)
    return [found[index] for index in range(len(items))]
