"""From options with cost and harm to a chain of assignments, cheapest first: multiple-choice knapsack, relaxed.

Each subject takes one of its options; cost and harm add up over subjects (noise powers of small, independent errors
do). The assignments that are best for some price of cost, ``harm + price * cost``, are those that take, in the order of
harm saved for each unit of cost, the steps along every subject's lower convex hull (H. Everett III, "Generalized
Lagrange multiplier method", Oper. Res. 11, 1963; E. Zemel, "The linear multiple choice knapsack problem", Oper. Res.
28, 1980).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Option:
    """One choice of a subject: what it costs and harms, in any units that add up."""

    name: str
    cost: float
    harm: float


@dataclass(frozen=True)
class Step:
    """A subject takes a dearer option that harms less."""

    subject: str
    option: Option
    gain: float


@dataclass(frozen=True)
class Chain:
    """Assignments in which cost grows and harm falls; the first is the cheapest one.

    Attributes:
        start: The cheapest option of each subject.
        steps: What changes from one assignment to the next.
    """

    start: Mapping[str, Option]
    steps: tuple[Step, ...]

    def __len__(self) -> int:
        return len(self.steps) + 1

    def __getitem__(self, place: int) -> dict[str, Option]:
        """The assignment after so many steps."""
        return {**self.start, **{step.subject: step.option for step in self.steps[:place]}}


def hull(options: Iterable[Option]) -> list[Option]:
    """The options on the lower convex hull, cheapest first: none of them is beaten by a mixture of two others."""
    found: list[Option] = []
    for option in sorted(options, key=lambda one: (one.cost, one.harm)):
        if found and option.harm >= found[-1].harm:
            continue
        while len(found) > 1 and _gain(found[-2], option) >= _gain(found[-2], found[-1]):
            found.pop()
        found.append(option)
    return found


def _gain(cheap: Option, dear: Option) -> float:
    """Harm saved for each unit of cost; infinite where it is free."""
    more = dear.cost - cheap.cost
    return (cheap.harm - dear.harm) / more if more else float("inf")


def chain(options: Mapping[str, Sequence[Option]]) -> Chain:
    """All assignments that some price of harm makes best; equal steps in the order of the subjects."""
    hulls = {subject: hull(given) for subject, given in options.items()}
    steps = [
        Step(subject, dear, _gain(cheap, dear)) for subject, line in hulls.items() for cheap, dear in pairwise(line)
    ]
    start = {subject: line[0] for subject, line in hulls.items()}
    return Chain(start, tuple(sorted(steps, key=lambda step: -step.gain)))


def undominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point is as good in both coordinates, less being better, and better in one."""
    return [not any(a <= x and b <= y and (a < x or b < y) for a, b in points) for x, y in points]
