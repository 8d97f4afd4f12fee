"""``make_plan(graph, policy, statistics) -> Plan``: every decision with its reason; no edit, no session."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qconvert.calibrators import CALIBRATORS, Calibrator
from qconvert.errors import PlanError
from qconvert.graph import operators
from qconvert.histogram import TensorStats
from qconvert.plan.activations import ActivationPlanner
from qconvert.plan.placement import Placement, candidate_values, place
from qconvert.plan.settings import SettingsTable, settings_table
from qconvert.plan.types import Absorbed, Entry, FloatOp, Given, GivenGrid, Plan, Role, Site
from qconvert.plan.weights import weight_entries
from qconvert.policy import Policy
from qconvert.targets import HEAVY, Target, get_target

DEFAULT_CALIBRATOR = "entropy"
"""For activations whose policy names none."""


def make_placement(model: ir.Model, policy: Policy) -> tuple[Placement, SettingsTable, Target]:
    """What the policy quantizes on this graph, before any range is known.

    Raises:
        PolicyError: If a rule matches nothing.
        TargetError: If the policy asks for what the target does not take.
    """
    target = get_target(policy.target)
    table = settings_table(policy, tuple(operators(model)), target)
    return place(model, table, target), table, target


def make_plan(
    model: ir.Model,
    policy: Policy,
    stats: Mapping[str, TensorStats],
    *,
    given: Mapping[str, Given] | None = None,
    weights: Mapping[str, GivenGrid] | None = None,
) -> Plan:
    """Decides the grid of every tensor.

    Args:
        model: A prepared graph; left as it is.
        policy: The user's intent.
        stats: Statistics by value name.
        given: Ranges of values that no calibrator shall choose, by value name. Where values share a grid, those count
            that decide its range; that of a value that an operator only moved there, if none of them is given.
        weights: Grids of weights that were found elsewhere, by name; those that do not fit the settings do not count.

    Raises:
        CalibrationError: If a value to be quantized has no range given and no statistics, or some with NaN or Inf.
        PolicyError: If a rule matches nothing.
        TargetError: If the policy asks for what the target does not take.
        PlanError: If nothing is left to quantize.
    """
    planner = make_planner(model, policy, stats, given=given)
    activations, placement = planner.entries(), planner.placement
    inputs = {site: entry.params for entry in activations for site in entry.sites}
    constants = weight_entries(placement, planner.settings, planner.target, inputs, given=weights or {})
    return Plan(
        planner.target.name,
        (*activations, *planner.constants(), *constants),
        tuple(planner.absorbed(activations)),
        tuple((op.name, op.op_type) for op in placement.integer.values()),
        tuple(placement.floats),
    )


def make_planner(
    model: ir.Model, policy: Policy, stats: Mapping[str, TensorStats], *, given: Mapping[str, Given] | None = None
) -> ActivationPlanner:
    """The part of ``make_plan`` that decides the grids of activations; raises what that raises."""
    placement, table, target = make_placement(model, policy)
    if not placement.integer:
        raise nothing_to_quantize(placement)
    return ActivationPlanner(model, placement, table, target, stats, given or {}, CALIBRATORS[DEFAULT_CALIBRATOR]())


def nothing_to_quantize(placement: Placement) -> PlanError:
    """The refusal of a model in which no operator can be quantized, with the commonest reasons."""
    reasons = [op.reason for op in placement.floats if op.op_type in HEAVY] or [op.reason for op in placement.floats]
    ranked = sorted(dict.fromkeys(reasons), key=reasons.count, reverse=True)
    why = "; ".join(ranked[:2]) or "it computes on no float tensor"
    return PlanError(f"nothing to quantize: {why}", hint="'qconvert inspect MODEL' shows why each operator stays float")


__all__ = [
    "DEFAULT_CALIBRATOR",
    "Absorbed",
    "Calibrator",
    "Entry",
    "FloatOp",
    "Given",
    "GivenGrid",
    "Placement",
    "Plan",
    "Role",
    "Site",
    "candidate_values",
    "make_placement",
    "make_plan",
    "make_planner",
    "nothing_to_quantize",
]
