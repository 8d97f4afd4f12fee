"""What a policy says about one operator: the settings of the first rule that matches, over the defaults."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from difflib import SequenceMatcher

from qconvert.errors import PolicyError
from qconvert.policy.fields import Bias, Position, fits
from qconvert.policy.model import Match, Policy, Rule, Scheme


@dataclass(frozen=True)
class Settings:
    """What the policy says about one operator; what is None is the target's to decide.

    Attributes:
        float: True: leave it float. False: quantize it. None: as the target and the operator's row have it.
        weights: How its constant operands are quantized.
        activations: How its computed operands and results are quantized.
        bias: The type of its bias.
        reason: Who decided: ``rules[2] (policy.yaml:14)``, ``--exclude GLOB`` or ``defaults``.
        matched: Indices in ``policy.rules`` of all rules that match; the first of them decided.
        recover: Names of the methods that may win back accuracy here.
    """

    float: bool | None
    weights: Scheme
    activations: Scheme
    bias: Bias | None
    reason: str
    matched: tuple[int, ...] = ()
    recover: tuple[str, ...] = ()


def resolve(
    policy: Policy,
    *,
    op_type: str,
    names: Sequence[str],
    subgraph: str = "",
    position: AbstractSet[Position] = frozenset(),
) -> Settings:
    """The settings of one operator.

    Args:
        policy: The policy.
        op_type: The operator's type.
        names: All its names: of its output tensors and of its node; empty ones count for nothing.
        subgraph: The path of subgraph attributes that lead to it, "" in the main graph.
        position: Whether it is the first or the last heavy operator, or both.
    """
    named = [name for name in names if name]
    matched = tuple(
        index
        for index, rule in enumerate(policy.rules)
        if _matches(rule.match, op_type=op_type, names=named, subgraph=subgraph, position=position)
    )
    base = policy.defaults
    if not matched:
        return Settings(None, base.weights, base.activations, base.bias, "defaults", (), policy.recover)
    rule = policy.rules[matched[0]]
    return Settings(
        rule.float,
        rule.weights.over(base.weights),
        rule.activations.over(base.activations),
        rule.bias or base.bias,
        str(rule.place),
        matched,
        policy.recover if rule.recover is None else rule.recover,
    )


def _matches(
    match: Match, *, op_type: str, names: Collection[str], subgraph: str, position: AbstractSet[Position]
) -> bool:
    """Whether every key that is given matches."""
    return (
        (match.position is None or match.position in position)
        and (match.subgraph is None or fits(match.subgraph, subgraph))
        and (not match.op_types or _any_fits(match.op_types, (op_type,)))
        and (not match.names or _any_fits(match.names, names))
        and (not match.any or _any_fits(match.any, (op_type, *names)))
    )


def _any_fits(patterns: Collection[str], texts: Collection[str]) -> bool:
    return any(fits(pattern, text) for pattern in patterns for text in texts)


def unmatched(
    policy: Policy,
    matched: AbstractSet[int],
    *,
    names: Collection[str] = (),
    op_types: Collection[str] = (),
    subgraphs: Collection[str] = (),
) -> None:
    """Refuses a policy with a rule that matches no operator of the model.

    Args:
        policy: The policy.
        matched: The union of ``Settings.matched`` over all operators, so that a rule behind an earlier one counts too.
        names: All names of the model's operators, for the hint.
        op_types: All their types.
        subgraphs: All their subgraph paths.

    Raises:
        PolicyError: If a rule is not in ``matched``.
    """
    idle = [rule for index, rule in enumerate(policy.rules) if index not in matched]
    if not idle:
        return
    more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
    raise PolicyError(
        idle[0].place.of(f"{idle[0].match} match no operator{more}"),
        hint=_closest(idle[0], names=names, op_types=op_types, subgraphs=subgraphs),
    )


def _closest(rule: Rule, *, names: Collection[str], op_types: Collection[str], subgraphs: Collection[str]) -> str:
    """A hint for a rule that matches nothing: the texts closest to the first of its keys that fits none."""
    match = rule.match
    asked = (
        (match.names, names),
        (match.op_types, op_types),
        (match.any, (*op_types, *names)),
        (() if match.subgraph is None else (match.subgraph,), subgraphs),
    )
    for patterns, texts in asked:
        if patterns and texts and not _any_fits(patterns, texts):
            return f"closest: {', '.join(_nearest(patterns, texts))}"
    if match.position and match == Match(position=match.position):
        return "the model has no Conv, ConvTranspose, Gemm or MatMul"
    return "each key matches something, but no operator matches all of them" if names or op_types else ""


def _nearest(patterns: Collection[str], texts: Collection[str]) -> list[str]:
    """The three texts most like a pattern, as a whole or at one end."""
    plain = [
        "".join(c for c in pattern.removeprefix("re:").lower() if c not in "*?[]^$.+\\()|") for pattern in patterns
    ]

    def likeness(text: str) -> float:
        low = text.lower()
        return max(
            SequenceMatcher(None, word, part).ratio()
            for word in plain
            for part in (low, low[: len(word)], low[-len(word) :])
        )

    return heapq.nlargest(3, sorted({text for text in texts if text}), likeness)
