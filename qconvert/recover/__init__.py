"""Winning back accuracy after training, without labels: one file a method, table ``METHODS``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from qconvert.errors import PolicyError
from qconvert.recover.adaquant import AdaQuant
from qconvert.recover.adaround import AdaRound
from qconvert.recover.awq import Awq
from qconvert.recover.bias import BiasCorrection
from qconvert.recover.clip import Clipping
from qconvert.recover.equalize import Equalization
from qconvert.recover.gptq import Gptq
from qconvert.recover.hqq import Hqq
from qconvert.recover.lowrank import LowRank
from qconvert.recover.smooth import Smoothing
from qconvert.recover.trials import Recovered, Tried, recover_all, recover_best
from qconvert.recover.types import Context, Method, Rewrite, Rewritten, Step, Work

METHODS: Mapping[str, type[Method]] = {
    method.name: method
    for method in (Equalization, Smoothing, Awq, Hqq, Clipping, Gptq, AdaRound, AdaQuant, BiasCorrection, LowRank)
}

AUTO = "auto"
"""In place of names of methods: those that prove themselves."""

NONE = "none"
"""Likewise: not even those that are applied where no names are given."""


def make_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names with their defaults; all of them for ``auto``, and no one for ``none``.

    Raises:
        PolicyError: If there is none of a name, or ``auto`` or ``none`` is not alone.
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
    chosen = METHODS if AUTO in names else [name for name in dict.fromkeys(names) if name != NONE]
    return [METHODS[name]() for name in chosen]


__all__ = [
    "AUTO",
    "METHODS",
    "NONE",
    "Context",
    "Method",
    "Recovered",
    "Rewrite",
    "Rewritten",
    "Step",
    "Tried",
    "Work",
    "make_methods",
    "recover_all",
    "recover_best",
]
