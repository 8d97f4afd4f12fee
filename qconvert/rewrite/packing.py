"""Weights as they stand in a file: levels in their own type, or packed as rows of bytes for onnxruntime's operators.

ONNX packs elements of fewer than 8 bits one after the other, the first in the lowest bits; onnxruntime's MatMulNBits
and GatherBlockQuantized do the same within each row, unsigned. Tensors are made when they are written, a slab at a
time, and read back the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.float8 import Float8, to_float8
from qconvert.graph import attributes, initializers, operand, operators
from qconvert.metrics import ratio_db
from qconvert.numerics import FloatArray, QuantParams, dequantize, quantize
from qconvert.tensors import array_of, dims, in_order, read_slab, slabs

Bytes = npt.NDArray[np.uint8]
Levels = npt.NDArray[Any]
Layout = Literal["native", "rows"]


@dataclass(frozen=True)
class Stored:
    """How a weight stands in a written model.

    Attributes:
        weight: Name of the float weight.
        tensor: Name of the tensor that holds its levels.
        params: Its grid, along the axes of the float weight.
        layout: ``native``: the weight's shape and own type; ``rows``: 2-D, unsigned, each row packed into bytes.
        transposed: Whether the rows are the columns of the weight.
        beside: Names of the tensors with its scales and zero points.
        folded: Whether it is float in memory once onnxruntime has loaded the model.
    """

    weight: str
    tensor: str
    params: QuantParams
    layout: Layout
    transposed: bool = False
    beside: tuple[str, ...] = ()
    folded: bool = False


def pack(levels: Levels, bits: int) -> Bytes:
    """Levels ``[..., n]`` of 2, 4 or 8 bits in ``[..., ceil(n * bits / 8)]`` bytes; of negative ones the low bits."""
    each = 8 // bits
    low = np.asarray(levels).astype(np.uint8) & np.uint8((1 << bits) - 1)
    missing = -low.shape[-1] % each
    if missing:
        low = np.concatenate([low, np.zeros((*low.shape[:-1], missing), np.uint8)], axis=-1)
    packed = np.zeros((*low.shape[:-1], low.shape[-1] // each), np.uint8)
    for place in range(each):
        packed |= low[..., place::each] << np.uint8(bits * place)
    return packed


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """The unsigned levels ``[..., count]`` of packed rows."""
    each = 8 // bits
    levels = np.empty((*packed.shape[:-1], packed.shape[-1] * each), np.uint8)
    for place in range(each):
        levels[..., place::each] = (packed >> np.uint8(bits * place)) & np.uint8((1 << bits) - 1)
    return levels[..., :count]


def encode(x: FloatArray, params: QuantParams) -> Levels:
    """The levels of a weight: integers, or 8-bit floats."""
    if isinstance(params.dtype, Float8):
        return to_float8(x / _along_axis(params, x.ndim), params.dtype)
    return quantize(x, params)


def decode(levels: Levels, params: QuantParams) -> npt.NDArray[np.float32]:
    """The reals of levels."""
    if isinstance(params.dtype, Float8):
        return np.asarray(levels.astype(np.float32) * _along_axis(params, levels.ndim), np.float32)
    return dequantize(levels, params)


def _along_axis(params: QuantParams, rank: int) -> npt.NDArray[np.float32]:
    return params.scale if params.axis is None else params.scale.reshape(scale_shape(params, rank))


def scale_shape(params: QuantParams, rank: int) -> list[int]:
    """The shape in which scales of channels broadcast over a weight of so many axes."""
    return [-1 if axis == params.axis else 1 for axis in range(rank)] if params.axis is not None else []


def turned(params: QuantParams) -> QuantParams:
    """The grid of the transposed 2-D weight."""
    if params.axis is None:
        return params
    return replace(params, scale=params.scale.T, zero_point=params.zero_point.T, axis=1 - params.axis)


def _part_of(params: QuantParams, part: slice) -> QuantParams:
    """The grid of a part of a weight along its first axis, where that is cut only between blocks."""
    if params.axis is None or (params.axis != 0 and params.block_size is None):
        return params
    if params.axis == 0 and params.block_size is not None:
        part = slice(part.start // params.block_size, -(-part.stop // params.block_size))
    return replace(params, scale=params.scale[part], zero_point=params.zero_point[part])


def _multiple(params: QuantParams) -> int:
    """Rows of a part that fill whole bytes and whole blocks."""
    return math.lcm(4, params.block_size or 1) if params.axis == 0 else 4


def native(source: ir.TensorProtocol, params: QuantParams, name: str) -> ir.LazyTensor:
    """The levels in the shape of the weight and in their own type."""
    dtype, shape = ir.DataType[params.dtype.onnx], dims(source)
    bits, row = dtype.bitwidth, math.prod(shape[1:])

    def make() -> ir.TensorProtocol:
        made = np.empty(-(-math.prod(shape) * bits // 8), np.uint8) if bits < 8 else np.empty(shape, dtype.numpy())

        def fill(part: slice) -> None:
            levels = encode(read_slab(source, 0, part), _part_of(params, part))
            if bits < 8:
                packed = pack(levels.reshape(-1), bits)
                start = part.start * row * bits // 8
                made[start : start + packed.size] = packed
            else:
                made[part] = levels

        in_order(fill, slabs(shape, 0, multiple=_multiple(params)))
        if bits < 8:
            return ir.PackedTensor(made, dtype, shape=shape, name=name)
        return ir.Tensor(made, name=name)

    return ir.LazyTensor(make, dtype, ir.Shape(shape), name=name)


def rows(
    source: ir.TensorProtocol, params: QuantParams, name: str, *, transposed: bool, block: int | None = None
) -> ir.LazyTensor:
    """The levels of a 2-D weight, unsigned, each row in bytes: ``[R, bytes]``, or ``[R, blocks, bytes]``.

    Args:
        source: The weight.
        params: Its grid.
        name: The name of the tensor.
        transposed: Whether columns of the weight become the rows.
        block: Columns of a block; the last one is filled up.
    """
    count, width = _turned_shape(source, transposed=transposed)
    grid, bits = turned(params) if transposed else params, params.dtype.bits
    blocks = -(-width // block) if block else 1
    padded = blocks * block if block else width
    shape = (count, blocks, block * bits // 8) if block else (count, -(-width * bits // 8))

    def make() -> ir.TensorProtocol:
        made = np.zeros((count, shape[-1] * blocks), np.uint8)

        def fill(part: slice) -> None:
            levels = quantize(_rows_of(source, part, transposed=transposed), _part_of(grid, part)) - grid.dtype.qmin
            made[part] = pack(np.pad(levels, ((0, 0), (0, padded - width))), bits)

        in_order(fill, slabs((count, width), 0))
        return ir.Tensor(made.reshape(shape), name=name)

    return ir.LazyTensor(make, ir.DataType.UINT8, ir.Shape(shape), name=name)


def _turned_shape(source: ir.TensorProtocol, *, transposed: bool) -> tuple[int, int]:
    height, width = dims(source)
    return (width, height) if transposed else (height, width)


def _rows_of(source: ir.TensorProtocol, part: slice, *, transposed: bool) -> npt.NDArray[np.float32]:
    found = read_slab(source, 1 if transposed else 0, part)
    return np.ascontiguousarray(found.T) if transposed else found


def weight_sqnr(source: ir.TensorProtocol, written: ir.TensorProtocol, stored: Stored) -> float:
    """The SQNR, dB, of a weight as it is read back from a written tensor."""
    whole, params = array_of(written), stored.params
    shape = dims(source)
    if stored.layout == "rows":
        shape = _turned_shape(source, transposed=stored.transposed)
        params = turned(params) if stored.transposed else params
        whole = whole.reshape(shape[0], -1)

    def sums(part: slice) -> tuple[float, float]:
        if stored.layout == "rows":
            before = _rows_of(source, part, transposed=stored.transposed)
            levels = unpack(whole[part], params.dtype.bits, shape[1]).astype(np.int32) + params.dtype.qmin
        else:
            before, levels = read_slab(source, 0, part), whole[part]
            levels = levels if isinstance(params.dtype, Float8) else levels.astype(np.int32)
        exact = before.astype(np.float64)
        return float(np.square(exact).sum()), float(np.square(exact - decode(levels, _part_of(params, part))).sum())

    found = in_order(sums, slabs(shape, 0, multiple=_multiple(params)))
    return ratio_db(math.fsum(signal for signal, _ in found), math.fsum(noise for _, noise in found))


def packed_sizes(model: ir.Model) -> Mapping[str, tuple[int, str]]:
    """Bytes that every stored tensor takes in the file, and the type of its elements.

    Tensors of bytes in which onnxruntime's operators keep smaller levels have the type of the levels.
    """
    packed: dict[str, str] = {}
    for op in operators(model):
        if op.node.op_type in {"MatMulNBits", "GatherBlockQuantized"} and op.node.domain == "com.microsoft":
            levels = operand(op.node, 1 if op.node.op_type == "MatMulNBits" else 0)
            if levels is not None:
                packed[levels.name or ""] = f"uint{attributes(op.node).get('bits', 4)}"
    return {
        value.name or "": (tensor.nbytes, packed.get(value.name or "", tensor.dtype.name.lower()))
        for value, tensor in initializers(model)
    }
