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
from qconvert.plan.types import Absorbed, Entry, Given, Site
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
    given: Mapping[str, Given]
    default: Calibrator

    @cached_property
    def producers(self) -> Mapping[str, Operator]:
        """The operator behind every value."""
        return {value.name or "": op for op in operators(self.model) for value in op.node.outputs}

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(value.name or "" for value in self.model.graph.outputs)

    def groups(self) -> list[list[str]]:
        """The values that carry a Q/DQ pair, those that share a grid together."""
        found: dict[str, list[str]] = {}
        for name in self.placement.values:
            found.setdefault(self.placement.root(name), []).append(name)
        return list(found.values())

    def deciding(self) -> dict[str, Scheme]:
        """The values whose own range counts for a grid, with their settings, in topological order.

        Those that an operator with a range of its own makes, such as Softmax, are not among them.
        """
        found = {
            name: self._settings(members[0]).activations
            for members in self.groups()
            if self._fixed(members) is None
            for name in self._sources(members)
            if self._own_range(name) is None
        }
        return {name: found[name] for name in self.placement.values if name in found}

    def entries(self) -> list[Entry]:
        """Entries of all values that carry a Q/DQ pair, in topological order."""
        found = {entry.tensor: entry for members in self.groups() for entry in self._group(members)}
        return [found[name] for name in self.placement.values]

    def _group(self, members: Sequence[str]) -> list[Entry]:
        """Operators that only move values add nothing to the range of their group."""
        fixed = self._fixed(members)
        if fixed is not None:
            return [self._entry(name, fixed, f"grid of {self.target.name}") for name in members]
        sources = self._sources(members)
        settings = self._settings(members[0])
        scheme, dtype = settings.activations, QUANT_TYPES[settings.activations.dtype or ""]
        ranges = [self._range(name, scheme) for name in sources]
        union = ranges[0].range
        for other in ranges[1:]:
            union |= other.range
        whys = dict.fromkeys(one.reason for one in ranges if one.reason)
        params = params_from_range(
            union.low, union.high, dtype, symmetric=bool(scheme.symmetric), narrow_range=bool(scheme.narrow_range)
        )
        method = ranges[0].method
        return [
            self._entry(name, params, method if name == sources[0] else "same scale", settings.reason, *whys)
            for name in members
        ]

    def _entry(self, name: str, params: QuantParams, method: str, *whys: str) -> Entry:
        reason = "; ".join((self.placement.why[name], *whys))
        return Entry(name, "activation", params, self.placement.values[name], method, reason)

    def _fixed(self, members: Sequence[str]) -> QuantParams | None:
        """The grid of a group that holds an output whose grid the target leaves no choice of."""
        dtype = self._settings(members[0]).activations.dtype or ""
        makers = (self.producers[name].op_type for name in members if name in self.producers)
        found = next((kind for kind in makers if (kind, dtype) in self.target.fixed_outputs), None)
        if found is None:
            return None
        scale, zero = self.target.fixed_outputs[found, dtype]
        return QuantParams(np.asarray(scale, np.float32), np.asarray(zero, np.int32), QUANT_TYPES[dtype])

    def _sources(self, members: Sequence[str]) -> Sequence[str]:
        """The values of a group that decide its range."""
        made = [name for name in members if not self._is_moved(name)] or members[:1]
        if any(name in self.given for name in made):
            return made
        return [name for name in members if name in self.given] or made

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

    def _range(self, name: str, scheme: Scheme) -> Given:
        if name in self.given:
            return self.given[name]
        own = self._own_range(name)
        if own is not None:
            return own
        stats = checked_stats(self.stats, name)
        if name in self.outputs:
            return Given(Range(min(stats.low, 0.0), max(stats.high, 0.0)), "minmax (model output)")
        calibrator = scheme.calibrator or self.default
        dtype = QUANT_TYPES[scheme.dtype or ""]
        found = calibrator(stats, dtype, symmetric=bool(scheme.symmetric), narrow_range=bool(scheme.narrow_range))
        return Given(found, calibrator.name)

    def _own_range(self, name: str) -> Given | None:
        op = self.producers.get(name)
        rule = OP_RULES.get(op.op_type) if op is not None else None
        return Given(rule.output_range, f"range of {rule.op_type}") if rule is not None and rule.output_range else None

    def absorbed(self, entries: Sequence[Entry]) -> list[Absorbed]:
        """The clamps that change nothing before their output's quantization: saturation does their work."""
        found = []
        for entry in entries:
            clamp = self.placement.clamps.get(entry.tensor)
            bounds = clamp_bounds(clamp.node) if clamp is not None else None
            if clamp is None or bounds is None or not self.target.absorb:
                continue
            if _saturates(self._written(entry.params), *bounds):
                found.append(Absorbed(clamp.name, clamp.op_type, entry.tensor))
        return found

    def _written(self, params: QuantParams) -> QuantParams:
        """The grid that the file holds: QuantizeLinear knows no narrow range, only a Clip behind it does."""
        return params if params.dtype.name in self.target.clipped else replace(params, narrow_range=False)

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


def checked_stats(stats: Mapping[str, TensorStats], name: str) -> TensorStats:
    """The statistics of a value that is to be quantized.

    Raises:
        CalibrationError: If there are none, or some with NaN or Inf.
    """
    found = stats.get(name)
    hint = "calibrate this model again, with the same --target, or leave its operator float with --exclude"
    if found is None:
        raise CalibrationError(f"value '{name}' has no statistics", hint=hint)
    if found.values == 0:
        raise CalibrationError(f"value '{name}' saw no finite data in {found.samples} samples", hint=hint)
    if not found.finite:
        message = f"value '{name}' held {found.not_finite}"
        raise CalibrationError(message, hint="leave its operator float with --exclude")
    return found


def _saturates(grid: QuantParams, low: float, high: float) -> bool:
    """Whether ``quantize(clip(x)) == quantize(x)`` for every x: both bounds are at an end of the grid, with ties."""
    tie = 1e-3 * float(grid.scale)
    ends = np.array([max(low - tie, float(grid.low)), min(high + tie, float(grid.high))], np.float32)
    bottom, top = quantize(ends, grid)
    return bool(bottom == grid.qmin and top == grid.qmax)
