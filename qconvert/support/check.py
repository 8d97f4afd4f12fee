"""Refusing what is no supported cell before any work begins, with the nearest that is."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import asdict, replace

from qconvert.errors import TargetError
from qconvert.plan.dynamic import DTYPES
from qconvert.plan.types import ActivationScheme
from qconvert.policy import Policy, Scheme
from qconvert.rewrite.forms import Form, check_form
from qconvert.support.cells import FLOAT, Cell, cells, refusal, usual
from qconvert.targets import TARGETS, Mode, Target, get_target

_COSTS = {
    "group_size": 1,
    "scheme": 2,
    "activations": 3,
    "weights": 3,
    "activation_scheme": 3,
    "input_type": 4,
    "output_type": 4,
    "format": 5,
    "mode": 9,
    "target": 12,
}
"""How far a cell lies from one that differs in an attribute."""


def nearest(cell: Cell, given: AbstractSet[str]) -> Cell:
    """The supported cell that differs least in what was asked for; of equals the first.

    Args:
        cell: What was asked for.
        given: The attributes that were; others may become what is usual in the other cell.
    """
    best, least = cell, sum(_COSTS.values()) + 1
    for name in dict.fromkeys((cell.target, *TARGETS)):
        for other in cells(TARGETS[name]):
            any_size = "group_size" in given and other.scheme == "per-group" and other.group_size is None
            found = replace(other, group_size=cell.group_size) if any_size else other
            distance = sum(_COSTS[key] for key in _changes(found, cell, given))
            if distance < least:
                best, least = found, distance
    return best


def _changes(near: Cell, cell: Cell, given: AbstractSet[str]) -> frozenset[str]:
    """The attributes to be changed for another cell: those that were given, or that are not the usual ones there."""
    expected = usual(get_target(near.target), near.mode)
    fixed = given | {"target", "mode"}
    differ = (key for key in _COSTS if getattr(near, key) != getattr(cell, key))
    return frozenset(key for key in differ if key in fixed or getattr(near, key) != expected[key])


def check(
    policy: Policy, mode: Mode, form: Form | None = None, *, activation_scheme: ActivationScheme = "per-tensor"
) -> None:
    """Refuses what a policy asks for where that is no supported cell, before any work begins.

    Rules are compared with the target alone: what a format cannot hold of single operators, its writer says or leaves
    float.

    Args:
        policy: Its target, defaults and rules. What it leaves open is the target's.
        mode: When activations are quantized.
        form: What file is written.
        activation_scheme: Which activations share a scale at run time.

    Raises:
        TargetError: If it is none; names the place, the cell, the reason and the nearest supported cell.
        PlanError: If the form has options of another one.
    """
    form, base = form or Form(), policy.defaults
    check_form(form)
    target = get_target(policy.target)
    places = [("", base.weights, base.activations, form)]
    for rule in policy.rules:
        if not rule.float:
            schemes = rule.weights.over(base.weights), rule.activations.over(base.activations)
            places.append((f"{rule.place}: ", *schemes, Form()))
    for place, weights, activations, held in places:
        cell, given = _asked(
            target,
            mode=mode,
            form=held,
            weights=weights,
            activations=activations,
            activation_scheme=activation_scheme,
        )
        why = refusal(cell)
        if why:
            near = nearest(cell, given)
            hint = f"nearest: {_typed(near, _changes(near, cell, given))} ('qconvert formats' shows all)"
            raise TargetError(f"{place}{_typed(cell, given)}: {why}", hint=hint)


def _asked(
    target: Target,
    *,
    mode: Mode,
    form: Form,
    weights: Scheme,
    activations: Scheme,
    activation_scheme: ActivationScheme,
) -> tuple[Cell, frozenset[str]]:
    """The cell, and the attributes of it that someone wrote."""
    found = dict(usual(target if mode in target.modes else TARGETS["ort-cpu"], mode))
    written = {
        "target": target.name,
        "mode": None if mode == "static" else mode,
        "format": None if form.format == "qdq" else form.format,
        "weights": weights.dtype,
        "activations": None if mode == "weight-only" else activations.dtype,
        "scheme": weights.scheme,
        "group_size": weights.group_size,
        "activation_scheme": None if activation_scheme == "per-tensor" else activation_scheme,
        "input_type": None if form.input_type == FLOAT else form.input_type,
        "output_type": None if form.output_type == FLOAT else form.output_type,
    }
    given = {name: value for name, value in written.items() if value is not None}
    if mode == "dynamic":
        found["activations"] = DTYPES[activation_scheme]
    return Cell(**{**found, "target": target.name, "mode": mode, **given}), frozenset(given)


def _typed(cell: Cell, names: AbstractSet[str]) -> str:
    """Attributes of a cell as options, in their order."""
    values = {name: value for name, value in asdict(cell).items() if name in names and value is not None}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())
