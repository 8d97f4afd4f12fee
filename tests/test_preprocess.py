"""The preprocessing spec: presets, JSON Schema, and what the model's input decides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydantic import ValidationError

from qconvert.errors import DataError
from qconvert.preprocess import PRESET_HELP, PRESETS, Preprocess, Resize, preset, resolve
from qconvert.samples import InputSpec, open_samples

F32 = np.dtype(np.float32)
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
Shape = tuple["int | str | None", ...]
Filter = Literal["bilinear", "bicubic", "nearest", "lanczos", "area"]


def picture(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """A smooth picture with noise, so that filters and rounding matter."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 7 + c) * np.cos(y / (5 + c)) for c in range(3)], -1) * 100 + 128
    Image.fromarray(np.clip(waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)).save(path)
    return path


def feed(path: Path, shape: Shape, spec: Preprocess | None, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    return open_samples(path, [InputSpec("input", np.dtype(dtype), shape)], preprocess=spec).load(0).feeds["input"]


def norm(image: Image.Image) -> npt.NDArray[np.float32]:
    return ((np.asarray(image, np.float32) / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)


# The formulas of bench/make_npz.py, word for word.
def reference_imagenet(path: Path) -> npt.NDArray[np.float32]:
    image = Image.open(path).convert("RGB")
    k = 256 / min(image.size)
    image = image.resize(
        (max(256, round(image.size[0] * k)), max(256, round(image.size[1] * k))), Image.Resampling.BILINEAR
    )
    left, top = (image.size[0] - 224) // 2, (image.size[1] - 224) // 2
    return norm(image.crop((left, top, left + 224, top + 224)))


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (256, 256), (100, 90), (301, 257), (1000, 260)])
def test_imagenet_equals_the_benchmarks_arrays(tmp_path: Path, size: tuple[int, int]) -> None:
    path = picture(tmp_path / "a.jpg", *size)
    ours = feed(path, ("batch", 3, 224, 224), PRESETS["imagenet"])
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    assert np.array_equal(ours, reference_imagenet(path)[None])


def test_ultraface_equals_the_benchmarks_arrays(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg", 500, 333)
    image = Image.open(path).convert("RGB").resize((320, 240), Image.Resampling.BILINEAR)
    want = ((np.asarray(image, np.float32) - 127) / 128).transpose(2, 0, 1)
    assert np.array_equal(feed(path, (1, 3, 240, 320), PRESETS["ultraface"]), want[None])


def test_cifar_equals_the_benchmarks_arrays(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 32, 32)
    assert np.array_equal(feed(path, ("N", 3, 32, 32), PRESETS["cifar"]), norm(Image.open(path).convert("RGB"))[None])


def test_unit_and_raw_and_centered(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 32, 32)
    x = np.asarray(Image.open(path), np.float32).transpose(2, 0, 1)[None]
    shape = ("N", 3, 32, 32)
    assert np.array_equal(feed(path, shape, PRESETS["unit"]), x / 255)
    assert np.array_equal(feed(path, shape, PRESETS["raw"]), x)
    np.testing.assert_allclose(feed(path, shape, PRESETS["centered"]), x / 127.5 - 1, atol=2e-7)


def test_nhwc_and_bgr(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 20, 10)
    x = np.asarray(Image.open(path), np.float32)
    spec = Preprocess(color="bgr", scale=1, mean=(1, 2, 3))
    assert np.array_equal(feed(path, ("N", 10, 20, 3), spec), (x[:, :, ::-1] - np.array([1, 2, 3], np.float32))[None])


def test_gray_and_half_precision(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 28, 28)
    x = np.asarray(Image.open(path).convert("L"), np.float32) / 255
    ours = feed(path, ("N", 1, 28, 28), PRESETS["unit"], np.float16)
    assert np.array_equal(ours, x.astype(np.float16)[None, None])


def test_integer_input_takes_pixels_as_they_are(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 28, 28)
    ours = feed(path, (1, 28, 28, 3), None, np.uint8)
    assert np.array_equal(ours, np.asarray(Image.open(path))[None])
    with pytest.raises(DataError, match=r"takes uint8, the preprocessing gives fractions"):
        feed(path, (1, 28, 28, 3), PRESETS["unit"], np.uint8)


def test_input_without_batch_axis(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 28, 20)
    assert feed(path, (3, "h", "w"), Preprocess()).shape == (3, 20, 28)


@pytest.mark.parametrize(("width", "height"), [(640, 320), (100, 400), (77, 51)])
def test_letterbox_keeps_the_aspect_ratio_and_pads_with_grey(tmp_path: Path, width: int, height: int) -> None:
    Image.new("RGB", (width, height), (255, 0, 0)).save(tmp_path / "a.png")
    ours = feed(tmp_path / "a.png", (1, 3, 200, 200), PRESETS["yolo"])[0]
    factor = min(200 / width, 200 / height)
    w, h = round(width * factor), round(height * factor)
    top, left = (200 - h) // 2, (200 - w) // 2
    want = np.full((3, 200, 200), np.float32(114 / 255), np.float32)
    want[:, top : top + h, left : left + w] = np.array([1, 0, 0], np.float32)[:, None, None]
    assert np.array_equal(ours, want)


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "nearest", "lanczos", "area"])
def test_every_filter(tmp_path: Path, name: Filter) -> None:
    path = picture(tmp_path / "a.png", 60, 40)
    method = {"area": "BOX"}.get(name, name.upper())
    want = np.asarray(Image.open(path).resize((30, 20), Image.Resampling[method]), np.float32).transpose(2, 0, 1)
    spec = Preprocess(resize=Resize(size=(20, 30), interpolation=name), scale=1)
    assert np.array_equal(feed(path, ("N", 3, "h", "w"), spec)[0], want)


