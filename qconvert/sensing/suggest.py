"""The fewest exclusions, or operators in 16 bits, with which a model meets a bound; every step is run, none predicted.

Greedy: the most harmful subjects one after another until the bound is met, then each of them is put back where the
bound is met without it. What is run is the policy as it would be written, read again.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from qconvert.errors import PlanError, TargetError
from qconvert.listener import Listener
from qconvert.plan import Plan
from qconvert.policy import Match, Policy, Rule, Scheme, dump, loads
from qconvert.sensing.engine import Lab, Tables, Variant, extend
from qconvert.sensing.measures import METRICS, Floats
from qconvert.sensing.scoring import scores
from qconvert.sensing.types import Effect, Sensitivity, Suggestion
from qconvert.targets import get_target

Remedy = Literal["float", "16-bit"]

SIXTEEN_OPSET = 21
"""The first opset with 16-bit levels."""


@dataclass(frozen=True)
class Bound:
    """What a model has to meet; one of the two numbers is given.

    Attributes:
        max_drop: Points of top-1 accuracy that may be lost; of argmax agreement where there are no labels.
        min_sqnr: SQNR of the outputs that is the least, dB.
        remedy: What is done to operators that harm.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None
    remedy: Remedy = "float"

    def named(self, *, labelled: bool) -> tuple[str, float, str]:
        """The metric, the greatest harm by it, and both in words."""
        if self.max_drop is None:
            least = self.min_sqnr or 0.0
            return "sqnr", -least, f"output SQNR >= {least:g} dB"
        metric, what = ("top1", "top-1 drop") if labelled else ("agreement", "argmax disagreement")
        return metric, self.max_drop, f"{what} <= {self.max_drop:g} points"


def suggest(
    lab: Lab,
    replan: Callable[[Policy], Plan],
    policy: Policy,
    found: Sensitivity,
    bound: Bound,
    *,
    listener: Listener,
) -> Suggestion:
    """Looks for rules with which the model meets the bound.

    Args:
        lab: What experiments share; its samples judge.
        replan: The plan of a policy.
        policy: What the rules are added to.
        found: The ranking.
        bound: It.
        listener: Hears progress.

    Raises:
        ModelError: If onnxruntime refuses a model.
        TargetError: If the target has no 16-bit types.
    """
    search = _Search(lab, replan, policy, bound, found)
    candidates = [row for row in found.rows if row.harmful]
    listener.start("verifying exclusions", len(candidates))
    try:
        chosen = search.fewest(candidates, listener)
    finally:
        listener.finish()
    met = chosen is not None
    kept = chosen if chosen is not None else candidates
    rows = search.rows(kept)
    after = scores(rows, lab.outputs, seed=found.seed, custom=lab.custom is not None) if rows is not None else None
    names = _operators(kept)
    return Suggestion(bound.remedy, names, search.words, met, found.quantized, after, lab.samples, search.text(kept))


class _Search:
    """What was tried."""

    def __init__(
        self, lab: Lab, replan: Callable[[Policy], Plan], policy: Policy, bound: Bound, found: Sensitivity
    ) -> None:
        self.lab, self.replan, self.policy, self.remedy = lab, replan, policy, bound.remedy
        self.metric, self.limit, self.words = bound.named(labelled=found.labelled)
        self.base = lab.base(None)
        self.tried: dict[tuple[str, ...], Floats | None] = {}
        _check_remedy(policy, bound.remedy)

    def fewest(self, candidates: Sequence[Effect], listener: Listener) -> list[Effect] | None:
        """The smallest set found; None where all of them are not enough."""
        if self.meets([]):
            return []
        low, high = 0, 1
        while high < len(candidates) and not self.meets(candidates[:high]):
            low, high = high, 2 * high
            listener.advance(low)
        high = min(high, len(candidates))
        if not self.meets(candidates[:high]):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.meets(candidates[:middle]) else (middle, high)
        chosen = list(candidates[:high])
        for one in reversed(candidates[: high - 1]):
            without = [other for other in chosen if other is not one]
            chosen = without if self.meets(without) else chosen
        return chosen

    def meets(self, chosen: Sequence[Effect]) -> bool:
        """Whether the model keeps the bound with these operators changed."""
        rows = self.rows(chosen)
        return rows is None or float(METRICS[self.metric].harm(rows.sum(0))) <= self.limit

    def rows(self, chosen: Sequence[Effect]) -> Floats | None:
        """What the model does on all samples; None where nothing is left to quantize."""
        names = _operators(chosen)
        if names not in self.tried:
            try:
                plan = self.replan(loads(self.text(chosen)))
            except PlanError:
                self.tried[names] = None
            else:
                tables: Tables = {}
                extend(self.lab, self.base, [Variant("", plan)], tables, self.lab.samples)
                self.tried[names] = tables[""]
        return self.tried[names]

    def text(self, chosen: Sequence[Effect]) -> str:
        """The policy with the rules, as it is written."""
        names = _operators(chosen)
        if not names:
            return dump(self.policy)
        rule = _rule(names, self.policy, self.remedy)
        return dump(self.policy.model_copy(update={"rules": (rule, *self.policy.rules)}))


def _operators(chosen: Sequence[Effect]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for one in chosen for name in one.operators))


def _rule(names: Sequence[str], policy: Policy, remedy: Remedy) -> Rule:
    match = Match(names=tuple(exactly(name) for name in names))
    if remedy == "float":
        return Rule(match=match, float=True)
    weights, activations = _sixteen(policy)
    return Rule(match=match, weights=weights, activations=activations)


def exactly(name: str) -> str:
    """A pattern that matches this name alone."""
    escaped = glob.escape(name)
    return f"[r]{escaped[1:]}" if escaped.startswith("re:") else escaped


def _sixteen(policy: Policy) -> tuple[Scheme, Scheme]:
    target = get_target(policy.target)
    weights, activations = (
        Scheme(dtype=next((name for name in names if name.endswith("int16")), None))
        for names in (target.weights, target.activations)
    )
    return weights, activations


def _check_remedy(policy: Policy, remedy: Remedy) -> None:
    if remedy == "16-bit" and _sixteen(policy)[1].dtype is None:
        raise TargetError(
            f"--remedy 16-bit: target {policy.target} takes no 16-bit activations", hint="use --remedy float"
        )
