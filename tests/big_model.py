"""A Llama-like decoder with random weights of any size, written without holding them.

RMS normalization, rotary embeddings, grouped-query attention with a key/value cache, SwiGLU. ``python
tests/big_model.py OUT`` writes one of 5 GB.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
PAST, NOW = "past_sequence_length", "sequence_length"


@dataclass(frozen=True)
class Size:
    """The numbers of a decoder; the defaults make one of 300 kB."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    groups: int = 2
    inner: int = 96
    vocabulary: int = 160
    positions: int = 64
    tied: bool = False

    @property
    def head(self) -> int:
        return self.hidden // self.heads


FIVE_GIGABYTES = Size(2048, 26, 32, 4, 5632, 32000, 2048)
"""As TinyLlama 1.1B, with four layers more."""


@dataclass
class _Builder:
    size: Size
    seed: int
    nodes: list[ir.Node] = field(default_factory=list)
    weights: list[ir.Value] = field(default_factory=list)
    constants: dict[str, ir.Value] = field(default_factory=dict)

    def op(self, op_type: str, *inputs: ir.Value, name: str = "", outputs: int = 1, **attributes: object) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes, num_outputs=outputs)
        self.nodes.append(node)
        for place, value in enumerate(node.outputs):
            value.name = f"{name or f'{op_type}_{len(self.nodes)}'}{f'_{place}' if outputs > 1 else ''}"
        return node.outputs[0]

    def weight(self, name: str, *shape: int) -> ir.Value:
        """Normal numbers, made anew whenever they are read."""
        key = [self.seed, len(self.weights)]

        def make() -> ir.TensorProtocol:
            drawn = np.random.default_rng(key).standard_normal(shape, np.float32)
            return ir.Tensor(drawn / np.float32(math.sqrt(shape[0] if len(shape) > 1 else 1)), name=name)

        return self._store(ir.LazyTensor(make, FLOAT, ir.Shape(shape), name=name))

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        if name not in self.constants:
            self.constants[name] = self._store(ir.Tensor(array, name=name))
        return self.constants[name]

    def ints(self, *numbers: int) -> ir.Value:
        return self.constant("ints_" + "_".join(map(str, numbers)).replace("-", "m"), np.array(numbers, np.int64))

    def _store(self, tensor: ir.Tensor[Any] | ir.LazyTensor) -> ir.Value:
        value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.weights.append(value)
        return value

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        square = self.op("Mul", x, x)
        mean = self.op("ReduceMean", square, self.ints(-1), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.constant("epsilon", np.array(1e-5, np.float32))))
        gain = self.constant(name, np.ones(self.size.hidden, np.float32))
        return self.op("Mul", self.op("Div", x, root), gain)

    def rows(self, x: ir.Value, name: str, heads: int) -> ir.Value:
        """``[batch, heads, sequence, head]``."""
        made = self.op("MatMul", x, self.weight(f"{name}.weight", self.size.hidden, heads * self.size.head), name=name)
        return self.op("Transpose", self.op("Reshape", made, self.ints(0, 0, heads, self.size.head)), perm=[0, 2, 1, 3])

    def rotate(self, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        first = self.op("Split", x, outputs=2, axis=-1, num_outputs=2)
        second = self.nodes[-1].outputs[1]
        low = self.op("Sub", self.op("Mul", first, cos), self.op("Mul", second, sin))
        high = self.op("Add", self.op("Mul", second, cos), self.op("Mul", first, sin))
        return self.op("Concat", low, high, axis=-1)

    def repeated(self, x: ir.Value) -> ir.Value:
        """The keys or values of a group for each of its heads."""
        times = self.ints(1, 1, self.size.heads // self.size.groups, 1, 1)
        tiled = self.op("Tile", self.op("Unsqueeze", x, self.ints(2)), times)
        return self.op("Reshape", tiled, self.ints(0, self.size.heads, -1, self.size.head))


def decoder(size: Size, *, seed: int = 0, opset: int = 18) -> ir.Model:
    """The model; its weights are drawn when they are read."""
    b = _Builder(size, seed)
    tokens, positions = (_port(name, INT64, "batch", NOW) for name in ("input_ids", "position_ids"))
    mask = _port("attention_mask", INT64, "batch", f"{PAST} + {NOW}")
    table = b.weight("embedding.weight", size.vocabulary, size.hidden)
    x = b.op("Gather", table, tokens, name="embedding")
    angles = np.arange(size.positions)[:, None] * 10000.0 ** (-np.arange(0, size.head, 2) / size.head)
    cos, sin = (
        b.op("Unsqueeze", b.op("Gather", b.constant(name, turn(angles).astype(np.float32)), positions), b.ints(1))
        for name, turn in (("cos", np.cos), ("sin", np.sin))
    )
    allowed = _allowed(b, positions, mask)
    inputs, outputs = [tokens, positions, mask], []
    for layer in range(size.layers):
        past = [
            _port(f"past.{layer}.{what}", FLOAT, "batch", size.groups, PAST, size.head) for what in ("key", "value")
        ]
        inputs += past
        attended, present = _attention(b, b.norm(x, f"{layer}.norm1"), past, (cos, sin, allowed), layer)
        outputs += present
        x = b.op("Add", x, attended)
        x = b.op("Add", x, _feed_forward(b, b.norm(x, f"{layer}.norm2"), layer))
    x = b.norm(x, "norm")
    head = b.op("Transpose", table, perm=[1, 0]) if size.tied else b.weight("head.weight", size.hidden, size.vocabulary)
    logits = b.op("MatMul", x, head, name="logits")
    logits.type = ir.TensorType(FLOAT)
    graph = ir.Graph(
        inputs, [logits, *outputs], nodes=b.nodes, initializers=b.weights, opset_imports={"": opset}, name="decoder"
    )
    return ir.Model(graph, ir_version=8 if opset < 21 else 10)


def _port(name: str, dtype: ir.DataType, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _allowed(b: _Builder, positions: ir.Value, mask: ir.Value) -> ir.Value:
    """0 where a token may look, and far below where it may not: ahead, or at padding."""
    length = b.op("Gather", b.op("Shape", mask), b.constant("one", np.array(1)), axis=0)
    places = b.op("Range", b.constant("zero", np.array(0)), length, b.constant("one", np.array(1)))
    behind = b.op("GreaterOrEqual", b.op("Unsqueeze", positions, b.ints(1, 3)), places)
    kept = b.op("Unsqueeze", b.op("Cast", mask, to=BOOL), b.ints(1, 2))
    zero, low = (b.constant(f"mask_{n}", np.array(n, np.float32)) for n in (0, -10000))
    return b.op("Where", b.op("And", behind, kept), zero, low)


def _attention(
    b: _Builder, x: ir.Value, past: list[ir.Value], shared: tuple[ir.Value, ir.Value, ir.Value], layer: int
) -> tuple[ir.Value, list[ir.Value]]:
    size, (cos, sin, allowed) = b.size, shared
    query = b.rotate(b.rows(x, f"{layer}.query", size.heads), cos, sin)
    key = b.rotate(b.rows(x, f"{layer}.key", size.groups), cos, sin)
    value = b.rows(x, f"{layer}.value", size.groups)
    present = []
    for before, new, what in zip(past, (key, value), ("key", "value"), strict=True):
        made = b.op("Concat", before, new, axis=2, name=f"present.{layer}.{what}")
        made.type = ir.TensorType(FLOAT)
        present.append(made)
    keys, values = (b.repeated(one) for one in present)
    products = b.op("MatMul", query, b.op("Transpose", keys, perm=[0, 1, 3, 2]))
    scaled = b.op("Mul", products, b.constant("scale", np.array(size.head**-0.5, np.float32)))
    chosen = b.op("MatMul", b.op("Softmax", b.op("Add", scaled, allowed), axis=-1), values)
    flat = b.op("Reshape", b.op("Transpose", chosen, perm=[0, 2, 1, 3]), b.ints(0, 0, size.hidden))
    return b.op("MatMul", flat, b.weight(f"{layer}.output.weight", size.hidden, size.hidden)), present


def _feed_forward(b: _Builder, x: ir.Value, layer: int) -> ir.Value:
    gate, up = (
        b.op("MatMul", x, b.weight(f"{layer}.{name}.weight", b.size.hidden, b.size.inner)) for name in ("gate", "up")
    )
    active = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
    return b.op("MatMul", active, b.weight(f"{layer}.down.weight", b.size.inner, b.size.hidden))


def write(path: Path, size: Size, *, seed: int = 0, opset: int = 18) -> Path:
    """Writes the model with its weights beside it."""
    ir.save(decoder(size, seed=seed, opset=opset), path, external_data=f"{path.name}.data")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes a decoder of 5 GB.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--tied", action="store_true")
    given = parser.parse_args()
    write(given.output, Size(**{**FIVE_GIGABYTES.__dict__, "tied": given.tied}))
