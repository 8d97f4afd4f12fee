"""Which operators compute in a half type, and why the others stay in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

import onnx_ir as ir

from qconvert.errors import ModelError
from qconvert.graph import STANDARD_DOMAINS, Operator, constant, is_constant, operators
from qconvert.policy.fields import fits
from qconvert.rewrite.half_tensors import HALF_TYPES
from qconvert.schemas import Signature, signature

_UNSAFE = "its results need more range or precision than float16 has"
_DECIDES = "small differences decide which boxes or elements it takes"
_MAKES = "makes its values in float32"
_BODY = "what its bodies take and give stays float32"
_GRID = "float16 would coarsen its scale"
_REDUCES = "onnxruntime does not reduce float16 in it"

DEFAULT_BLOCK: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("CumSum", "STFT", "DFT", "MelWeightMatrix", "Range"), _UNSAFE),
        **dict.fromkeys(("NonMaxSuppression", "TopK", "RoiAlign", "Upsample"), _DECIDES),
        **dict.fromkeys(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"), _MAKES),
        **dict.fromkeys(("Bernoulli", "EyeLike", "Multinomial"), _MAKES),
        **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), _MAKES),
        **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), _BODY),
        "QuantizeLinear": _GRID,
        "BitCast": "reads the bits of float32",
        "MeanVarianceNormalization": "onnxruntime computes it by a function of float32 constants",
    }
)
"""Operators that stay in float32 whatever types ONNX allows them, with the reason.

