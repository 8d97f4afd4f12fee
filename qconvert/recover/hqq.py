"""HQQ: grids on which the errors of weights are sparse, from the weights alone; needs no samples.

Source: Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", mobiusml.github.io/hqq_blog,
and their code (p 0.7, beta 10, growing by 1.01, 20 rounds). It lowers ``|W - W~|_p^p`` with p < 1, which forgives few
large errors, by turns:

    E <- shrink(W - W~),   shrink(x) = sign(x) max(|x| - |x|^(p-1) / beta, 0)
    scale, zero point <- least squares of W - E on the levels of W

What differs: the original changes zero points alone, which are no integers then; here the scale is fitted, and the zero
point where the grid has one, rounded, as ONNX wants it. Errors are in steps of the grid, so that beta means the same
for weights of any magnitude. Of all rounds the one with the least error counts, for each scale by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qconvert.float8 import Float8
from qconvert.graph import constant, operand
from qconvert.numerics import QuantParams, along
from qconvert.plan import Entry, Site
from qconvert.recover.edits import nodes_of
from qconvert.recover.grids import Shares, share_index, with_scales
from qconvert.recover.rows import Floats
from qconvert.recover.types import Context, Step, Work, said

_TINY = 1e-12


@dataclass(frozen=True)
class Hqq(Step):
    """Half-quadratic grids, of weight-only plans.

    Attributes:
        power: p.
        beta: How much the first round shrinks errors, the less the greater it is.
        growth: By what beta is multiplied each round.
        rounds: How many.
    """

    name: ClassVar[str] = "hqq"
    title: ClassVar[str] = "HQQ: grids on which few weights have large errors, without samples"
    place: ClassVar[int] = -1
    slow: ClassVar[bool] = False

    power: float = 0.7
    beta: float = 10.0
    growth: float = 1.01
    rounds: int = 20

    def apply(self, work: Work, context: Context) -> Work:
        """See ``Step``."""
        nodes, weights = nodes_of(work.graph), work.plan.of("weight")
        found, left_out, bound = dict[tuple[Site, ...], Entry](), dict[str, str](), bool(work.plan.of("activation"))
        context.listener.start("choosing grids of weights (hqq)", len(weights))
        try:
            for done, entry in enumerate(weights, 1):
                readers = [site.operator for site in entry.sites]
                reason = context.refusal(self.name, *readers) or _unfit(entry, bound=bound)
                array = constant(operand(nodes[readers[0]], entry.sites[0].operand))
                if reason or array is None:
                    left_out[readers[0]] = reason or "whose weight is computed"
                else:
                    found[entry.sites] = self._regrid(entry, np.asarray(array, np.float64))
                context.listener.advance(done)
        finally:
            context.listener.finish()
        entries = tuple(
            found.get(entry.sites, entry) if entry.role == "weight" else entry for entry in work.plan.entries
        )
        notes = (*work.notes, said(self.name, len(found), left_out))
        return replace(work, plan=replace(work.plan, entries=entries), notes=notes)

    def _regrid(self, entry: Entry, weight: Floats) -> Entry:
        return replace(entry, params=self.grid(weight, entry.params), method=self.name)

    def grid(self, weight: Floats, params: QuantParams) -> QuantParams:
        """The grid of a weight of any shape, of the granularity that it has."""
        known = Shares(share_index(weight.shape, params), params.scale.size)
        movable = bool(params.zero_point.any()) or not params.dtype.signed
        found, best, beta = params, params, self.beta
        least = self._error(weight, params, known)
        for _ in range(self.rounds):
            scale, zero = (
                along(one, found, weight.shape).astype(np.float64) for one in (found.scale, found.zero_point)
            )
            levels = np.clip(np.rint(weight / scale) + zero, found.qmin, found.qmax)
            error = weight / scale - (levels - zero)
            rest = weight / scale - self._shrunk(error, beta)
            found = _fitted(found, levels, rest, known, movable=movable)
            losses, beta = self._error(weight, found, known), beta * self.growth
            better = losses < least
            scales = np.where(better, found.scale.reshape(-1), best.scale.reshape(-1)).astype(np.float64)
            zeros = np.where(better, found.zero_point.reshape(-1), best.zero_point.reshape(-1))
            best, least = with_scales(best, scales, zeros), np.minimum(losses, least)
        return best

    def _shrunk(self, error: Floats, beta: float) -> Floats:
        size = np.maximum(np.abs(error), _TINY)
        return np.asarray(np.sign(error) * np.maximum(size - size ** (self.power - 1) / beta, 0))

    def _error(self, weight: Floats, params: QuantParams, known: Shares) -> Floats:
        """``sum |w - w~|^p`` of the weights of each scale."""
        scale, zero = (along(one, params, weight.shape).astype(np.float64) for one in (params.scale, params.zero_point))
        levels = np.clip(np.rint(weight / scale) + zero, params.qmin, params.qmax)
        return known.sums(np.abs(weight - scale * (levels - zero)) ** self.power)


def _unfit(entry: Entry, *, bound: bool) -> str:
    """Why an entry keeps its grid, as the end of a sentence, or ""."""
    if bound:
        return "whose inputs are quantized, too"
    return "whose levels are floats" if isinstance(entry.params.dtype, Float8) else ""


def _fitted(params: QuantParams, levels: Floats, rest: Floats, known: Shares, *, movable: bool) -> QuantParams:
    """The zero points, where they may move, and scales on which levels are nearest to reals given in steps."""
    zero = params.zero_point.reshape(-1).astype(np.float64)
    if movable:
        count = known.sums(np.ones(levels.shape))
        zero = np.clip(np.rint(known.sums(levels - rest) / count), params.qmin, params.qmax)
    steps = levels - zero[known.index]
    factor = known.sums(steps * rest) / np.maximum(known.sums(steps * steps), _TINY)
    return with_scales(params, params.scale.reshape(-1).astype(np.float64) * np.where(factor > 0, factor, 1.0), zero)
