"""onnxruntime's calibration JSON, as ``quantize_static(calibration_cache_path=...)`` reads it (onnxruntime 1.31).

    {"CLS": "TensorsData", "data": {"image": {"lowest": -1.0, "highest": 1.0, "CLS": "TensorData"}},
     "calibration_method": {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"}, "smooth_quant": false}

The method is written as MinMax, quantize_static's default, which takes the ranges as they are. Read is also the bare
``data`` mapping, which onnxruntime's ``write_calibration_table`` writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qconvert.numerics import Range


def dump(ranges: Mapping[str, Range]) -> str:
    """The text of ranges."""
    data = {
        name: {"lowest": float(found.low), "highest": float(found.high), "CLS": "TensorData"}
        for name, found in ranges.items()
    }
    method = {"CLS": "CalibrationMethod", "value": "CalibrationMethod.MinMax"}
    whole = {"CLS": "TensorsData", "data": data, "calibration_method": method, "smooth_quant": False}
    return json.dumps(whole, allow_nan=False) + "\n"


def parse(text: str) -> dict[str, Range]:
    """The ranges of a text."""
    whole = json.loads(text)
    data = whole.get("data", {}) if isinstance(whole, dict) and whole.get("CLS") == "TensorsData" else whole
    if not isinstance(data, dict):
        message = f"expected an object of tensors, got {type(data).__name__}"
        raise ValueError(message)
    return {name: _range(name, entry) for name, entry in data.items()}


def _range(name: str, entry: object) -> Range:
    if not isinstance(entry, dict) or entry.get("CLS") != "TensorData":
        message = f"'{name}': expected a TensorData object"
        raise ValueError(message)
    low, high = (_end(name, key, entry.get(key)) for key in ("lowest", "highest"))
    if low > high:
        message = f"'{name}': lowest {low} is above highest {high}"
        raise ValueError(message)
    return Range(low, high)


def _end(name: str, key: str, value: Any) -> float:  # noqa: ANN401 - any JSON value
    """A number, or an array of one, as onnxruntime's encoder writes it."""
    if isinstance(value, dict) and value.get("CLS") == "numpy.array":
        value = value.get("data")
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        message = f"'{name}': {key} has {len(value)} channels; only ranges of whole tensors can be read"
        raise ValueError(message)
    largest = float(np.finfo(np.float32).max)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.fabs(value) <= largest:
        message = f"'{name}': {key} is {json.dumps(value)[:40]}, not a finite float32"
        raise ValueError(message)
    return float(value)
