"""Samples as codes: fewer bytes, the same numbers."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qconvert import calibration
from qconvert.calibration import Calibration
from qconvert.errors import CalibrationError
from qconvert.files import Spill
from qconvert.kernels import decode, encode
from qconvert.memory import resident
from qconvert.samples.pack import LEAST, Codes, PackedFeeds, held_bytes, pack, packed, parts_of
from qconvert.samples.types import Array, Sample


def image(*shape: int, axis: int | None, seed: int = 0) -> Array:
    """Levels of 8 bits, normalized channel by channel."""
    levels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.float32) / np.float32(255)
    if axis is None:
        return levels
    count = shape[axis]
    wide = [count if place == axis else 1 for place in range(len(shape))]
    mean, deviation = (np.linspace(low, low + 0.1, count, dtype=np.float32).reshape(wide) for low in (0.4, 0.2))
    return (levels - mean) / deviation


def same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("array", "axis"),
    [
        (image(1, 3, 32, 32, axis=1), 1),
        (image(1, 32, 32, 3, axis=3), 3),
        (image(2, 1, 40, 40, axis=None), None),
        (image(1, 80, 80, axis=None), None),
    ],
    ids=["nchw", "nhwc", "gray", "rank 3"],
)
def test_images_take_a_quarter(array: Array, axis: int | None) -> None:
    found = pack({"x": array})
    part = parts_of(found)["x"]
    assert isinstance(part, Codes)
    assert part.axis == axis
    assert held_bytes(found) < array.nbytes / 2 + 4096
    assert part.codes.nbytes == array.nbytes // 4
    assert same_bits(found["x"], array)
    assert list(found) == ["x"]


@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32),
        np.arange(4096, dtype=np.int64).reshape(1, -1) % 7,
        image(1, 3, 32, 32, axis=1).astype(np.float16),
        np.zeros(LEAST - 1, np.float32),
    ],
    ids=["many numbers", "whole numbers", "halves", "small"],
)
def test_what_would_not_shrink_stays_as_it_is(array: Array) -> None:
    found = pack({"x": array})
    assert parts_of(found)["x"] is array
    assert held_bytes(found) == array.nbytes


def test_what_is_packed_stays_packed() -> None:
    once = pack({"x": image(1, 3, 32, 32, axis=1)})
    assert parts_of(pack(once))["x"] is parts_of(once)["x"]


@given(
    arrays.arrays(
        np.float32,
        st.integers(LEAST, 2 * LEAST),
        elements=st.sampled_from([np.float32(x) for x in (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 1e30, 0.1)]),
    )
)
def test_odd_numbers_keep_their_bits(array: Array) -> None:
    found = pack({"x": array})
    assert isinstance(parts_of(found)["x"], Codes)
    assert same_bits(found["x"], array)


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_codes_are_those_of_first_appearance(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 2**32, count, dtype=np.uint32)
    bits = numbers[rng.integers(0, count, 2000)]
    codes, table = np.empty(bits.size, np.uint8), np.zeros(256, np.uint32)
    used = encode(bits, codes, table)
    order = list(dict.fromkeys(bits.tolist()))
    if len(order) > 256:
        assert used == -1
        return
    assert used == len(order)
    assert table[:used].tolist() == order
    np.testing.assert_array_equal(table[codes], bits)


def test_a_calibration_keeps_them_packed(tmp_path: Path) -> None:
    feeds = {"x": image(1, 3, 32, 32, axis=1), "n": np.arange(3)}
    path = tmp_path / "a.calib"
    calibration.save(Calibration("m.onnx", "0", {}, 1, (), {}, (pack(feeds), feeds)), path, force=False)
    packed, plain = calibration.load(path).probes
    assert held_bytes(packed) < held_bytes(plain) / 2
    for probe in (packed, plain):
        assert list(probe) == ["x", "n"]
        assert all(same_bits(probe[name], array) for name, array in feeds.items())


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="only Linux says what a process holds")
def test_what_was_looked_at_in_a_file_takes_no_memory() -> None:
    with closing(Spill()) as spill:
        kept = [packed(Sample("", {"x": image(1, 3, 512, 512, axis=1)}, None), spill) for _ in range(40)]
        before = resident()
        for sample in kept:
            assert sample.feeds["x"].shape == (1, 3, 512, 512)
        assert resident() - before < 40 * 3 * 512 * 512 / 2


def test_a_code_beyond_its_table_is_no_calibration(tmp_path: Path) -> None:
    part = parts_of(pack({"x": image(1, 80, 80, axis=None)}))["x"]
    assert isinstance(part, Codes)
    short = PackedFeeds({"x": replace(part, tables=part.tables[:, :9])})
    path = tmp_path / "a.calib"
    calibration.save(Calibration("m.onnx", "0", {}, 1, (), {}, (short,)), path, force=False)
    with pytest.raises(CalibrationError, match="not a readable calibration file"):
        calibration.load(path)


@given(st.integers(1, 4), st.integers(1, 256), st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_codes_become_what_they_stand_for(rows: int, columns: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables = rng.standard_normal((rows, columns)).astype(np.float32)
    codes, values = rng.integers(0, columns, (rows, count), np.uint8), np.empty((rows, count), np.float32)
    decode(codes, tables, values)
    np.testing.assert_array_equal(values, np.take_along_axis(tables, codes.astype(np.int64), 1))


def test_arrays_in_a_file_are_the_same_when_it_is_closed() -> None:
    spill = Spill()
    kept = [image(1, 3, 32, 32, axis=1, seed=seed) for seed in range(3)]
    kept.append(np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))
    kept.append(np.zeros((0, 3), np.float32))
    found = [packed(Sample(str(place), {"x": array}, None), spill) for place, array in enumerate(kept)]
    spill.close()
    assert isinstance(parts_of(found[3].feeds)["x"], np.memmap)
    for sample, array in zip(found, kept, strict=True):
        assert same_bits(np.asarray(sample.feeds["x"]), array)
