"""The part of ``quantize`` that wins back accuracy."""

from __future__ import annotations

import time

import onnx_ir as ir

from qconvert.calibration import Calibration
from qconvert.errors import CalibrationError
from qconvert.listener import Listener
from qconvert.numerics import QUANT_TYPES
from qconvert.policy import Policy
from qconvert.recover import (
    AUTO,
    Context,
    Journal,
    Recovered,
    asked_methods,
    asked_names,
    asked_only,
    win_back,
)
from qconvert.recover.trials import PlanOf
from qconvert.targets import get_target


def recover(
    graph: ir.Model,
    policy: Policy,
    plan_of: PlanOf,
    calibrated: Calibration,
    *,
    budget: float | None,
    journal: Journal | None,
    listener: Listener,
) -> Recovered:
    """The model and its plan with what methods make of them; says what each gave and cost.

    Args:
        graph: The prepared float graph; left as it is.
        policy: Its ``recover`` names the methods, or says ``auto``.
        plan_of: Plans a float model.
        calibrated: Its statistics and samples.
        budget: Seconds after which no other method is begun; None: no limit.
        journal: Where steps keep what became of layers, and where they look for it; None: nowhere.
        listener: Hears notes and progress.

    Raises:
        CalibrationError: If the calibration kept no samples.
        PolicyError: If there is no method of a name.
        QConvertError: If a method that was asked for by name cannot be carried out.
    """
    methods = asked_methods(policy)
    if not calibrated.probes:
        raise CalibrationError("recover: the calibration kept no samples", hint="calibrate again")
    deadline = None if budget is None else time.monotonic() + budget
    target, asked = get_target(policy.target), policy.defaults
    context = Context(
        calibrated.probes,
        calibrated.stats,
        activations=QUANT_TYPES[asked.activations.dtype or target.activations[0]],
        weights=QUANT_TYPES[asked.weights.dtype or target.weights[0]],
        per_channel=asked.weights.scheme != "per-tensor",
        only=asked_only(policy, graph),
        deadline=deadline,
        journal=journal,
        listener=listener,
    )
    return win_back(graph, methods, plan_of, context, proved=AUTO in asked_names(policy))
