"""Every row of the operator table, on every target: Conv -> operator -> Conv computes what the float model does."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from qconvert.rules import OP_RULES
from qconvert.targets import TARGETS
from tests.models import NEWEST_OPSET, Array, f32, i64, image, model, policy, quantized, weight

CHANNELS = 8


@dataclass(frozen=True)
class Between:
    """Text from ``a`` [1,8,8,8] to ``b`` [1,channels,...], and what it needs."""

    body: str
    weights: dict[str, Array] = field(default_factory=dict)
    channels: int = CHANNELS
    opset: int = 20
    flat: bool = False


def plain(op_type: str, attributes: str = "") -> Between:
    return Between(f"b = {op_type}{attributes}(a)")


SCALES = {"empty": f32(), "scales": f32(1, 1, 2, 2)}
BUILDERS: dict[str, Between] = {
    "Conv": Between("b = Conv<pads=[1,1,1,1]>(a, m)", {"m": weight(8, 8, 3, 3)}),
    "ConvTranspose": Between(
        "b = ConvTranspose<strides=[2,2]>(a, m, mb)", {"m": weight(8, 4, 2, 2), "mb": weight(4)}, 4
    ),
    "Gemm": Between(
        "f = Flatten(a) g = Gemm(f, m, mb) b = Reshape(g, s)",
        {"m": weight(512, 72), "mb": weight(72), "s": i64(1, 8, 3, 3)},
    ),
    "MatMul": Between("b = MatMul(a, m)", {"m": weight(8, 6)}),
    "Add": Between("k = Conv(x, m) b = Add(a, k)", {"m": weight(8, 3, 1, 1)}),
    "Mul": Between("k = Conv(x, m) b = Mul(a, k)", {"m": weight(8, 3, 1, 1)}),
    "Concat": Between("k = Conv(x, m) b = Concat<axis=1>(a, k)", {"m": weight(4, 3, 1, 1)}, 12),
    "Split": Between("b, rest = Split<axis=1>(a, parts)", {"parts": i64(5, 3)}, 5),
    "AveragePool": plain("AveragePool", "<kernel_shape=[2,2], strides=[2,2]>"),
    "MaxPool": plain("MaxPool", "<kernel_shape=[2,2], strides=[2,2]>"),
    "Reshape": Between("b = Reshape(a, s)", {"s": i64(1, 16, 4, 8)}, 16),
    "Flatten": Between("f = Flatten(a) g = Unsqueeze(f, axes) b = Unsqueeze(g, axes)", {"axes": i64(2)}, 512),
    "Transpose": plain("Transpose", "<perm=[0,1,3,2]>"),
    "Squeeze": Between("k = Squeeze(a, axes) b = Unsqueeze(k, axes)", {"axes": i64(0)}),
    "Unsqueeze": Between("k = Unsqueeze(a, axes) b = Squeeze(k, axes)", {"axes": i64(0)}),
    "Slice": Between("b = Slice(a, start, end)", {"start": i64(0, 0, 1, 1), "end": i64(1, 6, 7, 7)}, 6),
    "Gather": Between("b = Gather<axis=1>(a, pick)", {"pick": i64(0, 7, 2)}, 3),
    "GatherElements": Between("b = GatherElements<axis=1>(a, pick)", {"pick": i64(*range(8)).reshape(1, 8, 1, 1)}),
    "Pad": Between("b = Pad(a, pads)", {"pads": i64(0, 0, 1, 1, 0, 0, 1, 1)}),
    "Resize": Between('b = Resize<mode="linear">(a, empty, scales)', SCALES),
    "Upsample": Between('b = Upsample<mode="nearest">(a, scales)', {"scales": SCALES["scales"]}, opset=9),
    "DepthToSpace": Between("b = DepthToSpace<blocksize=2>(a)", channels=2),
    "SpaceToDepth": Between("b = SpaceToDepth<blocksize=2>(a)", channels=32),
    "Expand": Between("b = Expand(a, s)", {"s": i64(2, 8, 8, 8)}),
    "Tile": Between("b = Tile(a, s)", {"s": i64(1, 2, 1, 1)}, 16),
    "Clip": Between("b = Clip(a, low, high)", {"low": f32(-0.5).reshape(()), "high": f32(0.5).reshape(())}),
    "LeakyRelu": plain("LeakyRelu", "<alpha=0.1>"),
    "ThresholdedRelu": plain(
        "ThresholdedRelu", "<alpha=0.1>"
    ),  # its jump, not its rounding, is what a higher one tests
    "ReduceMean": Between("b = ReduceMean(a, axes)", {"axes": i64(2, 3)}),
    "ReduceMax": Between("b = ReduceMax(a, axes)", {"axes": i64(2, 3)}),
    "PRelu": Between("b = PRelu(a, slope)", {"slope": abs(weight(8, 1, 1))}),
    "BatchNormalization": Between(
        "k = HardSwish(a) b = BatchNormalization(k, s, o, o, v)",
        {"s": f32(*[1.5] * 8), "o": weight(8), "v": f32(*[2] * 8)},
    ),
    "InstanceNormalization": Between("b = InstanceNormalization(a, s, o)", {"s": f32(*[1] * 8), "o": weight(8)}),
    "GroupNormalization": Between(
        "b = GroupNormalization<num_groups=2>(a, s, o)", {"s": f32(*[1] * 8), "o": weight(8)}, opset=21
    ),
    "LayerNormalization": Between(
        "b = LayerNormalization<axis=1>(a, s, o)",
        {"s": f32(*[1.5] * 512).reshape(8, 8, 8), "o": weight(8, 8, 8)},
        opset=17,
    ),
    "LpNormalization": plain("LpNormalization", "<axis=1, p=2>"),
    "LogSoftmax": plain("LogSoftmax", "<axis=1>"),
    "Sub": Between("k = Conv(x, m) b = Sub(a, k)", {"m": weight(8, 3, 1, 1)}),
    "Div": Between("k = Conv(x, m) d = Exp(k) b = Div(a, d)", {"m": weight(8, 3, 1, 1, gain=0.1)}),
    "Max": Between("k = Conv(x, m) b = Max(a, k)", {"m": weight(8, 3, 1, 1)}),
    "Min": Between("k = Conv(x, m) b = Min(a, k)", {"m": weight(8, 3, 1, 1)}),
    "Swish": Between("b = Swish(a)", opset=24),
    **{
        name: plain(name)
        for name in (
            "Relu",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Tanh",
            "Softmax",
            "Gelu",
            "Elu",
            "Selu",
            "Celu",
            "Mish",
            "Softplus",
            "Softsign",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Identity",
        )
    },
}


def test_every_row_has_a_builder() -> None:
    missing = set(OP_RULES) - set(BUILDERS)
    assert not missing, f"tests/test_rules.py: BUILDERS lacks {sorted(missing)}"
    assert not set(BUILDERS) - set(OP_RULES)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op_type", OP_RULES)
def test_operator_between_two_convs(op_type: str, target: str) -> None:
    between = BUILDERS[op_type]
    if between.opset > NEWEST_OPSET:
        pytest.skip(f"this onnxruntime knows opsets up to {NEWEST_OPSET}")
    assert op_type in between.body
    graph = model(
        f"a = Conv<pads=[1,1,1,1]>(x, first, bias) {between.body} y = Conv(b, last)",
        opset=between.opset,
        weights={
            "first": weight(CHANNELS, 3, 3, 3),
            "bias": weight(CHANNELS, gain=0.3),
            "last": weight(6, between.channels, 1, 1),
            **between.weights,
        },
    )
    result = quantized(graph, [image(1, 3, 8, 8, seed=seed) for seed in range(3)], policy(target=target))
    assert result.sqnr > 20
    assert result.plain_sqnr > 20
    assert result.integer().count("Conv") == 2 + (op_type == "Conv") + ("k = Conv" in between.body)
    if target == "ort-cpu":
        assert result.kernels["QLinearConv"] == result.integer().count("Conv")
