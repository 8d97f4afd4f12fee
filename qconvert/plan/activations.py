"""The grids of activations: one for each group of values that must share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from qconvert.calibrators import Calibrator
from qconvert.errors import CalibrationError, PlanError
from qconvert.graph import Operator, constant, operand, operators
from qconvert.histogram import TensorStats
from qconvert.numerics import QUANT_TYPES, QuantParams, Range, params_from_range, quantize
from qconvert.plan.operands import clamp_bounds
from qconvert.plan.placement import Placement
from qconvert.plan.settings import SettingsTable
from qconvert.plan.types import Absorbed, Entry, Site
from qconvert.policy import Scheme, Settings
from qconvert.rules import OP_RULES
from qconvert.targets import Target


@dataclass(frozen=True)
class ActivationPlanner:
    """What the grids of activations are computed from."""

    model: ir.Model
    placement: Placement
    settings: SettingsTable
    target: Target
    stats: Mapping[str, TensorStats]
    default: Calibrator

    @cached_property
    def producers(self) -> Mapping[str, Operator]:
        """The operator behind every value."""
        return {value.name or "": op for op in operators(self.model) for value in op.node.outputs}

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(value.name or "" for value in self.model.graph.outputs)

    def entries(self) -> list[Entry]:
        """Entries of all values that carry a Q/DQ pair, in topological order."""
        groups: dict[str, list[str]] = {}
        for name in self.placement.values:
            groups.setdefault(self.placement.root(name), []).append(name)
        found = {entry.tensor: entry for members in groups.values() for entry in self._group(members)}
        return [found[name] for name in self.placement.values]

    def _group(self, members: Sequence[str]) -> list[Entry]:
        """Operators that only move values add nothing to the range of their group."""
        sources = [name for name in members if not self._is_moved(name)] or members[:1]
        settings = self._settings(members[0])
        scheme, dtype = settings.activations, QUANT_TYPES[settings.activations.dtype or ""]
        ranges = [self._range(name, scheme) for name in sources]
        union = ranges[0][0]
        for other, _ in ranges[1:]:
            union |= other
        params = params_from_range(
            union.low, union.high, dtype, symmetric=bool(scheme.symmetric), narrow_range=bool(scheme.narrow_range)
        )
        return [
            Entry(
                name,
                "activation",
                params,
                self.placement.values[name],
                ranges[0][1] if name == sources[0] else "same scale",
                f"{self.placement.why[name]}; {settings.reason}",
            )
            for name in members
        ]

    def _is_moved(self, name: str) -> bool:
        op = self.producers.get(name)
        return op is not None and op.name in self.placement.integer and OP_RULES[op.op_type].kind == "same"

    def _settings(self, name: str) -> Settings:
        """Of the integer operator that makes the value, else of the first one that reads it."""
        producer = self.producers.get(name)
        if name in self.placement.clamps:
            source = operand(self.placement.clamps[name].node, 0)
            producer = self.producers.get(source.name or "") if source is not None else None
        if producer is not None and producer.name in self.placement.integer:
            return self.settings[producer]
        reader = next(site.operator for site in self.placement.values[name] if site.operator in self.placement.integer)
        return self.settings[self.placement.integer[reader]]

    def _range(self, name: str, scheme: Scheme) -> tuple[Range, str]:
        op = self.producers.get(name)
        rule = OP_RULES.get(op.op_type) if op is not None else None
        if rule is not None and rule.output_range is not None:
            return rule.output_range, f"range of {rule.op_type}"
        stats = self._checked_stats(name)
        if name in self.outputs:
            return Range(min(stats.low, 0.0), max(stats.high, 0.0)), "minmax (model output)"
        calibrator = scheme.calibrator or self.default
        dtype = QUANT_TYPES[scheme.dtype or ""]
        found = calibrator(stats, dtype, symmetric=bool(scheme.symmetric), narrow_range=bool(scheme.narrow_range))
        return found, type(calibrator).__name__.lower()

    def _checked_stats(self, name: str) -> TensorStats:
        stats = self.stats.get(name)
        hint = "calibrate this model again, or leave its operator float with --exclude"
        if stats is None:
            raise CalibrationError(f"value '{name}' has no statistics", hint=hint)
        if stats.count == 0:
            raise CalibrationError(f"value '{name}' saw no finite data in {stats.samples} samples", hint=hint)
        if not stats.finite:
            counts = (("NaN", stats.nan), ("-Inf", stats.negative_inf), ("+Inf", stats.positive_inf))
            seen = ", ".join(f"{count} {kind}" for kind, count in counts if count)
            raise CalibrationError(f"value '{name}' held {seen}", hint="leave its operator float with --exclude")
        return stats

    def absorbed(self, entries: Sequence[Entry]) -> list[Absorbed]:
        """The clamps that change nothing before their output's quantization: saturation does their work."""
        found = []
        for entry in entries:
            clamp = self.placement.clamps.get(entry.tensor)
            bounds = clamp_bounds(clamp.node) if clamp is not None else None
            if clamp is not None and bounds is not None and self.target.absorb and _saturates(entry.params, *bounds):
                found.append(Absorbed(clamp.name, clamp.op_type, entry.tensor))
        return found

    def constants(self) -> list[Entry]:
        """Entries of the constant operands of light operators."""
        return [self._constant(name, sites) for name, sites in self.placement.constants.items()]

    def _constant(self, name: str, sites: tuple[Site, ...]) -> Entry:
        array = constant(self.model.graph.initializers[name])
        settings = self.settings[self.placement.integer[sites[0].operator]]
        scheme = settings.activations
        if array is None or not np.isfinite(array).all():
            raise PlanError(
                f"constant '{name}' holds NaN or Inf", hint=f"--exclude {sites[0].operator} leaves its operator float"
            )
        params = params_from_range(
            array.min(), array.max(), QUANT_TYPES[scheme.dtype or ""], symmetric=bool(scheme.symmetric)
        )
        return Entry(name, "constant", params, sites, "minmax", f"constant operand; {settings.reason}")


def _saturates(params: QuantParams, low: float, high: float) -> bool:
    """Whether ``quantize(clip(x)) == quantize(x)`` for every x: both bounds fall on an end of the grid, ties included.

    QuantizeLinear knows no narrow range, so the lowest level counts even where the grid leaves it out.
    """
    whole = replace(params, narrow_range=False)
    tie = 1e-3 * float(whole.scale)
    ends = np.array([max(low - tie, float(whole.low)), min(high + tie, float(whole.high))], np.float32)
    bottom, top = quantize(ends, whole)
    return bool(bottom == whole.qmin and top == whole.qmax)
