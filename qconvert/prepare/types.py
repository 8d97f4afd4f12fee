"""Names and types that planning relies on."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from qconvert.graph import FLOATS, STANDARD_DOMAINS, operators


def unique_names(model: ir.Model) -> None:
    """Names of operators, unique over all branches too: ONNX lets the bodies of one If share names."""
    seen: set[str] = set()
    for op in operators(model):
        for value in op.node.outputs:
            name, count = value.name or "", 1
            while value.name and value.name in seen:
                count += 1
                value.name = f"{name}_{count}"
            seen.add(value.name or "")


def infer_types(model: ir.Model) -> None:
    """Types and shapes of every value; behind operators that onnx does not know, floats keep their width."""
    if _all_known(model):
        return
    try:
        passes.ShapeInferencePass(strict_mode=False, data_prop=True)(model)
    except (ValueError, RuntimeError, onnx.shape_inference.InferenceError):
        return
    for op in operators(model):
        types = [value.dtype for value in op.node.inputs if value is not None and value.dtype is not None]
        if op.node.domain not in STANDARD_DOMAINS:
            types = [dtype for dtype in types if dtype in FLOATS]
        known = next(iter(types), None)
        for value in op.node.outputs[:1]:
            if value.dtype is None and known in FLOATS:
                value.type = ir.TensorType(known)


def _all_known(model: ir.Model) -> bool:
    """Whether inference, which takes 30 ms of a small network, could add nothing."""
    sizes = (size for value in model.graph.inputs for size in value.shape or ())
    free = {size for size in sizes if isinstance(size, ir.SymbolicDim) and size.value is not None}
    return all(
        value.dtype is not None
        and value.shape is not None
        and all(isinstance(size, int) or size in free for size in value.shape)
        for op in operators(model)
        for value in op.node.outputs
        if value.name
    )
