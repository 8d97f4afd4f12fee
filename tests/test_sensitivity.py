"""Sensitivity on real models: the fast engine gives what whole models give, and a planted fault is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest

import qconvert
from qconvert.calibration import Calibration
from qconvert.errors import CalibrationError, DataError, PlanError, TargetError
from qconvert.graph import load_model, operators, serialize
from qconvert.metrics import sqnr_db
from qconvert.pipeline import Question
from qconvert.plan import Plan, make_plan
from qconvert.policy import Policy, load, loads
from qconvert.prepare import prepare
from qconvert.preprocess import preset
from qconvert.rewrite.qdq import to_qdq
from qconvert.samples import Sample
from qconvert.sensing import engine
from qconvert.sensing.cut import Origin, base_of, keys, tail_of
from qconvert.sensing.engine import Lab, Variant, Watch, extend, whole
from qconvert.sensing.measures import METRICS, sqnr
from qconvert.sensing.subjects import all_but, only, subjects
from qconvert.sensing.suggest import Bound
from qconvert.sensing.types import Granularity, Mode, Sensitivity
from qconvert.session import Feeds, open_session, run

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
MODEL, DIGITS = SAMPLES / "digits_cnn" / "model.onnx", SAMPLES / "digits"
CENTERED = preset("centered")
PER_TENSOR = Policy().override(scheme="per-tensor")
FRAGILE = "block2/project/norm/BatchNormalization_output_0"
"""The operator in which the fault is planted: nothing clamps its output."""


def plant(path: Path) -> Path:
    """The sample model with one output channel of a Conv a thousand times as large, which a Div undoes behind it."""
    model = load_model(MODEL)
    op = next(op for op in operators(model) if op.name == FRAGILE)
    graph, output = model.graph, op.node.outputs[0]
    for index in (1, 2):  # scale and bias of the normalization
        value = op.node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[0] *= 1000
        value.const_value = ir.Tensor(array, name=value.name)
        channels = len(array)
    factor = np.ones((1, channels, 1, 1), np.float32)
    factor[0, 0] = 1000
    divisor = ir.Value(
        name="undo", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(factor.shape), const_value=ir.tensor(factor)
    )
    graph.register_initializer(divisor)
    node = ir.node("Div", [output, divisor])
    undone = node.outputs[0]
    undone.name, undone.type, undone.shape = "undone", output.type, output.shape
    output.replace_all_uses_with(undone)
    node.replace_input_with(0, output)
    graph.insert_after(op.node, node)
    path.write_bytes(serialize(model))
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted") / "planted.onnx")


@pytest.fixture(scope="module")
def planted_calibration(planted: Path) -> Calibration:
    return qconvert.calibrate(planted, DIGITS / "calibration", preprocess=CENTERED)


def ask(
    model: Path, calibrated: Calibration, question: Question, *, limit: int = 40, policy: Policy = PER_TENSOR
) -> Sensitivity:
    return qconvert.sensitivity(
        model,
        DIGITS / "evaluation",
        question=question,
        calibrated=calibrated,
        policy=policy,
        preprocess=CENTERED,
        limit=limit,
    )


@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_planted_fault_is_named_first(planted: Path, planted_calibration: Calibration, mode: Mode) -> None:
    found = ask(planted, planted_calibration, Question(mode=mode))
    assert found.rows[0].subject == FRAGILE
    assert found.rows[0].distinguishable
    assert found.rows[0].harmful


@pytest.mark.parametrize("bound", [Bound(min_sqnr=20), Bound(max_drop=1)])
def test_a_planted_fault_alone_is_excluded(
    planted: Path, planted_calibration: Calibration, bound: Bound, tmp_path: Path
) -> None:
    found = ask(planted, planted_calibration, Question(bound=bound), limit=100)
    suggestion = found.suggestion
    assert suggestion is not None
    assert suggestion.met
    assert suggestion.operators == (FRAGILE,)
    written = tmp_path / "policy.yaml"
    written.write_text(suggestion.policy)
    result = qconvert.quantize(planted, planted_calibration, output=tmp_path / "q.onnx", policy=load(written))
    assert [op.operator for op in result.plan.floats if op.chosen] == [FRAGILE]
    assert result.proof.fidelity[0].sqnr_db > 20


# the engine


@pytest.fixture(scope="module")
def digits() -> tuple[ir.Model, Plan, list[Feeds], Calibration]:
    """The prepared sample model, its plan, and what it is run on."""
    calibrated = qconvert.calibrate(MODEL, DIGITS / "calibration", preprocess=CENTERED)
    graph = load_model(MODEL)
    prepare(graph, calibrated.probes[:2], original=MODEL)
    plan = make_plan(graph, Policy(), calibrated.stats)
    return graph, plan, list(calibrated.probes[:5]), calibrated


def lab_of(graph: ir.Model, probes: Sequence[Feeds], *, room: int = 1 << 30, workers: int = 2) -> Lab:
    samples = [Sample(str(index), dict(feeds), None) for index, feeds in enumerate(probes)]
    outputs = tuple(value.name or "" for value in graph.graph.outputs)
    return Lab(graph, Origin.of(graph), outputs, samples.__getitem__, len(samples), 1, workers, room)


def naive(graph: ir.Model, plan: Plan, probes: Sequence[Feeds]) -> float:
    """SQNR of a plan's whole model, opened and run as it is."""
    before, after = open_session(graph, threads=1), open_session(to_qdq(graph.clone(), plan), threads=1)
    rows = [[run(session, feeds)[0] for feeds in probes] for session in (before, after)]
    return sqnr_db(np.concatenate(rows[0]), np.concatenate(rows[1]))


