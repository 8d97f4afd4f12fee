"""The settings of every operator, complete: what the policy leaves open is the target's, what that refuses an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qconvert.errors import TargetError
from qconvert.graph import Operator
from qconvert.numerics import QUANT_TYPES
from qconvert.policy import Policy, Scheme, Settings, resolve, unmatched
from qconvert.policy.fields import Position
from qconvert.targets import HEAVY, Target


@dataclass(frozen=True)
class SettingsTable:
    """Complete settings by operator name."""

    rows: Mapping[str, Settings]

    def __getitem__(self, op: Operator) -> Settings:
        return self.rows[op.name]


def settings_table(policy: Policy, ops: Sequence[Operator], target: Target) -> SettingsTable:
    """Resolves a policy against a graph.

    Raises:
        PolicyError: If a rule matches no operator.
        TargetError: If the settings of an operator are not what the target takes.
    """
    heavy = [op.name for op in ops if op.op_type in HEAVY and not op.subgraph]
    rows: dict[str, Settings] = {}
    matched: set[int] = set()
    for op in ops:
        ends: dict[Position, list[str]] = {"first": heavy[:1], "last": heavy[-1:]}
        position = frozenset(word for word, name in ends.items() if name == [op.name])
        found = resolve(policy, op_type=op.op_type, names=op.names, subgraph=op.subgraph, position=position)
        matched.update(found.matched)
        rows[op.name] = _complete(found, target)
    names = {name for op in ops for name in op.names}
    unmatched(policy, matched, names=names, op_types={op.op_type for op in ops}, subgraphs={op.subgraph for op in ops})
    return SettingsTable(rows)


def _complete(found: Settings, target: Target) -> Settings:
    weights = found.weights.over(Scheme(dtype=target.weights[0], symmetric=True, scheme="per-channel"))
    activations = found.activations.over(
        Scheme(dtype=target.activations[0], symmetric=target.symmetric_activations, scheme="per-tensor")
    )
    if weights.narrow_range is None:
        weights = Scheme(narrow_range=weights.symmetric and QUANT_TYPES[weights.dtype or ""].signed).over(weights)
    bias = found.bias or target.bias
    _check(weights, activations, bias, target, found.reason)
    return replace(found, weights=weights, activations=activations, bias=bias)


def _check(weights: Scheme, activations: Scheme, bias: str, target: Target, reason: str) -> None:
    for what, scheme, allowed in (
        ("weights", weights, target.weights),
        ("activations", activations, target.activations),
    ):
        if scheme.dtype not in allowed:
            raise TargetError(
                f"{reason}: {what}.dtype: target {target.name} takes {', '.join(allowed)}, not {scheme.dtype}",
                hint=f"use {allowed[0]}, or another target ('qconvert targets')",
            )
    if target.symmetric_activations and not activations.symmetric:
        raise TargetError(
            f"{reason}: activations.symmetric: target {target.name} takes symmetric activations only",
            hint="leave 'symmetric' out",
        )
    if activations.scheme == "per-channel":
        raise TargetError(
            f"{reason}: activations.scheme: no runtime takes per-channel activations",
            hint="use per-tensor for activations",
        )
    if bias == "int32" and target.bias == "float":
        raise TargetError(f"{reason}: bias: target {target.name} takes float biases only", hint="leave 'bias' out")
