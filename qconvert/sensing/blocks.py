"""Blocks of a graph: residual blocks, transformer layers, stages; from scopes in names, else from the graph's shape.

Exporters write the module path into names (``/layers.3/attn/MatMul``): a path up to its first numbered part is a block.
Where names tell nothing, a block ends where a single computed value is alive: between residual blocks, behind an Add.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

from qconvert.graph import Operator, is_constant, operators
from qconvert.targets import HEAVY

_NUMBERED = re.compile(r".*[._]?\d+$")
_CLAMPS = frozenset({"Relu", "Clip"})
"""What belongs to the block before it."""

_LEAST_SHARE, _LEAST_HEAVY = 0.5, 1.5
"""For names to be believed: the share of heavy operators that lie in numbered scopes, and how many in each scope."""


def blocks(model: ir.Model) -> dict[str, tuple[str, ...]]:
    """Names of the main graph's operators by block, in topological order."""
    ops = [op for op in operators(model) if not op.subgraph]
    return _by_scope(ops) or _by_shape(ops)


def _by_scope(ops: Sequence[Operator]) -> dict[str, tuple[str, ...]]:
    scopes = [_scope(op) for op in ops]
    heavy = [scope for op, scope in zip(ops, scopes, strict=True) if op.op_type in HEAVY]
    inside, numbered = sum(bool(scope) for scope in heavy), len(set(heavy) - {""})
    if numbered < 2 or inside < max(_LEAST_SHARE * len(heavy), _LEAST_HEAVY * numbered):
        return {}
    found: dict[str, list[str]] = {}
    for op, scope in zip(ops, scopes, strict=True):
        found.setdefault(scope or _outer(op), []).append(op.name)
    return {scope: tuple(names) for scope, names in found.items()}


def _path(op: Operator) -> list[str]:
    """The parts of the first name that is a path, without the operator's own."""
    path = next((name for name in op.names if name.count("/") >= 2), "")
    return [part for part in path.split("/") if part][:-1]


def _scope(op: Operator) -> str:
    """The path up to the first numbered part that repeats the name before it or stands in a list: ``layer1.0``."""
    parts = _path(op)
    numbered = [index for index, part in enumerate(parts) if _NUMBERED.match(part)]
    if not numbered:
        return ""
    dotted = [index for index in numbered if re.search(r"[._]\d+$", parts[index])]
    return "/" + "/".join(parts[: (dotted or numbered)[0] + 1])


def _outer(op: Operator) -> str:
    parts = _path(op)
    return "/" + parts[0] if parts else op.name


def _by_shape(ops: Sequence[Operator]) -> dict[str, tuple[str, ...]]:
    """Cuts the sequence of operators where a single computed value is left, and chains at their heavy operators."""
    found: list[list[Operator]] = [[]]
    carried, last = _carried(ops), _last_reads(ops)
    alive: set[ir.Value] = set()
    single, closed = True, False
    for index, op in enumerate(ops):
        chained = single and op.op_type in HEAVY and any(one.op_type in HEAVY for one in found[-1])
        if chained or (closed and op.op_type not in _CLAMPS):
            found.append([])
            closed = False
        found[-1].append(op)
        alive |= {value for value in op.node.outputs if value in carried}
        alive = {value for value in alive if last.get(value, -1) > index}
        was, single = single, len(alive) <= 1
        closed = closed or (single and not was)
    return {group[0].name: tuple(op.name for op in group) for group in found if group}


def _carried(ops: Sequence[Operator]) -> set[ir.Value]:
    """Values behind a heavy operator; what masks and positions are made of is not among them."""
    found: set[ir.Value] = set()
    for op in ops:
        reads = [value for value in op.node.inputs if value is not None and not is_constant(value)]
        if op.op_type in HEAVY or any(value in found for value in reads):
            found.update(op.node.outputs)
    return found


def _last_reads(ops: Sequence[Operator]) -> dict[ir.Value, int]:
    return {value: index for index, op in enumerate(ops) for value in op.node.inputs if value is not None}
