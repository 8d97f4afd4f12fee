"""Cross-layer equalization: channels between two layers are scaled so that both weights have even ranges.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
section 4.1. For a positively homogeneous f, ``W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1)``. With r1 the greatest
magnitude of each row of W1 and r2 that of each column of W2, ``s = sqrt(r1 / r2)`` makes them equal; over all pairs
again and again until nothing changes.

What differs, so that the float model computes what it did: a ReLU6 stays. Channels that reach its bound keep their
scale, others stay below it with room to spare. And no channel's activations grow beyond the range of their tensor,
which a channel of tiny weights and a large bias otherwise does. The absorption of high biases (section 4.1.3) is left
out for that reason: it would have little to narrow, 4 of the 90 tensors between layers of four convolutional networks,
at the price of outputs that differ at padded borders and for samples that were not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qconvert.choose.observe import Observer
from qconvert.graph import Operator, attributes, constant, operand
from qconvert.plan import Site
from qconvert.recover.chains import Chain, find_chains, own_weight, weight_site
from qconvert.recover.edits import NO_PLAN, nodes_of, set_constant
from qconvert.recover.scaling import Array, Floats, largest, over_inputs, over_outputs
from qconvert.recover.types import Context, Rewrite, Rewritten, said
from qconvert.rules import channels

SAME = 1e-3
"""Scales nearer to 1 than this change nothing."""


@dataclass(frozen=True)
class Equalization(Rewrite):
    """Makes the ranges of neighbouring weights even.

    Attributes:
        sweeps: How often all pairs are gone through, at most.
        room: How many times what was seen a channel may reach before a Clip that it did not reach clips it.
            With 1.5 the outputs of MobileNetV2 stay within 1e-6 on samples that were not seen, with 1.25 they do not.
        samples: With fewer, ``room`` is this number over theirs: other samples reach further beyond those few.
    """

    name: ClassVar[str] = "equalize"
    title: ClassVar[str] = "cross-layer equalization: even ranges of neighbouring weights"
    sweeps: int = 40
    room: float = 1.5
    samples: int = 64

    def rewrite(self, model: ir.Model, context: Context) -> Rewritten:
        """See ``Rewrite``."""
        chains, refused = find_chains(model)
        reasons = [context.refusal(self.name, chain.first.name, chain.second.name) for chain in chains]
        refused.update({chain.first.name: why for chain, why in zip(chains, reasons, strict=True) if why})
        chains = [chain for chain, why in zip(chains, reasons, strict=True) if not why]
        if not chains:
            return Rewritten(model, (), (said(self.name, 0, refused),))
        highest, lowest = _extremes(model, chains, context)
        room = max(self.room, self.samples / len(context.probes))
        pairs = [_pair(chain, low, high, room) for chain, low, high in zip(chains, lowest, highest, strict=True)]
        ops = {op.name: op for chain in chains for op in (chain.first, chain.second)}
        found = {name: own_weight(op) for name, op in ops.items()}
        weights = {name: np.abs(array).astype(np.float64) for name, array in found.items() if array is not None}
        owners = {name: _owners(op, weights[name].shape) for name, op in ops.items()}
        scales, sweeps = equalizing(pairs, weights, owners, sweeps=self.sweeps)
        copy = model.clone()
        nodes = nodes_of(copy)
        for chain, scale in zip(chains, scales, strict=True):
            scale_chain(nodes, chain, scale)
        changed = {value.name or "" for chain in chains for value in _values(chain)}
        held = sum(int(pair.fixed.sum()) for pair in pairs)
        notes = [said(self.name, len(chains), refused), f"equalize: scales settled in {sweeps} sweeps"]
        if held:
            notes.append(f"equalize: {held} channels reach the bound of their Clip and keep their scale")
        return Rewritten(copy, changed, tuple(notes))


@dataclass(frozen=True)
class Pair:
    """What limits the scales of a chain.

    Attributes:
        first: Name of the operator that makes the channels.
        second: Of the one that reads them.
        repeats: How many inputs of ``second`` belong to each channel.
        least: No scale is less, ``[C]``.
        fixed: Which channels keep theirs, ``[C]``.
    """

    first: str
    second: str
    repeats: int
    least: Floats
    fixed: Array


def equalizing(
    pairs: Sequence[Pair], weights: Mapping[str, Floats], owners: Mapping[str, tuple[Array, Array]], *, sweeps: int
) -> tuple[list[Floats], int]:
    """The scale of every channel of every pair, and how many sweeps it took.

    Args:
        pairs: They, in topological order.
        weights: Magnitudes of the weights, by operator.
        owners: The input channel and the output channel of each element, by operator, to broadcast.
        sweeps: How many at most.
    """
    scales = [np.ones(pair.least.shape) for pair in pairs]
    weights = dict(weights)
    for done in range(sweeps):
        moved = 0.0
        for index, pair in enumerate(pairs):
            made, read = owners[pair.first][1], owners[pair.second][0] // pair.repeats
            r1 = largest(weights[pair.first], made, pair.least.size)
            r2 = largest(weights[pair.second], read, pair.least.size)
            usable = (r1 > 0) & (r2 > 0) & ~pair.fixed
            step = np.where(usable, np.sqrt(np.divide(r1, r2, out=np.ones_like(r1), where=r2 > 0)), 1.0)
            new = np.where(usable, np.maximum(scales[index] * step, pair.least), 1.0)
            step = new / scales[index]
            scales[index] = new
            weights[pair.first] = weights[pair.first] / step[made]
            weights[pair.second] = weights[pair.second] * step[read]
            moved = max(moved, float(np.abs(step - 1).max()))
        if moved < SAME:
            return scales, done + 1
    return scales, sweeps


def scale_chain(nodes: Mapping[str, ir.Node], chain: Chain, scale: Floats) -> None:
    """Divides the channels of a chain by ``scale``, and multiplies them again where they are read."""
    for op, factor in ((chain.first, 1 / scale), (chain.second, np.repeat(scale, chain.repeats))):
        over = over_outputs if op is chain.first else over_inputs
        site = weight_site(op)
        array = constant(operand(nodes[op.name], site.operand))
        if array is not None:
            by_element = over(op.op_type, array.shape, attributes(op.node), factor)
            set_constant(nodes, NO_PLAN, (site,), (array * by_element).astype(np.float32))
    owner, position = chain.bias
    site = Site(owner.outputs[0].name or "", position)
    bias = constant(operand(nodes[site.operator], position))
    if bias is not None:
        set_constant(nodes, NO_PLAN, (site,), (bias / scale.reshape(bias.shape)).astype(np.float32))


def _owners(op: Operator, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The input and the output channel of each element of a weight."""
    keys = attributes(op.node)
    read, made = channels(op.op_type, shape, keys)
    return (
        over_inputs(op.op_type, shape, keys, np.arange(read.size)),
        over_outputs(op.op_type, shape, keys, np.arange(made.size)),
    )


