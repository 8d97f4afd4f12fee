"""What each format of a static model can hold, as data: writers refuse the rest, ``qconvert formats`` prints it.

* ``qdq``: float operators between QuantizeLinear and DequantizeLinear; ONNX has these for every type.
* ``qoperator``: onnxruntime's operators on levels. Their kernels take 8 bits, and beside int8 levels no uint8 weights.
* ``integer``: no float tensor between the ends; a table of a function has 256 entries, a sum int32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qconvert.numerics import QUANT_TYPES
from qconvert.rewrite.integer.functions import FUNCTIONS
from qconvert.rewrite.integer.lower import RULES
from qconvert.rewrite.integer.products import PRODUCTS
from qconvert.rewrite.kernels import KERNELS
from qconvert.targets import MOVES, Format, Granularity


@dataclass(frozen=True)
class Limits:
    """A format's row.

    Attributes:
        title: What it is, in few words.
        bits: The most bits of a level.
        why: Why there are no more.
        schemes: Which values of a weight may share a scale.
        unsigned_with_signed: Whether unsigned weights may meet signed activations.
        operators: Operator types that it has a form for; None: every one.
    """

    title: str
    bits: int
    why: str
    schemes: tuple[Granularity, ...]
    unsigned_with_signed: bool = True
    operators: frozenset[str] | None = None


LIMITS: Mapping[Format, Limits] = {
    "qdq": Limits(
        "float operators between Q/DQ pairs", 16, "ONNX stores 16", ("per-channel", "per-tensor", "per-group")
    ),
    "qoperator": Limits(
        "onnxruntime's operators on levels",
        8,
        "onnxruntime's integer operators take 8 bits",
        ("per-channel", "per-tensor"),
        unsigned_with_signed=False,
        operators=frozenset(KERNELS),
    ),
    "integer": Limits(
        "no float tensor between the ends",
        8,
        "sums, tables and products are made for 8 bits",
        ("per-channel", "per-tensor"),
        operators=frozenset({*PRODUCTS, *RULES, *FUNCTIONS, *MOVES}),
    ),
}

LEVEL_BITS = 8
"""The most bits of the levels of an interface: those of the types that runtimes are fed with."""


def type_refusal(name: Format, what: str, dtype: str) -> str:
    """Why a format cannot hold levels of a type, or "".

    Args:
        name: The format.
        what: What has the type, e.g. ``activation 'x'``.
        dtype: Its name.
    """
    limits = LIMITS[name]
    return f"{what} is {dtype}: {limits.why}" if QUANT_TYPES[dtype].bits > limits.bits else ""


def pair_refusal(name: Format, activations: str, weights: str) -> str:
    """Why a format cannot multiply activations of a type by weights of a type, or ""; both of types that it holds."""
    mixed = QUANT_TYPES[activations].signed and not QUANT_TYPES[weights].signed
    if LIMITS[name].unsigned_with_signed or not mixed:
        return ""
    return "onnxruntime has no integer operator for signed activations and unsigned weights"
