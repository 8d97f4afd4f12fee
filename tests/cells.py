"""The cells that ``qconvert formats`` claims, built from sample models and run; ``formats_table`` prints them.

A cell is compared with the float model and, where its plan has a grid of 8-bit levels for every value, with the plain
numpy interpreter of ``integer_reference``.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from qconvert import pipeline
from qconvert.calibration import Calibration
from qconvert.graph import load_model, operators, serialize, write_model
from qconvert.numerics import QUANT_TYPES
from qconvert.plan import Plan, make_plan
from qconvert.plan.dynamic import make_dynamic_plan
from qconvert.plan.outputs import quantize_outputs
from qconvert.plan.weight_only import make_weight_plan
from qconvert.policy import Policy
from qconvert.prepare import prepare, raise_opset
from qconvert.preprocess import preset
from qconvert.rewrite import dynamic as rewrite_dynamic
from qconvert.rewrite.forms import Form, Written, with_sums, write_plan
from qconvert.rewrite.interface import Interface
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.rewrite.weight_forms import needed_opset as weights_opset
from qconvert.rewrite.weight_forms import readings
from qconvert.rewrite.weight_only import to_weight_only
from qconvert.session import Feeds, open_session, run
from qconvert.support import Cell, cells
from qconvert.targets import HEAVY, TARGETS, Target
from tests.integer_reference import reference
from tests.models import Array, pooled_sqnr

MODELS = Path(__file__).resolve().parent.parent / "sample_models"
PROBES = 2

DEPLOYED = (("float32", "float32"), ("float32", "int8"), ("int8", "int32"))
"""The interfaces of deployed models."""


@dataclass(frozen=True)
class Sample:
    """A sample model, prepared and observed.

    Attributes:
        graph: The prepared model, serialized.
        calibration: Its statistics, of every value that any target quantizes.
        expected: What the float model gives for the probes.
        attends: Whether it holds operators that the numpy interpreter and the integer format do not know.
    """

    graph: bytes
    calibration: Calibration
    expected: list[list[Array]]
    attends: bool

    @property
    def probes(self) -> Sequence[Feeds]:
        return self.calibration.probes[:PROBES]

    def copy(self, opset: int = 0) -> ir.Model:
        """The prepared model, raised to an opset."""
        return parse(_raised(self.graph, opset))


@functools.cache
def _raised(blob: bytes, opset: int) -> bytes:
    graph = parse(blob)
    raise_opset(graph, opset)
    return serialize(graph)


def parse(blob: bytes) -> ir.Model:
    """A serialized model."""
    model: ir.Model = ir.from_proto(onnx.load_from_string(blob))
    return model


@functools.cache
def sample(name: str) -> Sample:
    """The sample model of that name."""
    path = MODELS / name / "model.onnx"
    found = pipeline.calibrate(
        path,
        MODELS / "digits" / "calibration",
        preprocess=preset("centered"),
        limit=16,
        policy=Policy(target="qnn"),  # observes what is float elsewhere, too
    )
    graph = load_model(path)
    prepare(graph, found.probes[:PROBES], original=path)
    session = open_session(graph, threads=1, optimize=False)
    attends = any(op.op_type == "LayerNormalization" for op in operators(graph))
    return Sample(serialize(graph), found, [run(session, feeds) for feeds in found.probes[:PROBES]], attends)


@dataclass(frozen=True)
class Ran:
    """What a cell computes.

    Attributes:
        written: The model.
        plain: Its outputs as reals, with onnxruntime's optimizations off.
        optimized: With them on.
        sqnr: Of both against the float model, dB.
        exact: Of both against the numpy interpreter, dB; None where that knows no such model.
        levels: Whether each output is, to the bit, what that interpreter gives.
    """

    written: Written
    plain: list[list[Array]]
    optimized: list[list[Array]]
    sqnr: tuple[float, float]
    exact: tuple[float, float] | None
    levels: bool


def ran(cell: Cell, found: Sample) -> Ran:
    """Builds and runs a cell."""
    wanted = Policy().override(
        target=cell.target,
        weights=cell.weights,
        activations=cell.activations if cell.mode == "static" else None,
        scheme=cell.scheme,
        group_size=cell.group_size,
        calibrator="minmax",
    )
    written, twin = WRITERS[cell.mode](cell, found, wanted)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cell.onnx"
        write_model(written.model, path)
        rows = [_outputs(path, written.interface, found.probes, optimize=optimize) for optimize in (False, True)]
    sqnr = pooled_sqnr(found.expected, rows[0]), pooled_sqnr(found.expected, rows[1])
    if twin is None:
        return Ran(written, rows[0], rows[1], sqnr, None, levels=False)
    known = twin()
    exact = pooled_sqnr(known, rows[0][:1]), pooled_sqnr(known, rows[1][:1])
    same = all(np.array_equal(a, b) for row in rows for a, b in zip(row[0], known[0], strict=True))
    return Ran(written, rows[0], rows[1], sqnr, exact, levels=same)


def _outputs(path: Path, ports: Interface | None, probes: Sequence[Feeds], *, optimize: bool) -> list[list[Array]]:
    """As reals."""
    session = open_session(path, threads=1, optimize=optimize)
    if ports is None:
        return [run(session, feeds) for feeds in probes]
    rows = [run(session, ports.to_levels(feeds)) for feeds in probes]
    return [[port.reals(array) for port, array in zip(ports.outputs, row, strict=True)] for row in rows]


Reference = Callable[[], list[list[Array]]]


def _static(cell: Cell, found: Sample, wanted: Policy) -> tuple[Written, Reference | None]:
    graph, stats = found.copy(), found.calibration.stats
    plan = make_plan(graph, wanted, stats)
    form = Form(cell.format, cell.input_type, cell.output_type, allow_float=cell.format == "integer" and found.attends)
    if form.gives_levels:
        plan = quantize_outputs(graph, plan, stats)
    opset = needed_opset(plan)
    twin = functools.partial(_reference, opset, plan, cell, found) if _is_known(cell, found, plan) else None
    return write_plan(found.copy(opset), plan, form), twin


def _is_known(cell: Cell, found: Sample, plan: Plan) -> bool:
    """Whether the interpreter knows the operators: every value has one grid of at most 8 bits."""
    target = TARGETS[cell.target]
    narrow = all(QUANT_TYPES[dtype].bits <= 8 for dtype in (cell.weights, cell.activations))
    plain = cell.scheme != "per-group" and (
        cell.format == "integer" or (cell.input_type, cell.output_type) == DEPLOYED[0]
    )
    return narrow and plain and target.outputs == "required" and bool(plan.entries) and not found.attends


def _reference(opset: int, plan: Plan, cell: Cell, found: Sample) -> list[list[Array]]:
    if cell.output_type == "int32":
        plan = with_sums(plan)
    key = cell.target, cell.weights, cell.activations, cell.scheme, cell.output_type
    if key not in _KNOWN:
        _KNOWN[key] = [reference(to_qdq(found.copy(opset), plan), found.probes[0], "single")]
    return _KNOWN[key]


_KNOWN: dict[tuple[str, str, str, str, str], list[list[Array]]] = {}
"""What the interpreter gives for the first probe: formats share it."""


def _dynamic(cell: Cell, found: Sample, wanted: Policy) -> tuple[Written, Reference | None]:
    plan = make_dynamic_plan(found.copy(), wanted, activation_scheme=cell.activation_scheme)
    graph = found.copy(rewrite_dynamic.needed_opset(plan))
    return Written(rewrite_dynamic.to_dynamic(graph, plan)), None


def _weight_only(cell: Cell, found: Sample, wanted: Policy) -> tuple[Written, Reference | None]:
    del cell
    graph = found.copy()
    plan = make_weight_plan(graph, wanted)
    graph = found.copy(weights_opset(readings(graph, plan)))
    return Written(to_weight_only(graph, plan).model), None


WRITERS = {"static": _static, "dynamic": _dynamic, "weight-only": _weight_only}


# which cells


@functools.cache
def chosen(name: str) -> list[Cell]:
    """The cells that are tried with a sample model.

    Of the CNN for ort-cpu all pairs of types, and each deployed interface with a type of each width; for every target
    all granularities of all weights, all activations, and all ends. Of the transformer what differs in one of these.
    """
    found: list[Cell] = []
    for target in TARGETS.values():
        for _, group in groupby(cells(target), key=lambda cell: (cell.mode, cell.format)):
            row = tuple(group)
            found += [cell for cell in row if _is_chosen(cell, row[0], target, every=name == "digits_cnn")]
    return found


def _is_chosen(cell: Cell, first: Cell, target: Target, *, every: bool) -> bool:
    changed = {name for name, value in asdict(cell).items() if value != getattr(first, name)}
    if cell.mode == "dynamic" and cell.activation_scheme == "per-token":
        changed -= {"activations"}
    if not every:
        kinds = {"weights", "activations", "scheme", "activation_scheme", "group_size"}
        usual = cell.target == "generic" or cell.format == "integer"
        return len(changed) < 2 and changed <= kinds and not (changed and usual)
    types = {"weights", "activations"}
    if changed <= types and cell.target == "ort-cpu":
        return True
    if changed <= types | {"input_type", "output_type"} and cell.target == "ort-cpu":
        widths = _is_first(cell.weights, target.weights) and _is_first(cell.activations, target.activations)
        if widths and (cell.input_type, cell.output_type) in DEPLOYED:
            return True
    deployed = changed == {"input_type", "output_type"} and (cell.input_type, cell.output_type) in DEPLOYED
    return len(changed) < 2 or changed == {"weights", "scheme"} or deployed


def _is_first(dtype: str, names: Sequence[str]) -> bool:
    """Whether no earlier type has as many bits."""
    return next(name for name in names if QUANT_TYPES[name].bits == QUANT_TYPES[dtype].bits) == dtype


def title(cell: Cell) -> str:
    """A cell as a test's name."""
    kind = cell.format if cell.mode == "static" else f"{cell.mode}-{cell.activation_scheme}"
    ends = f"-{cell.input_type}-{cell.output_type}" if (cell.input_type, cell.output_type) != DEPLOYED[0] else ""
    size = f"-{cell.group_size}" if cell.group_size else ""
    return f"{cell.target}-{kind}-{cell.weights}-{cell.activations}-{cell.scheme}{size}{ends}"


def float_products(model: ir.Model) -> list[str]:
    """The heavy operators that compute in float."""
    return [op.op_type for op in operators(model) if op.op_type in HEAVY]
