"""The grids of weights and biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qconvert.calibrators import Calibrator
from qconvert.errors import PlanError
from qconvert.graph import Operator, attributes, constant, operand
from qconvert.histogram import TensorStats
from qconvert.numerics import INT32, QUANT_TYPES, QuantParams, bias_params, params_from_range
from qconvert.plan.settings import SettingsTable
from qconvert.plan.types import Entry, Site
from qconvert.policy import Scheme
from qconvert.rules import OP_RULES, weight_axis
from qconvert.targets import Target

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Use:
    """One operator's use of a constant weight."""

    op: Operator
    position: int
    axis: int | None
    reason: str
    bias: Float32 | None


def weight_entries(
    ops: Sequence[Operator], settings: SettingsTable, target: Target, inputs: Mapping[Site, QuantParams]
) -> list[Entry]:
    """Entries of constant weights, one for all operators that share one, and of their int32 biases, one for each operator.

    Args:
        ops: The integer operators.
        settings: Settings of every operator.
        target: Decides where weights may be per channel.
        inputs: The grids of the activations that the operators read, for the scales of the biases.

    Raises:
        PlanError: If a weight holds NaN or Inf.
    """
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    groups: dict[tuple[str, int | None, Scheme], list[_Use]] = {}
    for op in ops:
        rule = OP_RULES[op.op_type]
        value = operand(op.node, rule.weight) if rule.weight is not None else None
        array = constant(value)
        if value is None or array is None or rule.weight is None:
            continue
        if not np.isfinite(array).all():
            raise PlanError(f"weight '{value.name}' holds NaN or Inf", hint=f"--exclude {op.name} leaves its operator float")
        own = settings[op]
        axis = _channel_axis(op, array.ndim, own.weights, target)
        arrays[value.name or ""] = array
        bias = constant(operand(op.node, rule.bias)) if rule.bias is not None and own.bias == "int32" else None
        groups.setdefault((value.name or "", axis, own.weights), []).append(_Use(op, rule.weight, axis, own.reason, bias))
    entries: list[Entry] = []
    for (name, axis, scheme), uses in groups.items():
        entries += _group(name, np.asarray(arrays[name]), axis, scheme, uses, inputs)
    return entries


def _channel_axis(op: Operator, rank: int, scheme: Scheme, target: Target) -> int | None:
    """The axis of per-channel scales; None where the scheme, the target or the shape (a batched MatMul) rules them out."""
    if scheme.scheme != "per-channel" or op.op_type not in target.per_channel or (op.op_type == "MatMul" and rank != 2):
        return None
    return weight_axis(op.op_type, rank, attributes(op.node))


def _group(
    name: str, array: npt.NDArray[np.generic], axis: int | None, scheme: Scheme, uses: Sequence[_Use], inputs: Mapping[Site, QuantParams]
) -> list[Entry]:
    params = weight_params(array.astype(np.float32), axis, scheme)
    for use in uses:
        data = inputs.get(Site(use.op.name, 0))
        if use.bias is not None and data is not None:
            params = _room_for_bias(params, data, use.bias)
    method = type(scheme.calibrator).__name__.lower() if scheme.calibrator else "minmax"
    granularity = "per tensor" if axis is None else f"per channel of axis {axis}"
    readers = ", ".join(use.op.name for use in uses)
    sites = tuple(Site(use.op.name, use.position) for use in uses)
    entries = [Entry(name, "weight", params, sites, method, f"weight of {readers}, {granularity}; {uses[0].reason}")]
    for use in uses:
        data = inputs.get(Site(use.op.name, 0))
        if use.bias is not None and data is not None:
            entries.append(_bias(use, params, data))
    return entries


def weight_params(array: Float32, axis: int | None, scheme: Scheme) -> QuantParams:
    """The grid of a weight.

    Args:
        array: The weight, any shape.
        axis: The axis with a scale for each index, or None.
        scheme: Complete settings; without a calibrator the whole range is covered.
    """
    dtype, calibrator = QUANT_TYPES[scheme.dtype or ""], scheme.calibrator
    rows = array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    symmetric, narrow = bool(scheme.symmetric), bool(scheme.narrow_range)
    if calibrator is None:
        low, high = rows.min(1), rows.max(1)
    else:
        low, high = _calibrated(rows, calibrator, scheme)
    if axis is None:
        low, high = low[0], high[0]
    return params_from_range(low, high, dtype, symmetric=symmetric, narrow_range=narrow, axis=axis)


def _calibrated(rows: Float32, calibrator: Calibrator, scheme: Scheme) -> tuple[Float32, Float32]:
    dtype = QUANT_TYPES[scheme.dtype or ""]
    ranges = [
        calibrator(TensorStats.of(row), dtype, symmetric=bool(scheme.symmetric), narrow_range=bool(scheme.narrow_range)) for row in rows
    ]
    return np.float32([found.low for found in ranges]), np.float32([found.high for found in ranges])


def _room_for_bias(params: QuantParams, data: QuantParams, bias: Float32) -> QuantParams:
    """Enlarges the scales of channels whose bias would overflow int32 at ``s_x * s_w`` (channels with weights near 0)."""
    needed = np.abs(bias.reshape(-1)).astype(np.float64) / (float(data.scale) * (INT32.qmax - 1))
    if params.scale.ndim == 0:
        needed = np.asarray(needed.max(initial=0.0))
    elif needed.size != params.scale.size:
        return params
    return replace(params, scale=np.maximum(params.scale, needed.astype(np.float32).reshape(params.scale.shape)))


def _bias(use: _Use, params: QuantParams, data: QuantParams) -> Entry:
    rule = OP_RULES[use.op.op_type]
    value = operand(use.op.node, rule.bias or 0)
    name = (value.name if value is not None else "") or ""
    reason = f"bias of {use.op.name}: scale of its input times scale of its weight; {use.reason}"
    grid = bias_params(data, params)
    bias = use.bias if use.bias is not None else np.zeros(0, np.float32)
    if grid.axis is not None and bias.size != grid.scale.size:
        grid = replace(grid, scale=np.resize(grid.scale, bias.size), zero_point=np.zeros(bias.size, np.int32))
    if grid.axis is not None:
        grid = replace(grid, axis=bias.ndim - 1)
    return Entry(name, "bias", grid, (Site(use.op.name, rule.bias or 0),), "input scale x weight scale", reason)
