"""Structural stages before quantization; after each one the outputs are compared with the original's, and a difference is an error.

Constant folding and the BatchNorm rewrites are onnxscript's; the opset converters are onnx's (below 18) and onnxscript's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.rewriter
import onnxscript.version_converter
from onnx import version_converter
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter.rules import common

from qconvert.errors import ModelError
from qconvert.graph import STANDARD_DOMAINS, external_tensors, operators, opset, tidy
from qconvert.metrics import sqnr_db
from qconvert.session import Feeds, open_session, run

PER_AXIS_OPSET = 13
"""The first opset whose DequantizeLinear has an axis."""

FOLD_LIMIT = 1 << 28
"""Elements of the largest constant that is computed ahead; weights of a Transpose or Cast stay below it."""

SAME_DB = 60.0
"""Outputs of a stage agree when their SQNR against the original's is at least this: 0.1 % relative error."""

HALF_SAME_DB = 40.0
"""The same for models computed in float16, whose own rounding is that coarse."""

_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"})


@dataclass(frozen=True)
class Prepared:
    """A graph ready to be planned.

    Attributes:
        model: The graph; outputs agree with the original's.
        notes: What was changed, one line each.
    """

    model: ir.Model
    notes: tuple[str, ...]


Stage = Callable[[ir.Model], str]
"""Edits the graph and says what it did, or "" when there was nothing to do."""


def prepare(model: ir.Model, probes: Sequence[Feeds], *, min_opset: int = PER_AXIS_OPSET) -> Prepared:
    """Brings a model into the shape that planning expects; edits ``model``.

    Args:
        model: As loaded.
        probes: Real inputs to compare outputs on after each stage; none skips the comparison.
        min_opset: The opset that the Q/DQ operators need; an opset at least as high is left alone.

    Raises:
        ModelError: If a stage changes the outputs, or onnxruntime refuses its result.
    """
    reference = None
    notes = []
    stages = _stages(model, min_opset)
    if probes:
        reference = _outputs(model, probes)
    tolerance = HALF_SAME_DB if _is_half(model) else SAME_DB
    for name, stage in stages:
        note = stage(model)
        if not note:
            continue
        notes.append(note)
        if reference is not None:
            _compare(name, reference, _outputs(model, probes), tolerance)
    _infer_types(model)
    return Prepared(model, tuple(notes))


def _stages(model: ir.Model, min_opset: int) -> list[tuple[str, Stage]]:
    quantized = quantized_pairs(model)
    stages: list[tuple[str, Stage]] = [
        ("removing initializers from the inputs", _initializers_from_inputs),
        ("inlining functions", _inline),
        (f"raising the opset to {min_opset}", lambda m: raise_opset(m, min_opset)),
        ("widening float16 to float32", _widen_half),
    ]
    if not quantized:
        stages += [("folding constants", _fold_constants), ("folding BatchNormalization", _fold_batchnorm)]
    return stages


def quantized_pairs(model: ir.Model) -> int:
    """How many Q/DQ operators the model has already."""
    return sum(op.node.op_type in {"DequantizeLinear", "QuantizeLinear"} for op in operators(model))


def _outputs(model: ir.Model, probes: Sequence[Feeds]) -> list[list[object]] | None:
    if any(op.node.op_type in _RANDOM for op in operators(model)):
        return None
    session = open_session(model, threads=1, optimize=False)
    return [run(session, feeds) for feeds in probes]


def _compare(stage: str, reference: list[list[object]], outputs: list[list[object]] | None, tolerance: float) -> None:
    for index, pair in enumerate(zip(*reference, strict=True)):
        got = [row[index] for row in outputs or ()]
        for before, after in zip(pair, got, strict=True):
            if isinstance(before, np.ndarray) and isinstance(after, np.ndarray) and not _agree(before, after, tolerance):
                raise ModelError(
                    f"{stage} changes output {index} of the model, so it is not done",
                    hint="simplify or re-export the model with opset 13 or later and try again",
                )


def _agree(before: np.ndarray, after: np.ndarray, tolerance: float) -> bool:
    if before.shape != after.shape:
        return False
    if before.dtype.kind != "f":
        return before.size == 0 or bool((before == after).mean() >= 0.99)  # noqa: PLR2004 - an argmax may flip on a tie
    a, b = before.astype(np.float64), after.astype(np.float64)
    finite = np.isfinite(a)
    return bool((finite == np.isfinite(b)).all()) and sqnr_db(a[finite], b[finite]) >= tolerance


def _initializers_from_inputs(model: ir.Model) -> str:
    before = len(model.graph.inputs)
    passes.RemoveInitializersFromInputsPass()(model)
    count = before - len(model.graph.inputs)
    return f"{count} weights listed as inputs made constants" if count else ""


def _inline(model: ir.Model) -> str:
    count = len(model.functions)
    if count:
        passes.InlinePass()(model)
    return f"{count} model-local functions inlined" if count else ""


