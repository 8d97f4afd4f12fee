"""What an operator costs on a rung: bytes that a run moves, and bit-operations.

Bit-operations are multiply-adds times the bits of both operands (C. Baskin et al., "UNIQ", arXiv:1804.10969), 32 where
one is float. Bytes are those of everything that is read, weights with their scales: the part that is weights is what
the file gets larger by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qconvert.graph import FLOATS, Operator, constant, operators, shape_of
from qconvert.memory import value_bytes
from qconvert.plan import Entry, Plan, Site
from qconvert.session import Feeds
from qconvert.targets import HEAVY

FLOAT_BITS = 32


@dataclass(frozen=True)
class Work:
    """What an operator does for one sample, whatever its types.

    Attributes:
        macs: Multiply-adds; 0 of light operators.
        reads: Elements of each float operand by its position.
    """

    macs: int
    reads: Mapping[int, int]


@dataclass(frozen=True)
class Cost:
    """Of one sample.

    Attributes:
        moved: Bytes that are read.
        bit_operations: Multiply-adds times the bits of both operands.
    """

    moved: float = 0.0
    bit_operations: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.moved + other.moved, self.bit_operations + other.bit_operations)


def works(model: ir.Model, feeds: Feeds) -> dict[str, Work]:
    """What every operator of the main graph does, by name."""
    ops = [op for op in operators(model) if not op.subgraph]
    floats = {
        value.name: None
        for op in ops
        for value in (*op.node.inputs, *op.node.outputs)
        if value is not None and value.name and value.dtype in FLOATS and constant(value) is None
    }
    sizes = {name: size // 4 for name, size in value_bytes(model, tuple(floats), feeds).items()}
    return {op.name: _work(op, sizes) for op in ops}


def _work(op: Operator, sizes: Mapping[str, int]) -> Work:
    reads = {}
    for position, value in enumerate(op.node.inputs):
        array = constant(value)
        if value is not None and value.dtype in FLOATS:
            reads[position] = sizes.get(value.name or "", 0) if array is None else int(array.size)
    written = sizes.get(op.node.outputs[0].name or "", 0)
    return Work(_macs(op, written, reads) if op.op_type in HEAVY else 0, reads)


def _macs(op: Operator, written: int, reads: Mapping[int, int]) -> int:
    data, weight = op.node.inputs[:2]
    shapes = [() if value is None else shape_of(value) or () for value in (data, weight)]
    if op.op_type == "Conv":
        return written * _product(shapes[1][1:])
    if op.op_type == "ConvTranspose":
        return reads.get(0, 0) * _product(shapes[1][1:])
    inner = next((dim for dim in (*shapes[0][-1:], *shapes[1][-2:-1]) if isinstance(dim, int)), 0)
    return written * inner


def _product(dims: Iterable[int | str | None]) -> int:
    return math.prod(dim if isinstance(dim, int) else 0 for dim in dims)


def cost(plan: Plan | None, operators_: Iterable[str], works_: Mapping[str, Work]) -> Cost:
    """What operators cost by a plan; without one, in float."""
    grids = {} if plan is None else grids_of(plan)
    total = Cost()
    for name in operators_:
        work = works_[name]
        total += Cost(
            sum(_moved(count, grids.get(Site(name, position))) for position, count in work.reads.items()),
            float(work.macs * math.prod(_bits(grids.get(Site(name, position))) for position in (0, 1))),
        )
    return total


def grids_of(plan: Plan) -> dict[Site, Entry]:
    """The entry of every place where a quantized tensor is read."""
    return {site: entry for entry in plan.entries for site in entry.sites}


def _bits(entry: Entry | None) -> int:
    return FLOAT_BITS if entry is None else entry.params.dtype.bits


def _moved(count: int, entry: Entry | None) -> float:
    scales = 4 * int(entry.params.scale.size) if entry is not None else 0
    return count * _bits(entry) / 8 + scales