@pytest.mark.parametrize("granularity", get_args(Granularity))
@pytest.mark.parametrize("mode", ["only", "all-but"])
def test_the_engine_finds_what_whole_models_do(
    digits: tuple[ir.Model, Plan, list[Feeds], Calibration], mode: Mode, granularity: Granularity
) -> None:
    graph, plan, probes, _ = digits
    lab = lab_of(graph, probes)
    chosen = subjects(graph, plan, granularity)[:: 4 if granularity == "tensor" else 2]
    plans = {one.name: (only if mode == "only" else all_but)(plan, one) for one in chosen}
    tables: dict[str, np.ndarray] = {}
    base = lab.base(None if mode == "only" else plan)
    assert extend(lab, base, [Variant(name, one) for name, one in plans.items()], tables, len(probes))
    for name, one in plans.items():
        assert float(sqnr(tables[name].sum(0))) == pytest.approx(naive(graph, one, probes), abs=0.05), name


@pytest.mark.parametrize("mode", ["only", "all-but"])
def test_neither_memory_nor_workers_nor_rounds_change_what_is_found(
    digits: tuple[ir.Model, Plan, list[Feeds], Calibration], mode: Mode
) -> None:
    graph, plan, probes, _ = digits
    chosen = subjects(graph, plan, "operator")[::3]
    variants = [Variant(one.name, (only if mode == "only" else all_but)(plan, one)) for one in chosen]
    found = []
    for room, workers, steps in ((1 << 30, 2, (5,)), (1, 1, (5,)), (100_000, 3, (2, 5))):
        lab = lab_of(graph, probes, room=room, workers=workers)
        base = lab.base(None if mode == "only" else plan)
        tables: dict[str, np.ndarray] = {}
        for upto in steps:
            assert extend(lab, base, variants, tables, upto)
        found.append(tables)
    for other in found[1:]:
        for name, rows in found[0].items():
            np.testing.assert_allclose(rows, other[name], rtol=1e-9)


def test_a_tail_holds_nothing_that_the_base_computes(
    digits: tuple[ir.Model, Plan, list[Feeds], Calibration],
) -> None:
    graph, plan, _, _ = digits
    lab = lab_of(graph, [])
    base = lab.base(None)
    lengths = []
    for one in subjects(graph, plan, "operator"):
        tail = tail_of(base, lab.written(only(plan, one)), lab.outputs)
        assert tail.model is not None
        shared = set(base.values) & set(keys(tail.model, lab.origin).values())
        inputs = {keys(tail.model, lab.origin)[value] for value in tail.model.graph.inputs}
        assert shared <= inputs
        lengths.append(len(list(operators(tail.model))))
    assert lengths[-1] < lengths[0] / 5


