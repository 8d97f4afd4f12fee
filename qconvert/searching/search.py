"""From readings to the policy that meets a goal: few whole policies are run, and none is believed that was not.

Along the chain of assignments harm falls and cost grows, so the goal is found by bisection, about log2 of its length
whole runs; of an SQNR again, with the step that made the difference taken first. Uniform policies are run too, as
yardsticks. What is chosen must hold on samples that had no part in it; where it does not, the next safer ones are tried
there, which is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from qconvert.listener import Listener
from qconvert.searching.cost import Cost, cost
from qconvert.searching.experiments import Reading, Readings, Shares
from qconvert.searching.front import Chain, Option, chain
from qconvert.searching.ladder import settle
from qconvert.searching.trials import Judge
from qconvert.searching.types import Candidate, Choice, Goal, Verification
from qconvert.sensing.suggest import Bound

AGAIN = 3
"""Further bisections, each of about log2 of the chain's length whole runs."""

TRIES = 8
"""Candidates that the samples held back may refuse: each try makes them a little less of a proof."""


@dataclass(frozen=True)
class Aim:
    """A goal on a model: one of the three limits.

    Attributes:
        words: It, in words.
        metric: What harm is measured by.
        harm: The most that is allowed, or None.
        size: The most bytes, or None.
        latency: The most milliseconds, or share of the float model's, or None.
        relative: Whether it is that share.
    """

    words: str
    metric: str = "sqnr"
    harm: float | None = None
    size: float | None = None
    latency: float | None = None
    relative: bool = False

    def excess(self, one: Candidate) -> float:
        """By how much the samples of the search say that it is missed; at most 0 where it is met."""
        if self.harm is not None:
            return one.harm - self.harm
        if self.size is not None:
            return one.size_bytes - self.size
        if one.times is None or self.latency is None:
            return 0.0
        whole = one.times.float_model.median_ms if self.relative else 1.0
        return one.times.own.median_ms - self.latency * whole

    def met(self, one: Candidate) -> bool:
        """Whether it is met on them."""
        return self.excess(one) <= 0


def aim_of(goal: Goal, *, labelled: bool, float_bytes: int) -> Aim:
    """The goal on a model."""
    if goal.max_size is not None:
        most = goal.max_size.of(float_bytes)
        text = f"{most / 1e6:.4g} MB" if most >= 1e6 else f"{most / 1e3:.4g} kB"
        return Aim(f"size <= {text} ({100 * most / float_bytes:.3g} % of the float model's)", size=most)
    if goal.max_latency is not None:
        limit = goal.max_latency
        words = f"latency <= {limit.value:g} {'of the float model' if limit.relative else 'ms'}"
        return Aim(words, latency=limit.value, relative=limit.relative)
    metric, most, words = Bound(goal.max_drop, goal.min_sqnr).named(labelled=labelled)
    return Aim(words, metric, harm=most)


@dataclass(frozen=True)
class Outcome:
    """How a search ended.

    Attributes:
        chosen: The policy that meets the goal; where none does, the nearest.
        met: Whether it does, on the samples of the search and on those held back.
        candidates: All that were run, smallest first.
        verified: What was tried on the samples held back; the chosen one is among it.
        choices: The rungs of the chosen assignment; empty where it is a uniform one.
        notes: What the reader should know.
    """

    chosen: Candidate
    met: bool
    candidates: tuple[Candidate, ...]
    verified: tuple[Verification, ...]
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]


def search(
    judge: Judge, aim: Aim, shares: Shares, readings: Readings, *, deadline: float | None, listener: Listener
) -> Outcome:
    """Finds the cheapest policy that harms no more than is allowed, or the least harmful one within a budget.

    Args:
        judge: What runs whole policies.
        aim: The goal.
        shares: What has a rung of its own.
        readings: What each does alone on its rungs.
        deadline: When no other assignment is tried, on the clock of ``time.monotonic``.
        listener: Hears progress.

    Raises:
        ModelError: If onnxruntime refuses a model.
    """
    price = _price(judge, aim)
    options = {name: [one.option(price) for one in found] for name, found in readings.items()}
    run = _Search(judge, aim, shares, readings, chain(options), deadline, listener)
    listener.start("whole policies", len(judge.ladder) + len(run.chain).bit_length())
    try:
        run.yardsticks()
        run.bisect()
        run.polish()
        chosen, met = run.confirm()
    finally:
        listener.finish()
    unique = {one.name: one for one in run.seen.values()}
    ordered = sorted(unique.values(), key=lambda one: (one.size_bytes, one.harm))
    choices = tuple(run.choices(chosen)) if chosen.place is not None else ()
    return Outcome(chosen, met, tuple(ordered), tuple(run.verified), choices, tuple(run.notes))


def _price(judge: Judge, aim: Aim) -> Callable[[Cost], float]:
    """What orders assignments: bytes moved; where time counts, as much again for bit-operations."""
    whole = cost(None, judge.works, judge.works)
    if aim.latency is None or not whole.bit_operations:
        return lambda one: one.moved
    return lambda one: one.moved / whole.moved + one.bit_operations / whole.bit_operations


