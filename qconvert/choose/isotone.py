"""The search of calibrator ``isotone``: the range with which the largest class score stays the largest.

Source: PPQ's ``TorchIsotoneObserver``. With ``l`` the largest and ``s`` the second score of a row and ``q`` the
highest level, both on the same grid of scale ``d``, the order survives where ``round(s / d) < round(l / d) <= q``,
which ``l / (q + 0.5) <= d <= 2 (l - s)`` is near to. Both ends for each row are the candidates here, as factors on the
scale of minmax, which is one too; the grid that really keeps the most rows wins, of equals the widest.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qconvert.calibrators import make_calibrator
from qconvert.calibrators.isotone import Isotone
from qconvert.choose.observe import Observer
from qconvert.choose.task import Task, grid_of, range_of
from qconvert.graph import attributes, operators, shape_of
from qconvert.numerics import QuantParams, Range, quantize
from qconvert.plan import Given
from qconvert.policy import Scheme

Floats = npt.NDArray[np.float32]

CANDIDATES = 512
"""Scales that are tried, at most."""


def find(task: Task, wanted: Mapping[str, Isotone]) -> Task:
    """The task with the ranges of the values that ask for ``isotone``.

    Raises:
        CalibrationError: If a value has no usable statistics.
        ModelError: If onnxruntime refuses the model or a sample.
    """
    schemes, minmax = task.planner.deciding(), make_calibrator("minmax")
    axes = _scores(task)
    shared = {name: group for group in task.planner.groups() for name in group}
    sources = {name: next((one for one in shared[name] if one in axes), "") for name in wanted}
    rows = _rows(task, {source: axes[source] for source in sources.values() if source})
    found = {}
    for name, source in sources.items():
        whole = range_of(minmax, task.stats[name], schemes[name])
        found[name] = Given(whole, "isotone: minmax", "isotone: no class scores, so minmax")
        if source:
            found[name] = _given(rows[source], whole, schemes[name])
    return task.found(found)


def _rows(task: Task, axes: Mapping[str, int]) -> dict[str, Floats]:
    """The largest and the second score of all rows of the probes."""
    observe = Observer(task.model, list(axes))
    values = [observe(list(axes), probe) for probe in task.probes]
    return {name: np.concatenate([top_two(one[name], axis) for one in values]) for name, axis in axes.items()}


def _scores(task: Task) -> dict[str, int]:
    """Class scores and their axis: outputs ``[N, classes]``, and what a Softmax or Sigmoid makes an output of."""
    outputs = {value.name or "": shape_of(value) for value in task.model.graph.outputs}
    found = {name: 1 for name, shape in outputs.items() if shape is not None and len(shape) == 2 and shape[1] != 1}
    for op in operators(task.model):
        shape = outputs.get(op.node.outputs[0].name or "")
        if op.op_type in {"Softmax", "LogSoftmax", "Sigmoid"} and shape:
            source, axis = op.node.inputs[0], int(attributes(op.node).get("axis", -1))
            if source is not None and shape[axis] != 1:
                found[source.name or ""] = axis
    return found


def top_two(scores: Floats, axis: int) -> Floats:
    """The largest and the second score of each row, ``[rows, 2]``."""
    flat = np.moveaxis(scores, axis, -1).reshape(-1, scores.shape[axis])
    return np.sort(flat, axis=1)[:, :-3:-1]


def _given(rows: Floats, whole: Range, scheme: Scheme) -> Given:
    best, kept = isotone_range(rows, whole, scheme)
    before = _kept(rows, grid_of(whole, scheme))
    why = f"isotone: keeps the largest score of {kept} of {len(rows)} rows (minmax: {before})"
    return Given(best, "isotone", why)


def isotone_range(rows: Floats, whole: Range, scheme: Scheme) -> tuple[Range, int]:
    """The range that keeps the order of the most rows, and of how many.

    Args:
        rows: The largest and the second score, ``[rows, 2]``.
        whole: The range of the data.
        scheme: Complete settings of the tensor.
    """
    params = grid_of(whole, scheme)
    scale, top = float(params.scale), params.qmax - int(params.zero_point)
    largest, second = rows.astype(np.float64).T
    ends = np.concatenate([largest / (top + 0.5), 2 * (largest - second)]) / scale
    factors = np.unique(ends[(ends > 0) & (ends < 1)])
    if factors.size > CANDIDATES:
        factors = np.quantile(factors, np.linspace(0, 1, CANDIDATES))
    best, most = whole, _kept(rows, params)
    for factor in factors[::-1]:
        narrow = Range(float(factor * whole.low), float(factor * whole.high))
        kept = _kept(rows, grid_of(narrow, scheme))
        if kept > most:
            best, most = narrow, kept
    return best, most


def _kept(rows: Floats, params: QuantParams) -> int:
    levels = quantize(rows, params)
    return int((levels[:, 0] > levels[:, 1]).sum())
