"""Streams: values whose rows can be multiplied with one matrix together, found from a sum that is normalized.

The matrix Q is orthogonal and leaves the mean over the channels as it is, ``Q 1 = Q^T 1 = 1``: normalizations, sums,
and numbers of one a row commute with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from qconvert.graph import Operator, attributes, constant, is_constant, operand, operators
from qconvert.plan import Site
from qconvert.recover.chains import own_weight
from qconvert.recover.edits import body_of
from qconvert.recover.folding import NORMS
from qconvert.recover.rowwise import SUMS, is_square, is_table, keeps_rows, last_size, over_rows, rank_of, same_maps
from qconvert.rules import channels


@dataclass(eq=False)
class Gain:
    """What a normalization multiplies its channels with, and adds to them.

    Attributes:
        site: Where the factors are read.
        biases: Where what is added is read.
    """

    site: Site
    biases: list[Site] = field(default_factory=list)


@dataclass(eq=False)
class Stream:
    """Values whose rows can be turned together.

    Attributes:
        name: Of the operator where it was found.
        size: Channels, along the last axis.
        turned: They, with the gain of the normalization behind which they lie, or None.
        writers: Operators whose own weights make them.
        constants: What is added to them or looked up, with the channels along the last axis.
        readers: Operators that multiply them with their own weights.
    """

    name: str
    size: int
    turned: dict[ir.Value, Gain | None] = field(default_factory=dict)
    writers: list[Operator] = field(default_factory=list)
    constants: list[Site] = field(default_factory=list)
    readers: list[tuple[Operator, Gain | None]] = field(default_factory=list)

    @property
    def gains(self) -> list[Gain]:
        """Those of all normalizations."""
        return list(dict.fromkeys(gain for gain in self.turned.values() if gain is not None))

    @property
    def heavy(self) -> list[Operator]:
        """The operators whose weights change."""
        return [*self.writers, *(op for op, _ in self.readers)]


class _RefusedError(Exception):
    """Why values cannot be turned, as the end of a sentence."""


def find_streams(model: ir.Model) -> tuple[list[Stream], dict[str, str]]:
    """The residual streams of a model, and why other sums that are normalized belong to none, by name."""
    by_node = {op.node: op for op in operators(model)}
    found, refused, seen = list[Stream](), dict[str, str](), set[ir.Value]()
    for op in by_node.values():
        value = op.node.outputs[0]
        joins = op.op_type == "Add" and not any(one is None or is_constant(one) for one in op.node.inputs)
        readers = [by_node[use.node] for use in value.uses() if use.node in by_node]
        normed = any(one.op_type in NORMS or is_square(one) or over_rows(one, SUMS) for one in readers)
        size = last_size(value)
        if not (joins and normed) or value in seen or size is None or size <= 2:
            continue
        if op.subgraph:
            refused[op.name] = body_of(op)
            continue
        stream = Stream(op.name, size)
        try:
            _Closure(stream, by_node).close(value)
        except _RefusedError as error:
            refused[op.name] = str(error)
        else:
            found.append(stream)
        seen.update(stream.turned)
    return found, refused


class _Closure:
    """Finds all that has to be turned with a value."""

    def __init__(self, stream: Stream, by_node: Mapping[ir.Node, Operator]) -> None:
        self.stream, self.by_node = stream, by_node
        self.todo: list[tuple[ir.Value, bool]] = []

    def close(self, value: ir.Value) -> None:
        """Turns a value and whatever that asks for."""
        self.turn(value)
        while self.todo:
            value, made = self.todo.pop()
            if value.is_graph_output():
                raise _RefusedError("which is an output of the model")
            if not made:
                self.make(value)
            for use in value.uses():
                self.read(value, use.node, use.idx)
        if not self.stream.writers or not any(gain is not None for _, gain in self.stream.readers):
            raise _RefusedError("which no layer reads behind a normalization")

    def turn(self, value: ir.Value | None, gain: Gain | None = None, *, made: bool = False) -> None:
        """Notes that a value is turned."""
        if value is None or last_size(value) != self.stream.size:
            raise _RefusedError("which meets values of another or an unknown size")
        if value not in self.stream.turned:
            self.stream.turned[value] = gain
            self.todo.append((value, made))
        elif self.stream.turned[value] is not gain:
            raise _RefusedError("which meets what is behind a normalization with gains")

    def op(self, node: ir.Node | None) -> Operator:
        """The operator of a node of the main graph."""
        op = self.by_node.get(node) if node is not None else None
        if op is None:
            raise _RefusedError("which an input of the model makes")
        if op.subgraph:
            raise _RefusedError(f"which is read {body_of(op)}")
        return op

    def make(self, value: ir.Value) -> None:
        """Asks what makes a value to make it turned."""
        op, gain = self.op(value.producer()), self.stream.turned[value]
        kind = op.op_type
        if kind in {"MatMul", "Gemm"} and gain is None:
            self.write(op, rows=False)
        elif kind == "Gather" and is_table(op) and gain is None:
            self.stream.constants.append(Site(op.name, 0))
        elif kind in {"Add", "Sub"}:
            self.add(op, gain)
        elif kind in {"Mul", "Div"} and (data := self.factor(op)) is not None:
            self.turn(op.node.inputs[data], gain)
        elif keeps_rows(op):
            for place, part in enumerate(op.node.inputs if kind == "Concat" else op.node.inputs[:1]):
                self.part(op, place, part, gain)
        elif kind == "Transpose" and gain is None:
            self.image(op)
        else:
            raise _RefusedError(f"which {kind} makes")

    def add(self, op: Operator, gain: Gain | None) -> None:
        """Both terms of a sum; one number a row is added to all channels, as ``1 Q = 1``."""
        for place, part in enumerate(op.node.inputs):
            if part is not None and last_size(part) == 1 and gain is None:
                continue
            self.part(op, place, part, gain)

    def part(self, op: Operator, place: int, part: ir.Value | None, gain: Gain | None) -> None:
        """An operand of which each row becomes one of the stream, or is added to one."""
        if part is None or not is_constant(part):
            self.turn(part, gain)
        elif last_size(part) != self.stream.size:
            raise _RefusedError("to which a constant of another size is added")
        else:
            (self.stream.constants if gain is None else gain.biases).append(Site(op.name, place))

    def factor(self, op: Operator) -> int | None:
        """The operand of a product that has the channels, where the other has one number a row."""
        sizes = [last_size(value) for value in op.node.inputs]
        if sizes[1] == 1 and sizes[0] == self.stream.size:
            return 0
        return 1 if op.op_type == "Mul" and sizes[0] == 1 and sizes[1] == self.stream.size else None

    def image(self, op: Operator) -> None:
        """A Transpose that brings the channels of a convolution to the end, as of the patches of an image."""
        axis = attributes(op.node).get("perm", (0,))[-1]
        before = op.node.inputs[0]
        while before is not None and len(tuple(before.uses())) == 1 and not before.is_graph_output() and axis == 1:
            maker = self.op(before.producer())
            self.stream.turned[before] = None
            if maker.op_type == "Conv":
                return self.write(maker, rows=False)
            source = operand(maker.node, 0)
            if maker.op_type != "Reshape" or source is None or not same_maps(source, before):
                break
            before = source
        raise _RefusedError("which Transpose makes")

    def write(self, op: Operator, *, rows: bool, gain: Gain | None = None) -> None:
        """An operator whose weight is turned: its inputs, ``rows``, or else its outputs."""
        weight = own_weight(op)
        keys = attributes(op.node)
        where = channels(op.op_type, weight.shape, keys) if weight is not None else ()
        if weight is None or len(where) < 2 or keys.get("transA") or keys.get("group", 1) > 1:
            raise _RefusedError(f"which a {op.op_type} of two values, or of a shared weight, makes or reads")
        bias = operand(op.node, 2) if not rows and op.op_type in {"Gemm", "Conv"} else None
        own = bias is None or (is_constant(bias) and last_size(bias) == self.stream.size)
        if where[0 if rows else 1].size != self.stream.size or not own:
            raise _RefusedError(f"which a {op.op_type} with a bias of another size makes or reads")
        if rows:
            self.stream.readers.append((op, gain))
        elif op not in self.stream.writers:
            self.stream.writers.append(op)
            self.stream.constants += [Site(op.name, 2)] if bias is not None else []

    def read(self, value: ir.Value, node: ir.Node, place: int) -> None:
        """Asks who reads a turned value to be right all the same, or to be turned as well."""
        op, gain = self.op(node), self.stream.turned[value]
        kind = op.op_type.rpartition("::")[2]
        if kind == "Shape":
            return
        if kind in {"MatMul", "Gemm"} and place == 0:
            self.write(op, rows=True, gain=gain)
        elif gain is not None and (kind in NORMS or is_square(op) or over_rows(op, SUMS)):
            raise _RefusedError("which holds what a normalization made with gains")
        elif kind in NORMS and place == 0:
            self.norm(op)
        elif is_square(op):
            if not all(over_rows(self.op(use.node), SUMS) for use in node.outputs[0].uses()):
                raise _RefusedError("whose squares are read one by one")
        elif over_rows(op, SUMS | {"ReduceL2", "ReduceSumSquare"}):
            return
        elif gain is None and kind == "Mul" and last_size(node.inputs[1 - place]) == self.stream.size:
            self.behind(op, Gain(Site(op.name, 1 - place)))
        elif kind in {"Add", "Sub", "Mul", "Div"} or keeps_rows(op):
            for output in node.outputs if kind == "Split" else node.outputs[:1]:
                self.turn(output, gain)
        else:
            raise _RefusedError(f"which {kind} reads")

    def norm(self, op: Operator) -> None:
        """A normalization over the last axis, in one operator."""
        axis, rank = attributes(op.node).get("axis", -1), rank_of(op.node.inputs[0])
        if axis not in {-1, rank - 1} or any(one.uses() or one.is_graph_output() for one in op.node.outputs[1:]):
            raise _RefusedError(f"which {op.op_type} over other axes reads")
        gain = Gain(Site(op.name, 1), [Site(op.name, 2)] if operand(op.node, 2) is not None else [])
        self.behind(op, gain)

    def behind(self, op: Operator, gain: Gain) -> None:
        """What an operator multiplies with the gains of a normalization, whole or the last of several operators."""
        for site in (gain.site, *gain.biases):
            row = constant(operand(op.node, site.operand))
            if row is None or row.size != self.stream.size:
                raise _RefusedError("which is multiplied with what is no constant")
        self.turn(op.node.outputs[0], gain, made=True)
