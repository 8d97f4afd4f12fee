"""What a runtime accepts and where it wants its Q/DQ pairs, as data.

Sources: onnxruntime 1.24-1.31 CPU kernels and QDQ fusions as measured on real models; NVIDIA TensorRT developer guide,
"Q/DQ Layer-Placement Recommendations".
"""

from __future__ import annotations

import difflib
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
        outputs: Whether an integer kernel needs its output quantized too (``required``) or its inputs alone (``free``).
        float_output_ops: Where outputs are required, the operator types that can nevertheless write float.
        absorb: Remove a Relu or Clip that the quantized range of its input makes redundant.
        bias: ``int32`` with scale ``s_x * s_w``, or ``float``.
        residual: Quantize ``both`` inputs of a residual Add or only the ``skip`` branch: the other fuses with its Conv.
        shared_scale_ops: Operator types whose inputs must all share one scale.
        cast_low_bits: Whether weights below 8 bits need a Cast to 8 bits before DequantizeLinear to reach int kernels.
    """

    name: str
    title: str
    integer_ops: frozenset[str]
    activations: tuple[str, ...]
    weights: tuple[str, ...]
    symmetric_activations: bool = False
    per_channel: frozenset[str] = frozenset(HEAVY)
    outputs: Literal["required", "free"] = "required"
    float_output_ops: frozenset[str] = frozenset({"Gemm", "MatMul"})
    absorb: bool = True
    bias: Literal["int32", "float"] = "int32"
    residual: Literal["both", "skip"] = "both"
    shared_scale_ops: frozenset[str] = field(default=frozenset())
    cast_low_bits: bool = False


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
_ORT = frozenset({"Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Sigmoid", "LeakyRelu", *_POOLS, *MOVES})

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "ort-cpu",
            "onnxruntime on x86-64 and ARM64 CPUs: uint8 activations, int8 weights, every operator in integer kernels",
            _ORT,
            ("uint8", "int8", "uint16", "int16"),
            ("int8", "uint8", "int16", "int4"),
            cast_low_bits=True,
        ),
        Target(
            "tensorrt",
            "NVIDIA TensorRT (explicit quantization): symmetric int8, zero points 0, float bias, fusions left open",
            frozenset({*HEAVY, "Add", "Concat", *_POOLS, *MOVES}),
            ("int8",),
            ("int8", "int4"),
            symmetric_activations=True,
            outputs="free",
            absorb=False,
            bias="float",
            residual="skip",
            shared_scale_ops=frozenset({"Concat"}),
        ),
        Target(
            "generic",
            "any runtime that reads QDQ models: the same placement as ort-cpu, every activation operator kept",
            _ORT | {"ConvTranspose"},
            ("uint8", "int8", "uint16", "int16"),
            ("int8", "uint8", "int16", "uint16", "int4", "uint4"),
            absorb=False,
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
