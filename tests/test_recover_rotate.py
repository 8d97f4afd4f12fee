"""Rotation: which streams are found, and that the float model computes what it did."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.graph import constant, operators
from qconvert.prepare import prepare
from qconvert.recover import Context
from qconvert.recover.rotate import Rotation, rotation
from qconvert.recover.streams import find_streams
from qconvert.session import open_session, run
from tests.models import Array, f32, i64, model, weight

WIDTH, WIDE = 8, 16
GAINS = np.linspace(0.5, 2, WIDTH).astype(np.float32)
WEIGHTS: dict[str, Array] = {
    "table": weight(11, WIDTH),
    "places": weight(1, 5, WIDTH, seed=1),
    "token": weight(1, 1, WIDTH, seed=2),
    "w_in": weight(WIDTH, WIDTH),
    "wq": weight(WIDTH, WIDTH, seed=3),
    "wo": weight(WIDTH, WIDTH, seed=4),
    "up": weight(WIDTH, WIDE, seed=5),
    "down": weight(WIDE, WIDTH, seed=6),
    "head": weight(3, WIDTH, seed=7),
    "head_bias": weight(3, 1, seed=8).reshape(3),
    "bo": weight(WIDTH, 1, seed=9).reshape(WIDTH),
    "g1": GAINS,
    "g2": GAINS[::-1].copy(),
    "b1": weight(WIDTH, 1, seed=10).reshape(WIDTH),
    "b2": weight(WIDTH, 1, seed=11).reshape(WIDTH),
    "patches": weight(WIDTH, 3, 4, 4, seed=12),
    "patch_bias": weight(WIDTH, 1, seed=13).reshape(WIDTH),
    "flat": i64(1, WIDTH, 4),
    "first": i64(0).reshape(()),
    "two": f32(2).reshape(()),
    "tiny": f32(1e-5).reshape(()),
}
IDS = "int64[1,5] x"
BLOCK = """
    n1 = LayerNormalization <axis = -1> (s0, g1, b1)
    q = MatMul (n1, wq)
    a = Relu (q)
    o = MatMul (a, wo)
    ob = Add (o, bo)
    s1 = Add (s0, ob)
"""
MLP = """
    u = MatMul (n2, up)
    r = Relu (u)
    d = MatMul (r, down)
    s2 = Add (s1, d)
    nf = LayerNormalization <axis = -1> (s2, g2)
"""
END = """
    one = Gather <axis = 1> (nf, first)
    y = Gemm <transB = 1> (one, head, head_bias)
"""
LAYER_NORM = "n2 = LayerNormalization <axis = -1> (s1, g2, b2)"
ROOT = """
    mean = ReduceMean <axes = [-1]> (sq)
    safe = Add (mean, tiny)
    root = Sqrt (safe)
"""
RMS_NORM = f"""
    sq = Mul (s1, s1)
    {ROOT}
    unit = Div (s1, root)
    n2 = Mul (unit, g2)
"""
TAKEN_APART = f"""
    centre = ReduceMean <axes = [-1]> (s1)
    aside = Sub (s1, centre)
    sq = Pow (aside, two)
    {ROOT}
    unit = Div (aside, root)
    scaled = Mul (unit, g2)
    n2 = Add (scaled, b2)
"""
LOOKED_UP = """
    e = Gather (table, x)
    s0 = Add (e, places)
"""
PATCHES = """
    c = Conv <strides = [4, 4]> (x, patches, patch_bias)
    maps = Reshape (c, flat)
    rows = Transpose <perm = [0, 2, 1]> (maps)
    joined = Concat <axis = 1> (token, rows)
    s0 = Add (joined, places)
