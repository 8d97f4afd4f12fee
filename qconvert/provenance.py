"""Where a written model comes from, as JSON in its ``metadata_props``: evaluate needs it later, and people ask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qconvert import __version__
from qconvert.calibration import Calibration
from qconvert.plan import FloatOp, Plan
from qconvert.preprocess import Preprocess
from qconvert.rewrite.forms import Written
from qconvert.rewrite.interface import Interface, interface_of, interface_record
from qconvert.targets import HEAVY

KEY = "qconvert"
"""The key in ``metadata_props``."""


def record(written: Written, model: Path, calibrated: Calibration, plan: Plan, *, mode: str, form: str) -> None:
    """Writes down source, data, target, form, what inputs and outputs mean, and why heavy operators stayed float."""
    data = {key: value for key, value in calibrated.data.items() if key in {"kind", "preprocess", "fingerprint"}}
    found = {
        "version": __version__,
        "source": model.name,
        "source_sha256": calibrated.model_hash,
        "target": plan.target,
        "mode": mode,
        "format": form,
        "samples": calibrated.samples,
        "data": data,
        "float": {op.operator: _reason(op) for op in plan.floats if op.op_type in HEAVY},
    }
    if written.interface is not None:
        found["interface"] = interface_record(written.interface)
    written.model.metadata_props[KEY] = json.dumps(found, sort_keys=True)


def record_conversion(
    written: ir.Model, model: Path, digest: str, data: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Writes down source, samples and settings of a conversion; what an earlier command wrote stays."""
    found = _recorded(written)
    kept = {key: value for key, value in data.items() if key in {"kind", "preprocess", "fingerprint"}}
    found["version"] = __version__
    found["converted"] = {**settings, "source": model.name, "source_sha256": digest, "data": kept}
    if kept.get("preprocess") is not None:
        found["data"] = kept
    written.metadata_props[KEY] = json.dumps(found, sort_keys=True)


def _reason(op: FloatOp) -> str:
    """Where the user chose, the same words for every way to say so: the same decisions give the same bytes."""
    return "left float by the policy" if op.chosen else op.reason


def _recorded(model: ir.Model) -> dict[str, Any]:
    text = model.metadata_props.get(KEY)
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def recorded_preprocess(model: ir.Model) -> Preprocess | None:
    """The preprocessing that the model was calibrated with; None where there was none, or qconvert did not write it."""
    found = _recorded(model).get("data", {}).get("preprocess")
    return Preprocess.model_validate(found) if found else None


def recorded_interface(metadata: Mapping[str, str]) -> Interface | None:
    """What inputs and outputs of a model with this metadata mean; None where they are what the float model's are."""
    found = json.loads(metadata.get(KEY, "{}")).get("interface")
    return interface_of(found) if found else None


def recorded_reasons(model: ir.Model) -> dict[str, str]:
    """Why heavy operators stayed float, by name, as planned."""
    found: dict[str, str] = _recorded(model).get("float", {})
    return found
