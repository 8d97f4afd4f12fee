"""Block reconstruction: the interpreter against onnxruntime, its gradients, and what learning gives and refuses."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.errors import PlanError
from qconvert.graph import operators, serialize
from qconvert.numerics import QUANT_TYPES
from qconvert.prepare import prepare
from qconvert.recover import Context, Work
from qconvert.recover.adaround import AdaRound
from qconvert.recover.brecq import Brecq, divided, results, sources
from qconvert.recover.judge import Judge
from qconvert.recover.qdrop import QDrop
from qconvert.recover.reconstruct import Pace
from qconvert.recover.walk import Walk
from qconvert.session import Feeds, open_session, run
from qconvert.torch_graph import OPERATORS, Part, library, part_behind
from tests.models import Array, f32, i64, images, model, planned, policy, weight
from tests.test_recover import digits


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


# --- the interpreter


@dataclass(frozen=True)
class Case:
    """Operators from ``x`` to ``y``, the last input axes of ``x`` and the constants that they read."""

    body: str
    shape: tuple[int, ...] = (2, 3, 9, 8)
    weights: Mapping[str, Array] = field(default_factory=dict)
    positive: bool = False


C4 = {"w": weight(4, 3, 3, 3), "b": f32(1, -2, 0.5, 3)}
T4 = {"w": normal(3, 4, 3, 3), "b": f32(1, -2, 0.5, 3)}
FOUR = {name: np.abs(normal(3, seed=seed)) + 0.1 for seed, name in enumerate(("g", "b", "m", "v"))}
WIDE = {"g": normal(8), "b": normal(8, seed=1)}
GRID = {"s": f32(0.05).reshape(()), "z": np.array(120, np.uint8)}
CHANNELS = {"s": f32(0.05, 0.1, 0.02), "z": np.array([3, -4, 0], np.int8)}
FOUR_BITS = {
    "s": f32(0.25).reshape(()),
    "z": np.array(120, np.uint8),
    "low": np.array(112, np.uint8),
    "high": np.array(127, np.uint8),
}
CASES = {
    "conv": Case("y = Conv (x, w, b)", weights=C4),
    "conv pads": Case("y = Conv <pads = [1, 0, 2, 1], strides = [2, 1]> (x, w, b)", weights=C4),
    "conv pads the same": Case("y = Conv <pads = [1, 2, 1, 2], dilations = [2, 1]> (x, w)", weights=C4),
    "conv upper": Case('y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w, b)', weights=C4),
    "conv lower": Case('y = Conv <auto_pad = "SAME_LOWER", strides = [2, 3]> (x, w, b)', weights=C4),
    "conv depthwise": Case("y = Conv <group = 3> (x, w)", weights={"w": weight(6, 1, 3, 3)}),
    "conv one axis": Case("y = Conv (x, w)", (2, 3, 9), {"w": weight(4, 3, 3)}),
    "conv three axes": Case("y = Conv (x, w)", (1, 3, 5, 4, 6), {"w": weight(4, 3, 3, 2, 1)}),
    "transposed": Case("y = ConvTranspose <strides = [2, 3], pads = [1, 0, 0, 2]> (x, w, b)", weights=T4),
    "transposed more": Case("y = ConvTranspose <strides = [2, 2], output_padding = [1, 0]> (x, w, b)", weights=T4),
    "gemm": Case("y = Gemm (x, w, b)", (5, 7), {"w": normal(7, 4), "b": normal(4)}),
    "gemm all": Case(
        "y = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)",
        (7, 5),
        {"w": normal(4, 7), "b": normal(4)},
    ),
    "matmul": Case("y = MatMul (x, w)", (2, 3, 7), {"w": normal(7, 4)}),
    "add": Case("y = Add (x, w)", weights={"w": normal(3, 1, 1)}),
    "sub": Case("y = Sub (x, w)", weights={"w": normal(3, 1, 1)}),
    "mul": Case("y = Mul (x, w)", weights={"w": normal(3, 1, 1)}),
    "div": Case("y = Div (x, w)", weights={"w": normal(3, 1, 1)}),
    "pow": Case("y = Pow (x, w)", weights={"w": f32(3)}),
    "sqrt": Case("y = Sqrt (x)", positive=True),
    "exp": Case("y = Exp (x)"),
    "relu": Case("y = Relu (x)"),
    "clip": Case(
        "y = Clip (x, low, high)", weights={"low": np.array(-0.5, np.float32), "high": np.array(1, np.float32)}
    ),
    "clip above": Case("y = Clip (x, , high)", weights={"high": np.array(0, np.float32)}),
    "leaky": Case("y = LeakyRelu <alpha = 0.2> (x)"),
    "prelu": Case("y = PRelu (x, w)", weights={"w": normal(3, 1, 1)}),
    "sigmoid": Case("y = Sigmoid (x)"),
    "tanh": Case("y = Tanh (x)"),
    "hard sigmoid": Case("y = HardSigmoid <alpha = 0.3> (x)"),
    "hard swish": Case("y = HardSwish (x)"),
    "elu": Case("y = Elu <alpha = 0.7> (x)"),
    "gelu": Case("y = Gelu (x)"),
    "gelu tanh": Case('y = Gelu <approximate = "tanh"> (x)'),
    "erf": Case("y = Erf (x)"),
    "softmax": Case("y = Softmax <axis = 1> (x)"),
    "softmax last": Case("y = Softmax (x)"),
    "layer norm": Case("y = LayerNormalization <epsilon = 0.1> (x, g, b)", weights=WIDE),
    "layer norm two axes": Case("y = LayerNormalization <axis = 2> (x, g)", weights={"g": normal(9, 8)}),
    "batch norm": Case("y = BatchNormalization <epsilon = 0.1> (x, g, b, m, v)", weights=FOUR),
    "max pool": Case("y = MaxPool <kernel_shape = [3, 2], pads = [1, 0, 0, 1], strides = [2, 1]> (x)"),
    "max pool ceil": Case("y = MaxPool <kernel_shape = [2, 3], strides = [2, 2], ceil_mode = 1> (x)"),
    "average pool": Case("y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 1]> (x)"),
    "average pool padded": Case(
        "y = AveragePool <kernel_shape = [3, 2], pads = [1, 0, 0, 1], count_include_pad = 1> (x)"
    ),
    "global pool": Case("y = GlobalAveragePool (x)"),
    "mean": Case("y = ReduceMean <keepdims = 0> (x, a)", weights={"a": i64(-1, 1)}),
    "mean of all": Case("y = ReduceMean (x)"),
    "pad": Case("y = Pad (x, p, v)", weights={"p": i64(0, 0, 1, 2, 0, 1, 0, 3), "v": np.array(-1, np.float32)}),
    "pad axes": Case("y = Pad (x, p, , a)", weights={"p": i64(1, 2), "a": i64(-1)}),
    "reshape": Case("y = Reshape (x, s)", weights={"s": i64(0, -1, 4)}),
    "reshape computed": Case(
        "n = Shape (x)\nb = Gather <axis = 0> (n, i)\nu = Unsqueeze (b, a)\n"
        "t = Concat <axis = 0> (u, r)\ny = Reshape (x, t)",
        weights={"i": np.array(0, np.int64), "a": i64(0), "r": i64(-1)},
    ),
    "transpose": Case("y = Transpose <perm = [0, 2, 3, 1]> (x)"),
    "transpose all": Case("y = Transpose (x)"),
    "flatten": Case("y = Flatten <axis = 2> (x)"),
    "concat": Case("r = Relu (x)\ny = Concat <axis = -1> (x, r)"),
    "split": Case("a, b = Split <axis = 3, num_outputs = 2> (x)\ny = Sub (a, b)"),
    "split sizes": Case("a, b = Split <axis = 1> (x, s)\ny = Mul (a, b)", weights={"s": i64(1, 2)}),
    "slice": Case(
        "y = Slice (x, f, t, a, s)", weights={"f": i64(1, -1), "t": i64(8, -99), "a": i64(2, 3), "s": i64(2, -1)}
    ),
    "gather": Case("y = Gather <axis = 2> (x, i)", weights={"i": np.array([[0, -1], [3, 3]], np.int64)}),
    "squeeze": Case("y = Squeeze (x, a)", (2, 1, 3, 1), {"a": i64(1)}),
    "unsqueeze": Case("y = Unsqueeze (x, a)", (2, 3), {"a": i64(-1, 0)}),
    "identity": Case("y = Identity (x)"),
    "cast": Case("i = Cast <to = 6> (x)\ny = Cast <to = 1> (i)"),
    "where": Case("c = Cast <to = 9> (m)\ny = Where (c, x, z)", (3, 2), {"m": f32(0, 1), "z": normal(3, 2, seed=5)}),
    "resize": Case('y = Resize <mode = "nearest"> (x, , s)', weights={"s": f32(1, 1, 2, 3)}),
    "pair": Case("q = QuantizeLinear (x, s, z)\ny = DequantizeLinear (q, s, z)", weights=GRID),
    "pair of channels": Case(
        "q = QuantizeLinear <axis = 1> (x, s, z)\ny = DequantizeLinear <axis = 1> (q, s, z)", weights=CHANNELS
    ),
    "pair of four bits": Case(
        "q = QuantizeLinear (x, s, z)\nc = Clip (q, low, high)\ny = DequantizeLinear (c, s, z)", weights=FOUR_BITS
    ),
    "constant levels": Case(
        "d = DequantizeLinear <axis = 0> (q, s, z)\ny = Mul (x, d)",
        (4, 3),
        {"q": np.array([5, -7, 100], np.int8), **CHANNELS},
    ),
}


def built(case: Case) -> tuple[ir.Model, Feeds]:
    graph = model(
        case.body,
        inputs=f"float[{','.join('N' * len(case.shape))}] x".replace("N", "n"),
        opset=21,
        weights=case.weights,
    )
    x = normal(*case.shape, seed=3)
    return graph, {"x": np.abs(x) if case.positive else x}


def whole(graph: ir.Model) -> Part:
    return part_behind(graph.graph, graph.graph[0], list(graph.graph.outputs))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_operators_compute_what_onnxruntime_computes(case: Case) -> None:
    torch = pytest.importorskip("torch")
    graph, feeds = built(case)
    (expected,) = run(open_session(graph, optimize=False), feeds)
    part = whole(graph)
    assert not part.unsupported
    values = part.constants() | {value: torch.from_numpy(feeds[value.name or ""]) for value in part.inputs}
    (found,) = part.run(values)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_every_operator_is_among_the_cases() -> None:
    assert {node.op_type for case in CASES.values() for node in built(case)[0].graph} == set(OPERATORS)


def test_gradients_pass_pairs_on_the_grid_only() -> None:
    torch = pytest.importorskip("torch")
    part = whole(built(CASES["pair"])[0])
    x = torch.tensor([-7.0, -5.9, 0.02, 6.7, 7.0]).reshape(1, 1, 1, 5).requires_grad_()
    (y,) = part.run({part.inputs[0]: x})
    y.sum().backward()
    assert y.detach().reshape(-1).tolist() == pytest.approx([-6, -5.9, 0, 6.7, 6.75])
    assert x.grad.reshape(-1).tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("name", ["conv pads", "transposed", "gemm all", "layer norm", "average pool", "slice"])
def test_gradients_are_those_of_differences(name: str) -> None:
    torch = pytest.importorskip("torch")
    graph, feeds = built(CASES[name])
    part = whole(graph)
    x = torch.from_numpy(feeds["x"]).requires_grad_()
    part.run({**part.constants(), part.inputs[0]: x})[0].square().sum().backward()
    step, session = normal(*feeds["x"].shape, seed=9) * np.float32(1e-2), open_session(graph, optimize=False)
    ends = [
        float(np.square(run(session, {"x": feeds["x"] + sign * step})[0], dtype=np.float64).sum()) for sign in (1, -1)
    ]
    assert float((x.grad * torch.from_numpy(step)).sum()) == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-2)


def test_without_torch_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(PlanError, match="recover: 'brecq' needs torch, which is not installed") as caught:
        Brecq().apply(begun(CHAIN), context())
    assert "qconvert[train]" in caught.value.hint
    with pytest.raises(PlanError, match="x needs torch"):
        library("x")


# --- blocks

CHAIN = """
a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
r = Relu (a)
b = Conv <pads = [1, 1, 1, 1]> (r, w2, b1)
s = Relu (b)
c = Conv <pads = [1, 1, 1, 1]> (s, w2, b1)
d = Add (c, s)
e = Conv <pads = [1, 1, 1, 1]> (d, w3, b1)
f = Conv <pads = [1, 1, 1, 1]> (e, w4, b1)
p = GlobalAveragePool (f)
g = Flatten (p)
y = Gemm (g, w5, b5)
"""
WEIGHTS = {
    "w1": weight(8, 3, 3, 3),
    **{f"w{n}": weight(8, 8, 3, 3, seed=n, gain=1.4) for n in (2, 3, 4)},
    "b1": np.linspace(-0.5, 0.5, 8).astype(np.float32),
    "k": weight(8, 1, 1),
    "w5": weight(8, 6),
    "b5": np.zeros(6, np.float32),
}
PROBES, UNSEEN = images(1, 3, 8, 8, count=40)[:24], images(1, 3, 8, 8, count=40)[24:]
LAYERS = AdaRound(steps=100)
QUICK = Brecq(steps=100, pace=Pace(steps=60))
DROPS = QDrop(steps=100, pace=Pace(steps=200, drop=0.5))
both = pytest.mark.parametrize(("method", "count"), [(QUICK, 24), (DROPS, 8)], ids=["brecq", "qdrop with few samples"])


def begun(body: str) -> Work:
    """A model and its plan with 4-bit weights."""
    graph = prepare(model(body, weights=WEIGHTS, opset=17), ()).model
    wanted = policy().override(weights="int4", scheme="per-channel")
    return Work(graph, graph, planned(graph, PROBES, wanted))


def context(count: int = len(PROBES)) -> Context:
    return Context(PROBES[:count], weights=QUANT_TYPES["int4"])


def test_blocks_begin_with_a_layer_and_leave_nothing_out() -> None:
    graph = begun(CHAIN).reference
    layers = {op.name for op in operators(graph) if op.op_type in {"Conv", "Gemm"}}
    found = divided(graph, layers)
    assert [op.name for block in found for op in block] == [op.name for op in operators(graph)]
    assert all(block[0].name in layers for block in found)
    for block in found:
        ((op, place),) = results(block, layers)
        assert (op.name, place) == (block[-1].name, 0)


def test_what_a_block_makes_is_what_others_read() -> None:
    graph = begun("a = Conv (x, w1, b1)\ns = Shape (a)\nb = Relu (a)\nc = Sigmoid (b)\ny = Mul (b, c)").reference
    ops = list(operators(graph))
    assert [op.name for op, _ in results([op for op in ops if op.name in "ab"], {"a"})] == ["b"]
    assert not results([op for op in ops if op.name == "c"], {"a"})


def test_what_a_block_reads_stands_beside_what_it_reads_in_the_float_model() -> None:
    work = begun("a = Conv (x, w1, b1)\nr = Relu (a)\nb = Conv (r, w2, b1)\nc = Relu (b)\nd = Add (c, b)\ny = Relu (d)")
    with closing(Walk(work, context())) as walk:
        ops = [op for op in operators(work.reference) if op.name in {"b", "c", "d"}]
        first, last = walk.simulated["b"], walk.simulated["d"]
        assert isinstance(first.graph, ir.Graph)
        part = part_behind(first.graph, first, last.outputs)
        (exact,) = sources(part, ops, walk.simulated)
        assert exact is not None
        assert exact.name == "r"


def test_blocks_with_quantized_constants_learn_too() -> None:
    pytest.importorskip("torch")
    work = begun("a = Conv (x, w1, b1)\nb = Add (a, k)\nc = Conv (b, w2, b1)\ny = Mul (c, k)")
    after = DROPS.apply(work, context(8))
    assert any(note.startswith("qdrop: 1 blocks changed") for note in after.notes)


@both
def test_blocks_learn_what_layers_cannot(method: Brecq, count: int) -> None:
    pytest.importorskip("torch")
    work = begun(CHAIN)
    judge = Judge(work.reference, UNSEEN)
    plain, adaround, brecq = (
        judge.sqnr_db(one.graph, one.plan)
        for one in (work, LAYERS.apply(work, context(count)), method.apply(work, context(count)))
    )
    assert brecq > plain + 1
    assert brecq > adaround


def test_dropping_nothing_is_brecq() -> None:
    pytest.importorskip("torch")
    work = begun(CHAIN)
    none, some = (QDrop(steps=100, pace=Pace(steps=60, drop=drop)).apply(work, context(8)) for drop in (0.0, 0.5))
    assert serialize(none.graph) == serialize(QUICK.apply(work, context(8)).graph) != serialize(some.graph)


@both
def test_the_same_samples_give_the_same_bytes(method: Brecq, count: int) -> None:
    pytest.importorskip("torch")
    work = begun(CHAIN)
    first, second = (method.apply(work, context(count)) for _ in range(2))
    assert serialize(first.graph) == serialize(second.graph)
    assert serialize(first.graph) != serialize(LAYERS.apply(work, context(count)).graph)


def test_no_time_and_other_methods_are_heeded() -> None:
    pytest.importorskip("torch")
    work = begun(CHAIN)
    late = QUICK.apply(work, replace(context(), deadline=time.monotonic() - 1))
    assert "0 blocks changed" in late.notes[-1]
    assert "for which no time is left" in late.notes[-1]
    assert serialize(late.graph) == serialize(work.graph)
    ruled = QUICK.apply(work, replace(context(), only={op.name: ("gptq",) for op in operators(work.graph)}))
    assert "0 blocks changed" in ruled.notes[-1]
    assert "for which a rule names other methods" in ruled.notes[-1]


def test_a_foreign_operator_leaves_its_block_out_aloud() -> None:
    pytest.importorskip("torch")
    work = begun("a = Conv (x, w1, b1)\nb = Softsign (a)\ny = Identity (b)")
    after = QUICK.apply(work, context())
    assert "brecq: 0 blocks changed; 1 left out, with a Softsign, which PyTorch is not taught (a)" in after.notes
    assert serialize(after.graph) == serialize(LAYERS.apply(work, context()).graph)


def test_the_sample_model_gets_better_than_nearest_and_about_as_good_as_adaround(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    plain, adaround, brecq = (
        digits("digits_cnn", tmp_path, names, weights="int4", scheme="per-channel")[0]
        for names in ((), ("adaround",), ("brecq",))
    )
    assert brecq > plain + 5
    assert brecq > adaround - 0.5
