"""Names of a package that are imported when they are first used: who runs one command waits for no other's imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module


def imported_late(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """The ``__getattr__`` of a package (PEP 562) whose public names live in these modules."""

    def find(name: str) -> object:
        if name not in homes:
            message = f"module '{package}' has no attribute '{name}'"
            raise AttributeError(message)
        return getattr(import_module(homes[name]), name)

    return find
