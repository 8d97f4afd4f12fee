"""Image files to model inputs: the pixel work of ``preprocess.Preprocess``, one image at a time.

Resizing and rounding follow the common Pillow recipe, bit for bit: the long side is ``round(long * size / short)``, a
crop starts at ``(side - crop) // 2``, EXIF orientation is not applied, alpha is dropped. A byte goes through a table of
256 values a channel.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from qconvert.errors import CorruptSampleError, DataError
from qconvert.preprocess import CHANNELS, Preprocess, Resize, fixed, resolve, show_shape
from qconvert.samples.find import Found
from qconvert.samples.labels import class_numbers
from qconvert.samples.types import Array, InputSpec, Source

Pixels = npt.NDArray[np.uint8]
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
}
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True, eq=False)
class ImageReader:
    """Item numbers to ``{input: [batch, ...]}``.

    Attributes:
        spec: The model's image input.
        preprocess: Resolved for that input.
        table: ``[channels, 256]``: what each byte becomes, in the input's type.
        files: One image an item.
        names: Their names.
    """

    spec: InputSpec
    preprocess: Preprocess
    table: Array
    files: tuple[Path, ...]
    names: tuple[str, ...]

    def __call__(self, items: Sequence[int]) -> dict[str, Array]:
        """One feed of these images."""
        done: dict[int, Array] = {}
        for i in items:
            if i not in done:
                done[i] = self._one(i)
        if len({a.shape for a in done.values()}) > 1:
            raise DataError(
                f"{self.names[items[0]]}: images of one batch differ in size", hint="give a size: resize or crop"
            )
        batch = np.stack([done[i] for i in items])
        return {self.spec.name: batch[0] if len(self.spec.shape) == 3 else batch}

    def _one(self, i: int) -> Array:
        pixels = _pixels(self.files[i], self.names[i], self.preprocess)
        first = self.preprocess.layout == "nchw"
        planes = [np.take(row, pixels[:, :, c]) for c, row in enumerate(self.table)]
        made = np.stack(planes, axis=0 if first else -1)
        if any(fixed(want) not in (None, have) for want, have in zip(self.spec.shape[-3:], made.shape, strict=True)):
            raise DataError(
                f"{self.names[i]}: preprocessed to {show_shape(made.shape)}, "
                f"model input '{self.spec.name}' wants {show_shape(self.spec.shape)}",
                hint="give the preprocessing a resize: {mode: exact}",
            )
        return made


def open_images(
    found: Found, inputs: Sequence[InputSpec], *, preprocess: Preprocess | None, classes: int | None
) -> Source:
    """Readies a folder of images for the model's one image input."""
    if len(inputs) != 1:
        names = ", ".join(f"'{i.name}'" for i in inputs)
        raise DataError(
            f"images feed a model with one input, this one has {len(inputs)} ({names})",
            hint="feed it from .npz files, one key an input",
        )
    spec = inputs[0]
    resolved, notes = resolve(preprocess, spec.shape, name=spec.name, dtype=spec.dtype, classes=classes)
    files = tuple(found.name(p) for p in found.files)
    reader = ImageReader(spec, resolved, byte_table(resolved, spec), found.files, files)
    labels: tuple[int, ...] = ()
    if found.classes:
        number = class_numbers(found.classes)
        labels = tuple(number[p.parent.name] for p in found.files)
        notes += tuple(f"class folder '{c}' holds no images" for c in found.classes if number[c] not in labels)
    return Source(
        "images",
        files,
        tuple(p.stat().st_size for p in found.files),
        (fixed(spec.shape[0]) or 1) if len(spec.shape) == 4 else 1,
        reader,
        labels.__getitem__ if labels else None,
        notes,
        resolved.model_dump(mode="json"),
    )


def byte_table(spec: Preprocess, target: InputSpec) -> Array:
    """``[channels, 256]``: ``(x * scale - mean) / std`` of every byte, in the input's type."""
    channels = CHANNELS[spec.color or "rgb"]
    mean, std = (np.broadcast_to(np.asarray(v, np.float32), channels)[:, None] for v in (spec.mean, spec.std))
    scaled = (np.arange(256) * np.float64(spec.scale)).astype(np.float32)
    table: npt.NDArray[np.float32] = (scaled - mean) / std
    if target.dtype.kind not in "iu":
        return table.astype(target.dtype)
    limits = np.iinfo(target.dtype)
    if np.any(table != np.rint(table)) or table.min() < limits.min or table.max() > limits.max:
        raise DataError(
            f"input '{target.name}' takes {target.dtype}, the preprocessing gives fractions or values out of its range "
            f"({table.min():.4g} to {table.max():.4g})",
            hint="--preprocess raw gives 0 to 255",
        )
    return table.astype(target.dtype)


def _pixels(path: Path, name: str, spec: Preprocess) -> Pixels:
    """``[height, width, channels]`` after resize, crop and colour."""
    try:
        with Image.open(path) as opened:
            image = _eight_bit(opened, "L" if spec.color == "gray" else "RGB", name)
    except UnidentifiedImageError:
        raise CorruptSampleError(
            name, f"{name}: not an image that Pillow knows, or its first bytes are broken"
        ) from None
    except (*BROKEN, *BOMBS) as error:
        raise CorruptSampleError(name, f"{name}: cannot be read as an image: {_one_line(error)}") from error
    if spec.resize:
        image = _resized(image, spec.resize)
    if spec.crop:
        image = _cropped(image, spec.crop, name)
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return pixels[:, :, ::-1] if spec.color == "bgr" else pixels


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _eight_bit(image: Image.Image, mode: str, name: str) -> Image.Image:
    """The first frame in 8 bits: 16-bit levels lose their low byte, palettes and alpha are resolved to colours."""
    if image.mode == "F":
        raise DataError(
            f"{name}: pixels are floating-point numbers without a known range", hint="store such samples as .npy"
        )
    if image.mode.startswith("I"):
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        image = Image.fromarray(levels.astype(np.uint8))
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


def _resized(image: Image.Image, spec: Resize) -> Image.Image:
    width, height = image.size
    method = FILTERS[spec.interpolation]
    if spec.mode == "short_side" and isinstance(spec.size, int):
        factor = spec.size / min(image.size)
        return image.resize((max(spec.size, round(width * factor)), max(spec.size, round(height * factor))), method)
    to_height, to_width = spec.height_width or (height, width)
    if spec.mode == "exact":
        return image.resize((to_width, to_height), method)
    factor = min(to_height / height, to_width / width)
    inner = (max(1, round(width * factor)), max(1, round(height * factor)))
    canvas = Image.new(image.mode, (to_width, to_height), (spec.pad_value,) * len(image.getbands()))
    canvas.paste(image.resize(inner, method), ((to_width - inner[0]) // 2, (to_height - inner[1]) // 2))
    return canvas


def _cropped(image: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
    height, width = size
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    if left < 0 or top < 0:
        raise DataError(
            f"{name}: {image.size[1]}x{image.size[0]} (height x width) is smaller than the crop {height}x{width}",
            hint="give the preprocessing a resize before the crop",
        )
    return image.crop((left, top, left + width, top + height))
