"""The stages of ``evaluate``."""

from __future__ import annotations

from pathlib import Path

from qconvert.comparison import Evaluation, compare_models
from qconvert.graph import load_model
from qconvert.listener import SILENT, Listener
from qconvert.pipeline.data import are_images, open_data, say_skipped
from qconvert.preprocess import Preprocess
from qconvert.provenance import recorded_preprocess
from qconvert.session import check_provider


def evaluate(
    reference: Path,
    candidate: Path,
    data: Path,
    *,
    labels: Path | None = None,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
    provider: str = "cpu",
    threads: int = 0,
    latency_runs: int = 30,
    strict: bool = False,
    listener: Listener = SILENT,
) -> Evaluation:
    """Compares a model with its original: accuracy, fidelity, size, latency, kernels.

    Args:
        reference: The original.
        candidate: The model to judge.
        data: Samples.
        labels: A CSV ``file,label``; None takes labels from class folders or ``y`` arrays where there are any.
        preprocess: How images become inputs; None takes what the candidate was calibrated with, else infers it.
        limit: How many samples to choose; None takes all.
        seed: Which ones.
        provider: Execution provider of both.
        threads: Samples in flight, and threads of a timed run; 0 means one for each CPU.
        latency_runs: Timed runs of each; 0 leaves latency out.
        strict: Whether a sample that cannot be read is an error.
        listener: Hears notes and progress.

    Raises:
        QConvertError: If anything the user can mend stops the work.
    """
    check_provider(provider)
    graph = load_model(reference)
    if preprocess is None and are_images(data):
        preprocess = recorded_preprocess(load_model(candidate))
        if preprocess is not None:
            listener.note(f"preprocessing taken from {candidate.name}, where calibrate recorded it")
    samples = open_data(reference, graph, data, preprocess, labels=labels, limit=limit, seed=seed, listener=listener)
    listener.start("evaluating", len(samples))
    try:
        result = compare_models(
            reference,
            candidate,
            samples,
            provider=provider,
            threads=threads,
            latency_runs=latency_runs,
            strict=strict,
            progress=listener.advance,
        )
    finally:
        listener.finish()
    say_skipped(result.skipped, listener)
    return result
