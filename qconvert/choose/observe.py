"""Runs the float model and hands out inner values; for few samples, whose values fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.expose import exposing
from qconvert.session import Feeds, open_session, run


class Observer:
    """A float model from which some inner values can be fetched."""

    def __init__(self, model: ir.Model, names: Sequence[str]) -> None:
        """Opens the model.

        Args:
            model: The prepared graph; left as it is.
            names: Values of the main graph that may be asked for; inputs of the model may be among them.

        Raises:
            ModelError: If onnxruntime refuses the model.
        """
        self._inputs = {value.name for value in model.graph.inputs}
        with exposing(model, [name for name in dict.fromkeys(names) if name not in self._inputs]) as exposed:
            self._session = open_session(exposed, threads=1)

    def __call__(self, names: Sequence[str], probe: Feeds) -> dict[str, npt.NDArray[np.float32]]:
        """Some of the values for one sample.

        Raises:
            ModelError: If onnxruntime fails on the sample.
        """
        fetched = [name for name in dict.fromkeys(names) if name not in self._inputs]
        results = run(self._session, probe, fetched) if fetched else []
        values: dict[str, Any] = {**probe, **dict(zip(fetched, results, strict=True))}
        return {name: np.asarray(values[name], np.float32) for name in names}
