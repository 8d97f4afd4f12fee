"""Small models as text, and the way from a float model to a quantized one that onnxruntime has run."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from qconvert.graph import load_model, operators, serialize, write_model
from qconvert.histogram import TensorStats
from qconvert.metrics import sqnr_db
from qconvert.plan import Entry, Placement, Plan, candidate_values, make_placement, make_plan
from qconvert.policy import Policy, loads
from qconvert.prepare import prepare, raise_opset
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.session import open_session, run

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

RUNTIME = tuple(int(part) for part in ort.__version__.split(".")[:2])
"""Python 3.10 has no newer onnxruntime than 1.23: opsets up to 22, and one zero point for all channels."""

NEWEST_OPSET = 26 if RUNTIME >= (1, 25) else 22

IMAGE = "float[N,3,8,8] x"
IR_OF_OPSET = ((26, 13), (25, 13), (24, 12), (23, 11), (21, 10), (19, 9), (15, 8), (13, 7), (12, 7), (11, 6), (0, 4))


def weight(*shape: int, seed: int = 0, gain: float = 1.0) -> Array:
    """Normal weights that keep the size of activations, whatever the shape."""
    fan = math.prod(shape[1:]) if len(shape) > 2 else shape[0]
    rng = np.random.default_rng([seed, *shape])
    return (gain * rng.standard_normal(shape) / math.sqrt(max(fan, 1))).astype(np.float32)


def f32(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def i64(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def model(
    body: str,
    *,
    inputs: str = IMAGE,
    outputs: str = "float[] y",
    opset: int = 17,
    weights: Mapping[str, Array] | None = None,
    domains: Sequence[str] = (),
    functions: str = "",
) -> ir.Model:
    """A model from the body of its graph in ONNX's text syntax; of ``weights`` it gets those that it reads."""
    version = next(version for least, version in IR_OF_OPSET if opset >= least)
    imports = ", ".join([f'"": {opset}', *(f'"{domain}": 1' for domain in domains)])
    text = (
        f"<ir_version: {version}, opset_import: [{imports}]>\ng ({inputs}) => ({outputs}) {{\n{body}\n}}\n{functions}"
    )
    proto = onnx.parser.parse_model(text)
    for value in proto.graph.output:
        if not value.type.tensor_type.shape.dim:
            value.type.tensor_type.ClearField("shape")
    read, made = _names(proto.graph)
    wanted = (read | {value.name for value in (*proto.graph.input, *proto.graph.output)}) - made
    held = {name: array for name, array in (weights or {}).items() if name in wanted}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in held.items())
    built: ir.Model = ir.from_proto(proto)
    return built


