"""How an image becomes a model input: ``(x * scale - mean) / std`` of a resized, cropped picture.

A value; the pixels are read elsewhere. ``x`` is a byte per channel, ``x * scale`` is rounded once to float32 and the
rest is float32, as the usual numpy and torch pipelines do. What a spec leaves open (layout, size, colour) is decided by
the model's input in ``resolve``, and said.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, model_validator

from qconvert.errors import DataError

Dims: TypeAlias = Sequence["int | str | None"]
Size: TypeAlias = tuple[PositiveInt, PositiveInt]
PositiveFinite = Annotated[float, Field(gt=0, allow_inf_nan=False)]
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
_STRICT = ConfigDict(frozen=True, extra="forbid")


class Resize(BaseModel):
    """How an image is brought to a size."""

    model_config = _STRICT

    mode: Literal["exact", "short_side", "letterbox"] = Field(
        "exact",
        description="exact: stretch to the size. short_side: keep the aspect ratio, the shorter side gets the size. "
        "letterbox: keep the aspect ratio, fit inside the size, pad the rest evenly.",
    )
    size: PositiveInt | Size | None = Field(
        None,
        description="[height, width] or one number for a square; for short_side the length of the shorter side. "
        "null: the model's input size (not with short_side).",
    )
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos", "area"] = Field(
        "bilinear", description="Pillow's filters, which average over the source pixels when they shrink an image."
    )
    pad_value: int = Field(
        114, ge=0, le=255, description="The grey level, 0 to 255, that letterbox pads with, before scale, mean and std."
    )

    @model_validator(mode="after")
    def _short_side_is_one_number(self) -> Resize:
        if self.mode == "short_side" and not isinstance(self.size, int):
            raise ValueError("short_side needs one number as size, e.g. 256")
        return self

    @property
    def height_width(self) -> tuple[int, int] | None:
        """What the image measures afterwards, or None where that is open or depends on the image."""
        if self.mode == "short_side" or self.size is None:
            return None
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Preprocess(BaseModel):
    """``model input = (x * scale - mean) / std`` of an image after ``resize``, ``crop``, ``color``; in ``layout``."""

    model_config = _STRICT

    resize: Resize | None = Field(None, description="How the image is resized; null: not at all.")
    crop: Size | None = Field(
        None,
        description="[height, width] of a centre crop after resize. "
        "null: none, but after short_side the model's input size where it is fixed.",
    )
    color: Literal["rgb", "bgr", "gray"] | None = Field(
        None,
        description="Channels in the model's order. null: rgb for a model with three channels, gray for one.",
    )
    layout: Literal["nchw", "nhwc"] | None = Field(
        None, description="Order of the axes. null: as the model's input shape says."
    )
    scale: FiniteFloat = Field(1 / 255, description="Factor on pixel values 0 to 255, before mean and std.")
    mean: FiniteFloat | tuple[FiniteFloat, ...] = Field(
        0.0, description="Subtracted after scale; one number, or one a channel in the order of color."
    )
    std: PositiveFinite | tuple[PositiveFinite, ...] = Field(
        1.0, description="Divided by after mean; one number, or one a channel in the order of color."
    )

    @property
    def height_width(self) -> tuple[int, int] | None:
        """What every preprocessed image measures, or None where that is open or depends on the image."""
        return self.crop or (self.resize.height_width if self.resize else None)


_IMAGENET: dict[str, Any] = {"color": "rgb", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_SHORT_256: dict[str, Any] = {"mode": "short_side", "size": 256}
_TABLE: dict[str, tuple[str, Preprocess]] = {
    "imagenet": (
        "short side 256 (bilinear), centre crop 224, /255, ImageNet mean and std: torchvision classifiers",
        Preprocess(resize=Resize(**_SHORT_256), crop=(224, 224), **_IMAGENET),
    ),
    "imagenet-bicubic": (
        "as imagenet with bicubic interpolation: timm, EfficientNet, DeiT",
        Preprocess(resize=Resize(**_SHORT_256, interpolation="bicubic"), crop=(224, 224), **_IMAGENET),
    ),
    "cifar": ("resized to the model's input, /255, ImageNet mean and std", Preprocess(resize=Resize(), **_IMAGENET)),
    "unit": ("resized to the model's input, /255: values 0 to 1", Preprocess(resize=Resize())),
    "centered": (
        "resized to the model's input, values -1 to 1: TensorFlow, Inception, ViT",
        Preprocess(resize=Resize(), mean=0.5, std=0.5),
    ),
    "raw": ("resized to the model's input, values 0 to 255 as they are", Preprocess(resize=Resize(), scale=1.0)),
    "caffe": (
        "short side 256, centre crop 224, BGR, 0 to 255 less the mean: Caffe, Keras VGG and ResNet",
        Preprocess(
            resize=Resize(**_SHORT_256), crop=(224, 224), color="bgr", scale=1.0, mean=(103.939, 116.779, 123.68)
        ),
    ),
    "yolo": (
        "letterboxed to the model's input with grey 114, /255",
        Preprocess(resize=Resize(mode="letterbox"), color="rgb"),
    ),
    "ultraface": (
        "resized to the model's input, (x - 127) / 128",
        Preprocess(resize=Resize(), color="rgb", scale=1.0, mean=127.0, std=128.0),
    ),
}
PRESETS: dict[str, Preprocess] = {name: spec for name, (_, spec) in _TABLE.items()}
PRESET_HELP: dict[str, str] = {name: text for name, (text, _) in _TABLE.items()}


def preset(name: str) -> Preprocess:
    """The preset of that name, or a DataError that lists them."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]}?" if near else "any other preprocessing can be written out in the policy file"
        raise DataError(f"--preprocess: expected one of {', '.join(PRESETS)}, got '{name}'", hint=hint)
    return PRESETS[name]


