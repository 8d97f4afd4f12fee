"""Whole policies, run: what a candidate harms, how large it is, how long it takes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert.calibration import Calibration
from qconvert.comparison import file_size, latencies
from qconvert.errors import PlanError
from qconvert.graph import write_model
from qconvert.plan import Plan
from qconvert.policy import Policy, dump, loads
from qconvert.provenance import record
from qconvert.rewrite.forms import Written
from qconvert.searching.certainty import needed
from qconvert.searching.cost import Work, cost
from qconvert.searching.ladder import Rung, mixed, uniform
from qconvert.searching.types import Candidate, Times, Verification
from qconvert.sensing.engine import Lab, Tables, Variant, extend
from qconvert.sensing.journal import Checkpoints
from qconvert.sensing.measures import METRICS, Floats
from qconvert.sensing.ranking import harms_of
from qconvert.sensing.scoring import estimate, scores

RUNS = 30
"""Timed runs of each model, in turn with the float one."""


@dataclass(frozen=True)
class Judge:
    """What whole policies are run with.

    Attributes:
        model: The float model's file.
        calibrated: Its statistics.
        lab: Shared by all, with the samples of the search.
        held: The same with the samples held back.
        replan: The plan of a policy.
        policy: What rungs are put into.
        ruled: By operator the number of the policy's rule that decides it.
        ladder: The rungs.
        works: What operators do.
        metric: Harm by it: a name of ``METRICS``.
        seed: Of resamples.
        threads: Of a run, where latency counts; else None.
        kept: Told that there are more rows; keeps them where somebody asked for that.
        tables: Rows of everything that was run.
        plans: Their plans; None where nothing is quantized.
    """

    model: Path
    calibrated: Calibration
    lab: Lab
    held: Lab
    replan: Callable[[Policy], Plan]
    policy: Policy
    ruled: Mapping[str, int]
    ladder: tuple[Rung, ...]
    works: Mapping[str, Work]
    metric: str
    seed: int
    threads: int | None
    kept: Checkpoints
    tables: Tables
    plans: dict[str, Plan | None] = field(default_factory=dict)

    def float_rows(self) -> Floats:
        """Rows of the float model on the samples of the search."""
        extend(self.lab, self.lab.base(None), [Variant("", None)], self.tables, self.lab.samples)
        return self.tables[""]

    def uniform(self, rung: Rung, operators: Sequence[str]) -> Candidate:
        """Everything on one rung."""
        text = dump(uniform(self.policy, rung))
        return self._candidate(rung.name, None, ((rung.name, len(operators)),), text)

    def mixed(self, name: str, place: int, rungs: Mapping[str, Rung]) -> Candidate:
        """Each operator on its rung."""
        text = dump(mixed(self.policy, rungs, self.ruled))
        counts = tuple((rung.name, sum(one == rung for one in rungs.values())) for rung in self.ladder)
        return self._candidate(name, place, tuple(one for one in counts if one[1]), text)

    def _candidate(self, name: str, place: int | None, rungs: tuple[tuple[str, int], ...], text: str) -> Candidate:
        rows = self._rows(text, self.lab, "search")
        size, times = self._written(text)
        found = scores(rows, self.lab.outputs, seed=self.seed)
        work = cost(self.plan(text), self.works, self.works).bit_operations
        return Candidate(name, place, rungs, text, size, work, found, self._harm(rows), times)

    def verify(self, one: Candidate, limit: float | None) -> Verification:
        """Runs a candidate on the samples held back; without a limit of harm they cannot fail.

        What all samples together refute is not met either: those of the search may have been the unlucky ones.
        """
        rows = self._rows(one.policy, self.held, "held back")
        metric = METRICS[self.metric]
        harm = estimate(harms_of(metric, self.seed, None)(rows), metric.unit, len(rows))
        overall = self._harm(np.concatenate([self._rows(one.policy, self.lab, "search"), rows]))
        met = limit is None or max(harm.value, overall) <= limit
        enough = None if limit is None else needed(harm, limit)
        return Verification(one.name, scores(rows, self.held.outputs, seed=self.seed), harm, overall, met, enough)

    def _harm(self, rows: Floats) -> float:
        return float(METRICS[self.metric].harm(rows.sum(0)))

    def plan(self, text: str) -> Plan | None:
        """Of the policy as it is written, read again; None where it leaves nothing to quantize."""
        if text not in self.plans:
            try:
                self.plans[text] = self.replan(loads(text))
            except PlanError:
                self.plans[text] = None
        return self.plans[text]

    def _rows(self, text: str, lab: Lab, part: str) -> Floats:
        name = f"{part} {hashlib.sha256(text.encode()).hexdigest()}"
        extend(lab, lab.base(None), [Variant(name, self.plan(text))], self.tables, lab.samples)
        self.kept()
        return self.tables[name]

    def _written(self, text: str) -> tuple[int, Times | None]:
        """Bytes of the file, and the time of a run beside the float model's, where that counts."""
        with tempfile.TemporaryDirectory(prefix="qconvert.") as folder:
            path = Path(folder) / "model.onnx"
            write_model(self._recorded(self.plan(text)), path)
            if self.threads is None:
                return file_size(path), None
            pair = tuple((model, self.lab.load(0).feeds) for model in (self.model, path))
            before, after = latencies(pair, provider="cpu", threads=self.threads, runs=RUNS)
            return file_size(path), Times(before, after)

    def _recorded(self, plan: Plan | None) -> ir.Model:
        """The model of a plan as ``quantize`` writes it, whose size is bounded."""
        written = Written(self.lab.written(plan))
        if plan is not None:
            record(written, self.model, self.calibrated, plan, mode="static", form="qdq")
        return written.model
