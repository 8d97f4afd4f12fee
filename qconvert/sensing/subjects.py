"""Subjects of experiments, and the two plans of each: its share of the whole plan alone, and the plan without it.

A subject's share is a set of places: the grids of its operators' inputs, weights and biases where they read them, and
those of their outputs wherever they are read. ``only`` keeps the share, ``all_but`` keeps the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.graph import Operator, constant, operators
from qconvert.plan import Entry, Plan, Site
from qconvert.sensing.blocks import blocks
from qconvert.sensing.types import Granularity

Place = tuple[str, str, Site]
"""Role and tensor of an entry, and one of its sites."""


@dataclass(frozen=True)
class Subject:
    """What one experiment is about.

    Attributes:
        name: Unique within a granularity.
        op_type: As ``Effect.op_type``.
        operators: Names of its operators in topological order.
        order: Place of the first of them in the graph.
        share: Its places in the whole plan.
        ends: The values that it hands on, for the error of its own output.
        saved_bytes: Bytes of weights that quantizing it saves.
    """

    name: str
    op_type: str
    operators: tuple[str, ...]
    order: int
    share: frozenset[Place]
    ends: tuple[str, ...]
    saved_bytes: int


def only(plan: Plan, subject: Subject) -> Plan:
    """The subject quantized, the rest float."""
    alone = _kept(plan, subject.share)
    # a clamp in front of it may stay where the float model has it
    return replace(alone, absorbed=tuple(one for one in alone.absorbed if one.tensor in subject.ends))


def all_but(plan: Plan, subject: Subject) -> Plan:
    """The whole plan without the subject."""
    return _kept(plan, _places(plan.entries) - subject.share)


def _places(entries: Iterable[Entry]) -> frozenset[Place]:
    return frozenset((entry.role, entry.tensor, site) for entry in entries for site in entry.sites)


def _kept(plan: Plan, places: frozenset[Place]) -> Plan:
    entries = []
    for entry in plan.entries:
        sites = tuple(site for site in entry.sites if (entry.role, entry.tensor, site) in places)
        if sites:
            entries.append(replace(entry, sites=sites))
    whole = {entry.tensor: entry.sites for entry in plan.of("activation")}
    # a clamp may only vanish where every reader of its output sees the grid that does its work
    grids = {entry.tensor for entry in entries if entry.role == "activation" and entry.sites == whole[entry.tensor]}
    return replace(plan, entries=tuple(entries), absorbed=tuple(one for one in plan.absorbed if one.tensor in grids))


def subjects(model: ir.Model, plan: Plan, granularity: Granularity) -> tuple[Subject, ...]:
    """What can be experimented on, in topological order.

    Args:
        model: The prepared graph of the plan.
        plan: The whole plan.
        granularity: What is a subject.

    Raises:
        PlanError: If the plan quantizes nothing.
    """
    ops = {op.name: (index, op) for index, op in enumerate(operators(model))}
    single = [_operator(plan, ops, name) for name, _ in plan.integer]
    single = [one for one in sorted(single, key=lambda one: one.order) if one.share]
    if not single:
        raise PlanError("the plan quantizes no operator", hint="'qconvert inspect MODEL' shows why")
    if granularity == "operator":
        return tuple(single)
    if granularity == "tensor":
        return tuple(_tensors(model, plan, ops))
    if granularity == "op-type":
        types = {name: op.op_type for name, (_, op) in ops.items()}
        groups: Mapping[str, Sequence[str]] = _grouped({one.name: types[one.name] for one in single})
    else:
        groups = _grouped({name: block for block, names in blocks(model).items() for name in names})
    by_name = {one.name: one for one in single}
    found = [_union(name, [by_name[member] for member in names if member in by_name]) for name, names in groups.items()]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: one.order))


def _grouped(group_of: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, group in group_of.items():
        found.setdefault(group, []).append(name)
    return found


def _operator(plan: Plan, ops: Mapping[str, tuple[int, Operator]], name: str) -> Subject:
    order, op = ops[name]
    absorbed = {one.operator: one.tensor for one in plan.absorbed}
    made = {value.name or "" for value in op.node.outputs}
    # a grid behind the operator's clamp is that of its output
    clamps = [use.node for value in op.node.outputs for use in value.uses()]
    made |= {absorbed[value.name] for node in clamps for value in node.outputs if value.name in absorbed}
    own = [
        (entry, site)
        for entry in plan.entries
        for site in entry.sites
        if site.operator == name or (entry.role == "activation" and entry.tensor in made)
    ]
    own += _outer_bias(plan, op)
    gridded = [entry.tensor for entry, _ in own if entry.tensor in made]
    ends = tuple(dict.fromkeys(gridded)) or tuple(value.name for value in op.node.outputs[:1] if value.name)
    share = frozenset((entry.role, entry.tensor, site) for entry, site in own)
    saved = sum(_saved(op, entry, site) for entry, site in own if entry.role == "weight" and site.operator == name)
    return Subject(name, op.op_type, (name,), order, share, ends, saved)


def _outer_bias(plan: Plan, op: Operator) -> list[tuple[Entry, Site]]:
    """The bias of a MatMul that the Add behind it holds."""
    if op.op_type != "MatMul":
        return []
    adds = [use.node for out in op.node.outputs for use in out.uses() if use.node.op_type == "Add"]
    readers = {value.name for node in adds for value in node.outputs}
    return [(entry, site) for entry in plan.of("bias") for site in entry.sites if site.operator in readers]


def _saved(op: Operator, entry: Entry, site: Site) -> int:
    array = constant(op.node.inputs[site.operand])
    if array is None:
        return 0
    share = len({one.operator for one in entry.sites})
    grid = int(np.size(entry.params.scale)) * 4
    return (array.nbytes - array.size * entry.params.dtype.bits // 8 - grid) // share


def _union(name: str, members: Sequence[Subject]) -> Subject | None:
    if not members:
        return None
    counts = Counter(one.op_type for one in members)
    kinds = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in counts.items())
    share = frozenset().union(*(one.share for one in members))
    inner = {site.operator for _, _, site in share}
    ends = tuple(dict.fromkeys(end for one in members for end in one.ends if not _is_inner(end, share, inner)))
    saved = sum(one.saved_bytes for one in members)
    operators_ = tuple(one.name for one in members)
    return Subject(name, kinds, operators_, members[0].order, share, ends or members[-1].ends, saved)


def _is_inner(end: str, share: frozenset[Place], inner: set[str]) -> bool:
    """Whether only the subject's own operators read a value."""
    readers = {site.operator for _, tensor, site in share if tensor == end}
    return bool(readers) and readers <= inner - {""}


def _tensors(model: ir.Model, plan: Plan, ops: Mapping[str, tuple[int, Operator]]) -> Iterable[Subject]:
    """Weights and activations alone; the grid of a bias follows from those of its operator and is no subject."""
    makers = {value.name: op.name for op in operators(model) for value in op.node.outputs}
    for entry in plan.entries:
        if entry.role == "bias":
            continue
        readers = [site.operator for site in entry.sites if site.operator]
        named = tuple(dict.fromkeys(readers)) or (makers.get(entry.tensor, ""),)
        order = min(ops[name][0] for name in named if name in ops)
        saved = sum(_saved(ops[site.operator][1], entry, site) for site in entry.sites) if entry.role == "weight" else 0
        share = frozenset((entry.role, entry.tensor, site) for site in entry.sites)
        yield Subject(entry.tensor, entry.role, named, order, share, (entry.tensor,), saved)