def fixed(dim: int | str | None) -> int | None:
    """A dimension's size, or None where the model leaves it open (by name, by nothing, or by 0 and less)."""
    return dim if isinstance(dim, int) and dim > 0 else None


def show_shape(shape: Dims) -> str:
    """A shape for a message: ``[batch, 3, 224, 224]``."""
    return f"[{', '.join('?' if d is None else str(d) for d in shape)}]"


def resolve(
    spec: Preprocess | None,
    shape: Dims,
    *,
    name: str = "input",
    dtype: np.dtype[Any] | None = None,
    classes: int | None = None,
) -> tuple[Preprocess, tuple[str, ...]]:
    """Fills in what the model's input decides.

    Args:
        spec: What the user asked for; None chooses a preset by the input's shape and type.
        shape: The model's input, ``[batch, channels, height, width]`` or channels last; the batch axis may be missing.
        name: The name of that input, for messages.
        dtype: Its type; integer inputs get pixels as they are unless ``spec`` says otherwise.
        classes: How many columns the model's first output has, where that is known.

    Returns:
        The spec with layout and color set, and every size that the model fixes; and what was inferred, one line each.

    Raises:
        DataError: The input is no image, its size is open and none is given, or the spec contradicts it.
    """
    where = f"input '{name}' {show_shape(shape)}"
    notes: list[str] = []
    if spec is None:
        chosen = _default(shape, dtype, classes)
        spec = PRESETS[chosen]
        notes.append(
            f"preprocessing '{chosen}' ({PRESET_HELP[chosen]}) assumed for {where}; "
            "if another one fits, say --preprocess PRESET"
        )
    layout = spec.layout or _layout(shape, where)
    channel, *size = _channel_height_width(shape, layout, where)
    color = spec.color or ("gray" if channel == 1 else "rgb")
    _check_channels(spec, color, channel, where)
    resolved = _with_size(spec, size, where).model_copy(update={"layout": layout, "color": color})
    notes += _inferred(spec, resolved, where)
    return resolved, tuple(notes)


