"""Fidelity and accuracy of outputs: what one sample adds, and what all add up to; numpy only.

Fidelity is pooled over all samples and elements; sums are added in the order of the samples, so that reports do not
depend on threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qconvert.intervals import Floats, bootstrap
from qconvert.metrics import ratio_db

TOP_K = 5


@dataclass(frozen=True)
class Fidelity:
    """How close one output of the candidate is to the reference's.

    Attributes:
        output: Name of the output.
        sqnr_db: ``10 log10(sum ref^2 / sum (ref - out)^2)`` pooled over all samples and elements, dB.
        cosine: Mean over the samples of the cosine of the two flattened outputs.
        argmax_agreement: Percent of rows whose largest element is at the same place; None where the last axis has one
            element.
        rows: How many rows that is a percentage of.
        samples: Over how many samples.
        sqnr_interval_db: 95 % interval of the SQNR; None for one sample, or where it is not finite.
    """

    output: str
    sqnr_db: float
    cosine: float
    argmax_agreement: float | None
    rows: int
    samples: int
    sqnr_interval_db: tuple[float, float] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Accuracy:
    """Percent of labelled items whose label is the largest (top1) or among the five largest (top5) of output 0."""

    top1: float
    top5: float | None
    items: int


@dataclass(frozen=True)
class Sums:
    """What one sample adds to the fidelity of one output."""

    signal: float
    noise: float
    cosine: float
    agree: int
    rows: int


@dataclass(frozen=True)
class Hits:
    """What one sample adds to the accuracy: labels hit, of how many, among how many classes."""

    top1: int
    top5: int
    items: int
    classes: int


def without_padding(output: Any, items: int, batch: int) -> Any:  # noqa: ANN401 - see sample_sums
    """An output without the rows of repeated items that fill a batch of ``batch`` of which ``items`` are real."""
    padded = items < batch and isinstance(output, np.ndarray) and output.shape[:1] == (batch,)
    return output[:items] if padded else output


def sample_sums(before: Any, after: Any) -> Sums | None:  # noqa: ANN401 - onnxruntime outputs are arrays, lists or dictionaries
    """What one sample adds to the fidelity of an output; None where it is not a float tensor."""
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray) or before.dtype.kind != "f":
        return None
    if before.shape != after.shape:
        return Sums(0.0, math.inf, 0.0, 0, 1)
    a, b = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(invalid="ignore"):  # Inf - Inf
        signal, noise = float(np.square(a).sum()), float(np.square(a - b).sum())
        norm = math.sqrt(signal) * float(np.linalg.norm(b))
        cosine = float((a * b).sum()) / norm if norm else float(signal == 0 and not b.any())
    if a.ndim < 2 or a.shape[-1] < 2 or a.size == 0:
        return Sums(signal, noise, cosine, 0, 0)
    same = a.argmax(-1) == b.argmax(-1)
    return Sums(signal, noise, cosine, int(same.sum()), same.size)


def sample_hits(output: Any, labels: npt.NDArray[Any] | None) -> Hits | None:  # noqa: ANN401 - see sample_sums
    """How many labels of one sample are among the largest scores; None where the shapes do not fit."""
    if labels is None or not labels.size or not isinstance(output, np.ndarray):
        return None
    if output.dtype.kind != "f":
        predicted = output.reshape(-1)[: labels.size]
        return Hits(int((predicted == labels).sum()), 0, labels.size, 1) if predicted.size == labels.size else None
    classes = output.shape[-1] if output.ndim else 1
    if classes < 2 or output.size != classes * labels.size:
        return None
    top = np.argsort(-output.reshape(-1, classes), axis=1, kind="stable")[:, :TOP_K]
    hits = top == labels[:, None]
    return Hits(int(hits[:, 0].sum()), int(hits.any(1).sum()), labels.size, classes)


def pool_fidelity(name: str, sums: Sequence[Sums | None]) -> Fidelity | None:
    """The fidelity of an output over all samples; None where it is not a float tensor."""
    rows = [row for row in sums if row is not None]
    if not rows:
        return None
    total = sum(row.rows for row in rows)
    agreement = 100 * sum(row.agree for row in rows) / total if total else None
    sqnr = ratio_db(math.fsum(row.signal for row in rows), math.fsum(row.noise for row in rows))
    cosine = math.fsum(row.cosine for row in rows) / len(rows)
    return Fidelity(name, sqnr, cosine, agreement, total, len(rows), _sqnr_interval(rows))


def _sqnr_interval(rows: Sequence[Sums]) -> tuple[float, float] | None:
    powers = np.array([(row.signal, row.noise) for row in rows])
    if not np.isfinite(powers).all():
        return None
    return bootstrap(powers, lambda sums: np.array([ratio_db(signal, noise) for signal, noise in sums.tolist()]))


def drop_interval(
    before: Sequence[Hits | None], after: Sequence[Hits | None], key: Literal["top1", "top5"]
) -> tuple[float, float] | None:
    """95 % interval of the accuracy that is lost, points; paired, for both models saw the same samples."""
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    rows = np.array([(getattr(a, key) - getattr(b, key), a.items) for a, b in pairs], np.float64).reshape(-1, 2)

    def points(sums: Floats) -> Floats:
        return 100 * sums[:, 0] / sums[:, 1]

    return bootstrap(rows, points)


def pool_accuracy(hits: Sequence[Hits | None]) -> Accuracy | None:
    """The accuracy over all samples; None without labels."""
    rows = [row for row in hits if row is not None]
    items = sum(row.items for row in rows)
    if not items:
        return None
    top5 = 100 * sum(row.top5 for row in rows) / items if all(row.classes > TOP_K for row in rows) else None
    return Accuracy(100 * sum(row.top1 for row in rows) / items, top5, items)
