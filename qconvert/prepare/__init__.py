"""Structural stages before quantization; after each the outputs are compared with the original's, which must agree.

Folding and the BatchNorm rewrites are onnxscript's; the opset converters are onnx's (below 18) and onnxscript's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from qconvert.errors import ModelError, QConvertError
from qconvert.graph import operators
from qconvert.metrics import sqnr_db
from qconvert.prepare.fold import drop_identities, fold_batchnorm, fold_constants, lift_constants
from qconvert.prepare.half import is_half, widen_half
from qconvert.prepare.opset import raise_opset
from qconvert.prepare.types import infer_types, unique_names
from qconvert.session import Feeds, one_line, open_session, run

PER_AXIS_OPSET = 13
"""The first opset whose DequantizeLinear has an axis."""

SAME_DB = 60.0
"""Outputs of a stage agree when their SQNR against the original's is at least this: 0.1 % relative error."""

HALF_SAME_DB = 40.0
"""The same for models computed in float16, whose own rounding is that coarse."""

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
    model: ir.Model,
    probes: Sequence[Feeds],
    *,
    original: Path | None = None,
    min_opset: int = PER_AXIS_OPSET,
    fold: bool = True,
) -> Prepared:
    """Brings a model into the shape that planning expects; edits ``model``.

    Args:
        model: As loaded.
        probes: Real inputs to compare outputs on after each stage; none skips the comparison.
        original: The file that the model was loaded from, where it is unchanged: run only if a stage does something.
        min_opset: The opset that the Q/DQ operators need; an opset at least as high is left alone.
        fold: Whether operators on constants are computed ahead, which may write a weight twice.

    Raises:
        ModelError: If a stage changes the outputs, or onnxruntime refuses its result.
    """
    notes = []
    check = bool(probes) and not any(op.node.op_type in _RANDOM for op in operators(model))
    reference = _outputs(model, probes) if check and original is None else None
    tolerance = HALF_SAME_DB if is_half(model) else SAME_DB
    backup = model.clone()
    for name, stage in _stages(model, min_opset, fold=fold):
        note = _run_stage(model, name, stage, backup)
        if not note:
            continue
        backup = model.clone()
        notes.append(note)
        if check:
            reference = reference or _outputs(original or model, probes)
            _compare(name, reference, _outputs(model, probes), tolerance)
    unique_names(model)
    infer_types(model)
    return Prepared(model, tuple(notes))


def _stages(model: ir.Model, min_opset: int, *, fold: bool) -> list[tuple[str, Stage]]:
    stages: list[tuple[str, Stage]] = [
        ("removing initializers from the inputs", _initializers_from_inputs),
        ("inlining functions", _inline),
        (f"raising the opset to {min_opset}", lambda m: raise_opset(m, min_opset)),
        ("widening float16 to float32", widen_half),
    ]
    if quantized_pairs(model):
        return [*stages, ("lifting constants", lift_constants)]
    stages.append(("folding constants", fold_constants) if fold else ("dropping Identity", drop_identities))
    return [*stages, ("folding BatchNormalization", fold_batchnorm)]


def _run_stage(model: ir.Model, name: str, stage: Stage, backup: ir.Model) -> str:
    """A stage that fails leaves the graph as it was."""
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


__all__ = ["HALF_SAME_DB", "PER_AXIS_OPSET", "SAME_DB", "Prepared", "prepare", "quantized_pairs", "raise_opset"]
