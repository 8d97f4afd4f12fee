"""Statistics of a running model, against plain onnxruntime and numpy."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.capture import Captured, capture
from qconvert.errors import CalibrationError, CorruptSampleError, DataError, ModelError, ProviderError
from qconvert.graph import serialize
from qconvert.histogram import TensorStats
from qconvert.samples import SampleSet
from qconvert.session import open_session, run
from tests.tiny import Array, build, chosen, normal, npy_samples, png_samples

SHAPE = ("n", 3, 8, 8)
NAMES = ["x", "conv", "relu", "again", "y"]


def residual() -> ir.Model:
    """Conv, Relu, Conv, Add; values inside have no type or shape."""
    padded = {"pads": [1, 1, 1, 1]}
    return build(
        {"x": SHAPE},
        [
            ("Conv", ["x", "w1", "b1"], ["conv"], padded),
            ("Relu", ["conv"], ["relu"], {}),
            ("Conv", ["relu", "w2"], ["again"], padded),
            ("Add", ["again", "relu"], ["y"], {}),
        ],
        ["y"],
        {"w1": normal(4, 3, 3, 3), "b1": normal(4, seed=1), "w2": normal(4, 4, 3, 3, seed=2)},
    )


def inputs(count: int) -> list[Array]:
    """Of different sizes, so that the order in which grids grow differs with the order of the samples."""
    return [normal(1, 3, 8, 8, seed=k) * 3.0 ** (k % 5 - 2) for k in range(count)]


def merged(*parts: Captured) -> dict[str, TensorStats]:
    return {name: sum((part.stats[name] for part in parts), TensorStats()) for name in parts[0].stats}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> SampleSet:
    return npy_samples(tmp_path_factory.mktemp("samples") / "npy", inputs(9), SHAPE)


# --- what is found ---


def test_statistics_equal_plain_onnxruntime(samples: SampleSet) -> None:
    captured = capture(residual(), NAMES, samples, threads=1)
    exposed = residual()
    exposed.graph.outputs.extend(
        value for node in exposed.graph for value in node.outputs if value.name in {"conv", "relu", "again"}
    )
    session = open_session(exposed, threads=1)
    expected = {name: TensorStats() for name in NAMES}
    for x in inputs(9):
        for name, array in {"x": x, **dict(zip(NAMES[1:], run(session, {"x": x}, NAMES[1:]), strict=True))}.items():
            expected[name] += TensorStats.of(array)
    assert dict(captured.stats) == expected
    assert list(captured.stats) == NAMES
    assert (captured.samples, captured.skipped) == (9, ())


def test_statistics_equal_plain_numpy(tmp_path: Path) -> None:
    weight = normal(4, 3)
    model = build(
        {"x": ("n", 4)}, [("MatMul", ["x", "w"], ["m"], {}), ("Relu", ["m"], ["y"], {})], ["y"], {"w": weight}
    )
    arrays = [normal(1, 4, seed=k) for k in range(20)]
    stats = capture(model, ["m", "y"], npy_samples(tmp_path / "s", arrays, ("n", 4))).stats
    products = [x @ weight for x in arrays]
    assert stats["m"].low == pytest.approx(min(float(p.min()) for p in products), rel=1e-6)
    assert stats["m"].mean_high == pytest.approx(np.mean([p.max() for p in products]), rel=1e-6)
    assert (stats["m"].count, stats["y"].count) == (60, 60)
    assert stats["y"].histogram.zeros == sum(int((p <= 0).sum()) for p in products)


def test_the_model_is_left_as_it_was(samples: SampleSet) -> None:
    model = residual()
    before = serialize(model)
    outputs = list(model.graph.outputs)
    capture(model, NAMES, samples)
    assert list(model.graph.outputs) == outputs
    assert serialize(model) == before
    with pytest.raises(ModelError):
        capture(model, NAMES, dataclasses.replace(samples, source=dataclasses.replace(samples.source, read=_wrong)))
    assert serialize(model) == before


def _wrong(items: Sequence[int]) -> dict[str, Array]:
    return {"x": np.zeros((len(items), 7), np.float32)}


@pytest.mark.parametrize("threads", [1, 3])
def test_shapes_that_depend_on_the_data(tmp_path: Path, threads: int) -> None:
    """As many outputs as the sample has positive values: larger, smaller and none at all, for inputs of one shape."""
    model = build(
        {"x": ("n", 8)},
        [
            ("Greater", ["x", "zero"], ["positive"], {}),
            ("Compress", ["x", "flags"], ["same"], {"axis": 1}),
            ("NonZero", ["positive"], ["places"], {}),
            ("Transpose", ["places"], ["rows"], {}),
            ("GatherND", ["x", "rows"], ["chosen"], {}),
            ("Neg", ["chosen"], ["negated"], {}),
            ("ReduceSum", ["negated"], ["total"], {}),
            ("Add", ["total", "same"], ["y"], {}),
        ],
        ["y"],
        {"zero": np.array(0, np.float32), "flags": np.ones(8, np.bool_)},
    )
    counts = [3, 8, 1, 0, 5, 5, 2, 0, 0, 8]
    arrays = [np.where(np.arange(8) < k, normal(1, 8, seed=k) ** 2 + 1, -1).astype(np.float32) for k in counts]
    stats = capture(model, ["x", "negated", "y"], npy_samples(tmp_path / "s", arrays, ("n", 8)), threads=threads).stats
    assert stats["negated"] == sum((TensorStats.of(-x[x > 0]) for x in arrays), TensorStats())
    assert stats["y"].samples == len(counts)


@pytest.mark.parametrize("threads", [1, 2])
def test_samples_of_different_shapes(tmp_path: Path, threads: int) -> None:
    model = build({"x": ("n", "k")}, [("Neg", ["x"], ["h"], {}), ("Exp", ["h"], ["y"], {})], ["y"])
    arrays = [normal(1, width, seed=width) for width in (5, 5, 3, 9, 1, 3, 5)]
    samples = npy_samples(tmp_path / "s", arrays, ("n", "k"))
    stats = capture(model, ["x", "h"], samples, threads=threads).stats
    assert stats["x"] == sum(map(TensorStats.of, arrays), TensorStats())
    assert stats["h"] == sum((TensorStats.of(-x) for x in arrays), TensorStats())


def test_values_of_rank_0_and_double_width(tmp_path: Path) -> None:
    model = build(
        {"x": ("n", 4)},
        [("ReduceMax", ["x"], ["m"], {"keepdims": 0}), ("Cast", ["m"], ["d"], {"to": 11}), ("Neg", ["d"], ["y"], {})],
        ["y"],
        types={"y": ir.DataType.DOUBLE},
    )
    arrays = [normal(1, 4, seed=k) for k in range(5)]
    stats = capture(model, ["m", "d"], npy_samples(tmp_path / "s", arrays, ("n", 4))).stats
    assert stats["m"] == stats["d"] == sum((TensorStats.of(x.max()) for x in arrays), TensorStats())


# --- laws ---


@pytest.mark.parametrize("threads", [0, 2, 4, 20])
def test_threads_do_not_matter(samples: SampleSet, threads: int) -> None:
    assert capture(residual(), NAMES, samples, threads=threads) == capture(residual(), NAMES, samples, threads=1)


@pytest.mark.parametrize("seed", range(3))
def test_order_does_not_matter(samples: SampleSet, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(9).tolist()
    whole = capture(residual(), NAMES, samples)
    assert capture(residual(), NAMES, chosen(samples, order), threads=2).stats == whole.stats


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_shards_add_up_to_the_whole(samples: SampleSet, parts: int) -> None:
    shards = [capture(residual(), NAMES, chosen(samples, range(k, 9, parts))) for k in range(parts)]
    assert merged(*shards) == dict(capture(residual(), NAMES, samples).stats)
    assert sum(shard.samples for shard in shards) == 9


# --- NaN and Inf ---


def _log(samples_of: list[Array], folder: Path, names: list[str], then: str = "Relu") -> Captured:
    """``y = then(log(x))``, which is NaN below 0 and -Inf at 0."""
    model = build(
        {"x": ("n", 4)},
        [("Log", ["x"], ["log"], {}), (then, ["log"], ["out"], {}), ("Neg", ["out"], ["y"], {})],
        ["y"],
        {},
    )
    return capture(model, names, npy_samples(folder / "log", samples_of, ("n", 4)))


def test_nan_inside_the_model_names_value_and_sample(tmp_path: Path) -> None:
    good, bad = np.ones((1, 4), np.float32), np.array([[1, -1, 2, -3]], np.float32)
    with pytest.raises(CalibrationError) as caught:
        _log([good, good, bad, good], tmp_path, ["log"])
    assert "'log' holds 2 NaN of 4 values" in str(caught.value)
    assert "'002.npy'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "--exclude" in caught.value.hint


def test_nan_at_an_output_nobody_asked_for_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"'000\.npy': value 'y' holds 1 NaN of 4"):
        _log([np.array([[1, -1, 1, 1]], np.float32)], tmp_path, ["x"], then="Identity")


def test_inf_without_a_softmax_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="value 'log' holds 1 Inf of 4"):
        _log([np.array([[1, 0, 1, 1]], np.float32)], tmp_path, ["log"])
    with pytest.raises(CalibrationError, match="value 'y' holds 1 Inf of 4"):
        _log([np.array([[1, 0, 1, 1]], np.float32)], tmp_path, ["x"], then="Identity")


def test_nan_in_a_sample_is_named(tmp_path: Path) -> None:
    samples = npy_samples(tmp_path / "s", [np.full((1, 3, 8, 8), np.nan, np.float32)], SHAPE)
    with pytest.raises(DataError, match=r"000\.npy: 'x': 192 of 192 values are NaN"):
        capture(residual(), NAMES, samples)


def _attention(mask: float) -> ir.Model:
    """Softmax of scores to which a mask is added."""
    return build(
        {"x": ("n", 4)},
        [
            ("Add", ["x", "mask"], ["scores"], {}),
            ("Reshape", ["scores", "shape"], ["moved"], {}),
            ("Softmax", ["moved"], ["weights"], {"axis": -1}),
            ("MatMul", ["weights", "v"], ["y"], {}),
        ],
        ["y"],
        {"mask": np.array([0, 0, 0, mask], np.float32), "shape": np.array([-1, 4]), "v": normal(4, 2)},
    )


def test_minus_inf_of_an_attention_mask_is_tolerated(tmp_path: Path) -> None:
    samples = npy_samples(tmp_path / "s", [normal(1, 4, seed=k) for k in range(3)], ("n", 4))
    stats = capture(_attention(-math.inf), ["scores", "moved", "weights", "y"], samples).stats
    for name in ("scores", "moved"):
        assert (stats[name].negative_inf, stats[name].count) == (3, 9)
        assert math.isfinite(stats[name].low)
    assert stats["weights"].finite


def test_plus_inf_is_no_mask(tmp_path: Path) -> None:
    samples = npy_samples(tmp_path / "s", [normal(1, 4)], ("n", 4))
    with pytest.raises(CalibrationError, match="value 'scores' holds 1 Inf of 4"):
        capture(_attention(math.inf), ["scores"], samples)


def test_nan_beside_a_mask_is_an_error(tmp_path: Path) -> None:
    model = build(
        {"x": ("n", 4)},
        [
            ("Log", ["x"], ["log"], {}),
            ("Softmax", ["log"], ["weights"], {}),
            ("MatMul", ["weights", "v"], ["product"], {}),
            ("IsNaN", ["product"], ["y"], {}),
        ],
        ["y"],
        {"v": normal(4, 2)},
        types={"y": ir.DataType.BOOL},
    )
    samples = npy_samples(tmp_path / "s", [np.array([[1, 0, -1, 1]], np.float32)], ("n", 4))
    with pytest.raises(CalibrationError, match="value 'log' holds 1 NaN of 4"):
        capture(model, ["log"], samples)


# --- samples that cannot be read ---


def test_corrupt_samples_are_skipped_and_named(tmp_path: Path) -> None:
    samples = png_samples(tmp_path / "png", 6, SHAPE, broken=(1, 4))
    seen: list[int] = []
    captured = capture(residual(), NAMES, samples, threads=2, progress=seen.append)
    assert captured.samples == 4
    assert [name for name, _ in captured.skipped] == ["001.png", "004.png"]
    assert all(reason.startswith(name) for name, reason in captured.skipped)
    assert captured.stats == capture(residual(), NAMES, chosen(samples, (0, 2, 3, 5))).stats
    assert seen == [1, 2, 3, 4, 5, 6], "progress reaches the total although samples were skipped"


def test_strict_refuses_corrupt_samples(tmp_path: Path) -> None:
    samples = png_samples(tmp_path / "png", 3, SHAPE, broken=(1,))
    with pytest.raises(CorruptSampleError, match=r"001\.png"):
        capture(residual(), NAMES, samples, strict=True)


def test_nothing_but_corrupt_samples_is_an_error(tmp_path: Path) -> None:
    samples = png_samples(tmp_path / "png", 3, SHAPE, broken=(0, 1, 2))
    with pytest.raises(DataError, match=r"none of the 3 samples can be read; the first: 000\.png"):
        capture(residual(), NAMES, samples, threads=2)


def test_samples_that_do_not_fit_the_model(samples: SampleSet) -> None:
    wrong = dataclasses.replace(samples, source=dataclasses.replace(samples.source, read=_wrong))
    with pytest.raises(ModelError, match=r"x \[1, 7\]"):
        capture(residual(), NAMES, wrong)


def test_unknown_provider(samples: SampleSet) -> None:
    with pytest.raises(ProviderError, match="abacus"):
        capture(residual(), NAMES, samples, provider="abacus")


# --- progress and interruption ---


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_counts_up_to_the_total(samples: SampleSet, threads: int) -> None:
    seen: list[int] = []
    capture(residual(), NAMES, samples, threads=threads, progress=seen.append)
    assert seen == list(range(1, 10))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interruption_stops_the_work_and_comes_through(samples: SampleSet, threads: int) -> None:
    many = chosen(samples, [0] * 5000)
    seen: list[int] = []

    def interrupt(done: int) -> None:
        seen.append(done)
        if done == 5:
            raise KeyboardInterrupt

    before, start = threading.active_count(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        capture(residual(), NAMES, many, threads=threads, progress=interrupt)
    assert time.monotonic() - start < 10
    assert len(seen) < 2500
    assert threading.active_count() == before


def test_an_error_stops_the_other_threads(samples: SampleSet) -> None:
    many = chosen(samples, [0] * 5000)
    read = many.source.read
    calls: list[int] = []

    def breaks(items: Sequence[int]) -> dict[str, Array]:
        calls.append(1)
        return _wrong(items) if len(calls) == 10 else read(items)

    with pytest.raises(ModelError, match=r"x \[1, 7\]"):
        capture(
            residual(),
            NAMES,
            dataclasses.replace(many, source=dataclasses.replace(many.source, read=breaks)),
            threads=2,
        )
    assert len(calls) < 2500


def test_a_signal_in_the_main_thread_stops_the_work(samples: SampleSet) -> None:
    many = chosen(samples, [0] * 100_000)
    seen: list[int] = []

    def progress(done: int) -> None:
        seen.append(done)
        if done == 5:
            os.kill(os.getpid(), signal.SIGINT)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        capture(residual(), NAMES, many, threads=2, progress=progress)
    assert time.monotonic() - start < 10
    assert len(seen) < 90_000
