"""What a sensitivity analysis found: plain values for renderers and gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qconvert.samples.types import Json

Mode = Literal["only", "all-but", "local"]
"""``only``: one subject quantized, the rest float; ``all-but``: one float, the rest quantized; ``local``: every
operator by itself on float inputs, beside the error that has accumulated up to there."""

Granularity = Literal["operator", "block", "op-type", "tensor"]
"""What is a subject."""


@dataclass(frozen=True)
class Estimate:
    """A number that was measured on samples, with its 95 % interval: ``low <= value <= high``.

    Attributes:
        value: Over all samples that were run.
        low: 2.5 % quantile of the bootstrap over samples.
        high: 97.5 % quantile.
        samples: Over how many samples.
        unit: ``dB``, ``points`` (of percent), ``%``, ``nats`` or "" (a cosine, or the unit of the user's metric).
    """

    value: float
    low: float
    high: float
    samples: int
    unit: str


@dataclass(frozen=True)
class OutputScores:
    """How far one output of a model is from the float model's.

    Attributes:
        output: Name of the output.
        sqnr_db: ``10 log10(sum ref^2 / sum (ref - out)^2)``, pooled over samples and elements; 200 where exact.
        cosine: Mean over the samples of the cosine of the flattened outputs.
        kl: Mean over the rows of the Kullback-Leibler divergence of the class distributions, nats; None where the last
            axis has one element.
        agreement: Percent of rows whose largest element is at the same place; None likewise.
    """

    output: str
    sqnr_db: Estimate
    cosine: Estimate
    kl: Estimate | None
    agreement: Estimate | None


@dataclass(frozen=True)
class Scores:
    """How far a model is from the float model.

    Attributes:
        sqnr_db: Over all outputs: ``-10 log10(mean over outputs of noise / signal)``; of one output its SQNR.
        cosine: Mean over the outputs.
        kl: Of the first output that has classes, nats; None where none has.
        agreement: Of the same output, percent.
        top1_drop: Top-1 accuracy of the float model less this one's, points; None without labels.
        top5_drop: The same for top-5.
        custom: The user's metric: float model's less this one's; None where there is none.
        outputs: One for each float output.
    """

    sqnr_db: Estimate
    cosine: Estimate
    kl: Estimate | None
    agreement: Estimate | None
    top1_drop: Estimate | None
    top5_drop: Estimate | None
    custom: Estimate | None
    outputs: tuple[OutputScores, ...]


@dataclass(frozen=True)
class Effect:
    """What one subject does to the model.

    Attributes:
        subject: Name of the operator, block, op type or tensor.
        op_type: Its type, ``Conv``; of a block ``3 Conv, Add``; of a tensor its role: ``weight``, ``activation``.
        operators: The operators that are quantized (mode all-but: left float) in the experiment; what ``names`` of a
            policy rule would hold.
        order: Place of its first operator among the operators of the graph, for plots along the network.
        scores: Mode only: of the model with nothing else quantized. Mode all-but: of the model with all else quantized.
            Mode local: of the subject's own output, given float inputs; its SQNR is ``-10 log10`` of the mean over
            channels of ``min(1, noise / signal)``, and labels do not apply.
        harm: What subjects are ranked by, greater is worse, in the unit of the metric: what the float model has more of
            (mode all-but: how much better the metric gets where the subject stays float). Of SQNR in modes only and
            local it is minus the SQNR itself.
        accumulated: Mode local: SQNR of the subject's output in the fully quantized model, dB, else None.
        samples: On how many samples it was run; they are the first ones of one order for all subjects.
        harmful: Whether the interval says that the subject harms at all: ``harm.low > 0`` (of SQNR in modes only and
            local: whether the output changed).
        distinguishable: Whether the samples that both were run on tell it from the next less harmful subject, at 95 %.
        saved_bytes: Bytes of weights that quantizing it saves.
    """

    subject: str
    op_type: str
    operators: tuple[str, ...]
    order: int
    scores: Scores
    harm: Estimate
    accumulated: Estimate | None
    samples: int
    harmful: bool
    distinguishable: bool
    saved_bytes: int


@dataclass(frozen=True)
class Round:
    """One round of the ranking.

    Attributes:
        subjects: How many subjects were run in it: those whose rank was open.
        samples: How many samples each of them had been run on at its end.
        seconds: What it took.
    """

    subjects: int
    samples: int
    seconds: float


@dataclass(frozen=True)
class Suggestion:
    """Exclusions or higher precision that meet a bound, verified with the policy as written.

    Attributes:
        remedy: ``float`` or ``16-bit``.
        operators: What the rules name, in the order in which they were taken.
        bound: What had to be met, as ``top-1 drop <= 0.5 points``.
        met: Whether it is.
        before: Scores of the model with nothing excluded.
        after: Scores of the model quantized by the policy with the rules; where it is not met, with all of them. None
            where nothing is left to quantize.
        verified_on: On how many samples.
        policy: The policy with the rules, YAML.
    """

    remedy: Literal["float", "16-bit"]
    operators: tuple[str, ...]
    bound: str
    met: bool
    before: Scores
    after: Scores | None
    verified_on: int
    policy: str


@dataclass(frozen=True)
class Sensitivity:
    """Subjects ranked by the harm they do.

    Attributes:
        model: The float model's file name.
        mode: The experiment.
        granularity: What is a subject.
        metric: What ranks: a name of ``measures.METRICS``, or ``custom``.
        rows: The subjects, most harmful first.
        quantized: Scores of the model with everything quantized.
        float_top1: Percent top-1 accuracy of the float model; None without labels.
        float_top5: The same for top-5.
        samples: How many samples there were.
        labelled: Whether they have labels.
        seed: Chose the samples, their order and the resamples.
        rounds: How the ranking went.
        seconds: Of all experiments.
        peak_bytes: Expected peak memory of the process, as said before.
        notes: What the reader should know, one line each.
        unsettled: Subjects whose order the time budget left open; empty where the ranking is complete.
        suggestion: What meets the bound that was asked for, or None.
        data: Which samples, as JSON values.
    """

    model: str
    mode: Mode
    granularity: Granularity
    metric: str
    rows: tuple[Effect, ...]
    quantized: Scores
    float_top1: float | None
    float_top5: float | None
    samples: int
    labelled: bool
    seed: int
    rounds: tuple[Round, ...]
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...]
    unsettled: tuple[str, ...] = ()
    suggestion: Suggestion | None = None
    data: Mapping[str, Json] = field(default_factory=dict)