It starts from the list of onnxruntime's ``float16.py``. Min, Max and OneHot are not here: onnxruntime 1.31 runs them in
float16 on all of ONNX's own tests, and ONNX's table knows from which opset on they take it.
"""

FLOAT_OPERANDS: Mapping[str, frozenset[int]] = MappingProxyType({"Resize": frozenset({1, 2})})
"""Operands that say where and not what, and stay float32 though the operator does not."""

_SHAPES = frozenset({"Shape", "Size"})
_FILLED = frozenset({"ConstantOfShape", "Expand", "If", "Loop", "Scan"})
"""Operators that only take their size, or the way to go, from what a shape says."""

SHAPE_CONSTANT = 64
"""Elements of the largest constant that arithmetic on shapes reads; a larger one is a weight."""

_INTEGER = frozenset({"MatMulInteger", "ConvInteger"})


@dataclass(frozen=True)
class Kept:
    """An operator on float tensors that stays in float32, and why."""

    operator: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class HalfSlots:
    """The operands and results of an operator that are half."""

    inputs: frozenset[int]
    outputs: frozenset[int]


@dataclass(frozen=True)
class Choice:
    """The operators that change, with what changes, and those that could have."""

    half: Mapping[ir.Node, HalfSlots]
    kept: tuple[Kept, ...]


def choose(model: ir.Model, block: Sequence[str] = ()) -> Choice:
    """Decides for every operator; types of values must be known, what is not known stays.

    Raises:
        ModelError: If a pattern of ``block`` matches no operator.
    """
    blocked = match_block(model, block)
    reasons = {**_shape_arithmetic(model), **_integer_arithmetic(model), **blocked}
    half, kept = {}, []
    for op in operators(model):
        if not _reads_float(op.node):
            continue
        reason = reasons.get(op.node) or DEFAULT_BLOCK.get(op.op_type) or _reduces(op.node)
        slots, why_not = _slots(op.node, signature(op.node, model.opset_imports))
        if reason or why_not:
            kept.append(Kept(op.name, op.op_type, reason or why_not))
        else:
            half[op.node] = slots
    return Choice(half, tuple(kept))


def match_block(model: ir.Model, block: Sequence[str]) -> dict[ir.Node, str]:
    """The operators that the patterns match by name or type.

    Raises:
        ModelError: If a pattern matches none; the hint names the closest.
    """
    found = list(operators(model))
    matched: dict[ir.Node, str] = {}
    for pattern in block:
        hits = [op.node for op in found if any(fits(pattern, text) for text in _texts(op))]
        if not hits:
            raise ModelError(f"--block '{pattern}' matches no operator", hint=_closest(pattern, found))
        for node in hits:
            matched.setdefault(node, f"--block {pattern}")
    return matched


def _texts(op: Operator) -> tuple[str, ...]:
    return (op.op_type, *op.names)


def _closest(pattern: str, found: Sequence[Operator]) -> str:
    texts = {text.lower(): text for op in found for text in _texts(op)}
    near = get_close_matches(pattern.strip("*").lower(), sorted(texts), n=3, cutoff=0.3)
    listed = ", ".join(texts[text] for text in near) or ", ".join(sorted({op.op_type for op in found})[:8])
    return f"closest: {listed}"


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType)


def _reads_float(node: ir.Node) -> bool:
    return any(map(_is_float, (*node.inputs, *node.outputs)))


def _slots(node: ir.Node, found: Signature | None) -> tuple[HalfSlots, str]:
    """The slots of an operator that can be half, or why none is."""
    nothing = HalfSlots(frozenset(), frozenset())
    if found is None or node.domain not in STANDARD_DOMAINS:
        return nothing, "is no operator of ONNX's default domain"
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    if any(value.type is None for value in values):
        return nothing, "the type of one of its tensors is not known"
    if not all(isinstance(value.type, ir.TensorType) for value in values):
        return nothing, "sequences and optional values keep their type"
    fixed = FLOAT_OPERANDS.get(node.op_type, frozenset())
    inputs = {
        i for i, value in enumerate(node.inputs) if _is_float(value) and "tensor(float16)" in found.operand(i).types
    }
    outputs = {
        i for i, value in enumerate(node.outputs) if _is_float(value) and "tensor(float16)" in found.result(i).types
    }
    slots = HalfSlots(frozenset(inputs - fixed), frozenset(outputs))
    return slots, "" if slots != nothing else "takes and gives float32 only, at this opset"


def _reduces(node: ir.Node) -> str:
    """Why a Scatter that adds or multiplies stays."""
    return _REDUCES if node.op_type.startswith("Scatter") and "reduction" in node.attributes else ""


def _shape_arithmetic(model: ir.Model) -> dict[ir.Node, str]:
    """Operators on nothing but shapes and small constants: sizes beyond 2048 are not exact in float16."""
    derived: set[ir.Value] = set()
    found = {}
    for op in operators(model):
        given = [value for value in op.node.inputs if value is not None]
        if op.op_type in _SHAPES:
            derived.update(op.node.outputs)
        elif (
            op.op_type not in _FILLED
            and any(value in derived for value in given)
            and all(value in derived or _is_small_constant(value) for value in given)
        ):
            derived.update(op.node.outputs)
            found[op.node] = "computes sizes, not contents"
    return found


def _is_small_constant(value: ir.Value) -> bool:
    return is_constant(value) and value.const_value is not None and value.const_value.size <= SHAPE_CONSTANT


def _integer_arithmetic(model: ir.Model) -> dict[ir.Node, str]:
    """What stands between Q/DQ operators, where runtimes compute on integers, and what rescales integer sums."""
    found: dict[ir.Node, str] = {}
    for op in operators(model):
        node = op.node
        makers = [value.producer() for value in node.inputs if _is_float(value) and not is_constant(value)]  # type: ignore[union-attr,arg-type]
        kinds = ["" if maker is None else maker.op_type for maker in makers]
        levels, quantized = kinds.count("DequantizeLinear"), _only_quantized(node)
        from_levels = levels == len(makers) and (levels > 1 or quantized)
        if makers and (from_levels or (quantized and all(maker in found for maker in makers))):
            found[node] = "computes on integers between DequantizeLinear and QuantizeLinear"
        elif _rescales(node):
            found[node] = "rescales integer sums, which are beyond the range of float16"
    for op in operators(model):
        if op.op_type == "DequantizeLinear" and not _is_narrow_weight(op.node, found):
            found[op.node] = _GRID
    return found


def _only_quantized(node: ir.Node) -> bool:
    readers = [reader for value in node.outputs for reader in value.consumers()]
    return bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)


def _rescales(node: ir.Node) -> bool:
    makers = [value.producer() for value in node.inputs if value is not None]
    if node.op_type == "Cast":
        return any(maker is not None and maker.op_type in _INTEGER for maker in makers)
    return node.op_type == "Mul" and any(
        maker is not None and maker.op_type == "Cast" and _rescales(maker) for maker in makers
    )


def _is_narrow_weight(node: ir.Node, integer: Mapping[ir.Node, str]) -> bool:
    """Whether a weight is dequantized for operators in half, by scales that float16 holds with full precision."""
    if node.inputs[0] is None or not is_constant(node.inputs[0]):
        return False
    scale = constant(node.inputs[1])
    half = HALF_TYPES["fp16"]
    fine = scale is not None and bool(((scale >= half.smallest) & (scale <= half.largest)).all())
    return fine and not any(reader in integer for reader in node.outputs[0].consumers())
