"""Opset conversion that keeps names, values and weights in files."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx_ir as ir

from qconvert.errors import ModelError
from qconvert.graph import operators, opset
from qconvert.session import one_line

_CONVERTER_OPSET = 18
"""Where onnxscript's opset converter starts; below it is onnx's."""

_LEGACY_RESIZE = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
"""Resize-10 and Upsample sample at ``x / scale``; the converters leave the new operator at its half-pixel default."""

_IR_VERSIONS = ((25, 13), (21, 10), (0, 7))
"""The least version of the file format by opset, where types came with it: 2 bits, 4 bits, everything before."""


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
    least = next(version for first, version in _IR_VERSIONS if wanted >= first)
    model.ir_version = max(model.ir_version or 0, least)
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