"""


def ids(seed: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).integers(0, 11, (1, 5))}


def picture(seed: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)}


def network(*parts: str, inputs: str = IDS, outputs: str = "float[1,3] y", **others: Array) -> ir.Model:
    graph = model("\n".join(parts), inputs=inputs, outputs=outputs, weights={**WEIGHTS, **others})
    prepare(graph, [ids(0) if inputs == IDS else picture(0)])
    return graph


@pytest.mark.parametrize("norm", [LAYER_NORM, RMS_NORM, TAKEN_APART], ids=["layer", "rms", "taken apart"])
@pytest.mark.parametrize("start", [LOOKED_UP, PATCHES], ids=["looked up", "patches"])
def test_a_turned_transformer_computes_what_it_did(start: str, norm: str) -> None:
    feeds = ids if start is LOOKED_UP else picture
    graph = network(start, BLOCK, norm, MLP, END, inputs=IDS if start is LOOKED_UP else "float[1,3,8,8] x")
    found = Rotation().rewrite(graph, Context([feeds(0)]))
    assert [stream.name for stream in find_streams(graph)[0]] == ["s1"]
    assert found.notes == ("rotate: 1 residual streams changed",)
    for seed in range(3):
        before, after = (run(open_session(one), feeds(seed))[0] for one in (graph, found.model))
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


def test_what_is_between_changes_and_is_said() -> None:
    graph = network(LOOKED_UP, BLOCK, LAYER_NORM, MLP, END)
    found = Rotation().rewrite(graph, Context([ids(0)]))
    assert {"e", "s0", "n1", "o", "ob", "s1", "n2", "d", "s2", "nf", "one"} == set(found.changed)
    gains = [constant(op.node.inputs[1]) for op in operators(found.model) if op.op_type == "LayerNormalization"]
    assert all(gain is not None and (gain == 1).all() for gain in gains)


def test_an_outlier_is_spread() -> None:
    loud = WEIGHTS["table"].copy()
    loud[:, 3] *= 100
    graph = network(LOOKED_UP, BLOCK, RMS_NORM, MLP, END, table=loud)
    found = Rotation().rewrite(graph, Context([ids(0)]))

    def most(one: ir.Model) -> float:
        table = next(constant(op.node.inputs[0]) for op in operators(one) if op.op_type == "Gather")
        assert table is not None
        return float(np.abs(table).max() / np.sqrt(np.square(table).mean()))

    assert most(found.model) < 0.8 * most(graph)


@pytest.mark.parametrize("size", [3, 8, 65])
def test_a_rotation_is_orthogonal_and_keeps_means(size: int) -> None:
    turn = rotation(size, 0)
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(turn @ np.ones(size), 1, atol=1e-12)
    np.testing.assert_allclose(np.ones(size) @ turn, 1, atol=1e-12)
    assert not np.array_equal(turn, rotation(size, 1))
    assert np.array_equal(turn, rotation(size, 0))


LOUD, BOTH = "loud = Relu (s1)", "both = Mul (s1, s2)"
SOFT = "t0 = MatMul (s0, w_in)\nt1 = Softmax (t0)"
REFUSED = [
    ((BLOCK, LAYER_NORM, MLP, END.replace("nf", "loud"), LOUD), "which Relu reads"),
    ((BLOCK, LAYER_NORM, MLP, END.replace("nf", "both"), BOTH), "is multiplied with what is no constant"),
    ((SOFT, BLOCK.replace("(s0, ob", "(t1, ob"), LAYER_NORM, MLP, END), "which Softmax makes"),
    ((BLOCK, LAYER_NORM, MLP.replace("(s1, d)", "(n2, d)"), END), "which holds what a normalization made with gains"),
]


@pytest.mark.parametrize(("parts", "why"), REFUSED)
def test_what_cannot_be_turned_is_left_and_said(parts: tuple[str, ...], why: str) -> None:
    graph = network(LOOKED_UP, *sorted(parts, key=lambda part: "one =" in part))
    found = Rotation().rewrite(graph, Context([ids(0)]))
    assert found.model is graph
    assert why in found.notes[0]


def test_a_gain_of_0_with_a_bias_is_refused() -> None:
    gains = WEIGHTS["g1"].copy()
    gains[2] = 0
    graph = network(LOOKED_UP, BLOCK, LAYER_NORM, MLP, END, g1=gains)
    found = Rotation().rewrite(graph, Context([ids(0)]))
    assert found.model is graph
    assert "a gain is 0 and the bias is not" in found.notes[0]
    silent = WEIGHTS["b1"].copy()
    silent[2] = 0
    graph = network(LOOKED_UP, BLOCK, LAYER_NORM, MLP, END, g1=gains, b1=silent)
    found = Rotation().rewrite(graph, Context([ids(0)]))
    before, after = (run(open_session(one), ids(4))[0] for one in (graph, found.model))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


def test_what_is_in_a_body_is_left_and_said() -> None:
    body = """
        y = If (c) <
          then_branch = yes () => (float[1,5,8] a) { t = Add (x, x)\n a = LayerNormalization <axis = -1> (t, g1) },
          else_branch = no () => (float[1,5,8] b) { b = Relu (x) }
        >
    """
    graph = model(body, inputs="float[1,5,8] x, bool c", outputs="float[1,5,8] y", weights=WEIGHTS)
    prepare(graph, ())
    found = Rotation().rewrite(graph, Context([{"x": np.ones((1, 5, 8), np.float32), "c": np.array(True)}]))
    assert "1 left out, inside a body of If (t)" in found.notes[0]


def test_an_output_of_the_model_is_not_turned() -> None:
    graph = network(LOOKED_UP, BLOCK, LAYER_NORM, MLP, END, outputs="float[1,3] y, float[1,5,8] s2")
    assert not Rotation().rewrite(graph, Context([ids(0)])).changed
