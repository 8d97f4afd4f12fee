"""Constants and BatchNormalization folded, by the rewriters of onnxscript."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import onnx_ir.passes.common as passes

from qconvert.graph import external_tensors, is_constant, operators, tidy

FOLD_LIMIT = 1 << 28
"""Elements of the largest constant that is computed ahead; weights of a Transpose or Cast stay below it."""


def lift_constants(model: ir.Model) -> str:
    """Makes initializers of Constant operators."""
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return ""


def drop_identities(model: ir.Model) -> str:
    """Lifts constants and drops Identity, behind which exporters hide weights that several operators share."""
    lift_constants(model)
    before = _kinds(model)["Identity"]
    _drop_identities(model)
    count = before - _kinds(model)["Identity"]
    return f"{count} Identity operators dropped" if count else ""


def _drop_identities(model: ir.Model) -> None:
    if not any(op.subgraph for op in operators(model)):  # the pass fails on a body that returns an outer value
        passes.IdentityEliminationPass()(model)


def fold_constants(model: ir.Model) -> str:
    """Computes ahead what depends on no input, and drops Identity and Dropout."""
    if not any(_is_foldable(op.node) for op in operators(model)):
        return ""
    from onnxscript import rewriter  # noqa: PLC0415 - 30 MB that many models do without
    from onnxscript.optimizer import fold_constants_ir  # noqa: PLC0415
    from onnxscript.rewriter.rules import common  # noqa: PLC0415

    before = _kinds(model)
    lift_constants(model)
    passes.RemoveUnusedNodesPass()(model)
    fold_constants_ir(
        model,
        onnx_shape_inference=not external_tensors(model),
        input_size_limit=FOLD_LIMIT,
        output_size_limit=FOLD_LIMIT,
    )
    rewriter.rewrite(model, [common.dropout_inference_rule, common.dropout_zero_rule])
    _drop_identities(model)
    lift_constants(model)
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


def fold_batchnorm(model: ir.Model) -> str:
    """Folds BatchNormalization, and constant factors and terms, into the Conv or Gemm before them."""
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
