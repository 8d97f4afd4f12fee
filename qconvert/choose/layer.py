"""One heavy operator by itself, on a quantized input, with input grid and weight to be chosen from run to run."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.graph import Operator, add_constant, constant, operand
from qconvert.numerics import QuantParams
from qconvert.session import open_session, run
from qconvert.workers import default_workers, run_workers

Floats = npt.NDArray[np.float64]
Reals = npt.NDArray[np.float32]

_TINY = 1e-30
"""What a norm is at least, so that a silent output has cosine 0 whatever the scale."""


@dataclass(frozen=True)
class Sample:
    """What a layer reads and what it makes of it in float."""

    x: Reals
    y: Reals


class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight.

    Attributes:
        samples: The float model's values around it.
        norms: ``sum(y y)`` of the float output of each sample.
    """

    def __init__(self, op: Operator, samples: Sequence[Sample], version: int) -> None:
        """Opens the operator.

        Args:
            op: It; left as it is.
            samples: The float model's values around it.
            version: The opset of its model.

        Raises:
            ModelError: If onnxruntime refuses it.
        """
        self.samples = samples
        rank = samples[0].y.ndim
        channel = 1 if op.op_type in {"Conv", "ConvTranspose"} else rank - 1
        axes = tuple(axis for axis in range(rank) if axis != channel)
        self._session = open_session(_graph(op, axes, version), threads=1, integer=False)
        self.norms: Floats = np.array([np.square(sample.y, dtype=np.float64).sum() for sample in samples])

    def sums(self, grid: QuantParams, weight: Reals) -> Floats:
        """By output channel, what the cosine of float output y and quantized output z is made of.

        Args:
            grid: The grid of the input.
            weight: The weight as the quantized operator sees it.

        Returns:
            ``sum(y z)`` and ``sum(z z)``, ``[samples, 2, channels]``.

        Raises:
            ModelError: If onnxruntime fails.
        """
        zero = int(grid.zero_point)
        ends = {"low": grid.qmin - zero, "high": grid.qmax - zero}
        fixed = {"w": weight, "scale": grid.scale, **{key: np.asarray(end, np.float32) for key, end in ends.items()}}
        todo = deque(range(len(self.samples)))
        found: list[list[Any]] = [[]] * len(self.samples)

        def work() -> None:
            while True:
                try:
                    index = todo.popleft()
                except IndexError:
                    return
                sample = self.samples[index]
                found[index] = run(self._session, {"x": sample.x, "y": sample.y, **fixed}, ["dot", "power"])

        run_workers(min(default_workers(), len(self.samples)), work, Event())
        return np.asarray(found, np.float64).reshape(len(self.samples), 2, -1)

    def cosine(self, sums: Floats) -> Floats:
        """Mean over the samples of the cosine, ``[...]``, of sums over all channels, ``[..., samples, 2]``."""
        norm = np.maximum(np.sqrt(sums[..., 1] * self.norms), _TINY)
        return np.asarray((sums[..., 0] / norm).mean(-1))


def _graph(op: Operator, axes: Sequence[int], version: int) -> ir.Model:
    """``dot = sum(y z)`` and ``power = sum(z z)`` with ``z = op(scale clip(round(x / scale), low, high), w, bias)``."""
    names = ("x", "y", "w", "scale", "low", "high")
    inputs = {name: ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in names}
    for name in ("scale", "low", "high"):
        inputs[name].shape = ir.Shape(())
    graph = ir.Graph(list(inputs.values()), [], nodes=[], opset_imports={"": version}, name="layer")

    def node(op_type: str, *operands: ir.Value | None, attributes: Mapping[str, Any] | None = None) -> ir.Value:
        made = ir.node(op_type, list(operands), attributes=dict(attributes or {}))
        graph.append(made)
        return made.outputs[0]

    steps = node("Round", node("Div", inputs["x"], inputs["scale"]))
    seen = node("Mul", node("Clip", steps, inputs["low"], inputs["high"]), inputs["scale"])
    extra = [operand(op.node, index) for index in range(2, len(op.node.inputs))]
    arrays = [constant(value) for value in extra]
    biases = [None if array is None else add_constant(graph, "bias", array) for array in arrays]
    z = node(op.node.op_type, seen, inputs["w"], *biases, attributes=dict(op.node.attributes))
    over = add_constant(graph, "axes", np.array(axes, np.int64))
    for name, factor in (("dot", inputs["y"]), ("power", z)):
        total = node("ReduceSum", node("Mul", z, factor), over, attributes={"keepdims": 0})
        total.name, total.type = name, ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(total)
    return ir.Model(graph, ir_version=9)
