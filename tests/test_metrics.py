"""Measures against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.metrics import EXACT_DB, ratio_db, sqnr_db

numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20)


@settings(max_examples=50, deadline=None)
@given(numbers, st.integers(0, 1000))
def test_sqnr_equals_the_formula(values: list[float], seed: int) -> None:
    ref = np.array(values, np.float32)
    out = (ref + np.random.default_rng(seed).standard_normal(ref.size)).astype(np.float32)
    signal = math.fsum(float(r) ** 2 for r in ref)
    noise = math.fsum((float(r) - float(o)) ** 2 for r, o in zip(ref, out, strict=True))
    if not signal:
        assert sqnr_db(ref, out) == -EXACT_DB
    elif noise:
        assert sqnr_db(ref, out) == pytest.approx(max(-200, min(200, 10 * math.log10(signal / noise))), abs=1e-9)


@given(numbers)
@settings(max_examples=30, deadline=None)
def test_identical_arrays_are_exact(values: list[float]) -> None:
    assert sqnr_db(np.array(values), np.array(values)) == EXACT_DB == 200


def test_known_values() -> None:
    assert sqnr_db(np.array([3.0, 4.0]), np.array([3.0, 3.5])) == pytest.approx(20)
    assert sqnr_db(np.array([1.0]), np.array([0.0])) == 0
    assert sqnr_db(np.array([1.0]), np.array([11.0])) == pytest.approx(-20)


def test_float16_and_integers_are_squared_in_double() -> None:
    assert sqnr_db(np.array([60000], np.float16), np.array([60032], np.float16)) == pytest.approx(
        20 * math.log10(60000 / 32), abs=0.1
    )
    assert sqnr_db(np.array([200], np.uint8), np.array([220], np.uint8)) == pytest.approx(20)


@pytest.mark.parametrize("noise", [math.nan, math.inf, 1e300])
def test_broken_outputs_are_the_worst(noise: float) -> None:
    assert ratio_db(1.0, noise) == -EXACT_DB


def test_an_empty_comparison_is_exact() -> None:
    assert sqnr_db(np.zeros(0), np.zeros(0)) == EXACT_DB
    assert ratio_db(0, 0) == EXACT_DB


def test_no_signal_but_noise_is_the_worst() -> None:
    assert ratio_db(0, 1e-30) == -EXACT_DB


def test_bounds() -> None:
    assert ratio_db(1, 1e-300) == EXACT_DB
    assert ratio_db(1e-300, 1e300) == -EXACT_DB
