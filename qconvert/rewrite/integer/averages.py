"""Means and extremes over windows or axes: int32 sums with the count in the multiplier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qconvert.graph import attributes, constant, operand, shape_of
from qconvert.rewrite.integer.emit import INT32, Emitter
from qconvert.rewrite.integer.levels import FloatArray, Levels, NoIntegerFormError, Sink, levels
from qconvert.rewrite.integer.tables import rescaled


def mean(emit: Emitter, node: ir.Node, sink: Sink) -> ir.Value:
    """GlobalAveragePool and ReduceMean: ``sum(q) - n z``, requantized from ``s / n``."""
    source, axes, keepdims = _reduced(node)
    sizes = [_shape(node)[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes):
        raise NoIntegerFormError(node, "how many numbers it averages is not known before the model runs")
    count = int(np.prod(known, dtype=np.int64))
    sums = emit.reduce("ReduceSum", emit.cast(source.value, INT32), axes, keepdims=keepdims)
    centre = emit.constant("zero", count * int(source.grid.zero), np.int32)
    return emit.requantize(emit.node("Sub", sums, centre), source.grid.scale / count, sink)


def extreme(emit: Emitter, node: ir.Node, sink: Sink) -> ir.Value:
    """GlobalMaxPool, ReduceMax and ReduceMin on the levels, which have the order of the reals."""
    source, axes, keepdims = _reduced(node)
    op_type = "ReduceMin" if node.op_type == "ReduceMin" else "ReduceMax"
    found = emit.reduce(op_type, source.value, axes, keepdims=keepdims)
    return rescaled(emit, Levels(found, source.grid, source.zero), sink)


def _shape(node: ir.Node) -> tuple[int | str | None, ...]:
    value = operand(node, 0)
    shape = shape_of(value) if value is not None else None
    if shape is None:
        raise NoIntegerFormError(node, "the rank of its operand is not known")
    return shape


def _reduced(node: ir.Node) -> tuple[Levels, list[int], bool]:
    """The operand, the axes counted from the front, and whether they stay with size 1."""
    source, options = levels(node, 0), attributes(node)
    shape = _shape(node)
    if node.op_type.startswith("Global"):
        return source, list(range(2, len(shape))), True
    given = constant(operand(node, 1))
    if given is None and operand(node, 1) is not None:
        raise NoIntegerFormError(node, "its axes are no constant")
    axes = options.get("axes") if given is None else given.tolist()
    if not axes and options.get("noop_with_empty_axes"):
        raise NoIntegerFormError(node, "it reduces nothing")
    return source, [axis % len(shape) for axis in axes or range(len(shape))], bool(options.get("keepdims", 1))


def average_pool(emit: Emitter, node: ir.Node, sink: Sink) -> ir.Value:
    """Sums of windows by a ConvInteger of ones for each channel; padding counts as zeros."""
    source, options = levels(node, 0), attributes(node)
    channels = _shape(node)[1]
    if not isinstance(channels, int):
        raise NoIntegerFormError(node, "how many channels its operand has is not known")
    kernel = [int(size) for size in options["kernel_shape"]]
    counts = _counts(node, kernel)
    shared = {key: options[key] for key in ("auto_pad", "dilations", "pads", "strides") if key in options}
    ones = emit.constant("ones", np.ones((channels, 1, *kernel)), np.uint8)
    convolution = {**shared, "group": channels, "kernel_shape": kernel}
    sums = emit.node("ConvInteger", source.value, ones, source.zero, attributes=convolution, dtype=INT32)
    return emit.requantize(sums, source.grid.scale / counts, sink)


def _counts(node: ir.Node, kernel: Sequence[int]) -> FloatArray:
    """How many numbers each window averages, in a shape that broadcasts against the result."""
    options, rank = attributes(node), len(kernel)
    pads = list(options.get("pads", [0] * 2 * rank))
    same = options.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}
    if options.get("ceil_mode") and not _is_whole(node, kernel, pads):
        raise NoIntegerFormError(node, "its last windows reach beyond its operand (ceil_mode)")
    if options.get("count_include_pad") or not (same or any(pads)):
        return np.asarray(float(np.prod(kernel)))
    sizes = _shape(node)[2:]
    if same or any(not isinstance(size, int) for size in sizes):
        raise NoIntegerFormError(node, "how many numbers its windows hold is not known before the model runs")
    found = np.ones([1] * rank)
    for axis, size in enumerate(sizes):
        line = _axis_counts(int(str(size)), kernel[axis], pads[axis], pads[axis + rank], _steps(node, axis))
        found = found * line.reshape([-1 if other == axis else 1 for other in range(rank)])
    return found


def _steps(node: ir.Node, axis: int) -> tuple[int, int]:
    options = attributes(node)
    stride, dilation = (int(options[key][axis]) if key in options else 1 for key in ("strides", "dilations"))
    return stride, dilation


def _axis_counts(size: int, kernel: int, before: int, after: int, steps: tuple[int, int]) -> FloatArray:
    """How many positions of each window along one axis lie on the operand."""
    stride, dilation = steps
    windows = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    places = np.arange(windows)[:, None] * stride - before + np.arange(kernel) * dilation
    return np.asarray(((places >= 0) & (places < size)).sum(1), np.float64)


def _is_whole(node: ir.Node, kernel: Sequence[int], pads: Sequence[int]) -> bool:
    """Whether the windows end with the padded operand along every axis."""
    sizes = _shape(node)[2:]
    ends = []
    for axis, size in enumerate(sizes):
        stride, dilation = _steps(node, axis)
        reach = dilation * (kernel[axis] - 1) + 1
        ends.append(isinstance(size, int) and not (size + pads[axis] + pads[axis + len(kernel)] - reach) % stride)
    return all(ends)
