"""Two models value by value: how far each inner value of a quantized model is from that of its original.

Values are matched by name, as a plan has them. Where the quantized model holds levels (behind QuantizeLinear, or
``NAME_quantized`` with ``NAME_scale`` and ``NAME_zero_point`` in operators on levels), the levels themselves are read
and brought back to reals here: asking onnxruntime for the float value before QuantizeLinear would keep it from fusing
the very integer kernels that are to be judged. For the same reason what a clamp reads is not asked for.

Relative noise ``r = noise / signal = 10**(-SQNR / 10)`` adds up along a network where errors are independent and pass
unamplified. What the operators between a value and the matched values before it add is

    added = max(0, r(value) - max r(matched values before it))

and the error enters where that is greatest. Not all of it has to reach the outputs: clipped outliers weigh much in the
power of a value and may matter little behind it; what an operator costs the outputs is what ``sensitivity`` measures.
The original is prepared as for quantization, so that operators have the
names that policies match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.choose.observe import Observer
from qconvert.errors import ModelError
from qconvert.graph import FLOATS, Operator, attributes, constant, load_model, operand, operators
from qconvert.metrics import EXACT_DB
from qconvert.prepare import prepare
from qconvert.provenance import recorded_interface
from qconvert.rewrite.interface import PortGrid
from qconvert.rewrite.pairs import is_operator
from qconvert.samples import SampleSet
from qconvert.samples.types import Json
from qconvert.scores import Fidelity, Sums, pool_fidelity, sample_sums
from qconvert.session import Feeds
from qconvert.targets import HEAVY
from qconvert.visit import Progress, Visit, readable

Reals = npt.NDArray[np.float32]

CLAMPS = ("Relu", "Clip")
_LEVELS = frozenset({ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16, ir.DataType.INT16})


@dataclass(frozen=True)
class Layer:
    """One matched value.

    Attributes:
        value: Its name in both models.
        operator: Name of the heavy operator between it and the matched values before it, else of the one that makes it,
            as a policy matches it; "" for an input.
        op_type: That operator's type.
        operators: Types of all operators in between, in the order of the network.
        fidelity: How close it is to the original's, given all errors before it.
        before_db: The least SQNR of the matched values before it; None where there is none.
        added: Relative noise that enters in between: 0.01 is 1 % of the signal's power.
    """

    value: str
    operator: str
    op_type: str
    operators: tuple[str, ...]
    fidelity: Fidelity
    before_db: float | None
    added: float


@dataclass(frozen=True)
class Layers:
    """All matched values of two models, in the order of the network.

    Attributes:
        reference: The original.
        candidate: The quantized model.
        rows: The values.
        samples: How many samples were run.
        skipped: Samples that could not be read: ``(name, reason)``.
        data: Which samples, as JSON values.
        notes: What the reader should know, one line each.
    """

    reference: Path
    candidate: Path
    rows: tuple[Layer, ...]
    samples: int
    skipped: tuple[tuple[str, str], ...] = ()
    data: Mapping[str, Json] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ranked(self) -> tuple[Layer, ...]:
        """The values where the most noise enters first; equal ones in the order of the network."""
        return tuple(sorted(self.rows, key=lambda row: -row.added))


def compare_layers(
    reference: Path,
    candidate: Path,
    samples: SampleSet,
    *,
    threads: int = 0,
    strict: bool = False,
    progress: Progress | None = None,
) -> Layers:
    """Runs both models over the samples and compares every value that both have.

    Args:
        reference: The original model.
        candidate: What was made of it.
        samples: What to run.
        threads: Samples in flight; 0 means one for each CPU. Each takes the inner values of both models in memory.
        strict: Whether a sample that cannot be read is an error.
        progress: Told after every sample.

    Raises:
        DataError: If no sample could be read, or any with ``strict``.
        ModelError: If a model is refused, or no value has the same name in both.
    """
    before, after = load_model(reference), load_model(candidate)
    _, first = next(readable(samples))
    prepare(before, [first.feeds], original=reference)
    order = list(_floats(before))
    taps = {name: tap for name, tap in _taps(after).items() if name in order}
    if not taps:
        raise ModelError(
            f"{candidate}: no value in it has the name of one in {reference}",
            hint="compare a model with what was made of it",
        )
    order = [name for name in order if name in taps]
    visit = Visit(samples, strict, progress)
    rows = _run(before, after, order=order, taps=taps, visit=visit, threads=threads)
    found = {
        name: fidelity
        for index, name in enumerate(order)
        if (fidelity := pool_fidelity(name, [row[index] for row in rows])) is not None
    }
    layers = tuple(_layers(before, found))
    return Layers(reference, candidate, layers, len(rows), visit.skipped, samples.description, _notes(after, layers))


@dataclass(frozen=True)
class _Tap:
    """Where a value is read in the quantized model, and how it becomes reals."""

    source: str
    reals: Callable[[Reals], Reals]


def _run(
    before: ir.Model,
    after: ir.Model,
    *,
    order: Sequence[str],
    taps: Mapping[str, _Tap],
    visit: Visit,
    threads: int,
) -> list[list[Sums | None]]:
    sources = [taps[name].source for name in order]
    first, second = Observer(before, order), Observer(after, sources)
    interface = recorded_interface(after.metadata_props)
    found: dict[int, list[Sums | None]] = {}

    def fed(feeds: Feeds) -> Feeds:
        return feeds if interface is None else interface.to_levels(feeds)

    def work() -> None:
        for index, sample in visit:
            expected, given = first(order, sample.feeds), second(sources, fed(sample.feeds))
            found[index] = [sample_sums(expected[name], taps[name].reals(given[taps[name].source])) for name in order]

    visit.run(work, threads)
    return [found[index] for index in sorted(found)]


# what can be read


def _made(model: ir.Model) -> dict[str, Operator]:
    """The operator behind every value of the main graph."""
    return {value.name or "": op for op in operators(model) if not op.subgraph for value in op.node.outputs}


def _floats(model: ir.Model) -> Iterator[str]:
    """Float values of the main graph in the order of the network, inputs first; those of unknown type among them."""
    made = (value for op in operators(model) if not op.subgraph for value in op.node.outputs)
    yield from (value.name or "" for value in (*model.graph.inputs, *made) if value.dtype in {None, *FLOATS})


def _taps(model: ir.Model) -> dict[str, _Tap]:
    """Every value of a quantized model that can be read without changing what onnxruntime runs, by its float name."""
    interface = recorded_interface(model.metadata_props)
    ports = {port.name: port for port in interface.outputs} if interface is not None else {}
    taps = {name: _Tap(name, _same) for name, op in _made(model).items() if _is_plain(op, name)}
    taps.update(_named_levels(model))
    for op in operators(model):
        if not op.subgraph and is_operator(op.node, "QuantizeLinear"):
            taps.update(_quantized(op.node))
    for value in model.graph.outputs:
        name = value.name or ""
        taps[name] = _Tap(name, _reals_of(ports[name]) if name in ports else _same)
    return taps


def _reals_of(port: PortGrid) -> Callable[[Reals], Reals]:
    return lambda levels: _f32(port.reals(levels))


def _same(reals: Reals) -> Reals:
    return reals


def _f32(array: npt.ArrayLike) -> Reals:
    return np.asarray(array, np.float32)


def _is_plain(op: Operator, name: str) -> bool:
    """Whether a value is a float that no QuantizeLinear and no clamp reads."""
    value = next(value for value in op.node.outputs if (value.name or "") == name)
    readers = [use.node for use in value.uses()]
    hidden = any(is_operator(node, "QuantizeLinear", *CLAMPS) for node in readers)
    written = is_operator(op.node, "DequantizeLinear", "QuantizeLinear")
    return bool(name) and not hidden and not written and value.dtype in {None, *FLOATS}


def _quantized(node: ir.Node) -> dict[str, _Tap]:
    """The levels behind a QuantizeLinear, by the name of the reals that it reads."""
    source, scale, zero = (operand(node, index) for index in range(3))
    levels = node.outputs[0]
    clip = next((use.node for use in levels.uses() if is_operator(use.node, "Clip")), None)
    if source is None:
        return {}
    name, dequantizers = source.name or "", [use.node for use in levels.uses()]
    if clip is not None and len(dequantizers) == 1:
        levels, dequantizers = clip.outputs[0], [use.node for use in clip.outputs[0].uses()]
    public = (
        node.outputs[0].name or ""
        for node in dequantizers
        if is_operator(node, "DequantizeLinear") and node.outputs[0].is_graph_output()
    )
    tap = _levels(levels, scale, zero, axis=int(attributes(node).get("axis", 1)))
    return {} if tap is None else {next(public, name): tap}


def _named_levels(model: ir.Model) -> Iterator[tuple[str, _Tap]]:
    """``NAME_quantized`` beside ``NAME_scale`` and ``NAME_zero_point``: what operators on levels read and write."""
    constants = model.graph.initializers
    for made in _made(model).values():
        for value in made.node.outputs:
            name = (value.name or "").removesuffix("_quantized")
            scale, zero = constants.get(f"{name}_scale"), constants.get(f"{name}_zero_point")
            if name == value.name or scale is None or zero is None:
                continue
            tap = _levels(value, scale, zero, axis=1)
            if tap is not None:
                yield name, tap


def _levels(value: ir.Value, scale: ir.Value | None, zero: ir.Value | None, *, axis: int) -> _Tap | None:
    """How levels become reals: ``scale * (level - zero_point)``; None where the grid is no constant one of integers."""
    step, shift = constant(scale), constant(zero)
    if step is None or (zero is not None and (shift is None or zero.dtype not in _LEVELS)):
        return None
    steps, shifts = _f32(step), _f32(0 if shift is None else shift)

    def reals(levels: Reals) -> Reals:
        return _f32((levels - _along(shifts, axis, levels.ndim)) * _along(steps, axis, levels.ndim))

    return _Tap(value.name or "", reals)


def _along(grid: Reals, axis: int, rank: int) -> Reals:
    """One number, or one for each index along an axis of an array of that rank."""
    if grid.size == 1:
        return grid.reshape(())
    shape = [1] * rank
    shape[axis] = grid.size
    return grid.reshape(shape)


# where the error enters


def _layers(model: ir.Model, found: Mapping[str, Fidelity]) -> Iterator[Layer]:
    made = _made(model)
    place = {name: index for index, name in enumerate(made)}
    for name, fidelity in found.items():
        between, sources = _between(made, name, found)
        between.sort(key=lambda op: place[op.name])
        heavy = [op for op in between if op.op_type in HEAVY]
        main = (heavy or between)[-1] if between else None
        least = min((found[one].sqnr_db for one in sources), default=None)
        yield Layer(
            name,
            main.name if main is not None else "",
            main.op_type if main is not None else "input",
            tuple(op.op_type for op in between),
            fidelity,
            least,
            max(0.0, _noise(fidelity.sqnr_db) - _noise(EXACT_DB if least is None else least)),
        )


def _noise(sqnr_db: float) -> float:
    """Noise over signal."""
    return 0.0 if sqnr_db >= EXACT_DB else float(10 ** (-sqnr_db / 10))


def _between(
    made: Mapping[str, Operator], name: str, matched: Mapping[str, Fidelity]
) -> tuple[list[Operator], list[str]]:
    """The operators between a value and the nearest matched values before it, and these."""
    ops: dict[str, Operator] = {}
    sources: dict[str, None] = {}
    todo = [made[name]] if name in made else []
    while todo:
        op = todo.pop()
        if op.name in ops:
            continue
        ops[op.name] = op
        for value in op.node.inputs:
            read = "" if value is None else value.name or ""
            if read in matched:
                sources[read] = None
            elif read in made:
                todo.append(made[read])
    return list(ops.values()), list(sources)


def _notes(after: ir.Model, layers: Sequence[Layer]) -> tuple[str, ...]:
    counts = [sum(kind in HEAVY for kind in row.operators) for row in layers]
    hidden = sum(max(count - 1, 0) for count in counts)
    if not hidden:
        return ()
    integer = any(op.op_type in {"ConvInteger", "MatMulInteger"} for op in operators(after))
    why = "; models of the integer format keep no scales inside: compare the QDQ model of the plan" if integer else ""
    return (
        f"{hidden} heavy operators are compared only together with others: no value between is in both models{why}",
    )
