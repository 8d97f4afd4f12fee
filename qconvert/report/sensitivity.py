"""The tables of ``qconvert sensitivity``, fit for 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qconvert.report import tables, words

if TYPE_CHECKING:
    from qconvert.sensing.types import Effect, Estimate, Scores, Sensitivity, Suggestion

TITLES: Mapping[str, str] = {
    "sqnr": "SQNR",
    "cosine": "1 - cosine",
    "kl": "KL",
    "agreement": "disagree",
    "top1": "top-1 drop",
    "top5": "top-5 drop",
    "custom": "loss",
}
"""What the column of a metric is called."""

EXPERIMENTS = {
    "only": "one {} quantized, the rest float",
    "all-but": "one {} float, the rest quantized",
    "local": "the output of each {} alone, given float inputs",
}


def show(result: Sensitivity, *, top: int) -> None:
    """Facts, the ranking and what bears on it, on stdout."""
    found = [_facts(result), _ranking(result, top=top)]
    if result.suggestion is not None:
        found.append(_suggestion(result.suggestion))
    more = len(result.rows) - top
    lines = [f"{more} more (--top 0 shows all)"] if more > 0 else []
    lines += [*_equals(result.rows[:top]), *result.notes]
    tables.show(*found, *([Text("\n".join(lines))] if lines else []))


def _facts(result: Sensitivity) -> Table:
    accuracy = (
        [("float top-1", f"{result.float_top1:.2f} % ({result.samples} samples)")]
        if result.float_top1 is not None
        else []
    )
    return tables.facts(
        ("model", result.model),
        ("experiment", EXPERIMENTS[result.mode].format(result.granularity)),
        *accuracy,
        ("all quantized", summary(result.quantized)),
    )


def summary(scores: Scores) -> str:
    """The scores of a model in a line, with intervals."""
    parts = [f"SQNR {_range(scores.sqnr_db, 1)}"]
    if scores.agreement is not None:
        parts.append(f"argmax agrees {scores.agreement.value:.1f} %")
    if scores.top1_drop is not None:
        parts.append(f"top-1 drop {_range(scores.top1_drop, 1)}")
    return ", ".join(parts)


def _range(one: Estimate, digits: int) -> str:
    """``17.9 dB [17.4, 18.4]``."""
    unit = f" {one.unit}" if one.unit else ""
    return f"{one.value:.{digits}f}{unit} [{one.low:.{digits}f}, {one.high:.{digits}f}]"


def _ranking(result: Sensitivity, *, top: int) -> Table:
    unit = result.rows[0].harm.unit if result.rows else ""
    negated = result.metric == "sqnr" and result.mode != "all-but"
    title = TITLES[result.metric] if result.mode != "all-but" else f"{TITLES[result.metric]} gain"
    if result.metric == "sqnr" and result.mode == "all-but":
        title = "SQNR gain"
    heads = ["", result.granularity, "type", f"{title}{f', {unit}' if unit else ''}", "n"]
    heads += ["accumulated"] if result.mode == "local" else []
    table = tables.table(*heads, numbers=(0, *range(3, len(heads))))
    for place, row in enumerate(result.rows[:top], 1):
        cells = [str(place), escape(row.subject), escape(row.op_type), _cell(row.harm, negated=negated)]
        cells.append(str(row.samples))
        if result.mode == "local" and row.accumulated is not None:
            cells.append(f"{row.accumulated.value:.1f} dB")
        table.add_row(*cells)
    return table


def _cell(harm: Estimate, *, negated: bool) -> str:
    value, low, high = (-harm.value, -harm.high, -harm.low) if negated else (harm.value, harm.low, harm.high)
    if harm.unit in {"dB", "points", "%"}:
        return f"{value:.2f} [{low:.2f}, {high:.2f}]"
    middle, least, most = (words.amount(number, "", digits=4) for number in (value, low, high))
    return f"{middle} [{least}, {most}]"


def _equals(rows: Sequence[Effect]) -> list[str]:
    """Which neighbours the samples do not tell apart, and what does no harm that they show."""
    places = [str(place) for place, row in enumerate(rows[:-1], 1) if not row.distinguishable]
    found = [f"not distinguishable from the next: {', '.join(places)}"] if places else []
    harmless = sum(not row.harmful for row in rows)
    return [*found, *([f"{harmless} of those shown do no harm that the samples can tell"] if harmless else [])]


def _suggestion(found: Suggestion) -> Table:
    what = "stay float" if found.remedy == "float" else "in 16 bits"
    names = ", ".join(found.operators) or "none needed"
    after = summary(found.after) if found.after is not None else "everything stays float"
    verdict = "met" if found.met else "not met, not even with all that harm"
    return tables.facts(
        ("bound", f"{found.bound}: {verdict} on {tables.many(found.verified_on, 'sample')}"),
        (what, names),
        ("with that", after),
    )
