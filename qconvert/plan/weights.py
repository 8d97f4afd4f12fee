"""The grids of weights and biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qconvert.calibrators.minmax import MinMax
from qconvert.errors import PlanError
from qconvert.graph import Operator, attributes, constant, operand
from qconvert.numerics import INT32, QUANT_TYPES, QuantParams, bias_params, params_from_range
from qconvert.plan.placement import Placement
from qconvert.plan.settings import SettingsTable
from qconvert.plan.types import Entry, GivenGrid, Site
from qconvert.policy import Scheme
from qconvert.rules import OP_RULES, reduction_axis, weight_axis
from qconvert.targets import Target

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_TINY = float(np.finfo(np.float32).tiny)
"""The least scale of a bias: below it, ``s_x * s_w`` is denormal or 0."""


@dataclass(frozen=True)
class Granularity:
    """Which values of a weight share a scale.

    Attributes:
        axis: The axis with a scale for each index or, where ``block_size`` is given, each block; None per tensor.
        block_size: Length of a block.
        reason: Why it is not what the policy asks for, or "".
    """

    axis: int | None = None
    block_size: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.axis is None:
            return "per tensor"
        if self.block_size is None:
            return f"per channel of axis {self.axis}"
        return f"per group of {self.block_size} of axis {self.axis}"


@dataclass(frozen=True)
class _Weight:
    """What decides the grid of a weight; operators that agree in it share one."""

    name: str
    granularity: Granularity
    scheme: Scheme


@dataclass(frozen=True)
class _Bias:
    """A bias that becomes int32."""

    name: str
    array: Float32
    site: Site


@dataclass(frozen=True)
class _Use:
    """One operator's use of a constant weight."""

    op: Operator
    position: int
    reason: str
    bias: _Bias | None


def weight_entries(
    placement: Placement,
    settings: SettingsTable,
    target: Target,
    inputs: Mapping[Site, QuantParams],
    *,
    given: Mapping[str, GivenGrid],
) -> list[Entry]:
    """Entries of constant weights, one for all operators that share one, and of int32 biases, one for each operator.

    Args:
        placement: The integer operators, and where their biases are.
        settings: Settings of every operator.
        target: Decides where weights may be per channel.
        inputs: The grids of the activations that the operators read, for the scales of the biases.
        given: Grids that were found elsewhere, by name; one that does not fit the settings does not count.

    Raises:
        PlanError: If a weight holds NaN or Inf.
    """
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    groups: dict[_Weight, list[_Use]] = {}
    for op in placement.integer.values():
        rule = OP_RULES[op.op_type]
        value = operand(op.node, rule.weight) if rule.weight is not None else None
        array = constant(value)
        if value is None or array is None or rule.weight is None:
            continue
        if not np.isfinite(array).all():
            hint = f"--exclude {op.name} leaves its operator float"
            raise PlanError(f"weight '{value.name}' holds NaN or Inf", hint=hint)
        own = settings[op]
        scheme = _wide_enough(op, own.weights, target)
        arrays[value.name or ""] = array
        bias, reason = _find_bias(op, placement) if own.bias == "int32" else None, own.reason
        granularity = _granularity(op, array, bias, scheme, target)
        if bias is not None and granularity.block_size is not None:
            bias, reason = None, f"{reason}; the bias stays float: no int32 scale fits all groups of an output"
        axis = granularity.axis
        if bias is not None and op.op_type == "MatMul" and axis is not None and bias.array.size != array.shape[axis]:
            bias = None
        weight = _Weight(value.name or "", granularity, scheme)
        groups.setdefault(weight, []).append(_Use(op, rule.weight, reason, bias))
    entries: list[Entry] = []
    for weight, uses in groups.items():
        entries += _group(weight, np.asarray(arrays[weight.name], np.float32), uses, inputs, given.get(weight.name))
    return entries


def _wide_enough(op: Operator, scheme: Scheme, target: Target) -> Scheme:
    """The settings of a weight; in the target's default type where the operator takes no fewer than 8 bits."""
    low = QUANT_TYPES[scheme.dtype or ""].bits < 8
    return Scheme(dtype=target.weights[0]).over(scheme) if low and op.op_type not in target.low_bit_ops else scheme


def _find_bias(op: Operator, placement: Placement) -> _Bias | None:
    """The constant bias of an operator, its own or the one that the Add behind a MatMul adds."""
    owner, position = placement.biases.get(op.name, (op, OP_RULES[op.op_type].bias))
    value = operand(owner.node, position) if position is not None else None
    array = constant(value)
    if value is None or array is None or position is None:
        return None
    return _Bias(value.name or "", np.asarray(array, np.float32), Site(owner.name, position))


def _granularity(
    op: Operator, array: npt.NDArray[np.generic], bias: _Bias | None, scheme: Scheme, target: Target
) -> Granularity:
    """What the scheme asks for, or per channel or tensor where the target or a shape rules that out."""
    if scheme.scheme == "per-group" and op.op_type in target.per_group and array.ndim > 1:
        return Granularity(reduction_axis(op.op_type, array.ndim, attributes(op.node)), scheme.group_size)
    ruled_out = ""
    if scheme.scheme == "per-group":
        takes = f"target {target.name} takes groups in {' and '.join(sorted(target.per_group))} only"
        ruled_out = takes if op.op_type not in target.per_group else "a vector has no groups"
    return Granularity(_channel_axis(op, array, bias, scheme, target), reason=ruled_out)


