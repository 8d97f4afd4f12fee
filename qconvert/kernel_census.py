"""Which heavy operators run in integer kernels in the graph that onnxruntime executes, and why the others do not."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert.graph import Operator, load_model, operators
from qconvert.provenance import recorded_reasons
from qconvert.session import open_session
from qconvert.targets import HEAVY

INTEGER_KERNELS = frozenset(
    [
        "QLinearConv",
        "QLinearMatMul",
        "QGemm",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "QAttention",
        "MatMulNBits",
    ]
)
FLOAT_KERNELS = frozenset(
    [
        "Conv",
        "FusedConv",
        "NhwcFusedConv",
        "ConvTranspose",
        "Gemm",
        "FusedGemm",
        "MatMul",
        "FusedMatMul",
        "TransposeMatMul",
        "Attention",
        "MultiHeadAttention",
        "GroupQueryAttention",
        "LSTM",
        "GRU",
        "RNN",
    ]
)
_EIGHT_BIT = frozenset({ir.DataType.INT8, ir.DataType.UINT8})


@dataclass(frozen=True)
class Kernel:
    """A heavy operator of the optimized graph.

    Attributes:
        operator: Name of its output.
        op_type: The kernel, e.g. ``QLinearConv``.
        integer: Whether it computes on integers.
        reason: Why it does not, "" where it does.
    """

    operator: str
    op_type: str
    integer: bool
    reason: str = ""


def census(path: Path, *, provider: str = "cpu") -> tuple[Kernel, ...]:
    """The heavy kernels of a model as onnxruntime runs it with all optimizations.

    Raises:
        ModelError: If onnxruntime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="qconvert.") as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, provider=provider, optimized_path=optimized)
        graph = ir.load(optimized)  # weights may still lie beside the model as written; the census does not read them
    written = load_model(path)
    makers = {value.name or "": op.node for op in operators(written) for value in op.node.outputs}
    planned = recorded_reasons(written)
    found = []
    for op in operators(graph):
        kind, name = op.node.op_type, _written_name(op)
        if kind in INTEGER_KERNELS:
            found.append(Kernel(name, kind, integer=True))
        elif kind in FLOAT_KERNELS:
            found.append(
                Kernel(name, kind, integer=False, reason=planned.get(name) or _reason(name, op.subgraph, makers))
            )
    return tuple(found)


def _written_name(op: Operator) -> str:
    """The output's name in the file; a float Conv in blocked layout keeps it in its own name, ``<name>_nchwc``."""
    own = op.node.name or ""
    blocked = op.node.domain == "com.microsoft.nchwc" and "_nchwc" in own
    return own.rpartition("_nchwc")[0] if blocked else op.name


def _reason(name: str, subgraph: str, makers: Mapping[str, ir.Node]) -> str:
    """What keeps the operator behind an output in float, read off the file as written."""
    node = _heavy_behind(makers.get(name))
    if node is None:
        return f"inside {subgraph}" if subgraph else "onnxruntime made it from float operators"
    if node.op_type not in HEAVY:
        return f"no integer kernel for {node.op_type}"
    return _operand_reason(node) or _fusion_reason(node)


def _operand_reason(node: ir.Node) -> str:
    data, weight = (_stored_type(node, index) for index in (0, 1))
    if data is None and weight is None:
        return "neither its input nor its weight is quantized"
    if data is None or weight is None:
        return "its input is not quantized" if data is None else "its weight is not quantized"
    if data not in _EIGHT_BIT or weight not in _EIGHT_BIT:
        return f"no integer kernel for {data.name.lower()} input with {weight.name.lower()} weight"
    return ""


def _fusion_reason(node: ir.Node) -> str:
    if node.op_type == "ConvTranspose":
        return "onnxruntime has no integer kernel for ConvTranspose"
    readers = {use.node.op_type for use in node.outputs[0].uses()}
    if node.op_type == "Conv" and readers != {"QuantizeLinear"}:
        clamped = readers <= {"Relu", "Clip"} and readers
        return f"its {'/'.join(sorted(readers))} is not absorbed" if clamped else "its output is not quantized"
    return "onnxruntime did not fuse its Q/DQ pairs"


def _heavy_behind(node: ir.Node | None) -> ir.Node | None:
    """The heavy operator that a fused kernel's output comes from: past activations and bias additions."""
    for _ in range(4):
        if node is None or node.op_type in FLOAT_KERNELS:
            return node
        first = node.inputs[0] if node.inputs else None
        node = first.producer() if first is not None else None
    return None


def _stored_type(node: ir.Node, index: int) -> ir.DataType | None:
    """The integer type behind an operand, or None where it is float."""
    value = node.inputs[index] if index < len(node.inputs) else None
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    source = producer.inputs[0]
    if source is not None and source.dtype is not None:
        return source.dtype
    zero = producer.inputs[2] if len(producer.inputs) > 2 else None
    return zero.dtype if zero is not None and zero.dtype is not None else ir.DataType.UINT8
