"""onnxruntime sessions: providers without fall-back, errors in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qconvert import session as room
from qconvert.errors import ModelError, ProviderError
from qconvert.session import check_provider, numpy_type, one_line, open_session, run
from tests.tiny import build, normal, saved


def linear() -> ir.Model:
    return build({"x": ("n", 4)}, [("MatMul", ["x", "w"], ["y"], {})], ["y"], {"w": normal(4, 3)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(linear(), tmp_path / "m.onnx")


# --- providers ---


def test_unknown_provider(path: Path) -> None:
    with pytest.raises(ProviderError, match="unknown provider 'abacus': expected one of cpu, cuda, tensorrt"):
        check_provider("abacus")
    with pytest.raises(ProviderError, match="abacus"):
        open_session(path, provider="abacus")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_here_is_an_error(path: Path, provider: str) -> None:
    if room.PROVIDERS[provider] in ort.get_available_providers():
        pytest.skip(f"{provider} is here")
    with pytest.raises(ProviderError, match=f"provider '{provider}'.*has only .*CPUExecutionProvider") as caught:
        open_session(path, provider=provider)
    assert "qconvert[gpu]" in caught.value.hint
    assert ("TensorRT" in caught.value.hint) == (provider == "tensorrt")


def test_cpu_means_cpu_alone(path: Path) -> None:
    check_provider("cpu")
    assert open_session(path).get_providers() == ["CPUExecutionProvider"]


# --- models that are refused ---


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_session(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: onnxruntime refuses the model: ")
    assert "[ONNXRuntimeError]" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x09" * 50, bytes(range(256))])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refusal(path)


def test_truncated_and_missing_models(path: Path, tmp_path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])
    refusal(path)
    assert "none.onnx" in refusal(tmp_path / "none.onnx")


def test_unknown_operator(tmp_path: Path) -> None:
    model = build({"x": ("n", 4)}, [("Frobnicate", ["x"], ["y"], {})], ["y"])
    assert "Frobnicate" in refusal(saved(model, tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match=r"^onnxruntime refuses the model: .*Frobnicate"):
        open_session(model)


# --- running ---


def test_run_gives_outputs_in_order(path: Path) -> None:
    x = normal(2, 4, seed=3)
    expected = x @ normal(4, 3)
    for model in (path, linear()):
        for optimize in (True, False):
            (y,) = run(open_session(model, optimize=optimize), {"x": x})
            np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert run(open_session(path), {"x": x}, ["y"])[0].shape == (2, 3)


def test_wrong_feeds_name_the_shapes(path: Path) -> None:
    session = open_session(path)
    with pytest.raises(ModelError, match=r"onnxruntime fails on inputs x \[2, 5\]: .*4") as caught:
        run(session, {"x": normal(2, 5)})
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"inputs x \[4\]"):
        run(session, {"x": normal(4)})
    with pytest.raises(ModelError, match=r"inputs x \[2, 4\]: .*(double|float)"):
        run(session, {"x": normal(2, 4).astype(np.float64)})
    with pytest.raises(ModelError, match=r"inputs z \[2, 4\]: .*x"):
        run(session, {"z": normal(2, 4)})


def test_failures_inside_the_graph(tmp_path: Path) -> None:
    model = build(
        {"x": ("n", 4)}, [("Reshape", ["x", "shape"], ["y"], {})], ["y"], {"shape": np.array([3, -1], np.int64)}
    )
    session = open_session(saved(model, tmp_path / "m.onnx"))
    assert run(session, {"x": normal(3, 4)})[0].shape == (3, 4)
    with pytest.raises(ModelError, match=r"inputs x \[1, 4\]: "):
        run(session, {"x": normal(1, 4)})


def test_models_beyond_the_inline_limit_go_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(2, 4)
    expected = run(open_session(linear()), {"x": x})[0]
    monkeypatch.setattr(room, "INLINE_LIMIT", 0)
    model = linear()
    np.testing.assert_array_equal(run(open_session(model), {"x": x})[0], expected)
    np.testing.assert_array_equal(run(open_session(model), {"x": x})[0], expected)


def test_the_optimized_graph_can_be_kept(path: Path, tmp_path: Path) -> None:
    open_session(path, optimized_path=tmp_path / "optimized.onnx")
    assert (tmp_path / "optimized.onnx").stat().st_size > 0


# --- messages and types ---


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError("[ONNXRuntimeError] : 1 : FAIL : it : failed\nhere")) == "FAIL : it : failed here"
    assert one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("name", ["float", "double", "float16", "int64", "int32", "int8", "uint8", "bool", "string"])
def test_element_types_are_those_of_onnxruntime(name: str) -> None:
    made = numpy_type(f"tensor({name})")
    assert made == np.dtype({"float": "float32", "double": "float64", "string": "str"}.get(name, name))


def test_element_types_that_numpy_lacks() -> None:
    with pytest.raises(ModelError, match=r"seq\(tensor\(float\)\)"):
        numpy_type("seq(tensor(float))")
