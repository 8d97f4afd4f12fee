"""BRECQ: the layers of a block learn their levels together, so that what the block makes is right, not each layer.

Source: Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction",
arXiv:2102.05426. With f the float model's block, x what it reads there, and z what it reads behind the quantized and
learned blocks before it:

    min over levels and biases:  sum over outputs of  |f(x) - f~(z)|^2 / (the same before learning)

Activations inside are rounded and clipped as in the quantized model. What differs from the paper: levels start as
AdaRound chose them, and weights may go to any level, not to the two nearest: a latent weight in levels is rounded at
every step, its gradient passed straight through. Measured on a block of MobileNetV2 with 4-bit weights and 100 steps,
on samples not seen: from 11.1 to 11.9 dB; to 11.7 dB with sigmoids that are drawn to 0 and 1, which end 0.3 dB below
what they had learned.

Measured on the whole of it with 64 samples, on others: 11.4 dB at the output instead of 10.4 dB with AdaRound alone. On
those 64 it is 23.6 dB: they are few for the last, wide layers. To hold an eighth of them back, which judges each block,
costs more than it saves: 10.8 dB. So a block keeps what it learned where its error is less on the samples it saw. With
116 samples: 11.9 dB; with three times the steps, on these, 11.4 dB; drawn to the float weights, with 64, 11.0 dB. To
want f(z), not f(x), with 61: 10.3 dB, the mean of both 11.6 dB; but that is worse where samples suffice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import ClassVar

import onnx_ir as ir

from qconvert.graph import Operator, operators
from qconvert.recover.adaround import AdaRound
from qconvert.recover.journal import Section
from qconvert.recover.reconstruct import Block, Pace, learn
from qconvert.recover.rounding import unfit
from qconvert.recover.types import BIASES, LEVELS, Context, Work, said
from qconvert.recover.walk import Walk
from qconvert.sensing.blocks import blocks
from qconvert.torch_graph import Part, library, part_behind

JOINED = 3
"""Layers of a chain that make a block."""


@dataclass(frozen=True)
class Brecq(AdaRound):
    """Block reconstruction, from the levels of AdaRound, whose attributes it has.

    Attributes:
        pace: How blocks learn.
    """

    name: ClassVar[str] = "brecq"
    title: ClassVar[str] = "BRECQ: the layers of a block learn their levels together; needs torch"
    decides: ClassVar[frozenset[str]] = frozenset({LEVELS, BIASES})

    pace: Pace = field(default_factory=Pace)

    def apply(self, work: Work, context: Context) -> Work:
        """See ``Step``.

        Raises:
            PlanError: If PyTorch is not installed.
        """
        library(f"recover: '{self.name}'")
        begun = super().apply(work, context)
        with closing(Walk(begun, context)) as walk:
            places = {op.name: index for index, op in enumerate(walk.ops)}
            runs, left_out = divided(begun.reference, places), dict[str, str]()
            section = Section.of(self, begun, context, "blocks")
            context.listener.start(f"learning blocks ({self.name})", len(runs))
            try:
                for done, run in enumerate(runs, 1):
                    learn_it = partial(self._learn_block, run, places, walk, context)
                    late = context.refusal(self.name)
                    left_out[run[0].name] = late or walk.settle(section, places[run[0].name], learn_it)
                    context.listener.advance(done)
            finally:
                context.listener.finish()
            reasons = {name: why for name, why in left_out.items() if why}
            walk.note(said(self.name, len(runs) - len(reasons), reasons, what="blocks"))
            return walk.work

    def _learn_block(self, run: Sequence[Operator], places: Mapping[str, int], walk: Walk, context: Context) -> str:
        """Learns a block; why not, as the end of a sentence, or ""."""
        layers = [walk.layer(places[op.name]) for op in run if op.name in places]
        reasons = [unfit(layer) or context.refusal(self.name, layer.op.name) for layer in layers]
        free = [layer for layer, why in zip(layers, reasons, strict=True) if not why]
        if not free:
            return reasons[0]
        wanted = results(run, {layer.op.name for layer in free})
        first = walk.simulated[run[0].name]
        made = [walk.simulated[op.name].outputs[place] for op, place in wanted]
        if not wanted or not isinstance(first.graph, ir.Graph):
            return "which make nothing that is read"
        part = part_behind(first.graph, first, made)
        if part.unsupported:
            return f"with a {part.unsupported}, which PyTorch is not taught"
        targets = [op.node.outputs[place] for op, place in wanted]
        return learn(Block(part, sources(part, run, walk.simulated), targets, free), walk, context, self.pace)


def sources(part: Part, run: Sequence[Operator], simulated: Mapping[str, ir.Node]) -> list[ir.Value | None]:
    """What stands in place of the inputs of a part in the float model, where one of its operators reads both."""
    found = dict[ir.Value | None, ir.Value | None]()
    for op in run:
        for value, exact in zip(simulated[op.name].inputs, op.node.inputs, strict=False):
            if exact is not None and exact.dtype == ir.DataType.FLOAT:
                found.setdefault(value, exact)
    return [found.get(value) for value in part.inputs]


def divided(model: ir.Model, layers: Collection[str]) -> list[list[Operator]]:
    """The operators of the main graph block by block, each from its first layer on: what lies before that only reads.

    Args:
        model: A graph.
        layers: Names of the operators that may learn.
    """
    block_of = {name: block for block, names in blocks(model).items() for name in names}
    ops = [op for op in operators(model) if not op.subgraph]
    found: list[list[Operator]] = []
    count = 0  # of layers in the last block while it is a chain; JOINED where it is none
    for _, group in groupby(ops, key=lambda op: block_of.get(op.name)):
        run = list(group)
        heavy = sum(op.name in layers for op in run)
        if found and (not heavy or (heavy == 1 and count < JOINED)):
            found[-1] += run
            count += heavy
        elif heavy:
            first = next(place for place, op in enumerate(run) if op.name in layers)
            if found:
                found[-1] += run[:first]
            found.append(run[first:])
            count = 1 if heavy == 1 else JOINED
    return found


def results(run: Sequence[Operator], layers: Collection[str]) -> list[tuple[Operator, int]]:
    """The float outputs of a block that depend on some of its layers and are read outside: operator and place."""
    inside, changed = {op.node for op in run}, set[ir.Value]()
    found = []
    for op in run:
        if op.name not in layers and not any(value in changed for value in op.node.inputs):
            continue
        changed.update(op.node.outputs)
        for place, value in enumerate(op.node.outputs):
            outer = value.is_graph_output() or any(use.node not in inside for use in value.uses())
            if outer and value.dtype == ir.DataType.FLOAT:
                found.append((op, place))
    return found
