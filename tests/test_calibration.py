"""The ``.calib`` file: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import pickle
import random
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qconvert import calibration
from qconvert.calibration import Calibration, find, load, model_path, save
from qconvert.channels import ChannelStats
from qconvert.errors import CalibrationError, OutputError
from qconvert.histogram import TensorStats

Array = np.ndarray[Any, np.dtype[Any]]

EDGES = [0.0, -0.0, 2.0**-149, 1e30, -1e30, float(np.finfo(np.float32).max), math.nan, math.inf, -math.inf]
arrays = hnp.arrays(
    np.float32, st.integers(0, 20), elements=st.one_of(st.sampled_from(EDGES), st.floats(width=32))
)  # fmt: skip
names = st.text(min_size=1, max_size=8)


def made(**changes: Any) -> Calibration:  # noqa: ANN401 - fields of Calibration
    rng = np.random.default_rng(0)
    stats = {
        "x": TensorStats.of(rng.standard_normal(1000).astype(np.float32)),
        "very/odd:name\nüß": TensorStats.of(np.array([np.nan, np.inf, -np.inf, 1e-45, -1e30], np.float32)),
        "empty": TensorStats(),
    }
    stats["sum"] = stats["x"] + stats["very/odd:name\nüß"]
    plain = Calibration(
        "models/m.onnx",
        "ab" * 32,
        {"kind": "images", "preprocess": {"mean": [0.5, 0.25]}, "seed": 0, "labels": None},
        10,
        (("a.png", "a.png: cannot be read"), ("ü.png", "why")),
        stats,
        ({"x": rng.standard_normal((1, 3)).astype(np.float32), "n": np.array(7)}, {"x": np.zeros((1, 3), np.float32)}),
        {name: ChannelStats.of(rng.standard_normal((2, size, 3)), axis=1) for name, size in (("x", 5), ("sum", 1))},
    )
    return dataclasses.replace(plain, **changes)


def refusal(path: Path) -> CalibrationError:
    with pytest.raises(CalibrationError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.hint
    return caught.value


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "m.calib"
    save(made(), path, force=False)
    return path


# --- the way to the file and back ---


def test_round_trip(written: Path) -> None:
    before, after = made(), load(written)
    assert after == before
    assert list(after.stats) == list(before.stats), "in the same order"
    assert after.data == before.data
    assert len(after.probes) == 2
    for old, new in zip(before.probes, after.probes, strict=True):
        assert list(old) == list(new)
        for name, array in old.items():
            np.testing.assert_array_equal(new[name], array)
            assert (new[name].dtype, new[name].shape) == (array.dtype, array.shape)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(names, arrays, max_size=4), st.lists(arrays, max_size=2))
def test_round_trip_of_anything(tensors: dict[str, Array], probes: list[Array]) -> None:
    stats = {name: TensorStats.of(x) + TensorStats.of(x[::2]) for name, x in tensors.items()}
    before = made(stats=stats, probes=tuple({"x": x} for x in probes))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.calib"
        save(before, path, force=False)
        after = load(path)
    assert after == before
    for old, new in zip(before.probes, after.probes, strict=True):
        np.testing.assert_array_equal(new["x"], old["x"])


def test_without_values_or_probes(tmp_path: Path) -> None:
    save(made(stats={}, probes=(), skipped=()), tmp_path / "a.calib", force=False)
    assert load(tmp_path / "a.calib") == made(stats={}, probes=(), skipped=())


def test_equal_calibrations_are_equal_bytes(tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    save(load(written), tmp_path / "again.calib", force=False)
    assert (tmp_path / "again.calib").read_bytes() == written.read_bytes()


def test_sums_beyond_64_bits_survive(tmp_path: Path) -> None:
    large = TensorStats.of(np.array([3e38], np.float32)) + TensorStats.of(np.array([2.0**-149], np.float32))
    save(made(stats={"x": large}), tmp_path / "a.calib", force=False)
    assert load(tmp_path / "a.calib").stats["x"].high_sum == large.high_sum > 2**270


def test_the_file_is_small(written: Path) -> None:
    assert written.stat().st_size < 20_000


# --- files that are not ours, or no longer whole ---


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in str(refusal(tmp_path / "none.calib"))
    assert "no such file" in str(refusal(tmp_path))


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_truncated_file(written: Path, share: float) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole[: int(share * len(whole))])
    assert "not a readable calibration file" in str(refusal(written))


def test_damaged_bytes_never_pass_or_crash(written: Path) -> None:
    whole = written.read_bytes()
    rng = random.Random(0)  # noqa: S311 - which bytes to damage is no secret
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        written.write_bytes(broken)
        try:
            found = load(written)
        except CalibrationError as error:
            assert "\n" not in str(error)  # noqa: PT017 - it may also pass
        else:
            assert found == made(), "damage that matters is noticed"


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage", b"\x80\x04K\x01.", b"\x93NUMPY\x01\x00"])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.calib"
    path.write_bytes(content)
    refusal(path)


def test_other_kinds_of_files(tmp_path: Path) -> None:
    path = tmp_path / "a.calib"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    refusal(path)
    with path.open("wb") as file:
        np.save(file, np.arange(3))
    refusal(path)
    with path.open("wb") as file:
        np.savez(file, header=np.arange(3), counts=np.arange(3))
    refusal(path)


@pytest.mark.parametrize("header", ["[]", "{}", "null", "7", '{"format": 1}', '{"format": 1, "values": 3}'])
def test_other_headers(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.calib"
    with path.open("wb") as file:
        np.savez(file, header=np.frombuffer(header.encode(), np.uint8), counts=np.zeros((0, 2, 4096), np.int64))
    refusal(path)


def _with_header(path: Path, **changes: Any) -> None:  # noqa: ANN401 - JSON
    with np.load(path) as archive:
        members = {name: archive[name] for name in archive.files}
    header = {**json.loads(bytes(members["header"])), **changes}
    members["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **members)


def test_a_later_format_is_named(written: Path) -> None:
    _with_header(written, format=99)
    error = refusal(written)
    assert "format 99" in str(error)
    assert error.hint == "calibrate again"


def test_as_many_counts_as_values(written: Path) -> None:
    with np.load(written) as archive:
        rows = json.loads(bytes(archive["header"]))["values"]
    _with_header(written, values=rows[:-1])
    refusal(written)


class _Trap:
    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _spring, ()


def _spring() -> None:
    _Trap.sprung = True


def test_pickles_are_never_opened(tmp_path: Path, written: Path) -> None:
    path = tmp_path / "trap.calib"
    path.write_bytes(pickle.dumps(_Trap()))
    refusal(path)
    blob = io.BytesIO()
    np.save(blob, np.array([_Trap()], object), allow_pickle=True)
    with np.load(written) as archive:
        header = archive["header"]
    for member in ("counts", "header"):
        with zipfile.ZipFile(path, "w") as trap:
            for name in ("header", "counts"):
                plain = io.BytesIO()
                np.save(plain, header)
                trap.writestr(f"{name}.npy", blob.getvalue() if name == member else plain.getvalue())
        refusal(path)
    assert not _Trap.sprung


# --- addition ---


@settings(max_examples=40, deadline=None)
@given(st.lists(arrays, min_size=2, max_size=6), st.data())
def test_two_halves_are_the_whole(samples: list[Array], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(samples) - 1))

    def over(part: list[Array], first: int) -> Calibration:
        stats = {
            "x": sum(map(TensorStats.of, part), TensorStats()),
            "y": sum((TensorStats.of(-x) for x in part), TensorStats()),
        }
        skipped = tuple((f"{first + k}.png", "broken") for k, x in enumerate(part) if x.size == 0)
        rows = {"x": sum((ChannelStats.of(x[None], axis=0) for x in part), ChannelStats())}
        return made(stats=stats, samples=len(part), skipped=skipped, probes=(), channels=rows)

    whole, left, right = over(samples, 0), over(samples[:cut], 0), over(samples[cut:], cut)
    assert left + right == whole
    assert right + left == whole


def test_another_model_is_refused() -> None:
    with pytest.raises(CalibrationError, match="of the same model"):
        made() + made(model_hash="cd" * 32)
    with pytest.raises(CalibrationError, match="of the same values of the same model"):
        made() + made(stats={"x": TensorStats()})
    with pytest.raises(CalibrationError, match="of the same values of the same model"):
        made() + made(channels={})


# --- writing ---


def test_an_existing_file_is_not_touched_without_force(written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        save(made(samples=99), written, force=False)
    assert written.read_bytes() == before
    save(made(samples=99), written, force=True)
    assert load(written).samples == 99
    assert [path.name for path in written.parent.iterdir()] == ["m.calib"]


class _Full(io.FileIO):
    """A file on a disk with room for 1000 bytes."""

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        if self.tell() + len(data) > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("force", [True, False])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    force: bool,
) -> None:
    path = tmp_path / "m.calib"
    if force:
        path.write_bytes(b"old")
    opened = Path.open

    def open_full(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - those of open
        return _Full(str(self), "w") if mode == "wb" else opened(self, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        with pytest.raises(OutputError, match="No space left on device"):
            save(made(), path, force=force)
    assert [p.name for p in tmp_path.iterdir()] == (["m.calib"] if force else [])
    assert not force or path.read_bytes() == b"old"


def test_missing_and_unwritable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        save(made(), tmp_path / "none" / "m.calib", force=False)
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    with pytest.raises(OutputError, match="no permission"):
        save(made(), tmp_path / "m.calib", force=False)
    assert list(tmp_path.iterdir()) == []


# --- looking for files ---


def test_find(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no \.calib file") as caught:
        find(tmp_path)
    assert "qconvert calibrate" in caught.value.hint
    (tmp_path / "a.onnx").touch()
    (tmp_path / "a.calib").touch()
    assert find(tmp_path) == tmp_path / "a.calib"
    (tmp_path / "b.calib").touch()
    with pytest.raises(CalibrationError, match=r"2 \.calib files in this folder: a\.calib, b\.calib") as caught:
        find(tmp_path)
    assert "--calibration" in caught.value.hint
    for name in "cdef":
        (tmp_path / f"{name}.calib").touch()
    with pytest.raises(CalibrationError, match=r"6 \.calib files .*d\.calib, \.\.\.$"):
        find(tmp_path)


def test_find_looks_for_files_alone(tmp_path: Path) -> None:
    (tmp_path / "folder.calib").mkdir()
    with pytest.raises(CalibrationError, match=r"no \.calib file"):
        find(tmp_path)
    (tmp_path / "a.calib").touch()
    assert find(tmp_path) == tmp_path / "a.calib"


def test_the_model_is_where_it_was_or_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "work" / "m.calib"
    (tmp_path / "work" / "models").mkdir(parents=True)
    with pytest.raises(CalibrationError, match=r"its model 'models/m\.onnx' is not there") as caught:
        model_path(made(), path)
    assert caught.value.hint
    beside = tmp_path / "work" / "m.onnx"
    beside.touch()
    assert model_path(made(), path) == beside
    there = tmp_path / "work" / "models" / "m.onnx"
    there.touch()
    assert model_path(made(), path) == there
    above = tmp_path / "up.onnx"
    above.touch()
    assert model_path(made(model="../up.onnx"), path) == above
    assert model_path(made(model=str(above)), path) == above


def test_the_module_names_its_suffix() -> None:
    assert calibration.SUFFIX == ".calib"
