"""Learning the levels and biases of layers by the error of what they make together, with gradients from PyTorch.

A latent weight, in levels, is rounded at every step, and its gradient is that of its level (straight-through, Bengio
et al. 2013, arXiv:1308.3432); steps are those of Adam, and shrink as a cosine does, so that levels come to rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qconvert.graph import constant, operand
from qconvert.numerics import along
from qconvert.plan import Site
from qconvert.recover.bias import bias_place, shift_bias
from qconvert.recover.rounding import rows_of
from qconvert.recover.stream import Array, Store
from qconvert.recover.types import Context
from qconvert.recover.walk import Layer, Walk
from qconvert.torch_graph import Part, library

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 0.45
"""How far from its level a latent weight may start, in levels: it is still rounded to that one."""

BATCH, ELEMENTS = 16, 1 << 23
"""Samples of a step, and numbers that these may make; early layers see many positions in few samples."""

STRAY = 0.1
"""How far from onnxruntime's outputs PyTorch's may be: share of the error of quantization, both squared."""


@dataclass(frozen=True)
class Pace:
    """How blocks learn.

    Attributes:
        steps: Steps of Adam for each.
        rate: Their length at the beginning, in levels.
        bias_rate: Likewise of biases, in reals.
        start: Where latent weights start: from 0, in the middle of their level, to 1, as near to the float weight as
            they may be (``NEAR``).
        drop: The share of the numbers that a block reads which are the float model's while it learns, other ones at
            every step.
    """

    steps: int = 100
    rate: float = 0.03
    bias_rate: float = 1e-3
    start: float = 0.5
    drop: float = 0.0


@dataclass(frozen=True)
class Block:
    """What learns together.

    Attributes:
        part: It, in the quantized model in float arithmetic.
        sources: What stands in place of its inputs in the float model; None where nothing does.
        targets: What stands in place of its outputs in the float model.
        layers: Those whose weights learn.
    """

    part: Part
    sources: Sequence[ir.Value | None]
    targets: Sequence[ir.Value]
    layers: Sequence[Layer]


def learn(block: Block, walk: Walk, context: Context, pace: Pace) -> str:
    """Learns a block and changes its layers; why not, as the end of a sentence, or "".

    Args:
        block: It.
        walk: On its way, just before the first layer.
        context: Samples and limits.
        pace: How.
    """
    with closing(_Samples(block, walk, context, exact=pace.drop > 0)) as samples:
        weights = [_Weight(layer, walk) for layer in block.layers]
        learner = _Learner(block, weights, samples)
        try:
            if not learner.agrees(next(walk.given(block.part.outputs))):
                return "which PyTorch does not compute as onnxruntime does"
        except (NotImplementedError, RuntimeError) as error:
            return f"which PyTorch refuses ({str(error).splitlines()[0]})"
        before = learner.error()
        learner.run(pace, context)
        if not learner.error() < before:
            return "which learn nothing better"
        for weight in weights:
            weight.write(walk)
    return ""


class _Samples:
    """What a block reads and shall make, and if wanted what it reads in the float model, for all samples."""

    def __init__(self, block: Block, walk: Walk, context: Context, *, exact: bool) -> None:
        self._torch, self._store = library("learning"), Store(context.stored)
        sources = {place: value for place, value in enumerate(block.sources) if exact and value is not None}
        self.known = tuple(sources)
        self.count = len(context.probes)
        kinds = {
            "x": walk.given(block.part.inputs),
            "y": walk.exact(block.targets),
            "e": walk.exact([*sources.values()]) if sources else (),
        }
        self._sizes = {"x": len(block.part.inputs), "y": len(block.targets), "e": len(sources)}
        for kind, arrays in kinds.items():
            for number, found in enumerate(arrays):
                for place, array in enumerate(found):
                    self._store.put(f"{kind}{place}", number, array)
        self.together = all(len(self._store.shapes(name)) == 1 for name in self._store.names)

    def read(self, kind: str, numbers: Sequence[int]) -> list[Tensor]:
        """Inputs, ``x``, targets, ``y``, or the float model's ``known`` inputs, ``e``, joined along the first axis."""
        found = ([self._store.get(f"{kind}{place}", one) for one in numbers] for place in range(self._sizes[kind]))
        return [
            self._torch.from_numpy(np.array(arrays[0] if len(arrays) == 1 else np.concatenate(arrays)))
            for arrays in found
        ]

    def close(self) -> None:
        """Gives back what is kept."""
        self._store.close()


