"""The search of calibrator ``auto``: whole methods first, then one tensor at a time, judged by the model's outputs.

Plain local error does not order the methods as their output errors do, so the quantized model is run for each
comparison. Of what was measured to overfit few samples, this guards against it: probes are spread over the data, ranges
start midway between those of the best method and of all that the samples cannot tell from it, and a change at one
tensor has to lower the error by more than ``GAIN_DB`` and beyond what the samples differ in (``SURE``).

A mean is steadier than a choice between equals (Breiman 1996, "Bagging predictors"). Measured on 53 divisions of the
images of two models at four widths, on images not calibrated with: the best method by the samples is 0.17 dB behind
what would have been the best method, midway 0.11 dB ahead of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qconvert.calibrators import Calibrator, make_calibrator
from qconvert.calibrators.auto import Auto
from qconvert.calibrators.easyquant import EasyQuant
from qconvert.choose import easyquant
from qconvert.choose.simulation import Floats, Simulation
from qconvert.choose.task import Task, range_of, spread
from qconvert.errors import CalibrationError
from qconvert.numerics import QuantParams, Range
from qconvert.plan import Given, GivenGrid

METHODS: Mapping[str, Calibrator] = {
    "minmax": make_calibrator("minmax"),
    "percentile": make_calibrator("percentile"),
    "mse": make_calibrator("mse"),
    "octav": make_calibrator("octav"),
    "admm": make_calibrator("admm"),
    "entropy": make_calibrator("entropy"),
    "aciq:distribution=laplace": make_calibrator("aciq", distribution="laplace"),
    "average": make_calibrator("average"),
    "aciq": make_calibrator("aciq"),
    "percentile:percentile=99.9": make_calibrator("percentile", percentile=99.9),
    "emd": make_calibrator("emd"),
}
"""The candidates, from the widest range to the narrowest as a rule: the first of equals is taken."""

LAYERWISE = "easyquant"
"""The candidate that brings scales of weights with it; its ranges alone are one for each tensor too."""

GAIN_DB = 0.02
"""What a change of one tensor must gain."""

SURE = 2.0
"""By how many standard errors of its mean over the samples a change must lower the error: paired, as each sample runs
with both. One of hundreds that are tried is often better by chance; measured on random divisions of the samples of a
vision transformer, what others lost by that was up to 0.9 dB."""

NEAR_DB = 3.0
"""What makes twice the error is worse, even where so few samples make most of it that nothing is sure."""

SCREEN = 8
"""Samples on which the candidates of a tensor are compared before the best are run on all."""

FINALISTS = 2
"""How many candidates of a tensor are run on all samples."""

SAME = 0.03
"""Ranges whose ends differ by less than this share of their width are one candidate."""

Ranges = dict[str, Given]


@dataclass(frozen=True)
class _State:
    """A choice of grids and what it does."""

    grids: Mapping[str, QuantParams]
    noise: Floats


def find(task: Task, wanted: Mapping[str, Auto]) -> Task:
    """The task with the ranges of the values that ask for ``auto``.

    Raises:
        CalibrationError: If no method gives these values a range.
        ModelError: If onnxruntime refuses the quantized model.
    """
    layerwise = _layerwise(task, wanted)
    search = _Search(task, wanted, layerwise)
    listener = task.listener
    listener.start("choosing ranges", len(search.ranges) + len(search.groups))
    try:
        ranges = search.run()
        return task.found(ranges, search.weights)
    finally:
        listener.finish()


class _Search:
    """The state of one search.

    Attributes:
        simulations: The model with each choice of weights, and their grids.
        simulation: The one of the present choice.
        weights: Grids of weights that belong to the choice.
    """

    def __init__(self, task: Task, wanted: Mapping[str, Auto], layerwise: Task | None) -> None:
        self.task, self.wanted, self.layerwise = task, wanted, layerwise
        self.weights: Mapping[str, GivenGrid] = {}
        self.ranges = _ranges(task, wanted)
        self.grids = {method: task.grids(found) for method, found in self.ranges.items()}
        members = task.planner.groups()
        self.groups = [group for group in members if any(name in wanted for name in group)]
        probes = spread(task.probes, max(one.samples for one in wanted.values()))
        first = next(iter(self.ranges.values()))
        self.simulation = Simulation(task.model, task.plan(first), probes)
        self.simulations: list[tuple[Simulation, Mapping[str, GivenGrid]]] = [(self.simulation, {})]
        if layerwise is not None:
            self.ranges[LAYERWISE] = {name: layerwise.given[name] for name in wanted}
            self.grids[LAYERWISE] = layerwise.grids({})
        self.screen = range(0, len(probes), -(-len(probes) // SCREEN))

    def run(self) -> Ranges:
        progress = self._progress()
        found, state, whole = self._start(self._whole(progress))
        changed = 0
        for group in self.groups:
            before = self._total(state)
            method, state = self._refine(group, state)
            if method:
                rise = f"from {before:.2f} to {self._total(state):.2f} dB on {self._samples}"
                why = f"auto: {method} here raises output SQNR {rise}"
                names = [name for name in group if name in self.wanted]
                found.update({name: Given(self.ranges[method][name].range, f"auto: {method}", why) for name in names})
                changed += 1
            next(progress)
        end = f"; other methods at {changed} of {len(self.groups)} tensors: {self._total(state):.1f} dB"
        self.task.listener.note(whole + (end if changed else ""))
        return found

    def _start(self, states: Mapping[str, _State]) -> tuple[Ranges, _State, str]:
        """Ranges for all values, what they do, and why these: the best method's, or midway to those of its rivals."""
        scores = {method: self._total(state) for method, state in states.items()}
        best = max(scores, key=lambda method: scores[method])
        why = f"auto: {best}, output SQNR {scores[best]:.1f} dB on {self._samples} ({_others(scores, best)})"
        rivals = [method for method in states if method != best and self._is_like(states[method], states[best])]
        alone = {name: self.ranges[best][name].range for name in self.wanted}
        found = {name: midway(one, [self.ranges[rival][name].range for rival in rivals]) for name, one in alone.items()}
        state = self._weighed(found)
        if rivals and not self._is_like(state, states[best]):
            rivals, found = [], alone
            state = self._weighed(found)
        method = f"auto: {best}"
        if rivals:
            method = f"auto: midway from {best}"
            why += f"; midway to the mean of {', '.join(rivals)}, which the samples do not tell from it"
        if self.weights:
            why += f"; scales of weights by {LAYERWISE}"
        if rivals or self.weights:
            why += f": {self._total(state):.1f} dB"
        return {name: Given(one, method, why) for name, one in found.items()}, state, why

    def _weighed(self, ranges: Mapping[str, Range]) -> _State:
        """What ranges do with the weights that suit them best; these weights are the search's from here on."""
        grids = self.task.grids({name: Given(one, "auto") for name, one in ranges.items()})
        states = [(_State(grids, one.noise(grids)), one, weights) for one, weights in self.simulations]
        state, self.simulation, self.weights = max(states, key=lambda one: self._total(one[0]))
        return state

    @property
    def _samples(self) -> str:
        count = len(self.simulation.probes)
        return f"{count} samples" if count > 1 else "1 sample"

    def _progress(self) -> Iterator[None]:
        for done in range(1, len(self.ranges) + len(self.groups) + 1):
            self.task.listener.advance(done)
            yield

    def _whole(self, progress: Iterator[None]) -> dict[str, _State]:
        """Each method everywhere."""
        found = {}
        for method, grids in self.grids.items():
            if method == LAYERWISE:
                continue
            found[method] = _State(grids, self.simulation.noise(grids))
            next(progress)
        if self.layerwise is not None:
            simulation = Simulation(self.task.model, self.layerwise.plan({}), self.simulation.probes)
            self.simulations.append((simulation, self.layerwise.weights))
            grids = self.grids[LAYERWISE]
            found[LAYERWISE] = _State(grids, simulation.noise(grids))
            next(progress)
        return found

    def _refine(self, group: Sequence[str], state: _State) -> tuple[str, _State]:
        """The method whose range for one group beats the present one, or ""."""
        found, best = "", state
        for method in self._finalists(group, state):
            grids = self._with(group, method, state)
            trial = _State(grids, self.simulation.noise(grids))
            if self._is_better(trial.noise, state.noise) and self._total(trial) > self._total(best):
                found, best = method, trial
        return found, best

    def _finalists(self, group: Sequence[str], state: _State) -> list[str]:
        """The methods that do best on few samples, and better than the present one."""
        methods = self._distinct(group, state.grids)
        if len(self.simulation.probes) <= 2 * SCREEN:
            return methods
        present = self.simulation.sqnr_db(state.noise[list(self.screen)], self.screen)
        scores = {}
        for method in methods:
            noise = self.simulation.noise(self._with(group, method, state), self.screen)
            scores[method] = self.simulation.sqnr_db(noise, self.screen)
        better = [method for method in methods if scores[method] > present]
        return sorted(better, key=lambda method: -scores[method])[:FINALISTS]

    def _distinct(self, group: Sequence[str], grids: Mapping[str, QuantParams]) -> list[str]:
        """One method for each range of the group that is not the present one, the widest first."""
        have = [grids[group[0]]]
        found = []
        for method in sorted(self.grids, key=lambda method: -_width(self.grids[method][group[0]])):
            params = self.grids[method][group[0]]
            if not any(_same(params, other) for other in have):
                have.append(params)
                found.append(method)
        return found

    def _with(self, group: Sequence[str], method: str, state: _State) -> dict[str, QuantParams]:
        return {**state.grids, **{name: self.grids[method][name] for name in group}}

    def _is_better(self, new: Floats, old: Floats) -> bool:
        score, signal = self.simulation.sqnr_db, self.simulation.signal
        return score(new) > score(old) + GAIN_DB and is_surely_less(new, old, signal)

    def _is_like(self, state: _State, best: _State) -> bool:
        """Whether the samples do not tell a state from the best."""
        near = self._total(state) > self._total(best) - NEAR_DB
        return near and not is_surely_less(best.noise, state.noise, self.simulation.signal)

    def _total(self, state: _State) -> float:
        return self.simulation.sqnr_db(state.noise)


