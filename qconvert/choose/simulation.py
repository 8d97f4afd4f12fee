"""The quantized model in float, with the grids of its activations as inputs: any choice of ranges is one run.

onnxruntime computes between Q/DQ pairs in float here, so that scales may change from run to run. That is what integer
kernels compute too, up to the rounding of biases to int32.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.graph import opset
from qconvert.numerics import QuantParams
from qconvert.plan import Plan
from qconvert.prepare import raise_opset
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.session import Feeds, open_session, run
from qconvert.workers import default_workers, run_workers

Floats = npt.NDArray[np.float64]

_SILENT_DB = 1e-30
"""Of the signal's power: noise below it is none, so that SQNRs stay finite."""


@dataclass(frozen=True)
class _Knob:
    """The inputs that hold the grid of one tensor.

    Attributes:
        scale: Name of the scale.
        zero: Name of the zero point.
        dtype: What the zero point is stored in.
        shift: The stored zero point less that of the plan.
    """

    scale: str
    zero: str
    dtype: np.dtype[Any]
    shift: int

    def feeds(self, params: QuantParams) -> dict[str, npt.NDArray[Any]]:
        return {self.scale: params.scale, self.zero: np.asarray(params.zero_point + self.shift, self.dtype)}


class Simulation:
    """A plan's model, to be run with any grids.

    Attributes:
        outputs: Names of the float outputs.
        signal: Power of the float model's outputs, ``[samples, outputs]``.
    """

    def __init__(self, model: ir.Model, plan: Plan, probes: Sequence[Feeds]) -> None:
        """Opens the model and runs the float one.

        Args:
            model: The prepared graph; left as it is.
            plan: Where grids are, and the weights' grids.
            probes: Samples.

        Raises:
            ModelError: If onnxruntime refuses the model or a sample.
        """
        self.probes = probes
        self.outputs = [value.name or "" for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
        float_session = open_session(model, threads=1)
        self._reference = [run(float_session, probe, self.outputs) for probe in probes]
        power = [[float(np.square(out, dtype=np.float64).sum()) for out in outs] for outs in self._reference]
        self.signal: Floats = np.array(power, np.float64).reshape(len(probes), len(self.outputs))
        written, self._knobs = _simulated(model, plan)
        self._session = open_session(written, threads=1, integer=False)

    def noise(self, grids: Mapping[str, QuantParams], samples: Sequence[int] | None = None) -> Floats:
        """Power of the outputs' errors, ``[samples, outputs]``; the same on any number of threads.

        Args:
            grids: The grid of every activation of the plan.
            samples: Which samples; None runs all.

        Raises:
            ModelError: If onnxruntime fails.
        """
        chosen = range(len(self.probes)) if samples is None else samples
        fixed = {
            name: array for tensor, knob in self._knobs.items() for name, array in knob.feeds(grids[tensor]).items()
        }
        todo = deque(enumerate(chosen))
        found = np.zeros((len(chosen), len(self.outputs)))

        def work() -> None:
            while True:
                try:
                    row, index = todo.popleft()
                except IndexError:
                    return
                outs = run(self._session, {**self.probes[index], **fixed}, self.outputs)
                for column, (out, reference) in enumerate(zip(outs, self._reference[index], strict=True)):
                    error = float(np.square(np.subtract(out, reference, dtype=np.float64)).sum())
                    found[row, column] = error if math.isfinite(error) else math.inf

        run_workers(min(default_workers(), max(len(chosen), 1)), work, Event())
        return found

    def sqnr_db(self, noise: Floats, samples: Sequence[int] | None = None) -> float:
        """SQNR pooled over the samples, in dB, mean over the outputs that are not silent."""
        signal = (self.signal if samples is None else self.signal[list(samples)]).sum(0)
        power = noise.sum(0)[signal > 0] / signal[signal > 0]
        return float(-10 * np.log10(power + _SILENT_DB).mean()) if power.size else 0.0


def _simulated(model: ir.Model, plan: Plan) -> tuple[ir.Model, dict[str, _Knob]]:
    """Clamps stay where they are, for they change nothing under any grid, and biases stay float."""
    copy = model.clone()
    kept = tuple(entry for entry in plan.entries if entry.role != "bias")
    whole = replace(plan, entries=kept, absorbed=())
    if needed_opset(whole) > opset(copy):
        raise_opset(copy, needed_opset(whole))
    written = to_qdq(copy, whole)
    nodes = {node.name: node for node in written.graph}
    knobs = {}
    for entry in whole.of("activation"):
        scale, zero = nodes[f"{entry.tensor}_QuantizeLinear"].inputs[1:3]
        stored = _as_input(written, zero)
        _as_input(written, scale)
        names = (scale.name or "", zero.name or "") if scale is not None and zero is not None else ("", "")
        knobs[entry.tensor] = _Knob(*names, stored.dtype, int(stored) - int(entry.params.zero_point))
    return written, knobs


def _as_input(model: ir.Model, value: ir.Value | None) -> npt.NDArray[Any]:
    """Makes an initializer an input; what it held."""
    if value is None or value.const_value is None or value.name is None:
        message = "a grid of the plan is not a constant of the model"
        raise ValueError(message)
    held = value.const_value.numpy()
    model.graph.initializers.pop(value.name)
    value.const_value = None
    model.graph.inputs.append(value)
    return held
