"""Structural stages before quantization; after each the outputs are compared with the original's, which must agree.

Folding and the BatchNorm rewrites are onnxscript's; the opset converters are onnx's (below 18) and onnxscript's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from qconvert.errors import ModelError, QConvertError
from qconvert.graph import STANDARD_DOMAINS, external_tensors, is_constant, operators, opset, tidy
from qconvert.metrics import sqnr_db
from qconvert.session import Feeds, one_line, open_session, run

PER_AXIS_OPSET = 13
"""The first opset whose DequantizeLinear has an axis."""

FOLD_LIMIT = 1 << 28
"""Elements of the largest constant that is computed ahead; weights of a Transpose or Cast stay below it."""

SAME_DB = 60.0
"""Outputs of a stage agree when their SQNR against the original's is at least this: 0.1 % relative error."""

HALF_SAME_DB = 40.0
"""The same for models computed in float16, whose own rounding is that coarse."""

_CONVERTER_OPSET = 18
"""Where onnxscript's opset converter starts; below it is onnx's."""

_LEGACY_RESIZE = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
"""Resize-10 and Upsample sample at ``x / scale``; the converters leave the new operator at its half-pixel default."""

_FOREIGN = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError)
"""What the rewriters of others raise on graphs that they did not foresee."""

_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


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


def prepare(
    model: ir.Model, probes: Sequence[Feeds], *, original: Path | None = None, min_opset: int = PER_AXIS_OPSET
) -> Prepared:
    """Brings a model into the shape that planning expects; edits ``model``.

    Args:
        model: As loaded.
        probes: Real inputs to compare outputs on after each stage; none skips the comparison.
        original: The file that the model was loaded from, where it is unchanged: run only if a stage does something.
        min_opset: The opset that the Q/DQ operators need; an opset at least as high is left alone.

    Raises:
        ModelError: If a stage changes the outputs, or onnxruntime refuses its result.
    """
    notes = []
    check = bool(probes) and not any(op.node.op_type in _RANDOM for op in operators(model))
    reference = _outputs(model, probes) if check and original is None else None
    tolerance = HALF_SAME_DB if _is_half(model) else SAME_DB
    for name, stage in _stages(model, min_opset):
        note = _run_stage(model, name, stage)
        if not note:
            continue
        notes.append(note)
        if check:
            reference = reference or _outputs(original or model, probes)
            _compare(name, reference, _outputs(model, probes), tolerance)
    _unique_names(model)
    _infer_types(model)
    return Prepared(model, tuple(notes))


def _stages(model: ir.Model, min_opset: int) -> list[tuple[str, Stage]]:
    stages: list[tuple[str, Stage]] = [
        ("removing initializers from the inputs", _initializers_from_inputs),
        ("inlining functions", _inline),
        (f"raising the opset to {min_opset}", lambda m: raise_opset(m, min_opset)),
        ("widening float16 to float32", _widen_half),
    ]
    if quantized_pairs(model):
        return [*stages, ("lifting constants", _lift_constants)]
    return [*stages, ("folding constants", _fold_constants), ("folding BatchNormalization", _fold_batchnorm)]


def _run_stage(model: ir.Model, name: str, stage: Stage) -> str:
    """A stage that fails leaves the graph as it was."""
    backup = model.clone()
    try:
        return stage(model)
    except QConvertError:
        raise
    except _FOREIGN as error:
        model.graph = backup.graph
        return f"{name} left out: {one_line(error)}"


def quantized_pairs(model: ir.Model) -> int:
    """How many Q/DQ operators the model has already."""
    return sum(op.node.op_type in {"DequantizeLinear", "QuantizeLinear"} for op in operators(model))


def _outputs(model: ir.Model | Path, probes: Sequence[Feeds]) -> list[list[object]]:
    session = open_session(model, threads=1, optimize=False)
    return [run(session, feeds) for feeds in probes]


def _compare(stage: str, reference: list[list[object]], outputs: list[list[object]], tolerance: float) -> None:
    for before, after in zip(reference, outputs, strict=True):
        for index, (a, b) in enumerate(zip(before, after, strict=True)):
            if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and not _agree(a, b, tolerance):
                raise ModelError(
                    f"{stage} changes output {index} of the model, so it is not done",
                    hint="simplify or re-export the model with opset 13 or later and try again",
                )


