"""Runs parts of ONNX graphs in PyTorch, for their gradients; pairs of QuantizeLinear and DequantizeLinear pass them.

Such a pair rounds its input to a grid, which has no gradient: it is taken to be 1 on the grid and 0 beyond it (the
straight-through estimator; Bengio et al. 2013, arXiv:1308.3432). PyTorch is an extra, ``qconvert[train]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.graph import attributes, constant, is_constant, operand
from qconvert.numerics import QUANT_TYPES

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    Made: TypeAlias = Tensor | tuple[Tensor, ...]

PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def library(purpose: str) -> ModuleType:
    """PyTorch.

    Args:
        purpose: What needs it, for the error.

    Raises:
        PlanError: If it is not installed.
    """
    try:
        import torch  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise PlanError(
            f"{purpose} needs torch, which is not installed", hint="pip install 'qconvert[train]', or pip install torch"
        ) from error
    module: ModuleType = torch
    return module


@dataclass(frozen=True)
class Part:
    """Operators between some values of a graph.

    Attributes:
        nodes: They, in topological order.
        inputs: What they read that is neither constant nor made by them.
        outputs: What is wanted of what they make.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]

    @property
    def unsupported(self) -> str:
        """An operator type among them that cannot be run, or ""."""
        foreign = (
            node.op_type for node in self.nodes if node.op_type not in OPERATORS or node.domain not in {"", "ai.onnx"}
        )
        return next(foreign, "")

    def constants(self) -> dict[ir.Value, Tensor]:
        """The constants that they read; grids of pairs not among them."""
        read = [node.inputs[:1] if node.op_type in PAIRS else node.inputs for node in self.nodes]
        values = dict.fromkeys(value for some in read for value in some if value is not None and is_constant(value))
        return {value: _tensor(constant(value)) for value in values}

    def run(self, values: Mapping[ir.Value, Tensor]) -> list[Tensor]:
        """The outputs; see ``compute``."""
        known = self.compute(values)
        return [known[value] for value in self.outputs]

    def compute(self, values: Mapping[ir.Value, Tensor]) -> dict[ir.Value, Tensor]:
        """What they make and what they read.

        Args:
            values: The inputs and constants, or what shall stand in their place.

        Raises:
            NotImplementedError: If an operator has attributes that are not known here.
            RuntimeError: If PyTorch refuses the inputs of an operator.
        """
        torch, known = library("a graph in PyTorch"), dict(values)
        for node in self.nodes:
            read = tuple(known.get(value) if value is not None else None for value in node.inputs)
            made = OPERATORS[node.op_type](Call(torch, node, read, attributes(node)))
            known.update(zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False))
        return known


def part_behind(graph: ir.Graph, first: ir.Node, outputs: Sequence[ir.Value]) -> Part:
    """The operators from ``first`` on, in the order of the graph, that some values depend on."""
    rank = {node: place for place, node in enumerate(graph)}
    found, todo = set[ir.Node](), [value.producer() for value in outputs]
    while todo:
        node = todo.pop()
        if node is not None and node not in found and rank[node] >= rank[first]:
            found.add(node)
            todo += [value.producer() for value in node.inputs if value is not None]
    nodes = sorted(found, key=lambda node: rank[node])
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    inputs = [value for value in read if not is_constant(value) and value.producer() not in found]
    return Part(tuple(nodes), tuple(inputs), tuple(outputs))


