"""What a method of this room is, and what it is given.

A method is one file with a frozen dataclass whose fields are its parameters and a row in ``METHODS``. There are two
kinds. A ``Rewrite`` changes the float model so that its outputs stay the same and statistics get kinder; a ``Step``
changes what a plan makes of a model: levels of weights, biases.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from qconvert.histogram import TensorStats
from qconvert.listener import SILENT, Listener
from qconvert.numerics import INT8, UINT8, QuantType
from qconvert.plan import Plan
from qconvert.recover.moments import DAMPING
from qconvert.session import Feeds

if TYPE_CHECKING:
    from qconvert.recover.journal import Journal

STORED = 128_000_000
"""Bytes of values between layers that are held in memory; more go to a temporary file."""

LEVELS, BIASES = "levels of weights", "biases"
"""What methods decide, each in their own way."""


@dataclass(frozen=True)
class Context:
    """What methods may use.

    Attributes:
        probes: Samples of the calibration, as fed to the model.
        stats: Statistics of the values of the float model, by name.
        seed: Of whatever is drawn at random.
        activations: The type that most of them get.
        weights: Likewise.
        per_channel: Whether each output of a weight has a scale of its own.
        group_size: Of the inputs of a MatMul or Gemm that share a scale; None where all inputs of an output do.
        stored: Bytes of values between layers that may be held in memory.
        damping: How little inputs are trusted: share of the mean of their squares that is added to each (``Moments``).
        only: The methods of operators that do not get all, by name.
        deadline: When to end, in seconds of ``time.monotonic``; None where there is no hurry.
        journal: Where steps keep what became of layers; None: nowhere.
        listener: Hears notes and progress.
    """

    probes: Sequence[Feeds]
    stats: Mapping[str, TensorStats] = field(default_factory=dict)
    seed: int = 0
    activations: QuantType = UINT8
    weights: QuantType = INT8
    per_channel: bool = True
    group_size: int | None = None
    stored: int = STORED
    damping: float = DAMPING
    only: Mapping[str, Collection[str]] = field(default_factory=dict)
    deadline: float | None = None
    journal: Journal | None = None
    listener: Listener = SILENT

    @property
    def seconds_left(self) -> float:
        """Until the deadline; infinite without one."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def refusal(self, method: str, *operators: str) -> str:
        """Why operators do not get a method, as the end of a sentence, or ""."""
        if any(method not in self.only.get(name, (method,)) for name in operators):
            return "for which a rule names other methods"
        return "for which no time is left" if self.seconds_left <= 0 else ""


@dataclass(frozen=True)
class Rewritten:
    """An equivalent float model.

    Attributes:
        model: It; operators have the names that they had.
        changed: Names of the values that are not what they were.
        notes: What was done and what was left out, one line each.
    """

    model: ir.Model
    changed: Collection[str] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """A model and its plan, as far as they are made.

    Where a step chooses levels of a weight, ``graph`` holds the reals that these stand for in its place: quantizing
    those gives the same levels again, so that whoever writes the plan need not know.

    Attributes:
        reference: The prepared float graph, or what rewrites made of it; its values are the right ones.
        graph: The same operators with the weights and biases that the plan quantizes.
        plan: It.
        notes: What was done and what was left out, one line each.
    """

    reference: ir.Model
    graph: ir.Model
    plan: Plan
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method(ABC):
    """Either kind.

    Attributes:
        name: On the command line and in policies.
        title: One line for people.
        place: Its turn among methods of its kind, the least first.
        slow: Whether it takes minutes where others take seconds.
        usual: Whether ``auto`` tries it.
        decides: What methods decide each in their own way, so that a model gets one of them.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    place: ClassVar[int] = 0
    slow: ClassVar[bool] = True
    usual: ClassVar[bool] = True
    decides: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Rewrite(Method):
    """Changes the float model, not what it computes."""

    @abstractmethod
    def rewrite(self, model: ir.Model, context: Context) -> Rewritten:
        """An equivalent model.

        Args:
            model: A prepared float graph; left as it is.
            context: Samples, statistics, limits.

        Raises:
            ModelError: If onnxruntime refuses the model or a sample.
        """


@dataclass(frozen=True)
class Step(Method):
    """Changes what a plan makes of a model."""

    @abstractmethod
    def apply(self, work: Work, context: Context) -> Work:
        """The model and plan with other weights or biases; ``work`` is left as it is.

        Args:
            work: A model and its plan.
            context: Samples, statistics, limits.

        Raises:
            ModelError: If onnxruntime refuses the model or a sample.
        """


def said(method: str, done: int, left_out: Mapping[str, str], *, what: str = "layers") -> str:
    """One line on how many layers, or whatever else, a method changed, and which it left out for which reason."""
    reasons: dict[str, list[str]] = {}
    for layer, why in left_out.items():
        reasons.setdefault(why, []).append(layer)
    listed = "; ".join(
        f"{len(layers)} left out, {why} ({', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''})"
        for why, layers in sorted(reasons.items(), key=lambda item: -len(item[1]))
    )
    return f"{method}: {done} {what} changed" + (f"; {listed}" if listed else "")
