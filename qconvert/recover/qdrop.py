"""QDrop: BRECQ whose blocks learn from inputs of which some numbers are the float model's, other ones at every step.

Source: Wei et al. 2022, "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization",
arXiv:2203.05740. With x what a block f reads in the float model, z behind the quantized blocks before it, and m drawn
anew at every step, each number 1 with probability p:

    min over levels and biases:  sum over outputs of  |f(x) - f~(m x + (1 - m) z)|^2 / (the same before learning)

A block that only ever sees z learns to undo what came before on just these samples; the fewer they are, the less of
that helps others. What differs from the paper: activations inside the block are not dropped, and what differs in BRECQ.

Measured with p = 0.5 and 4-bit weights, on other samples: MobileNetV2 with 96 samples 12.14 dB instead of 11.87 with
BRECQ (p = 1: 10.48), a small transformer 32.63 instead of 32.56, with 4-bit activations 15.77 instead of 15.37; but a
small convolutional net, for which 100 samples suffice, 25.64 instead of 26.46.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from qconvert.recover.brecq import Brecq
from qconvert.recover.reconstruct import Pace


@dataclass(frozen=True)
class QDrop(Brecq):
    """Block reconstruction with dropped quantization; see ``Brecq``."""

    name: ClassVar[str] = "qdrop"
    title: ClassVar[str] = "QDrop: BRECQ with some inputs of a block left float while it learns; needs torch"

    pace: Pace = field(default_factory=lambda: Pace(drop=0.5))
