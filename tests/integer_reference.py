"""What an integer model must compute, bit for bit: the QDQ graph of the same plan in plain int64 numpy.

Written from TensorFlow Lite's and gemmlowp's sources, independently of the product's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from qconvert.graph import serialize
from qconvert.session import open_session, run

Array = npt.NDArray[Any]

LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


def quantize_multiplier(real: float) -> tuple[int, int]:
    """TensorFlow Lite's QuantizeMultiplier: the 31-bit mantissa and the exponent."""
    fraction, exponent = math.frexp(real)
    mantissa = math.floor(fraction * (1 << 31) + 0.5)
    if mantissa == 1 << 31:
        mantissa, exponent = mantissa // 2, exponent + 1
    if exponent < -31:
        return 0, 0
    return mantissa, exponent


def single(x: Array, mantissa: int, exponent: int) -> Array:
    """MultiplyByQuantizedMultiplier with TFLITE_SINGLE_ROUNDING."""
    total = 31 - exponent
    return np.asarray((x.astype(np.int64) * mantissa + (1 << (total - 1))) >> total)


def double(x: Array, mantissa: int, exponent: int) -> Array:
    """MultiplyByQuantizedMultiplier: SaturatingRoundingDoublingHighMul and RoundingDivideByPOT."""
    left, right = max(exponent, 0), max(-exponent, 0)
    product = (x.astype(np.int64) << left) * mantissa
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))
    mask = (1 << right) - 1
    threshold = (mask >> 1) + (high < 0)
    return np.asarray((high >> right) + ((high & mask) > threshold))


MULTIPLY = {"single": single, "double": double}


def requantize(x: Array, factors: Array, rounding: str) -> Array:
    """``x * factors``, where factors broadcast against x."""
    result = np.empty(np.broadcast_shapes(x.shape, factors.shape), np.int64)
    spread = np.broadcast_to(factors, result.shape)
    wide = np.broadcast_to(x, result.shape)
    for factor in np.unique(factors):
        there = spread == factor
        result[there] = MULTIPLY[rounding](wide[there], *quantize_multiplier(float(factor)))
    return result


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Clip": lambda x, low=-np.inf, high=np.inf: np.clip(x, low, high),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1),
    "HardSwish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "LeakyRelu": lambda x, alpha=0.01: np.where(x < 0, alpha * x, x),
    "PRelu": lambda x, slope: np.where(x < 0, slope * x, x),
    "Elu": lambda x, alpha=1.0: np.where(x < 0, alpha * (np.exp(x) - 1), x),
    "Selu": lambda x: 1.0507009873554805 * np.where(x < 0, 1.6732632423543772 * (np.exp(x) - 1), x),
    "Celu": lambda x, alpha=1.0: np.where(x < 0, alpha * (np.exp(x / alpha) - 1), x),
    "Softplus": lambda x: np.log(1 + np.exp(x)),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Mish": lambda x: x * np.tanh(np.log(1 + np.exp(x))),
    "ThresholdedRelu": lambda x, alpha=1.0: np.where(x > alpha, x, 0),
    "Gelu": lambda x: x * np.vectorize(lambda t: 0.5 * math.erfc(-t / math.sqrt(2)))(x),
    "Exp": np.exp,
    "Erf": np.vectorize(math.erf),
    "Neg": lambda x: -x,
    "Abs": np.abs,
    "Sqrt": np.sqrt,
    "Add": lambda x, y: x + y,
    "Sub": lambda x, y: x - y,
    "Mul": lambda x, y: x * y,
    "Div": lambda x, y: x / y,
}

