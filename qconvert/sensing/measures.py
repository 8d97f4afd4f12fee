"""What one sample says about a model beside the float one, and every metric as a function of such numbers' sums.

All metrics are ratios of sums over samples, so a resample of the samples is a weighted sum of rows: the bootstrap is
one matrix product. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qconvert.metrics import EXACT_DB
from qconvert.scores import TOP_K, sample_hits, sample_sums

Floats = npt.NDArray[np.float64]
Arrays = Sequence[Any]
Custom = Callable[[list[Any], list[Any], Any], float]
"""A user's metric: float outputs, outputs of the model to judge, labels of the sample; greater is better."""

SIGNAL, NOISE, COSINE, KL, AGREE, ROWS, ONES = range(7)
"""Columns of an output's row."""

TOP1_FLOAT, TOP1, TOP5_FLOAT, TOP5, ITEMS, ITEMS5, CUSTOM = range(7)
"""Columns of the last row: labels hit by the float model and by the other, of how many; the user's metric's loss."""

COLUMNS = 7

_WORST = 10.0 ** (EXACT_DB / 10)
"""Noise is at most this many times the signal, so that a broken output stays a number."""

_LEAST = 1e-12
"""Of a probability, in the logarithm."""


def measure(before: Arrays, after: Arrays, labels: npt.NDArray[Any] | None, custom: Custom | None = None) -> Floats:
    """What one sample adds to all metrics.

    Args:
        before: Float tensors of the float model.
        after: The same of the model to judge.
        labels: Of the sample's items, or None.
        custom: The user's metric, or None.

    Returns:
        ``[outputs + 1, COLUMNS]``: a row for each output, and one of labels and the user's metric.
    """
    found = np.zeros((len(before) + 1, COLUMNS))
    for row, a, b in zip(found, before, after, strict=False):
        sums = sample_sums(a, b)
        if sums is None:
            continue
        worst = _WORST * max(sums.signal, np.finfo(np.float64).tiny)
        noise = float(np.fmin(sums.noise, worst))  # where it is NaN, too
        cosine = sums.cosine if np.isfinite(sums.cosine) else 0.0
        divergence = _divergence(a, b) if sums.rows and a.shape == b.shape else 0.0
        row[:] = sums.signal, noise, cosine, divergence, sums.agree, sums.rows, 1
    if before and labels is not None:
        hits = [sample_hits(outputs[0], labels) for outputs in (before, after)]
        for first, one in enumerate(hits):
            if one is not None:
                found[-1, [TOP1_FLOAT + first, ITEMS]] = one.top1, one.items
                if one.classes > TOP_K:
                    found[-1, [TOP5_FLOAT + first, ITEMS5]] = one.top5, one.items
    if custom is not None:
        found[-1, CUSTOM] = custom(list(before), list(before), labels) - custom(list(before), list(after), labels)
    return found


def measure_channels(before: Arrays, after: Arrays) -> Floats:
    """The same for inner values, whose channels count alike: what reads them may undo the scale of a channel.

    Of each value, signal 1 and noise ``mean over channels of min(1, noise / signal)``; a channel is an index of axis 1
    where the rank is at least 4, else of the last axis.
    """
    found = np.zeros((len(before) + 1, COLUMNS))
    for row, a, b in zip(found, before, after, strict=False):
        row[[SIGNAL, NOISE, COSINE, ONES]] = 1.0, *_by_channel(_channels(a), _channels(b)), 1.0
    return found


