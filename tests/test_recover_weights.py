"""Winning back accuracy of weights alone: scales that know activations, and what is done where nobody asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qconvert.errors import PlanError, PolicyError
from qconvert.graph import constant, initializers, operand, operators, write_model
from qconvert.listener import Listener
from qconvert.metrics import sqnr_db
from qconvert.numerics import QUANT_TYPES, fake_quantize
from qconvert.plan.weight_only import make_weight_plan
from qconvert.policy import Policy
from qconvert.prepare import prepare
from qconvert.recover import METHODS, Rewrite, Step, Work, make_methods
from qconvert.recover.awq import Awq
from qconvert.recover.smooth import Seen
from qconvert.recover.types import Context
from qconvert.recover.weights import SMALL, names_for, recover_weights
from qconvert.session import open_session, run
from qconvert.weight_only import quantize_weights
from tests.models import model, policy, weight

Array = npt.NDArray[Any]

INT4 = QUANT_TYPES["int4"]
GROUPS = "dtype: int4, scheme: per-group, group_size: 16"
NET = """
n = LayerNormalization (x, gain, shift)
a = MatMul (n, w)
b = MatMul (n, v)
g = Relu (a)
m = Mul (g, b)
y = MatMul (m, u)
"""


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def net() -> ir.Model:
    """A gated block in which a few channels are ten times larger than others."""
    gain = np.where(np.arange(32) % 11 == 0, 10.0, 1.0).astype(np.float32)
    weights = {"gain": gain, "shift": normal(32), "w": weight(32, 48), "v": weight(32, 48), "u": weight(48, 32)}
    return model(NET, inputs="float[8,32] x", weights=weights, opset=21)


def samples(count: int, *, seed: int = 0) -> list[dict[str, Array]]:
    mixed = normal(6, 32, seed=9)
    return [{"x": normal(8, 6, seed=seed + index) @ mixed} for index in range(count)]


class Notes(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def small(*, policy_text: str = "") -> Policy:
    return policy(f"defaults:\n  weights: {{{GROUPS}}}\n{policy_text}")


# awq


def test_awq_leaves_the_float_model_what_it_computes() -> None:
    graph = net()
    prepare(graph, (), fold=False)
    context = Context(samples(8), weights=INT4, group_size=16)
    found = Awq().rewrite(graph, context)
    assert found.notes[0].startswith("awq: 3 layers changed")
    before, after = (run(open_session(one), context.probes[0])[0] for one in (graph, found.model))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    gains = [constant(operand(next(iter(operators(one))).node, 1)) for one in (graph, found.model)]
    assert not np.array_equal(*gains)  # type: ignore[arg-type]


def errors(rows: Array, w: Array, *, steps: int) -> list[float]:
    """By the definition, with the grid that covers each group of 16: of every alpha."""
    found = []
    for alpha in np.arange(steps) / steps:
        scale = np.abs(rows).mean(0, dtype=np.float64) ** alpha
        scale /= np.sqrt(scale.max() * scale.min())
        text = f"defaults:\n  weights: {{{GROUPS}}}\n"
        turned = (w * scale[:, None]).astype(np.float32)
        plan = make_weight_plan(model("y = MatMul (x, w)", inputs="float[4,32] x", weights={"w": turned}, opset=21),
                                policy(text, target="generic"))  # fmt: skip
        error = (fake_quantize(turned, plan.entries[0].params) - turned) / scale[:, None]
        found.append(float(np.square(rows.astype(np.float64) @ error).sum()))
    return found


def test_awq_takes_the_best_of_all_alphas() -> None:
    rows = normal(200, 32) * np.where(np.arange(32) % 11 == 0, 20.0, 1.0).astype(np.float32)
    w = normal(32, 24)
    seen = Seen(rows, rows.min(0).astype(np.float64), rows.max(0).astype(np.float64))
    scale = Awq(steps=5).best(seen, [w[:, :10], w[:, 10:]], Context((), weights=INT4, group_size=16))
    assert scale is not None
    wanted = errors(rows, w, steps=5)
    best = int(np.argmin(wanted))
    assert best > 0
    size = np.abs(rows).mean(0, dtype=np.float64) ** (best / 5)
    np.testing.assert_allclose(scale, size / np.sqrt(size.max() * size.min()), rtol=1e-6)


# without being asked


def test_few_bits_are_rounded_by_what_they_multiply_where_that_is_quick() -> None:
    graph = net()
    prepare(graph, (), fold=False)
    low, wide = make_weight_plan(graph, small()), make_weight_plan(graph, policy("defaults: {weights: {dtype: int8}}"))
    assert names_for(small(), low, SMALL) == ("gptq",)
    assert names_for(small(), low, SMALL + 1) == ()
    assert names_for(small(), wide, 1) == ()
    assert names_for(small(policy_text="recover: [hqq]"), wide, SMALL + 1) == ("hqq",)
    assert names_for(small(policy_text="recover: [none]"), low, 1) == ()


@pytest.mark.parametrize(("scheme", "group_size"), [("per-tensor", None), ("per-channel", None), ("per-group", 16)])
def test_methods_are_told_how_weights_share_scales(
    scheme: str, group_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Context] = []

    def win_back(*arguments: Any, **_: Any) -> None:  # noqa: ANN401 - what the real one takes
        told.append(arguments[3])

    monkeypatch.setattr("qconvert.recover.weights.win_back", win_back)
    graph, wanted = net(), Policy().override(weights="int4", scheme=scheme, group_size=group_size)
    prepare(graph, (), fold=False)
    plan = make_weight_plan(graph, wanted)
    recover_weights(
        graph, plan, wanted, ["gptq"], samples(2), random=False, budget=None, journal=None, listener=Notes()
    )
    assert told[0].weights == INT4
    assert told[0].per_channel == (scheme != "per-tensor")
    assert told[0].group_size == group_size


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_model(net(), tmp_path / "model.onnx")
    np.savez(tmp_path / "seen.npz", x=np.stack([one["x"] for one in samples(30)]))
    return tmp_path / "model.onnx"


def scored(path: Path, written: Path) -> float:
    """On samples that no method saw, dB."""
    sessions = [open_session(one, optimize=False) for one in (path, written)]
    before, after = (np.concatenate([run(one, x)[0] for x in samples(30, seed=1000)]) for one in sessions)
    return sqnr_db(before, after)


def test_samples_win_back_accuracy_and_random_inputs_lose_none(path: Path) -> None:
    found = {}
    for name, text, data in (
        ("nearest", "recover: [none]", None),
        ("random", "", None),
        ("seen", "", path.with_name("seen.npz")),
    ):
        said, out = Notes(), path.with_name(f"{name}.onnx")
        result = quantize_weights(path, output=out, policy=small(policy_text=text), data=data, listener=said)
        found[name] = scored(path, out)
        assert [one.method for one in result.tried] == ([] if name == "nearest" else ["gptq"])
        judged = [note for note in said.notes if note.startswith("recover: dB of the output on")]
        on = {"nearest": [], "random": ["12 random inputs"], "seen": ["26 samples"]}[name]
        assert judged == [f"recover: dB of the output on {kind} that the methods saw, too" for kind in on]
    assert found["seen"] > found["nearest"] + 1.5
    assert found["random"] > found["nearest"] - 0.5


@pytest.mark.parametrize("names", ["awq, clip", "awq, gptq, lowrank-compensation", "auto"])
def test_methods_work_on_weights_alone(path: Path, names: str) -> None:
    out, plain = path.with_name("q.onnx"), path.with_name("plain.onnx")
    data = path.with_name("seen.npz")
    wanted = small(policy_text=f"recover: [{names}]")
    assert quantize_weights(path, output=out, policy=wanted, data=data).proof.samples == 4
    quantize_weights(path, output=plain, policy=small(policy_text="recover: [none]"))
    assert scored(path, out) > scored(path, plain) + 1


def test_a_budget_ends_the_search_among_methods(path: Path) -> None:
    wanted, said = small(policy_text="recover: [auto]"), Notes()
    data, out = path.with_name("seen.npz"), path.with_name("q.onnx")
    result = quantize_weights(path, output=out, policy=wanted, data=data, budget=0, listener=said)
    assert {one.why for one in result.tried} == {"no time left"}
    assert not any(one.kept for one in result.tried)


@pytest.mark.parametrize(("names", "done"), [("", "gptq"), ("recover: [hqq]", "hqq"), ("recover: [clip]", "clip")])
def test_a_rule_leaves_a_weight_out_of_what_the_others_get(path: Path, names: str, done: str) -> None:
    said, rule = Notes(), "rules: [{match: {names: [a]}, recover: []}]"
    data, out = path.with_name("seen.npz"), path.with_name("q.onnx")
    quantize_weights(path, output=out, policy=small(policy_text=f"{names}\n{rule}"), data=data, listener=said)
    assert f"{done}: 2 layers changed; 1 left out, for which a rule names other methods (a)" in said.notes


BRANCHES = """
n = LayerNormalization (x, gain, shift)
h = MatMul (n, w)
y = If (c) <
  then_branch = yes () => (float[8,32] a) { a = MatMul (h, v) },
  else_branch = no () => (float[8,32] b) { r = Relu (h)\n b = MatMul (r, u) }
