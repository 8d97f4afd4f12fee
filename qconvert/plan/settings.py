"""The settings of every operator, complete: what the policy leaves open is the target's, what that refuses an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qconvert.errors import PolicyError, TargetError
from qconvert.graph import Operator
from qconvert.numerics import QUANT_TYPES
from qconvert.policy import Policy, Scheme, Settings, resolve, unmatched
from qconvert.policy.fields import Position
from qconvert.targets import HEAVY, Target

DEFAULT_GROUP = 32
"""Values of a group where the policy names no size."""


@dataclass(frozen=True)
class SettingsTable:
    """Complete settings by operator name."""

    rows: Mapping[str, Settings]

    def __getitem__(self, op: Operator) -> Settings:
        return self.rows[op.name]


def settings_table(
    policy: Policy,
    ops: Sequence[Operator],
    target: Target,
    *,
    complete: Callable[[Settings, Target], Settings] | None = None,
) -> SettingsTable:
    """Resolves a policy against a graph.

    Args:
        policy: The user's intent.
        ops: The operators of the graph.
        target: Its defaults fill in what the policy leaves open.
        complete: Another way to fill that in, and to refuse what cannot be done.

    Raises:
        PolicyError: If a rule matches no operator, or settings contradict each other.
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
        rows[op.name] = (complete or _complete)(found, target)
    names = {name for op in ops for name in op.names}
    unmatched(policy, matched, names=names, op_types={op.op_type for op in ops}, subgraphs={op.subgraph for op in ops})
    return SettingsTable(rows)


def _complete(found: Settings, target: Target) -> Settings:
    weights = found.weights.over(Scheme(dtype=target.weights[0], symmetric=True, scheme="per-channel"))
    activations = found.activations.over(
        Scheme(dtype=target.activations[0], symmetric=target.symmetric_activations, scheme="per-tensor")
    )
    if weights.scheme == "per-group":
        weights = weights.over(Scheme(group_size=DEFAULT_GROUP))
    bias = found.bias or target.bias
    _check(weights, activations, bias, target, found.reason)
    if weights.narrow_range is None:
        weights = Scheme(narrow_range=weights.symmetric and QUANT_TYPES[weights.dtype or ""].signed).over(weights)
    return replace(found, weights=weights, activations=activations, bias=bias)


def _check(weights: Scheme, activations: Scheme, bias: str, target: Target, reason: str) -> None:
    fault = static_fault(weights, activations, target)
    if fault is not None:
        raise TargetError(f"{reason}: {fault}", hint=f"{fault.hint}, or another target ('qconvert formats')")
    for what, scheme in (("weights", weights), ("activations", activations)):
        check_groups(what, scheme, reason)
    if activations.scheme in {"per-channel", "per-group"}:
        raise TargetError(
            f"{reason}: activations.scheme: no runtime takes {activations.scheme} activations",
            hint="use per-tensor for activations",
        )
    if bias == "int32" and target.bias == "float":
        raise TargetError(f"{reason}: bias: target {target.name} takes float biases only", hint="leave 'bias' out")


@dataclass(frozen=True)
class Refusal:
    """What a target does not take.

    Attributes:
        key: The setting, e.g. ``weights.dtype``.
        why: What the target takes, and what was asked for.
        hint: What it takes instead.
    """

    key: str
    why: str
    hint: str

    def __str__(self) -> str:
        return f"{self.key}: {self.why}"


def static_fault(weights: Scheme, activations: Scheme, target: Target) -> Refusal | None:
    """What of complete settings a target does not take where activations are quantized beforehand, or None."""
    for what, scheme, allowed in (
        ("weights", weights, target.weights),
        ("activations", activations, target.activations),
    ):
        if scheme.dtype not in allowed:
            why = f"target {target.name} takes {', '.join(allowed)}, not {scheme.dtype}"
            return Refusal(f"{what}.dtype", why, f"use {allowed[0]}")
    for what, scheme, fixed in (
        ("weights", weights, target.symmetric_weights),
        ("activations", activations, target.symmetric_activations),
    ):
        if fixed and not scheme.symmetric:
            return Refusal(f"{what}.symmetric", f"target {target.name} takes symmetric {what} only", "leave it out")
    if weights.scheme == "per-group" and not target.per_group:
        return Refusal("weights.scheme", f"target {target.name} takes no per-group weights", "use per-channel")
    return None


def check_groups(what: str, scheme: Scheme, reason: str) -> None:
    """Refuses a size of groups where there are none.

    Raises:
        PolicyError: If there are none.
    """
    if scheme.group_size is not None and scheme.scheme != "per-group":
        raise PolicyError(
            f"{reason}: {what}.group_size: scheme {scheme.scheme} has no groups",
            hint="write 'scheme: per-group' (--scheme per-group), or leave it out",
        )
