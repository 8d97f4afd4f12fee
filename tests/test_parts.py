"""Graphs cut into parts, and the memory in which these run one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert import calibrate, parts
from qconvert.expose import Exposed, exposing, open_exposed
from qconvert.fetch import Fetcher
from qconvert.parts import PART_BYTES, cut
from qconvert.prepare import prepare
from qconvert.session import open_session, run
from tests.tiny import Array, build, normal

NAMES = ["a", "b", "c", "d", "e", "chosen", "y"]
"""Of ``skipping``: what a plan would ask for, and the output."""


def skipping() -> ir.Model:
    """``a`` is needed three operators later, sizes are handed on as integers, and ``chosen`` is as long as data say."""
    padded = {"pads": [1, 1, 1, 1]}
    model = build(
        {"x": ("n", 3, "h", "w")},
        [
            ("Shape", ["x"], ["sizes"], {"start": 0, "end": 1}),
            ("Conv", ["x", "w1"], ["before"], padded),
            ("Relu", ["before"], ["a"], {}),
            ("Conv", ["a", "w2"], ["b"], padded),
            ("Conv", ["b", "w3"], ["c"], padded),
            ("Add", ["c", "a"], ["d"], {}),
            ("GlobalAveragePool", ["d"], ["e"], {}),
            ("Concat", ["sizes", "rest"], ["shape"], {"axis": 0}),
            ("Reshape", ["e", "shape"], ["flat"], {}),
            ("Greater", ["flat", "zero"], ["positive"], {}),
            ("NonZero", ["positive"], ["places"], {}),
            ("Transpose", ["places"], ["rows"], {}),
            ("GatherND", ["flat", "rows"], ["chosen"], {}),
            ("Neg", ["chosen"], ["y"], {}),
        ],
        ["y"],
        {
            "w1": normal(16, 3, 3, 3),
            "w2": normal(16, 16, 3, 3, seed=1) / 12,
            "w3": normal(16, 16, 3, 3, seed=2) / 12,
            "rest": np.array([-1], np.int64),
            "zero": np.zeros((), np.float32),
        },
    )
    prepare(model, [{"x": picture(0)}])
    return model


def picture(seed: int, *shape: int) -> Array:
    return normal(*(shape or (1, 3, 8, 8)), seed=seed)


def expected(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    with exposing(model, NAMES) as whole:
        return dict(zip(NAMES, run(open_session(whole, threads=1), feeds, NAMES), strict=True))


def exposed(model: ir.Model, *last: str) -> Exposed:
    """The model cut behind these values."""
    return open_exposed(model, NAMES, provider="cpu", sizes=dict.fromkeys(last, PART_BYTES))


def check(fetch: Fetcher, model: ir.Model, arrays: Sequence[Array]) -> None:
    """Every value of every sample is right when its part is there; blocks of channels are in another order."""
    for x in arrays:
        wanted = expected(model, {"x": x})
        found: dict[str, Array] = {}
        for names, part in zip(fetch.parts, fetch({"x": x}), strict=True):
            assert list(part) == names
            found.update({name: np.sort(array, None) for name, array in part.items()})
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], np.sort(array, None), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=12)
@given(st.sets(st.sampled_from(NAMES)), st.lists(st.integers(0, 9), min_size=2, max_size=4))
def test_parts_make_what_the_whole_makes(last: set[str], seeds: list[int]) -> None:
    model = skipping()
    check(Fetcher(exposed(model, *last)), model, [picture(seed) for seed in seeds])


def test_there_is_a_part_for_every_place_to_cut_at() -> None:
    assert len(exposed(skipping()).sessions) == 1
    assert len(exposed(skipping(), "a", "c", "e").sessions) == 4
    assert Fetcher(exposed(skipping(), "d")).parts == [["a", "b", "c", "d"], ["e", "chosen", "y"]]


def test_inputs_of_other_shapes_get_other_memory() -> None:
    model = skipping()
    fetch = Fetcher(exposed(model, "a", "c"))
    check(fetch, model, [picture(0), picture(1), picture(2, 2, 3, 5, 7), picture(3, 2, 3, 5, 7), picture(4)])


def test_what_is_no_longer_needed_leaves_its_memory() -> None:
    """``b`` to ``e`` pass through two places while ``a`` keeps its own, from the second run on."""
    fetch, x = Fetcher(exposed(skipping(), "a", "b", "c", "d")), np.abs(picture(0))
    for _ in range(3):
        places = {name: array.ctypes.data for part in fetch({"x": x}) for name, array in part.items()}
    assert places["c"] not in {places["a"], places["b"]}
    assert places["d"] == places["b"]


def test_a_part_whose_shapes_change_goes_on_in_new_memory() -> None:
    """``chosen`` is as long as the last time, then shorter, when the parts before it have run into kept memory."""
    model = skipping()
    counts = [int((expected(model, {"x": picture(seed)})["e"] > 0).sum()) for seed in range(8)]
    other = next(seed for seed in range(8) if counts[seed] != counts[0])
    check(Fetcher(exposed(model, "a", "d", "e")), model, [picture(0), picture(0), picture(other), picture(0)])


def test_a_cut_waits_while_a_value_of_no_known_type_is_needed() -> None:
    model = skipping()
    next(node for node in model.graph if node.op_type == "Concat").outputs[0].type = None
    first, _ = cut(model, NAMES, {"shape": PART_BYTES})
    assert {value.name for value in first.graph.outputs} >= {"flat"}


def test_a_cut_waits_while_a_value_that_numpy_cannot_hold_is_needed() -> None:
    model = skipping()
    types = (ir.DataType.BFLOAT16, ir.DataType.FLOAT)
    for name, dtype in zip(("half", "back"), types, strict=True):
        value = ir.Value(name=name, type=ir.TensorType(dtype))
        model.graph.append(ir.node("Cast", [model.graph[-1].outputs[0]], {"to": int(dtype)}, outputs=[value]))
    assert len(cut(model, [*NAMES, "back"], {"y": PART_BYTES})) == 2
    assert cut(model, [*NAMES, "back"], {"half": PART_BYTES}) == [model]


def test_shapes_that_the_graph_has_wrong_do_not_matter() -> None:
    """onnxruntime warns of them inside of a graph, and refuses them at an input."""
    model = skipping()
    value = next(node for node in model.graph if node.op_type == "Relu").outputs[0]
    value.shape = ir.Shape([1, 16, 4, 4])
    first, second = (open_session(part, threads=1) for part in cut(model, NAMES, {"a": PART_BYTES}))
    x = picture(0)
    handed = dict(zip(("a", "sizes"), run(first, {"x": x}, ["a", "sizes"]), strict=True))
    assert run(second, handed, ["y"])[0].shape == expected(skipping(), {"x": x})["y"].shape


def test_an_output_of_a_type_that_numpy_lacks_does_not_matter() -> None:
    """Nobody asks for it."""
    model = skipping()
    d = next(node for node in model.graph if node.op_type == "Add").outputs[0]
    half = ir.Value(name="half", type=ir.TensorType(ir.DataType.BFLOAT16), shape=ir.Shape(["n", 16, "h", "w"]))
    model.graph.append(ir.node("Cast", [d], {"to": int(ir.DataType.BFLOAT16)}, outputs=[half]))
    model.graph.outputs.append(half)
    for last in ((), ("a", "d")):
        check(Fetcher(exposed(model, *last)), model, [picture(0), picture(1)])


def test_a_graph_with_a_body_stays_whole() -> None:
    model = skipping()
    branches = {}
    for branch in ("then_branch", "else_branch"):
        value = ir.Value(name=branch, type=ir.TensorType(ir.DataType.FLOAT))
        body = ir.Graph(
            [], [value], nodes=[ir.node("Identity", [model.graph.outputs[0]], outputs=[value])], name=branch
        )
        branches[branch] = body
    condition = next(node for node in model.graph if node.op_type == "Greater").outputs[0]
    model.graph.append(ir.node("If", [condition], branches))
    assert cut(model, NAMES, dict.fromkeys(NAMES, PART_BYTES)) == [model]


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_without_a_purpose_are_left_out(seed: int) -> None:
    """Asked for ``a`` alone, nothing behind it is run."""
    model = skipping()
    parts = cut(model, ["a"], {"a": PART_BYTES, "d": PART_BYTES})
    assert len(parts) == 1
    session = open_session(parts[0], threads=1)
    x = picture(seed)
    np.testing.assert_allclose(run(session, {"x": x}, ["a"])[0], expected(model, {"x": x})["a"], rtol=1e-5)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit"])
def test_statistics_do_not_depend_on_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole models, cut behind every value or not at all."""
    folder = Path(__file__).parent.parent / "sample_models"
    found = []
    for least, most in ((1, 1_000), (1 << 40, 1)):
        monkeypatch.setattr(parts, "PART_BYTES", least)
        monkeypatch.setattr(parts, "MOST_PARTS", most)
        found.append(calibrate(folder / name / "model.onnx", folder / "digits" / "calibration", limit=3).stats)
    assert found[0] == found[1]
