"""How much memory a calibration takes, and how it is split into passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert.errors import CalibrationError
from qconvert.expose import open_exposed
from qconvert.graph import load_model, ports, serialize
from qconvert.memory import plan_passes, resident, text, value_bytes
from qconvert.prepare import prepare
from qconvert.session import run
from tests.tiny import build, normal

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
MODEL, DIGITS = SAMPLES / "digits_cnn" / "model.onnx", SAMPLES / "digits" / "calibration"

MB = 1_000_000


def test_one_pass_where_nothing_limits_it() -> None:
    found = plan_passes({"a": MB, "b": 2 * MB}, weights=0, base=100 * MB, workers=4, limit=None)
    assert found.groups == (("a", "b"),)
    assert found.workers == 4
    assert found.peak > 100 * MB + 4 * 3 * MB
    assert str(found) == f"memory: a peak of about {text(found.peak)} expected with 4 samples in flight"


def test_several_passes_below_a_limit() -> None:
    sizes = dict.fromkeys("abcdef", 10 * MB)
    whole = plan_passes(sizes, weights=MB, base=100 * MB, workers=2, limit=None)
    split = plan_passes(sizes, weights=MB, base=100 * MB, workers=2, limit=whole.peak - 50 * MB)
    assert split.groups == (("a", "b", "c"), ("d", "e", "f"))
    assert split.peak <= whole.peak - 50 * MB
    assert str(split).endswith("in 2 passes over the samples")


def test_fewer_samples_in_flight_where_one_value_does_not_fit() -> None:
    sizes = {"a": 100 * MB, "b": 100 * MB}
    found = plan_passes(sizes, weights=0, base=0, workers=4, limit=1100 * MB)
    assert found.workers == 2
    assert found.groups == (("a",), ("b",))


def test_a_limit_that_nothing_fits_names_the_least() -> None:
    with pytest.raises(CalibrationError, match=r"--max-memory 100 MB: one value at a time takes 60\d MB") as caught:
        plan_passes({"a": 100 * MB}, weights=0, base=100 * MB, workers=4, limit=100 * MB)
    assert "60" in caught.value.hint


@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 10**8), min_size=1),
    st.integers(1, 8),
    st.integers(10**9, 10**10),
)
def test_every_value_is_in_one_pass_and_none_exceeds_the_limit(sizes: dict[str, int], workers: int, limit: int) -> None:
    found = plan_passes(sizes, weights=10**6, base=10**8, workers=workers, limit=limit)
    assert [name for group in found.groups for name in group] == list(sizes)
    assert found.peak <= limit
    assert 1 <= found.workers <= workers


def test_sizes_from_shapes_are_those_of_the_values() -> None:
    model, feeds = _open_shapes(), {"x": normal(1, 4), "mask": np.array([True, False, True, True])}
    names = ["x", "wide", "chosen", "y"]
    before = serialize(model)
    sizes = value_bytes(model, names, feeds)
    assert serialize(model) == before
    (session,) = open_exposed(model, names[1:], provider="cpu").sessions
    values = {"x": feeds["x"], **dict(zip(names[1:], run(session, feeds, names[1:]), strict=True))}
    assert sizes == {name: array.size * 4 for name, array in values.items()}


def _open_shapes() -> ir.Model:
    """``chosen`` has as many columns as the mask has ones, which no shape inference can tell."""
    model = build(
        {"x": ("n", 4)},
        [
            ("MatMul", ["x", "w"], ["wide"], {}),
            ("Compress", ["wide", "keep"], ["chosen"], {"axis": 1}),
            ("Relu", ["chosen"], ["y"], {}),
        ],
        ["y"],
        {"w": normal(4, 4), "keep": np.ones(4, np.bool_)},
    )
    mask = ir.Value(name="mask", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([4]))
    model.graph.inputs.append(mask)
    next(node for node in model.graph if node.op_type == "Compress").replace_input_with(1, mask)
    return model


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of a process")
def test_the_expected_peak_is_near_the_real_one(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from qconvert import pipeline
from qconvert.listener import Listener

class Notes(Listener):
    def note(self, text):
        if text.startswith("memory"):
            print(text.split()[5])

pipeline.calibrate(Path({str(MODEL)!r}), Path({str(DIGITS)!r}), output=Path({str(tmp_path)!r}) / "m.calib",
                   listener=Notes())
status = Path("/proc/self/status").read_text().split()
print(int(status[status.index("VmHWM:") + 1]) * 1024 // 1000000)
"""
    subprocess.run([sys.executable, "-c", "import qconvert.kernels"], check=True)  # compiling would count
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    expected, real = map(int, done.stdout.split())
    assert 0.85 * real < expected < 1.4 * real


def test_what_is_held_now_is_told() -> None:
    before = resident()
    block = np.ones(8 * MB)
    assert resident() > before + 50 * MB
    del block


def test_prepared_models_know_most_of_their_shapes() -> None:
    """So that asking the model is the exception."""
    model = load_model(MODEL)
    (port,), _ = ports(model)
    feeds = {port.name: np.zeros([dim if isinstance(dim, int) else 1 for dim in port.shape], np.float32)}
    prepare(model, [feeds], original=MODEL)
    values = [value for node in model.graph for value in node.outputs]
    assert all(value.shape is not None for value in values)