class _Weight:
    """A weight that learns, and the bias behind it where there is one."""

    def __init__(self, layer: Layer, walk: Walk) -> None:
        torch = library("learning")
        self._layer, params, shape = layer, layer.params, layer.weight.shape
        ends = (params.scale, params.qmin - params.zero_point, params.qmax - params.zero_point)
        scale, first, last = (np.broadcast_to(along(one, params, shape), shape).astype(np.float64) for one in ends)
        self._scale, self._first, self._last = (
            torch.from_numpy(one.astype(np.float32)) for one in (scale, first, last)
        )
        levels = np.clip(np.rint(walk.current(layer) / scale), first, last)
        aside = np.clip(layer.weight / scale - levels, -NEAR, NEAR)
        self._levels, self._aside = (torch.from_numpy(one.astype(np.float32)) for one in (levels, aside))
        self.latent = self._levels.clone()
        self._owner, self._place = bias_place(layer.op)
        held = self._held_bias(walk)
        self.bias = None if held is None else torch.from_numpy(np.array(constant(held), np.float32))
        self._old_bias = None if self.bias is None else self.bias.numpy().astype(np.float64)
        self._values = (operand(walk.simulated[layer.op.name], layer.entry.sites[0].operand), held)

    def _held_bias(self, walk: Walk) -> ir.Value | None:
        """The constant of the bias in the simulated model, where nothing else reads it."""
        if self._owner is None:
            return None
        value = operand(walk.simulated[self._owner.outputs[0].name or ""], self._place)
        alone = value is not None and len(tuple(value.uses())) == 1
        return value if alone and constant(value) is not None else None

    def start(self, share: float) -> None:
        """Moves the latent weight within its level towards the float weight."""
        self.latent += share * self._aside

    def feed(self, *, learning: bool) -> dict[ir.Value, Tensor]:
        """Weight and bias as the quantized layer sees them."""
        levels = self.latent.round().maximum(self._first).minimum(self._last)
        found = zip(self._values, (levels * self._scale, self.bias), strict=True)
        return {value: one.requires_grad_(learning) for value, one in found if value is not None and one is not None}

    def take(self, fed: Mapping[ir.Value, Tensor]) -> None:
        """Hands gradients of what was fed to what learns."""
        weight = self._values[0]
        if weight is None:
            return
        gradient = fed[weight].grad
        inside = (self.latent >= self._first) & (self.latent <= self._last)
        self.latent.grad = gradient * self._scale * inside

    def write(self, walk: Walk) -> None:
        """Changes the layer."""
        layer, rows = self._layer, rows_of(self._layer)
        levels = self.latent.round().maximum(self._first).minimum(self._last).numpy().astype(np.float64)
        layer.set_weight(rows.rounded(rows.split(levels), layer.params))
        if self.bias is not None and self._owner is not None and self._old_bias is not None:
            site, new = (
                Site(self._owner.outputs[0].name or "", self._place),
                self.bias.detach().numpy().astype(np.float64),
            )
            shift_bias(layer, walk.work.plan, site, self._old_bias, (new - self._old_bias).reshape(-1))