def test_short_side_of_an_open_size_follows_the_image(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 60, 40)
    spec = Preprocess(resize=Resize(mode="short_side", size=20))
    assert feed(path, ("N", 3, "h", "w"), spec).shape == (1, 3, 20, 30)


# --- resolve ---


@pytest.mark.parametrize(
    ("shape", "layout", "color"),
    [
        (("N", 3, 64, 48), "nchw", "rgb"),
        (("N", 64, 48, 3), "nhwc", "rgb"),
        (("N", 1, 28, 28), "nchw", "gray"),
        ((None, 28, 28, 1), "nhwc", "gray"),
        ((3, 64, 48), "nchw", "rgb"),
    ],
)
def test_resolve_takes_layout_color_and_size_from_the_input(shape: Shape, layout: str, color: str) -> None:
    made, notes = resolve(PRESETS["unit"], shape, name="x")
    assert (made.layout, made.color) == (layout, color)
    assert made.resize is not None
    assert made.resize.size == ((28, 28) if 28 in shape else (64, 48))
    assert len(notes) == 1
    assert notes[0].startswith(f"layout {layout}, color {color}, size ")
    assert "input 'x' [" in notes[0]


def test_resolve_says_the_size_and_the_shape() -> None:
    spec = Preprocess(resize=Resize(), color="rgb")
    _, notes = resolve(spec, ("batch", 3, 224, 224))
    assert notes == ("layout nchw, size 224x224 taken from input 'input' [batch, 3, 224, 224]",)


def test_resolving_twice_changes_nothing() -> None:
    for spec in PRESETS.values():
        once, _ = resolve(spec, ("N", 3, 224, 224))
        assert resolve(once, ("N", 3, 224, 224)) == (once, ())


@pytest.mark.parametrize(
    ("shape", "classes", "dtype", "chosen"),
    [
        (("N", 3, 224, 224), 1000, F32, "imagenet"),
        (("N", 3, 224, 224), 10, F32, "unit"),
        (("N", 3, 224, 224), None, F32, "unit"),
        (("N", 3, 299, 299), 1000, F32, "unit"),
        (("N", 1, 28, 28), 10, F32, "unit"),
        (("N", 224, 224, 3), 1000, np.dtype(np.uint8), "raw"),
    ],
)
def test_the_default_is_said(shape: Shape, classes: int | None, dtype: np.dtype[Any], chosen: str) -> None:
    made, notes = resolve(None, shape, classes=classes, dtype=dtype)
    assert made == resolve(PRESETS[chosen], shape)[0]
    assert notes[0].startswith(f"preprocessing '{chosen}' (")
    assert "--preprocess PRESET" in notes[0]