def test_what_does_not_differ_is_not_run(digits: tuple[ir.Model, Plan, list[Feeds], Calibration]) -> None:
    graph, plan, probes, _ = digits
    lab = lab_of(graph, probes)
    base = lab.base(plan)
    tail = tail_of(base, lab.written(plan), lab.outputs)
    assert tail.model is None
    tables: dict[str, np.ndarray] = {}
    extend(lab, base, [whole(plan)], tables, len(probes))
    assert float(sqnr(tables[""].sum(0))) == pytest.approx(naive(graph, plan, probes), abs=0.05)


def test_integer_kernels_are_left_alone(digits: tuple[ir.Model, Plan, list[Feeds], Calibration]) -> None:
    """Values between DequantizeLinear and QuantizeLinear are never asked for."""
    graph, plan, _, _ = digits
    base = base_of(to_qdq(graph.clone(), plan), Origin.of(graph))
    makers = {value.name: op.op_type for op in operators(base.model) for value in op.node.outputs}
    outputs = {value.name for value in base.model.graph.outputs}
    inner = {makers.get(name, "input") for name in base.values.values() if name not in outputs}
    assert inner == {"input", "QuantizeLinear"}
    assert {base.widths[name] for name in base.values.values() if makers.get(name) == "QuantizeLinear"} == {1}


def test_a_deadline_ends_runs_and_keeps_whole_rows(digits: tuple[ir.Model, Plan, list[Feeds], Calibration]) -> None:
    graph, plan, probes, _ = digits
    lab = lab_of(graph, probes)
    variants = [Variant(one.name, only(plan, one)) for one in subjects(graph, plan, "operator")]
    tables: dict[str, np.ndarray] = {}
    assert not extend(lab, lab.base(None), variants, tables, 5, watch=Watch(deadline=0.0))
    assert {len(rows) for rows in tables.values()} == {0}


# the question


def test_only_and_all_but_share_out_the_whole_plan(digits: tuple[ir.Model, Plan, list[Feeds], Calibration]) -> None:
    graph, plan, _, _ = digits

    def places(one: Plan) -> set[tuple[str, str, object]]:
        return {(entry.role, entry.tensor, site) for entry in one.entries for site in entry.sites}

    union: set[tuple[str, str, object]] = set()
    for one in subjects(graph, plan, "operator"):
        alone, rest = places(only(plan, one)), places(all_but(plan, one))
        assert alone
        assert not alone & rest
        assert alone | rest == places(plan)
        union |= alone
    assert union == places(plan)


def test_the_same_seed_gives_the_same_result(planted: Path, planted_calibration: Calibration) -> None:
    first, second = (ask(planted, planted_calibration, Question(), limit=20) for _ in range(2))
    assert first.rows == second.rows
    assert first.quantized == second.quantized


def test_rounds_find_what_all_samples_do(planted: Path, planted_calibration: Calibration) -> None:
    rounds = ask(planted, planted_calibration, Question(), limit=64)
    whole_run = ask(planted, planted_calibration, Question(exhaustive=True), limit=64)
    assert sum(row.samples for row in rounds.rows) < sum(row.samples for row in whole_run.rows)
    assert [row.subject for row in rounds.rows[:5]] == [row.subject for row in whole_run.rows[:5]]
    assert {row.samples for row in whole_run.rows} == {64}
    assert any("--exhaustive" in note for note in rounds.notes)
    assert not whole_run.notes


def test_a_time_budget_says_what_is_open(planted: Path, planted_calibration: Calibration) -> None:
    found = ask(planted, planted_calibration, Question(time_budget=1e-3), limit=32)
    assert found.unsettled
    assert any("time budget" in note for note in found.notes)


