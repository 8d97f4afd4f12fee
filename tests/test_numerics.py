"""Quantization arithmetic: published vectors, onnxruntime's own operators bit for bit, and laws."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.graph import serialize
from qconvert.numerics import (
    INT8,
    INT32,
    QUANT_TYPES,
    UINT8,
    QuantParams,
    QuantType,
    Range,
    bias_params,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
    with_scale,
)
from tests.tiny import build

LARGEST = float(np.finfo(np.float32).max)
WIDE = [QUANT_TYPES[name] for name in ("uint8", "int8", "uint16", "int16")]
STORED = {"uint8": np.uint8, "int8": np.int8, "uint16": np.uint16, "int16": np.int16}
EVERY = list(QUANT_TYPES.values())

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-(2.0**100), 2.0**100, width=32)
ranges = st.tuples(moderate, moderate).map(lambda ends: (min(ends), max(ends)))


def grid(low: npt.ArrayLike, high: npt.ArrayLike, dtype: QuantType = UINT8, **options: Any) -> QuantParams:  # noqa: ANN401
    return params_from_range(low, high, dtype, **{"symmetric": False, **options})


# --- published vectors ---


@pytest.mark.parametrize(
    ("low", "high", "dtype", "scale", "zero"),
    [
        (-1, 1, "uint8", 0.00784313725490196, 128),
        (-1, 3, "uint8", 0.01568627450980392, 64),
        (-1, 3, "int8", 0.01568627450980392, -64),
        (0, 6, "uint8", 0.023529411764705882, 0),
        (0.5, 6, "uint8", 0.023529411764705882, 0),
        (-6, -0.5, "int8", 0.023529411764705882, 127),
        (0, 0, "uint8", 1.0, 0),
        (-1, 3, "uint4", 0.26666666666666666, 4),
        (-1, 3, "uint2", 1.3333333333333333, 1),
        (-1, 3, "uint16", 6.103608758678569e-05, 16384),
    ],
)
def test_affine_vectors(low: float, high: float, dtype: str, scale: float, zero: int) -> None:
    params = grid(low, high, QUANT_TYPES[dtype])
    assert params.scale == np.float32(scale)
    assert params.zero_point == zero


def test_dynamic_quantize_linear_vector() -> None:
    x = np.array([0, 2, -3, -2.5, 1.34, 0.5], np.float32)
    params = grid(x.min(), x.max())
    assert params.scale == np.float32(0.019607843831181526)
    assert params.zero_point == 153
    assert quantize(x, params).tolist() == [153, 255, 0, 26, 221, 179]


@pytest.mark.parametrize(
    ("bits", "signed", "qmin", "qmax"),
    [
        (2, True, -2, 1), (2, False, 0, 3), (4, True, -8, 7), (4, False, 0, 15),
        (8, True, -128, 127), (8, False, 0, 255), (16, True, -32768, 32767), (16, False, 0, 65535),
    ],
)  # fmt: skip
def test_table_of_types(bits: int, signed: bool, qmin: int, qmax: int) -> None:
    name = f"{'int' if signed else 'uint'}{bits}"
    row = QUANT_TYPES[name]
    assert (row.bits, row.signed, row.qmin, row.qmax) == (bits, signed, qmin, qmax)
    assert (str(row), row.onnx) == (name, name.upper())
    assert hasattr(ir.DataType, row.onnx)


def test_range_union() -> None:
    assert Range(-1, 2) | Range(0, 3) == Range(-1, 3)


# --- onnxruntime as the judge ---


@functools.cache
def _session(dtype: str, axis: int | None) -> ort.InferenceSession:
    stored = ir.DataType[dtype.upper()]
    attributes = {} if axis is None else {"axis": axis}
    model = build(
        {"x": ("n", "c"), "scale": () if axis is None else ("k",), "zero": () if axis is None else ("k",)},
        [
            ("QuantizeLinear", ["x", "scale", "zero"], ["levels"], attributes),
            ("DequantizeLinear", ["levels", "scale", "zero"], ["y"], attributes),
        ],
        ["levels", "y"],
        opset=21,
        types={"zero": stored, "levels": stored},
    )
    return ort.InferenceSession(serialize(model), providers=["CPUExecutionProvider"])


def _judge(x: npt.NDArray[np.float32], params: QuantParams) -> None:
    """Levels and reals equal those of onnxruntime bit for bit."""
    name = params.dtype.name
    feeds = {"x": x, "scale": params.scale, "zero": params.zero_point.astype(STORED[name])}
    levels, reals = _session(name, params.axis).run(None, feeds)
    mine = quantize(x, params)
    assert mine.dtype == np.int32
    np.testing.assert_array_equal(mine, levels)
    np.testing.assert_array_equal(dequantize(mine, params).view(np.uint32), reals.view(np.uint32))


EDGES = np.array(
    [
        0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, 126.5, 127.5, 128.5, -127.5, -128.5, -129.5, 255.5, 32767.5, -32768.5,
        65535.5, 1e-45, -1e-45, 1e-38, 1e30, -1e30, LARGEST, -LARGEST, math.inf, -math.inf, 0.49999997, 8388607.5,
        16777217.0, 2.0**31,
    ],
    np.float32,
)  # fmt: skip


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.1, 3.0, 1e-38, 1.1754944e-38, 1e30, 0.0078431377])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_levels_and_reals_equal_onnxruntime_per_tensor(dtype: QuantType, scale: float, share: float) -> None:
    zero = dtype.qmin + round(share * (dtype.qmax - dtype.qmin))
    params = QuantParams(np.asarray(scale, np.float32), np.asarray(zero, np.int32), dtype)
    rng = np.random.default_rng(0)
    spread = [rng.standard_normal(500) * scale * reach for reach in (1, 100, 40_000)]
    halves = (rng.integers(-70_000, 70_000, 2000) + 0.5) * np.float64(np.float32(scale))
    with np.errstate(over="ignore"):
        x = np.concatenate([EDGES, EDGES * np.float32(scale), *spread, halves]).astype(np.float32)
    _judge(x[~np.isnan(x)].reshape(-1, 1), params)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_levels_and_reals_equal_onnxruntime_per_axis(dtype: QuantType, axis: int) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((6, 5)) * 10.0 ** rng.integers(-3, 3, (6, 5))).astype(np.float32)
    low, high = x.min(axis=1 if axis == 0 else 0), x.max(axis=1 if axis == 0 else 0)
    _judge(x, grid(low, high, dtype, axis=axis))
    _judge(x, grid(low / 2, high / 2, dtype, axis=axis, symmetric=True))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WIDE), ranges, st.lists(finite, min_size=1, max_size=30), st.booleans())
def test_levels_and_reals_equal_onnxruntime(
    dtype: QuantType, ends: tuple[float, float], numbers: list[float], symmetric: bool
) -> None:  # fmt: skip
    _judge(np.array(numbers, np.float32).reshape(-1, 1), grid(*ends, dtype, symmetric=symmetric))


# --- laws ---


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(EVERY), ranges, st.booleans(), st.booleans())
def test_zero_is_a_level_and_scales_are_usable(
    dtype: QuantType, ends: tuple[float, float], symmetric: bool, narrow_range: bool
) -> None:
    params = grid(*ends, dtype, symmetric=symmetric, narrow_range=narrow_range)
    assert math.isfinite(params.scale)
    assert params.scale >= np.finfo(np.float32).tiny
    assert params.scale.dtype == np.float32
    assert params.qmin <= params.zero_point <= params.qmax
    for zero in (0.0, -0.0):
        assert fake_quantize(np.array([zero], np.float32), params) == 0
    if symmetric and dtype.signed:
        assert params.zero_point == 0


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(EVERY), ranges, st.floats(0, 1), st.booleans(), st.booleans())
def test_round_trip_error_is_at_most_half_a_step(
    dtype: QuantType, ends: tuple[float, float], share: float, symmetric: bool, narrow_range: bool
) -> None:
    params = grid(*ends, dtype, symmetric=symmetric, narrow_range=narrow_range)
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    x = np.array([low, high, low + share * (high - low)], np.float64).clip(low, high).astype(np.float32)
    error = np.abs(fake_quantize(x, params).astype(np.float64) - x)
    slack = np.abs(x).max() * 2.0**-21 + params.scale * 2.0**-20
    assert (error <= params.scale / 2 + slack).all()


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(EVERY), ranges, st.booleans())
def test_every_level_survives_the_way_to_reals_and_back(
    dtype: QuantType, ends: tuple[float, float], symmetric: bool
) -> None:  # fmt: skip
    params = grid(*ends, dtype, symmetric=symmetric)
    levels = np.unique(np.linspace(params.qmin, params.qmax, 300).astype(np.int32))
    np.testing.assert_array_equal(quantize(dequantize(levels, params), params), levels)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(EVERY), ranges, st.lists(finite, min_size=2, max_size=20))
def test_quantize_is_monotonic_and_saturates(dtype: QuantType, ends: tuple[float, float], numbers: list[float]) -> None:
    params = grid(*ends, dtype)
    levels = quantize(np.sort(np.array(numbers, np.float32)), params)
    assert (np.diff(levels) >= 0).all()
    assert levels.min() >= dtype.qmin
    assert levels.max() <= dtype.qmax
    assert quantize(np.array([-math.inf, math.inf], np.float32), params).tolist() == [dtype.qmin, dtype.qmax]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(EVERY), st.lists(ranges, min_size=1, max_size=5), st.booleans())
def test_channels_are_independent(dtype: QuantType, ends: list[tuple[float, float]], symmetric: bool) -> None:
    low, high = np.array(ends).T
    whole = grid(low, high, dtype, symmetric=symmetric, axis=0)
    if symmetric and not dtype.signed:
        assert len(set(whole.zero_point.tolist())) == 1  # runtimes take one zero point for all channels
        return
    for channel, (lo, hi) in enumerate(ends):
        alone = grid(lo, hi, dtype, symmetric=symmetric)
        assert whole.scale[channel] == alone.scale
        assert whole.zero_point[channel] == alone.zero_point


# --- ranges at the edge ---


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_empty_range_has_scale_one(dtype: QuantType, symmetric: bool) -> None:
    for zero in (0.0, -0.0):
        params = grid(zero, zero, dtype, symmetric=symmetric)
        assert params.scale == 1
        assert fake_quantize(np.zeros(3, np.float32), params).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [1e-45, 1e-42, 1.1754944e-38, 1e-37, 5e-324])
def test_tiny_ranges_keep_a_normal_scale(dtype: QuantType, symmetric: bool, size: float) -> None:
    for low, high in ((-size, size), (0.0, size), (-size, 0.0)):
        params = grid(low, high, dtype, symmetric=symmetric)
        assert params.scale >= np.finfo(np.float32).tiny
        assert fake_quantize(np.zeros(1, np.float32), params) == 0
        error = fake_quantize(np.array([low, high], np.float32), params) - np.array([low, high], np.float32)
        assert (np.abs(error) <= params.scale).all()


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_the_largest_range_has_a_grid(dtype: QuantType) -> None:
    for symmetric in (True, False):
        params = grid(-LARGEST, LARGEST, dtype, symmetric=symmetric)
        assert math.isfinite(params.scale)
        assert params.low < 0 <= params.high
        assert fake_quantize(np.zeros(1, np.float32), params) == 0


@pytest.mark.parametrize(
    ("low", "high"),
    [(math.nan, 1), (0, math.nan), (-math.inf, 1), (0, math.inf), (2, 1), ([0, 0], [1, math.nan]), (0, 1e300)],
)
def test_impossible_ranges_are_refused(low: npt.ArrayLike, high: npt.ArrayLike) -> None:
    with pytest.raises(ValueError, match="no grid covers"):
        grid(low, high)


def test_nan_has_no_level() -> None:
    with pytest.raises(ValueError, match="NaN"):
        quantize(np.array([1.0, np.nan], np.float32), grid(-1, 1))


def test_symmetric_unsigned_has_its_zero_in_the_middle() -> None:
    assert grid(-1, 1, UINT8, symmetric=True).zero_point == 128
    assert grid(-1, 0, UINT8, symmetric=True).zero_point == 128
    assert grid(0, 1, UINT8, symmetric=True).zero_point == 0
    assert grid([-1, 0], [1, 1], UINT8, symmetric=True, axis=0).zero_point.tolist() == [128, 128]


def test_narrow_range_leaves_the_lowest_level_out() -> None:
    params = grid(-2, 1, INT8, symmetric=True, narrow_range=True)
    assert (params.qmin, params.qmax) == (-127, 127)
    assert quantize(np.array([-9, 9], np.float32), params).tolist() == [-127, 127]
    assert params.low == -params.high
    assert grid(-2, 1, UINT8, narrow_range=True).qmin == 0
    asymmetric = grid(-2, 1, INT8, narrow_range=True)
    assert quantize(np.array([-2, 1], np.float32), asymmetric).tolist() == [-127, 127]


def test_ends_of_the_grid() -> None:
    params = grid([-1, 0], [3, 6], UINT8, axis=0)
    np.testing.assert_array_equal(params.low, dequantize(np.array([0, 0]), params))
    np.testing.assert_array_equal(params.high, dequantize(np.array([255, 255]), params))


def test_params_are_values() -> None:
    assert grid(-1, 3) == grid(-1.0, 3.0)
    assert grid(-1, 3) != grid(-1, 2)
    assert grid(-1, 3) != grid(-1, 3, INT8)
    assert grid(-1, 3, INT8, symmetric=True) != grid(-1, 3, INT8, symmetric=True, narrow_range=True)
    assert grid([-1], [3], axis=0) != grid([-1], [3], axis=1)
    assert grid(-1, 3) != "uint8"
    with pytest.raises(TypeError):
        hash(grid(-1, 3))
    assert with_scale(grid(-1, 3), np.array([2.0], np.float32)) == QuantParams(
        np.asarray(2, np.float32), np.asarray(64, np.int32), UINT8
    )


# --- biases ---


def test_bias_grid_is_that_of_the_accumulator() -> None:
    data = grid(-1, 3)
    weight = grid([-1, -2, -0.5], [1, 2, 0.5], INT8, symmetric=True, axis=0)
    params = bias_params(data, weight)
    np.testing.assert_array_equal(params.scale, data.scale * weight.scale)
    assert params.zero_point.tolist() == [0, 0, 0]
    assert (params.dtype, params.axis) == (INT32, 0)
    assert bias_params(data, grid(-1, 1, INT8, symmetric=True)).axis is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=10), st.integers(0, 1000))
def test_biases_keep_float32_precision(numbers: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = grid(-float(rng.uniform(0.1, 5)), float(rng.uniform(0.1, 5)))
    weight = grid(-0.7, 0.7, INT8, symmetric=True)
    params = bias_params(data, weight)
    bias = np.array(numbers, np.float32)
    exact = np.rint(bias.astype(np.float64) / np.float64(params.scale))
    np.testing.assert_array_equal(quantize(bias, params), exact)
    assert (np.abs(fake_quantize(bias, params) - bias) <= params.scale / 2 + np.abs(bias) * 2.0**-22).all()


def test_biases_saturate_at_32_bits() -> None:
    params = QuantParams(np.asarray(1e-6, np.float32), np.asarray(0, np.int32), INT32)
    assert quantize(np.array([1e9, -1e9], np.float32), params).tolist() == [2**31 - 1, -(2**31)]
