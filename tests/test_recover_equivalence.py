"""Rewrites leave the float model what it computes, on samples that they did not see: sample models and shared ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.graph import load_model
from qconvert.listener import SILENT
from qconvert.numerics import QUANT_TYPES
from qconvert.pipeline.data import open_data
from qconvert.prepare import prepare
from qconvert.recover import METHODS, Context, Rewrite
from qconvert.recover.equalize import Equalization
from qconvert.session import Feeds, open_session, run
from tests.benchmarks.table import Case, cases
from tests.models import Array

SEEN, UNSEEN = 16, 12
CNNS = {"digits_cnn", "mobilenetv2", "resnet20", "ultraface", "silero_vad"}
TRANSFORMERS = {"digits_vit", "stories260k"}
OTHERS = {"digits_gru"}
REWRITES = {name: method() for name, method in METHODS.items() if issubclass(method, Rewrite)}


@dataclass(frozen=True)
class Subject:
    """A prepared model, samples for rewrites, and others with what the original makes of them."""

    graph: ir.Model
    seen: Sequence[Feeds]
    unseen: Sequence[Feeds]
    outputs: Sequence[Sequence[Array]]

    def worst(self, model: ir.Model) -> float:
        """The greatest difference of an output, relative to its greatest value."""
        session = open_session(model)
        found = [run(session, feeds) for feeds in self.unseen]
        columns = zip(zip(*found, strict=True), zip(*self.outputs, strict=True), strict=True)
        return max(
            max(float(np.abs(a - b).max()) for a, b in zip(made, right, strict=True))
            / max(float(np.abs(b).max()) for b in right)
            for made, right in columns
        )


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {case.name: case for case in cases(tmp_path_factory.mktemp("cases"))}


@cache
def subject(case: Case) -> Subject:
    graph = load_model(case.model)
    seen, unseen = feeds_of(case, graph, case.calibration, SEEN), feeds_of(case, graph, case.evaluation, UNSEEN)
    session = open_session(case.model)
    outputs = [run(session, feeds) for feeds in unseen]
    prepare(graph, seen[:4], original=case.model)
    return Subject(graph, seen, unseen, outputs)


def feeds_of(case: Case, graph: ir.Model, data: Path, count: int) -> list[Feeds]:
    found = open_data(case.model, graph, data, case.preprocess, limit=count, seed=0, listener=SILENT)
    return [found.load(index).feeds for index in range(len(found))]


def subject_of(name: str, known: dict[str, Case]) -> Subject:
    if name not in known:
        pytest.skip("the shared models are not there")
    return subject(known[name])


@pytest.mark.parametrize("method", REWRITES)
@pytest.mark.parametrize("name", sorted(CNNS | TRANSFORMERS | OTHERS))
def test_a_rewritten_model_computes_what_the_original_does(name: str, method: str, known: dict[str, Case]) -> None:
    one = subject_of(name, known)
    for weights in ("int8", "int4"):
        found = REWRITES[method].rewrite(one.graph, Context(one.seen, weights=QUANT_TYPES[weights]))
        assert bool(found.changed) == (name in (CNNS if method == Equalization.name else TRANSFORMERS))
        assert one.worst(found.model) < 1e-4


def test_all_rewrites_together_change_nothing_either(known: dict[str, Case]) -> None:
    for name in ("digits_cnn", "digits_vit"):
        one = subject_of(name, known)
        model = one.graph
        for method in REWRITES.values():
            model = method.rewrite(model, Context(one.seen)).model
        assert one.worst(model) < 1e-4


def test_a_clip_that_channels_reach_would_show(known: dict[str, Case]) -> None:
    one = subject_of("digits_cnn", known)
    careless = Equalization(room=1.0, samples=0).rewrite(one.graph, Context(one.seen[:4])).model
    careful = Equalization().rewrite(one.graph, Context(one.seen[:4])).model
    assert one.worst(careful) < 1e-4 < one.worst(careless)
