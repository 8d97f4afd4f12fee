"""Winning back accuracy after training, without labels: one file a method, table ``METHODS``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import combinations

from qconvert.errors import PolicyError
from qconvert.policy import Policy
from qconvert.recover.adaquant import AdaQuant
from qconvert.recover.adaround import AdaRound
from qconvert.recover.asked import AUTO, NONE, asked_names, asked_only
from qconvert.recover.awq import Awq
from qconvert.recover.bias import BiasCorrection
from qconvert.recover.brecq import Brecq
from qconvert.recover.clip import Clipping
from qconvert.recover.equalize import Equalization
from qconvert.recover.gptq import Gptq
from qconvert.recover.hqq import Hqq
from qconvert.recover.journal import Journal
from qconvert.recover.lowrank import LowRank
from qconvert.recover.qdrop import QDrop
from qconvert.recover.rotate import Rotation
from qconvert.recover.smooth import Smoothing
from qconvert.recover.trials import Recovered, Tried, recover_all, recover_best, win_back
from qconvert.recover.types import Context, Method, Rewrite, Rewritten, Step, Work

METHODS: Mapping[str, type[Method]] = {
    method.name: method
    for method in (
        BiasCorrection,
        Hqq,
        LowRank,
        Equalization,
        Rotation,
        Smoothing,
        Awq,
        Gptq,
        AdaRound,
        AdaQuant,
        Clipping,
        Brecq,
        QDrop,
    )
}
"""By name; in this order ``auto`` tries them: what takes long last, and of that what usually gives most first."""


def make_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names with their defaults; all usual ones for ``auto``, and no one for ``none``.

    Raises:
        PolicyError: If there is none of a name, ``auto`` or ``none`` is not alone, or two decide the same.
    """
    known = (*METHODS, AUTO, NONE)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise PolicyError(
                f"recover: expected one of {', '.join(known)}, got '{name}'",
                hint=f"did you mean '{close[0]}'?" if close else "",
            )
    alone = {AUTO: "chooses among all methods", NONE: "leaves all methods out"}
    for name in names if len(set(names)) > 1 else ():
        if name in alone:
            raise PolicyError(f"recover: '{name}' {alone[name]}", hint="leave the other names out")
    methods = _made(names)
    for one, other in combinations(methods, 2) if AUTO not in names else ():
        if both := one.decides & other.decides:
            raise PolicyError(
                f"recover: '{one.name}' and '{other.name}' both decide {' and '.join(sorted(both))}",
                hint="leave one of them out",
            )
    return methods


def asked_methods(policy: Policy) -> list[Method]:
    """The methods that a policy or one of its rules names.

    Raises:
        PolicyError: See ``make_methods``; what two rules name for different operators may decide the same.
    """
    for names in (policy.recover, *(rule.recover or () for rule in policy.rules)):
        make_methods(names)
    return _made(asked_names(policy))


def _made(names: Sequence[str]) -> list[Method]:
    if AUTO in names:
        return [method for method in (kind() for kind in METHODS.values()) if method.usual]
    return [METHODS[name]() for name in dict.fromkeys(names) if name != NONE]


__all__ = [
    "AUTO",
    "METHODS",
    "NONE",
    "Context",
    "Journal",
    "Method",
    "Recovered",
    "Rewrite",
    "Rewritten",
    "Step",
    "Tried",
    "Work",
    "asked_methods",
    "asked_names",
    "asked_only",
    "make_methods",
    "recover_all",
    "recover_best",
    "win_back",
]
