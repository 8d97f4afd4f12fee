"""Conv, ConvTranspose, Gemm and MatMul as ConvInteger and MatMulInteger: int32 sums with their int32 bias.

The kernels subtract the zero points, so a sum is ``sum((x - z_x) * (w - z_w))``; ConvInteger pads with ``z_x``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.graph import attributes, is_constant, operand, shape_of
from qconvert.numerics import INT32 as INT32_GRID
from qconvert.rewrite.integer.emit import INT32, Emitter
from qconvert.rewrite.integer.levels import (
    BYTES,
    NARROW,
    Accumulator,
    Grid,
    Levels,
    NoIntegerFormError,
    dequantized,
    known,
    levels,
    stored_levels,
)
from qconvert.rewrite.integer.transposed import as_conv


def accumulate(emit: Emitter, value: ir.Value) -> Accumulator | None:
    """The sums behind a value that a heavy operator makes, also with a bias or factor behind it; None of other values.

    Raises:
        NoIntegerFormError: If the operator is heavy and the plan leaves it float, or no integer kernel computes it.
    """
    node = value.producer()
    if node is None:
        return None
    if value not in emit.sums:
        found = PRODUCTS[node.op_type](emit, node) if node.op_type in PRODUCTS else _behind(emit, node)
        if found is None:
            return None
        emit.sums[value] = found
    return emit.sums[value]


def _behind(emit: Emitter, node: ir.Node) -> Accumulator | None:
    """The sums of a MatMul with the constant that an Add or a Mul brings in."""
    if node.op_type not in {"Add", "Mul"}:
        return None
    for data, other in ((0, 1), (1, 0)):
        array, value = known(operand(node, other)), operand(node, data)
        if array is None or value is None:
            continue
        if node.op_type == "Add":
            sums = accumulate(emit, value)
            return None if sums is None else _biased(emit, node, sums, operand(node, other))
        if array.size == 1 and float(array.reshape(())) > 0:
            sums = accumulate(emit, value)
            return None if sums is None else replace(sums, scale=sums.scale * float(array.reshape(())))
    return None


def _conv(emit: Emitter, node: ir.Node) -> Accumulator:
    options = {key: value for key, value in attributes(node).items() if key in _CONV_ATTRIBUTES}
    return _convolved(emit, node, levels(node, 0), _weight(emit, node), options)


def _conv_transpose(emit: Emitter, node: ir.Node) -> Accumulator:
    return _convolved(emit, node, *as_conv(emit, node, levels(node, 0)))


def _convolved(emit: Emitter, node: ir.Node, x: Levels, weight: Levels, options: Mapping[str, object]) -> Accumulator:
    w = _unsigned(emit, weight)
    rank = len(_shape(w))
    if not rank:
        raise NoIntegerFormError(node, "its weight has no known shape")
    several = len(np.unique(w.grid.zero)) > 1
    sums = emit.node(
        "ConvInteger", x.value, w.value, x.zero, None if several else w.zero, attributes=options, dtype=INT32
    )
    if several:
        sums = emit.node("Sub", sums, _zero_points(emit, x, w, options))
    found = Accumulator(sums, x.grid.scale * w.grid.scale, 1 if w.grid.scale.ndim else None, rank)
    return _biased(emit, node, found, operand(node, 2), rank=rank)


_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _unsigned(emit: Emitter, w: Levels) -> Levels:
    """Constant signed levels moved up by half of their range, with their zero points.

    onnxruntime's ConvInteger is 4 to 12 times as fast on uint8 weights as on int8 ones, which older ones do not take.
    """
    stored = stored_levels(w.value)
    if stored is None:
        return w
    dtype = ir.DataType.from_numpy(stored.dtype)
    moved = w.grid.zero + _HALVES.get(dtype, 0)
    if w.value not in emit.weights:
        if dtype in _HALVES:
            unsigned = ir.DataType[f"U{dtype.name}"].numpy()
            up = emit.constant("weight", stored.astype(np.int64) + _HALVES[dtype], unsigned)
            emit.weights[w.value] = emit.cast(up, ir.DataType.UINT8)
        else:
            emit.weights[w.value] = emit.cast(w.value, ir.DataType.UINT8) if is_constant(w.value) else w.value
    zero = emit.constant("weight_zero_point", moved.reshape(-1)[0], np.uint8)
    return Levels(emit.weights[w.value], replace(w.grid, zero=moved, dtype=ir.DataType.UINT8), zero)


_HALVES = {ir.DataType.INT8: 128, ir.DataType.INT4: 8, ir.DataType.INT2: 2}


def _zero_points(emit: Emitter, x: Levels, w: Levels, options: Mapping[str, object]) -> ir.Value:
    """``z_w[c] * sum(x - z_x)`` of each window: ConvInteger takes one zero point of the weight, not one a channel."""
    shape = _shape(w)
    ones = emit.constant("ones", np.ones([size for size in shape if isinstance(size, int)]), np.uint8)
    windows = emit.node("ConvInteger", x.value, ones, x.zero, attributes=options, dtype=INT32)
    factors = w.grid.zero.reshape(-1, *[1] * (len(shape) - 2))
    return emit.node("Mul", windows, emit.constant("weight_zero_points", factors, np.int32))


def _gemm(emit: Emitter, node: ir.Node) -> Accumulator:
    options = attributes(node)
    if operand(node, 2) is not None and options.get("alpha", 1.0) * options.get("beta", 1.0) != 1.0:
        raise NoIntegerFormError(node, "it has a bias and a factor")
    a = levels(node, 0)
    if options.get("transA"):
        a = replace(a, value=emit.node("Transpose", a.value, attributes={"perm": [1, 0]}))
    b = _weight(emit, node)
    if options.get("transB"):
        b = _transposed(emit, b)
    sums = _matrix_product(emit, node, a, b)
    sums = replace(sums, scale=sums.scale * options.get("alpha", 1.0))
    return _biased(emit, node, sums, operand(node, 2))


def _transposed(emit: Emitter, b: Levels) -> Levels:
    stored = stored_levels(b.value)
    axis = None if b.grid.axis is None else 1 - b.grid.axis
    if stored is None:
        value = emit.node("Transpose", b.value, attributes={"perm": [1, 0]})
    else:
        value = emit.constant("weight", stored.T, stored.dtype)
        value = value if is_constant(b.value) else emit.cast(value, b.grid.dtype)
    return replace(b, value=value, grid=replace(b.grid, axis=axis))


def _matmul(emit: Emitter, node: ir.Node) -> Accumulator:
    return _matrix_product(emit, node, levels(node, 0), _weight(emit, node))


def _matrix_product(emit: Emitter, node: ir.Node, a: Levels, b: Levels) -> Accumulator:
    rank = len(_shape(b))
    if b.grid.axis is not None and b.grid.axis % max(rank, 1) != rank - 1:
        raise NoIntegerFormError(node, f"the scales of its weight lie along axis {b.grid.axis}, not the last one")
    sums = emit.node("MatMulInteger", a.value, b.value, a.zero, b.zero, dtype=INT32)
    return Accumulator(sums, a.grid.scale * b.grid.scale, -1 if b.grid.scale.ndim else None)


def _weight(emit: Emitter, node: ir.Node) -> Levels:
    """Operand 1: a constant with any granularity, or levels on one grid."""
    found = dequantized(operand(node, 1))
    if found is None or stored_levels(found.value) is None:
        return levels(node, 1)
    if found.grid.dtype in NARROW:
        wide = NARROW[found.grid.dtype]
        zero = None if found.zero is None else emit.constant("weight_zero_point", found.grid.zero, wide.numpy())
        return Levels(emit.cast(found.value, wide), replace(found.grid, dtype=wide), zero)
    if found.grid.dtype not in BYTES:
        raise NoIntegerFormError(node, f"its weight has levels of type {found.grid.dtype.name}")
    return found


def _shape(weight: Levels) -> tuple[int | str | None, ...]:
    stored = stored_levels(weight.value)
    return tuple(stored.shape) if stored is not None else shape_of(weight.value) or ()


def _biased(
    emit: Emitter, node: ir.Node, sums: Accumulator, bias: ir.Value | None, *, rank: int | None = None
) -> Accumulator:
    """The sums with a bias, which lies along axis 1 of a Conv of some rank, else as numpy broadcasts it."""
    if bias is None:
        return sums
    reals = known(bias)
    if reals is None:
        raise NoIntegerFormError(node, f"its bias '{bias.name}' is no constant")
    steps = _bias_levels(bias, reals, sums.scale)
    shaped = steps if rank is None else steps.reshape(-1, *[1] * (rank - 2))
    constant_bias = emit.constant("bias", shaped, np.int32)
    return replace(sums, value=emit.node("Add", sums.value, constant_bias))


def _bias_levels(
    bias: ir.Value, reals: npt.NDArray[np.float64], scale: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """The plan's int32 levels where it has them, on the grid of the sums; else the nearest ones."""
    found = dequantized(bias)
    stored = stored_levels(found.value) if found is not None else None
    if found is not None and stored is not None and _is_grid(found.grid, scale):
        return np.asarray(stored, np.int64)
    return np.asarray(np.clip(np.rint(reals / scale), INT32_GRID.qmin, INT32_GRID.qmax), np.int64)


def _is_grid(grid: Grid, scale: npt.NDArray[np.float64]) -> bool:
    """Whether a bias has the scale of the sums, but for its rounding to float32."""
    sizes = {grid.scale.size, scale.size} - {1}
    return grid.dtype == INT32 and len(sizes) < 2 and np.allclose(grid.scale, scale, rtol=1e-6, atol=0)


PRODUCTS: Mapping[str, Callable[[Emitter, ir.Node], Accumulator]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
"""The operators whose results are sums of products."""
