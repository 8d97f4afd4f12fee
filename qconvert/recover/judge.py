"""How good a quantized model is: the SQNR of its outputs on samples, as onnxruntime computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.metrics import EXACT_DB, ratio_db
from qconvert.plan import Plan
from qconvert.prepare import raise_opset
from qconvert.recover.edits import simulated
from qconvert.recover.stream import in_order
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.session import Feeds, open_session, run


class Judge:
    """The float model's outputs on some samples, and how near quantized models come to them.

    Attributes:
        probes: The samples.
    """

    def __init__(self, model: ir.Model, probes: Sequence[Feeds]) -> None:
        """Runs the float model.

        Args:
            model: The prepared float graph.
            probes: Samples.

        Raises:
            ModelError: If onnxruntime refuses the model or a sample.
        """
        self.probes = probes
        self._outputs = [value.name or "" for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
        self._wanted = self._run(model)

    def sqnr_db(self, graph: ir.Model, plan: Plan) -> float:
        """Pooled over the samples, mean over the outputs that are not silent, dB.

        Args:
            graph: A prepared graph; left as it is.
            plan: Its plan.

        Raises:
            ModelError: If onnxruntime refuses the quantized model.
        """
        sums = np.zeros((len(self._outputs), 2))
        for before, after in zip(self._wanted, self._run(_written(graph, plan)), strict=True):
            for index, (a, b) in enumerate(zip(before, after, strict=True)):
                error = np.subtract(a, b, dtype=np.float64)
                sums[index] += np.square(a, dtype=np.float64).sum(), np.square(error).sum()
        heard = [ratio_db(signal, noise) for signal, noise in sums.tolist() if signal > 0]
        return float(np.mean(heard)) if heard else EXACT_DB

    def _run(self, model: ir.Model) -> list[list[npt.NDArray[Any]]]:
        session = open_session(model, threads=1)
        return list(in_order(lambda index: run(session, self.probes[index], self._outputs), len(self.probes)))


def _written(graph: ir.Model, plan: Plan) -> ir.Model:
    """As it is written; where weights alone are quantized, in float arithmetic: onnxruntime would take 8 bits."""
    if not plan.of("activation"):
        return simulated(graph, plan).model
    copy = graph.clone()
    raise_opset(copy, needed_opset(plan))
    return to_qdq(copy, plan)
