"""Ranges that are chosen by measured error: the searches of the calibrators that need samples, not only statistics.

To add one, add a file with ``find(task, wanted)`` and a row to the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from qconvert.calibrators import Calibrator
from qconvert.calibrators.auto import Auto
from qconvert.calibrators.easyquant import EasyQuant
from qconvert.calibrators.isotone import Isotone
from qconvert.choose import auto, easyquant, isotone
from qconvert.choose.task import Task
from qconvert.errors import CalibrationError
from qconvert.histogram import TensorStats
from qconvert.listener import SILENT, Listener
from qconvert.plan import Given, GivenGrid, Plan, make_plan, make_planner
from qconvert.policy import Policy
from qconvert.session import Feeds

SEARCHES: Mapping[type[Calibrator], Callable[[Task, Mapping[str, Any]], Task]] = {
    Isotone: isotone.find,
    EasyQuant: easyquant.find,
    Auto: auto.find,
}
"""What finds the ranges of a kind of calibrator; ``auto`` last, for it measures what the others leave."""


@dataclass(frozen=True)
class Chosen:
    """What the searches found, for ``make_plan``.

    Attributes:
        ranges: Ranges of activations by value name, those that were given included.
        weights: Grids of weights by name.
    """

    ranges: Mapping[str, Given]
    weights: Mapping[str, GivenGrid] = field(default_factory=dict)


def make_chosen_plan(
    model: ir.Model,
    policy: Policy,
    stats: Mapping[str, TensorStats],
    probes: Sequence[Feeds],
    *,
    given: Mapping[str, Given] | None = None,
    listener: Listener = SILENT,
) -> Plan:
    """``make_plan`` with what ``choose`` finds; see there.

    Raises:
        QConvertError: See both.
    """
    chosen = choose(model, policy, stats, probes, given=given, listener=listener)
    return make_plan(model, policy, stats, given=chosen.ranges, weights=chosen.weights)


def choose(
    model: ir.Model,
    policy: Policy,
    stats: Mapping[str, TensorStats],
    probes: Sequence[Feeds],
    *,
    given: Mapping[str, Given] | None = None,
    listener: Listener = SILENT,
) -> Chosen:
    """Finds the ranges of all values whose settings name a calibrator that needs samples.

    Args:
        model: A prepared graph; left as it is.
        policy: The user's intent.
        stats: Statistics by value name.
        probes: Samples to measure on, as fed to the model.
        given: Ranges that no calibrator shall choose.
        listener: Hears notes and progress.

    Raises:
        CalibrationError: If there are no samples, or a value has no usable statistics.
        ModelError: If onnxruntime refuses the quantized model.
        QConvertError: What ``make_plan`` raises.
    """
    given = given or {}
    planner = make_planner(model, policy, stats, given=given)
    wanted = {
        name: scheme.calibrator
        for name, scheme in planner.deciding().items()
        if scheme.calibrator is not None and scheme.calibrator.needs_samples and name not in given
        if name not in planner.outputs or isinstance(scheme.calibrator, Isotone)  # else minmax, as the plan has it
    }
    if not wanted:
        return Chosen(given)
    if not probes:
        message = f"{next(iter(wanted.values())).name} measures on samples, and the calibration kept none"
        raise CalibrationError(message, hint="calibrate again, or use another calibrator")
    task = Task(model, policy, stats, probes, planner, listener, given, {})
    for kind, find in SEARCHES.items():
        names = {name: calibrator for name, calibrator in wanted.items() if isinstance(calibrator, kind)}
        if names:
            task = find(task, names)
    return Chosen(task.given, task.weights)