@dataclass(frozen=True)
class Call:
    """An operator and what it reads.

    Attributes:
        torch: PyTorch.
        node: It.
        read: Its operands; None where one is left out.
        attributes: By name, as Python values.
    """

    torch: ModuleType
    node: ir.Node
    read: tuple[Tensor | None, ...]
    attributes: Mapping[str, Any]

    @property
    def x(self) -> Tensor:
        """The first operand."""
        return self.at(0)

    def at(self, position: int) -> Tensor:
        """An operand that must be there.

        Raises:
            NotImplementedError: If it is not.
        """
        found = self.get(position)
        if found is None:
            raise self.refusal(f"no operand {position}")
        return found

    def get(self, position: int) -> Tensor | None:
        """An operand, or None."""
        return self.read[position] if position < len(self.read) else None

    def numbers(self, name: str, position: int) -> list[Any] | None:
        """What newer operator sets read and older ones have as an attribute."""
        tensor = self.get(position)
        found = self.attributes.get(name) if tensor is None else tensor.reshape(-1).tolist()
        return found if found is None else list(found) if isinstance(found, Sequence) else [found]

    def number(self, name: str, default: float) -> float:
        """An attribute."""
        return float(self.attributes.get(name, default))

    def whole(self, name: str, default: int) -> int:
        """An attribute."""
        return int(self.attributes.get(name, default))

    def refusal(self, why: str) -> NotImplementedError:
        """An error that names the operator."""
        return NotImplementedError(f"{self.node.op_type} with {why}")


def _tensor(array: npt.NDArray[Any] | None) -> Tensor:
    torch = library("a graph in PyTorch")
    native = np.asarray(array)
    native = native if native.dtype.kind in "bifu" else native.astype(np.int32)  # levels of less than 8 bits
    return torch.from_numpy(np.array(native))