def _channels(value: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """As ``[items, channels, rest]``."""
    array = np.asarray(value, np.float32)
    if array.ndim >= 4:
        return array.reshape(*array.shape[:2], -1)
    return array.reshape(-1, array.shape[-1] if array.ndim else 1, 1)


def _by_channel(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Mean noise over signal, and the cosine."""
    if before.shape != after.shape or not before.size:
        return 1.0, 0.0
    error = after - before
    signal, noise = (np.einsum("ncx,ncx->c", one, one).astype(np.float64) for one in (before, error))
    silent = signal <= np.finfo(np.float32).tiny
    share = np.where(silent, noise > 0, noise / np.where(silent, 1.0, signal))
    flat, other = before.reshape(-1), after.reshape(-1)
    norm = float(np.sqrt(signal.sum())) * float(np.linalg.norm(other))
    cosine = float(np.dot(flat, other)) / norm if norm else float(not signal.any() and not other.any())
    return float(np.fmin(share, 1.0).mean()), cosine if np.isfinite(cosine) else 0.0


def _divergence(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> float:
    """Sum over the rows of ``sum p log(p / q)``, nats: of the outputs where they are distributions, else softmax."""
    p, q = before.astype(np.float64), np.nan_to_num(after.astype(np.float64), posinf=1e30, neginf=-1e30)
    if (p >= 0).all() and np.allclose(p.sum(-1), 1, atol=1e-3):
        q = np.clip(q, _LEAST, None)
        log_p, log_q = np.log(np.clip(p, _LEAST, None)), np.log(q / q.sum(-1, keepdims=True))
    else:
        log_p, log_q = _log_softmax(p), _log_softmax(q)
    return float(np.maximum((np.exp(log_p) * (log_p - log_q)).sum(-1), 0.0).sum())


def _log_softmax(x: Floats) -> Floats:
    shifted = x - x.max(-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def sqnr(sums: Floats) -> Floats:
    """``-10 log10(mean over outputs of noise / signal)`` within [-200, 200] dB, ``[...]`` of ``[..., outputs + 1, 7]``.

    Outputs that are silent in both models do not count.
    """
    signal, noise = sums[..., :-1, SIGNAL], sums[..., :-1, NOISE]
    heard = (signal > 0) | (noise > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(heard, np.minimum(noise / np.where(signal > 0, signal, np.nan), _WORST), 0.0)
        share = np.where(heard & (signal <= 0), _WORST, share)
        mean = share.sum(-1) / np.maximum(heard.sum(-1), 1)
        found: Floats = np.clip(-10 * np.log10(mean), -EXACT_DB, EXACT_DB)
    return found


def cosine(sums: Floats) -> Floats:
    """Mean over the outputs of the mean cosine."""
    ones = sums[..., :-1, ONES]
    found: Floats = (sums[..., :-1, COSINE] / np.maximum(ones, 1)).sum(-1) / np.maximum((ones > 0).sum(-1), 1)
    return found


def _by_row(column: int) -> Callable[[Floats], Floats]:
    """A mean over the rows of the first output that has classes."""

    def found(sums: Floats) -> Floats:
        rows = sums[..., :-1, ROWS]
        first = (rows > 0).argmax(-1)
        chosen = np.take_along_axis(sums[..., :-1, :], first[..., None, None], -2)[..., 0, :]
        means: Floats = chosen[..., column] / np.maximum(chosen[..., ROWS], 1)
        return means

    return found


def _drop(before: int, items: int) -> Callable[[Floats], Floats]:
    def found(sums: Floats) -> Floats:
        lost = sums[..., -1, before] - sums[..., -1, before + 1]
        drop: Floats = 100 * lost / np.maximum(sums[..., -1, items], 1)
        return drop

    return found


def _custom(sums: Floats) -> Floats:
    found: Floats = sums[..., -1, CUSTOM] / np.maximum(sums[..., :-1, ONES].max(-1), 1)
    return found


_kl, _agreement = _by_row(KL), _by_row(AGREE)


@dataclass(frozen=True)
class Metric:
    """A way to compare a model with the float one.

    Attributes:
        name: On the command line.
        title: For people.
        unit: Of ``value`` and ``harm``.
        value: Of pooled sums ``[..., outputs + 1, COLUMNS]``.
        harm: The same turned so that greater is worse.
        needs: ``classes``, ``labels`` or "".
    """

    name: str
    title: str
    unit: str
    value: Callable[[Floats], Floats]
    harm: Callable[[Floats], Floats]
    needs: str = ""


def _disagreement(sums: Floats) -> Floats:
    return 100 * (1 - _agreement(sums))


_TOP1, _TOP5 = _drop(TOP1_FLOAT, ITEMS), _drop(TOP5_FLOAT, ITEMS5)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("sqnr", "output SQNR", "dB", sqnr, lambda sums: -sqnr(sums)),
        Metric("cosine", "cosine", "", cosine, lambda sums: 1 - cosine(sums)),
        Metric("kl", "KL divergence of the classes", "nats", _kl, _kl, "classes"),
        Metric("agreement", "argmax agreement", "%", lambda s: 100 * _agreement(s), _disagreement, "classes"),
        Metric("top1", "top-1 drop", "points", _TOP1, _TOP1, "labels"),
        Metric("top5", "top-5 drop", "points", _TOP5, _TOP5, "labels"),
    )
}
"""By name; a user's own is ``CUSTOM_METRIC``."""

CUSTOM_METRIC = Metric("custom", "own metric's loss", "", _custom, _custom)
