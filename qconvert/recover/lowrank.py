"""Low-rank compensation: what rounding took from a weight comes back as the product of two thin matrices.

Source: Zhang et al. 2024, "LQER", arXiv:2402.02446, and Zhang et al. 2024, "QERA", arXiv:2410.06040, whose exact form
this is. With V the weight as it is, T what would do best (``Moments.target``) and ``G = L L^T`` the gram of the inputs,

    min over A [r, K], B [O, r]:  |(T - V - B A) L|^2,   B A L = the r greatest singular parts of (T - V) L

and ``x A^T B^T`` is added to what the layer makes: two float MatMuls and an Add, which read what the layer reads.
Both are stored in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qconvert.graph import attributes
from qconvert.recover.edits import as_read
from qconvert.recover.moments import Moments, moments
from qconvert.recover.rounding import rows_of, unfit
from qconvert.recover.rows import Floats
from qconvert.recover.types import Context, Step, Work
from qconvert.recover.walk import Layer, Walk, change_layers


@dataclass(frozen=True)
class LowRank(Step):
    """Adds the greatest parts of what rounding took, in float.

    Attributes:
        share: What the two matrices take at most, as a share of the bytes of the levels; one part is always added.
    """

    name: ClassVar[str] = "lowrank-compensation"
    title: ClassVar[str] = "low-rank compensation: the greatest parts of rounding errors in two thin float MatMuls"
    place: ClassVar[int] = 2  # others find the layer as it was
    slow: ClassVar[bool] = False
    usual: ClassVar[bool] = False  # it adds float operators and bytes

    share: float = 0.25

    def apply(self, work: Work, context: Context) -> Work:
        """See ``Step``."""

        def change(layer: Layer, walk: Walk) -> str:
            return _unfit(layer) or self._add(layer, walk, context.damping)

        return change_layers(work, context, self, "adding low-rank parts of rounding errors", change)

    def _add(self, layer: Layer, walk: Walk, damping: float) -> str:
        rows = rows_of(layer)
        weight = rows.split(layer.weight).astype(np.float64)
        seen = moments(rows, layer.inputs(), weight, damping=damping)
        if seen.unusable:
            return seen.unusable
        current = rows.split(as_read(walk.current(layer), layer.entry)).astype(np.float64)
        first, second = factors(seen.target(weight)[0] - current[0], seen, self.rank(layer))
        factor = float(attributes(layer.op.node).get("alpha", 1.0))
        walk.add_branch(layer, first.T.astype(np.float32), (factor * second.T).astype(np.float32))
        return ""

    def rank(self, layer: Layer) -> int:
        """How many parts a layer gets."""
        outputs, inputs = rows_of(layer).size[1:]
        levels = outputs * inputs * layer.params.dtype.bits / 8
        return min(max(int(self.share * levels / (4 * (outputs + inputs))), 1), outputs, inputs)


def factors(error: Floats, seen: Moments, rank: int) -> tuple[Floats, Floats]:
    """``A [r, K]`` and ``B [O, r]`` whose product comes nearest to an error ``[O, K]`` on the inputs that were seen."""
    lower = np.linalg.cholesky(seen.damped[0])
    u, parts, v = np.linalg.svd(error @ lower, full_matrices=False)
    root = np.sqrt(parts[:rank])
    first = np.linalg.solve(lower.T, (root[:, None] * v[:rank]).T).T
    return np.asarray(first, np.float64), u[:, :rank] * root


def _unfit(layer: Layer) -> str:
    """Why a layer gets no branch, as the end of a sentence, or ""."""
    if layer.op.op_type not in {"Gemm", "MatMul"}:
        return "that are convolutions or lookups"
    if layer.op.node.outputs[0].is_graph_output():
        return "that make an output of the model"
    return "whose input is transposed" if attributes(layer.op.node).get("transA") else unfit(layer)