def _names(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """What the nodes of a graph and its bodies read and make."""
    read = {name for node in graph.node for name in node.input}
    made = {name for node in graph.node for name in node.output}
    for body in (attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")):
        inner = _names(body)
        read, made = read | inner[0], made | inner[1]
    return read, made


def image(*shape: int, seed: int = 0, name: str = "x") -> Feeds:
    """One input, normal."""
    shape = shape or (1, 3, 8, 8)
    return {name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def images(*shape: int, count: int = 3) -> list[Feeds]:
    return [image(*shape, seed=seed) for seed in range(count)]


@dataclass(frozen=True)
class Result:
    """A quantized model and what it computes."""

    plan: Plan
    model: ir.Model
    kernels: Counter[str]
    expected: list[list[Array]]
    optimized: list[list[Array]]
    plain: list[list[Array]]
    notes: tuple[str, ...]

    @property
    def sqnr(self) -> float:
        """Of all float outputs, optimizations on, against the float model, dB."""
        return pooled_sqnr(self.expected, self.optimized)

    @property
    def plain_sqnr(self) -> float:
        """The same with onnxruntime's optimizations off."""
        return pooled_sqnr(self.expected, self.plain)

    @property
    def drift(self) -> float:
        """How far integer kernels are from the arithmetic that the file describes, dB."""
        return pooled_sqnr(self.plain, self.optimized)

    def entry(self, tensor: str, role: str | None = None) -> Entry:
        return next(e for e in self.plan.entries if e.tensor == tensor and role in {None, e.role})

    def integer(self) -> list[str]:
        return [op_type for _, op_type in self.plan.integer]

    def why_float(self, op_type: str) -> str:
        return next(op.reason for op in self.plan.floats if op.op_type == op_type)

    def count(self, op_type: str) -> int:
        """Operators of a type in the written file."""
        return sum(op.op_type == op_type for op in operators(self.model))


def pooled_sqnr(reference: Sequence[Sequence[Array]], output: Sequence[Sequence[Array]]) -> float:
    def flat(rows: Sequence[Sequence[Array]]) -> Array:
        return np.concatenate([np.asarray(a, np.float64).ravel() for row in rows for a in row if a.dtype.kind == "f"])

    return sqnr_db(flat(reference), flat(output))


def policy(text: str = "", *, target: str = "ort-cpu", calibrator: str = "minmax") -> Policy:
    """A policy; exact ranges unless it says otherwise, so that errors have no other cause than placement and grids."""
    written = loads(f"version: 1\n{text}") if text else Policy()
    fixed = written.defaults.activations.calibrator is not None
    return written.override(target=target, calibrator=None if fixed else calibrator)


def fetch(graph: ir.Model, names: Sequence[str], feeds: Feeds) -> dict[str, Array]:
    """Values of a graph for one sample, by onnxruntime without optimizations."""
    proto = onnx.load_from_string(serialize(graph))
    have = {value.name for value in (*proto.graph.output, *proto.graph.input)}
    for name in names:
        if name not in have:
            proto.graph.output.add(name=name)
    wanted = [name for name in names if name not in feeds]
    found = run(open_session(ir.from_proto(proto), optimize=False), feeds, wanted) if wanted else []
    return {**{name: feeds[name] for name in names if name in feeds}, **dict(zip(wanted, found, strict=True))}


def statistics(graph: ir.Model, names: Sequence[str], samples: Sequence[Feeds]) -> dict[str, TensorStats]:
    stats = {name: TensorStats() for name in names}
    for feeds in samples:
        for name, array in fetch(graph, names, feeds).items():
            stats[name] += TensorStats.of(array)
    return stats


def placed(graph: ir.Model, wanted: Policy | None = None) -> Placement:
    """Where a model's integers would be."""
    prepare(graph, ())
    return make_placement(graph, wanted or Policy())[0]


def planned(graph: ir.Model, samples: Sequence[Feeds], wanted: Policy | None = None) -> Plan:
    """The plan of a prepared graph."""
    chosen = wanted or policy()
    _, table, target = make_placement(graph, chosen)
    return make_plan(graph, chosen, statistics(graph, candidate_values(graph, table, target), samples))


def quantized(
    graph: ir.Model,
    samples: Sequence[Feeds],
    wanted: Policy | None = None,
    *,
    then: Callable[[Plan], Plan] = lambda plan: plan,
) -> Result:
    """Prepares, calibrates, plans, rewrites, writes, and runs the file with and without onnxruntime's optimizations."""
    original: ir.Model = ir.from_proto(onnx.load_from_string(serialize(graph)))
    notes = prepare(graph, samples).notes
    plan = then(planned(graph, samples, wanted))
    raise_opset(graph, needed_opset(plan))
    to_qdq(graph, plan)
    with tempfile.TemporaryDirectory() as folder:
        path, optimized = Path(folder) / "q.onnx", Path(folder) / "optimized.onnx"
        write_model(graph, path)
        written = load_model(path)
        if _is_typed(written):
            onnx.checker.check_model(ir.to_proto(written), full_check=True)
        fast = open_session(path, threads=1, optimized_path=optimized)
        kernels = Counter(op.node.op_type for op in operators(load_model(optimized)))
        slow = open_session(path, threads=1, optimize=False)
        before = open_session(original, threads=1, optimize=False)
        assert _signature(before) == _signature(fast) == _signature(slow)
        rows = [[run(session, feeds) for feeds in samples] for session in (before, fast, slow)]
    return Result(plan, written, kernels, rows[0], rows[1], rows[2], notes)


def _signature(session: ort.InferenceSession) -> list[tuple[str, str]]:
    return [(value.name, value.type) for value in (*session.get_inputs(), *session.get_outputs())]


def _is_typed(graph: ir.Model) -> bool:
    """Whether onnx's checker, which wants a shape on every output, can judge the model."""
    return all(value.shape is not None for value in graph.graph.outputs)
