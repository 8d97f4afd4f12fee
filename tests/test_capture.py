"""Statistics of a running model, against plain onnxruntime and numpy."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qconvert import capture as room
from qconvert import expose
from qconvert.capture import Captured, Way
from qconvert.channels import ChannelStats
from qconvert.errors import CalibrationError, CorruptSampleError, DataError, ModelError, ProviderError
from qconvert.graph import serialize
from qconvert.histogram import TensorStats
from qconvert.machine import cpu_flags
from qconvert.samples import SampleSet
from qconvert.session import open_session, run
from qconvert.visit import State
from tests.tiny import Array, build, chosen, normal, npy_samples, png_samples


def capture(
    model: ir.Model,
    names: Sequence[str],
    samples: SampleSet,
    *,
    groups: int = 1,
    state: State | None = None,
    **way: Any,  # noqa: ANN401 - the fields of Way
) -> Captured:
    """All names in one pass, or in several."""
    size = -(-len(names) // groups)
    split = tuple(tuple(names[k : k + size]) for k in range(0, len(names), size))
    return room.capture(model, state or State(split), samples, Way(**way))


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


def added(arrays: Iterable[npt.ArrayLike]) -> TensorStats:
    """The statistics of one value over samples in order."""
    parts = (TensorStats.of(np.asarray(array), index=index) for index, array in enumerate(arrays))
    return sum(parts, TensorStats())


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
    for index, x in enumerate(inputs(9)):
        for name, array in {"x": x, **dict(zip(NAMES[1:], run(session, {"x": x}, NAMES[1:]), strict=True))}.items():
            expected[name] += TensorStats.of(array, index=index)
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
    assert (stats["m"].values, stats["y"].values) == (60, 60)
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
    assert stats["negated"] == added(-x[x > 0] for x in arrays)
    assert stats["y"].samples == len(counts)


@pytest.mark.parametrize("threads", [1, 2])
def test_samples_of_different_shapes(tmp_path: Path, threads: int) -> None:
    model = build({"x": ("n", "k")}, [("Neg", ["x"], ["h"], {}), ("Exp", ["h"], ["y"], {})], ["y"])
    arrays = [normal(1, width, seed=width) for width in (5, 5, 3, 9, 1, 3, 5)]
    samples = npy_samples(tmp_path / "s", arrays, ("n", "k"))
    stats = capture(model, ["x", "h"], samples, threads=threads).stats
    assert stats["x"] == added(arrays)
    assert stats["h"] == added(-x for x in arrays)


def test_values_of_rank_0_and_double_width(tmp_path: Path) -> None:
    model = build(
        {"x": ("n", 4)},
        [("ReduceMax", ["x"], ["m"], {"keepdims": 0}), ("Cast", ["m"], ["d"], {"to": 11}), ("Neg", ["d"], ["y"], {})],
        ["y"],
        types={"y": ir.DataType.DOUBLE},
    )
    arrays = [normal(1, 4, seed=k) for k in range(5)]
    stats = capture(model, ["m", "d"], npy_samples(tmp_path / "s", arrays, ("n", 4))).stats
    assert stats["m"] == stats["d"] == added(x.max() for x in arrays)


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
        assert (stats[name].negative_inf, stats[name].values) == (3, 9)
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


# --- the ways to the same statistics ---


def wide() -> ir.Model:
    """Convolutions of 16 and 24 channels, one by groups: onnxruntime computes them in blocks, some of them padded."""
    padded = {"pads": [1, 1, 1, 1]}
    return build(
        {"x": SHAPE},
        [
            ("Conv", ["x", "w1", "b1"], ["first"], padded),
            ("Clip", ["first", "zero", "six"], ["clipped"], {}),
            ("Conv", ["clipped", "w2"], ["narrow"], {}),
            ("Conv", ["clipped", "w3"], ["deep"], {**padded, "group": 16}),
            ("MaxPool", ["deep"], ["pooled"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Conv", ["pooled", "w4"], ["last"], {}),
            ("Add", ["last", "pooled"], ["sum"], {}),
            ("GlobalAveragePool", ["sum"], ["y"], {}),
        ],
        ["y"],
        {
            "w1": normal(16, 3, 3, 3),
            "b1": normal(16, seed=1),
            "w2": normal(24, 16, 1, 1, seed=2),
            "w3": normal(16, 1, 3, 3, seed=3),
            "w4": normal(16, 16, 1, 1, seed=4),
            "zero": np.zeros((), np.float32),
            "six": np.full((), 6, np.float32),
        },
    )


WIDE = ["x", "clipped", "narrow", "deep", "pooled", "last", "sum", "y"]


def test_values_in_blocks_of_channels_have_the_same_statistics(
    samples: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = capture(wide(), WIDE, samples)
    moved = expose.open_exposed(wide(), WIDE[1:], provider="cpu").outputs
    monkeypatch.setattr(expose, "WIDEST_BLOCK", 1 << 30)
    plain = expose.open_exposed(wide(), WIDE[1:], provider="cpu").outputs
    assert capture(wide(), WIDE, samples).stats == blocked.stats
    assert all(name == output for name, output in plain.items())
    if cpu_flags() & {"avx2", "avx512f"}:
        assert {name for name, output in moved.items() if name != output} >= {"clipped", "deep", "last"}
    assert moved["narrow"] == "narrow"


def test_a_machine_that_does_not_read_what_it_wrote_is_only_slower(
    samples: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = capture(wide(), WIDE, samples)

    def refuses(model: ir.Model, *, optimize: bool = True, **options: Any) -> ort.InferenceSession:  # noqa: ANN401
        if not optimize:
            raise ModelError("unknown domain")
        return open_session(model, **options)

    monkeypatch.setattr(expose, "open_session", refuses)
    assert capture(wide(), WIDE, samples).stats == expected.stats


@pytest.mark.parametrize("groups", [2, 3, 8])
def test_several_passes_find_the_same(samples: SampleSet, groups: int) -> None:
    seen: list[int] = []
    assert capture(wide(), WIDE, samples, groups=groups, progress=seen.append) == capture(wide(), WIDE, samples)
    assert seen == list(range(1, 9 * groups + 1))


@pytest.mark.parametrize("detail", ["exact", "sampled", "range"])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_run_goes_on_from_everything_it_kept(
    samples: SampleSet, monkeypatch: pytest.MonkeyPatch, detail: str, groups: int
) -> None:
    monkeypatch.setattr(room, "CHECKPOINT_SECONDS", 0.0)
    kept: list[State] = []
    whole = capture(residual(), NAMES, samples, groups=groups, detail=detail, threads=2, keep=kept.append)
    assert len({(state.passes, state.done) for state in kept}) > 3 * groups
    for state in kept:
        assert all(len(stats.ranges.index) <= 9 for stats in state.stats.values())
        assert capture(residual(), NAMES, samples, state=state, detail=detail) == whole
    again = chosen(samples, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert capture(residual(), NAMES, again, groups=groups, detail=detail, ready=lambda: {3: samples.load(3)}) == whole


def test_samples_that_were_read_already_are_not_read_again(samples: SampleSet) -> None:
    read: list[int] = []

    def counts(items: Sequence[int]) -> dict[str, Array]:
        read.extend(items)
        return samples.source.read(items)

    counted = dataclasses.replace(samples, source=dataclasses.replace(samples.source, read=counts))
    capture(residual(), NAMES, counted, ready=lambda: {0: samples.load(0), 2: samples.load(2)})
    assert sorted(read) == [1, 3, 4, 5, 6, 7, 8]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises, even where it is ignored because the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_keeps_what_was_done(samples: SampleSet) -> None:
    many = chosen(samples, list(range(9)) * 1000)
    kept: list[State] = []

    def interrupt(done: int) -> None:
        if done == 50:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        capture(residual(), NAMES, many, threads=2, progress=interrupt, keep=kept.append)
    (state,) = kept
    assert 50 <= len(state.done) < 9000
    assert capture(residual(), NAMES, many, state=state) == capture(residual(), NAMES, many)


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


@pytest.mark.usefixtures("interruptible")
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


# --- statistics of channels ---


@pytest.mark.parametrize("groups", [1, 3])
def test_channels_have_the_statistics_of_their_values(samples: SampleSet, groups: int) -> None:
    axes = {"x": 1, "clipped": 1, "narrow": 1, "deep": -3}
    found = capture(wide(), WIDE, samples, groups=groups, channels=axes)
    assert list(found.channels) == ["x", "clipped", "narrow", "deep"]
    session = open_session(_with_outputs(wide(), ["clipped", "narrow", "deep"]), threads=1)
    names = ["clipped", "narrow", "deep"]
    expected = {name: ChannelStats() for name in axes}
    for x in inputs(9):
        for name, array in {"x": x, **dict(zip(names, run(session, {"x": x}, names), strict=True))}.items():
            expected[name] += ChannelStats.of(array, axis=1)
    assert dict(found.channels) == expected
    assert found.stats == capture(wide(), WIDE, samples).stats


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    model.graph.outputs.extend(value for node in model.graph for value in node.outputs if value.name in names)
    return model


def test_channels_survive_a_stop(samples: SampleSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHECKPOINT_SECONDS", 0.0)
    kept: list[State] = []
    whole = capture(residual(), NAMES, samples, channels={"conv": 1}, keep=kept.append)
    for state in kept:
        assert capture(residual(), NAMES, samples, channels={"conv": 1}, state=state) == whole
