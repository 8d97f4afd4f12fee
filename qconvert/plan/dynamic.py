"""``make_dynamic_plan``: weights in integers, activations quantized at run time from their own values.

Conv, Gemm and MatMul with a constant weight become integer products, and so does LSTM where the runtime has a kernel
that quantizes its inputs itself. Everything between them stays float. No calibration is needed, unless ranges shall
stay within those that it saw (bounded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.calibrators import CALIBRATORS
from qconvert.errors import CalibrationError, PlanError, TargetError
from qconvert.graph import FLOATS, Operator, attributes, constant, operand, operators
from qconvert.histogram import TensorStats
from qconvert.numerics import QUANT_TYPES, UINT8, QuantParams
from qconvert.plan import DEFAULT_CALIBRATOR, nothing_to_quantize
from qconvert.plan.activations import checked_stats
from qconvert.plan.operands import attribute_refusal, operand_refusal
from qconvert.plan.placement import Placement
from qconvert.plan.selection import Selection
from qconvert.plan.settings import Refusal, SettingsTable, settings_table
from qconvert.plan.types import ActivationScheme, Bounds, Dynamic, Entry, FloatOp, Plan, Site
from qconvert.plan.weights import Granularity, weight_params
from qconvert.policy import Policy, Scheme, Settings
from qconvert.rules import weight_axis
from qconvert.targets import TARGETS, get_target

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""Operators that become MatMulInteger or ConvInteger, which are ONNX's own."""

WEIGHTS = {"Conv": (1,), "Gemm": (1,), "MatMul": (1,), "LSTM": (1, 2)}
"""The operands that must be constant."""

DTYPES: Mapping[ActivationScheme, str] = {"per-tensor": "uint8", "per-token": "int8"}
"""What activations become, by which of them share a scale."""

_QUIET = 256
"""A token whose values all round to 0 on the 8-bit grid of the quietest sample gets no finer grid when bounded."""


def make_dynamic_plan(
    model: ir.Model,
    policy: Policy,
    stats: Mapping[str, TensorStats] | None = None,
    *,
    activation_scheme: ActivationScheme = "per-tensor",
    bounded: bool = False,
) -> Plan:
    """Decides the grids of weights, and whose activations are quantized at run time.

    Args:
        model: A prepared graph; left as it is.
        policy: The user's intent. A calibrator of activations counts for bounds only.
        stats: Statistics by value name, for bounds.
        activation_scheme: Per tensor: uint8, asymmetric. Per token: symmetric, one scale for each row of the last axis;
            Conv has no tokens and stays per tensor.
        bounded: Whether a range at run time may not leave that of the calibrator, nor be narrower than that of the
            quietest sample. LSTM takes its ranges itself, without bounds.

    Raises:
        CalibrationError: If bounds are asked for, and a value has no statistics or some with NaN or Inf.
        PolicyError: If a rule matches nothing.
        TargetError: If the target has no such operators, or the policy asks for what they do not take.
        PlanError: If nothing is left to quantize, or a weight holds NaN or Inf.
    """
    if bounded and stats is None:
        raise CalibrationError(
            "bounded ranges need statistics", hint="calibrate the model first ('qconvert calibrate')"
        )
    target = get_target(policy.target)
    _check(policy, activation_scheme)
    ops = tuple(operators(model))
    settings = settings_table(policy, ops, target)
    selection = Selection(ops, settings, target)
    reasons = {op.name: _refusal(op, selection) for op in ops}
    integer = [op for op in ops if not reasons[op.name]]
    floats = tuple(
        FloatOp(op.name, op.op_type, reasons[op.name], bool(settings[op].float))
        for op in ops
        if reasons[op.name] and any(value.dtype in FLOATS for value in op.node.outputs)
    )
    if not integer:
        raise nothing_to_quantize(Placement(floats=list(floats)))
    bounds = stats if bounded else None
    return Plan(
        target.name,
        tuple(_weights(integer, settings)),
        (),
        tuple((op.name, op.op_type) for op in integer),
        floats,
        _notes(integer, activation_scheme, bounded=bounded),
        dynamic=tuple(_activations(integer, settings, activation_scheme, bounds)),
    )


def _notes(integer: Sequence[Operator], activation_scheme: ActivationScheme, *, bounded: bool) -> tuple[str, ...]:
    recurrent = [op.name for op in integer if op.op_type not in PRODUCTS]
    if not recurrent or (activation_scheme == "per-tensor" and not bounded):
        return ()
    return (f"per tensor and without bounds, as their kernel quantizes what they read: {', '.join(recurrent)}",)


