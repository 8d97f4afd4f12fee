"""What every method of this room starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from qconvert.calibrators import Calibrator
from qconvert.histogram import TensorStats
from qconvert.listener import Listener
from qconvert.numerics import QUANT_TYPES, QuantParams, Range, params_from_range
from qconvert.plan import Given, GivenGrid, Plan, make_plan
from qconvert.plan.activations import ActivationPlanner
from qconvert.policy import Policy, Scheme
from qconvert.session import Feeds


@dataclass(frozen=True)
class Task:
    """A model and what was decided of it so far.

    Attributes:
        model: The prepared graph; left as it is.
        policy: The user's intent.
        stats: Statistics by value name.
        probes: Samples to measure on.
        planner: Where grids are and which values decide them.
        listener: Hears notes and progress.
        given: Ranges that were found already.
        weights: Grids of weights that were found already.
    """

    model: ir.Model
    policy: Policy
    stats: Mapping[str, TensorStats]
    probes: Sequence[Feeds]
    planner: ActivationPlanner
    listener: Listener
    given: Mapping[str, Given]
    weights: Mapping[str, GivenGrid]

    def plan(self, given: Mapping[str, Given]) -> Plan:
        """The plan with these ranges beside those found already."""
        return make_plan(self.model, self.policy, self.stats, given={**self.given, **given}, weights=self.weights)

    def grids(self, given: Mapping[str, Given]) -> dict[str, QuantParams]:
        """The grids of all activations with these ranges beside those found already."""
        planner = replace(self.planner, given={**self.given, **given})
        return {entry.tensor: entry.params for entry in planner.entries()}

    def found(self, given: Mapping[str, Given], weights: Mapping[str, GivenGrid] | None = None) -> Task:
        """This task with more decided."""
        return replace(self, given={**self.given, **given}, weights={**self.weights, **(weights or {})})


def range_of(calibrator: Calibrator, stats: TensorStats, scheme: Scheme) -> Range:
    """What a calibrator makes of a tensor under complete settings.

    Raises:
        CalibrationError: If no range follows from the statistics.
    """
    dtype = QUANT_TYPES[scheme.dtype or ""]
    return calibrator(stats, dtype, symmetric=bool(scheme.symmetric), narrow_range=bool(scheme.narrow_range))


def grid_of(found: Range, scheme: Scheme) -> QuantParams:
    """The grid of an activation that covers a range under complete settings."""
    dtype, narrow = QUANT_TYPES[scheme.dtype or ""], bool(scheme.narrow_range)
    return params_from_range(found.low, found.high, dtype, symmetric=bool(scheme.symmetric), narrow_range=narrow)


def spread(probes: Sequence[Feeds], count: int) -> list[Feeds]:
    """At most ``count`` of them, evenly spaced."""
    if len(probes) <= count:
        return list(probes)
    return [probes[index * len(probes) // count] for index in range(count)]
