"""AWQ: channels of an input that are large keep finer weights, at the cost of the others.

Source: Lin et al. 2023, "AWQ", arXiv:2306.00978, and ``auto_scale.py`` of mit-han-lab/llm-awq (20 values of alpha). As
in SmoothQuant, ``X W = (X / s) (s W)`` with ``1 / s`` folded into what makes X, but activations stay float, and

    s_j = mean|X_j|^alpha,  divided by sqrt(max s min s)

so that the weights of a channel are rounded the finer the larger the channel is. Each group of Linears that read one
value gets the alpha with the least error of their outputs, or no scale. The search of shares of ranges that the paper
has behind it is the method ``clip``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qconvert.calibrators.mse import MSE
from qconvert.float8 import Float8
from qconvert.numerics import fake_quantize
from qconvert.plan.weights import weight_params
from qconvert.policy import Scheme
from qconvert.recover.scaling import Floats
from qconvert.recover.smooth import Reals, Seen, scaled
from qconvert.recover.types import Context, Rewrite, Rewritten

_LEAST = 1e-4
"""The least magnitude of a channel, as in the original: one that is always 0 has no bearing on the others."""


@dataclass(frozen=True)
class Awq(Rewrite):
    """Scales of channels for quantized weights and float activations.

    Attributes:
        steps: How many values of alpha are tried from 0, which is no scale, to below 1.
        rows: How many rows of each value the error is measured on, about.
    """

    name: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ: finer weights for the channels of an input that are large"
    place: ClassVar[int] = 1

    steps: int = 20
    rows: int = 512

    def rewrite(self, model: ir.Model, context: Context) -> Rewritten:
        """See ``Rewrite``."""
        return scaled(model, context, self.name, lambda seen, weights: self.best(seen, weights, context), self.rows)

    def best(self, seen: Seen, weights: Sequence[Reals], context: Context) -> Floats | None:
        """The scale of each channel with the least error of the products, ``[C]``; None if none beats 1.

        Args:
            seen: The value that is multiplied.
            weights: With what, ``[C, O]`` each.
            context: The type and the groups of the weights.
        """
        if isinstance(context.weights, Float8):
            return None  # floats are as fine whatever their scale
        weight = np.concatenate(weights, 1)
        size = np.maximum(np.abs(seen.rows).mean(0, dtype=np.float64), _LEAST)
        found: list[tuple[float, Floats]] = []
        for alpha in np.arange(self.steps) / self.steps:
            scale = size**alpha
            scale = scale / np.sqrt(scale.max() * scale.min())
            found.append((_error(seen, weight, scale, context), scale))
        least = min(range(self.steps), key=lambda step: found[step][0])
        return found[least][1] if least else None


def _error(seen: Seen, weight: Reals, scale: Floats, context: Context) -> float:
    """Squared error of the product with the scaled weight quantized."""
    turned, dtype = (weight * scale[:, None]).astype(np.float32), context.weights
    scheme = Scheme(dtype=dtype.name, symmetric=dtype.signed, narrow_range=False, calibrator=MSE())
    params = weight_params(turned, scheme, axis=0 if context.group_size else 1, block_size=context.group_size)
    error = (fake_quantize(turned, params) - turned) / scale[:, None]
    return float(np.square(seen.rows @ error).sum())
