"""Which methods a policy asks for, and for which operators."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from qconvert.graph import operators
from qconvert.plan.settings import settings_table
from qconvert.policy import Policy
from qconvert.targets import get_target

AUTO = "auto"
"""In place of names of methods: those that prove themselves."""

NONE = "none"
"""Likewise: not even those that are applied where no names are given."""


def asked_names(policy: Policy) -> tuple[str, ...]:
    """The names that the policy or one of its rules gives; ``auto`` alone where it is among them."""
    by_rule = [name for rule in policy.rules for name in rule.recover or () if name != NONE]
    names = tuple(dict.fromkeys([*policy.recover, *by_rule]))
    if AUTO in by_rule or (AUTO in names and by_rule):
        return (AUTO,)
    return tuple(name for name in names if name != NONE) if by_rule else names


def asked_only(policy: Policy, graph: ir.Model) -> dict[str, Collection[str]]:
    """The methods of the operators of a graph that do not get all, by name."""
    if all(rule.recover is None for rule in policy.rules):
        return {}
    target = get_target(policy.target)
    rows = settings_table(policy, tuple(operators(graph)), target, complete=lambda settings, _: settings).rows
    return {name: settings.recover for name, settings in rows.items() if AUTO not in settings.recover}
