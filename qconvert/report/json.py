"""Machine-readable results. Every number's unit is in its key."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qconvert.numerics import QuantParams

if TYPE_CHECKING:
    from qconvert.comparison import Evaluation, Side
    from qconvert.inspection import Inspection
    from qconvert.pipeline import Proof, Quantized, Searched
    from qconvert.plan import Plan


def plain(value: Any) -> Any:  # noqa: ANN401, PLR0911 - any value of the library in, any JSON value out
    """A value of the library as JSON values; a float that is not finite becomes null."""
    if isinstance(value, QuantParams):
        return _params(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_json(value: Any) -> None:  # noqa: ANN401 - see plain
    """Prints one JSON value on stdout."""
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def _params(params: QuantParams) -> dict[str, Any]:
    return {
        "dtype": params.dtype.name,
        "axis": params.axis,
        "block_size": params.block_size,
        "scale": params.scale.astype(float).tolist(),
        "zero_point": params.zero_point.tolist(),
    }


def plan(value: Plan) -> dict[str, Any]:
    """A plan, every decision with its reason."""
    found: dict[str, Any] = plain(value)
    found["integer"] = [{"operator": name, "op_type": kind} for name, kind in value.integer]
    return found


def quantized(value: Quantized) -> dict[str, Any]:
    """What quantize wrote and saw."""
    return {
        "model": value.model.as_posix(),
        "output": value.path.as_posix(),
        "size_before_bytes": value.size_before,
        "size_after_bytes": value.size_after,
        "proof": proof(value.proof),
        "interface": plain(value.interface),
        "plan": plan(value.plan),
    }


def searched(value: Searched) -> dict[str, Any]:
    """What a search found, and the model that it wrote."""
    written = None if value.quantized is None else quantized(value.quantized)
    return {**plain(value.found), "quantized": written}


def proof(value: Proof) -> dict[str, Any]:
    """A proof, with the kernels counted."""
    found: dict[str, Any] = plain(value)
    return {**found, **_kernel_counts(found["kernels"])}


def _kernel_counts(kernels: list[dict[str, Any]]) -> dict[str, int]:
    integer = sum(kernel["integer"] for kernel in kernels)
    return {"heavy_integer": integer, "heavy_float": len(kernels) - integer}


def evaluation(value: Evaluation) -> dict[str, Any]:
    """A comparison of two models."""
    found: dict[str, Any] = plain(value)
    for name, side in (("reference", value.reference), ("candidate", value.candidate)):
        found[name] = _side(side)
    return found


def _side(side: Side) -> dict[str, Any]:
    found: dict[str, Any] = plain(side)
    return {**found, **_kernel_counts(found["kernels"])}


def inspection(value: Inspection) -> dict[str, Any]:
    """What is in a model and what would be quantized."""
    placement = value.placement
    return {
        "path": value.path.as_posix(),
        "size_bytes": value.size_bytes,
        "opset": value.opset,
        "inputs": plain(value.inputs),
        "outputs": plain(value.outputs),
        "operators": dict(value.operators),
        "weights": [{"dtype": dtype, "tensors": count, "bytes": size} for dtype, count, size in value.weights],
        "preparation": list(value.notes),
        "target": value.target.name,
        "integer": [{"operator": op.name, "op_type": op.op_type} for op in placement.integer.values()],
        "float": plain(placement.floats),
        "values": [{"value": name, "reason": placement.why[name]} for name in placement.values],
        "plan": None if value.plan is None else plan(value.plan),
    }
