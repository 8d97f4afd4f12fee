"""How much noise the scales of channels leave between linear layers, and the scales that leave least of it.

Rounding to a grid of step d adds noise of power ``d^2 / 12`` to every number. With channel i of what lies between two
layers divided by ``s_i``, and the weights that read it multiplied, these layers make noise

    of a weight:                 sum over outputs o  d_o^2 v_o^2 c_o sum_i E[x_i^2] / s_i^2 / 12
    of an activation:            d^2 sum_i s_i^2 |w_i|^2 / (12 S)

as a share of the power S of the reader's output, or their own where it is no part of this. v are the scales of the
outputs, c how much each counts there: ``|w_o|^2 / S`` for a reader's weights w, or ``1 / S``. ``d_o`` is the step that
the greatest magnitude in the row of o asks for, that of the whole weight where it has one scale; d that of the widest
channel, the mean over samples. The sum over all layers is smooth where the greatest is a norm of high power, and Adam
goes downhill on the logarithms of all scales at once.

This is what cross-layer equalization (Nagel et al., arXiv:1906.04721) makes even the ranges for; that knows neither how
strong the channels are nor whether rows share a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qconvert.recover.adam import Adam
from qconvert.recover.rows import Floats, Reals

POWER = 16
"""Of the norm that stands for the greatest of numbers: at most 1.5 times as much for 1000 of them."""


@dataclass(frozen=True)
class Link:
    """What lies between two layers, ``C`` channels.

    Attributes:
        first: Name of the operator that makes them.
        second: Of the one that reads them.
        repeats: How many inputs of ``second`` belong to each channel.
        reach: How wide each channel is in each sample, ``[n, C]``, more than 0.
        least: No scale is less, ``[C]``.
        fixed: Which channels keep the scale 1, ``[C]``.
    """

    first: str
    second: str
    repeats: int
    reach: Floats
    least: Floats
    fixed: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Linear:
    """A layer ``Y[g] = W[g] X[g]`` of G groups with O outputs and I inputs each.

    Attributes:
        peak: The greatest magnitude of each row of the weight, ``[G, O]``, more than 0.
        widest: The greatest magnitude over the taps of the kernel as a share of that, to the power of ``POWER``,
            ``[G, O, I]``.
        gain: The sum of squares of the weights of each input as a share of the output's power, ``[G, I]``.
        energy: The mean square of each input times the taps, ``[G, I]``.
        counts: What noise of power 1 counts in each output, ``[G, O]``.
        reads: The number of the link that it reads, or None.
        makes: The number of the one that it makes, or None.
    """

    peak: Floats
    widest: Reals
    gain: Floats
    energy: Floats
    counts: Floats
    reads: int | None
    makes: int | None


@dataclass(frozen=True)
class Grids:
    """How finely numbers are quantized.

    Attributes:
        per_channel: Whether each output of a weight has a scale of its own.
        weights: Steps from the least to the greatest magnitude of a weight, minus to plus.
        activations: Steps that the range of an activation has.
    """

    per_channel: bool
    weights: int
    activations: int


def quietest(links: Sequence[Link], layers: Sequence[Linear], grids: Grids, *, steps: int, rate: float) -> list[Floats]:
    """The scales with the least noise, those of each link ``[C]``.

    Args:
        links: What scales belong to.
        layers: What they scale.
        grids: How finely numbers are quantized.
        steps: How many Adam makes.
        rate: How long the first is, in logarithms; the length falls to 0 along a cosine.
    """
    least = [np.log(np.maximum(link.least, np.finfo(np.float32).tiny)) for link in links]
    found = [Adam.at_rest(np.zeros(link.fixed.shape)) for link in links]
    for step in range(steps):
        _, gradients = noise([one.value for one in found], links, layers, grids)
        length = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
        moved = [one.descend(gradient, length) for one, gradient in zip(found, gradients, strict=True)]
        found = [
            replace(one, value=np.where(link.fixed, 0.0, np.maximum(one.value, low)))
            for one, link, low in zip(moved, links, least, strict=True)
        ]
    return [np.exp(one.value) for one in found]


def noise(
    logs: Sequence[Floats], links: Sequence[Link], layers: Sequence[Linear], grids: Grids
) -> tuple[float, list[Floats]]:
    """The noise as a share of the power of the outputs, added up over layers, and its gradients.

    Args:
        logs: Natural logarithms of the scales of each link, ``[C]``.
        links: They.
        layers: What they scale.
        grids: How finely numbers are quantized.
    """
    total, gradients = 0.0, [np.zeros_like(one) for one in logs]
    of_weight = _by_row if grids.per_channel else _by_weight
    of_weights, of_activations = 4 / grids.weights**2 / 12, 1 / grids.activations**2 / 12
    for layer in layers:
        groups, outputs, inputs = layer.widest.shape
        read = np.zeros((groups, inputs))
        if layer.reads is not None:
            read = np.repeat(logs[layer.reads], links[layer.reads].repeats).reshape(groups, inputs)
        made = np.zeros((groups, outputs)) if layer.makes is None else logs[layer.makes].reshape(groups, outputs)
        value, by_read, by_made = of_weight(layer, read, made)
        total += of_weights * value
        if layer.makes is not None:
            gradients[layer.makes] += of_weights * by_made.reshape(-1)
        if layer.reads is not None:
            link = links[layer.reads]
            gradients[layer.reads] += of_weights * by_read.reshape(-1, link.repeats).sum(1)
            gain = (layer.gain * np.exp(2 * read)).reshape(-1, link.repeats).sum(1)
            value, slope = _of_activation(link, logs[layer.reads], gain)
            total += of_activations * value
            gradients[layer.reads] += of_activations * slope
    return total, gradients


def _by_row(layer: Linear, read: Floats, made: Floats) -> tuple[float, Floats, Floats]:
    """The noise of a weight whose rows have scales of their own, which the scales of outputs do not change.

    Gradients are those by ``read`` and by ``made``.
    """
    most, strength = float(read.max()), layer.energy * np.exp(-2 * read)
    power, rows = _norms(layer, read - most)
    width = layer.counts * (np.exp(most) * layer.peak * rows ** (1 / POWER)) ** 2
    heard = strength.sum(1, keepdims=True)
    by_read = power * _back(layer, heard * width / rows) - strength * width.sum(1, keepdims=True)
    return float((width * heard).sum()), 2 * by_read, np.zeros_like(made)


def _by_weight(layer: Linear, read: Floats, made: Floats) -> tuple[float, Floats, Floats]:
    """Likewise of a weight that has one scale."""
    most, strength = float(read.max()), layer.energy * np.exp(-2 * read)
    power, rows = _norms(layer, read - most)
    height = np.log(layer.peak) - made
    top = float(height.max())
    lowered = np.exp(POWER * (height - top))
    whole = float((lowered * rows).sum())
    width, raised = (np.exp(most + top) * whole ** (1 / POWER)) ** 2, layer.counts * np.exp(2 * made)
    loud = raised * strength.sum(1, keepdims=True)
    value = width * float(loud.sum())
    by_read = value / whole * power * _back(layer, lowered) - width * strength * raised.sum(1, keepdims=True)
    return value, 2 * by_read, 2 * (width * loud - value / whole * lowered * rows)


def _norms(layer: Linear, read: Floats) -> tuple[Floats, Floats]:
    """The factors of inputs to the power of ``POWER``, ``[G, I]``, and the norms of rows that have them, ``[G, O]``."""
    power = np.exp(POWER * read)
    rows = np.matmul(layer.widest, power.astype(np.float32)[:, :, None])[:, :, 0]
    return power, np.maximum(rows, np.finfo(np.float32).tiny).astype(np.float64)


def _back(layer: Linear, rows: Floats) -> Floats:
    """What a sum over rows with these factors, ``[G, O]``, gives each input, ``[G, I]``."""
    most = max(float(rows.max()), np.finfo(np.float64).tiny)
    sums = np.matmul((rows / most).astype(np.float32)[:, None], layer.widest)[:, 0]
    return most * np.asarray(sums, np.float64)


def _of_activation(link: Link, logs: Floats, gain: Floats) -> tuple[float, Floats]:
    """The noise of what a link holds, where channel i counts ``gain_i``, and its gradient."""
    wide = np.log(link.reach) - logs
    most = float(wide.max())
    power = np.exp(POWER * (wide - most))
    rows = power.sum(1, keepdims=True)
    width = np.exp(most) * float((rows ** (1 / POWER)).mean())
    slope = -np.exp(most) * (rows ** (1 / POWER - 1) * power).mean(0)
    value = width * width * float(gain.sum())
    return value, 2 * (width * width * gain + width * slope * float(gain.sum()))
