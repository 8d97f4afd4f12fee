"""Inputs for a model without samples: of its types and shapes, with indices that its tables have."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.errors import DataError
from qconvert.graph import attributes, is_constant, operand, ports, shape_of

OPEN_SIZE = 4
"""The size of axes that a model leaves open; of the first one of each input, the batch, it is 1."""

_FOLLOWED = frozenset({"Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Slice"})
"""Operators behind which an index is still the same index."""

_WORD = re.compile(r"[A-Za-z_]\w*")


def random_feeds(model: ir.Model, seed: int = 0) -> dict[str, npt.NDArray[np.generic]]:
    """Normal floats; integers below the size of every table that they are looked up in, else 1, as in masks.

    Axes of one name have one size. A name that is a sum, such as ``past_sequence_length + sequence_length``, has that
    of its parts.

    Raises:
        DataError: If an input is not a tensor of numbers.
    """
    rng = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    feeds = {}
    for port in ports(model)[0]:
        if port.dtype is None or port.dtype.kind not in "fiub":
            kind = "not a tensor" if port.dtype is None else f"a tensor of {port.dtype.name}"
            raise DataError(f"input '{port.name}' is {kind}, and no samples are given", hint="give some with --data")
        shape = tuple(_size(axis, place, sizes) for place, axis in enumerate(port.shape))
        value = next(value for value in model.graph.inputs if value.name == port.name)
        if port.dtype.kind == "f":
            feeds[port.name] = rng.standard_normal(shape).astype(port.dtype)
        else:
            bound = _bound(value)
            feeds[port.name] = (rng.integers(0, bound, shape) if bound else np.ones(shape)).astype(port.dtype)
    return feeds


def _size(axis: int | str | None, place: int, sizes: dict[str, int]) -> int:
    free = OPEN_SIZE if place else 1
    if isinstance(axis, int):
        return axis
    words = _WORD.findall(axis or "")
    if not words or re.sub(r"[\w+\s]", "", axis or ""):
        return sizes.setdefault(axis, free) if axis else free
    return sum(sizes.setdefault(word, free) for word in words)


def _bound(value: ir.Value) -> int | None:
    """The rows of the smallest table that an input is looked up in."""
    found: list[int] = []
    seen, todo = {value}, [value]
    while todo:
        for use in todo.pop().uses():
            if use.node.op_type == "Gather" and use.idx == 1:
                table = operand(use.node, 0)
                shape = shape_of(table) if table is not None and is_constant(table) else None
                axis = int(attributes(use.node).get("axis", 0))
                rows = shape[axis] if shape else None
                found += [rows] if isinstance(rows, int) else []
            elif use.node.op_type in _FOLLOWED and use.idx == 0:
                todo += [output for output in use.node.outputs if output not in seen]
                seen.update(use.node.outputs)
    return min(found, default=None)