def _agree(before: np.ndarray, after: np.ndarray, tolerance: float) -> bool:
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    if before.dtype.kind != "f":
        return before.size == 0 or bool((before == after).mean() >= 0.99)  # an argmax may flip on a tie
    a, b = before.astype(np.float64), after.astype(np.float64)
    finite = np.isfinite(a)
    return bool((finite == np.isfinite(b)).all()) and sqnr_db(a[finite], b[finite]) >= tolerance


def _initializers_from_inputs(model: ir.Model) -> str:
    before = len(model.graph.inputs)
    passes.RemoveInitializersFromInputsPass()(model)
    count = before - len(model.graph.inputs)
    model.ir_version = max(model.ir_version or 0, 4)  # before, every initializer had to be an input
    return f"{count} weights listed as inputs made constants" if count else ""


def _inline(model: ir.Model) -> str:
    count = len(model.functions)
    if count:
        passes.InlinePass()(model)
    return f"{count} model-local functions inlined" if count else ""


def _lift_constants(model: ir.Model) -> str:
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return ""


def _fold_constants(model: ir.Model) -> str:
    if not any(_is_foldable(op.node) for op in operators(model)):
        return ""
    from onnxscript import rewriter  # noqa: PLC0415 - 30 MB that many models do without
    from onnxscript.optimizer import fold_constants_ir  # noqa: PLC0415
    from onnxscript.rewriter.rules import common  # noqa: PLC0415

    before = _kinds(model)
    _lift_constants(model)
    passes.RemoveUnusedNodesPass()(model)
    fold_constants_ir(
        model,
        onnx_shape_inference=not external_tensors(model),
        input_size_limit=FOLD_LIMIT,
        output_size_limit=FOLD_LIMIT,
    )
    rewriter.rewrite(model, [common.dropout_inference_rule, common.dropout_zero_rule])
    if not any(op.subgraph for op in operators(model)):  # the pass fails on a body that returns an outer value
        passes.IdentityEliminationPass()(model)
    _lift_constants(model)
    tidy(model)
    count = sum((before - _kinds(model)).values())
    return f"{count} operators on constants folded" if count else ""


def _is_foldable(node: ir.Node) -> bool:
    """Whether an operator computes on constants only, or nothing at all."""
    if node.op_type in {"Constant", "Identity", "Dropout", "If", "Shape"}:
        return True
    given = [value for value in node.inputs if value is not None]
    return bool(given) and all(is_constant(value) for value in given)


def _is_affine(node: ir.Node) -> bool:
    """A BatchNormalization, or a multiplication or addition of a constant behind a Conv."""
    if node.op_type not in {"Mul", "Add"}:
        return node.op_type == "BatchNormalization"
    makers = [value.producer() for value in node.inputs if value is not None]
    return any(maker is not None and maker.op_type == "Conv" for maker in makers) and any(
        value is not None and is_constant(value) for value in node.inputs
    )


def _fold_batchnorm(model: ir.Model) -> str:
    if not any(_is_affine(op.node) for op in operators(model)):
        return ""
    from onnxscript import rewriter  # noqa: PLC0415 - 30 MB that many models do without
    from onnxscript.rewriter.rules import common  # noqa: PLC0415

    before = _kinds(model)
    passes.RemoveUnusedNodesPass()(model)  # also an empty bias, which the rules stumble over
    rewriter.rewrite(
        model,
        [
            common.fuse_batchnorm_into_conv_rule,
            common.fuse_batchnorm_into_conv_transpose_rule,
            common.fuse_batchnorm_into_gemm_rule,
            common.conv_affine_fusion_rule,
        ],
    )
    tidy(model)
    after = _kinds(model)
    folded, left = (before - after), after["BatchNormalization"]
    if not folded:
        return ""
    stay = f"; {left} BatchNormalizations follow none and stay" if left else ""
    return f"{', '.join(f'{n} {op_type}' for op_type, n in folded.items())} folded into their Conv or Gemm{stay}"


def _kinds(model: ir.Model) -> Counter[str]:
    return Counter(op.op_type for op in operators(model))


def raise_opset(model: ir.Model, wanted: int) -> str:
    """Converts to opset ``wanted`` unless the model has it or a later one; says what it did.

    Raises:
        ModelError: If the converters cannot do it.
    """
    current = opset(model)
    if current >= wanted:
        return ""
    before = _lasting(model)
    try:
        _convert(model, wanted)
    except Exception as error:
        raise _cannot_raise(current, wanted, one_line(error)) from error
    if opset(model) < wanted:
        raise _cannot_raise(current, wanted, "onnx's converter fails")
    model.ir_version = max(model.ir_version or 0, 10 if wanted >= 21 else 7)
    _keep_names(before, model)
    return f"opset raised from {current} to {wanted}, which Q/DQ needs"


