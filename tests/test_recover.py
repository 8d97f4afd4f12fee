"""Winning back accuracy: each method against a slow reference and planted cases; what is kept is what helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert import pipeline
from qconvert.cli.demo import sample_models
from qconvert.errors import ModelError, PlanError, PolicyError
from qconvert.graph import constant, operand, operators
from qconvert.histogram import TensorStats
from qconvert.listener import Listener
from qconvert.numerics import QUANT_TYPES, dequantize, params_from_range, quantize
from qconvert.plan import Plan, Site
from qconvert.policy import Policy, loads
from qconvert.prepare import prepare
from qconvert.preprocess import preset
from qconvert.recover import (
    METHODS,
    Context,
    Rewrite,
    Rewritten,
    Step,
    Work,
    make_methods,
    recover_all,
    recover_best,
)
from qconvert.recover.adaquant import AdaQuant
from qconvert.recover.adaround import AdaRound
from qconvert.recover.bias import BiasCorrection, correction, places
from qconvert.recover.chains import find_chains
from qconvert.recover.clip import Clipping
from qconvert.recover.edits import nodes_of, set_constant, simulated
from qconvert.recover.equalize import Equalization, equalizing, owners_of
from qconvert.recover.judge import Judge
from qconvert.recover.noise import Link
from qconvert.recover.restate import restate
from qconvert.recover.scaling import largest, over_inputs, over_outputs
from qconvert.recover.smooth import Smoothing, find_groups
from qconvert.recover.stream import Stream
from qconvert.recover.trials import SEEN, split
from qconvert.recover.walk import Walk
from qconvert.session import open_session, run
from tests.models import Array, Feeds, f32, fetch, images, model, planned, policy, pooled_sqnr, statistics, weight
from tests.test_choose import output_db

PROBES = images(1, 3, 8, 8, count=12)
RESIDUAL = """
h = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
r = Relu(h)
s = Conv <pads = [1, 1, 1, 1]> (r, w2)
a = Add(s, r)
p = GlobalAveragePool(a)
f = Flatten(p)
y = Gemm(f, w3, b3)
"""
RESIDUAL_WEIGHTS = {
    "w1": weight(8, 3, 3, 3),
    "b1": np.linspace(-1, 1, 8).astype(np.float32),
    "w2": weight(8, 8, 3, 3),
    "w3": weight(8, 5),
    "b3": np.zeros(5, np.float32),
}


def ready(body: str, weights: Mapping[str, Array], **options: Any) -> ir.Model:  # noqa: ANN401 - options of ``model``
    """A prepared graph."""
    return prepare(model(body, weights=weights, **options), ()).model


def residual() -> ir.Model:
    return ready(RESIDUAL, RESIDUAL_WEIGHTS)


def work_of(graph: ir.Model, probes: Sequence[Feeds] = PROBES, wanted: Policy | None = None) -> Work:
    return Work(graph, graph, planned(graph, probes, wanted))


def outputs(graph: ir.Model, probes: Sequence[Feeds]) -> list[list[Array]]:
    session = open_session(graph, optimize=False)
    return [run(session, probe) for probe in probes]


def held(node: ir.Node, position: int) -> Array:
    """The constant that an operator reads."""
    array = constant(operand(node, position))
    assert array is not None
    return array


def worst(before: ir.Model, after: ir.Model, probes: Sequence[Feeds]) -> float:
    """The greatest difference of outputs, relative to the greatest output."""
    rows = zip(outputs(before, probes), outputs(after, probes), strict=True)
    pairs = [pair for one, other in rows for pair in zip(one, other, strict=True)]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


# --- editing


def test_a_constant_of_its_own_is_changed_in_place() -> None:
    graph = residual()
    plan = planned(graph, PROBES)
    nodes = nodes_of(graph)
    assert set_constant(nodes, plan, (Site("y", 2),), np.ones(5, np.float32)) is plan
    assert np.array_equal(held(nodes["y"], 2), np.ones(5))
    assert operand(nodes["y"], 2).name == "b3"  # type: ignore[union-attr]


def test_a_shared_constant_stays_what_it_is_for_others() -> None:
    graph = ready(
        "a = Conv <pads = [1, 1, 1, 1]> (x, w, b)\nr = Relu(a)\ny = Conv <pads = [1, 1, 1, 1]> (r, w, b)",
        {"w": weight(3, 3, 3, 3), "b": f32(1, 2, 3)},
    )
    plan, nodes = planned(graph, PROBES), nodes_of(graph)
    changed = set_constant(nodes, plan, (Site("y", 2),), f32(4, 5, 6))
    assert np.array_equal(held(nodes["a"], 2), f32(1, 2, 3))
    assert np.array_equal(held(nodes["y"], 2), f32(4, 5, 6))
    names = {entry.sites[0].operator: entry.tensor for entry in changed.of("bias")}
    assert names["a"] == "b"
    assert names["y"] not in {"b", ""}
    assert output_db(graph, changed) > 15  # it can be written; its last grid is that of the old bias


def test_what_is_not_constant_is_not_set() -> None:
    graph = residual()
    with pytest.raises(PlanError, match="operand 0 of 'h' is not a constant"):
        set_constant(nodes_of(graph), planned(graph, PROBES), (Site("h", 0),), np.ones(5, np.float32))


@given(st.data())
def test_levels_survive_as_the_reals_that_they_stand_for(data: st.DataObject) -> None:
    dtype = QUANT_TYPES[data.draw(st.sampled_from(["int2", "int4", "uint4", "int8", "uint8", "int16"]))]
    block = data.draw(st.sampled_from([None, 4, 5]))
    axis = data.draw(st.sampled_from([None, 0, 1])) if block is None else 1
    shape = (6, 10)
    scales = [shape[a] if block is None else -(-shape[a] // block) for a in range(2)]
    sizes = () if axis is None else (scales[axis],) if block is None else (shape[0], scales[1])
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    high = rng.uniform(1e-6, 1e6, sizes)
    params = params_from_range(
        -high * rng.uniform(0, 1, sizes), high, dtype, symmetric=False, axis=axis, block_size=block
    )
    levels = rng.integers(params.qmin, params.qmax + 1, shape)
    assert np.array_equal(quantize(dequantize(levels, params), params), levels)


# --- going from layer to layer


@pytest.mark.parametrize("stored", [0, 2000, 1 << 30])
@pytest.mark.parametrize("quantize_it", [False, True])
def test_a_stream_makes_what_the_model_makes(stored: int, quantize_it: bool) -> None:
    graph = residual()
    work = work_of(graph)
    found = simulated(graph, work.plan) if quantize_it else None
    whole, nodes = (found.model, found.nodes) if found is not None else (graph, nodes_of(graph))
    stops = [nodes[name] for name in ("h", "s", "y")]
    stream = Stream(whole, stops, PROBES, stored=stored)
    wanted = {value.name or "": value for node in stops for value in (node.inputs[0], node.outputs[0]) if value}
    expected = [fetch(whole, [name for name in wanted if name != "x"], probe) for probe in PROBES]
    for index, node in enumerate(stops):
        stream.advance(index)
        values = [value for value in (node.inputs[0], node.outputs[0]) if value is not None]
        for number, arrays in enumerate(stream.fetch(values)):
            for value, array in zip(values, arrays, strict=True):
                right = PROBES[number]["x"] if value.name == "x" else expected[number][value.name or ""]
                np.testing.assert_allclose(array, right, rtol=1e-4, atol=1e-5)
    stream.close()


def test_between_quantized_layers_levels_are_kept() -> None:
    work = work_of(residual())
    found = simulated(work.graph, work.plan)
    stream = Stream(found.model, [found.nodes["s"]], PROBES, stored=1 << 30)
    stream.advance(0)
    store = stream._store
    assert store.names
    assert all(store.get(name, 0).dtype == np.uint8 for name in store.names)


def test_a_stream_passes_bodies_that_read_outer_values() -> None:
    body = """
    h = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    flag = Constant <value: tensor = bool[1] {1}> ()
    c = If (flag) <
        then_branch = yes () => (float[] t) { t = Relu(h) },
        else_branch = no () => (float[] e) { e = Neg(h) }
    >
    y = Conv <pads = [1, 1, 1, 1]> (c, w2)
    """
    flag = "float[N,3,8,8] x, bool[1] flag"
    text = body.replace("flag = Constant <value: tensor = bool[1] {1}> ()\n", "")
    graph = ready(text, RESIDUAL_WEIGHTS, inputs=flag)
    probes = [{**probe, "flag": np.array([index % 2 == 0])} for index, probe in enumerate(PROBES)]
    nodes = nodes_of(graph)
    stream = Stream(graph, [nodes["h"], nodes["y"]], probes, stored=1 << 30)
    stream.advance(0)
    stream.advance(1)
    found = [arrays[0] for arrays in stream.fetch([nodes["y"].outputs[0]])]
    right = [row[0] for row in outputs(graph, probes)]
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("options", [{}, {"weights": "int4"}, {"activations": "uint4"}, {"target": "tensorrt"}])
def test_the_simulated_model_is_the_quantized_one_with_float_biases(options: dict[str, str]) -> None:
    graph = residual()
    target = options.pop("target", "ort-cpu")
    plan = planned(graph, PROBES, policy(target=target).override(**options))  # type: ignore[arg-type]
    kept = replace(plan, entries=tuple(entry for entry in plan.entries if entry.role != "bias"))
    found = outputs(simulated(graph, plan).model, PROBES)
    assert pooled_sqnr(outputs(graph, PROBES), found) == pytest.approx(output_db(graph, kept, PROBES), abs=0.1)


def test_a_walk_hands_later_layers_what_was_changed_before() -> None:
    work = work_of(residual())
    walk = Walk(work, Context(PROBES))
    seen = {}
    for index in range(len(walk)):
        walk.advance(index)
        layer = walk.layer(index)
        seen[layer.op.name] = [given for _, given in layer.inputs()]
        if layer.op.name == "h":
            layer.set_weight(np.zeros_like(layer.weight))
            layer.set_bias(Site("h", 2), np.full(8, 0.5, np.float32))
    walk.close()
    assert len(walk) == 3
    assert all(np.allclose(array, 0.5, atol=0.02) for array in seen["s"])
    assert not np.allclose(held(nodes_of(work.graph)["h"], 1), 0)  # the work that was given stays


# --- bias correction


def slow_correction(y: Array, z: Array, low: float, high: float) -> Array:
    """The shift with the least squared error behind a clamp, by trying very many."""
    candidates = np.linspace(-2, 2, 4001)
    target = np.clip(y, low, high)
    errors = [
        [np.square(np.clip(row + shift, low, high) - wish).sum() for shift in candidates]
        for row, wish in zip(z, target, strict=False)
    ]
    best: Array = candidates[np.argmin(errors, 1)]
    return best


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, np.inf), (0.0, 1.5)])
def test_the_correction_is_the_best_shift(bounds: tuple[float, float]) -> None:
    rng = np.random.default_rng(3)
    y = rng.normal(0.3, 1, (6, 4000)).astype(np.float32)
    z = (y + np.linspace(-0.4, 0.4, 6)[:, None] + rng.normal(0, 0.05, y.shape)).astype(np.float32)
    found = correction([(y, z)], bounds, steps=8)
    np.testing.assert_allclose(found, slow_correction(y, z, *bounds), atol=4e-3)


def test_uncertain_means_are_shrunk() -> None:
    rng = np.random.default_rng(0)
    sure, unsure = np.full(10, 0.2), 0.2 + rng.normal(0, 0.5, 10)
    samples = [
        (f32(0.0, 0.0).reshape(2, 1) * np.ones((2, 50), np.float32), -np.repeat(f32(a, b)[:, None], 50, 1))
        for a, b in zip(sure, unsure, strict=False)
    ]
    found = correction(samples, (-np.inf, np.inf), steps=4)
    assert found[0] == pytest.approx(0.2, rel=1e-4)
    weight = 1 / np.abs(unsure - unsure.mean())
    weight = np.minimum(weight, 10 / np.abs(unsure - unsure.mean()).mean())
    weight /= weight.sum()
    mean = weight @ unsure
    variance = weight**2 @ (unsure - mean) ** 2 / (1 - weight @ weight)
    assert found[1] == pytest.approx(mean * (1 - variance / mean**2), rel=1e-3)
    assert abs(found[1]) < 0.99 * abs(mean)


def test_one_odd_sample_does_not_decide_for_all() -> None:
    rng = np.random.default_rng(0)
    means = np.append(rng.normal(0.2, 0.01, 20), -5.0)
    samples = [(np.zeros((1, 50), np.float32), np.full((1, 50), -mean, np.float32)) for mean in means]
    assert means.mean() < 0
    assert correction(samples, (-np.inf, np.inf), steps=4)[0] == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("size", "count"), [(49, 16), (12544, 1000), (7, 7), (1, 1), (64, 10)])
def test_places_are_spread_and_turn_by_turn_go_through_all(size: int, count: int) -> None:
    turns = [places(size, count, turn) for turn in range(-(-size // count))]
    assert set(np.concatenate(turns).tolist()) == set(range(size))
    for found in turns:
        assert len(set(found.tolist())) == count
        assert np.diff(found).max(initial=0) <= 4 * size / count


def test_behind_a_relu_errors_that_it_swallows_do_not_count() -> None:
    y = np.concatenate([np.full((1, 90), -5), np.full((1, 10), 2)], 1).astype(np.float32)
    z = np.concatenate([np.full((1, 90), -7), np.full((1, 10), 2.1)], 1).astype(np.float32)
    assert correction([(y, z)], (0.0, np.inf), steps=4)[0] == pytest.approx(-0.1, abs=1e-4)
    assert correction([(y, z)], (-np.inf, np.inf), steps=4)[0] == pytest.approx(1.79, abs=1e-2)


def test_a_planted_error_of_the_mean_is_found() -> None:
    graph = residual()
    work = work_of(graph)
    spoilt = graph.clone()
    set_constant(nodes_of(spoilt), work.plan, (Site("h", 2),), RESIDUAL_WEIGHTS["b1"] + np.float32(0.3))
    judge = Judge(graph, PROBES)
    broken = judge.sqnr_db(spoilt, work.plan)
    mended = BiasCorrection().apply(replace(work, graph=spoilt), Context(PROBES))
    assert judge.sqnr_db(mended.graph, mended.plan) > max(judge.sqnr_db(graph, work.plan) - 0.5, broken + 10)
    bias = held(nodes_of(mended.graph)["h"], 2)
    np.testing.assert_allclose(bias, RESIDUAL_WEIGHTS["b1"], atol=0.02)


@pytest.mark.parametrize(
    "options", [{}, {"weights": "int4"}, {"scheme": "per-tensor"}, {"target": "tensorrt"}, {"target": "generic"}]
)
def test_bias_correction_helps_and_can_be_written(options: dict[str, str]) -> None:
    graph = residual()
    work = work_of(graph, wanted=policy().override(**options))  # type: ignore[arg-type]
    found = BiasCorrection().apply(work, Context(PROBES))
    held = images(1, 3, 8, 8, count=30)[12:]
    assert output_db(found.graph, found.plan, held) > -100
    judge = Judge(graph, held)
    assert judge.sqnr_db(found.graph, found.plan) > judge.sqnr_db(graph, work.plan) - 0.3
    int32 = {entry.sites[0].operator for entry in found.plan.of("bias")}
    assert int32 == (set() if options.get("target") == "tensorrt" else {"h", "s", "y"})  # 's' had none


def test_only_what_is_free_is_created() -> None:
    graph = ready(
        "a = MatMul(x, w1)\nb = Add(a, c)\nr = Relu(b)\ny = MatMul(r, w2)",
        {"w1": weight(6, 8), "c": f32(*range(8)), "w2": weight(8, 4)},
        inputs="float[N,6] x",
    )
    probes = [{"x": np.random.default_rng(seed).standard_normal((5, 6)).astype(np.float32)} for seed in range(8)]
    found = BiasCorrection().apply(work_of(graph, probes), Context(probes))
    assert any("y" in note and "without a bias" in note for note in found.notes)
    changed = held(nodes_of(found.graph)["b"], 1)
    assert changed is not None
    assert not np.array_equal(changed, f32(*range(8)))


def test_bias_correction_is_deterministic() -> None:
    work = work_of(residual())
    first, second = (BiasCorrection().apply(work, Context(PROBES, stored=stored)) for stored in (0, 1 << 30))
    for name in ("h", "s", "y"):
        one, other = (held(nodes_of(found.graph)[name], 2) for found in (first, second))
        assert np.array_equal(one, other)


# --- channels of weights


@pytest.mark.parametrize(
    ("op_type", "shape", "attributes"),
    [
        ("Conv", (6, 4, 3, 3), {}),
        ("Conv", (6, 2, 3, 3), {"group": 2}),
        ("Conv", (4, 1, 3, 3), {"group": 4}),
        ("ConvTranspose", (6, 4, 2, 2), {}),
        ("ConvTranspose", (6, 2, 2, 2), {"group": 3}),
        ("Gemm", (5, 3), {}),
        ("Gemm", (5, 3), {"transB": 1}),
        ("MatMul", (5, 3), {}),
    ],
)
def test_scaled_weights_scale_channels(op_type: str, shape: tuple[int, ...], attributes: dict[str, int]) -> None:
    """What belongs to a channel is what its scale reaches when onnxruntime runs the operator."""
    from qconvert.rules import channels

    read, made = channels(op_type, shape, attributes)
    array = weight(*shape)
    x = (
        np.random.default_rng(0)
        .standard_normal((2, read.size, 5, 5) if len(shape) > 2 else (2, read.size))
        .astype(np.float32)
    )
    down, up = np.linspace(0.5, 2, read.size), np.linspace(1, 3, made.size)
    text = ", ".join(f"{key} = {value}" for key, value in attributes.items())
    body = f"y = {op_type} <{text}> (x, w)" if text else f"y = {op_type} (x, w)"

    def result(kernel: Array, data: Array) -> Array:
        inputs = "float[N,C,H,W] x" if data.ndim == 4 else "float[N,C] x"
        return outputs(model(body, weights={"w": kernel.astype(np.float32)}, inputs=inputs), [{"x": data}])[0][0]

    along = (1, -1, 1, 1)[: x.ndim]
    scaled = array * over_inputs(op_type, shape, attributes, down)
    np.testing.assert_allclose(
        result(scaled, (x / down.reshape(along)).astype(np.float32)), result(array, x), rtol=1e-3, atol=1e-4
    )
    scaled = array * over_outputs(op_type, shape, attributes, up)
    np.testing.assert_allclose(result(scaled, x), result(array, x) * up.reshape(along), rtol=1e-3, atol=1e-4)
    reach = largest(array, over_outputs(op_type, shape, attributes, np.arange(made.size)), made.size)
    assert reach.max() == np.abs(array).max()
    assert (reach > 0).all()


# --- equalization

CHAINS = {
    name: body.strip().replace("; ", "\n")
    for name, body in {
        "relu": "h = Conv <pads = [1, 1, 1, 1]> (x, w1, b1); r = Relu(h); y = Conv <pads = [1, 1, 1, 1]> (r, w2)",
        "nothing between": "h = Conv <pads = [1, 1, 1, 1]> (x, w1, b1); y = Conv (h, w2)",
        "leaky and pool": "h = Conv (x, w1, b1); r = LeakyRelu <alpha = 0.1> (h); "
        "p = MaxPool <kernel_shape = [2, 2]> (r); y = Conv (p, w2)",
        "prelu and pad": "h = Conv (x, w1, b1); r = PRelu(h, slope); p = Pad(r, pads); y = Conv (p, w2)",
        "relu6": "h = Conv (x, w1, b1); r = Clip(h, zero, six); y = Conv (r, w2)",
        "depthwise": "h = Conv (x, w1, b1); r = Relu(h); d = Conv <group = 8> (r, wd, bd); q = Relu(d); "
        "y = Conv(q, wp)",
        "transposed": "h = ConvTranspose (x, wt, b1); r = Relu(h); y = ConvTranspose <group = 2> (r, wg)",
        "flatten": "h = Conv (x, w1, b1); r = Relu(h); f = Flatten(r); y = Gemm(f, wf, b3)",
        "pooled": "h = Conv (x, w1, b1); r = Relu(h); p = GlobalAveragePool(r); f = Flatten(p); "
        "y = Gemm <transB = 1> (f, w3t, b3)",
    }.items()
}
PLANTED = np.geomspace(0.02, 50, 8)[np.random.default_rng(0).permutation(8)].astype(np.float32)
CHAIN_WEIGHTS: dict[str, Array] = {
    "w1": weight(8, 3, 3, 3) * PLANTED[:, None, None, None],
    "b1": np.linspace(-1, 1, 8).astype(np.float32) * PLANTED,
    "w2": weight(4, 8, 3, 3) / PLANTED[:, None, None],
    "slope": np.full((8, 1, 1), 0.2, np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "wd": weight(8, 1, 3, 3),
    "bd": np.linspace(-1, 1, 8).astype(np.float32),
    "wp": weight(4, 8, 1, 1),
    "wt": weight(3, 8, 2, 2) * PLANTED[:, None, None],
    "wg": weight(8, 2, 2, 2) / PLANTED[:, None, None, None],
    "wf": weight(8 * 36, 5) / np.repeat(PLANTED, 36)[:, None],
    "b3": np.zeros(5, np.float32),
    "w3t": weight(5, 8) / PLANTED,
}


@pytest.mark.parametrize("name", CHAINS)
def test_equalization_leaves_the_float_model_as_it_was(name: str) -> None:
    graph = ready(CHAINS[name], CHAIN_WEIGHTS)
    found = Equalization().rewrite(graph, Context(PROBES))
    assert found.changed
    assert worst(graph, found.model, PROBES) < 1e-5
    assert worst(graph, found.model, images(2, 3, 8, 8, count=20)) < 1e-5
    before, after = (held(nodes_of(one)["h"], 1) for one in (graph, found.model))
    assert before is not None
    assert after is not None
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_ranges_become_even_or_scales_reach_their_limit(name: str, limited: bool) -> None:
    chains, _ = find_chains(ready(CHAINS[name], CHAIN_WEIGHTS))
    ops = {op.name: op for chain in chains for op in (chain.first, chain.second)}
    weights = {name: np.abs(held(op.node, 1)).astype(np.float64) for name, op in ops.items()}
    owners = {name: owners_of(op, weights[name].shape) for name, op in ops.items()}
    least = np.geomspace(0.05, 2, 8) if limited else np.zeros(8)
    links = [
        Link(chain.first.name, chain.second.name, chain.repeats, np.ones((1, 8)), least, np.zeros(8, np.bool_))
        for chain in chains
    ]
    scales, _ = equalizing(links, weights, owners, sweeps=100)
    for link, scale in zip(links, scales, strict=True):
        weights[link.first] = weights[link.first] / scale[owners[link.first][1]]
        weights[link.second] = weights[link.second] * scale[owners[link.second][0] // link.repeats]
    for link, scale in zip(links, scales, strict=True):
        made = largest(weights[link.first], owners[link.first][1], 8)
        read = largest(weights[link.second], owners[link.second][0] // link.repeats, 8)
        bound = scale <= 1.01 * link.least
        assert (scale >= link.least).all()
        assert ((np.abs(np.log(made / read)) < 0.01) | bound).all()
        assert (made[bound] <= 1.01 * read[bound]).all()
        assert not bound.all()


def test_planted_scales_no_longer_hurt_per_tensor() -> None:
    graph = ready(CHAINS["relu"], CHAIN_WEIGHTS)
    rewritten = Equalization().rewrite(graph, Context(PROBES)).model
    wanted = policy().override(scheme="per-tensor")
    before, after = (Judge(graph, PROBES).sqnr_db(one, planned(one, PROBES, wanted)) for one in (graph, rewritten))
    assert after > before + 10


def test_channels_that_reach_their_clip_keep_their_scale() -> None:
    graph = ready(CHAINS["relu6"], CHAIN_WEIGHTS)
    found = Equalization().rewrite(graph, Context(PROBES))
    highest = np.max([fetch(graph, ["h"], probe)["h"].max((0, 2, 3)) for probe in PROBES], 0)
    before, after = (held(nodes_of(one)["h"], 1) for one in (graph, found.model))
    kept = np.array([np.array_equal(a, b) for a, b in zip(before, after, strict=True)])
    assert kept[highest >= 6].all()
    assert not kept.all()
    assert (highest >= 6).any()
    assert any("reach the bound of their Clip" in note for note in found.notes)


def test_activations_do_not_grow() -> None:
    weights = {**CHAIN_WEIGHTS, "b1": f32(5, *range(7))}
    weights["w1"] = weights["w1"] * f32(1e-4, *[1] * 7)[:, None, None, None]
    graph = ready(CHAINS["relu"], weights)
    found = Equalization().rewrite(graph, Context(PROBES)).model
    before, after = (max(float(fetch(one, ["r"], probe)["r"].max()) for probe in PROBES) for one in (graph, found))
    assert after <= 1.01 * before


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("h = Conv (x, w1, b1)\nr = Relu(h)\ny = Conv (r, w2)\nz = Neg(r)", "several operators read"),
        ("h = Conv (x, w1, b1)\nr = Sigmoid(h)\ny = Conv (r, w2)", "Sigmoid reads"),
        ("h = Conv (x, w1, b1)\ng = Conv(x, w1, b1)\nr = Relu(h)\ny = Conv (r, w2)\nz = Relu(g)", "computed or shared"),
        ("h = Conv (x, w1, b1)\nr = Clip(h, six)\ny = Conv (r, w2)", "Clip reads"),
        ("y = Conv (x, w1, b1)", "an output"),
    ],
)  # fmt: skip
def test_what_cannot_be_equalized_is_said(body: str, why: str) -> None:
    outs = "float[] y, float[] z" if "\nz =" in body else "float[] y"
    graph = ready(body, CHAIN_WEIGHTS, outputs=outs)
    found = Equalization().rewrite(graph, Context(PROBES))
    assert why in " ".join(found.notes)
    assert worst(graph, found.model, PROBES) == 0


# --- smoothing

NORMED = """
n = LayerNormalization <axis = -1> (x, gain, shift)
q = MatMul(n, w1)
k = MatMul(n, w2)
s = Add(q, k)
y = MatMul(s, w3)
"""
GATED = """
g = MatMul(x, w1)
u = MatMul(x, w2)
e = Sigmoid(g)
p = Mul(e, u)
y = MatMul(p, w3)
"""
SCALED = """
m = Mul(x, gain)
a = Add(m, shift)
l = Gemm(a, w1, b1)
r = Relu(l)
y = Gemm(r, w3)
"""
OUTLIERS = np.where(np.arange(16) % 5 == 0, 40, 1).astype(np.float32)
SMOOTH_WEIGHTS: dict[str, Array] = {
    "gain": OUTLIERS,
    "shift": np.linspace(-1, 1, 16).astype(np.float32) * OUTLIERS,
    "w1": weight(16, 16),
    "w2": weight(16, 16, seed=1) * np.where(np.arange(16) % 7 == 0, 30, 1).astype(np.float32),
    "w3": weight(16, 6),
    "b1": np.linspace(-1, 1, 16).astype(np.float32) * OUTLIERS,
}
ROWS = [{"x": np.random.default_rng(seed).standard_normal((1, 9, 16)).astype(np.float32)} for seed in range(8)]
FLAT = [{"x": probe["x"][0]} for probe in ROWS]


@pytest.mark.parametrize(
    ("body", "inputs", "probes", "groups"),
    [
        (NORMED, "float[N,T,16] x", ROWS, {"n": {"q", "k"}}),
        (GATED, "float[N,T,16] x", ROWS, {"p": {"y"}}),
        (SCALED, "float[N,16] x", FLAT, {"a": {"l"}, "r": {"y"}}),
    ],
)
def test_smoothing_moves_outliers_and_leaves_the_float_model_as_it_was(
    body: str, inputs: str, probes: list[Feeds], groups: dict[str, set[str]]
) -> None:
    graph = ready(body, SMOOTH_WEIGHTS, inputs=inputs)
    found, _ = find_groups(graph)
    assert {group.value: {op.name for op in group.linears} for group in found} == groups
    rewritten = Smoothing().rewrite(graph, Context(probes))
    assert worst(graph, rewritten.model, probes) < 1e-5
    assert set(groups) & set(rewritten.changed)
    judge, wanted = Judge(graph, probes), policy()
    before, after = (judge.sqnr_db(one, planned(one, probes, wanted)) for one in (graph, rewritten.model))
    assert after > before + 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("q = MatMul(x, w1)\ny = MatMul(q, w3)\nz = Relu(q)", "an input of the model"),
        ("r = Softmax(x)\ny = MatMul(r, w3)\nz = Relu(x)", "made by Softmax"),
        ("r = Mul(x, gain)\ny = MatMul(r, w3)\nz = Relu(r)", "others read, too"),
        ("s = Add(x, x)\ny = MatMul(s, w3)\nz = Relu(x)", "a sum"),
    ],
)
def test_what_cannot_be_smoothed_is_said(body: str, why: str) -> None:
    graph = ready(body, SMOOTH_WEIGHTS, inputs="float[N,T,16] x", outputs="float[] y, float[] z")
    found = Smoothing().rewrite(graph, Context(ROWS))
    assert why in " ".join(found.notes)
    assert worst(graph, found.model, ROWS) == 0


def test_no_scale_is_taken_where_none_helps() -> None:
    weights = {**SMOOTH_WEIGHTS, "gain": np.ones(16, np.float32), "shift": np.zeros(16, np.float32)}
    weights["w1"] = weights["w2"] = np.eye(16, dtype=np.float32)
    graph = ready(NORMED, weights, inputs="float[N,T,16] x")
    found = Smoothing(steps=1).rewrite(graph, Context(ROWS))
    assert "no scale is better than none" in " ".join(found.notes) or found.changed


# --- statistics of what was rewritten


def test_statistics_of_changed_values_are_taken_anew() -> None:
    graph = ready(CHAINS["relu"], CHAIN_WEIGHTS)
    stats = statistics(graph, ["x", "r", "y"], PROBES)
    found = Equalization().rewrite(graph, Context(PROBES))
    again = restate(found.model, stats, found.changed, PROBES)
    assert again["x"] is stats["x"]
    assert again["y"] is stats["y"]
    right = statistics(found.model, ["r"], PROBES)["r"]
    assert again["r"].low == right.low
    assert again["r"].high == pytest.approx(right.high, rel=1e-5)
    assert again["r"].samples == len(PROBES)


# --- which methods are kept


@dataclass(frozen=True)
class Spoil(Step):
    """Makes biases wrong."""

    name: ClassVar[str] = "spoil"
    title: ClassVar[str] = "for tests"
    place: ClassVar[int] = 2

    def apply(self, work: Work, context: Context) -> Work:
        del context
        graph = work.graph.clone()
        old = held(nodes_of(graph)["y"], 2)
        plan = set_constant(nodes_of(graph), work.plan, (Site("y", 2),), np.asarray(old) + np.float32(1))
        return replace(work, graph=graph, plan=plan)


@dataclass(frozen=True)
class Fail(Rewrite):
    """Cannot be carried out."""

    name: ClassVar[str] = "fail"
    title: ClassVar[str] = "for tests"

    def rewrite(self, model: ir.Model, context: Context) -> Rewritten:
        del model, context
        message = "it does not work"
        raise ModelError(message)


def plan_of(graph: ir.Model, stats: Mapping[str, TensorStats]) -> Plan:
    from qconvert.plan import make_plan

    return make_plan(graph, policy(), stats)


def everything(graph: ir.Model, probes: Sequence[Feeds]) -> dict[str, TensorStats]:
    names = ["x", *(value.name or "" for op in operators(graph) for value in op.node.outputs)]
    return statistics(graph, names, probes)


def test_what_does_not_help_is_not_kept() -> None:
    graph = residual()
    context = Context(PROBES, everything(graph, PROBES))
    found = recover_best(graph, [Spoil(), BiasCorrection(), Fail()], plan_of, context)
    tried = {one.method: one for one in found.tried}
    assert not tried["spoil"].kept
    assert not tried["fail"].kept
    assert tried["fail"].why == "it does not work"
    assert found.kept_back
    assert found.samples == 3
    plain = Judge(graph, PROBES[3::4]).sqnr_db(graph, plan_of(graph, context.stats))
    assert Judge(graph, PROBES[3::4]).sqnr_db(found.work.graph, found.work.plan) >= plain


@dataclass(frozen=True)
class SpoilMore(Spoil):
    """Makes biases wrong where others correct them."""

    name: ClassVar[str] = "spoil more"
    decides: ClassVar[frozenset[str]] = frozenset({"biases"})


@dataclass(frozen=True)
class Correct(BiasCorrection):
    """Corrects biases, in place of those that spoil them."""

    name: ClassVar[str] = "correct"
    decides: ClassVar[frozenset[str]] = frozenset({"biases"})
    slow: ClassVar[bool] = True


def test_of_methods_that_decide_the_same_the_better_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvert.recover.trials.GAIN_DB", -100.0)  # whatever a method does is kept
    graph = residual()
    context = Context(PROBES, everything(graph, PROBES))
    found = recover_best(graph, [SpoilMore(), Correct()], plan_of, context)
    assert [(one.method, one.kept, one.why) for one in found.tried] == [
        ("spoil more", False, "gave way to correct"),
        ("correct", True, ""),
        ("once more with all samples", True, ""),
    ]
    alone = recover_best(graph, [Correct()], plan_of, context)
    a, b = (held(nodes_of(one.work.graph)["y"], 2) for one in (found, alone))
    assert np.array_equal(a, b)


def test_what_is_asked_for_is_done_and_measured() -> None:
    graph = residual()
    context = Context(PROBES, everything(graph, PROBES))
    found = recover_all(graph, [Spoil()], plan_of, context)
    (tried,) = found.tried
    assert tried.kept
    assert tried.after_db is not None
    assert tried.before_db is not None
    assert tried.after_db < tried.before_db - 3
    assert "dB" in str(tried)


def test_methods_have_one_order_whatever_is_asked() -> None:
    graph = ready(CHAINS["relu"], CHAIN_WEIGHTS)
    context = Context(PROBES, everything(graph, PROBES))
    one, other = (
        recover_all(graph, methods, plan_of, context)
        for methods in ([BiasCorrection(), Equalization()], [Equalization(), BiasCorrection()])
    )
    assert [tried.method for tried in one.tried] == [tried.method for tried in other.tried] == ["equalize", "bias"]
    a, b = (held(nodes_of(found.work.graph)["h"], 2) for found in (one, other))
    assert np.array_equal(a, b)


def test_what_is_kept_is_applied_with_all_samples_in_the_end() -> None:
    graph = residual()
    context = Context(PROBES, everything(graph, PROBES))
    best = recover_best(graph, [BiasCorrection()], plan_of, context)
    everywhere = recover_all(graph, [BiasCorrection()], plan_of, context)
    assert best.tried[-1].kept
    a, b = (held(nodes_of(one.work.graph)["y"], 2) for one in (best, everywhere))
    assert np.array_equal(a, b)


@dataclass(frozen=True)
class Fitful(BiasCorrection):
    """Corrects biases from a few samples only."""

    name: ClassVar[str] = "fitful"

    def apply(self, work: Work, context: Context) -> Work:
        if len(context.probes) == len(PROBES):
            raise PlanError("too many samples")
        return super().apply(work, context)


def test_what_all_samples_make_worse_stays_as_it_was() -> None:
    graph = residual()
    context = Context(PROBES, everything(graph, PROBES))
    found = recover_best(graph, [Fitful()], plan_of, context)
    assert [(one.kept, one.why) for one in found.tried] == [(True, ""), (False, "too many samples")]
    plain = Judge(graph, PROBES[3::4]).sqnr_db(graph, plan_of(graph, context.stats))
    assert Judge(graph, PROBES[3::4]).sqnr_db(found.work.graph, found.work.plan) > plain


def test_nothing_begins_after_the_deadline() -> None:
    graph = residual()
    context = Context(PROBES, everything(graph, PROBES), deadline=0.0)
    found = recover_best(graph, [BiasCorrection()], plan_of, context)
    assert found.tried[0].why == "no time left"
    assert not found.tried[0].kept
    assert found.work.graph is graph


@pytest.mark.parametrize(
    ("count", "seen", "back"),
    [(1, [0], [0]), (2, [0], [1]), (3, [0, 1], [2]), (5, [0, 1, 2, 4], [3])],
)
def test_some_samples_are_kept_back(count: int, seen: list[int], back: list[int]) -> None:
    assert split(count) == (seen, back)


def test_methods_see_no_more_samples_than_tell_them_something() -> None:
    seen, back = split(200)
    assert len(seen) == SEEN
    assert sorted(seen + back) == list(range(200))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"expected one of .*, got 'biass'") as caught:
        make_methods(["biass"])
    assert "'bias'" in caught.value.hint
    with pytest.raises(PolicyError, match="'auto' chooses"):
        make_methods(["auto", "bias"])


def test_methods_say_what_they_are() -> None:
    for name, kind in METHODS.items():
        assert kind.name == name
        assert kind.title
        assert issubclass(kind, Rewrite | Step)
        assert "Source: " in (kind.__doc__ or "") + (__import__(kind.__module__, fromlist=["x"]).__doc__ or "")


# --- the whole way


class Notes(Listener):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def digits(
    name: str,
    folder: Path,
    recover: Sequence[str],
    *,
    limit: int = 48,
    **options: Any,  # noqa: ANN401 - options of ``override``
) -> tuple[float, list[str]]:
    """SQNR on other samples than those of the calibration, and what was said."""
    samples, source = sample_models() / "digits", sample_models() / name / "model.onnx"
    calibrated = pipeline.calibrate(source, samples / "calibration", preprocess=preset("centered"), limit=limit)
    wanted, notes = Policy().override(recover=recover, **options), Notes()
    written = folder / "q.onnx"
    pipeline.quantize(source, calibrated, output=written, policy=wanted, listener=notes, force=True)
    found = pipeline.evaluate(
        source, written, samples / "evaluation", preprocess=preset("centered"), limit=150, latency_runs=0
    )
    return found.fidelity[0].sqnr_db, notes.texts


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit", "digits_gru"])
def test_auto_is_never_worse_than_nothing(
    name: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {kind.name: partial(kind, steps=steps) for kind, steps in ((AdaRound, 30), (AdaQuant, 30), (Clipping, 10))}
    monkeypatch.setattr("qconvert.recover.METHODS", {**METHODS, **quick})
    options = {"weights": weights, "scheme": "per-channel"}
    plain, _ = digits(name, tmp_path, (), limit=16, **options)
    auto, notes = digits(name, tmp_path, ("auto",), limit=16, **options)
    assert auto > plain - 0.1
    said = [note for note in notes if note.startswith("recover: ")]
    again = sum(note.startswith("recover: once more with all samples: in ") for note in said)
    assert again == any(note.endswith(", kept") for note in said)
    assert len(said) == len(make_methods(["auto"])) + again + 1
    assert all("kept" in note for note in said[:-1])
    assert "samples that no method saw" in said[-1]


def test_bias_correction_wins_back_what_low_bits_lose(tmp_path: Path) -> None:
    plain, _ = digits("digits_cnn", tmp_path, (), weights="int4", scheme="per-channel")
    mended, _ = digits("digits_cnn", tmp_path, ("bias",), weights="int4", scheme="per-channel")
    assert mended > plain + 2


def test_recover_is_refused_where_nothing_uses_it(tmp_path: Path) -> None:
    source = sample_models() / "digits_cnn" / "model.onnx"
    wanted = Policy().override(recover=["bias"])
    with pytest.raises(PlanError, match="static"):
        pipeline.quantize(source, None, output=tmp_path / "q.onnx", policy=wanted, way=pipeline.Way("dynamic"))
    with pytest.raises(PolicyError, match="'nonsense'"):
        pipeline.quantize(source, None, output=tmp_path / "q.onnx", policy=Policy().override(recover=["nonsense"]))


def test_the_policy_names_methods() -> None:
    assert loads("version: 1\nrecover: [equalize, bias]").recover == ("equalize", "bias")