MOVES = {
    *("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Pad"),
    *("GatherElements", "Resize", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Identity", "GlobalMaxPool"),
    *("ReduceMax", "ReduceMin"),
}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    kinds = onnx.AttributeProto
    return {
        a.name: {kinds.INT: a.i, kinds.FLOAT: a.f, kinds.INTS: list(a.ints), kinds.STRING: a.s}[a.type]
        for a in node.attribute
    }


@dataclass
class Steps:
    """Levels minus their zero point, and the scale of one, ready to broadcast."""

    steps: Array
    scale: Array
    zero: int
    dtype: str


@dataclass
class Reference:
    """Computes the outputs of a QDQ model for one sample."""

    model: onnx.ModelProto
    feeds: Mapping[str, Array]
    rounding: str
    ints: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.made = {name: node for node in self.model.graph.node for name in node.output}
        self.held = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}

    def outputs(self) -> list[Array]:
        return [
            self.real(value.name)
            if self.made[value.name].op_type != "QuantizeLinear"
            else self.levels(value.name).astype(self.held[self.made[value.name].input[2]].dtype)
            for value in self.model.graph.output
        ]

    def real(self, name: str) -> Array:
        """The float32 that a DequantizeLinear of levels or sums makes."""
        found = self.steps(name) if self.made[name].op_type == "DequantizeLinear" else self.sums(name)
        assert found is not None
        return found.steps.astype(np.float32) * found.scale.astype(np.float32)

    def steps(self, name: str) -> Steps:
        node = self.made[name]
        assert node.op_type == "DequantizeLinear", f"{name} has no levels"
        scale, zero = self.held[node.input[1]], self.held.get(node.input[2] if len(node.input) > 2 else "")
        levels = self.levels(node.input[0])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if scale.size > 1 and d == axis % levels.ndim else 1 for d in range(levels.ndim)]
        start = 0 if zero is None else zero.astype(np.int64)
        steps = levels - (np.reshape(start, shape) if np.size(start) > 1 else np.int64(np.max(start)))
        wide = scale.astype(np.float64)
        return Steps(
            steps,
            wide.reshape(shape) if scale.size > 1 else wide.reshape(()),
            int(np.max(start)),
            str(np.asarray(zero).dtype),
        )

    def levels(self, name: str) -> Array:
        if name not in self.ints:
            self.ints[name] = self._levels(name)
        return self.ints[name]

    def _levels(self, name: str) -> Array:
        if name in self.held:
            return np.asarray(self.held[name]).astype(np.int64)
        node = self.made[name]
        if node.op_type == "Cast":
            return self.levels(node.input[0])
        if node.op_type == "Clip":
            low, high = (int(self.held[end]) for end in node.input[1:])
            return np.clip(self.levels(node.input[0]), low, high)
        assert node.op_type == "QuantizeLinear", name
        scale, zero = self.held[node.input[1]], self.held[node.input[2]]
        return Quantize(self, scale, int(zero), *LIMITS[str(zero.dtype)]).levels(node.input[0])

    def constant(self, name: str) -> Array | None:
        if name in self.held:
            return np.asarray(self.held[name], np.float64)
        node = self.made.get(name)
        source = node.input[0] if node is not None and node.op_type == "DequantizeLinear" else ""
        if node is not None and source in self.made and self.made[source].op_type == "Cast":
            source = self.made[source].input[0]
        if source not in self.held:
            return None
        found = self.steps(name)
        return np.asarray(found.steps * found.scale)

    def sums(self, name: str) -> Steps | None:
        """The int32 sums behind a value, as steps of their scale."""
        node = self.made.get(name)
        if node is None or node.op_type not in {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul"}:
            return None
        if node.op_type in {"Add", "Mul"}:
            return self._behind(node)
        options = attributes(node)
        x, w = self.steps(node.input[0]), self.steps(node.input[1])
        found = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}[node.op_type](
            x, w, options
        )
        if len(node.input) > 2 and node.input[2]:
            bias = self.steps(node.input[2]).steps
            found.steps = found.steps + (
                bias.reshape(-1, *[1] * (x.steps.ndim - 2)) if node.op_type.startswith("Conv") else bias
            )
        return found

    def _behind(self, node: onnx.NodeProto) -> Steps | None:
        for data, other in ((0, 1), (1, 0)):
            array = self.constant(node.input[other])
            found = self.sums(node.input[data]) if array is not None else None
            if found is None or array is None:
                continue
            if node.op_type == "Mul":
                return Steps(found.steps, found.scale * array.reshape(()), 0, "int32")
            own = self.made.get(node.input[other])
            bias = self.steps(node.input[other]).steps if own is not None else np.rint(array / found.scale)
            return Steps(found.steps + bias.astype(np.int64), found.scale, 0, "int32")
        return None


