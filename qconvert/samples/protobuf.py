"""Samples from ONNX test data: folders ``test_data_set_*`` with one serialized TensorProto ``input_*.pb`` an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from qconvert.errors import CorruptSampleError, DataError
from qconvert.samples.find import Found, natural
from qconvert.samples.fit import check_dtype, check_shape, fit
from qconvert.samples.types import Array, InputSpec, Source


@dataclass(frozen=True, eq=False)
class TestDataReader:
    """Item numbers to feeds: tensors go to inputs by name, else in the order of the file numbers."""

    inputs: tuple[InputSpec, ...]
    folders: tuple[tuple[Path, ...], ...]
    names: tuple[str, ...]

    def __call__(self, items: Sequence[int]) -> dict[str, Array]:
        """One feed, of one folder."""
        (i,) = items
        tensors = [_tensor(path, f"{self.names[i]}/{path.name}", self.names[i]) for path in self.folders[i]]
        wanted = [spec.name for spec in self.inputs]
        by_name = {key: (where, array) for key, where, array in tensors}
        by_order = dict(zip(wanted, ((where, array) for _, where, array in tensors), strict=True))
        matched = by_name if {*by_name} == {*wanted} else by_order
        return {spec.name: _fitted(spec, *matched[spec.name]) for spec in self.inputs}


def open_test_data(found: Found, inputs: Sequence[InputSpec]) -> Source:
    """Lists the tensors of every folder; they are read when a sample is loaded."""
    names = tuple(found.name(folder) for folder in found.files)
    folders = tuple(tuple(sorted(f.glob("input_*.pb"), key=lambda p: natural(p.name))) for f in found.files)
    for name, files in zip(names, folders, strict=True):
        if len(files) != len(inputs):
            raise DataError(
                f"{name}: {len(files)} input_*.pb for {len(inputs)} model inputs ({', '.join(i.name for i in inputs)})",
                hint="one input_N.pb for each input, in the order of the model's inputs",
            )
    sizes = tuple(sum(p.stat().st_size for p in files) for files in folders)
    return Source("test-data", names, sizes, 1, TestDataReader(tuple(inputs), folders, names))


def _tensor(path: Path, where: str, sample: str) -> tuple[str, str, Array]:
    """Name, place and values of a serialized tensor."""
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError("its values lie in another file")
        return tensor.name, where, np.asarray(numpy_helper.to_array(tensor))
    except (OSError, ValueError, TypeError, KeyError, DecodeError) as error:
        raise CorruptSampleError(sample, f"{where}: not a readable tensor: {' '.join(str(error).split())}") from error


def _fitted(spec: InputSpec, where: str, array: Array) -> Array:
    check_dtype(array.dtype, spec, where)
    check_shape(array.shape, spec, where)
    return fit(array, spec, where)
