"""Goes through a quantized model layer by layer: each sees the inputs that the layers before it, as changed, make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.graph import Operator, constant, operand, operators
from qconvert.numerics import QuantParams
from qconvert.plan import Entry, Site
from qconvert.recover.edits import add_operand, as_read, in_bodies, insert_branch, nodes_of, set_constant, simulated
from qconvert.recover.journal import Change, Done, Section
from qconvert.recover.stream import Array, Stream
from qconvert.recover.types import Context, Step, Work, said

Reals = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A heavy operator with a quantized constant weight.

    Attributes:
        op: It, in the graph that is worked on.
        entry: Of its weight.
        weight: The float weight, as the reference has it, in the operator's shape.
        walk: Where its inputs come from and its changes go to.
        index: Its place among the layers.
    """

    op: Operator
    entry: Entry
    weight: Reals
    walk: Walk = field(repr=False, compare=False)
    index: int

    @property
    def params(self) -> QuantParams:
        """The grid of the weight."""
        return self.entry.params

    def inputs(self) -> Iterator[tuple[Reals, Reals]]:
        """What it reads in the float model and in the quantized one so far, for one sample after another."""
        return self.walk.pairs(self.index)

    def outputs(self, operator: str = "") -> Iterator[tuple[Reals, Reals]]:
        """What it, or an operator that reads it, makes of those, likewise."""
        return self.walk.pairs(self.index, operator or self.op.name)

    def set_weight(self, array: Reals) -> None:
        """Replaces the weight by reals that lie on its grid.

        Args:
            array: ``dequantize(levels, params)``, in the operator's shape.
        """
        self.walk.set_weight(self, array)

    def set_bias(self, site: Site, array: Reals) -> None:
        """Replaces the constant bias that is read at a site."""
        self.walk.set_bias(self, site, array)

    def add_bias(self, position: int, array: Reals, params: QuantParams | None) -> None:
        """Gives the operator a bias, int32 with a grid, else float."""
        self.walk.add_bias(self, position, array, params)