def _cannot_raise(current: int, wanted: int, why: str) -> ModelError:
    return ModelError(
        f"raising the opset from {current} to {wanted}: {why}",
        hint=f"re-export the model with opset {wanted} or later",
    )


def _convert(model: ir.Model, wanted: int) -> None:
    from onnxscript import version_converter  # noqa: PLC0415 - few models need it

    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns whenever it uses onnx's converter
    try:
        if wanted >= _CONVERTER_OPSET:
            version_converter.convert_version(model, wanted, fallback=True)
            return
    finally:
        log.setLevel(level)
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    from onnx import version_converter as onnx_converter  # noqa: PLC0415 - few models need it

    converted = ir.from_proto(onnx_converter.convert_version(ir.to_proto(model), wanted))
    for name, value in converted.graph.initializers.items():
        value.const_value = tensors.get(name, value.const_value)  # weights in files beside the model stay there
    model.graph = converted.graph


def _lasting(model: ir.Model) -> list[tuple[str, list[str]]]:
    """The operators that a conversion keeps, in order: their types before opset 11, and the names of their outputs."""
    kept = [op.node for op in operators(model) if op.op_type != "Constant"]
    return [(node.op_type if opset(model) < 11 else "", [value.name or "" for value in node.outputs]) for node in kept]


def _keep_names(before: Sequence[tuple[str, list[str]]], model: ir.Model) -> None:
    """Gives converted operators the names of their predecessors, and Resize the sampling that it had."""
    after = [op.node for op in operators(model) if op.op_type != "Constant"]
    if len(after) != len(before):
        return
    taken = {value.name for node in after for value in node.outputs} | set(model.graph.initializers)
    for (op_type, names), node in zip(before, after, strict=True):
        for name, value in zip(names, node.outputs, strict=False):
            if name and name not in taken and not value.is_graph_output():
                value.name = name
        if node.op_type == "Resize" and op_type in {"Upsample", "Resize"}:
            for key, mode in _LEGACY_RESIZE.items():
                node.attributes[key] = ir.AttrString(key, mode)


def _is_half(model: ir.Model) -> bool:
    return any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values()) or any(
        value.dtype == ir.DataType.FLOAT16 for value in model.graph.inputs
    )


def _widen_half(model: ir.Model) -> str:
    """float16 tensors become float32; inputs and outputs keep their type behind a Cast.

    onnxruntime's CPU provider does the same at run time.
    """
    if not _is_half(model):
        return ""
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    outputs = enumerate(model.graph.outputs)
    half_outputs = [index for index, value in outputs if value.dtype == half and not value.is_graph_input()]
    for op in operators(model):
        _widen_node(op.node)
    for graph in (model.graph, *model.graph.subgraphs()):
        bodies = () if graph is model.graph else graph.inputs
        for value in [value for value in (*bodies, *graph.initializers.values()) if value.dtype == half]:
            value.type = ir.TensorType(single)
            if value.const_value is not None:
                value.const_value = ir.Tensor(value.const_value.numpy().astype(np.float32), name=value.name)
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


def _unique_names(model: ir.Model) -> None:
    """Names of operators, unique over all branches too: ONNX lets the bodies of one If share names."""
    seen: set[str] = set()
    for op in operators(model):
        for value in op.node.outputs:
            name, count = value.name or "", 1
            while value.name and value.name in seen:
                count += 1
                value.name = f"{name}_{count}"
            seen.add(value.name or "")


def _infer_types(model: ir.Model) -> None:
    """Types and shapes of every value; behind operators that onnx does not know, floats keep their width."""
    try:
        passes.ShapeInferencePass(strict_mode=False, data_prop=True)(model)
    except (ValueError, RuntimeError, onnx.shape_inference.InferenceError):
        return
    for op in operators(model):
        types = [value.dtype for value in op.node.inputs if value is not None and value.dtype is not None]
        if op.node.domain not in STANDARD_DOMAINS:
            types = [dtype for dtype in types if dtype in _FLOATS]
        known = next(iter(types), None)
        for value in op.node.outputs[:1]:
            if value.dtype is None and known in _FLOATS:
                value.type = ir.TensorType(known)


_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})
