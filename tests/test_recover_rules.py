"""Methods by rule: which operators a policy gives which of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qconvert import pipeline
from qconvert.cli.demo import sample_models
from qconvert.errors import PolicyError
from qconvert.graph import constant, operand, operators
from qconvert.listener import Listener
from qconvert.policy import loads
from qconvert.prepare import prepare
from qconvert.preprocess import preset
from qconvert.recover import Context, Work, asked_methods, asked_names, asked_only, make_methods
from qconvert.recover.bias import BiasCorrection
from qconvert.recover.equalize import Equalization
from qconvert.recover.gptq import Gptq
from tests.models import Array, images, model, planned, weight

BODY = """
a = Conv <pads = [1, 1, 1, 1]> (x, v, b)
r = Relu(a)
c = Conv (r, w, d)
s = Relu(c)
y = Conv (s, u, e)
"""
WEIGHTS = {
    "v": weight(6, 3, 3, 3),
    "b": np.linspace(-1, 1, 6).astype(np.float32),
    "w": weight(4, 6, 1, 1, seed=1),
    "d": np.linspace(0, 1, 4).astype(np.float32),
    "u": weight(5, 4, 1, 1, seed=2),
    "e": np.zeros(5, np.float32),
}
PROBES = images(1, 3, 8, 8, count=6)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{}", ()),
        ("recover: [bias, gptq]", ("bias", "gptq")),
        ("recover: [none]", ("none",)),
        ("recover: [auto]\nrules: [{match: {names: [a]}, recover: [bias]}]", ("auto",)),
        ("recover: [bias]\nrules: [{match: {names: [a]}, recover: [gptq, bias]}]", ("bias", "gptq")),
        ("rules: [{match: {names: [a]}, recover: [gptq]}]", ("gptq",)),
        ("recover: [none]\nrules: [{match: {names: [a]}, recover: [gptq]}]", ("gptq",)),
        ("rules: [{match: {names: [a]}, recover: []}]", ()),
    ],
)
def test_a_policy_asks_for_the_methods_of_all_its_rules(text: str, names: tuple[str, ...]) -> None:
    assert asked_names(loads(text)) == names


@pytest.mark.parametrize("names", [["gptq", "adaround"], ["bias", "adaquant", "gptq"]])
def test_two_methods_that_decide_the_same_are_refused(names: list[str]) -> None:
    with pytest.raises(PolicyError, match="both decide levels of weights"):
        make_methods(names)


def test_rules_may_give_different_operators_methods_that_decide_the_same() -> None:
    policy = loads("recover: [gptq]\nrules: [{match: {names: [a]}, recover: [adaround]}]")
    assert [method.name for method in asked_methods(policy)] == ["gptq", "adaround"]


def biases(work: Work) -> dict[str, Array]:
    found = {op.name: constant(operand(op.node, 2)) for op in operators(work.graph) if op.op_type == "Conv"}
    return {name: array for name, array in found.items() if array is not None}


@pytest.mark.parametrize("method", [BiasCorrection(), Gptq()], ids=lambda method: method.name)
def test_steps_leave_operators_out_that_a_rule_gives_others(method: BiasCorrection | Gptq) -> None:
    graph = prepare(model(BODY, weights=WEIGHTS), ()).model
    policy = loads(f"recover: [{method.name}]\nrules: [{{match: {{names: [c]}}, recover: []}}]")
    plan = planned(graph, PROBES, policy.override(weights="int4"))
    context = Context(PROBES, only=asked_only(policy, graph))
    before = Work(graph, graph, plan)
    after = method.apply(before, context)
    changed = {name for name, array in biases(after).items() if not np.array_equal(array, biases(before)[name])}
    assert "c" not in changed
    assert changed
    assert "1 left out, for which a rule names other methods (c)" in after.notes[-1]


def test_equalization_leaves_both_ends_of_a_chain_alone() -> None:
    graph = prepare(model(BODY, weights=WEIGHTS), ()).model
    policy = loads("recover: [equalize]\nrules: [{match: {names: [y]}, recover: [bias]}]")
    found = Equalization().rewrite(graph, Context(PROBES, only=asked_only(policy, graph)))
    assert "a" in found.changed
    assert "c" not in found.changed
    assert "for which a rule names other methods (c)" in found.notes[0]


class Notes(Listener):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_rules_reach_the_written_model(tmp_path: Path) -> None:
    source = sample_models() / "digits_cnn" / "model.onnx"
    samples = sample_models() / "digits" / "calibration"
    policy = loads("recover: [bias]\nrules: [{match: {position: first}, recover: []}]")
    calibrated = pipeline.calibrate(source, samples, preprocess=preset("centered"), limit=8)
    said = Notes()
    result = pipeline.quantize(source, calibrated, output=tmp_path / "q.onnx", policy=policy, listener=said)
    assert [one.method for one in result.tried] == ["bias"]
    assert any("1 left out, for which a rule names other methods" in line for line in said.lines)
