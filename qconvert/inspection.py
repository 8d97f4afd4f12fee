"""What is in a model, and what would be quantized and why, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qconvert import calibration
from qconvert.comparison import file_size
from qconvert.graph import Port, initializers, load_model, operators, opset, ports
from qconvert.plan import Placement, Plan, make_placement, make_plan
from qconvert.policy import Policy
from qconvert.prepare import prepare
from qconvert.targets import Target


@dataclass(frozen=True)
class Inspection:
    """What is in a model file, and what would be quantized.

    Attributes:
        path: The file.
        size_bytes: Of the file and its weight files.
        opset: Version of the default operator set.
        inputs: As onnxruntime sees them.
        outputs: Likewise.
        operators: ``(op_type, count)`` in the file as it is.
        weights: ``(dtype, tensors, bytes)``.
        notes: What preparation would change.
        placement: What the policy quantizes, with reasons.
        target: For which runtime.
        plan: With ranges, where a calibration was given.
    """

    path: Path
    size_bytes: int
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: tuple[tuple[str, int], ...]
    weights: tuple[tuple[str, int, int], ...]
    notes: tuple[str, ...]
    placement: Placement
    target: Target
    plan: Plan | None


def inspect(model: Path, *, policy: Policy | None = None, calibrated: Path | None = None) -> Inspection:
    """Looks into a model and plans without writing.

    Raises:
        QConvertError: If the model or the calibration cannot be read, or a rule of the policy matches nothing.
    """
    graph = load_model(model)
    inputs, outputs = ports(graph)
    counts: dict[str, int] = {}
    for op in operators(graph):
        counts[op.op_type] = counts.get(op.op_type, 0) + 1
    weights: dict[str, tuple[int, int]] = {}
    for _, tensor in initializers(graph):
        tensors, size = weights.get(tensor.dtype.name.lower(), (0, 0))
        weights[tensor.dtype.name.lower()] = (tensors + 1, size + tensor.nbytes)
    version = opset(graph)
    prepared = prepare(graph, ())
    placement, _, target = make_placement(graph, policy or Policy())
    plan = None
    if calibrated is not None:
        loaded = calibration.load(calibrated)
        calibration.check_model(loaded, model)
        plan = make_plan(graph, policy or Policy(), loaded.stats)
    return Inspection(
        model,
        file_size(model),
        version,
        inputs,
        outputs,
        tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        tuple((dtype, *sizes) for dtype, sizes in sorted(weights.items())),
        prepared.notes,
        placement,
        target,
        plan,
    )