class _Learner:
    """A block in PyTorch."""

    def __init__(self, block: Block, weights: Sequence[_Weight], samples: _Samples) -> None:
        self._torch, self._part = library("learning"), block.part
        self._weights, self._samples = weights, samples
        self._constants = block.part.constants()
        self._scales, self._batch = [1.0] * len(block.targets), 1
        self._drop, self._dice = 0.0, self._torch.Generator()

    def agrees(self, expected: Sequence[Array]) -> bool:
        """Whether it computes the first sample as onnxruntime does; takes the measure of errors and batches.

        Raises:
            NotImplementedError: If an operator has attributes that cannot be run.
            RuntimeError: If PyTorch refuses an operator.
        """
        with self._torch.no_grad():
            made, wanted = self._made([0]), self._samples.read("y", [0])
            known = [self._torch.from_numpy(np.array(array)) for array in expected]
            if any(_error(a, b) > STRAY * _error(a, c) for a, b, c in zip(made, known, wanted, strict=True)):
                return False
            self._scales = [_error(a, c) or 1.0 for a, c in zip(made, wanted, strict=True)]
            self._batch = self._largest()
        return True

    def _largest(self) -> int:
        """How many samples to run at once; 1 where joined samples do not make joined outputs."""
        some = list(range(min(2, self._samples.count)))
        if not self._samples.together or len(some) == 1:
            return 1
        each = zip(*(self._made([one]) for one in some), strict=True)
        try:
            pairs = [(a, self._torch.cat(b)) for a, b in zip(self._made(some), each, strict=True)]
        except RuntimeError:
            return 1
        if any(a.shape != b.shape or _error(a, b) > STRAY * _error(a, 0 * a) for a, b in pairs):
            return 1
        made = self._part.compute(self._fed([0], learning=False))
        elements = sum(int(tensor.numel()) for tensor in made.values())
        return max(1, min(BATCH, ELEMENTS // elements))

    def error(self) -> float:
        """Of the outputs on all samples, relative to that of the first sample at the beginning."""
        numbers = range(self._samples.count)
        with self._torch.no_grad():
            parts = (numbers[start : start + self._batch] for start in range(0, len(numbers), self._batch))
            return sum(float(self._loss(part, self._made(part))) * len(part) for part in parts) / len(numbers)

    def run(self, pace: Pace, context: Context) -> None:
        """Learns, as long as there is time."""
        torch, rng, todo = self._torch, np.random.default_rng(context.seed), list[int]()
        self._drop = pace.drop
        self._dice.manual_seed(context.seed)
        for weight in self._weights:
            weight.start(pace.start)
        biases = [weight.bias for weight in self._weights if weight.bias is not None]
        groups = [{"params": [weight.latent for weight in self._weights], "lr": pace.rate}]
        adam = torch.optim.Adam([*groups, *([{"params": biases, "lr": pace.bias_rate}] if biases else [])])
        for step in range(pace.steps):
            if context.seconds_left <= 0:
                return
            for group, rate in zip(adam.param_groups, (pace.rate, pace.bias_rate), strict=False):
                group["lr"] = rate * (1 + math.cos(math.pi * step / pace.steps)) / 2
            while len(todo) < self._batch:
                todo += rng.permutation(self._samples.count).tolist()
            adam.zero_grad()
            self._step([todo.pop(0) for _ in range(self._batch)])
            adam.step()

    def _step(self, numbers: Sequence[int]) -> None:
        """Gradients of what learns."""
        with self._torch.enable_grad():
            fed = self._fed(numbers, learning=True)
            self._loss(numbers, self._part.run(fed)).backward()
        for weight in self._weights:
            weight.take(fed)

    def _fed(self, numbers: Sequence[int], *, learning: bool) -> dict[ir.Value, Tensor]:
        """What the block reads; while it learns, with some numbers dropped for those of the float model."""
        inputs = self._samples.read("x", numbers)
        if learning and self._drop:
            for place, exact in zip(self._samples.known, self._samples.read("e", numbers), strict=True):
                dropped = self._torch.rand(exact.shape, generator=self._dice) < self._drop
                inputs[place] = self._torch.where(dropped, exact, inputs[place])
        found = self._constants | dict(zip(self._part.inputs, inputs, strict=True))
        for weight in self._weights:
            found |= weight.feed(learning=learning)
        return found

    def _made(self, numbers: Sequence[int]) -> list[Tensor]:
        return self._part.run(self._fed(numbers, learning=False))

    def _loss(self, numbers: Sequence[int], made: Sequence[Tensor]) -> Tensor:
        """The sum over the outputs of their errors."""
        triples = zip(made, self._samples.read("y", numbers), self._scales, strict=True)
        return sum((a - b).square().mean() / scale for a, b, scale in triples)


def _error(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())
