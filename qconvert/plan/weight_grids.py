"""The grid of a weight, found a slab at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.calibrators import CALIBRATORS, Calibrator
from qconvert.calibrators.mse import MSE
from qconvert.errors import PlanError
from qconvert.float8 import FLOAT8_TYPES, float8_params
from qconvert.graph import Operator
from qconvert.numerics import QUANT_TYPES, QuantParams, fake_quantize
from qconvert.plan.weights import Float32, Granularity, weight_params
from qconvert.policy import Scheme
from qconvert.tensors import dims, in_order, read_slab, slabs

LOW_BITS = 4
"""Types of so many bits or fewer are searched for the least squared error by default; others cover all values."""


def find_grid(
    tensor: ir.TensorProtocol, scheme: Scheme, granularity: Granularity, *, op: Operator, turn: bool
) -> tuple[QuantParams, str]:
    """The grid of a stored weight, and how it was found.

    Args:
        tensor: The weight.
        scheme: Complete settings, but for the calibrator.
        granularity: Which values share a scale.
        op: An operator that reads it, for errors.
        turn: Whether scales may be negative.

    Raises:
        CalibrationError: If the calibrator finds no range from values alone.
        PlanError: If the weight holds NaN or Inf.
    """
    shape, axis = dims(tensor), granularity.axis
    if scheme.dtype in FLOAT8_TYPES:
        along = axis if axis is not None else 0
        tops = [_largest(tensor, along, part, op) for part in _parts(shape, along, whole=not shape)]
        largest = np.concatenate(tops)
        dtype = FLOAT8_TYPES[scheme.dtype or ""]
        return float8_params(largest if axis is not None else largest.max(), dtype, axis=axis), "largest magnitude"
    calibrator: Calibrator = scheme.calibrator or _default(scheme)
    scheme = scheme.model_copy(update={"calibrator": calibrator})
    along = _slab_axis(granularity, len(shape))
    whole = axis is None or bool(scheme.symmetric and not QUANT_TYPES[scheme.dtype or ""].signed)

    def params_of(part: slice) -> QuantParams:
        array = _finite(read_slab(tensor, along, part), tensor, op)
        return _params(array, scheme, granularity, turn=turn)

    found = in_order(params_of, _parts(shape, along, whole=whole))
    if len(found) == 1:
        return found[0], calibrator.name
    joined = along if granularity.block_size is not None else 0
    scale = np.concatenate([one.scale for one in found], joined)
    zero = np.broadcast_to(np.int32(0), scale.shape)  # takes no memory: a large model has millions of groups
    if any(one.zero_point.any() for one in found):
        zero = np.concatenate([one.zero_point for one in found], joined)
    return replace(found[0], scale=scale, zero_point=zero), calibrator.name


def _params(array: Float32, scheme: Scheme, granularity: Granularity, *, turn: bool) -> QuantParams:
    """The grid of a part of a weight.

    Where few levels are symmetric about 0, with one more below than above, the grid that is turned around is searched
    too, and a negative scale says that it is the better one; onnxruntime's quantizer of weights does the same. Other
    runtimes than that take positive scales only (``turn``).
    """
    axis, block, dtype = granularity.axis, granularity.block_size, QUANT_TYPES[scheme.dtype or ""]
    params = weight_params(array, scheme, axis=axis, block_size=block)
    uneven = scheme.symmetric and dtype.signed and not scheme.narrow_range and dtype.bits <= LOW_BITS
    if not (turn and uneven and isinstance(scheme.calibrator, MSE)):
        return params
    found = weight_params(-array, scheme, axis=axis, block_size=block)
    turned = replace(found, scale=-found.scale)
    better = _errors(array, turned) < _errors(array, params)
    return replace(params, scale=np.where(better, turned.scale, params.scale))


def _errors(array: Float32, params: QuantParams) -> npt.NDArray[np.float64]:
    """The squared error of the values of each scale, in its shape."""
    squares = np.square(fake_quantize(array, params).astype(np.float64) - array)
    if params.axis is None:
        return np.asarray(squares.sum())
    if params.block_size is not None:
        return np.asarray(np.add.reduceat(squares, range(0, array.shape[params.axis], params.block_size), params.axis))
    return np.asarray(squares.sum(tuple(axis for axis in range(array.ndim) if axis != params.axis)))


def _default(scheme: Scheme) -> Calibrator:
    return CALIBRATORS["mse" if QUANT_TYPES[scheme.dtype or ""].bits <= LOW_BITS else "minmax"]()


def _slab_axis(granularity: Granularity, rank: int) -> int:
    """An axis along which parts of a weight have scales of their own."""
    if granularity.axis is None:
        return 0
    if granularity.block_size is None:
        return granularity.axis
    return next(axis for axis in range(rank) if axis != granularity.axis)


def _parts(shape: tuple[int, ...], along: int, *, whole: bool) -> list[slice]:
    return [slice(None)] if whole or not slabs(shape, along) else slabs(shape, along)


def _largest(tensor: ir.TensorProtocol, along: int, part: slice, op: Operator) -> Float32:
    array = _finite(read_slab(tensor, along, part), tensor, op)
    rest = tuple(axis for axis in range(array.ndim) if axis != along)
    return np.asarray(np.abs(array).max(axis=rest, initial=0.0))


def _finite(array: Float32, tensor: ir.TensorProtocol, op: Operator) -> Float32:
    if not np.isfinite(array).all():
        raise PlanError(
            f"weight '{tensor.name}' holds NaN or Inf", hint=f"--exclude {op.name} leaves its operator float"
        )
    return array
