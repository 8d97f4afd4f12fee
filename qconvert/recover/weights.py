"""Winning back accuracy where weights alone are quantized, and what is done of it where nobody asks."""

from __future__ import annotations

import time
from collections.abc import Sequence

import onnx_ir as ir

from qconvert.listener import Listener
from qconvert.numerics import QuantParams
from qconvert.plan import Plan
from qconvert.plan.weight_grids import LOW_BITS
from qconvert.plan.weight_only import make_weight_plan
from qconvert.policy import Policy
from qconvert.recover import (
    AUTO,
    NONE,
    Context,
    Journal,
    Recovered,
    asked_methods,
    asked_names,
    asked_only,
    make_methods,
    win_back,
)
from qconvert.recover.gptq import Gptq
from qconvert.recover.moments import DAMPING, DOUBTFUL
from qconvert.session import Feeds

UNASKED = (Gptq.name,)
"""What weights of few bits get where no methods are named: 1.5 dB and more where there are samples."""

SMALL = 1 << 28
"""Bytes of float weights up to which that is done: a minute or two."""


def names_for(policy: Policy, plan: Plan, weights: int) -> Sequence[str]:
    """The names of the methods that a plan of weights alone gets.

    Args:
        policy: What was asked for.
        plan: Of the model.
        weights: Bytes of its float weights.
    """
    low = any(entry.params.dtype.bits <= LOW_BITS for entry in plan.of("weight"))
    unasked = UNASKED if low and weights <= SMALL else ()
    names = asked_names(policy)
    return () if names == (NONE,) else names or unasked


def recover_weights(
    model: ir.Model,
    plan: Plan,
    policy: Policy,
    names: Sequence[str],
    feeds: Sequence[Feeds],
    *,
    random: bool,
    budget: float | None,
    journal: Journal | None,
    listener: Listener,
) -> Recovered:
    """The model and its plan with what methods make of them.

    Args:
        model: The prepared float graph; left as it is.
        plan: Of its weights.
        policy: Where it comes from, since methods that rewrite the float model want another.
        names: Of the methods.
        feeds: Inputs, one at least.
        random: Whether they are made up, so that methods trust them little.
        budget: Seconds after which no other method is begun; None: no limit.
        journal: Where steps keep what became of layers, and where they look for it; None: nowhere.
        listener: Hears notes and progress.

    Raises:
        PolicyError: If there is no method of a name.
        QConvertError: If a method that was asked for by name cannot be carried out.
    """

    def plan_of(graph: ir.Model, _: object) -> Plan:
        return plan if graph is model else make_weight_plan(graph, policy)

    usual = _usual(plan)
    context = Context(
        feeds,
        weights=usual.dtype,
        per_channel=usual.axis is not None,
        group_size=usual.block_size,
        damping=DOUBTFUL if random else DAMPING,
        only=asked_only(policy if asked_names(policy) else policy.override(recover=names), model),
        deadline=None if budget is None else time.monotonic() + budget,
        journal=journal,
        listener=listener,
    )
    methods = asked_methods(policy) or make_methods(names)
    kind = "random inputs" if random else "samples"
    return win_back(model, methods, plan_of, context, proved=AUTO in names, kind=kind)


def _usual(plan: Plan) -> QuantParams:
    """The grid of a kind that most weights have."""
    found = [entry.params for entry in plan.of("weight")]
    kinds = [(params.dtype.name, params.block_size, params.axis is None) for params in found]
    return found[kinds.index(max(kinds, key=kinds.count))]
