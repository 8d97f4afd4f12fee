"""Mixed precision: the knapsack against brute force, and searches on the sample model from end to end."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qconvert
from qconvert import calibration
from qconvert.calibration import Calibration
from qconvert.cli import main
from qconvert.cli.search import limit
from qconvert.errors import DataError, PolicyError, TargetError
from qconvert.evidence import search_report
from qconvert.graph import load_model, operators
from qconvert.pipeline import Wanted
from qconvert.policy import Match, Policy, Rule, Scheme, dump, load, loads
from qconvert.preprocess import preset
from qconvert.report import document
from qconvert.searching import trials
from qconvert.searching.certainty import needed
from qconvert.searching.cost import cost, works
from qconvert.searching.front import Option, chain, hull, undominated
from qconvert.searching.ladder import DEFAULT_LADDER, ladder, mixed, settle, uniform, usable
from qconvert.searching.search import Aim
from qconvert.searching.types import Candidate, Found, Goal, Limit, Verification
from qconvert.sensing import engine
from qconvert.sensing.types import Estimate
from qconvert.targets import HEAVY
from tests.test_sensitivity import FRAGILE, plant
from tests.tiny import build

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
MODEL, DIGITS = SAMPLES / "digits_cnn" / "model.onnx", SAMPLES / "digits"
CENTERED = preset("centered")
RUNGS = ("W4A8", "W8A8", "float")


# the knapsack

numbers = st.integers(0, 50).map(float)
tables = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), min_size=1, max_size=4
)


def options_of(table: dict[str, list[tuple[float, float]]]) -> dict[str, list[Option]]:
    return {
        subject: [Option(str(index), *pair) for index, pair in enumerate(pairs)] for subject, pairs in table.items()
    }


def totals(assignment: dict[str, Option]) -> tuple[float, float]:
    return sum(one.cost for one in assignment.values()), sum(one.harm for one in assignment.values())


@given(table=tables, price=st.floats(0.01, 100))
def test_the_chain_holds_what_is_best_for_every_price(
    table: dict[str, list[tuple[float, float]]], price: float
) -> None:
    options = options_of(table)
    found = chain(options)
    every = [dict(zip(options, chosen, strict=True)) for chosen in itertools.product(*options.values())]

    def worth(assignment: dict[str, Option]) -> float:
        spent, harm = totals(assignment)
        return harm + price * spent

    best = min(map(worth, every))
    assert min(worth(found[place]) for place in range(len(found))) == pytest.approx(best)


@given(table=tables)
def test_along_the_chain_harm_falls_and_cost_grows(table: dict[str, list[tuple[float, float]]]) -> None:
    options = options_of(table)
    found = chain(options)
    points = [totals(found[place]) for place in range(len(found))]
    assert all(b[0] > a[0] and b[1] < a[1] for a, b in itertools.pairwise(points))
    assert points[0][0] == sum(min(one.cost for one in given_) for given_ in options.values())
    assert points[-1][1] == sum(min(one.harm for one in given_) for given_ in options.values())
    gains = [step.gain for step in found.steps]
    assert gains == sorted(gains, reverse=True)
    every = [totals(dict(zip(options, chosen, strict=True))) for chosen in itertools.product(*options.values())]
    for spent, harm in points:
        assert not any(a <= spent and b <= harm and (a, b) != (spent, harm) for a, b in every)


def test_an_option_above_the_line_between_two_others_is_left_out() -> None:
    line = [Option("cheap", 1, 10), Option("between", 2, 9), Option("dear", 3, 0), Option("worse", 4, 1)]
    assert [one.name for one in hull(line)] == ["cheap", "dear"]


def test_what_nothing_beats() -> None:
    assert undominated([(1, 5), (2, 5), (2, 3), (3, 3), (4, 1), (4, 1)]) == [True, False, True, False, True, True]


# rungs and policies


def test_rungs_have_the_targets_types() -> None:
    four, sixteen, whole = ladder(["w4a8", "W8A16", "float"], Policy())
    assert (four.weights, four.activations) == ("int4", "uint8")
    assert (sixteen.weights, sixteen.activations) == ("int8", "uint16")
    assert whole.weights is None
    own = Policy().override(activations="int8")
    assert ladder(["W4A8"], own)[0].activations == "int8"


@pytest.mark.parametrize(
    ("names", "target", "error", "words"),
    [
        (["W5A8"], "ort-cpu", TargetError, "W5A8"),
        (["W4A8"], "tensorrt", TargetError, "tensorrt takes int8 weights"),
        (["int4"], "ort-cpu", PolicyError, "got 'int4'"),
        (["W8A8", "w8a8"], "ort-cpu", PolicyError, "twice"),
        (["float"], "ort-cpu", PolicyError, "nothing to quantize"),
    ],
)
def test_rungs_that_cannot_be_are_refused(names: list[str], target: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ladder(names, Policy(target=target))


def test_rungs_of_the_usual_ladder_that_a_target_lacks_are_left_out_aloud() -> None:
    kept, dropped = usable(DEFAULT_LADDER, Policy(target="tensorrt"))
    assert kept == ("W8A8", "float")
    assert ["W4A8" in dropped[0], "W8A16" in dropped[1]] == [True, True]
    assert usable(DEFAULT_LADDER, Policy()) == (DEFAULT_LADDER, ())


def test_a_mixed_policy_names_what_is_not_on_the_commonest_rung() -> None:
    four, eight, whole = ladder(RUNGS, Policy())
    both = (four, eight)
    settled = settle({"a": (four,), "b": (eight,), "c": (eight,), "d": both, "[e]": (whole,)})
    assert settled["d"] == eight
    found = loads(dump(mixed(Policy(), settled, {})))
    assert found.defaults.weights.dtype == "int8"
    assert [(rule.match.names, rule.float, rule.weights.dtype) for rule in found.rules] == [
        (("a",), None, "int4"),
        (("[[]e]",), True, None),
    ]


def test_what_the_users_rules_say_stays() -> None:
    own = Rule(match=Match(op_types=("Conv",)), weights=Scheme(dtype="int16", scheme="per-tensor"))
    policy = Policy(rules=(own,))
    four, eight, _ = ladder(RUNGS, policy)
    found = mixed(policy, {"a": four, "b": eight, "c": eight}, {"a": 0})
    assert found.rules[0].match.names == ("a",)
    assert found.rules[0].weights == Scheme(dtype="int16", scheme="per-tensor")
    assert found.rules[1:] == (own,)
    assert uniform(policy, four).rules == (own,)


@pytest.mark.parametrize(
    ("text", "value", "relative"), [("25%", 0.25, True), ("0.6x", 0.6, True), ("12ms", 12, False), ("3MB", 3e6, False)]
)
def test_limits_are_read(text: str, value: float, relative: bool) -> None:
    assert limit(text) == Limit(value, relative)
    assert Limit(0.25, relative=True).of(400) == 100


def test_multiply_adds_are_counted() -> None:
    weights = {"k": np.ones((8, 1, 3, 3), np.float32), "m": np.ones((8, 5), np.float32)}
    graph = build(
        {"x": (1, 4, 6, 6)},
        [
            ("Conv", ["x", "k"], ["c"], {"group": 4, "pads": [1, 1, 1, 1]}),
            ("GlobalAveragePool", ["c"], ["p"], {}),
            ("Flatten", ["p"], ["f"], {}),
            ("Gemm", ["f", "m"], ["y"], {}),
        ],
        ["y"],
        weights,
    )
    shapes = {"c": (1, 8, 6, 6), "p": (1, 8, 1, 1), "f": (1, 8), "y": (1, 5)}
    for op in operators(graph):
        value = op.node.outputs[0]
        value.shape, value.type = ir.Shape(shapes[value.name or ""]), ir.TensorType(ir.DataType.FLOAT)
    found = works(graph, {"x": np.zeros((1, 4, 6, 6), np.float32)})
    assert {name: work.macs for name, work in found.items()} == {"c": 8 * 36 * 9, "p": 0, "f": 0, "y": 40}
    whole = cost(None, found, found)
    assert whole.bit_operations == (8 * 36 * 9 + 40) * 32 * 32
    assert whole.moved == 4 * (4 * 36 + 72 + 8 * 36 + 8 + 8 + 40)


# certainty


@pytest.mark.parametrize(
    ("harm", "limit", "count"),
    [
        (Estimate(-30.0, -31.0, -29.0, 50, "dB"), -28.0, 13),  # half as far as the bound: a quarter of the samples
        (Estimate(-30.0, -31.0, -29.0, 50, "dB"), -29.5, 200),
        (Estimate(-30.0, -31.0, -29.0, 50, "dB"), -30.5, 200),
        (Estimate(-30.0, -31.0, -29.0, 50, "dB"), -30.0, None),
        (Estimate(0.0, 0.0, 0.0, 50, "points"), 1.0, 300),  # the rule of three
        (Estimate(0.0, 0.0, 0.0, 50, "points"), 10.0, 30),
        (Estimate(2.0, 1.0, 4.0, 50, "%"), 1.0, 50),
        (Estimate(200.0, 200.0, 200.0, 50, "dB"), 100.0, 0),
    ],
)
def test_how_many_samples_would_tell(harm: Estimate, limit: float, count: int | None) -> None:
    assert needed(harm, limit) == count


# searches


@pytest.fixture(scope="module")
def calibrated() -> Calibration:
    return qconvert.calibrate(MODEL, DIGITS / "calibration", preprocess=CENTERED)


def find(calibrated: Calibration, goal: Goal, *, model: Path = MODEL, rungs: tuple[str, ...] = RUNGS) -> Found:
    return qconvert.search(
        model,
        DIGITS / "evaluation",
        wanted=Wanted(goal, rungs),
        calibrated=calibrated,
        preprocess=CENTERED,
        limit=40,
    ).found


@pytest.fixture(scope="module")
def reached(calibrated: Calibration) -> Found:
    return find(calibrated, Goal(min_sqnr=24.0))


def by_name(found: Found) -> dict[str, Candidate]:
    return {one.name: one for one in found.candidates}


def test_an_sqnr_is_reached_with_fewer_bytes_than_any_uniform_policy(reached: Found) -> None:
    found, known, one = reached, by_name(reached), reached.chosen
    assert found.met
    assert one.harm <= -24 < known["W4A8"].harm
    assert found.confirmed.harm.value <= -24
    assert one.size_bytes < known["W8A8"].size_bytes
    assert known["W8A8"].harm <= -24
    assert {name for name, _ in one.rungs} >= {"W4A8", "W8A8"}
    assert (found.samples, found.held_back) == (20, 20)
    assert dict(one.rungs) == Counter(choice.rung for choice in found.choices)
    pairs = sum(2 if choice.op_type in HEAVY else 1 for choice in found.choices)
    assert found.experiments == pairs  # without weights, W4A8 and W8A8 are one


def test_a_policy_is_what_was_run(calibrated: Calibration, reached: Found, tmp_path: Path) -> None:
    found = reached
    made = qconvert.quantize(MODEL, calibrated, output=tmp_path / "m.onnx", policy=loads(found.chosen.policy))
    kinds = {site.operator: entry.params.dtype.name for entry in made.plan.of("weight") for site in entry.sites}
    wanted = {one.subject: one.rung for one in found.choices if one.subject in kinds}
    types = {"W4A8": "int4", "W8A8": "int8"}
    assert kinds == {name: types[rung] for name, rung in wanted.items() if rung in types}
    assert made.size_after == found.chosen.size_bytes


def test_the_model_that_is_written_is_the_one_that_was_run(calibrated: Calibration, tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    result = qconvert.search(
        MODEL, DIGITS / "evaluation", wanted=Wanted(Goal(min_sqnr=24.0), RUNGS), output=output,
        calibrated=calibrated, preprocess=CENTERED, limit=40,
    )  # fmt: skip
    assert result.quantized is not None
    assert result.quantized.path == output
    evaluated = qconvert.evaluate(MODEL, output, DIGITS / "evaluation", preprocess=CENTERED, limit=40)
    pooled = -result.found.confirmed.overall
    assert evaluated.fidelity[0].sqnr_db == pytest.approx(pooled, abs=1e-6)


@pytest.mark.parametrize(
    "policy",
    [Policy(recover=("bias",)), Policy(rules=(Rule(match=Match(op_types=("Conv",)), recover=("bias",)),))],
    ids=["policy", "rule"],
)
def test_what_recover_would_change_is_not_written(policy: Policy, calibrated: Calibration, tmp_path: Path) -> None:
    result = qconvert.search(
        MODEL, DIGITS / "evaluation", wanted=Wanted(Goal(min_sqnr=20.0), ("W8A8",)), output=tmp_path / "m.onnx",
        calibrated=calibrated, policy=policy, preprocess=CENTERED, limit=20,
    )  # fmt: skip
    assert result.found.met
    assert result.quantized is None
    assert not (tmp_path / "m.onnx").exists()


def test_a_budget_is_filled_with_the_least_harm(calibrated: Calibration) -> None:
    whole = MODEL.stat().st_size
    found = find(calibrated, Goal(max_size=Limit(0.45, relative=True)))
    within = [one for one in found.candidates if one.size_bytes <= 0.45 * whole]
    assert found.met
    assert found.chosen in within
    assert found.chosen.harm == min(one.harm for one in within)
    assert len(within) < len(found.candidates)


def test_latency_is_measured_beside_the_float_model(calibrated: Calibration) -> None:
    found = find(calibrated, Goal(max_latency=Limit(100.0, relative=True)), rungs=("W8A8",))
    assert found.met
    assert all(one.times is not None and one.times.own.median_ms > 0 for one in found.candidates)
    impossible = find(calibrated, Goal(max_latency=Limit(1e-6, relative=False)), rungs=("W8A8",))
    assert not impossible.met


def test_the_same_seed_gives_the_same_policy(calibrated: Calibration, reached: Found) -> None:
    again = find(calibrated, Goal(min_sqnr=24.0))
    assert again.candidates == reached.candidates
    assert (again.chosen, again.verified) == (reached.chosen, reached.verified)


def test_no_sample_both_searches_and_verifies(calibrated: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[bytes]] = {}
    compare = engine.compare

    def watched(lab: engine.Lab, position: int, outputs: list[object]) -> object:
        image = next(iter(lab.load(position).feeds.values()))
        seen.setdefault(str(id(lab.references)), set()).add(image.tobytes())
        return compare(lab, position, outputs)

    monkeypatch.setattr(engine, "compare", watched)
    find(calibrated, Goal(min_sqnr=24.0))
    searched, held = seen.values()
    assert len(searched) == len(held) == 20
    assert not searched & held


def test_what_the_samples_held_back_refuse_is_not_taken(
    calibrated: Calibration, reached: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = trials.Judge.verify

    def strict(judge: trials.Judge, one: Candidate, most: float | None) -> Verification:
        found = verify(judge, one, most)
        return replace(found, met=found.met and one != reached.chosen)

    monkeypatch.setattr(trials.Judge, "verify", strict)
    found = find(calibrated, Goal(min_sqnr=24.0))
    assert found.met
    assert [one.met for one in found.verified] == [False, True]
    assert found.chosen.size_bytes > reached.chosen.size_bytes
    assert f"refused 1 before this one: {reached.chosen.name}" in found.notes[0]
    monkeypatch.setattr(trials.Judge, "verify", lambda *given_: replace(verify(*given_), met=False))
    never = find(calibrated, Goal(min_sqnr=24.0), rungs=("W4A8", "W8A8"))
    assert not never.met
    assert never.confirmed.harm.value == min(one.harm.value for one in never.verified)


def test_the_samples_of_the_search_do_not_refuse_the_safest(
    calibrated: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aim, "met", lambda *_: False)
    found = find(calibrated, Goal(min_sqnr=24.0), rungs=("W4A8", "W8A8"))
    assert found.met
    assert found.chosen.name == "W8A8"
    assert [one.candidate for one in found.verified] == ["W8A8"]


def test_what_all_samples_refuse_is_not_met(calibrated: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials.Judge, "_harm", lambda *_: -23.0)
    found = find(calibrated, Goal(min_sqnr=24.0), rungs=("W4A8", "W8A8"))
    assert not found.met
    assert found.confirmed.harm.value < -24
    gate = search_report(found, MODEL).gates[0]
    assert (gate.title, gate.measured, gate.samples) == ("output SQNR, all samples,", 23.0, 40)


def test_a_time_budget_leaves_what_is_safe(calibrated: Calibration) -> None:
    found = qconvert.search(
        MODEL, DIGITS / "evaluation", wanted=Wanted(Goal(min_sqnr=24.0), RUNGS, time_budget=1e-6),
        calibrated=calibrated, preprocess=CENTERED, limit=20,
    ).found  # fmt: skip
    assert found.met
    assert found.chosen.name == "W8A8"  # a yardstick


def test_a_search_that_was_stopped_goes_on(
    calibrated: Calibration, reached: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "run.part"

    def go(goal: Goal) -> Found:
        return qconvert.search(
            MODEL, DIGITS / "evaluation", wanted=Wanted(goal, RUNGS), calibrated=calibrated, preprocess=CENTERED,
            limit=40, journal=part,
        ).found  # fmt: skip

    with monkeypatch.context() as patched:
        patched.setattr(trials.Judge, "verify", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(Goal(min_sqnr=24.0))
    assert part.is_file()
    compared: list[int] = []
    compare = engine.compare

    def counted(*given_: object) -> object:
        compared.append(1)
        return compare(*given_)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "compare", counted)
    assert go(Goal(min_sqnr=24.0)).candidates == reached.candidates
    assert len(compared) == 20  # the verification alone
    assert not part.exists()


def test_a_planted_fault_gets_the_dearest_rung(tmp_path: Path) -> None:
    model = plant(tmp_path / "planted.onnx")
    calibrated = qconvert.calibrate(model, DIGITS / "calibration", preprocess=CENTERED)
    found = qconvert.search(
        model,
        DIGITS / "evaluation",
        wanted=Wanted(Goal(min_sqnr=20.0), ("W8A8", "float")),
        calibrated=calibrated,
        policy=Policy().override(scheme="per-tensor"),
        preprocess=CENTERED,
        limit=40,
    ).found
    assert found.met
    assert next(one.rung for one in found.choices if one.subject == FRAGILE) == "float"
    assert sum(one.rung == "float" for one in found.choices) < len(found.choices) / 3  # the cheapest go first


def test_a_bound_that_nothing_meets_names_the_nearest(calibrated: Calibration) -> None:
    found = find(calibrated, Goal(min_sqnr=90.0), rungs=("W4A8", "W8A8"))
    assert not found.met
    assert found.chosen.name == "W8A8"
    assert found.chosen.harm == min(one.harm for one in found.candidates)


def test_one_sample_is_not_enough(calibrated: Calibration) -> None:
    with pytest.raises(DataError, match="one sample"):
        qconvert.search(
            MODEL, DIGITS / "evaluation", wanted=Wanted(Goal(max_drop=1.0)), calibrated=calibrated,
            preprocess=CENTERED, limit=1,
        )  # fmt: skip


def test_blocks_have_one_rung(calibrated: Calibration) -> None:
    found = qconvert.search(
        MODEL, DIGITS / "evaluation", wanted=Wanted(Goal(min_sqnr=22.0), ("W4A8", "W8A8"), "block"),
        calibrated=calibrated, preprocess=CENTERED, limit=40,
    ).found  # fmt: skip
    assert found.met
    assert len(found.choices) < len(list(operators(load_model(MODEL)))) / 2


# the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrated: Calibration) -> Path:
    monkeypatch.chdir(tmp_path)
    calibration.save(calibrated, tmp_path / "model.calib", force=True)
    return tmp_path


def command(*more: str) -> int:
    fixed = ["search", str(MODEL), "--data", str(DIGITS / "evaluation"), "-n", "40", "--ladder", "W4A8,W8A8"]
    with pytest.raises(SystemExit) as end:
        main([*fixed, *more])
    return int(end.value.code or 0)


def test_the_command_writes_policy_and_evidence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--max-drop", "0.5", "--report", "r.json", "--report", "r.html") == 0
    shown, said = capsys.readouterr()
    assert "26 held back" in shown  # two thirds where labels are counted
    assert "not settled at 95 %: 26 samples held back are too few" in shown.replace("\n", " ")
    assert "model.policy.yaml: written" in said
    assert f"model.mixed.onnx: written; next: qconvert evaluate {MODEL} model.mixed.onnx --data" in said
    assert load(folder / "model.policy.yaml").version == 1
    stored = json.loads((folder / "r.json").read_text())
    assert document.read(folder / "r.json").command == "search"
    assert stored["gates"][0]["passed"]
    assert stored["policy"] == (folder / "model.policy.yaml").read_text()
    figures = [figure for section in stored["sections"] for figure in section["figures"]]
    points = next(figure["points"] for figure in figures if figure["kind"] == "front")
    assert {"W4A8", "W8A8"} <= {point["name"] for point in points}
    assert sum(point["chosen"] for point in points) == 1
    uniform_size = next(point["x"] for point in points if point["name"] == "W8A8")
    chosen_size = next(point["x"] for point in points if point["chosen"])
    assert chosen_size < uniform_size
    assert [(one["role"], one["size_bytes"]) for one in stored["models"]][1] == ("quantized model", chosen_size)
    assert (folder / "model.mixed.onnx").stat().st_size == chosen_size
    assert "<svg" in (folder / "r.html").read_text()


def test_the_command_ends_with_1_where_nothing_meets_the_bound(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--min-sqnr", "90", "-q", "-o", "near.yaml") == 1
    assert "not met, the nearest: W8A8" in capsys.readouterr().out
    assert (folder / "near.yaml").is_file()
    assert not list(folder.glob("*.onnx"))


def test_the_command_overwrites_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "near.mixed.onnx").write_text("mine")
    assert command("--min-sqnr", "20", "-o", "near.policy.yaml") == 2
    assert "near.mixed.onnx: exists already" in capsys.readouterr().err
    assert not (folder / "near.policy.yaml").exists()


@pytest.mark.parametrize("bounds", [(), ("--max-drop", "1", "--max-size", "25%"), ("--max-latency", "-1x")])
def test_one_bound_is_given(folder: Path, bounds: tuple[str, ...]) -> None:
    assert command(*bounds) == 2
    assert not (folder / "model.policy.yaml").exists()
