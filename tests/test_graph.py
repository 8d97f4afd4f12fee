"""The adapter over onnx_ir: what it reads, refuses, names and writes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qconvert import graph as room
from qconvert.errors import ModelError
from qconvert.graph import (
    add_constant,
    attributes,
    constant,
    external_tensors,
    file_hash,
    is_constant,
    load_model,
    operand,
    operators,
    opset,
    serialize,
    shape_of,
    tidy,
    weight_bytes,
    write_model,
)
from qconvert.session import open_session, run
from tests.models import f32, image, model, weight

W = {"w": weight(8, 3, 3, 3), "b": weight(8)}
BRANCHES = (
    "h = Conv(x, w, b) z = If(c) <then_branch = t () => (float[] o) { o = Relu(h) }, "
    "else_branch = e () => (float[] p) { q = Neg(h) p = Abs(q) }> y = com.microsoft.Gelu(z)"
)


def branches() -> ir.Model:
    return model(BRANCHES, inputs="float[N,3,8,8] x, bool c", weights=W, domains=["com.microsoft"])


def external(folder: Path) -> Path:
    path = folder / "m.onnx"
    ir.save(model("y = Conv(x, w, b)", weights=W), path, external_data="m.data", size_threshold_bytes=0)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no operator"), (b"garbage, no protobuf", "not a readable ONNX model"), (None, "no such file")],
)
def test_unreadable_files_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    whole = serialize(model("y = Conv(x, w, b)", weights=W))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError):
        load_model(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        load_model(tmp_path)


def test_missing_and_truncated_weight_files_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:-100])
    with pytest.raises(ModelError, match=r"'m.data' is truncated: \d+ bytes, \d+ needed"):
        load_model(path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"'m.data' is missing"):
        load_model(path)


def test_external_weights_are_written_inside(tmp_path: Path) -> None:
    loaded = load_model(external(tmp_path))
    assert len(external_tensors(loaded)) == 2
    expected = run(open_session(tmp_path / "m.onnx"), image())
    (tmp_path / "other").mkdir()
    write_model(loaded, tmp_path / "other" / "m.onnx")
    assert len(external_tensors(loaded)) == 2
    assert np.array_equal(run(open_session(tmp_path / "other" / "m.onnx"), image())[0], expected[0])
    assert np.array_equal(run(open_session(loaded), image())[0], expected[0])


def test_the_hash_covers_weight_files(tmp_path: Path) -> None:
    path = external(tmp_path)
    before = file_hash(path)
    assert before == file_hash(path)
    data = bytearray((tmp_path / "m.data").read_bytes())
    data[5] ^= 1
    (tmp_path / "m.data").write_bytes(bytes(data))
    assert file_hash(path) != before


def test_operators_are_named_by_their_outputs_and_follow_into_branches() -> None:
    found = list(operators(branches()))
    assert [(op.name, op.op_type) for op in found] == [
        ("h", "Conv"),
        ("z", "If"),
        ("o", "Relu"),
        ("q", "Neg"),
        ("p", "Abs"),
        ("y", "com.microsoft::Gelu"),
    ]
    assert [op.subgraph for op in found] == ["", "", "If(z).then_branch", *["If(z).else_branch"] * 2, ""]


def test_a_pattern_may_match_outputs_and_the_node() -> None:
    graph = model("y, z = Split<axis=1>(x)", inputs="float[1,4] x", outputs="float[] y, float[] z", opset=13)
    assert next(operators(graph)).names == ("y", "z")
    graph.graph[0].name = "halves"
    assert next(operators(graph)).names == ("y", "z", "halves")


def test_operands_and_constants() -> None:
    graph = model("y = Clip(x, , high)", weights={"high": f32(6).reshape(())})
    node = graph.graph[0]
    x, high = operand(node, 0), operand(node, 2)
    assert x is not None
    assert high is not None
    assert operand(node, 1) is None
    assert operand(node, 3) is None
    assert constant(None) is None
    assert constant(x) is None
    assert constant(high) == 6
    assert (is_constant(x), is_constant(high)) == (False, True)
    assert shape_of(x) == ("N", 3, 8, 8)


def test_an_initializer_that_may_be_fed_is_no_constant() -> None:
    graph = model("y = Conv(x, w, b)", inputs="float[N,3,8,8] x, float[8,3,3,3] w", weights=W)
    value = operand(graph.graph[0], 1)
    assert value is not None
    assert constant(value) is None
    assert not is_constant(value)


def test_attributes() -> None:
    graph = model('y = Conv<pads=[1,1,1,1], auto_pad="NOTSET", group=1>(x, w)', weights=W)
    assert attributes(graph.graph[0]) == {"pads": (1, 1, 1, 1), "auto_pad": "NOTSET", "group": 1}


def test_opset_of_either_name_of_the_default_domain() -> None:
    graph = model("y = Relu(x)", opset=15)
    assert opset(graph) == 15
    graph.opset_imports["ai.onnx"] = graph.opset_imports.pop("")
    assert opset(graph) == 15


def test_added_constants_find_a_free_name() -> None:
    graph = model("y = Conv(x, w, b)", weights=W)
    names = [add_constant(graph.graph, "w", f32(1)).name for _ in range(2)]
    assert names == ["w_2", "w_3"]
    assert weight_bytes(graph) == W["w"].nbytes + W["b"].nbytes + 8


def test_tidy_keeps_public_names() -> None:
    graph = model("unused = Neg(x) y = Relu(x)")
    added = ir.node("Neg", [graph.graph.inputs[0]])
    added.outputs[0].name = "y"
    graph.graph.insert_before(graph.graph[0], added)
    graph.graph.outputs.append(added.outputs[0])
    tidy(graph)
    assert [node.op_type for node in graph.graph] == ["Neg", "Relu"]
    assert [value.name for value in graph.graph.outputs] == ["y", "y_1"]


def test_tidy_drops_constants_that_only_operators_outside_of_the_model_read() -> None:
    graph = model("y = Conv(x, w, b)", weights=W)
    left = add_constant(graph.graph, "left", f32(1))
    outside = ir.node("Relu", [left])  # as in the branch of an If that was folded
    tidy(graph)
    assert outside.inputs[0] is left
    assert set(graph.graph.initializers) == {"w", "b"}


def test_tidy_leaves_results_out_that_were_left_out() -> None:
    graph = model(
        "s, h = GRU<hidden_size=16>(x, w, r) y = Neg(h)",
        inputs="float[5,1,16] x",
        weights={"w": weight(1, 48, 16), "r": weight(1, 48, 16)},
    )
    node = graph.graph[0]
    node.outputs[0].name = ""
    tidy(graph)
    assert [op.name for op in operators(graph)] == ["h", "y"]
    assert node.outputs[0].name == ""
    open_session(graph)


def test_the_same_model_gives_the_same_bytes() -> None:
    assert serialize(branches()) == serialize(branches())


class _Slow(ir.Tensor[npt.NDArray[np.float32]]):
    """A tensor that takes its time to be renamed, as onnx_ir does it when it writes a model."""

    _called: str | None = None

    @property
    def name(self) -> str | None:
        return self._called

    @name.setter
    def name(self, value: str | None) -> None:
        self._called = value
        time.sleep(0.02)


@pytest.mark.parametrize("inline", [None, 0])
def test_models_that_share_weights_are_written_in_threads(inline: int | None, tmp_path: Path) -> None:
    shared = _Slow(weight(4, 3, 3, 3))
    graphs = [model(f"y = Conv(x, w{k})", weights={f"w{k}": weight(4, 3, 3, 3)}) for k in range(4)]
    for k, graph in enumerate(graphs):
        graph.graph.initializers[f"w{k}"].const_value = shared

    def names(k: int) -> list[str]:
        write_model(graphs[k], tmp_path / f"{k}.onnx", inline=inline)
        return list(load_model(tmp_path / f"{k}.onnx").graph.initializers)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(names, range(4))) == [[f"w{k}"] for k in range(4)]


def test_too_much_for_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "INLINE_LIMIT", 100)
    graph = model("y = Conv(x, w, b)", weights=W)
    expected = run(open_session(graph), image())
    write_model(graph, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").is_file()
    assert np.array_equal(run(open_session(tmp_path / "m.onnx"), image())[0], expected[0])
