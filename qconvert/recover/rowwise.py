"""What operators do to the rows of a value, which lie along its last axis."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from qconvert.graph import Operator, attributes, constant, is_constant, operand, shape_of

MOVES = frozenset({"Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile"})
"""Operators that move rows as a whole where the last axis keeps its size and its place."""

PICKS = frozenset({"Gather", "Concat", "Split"})
"""Operators that choose or join rows, along their axis."""

SUMS = frozenset({"ReduceMean", "ReduceSum"})
"""Of the channels of a row, which stay what they are, and of their squares."""


def last_size(value: ir.Value | None) -> int | None:
    """The size of the last axis, 1 for a scalar; None where it is not known."""
    shape = shape_of(value) if value is not None else None
    if shape is None:
        return None
    size = shape[-1] if shape else 1
    return size if isinstance(size, int) else None


def same_maps(image: ir.Value, flat: ir.Value) -> bool:
    """Whether a Reshape leaves the first two axes as they are."""
    shapes = [shape_of(value) or () for value in (image, flat)]
    if min(map(len, shapes)) < 3 or shapes[0][1] != shapes[1][1]:
        return False
    known = ([dim if isinstance(dim, int) else 0 for dim in shape[1:]] for shape in shapes)
    one, other = map(math.prod, known)  # 0 where one dimension is not known
    return (shapes[0][0] is not None and shapes[0][0] == shapes[1][0]) or 0 < one == other


def rank_of(value: ir.Value | None) -> int:
    """How many axes; 0 where that is not known."""
    return len(shape_of(value) or ()) if value is not None else 0


def is_table(op: Operator) -> bool:
    """Whether an operator looks up rows of a constant."""
    table = operand(op.node, 0)
    flat = table is not None and is_constant(table) and rank_of(table) == 2
    return flat and not attributes(op.node).get("axis", 0)


def keeps_rows(op: Operator) -> bool:
    """Whether an operator moves, chooses, joins or averages whole rows of its first operand."""
    first, made = op.node.inputs[0], op.node.outputs[0]
    rank = rank_of(first)
    if op.op_type in MOVES:
        perm = attributes(op.node).get("perm")
        turned = op.op_type == "Transpose" and (perm is None or perm[-1] != rank - 1)
        return not turned and last_size(first) == last_size(made) and rank > 0
    if op.op_type == "Slice":
        axes = constant(operand(op.node, 3))
        return axes is not None and not {-1, rank - 1} & set(axes.tolist())
    if op.op_type in PICKS:
        return attributes(op.node).get("axis", 0) not in {-1, rank - 1} and rank > 1
    return op.op_type in SUMS and bool(_axes(op)) and not {-1, rank - 1} & {*_axes(op)}


def _axes(op: Operator) -> list[int]:
    """Those over which an operator reduces; none where they are not known."""
    given = attributes(op.node).get("axes")
    array = constant(operand(op.node, 1)) if given is None else np.asarray(given)
    return [int(axis) for axis in array.reshape(-1)] if array is not None else []


def over_rows(op: Operator, kinds: Collection[str]) -> bool:
    """Whether an operator of one of these kinds makes one number of every row."""
    rank = rank_of(operand(op.node, 0))
    return op.op_type in kinds and _axes(op) in ([-1], [rank - 1]) and bool(attributes(op.node).get("keepdims", 1))


def is_square(op: Operator) -> bool:
    """Whether an operator squares its first operand."""
    first, second = (operand(op.node, place) for place in (0, 1))
    if op.op_type == "Mul":
        return first is second
    power = constant(second) if op.op_type == "Pow" else None
    return power is not None and power.size == 1 and float(power.reshape(-1)[0]) == 2