def is_surely_less(new: Floats, old: Floats, signal: Floats) -> bool:
    """Whether noise is less beyond what the samples differ in; of one sample alone, nothing better is known.

    Args:
        new: Power of the errors, ``[samples, outputs]``.
        old: The same of the same samples.
        signal: Power of the outputs, alike.
    """
    power = signal.sum(0)
    gains = ((old - new)[:, power > 0] / power[power > 0]).sum(1)
    if gains.size < 2 or np.isposinf(gains).any():
        return True
    return bool(gains.mean() > SURE * gains.std(ddof=1) / math.sqrt(gains.size))


def midway(one: Range, others: Sequence[Range]) -> Range:
    """Half the way from a range to the mean of others; the range itself without others."""
    if not others:
        return one

    def end(at: float, ends: Sequence[float]) -> float:
        return (at + math.fsum(ends) / len(ends)) / 2

    return Range(end(one.low, [other.low for other in others]), end(one.high, [other.high for other in others]))


def _layerwise(task: Task, wanted: Mapping[str, Auto]) -> Task | None:
    """What ``easyquant`` finds, scales of weights included; None where statistics do not suffice for it."""
    try:
        return easyquant.find(task, dict.fromkeys(wanted, EasyQuant()))
    except CalibrationError:  # it starts from histograms
        return None


def _ranges(task: Task, wanted: Mapping[str, Auto]) -> dict[str, Ranges]:
    """By method, the ranges of all values; a method that has none for some value is left out."""
    schemes, found, problem = task.planner.deciding(), {}, None
    for method, calibrator in METHODS.items():
        try:
            found[method] = {
                name: Given(range_of(calibrator, task.stats[name], schemes[name]), method) for name in wanted
            }
        except CalibrationError as error:  # noqa: PERF203 - statistics without histograms do for some
            problem = error
    if problem is not None and not found:
        raise problem
    return found


def _width(params: QuantParams) -> float:
    return float(params.high) - float(params.low)


def _same(one: QuantParams, other: QuantParams) -> bool:
    wide = max(_width(one), _width(other))
    return max(abs(float(one.low - other.low)), abs(float(one.high - other.high))) <= SAME * wide


def _others(scores: Mapping[str, float], best: str) -> str:
    """The other methods' SQNRs, the best first."""
    rest = sorted((method for method in scores if method != best), key=lambda method: -scores[method])
    return ", ".join(f"{method} {scores[method]:.1f}" for method in rest)