def _check(policy: Policy, activation_scheme: ActivationScheme) -> None:
    """What no operator of this mode takes, wherever the policy asks for it."""
    if "dynamic" not in get_target(policy.target).modes:
        able = " or ".join(target.name for target in TARGETS.values() if "dynamic" in target.modes)
        raise TargetError(
            f"dynamic mode: target {policy.target} has no operators for activations quantized at run time",
            hint=f"use {able}, or the static mode",
        )
    schemes = (policy.defaults.activations, *(rule.activations for rule in policy.rules))
    wanted, is_symmetric = DTYPES[activation_scheme], activation_scheme == "per-token"
    for scheme in schemes:
        if scheme.dtype not in {None, wanted}:
            raise TargetError(
                f"dynamic mode: activations.dtype: {activation_scheme} activations are {wanted}, not {scheme.dtype}",
                hint="leave it out, or use the static mode",
            )
        if scheme.symmetric not in {None, is_symmetric}:
            raise TargetError(
                f"dynamic mode: activations.symmetric: {activation_scheme} activations are "
                f"{'symmetric' if is_symmetric else 'asymmetric'}",
                hint="leave it out",
            )
    if "int32" in {policy.defaults.bias, *(rule.bias for rule in policy.rules)}:
        raise TargetError("dynamic mode: bias: biases are added in float", hint="leave 'bias' out")


def _refusal(op: Operator, selection: Selection) -> str:
    """Why an operator stays float, or ""."""
    if op.op_type in selection.target.recurrent:
        reason = _recurrent_refusal(op, selection.settings[op])
    elif op.op_type in PRODUCTS:
        reason = "" if op.node in selection.heavy else selection.why_float(op)
        reason = "" if reason == attribute_refusal(op) else reason  # alpha and beta are factors of float scales here
        reason = reason or _product_refusal(op)
    else:
        return selection.why_float(op) if op.subgraph else f"dynamic mode has no integer kernel for {op.op_type}"
    return reason or _weight_refusal(op, selection.settings[op])


def _product_refusal(op: Operator) -> str:
    weight = operand(op.node, 1)
    if op.op_type == "MatMul" and weight is not None and weight.shape is not None and len(weight.shape) < 2:
        return "its weight is a vector"
    if op.op_type == "Gemm" and attributes(op.node).get("transA"):
        return "its input is transposed (transA): its rows are no tokens"
    return ""


def _recurrent_refusal(op: Operator, settings: Settings) -> str:
    if op.subgraph:
        return f"inside {op.subgraph}"
    if settings.float:
        return f"left float by {settings.reason}"
    if attributes(op.node).get("layout"):
        return f"no integer kernel for {op.op_type} with the batch first (layout = 1)"
    if not settings.weights.symmetric or settings.weights.dtype != "int8":
        return f"its integer kernel takes symmetric int8 weights only; {settings.reason}"
    return operand_refusal([value for value in (operand(op.node, index) for index in range(3)) if value is not None])


def _weight_refusal(op: Operator, settings: Settings) -> str:
    if any(constant(operand(op.node, index)) is None for index in WEIGHTS[op.op_type]):
        return "its weight is not constant"
    fault = dynamic_fault(settings.weights)
    if fault is not None:
        raise TargetError(f"{settings.reason}: {fault}", hint=fault.hint)
    return ""


def dynamic_fault(weights: Scheme) -> Refusal | None:
    """What of a target's complete settings this mode does not take, or None."""
    if QUANT_TYPES[weights.dtype or ""].bits > 8:
        why = f"dynamic mode takes at most 8 bits, not {weights.dtype}"
        return Refusal("weights.dtype", why, "use int8")
    if weights.scheme == "per-group":
        why = "integer products have no scale for each group"
        return Refusal("weights.scheme", why, "use per-channel, or the weight-only mode")
    return None


@dataclass(frozen=True)
class _Weight:
    """What decides the grid of a weight; operators that agree in it share one."""

    name: str
    granularity: Granularity
    scheme: Scheme