def _fold_constants(model: ir.Model) -> str:
    before = Counter(op.op_type for op in operators(model))
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveUnusedNodesPass()(model)
    fold_constants_ir(model, onnx_shape_inference=not external_tensors(model), input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    onnxscript.rewriter.rewrite(model, [common.dropout_inference_rule, common.dropout_zero_rule])
    if not any(op.subgraph for op in operators(model)):  # the pass fails on a body that returns an outer value
        passes.IdentityEliminationPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    tidy(model)
    after = Counter(op.op_type for op in operators(model))
    count = sum((before - after).values())
    return f"{count} operators on constants folded" if count else ""


def _fold_batchnorm(model: ir.Model) -> str:
    def norms() -> int:
        return sum(op.op_type == "BatchNormalization" for op in operators(model))

    before = norms()
    onnxscript.rewriter.rewrite(
        model,
        [
            common.fuse_batchnorm_into_conv_rule,
            common.fuse_batchnorm_into_conv_transpose_rule,
            common.fuse_batchnorm_into_gemm_rule,
            common.conv_affine_fusion_rule,
        ],
    )
    tidy(model)
    folded, left = before - norms(), norms()
    if not before:
        return ""
    return f"{folded} BatchNormalizations folded into their Conv or Gemm" + (f", {left} have none and stay" if left else "")


def raise_opset(model: ir.Model, wanted: int) -> str:
    """Converts to opset ``wanted`` unless the model has it or a later one; says what it did."""
    current = opset(model)
    if current >= wanted:
        return ""
    legacy_resize = {op.name for op in operators(model) if op.op_type in {"Upsample", "Resize"} and current < 11}  # noqa: PLR2004
    if wanted < 18:  # noqa: PLR2004 - onnxscript's converter starts here
        converted = ir.from_proto(version_converter.convert_version(ir.to_proto(model), wanted))
        model.graph, model.ir_version = converted.graph, max(model.ir_version, 7)
    else:
        onnxscript.version_converter.convert_version(model, wanted, fallback=True)
    for op in operators(model):
        if op.name in legacy_resize and op.op_type == "Resize":
            # Resize-10 and Upsample sample at x / scale; the converter leaves the new operator at its half-pixel default.
            op.node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
            if op.node.attributes.get_string("mode", "nearest") == "nearest":
                op.node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")
    return f"opset raised from {current} to {wanted}, which Q/DQ needs"


def _is_half(model: ir.Model) -> bool:
    return any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values()) or any(
        value.dtype == ir.DataType.FLOAT16 for value in model.graph.inputs
    )


def _widen_half(model: ir.Model) -> str:
    """float16 tensors become float32; inputs and outputs keep their type behind a Cast (onnxruntime CPU does the same at run time)."""
    if not _is_half(model):
        return ""
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    half_outputs = [index for index, value in enumerate(model.graph.outputs) if value.dtype == half]
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in list(graph.initializers.values()):
            if value.dtype == half and value.const_value is not None:
                value.const_value = ir.Tensor(value.const_value.numpy().astype(np.float32), name=value.name)
                value.type = ir.TensorType(single)
        for node in graph:
            _widen_node(node)
    for value in model.graph.inputs:
        if value.dtype == half:
            cast = ir.node("Cast", [value], {"to": single})
            cast.outputs[0].name = f"{value.name}_float32"
            uses = [use for use in value.uses() if use.node is not cast]
            model.graph.insert_before(model.graph[0], cast)
            for use in uses:
                use.node.replace_input_with(use.idx, cast.outputs[0])
    for index in half_outputs:
        value = model.graph.outputs[index]
        cast = ir.node("Cast", [value], {"to": half})
        cast.outputs[0].name, value.name = value.name, f"{value.name}_float32"
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(half), value.shape
        model.graph.append(cast)
        model.graph.outputs[index] = cast.outputs[0]
    return "float16 computed as float32; inputs and outputs keep float16"


def _widen_node(node: ir.Node) -> None:
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == half:
        node.attributes["to"] = ir.AttrInt64("to", single)
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == half:
            node.attributes[name] = ir.AttrTensor(name, ir.Tensor(attribute.value.numpy().astype(np.float32)))
    for value in node.outputs:
        if value.dtype == half:
            value.type = ir.TensorType(single)


def _infer_types(model: ir.Model) -> None:
    """Types and shapes of every value; behind operators that onnx does not know, floats stay floats of the same width."""
    try:
        passes.ShapeInferencePass(strict_mode=False, data_prop=True)(model)
    except (ValueError, RuntimeError, onnx.shape_inference.InferenceError):
        return
    for op in operators(model):
        if op.node.domain in STANDARD_DOMAINS:
            known = next((value.dtype for value in op.node.inputs if value is not None and value.dtype is not None), None)
        else:
            known = next((v.dtype for v in op.node.inputs if v is not None and v.dtype in _FLOATS), None)
        for value in op.node.outputs[:1]:
            if value.dtype is None and known in _FLOATS:
                value.type = ir.TensorType(known)


_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})