def _default(shape: Dims, dtype: np.dtype[Any] | None, classes: int | None) -> str:
    if dtype is not None and dtype.kind in "iu":
        return "raw"
    return "imagenet" if [*shape[1:]] == [3, 224, 224] and classes == 1000 else "unit"


def _layout(shape: Dims, where: str) -> Literal["nchw", "nhwc"]:
    first, last = (d in (1, 3, 4) for d in (shape[-3:][0], shape[-1])) if len(shape) in (3, 4) else (False, False)
    if first != last:
        return "nchw" if first else "nhwc"
    if first:
        raise DataError(
            f"{where}: channels may come first or last",
            hint="say which with layout: nchw or layout: nhwc in the preprocessing",
        )
    if len(shape) in (3, 4) and any(fixed(d) is None for d in (shape[-3], shape[-1])):
        raise DataError(
            f"{where}: the shape does not say where the channels are",
            hint="set layout, color and a size in the preprocessing",
        )
    raise DataError(
        f"{where}: images fit inputs of 1 or 3 channels, [batch, 3, height, width] or [batch, height, width, 3]",
        hint="feed other inputs from .npy or .npz files",
    )


def _channel_height_width(shape: Dims, layout: str, where: str) -> tuple[int | None, int | None, int | None]:
    if len(shape) not in (3, 4):
        raise DataError(
            f"{where}: images fit inputs with 3 or 4 axes, not {len(shape)}", hint="feed it from .npy or .npz files"
        )
    a, b, c = (fixed(d) for d in shape[-3:])
    return (a, b, c) if layout == "nchw" else (c, a, b)


def _check_channels(spec: Preprocess, color: str, channel: int | None, where: str) -> None:
    have = CHANNELS[color]
    if channel is not None and channel not in (1, 3):
        raise DataError(f"{where}: images give 1 or 3 channels, not {channel}", hint="feed it from .npy or .npz files")
    if channel not in (None, have):
        raise DataError(
            f"{where}: color {color} gives {have} channels, not {channel}",
            hint=f"set color: {'gray' if channel == 1 else 'rgb'}",
        )
    for field, value in (("mean", spec.mean), ("std", spec.std)):
        if isinstance(value, tuple) and len(value) != have:
            raise DataError(
                f"{where}: {field} has {len(value)} numbers for {have} channels", hint=f"give one number or {have}"
            )


def _with_size(spec: Preprocess, size: Sequence[int | None], where: str) -> Preprocess:
    """The spec with sizes that were left open set to the model's; both must agree where both are fixed."""
    height, width = size
    model = (height, width) if height and width else None
    resize = spec.resize
    if resize and resize.size is None and spec.crop is None:
        if model is None:
            raise DataError(
                f"{where}: the model leaves the image size open and the preprocessing names none",
                hint="give one: resize: {mode: exact, size: [height, width]}, or a preset with a size (imagenet)",
            )
        spec = spec.model_copy(update={"resize": resize.model_copy(update={"size": model})})
    elif resize and resize.size is None:
        spec = spec.model_copy(update={"resize": resize.model_copy(update={"size": model or spec.crop})})
    elif resize and resize.mode == "short_side" and spec.crop is None and model:
        spec = spec.model_copy(update={"crop": model})
    made = spec.height_width
    if made and any(want not in (None, have) for want, have in zip(size, made, strict=True)):
        raise DataError(
            f"{where}: the preprocessing gives images of {made[0]}x{made[1]} (height x width)",
            hint="leave the size out to take the model's, or set resize and crop to it",
        )
    return spec


def _inferred(spec: Preprocess, resolved: Preprocess, where: str) -> list[str]:
    facts = [f"{key} {getattr(resolved, key)}" for key in ("layout", "color") if getattr(spec, key) is None]
    if resolved.height_width and spec.height_width is None:
        facts.append(f"size {'x'.join(map(str, resolved.height_width))}")
    return [f"{', '.join(facts)} taken from {where}"] if facts else []
