"""The stages of ``search``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.calibration import Calibration
from qconvert.comparison import file_size
from qconvert.errors import DataError
from qconvert.graph import file_hash, operators
from qconvert.listener import SILENT, Listener
from qconvert.pipeline.laboratory import Material, gather, open_lab
from qconvert.plan import Plan
from qconvert.plan.settings import settings_table
from qconvert.policy import Policy, dump
from qconvert.prepare import raise_opset
from qconvert.preprocess import Preprocess
from qconvert.rewrite.qdq import needed_opset
from qconvert.searching import experiments
from qconvert.searching.cost import cost, works
from qconvert.searching.ladder import DEFAULT_LADDER, Rung, ladder, uniform, usable
from qconvert.searching.search import aim_of
from qconvert.searching.search import search as find
from qconvert.searching.trials import Judge
from qconvert.searching.types import Found, Goal
from qconvert.sensing.analysis import metric_of
from qconvert.sensing.engine import Lab
from qconvert.sensing.journal import Checkpoints, Journal, digest
from qconvert.sensing.scoring import accuracy
from qconvert.sensing.types import Granularity
from qconvert.session import check_opset
from qconvert.targets import get_target
from qconvert.workers import default_workers

PART_SUFFIX = ".search.part"
"""How files of what was run end."""


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


def search(
    model: Path,
    data: Path,
    *,
    wanted: Wanted,
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
) -> Found:
    """Finds a policy of mixed precision that meets a goal, and verifies it on samples that had no part in finding it.

    Args:
        model: The float model.
        data: Samples; half of them search, half are held back.
        wanted: What is searched for.
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
        listener: Hears notes and progress.

    Raises:
        QConvertError: If anything the user can mend stops the work.
    """
    policy, began = policy or Policy(), time.monotonic()
    deadline = None if wanted.time_budget is None else began + wanted.time_budget
    rungs = _ladder(wanted.rungs, policy, listener)
    if policy.recover:
        listener.note("recover: candidates are run without it; quantize applies it to the policy that is found")
    material = gather(
        model, data, policy=policy, calibrated=calibrated, labels=labels, preprocess=preprocess, limit=limit, seed=seed,
        threads=threads, max_memory=max_memory, strict=strict, listener=listener,
    )  # fmt: skip
    plans = _plans(material, policy, rungs, listener)
    lab, _ = open_lab(material, seed=seed, threads=threads, max_memory=max_memory, strict=strict, listener=listener)
    searched, held = _split(lab)
    aim = aim_of(wanted.goal, labelled=material.samples.labelled, float_bytes=file_size(model))
    known = _journal(journal, model, plans, dump(policy), material.samples.description, wanted.by, seed)
    tables = dict(known.read()) if known is not None else {}
    checkpoints = Checkpoints(known, tables)
    judge = Judge(
        searched,
        held,
        material.plan,
        policy,
        _ruled(material, policy),
        rungs,
        works(material.graph, searched.load(0).feeds),
        aim.metric,
        seed,
        (model, threads or default_workers()) if aim.latency is not None else None,
        checkpoints,
        tables,
    )
    exact = judge.float_rows()
    metric_of(aim.metric, exact, searched)  # refuses before the work, not after it
    given = experiments.shares(searched, plans, wanted.by, judge.works)
    try:
        readings, pairs, probes = experiments.run(
            searched, given, tables, deadline=deadline, kept=checkpoints, listener=listener
        )
        found = find(judge, aim, given, readings, deadline=deadline, listener=listener)
    finally:
        checkpoints.keep()
    if known is not None:
        known.drop()
    return Found(
        model.name,
        wanted.goal,
        aim.words,
        aim.metric,
        found.met,
        found.chosen,
        found.candidates,
        found.verified,
        found.choices,
        tuple(rung.name for rung in rungs),
        wanted.by,
        file_size(model),
        cost(None, judge.works, judge.works).bit_operations,
        accuracy(exact)[0],
        pairs,
        probes,
        searched.samples,
        held.samples,
        seed,
        time.monotonic() - began,
        found.notes,
        material.samples.description,
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


def _split(lab: Lab) -> tuple[Lab, Lab]:
    """The samples of the search, the first half in the order of the seed, and those held back."""
    if lab.samples < 2:
        raise DataError("one sample cannot both search and verify", hint="give more samples")
    count = (lab.samples + 1) // 2
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