def _pads(call: Call, rank: int, windows: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is added before and behind each axis; ``windows`` are stride and span."""
    mode = call.attributes.get("auto_pad", "NOTSET")
    if mode in {"NOTSET", "VALID"}:
        pads = (call.attributes.get("pads") if mode == "NOTSET" else None) or [0] * 2 * rank
        return list(zip(pads[:rank], pads[rank:], strict=True))
    found = []
    for size, (stride, span) in zip(call.x.shape[2:], windows, strict=True):
        missing = max((-(-size // stride) - 1) * stride + span - size, 0)
        small = missing // 2
        found.append((small, missing - small) if mode == "SAME_UPPER" else (missing - small, small))
    return found


def _windows(call: Call, kernel: Sequence[int]) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Strides, dilations and pads of a sliding window."""
    rank = len(kernel)
    strides = list(call.attributes.get("strides") or [1] * rank)
    dilations = list(call.attributes.get("dilations") or [1] * rank)
    spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    return strides, dilations, _pads(call, rank, list(zip(strides, spans, strict=True)))


def _padded(call: Call, x: Tensor, pads: Sequence[tuple[int, int]], value: float) -> Tensor:
    flat = [number for pair in reversed(pads) for number in pair]
    return call.torch.nn.functional.pad(x, flat, value=value) if any(flat) else x


def _conv(call: Call) -> Tensor:
    weight = call.at(1)
    strides, dilations, pads = _windows(call, weight.shape[2:])
    x, same = call.x, all(low == high for low, high in pads)
    if not same:
        x = _padded(call, x, pads, 0.0)
    run = getattr(call.torch.nn.functional, f"conv{len(pads)}d")
    return run(
        x, weight, call.get(2), strides, [low if same else 0 for low, _ in pads], dilations, call.whole("group", 1)
    )


def _conv_transpose(call: Call) -> Tensor:
    weight = call.at(1)
    if call.attributes.get("auto_pad", "NOTSET") != "NOTSET" or call.attributes.get("output_shape"):
        raise call.refusal("auto_pad or output_shape")
    strides, dilations, pads = _windows(call, weight.shape[2:])
    rank, group = len(pads), call.whole("group", 1)
    more = list(call.attributes.get("output_padding") or [0] * rank)
    run = getattr(call.torch.nn.functional, f"conv_transpose{rank}d")
    y = run(call.x, weight, call.get(2), strides, [0] * rank, more, group, dilations)
    return y[(..., *(slice(low, size - high) for (low, high), size in zip(pads, y.shape[2:], strict=True)))]


def _gemm(call: Call) -> Tensor:
    a = call.x.T if call.whole("transA", 0) else call.x
    b = call.at(1).T if call.whole("transB", 0) else call.at(1)
    alpha, beta, c = call.number("alpha", 1.0), call.number("beta", 1.0), call.get(2)
    y = a @ b if alpha == 1 else alpha * (a @ b)
    return y if c is None else y + (c if beta == 1 else beta * c)


def _divide(call: Call) -> Tensor:
    return call.torch.div(call.x, call.at(1), rounding_mode=None if call.x.is_floating_point() else "trunc")


def _clip(call: Call) -> Tensor:
    """Bounds behind a QuantizeLinear are those of levels, which it has heeded."""
    maker = operand(call.node, 0)
    producer = maker.producer() if maker is not None else None
    if producer is not None and producer.op_type == "QuantizeLinear" and call.x.is_floating_point():
        return call.x
    low, high = (call.numbers(name, place) for place, name in ((1, "min"), (2, "max")))
    return call.x if low is None and high is None else call.torch.clamp(call.x, low and low[0], high and high[0])


def _pool(call: Call, *, average: bool) -> Tensor:
    kernel = list(call.attributes["kernel_shape"])
    strides, dilations, pads = _windows(call, kernel)
    inside, functions = all(low == high for low, high in pads), call.torch.nn.functional
    ceil = bool(call.whole("ceil_mode", 0))
    whole = bool(call.whole("count_include_pad", 0))
    if not average:
        x = _padded(call, call.x, pads, -math.inf)
        return getattr(functions, f"max_pool{len(pads)}d")(x, kernel, strides, 0, dilations, ceil)
    if any(one != 1 for one in dilations) or (ceil and any(map(any, pads))) or not (inside or whole):
        raise call.refusal("these windows")
    x, some = (call.x, [low for low, _ in pads]) if inside else (_padded(call, call.x, pads, 0.0), [0] * len(pads))
    run = getattr(functions, f"avg_pool{len(pads)}d")
    return run(x, kernel, strides, some, ceil_mode=ceil, count_include_pad=whole)


def _mean(call: Call) -> Tensor:
    axes = call.numbers("axes", 1)
    if not axes and call.whole("noop_with_empty_axes", 0):
        return call.x
    return call.x.mean(axes or list(range(call.x.ndim)), keepdim=bool(call.whole("keepdims", 1)))


def _global_mean(call: Call) -> Tensor:
    return call.x.mean(list(range(2, call.x.ndim)), keepdim=True)


def _layer_norm(call: Call) -> Tensor:
    axis = call.whole("axis", -1) % call.x.ndim
    shape, epsilon = call.x.shape[axis:], call.number("epsilon", 1e-5)
    gain, shift = call.at(1).expand(shape), call.get(2)
    shift = None if shift is None else shift.expand(shape)
    return call.torch.nn.functional.layer_norm(call.x, shape, gain, shift, epsilon)


def _batch_norm(call: Call) -> Tensor:
    gain, shift, mean, variance = (call.at(place) for place in range(1, 5))
    epsilon = call.number("epsilon", 1e-5)
    return call.torch.nn.functional.batch_norm(call.x, mean, variance, gain, shift, training=False, eps=epsilon)


def _prelu(call: Call) -> Tensor:
    return call.torch.where(call.x > 0, call.x, call.x * call.at(1))


def _gelu(call: Call) -> Tensor:
    return call.torch.nn.functional.gelu(call.x, approximate=call.attributes.get("approximate", "none"))


def _hard_sigmoid(call: Call) -> Tensor:
    return (call.number("alpha", 0.2) * call.x + call.number("beta", 0.5)).clamp(0, 1)


def _pad(call: Call) -> Tensor:
    x, amounts, axes = call.x, call.numbers("pads", 1) or [], call.numbers("axes", 3)
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    pairs = dict(zip(axes, zip(amounts[: len(axes)], amounts[len(axes) :], strict=True), strict=True))
    if call.attributes.get("mode", "constant") != "constant":
        raise call.refusal(f"mode {call.attributes['mode']}")
    value = call.numbers("value", 2)
    return _padded(call, x, [pairs.get(axis, (0, 0)) for axis in range(x.ndim)], value[0] if value else 0.0)


def _reshape(call: Call) -> Tensor:
    shape = call.numbers("shape", 1) or []
    if not call.whole("allowzero", 0):
        shape = [call.x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return call.x.reshape(shape)


def _transpose(call: Call) -> Tensor:
    return call.x.permute(list(call.attributes.get("perm") or reversed(range(call.x.ndim))))


def _flatten(call: Call) -> Tensor:
    axis = call.whole("axis", 1)
    axis = axis + call.x.ndim if axis < 0 else axis
    return call.x.reshape(math.prod(call.x.shape[:axis]), -1)


def _concat(call: Call) -> Tensor:
    return call.torch.cat([call.at(place) for place in range(len(call.read))], int(call.attributes["axis"]))


def _split(call: Call) -> tuple[Tensor, ...]:
    axis, parts = call.whole("axis", 0), len(call.node.outputs)
    sizes = call.numbers("split", 1) or -(-call.x.shape[axis] // parts)
    return tuple(call.x.split(sizes, axis))


def _slice(call: Call) -> Tensor:
    x, starts, ends = call.x, call.numbers("starts", 1) or [], call.numbers("ends", 2) or []
    axes, steps = call.numbers("axes", 3) or range(len(starts)), call.numbers("steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        kept = list(range(*slice(start, end, step).indices(x.shape[axis])))
        x = x.index_select(axis, call.torch.tensor(kept, dtype=call.torch.int64))
    return x


def _gather(call: Call) -> Tensor:
    x, index, axis = call.x, call.at(1), call.whole("axis", 0) % call.x.ndim
    flat = (index.reshape(-1).long() % x.shape[axis]) if x.shape[axis] else index.reshape(-1).long()
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _squeeze(call: Call) -> Tensor:
    axes = call.numbers("axes", 1)
    return call.x.squeeze() if axes is None else call.x.squeeze(axes)


def _unsqueeze(call: Call) -> Tensor:
    axes = call.numbers("axes", 1) or []
    x, rank = call.x, call.x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _cast(call: Call) -> Tensor:
    kinds = {"FLOAT": "float32", "DOUBLE": "float64", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
    name = ir.DataType(int(call.attributes["to"])).name
    if name not in kinds:
        raise call.refusal(f"type {name}")
    return call.x.to(getattr(call.torch, kinds[name]))


def _where(call: Call) -> Tensor:
    return call.torch.where(call.x, call.at(1), call.at(2))


def _shape(call: Call) -> Tensor:
    start, end = call.whole("start", 0), call.attributes.get("end")
    return call.torch.tensor(list(call.x.shape)[start:end], dtype=call.torch.int64)


def _resize(call: Call) -> Tensor:
    """Whole factors, nearest: all ways to map coordinates agree on these but where corners are aligned."""
    if call.attributes.get("mode", "nearest") != "nearest" or call.attributes.get("axes"):
        raise call.refusal("another mode than nearest, or axes")
    if call.attributes.get("coordinate_transformation_mode") == "align_corners":
        raise call.refusal("aligned corners")
    scales, sizes = call.get(2), call.get(3)
    wanted = sizes.tolist() if sizes is not None else [a * b for a, b in zip(call.x.shape, call.at(2), strict=True)]
    x = call.x
    for axis, (old, new) in enumerate(zip(call.x.shape, wanted, strict=True)):
        if float(new) % old:
            raise call.refusal(f"factor {float(new) / old if scales is None else float(scales[axis])}")
        x = x if int(new) == old else x.repeat_interleave(int(new) // old, axis)
    return x


@dataclass(frozen=True)
class _Grid:
    """That of a pair: scale and zero point per tensor, or ``[C]`` along ``axis``."""

    scale: npt.NDArray[np.float32]
    zero: npt.NDArray[np.int32]
    axis: int
    low: int
    high: int


def _grid(call: Call) -> _Grid:
    scale, zero = (constant(operand(call.node, place)) for place in (1, 2))
    value = operand(call.node, 2)
    name = value.dtype.name.lower() if value is not None and value.dtype is not None else "uint8"
    if scale is None or (zero is None and value is not None) or name not in QUANT_TYPES or call.whole("block_size", 0):
        raise call.refusal("a grid that is computed, in blocks, or of floats")
    kind, low, high = QUANT_TYPES[name], QUANT_TYPES[name].qmin, QUANT_TYPES[name].qmax
    whole = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32)
    uses = tuple(call.node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Clip":
        ends = (constant(operand(uses[0].node, place)) for place in (1, 2))
        low, high = (
            int(end) if end is not None else own for end, own in zip(ends, (kind.qmin, kind.qmax), strict=True)
        )
    return _Grid(np.asarray(scale, np.float32), whole, call.whole("axis", 1), low, high)


def _quantize(call: Call) -> Tensor:
    """The reals of the levels, not the levels: what dequantizes them has nothing left to do."""
    grid, torch = _grid(call), call.torch
    if grid.scale.size == 1:
        scale, zero = float(grid.scale.reshape(-1)[0]), int(grid.zero.reshape(-1)[0])
        return torch.fake_quantize_per_tensor_affine(call.x, scale, zero, grid.low, grid.high)
    axis, ends = grid.axis % call.x.ndim, (grid.low, grid.high)
    tensors = (torch.from_numpy(np.array(one)) for one in (grid.scale, grid.zero))
    return torch.fake_quantize_per_channel_affine(call.x, *tensors, axis, *ends)


def _dequantize(call: Call) -> Tensor:
    if call.x.is_floating_point():
        return call.x
    scale, zero = (constant(operand(call.node, place)) for place in (1, 2))
    if scale is None or call.whole("block_size", 0):
        raise call.refusal("a grid that is computed or in blocks")
    axis = call.whole("axis", 1) % max(call.x.ndim, 1)
    shape = [-1 if place == axis else 1 for place in range(call.x.ndim)] if scale.size > 1 else []
    whole = np.zeros(scale.shape, np.float32) if zero is None else zero.astype(np.float32)
    steps, zeros = (_tensor(np.asarray(one, np.float32)).reshape(shape) for one in (scale, whole))
    return (call.x.float() - zeros) * steps


OPERATORS: Mapping[str, Callable[[Call], Made]] = {
    "Add": lambda call: call.x + call.at(1),
    "AveragePool": lambda call: _pool(call, average=True),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DequantizeLinear": _dequantize,
    "Div": _divide,
    "Elu": lambda call: call.torch.nn.functional.elu(call.x, call.number("alpha", 1.0)),
    "Erf": lambda call: call.torch.erf(call.x),
    "Exp": lambda call: call.x.exp(),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_mean,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda call: call.torch.nn.functional.hardswish(call.x),
    "Identity": lambda call: call.x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda call: call.torch.nn.functional.leaky_relu(call.x, call.number("alpha", 0.01)),
    "MatMul": lambda call: call.x @ call.at(1),
    "MaxPool": lambda call: _pool(call, average=False),
    "Mul": lambda call: call.x * call.at(1),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": lambda call: call.x ** call.at(1),
    "QuantizeLinear": _quantize,
    "ReduceMean": _mean,
    "Relu": lambda call: call.x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": lambda call: call.x.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda call: call.x.softmax(call.whole("axis", -1)),
    "Split": _split,
    "Sqrt": lambda call: call.x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda call: call.x - call.at(1),
    "Tanh": lambda call: call.x.tanh(),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""What each operator computes, first operands first."""
