"""Which elements of a weight belong to which channel of what an operator reads and makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qconvert.rules import weight_axis

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def over_outputs(op_type: str, shape: tuple[int, ...], attributes: Mapping[str, Any], channels: Array) -> Array:
    """What belongs to each output channel, ``[O]``, so that it broadcasts over the weight.

    Args:
        op_type: ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul``.
        shape: Of the weight.
        attributes: The operator's attributes by name, as Python values.
        channels: A number for each channel.
    """
    if op_type == "ConvTranspose":
        groups = int(attributes.get("group", 1))
        rows = np.repeat(channels.reshape(groups, shape[1]), shape[0] // groups, 0)
        return rows.reshape(*rows.shape, *(1 for _ in shape[2:]))
    return _along(channels, len(shape), weight_axis(op_type, len(shape), attributes))


def over_inputs(op_type: str, shape: tuple[int, ...], attributes: Mapping[str, Any], channels: Array) -> Array:
    """The same for input channels, ``[I]``."""
    if op_type == "Conv":
        groups = int(attributes.get("group", 1))
        rows = np.repeat(channels.reshape(groups, shape[1]), shape[0] // groups, 0)
        return rows.reshape(*rows.shape, *(1 for _ in shape[2:]))
    if op_type == "ConvTranspose":
        return _along(channels, len(shape), 0)
    if op_type == "Gemm":
        return _along(channels, len(shape), 1 if attributes.get("transB") else 0)
    return _along(channels, len(shape), len(shape) - 2)


def _along(channels: Array, rank: int, axis: int) -> Array:
    return channels.reshape([-1 if place == axis else 1 for place in range(rank)])


def largest(weight: Array, owners: Array, channels: int) -> Floats:
    """The greatest magnitude that belongs to each channel, ``[channels]``.

    Args:
        weight: The weight.
        owners: The channel of each element, from ``over_outputs`` or ``over_inputs`` of ``arange``.
        channels: How many there are.
    """
    found = np.zeros(channels)
    np.maximum.at(found, np.broadcast_to(owners, weight.shape).ravel(), np.abs(weight).ravel())
    return found


def by_channel(values: Array, axis: int) -> Array:
    """The values of each channel in a row, ``[C, n]``."""
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
