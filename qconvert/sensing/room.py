"""How much memory experiments take: what they share, what runs side by side, and what is left for values in between."""

from __future__ import annotations

from dataclasses import dataclass

from qconvert.errors import CalibrationError
from qconvert.memory import OPENING_COPIES, WEIGHT_COPIES, WORKSPACE, text

USUAL_ROOM = 1_000_000_000
"""Bytes of values in between where no limit is given."""

ARENA = 1.35
"""What onnxruntime takes for the values that it hands out, in units of their size: its memory grows in steps."""

NODE = 30_000
"""Bytes of an operator of a graph in Python, with its values: measured."""


@dataclass(frozen=True)
class Needs:
    """What experiments on a model need.

    Attributes:
        weights: Bytes of the model's weights.
        largest: Bytes of the largest value of one sample.
        values: Bytes of all values of one sample.
        kept: Bytes that stay: samples and outputs of the float model.
        nodes: Operators of all graphs that are held at once.
        samples: How many samples.
    """

    weights: int
    largest: int
    values: int
    kept: int
    nodes: int
    samples: int


@dataclass(frozen=True)
class Room:
    """What they may take.

    Attributes:
        workers: Runs side by side.
        values: Bytes for values that are handed out.
        peak: Expected peak of the process, bytes.
    """

    workers: int
    values: int
    peak: int

    def __str__(self) -> str:
        return f"memory: a peak of about {text(self.peak)} expected with {self.workers} runs side by side"


def plan_room(needs: Needs, *, base: int, workers: int, limit: int | None) -> Room:
    """As many runs side by side as wanted where they fit, and room for values in between.

    Args:
        needs: What the experiments need.
        base: Bytes that the process holds already.
        workers: Runs side by side.
        limit: Bytes that the process may take; None: no limit.

    Raises:
        CalibrationError: If one run at a time does not fit.
    """
    least = 2 * needs.largest * ARENA  # a value and what skips it

    def fixed(count: int) -> int:
        running = count * (WEIGHT_COPIES * needs.weights + WORKSPACE * needs.largest)
        return base + needs.kept + NODE * needs.nodes + max(running, OPENING_COPIES * needs.weights)

    def room(count: int, taken: float) -> Room:
        return Room(count, int(taken / ARENA), int(fixed(count) + taken))

    most = needs.values * needs.samples * ARENA
    if limit is None:
        return room(workers, max(min(most, USUAL_ROOM * ARENA), least))
    count = next((count for count in range(workers, 0, -1) if fixed(count) + least <= limit), 0)
    if not count:
        needed = int(fixed(1) + least)
        raise CalibrationError(
            f"--max-memory {text(limit)}: one run at a time takes {text(needed)}",
            hint=f"give at least {text(needed)}, or fewer samples",
        )
    return room(count, max(min(most, limit - fixed(count)), least))