>
"""


@pytest.mark.parametrize("name", [name for name in METHODS if name not in {"hqq", "rotate"}])
def test_layers_in_bodies_are_left_out_aloud(name: str) -> None:
    """But for what needs no inputs, and what asks for sums that are normalized."""
    if name in {"brecq", "qdrop"}:
        pytest.importorskip("torch")
    weights = {"gain": np.ones(32, np.float32), "shift": normal(32)}
    weights |= {key: weight(32, 32, seed=seed) for seed, key in enumerate("wvu")}
    graph = model(BRANCHES, inputs="float[8,32] x, bool c", weights=weights, opset=21)
    prepare(graph, (), fold=False)
    plan, (method,) = make_weight_plan(graph, small()), make_methods([name])
    assert len(plan.entries) == 3
    context = Context([{**one, "c": np.array(one["x"].sum() > 0)} for one in samples(8)], weights=INT4, group_size=16)
    if isinstance(method, Rewrite):
        rewritten = method.rewrite(graph, context)
        after, notes = rewritten.model, rewritten.notes
    else:
        assert isinstance(method, Step)
        work = method.apply(Work(graph, graph, plan), context)
        after, notes = work.graph, work.notes
    assert "2 left out, inside a body of If (a, b)" in notes[0]
    for key in "vu":
        (found,) = (array for value, array in initializers(after) if value.name == key)
        np.testing.assert_array_equal(found.numpy(), weights[key])


def test_a_weight_that_others_read_too_keeps_its_float_there(tmp_path: Path) -> None:
    body = "h = MatMul (x, w)\ns = ReduceSum <keepdims = 0> (w, axes)\ny = Add (h, s)"
    weights = {"w": weight(32, 48), "axes": np.zeros(1, np.int64)}
    path, said = tmp_path / "model.onnx", Notes()
    write_model(model(body, inputs="float[8,32] x", weights=weights, opset=21), path)
    result = quantize_weights(path, output=tmp_path / "q.onnx", policy=small(), listener=said)
    assert any(note.startswith("gptq: 1 layers changed") for note in said.notes)
    assert [(one.tensor, one.elements) for one in result.weights] == [("w", 32 * 48)]
    assert result.weights[0].sqnr_db > 15
    assert result.proof.fidelity[0].sqnr_db > 15


@pytest.mark.parametrize("recover", ["none", "gptq"])
def test_weights_behind_an_identity_are_stored_once(tmp_path: Path, recover: str) -> None:
    body = "i = Identity (w)\nh = MatMul (x, w)\nr = Relu (h)\ny = MatMul (r, i)"
    path, said = tmp_path / "model.onnx", Notes()
    write_model(model(body, inputs="float[8,32] x", weights={"w": weight(32, 32)}, opset=21), path)
    wanted = small(policy_text=f"recover: [{recover}]")
    result = quantize_weights(path, output=tmp_path / "q.onnx", policy=wanted, listener=said)
    assert "1 Identity operators dropped" in said.notes
    assert [one.tensor for one in result.weights] == ["w"]
    assert [len(entry.sites) for entry in result.plan.of("weight")] == [2]


def test_the_same_samples_give_the_same_file(path: Path) -> None:
    outs = [path.with_name(f"{count}.onnx") for count in range(2)]
    for out in outs:
        quantize_weights(path, output=out, policy=small(), data=path.with_name("seen.npz"))
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_methods_that_cannot_run_are_refused(path: Path) -> None:
    wanted = small(policy_text="recover: [gptq]")
    with pytest.raises(PlanError, match="the float model must run"):
        quantize_weights(path, output=path.with_name("q.onnx"), policy=wanted, max_memory=1)
    for names, fault in (("none, gptq", "'none' leaves all methods out"), ("gtpq", "expected one of")):
        with pytest.raises(PolicyError, match=fault):
            quantize_weights(path, output=path.with_name("q.onnx"), policy=small(policy_text=f"recover: [{names}]"))
