"""Cross-layer equalization: channels between two layers are scaled so that both can be quantized with less noise.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721,
section 4.1. For a positively homogeneous f, ``W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1)``. With r1 the greatest
magnitude of each row of W1 and r2 that of each column of W2, ``s = sqrt(r1 / r2)`` makes them equal; over all pairs
again and again until nothing changes.

That knows the weights only. ``noise`` knows the samples, too, and finds the scales with the least noise on them, but
gives channels that other samples widen too little room. So each channel gets the geometric mean of the two. Measured on
MobileNetV2, 64 samples, ``gptq`` behind it, on 100 others, dB, even ranges / least noise / the mean: 8 bits per tensor
22.2 / 22.5 / 22.8; per channel 23.7 / 22.6 / 23.6; 4-bit weights 10.1 / - / 10.3.

What else differs, so that the float model computes what it did: a ReLU6 stays. Channels that reach its bound keep their
scale, others stay below it with room to spare. And no channel's activations grow beyond the range of their tensor,
which a channel of tiny weights and a large bias otherwise does. The absorption of high biases (section 4.1.3) is left
out for that reason: it would have little to narrow, 4 of the 90 tensors between layers of four convolutional networks,
at the price of outputs that differ at padded borders and for samples that were not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qconvert.choose.observe import Observer
from qconvert.graph import Operator, attributes, constant, operand
from qconvert.plan import Site
from qconvert.recover.chains import Chain, find_chains, own_weight, weight_site
from qconvert.recover.edits import NO_PLAN, nodes_of, set_constant
from qconvert.recover.noise import POWER, Grids, Linear, Link, quietest
from qconvert.recover.rows import Rows
from qconvert.recover.scaling import Array, Floats, largest, over_inputs, over_outputs
from qconvert.recover.types import Context, Rewrite, Rewritten, said
from qconvert.rules import Channels, channels

SAME = 1e-3
"""Scales nearer to 1 than this change nothing."""

APART = 16.0
"""By which factor the scale with the least noise may differ from that of even ranges: few samples say little about a
channel that is hardly ever active."""

SILENCE = 1e-12
"""The least range that a channel has, so that it has a logarithm."""


@dataclass(frozen=True)
class Equalization(Rewrite):
    """Makes the ranges of neighbouring weights even, as far as that leaves little noise.

    Attributes:
        sweeps: How often all pairs are gone through, at most.
        steps: Steps towards the least noise.
        rate: How long the first is, in logarithms of scales.
        room: How many times what was seen a channel may reach before a Clip that it did not reach clips it.
            With 1.75 and 64 samples the outputs of MobileNetV2 stay within 2e-6 on 100 others, with 1.5 all but one.
        samples: With fewer, ``room`` is this number over theirs: other samples reach further beyond those few.
    """

    name: ClassVar[str] = "equalize"
    title: ClassVar[str] = "cross-layer equalization: even ranges of neighbouring weights"
    sweeps: int = 40
    steps: int = 300
    rate: float = 0.05
    room: float = 1.75
    samples: int = 64

    def rewrite(self, model: ir.Model, context: Context) -> Rewritten:
        """See ``Rewrite``."""
        chains, refused = find_chains(model)
        reasons = [context.refusal(self.name, chain.first.name, chain.second.name) for chain in chains]
        refused.update({chain.first.name: why for chain, why in zip(chains, reasons, strict=True) if why})
        chains = [chain for chain, why in zip(chains, reasons, strict=True) if not why]
        if not chains:
            return Rewritten(model, (), (said(self.name, 0, refused),))
        seen = _see(model, chains, context)
        room = max(self.room, self.samples / len(context.probes))
        pairs = [_pair(chain, ends, room) for chain, ends in zip(chains, seen.ends, strict=True)]
        ops = {op.name: op for chain in chains for op in (chain.first, chain.second)}
        found = {name: own_weight(op) for name, op in ops.items()}
        weights = {name: np.abs(array).astype(np.float64) for name, array in found.items() if array is not None}
        owners = {name: owners_of(op, weights[name].shape) for name, op in ops.items()}
        even, sweeps = equalizing(pairs, weights, owners, sweeps=self.sweeps)
        scales = self._quieter(chains, pairs, even, seen, context)
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

    def _quieter(
        self, chains: Sequence[Chain], pairs: Sequence[Pair], even: Sequence[Floats], seen: _Seen, context: Context
    ) -> list[Floats]:
        """The mean of the scales that make ranges even and those that leave the least noise."""
        grids = Grids(context.per_channel, 2**context.weights.bits - 1, 2**context.activations.bits - 1)
        reaches = [ends[1] - ends[0] for ends in seen.ends]
        links = [
            Link(np.maximum(reach, SILENCE), chain.repeats, pair.least, pair.fixed)
            for chain, pair, reach in zip(chains, pairs, reaches, strict=True)
        ]
        quiet = quietest(links, _linears(chains, seen), grids, steps=self.steps, rate=self.rate)
        apart = [np.clip(one / other, 1 / APART, APART) for one, other in zip(quiet, even, strict=True)]
        return [
            other * np.where(reach.any(0), np.sqrt(one), 1.0)
            for one, other, reach in zip(apart, even, reaches, strict=True)
        ]


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


def owners_of(op: Operator, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The input and the output channel of each element of a weight."""
    keys = attributes(op.node)
    read, made = channels(op.op_type, shape, keys)
    return (
        over_inputs(op.op_type, shape, keys, np.arange(read.size)),
        over_outputs(op.op_type, shape, keys, np.arange(made.size)),
    )


