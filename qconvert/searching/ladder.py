"""Rungs of precision, and the policy that puts each operator on one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qconvert.errors import PolicyError, TargetError
from qconvert.numerics import QUANT_TYPES
from qconvert.policy import Match, Policy, Rule, Scheme
from qconvert.searching.types import FLOAT
from qconvert.sensing.suggest import exactly
from qconvert.targets import get_target

DEFAULT_LADDER = ("W4A8", "W8A8", "W8A16", FLOAT)
"""Without 2 bits: no model that was tried kept its accuracy with more than a few such operators."""

_NAME = re.compile(r"[Ww](\d+)[Aa](\d+)")


@dataclass(frozen=True)
class Rung:
    """A pair of types, or float where both are None.

    Attributes:
        name: ``W4A8``: 4-bit weights, 8-bit activations; ``float``.
        weights: Name of the weights' type.
        activations: Name of the activations' type.
    """

    name: str
    weights: str | None
    activations: str | None


def ladder(names: Sequence[str], policy: Policy) -> tuple[Rung, ...]:
    """The rungs of these names in the types of the policy's target.

    Raises:
        PolicyError: If a name is none, or stands there twice.
        TargetError: If the target has no types of so many bits.
    """
    found = tuple(_rung(name.strip(), policy) for name in names)
    twice = [rung.name for rung, count in Counter(found).items() if count > 1]
    if twice:
        raise PolicyError(f"--ladder: {twice[0]} stands there twice", hint="leave one out")
    if all(rung.weights is None for rung in found):
        raise PolicyError("--ladder: there is nothing to quantize with", hint=f"e.g. {','.join(DEFAULT_LADDER)}")
    return found


def usable(names: Sequence[str], policy: Policy) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of the names that the target has types for, and in a line each why the others are left out."""
    faults = {name: _fault(name, policy) for name in names}
    kept = tuple(name for name, fault in faults.items() if not fault)
    return kept, tuple(f"{fault}: left out" for fault in faults.values() if fault)


def _fault(name: str, policy: Policy) -> str:
    try:
        _rung(name, policy)
    except TargetError as error:
        return str(error)
    return ""


def _rung(name: str, policy: Policy) -> Rung:
    if name.lower() == FLOAT:
        return Rung(FLOAT, None, None)
    bits = _NAME.fullmatch(name)
    if bits is None:
        raise PolicyError(
            f"--ladder: expected rungs as W4A8 or float, got '{name}'", hint=f"e.g. {','.join(DEFAULT_LADDER)}"
        )
    target = get_target(policy.target)
    defaults = policy.defaults
    weights = _type(int(bits[1]), target.weights, defaults.weights.dtype)
    activations = _type(int(bits[2]), target.activations, defaults.activations.dtype)
    if weights is None or activations is None:
        what, types = ("weights", target.weights) if weights is None else ("activations", target.activations)
        raise TargetError(
            f"--ladder: {name.upper()}: target {target.name} takes {', '.join(types)} {what}",
            hint="leave the rung out, or use another target ('qconvert formats')",
        )
    return Rung(name.upper(), weights, activations)


def _type(bits: int, allowed: Sequence[str], wanted: str | None) -> str | None:
    """The type of so many bits that the user's policy has, else the target's first."""
    fitting = [name for name in allowed if QUANT_TYPES[name].bits == bits]
    return wanted if wanted in fitting else next(iter(fitting), None)


def uniform(policy: Policy, rung: Rung) -> Policy:
    """The policy with all that its rules leave open on one rung, which is not float."""
    defaults = policy.defaults
    weights, activations = Scheme(dtype=rung.weights), Scheme(dtype=rung.activations)
    update = {"weights": weights.over(defaults.weights), "activations": activations.over(defaults.activations)}
    return policy.model_copy(update={"defaults": defaults.model_copy(update=update)})


def settle(rungs: Mapping[str, Sequence[Rung]]) -> dict[str, Rung]:
    """One of the rungs that are the same to an operator: the one that most can be on, so that rules are few."""
    counts = Counter(rung for same in rungs.values() for rung in same)
    return {name: max(same, key=lambda rung: counts[rung]) for name, same in rungs.items()}


def mixed(policy: Policy, rungs: Mapping[str, Rung], ruled: Mapping[str, int]) -> Policy:
    """The policy with each operator on its rung: the commonest one by default, others named in rules before all else.

    Args:
        policy: What the rungs are put into. A type that one of its rules names stays.
        rungs: By operator.
        ruled: By operator the number of the policy's rule that decides it, where one does.
    """
    counts = Counter(rung for rung in rungs.values() if rung.weights is not None)
    base = max(counts, key=lambda rung: counts[rung], default=None)
    groups: dict[tuple[int | None, Rung], list[str]] = {}
    for name, rung in rungs.items():
        if rung != base:
            groups.setdefault((ruled.get(name), rung), []).append(name)
    rules = [
        _rule(None if index is None else policy.rules[index], rung, names) for (index, rung), names in groups.items()
    ]
    whole = uniform(policy, base) if base is not None else policy
    return whole.model_copy(update={"rules": (*rules, *policy.rules)})


def _rule(own: Rule | None, rung: Rung, names: Sequence[str]) -> Rule:
    match = Match(names=tuple(exactly(name) for name in names))
    if rung.weights is None:
        return Rule(match=match, float=True)
    weights, activations = Scheme(dtype=rung.weights), Scheme(dtype=rung.activations)
    if own is None:
        return Rule(match=match, weights=weights, activations=activations)
    return own.model_copy(
        update={"match": match, "weights": own.weights.over(weights), "activations": own.activations.over(activations)}
    )