def _pair(chain: Chain, low: Floats, high: Floats, room: float) -> Pair:
    """The limits of a chain whose channels were seen to reach from ``low`` to ``high``."""
    bottom, top = chain.bounds
    share = np.maximum(high / top, low / bottom)  # of what its Clip lets pass; 0 without one
    reach = np.maximum(high, -low)
    fixed = share >= 1 / room
    least = np.maximum(room * share, reach / max(float(reach.max(initial=0.0)), 1e-30))
    return Pair(chain.first.name, chain.second.name, chain.repeats, least, fixed)


def _watched(chain: Chain) -> str:
    """The value in which channels are quantized: behind the activation function, if there is one."""
    first = next(iter(chain.between), None)
    clamp = first is not None and first.op_type in {"Relu", "Clip", "LeakyRelu", "PRelu"}
    return (first.outputs[0].name or "") if first is not None and clamp else chain.made


def _values(chain: Chain) -> list[ir.Value]:
    """What the scales change."""
    return [chain.first.node.outputs[0], chain.bias[0].outputs[0], *(node.outputs[0] for node in chain.between)]


def _extremes(model: ir.Model, chains: Sequence[Chain], context: Context) -> tuple[list[Floats], list[Floats]]:
    """The greatest and the least value of each channel, and 0, in the samples."""
    names = [_watched(chain) for chain in chains]
    observe = Observer(model, names)
    high, low = ([np.zeros(chain.size) for chain in chains] for _ in range(2))
    for probe in context.probes:
        found = observe(names, probe)
        for index, (chain, name) in enumerate(zip(chains, names, strict=True)):
            rows = np.moveaxis(found[name], chain.axis, 0).reshape(chain.size, -1)
            high[index] = np.maximum(high[index], rows.max(1))
            low[index] = np.minimum(low[index], rows.min(1))
    return high, low