def test_finished_experiments_are_taken_up(
    planted: Path, planted_calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "run.part"

    def go(seed: int = 0) -> Sensitivity:
        return qconvert.sensitivity(
            planted,
            DIGITS / "evaluation",
            calibrated=planted_calibration,
            policy=PER_TENSOR,
            preprocess=CENTERED,
            limit=24,
            seed=seed,
            journal=part,
        )

    original = engine._run_tails
    calls: list[int] = []

    def interrupted(*args: object, **kwargs: object) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "_run_tails", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert part.is_file()
    with pytest.raises(DataError, match="another model"):
        go(seed=1)
    monkeypatch.setattr(engine, "_run_tails", original)
    resumed = go()
    assert not part.exists()
    fresh = go()
    assert resumed.rows == fresh.rows


def test_memory_is_said_and_bounded(planted: Path, planted_calibration: Calibration) -> None:
    with pytest.raises(CalibrationError, match=r"--max-memory 1 MB: one run at a time takes"):
        qconvert.sensitivity(
            planted,
            DIGITS / "evaluation",
            calibrated=planted_calibration,
            preprocess=CENTERED,
            limit=8,
            max_memory=1_000_000,
        )


@pytest.mark.parametrize(
    ("question", "error", "text"),
    [
        (Question(mode="local", by="tensor"), PlanError, "mode local"),
        (Question(mode="local", metric="kl"), PlanError, "mode local"),
        (Question(bound=Bound(min_sqnr=1000, remedy="16-bit")), TargetError, "tensorrt"),
    ],
)
def test_what_does_not_go_together(
    digits: tuple[ir.Model, Plan, list[Feeds], Calibration], question: Question, error: type[Exception], text: str
) -> None:
    policy = Policy() if error is PlanError else Policy().override(target="tensorrt")
    with pytest.raises(error, match=text):
        ask(MODEL, digits[3], question, limit=4, policy=policy)


def test_sixteen_bits_mend_too(digits: tuple[ir.Model, Plan, list[Feeds], Calibration]) -> None:
    found = ask(MODEL, digits[3], Question(bound=Bound(min_sqnr=36, remedy="16-bit")), policy=Policy())
    suggestion = found.suggestion
    assert suggestion is not None
    assert suggestion.met
    assert suggestion.after is not None
    assert suggestion.after.sqnr_db.value >= 36 > found.quantized.sqnr_db.value
    rules = loads(suggestion.policy).rules
    assert [rule.activations.dtype for rule in rules] == ["uint16"]


def test_a_bound_that_cannot_be_met_says_so(digits: tuple[ir.Model, Plan, list[Feeds], Calibration]) -> None:
    found = ask(MODEL, digits[3], Question(bound=Bound(min_sqnr=150, remedy="16-bit")), limit=8, policy=Policy())
    assert found.suggestion is not None
    assert not found.suggestion.met


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_ranks(planted: Path, planted_calibration: Calibration, metric: str) -> None:
    found = ask(planted, planted_calibration, Question(metric=metric), limit=40)
    assert found.rows[0].subject == FRAGILE
    assert found.rows[0].harm.low <= found.rows[0].harm.value <= found.rows[0].harm.high
    assert found.labelled
    assert found.float_top1 is not None
    assert found.float_top1 > 90


def test_ones_own_metric(planted: Path, planted_calibration: Calibration) -> None:
    def right(_: object, outputs: list[np.ndarray], label: np.ndarray) -> float:
        return float(outputs[0].argmax() == label[0])

    own = ask(planted, planted_calibration, Question(metric="custom", custom=right))
    builtin = ask(planted, planted_calibration, Question(metric="top1"))
    assert own.rows[0].harm.value == pytest.approx(builtin.rows[0].harm.value / 100)


SILERO = Path(__file__).resolve().parents[2] / "shared" / "bench"


@pytest.mark.skipif(not SILERO.is_dir(), reason="needs the shared models")
@pytest.mark.parametrize("mode", ["only", "all-but"])
def test_bodies_of_if_and_several_outputs(mode: Mode) -> None:
    path = SILERO / "models" / "silero_vad_16k_op15.onnx"
    calibrated = qconvert.calibrate(path, SILERO / "data" / "silero" / "eval.npz", limit=4)
    graph, probes = load_model(path), list(calibrated.probes[:3])
    prepare(graph, probes, original=path)
    plan = make_plan(graph, Policy(), calibrated.stats)
    lab = lab_of(graph, probes)
    plans = {one.name: (only if mode == "only" else all_but)(plan, one) for one in subjects(graph, plan, "operator")}
    tables: dict[str, np.ndarray] = {}
    extend(lab, lab.base(None if mode == "only" else plan), [Variant(*one) for one in plans.items()], tables, 3)
    for name, one in plans.items():
        assert tables[name].shape[1] == len(graph.graph.outputs) + 1 == 3
        first = tables[name].sum(0)[[0, -1]]
        assert float(sqnr(first)) == pytest.approx(naive(graph, one, probes), abs=0.1), name
