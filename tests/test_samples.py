"""Readers of samples: what they feed, and what they say when they cannot."""

from __future__ import annotations

import io
import json
import pickle
import random
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from qconvert.errors import CorruptSampleError, DataError
from qconvert.files import Spill
from qconvert.preprocess import PRESETS, Preprocess
from qconvert.samples import InputSpec, Sample, SampleSet, open_samples
from qconvert.samples.ahead import ReadAhead

BENCH = Path(__file__).parents[2] / "shared" / "bench"
RAW = Preprocess(scale=1)


def spec(*shape: int | str | None, name: str = "input", dtype: npt.DTypeLike = np.float32) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


PIXELS = [spec("N", 3, 4, 6)]
ROWS = [spec("N", 4)]
VAD = [spec("batch", "sequence"), spec(2, "batch", 8, name="state"), spec(name="sr", dtype=np.int64)]


def image(path: Path, value: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, value, value)).save(path)
    return path


def numbers(*shape: int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def values(samples: SampleSet) -> list[float]:
    return [float(samples.load(i).feeds["input"].flat[0]) for i in range(len(samples))]


def refusal(path: Path, inputs: list[InputSpec], **options: Any) -> DataError:  # noqa: ANN401 - those of open_samples
    """The error of opening the set, or of loading all of it."""
    with pytest.raises(DataError) as caught:
        values(open_samples(path, inputs, **options))
    assert "\n" not in str(caught.value)
    return caught.value


# --- image folders ---


def test_flat_folder_is_sorted_and_unlabelled(tmp_path: Path) -> None:
    for k, ending in enumerate(("png", "bmp", "tif", "gif", "webp", "PNG")):
        image(tmp_path / f"{9 - k}.{ending}", 10 * k)
    image(tmp_path / ".hidden.png", 99)
    (tmp_path / "notes.txt").write_text("x")
    samples = open_samples(tmp_path, PIXELS, preprocess=RAW)
    assert samples.names == ("4.PNG", "5.webp", "6.gif", "7.tif", "8.bmp", "9.png")
    assert values(samples) == pytest.approx([50, 40, 30, 20, 10, 0], abs=2)
    assert not samples.labelled
    assert samples.load(0).label is None
    assert samples.load(0).feeds["input"].shape == (1, 3, 4, 6)


def test_single_image(tmp_path: Path) -> None:
    samples = open_samples(image(tmp_path / "a.png", 7), PIXELS, preprocess=RAW)
    assert (samples.names, values(samples)) == (("a.png",), [7])


def test_class_folders_are_labels_in_sorted_order(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "cat/1.png", "eel/1.png"):
        image(tmp_path / name)
    (tmp_path / "bee").mkdir()
    samples = open_samples(tmp_path, PIXELS, preprocess=RAW, classes_hint=10)
    assert samples.names == ("cat/1.png", "cat/2.png", "dog/1.png", "eel/1.png")
    assert [samples.load(i).label for i in range(4)] == [1, 1, 2, 3]
    assert "class folder 'bee' holds no images" in samples.notes
    assert any(
        "4 class folders in alphabetical order, 'bee' is 0; the model has 10 outputs" in n for n in samples.notes
    )


def test_class_folders_that_are_numbers(tmp_path: Path) -> None:
    for name in ("7/a.png", "10/a.png"):
        image(tmp_path / name)
    samples = open_samples(tmp_path, PIXELS, preprocess=RAW)
    assert [samples.load(i).label for i in range(2)] == [10, 7]


@pytest.mark.parametrize(
    ("mode", "value", "want"),
    [("L", 90, 90), ("1", 1, 255), ("I;16", 90 * 256 + 7, 90), ("RGBA", (90, 90, 90, 5), 90), ("LA", (90, 5), 90)],
)
def test_modes_become_8_bit_colours(tmp_path: Path, mode: str, value: int | tuple[int, ...], want: int) -> None:
    Image.new(mode, (6, 4), value).save(tmp_path / "a.png")
    assert values(open_samples(tmp_path, PIXELS, preprocess=RAW)) == [want]


def test_palette_with_transparency(tmp_path: Path) -> None:
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 50, 60, 70])
    palette.save(tmp_path / "a.png", transparency=bytes([255, 3]))
    sample = open_samples(tmp_path, PIXELS, preprocess=RAW).load(0)
    assert sample.feeds["input"][0, :, 0, 0].tolist() == [50, 60, 70]