@dataclass
class Quantize:
    """Brings what is behind a float value to a grid."""

    graph: Reference
    scale: Array
    zero: int
    low: int
    high: int

    def levels(self, name: str) -> Array:
        graph = self.graph
        if name in graph.feeds:
            return self._clip(np.rint(graph.feeds[name] / self.scale).astype(np.int64) + self.zero)
        table = self._table(name)
        if table is not None:
            return table
        node = graph.made[name]
        while node.op_type in {"Relu", "Clip"}:
            bounds = [graph.held[end] for end in node.input[1:]] or [np.float32(0), np.float32(np.inf)]
            ends = [
                int(np.clip(np.rint(float(b) / float(self.scale)) + self.zero, self.low, self.high)) for b in bounds
            ]
            self.low, self.high = ends
            name = node.input[0]
            node = graph.made[name]
        sums = graph.sums(name)
        if sums is not None:
            return self._from(sums.steps, sums.scale)
        options = attributes(node)
        operands = [graph.steps(one) for one in node.input[:1]] if node.op_type in MOVES | POOLS else []
        if node.op_type in MOVES:
            moved = as_float_operator(graph.model, node, name, operands[0].steps, graph.held)
            return self._rescaled(Steps(moved, operands[0].scale, operands[0].zero, operands[0].dtype))
        if node.op_type in POOLS:
            total, counts = window_sums(operands[0].steps, node, options, graph.held)
            return self._from(total, operands[0].scale / counts)
        return self._combined(node, [graph.steps(one) for one in node.input], options)

    def _combined(self, node: onnx.NodeProto, operands: list[Steps], options: Mapping[str, Any]) -> Array:
        if node.op_type in {"Add", "Sub"}:
            one, other = operands
            twice = 2 * max(float(one.scale), float(other.scale))
            a, b = (requantize(x.steps << 20, np.asarray(x.scale / twice), self.graph.rounding) for x in operands)
            return self._from(a + b if node.op_type == "Add" else a - b, np.asarray(twice / (1 << 20)))
        if node.op_type == "Mul":
            return self._from(operands[0].steps * operands[1].steps, operands[0].scale * operands[1].scale)
        if node.op_type == "Concat":
            return np.concatenate([self._rescaled(x) for x in operands], options["axis"])
        if node.op_type in {"Max", "Min"}:
            return np.asarray({"Max": np.maximum, "Min": np.minimum}[node.op_type](*map(self._rescaled, operands)))
        assert node.op_type == "Softmax", node.op_type
        x = operands[0]
        axis = options.get("axis", -1)
        part = np.rint(np.exp(-x.scale * (x.steps.max(axis, keepdims=True) - x.steps)) * 2**23).astype(np.int64)
        whole = part.sum(axis, keepdims=True)
        span = int(np.rint(2**15 / float(self.scale)))
        return self._clip((part * span + (whole << 14)) // (whole << 15) + self.zero)

    def _from(self, sums: Array, scale: Array) -> Array:
        factors = np.asarray(scale, np.float64) / np.float64(self.scale)
        return self._clip(requantize(sums, factors, self.graph.rounding) + self.zero)

    def _rescaled(self, x: Steps) -> Array:
        return self._nearest(x.scale * x.steps)

    def _nearest(self, reals: Array) -> Array:
        return self._clip(np.rint(reals / np.float64(self.scale)) + self.zero)

    def _clip(self, levels: Array) -> Array:
        return np.clip(levels, self.low, self.high).astype(np.int64)

    def _table(self, name: str) -> Array | None:
        """The nearest level to a function of one tensor of levels."""
        sources: set[str] = set()

        def reals(value: str) -> Array | None:
            array = self.graph.constant(value)
            if array is not None:
                return array
            node = self.graph.made.get(value)
            if node is not None and node.op_type == "DequantizeLinear":
                sources.add(node.input[0])
                found = self.graph.steps(value)
                return found.scale * found.steps
            if node is None or node.op_type not in FUNCTIONS:
                return None
            found_inputs = [reals(one) for one in node.input]
            if any(one is None for one in found_inputs):
                return None
            options = attributes(node)
            return np.asarray(FUNCTIONS[node.op_type](*found_inputs, **options))

        found = reals(name)
        return None if found is None or len(sources) != 1 else self._nearest(found)


def conv(x: Steps, w: Steps, options: Mapping[str, Any]) -> Steps:
    """Cross-correlation of steps; what is padded is real 0, which is 0 steps."""
    rank, group = x.steps.ndim - 2, options.get("group", 1)
    kernel, pads = w.steps.shape[2:], options.get("pads", [0] * 2 * rank)
    strides, dilations = options.get("strides", [1] * rank), options.get("dilations", [1] * rank)
    padded = np.pad(x.steps, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]).astype(np.float64)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]
    total = np.zeros((len(padded), w.steps.shape[0], *sizes))
    weights = w.steps.reshape(group, -1, *w.steps.shape[1:]).astype(np.float64)
    for place in np.ndindex(*kernel):
        cut = tuple(
            slice(p * d, p * d + s * (n - 1) + 1, s)
            for p, d, s, n in zip(place, dilations, strides, sizes, strict=True)
        )
        window = padded[(slice(None), slice(None), *cut)].reshape(len(padded), group, -1, *sizes)
        total += np.einsum("ngc...,goc->ngo...", window, weights[(..., *place)]).reshape(total.shape)
    scale = x.scale * w.scale.reshape(-1, *[1] * rank) if w.scale.ndim else x.scale * w.scale
    return Steps(np.rint(total).astype(np.int64), scale, 0, "int32")