@dataclass
class _Search:
    """The state of a search.

    ``seen`` has candidates by their place in the chain, others by name; ``taken`` what each subject takes in them.
    """

    judge: Judge
    aim: Aim
    shares: Shares
    readings: Readings
    chain: Chain
    deadline: float | None
    listener: Listener
    seen: dict[int | str, Candidate] = field(default_factory=dict)
    taken: dict[str, Mapping[str, Reading]] = field(default_factory=dict)
    verified: list[Verification] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether the time is spent."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def yardsticks(self) -> None:
        """Runs the uniform policies."""
        names = [name for one in self.shares.subjects for name in one.operators]
        for rung in self.judge.ladder:
            if rung.weights is not None:
                self.seen[rung.name] = self.judge.uniform(rung, names)
                self.listener.advance(len(self.seen))

    def at(self, place: int) -> Candidate:
        """The assignment at a place of the chain, run; where it is a uniform one, that."""
        if place not in self.seen:
            self.seen[place] = self._run(f"{place}/{len(self.chain) - 1}", place, self.chain[place])
        return self.seen[place]

    def _run(self, name: str, place: int, assignment: Mapping[str, Option]) -> Candidate:
        by_name = {subject: {one.name: one for one in found} for subject, found in self.readings.items()}
        taken = {subject: by_name[subject][option.name] for subject, option in assignment.items()}
        rungs = settle({name: taken[one.name].rungs for one in self.shares.subjects for name in one.operators})
        alike = next(iter(rungs.values())).name if len(set(rungs.values())) == 1 else ""
        found = self.seen.get(alike) or self.judge.mixed(name, place, rungs)
        self.taken[found.name] = taken
        self.listener.advance(len(self.seen) + 1)
        return found

    def bisect(self) -> None:
        """Runs the places around which the goal begins, or ceases, to be met."""
        last = len(self.chain) - 1
        least, most = (last, -1) if self.aim.harm is not None else (0, last + 1)
        if not self.aim.met(self.at(least)):  # the safest, or the cheapest
            return
        while abs(least - most) > 1:
            if self.over:
                self.notes.append("the time budget ended: a better assignment may lie between those that were run")
                return
            middle = (least + most) // 2
            least, most = (middle, most) if self.aim.met(self.at(middle)) else (least, middle)

    def polish(self) -> None:
        """Bisects again with the step that made the difference taken first: what is alone harmless may not be so here.

        Only by SQNR. Where labels are counted, that would pick the luckiest of many almost equal assignments (measured
        on MobileNetV2: the samples held back refused all that were found so).
        """
        met = [place for place, one in self.seen.items() if isinstance(place, int) and self.aim.met(one)]
        if self.aim.harm is None or self.aim.metric != "sqnr" or not met:
            return
        high = min(met)
        first: tuple[int, ...] = ()
        for _ in range(AGAIN):
            if high < 2:
                return
            first, least, most = (*first, high - 1), high - 1, -1
            while least - most > 1 and not self.over:
                middle = (least + most) // 2
                found = self._with(middle, first)
                least, most = (middle, most) if self.aim.met(found) else (least, middle)
            if least == high - 1:
                return
            high = least

    def _with(self, place: int, first: tuple[int, ...]) -> Candidate:
        """The assignment at a place of the chain with some later steps, run."""
        steps = [self.chain.steps[number] for number in (*range(place), *sorted(first))]
        later = ", ".join(str(number + 1) for number in sorted(first))
        name = f"{place}/{len(self.chain) - 1} with {later}"
        self.seen[name] = self._run(name, place, {**self.chain.start, **{one.subject: one.option for one in steps}})
        return self.seen[name]

    def confirm(self) -> tuple[Candidate, bool]:
        """The best candidate that the samples held back confirm, and whether there is one; else the nearest."""
        refused: dict[str, Candidate] = {}
        for one in self._proposals():
            self.verified.append(self.judge.verify(one, self.aim.harm))
            if self.verified[-1].met:
                if refused:
                    names = ", ".join(refused)
                    self.notes.append(f"the samples held back refused {len(refused)} before this one: {names}")
                return one, True
            refused[one.name] = one
        if refused:
            return refused[min(self.verified, key=lambda one: one.harm).candidate], False
        nearest = min(self.seen.values(), key=self.aim.excess)
        self.verified.append(self.judge.verify(nearest, self.aim.harm))
        return nearest, False

    def _proposals(self) -> Iterator[Candidate]:
        """Those that meet the goal on the samples of the search, best first; each refused one brings up a safer one."""
        refused: set[str] = set()
        stride = 1
        while len(refused) < TRIES:
            met = [one for one in self.seen.values() if self.aim.met(one) and one.name not in refused]
            if not met:
                return
            best = min(met, key=self._worth)
            yield best
            refused.add(best.name)
            place = best.place if best.place is not None and self.aim.harm is not None else len(self.chain)
            while (place := place + stride) < len(self.chain) and not self.over:
                stride *= 2
                if self.aim.met(self.at(place)):
                    break

    def _worth(self, one: Candidate) -> tuple[float, float]:
        """Less is better: what the goal leaves open."""
        return (one.size_bytes, one.bit_operations) if self.aim.harm is not None else (one.harm, one.size_bytes)

    def choices(self, chosen: Candidate) -> Iterator[Choice]:
        """The rungs of an assignment."""
        taken = self.taken[chosen.name]
        for one in self.shares.subjects:
            found = taken[one.name]
            yield Choice(one.name, one.op_type, found.name, found.sqnr_db, found.saved_bytes)