def test_only_the_first_frame_of_a_gif(tmp_path: Path) -> None:
    frames = [Image.new("L", (6, 4), v) for v in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert values(open_samples(tmp_path, PIXELS, preprocess=RAW)) == [10]


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    turned = Image.new("RGB", (6, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.jpg", exif=exif)
    assert open_samples(tmp_path, PIXELS, preprocess=RAW).load(0).feeds["input"].shape == (1, 3, 4, 6)


def test_mixed_sizes_are_fine_when_resized(tmp_path: Path) -> None:
    image(tmp_path / "a.png", 3, (60, 50))
    image(tmp_path / "b.png", 4, (5, 9))
    samples = open_samples(tmp_path, PIXELS, preprocess=PRESETS["raw"])
    assert values(samples) == [3, 4]


def test_fixed_batch_stacks_images(tmp_path: Path) -> None:
    for k in range(5):
        image(tmp_path / f"{k % 2}/{k}.png", k)
    samples = open_samples(tmp_path, [spec(3, 3, 4, 6)], preprocess=RAW)
    assert samples.names == ("0/0.png +2", "1/1.png +1")
    first, last = samples.load(0), samples.load(1)
    assert first.feeds["input"][:, 0, 0, 0].tolist() == [0, 2, 4]
    assert last.feeds["input"][:, 0, 0, 0].tolist() == [1, 3, 3]
    assert (first.count, last.count) == (3, 2)
    assert np.asarray(first.label).tolist() == [0, 0, 0]
    assert np.asarray(last.label).tolist() == [1, 1]
    assert any("fixes a batch of 3: 2 batches; the last one is filled by repeating" in n for n in samples.notes)


def test_truncated_jpeg_is_a_corrupt_sample_and_the_rest_is_fine(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG")
    (tmp_path / "a.jpg").write_bytes(stream.getvalue()[:1500])
    image(tmp_path / "b.png", 5)
    samples = open_samples(tmp_path, PIXELS, preprocess=PRESETS["raw"])
    with pytest.raises(CorruptSampleError, match=r"^a\.jpg: cannot be read as an image: .*truncated") as caught:
        samples.load(0)
    assert caught.value.sample == "a.jpg"
    assert samples.load(1).feeds["input"].max() == 5


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_broken_images(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(CorruptSampleError) as caught:
        open_samples(tmp_path, PIXELS, preprocess=RAW).load(0)
    assert str(caught.value).startswith("a.png: ")


def test_broken_png_data(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorruptSampleError, match=r"a\.png: cannot be read"):
        open_samples(tmp_path, PIXELS, preprocess=RAW).load(0)


def test_image_deleted_after_opening(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    samples = open_samples(tmp_path, PIXELS, preprocess=RAW)
    path.unlink()
    with pytest.raises(CorruptSampleError, match=r"a\.png"):
        samples.load(0)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(CorruptSampleError, match=r"a\.png: .*decompression bomb"):
        open_samples(tmp_path, PIXELS, preprocess=RAW).load(0)


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.new("F", (6, 4), 0.5).save(tmp_path / "a.tif")
    assert "a.tif: pixels are floating-point" in str(refusal(tmp_path, PIXELS, preprocess=RAW))


def test_image_smaller_than_the_crop(tmp_path: Path) -> None:
    image(tmp_path / "a.png", size=(5, 3))
    error = refusal(tmp_path, PIXELS, preprocess=Preprocess(crop=(4, 6)))
    assert "a.png: 3x5 (height x width) is smaller than the crop 4x6" in str(error)
    assert "resize" in error.hint


def test_image_of_another_size_without_resize(tmp_path: Path) -> None:
    image(tmp_path / "a.png", size=(5, 5))
    error = refusal(tmp_path, PIXELS, preprocess=RAW)
    assert str(error) == "a.png: preprocessed to [3, 5, 5], model input 'input' wants [N, 3, 4, 6]"
    assert "resize" in error.hint


def test_images_of_one_batch_must_agree(tmp_path: Path) -> None:
    image(tmp_path / "a.png", size=(5, 5))
    image(tmp_path / "b.png", size=(6, 5))
    assert "images of one batch differ in size" in str(refusal(tmp_path, [spec(2, 3, "h", "w")], preprocess=RAW))


def test_images_feed_one_input(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    error = refusal(tmp_path, VAD)
    assert "images feed a model with one input, this one has 3 ('input', 'state', 'sr')" in str(error)


@pytest.mark.parametrize("channels", [2, 5])
def test_wrong_channel_count(tmp_path: Path, channels: int) -> None:
    image(tmp_path / "a.png")
    assert "images fit inputs of 1 or 3 channels" in str(refusal(tmp_path, [spec("N", channels, 4, 6)]))


# --- what lies at the path ---


def test_missing_path(tmp_path: Path) -> None:
    error = refusal(tmp_path / "none", ROWS)
    assert str(error).endswith("none: no such file or folder")
    assert "test_data_set_*" in error.hint


def test_nothing_readable(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.txt").write_text("x")
    (tmp_path / "sub").mkdir()
    error = refusal(tmp_path, ROWS)
    found = "no samples (0 images, 0 .npy/.npz, 0 test_data_set_*); it holds 3 .txt files, 1 folder"
    assert str(error) == f"{tmp_path}: {found}"
    assert "supported:" in error.hint


def test_empty_folder(tmp_path: Path) -> None:
    assert "it holds nothing" in str(refusal(tmp_path, ROWS))


@pytest.mark.parametrize(("name", "what"), [("a.txt", "a .txt file"), ("a", "a file without an ending")])
def test_unknown_file(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_text("x")
    assert f"samples cannot be read from {what}" in str(refusal(tmp_path / name, ROWS))


def test_mixed_kinds(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", numbers(1, 4))
    assert "one kind of samples is wanted, found 1 images, 1 arrays" in str(refusal(tmp_path, ROWS))


def test_images_beside_class_folders(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "cat/b.png")
    assert "1 images lie beside class folders with 1 more" in str(refusal(tmp_path, PIXELS))


# --- limit, seed, description ---


def test_limit_chooses_by_seed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(100, 4))
    chosen = sorted(random.Random(3).sample(range(100), 10))  # noqa: S311
    samples = open_samples(tmp_path / "x.npy", ROWS, limit=10, seed=3)
    assert samples.names == tuple(f"x.npy[{k}]" for k in chosen)
    assert values(samples) == [4.0 * k for k in chosen]
    assert open_samples(tmp_path / "x.npy", ROWS, limit=10, seed=4).names != samples.names
    assert (samples.description["count"], samples.description["available"]) == (10, 100)


def test_limit_above_what_there_is(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(3, 4))
    samples = open_samples(tmp_path / "x.npy", ROWS, limit=10)
    assert len(samples) == 3
    assert "10 samples asked for, all 3 are used" in samples.notes
    assert "expected at least 1, got 0" in str(refusal(tmp_path / "x.npy", ROWS, limit=0))


def test_description_is_json_and_follows_the_files(tmp_path: Path) -> None:
    for k in range(2):
        image(tmp_path / "set" / f"{k}.png", k)
    first = open_samples(tmp_path / "set", PIXELS, preprocess=RAW).description
    assert first["kind"] == "images"
    assert first["path"] == "set"
    assert json.loads(json.dumps(first)) == first
    assert str(tmp_path) not in json.dumps(first)
    again = open_samples(tmp_path / "set", PIXELS, preprocess=RAW).description
    assert again == first
    image(tmp_path / "set" / "1.png", 9, (60, 60))
    changed = open_samples(tmp_path / "set", PIXELS, preprocess=RAW).description
    assert changed["fingerprint"] != first["fingerprint"]


def test_relative_paths_stay_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "data" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert open_samples("data", PIXELS).description["path"] == "data"
    monkeypatch.chdir(tmp_path / "data")
    assert open_samples(".", PIXELS).names == ("a.png",)


def test_threads_and_pickle_read_the_same(tmp_path: Path) -> None:
    data = numbers(50, 4)
    np.savez_compressed(tmp_path / "x.npz", input=data)
    samples = open_samples(tmp_path / "x.npz", ROWS)
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(samples.load, range(50)))
    assert np.array_equal(np.concatenate([s.feeds["input"] for s in loaded]), data)
    travelled: SampleSet = pickle.loads(pickle.dumps(samples))  # noqa: S301
    assert len(pickle.dumps(samples)) < 10_000
    assert np.array_equal(travelled.load(7).feeds["input"], data[7:8])


def test_threads_share_an_image_folder(tmp_path: Path) -> None:
    for k in range(40):
        image(tmp_path / f"{k:02}.png", k)
    samples = open_samples(tmp_path, PIXELS, preprocess=PRESETS["raw"])
    with ThreadPoolExecutor(8) as pool:
        assert [s.feeds["input"].max() for s in pool.map(samples.load, range(40))] == list(range(40))
    assert pickle.loads(pickle.dumps(samples)).load(3).feeds["input"].max() == 3  # noqa: S301


# --- labels ---


@pytest.mark.parametrize(
    "text",
    [
        "file,label\n1.png,5\n0.png,3\n",
        "0.png,3\n1.png,5\n",
        "\ufefflabel;file\n3;0.png\n5;1.png\n",
        "0.png 3\n1.png 5\n\n",
        "val/0.png,3\nval\\1.png,5",
        "split,file,label\na,0.png,3\na,1.png,5",
    ],
)
def test_label_files(tmp_path: Path, text: str) -> None:
    for k in range(2):
        image(tmp_path / "set" / f"{k}.png", k)
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    samples = open_samples(tmp_path / "set", PIXELS, preprocess=RAW, labels=tmp_path / "labels.csv")
    assert [samples.load(i).label for i in range(2)] == [3, 5]
    assert samples.labelled


def test_label_file_may_name_classes_and_wins_over_folders(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        image(tmp_path / "set" / name)
    (tmp_path / "labels.csv").write_text("file,label\ncat/1.png,dog\ndog/1.png,cat\n2.png,8\nother.png,1\n")
    samples = open_samples(tmp_path / "set", PIXELS, preprocess=RAW, labels=tmp_path / "labels.csv")
    assert [samples.load(i).label for i in range(3)] == [1, 0, 8]
    assert "labels.csv: 1 labels belong to no sample" in samples.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n0.png,1\n", "labels.csv: no label for '1.png' (2 of 3 samples have none)"),
        ("", "labels.csv: no label for '0.png' (3 of 3 samples have none)"),
        ("0.png,cat\n1.png,1\n2.png,2", "labels.csv:1: expected a whole number, got 'cat'"),
        ("file,label\n0.png", "labels.csv:2: expected a file and a label, got '0.png'"),
        ("0.png,1\n1.png,1\n0.png,2", "labels.csv:3: '0.png' is '2' here, '1' in line 1"),
    ],
)
def test_wrong_label_files(tmp_path: Path, text: str, message: str) -> None:
    for k in range(3):
        image(tmp_path / "set" / f"{k}.png")
    (tmp_path / "labels.csv").write_text(text)
    assert message in str(refusal(tmp_path / "set", PIXELS, preprocess=RAW, labels=tmp_path / "labels.csv"))


def test_unknown_class_name_is_told_the_classes(tmp_path: Path) -> None:
    image(tmp_path / "set" / "cat" / "1.png")
    (tmp_path / "labels.csv").write_text("cat/1.png,cow\n")
    error = refusal(tmp_path / "set", PIXELS, preprocess=RAW, labels=tmp_path / "labels.csv")
    assert "one of the class folders (cat, ...), got 'cow'" in str(error)


def test_unreadable_label_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(3, 4))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    np.save(tmp_path / "short.npy", np.zeros(2, np.int64))
    np.save(tmp_path / "real.npy", np.zeros(3, np.float32))
    for name, message in {
        "none.csv": "labels cannot be read: No such file",
        "bytes.csv": "not CSV text",
        "bad.npy": "labels cannot be read",
        "short.npy": "labels have shape (2,) for 3 samples",
        "real.npy": "one .npy array of whole numbers",
    }.items():
        assert message in str(refusal(tmp_path / "x.npy", ROWS, labels=tmp_path / name))


def test_labels_from_an_array_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(3, 4))
    np.save(tmp_path / "y.npy", np.array([4, 5, 6]))
    samples = open_samples(tmp_path / "x.npy", ROWS, labels=tmp_path / "y.npy", limit=2, seed=1)
    labels = [samples.load(i).label for i in range(2)]
    assert labels == [4 + int(v // 4) for v in values(samples)]


# --- arrays ---


@pytest.mark.parametrize("key", ["input", "x", "anything"])
def test_any_key_feeds_a_single_input(tmp_path: Path, key: str) -> None:
    np.savez(tmp_path / "d.npz", **{key: numbers(3, 4), "y": np.array([7, 8, 9]), "meta_source": np.array("x")})  # type: ignore[arg-type]
    samples = open_samples(tmp_path / "d.npz", ROWS)
    assert samples.names == ("d.npz[0]", "d.npz[1]", "d.npz[2]")
    assert samples.labelled
    last = samples.load(2)
    assert last.label == 9
    assert isinstance(last.label, int)
    assert np.array_equal(last.feeds["input"], [[8, 9, 10, 11]])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_read_where_they_lie(tmp_path: Path, order: Literal["C", "F"], *, compressed: bool) -> None:
    data = np.asarray(np.random.default_rng(0).normal(size=(7, 3, 4, 6)).astype(np.float32), order=order)
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "d.npz", first=numbers(7), input=data)
    np.save(tmp_path / "d.npy", data)
    for name in ("d.npy", "d.npz"):
        samples = open_samples(tmp_path / name, PIXELS)
        assert np.array_equal(np.concatenate([samples.load(i).feeds["input"] for i in range(7)]), data)
        assert samples.load(3).feeds["input"].flags.c_contiguous


@pytest.mark.parametrize(
    ("shape", "count", "fed"),
    [((5, 1, 4), 5, (1, 4)), ((5, 2, 4), 5, (2, 4)), ((5, 4), 5, (1, 4)), ((4,), 1, (1, 4))],
)
def test_the_rank_says_what_the_first_axis_is(
    tmp_path: Path, shape: tuple[int, ...], count: int, fed: tuple[int, ...]
) -> None:
    data = numbers(*shape)
    np.save(tmp_path / "x.npy", data)
    samples = open_samples(tmp_path / "x.npy", ROWS)
    assert len(samples) == count
    assert all(samples.load(i).feeds["input"].shape == fed for i in range(count))
    assert np.array_equal(np.concatenate([samples.load(i).feeds["input"].ravel() for i in range(count)]), data.ravel())


def test_fixed_batch_groups_rows_across_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numbers(3, 4))
    np.save(tmp_path / "b.npy", numbers(2, 4) + 100)
    samples = open_samples(tmp_path, [spec(2, 4)])
    assert [s.feeds["input"][:, 0].tolist() for s in map(samples.load, range(3))] == [[0, 4], [8, 100], [104, 104]]
    assert samples.load(2).count == 1
    assert samples.names[1] == "a.npy[2] +1"
    assert any("batch of 2: 3 batches" in n for n in samples.notes)


def test_batches_of_the_models_own_size_are_fed_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(3, 2, 4))
    samples = open_samples(tmp_path / "x.npy", [spec(2, 4)])
    assert len(samples) == 3
    assert np.array_equal(samples.load(1).feeds["input"], numbers(3, 2, 4)[1])


def test_fixed_batch_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=numbers(3, 4), y=np.array([[1, 2], [3, 4], [5, 6]]))
    samples = open_samples(tmp_path / "d.npz", [spec(2, 4)])
    assert np.asarray(samples.load(0).label).tolist() == [[1, 2], [3, 4]]
    assert np.asarray(samples.load(1).label).tolist() == [[5, 6]]


def test_several_inputs_by_name(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "d.npz", input=numbers(5, 1, 16), state=numbers(5, 2, 1, 8), sr=np.full(5, 16000), note=numbers(1)
    )
    samples = open_samples(tmp_path / "d.npz", VAD)
    feeds = samples.load(4).feeds
    assert {k: (v.shape, v.dtype.name) for k, v in feeds.items()} == {
        "input": ((1, 16), "float32"),
        "state": ((2, 1, 8), "float32"),
        "sr": ((), "int64"),
    }
    assert int(feeds["sr"]) == 16000
    assert "d.npz: note ignored, the model has no such input" in samples.notes


def test_one_file_a_sample_with_several_inputs(tmp_path: Path) -> None:
    for k in range(3):
        np.savez(tmp_path / f"{k}.npz", input=numbers(1, 16) + k, state=numbers(2, 1, 8), sr=np.array(8000))
    samples = open_samples(tmp_path, VAD)
    assert samples.names == ("0.npz", "1.npz", "2.npz")
    assert values(samples) == [0, 1, 2]
    assert samples.load(2).feeds["state"].shape == (2, 1, 8)


def test_a_scalar_holds_for_every_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", input=numbers(5, 16), state=numbers(5, 2, 1, 8), sr=np.array(8000, np.int32))
    samples = open_samples(tmp_path / "d.npz", VAD)
    assert len(samples) == 5
    assert samples.load(3).feeds["sr"].dtype == np.int64
    assert int(samples.load(3).feeds["sr"]) == 8000


def test_a_folder_with_one_npy_an_input(tmp_path: Path) -> None:
    np.save(tmp_path / "input.npy", numbers(5, 16))
    np.save(tmp_path / "state.npy", numbers(5, 2, 1, 8))
    np.save(tmp_path / "sr.npy", np.full(5, 8000))
    assert len(open_samples(tmp_path, VAD)) == 5


def test_a_folder_with_x_and_y(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(3, 4))
    np.save(tmp_path / "y.npy", np.array([3, 2, 1]))
    samples = open_samples(tmp_path, ROWS)
    assert [samples.load(i).label for i in range(3)] == [3, 2, 1]


def test_a_folder_of_samples(tmp_path: Path) -> None:
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", numbers(4) + k)
    samples = open_samples(tmp_path, ROWS)
    assert (samples.names, values(samples)) == (("0.npy", "1.npy", "2.npy"), [0, 1, 2])


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("float64", "float32"),
        ("float32", "float16"),
        ("float16", "float64"),
        ("int32", "int64"),
        ("int64", "int32"),
        ("uint8", "float32"),
        (">f4", "float32"),
        ("bool", "int64"),
    ],
)
def test_casts_that_keep_the_values(tmp_path: Path, have: str, want: str) -> None:
    data = np.array([[0, 1, 1, 0]], have)
    np.save(tmp_path / "x.npy", data)
    fed = open_samples(tmp_path / "x.npy", [spec("N", 4, dtype=want)]).load(0).feeds["input"]
    assert fed.dtype == np.dtype(want)
    assert fed.tolist() == data.tolist()


def test_integers_for_a_float_input_are_said(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(1, 4, dtype=np.uint8))
    assert "x.npy is uint8: fed as float32, values as they are" in open_samples(tmp_path / "x.npy", ROWS).notes


def test_texts(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([["a", "bc"]]))
    fed = open_samples(tmp_path / "x.npy", [spec("N", 2, dtype=object)]).load(0).feeds["input"]
    assert fed.dtype == object
    assert fed.tolist() == [["a", "bc"]]


@pytest.mark.parametrize(
    ("data", "inputs", "message"),
    [
        (numbers(2, 4), [spec("N", 4, dtype="int64")], "x.npy is float32, model input 'input' wants int64"),
        (np.full((1, 4), 2**40), [spec("N", 4, dtype="int32")], "int64 values do not fit int32"),
        (np.full((1, 4), 1e6, np.float32), [spec("N", 4, dtype="float16")], "float32 values overflow float16"),
        (np.array([["a"] * 4]), ROWS, "x.npy is str"),
        (numbers(2, 5), ROWS, "x.npy has shape [2, 5], model input 'input' wants [N, 4]"),
        (numbers(2, 1, 1, 4), ROWS, "x.npy has shape [2, 1, 1, 4], model input 'input' wants [N, 4]"),
        (numbers(5), ROWS, "x.npy has shape [5], model input 'input' wants [N, 4]"),
        (np.array(1, np.float32), ROWS, "x.npy has shape [], model input 'input' wants [N, 4]"),
        (numbers(2, 3, 4), [spec(2, 4)], "x.npy has shape [2, 3, 4], model input 'input' wants [2, 4]"),
        (numbers(0, 4), ROWS, "x.npy: no samples, the first axis is empty"),
        (np.array([[1, None, 2, 3]], object), ROWS, "x.npy holds Python objects (pickle)"),
        (np.zeros(2, [("a", "f4")]), ROWS, "x.npy holds records"),
        (numbers(2, 16), VAD, "x.npy: no array for model input 'input', 'sr', 'state'; it holds one array"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, data: npt.NDArray[Any], inputs: list[InputSpec], message: str) -> None:
    np.save(tmp_path / "x.npy", data, allow_pickle=True)
    assert message in str(refusal(tmp_path / "x.npy", inputs))


@pytest.mark.parametrize(
    ("arrays", "inputs", "message"),
    [
        ({"a": numbers(2, 4), "b": numbers(2, 4)}, ROWS, "d.npz: no array for model input 'input'; it holds 'a', 'b'"),
        ({"y": numbers(2)}, ROWS, "d.npz: no array for model input 'input'; it holds none"),
        (
            {"input": numbers(2, 16), "state": numbers(2, 2, 1, 8)},
            VAD,
            "d.npz: no array for model input 'sr'; it holds 'input', 'state'",
        ),
        (
            {"input": numbers(2, 16), "state": numbers(3, 2, 1, 8), "sr": np.array(1)},
            VAD,
            "d.npz: inputs differ in their number of samples ('input' 2, 'state' 3)",
        ),
        (
            {"input": numbers(1, 16), "state": numbers(3, 1, 8), "sr": np.array(1)},
            VAD,
            "d.npz: 'state' has 3 rows, model input 'state' takes 2 at a time",
        ),
        ({"x": numbers(2, 4), "y": np.arange(3)}, ROWS, "d.npz: 'y' has 3 labels for 2 samples"),
        ({"x": np.array([[1, 2, 3, None]], object)}, ROWS, "d.npz: 'x' holds Python objects"),
        (
            {"input": numbers(10, 3, 32, 32)},
            [spec("batch", 3, 224, 224)],
            "d.npz: 'input' has shape [10, 3, 32, 32], model input 'input' wants [batch, 3, 224, 224]",
        ),
    ],
)
def test_npz_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], inputs: list[InputSpec], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    error = refusal(tmp_path / "d.npz", inputs)
    assert message in str(error)
    assert error.hint


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_name_the_sample_and_how_many(tmp_path: Path, bad: float) -> None:
    data = numbers(3, 4)
    data[1, 2:] = bad
    np.savez(tmp_path / "d.npz", input=data)
    samples = open_samples(tmp_path / "d.npz", ROWS)
    samples.load(0)
    with pytest.raises(DataError, match=r"d\.npz\[1\]: 'input': 2 of 4 values are NaN or infinite") as caught:
        samples.load(1)
    assert not isinstance(caught.value, CorruptSampleError)


def test_real_valued_labels_are_ignored_and_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=numbers(2, 4), y=np.array([0.5, 1.5]))
    samples = open_samples(tmp_path / "d.npz", ROWS)
    assert not samples.labelled
    assert "d.npz: 'y' is float64, not class numbers: ignored" in samples.notes


def test_labels_in_some_files_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=numbers(2, 4), y=np.arange(2))
    np.savez(tmp_path / "b.npz", x=numbers(2, 4))
    assert "b.npz: no labels, as in 1 of 2 files" in str(refusal(tmp_path, ROWS))