class Walk:
    """The layers of a model in topological order.

    Changes are seen by every later layer; ``work`` is what came of all. Leave with ``close``.
    """

    def __init__(self, work: Work, context: Context, *, exact: bool = True) -> None:
        """Opens both models.

        Args:
            work: The model and its plan; left as it is.
            context: Samples and limits.
            exact: Whether the float model's values are wanted; else the quantized model's stand in their place.
        """
        self._graph, self._plan, self._reference = work.graph.clone(), work.plan, work.reference
        self._notes = work.notes
        self._nodes = nodes_of(self._graph)
        sim = simulated(work.graph, work.plan)
        self._sim = sim.nodes
        by_op = {entry.sites[0].operator: entry for entry in work.plan.of("weight")}
        first = {site.operator: entry for entry in by_op.values() for site in entry.sites}
        self.ops = [op for op in operators(self._graph) if op.name in first and not op.subgraph]
        self._entries = [first[op.name] for op in self.ops]
        self._exact_nodes = nodes_of(self._reference)
        self._given = self._stream(sim.model, self._sim, context)
        self._exact = self._stream(self._reference, self._exact_nodes, context) if exact else None
        self._changes: list[Change] = []

    def _stream(self, model: ir.Model, nodes: Mapping[str, ir.Node], context: Context) -> Stream:
        return Stream(model, [nodes[op.name] for op in self.ops], context.probes, stored=context.stored)

    def settle(self, section: Section, index: int, change: Callable[[], str]) -> str:
        """Goes to just before a layer and changes it and those behind it, or does what is known to come of that.

        Args:
            section: What is known of this step.
            index: Of the layer.
            change: Changes them; why it does not, as the end of a sentence, or "".

        Returns:
            What ``change`` returns.
        """
        self.advance(index)  # known or not: what later layers read has the same bits only if it came the same way
        name = self.ops[index].name
        known = section.read(name)
        if known is not None:
            for what, number, arguments in known.changes:
                getattr(self, what)(self.layer(number), *arguments)
            return known.why
        self._changes.clear()
        why = change()
        section.keep(name, Done(why, tuple(self._changes)))
        return why

    def advance(self, index: int) -> None:
        """Goes to just before a layer; not back."""
        self._given.advance(index)
        if self._exact is not None:
            self._exact.advance(index)

    def layer(self, index: int) -> Layer:
        """A layer that is not passed yet."""
        op, entry = self.ops[index], self._entries[index]
        array = constant(operand(self._exact_nodes[op.name], entry.sites[0].operand))
        return Layer(op, entry, np.asarray(array, np.float32), self, index)

    @property
    def simulated(self) -> Mapping[str, ir.Node]:
        """The operators of the quantized model in float arithmetic, by name."""
        return self._sim

    def given(self, values: Sequence[ir.Value]) -> Iterator[list[Array]]:
        """Values of the quantized model, which those kept lead to, for one sample after another."""
        return self._given.fetch(values)

    def exact(self, values: Sequence[ir.Value]) -> Iterator[list[Array]]:
        """Values of the reference, likewise.

        Raises:
            ValueError: If the walk was opened without it.
        """
        if self._exact is None:
            message = "the float model's values were not asked for"
            raise ValueError(message)
        return self._exact.fetch(values)

    def __len__(self) -> int:
        return len(self.ops)

    @property
    def work(self) -> Work:
        """The model and its plan with all changes."""
        return Work(self._reference, self._graph, self._plan, self._notes)

    def note(self, text: str) -> None:
        """Adds to what was done or left out."""
        self._notes = (*self._notes, text)

    def pairs(self, index: int, operator: str = "") -> Iterator[tuple[Reals, Reals]]:
        """What a layer reads, or an operator at it makes, in the float model and in the quantized one."""
        name = self.ops[index].name
        given = self._given.fetch([_value(self._sim, name, operator)])
        if self._exact is None:
            yield from ((one[0], one[0]) for one in given)
            return
        exact = self._exact.fetch([_value(self._exact_nodes, name, operator)])
        yield from ((one[0], other[0]) for one, other in zip(exact, given, strict=True))

    def set_weight(self, layer: Layer, array: Reals) -> None:
        """See ``Layer``."""
        self._changes.append(("set_weight", layer.index, (array,)))
        entry = layer.entry
        self._plan = set_constant(self._nodes, self._plan, entry.sites, array)
        set_constant(self._sim, self._plan, entry.sites, as_read(array, entry))

    def set_entries(self, layer: Layer, entries: Sequence[Entry]) -> Layer:
        """Gives the weight and the bias of a layer other grids, each in place of that of its role and sites.

        Returns:
            The layer with its new entry.
        """
        self._changes.append(("set_entries", layer.index, (tuple(entries),)))
        new = {(entry.role, entry.sites): entry for entry in entries}
        found = tuple(new.get((entry.role, entry.sites), entry) for entry in self._plan.entries)
        self._plan = replace(self._plan, entries=found)
        entry = new.get(("weight", layer.entry.sites), layer.entry)
        self._entries[layer.index] = entry
        set_constant(self._sim, self._plan, entry.sites, as_read(layer.weight, entry))
        return replace(layer, entry=entry)

    def set_bias(self, layer: Layer, site: Site, array: Reals) -> None:
        """See ``Layer``."""
        self._changes.append(("set_bias", layer.index, (site, array)))
        self._plan = set_constant(self._nodes, self._plan, (site,), array)
        set_constant(self._sim, self._plan, (site,), array)

    def add_bias(self, layer: Layer, position: int, array: Reals, params: QuantParams | None) -> None:
        """See ``Layer``."""
        self._changes.append(("add_bias", layer.index, (position, array, params)))
        name = add_operand(layer.op.node, position, array, f"{layer.op.name}_bias")
        add_operand(self._sim[layer.op.name], position, array, f"{layer.op.name}_bias")
        if params is not None:
            reason = f"bias of {layer.op.name}: scale of its input times scale of its weight"
            entry = Entry(name, "bias", params, (Site(layer.op.name, position),), "input scale x weight scale", reason)
            self._plan = replace(self._plan, entries=(*self._plan.entries, entry))

    def current(self, layer: Layer) -> Reals:
        """The weight of a layer as it is, before it is rounded."""
        return np.asarray(constant(operand(layer.op.node, layer.entry.sites[0].operand)), np.float32)

    def add_branch(self, layer: Layer, first: Reals, second: Reals) -> None:
        """Adds ``x @ first @ second`` to what a Gemm or MatMul makes of ``x``, read on its grid if it has one.

        Args:
            layer: The layer.
            first: ``[K, r]``.
            second: ``[r, O]``.
        """
        self._changes.append(("add_branch", layer.index, (first, second)))
        reader, made = insert_branch(layer.op.node, first, second)
        insert_branch(self._sim[layer.op.name], first, second)
        site = Site(layer.op.name, 0)
        entries = (
            replace(entry, sites=(*entry.sites, Site(reader, 0))) if site in entry.sites else entry
            for entry in self._plan.entries
        )
        moved = tuple(replace(one, tensor=made) if one.tensor == layer.op.name else one for one in entries)
        self._plan = replace(self._plan, entries=moved)

    def close(self) -> None:
        """Gives back what is kept between layers."""
        self._given.close()
        if self._exact is not None:
            self._exact.close()


def _value(nodes: Mapping[str, ir.Node], layer: str, operator: str) -> ir.Value:
    """What an operator makes, or without one what the layer reads."""
    node = nodes[operator or layer]
    value = node.outputs[0] if operator else node.inputs[0]
    if value is None:
        message = f"operator '{node.name}' has no input"
        raise ValueError(message)
    return value


def change_layers(work: Work, context: Context, step: Step, title: str, change: Callable[[Layer, Walk], str]) -> Work:
    """Takes a step to every layer that gets it; says how many it changed, and which it left out for which reason.

    Args:
        work: The model and its plan; left as it is.
        context: Samples and limits.
        step: It.
        title: What it does, for the progress.
        change: Changes a layer; why it does not, as the end of a sentence, or "".
    """
    walk, left_out, section = Walk(work, context), dict[str, str](), Section.of(step, work, context, "layers")
    context.listener.start(title, len(walk))
    try:
        for index, op in enumerate(walk.ops):
            change_it = partial(change, walk.layer(index), walk)
            reason = context.refusal(step.name, op.name) or walk.settle(section, index, change_it)
            if reason:
                left_out[op.name] = reason
            context.listener.advance(index + 1)
        walk.note(said(step.name, len(walk) - len(left_out), {**left_out, **in_bodies(work.graph)}))
        return walk.work
    finally:
        walk.close()
        context.listener.finish()


def channel_axis(op_type: str, rank: int) -> int:
    """The axis of the output's channels of a Conv, ConvTranspose, Gemm or MatMul."""
    return 1 if op_type in {"Conv", "ConvTranspose"} else rank - 1
