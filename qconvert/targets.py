"""What a runtime accepts and where it wants its Q/DQ pairs, as data.

Sources:

* ort-cpu: onnxruntime 1.24-1.31 CPU kernels and QDQ fusions as measured on real models.
* tensorrt, trt-int4: NVIDIA TensorRT documentation, "Q/DQ Layer-Placement Recommendations" and "Quantization Schemes"
  (symmetric; INT4 for weights alone, with blocks of 64 or 128).
* openvino: its ONNX frontend (``quantize_linear.cpp`` makes FakeQuantize of QuantizeLinear, ``dequantize_linear.cpp``
  takes blocks from opset 21 on) and its low precision transformations (uint8 or int8 activations with one scale, int8
  weights).
* qnn: onnxruntime's ``quantization/execution_providers/qnn/quant_config.py`` (per channel in Conv and ConvTranspose
  alone, fixed 16-bit grids of Sigmoid and Tanh) and the operators of its QNN execution provider.
* integer-mcu: "TensorFlow Lite 8-bit quantization specification".
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qconvert.errors import TargetError

Mode = Literal["static", "dynamic", "weight-only"]
"""When activations are quantized: before, at run time, or never."""

Format = Literal["qdq", "qoperator", "integer"]
"""What stands in the file: see ``rewrite.limits``."""

Granularity = Literal["per-tensor", "per-channel", "per-group"]
"""Which values of a weight share a scale."""

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators in which the time goes."""


@dataclass(frozen=True)
class Target:
    """A runtime's limits and placement rules.

    Attributes:
        name: The name in policies and on the command line.
        title: One line for people.
        modes: When it lets activations be quantized.
        formats: The files that it reads, of static models; of others there is one.
        integer_ops: Operator types that run in integer kernels between Q/DQ pairs; others stay float.
        activations: Names of the dtypes allowed for activations, the default first.
        weights: Names of the dtypes allowed for weights, the default first.
        symmetric_activations: Every zero point must be 0.
        symmetric_weights: Every zero point of weights must be 0.
        whole: Its hardware has no floats: whatever it has an integer kernel for is quantized, wherever it stands.
        per_channel: Operator types whose weights may have one scale per output channel.
        per_group: Operator types whose weights may have one scale per group of inputs.
        low_bit_ops: Operator types whose weights may have fewer than 8 bits; others take the default type.
        outputs: Whether an integer kernel needs its output quantized too (``required``) or its inputs alone (``free``).
        float_output_ops: Where outputs are required, the operator types that can nevertheless write float.
        matmul_bias: What an Add of a constant behind a MatMul is: part of the ``kernel``, or an ``add`` of its own.
        absorb: Remove a Relu or Clip that the quantized range of its input makes redundant.
        bias: ``int32`` with scale ``s_x * s_w``, or ``float``.
        residual: Quantize ``both`` inputs of a residual Add or only the ``skip`` branch: the other fuses with its Conv.
        shared_scale_ops: Operator types whose inputs and output must all share one scale.
        fixed_outputs: The grid of an operator type's output where the runtime knows no other, ``(scale, zero point)``
            by type and dtype.
        clipped: Activation dtypes whose levels are held on their grid by an integer Clip between QuantizeLinear and
            DequantizeLinear, with the 8-bit type that these are in; levels move up where that is unsigned and the
            dtype is not.
        cast_below: Weights of fewer bits than this are stored as they are and cast to 8 bits before DequantizeLinear.
        stored: Names of the dtypes in which weights alone may be stored, beside float activations, the default first.
        stored_schemes: Which values of such a weight may share a scale, the default first.
        stored_ops: Operator types whose weights may be so stored.
        group_sizes: How many inputs may share a scale, the default first: a weight takes the first that divides its
            inputs. Empty: any number may, and the last group may be smaller.
        recurrent: Operator types with a kernel that quantizes, at run time, what it reads and its own state.
        own_operators: Whether a model may hold onnxruntime's own operators, which ONNX does not define.
    """

    name: str
    title: str
    integer_ops: frozenset[str]
    activations: tuple[str, ...]
    weights: tuple[str, ...]
    modes: tuple[Mode, ...] = ("static", "weight-only")
    formats: tuple[Format, ...] = ("qdq",)
    symmetric_activations: bool = False
    symmetric_weights: bool = False
    whole: bool = False
    per_channel: frozenset[str] = frozenset(HEAVY)
    per_group: frozenset[str] = frozenset({"Gemm", "MatMul"})
    low_bit_ops: frozenset[str] = frozenset(HEAVY)
    outputs: Literal["required", "free"] = "required"
    float_output_ops: frozenset[str] = frozenset({"Gemm", "MatMul"})
    matmul_bias: Literal["kernel", "add"] = "kernel"
    absorb: bool = True
    bias: Literal["int32", "float"] = "int32"
    residual: Literal["both", "skip"] = "both"
    shared_scale_ops: frozenset[str] = field(default=frozenset())
    fixed_outputs: Mapping[tuple[str, str], tuple[float, int]] = field(default_factory=dict, hash=False)
    clipped: Mapping[str, str] = field(default_factory=dict, hash=False)
    cast_below: int = 0
    stored: tuple[str, ...] = ()
    stored_schemes: tuple[Granularity, ...] = ("per-channel", "per-tensor", "per-group")
    stored_ops: frozenset[str] = frozenset({*HEAVY, "Gather"})
    group_sizes: tuple[int, ...] = ()
    recurrent: frozenset[str] = frozenset()
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
_TENSORRT = frozenset({*HEAVY, "Add", "Concat", *_POOLS, *MOVES})
_CONVS = frozenset({"Conv", "ConvTranspose"})
_CLAMPS = ("Relu", "Clip")
_ARITHMETIC = ("Add", "Sub", "Mul", "Max", "Min")
_TFLITE = ("AveragePool", "Concat", "GlobalAveragePool", "LogSoftmax", "LpNormalization", "ReduceMean", "Sigmoid")
_QNN = (
    *("Div", "Elu", "Gelu", "GlobalMaxPool", "HardSigmoid", "HardSwish", "InstanceNormalization", "LayerNormalization"),
    *("LeakyRelu", "LogSoftmax", "LpNormalization", "PRelu", "ReduceMax", "ReduceMean", "Sigmoid", "Softmax", "Tanh"),
)

