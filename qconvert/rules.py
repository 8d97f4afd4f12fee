"""Which operands of which operator are quantized, and how: one row an operator.

Roles of an operator (``kind``):

* ``heavy``: where the time goes; quantized wherever the target has an integer kernel.
* ``light``: worth quantizing only between integer operators.
* ``same``: moves values without changing them; its output shares the parameters of its input.
* ``bridge``: computed in float, but its input and output may be quantized for its neighbours.
* ``relu``: a clamp that the quantized range of its input can make redundant.
* ``float``: stays float; its row only says what range its output has.

Operators without a row stay float, and so does what only they read. For a target with an integer kernel for what others
compute in float, that is ``light`` (see ``role``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qconvert.numerics import Range
from qconvert.targets import MOVES, Target

Kind = Literal["heavy", "light", "same", "bridge", "relu", "float"]


@dataclass(frozen=True)
class OpRule:
    """One operator's row.

    Attributes:
        op_type: ONNX operator type, default domain.
        kind: Its role, see the module.
        activations: Operand positions that are activations; None means all of them.
        weight: Operand position of the weight where that is a constant.
        bias: Operand position of the bias.
        output_range: The interval that the outputs of this function never leave, whatever the data.
    """

    op_type: str
    kind: Kind
    activations: tuple[int, ...] | None = (0,)
    weight: int | None = None
    bias: int | None = None
    output_range: Range | None = None


def weight_axis(op_type: str, rank: int, attributes: Mapping[str, Any]) -> int:
    """The output-channel axis of a weight: Conv 0, ConvTranspose 1, Gemm 0 with transB else 1, MatMul the last.

    Args:
        op_type: ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul``.
        rank: Rank of the weight.
        attributes: The operator's attributes by name, as Python values.
    """
    if op_type == "Gemm":
        return 0 if attributes.get("transB") else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}[op_type]


def reduction_axis(op_type: str, rank: int, attributes: Mapping[str, Any]) -> int:
    """The axis of a weight that products are summed over: Gemm 1 with transB else 0, MatMul the last but one.

    Args:
        op_type: ``Gemm`` or ``MatMul``.
        rank: Rank of the weight, at least 2.
        attributes: The operator's attributes by name, as Python values.
    """
    if op_type == "Gemm":
        return 1 if attributes.get("transB") else 0
    return rank - 2


@dataclass(frozen=True)
class Channels:
    """Where the channels of a value lie.

    Attributes:
        axis: Their axis; -1 is the last one, whatever the rank.
        size: How many there are.
    """

    axis: int
    size: int


def channels(op_type: str, weight: tuple[int, ...], attributes: Mapping[str, Any]) -> tuple[Channels, ...]:
    """The channels that a weight mixes: those of its operator's input, then of the output unless it has none.

    Only a MatMul with a vector has none.

    Args:
        op_type: ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul``.
        weight: Shape of the weight.
        attributes: The operator's attributes by name, as Python values.
    """
    group = int(attributes.get("group", 1))
    if op_type == "Conv":
        return Channels(1, weight[1] * group), Channels(1, weight[0])
    if op_type == "ConvTranspose":
        return Channels(1, weight[0]), Channels(1, weight[1] * group)
    if op_type == "Gemm":
        rows, columns = reversed(weight) if attributes.get("transB") else weight
        return Channels(0 if attributes.get("transA") else 1, rows), Channels(1, columns)
    return tuple(Channels(-1, size) for size in weight[-2:])


_UNIT, _SIGNED_UNIT = Range(0.0, 1.0), Range(-1.0, 1.0)

_BRIDGES = (
    "HardSwish",
    "Gelu",
    "Elu",
    "Selu",
    "Celu",
    "Mish",
    "Softplus",
    "Softsign",
    "ThresholdedRelu",
    "BatchNormalization",
    "GroupNormalization",
    "ReduceMean",
    "ReduceMax",
    "GlobalMaxPool",
    "Swish",
)

OP_RULES: dict[str, OpRule] = {
    rule.op_type: rule
    for rule in (
        OpRule("Conv", "heavy", (0, 1), weight=1, bias=2),
        OpRule("ConvTranspose", "heavy", (0, 1), weight=1, bias=2),
        OpRule("Gemm", "heavy", (0, 1), weight=1, bias=2),
        OpRule("MatMul", "heavy", (0, 1), weight=1),
        OpRule("Add", "light", None),
        OpRule("Mul", "light", None),
        OpRule("Concat", "light", None),
        OpRule("GlobalAveragePool", "light"),
        OpRule("AveragePool", "light"),
        OpRule("LeakyRelu", "light"),
        OpRule("Sigmoid", "light", output_range=_UNIT),
        *(OpRule(name, "same") for name in MOVES),
        OpRule("Relu", "relu"),
        OpRule("Clip", "relu"),
        OpRule("HardSigmoid", "bridge", output_range=_UNIT),
        OpRule("Tanh", "bridge", output_range=_SIGNED_UNIT),
        OpRule("Softmax", "float", output_range=_UNIT),
        OpRule("LogSoftmax", "float"),
        OpRule("LpNormalization", "float", output_range=_SIGNED_UNIT),
        OpRule("LayerNormalization", "float", weight=1, bias=2),
        OpRule("InstanceNormalization", "bridge", weight=1, bias=2),
        OpRule("PRelu", "bridge", None),
        *(OpRule(name, "bridge") for name in _BRIDGES),
        *(OpRule(name, "float", None) for name in ("Sub", "Div", "Max", "Min")),
    )
}


def role(op_type: str, target: Target) -> Kind | None:
    """The role of an operator for a target; None of one that has no row."""
    rule = OP_RULES.get(op_type)
    if rule is None:
        return None
    promoted = op_type in target.integer_ops and rule.kind in {"bridge", "relu", "float"}
    return "light" if promoted else rule.kind
