"""Comparisons of models: every number against a plain reference, every reason against a real graph."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qconvert.comparison import Evaluation, compare_models, compare_outputs, file_size
from qconvert.errors import CorruptSampleError, DataError, ModelError
from qconvert.kernel_census import Kernel, census
from qconvert.samples import SampleSet, open_samples
from qconvert.scores import Fidelity
from qconvert.session import open_session, run
from tests.tiny import Array, Spec, Step, build, chosen, normal, npy_samples, png_samples, saved, specs

CLASSES = 7
ROW: Spec = ("n", 4)


def linear(
    path: Path, weight: Array, *, shape: Spec = ROW, then: Sequence[Step] = (), outputs: Sequence[str] = ("m",)
) -> Path:
    """``m = x @ weight``, and what follows."""
    return saved(build({"x": shape}, [("MatMul", ["x", "w"], ["m"], {}), *then], outputs, {"w": weight}), path)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    weight = normal(4, CLASSES)
    noise = 0.3 * normal(4, CLASSES, seed=9)
    return linear(tmp_path / "a.onnx", weight), linear(tmp_path / "b.onnx", weight + noise)


def rows(count: int, *shape: int) -> list[Array]:
    return [normal(*(shape or (1, 4)), seed=100 + k) for k in range(count)]


def outputs(path: Path, arrays: Sequence[Array], index: int = 0) -> list[npt.NDArray[np.float64]]:
    session = open_session(path, threads=1)
    return [run(session, {"x": x})[index].astype(np.float64) for x in arrays]


def compare(reference: Path, candidate: Path, samples: SampleSet, *, threads: int = 1) -> Evaluation:
    return compare_models(reference, candidate, samples, threads=threads, latency_runs=0)


def plain(name: str, before: Sequence[Array], after: Sequence[Array]) -> Fidelity:
    """Every measure as a loop over numbers."""
    signal = noise = cosines = 0.0
    agree = total = 0
    for a, b in zip(before, after, strict=True):
        dot = aa = bb = 0.0
        for p, q in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            dot, aa, bb = dot + p * q, aa + p * p, bb + q * q
            noise += (p - q) ** 2
        signal += aa
        cosines += dot / math.sqrt(aa * bb)
        for p, q in zip(a.reshape(-1, a.shape[-1]).tolist(), b.reshape(-1, b.shape[-1]).tolist(), strict=True):
            total += 1
            agree += p.index(max(p)) == q.index(max(q))
    sqnr = 10 * math.log10(signal / noise)
    return Fidelity(name, sqnr, cosines / len(before), 100 * agree / total, total, len(before))


def close(found: Fidelity, expected: Fidelity) -> bool:
    assert found.sqnr_db == pytest.approx(expected.sqnr_db, abs=1e-6)
    assert found.cosine == pytest.approx(expected.cosine, abs=1e-9)
    return replace(found, sqnr_db=0, cosine=0) == replace(expected, sqnr_db=0, cosine=0)


def tops(scores: Sequence[Array], labels: Sequence[int]) -> tuple[float, float]:
    """Percent top-1 and top-5, one row at a time."""
    ranked = [np.argsort(-row, kind="stable").tolist() for one in scores for row in one.reshape(-1, one.shape[-1])]
    top1 = sum(order[0] == label for order, label in zip(ranked, labels, strict=True))
    top5 = sum(label in order[:5] for order, label in zip(ranked, labels, strict=True))
    return 100 * top1 / len(ranked), 100 * top5 / len(ranked)


# --- fidelity ---


def test_fidelity_equals_the_plain_reference(pair: tuple[Path, Path], tmp_path: Path) -> None:
    arrays = [x * (k + 1) for k, x in enumerate(rows(12))]
    found = compare(*pair, npy_samples(tmp_path / "s", arrays, ROW))
    (fidelity,) = found.fidelity
    expected = plain("m", outputs(pair[0], arrays), outputs(pair[1], arrays))
    assert close(fidelity, expected)
    assert 0 < (fidelity.argmax_agreement or 0) < 100
    assert (found.samples, found.skipped) == (12, ())
    assert (found.reference.accuracy, found.candidate.accuracy) == (None, None)


def test_identical_models_are_exact(pair: tuple[Path, Path], tmp_path: Path) -> None:
    found = compare(pair[0], pair[0], npy_samples(tmp_path / "s", rows(5), ROW, labels=[0, 1, 2, 3, 4]))
    (fidelity,) = found.fidelity
    assert (fidelity.sqnr_db, fidelity.argmax_agreement, fidelity.rows) == (200, 100, 5)
    assert fidelity.cosine == pytest.approx(1)
    assert found.reference == found.candidate


@pytest.mark.parametrize("threads", [0, 2, 4])
def test_threads_do_not_matter(pair: tuple[Path, Path], tmp_path: Path, threads: int) -> None:
    arrays = [x * 10.0 ** (k % 7 - 3) for k, x in enumerate(rows(40))]
    samples = npy_samples(tmp_path / "s", arrays, ROW, labels=[k % CLASSES for k in range(40)])
    assert compare(*pair, samples, threads=threads) == compare(*pair, samples)


def test_every_float_output_is_compared(tmp_path: Path) -> None:
    steps: list[Step] = [
        ("ReduceSum", ["m", "last"], ["total"], {}),
        ("ArgMax", ["m"], ["best"], {"axis": 1}),
    ]

    def made(name: str, weight: Array) -> Path:
        model = build(
            {"x": ROW},
            [("MatMul", ["x", "w"], ["m"], {}), *steps],
            ["m", "best", "total"],
            {"w": weight, "last": np.array([1], np.int64)},
            types={"best": ir.DataType.INT64},
        )
        return saved(model, tmp_path / name)

    a, b = made("a.onnx", normal(4, 3)), made("b.onnx", normal(4, 3) * 1.1)
    arrays = rows(4)
    found = compare(a, b, npy_samples(tmp_path / "s", arrays, ROW))
    assert [one.output for one in found.fidelity] == ["m", "total"]
    assert found.fidelity[0].sqnr_db == pytest.approx(20, abs=1e-4)
    assert found.fidelity[0].argmax_agreement == 100
    assert (found.fidelity[1].argmax_agreement, found.fidelity[1].rows) == (None, 0)


def test_outputs_are_matched_by_name(tmp_path: Path) -> None:
    then: list[Step] = [("Neg", ["m"], ["n"], {})]
    a = linear(tmp_path / "a.onnx", normal(4, 3), then=then, outputs=["m", "n"])
    b = linear(tmp_path / "b.onnx", normal(4, 3), then=then, outputs=["n", "m"])
    samples = npy_samples(tmp_path / "s", rows(3), ROW)
    assert [one.sqnr_db for one in compare(a, b, samples).fidelity] == [200, 200]
    assert [one.sqnr_db for one in compare_outputs(a, b, [{"x": x} for x in rows(3)])] == [200, 200]


def test_other_names_are_matched_by_position(tmp_path: Path) -> None:
    a = linear(tmp_path / "a.onnx", normal(4, 3))
    b = linear(tmp_path / "b.onnx", normal(4, 3), then=[("Identity", ["m"], ["renamed"], {})], outputs=["renamed"])
    (fidelity,) = compare(a, b, npy_samples(tmp_path / "s", rows(3), ROW)).fidelity
    assert (fidelity.output, fidelity.sqnr_db) == ("m", 200)


def test_other_shapes_are_as_bad_as_can_be(tmp_path: Path) -> None:
    a, b = linear(tmp_path / "a.onnx", normal(4, 3)), linear(tmp_path / "b.onnx", normal(4, 2))
    (fidelity,) = compare(a, b, npy_samples(tmp_path / "s", rows(3), ROW)).fidelity
    assert (fidelity.sqnr_db, fidelity.cosine, fidelity.argmax_agreement) == (-200, 0, 0)


def test_another_number_of_outputs_is_refused(tmp_path: Path) -> None:
    a = linear(tmp_path / "a.onnx", normal(4, 3))
    b = linear(tmp_path / "b.onnx", normal(4, 3), then=[("Neg", ["m"], ["n"], {})], outputs=["m", "n"])
    with pytest.raises(ModelError, match=r"b\.onnx: has 2 outputs, the reference has 1"):
        compare(a, b, npy_samples(tmp_path / "s", rows(1), ROW))
    with pytest.raises(ModelError, match=r"b\.onnx: has 2 outputs, the reference has 1"):
        compare_outputs(a, b, [{"x": rows(1)[0]}])


def test_zero_outputs(tmp_path: Path) -> None:
    zero, one = linear(tmp_path / "a.onnx", np.zeros((4, 3), np.float32)), linear(tmp_path / "b.onnx", normal(4, 3))
    samples = npy_samples(tmp_path / "s", rows(2), ROW)
    (same,) = compare(zero, zero, samples).fidelity
    assert (same.sqnr_db, same.cosine) == (200, 1)
    (other,) = compare(zero, one, samples).fidelity
    assert (other.sqnr_db, other.cosine) == (-200, 0)


def test_outputs_that_are_not_finite_are_as_bad_as_can_be(tmp_path: Path) -> None:
    a = linear(tmp_path / "a.onnx", normal(4, 3), then=[("Identity", ["m"], ["y"], {})], outputs=["y"])
    b = linear(tmp_path / "b.onnx", normal(4, 3), then=[("Log", ["m"], ["y"], {})], outputs=["y"])
    samples = npy_samples(tmp_path / "s", rows(3), ROW)
    assert compare(a, b, samples).fidelity[0].sqnr_db == -200
    with pytest.raises(ModelError, match="output 'y' is not finite"):
        compare_outputs(a, b, [{"x": x} for x in rows(3)])
    c = linear(tmp_path / "c.onnx", normal(4, 3) * 1e38, then=[("Identity", ["m"], ["y"], {})], outputs=["y"])
    assert compare(a, c, npy_samples(tmp_path / "t", [9 * x for x in rows(3)], ROW)).fidelity[0].sqnr_db == -200


def test_compare_outputs_equals_compare_models(pair: tuple[Path, Path], tmp_path: Path) -> None:
    arrays = rows(6)
    expected = compare(*pair, npy_samples(tmp_path / "s", arrays, ROW)).fidelity
    for optimize in (True, False):
        found = compare_outputs(*pair, [{"x": x} for x in arrays], optimize=optimize)
        assert len(found) == 1
        assert close(found[0], expected[0])


# --- accuracy ---


def test_accuracy_equals_the_plain_reference(pair: tuple[Path, Path], tmp_path: Path) -> None:
    arrays = rows(30)
    labels = np.random.default_rng(0).integers(0, CLASSES, 30).tolist()
    found = compare(*pair, npy_samples(tmp_path / "s", arrays, ROW, labels=labels))
    for side, path in zip((found.reference, found.candidate), pair, strict=True):
        assert side.accuracy is not None
        assert (side.accuracy.top1, side.accuracy.top5) == pytest.approx(tops(outputs(path, arrays), labels))
        assert side.accuracy.items == 30
    assert found.reference.accuracy != found.candidate.accuracy


def test_top5_needs_more_than_five_classes(tmp_path: Path) -> None:
    path = linear(tmp_path / "a.onnx", np.eye(4, 5, dtype=np.float32))
    samples = npy_samples(
        tmp_path / "s", [np.eye(1, 4, k, dtype=np.float32) for k in range(4)], ROW, labels=[0, 1, 2, 0]
    )
    accuracy = compare(path, path, samples).reference.accuracy
    assert accuracy is not None
    assert (accuracy.top1, accuracy.top5) == (75, None)


@pytest.mark.parametrize("count", [8, 9, 10, 11])
def test_rows_that_fill_the_last_batch_are_not_counted(tmp_path: Path, count: int) -> None:
    weight, noise = normal(4, CLASSES), 0.5 * normal(4, CLASSES, seed=9)
    a, b = (linear(tmp_path / name, w, shape=(4, 4)) for name, w in (("a.onnx", weight), ("b.onnx", weight + noise)))
    items = normal(count, 4, seed=5)
    items[-1] *= 30
    labels = np.random.default_rng(1).integers(0, CLASSES, count)
    np.savez(tmp_path / "s.npz", x=items, y=labels)
    samples = open_samples(tmp_path / "s.npz", specs({"x": (4, 4)}))
    assert samples.source.batch == 4
    found = compare(a, b, samples)
    whole = [np.concatenate([items, items[-1:].repeat(-count % 4, 0)])[k : k + 4] for k in range(0, count, 4)]
    before, after = outputs(a, whole), outputs(b, whole)
    real = count - 4 * (len(whole) - 1)
    before[-1], after[-1] = before[-1][:real], after[-1][:real]
    (fidelity,) = found.fidelity
    assert close(fidelity, plain("m", before, after))
    assert fidelity.rows == count
    for side, scores in ((found.reference, before), (found.candidate, after)):
        assert side.accuracy is not None
        assert side.accuracy.items == count
        assert (side.accuracy.top1, side.accuracy.top5) == pytest.approx(tops(scores, labels.tolist()))


def test_labels_of_every_token(tmp_path: Path) -> None:
    """``[1, tokens, classes]`` against ``[tokens]``."""
    shape: Spec = (1, "t", 4)
    a = linear(tmp_path / "a.onnx", normal(4, CLASSES), shape=shape)
    arrays = [normal(1, 5, 4, seed=k) for k in range(3)]
    labels = np.random.default_rng(0).integers(0, CLASSES, (3, 5))
    np.savez(tmp_path / "s.npz", x=np.concatenate(arrays)[:, None], y=labels)
    samples = open_samples(tmp_path / "s.npz", specs({"x": shape}))
    assert samples.load(0).feeds["x"].shape == (1, 5, 4)
    accuracy = compare(a, a, samples).reference.accuracy
    assert accuracy is not None
    assert accuracy.items == 15
    assert (accuracy.top1, accuracy.top5) == pytest.approx(tops(outputs(a, arrays), labels.ravel().tolist()))


def test_models_that_give_the_class_itself(tmp_path: Path) -> None:
    model = build(
        {"x": ROW},
        [("ArgMax", ["x"], ["best"], {"axis": 1, "keepdims": 0})],
        ["best"],
        types={"best": ir.DataType.INT64},
    )
    path = saved(model, tmp_path / "a.onnx")
    samples = npy_samples(
        tmp_path / "s", [np.eye(1, 4, k, dtype=np.float32) for k in range(4)], ROW, labels=[0, 1, 3, 3]
    )
    found = compare(path, path, samples)
    assert found.fidelity == ()
    assert found.reference.accuracy is not None
    assert (found.reference.accuracy.top1, found.reference.accuracy.top5) == (75, None)


@pytest.mark.parametrize("axes", [[0, 1], [1]])
def test_outputs_that_hold_no_classes_have_no_accuracy(tmp_path: Path, axes: list[int]) -> None:
    """A number a sample, of rank 0 or 1."""
    weights: dict[str, Array] = {"w": normal(4, 3), "axes": np.array(axes, np.int64)}
    steps: list[Step] = [("MatMul", ["x", "w"], ["m"], {}), ("ReduceSum", ["m", "axes"], ["y"], {"keepdims": 0})]
    path = saved(build({"x": ROW}, steps, ["y"], weights), tmp_path / "a.onnx")
    found = compare(path, path, npy_samples(tmp_path / "s", rows(3), ROW, labels=[0, 1, 2]))
    assert found.reference.accuracy is None
    assert found.fidelity[0].argmax_agreement is None
    assert found.fidelity[0].sqnr_db == 200


# --- samples that cannot be read, progress ---


def _pooled(path: Path, seed: int) -> Path:
    model = build(
        {"x": ("n", 3, 8, 8)},
        [("Conv", ["x", "w"], ["c"], {}), ("GlobalAveragePool", ["c"], ["p"], {}), ("Flatten", ["p"], ["y"], {})],
        ["y"],
        {"w": normal(6, 3, 3, 3, seed=seed)},
    )
    return saved(model, path)


def test_corrupt_samples_are_skipped_and_named(tmp_path: Path) -> None:
    a, b = _pooled(tmp_path / "a.onnx", 0), _pooled(tmp_path / "b.onnx", 1)
    samples = png_samples(tmp_path / "png", 5, ("n", 3, 8, 8), broken=(0, 3))
    seen: list[int] = []
    found = compare_models(a, b, samples, threads=2, latency_runs=2, progress=seen.append)
    assert found.samples == 3
    assert [name for name, _ in found.skipped] == ["000.png", "003.png"]
    assert seen == [1, 2, 3, 4, 5], "progress reaches the total although samples were skipped"
    assert found.fidelity == compare(a, b, chosen(samples, (1, 2, 4))).fidelity
    with pytest.raises(CorruptSampleError, match=r"00[03]\.png"):
        compare_models(a, b, samples, latency_runs=0, strict=True)


def test_nothing_but_corrupt_samples_is_an_error(tmp_path: Path) -> None:
    a = _pooled(tmp_path / "a.onnx", 0)
    samples = png_samples(tmp_path / "png", 2, ("n", 3, 8, 8), broken=(0, 1))
    with pytest.raises(DataError, match=r"none of the 2 samples can be read; the first: 000\.png"):
        compare(a, a, samples)


def test_an_interruption_stops_the_work_and_comes_through(pair: tuple[Path, Path], tmp_path: Path) -> None:
    many = chosen(npy_samples(tmp_path / "s", rows(2), ROW), [0] * 20_000)
    seen: list[int] = []

    def interrupt(done: int) -> None:
        seen.append(done)
        if done == 5:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        compare_models(*pair, many, threads=2, latency_runs=0, progress=interrupt)
    assert time.monotonic() - start < 20
    assert len(seen) < 10_000


# --- size and latency ---


def test_sizes_include_weight_files(tmp_path: Path) -> None:
    model = build({"x": ROW}, [("MatMul", ["x", "w"], ["m"], {})], ["m"], {"w": normal(4, 1000)})
    ir.save(model, tmp_path / "a.onnx", external_data="a.data", size_threshold_bytes=0)
    path = tmp_path / "a.onnx"
    assert file_size(path) == path.stat().st_size + 16_000
    samples = npy_samples(tmp_path / "s", rows(1), ROW)
    assert compare(path, path, samples).reference.size_bytes == file_size(path)


def test_latency_counts_the_runs_that_were_asked_for(pair: tuple[Path, Path], tmp_path: Path) -> None:
    samples = npy_samples(tmp_path / "s", rows(1), ROW)
    found = compare_models(*pair, samples, threads=1, latency_runs=7)
    for side in (found.reference, found.candidate):
        assert side.latency is not None
        assert (side.latency.runs, side.latency.threads) == (7, 1)
        assert 0 < side.latency.low_ms <= side.latency.median_ms <= side.latency.high_ms < 1000
    assert compare(*pair, samples).reference.latency is None


# --- which kernels run ---

SCALES: Mapping[str, Array] = {
    "s": np.array(0.05, np.float32),
    "z": np.array(128, np.uint8),
    "ws": np.array(0.01, np.float32),
    "wz": np.array(0, np.int8),
}


def pairs_around(
    op: Step,
    *,
    data: bool = True,
    weight: bool = True,
    out: bool = True,
    between: Sequence[str] = (),
    kind: str = "int8",
) -> tuple[Kernel, ...]:
    """The census of ``q -> dq -> op(x, w) -> between -> q -> dq``; each pair can be left out."""
    _, _, _, attributes = op
    shape: Spec = ("n", 3, 8, 8) if op[0] in {"Conv", "ConvTranspose"} else ("n", 4)
    kernel = normal(3, 3, 3, 3) if len(shape) == 4 else normal(4, 3)
    stored: dict[str, npt.DTypeLike] = {"int8": np.int8, "int16": np.int16}
    weights: dict[str, Array] = {**SCALES, "w": kernel}
    weights["wz"] = np.array(0, stored[kind])
    steps: list[Step] = []
    if data:
        steps += [("QuantizeLinear", ["x", "s", "z"], ["xq"], {}), ("DequantizeLinear", ["xq", "s", "z"], ["xd"], {})]
    inputs: dict[str, Spec] = {"x": shape}
    if not weight:  # a float constant is quantized by onnxruntime itself
        inputs["w"] = weights.pop("w").shape
    else:
        weights["wq"] = np.clip(np.rint(kernel * 50), -100, 100).astype(stored[kind])
        steps.append(("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], {}))
        del weights["w"]
    steps.append((op[0], ["xd" if data else "x", "wd" if weight else "w"], ["h"], attributes))
    last = "h"
    for number, name in enumerate(between):
        steps.append((name, [last], [f"h{number}"], {}))
        last = f"h{number}"
    if out:
        steps += [("QuantizeLinear", [last, "s", "z"], ["yq"], {}), ("DequantizeLinear", ["yq", "s", "z"], ["y"], {})]
    else:
        steps.append(("Neg", [last], ["y"], {}))
    with tempfile.TemporaryDirectory() as folder:
        return census(saved(build(inputs, steps, ["y"], weights, opset=21), Path(folder) / "m.onnx"))


CONV: Step = ("Conv", [], [], {})
MATMUL: Step = ("MatMul", [], [], {})


def only(kernels: tuple[Kernel, ...]) -> Kernel:
    assert len(kernels) == 1
    return kernels[0]


def test_a_conv_between_pairs_is_an_integer_kernel() -> None:
    kernel = only(pairs_around(CONV))
    assert (kernel.op_type, kernel.integer, kernel.reason) == ("QLinearConv", True, "")


def test_a_matmul_between_pairs_is_an_integer_kernel() -> None:
    assert only(pairs_around(MATMUL)).integer
    assert only(pairs_around(MATMUL, out=False)).integer


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"data": False, "weight": False}, "neither its input nor its weight is quantized"),
        ({"data": False}, "its input is not quantized"),
        ({"weight": False}, "its weight is not quantized"),
        ({"out": False}, "its output is not quantized"),
        ({"between": ["Relu"], "out": False}, "its Relu is not absorbed"),
        ({"between": ["Sigmoid"]}, "its output is not quantized"),
        ({"kind": "int16"}, "no integer kernel for uint8 input with int16 weight"),
    ],
)
def test_reasons_of_a_float_conv(options: dict[str, object], reason: str) -> None:
    kernel = only(pairs_around(CONV, **options))  # type: ignore[arg-type] # one table for options of several types
    assert (kernel.integer, kernel.reason) == (False, reason)
    assert kernel.op_type.endswith("Conv")


def test_blocked_layouts_do_not_hide_the_name(tmp_path: Path) -> None:
    """onnxruntime renames what a float Conv in NCHWc layout gives."""
    steps: list[Step] = [("Conv", ["x", "w"], ["h"], {}), ("Relu", ["h"], ["r"], {}), ("Conv", ["r", "w"], ["y"], {})]
    model = build({"x": ("n", 16, 8, 8)}, steps, ["y"], {"w": normal(16, 16, 3, 3)})
    kernels = census(saved(model, tmp_path / "m.onnx"))
    assert [(kernel.op_type, kernel.integer) for kernel in kernels] == [("Conv", False)] * 2
    assert {kernel.operator for kernel in kernels} <= {"h", "r", "y"}
    assert {kernel.reason for kernel in kernels} == {"neither its input nor its weight is quantized"}


def test_a_transposed_conv_has_no_integer_kernel() -> None:
    kernel = only(pairs_around(("ConvTranspose", [], [], {})))
    assert (kernel.op_type, kernel.integer) == ("ConvTranspose", False)
    assert kernel.reason == "onnxruntime has no integer kernel for ConvTranspose"


def test_operators_inside_branches_say_so(tmp_path: Path) -> None:
    x, weight = (ir.Value(name=name) for name in ("x", "w"))
    x.type, x.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 4])
    weight.const_value = ir.Tensor(normal(4, 4), name="w")
    weight.type, weight.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([4, 4])
    flag = ir.Value(name="flag", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    branches = []
    for name, inputs in (("then", [x, weight]), ("else", [x])):
        made = ir.Value(name=f"{name}_y", type=ir.TensorType(ir.DataType.FLOAT))
        node = ir.node("MatMul" if name == "then" else "Neg", inputs, outputs=[made])
        branches.append(ir.Graph([], [made], nodes=[node], name=name))
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))
    choice = ir.node("If", [flag], {"then_branch": branches[0], "else_branch": branches[1]}, outputs=[y])
    graph = ir.Graph([x, flag], [y], nodes=[choice], initializers=[weight], opset_imports={"": 17})
    path = saved(ir.Model(graph, ir_version=9), tmp_path / "m.onnx")
    kernel = only(census(path))
    assert (kernel.operator, kernel.op_type, kernel.integer) == ("then_y", "MatMul", False)
    assert kernel.reason == "neither its input nor its weight is quantized"


def test_light_operators_are_not_listed(tmp_path: Path) -> None:
    path = saved(build({"x": ROW}, [("Relu", ["x"], ["r"], {}), ("Neg", ["r"], ["y"], {})], ["y"]), tmp_path / "m.onnx")
    assert census(path) == ()


def test_the_comparison_lists_kernels_of_both(pair: tuple[Path, Path], tmp_path: Path) -> None:
    found = compare(*pair, npy_samples(tmp_path / "s", rows(1), ROW))
    for side in (found.reference, found.candidate):
        assert [(kernel.op_type, kernel.integer) for kernel in side.kernels] == [("MatMul", False)]


def test_models_that_onnxruntime_refuses(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "garbage.onnx"
    path.write_bytes(b"garbage")
    samples = npy_samples(tmp_path / "s", rows(1), ROW)
    with pytest.raises(ModelError, match=r"garbage\.onnx"):
        compare(pair[0], path, samples)
    with pytest.raises(ModelError, match=r"garbage\.onnx"):
        compare(path, pair[1], samples)
    with pytest.raises(ModelError, match=r"garbage\.onnx"):
        census(path)
