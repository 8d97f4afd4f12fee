"""ConvTranspose as a Conv: zeros between the numbers of its operand, the weight turned around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.graph import attributes, operand
from qconvert.rewrite.integer.emit import INT64, Emitter
from qconvert.rewrite.integer.levels import Grid, Levels, NoIntegerFormError, dequantized, stored_levels


def as_conv(emit: Emitter, node: ir.Node, x: Levels) -> tuple[Levels, Levels, dict[str, Any]]:
    """The operand, the weight and the attributes of the Conv that computes what a ConvTranspose does.

    Raises:
        NoIntegerFormError: If the weight is no constant, or the output's size is given otherwise than by ``pads``.
    """
    options = attributes(node)
    found = dequantized(operand(node, 1))
    stored = stored_levels(found.value) if found is not None else None
    if found is None or stored is None:
        raise NoIntegerFormError(node, "its weight is no constant")
    if options.get("auto_pad", "NOTSET") != "NOTSET" or options.get("output_shape"):
        raise NoIntegerFormError(node, "its output's size is given by auto_pad or output_shape")
    rank, group = stored.ndim - 2, int(options.get("group", 1))
    dilations = list(options.get("dilations", [1] * rank))
    turned = emit.constant("turned", _turned(stored, group), stored.dtype)
    w = Levels(turned, _by_output(found.grid, group), found.zero)
    return _spread(emit, x, stored.shape[2:], options), w, {"group": group, "dilations": dilations}


def _turned(weight: npt.NDArray[Any], group: int) -> npt.NDArray[Any]:
    """``[C, M/g, ...]`` as ``[M, C/g, ...]``, last number first along every axis of the kernel."""
    inputs, outputs, *kernel = weight.shape
    swapped = np.swapaxes(weight.reshape(group, inputs // group, outputs, *kernel), 1, 2)
    whole = swapped.reshape(group * outputs, inputs // group, *kernel)
    return np.flip(whole, tuple(range(2, whole.ndim)))


def _by_output(grid: Grid, group: int) -> Grid:
    """A scale for each channel of one group repeats for each group."""
    if grid.axis is None:
        return grid
    return replace(grid, scale=np.tile(grid.scale, group), zero=np.tile(grid.zero, group), axis=0)


def _spread(emit: Emitter, x: Levels, kernel: Sequence[int], options: Any) -> Levels:  # noqa: ANN401 - attributes
    """The operand with ``stride - 1`` zeros behind each number, padded or cut so that the Conv needs no padding."""
    rank = len(kernel)
    steps, pads = options.get("strides", [1] * rank), options.get("pads", [0] * 2 * rank)
    dilations, more = options.get("dilations", [1] * rank), options.get("output_padding", [0] * rank)
    fill = emit.constant("fill", x.grid.zero, x.grid.dtype.numpy())
    value = x.value
    if any(step > 1 for step in steps):
        axes = [3 + 2 * axis for axis in range(rank)]
        apart = emit.node("Unsqueeze", value, emit.constant("axes", axes, np.int64))
        behind = [0] * (2 + rank * 2) + [0, 0] + [end for step in steps for end in (0, step - 1)]
        wide = emit.node("Pad", apart, emit.constant("behind", behind, np.int64), fill)
        size = emit.node(
            "Mul", emit.node("Shape", value, dtype=INT64), emit.constant("steps", [1, 1, *steps], np.int64)
        )
        value = emit.node("Reshape", wide, size)
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    before = [reach[axis] - pads[axis] for axis in range(rank)]
    after = [reach[axis] - pads[axis + rank] + more[axis] - (steps[axis] - 1) for axis in range(rank)]
    around = emit.constant("around", [0, 0, *before, 0, 0, *after], np.int64)
    return replace(x, value=emit.node("Pad", value, around, fill))
