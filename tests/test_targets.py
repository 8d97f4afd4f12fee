"""What a runtime accepts, as data: the tables agree with each other, and every target writes only what it takes."""

from __future__ import annotations

import dataclasses

import pytest

from qconvert.errors import TargetError
from qconvert.numerics import QUANT_TYPES
from qconvert.policy import Policy
from qconvert.rules import OP_RULES, role, weight_axis
from qconvert.targets import HEAVY, MOVES, TARGETS, Target, get_target
from tests.models import RUNTIME, f32, i64, images, model, policy, quantized, weight
from tests.test_placement import CONV, RESIDUAL, W

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)


@every_target
def test_rows_are_consistent(target: Target) -> None:
    assert TARGETS[target.name] is target
    assert target.integer_ops <= set(OP_RULES)
    assert target.per_channel <= set(HEAVY)
    assert target.float_output_ops <= set(HEAVY)
    assert {*target.activations, *target.weights} <= set(QUANT_TYPES)
    assert set(target.clipped) == {name for name in target.activations if QUANT_TYPES[name].bits < 8}
    assert all(QUANT_TYPES[name].bits == 8 for name in target.clipped.values())
    assert target.shared_scale_ops <= target.integer_ops
    assert {role(op_type, target) for op_type in target.integer_ops} <= {"heavy", "light", "same"}
    assert target.low_bit_ops <= set(HEAVY)
    assert {op_type for op_type, _ in target.fixed_outputs} <= target.integer_ops
    assert {dtype for _, dtype in target.fixed_outputs} <= set(target.activations)
    assert target.recurrent <= ({"LSTM"} if "dynamic" in target.modes else set())
    assert bool(target.stored) == ("weight-only" in target.modes)
    assert target.group_sizes == () or "per-group" in target.stored_schemes


def test_the_operator_table_agrees_with_the_lists() -> None:
    assert {name for name, rule in OP_RULES.items() if rule.kind == "heavy"} == set(HEAVY)
    assert {name for name, rule in OP_RULES.items() if rule.kind == "same"} == set(MOVES)
    for name, rule in OP_RULES.items():
        assert rule.op_type == name
        assert (rule.weight is not None) == (name in {*HEAVY, "LayerNormalization", "InstanceNormalization"})


@pytest.mark.parametrize(
    ("op_type", "rank", "attributes", "axis"),
    [
        ("Conv", 4, {}, 0),
        ("ConvTranspose", 4, {"group": 2}, 1),
        ("Gemm", 2, {"transB": 1}, 0),
        ("Gemm", 2, {"transB": 0}, 1),
        ("Gemm", 2, {}, 1),
        ("MatMul", 2, {}, 1),
    ],
)
def test_weight_axis(op_type: str, rank: int, attributes: dict[str, int], axis: int) -> None:
    assert weight_axis(op_type, rank, attributes) == axis


def test_targets_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TARGETS["ort-cpu"].name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("name", "hint"), [("tensort", "did you mean 'tensorrt'?"), ("zzz", "qconvert targets")])
def test_unknown_targets(name: str, hint: str) -> None:
    with pytest.raises(TargetError, match="expected one of ort-cpu, tensorrt, generic") as caught:
        get_target(name)
    assert hint in caught.value.hint


@every_target
def test_policies_accept_exactly_the_targets_of_the_table(target: Target) -> None:
    assert Policy().override(target=target.name).target == target.name


DTYPES = [
    (target.name, weights, activations)
    for target in TARGETS.values()
    if "static" in target.modes
    for weights in target.weights
    for activations in target.activations
    if RUNTIME >= (1, 24) or "int2" not in weights
]


@pytest.mark.parametrize(("target", "weights", "activations"), DTYPES)
def test_every_dtype_that_a_target_takes_runs(target: str, weights: str, activations: str) -> None:
    graph = model(
        f"{RESIDUAL.replace(' y ', ' u ')} p = GlobalAveragePool(u) f = Reshape(p, shape) y = Gemm(f, g, bias)",
        weights=W | {"g": weight(8, 5), "bias": weight(5), "shape": i64(1, 8)},
    )
    chosen = policy(target=target).override(weights=weights, activations=activations)
    result = quantized(graph, images(), chosen)
    fewest = min(QUANT_TYPES[name].bits for name in (weights, activations))
    least = {2: 3, 4: 6}.get(fewest, 20)
    assert result.sqnr > least
    assert result.plain_sqnr > least
    kinds = dict(result.plan.integer)
    low = TARGETS[target].low_bit_ops
    found = [entry for entry in result.plan.of("weight") if kinds[entry.sites[0].operator] in low]
    assert {entry.params.dtype.name for entry in found} == {weights}
    assert {entry.params.dtype.name for entry in result.plan.of("activation")} == {activations}


@every_target
def test_constants_of_light_operators(target: Target) -> None:
    shift = f32(*range(8)).reshape(8, 1, 1)
    graph = model(f"h {CONV}(x, w) s = Add(h, shift) y {CONV}(s, a)", weights=W | {"shift": shift})
    result = quantized(graph, images(), policy(target=target.name))
    assert result.sqnr > 20
    assert result.plain_sqnr > 20
