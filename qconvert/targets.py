"""What a runtime accepts and where it wants its Q/DQ pairs, as data.

Sources: onnxruntime 1.24-1.31 CPU kernels and QDQ fusions as measured on real models; NVIDIA TensorRT developer guide,
"Q/DQ Layer-Placement Recommendations".
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qconvert.errors import TargetError

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators in which the time goes."""


@dataclass(frozen=True)
class Target:
    """A runtime's limits and placement rules.

    Attributes:
        name: The name in policies and on the command line.
        title: One line for people.
        integer_ops: Operator types that run in integer kernels between Q/DQ pairs; others stay float.
        activations: Names of the dtypes allowed for activations, the default first.
        weights: Names of the dtypes allowed for weights, the default first.
        symmetric_activations: Every zero point must be 0.
        per_channel: Operator types whose weights may have one scale per output channel.
        per_group: Operator types whose weights may have one scale per group of inputs.
        outputs: Whether an integer kernel needs its output quantized too (``required``) or its inputs alone (``free``).
        float_output_ops: Where outputs are required, the operator types that can nevertheless write float.
        absorb: Remove a Relu or Clip that the quantized range of its input makes redundant.
        bias: ``int32`` with scale ``s_x * s_w``, or ``float``.
        residual: Quantize ``both`` inputs of a residual Add or only the ``skip`` branch: the other fuses with its Conv.
        shared_scale_ops: Operator types whose inputs must all share one scale.
        clipped: Activation dtypes whose levels are held on their grid by an integer Clip between QuantizeLinear and
            DequantizeLinear, with the 8-bit type that these are in; levels move up where that is unsigned and the
            dtype is not.
        cast_below: Weights of fewer bits than this are stored as they are and cast to 8 bits before DequantizeLinear.
        stored: Names of the dtypes in which weights alone may be stored, beside float activations, the default first.
        own_operators: Whether a model may hold onnxruntime's own operators, which ONNX does not define.
    """

    name: str
    title: str
    integer_ops: frozenset[str]
    activations: tuple[str, ...]
    weights: tuple[str, ...]
    symmetric_activations: bool = False
    per_channel: frozenset[str] = frozenset(HEAVY)
    per_group: frozenset[str] = frozenset({"Gemm", "MatMul"})
    outputs: Literal["required", "free"] = "required"
    float_output_ops: frozenset[str] = frozenset({"Gemm", "MatMul"})
    absorb: bool = True
    bias: Literal["int32", "float"] = "int32"
    residual: Literal["both", "skip"] = "both"
    shared_scale_ops: frozenset[str] = field(default=frozenset())
    clipped: Mapping[str, str] = field(default_factory=dict, hash=False)
    cast_below: int = 0
    stored: tuple[str, ...] = ()
    own_operators: bool = False


MOVES = (
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Gather",
    "GatherElements",
    "Pad",
    "Resize",
    "Upsample",
    "DepthToSpace",
    "SpaceToDepth",
    "Expand",
    "Tile",
    "Identity",
)
"""Operators whose result holds values of their first operand and 0, or means of them."""

_POOLS = ("GlobalAveragePool", "AveragePool")
_LOW_BITS = ("uint4", "int4", "uint2", "int2")
_STORED = ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2", "float8e4m3fn", "float8e5m2")
_ORT = frozenset({"Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Sigmoid", "LeakyRelu", *_POOLS, *MOVES})

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "ort-cpu",
            "onnxruntime on x86-64 and ARM64 CPUs: uint8 activations, int8 weights, every operator in integer kernels",
            _ORT,
            ("uint8", "int8", "uint16", "int16", *_LOW_BITS),
            ("int8", "uint8", "int16", "int4", "uint4", "int2", "uint2"),
            clipped=dict.fromkeys(_LOW_BITS, "uint8"),  # on x86-64 its QLinearConv takes no int8
            cast_below=8,  # it folds the Cast and keeps its integer kernels; directly dequantized, they run in float
            stored=_STORED,
            own_operators=True,
        ),
        Target(
            "tensorrt",
            "NVIDIA TensorRT (explicit quantization): symmetric int8, zero points 0, float bias, fusions left open",
            frozenset({*HEAVY, "Add", "Concat", *_POOLS, *MOVES}),
            ("int8",),
            ("int8", "int4"),
            symmetric_activations=True,
            per_group=frozenset(),
            outputs="free",
            absorb=False,
            bias="float",
            residual="skip",
            shared_scale_ops=frozenset({"Concat"}),
            stored=("int8", "int4"),
        ),
        Target(
            "generic",
            "any runtime that reads QDQ models: the same placement as ort-cpu, every activation operator kept",
            _ORT | {"ConvTranspose"},
            ("uint8", "int8", "uint16", "int16", *_LOW_BITS),
            ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"),
            absorb=False,
            clipped={"uint4": "uint8", "int4": "int8", "uint2": "uint8", "int2": "int8"},  # zero points stay 0
            cast_below=4,  # onnxruntime 1.24-1.31 makes a kernel that it does not have of DequantizeLinear(INT2)
            stored=_STORED,
        ),
    )
}


def get_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        TargetError: If there is none.
    """
    if name in TARGETS:
        return TARGETS[name]
    close = difflib.get_close_matches(name, TARGETS, 1)
    raise TargetError(
        f"unknown target '{name}': expected one of {', '.join(TARGETS)}",
        hint=f"did you mean '{close[0]}'?" if close else "run 'qconvert targets' for what each one is",
    )
