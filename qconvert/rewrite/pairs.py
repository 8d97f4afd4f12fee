"""Reading a written graph: which tensors are levels, and on which grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.graph import STANDARD_DOMAINS, attributes, constant, operand
from qconvert.numerics import INT8, INT32, UINT8, QuantParams

DTYPES = {ir.DataType.UINT8: UINT8, ir.DataType.INT8: INT8, ir.DataType.INT32: INT32}
"""The types of levels that integer operators take."""


@dataclass(frozen=True, eq=False)
class Levels:
    """A tensor of levels in a graph: ``real = scale * (value - zero)``.

    Attributes:
        value: The integer tensor.
        scale: Constant float32 of shape ``[]``, ``[1]`` or ``[C]``.
        zero: Constant of the same shape and of the type of the levels; None is 0 in int32.
        params: The same grid as numbers.
    """

    value: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    params: QuantParams

    @property
    def per_tensor(self) -> bool:
        """Whether there is one scale."""
        return bool(self.params.scale.size == 1)


def dequantized(value: ir.Value | None) -> Levels | None:
    """The levels behind a value that comes out of DequantizeLinear, where these are 8 bits wide or int32."""
    return _levels(value.producer(), "DequantizeLinear") if value is not None else None


def quantizer(value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear that alone reads a value."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].idx != 0:
        return None
    return uses[0].node if quantized(uses[0].node) is not None else None


def quantized(node: ir.Node) -> Levels | None:
    """The levels that a QuantizeLinear gives, its grid constant and one for the tensor, or None for other nodes."""
    found = _levels(node, "QuantizeLinear")
    return found if found is not None and found.per_tensor else None


def same_grid(one: Levels, other: Levels) -> bool:
    """Whether the same levels of both are the same reals."""
    return one.params == other.params


def is_operator(node: ir.Node | None, *op_types: str) -> bool:
    """Whether a node is one of these operators of the default domain."""
    return node is not None and node.op_type in op_types and node.domain in STANDARD_DOMAINS


def given_levels(
    value: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None, axis: int | None
) -> Levels | None:
    """Levels with their grid, where that is constant and of a type that integer operators take.

    Args:
        value: The levels.
        scale: Their scale.
        zero: Their zero point; None is 0 in int32.
        axis: The axis of the channels where there are several scales.
    """
    numbers, zeros = constant(scale), constant(zero)
    kind = zero.dtype if zero is not None else value.dtype if value is not None else None
    if value is None or scale is None or numbers is None or kind not in DTYPES or numbers.dtype != np.float32:
        return None
    if zeros is None:
        if zero is not None or kind != ir.DataType.INT32:
            return None
        zeros = np.zeros(numbers.shape, np.int32)
    params = QuantParams(numbers, zeros.astype(np.int32), DTYPES[kind], axis if numbers.size > 1 else None)
    return Levels(value, scale, zero, params)


def _levels(node: ir.Node | None, op_type: str) -> Levels | None:
    if node is None or not is_operator(node, op_type) or attributes(node).get("block_size"):
        return None
    data, scale, zero = (operand(node, index) for index in range(3))
    levels = data if op_type == "DequantizeLinear" else node.outputs[0]
    return given_levels(levels, scale, zero, int(attributes(node).get("axis", 1)))