def _channel_axis(
    op: Operator, array: npt.NDArray[np.generic], bias: _Bias | None, scheme: Scheme, target: Target
) -> int | None:
    """The axis of per-channel scales; None where the scheme, the target or a shape rules them out.

    A batched MatMul takes one scale, and so does a Gemm whose bias is not one number a column.
    """
    if scheme.scheme == "per-tensor" or op.op_type not in target.per_channel:
        return None
    if op.op_type == "MatMul" and array.ndim != 2:
        return None
    axis = weight_axis(op.op_type, array.ndim, attributes(op.node))
    if op.op_type == "Gemm" and bias is not None and bias.array.size != array.shape[axis]:
        return None
    return axis


def _group(
    weight: _Weight, array: Float32, uses: Sequence[_Use], inputs: Mapping[Site, QuantParams], given: GivenGrid | None
) -> list[Entry]:
    scheme, granularity = weight.scheme, weight.granularity
    method = scheme.calibrator.name if scheme.calibrator else "minmax"
    asked = granularity.axis, granularity.block_size, scheme.dtype
    if given is not None and (given.params.axis, given.params.block_size, given.params.dtype.name) == asked:
        params, method = given.params, given.method
    else:
        params = weight_params(array, scheme, axis=granularity.axis, block_size=granularity.block_size)
    for use in uses:
        data = inputs.get(Site(use.op.name, 0))
        if use.bias is not None and data is not None:
            params = room_for_bias(params, float(data.scale), use.bias.array)
    readers = ", ".join(use.op.name for use in uses)
    sites = tuple(Site(use.op.name, use.position) for use in uses)
    why = f" ({granularity.reason})" if granularity.reason else ""
    reason = f"weight of {readers}, {granularity}{why}; {uses[0].reason}"
    entries = [Entry(weight.name, "weight", params, sites, method, reason)]
    for use in uses:
        data = inputs.get(Site(use.op.name, 0))
        if use.bias is not None and data is not None:
            entries.append(_bias(use, use.bias, bias_params(data, params)))
    return entries


def weight_params(
    array: Float32, scheme: Scheme, *, axis: int | None = None, block_size: int | None = None
) -> QuantParams:
    """The grid of a weight.

    Args:
        array: The weight, any shape.
        scheme: Complete settings; without a calibrator the whole range is covered.
        axis: The axis with a scale for each index, or for each block; None for one scale.
        block_size: Length of a block.

    Raises:
        CalibrationError: If the calibrator finds no range from values alone.
    """
    if axis is None:
        low, high = _ends(array.reshape(1, -1), scheme)
        low, high = low[0], high[0]
    elif block_size is None:
        low, high = _ends(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1), scheme)
    else:
        low, high = (
            np.moveaxis(ends, -1, axis) for ends in _block_ends(np.moveaxis(array, axis, -1), scheme, block_size)
        )
    return params_from_range(
        low,
        high,
        QUANT_TYPES[scheme.dtype or ""],
        symmetric=bool(scheme.symmetric),
        narrow_range=bool(scheme.narrow_range),
        axis=axis,
        block_size=block_size,
    )


def _block_ends(array: Float32, scheme: Scheme, size: int) -> tuple[Floats, Floats]:
    """The ranges of the blocks of the last axis, in the shape of the array with their number there."""
    whole = array.shape[-1] // size * size
    parts = [part for part in (array[..., :whole].reshape(-1, size), array[..., whole:]) if part.size]
    found = [_ends(part.reshape(-1, part.shape[-1]), scheme) for part in parts]
    shape = (*array.shape[:-1], -1)
    low, high = (np.concatenate([ends.reshape(shape) for ends in side], axis=-1) for side in zip(*found, strict=True))
    return low, high


def _ends(rows: Float32, scheme: Scheme) -> tuple[Floats, Floats]:
    """The ranges of rows."""
    dtype, calibrator = QUANT_TYPES[scheme.dtype or ""], scheme.calibrator or MinMax()
    return calibrator.rows(rows, dtype, symmetric=bool(scheme.symmetric), narrow_range=bool(scheme.narrow_range))


def room_for_bias(params: QuantParams, input_scale: float, bias: Float32) -> QuantParams:
    """Enlarges the scales of channels with weights near 0, where ``s_x * s_w`` is too small for an int32 bias.

    Half of the int32 levels are left to the products that are added to it. The bias of a grouped ConvTranspose has a
    number for each channel of each group, its weight a scale for each channel.
    """
    least = np.abs(bias.reshape(-1, params.scale.size if params.scale.ndim else 1)).max(0, initial=0.0)
    if params.scale.ndim == 0:
        least = least.max(initial=0.0)
    least = np.maximum(least.astype(np.float64) / (INT32.qmax // 2), _TINY) / input_scale
    return replace(params, scale=np.maximum(params.scale, least.astype(np.float32).reshape(params.scale.shape)))


def _bias(use: _Use, bias: _Bias, grid: QuantParams) -> Entry:
    if grid.axis is not None:  # a grouped ConvTranspose repeats its scales for each group
        scale = np.resize(grid.scale, bias.array.size)
        grid = replace(grid, scale=scale, zero_point=np.zeros(scale.shape, np.int32), axis=bias.array.ndim - 1)
    reason = f"bias of {use.op.name}: scale of its input times scale of its weight; {use.reason}"
    return Entry(bias.name, "bias", grid, (bias.site,), "input scale x weight scale", reason)
