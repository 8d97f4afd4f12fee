"""Rotation of residual streams: outliers of single channels are spread over all of them, before anything is quantized.

Source: Ashkboos et al. 2024, "QuaRot", arXiv:2404.00456, section 4, stage 1 (from SliceGPT, arXiv:2401.15024). With an
orthogonal Q, all that is written into a stream x is multiplied with Q, and what reads it behind a normalization N
without gains with its transpose:

    N(x Q) Q^T W = N(x) W

What differs: Q also leaves the mean over the channels as it is, ``Q 1 = Q^T 1 = 1``, so that it commutes with
LayerNormalization as it stands, and is random on all directions but this one. Gains g and biases b of a normalization
become 1 and ``(b / g) Q``, the rows of the weights that read it are multiplied with g.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from qconvert.graph import Operator, attributes, constant, operand
from qconvert.plan import Site
from qconvert.recover.chains import weight_site
from qconvert.recover.edits import NO_PLAN, nodes_of, set_constant
from qconvert.recover.scaling import Floats
from qconvert.recover.streams import Stream, find_streams
from qconvert.recover.types import Context, Rewrite, Rewritten, said
from qconvert.rules import reduction_axis, weight_axis


@dataclass(frozen=True)
class Rotation(Rewrite):
    """Turns the residual streams of transformers."""

    name: ClassVar[str] = "rotate"
    title: ClassVar[str] = "QuaRot: residual streams of transformers turned so that no channel sticks out"

    def rewrite(self, model: ir.Model, context: Context) -> Rewritten:
        """See ``Rewrite``."""
        copy = model.clone()
        nodes, changed, done = nodes_of(copy), set[str](), 0
        streams, left_out = find_streams(model)
        for stream in streams:
            reason = context.refusal(self.name, *(op.name for op in stream.heavy)) or _turn(stream, nodes, context.seed)
            if reason:
                left_out[stream.name] = reason
            else:
                changed.update(value.name or "" for value in stream.turned)
                done += 1
        notes = (said(self.name, done, left_out, what="residual streams"),)
        return Rewritten(copy if done else model, changed, notes)


def rotation(size: int, seed: int) -> Floats:
    """A random orthogonal ``[size, size]`` that leaves the vector of ones as it is, from either side."""
    rng = np.random.default_rng(seed)
    inner, upper = np.linalg.qr(rng.standard_normal((size - 1, size - 1)))
    turn = np.eye(size)
    turn[1:, 1:] = inner * np.sign(np.diag(upper))
    mirror = np.eye(size)
    normal = np.eye(size)[0] - 1 / np.sqrt(size)  # the mirror that swaps the first axis and the direction of ones
    mirror -= 2 * np.outer(normal, normal) / (normal @ normal)
    found: Floats = mirror @ turn @ mirror
    return found


def _turn(stream: Stream, nodes: Mapping[str, ir.Node], seed: int) -> str:
    """Turns the constants of a stream in a graph that is edited; why not, as the end of a sentence, or ""."""

    def read(site: Site) -> Floats:
        return np.asarray(constant(operand(nodes[site.operator], site.operand)), np.float64)

    def put(site: Site, array: Floats) -> None:
        set_constant(nodes, NO_PLAN, (site,), array.astype(np.float32))

    factors = {gain: read(gain.site).reshape(-1) for gain in stream.gains}
    for gain, factor in factors.items():
        if any(read(site).reshape(-1, stream.size)[:, factor == 0].any() for site in gain.biases):
            return "with a normalization of which a gain is 0 and the bias is not"
    turn = rotation(stream.size, seed)
    for op in stream.writers:
        put(weight_site(op), _turned(op, read(weight_site(op)), turn, weight_axis))
    for site in stream.constants:
        put(site, read(site) @ turn)
    for op, behind in stream.readers:
        inverse = turn if behind is None else factors[behind][:, None] * turn
        put(weight_site(op), _turned(op, read(weight_site(op)), inverse, reduction_axis))
    for gain, factor in factors.items():
        for site in gain.biases:
            put(site, (read(site) / np.where(factor == 0, 1.0, factor)) @ turn)
        put(gain.site, np.ones_like(read(gain.site)))
    return ""


def _turned(
    op: Operator, weight: Floats, turn: Floats, axis_of: Callable[[str, int, Mapping[str, Any]], int]
) -> Floats:
    """A weight whose channels along an axis are multiplied with a matrix from the right."""
    axis = axis_of(op.op_type, weight.ndim, attributes(op.node))
    return np.moveaxis(np.moveaxis(weight, axis, -1) @ turn, -1, axis)