def _pair(chain: Chain, ends: Array, room: float) -> Pair:
    """The limits of a chain whose channels were seen to reach so far."""
    bottom, top = chain.bounds
    low, high = ends[0].min(0), ends[1].max(0)
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


@dataclass(frozen=True)
class _Seen:
    """What samples show.

    Attributes:
        ends: The least and the greatest value of each channel of each chain in each sample, or 0, ``[2, n, C]``.
        energy: The mean square of each channel that an operator reads, ``[I]``, by its name.
        signal: Those of what it makes, added up.
    """

    ends: Sequence[Floats]
    energy: Mapping[str, Floats]
    signal: Mapping[str, float]


def _see(model: ir.Model, chains: Sequence[Chain], context: Context) -> _Seen:
    ops = {op.name: op for chain in chains for op in (chain.first, chain.second)}
    watched = [_watched(chain) for chain in chains]
    around = {
        name: tuple(value.name or "" for value in (*op.node.inputs[:1], op.node.outputs[0]) if value)
        for name, op in ops.items()
    }
    names = list(dict.fromkeys([*watched, *(name for pair in around.values() for name in pair)]))
    observe = Observer(model, names)
    ends: list[list[Floats]] = [[] for _ in chains]
    energy = {name: np.zeros(_channels(op)[0].size) for name, op in ops.items()}
    signal = dict.fromkeys(ops, 0.0)
    for probe in context.probes:
        found = observe(names, probe)
        for index, (chain, name) in enumerate(zip(chains, watched, strict=True)):
            rows = np.moveaxis(found[name], chain.axis, 0).reshape(chain.size, -1)
            ends[index].append(np.stack([np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)]).astype(np.float64))
        for name, (read, made) in around.items():
            where, rows = _channels(ops[name]), found[read]
            rows = np.moveaxis(rows, where[0].axis, 0).reshape(where[0].size, -1)
            energy[name] += np.square(rows, dtype=np.float64).mean(1) / len(context.probes)
            power = float(np.square(found[made], dtype=np.float64).mean())
            signal[name] += power * where[1].size / len(context.probes)
    return _Seen([np.stack(parts, 1) for parts in ends], energy, signal)


def _channels(op: Operator) -> tuple[Channels, ...]:
    """Those that an operator reads and makes."""
    weight = own_weight(op)
    return channels(op.op_type, weight.shape if weight is not None else (), attributes(op.node))


def _linears(chains: Sequence[Chain], seen: _Seen) -> list[Linear]:
    """The layers of chains, those that make nothing but 0 left out."""
    made = {chain.first.name: index for index, chain in enumerate(chains)}
    read = {chain.second.name: index for index, chain in enumerate(chains)}
    ops = {op.name: op for chain in chains for op in (chain.first, chain.second)}
    found: dict[str, Linear] = {}
    for name, op in ops.items():
        weight, signal = own_weight(op), seen.signal[name]
        if weight is None or signal <= 0:
            continue
        matrix = np.abs(weight).reshape(-1, *weight.shape[-2:]).max(0) if op.op_type == "MatMul" else np.abs(weight)
        rows = Rows(op.op_type, matrix.shape, attributes(op.node)).split(matrix)
        taps = rows.reshape(*rows.shape[:2], seen.energy[name].size // len(rows), -1)
        peak = np.where(rows.any(2), rows.max(2), 1.0).astype(np.float64)
        found[name] = Linear(
            peak,
            (taps.max(3) / peak[:, :, None]).astype(np.float32) ** POWER,
            np.square(taps, dtype=np.float64).sum((1, 3)) / signal,
            seen.energy[name].reshape(len(rows), -1) * taps.shape[3],
            np.full(peak.shape, 1 / signal),
            read.get(name),
            made.get(name),
        )
    for chain in chains:
        if chain.first.name in found and chain.second.name in found:
            first, second = found[chain.first.name], found[chain.second.name]
            counts = second.gain.reshape(-1, chain.repeats).sum(1).reshape(first.peak.shape)
            found[chain.first.name] = replace(first, counts=counts)
    return list(found.values())