def test_an_input_may_be_called_y(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", y=numbers(2, 4), labels=np.arange(2))
    samples = open_samples(tmp_path / "d.npz", [spec("N", 4, name="y")])
    assert samples.load(1).label == 1


def test_preprocessing_is_for_images(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(2, 4))
    assert "preprocessing is for images" in str(refusal(tmp_path / "x.npy", ROWS, preprocess=RAW))


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"\x93NUMPY\x01\x00\x10\x00nonsense", b"PK\x03\x04broken"])
def test_broken_array_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptSampleError, match=name):
        open_samples(tmp_path / name, ROWS)
    np.save(tmp_path / "y0.npy", numbers(4))
    samples = open_samples(tmp_path, ROWS)
    assert samples.names == (name, "y0.npy")
    with pytest.raises(CorruptSampleError, match=name) as caught:
        samples.load(0)
    assert caught.value.sample == name
    assert samples.load(1).feeds["input"].shape == (1, 4)


def test_truncated_array_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbers(100, 4))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    samples = open_samples(tmp_path / "x.npy", ROWS)
    samples.load(98)
    with pytest.raises(CorruptSampleError, match=r"x\.npy: the file ends before the array does"):
        samples.load(99)


def test_broken_compressed_member(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32))
    data = bytearray((tmp_path / "d.npz").read_bytes())
    data[800:900] = bytes(100)
    (tmp_path / "d.npz").write_bytes(data)
    with pytest.raises(CorruptSampleError, match=r"d\.npz"):
        open_samples(tmp_path / "d.npz", ROWS).load(0)


