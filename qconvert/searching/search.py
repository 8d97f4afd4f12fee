"""From readings to the policy that meets a goal: few whole policies are run, and none is believed that was not.

Along the chain of assignments harm falls and cost grows, so the goal is found by bisection, about log2 of its length
whole runs; of an SQNR again, with the step that made the difference taken first. Uniform policies are run too, as
yardsticks. Samples that had no part in it judge what was chosen: where they refuse it, safer ones are tried there, in
steps that double, which is said. The samples of the search may not refuse the safest one: of accuracy a hundred samples
say little. (Simulated by draws from 300 labelled samples, MobileNetV2 with W4A8 and W8A8: bounds of 0.7 to 1.3 points
are met in 80 % of searches, 63 % where they may; policies that miss the bound in truth come of 22 % and 25 %.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from qconvert.listener import Listener
from qconvert.searching.cost import Cost, cost
from qconvert.searching.experiments import Reading, Readings, Shares
from qconvert.searching.front import Chain, Option, chain
from qconvert.searching.ladder import Rung, settle
from qconvert.searching.trials import Judge
from qconvert.searching.types import Candidate, Choice, Goal, Verification
from qconvert.sensing.suggest import Bound

AGAIN = 3
"""Further bisections, each of about log2 of the chain's length whole runs."""


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
        met: Whether it does: of a loss by the samples held back and by all together.
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
    listener.start("whole policies", len(judge.ladder) + run.most)
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
    return Outcome(chosen, met, tuple(ordered), tuple(run.verified), choices, (*run.notes, *run.doubt(chosen)))


def _price(judge: Judge, aim: Aim) -> Callable[[Cost], float]:
    """What orders assignments: bytes moved; where time counts, as much again for bit-operations."""
    whole = cost(None, judge.works, judge.works)
    if aim.latency is None or not whole.bit_operations:
        return lambda one: one.moved
    return lambda one: one.moved / whole.moved + one.bit_operations / whole.bit_operations


@dataclass
class _Search:
    """The state of a search.

    ``seen`` has candidates by their place in the chain, others by name; ``taken`` what each subject takes in them, and
    ``settled`` the rung that its operators are put on.
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
    settled: dict[str, Mapping[str, Rung]] = field(default_factory=dict)
    verified: list[Verification] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def most(self) -> int:
        """How many assignments bisection and verification run at the most."""
        bisections = 2 + AGAIN * (self.aim.harm is not None and self.aim.metric == "sqnr")
        return 1 + bisections * len(self.chain).bit_length()

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
        self.taken[found.name], self.settled[found.name] = taken, rungs
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
        tried: dict[str, Candidate] = {}
        for one in self._proposals():
            tried[one.name] = one
            self.verified.append(self.judge.verify(one, self.aim.harm))
            if self.verified[-1].met:
                break
        if not tried:
            nearest = min(self.seen.values(), key=self.aim.excess)
            self.verified.append(self.judge.verify(nearest, self.aim.harm))
            return nearest, False
        best = min(self.verified, key=lambda one: (not one.met, max(one.harm.value, one.overall)))
        refused = [name for name in tried if name != best.candidate]
        if best.met and refused:
            names = ", ".join(refused)
            self.notes.append(f"the samples held back refused {len(refused)} before this one: {names}")
        return tried[best.candidate], best.met

    def _proposals(self) -> Iterator[Candidate]:
        """The best one by the samples of the search; where harm is bounded, safer and safer ones behind it.

        The safest ends them, whether or not the samples of the search are content with it.
        """
        last = len(self.chain) - 1
        met = [one for one in self.seen.values() if self.aim.met(one)]
        if self.aim.harm is None:
            yield from sorted(met, key=self._worth)[:1]
            return
        best = min(met, key=self._worth) if met else self.at(last)
        yield best
        places = [place for place, one in self.seen.items() if isinstance(place, int) and one is best]
        place = best.place if best.place is not None else min(places, default=last - 1)
        stride = 1
        while place < last:
            place, stride = last if self.over else min(place + stride, last), 2 * stride
            if self.aim.met(self.at(place)) or place == last:
                yield self.at(place)

    def _worth(self, one: Candidate) -> tuple[float, float]:
        """Less is better: what the goal leaves open."""
        return (one.size_bytes, one.bit_operations) if self.aim.harm is not None else (one.harm, one.size_bytes)

    def doubt(self, chosen: Candidate) -> Iterator[str]:
        """What the samples held back leave open of the chosen one."""
        found = next(one for one in self.verified if one.candidate == chosen.name)
        if self.aim.harm is None or found.settled:
            return
        harm, count = found.harm, self.judge.held.samples
        low, high = (-harm.high, -harm.low) if self.aim.metric == "sqnr" else (harm.low, harm.high)
        text = f"not settled at 95 %: {count} samples held back are too few ({low:.1f} to {high:.1f} {harm.unit})"
        if found.needed is None:
            yield f"{text}: as measured the loss is the bound itself"
            return
        total = found.needed * (count + self.judge.lab.samples) / count
        yield f"{text}; about {float(f'{total:.2g}'):.0f} in all would settle it, were the loss as measured"

    def choices(self, chosen: Candidate) -> Iterator[Choice]:
        """The rungs of an assignment."""
        taken, settled = self.taken[chosen.name], self.settled[chosen.name]
        for one in self.shares.subjects:
            found, rung = taken[one.name], settled[one.operators[0]]
            yield Choice(one.name, one.op_type, rung.name, found.sqnr_db, found.saved_bytes)
