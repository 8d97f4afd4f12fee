"""The stages of ``compare``."""

from __future__ import annotations

from pathlib import Path

from qconvert.graph import load_model
from qconvert.layers import Layers, compare_layers
from qconvert.listener import SILENT, Listener
from qconvert.pipeline.data import are_images, open_data, say_skipped
from qconvert.preprocess import Preprocess
from qconvert.provenance import recorded_preprocess


def compare(
    reference: Path,
    candidate: Path,
    data: Path,
    *,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 0,
    strict: bool = False,
    listener: Listener = SILENT,
) -> Layers:
    """Compares every value that a model and its original both have, and finds where the error enters.

    Args:
        reference: The original.
        candidate: What was made of it.
        data: Samples.
        preprocess: How images become inputs; None takes what the candidate was calibrated with, else infers it.
        limit: How many samples to choose; None takes all.
        seed: Which ones.
        threads: Samples in flight; 0 means one for each CPU.
        strict: Whether a sample that cannot be read is an error.
        listener: Hears notes and progress.

    Raises:
        QConvertError: If anything the user can mend stops the work.
    """
    graph = load_model(reference)
    if preprocess is None and are_images(data):
        preprocess = recorded_preprocess(load_model(candidate))
    samples = open_data(reference, graph, data, preprocess, limit=limit, seed=seed, listener=listener)
    listener.start("comparing", len(samples))
    try:
        found = compare_layers(reference, candidate, samples, threads=threads, strict=strict, progress=listener.advance)
    finally:
        listener.finish()
    for note in found.notes:
        listener.note(note)
    say_skipped(found.skipped, listener)
    return found