_SPECIFIED = {
    ("Softmax", "int8"): (1 / 256, -128),
    ("Sigmoid", "int8"): (1 / 256, -128),
    ("LogSoftmax", "int8"): (16 / 256, 127),
    ("Tanh", "int8"): (1 / 128, 0),
    ("LpNormalization", "int8"): (1 / 128, 0),
}
"""The outputs that TensorFlow Lite's specification leaves no choice of."""

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "ort-cpu",
            "onnxruntime on x86-64 and ARM64 CPUs: uint8 activations, int8 weights, every operator in integer kernels",
            _ORT,
            ("uint8", "int8", "uint16", "int16", *_LOW_BITS),
            ("int8", "uint8", "int16", "int4", "uint4", "int2", "uint2"),
            modes=("static", "dynamic", "weight-only"),
            formats=("qdq", "qoperator", "integer"),
            clipped=dict.fromkeys(_LOW_BITS, "uint8"),  # on x86-64 its QLinearConv takes no int8
            cast_below=8,  # it folds the Cast and keeps its integer kernels; directly dequantized, they run in float
            stored=_STORED,
            recurrent=frozenset({"LSTM"}),
            own_operators=True,
        ),
        Target(
            "tensorrt",
            "NVIDIA TensorRT (explicit quantization): symmetric int8, zero points 0, float bias, fusions left open",
            _TENSORRT,
            ("int8",),
            ("int8",),
            symmetric_activations=True,
            symmetric_weights=True,
            per_group=frozenset(),
            outputs="free",
            absorb=False,
            bias="float",
            residual="skip",
            shared_scale_ops=frozenset({"Concat"}),
            stored=("int8",),
            stored_schemes=("per-channel", "per-tensor"),
        ),
        Target(
            "generic",
            "any runtime that reads QDQ models: the same placement as ort-cpu, every activation operator kept",
            _ORT | {"ConvTranspose"},
            ("uint8", "int8", "uint16", "int16", *_LOW_BITS),
            ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"),
            modes=("static", "dynamic", "weight-only"),
            formats=("qdq", "integer"),
            absorb=False,
            clipped={"uint4": "uint8", "int4": "int8", "uint2": "uint8", "int2": "int8"},  # zero points stay 0
            cast_below=4,  # onnxruntime 1.24-1.31 makes a kernel that it does not have of DequantizeLinear(INT2)
            stored=_STORED,
        ),
        Target(
            "openvino",
            "OpenVINO on Intel CPUs, GPUs and NPUs: uint8 or int8 inputs, symmetric int8 weights, fusions left open",
            frozenset({*HEAVY, "Add", "Mul", "Concat", *_POOLS, *MOVES}),
            ("uint8", "int8"),
            ("int8",),
            symmetric_weights=True,
            per_group=frozenset(),
            outputs="free",
            absorb=False,
            bias="float",
            shared_scale_ops=frozenset({"Concat"}),
            stored=("int8", "uint8", "int4", "uint4"),
        ),
        Target(
            "qnn",
            "Qualcomm NPUs through onnxruntime's QNN provider: 8 or 16-bit activations, everything quantized",
            frozenset({*HEAVY, *_ARITHMETIC, "Concat", *_POOLS, *_CLAMPS, *_QNN, *MOVES}),
            ("uint8", "uint16"),
            ("int8", "int4"),
            modes=("static",),
            symmetric_weights=True,
            whole=True,
            per_channel=_CONVS,
            per_group=frozenset(),
            low_bit_ops=_CONVS,
            float_output_ops=frozenset(),
            matmul_bias="add",
            fixed_outputs={("Sigmoid", "uint16"): (1 / 65536, 0), ("Tanh", "uint16"): (1 / 32768, 32768)},
        ),
        Target(
            "integer-mcu",
            "microcontrollers, as TensorFlow Lite's 8-bit specification has it: int8 throughout, symmetric weights",
            frozenset({*HEAVY, *_ARITHMETIC, *_CLAMPS, *_TFLITE, "Softmax", "Tanh", *MOVES}),
            ("int8",),
            ("int8",),
            modes=("static",),
            formats=("qdq", "integer"),
            symmetric_weights=True,
            whole=True,
            per_channel=_CONVS,
            per_group=frozenset(),
            float_output_ops=frozenset(),
            shared_scale_ops=frozenset({"Concat", "AveragePool", "Max", "Min"}),
            fixed_outputs=_SPECIFIED,
        ),
        Target(
            "trt-int4",
            "NVIDIA TensorRT, weights alone: int4 in groups of 128 or 64 inputs for MatMul and Gemm, the rest in float",
            _TENSORRT,
            ("int8",),
            ("int8",),
            modes=("weight-only",),
            symmetric_activations=True,
            symmetric_weights=True,
            outputs="free",
            absorb=False,
            bias="float",
            stored=("int4",),
            stored_schemes=("per-group",),
            stored_ops=frozenset({"Gemm", "MatMul"}),
            group_sizes=(128, 64),
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