def _weights(integer: Sequence[Operator], settings: SettingsTable) -> list[Entry]:
    """Entries of weights in the layout of the graph, one for all operators that share one."""
    groups: dict[_Weight, list[Site]] = {}
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    reasons: dict[_Weight, str] = {}
    for op in integer:
        for index in WEIGHTS[op.op_type]:
            value = operand(op.node, index)
            array = constant(value)
            if value is None or array is None:
                continue
            if not np.isfinite(array).all():
                hint = f"--exclude {op.name} leaves its operator float"
                raise PlanError(f"weight '{value.name}' holds NaN or Inf", hint=hint)
            scheme = settings[op].weights
            weight = _Weight(value.name or "", _granularity(op, array, scheme), scheme)
            arrays[weight.name] = np.asarray(array, np.float32)
            groups.setdefault(weight, []).append(Site(op.name, index))
            reasons.setdefault(weight, settings[op].reason)
    return [_entry(weight, arrays[weight.name], sites, reasons[weight]) for weight, sites in groups.items()]


def _granularity(op: Operator, array: npt.NDArray[np.generic], scheme: Scheme) -> Granularity:
    if op.op_type == "LSTM":  # [directions, gates, inputs]: a scale for each gate of a direction, or for each direction
        return Granularity(0) if scheme.scheme == "per-tensor" else Granularity(2, array.shape[2])
    if scheme.scheme == "per-tensor":
        return Granularity()
    if op.op_type == "MatMul" and array.ndim != 2:
        return Granularity(reason="a batched MatMul takes one scale")
    if op.op_type == "Conv" and not scheme.symmetric:
        return Granularity(reason="ConvInteger takes one zero point")
    return Granularity(weight_axis(op.op_type, array.ndim, attributes(op.node)))


def _entry(weight: _Weight, array: npt.NDArray[np.float32], sites: Sequence[Site], reason: str) -> Entry:
    scheme, granularity = weight.scheme, weight.granularity
    params: QuantParams = weight_params(array, scheme, axis=granularity.axis, block_size=granularity.block_size)
    readers = ", ".join(dict.fromkeys(site.operator for site in sites))
    why = f" ({granularity.reason})" if granularity.reason else ""
    method = scheme.calibrator.name if scheme.calibrator else "minmax"
    text = f"weight of {readers}, {_title(weight)}{why}; {reason}"
    return Entry(weight.name, "weight", params, tuple(sites), method, text)


def _title(weight: _Weight) -> str:
    if weight.granularity.block_size is not None:
        return "per channel of each direction"
    if weight.scheme.scheme == "per-tensor" and weight.granularity.axis is not None:
        return "per tensor of each direction"
    return str(weight.granularity)


def _activations(
    integer: Sequence[Operator],
    settings: SettingsTable,
    asked: ActivationScheme,
    stats: Mapping[str, TensorStats] | None,
) -> list[Dynamic]:
    """One for each value and granularity: all that read it in the same one share its levels."""
    readers: dict[tuple[str, ActivationScheme], list[Operator]] = {}
    for op in integer:
        value = operand(op.node, 0)
        if op.op_type in PRODUCTS and value is not None:
            scheme: ActivationScheme = "per-tensor" if op.op_type == "Conv" else asked
            readers.setdefault((value.name or "", scheme), []).append(op)
    found = []
    for (name, scheme), ops in readers.items():
        sites = tuple(Site(op.name, 0) for op in ops)
        why = f"input of {', '.join(op.name for op in ops)}, {scheme}"
        if scheme != asked:
            why += " (Conv has no tokens)"
        held = _bounds(name, scheme, settings[ops[0]].activations, stats) if stats is not None else None
        found.append(Dynamic(name, scheme, sites, f"{why}; {settings[ops[0]].reason}", held))
    return found


def _bounds(name: str, scheme: ActivationScheme, activations: Scheme, stats: Mapping[str, TensorStats]) -> Bounds:
    """The calibrator's range with 0, and the range of the quietest sample with 0."""
    seen = checked_stats(stats, name)
    calibrator = activations.calibrator or CALIBRATORS[DEFAULT_CALIBRATOR]()
    symmetric = scheme == "per-token"
    dtype = QUANT_TYPES["int8"] if symmetric else UINT8
    found = calibrator(seen, dtype, symmetric=symmetric, narrow_range=symmetric)
    low, high = min(float(found.low), 0.0), max(float(found.high), 0.0)
    lows, highs = np.minimum(seen.ranges.low, 0.0), np.maximum(seen.ranges.high, 0.0)
    if symmetric:
        high = max(-low, high)
        widths = np.maximum(-lows, highs) / _QUIET
        return Bounds(-high, high, min(float(widths.min(initial=np.inf)), high) if widths.size else 0.0)
    widths = highs - lows
    return Bounds(low, high, min(float(widths.min()), high - low) if widths.size else 0.0)