def conv_transpose(x: Steps, w: Steps, options: Mapping[str, Any]) -> Steps:
    """Every number of x, times the kernel, added where it falls."""
    rank, group = x.steps.ndim - 2, options.get("group", 1)
    kernel, pads = w.steps.shape[2:], options.get("pads", [0] * 2 * rank)
    strides, dilations = options.get("strides", [1] * rank), options.get("dilations", [1] * rank)
    more, outputs = options.get("output_padding", [0] * rank), w.steps.shape[1]
    whole = [
        s * (n - 1) + d * (k - 1) + 1 + m
        for s, n, d, k, m in zip(strides, x.steps.shape[2:], dilations, kernel, more, strict=True)
    ]
    total = np.zeros((len(x.steps), group, outputs, *whole), np.int64)
    values = x.steps.reshape(len(x.steps), group, -1, *x.steps.shape[2:])
    weights = w.steps.reshape(group, -1, *w.steps.shape[1:])
    for place in np.ndindex(*kernel):
        cut = tuple(
            slice(p * d, p * d + s * (n - 1) + 1, s)
            for p, d, s, n in zip(place, dilations, strides, x.steps.shape[2:], strict=True)
        )
        total[(slice(None), slice(None), slice(None), *cut)] += np.einsum(
            "ngc...,gco->ngo...", values, weights[(..., *place)]
        )
    ends = tuple(slice(pads[d], whole[d] - pads[d + rank]) for d in range(rank))
    scale = np.tile(w.scale.reshape(-1), group).reshape(-1, *[1] * rank) if w.scale.ndim else w.scale
    return Steps(total.reshape(len(total), -1, *whole)[(slice(None), slice(None), *ends)], x.scale * scale, 0, "int32")


def gemm(a: Steps, b: Steps, options: Mapping[str, Any]) -> Steps:
    left = a.steps.T if options.get("transA") else a.steps
    right = b.steps.T if options.get("transB") else b.steps
    scale = a.scale * b.scale.reshape(-1) if b.scale.ndim else a.scale * b.scale
    return Steps(left @ right, scale * np.float64(options.get("alpha", 1.0)), 0, "int32")


def matmul(a: Steps, b: Steps, _: Mapping[str, Any]) -> Steps:
    return Steps(a.steps @ b.steps, a.scale * (b.scale.reshape(-1) if b.scale.ndim else b.scale), 0, "int32")


POOLS = {"AveragePool", "GlobalAveragePool", "ReduceMean"}


def window_sums(
    steps: Array, node: onnx.NodeProto, options: Mapping[str, Any], held: Mapping[str, Array]
) -> tuple[Array, Array]:
    """Sums over windows or axes, and how many numbers each is of."""
    if node.op_type != "AveragePool":
        axes = tuple(range(2, steps.ndim)) if node.op_type == "GlobalAveragePool" else options.get("axes")
        axes = tuple(held[node.input[1]].tolist()) if axes is None else tuple(axes)
        total = steps.sum(axes, keepdims=bool(options.get("keepdims", 1)))
        return total, np.asarray(steps.size / total.size)
    kernel = options["kernel_shape"]
    one = Steps(np.ones((1, 1, *steps.shape[2:]), np.int64), np.ones(()), 0, "")
    ones = Steps(np.ones((1, 1, *kernel), np.int64), np.ones(()), 0, "")
    channels = Steps(np.ones((steps.shape[1], 1, *kernel), np.int64), np.ones(()), 0, "")
    shared = {key: options[key] for key in ("pads", "strides", "dilations") if key in options}
    total = conv(Steps(steps, np.ones(()), 0, ""), channels, {**shared, "group": steps.shape[1]}).steps
    counts = np.asarray(np.prod(kernel)) if options.get("count_include_pad") else conv(one, ones, shared).steps
    return total, counts.astype(np.float64)


def as_float_operator(
    model: onnx.ModelProto, node: onnx.NodeProto, output: str, steps: Array, held: Mapping[str, Array]
) -> Array:
    """What the float operator makes of steps: it only moves them, and real 0 is 0 steps."""
    proto = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    proto.graph.name = "move"
    proto.graph.node.add().CopyFrom(node)
    proto.graph.node[0].input[0] = "steps"
    proto.graph.input.add(name="steps").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for size in steps.shape:
        proto.graph.input[0].type.tensor_type.shape.dim.add(dim_value=size)
    proto.graph.output.add(name=output).type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    proto.graph.initializer.extend(numpy_helper.from_array(held[name], name) for name in node.input[1:] if name)
    session = open_session(ir.from_proto(proto), optimize=False)
    moved = run(session, {"steps": steps.astype(np.float32)})[0]
    return np.asarray(np.rint(moved), np.int64)


def reference(qdq: ir.Model, feeds: Mapping[str, Array], rounding: str) -> list[Array]:
    """The outputs of a QDQ model, computed on integers."""
    return Reference(onnx.load_from_string(serialize(qdq)), feeds, rounding).outputs()
