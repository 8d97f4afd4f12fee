"""From rows of numbers to what a person reads: scores with intervals, and effects in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qconvert.intervals import drawn, interval, is_apart
from qconvert.metrics import EXACT_DB
from qconvert.sensing.measures import (
    CUSTOM_METRIC,
    ITEMS,
    ITEMS5,
    METRICS,
    ONES,
    ROWS,
    TOP1_FLOAT,
    TOP5_FLOAT,
    Floats,
    Metric,
)
from qconvert.sensing.ranking import Harms
from qconvert.sensing.subjects import Subject
from qconvert.sensing.types import Effect, Estimate, OutputScores, Scores


def scores(rows: Floats, outputs: Sequence[str], *, seed: int, custom: bool = False) -> Scores:
    """What the rows ``[samples, outputs + 1, columns]`` of a model say."""
    sums = drawn(rows, seed)
    total = sums[0]

    def of(metric: Metric, part: Floats = sums) -> Estimate:
        return estimate(metric.value(part), metric.unit, len(rows))

    def some(name: str, present: float, part: Floats = sums) -> Estimate | None:
        return of(METRICS[name], part) if present else None

    each = []
    for index, name in enumerate(outputs):
        if total[index, ONES]:
            part, classes = sums[:, [index, -1]], total[index, ROWS]
            kl, agreement = some("kl", classes, part), some("agreement", classes, part)
            each.append(OutputScores(name, of(METRICS["sqnr"], part), of(METRICS["cosine"], part), kl, agreement))
    classes = total[:-1, ROWS].sum()
    return Scores(
        sqnr_db=of(METRICS["sqnr"]),
        cosine=of(METRICS["cosine"]),
        kl=some("kl", classes),
        agreement=some("agreement", classes),
        top1_drop=some("top1", total[-1, ITEMS]),
        top5_drop=some("top5", total[-1, ITEMS5]),
        custom=of(CUSTOM_METRIC) if custom else None,
        outputs=tuple(each),
    )


def estimate(values: Floats, unit: str, samples: int) -> Estimate:
    """A value as seen, which comes first, with the interval of its resamples; a few samples may leave it outside."""
    value, (low, high) = float(values[0]), interval(values[1:])
    return Estimate(value, min(low, value), max(high, value), samples, unit)


def accuracy(rows: Floats) -> tuple[float | None, float | None]:
    """Top-1 and top-5 accuracy of the float model, percent; None without labels."""
    total = rows.sum(0)[-1]
    pairs = ((total[TOP1_FLOAT], total[ITEMS]), (total[TOP5_FLOAT], total[ITEMS5]))
    top1, top5 = (float(100 * hit / items) if items else None for hit, items in pairs)
    return top1, top5


def effects(
    ranked: Sequence[Subject],
    tables: Mapping[str, Floats],
    outputs: Sequence[str],
    *,
    metric: Metric,
    harms: Harms,
    seed: int,
    change: bool,
    custom: bool,
    ends: Mapping[str, Sequence[str]] | None = None,
    accumulated: Mapping[str, Estimate] | None = None,
) -> tuple[Effect, ...]:
    """The rows of a result.

    Args:
        ranked: Subjects that were run, most harmful first.
        tables: What was seen of each.
        outputs: Names of the outputs.
        metric: What ranks.
        harms: Harm in every resample.
        seed: Of the resamples.
        change: Whether harm is a change of the metric (mode all-but), not its value.
        custom: Whether the user's metric was computed.
        ends: Mode local: the values compared, by subject, in place of the outputs.
        accumulated: Mode local: SQNR in the fully quantized model.
    """
    found = []
    for place, subject in enumerate(ranked):
        rows = tables[subject.name]
        harm = estimate(harms(rows), metric.unit, len(rows))
        follower = tables[ranked[place + 1].name] if place + 1 < len(ranked) else None
        named = ends[subject.name] if ends is not None else outputs
        found.append(
            Effect(
                subject.name,
                subject.op_type,
                subject.operators,
                subject.order,
                scores(rows, named, seed=seed, custom=custom),
                harm,
                accumulated[subject.name] if accumulated is not None else None,
                len(rows),
                harm.low > (-EXACT_DB if metric.name == "sqnr" and not change else 0),
                follower is not None and _apart(rows, follower, harms),
                subject.saved_bytes,
            )
        )
    return tuple(found)


def _apart(rows: Floats, follower: Floats, harms: Harms) -> bool:
    common = min(len(rows), len(follower))
    difference = harms(rows[:common])[1:] - harms(follower[:common])[1:]
    return common > 1 and is_apart(difference)


def sqnr_of(rows: Floats, seed: int) -> Estimate:
    """SQNR with its interval."""
    metric = METRICS["sqnr"]
    return estimate(metric.value(drawn(rows, seed)), metric.unit, len(rows))
