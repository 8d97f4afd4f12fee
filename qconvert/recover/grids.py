"""What methods share that choose the grid of a weight: which weights share a scale, and what follows for a bias."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qconvert.graph import constant, operand
from qconvert.numerics import QuantParams, along, bias_params
from qconvert.plan import Entry, Plan, Site
from qconvert.plan.weights import room_for_bias
from qconvert.recover.bias import bias_place
from qconvert.recover.rows import Floats, Rows
from qconvert.recover.walk import Layer


@dataclass(frozen=True)
class Shares:
    """Which weights share a scale.

    Attributes:
        index: The number of the scale of every weight, in their shape.
        count: How many there are.
    """

    index: npt.NDArray[np.intp]
    count: int

    def sums(self, values: Floats) -> Floats:
        """The sum of what belongs to the weights of each scale, ``[count]``."""
        found = np.bincount(self.index.reshape(-1), np.ascontiguousarray(values).reshape(-1), self.count)
        return np.asarray(found, np.float64)

    @property
    def owner(self) -> npt.NDArray[np.intp]:
        """Of weights in rows, the number of the first scale of each row, ``[G, O]``: rows with the same share all."""
        return self.index[:, :, 0]

    @property
    def owner_of_scale(self) -> npt.NDArray[np.intp]:
        """Likewise for each scale, ``[count]``."""
        found = np.empty(self.count, np.intp)
        found[self.index] = self.owner[:, :, None]
        return found

    def by_owner(self, values: Floats) -> Floats:
        """What belongs to rows, ``[G, O]``, added up where they share scales, at the number of their owner."""
        return np.asarray(np.bincount(self.owner.reshape(-1), values.reshape(-1), self.count), np.float64)

    def within(self, gram: Floats) -> Floats:
        """A gram ``[G, K, K]`` of rows without what inputs of different scales have to do with each other."""
        first = self.index[:, 0, :]
        return np.where(first[:, :, None] == first[:, None, :], gram, 0.0)


def shares(rows: Rows, params: QuantParams) -> Shares:
    """Which of the weights in rows share a scale of a grid."""
    return Shares(np.ascontiguousarray(rows.split(share_index(rows.shape, params))), params.scale.size)


def share_index(shape: tuple[int, ...], params: QuantParams) -> npt.NDArray[np.intp]:
    """The number of the scale of every weight, in the shape of the weight."""
    numbers = np.arange(params.scale.size).reshape(params.scale.shape)
    return np.broadcast_to(along(numbers, params, shape), shape)


def with_scales(params: QuantParams, scale: Floats, zero: Floats | None = None) -> QuantParams:
    """The grid with other scales, and zero points where given, each ``[count]``."""
    found = replace(params, scale=scale.astype(np.float32).reshape(params.scale.shape))
    if zero is None:
        return found
    return replace(found, zero_point=np.asarray(np.rint(zero), np.int32).reshape(params.zero_point.shape))


def entries_with(layer: Layer, plan: Plan, params: QuantParams, method: str) -> list[Entry]:
    """The entry of a layer's weight with another grid, and that of its int32 bias, whose scale follows from it."""
    data = next((one for one in plan.of("activation") if Site(layer.op.name, 0) in one.sites), None)
    owner, position = bias_place(layer.op)
    site = Site(owner.outputs[0].name or "", position) if owner is not None else None
    bias = next((one for one in plan.of("bias") if site in one.sites), None)
    array = constant(operand(owner, position)) if owner is not None else None
    if bias is None or data is None or array is None:
        return [replace(layer.entry, params=params, method=method)]
    params = room_for_bias(params, float(data.params.scale), np.asarray(array, np.float32))
    found = bias_params(data.params, params)
    scale = np.resize(found.scale, bias.params.scale.shape)  # a grouped ConvTranspose repeats its scales for each group
    return [replace(layer.entry, params=params, method=method), replace(bias, params=replace(bias.params, scale=scale))]
