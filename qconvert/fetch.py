"""Runs a session again and again into the same memory: outputs are read where onnxruntime writes them, uncopied."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from qconvert.session import Feeds, numpy_type, run


class Fetcher:
    """Fetches some tensor outputs of a session; for one thread.

    The memory that the first run allocates stays bound for the next ones while the input shapes stay the same; models
    whose output shapes depend on the data get new memory for every run.
    """

    def __init__(self, session: ort.InferenceSession, outputs: Mapping[str, str]) -> None:
        """Fetches ``outputs``: the session's outputs, by the names under which they are returned."""
        self.session, self.names, self.outputs = session, list(outputs), list(outputs.values())
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.bound: ort.IOBinding | None = None
        self.found: dict[str, npt.NDArray[Any]] = {}
        self.reusable = True

    def __call__(self, feeds: Feeds) -> dict[str, npt.NDArray[Any]]:
        """The outputs by name; their memory is valid until the next call.

        Raises:
            ModelError: If onnxruntime fails on these feeds.
        """
        feeds = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        shapes = {name: array.shape for name, array in feeds.items()}
        if self.shapes != shapes or not self._rerun(feeds):
            self._first_run(feeds)
            self.shapes = shapes
        return self.found

    def _rerun(self, feeds: Feeds) -> bool:
        """A run into the memory of the last one; False where its shapes do not fit."""
        if self.bound is None or not self.reusable:
            return False
        try:
            _run(self.session, self.bound, feeds)
        except RuntimeError:
            self.reusable = False
        return self.reusable

    def _first_run(self, feeds: Feeds) -> None:
        self.bound, self.found = None, {}  # frees the memory of the last one
        binding = self.session.io_binding()
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        try:
            _run(self.session, binding, feeds)
        except RuntimeError:
            run(self.session, feeds, self.outputs)  # fails likewise, with a message that names the inputs
            raise
        values: list[ort.OrtValue] = binding.get_outputs()
        self.bound = self.session.io_binding()
        for name, value in zip(self.outputs, values, strict=True):
            self.bound.bind_ortvalue_output(name, value)
        self.found = {name: _view(value) for name, value in zip(self.names, values, strict=True)}


def _run(session: ort.InferenceSession, binding: ort.IOBinding, feeds: Feeds) -> None:
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    session.run_with_iobinding(binding)


def _view(value: ort.OrtValue) -> npt.NDArray[Any]:
    """The tensor of an OrtValue as an array over the same memory, which it keeps."""
    dtype, shape = numpy_type(value.data_type()), tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, dtype)
    memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(value.data_ptr())
    memory.kept = value  # type: ignore[attr-defined]
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
