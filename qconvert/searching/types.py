"""What a search found: plain values for renderers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconvert.comparison import Latency
    from qconvert.samples.types import Json
    from qconvert.sensing.types import Estimate, Scores

FLOAT = "float"
"""The rung of operators that stay as they are."""


@dataclass(frozen=True)
class Limit:
    """The most that a model may have of something: of a unit, or as a share of what the float model has."""

    value: float
    relative: bool

    def of(self, whole: float) -> float:
        """In units."""
        return self.value * whole if self.relative else self.value


@dataclass(frozen=True)
class Goal:
    """What a policy has to meet; one of them is given.

    Attributes:
        max_drop: Points of top-1 accuracy that may be lost; of argmax agreement where there are no labels.
        min_sqnr: SQNR of the outputs that is the least, dB.
        max_size: Bytes of the written file that are the most.
        max_latency: Milliseconds of a run that are the most.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None
    max_size: Limit | None = None
    max_latency: Limit | None = None


@dataclass(frozen=True)
class Times:
    """Of runs of two models in turn."""

    float_model: Latency
    own: Latency


@dataclass(frozen=True)
class Candidate:
    """A policy that was run as a whole.

    Attributes:
        name: A rung where all are on the same one; else its place among the assignments, ``37/120``, with later
            steps that were taken first.
        place: Number of its assignment; None where all are on the same rung.
        rungs: How many operators are on each rung, in the order of the ladder.
        policy: It, YAML.
        size_bytes: Of the file.
        bit_operations: Of one sample.
        scores: On the samples of the search.
        harm: By the metric of the goal, greater is worse: points, or minus dB.
        times: Of one sample, where latency is bounded.
    """

    name: str
    place: int | None
    rungs: tuple[tuple[str, int], ...]
    policy: str
    size_bytes: int
    bit_operations: float
    scores: Scores
    harm: float
    times: Times | None

    @property
    def stays_float(self) -> bool:
        """Whether nothing is quantized."""
        return all(name == FLOAT for name, _ in self.rungs)


@dataclass(frozen=True)
class Verification:
    """A candidate on samples that the search did not use.

    Attributes:
        candidate: Its name.
        scores: On them.
        harm: By the metric of the goal.
        overall: The same over all samples, those of the search among them.
        met: Whether both say that it meets the goal.
        needed: About how many samples held back would tell so with 95 % confidence; None where harm is not bounded, or
            is the bound itself.
    """

    candidate: str
    scores: Scores
    harm: Estimate
    overall: float
    met: bool
    needed: int | None

    @property
    def settled(self) -> bool:
        """Whether as many as there are do."""
        return self.needed is not None and self.needed <= self.harm.samples


@dataclass(frozen=True)
class Choice:
    """The rung of one subject.

    Attributes:
        subject: Operator or block.
        op_type: Its type.
        rung: What was chosen.
        sqnr_db: Of the outputs with it alone on that rung, the rest float; None where it stays float.
        saved_bytes: Bytes of weights that this saves.
    """

    subject: str
    op_type: str
    rung: str
    sqnr_db: float | None
    saved_bytes: int


@dataclass(frozen=True)
class Found:
    """The policy that a search found, and what it was chosen from.

    Attributes:
        model: The float model's file name.
        goal: What had to be met.
        bound: The same in words: ``top-1 drop <= 0.5 points``.
        metric: What ``harm`` is measured by: a name of ``sensing.measures.METRICS``.
        met: Whether the chosen one meets it: of a loss by the samples held back and by all together.
        chosen: The chosen candidate, or the nearest one.
        candidates: All that were run, smallest first.
        verified: What was tried on the samples held back, in order; the chosen candidate is among it.
        choices: The rungs of the chosen assignment, in the order of the graph; empty where it is a uniform one.
        ladder: Names of the rungs.
        by: What has a rung of its own: ``operator`` or ``block``.
        float_bytes: Size of the float model.
        float_bit_operations: Its bit-operations.
        float_top1: Its percent top-1 accuracy on the samples of the search; None without labels.
        experiments: How many pairs of subject and rung were run by themselves.
        probes: On how many samples each.
        samples: How many samples judged whole policies.
        held_back: How many were kept for the verification.
        seed: Which samples did what.
        seconds: Of all.
        notes: What the reader should know, one line each.
        data: Which samples, as JSON values.
    """

    model: str
    goal: Goal
    bound: str
    metric: str
    met: bool
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    verified: tuple[Verification, ...]
    choices: tuple[Choice, ...]
    ladder: tuple[str, ...]
    by: str
    float_bytes: int
    float_bit_operations: float
    float_top1: float | None
    experiments: int
    probes: int
    samples: int
    held_back: int
    seed: int
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    data: Mapping[str, Json] = field(default_factory=dict)

    @property
    def confirmed(self) -> Verification:
        """The chosen candidate on the samples held back."""
        return next(one for one in self.verified if one.candidate == self.chosen.name)
