"""The search of calibrator ``easyquant``: scales that maximize the cosine between a layer's float and quantized output.

Source: Wu et al. 2020, "EasyQuant", arXiv:2006.16669, section 3; ncnn's ``ncnn2table`` with ``method=eq``. From the
ranges of ``entropy``, for each value in topological order: the scale of each output channel of the weights that are
multiplied with it, then its own scale, each the best of ``steps`` factors in ``[least, most]``; one sweep, as ncnn
does. The input of a layer is the float model's.

What differs: a channel's output depends on no other channel's weights, so one run a factor gives what the search of all
channels needs; a value that several layers read has one grid, judged by the mean of their cosines; a range never leaves
the data; values that no layer with a constant weight reads keep their range of ``entropy``, and weights whose settings
name a calibrator keep its scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qconvert.calibrators import make_calibrator
from qconvert.calibrators.easyquant import EasyQuant
from qconvert.choose.layer import Floats, Layer, Sample
from qconvert.choose.observe import Observer
from qconvert.choose.task import Task, grid_of, range_of, spread
from qconvert.graph import Operator, constant, operand, operators, opset
from qconvert.numerics import QuantParams, Range, fake_quantize, with_scale
from qconvert.plan import Entry, Given, GivenGrid
from qconvert.targets import HEAVY

SAME = 1e-9
"""Cosines that differ by less are equal: the wider range is taken."""


def find(task: Task, wanted: Mapping[str, EasyQuant]) -> Task:
    """The task with the ranges of the values that ask for ``easyquant`` and the grids of the weights behind them.

    Raises:
        CalibrationError: If a value has no usable statistics.
        ModelError: If onnxruntime refuses a layer or a sample.
    """
    schemes, start = task.planner.deciding(), make_calibrator("entropy")
    kept = "easyquant: no layer with a constant weight reads it"
    ranges = {
        name: Given(range_of(start, task.stats[name], schemes[name]), "easyquant: entropy", kept) for name in wanted
    }
    search = _Search(task.found(ranges), wanted)
    groups = [group for group in task.planner.groups() if any(name in wanted for name in group)]
    task.listener.start("searching scales", len(groups))
    try:
        for done, group in enumerate(groups, 1):
            search.visit(group)
            task.listener.advance(done)
    finally:
        task.listener.finish()
    return search.task


class _Search:
    def __init__(self, task: Task, wanted: Mapping[str, EasyQuant]) -> None:
        self.task, self.wanted = task, wanted
        self.version = opset(task.model)
        self.ops = {op.name: op for op in operators(task.model)}
        plan = task.plan({})
        self.weights = {entry.sites[0].operator: entry for entry in plan.of("weight") if len(entry.sites) == 1}
        rows = task.planner.settings.rows
        self.fixed = {name for name in self.weights if rows[name].weights.calibrator is not None}
        self.sites = {entry.tensor: entry.sites for entry in plan.of("activation")}
        self.readers = {name: self._readers(name) for name in self.sites}
        made = [op.node.outputs[0].name or "" for ops in self.readers.values() for op in ops]
        self.observe = Observer(task.model, [*(name for name, ops in self.readers.items() if ops), *made])

    def _readers(self, name: str) -> list[Operator]:
        """The heavy operators with a weight of their own that read a value."""
        found = [self.ops[site.operator] for site in self.sites[name] if site.operator and site.operand == 0]
        return [op for op in found if op.op_type in HEAVY and op.name in self.weights and _is_plain(op)]

    def visit(self, group: Sequence[str]) -> None:
        """Searches the weights that are multiplied with one grid, then the grid."""
        names = [name for name in group if name in self.wanted]
        settings = self.wanted[names[0]]
        factors = np.linspace(settings.least, settings.most, settings.steps)
        probes = spread(self.task.probes, settings.samples)
        grid = self.task.grids({})[group[0]]
        layers: list[tuple[Layer, npt.NDArray[np.float32]]] = []
        for name in group:
            for op in self.readers[name]:
                layer = Layer(op, self._samples(name, op, probes), self.version)
                entry = self.weights[op.name]
                array = np.asarray(constant(operand(op.node, entry.sites[0].operand)), np.float32)
                layers.append((layer, self._search_weight(layer, entry, array, grid, factors)))
        if layers:
            self._search_grid(names, layers, factors)

    def _samples(
        self, name: str, op: Operator, probes: Sequence[Mapping[str, npt.NDArray[np.generic]]]
    ) -> list[Sample]:
        made = op.node.outputs[0].name or ""
        values = [self.observe([name, made], probe) for probe in probes]
        return [Sample(one[name], one[made]) for one in values]

    def _search_weight(
        self, layer: Layer, entry: Entry, array: npt.NDArray[np.float32], grid: QuantParams, factors: Floats
    ) -> npt.NDArray[np.float32]:
        """The weight on the grid with the best scales, which become the task's."""
        params = entry.params
        at_first = layer.sums(grid, fake_quantize(array, params))
        if entry.sites[0].operator in self.fixed:
            return fake_quantize(array, params)
        if params.axis is not None and (params.block_size or params.scale.size != at_first.shape[-1]):
            return fake_quantize(array, params)  # per group, or a grouped ConvTranspose, whose channels share scales
        scales = [(params.scale * factor).astype(np.float32) for factor in factors]
        sums = np.array([layer.sums(grid, fake_quantize(array, with_scale(params, scale))) for scale in scales])
        if params.axis is None:
            found = scales[_last_best(layer.cosine(sums.sum(-1)))]
        else:
            best = best_by_channel(layer, at_first, sums)
            found = np.array(scales)[best, np.arange(best.size)]
        params = with_scale(params, found)
        self.task = self.task.found({}, {entry.tensor: GivenGrid(params, "easyquant")})
        return fake_quantize(array, params)

    def _search_grid(
        self, names: Sequence[str], layers: Sequence[tuple[Layer, npt.NDArray[np.float32]]], factors: Floats
    ) -> None:
        """The best common factor on the ranges of one grid."""
        scheme = self.task.planner.deciding()[names[0]]
        starts = {name: self.task.given[name].range for name in names}
        trials = [{name: self._scaled(name, one, factor) for name, one in starts.items()} for factor in factors]
        scores = np.zeros(len(factors))
        for row, trial in enumerate(trials):
            union = next(iter(trial.values()))
            for other in trial.values():
                union |= other
            grid = grid_of(union, scheme)
            scores[row] = np.mean([layer.cosine(layer.sums(grid, weight).sum(-1)) for layer, weight in layers])
        best = _last_best(scores)
        why = f"easyquant: {factors[best]:.2f} x entropy, cosine of its layers' outputs {scores[best]:.6f}"
        self.task = self.task.found({name: Given(found, "easyquant", why) for name, found in trials[best].items()})

    def _scaled(self, name: str, found: Range, factor: float) -> Range:
        stats = self.task.stats[name]
        low, high = min(stats.low, 0.0), max(stats.high, 0.0)
        if -found.low == found.high:  # symmetric ranges stay so
            low, high = -max(-low, high), max(-low, high)
        return Range(float(max(factor * found.low, low)), float(min(factor * found.high, high)))


def _is_plain(op: Operator) -> bool:
    """Whether everything but its input is constant."""
    return all(value is None or constant(value) is not None for value in op.node.inputs[1:])


def best_by_channel(layer: Layer, at_first: Floats, sums: Floats) -> npt.NDArray[np.intp]:
    """The best factor for each channel in turn, by the cosine of the whole output.

    Args:
        layer: What gives the cosine of sums.
        at_first: The sums at the start, ``[samples, 2, channels]``.
        sums: Those with each factor on all channels, ``[factors, samples, 2, channels]``.
    """
    total = at_first.sum(-1)
    best = np.zeros(at_first.shape[-1], np.intp)
    for channel in range(best.size):
        trials = total - at_first[..., channel] + sums[..., channel]
        best[channel] = _last_best(layer.cosine(trials))
        total = trials[best[channel]]
    return best


def _last_best(scores: Floats) -> int:
    """The index of the greatest score; of equals the last, which is widest."""
    return int(np.flatnonzero(scores >= scores.max() - SAME)[-1])