# --- ONNX test data ---


def tensor(path: Path, array: npt.NDArray[Any], name: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def test_test_data_by_name_whatever_the_order(tmp_path: Path) -> None:
    for k in (10, 2):
        folder = tmp_path / f"test_data_set_{k}"
        tensor(folder / "input_0.pb", np.array(16000, np.int64), "sr")
        tensor(folder / "input_1.pb", numbers(1, 16) + k, "input")
        tensor(folder / "input_2.pb", numbers(2, 1, 8), "state")
        tensor(folder / "output_0.pb", numbers(1), "output")
    samples = open_samples(tmp_path, VAD)
    assert samples.names == ("test_data_set_2", "test_data_set_10")
    assert values(samples) == [2, 10]
    assert samples.description["kind"] == "test-data"
    assert open_samples(tmp_path / "test_data_set_2", VAD).names == ("test_data_set_2",)


def test_test_data_by_order_without_names(tmp_path: Path) -> None:
    tensor(tmp_path / "test_data_set_0" / "input_0.pb", numbers(1, 16))
    tensor(tmp_path / "test_data_set_0" / "input_1.pb", numbers(2, 1, 8))
    tensor(tmp_path / "test_data_set_0" / "input_2.pb", np.array(7, np.int64))
    feeds = open_samples(tmp_path, VAD).load(0).feeds
    assert int(feeds["sr"]) == 7
    assert feeds["state"].shape == (2, 1, 8)


def test_test_data_with_missing_inputs(tmp_path: Path) -> None:
    tensor(tmp_path / "test_data_set_0" / "input_0.pb", numbers(1, 16))
    assert "test_data_set_0: 1 input_*.pb for 3 model inputs (input, state, sr)" in str(refusal(tmp_path, VAD))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (numbers(1, 5), "test_data_set_0/input_0.pb has shape [1, 5], model input 'input' wants [N, 4]"),
        (numbers(4), "test_data_set_0/input_0.pb has shape [4]"),
        (numbers(1, 4) * np.float32(np.nan), "test_data_set_0/input_0.pb: 4 of 4 values are NaN"),
        (np.array([["a"] * 4], object), "test_data_set_0/input_0.pb is object"),
    ],
)
def test_test_data_that_does_not_fit(tmp_path: Path, array: npt.NDArray[Any], message: str) -> None:
    tensor(tmp_path / "test_data_set_0" / "input_0.pb", array)
    assert message in str(refusal(tmp_path, ROWS))


