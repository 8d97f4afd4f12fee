"""TensorRT's calibration cache: a header, then ``name: scale`` with the bits of a big-endian float32 in hexadecimal.

    TRT-8601-EntropyCalibration2
    image: 3c010a14

The scale is ``limit / 127`` of the symmetric range ``[-limit, limit]`` (NVIDIA's sampleINT8). TensorRT takes a cache
only under the number of its own version (8.6.1: 8601; from 10 on two digits a part, 10.3.0: 100300) and calibrates anew
otherwise; the number may be edited.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping

import numpy as np

from qconvert.numerics import INT8, Range, params_from_range

VERSION = "8601"
"""The version in the header: the last one before implicit quantization was deprecated."""

LARGEST = float(np.finfo(np.float32).max)
HEADER = re.compile(r"TRT-\w+-\w+")
LINE = re.compile(r"(?P<name>.+): ?(?P<bits>[0-9a-fA-F]{1,8})")


def dump(ranges: Mapping[str, Range]) -> str:
    """The text of ranges, each made symmetric; an all-zero one gets scale 1."""
    lines = [f"TRT-{VERSION}-EntropyCalibration2"]
    for name, found in ranges.items():
        if not name or len(name.splitlines()) > 1:
            message = f"a cache holds no line for the name {name!r}"
            raise ValueError(message)
        scale = params_from_range(found.low, found.high, INT8, symmetric=True).scale
        lines.append(f"{name}: {struct.pack('>f', float(scale)).hex()}")
    return "\n".join(lines) + "\n"


def parse(text: str) -> dict[str, Range]:
    """The ranges ``[-127 scale, 127 scale]`` of a text."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if not HEADER.fullmatch(lines[0].strip()):
        message = f"line 1: expected TRT-<version>-<calibrator>, got {lines[0][:40]!r}"
        raise ValueError(message)
    found: dict[str, Range] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.rstrip())
        if match is None:
            message = f"line {number}: expected 'name: <hexadecimal float32>', got {line[:60]!r}"
            raise ValueError(message)
        name, (scale,) = match["name"], struct.unpack(">f", bytes.fromhex(match["bits"].zfill(8)))
        if name in found:
            message = f"line {number}: '{name}' is there twice"
            raise ValueError(message)
        if not (0 <= scale < math.inf):
            message = f"line {number}: the scale of '{name}' is {scale}"
            raise ValueError(message)
        limit = float(np.float32(min(INT8.qmax * scale, LARGEST)))  # 127 times a rounded scale may pass it
        found[name] = Range(-limit + 0.0, limit)
    return found
