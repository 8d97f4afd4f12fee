"""Cells of target, mode, format, types, granularity and interface: which are supported, and why others are not.

One function, ``refusal``, says of a cell why it is not supported, from the tables that planners and writers use
(``TARGETS``, ``rewrite.limits.LIMITS`` and their neighbours).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, get_args

from qconvert.numerics import QUANT_TYPES
from qconvert.plan.dynamic import DTYPES, dynamic_fault
from qconvert.plan.settings import static_fault
from qconvert.plan.types import ActivationScheme
from qconvert.plan.weight_only import stored_fault
from qconvert.policy import Scheme
from qconvert.rewrite.interface import InputType, OutputType
from qconvert.rewrite.limits import LEVEL_BITS, LIMITS, pair_refusal, type_refusal
from qconvert.targets import Format, Granularity, Mode, Target, get_target

FLOAT = "float32"
"""Of activations that stay as they are."""


@dataclass(frozen=True)
class Cell:
    """One way to quantize a model. Each attribute is an option of ``qconvert quantize``.

    Attributes:
        target: Name of the runtime.
        mode: When activations are quantized.
        format: What stands in the file; ``qdq`` in the modes that have one form.
        weights: Type of the weights' levels.
        activations: Type of the activations' levels, or ``float32``.
        scheme: Which values of a weight share a scale.
        group_size: How many inputs share one where the scheme is per group; None leaves it to the target.
        activation_scheme: Which activations share a scale that is found at run time.
        input_type: What float inputs become.
        output_type: What float outputs become.
    """

    target: str
    mode: Mode
    format: Format
    weights: str
    activations: str
    scheme: Granularity
    group_size: int | None = None
    activation_scheme: ActivationScheme = "per-tensor"
    input_type: InputType = "float32"
    output_type: OutputType = "float32"


@cache
def _scheme(dtype: str, scheme: Granularity, group_size: int | None, *, symmetric: bool) -> Scheme:
    return Scheme(dtype=dtype, scheme=scheme, group_size=group_size, symmetric=symmetric)


def refusal(cell: Cell) -> str:
    """Why a cell is not supported, or ""."""
    target = get_target(cell.target)
    if cell.mode not in target.modes:
        return f"target {target.name} takes {' and '.join(target.modes)} models only"
    size = cell.group_size if cell.scheme == "per-group" else None
    weights = _scheme(cell.weights, cell.scheme, size, symmetric=True)
    if cell.mode == "static":
        activations = _scheme(cell.activations, "per-tensor", None, symmetric=target.symmetric_activations)
        fault = static_fault(weights, activations, target)
        return fault.why if fault else _form_refusal(cell, target)
    if (cell.format, cell.input_type, cell.output_type) != ("qdq", "float32", "float32"):
        return f"{cell.mode} models have one form, with float inputs and outputs"
    if cell.mode == "dynamic":
        return _dynamic_refusal(cell, target, weights)
    fault = stored_fault(weights, target)
    return fault.why if fault else ""


def _dynamic_refusal(cell: Cell, target: Target, weights: Scheme) -> str:
    if cell.weights not in target.weights:
        return f"target {target.name} takes {', '.join(target.weights)}, not {cell.weights}"
    fault, wanted = dynamic_fault(weights), DTYPES[cell.activation_scheme]
    if fault is not None:
        return fault.why
    return "" if cell.activations == wanted else f"{cell.activation_scheme} activations are {wanted}"


def _form_refusal(cell: Cell, target: Target) -> str:
    """Why a format does not hold what the target takes."""
    if cell.format not in target.formats:
        return f"target {target.name} reads {' and '.join(target.formats)} models"
    if cell.scheme not in LIMITS[cell.format].schemes:
        return f"format {cell.format} has no scale for each group"
    stored = target.clipped.get(cell.activations, cell.activations)
    reasons = (
        type_refusal(cell.format, "type of the weights", cell.weights),
        type_refusal(cell.format, "type of the activations", stored),
        pair_refusal(cell.format, stored, cell.weights),
        _interface_refusal(cell, target, stored),
    )
    return next(filter(None, reasons), "")


def _interface_refusal(cell: Cell, target: Target, stored: str) -> str:
    wide = QUANT_TYPES[stored].bits > LEVEL_BITS
    if wide and cell.input_type != "float32":
        return f"{stored} levels do not fit into {cell.input_type} inputs"
    if cell.output_type == "int32" and target.bias == "float":
        return f"target {target.name} adds biases in float, so that no int32 sum has them"
    if cell.output_type == "int32" and not _is_multiplied(cell, target):
        return f"sums are of 8-bit weights with one scale for each output, not {cell.weights} {cell.scheme}"
    if wide and target.whole and cell.output_type in {"uint8", "int8"}:
        return f"{stored} levels do not fit into {cell.output_type} outputs"
    return ""


def _is_multiplied(cell: Cell, target: Target) -> bool:
    """Whether weights are 8 bits wide where they are multiplied: stored so, cast, or written by the integer format."""
    bits = QUANT_TYPES[cell.weights].bits
    narrow = bits < target.cast_below or cell.format == "integer"
    return (bits == LEVEL_BITS or (bits < LEVEL_BITS and narrow)) and cell.scheme != "per-group"


# all cells


def choices(target: Target, mode: Mode) -> dict[str, tuple[Any, ...]]:
    """What each attribute of a cell may be, the default first; not all go together."""
    static, dynamic = mode == "static", mode == "dynamic"
    activations = target.activations if static else tuple(DTYPES.values()) if dynamic else (FLOAT,)
    schemes: tuple[Granularity, ...] = ("per-channel", "per-tensor", "per-group")
    return {
        "format": tuple(LIMITS) if static else ("qdq",),
        "weights": target.stored if mode == "weight-only" else target.weights,
        "activations": activations,
        "scheme": target.stored_schemes if mode == "weight-only" else schemes,
        "group_size": (target.group_sizes or (None,)) if mode == "weight-only" else (None,),
        "activation_scheme": get_args(ActivationScheme) if dynamic else ("per-tensor",),
        "input_type": get_args(InputType) if static else ("float32",),
        "output_type": get_args(OutputType) if static else ("float32",),
    }


@cache
def cells(target: Target) -> tuple[Cell, ...]:
    """Every supported cell of a target."""
    found = []
    for mode in target.modes:
        may = choices(target, mode)
        made = (Cell(target.name, mode, **dict(zip(may, each, strict=True))) for each in product(*may.values()))
        found += [cell for cell in made if not refusal(cell)]
    return tuple(found)


@cache
def usual(target: Target, mode: Mode) -> dict[str, Any]:
    """The default of every attribute."""
    found = {name: values[0] for name, values in choices(target, mode).items()}
    return {**found, "target": target.name, "mode": mode}
