"""The stages of ``sensitivity``."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qconvert.calibration import Calibration
from qconvert.graph import file_hash
from qconvert.listener import SILENT, Listener
from qconvert.pipeline.laboratory import gather, open_lab
from qconvert.plan import Plan
from qconvert.policy import Policy, dump
from qconvert.prepare import raise_opset
from qconvert.preprocess import Preprocess
from qconvert.rewrite.qdq import needed_opset
from qconvert.sensing import analysis
from qconvert.sensing.journal import Journal, digest
from qconvert.sensing.measures import Custom
from qconvert.sensing.suggest import SIXTEEN_OPSET, Bound, suggest
from qconvert.sensing.types import Granularity, Mode, Sensitivity
from qconvert.session import check_opset

PART_SUFFIX = ".sensitivity.part"
"""How files of finished experiments end."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model.

    Attributes:
        mode: The experiment.
        by: What is a subject.
        metric: What ranks: a name of ``measures.METRICS``; ``custom`` for the user's own.
        custom: The user's metric.
        exhaustive: Whether every subject is run on all samples, also where its rank is clear before.
        time_budget: Seconds after which the experiments end, finished or not; None: no limit.
        bound: What exclusions shall meet, for a suggestion; None: none is wanted.
    """

    mode: Mode = "only"
    by: Granularity = "operator"
    metric: str = "sqnr"
    custom: Custom | None = None
    exhaustive: bool = False
    time_budget: float | None = None
    bound: Bound | None = None


def sensitivity(
    model: Path,
    data: Path,
    *,
    question: Question = Question(),
    calibrated: Calibration | None = None,
    policy: Policy | None = None,
    labels: Path | None = None,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 0,
    max_memory: int | None = None,
    journal: Path | None = None,
    strict: bool = False,
    listener: Listener = SILENT,
) -> Sensitivity:
    """Finds out which parts of a model lose accuracy when they are quantized.

    Args:
        model: The float model.
        data: Samples.
        question: What is asked.
        calibrated: Its statistics; None takes them of the same samples.
        policy: What to quantize and how.
        labels: A CSV ``file,label``; None takes labels from class folders or ``y`` arrays where there are any.
        preprocess: How images become inputs; None takes the policy's or the calibration's, else infers it.
        limit: How many samples to choose; None takes all.
        seed: Which ones, in which order they are run, and the resamples of the intervals.
        threads: Runs side by side; 0 means one for each CPU.
        max_memory: Bytes that the process may take.
        journal: A file that keeps finished experiments, and from which they are taken; removed at the end.
        strict: Whether a sample that cannot be read is an error.
        listener: Hears notes and progress.

    Raises:
        QConvertError: If anything the user can mend stops the work.
    """
    policy = policy or Policy()
    began = time.monotonic()
    deadline = None if question.time_budget is None else began + question.time_budget
    material = gather(
        model, data, policy=policy, calibrated=calibrated, labels=labels, preprocess=preprocess, limit=limit, seed=seed,
        threads=threads, max_memory=max_memory, strict=strict, listener=listener,
    )  # fmt: skip
    plan, samples = material.plan(policy, listener), material.samples
    _raise_opset(material.graph, plan, question.bound)
    lab, room = open_lab(
        material, seed=seed, threads=threads, max_memory=max_memory, strict=strict, listener=listener,
        custom=question.custom,
    )  # fmt: skip
    asked = analysis.Question(question.mode, question.by, question.metric, question.exhaustive, deadline, seed)
    kept = _journal(
        journal, model, plan, dump(policy), samples.description, samples.labelled, question.mode, question.by, seed
    )
    found = analysis.analyse(lab, plan, asked, journal=kept, listener=listener)
    if question.bound is not None:
        suggestion = suggest(lab, material.plan, policy, found, question.bound, listener=listener)
        found = replace(found, suggestion=suggestion)
    if kept is not None and not found.unsettled:
        kept.drop()
    return replace(
        found, model=model.name, data=samples.description, peak_bytes=room.peak, seconds=time.monotonic() - began
    )


def _raise_opset(graph: ir.Model, plan: Plan, bound: Bound | None) -> None:
    """To what all plans need that will be made, so that their models share what they can."""
    needed = needed_opset(plan)
    if bound is not None and bound.remedy == "16-bit":
        needed = max(needed, SIXTEEN_OPSET)
    check_opset(needed)
    raise_opset(graph, needed)


def _journal(path: Path | None, model: Path, plan: Plan, *facts: object) -> Journal | None:
    return None if path is None else Journal(path, digest(plan, file_hash(model), *facts))