def test_short_side_without_crop_takes_the_models_size_as_crop() -> None:
    made, _ = resolve(Preprocess(resize=Resize(mode="short_side", size=256)), ("N", 3, 224, 200))
    assert made.crop == (224, 200)


def test_an_open_size_is_settled_by_the_spec() -> None:
    made, notes = resolve(PRESETS["imagenet"], ("N", 3, "h", "w"))
    assert made.height_width == (224, 224)
    assert notes == ("layout nchw taken from input 'input' [N, 3, h, w]",)


@pytest.mark.parametrize(
    ("spec", "shape", "message", "hint"),
    [
        (PRESETS["unit"], ("N", 3, "h", "w"), "leaves the image size open", "size: [height, width]"),
        (None, ("N", 3, None, None), "leaves the image size open", "size: [height, width]"),
        (PRESETS["unit"], ("N", 2, 32, 32), "1 or 3 channels", ".npz"),
        (PRESETS["unit"], ("N", 5, 32, 32), "1 or 3 channels", ".npz"),
        (PRESETS["unit"], ("N", 4, 32, 32), "1 or 3 channels, not 4", ".npz"),
        (PRESETS["unit"], ("N", 32, 32, 2), "1 or 3 channels", ".npz"),
        (PRESETS["unit"], ("N", 3, 32, 3), "channels may come first or last", "layout: nchw"),
        (PRESETS["unit"], ("N", "c", "h", "w"), "does not say where the channels are", "layout"),
        (PRESETS["unit"], ("N", 64), "1 or 3 channels", ".npz"),
        (Preprocess(layout="nchw"), ("N", 64), "3 or 4 axes, not 2", ".npz"),
        (Preprocess(layout="nhwc"), ("N", 3, 32, 32), "1 or 3 channels, not 32", ".npz"),
        (PRESETS["yolo"], ("N", 1, 32, 32), "color rgb gives 3 channels, not 1", "color: gray"),
        (Preprocess(color="gray"), ("N", 3, 32, 32), "color gray gives 1 channels, not 3", "color: rgb"),
        (Preprocess(mean=(0, 0, 0)), ("N", 1, 32, 32), "mean has 3 numbers for 1 channels", "one number or 1"),
        (Preprocess(std=(1, 1)), ("N", 3, 32, 32), "std has 2 numbers for 3 channels", "one number or 3"),
        (PRESETS["imagenet"], ("N", 3, 299, 299), "gives images of 224x224", "leave the size out"),
    ],
)
def test_resolve_refuses(spec: Preprocess | None, shape: Shape, message: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        resolve(spec, shape, name="pixels")
    assert message in str(caught.value)
    assert "input 'pixels' [" in str(caught.value)
    assert hint in caught.value.hint


# --- the value itself ---


def test_presets_are_described_and_survive_json() -> None:
    assert PRESETS.keys() == PRESET_HELP.keys()
    for name, spec in PRESETS.items():
        assert "\n" not in PRESET_HELP[name]
        assert Preprocess.model_validate_json(spec.model_dump_json()) == spec
        assert preset(name) is spec


def test_unknown_preset() -> None:
    with pytest.raises(DataError, match=r"expected one of imagenet, .*got 'imagnet'") as caught:
        preset("imagnet")
    assert caught.value.hint == "did you mean imagenet?"


def test_every_field_is_described_in_the_schema() -> None:
    schema = Preprocess.model_json_schema()
    fields = {**schema["properties"], **schema["$defs"]["Resize"]["properties"]}
    assert all(field.get("description") for field in fields.values())
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": {"mode": "short_side"}},
        {"resize": {"mode": "short_side", "size": [1, 2]}},
        {"resize": {"size": 0}},
        {"resize": {"pad_value": 256}},
        {"crop": [224]},
        {"std": 0},
        {"std": [1, 1, 0]},
        {"scale": float("nan")},
        {"color": "cmyk"},
        {"colour": "rgb"},
    ],
)
def test_wrong_specs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocess.model_validate(wrong)


def test_importing_the_spec_imports_neither_pillow_nor_onnx() -> None:
    code = "import sys, qconvert.preprocess, qconvert.samples; print({'PIL', 'onnx', 'onnxruntime'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
