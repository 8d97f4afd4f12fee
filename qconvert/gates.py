"""Bounds on the headline numbers of a report: fixed ones, and those of a stored report.

A number has regressed where it is worse than the stored one by more than ``TOLERANCE`` of its unit: kernels of another
CPU or another onnxruntime move results by less, a changed model or policy by more. Accuracies and agreements may
always differ by one sample. Times are not compared, for they belong to a machine; cosines follow SQNR. Both reports
must have been measured on the same samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from qconvert.errors import DataError
from qconvert.reports import Gate, Measure, Report, Sense, Value

TOLERANCE = {"points": 0.5, "%": 0.5, "dB": 0.5}
"""By unit: how much worse than the stored report is still the same."""

GROWTH = 0.01
"""The share by which a file may grow."""


@dataclass(frozen=True)
class Bounds:
    """What is demanded of a quantized model.

    Attributes:
        max_drop: Points of top-1 accuracy that it may lose, of argmax agreement where there are no labels; or None.
        min_sqnr: SQNR that every output must reach, dB, or None.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None


def check_bounds(report: Report, bounds: Bounds) -> tuple[Gate, ...]:
    """The gates of fixed bounds.

    Raises:
        DataError: If what is bounded was not measured.
    """
    gates: list[Gate] = []
    if bounds.max_drop is not None:
        gates.append(_gate("max-drop", report.measure("top1_drop") or _disagreement(report), bounds.max_drop))
    if bounds.min_sqnr is not None:
        found = [one for one in report.measures if one.key.startswith("sqnr_db")]
        if not found:
            raise DataError("--min-sqnr bounds float outputs, and the model has none", hint="leave it out")
        gates += [_gate("min-sqnr", one, bounds.min_sqnr) for one in found]
    return tuple(gates)


def check_baseline(report: Report, baseline: Report, *, name: str) -> tuple[Gate, ...]:
    """One gate for each number of the stored report that has a better side.

    Args:
        report: What was measured now.
        baseline: What was stored.
        name: Its file, for messages.

    Raises:
        DataError: If it is of another command or other samples, or holds what was not measured now.
    """
    if report.command != baseline.command:
        raise DataError(
            f"{name}: is a report of '{baseline.command}', not of '{report.command}'",
            hint=f"store one with 'qconvert {report.command} ... --report {name}'",
        )
    if _basis(report) != _basis(baseline):
        raise DataError(
            f"{name}: was measured on other inputs: {_samples(baseline)}, now {_samples(report)}",
            hint="give the same --data, --preprocess, --samples and --seed, or store a new baseline",
        )
    gates = []
    for before in baseline.measures:
        slack = _tolerance(before)
        if slack is None:
            continue
        now = report.measure(before.key)
        if now is None:
            raise DataError(
                f"{name}: holds '{before.title}', which was not measured now",
                hint="give the same options, --labels among them, or store a new baseline",
            )
        bound = before.value.value + (slack if before.better == "down" else -slack)
        gates.append(_gate("baseline", replace(now, title=f"{now.title}, stored {before.value.value:.4g}:"), bound))
    return tuple(gates)


def _disagreement(report: Report) -> Measure:
    """What stands for a drop of accuracy where there are no labels: how often the first output's argmax differs."""
    agreement = next((one for one in report.measures if one.key.startswith("agreement/")), None)
    if agreement is None:
        raise DataError(
            "--max-drop bounds the loss of accuracy, and there are neither labels nor outputs with classes",
            hint="give --labels, or bound the outputs with --min-sqnr",
        )
    title = agreement.title.replace("agrees", "differs")
    lost = Value(100 - agreement.value.value, samples=agreement.value.samples)
    return Measure("disagreement", title, lost, "points", "down")


def _basis(report: Report) -> tuple[object, ...]:
    """What has to be the same for numbers to be compared; where the samples lie is not part of it."""
    data = report.data
    return () if data is None else (data.kind, data.samples, data.fingerprint, data.preprocess)


def _samples(report: Report) -> str:
    data = report.data
    if data is None:
        return "none"
    return f"{data.samples} samples {data.fingerprint[:8]}, preprocessing {data.preprocess or 'none'}"


def _tolerance(measure: Measure) -> float | None:
    """What a number may lose; None where it is not compared."""
    if measure.better == "none":
        return None
    if measure.unit == "B":
        return GROWTH * measure.value.value
    slack = TOLERANCE.get(measure.unit)
    if slack is None or measure.unit == "dB" or not measure.value.samples:
        return slack
    return max(slack, 100 / measure.value.samples)


def _gate(name: str, measure: Measure, bound: float) -> Gate:
    value, least = measure.value.value, measure.better == "up"
    exact = math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-9)  # 0.1 + 0.2 <= 0.3
    passed = exact or (value >= bound if least else value <= bound)
    sense: Sense = "at least" if least else "at most"
    return Gate(name, measure.title, sense, bound, value, measure.unit, passed, measure.value.samples)
