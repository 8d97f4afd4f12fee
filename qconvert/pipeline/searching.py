"""The stages of ``search``.

Its samples are parted once, in the order of the seed: those that search, and those held back, which judge.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.calibration import Calibration
from qconvert.comparison import file_size
from qconvert.errors import DataError
from qconvert.files import check_writable
from qconvert.graph import file_hash, operators
from qconvert.listener import SILENT, Listener
from qconvert.pipeline.laboratory import Material, gather, open_lab
from qconvert.pipeline.quantizing import Quantized, quantize
from qconvert.plan import Plan
from qconvert.plan.settings import settings_table
from qconvert.policy import Policy, dump, loads
from qconvert.prepare import raise_opset
from qconvert.preprocess import Preprocess
from qconvert.recover import asked_names
from qconvert.rewrite.qdq import needed_opset
from qconvert.searching import experiments
from qconvert.searching.cost import cost, works
from qconvert.searching.ladder import DEFAULT_LADDER, Rung, ladder, uniform, usable
from qconvert.searching.search import Aim, aim_of
from qconvert.searching.search import search as find
from qconvert.searching.trials import Judge
from qconvert.searching.types import Found, Goal
from qconvert.sensing.analysis import metric_of
from qconvert.sensing.engine import Lab
from qconvert.sensing.journal import Checkpoints, Journal, digest
from qconvert.sensing.measures import METRICS
from qconvert.sensing.scoring import accuracy
from qconvert.sensing.types import Granularity
from qconvert.session import check_opset
from qconvert.targets import get_target
from qconvert.workers import default_workers

PART_SUFFIX = ".search.part"
"""How files of what was run end."""

COUNTED, POOLED = 1 / 3, 1 / 2
"""The share of the samples that searches: fewer where labels or classes are counted, for the proof needs many of them,
and the search is led by the SQNR; half where the goal is of the SQNR, or of size or time."""


@dataclass(frozen=True)
class Wanted:
    """What is searched for.

    Attributes:
        goal: What the policy has to meet.
        rungs: Names of the ladder's rungs; None takes those of the usual ones that the target has types for.
        by: What has a rung of its own.
        time_budget: Seconds after which no other policy is tried; None: no limit.
    """

    goal: Goal
    rungs: tuple[str, ...] | None = None
    by: Granularity = "operator"
    time_budget: float | None = None


@dataclass(frozen=True)
class Searched:
    """A search, and the model of the policy that it found.

    Attributes:
        found: What was found, and what it was chosen from.
        quantized: The model, written and proved as ``quantize`` does; None where the goal is not met, the policy leaves
            nothing to quantize or has ``recover``, which would make another model of it, or none was asked for.
    """

    found: Found
    quantized: Quantized | None


def search(
    model: Path,
    data: Path,
    *,
    wanted: Wanted,
    output: Path | None = None,
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
    force: bool = False,
    listener: Listener = SILENT,
) -> Searched:
    """Finds a policy of mixed precision that meets a goal, verifies it on samples that had no part in finding it.

    Args:
        model: The float model.
        data: Samples; half of them search, half are held back; where labels or classes are counted, two thirds are.
        wanted: What is searched for.
        output: Where to write the model of the policy; None: nowhere.
        calibrated: Its statistics; None takes them of the same samples.
        policy: What else is wanted: rungs are put into it.
        labels: A CSV ``file,label``; None takes labels from class folders or ``y`` arrays where there are any.
        preprocess: How images become inputs; None takes the policy's or the calibration's, else infers it.
        limit: How many samples to choose; None takes all.
        seed: Which ones, and which of them are held back.
        threads: Runs side by side; 0 means one for each CPU.
        max_memory: Bytes that the process may take.
        journal: A file that keeps what was run, and from which it is taken; removed at the end.
        strict: Whether a sample that cannot be read is an error.
        force: Whether an existing output may be overwritten.
        listener: Hears notes and progress.

    Raises:
        QConvertError: If anything the user can mend stops the work.
    """
    policy, began = policy or Policy(), time.monotonic()
    if output is not None:
        check_writable(output, force=force, keep=model)
    rungs = _ladder(wanted.rungs, policy, listener)
    if asked_names(policy):
        listener.note("recover: candidates are run without it; quantize applies it to the policy that is found")
    material = gather(
        model, data, policy=policy, calibrated=calibrated, labels=labels, preprocess=preprocess, limit=limit, seed=seed,
        threads=threads, max_memory=max_memory, strict=strict, listener=listener,
    )  # fmt: skip
    plans = _plans(material, policy, rungs, listener)
    lab, _ = open_lab(material, seed=seed, threads=threads, max_memory=max_memory, strict=strict, listener=listener)
    aim = aim_of(wanted.goal, labelled=material.samples.labelled, float_bytes=file_size(model))
    searched, held = _split(lab, COUNTED if METRICS[aim.metric].needs else POOLED)
    facts = (dump(policy), material.samples.description, wanted.by, seed, searched.samples)
    known = _journal(journal, model, plans, *facts)
    tables = dict(known.read()) if known is not None else {}
    judge = Judge(
        model=model,
        calibrated=material.calibrated,
        lab=searched,
        held=held,
        replan=material.plan,
        policy=policy,
        ruled=_ruled(material, policy),
        ladder=rungs,
        works=works(material.graph, searched.load(0).feeds),
        metric=aim.metric,
        seed=seed,
        threads=(threads or default_workers()) if aim.latency is not None else None,
        kept=Checkpoints(known, tables),
        tables=tables,
    )
    deadline = None if wanted.time_budget is None else began + wanted.time_budget
    found = _run(judge, aim, wanted, plans, deadline=deadline, listener=listener)
    found = replace(found, data=material.samples.description, seconds=time.monotonic() - began)
    if known is not None:
        known.drop()
    if output is None or not found.met or asked_names(policy) or judge.plan(found.chosen.policy) is None:
        return Searched(found, None)
    written = quantize(
        model, material.calibrated, output=output, policy=loads(found.chosen.policy), force=force, listener=listener
    )
    return Searched(found, written)


def _run(
    judge: Judge,
    aim: Aim,
    wanted: Wanted,
    plans: Mapping[Rung, Plan | None],
    *,
    deadline: float | None,
    listener: Listener,
) -> Found:
    """The experiments, and the search that they lead; what was run is kept also where it ends early."""
    exact = judge.float_rows()
    metric_of(aim.metric, exact, judge.lab)  # refuses before the work, not after it
    given = experiments.shares(judge.lab, plans, wanted.by, judge.works)
    try:
        readings, pairs, probes = experiments.run(
            judge.lab, given, judge.tables, deadline=deadline, kept=judge.kept, listener=listener
        )
        outcome = find(judge, aim, given, readings, deadline=deadline, listener=listener)
    finally:
        judge.kept.keep()
    return Found(
        model=judge.model.name,
        goal=wanted.goal,
        bound=aim.words,
        metric=aim.metric,
        met=outcome.met,
        chosen=outcome.chosen,
        candidates=outcome.candidates,
        verified=outcome.verified,
        choices=outcome.choices,
        ladder=tuple(rung.name for rung in judge.ladder),
        by=wanted.by,
        float_bytes=file_size(judge.model),
        float_bit_operations=cost(None, judge.works, judge.works).bit_operations,
        float_top1=accuracy(exact)[0],
        experiments=pairs,
        probes=probes,
        samples=judge.lab.samples,
        held_back=judge.held.samples,
        seed=judge.seed,
        notes=outcome.notes,
    )


def _ladder(names: tuple[str, ...] | None, policy: Policy, listener: Listener) -> tuple[Rung, ...]:
    if names is None:
        names, dropped = usable(DEFAULT_LADDER, policy)
        for line in dropped:
            listener.note(line)
    return ladder(names, policy)


def _plans(material: Material, policy: Policy, rungs: tuple[Rung, ...], listener: Listener) -> dict[Rung, Plan | None]:
    """Everything on one rung, for each; the graph gets the opset of all of them, so that they share what they can."""
    plans = {
        rung: material.plan(uniform(policy, rung), listener) if rung.weights is not None else None for rung in rungs
    }
    needed = max(needed_opset(plan) for plan in plans.values() if plan is not None)
    check_opset(needed)
    raise_opset(material.graph, needed)
    return plans


def _split(lab: Lab, share: float) -> tuple[Lab, Lab]:
    """The samples of the search, the first in the order of the seed, and those held back; at least one each."""
    if lab.samples < 2:
        raise DataError("one sample cannot both search and verify", hint="give more samples")
    count = math.ceil(share * lab.samples)
    held = replace(lab, load=lambda position: lab.load(count + position), samples=lab.samples - count, references={})
    return replace(lab, samples=count), held


def _ruled(material: Material, policy: Policy) -> dict[str, int]:
    """By operator the number of the policy's rule that decides it, where one does."""
    rows = settings_table(policy, tuple(operators(material.graph)), get_target(policy.target)).rows
    return {name: settings.matched[0] for name, settings in rows.items() if settings.matched}


def _journal(path: Path | None, model: Path, plans: Mapping[Rung, Plan | None], *facts: object) -> Journal | None:
    """What keeps rows; the goal is no part of what they are about."""
    quantized = [plan for plan in plans.values() if plan is not None]
    shared = (file_hash(model), [rung.name for rung in plans], [digest(plan) for plan in quantized])
    return None if path is None else Journal(path, digest(quantized[0], *shared, *facts))