@pytest.mark.parametrize("content", [b"\xff\xff\xff", b"", b"\x08\x04\x10\x01J\x02ab"])
def test_broken_test_data(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test_data_set_0").mkdir()
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(content)
    samples = open_samples(tmp_path, ROWS)
    with pytest.raises(CorruptSampleError, match=r"test_data_set_0/input_0\.pb: not a readable tensor") as caught:
        samples.load(0)
    assert caught.value.sample == "test_data_set_0"


def test_test_data_with_external_values(tmp_path: Path) -> None:
    proto = onnx.TensorProto(name="input", dims=[1, 4], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    (tmp_path / "input_0.pb").write_bytes(proto.SerializeToString())
    with pytest.raises(CorruptSampleError, match=r"values lie in another file"):
        open_samples(tmp_path, ROWS).load(0)


# --- the benchmark's own data ---


@pytest.mark.skipif(not BENCH.exists(), reason="shared benchmark data is absent")
@pytest.mark.bench
class TestBenchmarkData:
    def test_silero(self) -> None:
        inputs = [spec("batch", "sequence"), spec(2, "batch", 128, name="state"), spec(name="sr", dtype=np.int64)]
        path = BENCH / "data/silero/calib.npz"
        samples = open_samples(path, inputs)
        raw = np.load(path)
        assert len(samples) == 200
        for i in (0, 7, 199):
            feeds = samples.load(i).feeds
            assert all(np.array_equal(feeds[key], raw[key][i]) for key in ("input", "state", "sr"))
            assert feeds["state"].shape == (2, 1, 128)

    def test_stories(self) -> None:
        inputs = [spec("N", 64, name="ids", dtype=np.int64)]
        calib = open_samples(BENCH / "data/stories260k/calib.npz", inputs)
        assert (len(calib), calib.labelled, calib.load(63).feeds["ids"].shape) == (64, False, (1, 64))
        evaluation = open_samples(BENCH / "data/stories260k/eval.npz", inputs)
        assert np.asarray(evaluation.load(5).label).shape == (64,)

    def test_imagenet(self) -> None:
        samples = open_samples(
            BENCH / "data/imagenet/eval",
            [spec("batch", 3, 224, 224)],
            labels=BENCH / "data/imagenet/eval_labels.csv",
            classes_hint=1000,
        )
        assert len(samples) == 300
        assert samples.load(0).label == 750
        assert samples.notes[0].startswith("preprocessing 'imagenet' (")

    def test_cifar10(self) -> None:
        samples = open_samples(BENCH / "data/cifar10/eval", [spec("N", 3, 32, 32)], preprocess=PRESETS["cifar"])
        assert samples.load(0).label == 0
        assert samples.load(len(samples) - 1).label == 9


# --- reading ahead ---


@pytest.fixture
def spill() -> Iterator[Spill]:
    with closing(Spill()) as spill:
        yield spill


def read_ahead(
    samples: SampleSet, numbers: Iterable[int], known: Mapping[int, Sample], spill: Spill, *, until: int
) -> ReadAhead:
    """One that has read as far as this number."""
    passed = Event()

    def told() -> Iterator[int]:
        for number in numbers:
            if number == until:
                passed.set()
            yield number

    ahead = ReadAhead(samples, told(), known, spill)
    assert passed.wait(60)
    return ahead


def test_reading_ahead_keeps_what_it_reads(tmp_path: Path, spill: Spill) -> None:
    np.save(tmp_path / "a.npy", numbers(5, 4))
    samples = open_samples(tmp_path / "a.npy", ROWS)
    known = {2: samples.load(2)}
    ahead = read_ahead(samples, [4, 2, 0, 1], known, spill, until=1)
    found = ahead.take()
    assert {0, 2, 4} <= found.keys() <= {0, 1, 2, 4}
    assert found[2] is known[2]
    for number, sample in found.items():
        assert sample.name == samples.load(number).name
        np.testing.assert_array_equal(sample.feeds["input"], samples.load(number).feeds["input"])


def test_reading_ahead_leaves_out_what_cannot_be_read(tmp_path: Path, spill: Spill) -> None:
    for name in "abc":
        image(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    samples = open_samples(tmp_path, PIXELS, preprocess=RAW)
    ahead = read_ahead(samples, [0, 1, 2, 0], {}, spill, until=2)
    assert {0} <= ahead.take().keys() <= {0, 2}


def test_reading_ahead_ends_when_it_is_closed(tmp_path: Path, spill: Spill) -> None:
    np.save(tmp_path / "a.npy", numbers(5, 4))
    given: list[int] = []

    def endless() -> Iterator[int]:
        for number in cycle(range(5)):
            given.append(number)
            yield number

    ahead = ReadAhead(open_samples(tmp_path / "a.npy", ROWS), endless(), {}, spill)
    ahead.close()
    count = len(given)
    assert len(ahead.take()) <= 5
    assert len(given) == count
