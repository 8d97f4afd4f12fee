"""Metrics of the user's own: ``module:function``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from qconvert.errors import DataError
from qconvert.sensing.measures import CUSTOM_METRIC, METRICS, Custom


def load_metric(name: str) -> tuple[str, Custom | None]:
    """A metric's name, and the function where it is the user's own; its module may lie in the current folder.

    Raises:
        DataError: If there is no such metric, module or function.
    """
    if name in METRICS:
        return name, None
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        known = ", ".join(METRICS)
        raise DataError(f"--metric: expected one of {known}, or module:function, got '{name}'")
    return CUSTOM_METRIC.name, _checked(name, _function(name, module_name, function_name))


def _function(name: str, module_name: str, function_name: str) -> Any:  # noqa: ANN401 - whatever the user wrote
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # a module of the user may raise anything when it is imported
        reason = str(error) or type(error).__name__
        raise DataError(f"--metric {name}: {reason}", hint="the module must be importable from this folder") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise DataError(f"--metric {name}: '{function_name}' is not a function")
    return found


def _checked(name: str, function: Any) -> Custom:  # noqa: ANN401 - whatever the user wrote
    def metric(before: list[Any], after: list[Any], labels: Any) -> float:  # noqa: ANN401 - labels as the samples have them
        try:
            return float(function(before, after, labels))
        except Exception as error:  # a function of the user may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"--metric {name} fails: {reason}", hint="it gets two lists of arrays and labels, and returns a number"
            ) from error

    return metric
