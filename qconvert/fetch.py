"""Runs a session again and again into the same memory: outputs are read where onnxruntime writes them, uncopied."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from qconvert.session import Feeds, numpy_type, run


class Fetcher:
    """Fetches some tensor outputs of a session; for one thread.

    The memory that the first run allocates is bound for the next ones while the input shapes stay the same; models
    whose output shapes depend on the data get new memory for every run.
    """

    def __init__(self, session: ort.InferenceSession, outputs: Mapping[str, str]) -> None:
        """Fetches ``outputs``: the session's outputs, by the names under which they are returned."""
        self.session, self.names, self.outputs = session, list(outputs), list(outputs.values())
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.values: list[ort.OrtValue] = []
        self.reusable = True

    def __call__(self, feeds: Feeds) -> dict[str, npt.NDArray[Any]]:
        """The outputs by name; their memory is valid until the next call.

        Raises:
            ModelError: If onnxruntime fails on these feeds.
        """
        shapes = {name: array.shape for name, array in feeds.items()}
        if self.shapes != shapes or not self._rerun(feeds):
            self.shapes, self.values = shapes, self._first_run(feeds)
        return {name: _view(value) for name, value in zip(self.names, self.values, strict=True)}

    def _rerun(self, feeds: Feeds) -> bool:
        """A run into the memory of the last one; False where its shapes do not fit."""
        if not self.reusable:
            return False
        try:
            self._run(feeds, self.values)
        except RuntimeError:
            self.reusable = False
        return self.reusable

    def _first_run(self, feeds: Feeds) -> list[ort.OrtValue]:
        self.values = []
        try:
            return self._run(feeds, ())
        except RuntimeError:
            run(self.session, feeds, self.outputs)  # fails likewise, with a message that names the inputs
            raise

    def _run(self, feeds: Feeds, into: Sequence[ort.OrtValue]) -> list[ort.OrtValue]:
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for index, name in enumerate(self.outputs):
            if into:
                binding.bind_ortvalue_output(name, into[index])
            else:
                binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        outputs: list[ort.OrtValue] = binding.get_outputs()
        return outputs


def _view(value: ort.OrtValue) -> npt.NDArray[Any]:
    """The tensor of an OrtValue as an array over the same memory."""
    dtype, shape = numpy_type(value.data_type()), tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, dtype)
    memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(value.data_ptr())
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
