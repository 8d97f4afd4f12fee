"""SmoothQuant: channels with great activations are divided, and their weights multiplied, before either is quantized.

Source: Xiao et al. 2022, "SmoothQuant", arXiv:2211.10438. For all Linears that read one value X,

    X W = (X / s) (s W),   s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

with ``1 / s`` folded into what makes X: the gains of a normalization, a gain or bias, the columns of a Linear, also on
one side of a product with a gate. The parameter that matters is alpha; each group of Linears gets the one with the
least error of their quantized outputs, or none (as Neural Compressor's and Quark's "auto" do).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.choose.observe import Observer
from qconvert.graph import Operator, attributes, constant, operand, operators
from qconvert.numerics import QuantParams, QuantType, fake_quantize, params_from_range
from qconvert.recover.chains import own_weight, weight_site
from qconvert.recover.edits import NO_PLAN, in_bodies, nodes_of, set_constant
from qconvert.recover.folding import Fold, find_fold
from qconvert.recover.scaling import Floats, over_inputs
from qconvert.recover.types import Context, Rewrite, Rewritten, said
from qconvert.rules import channels

Reals = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Smoothing(Rewrite):
    """Moves the difficulty of quantizing activations to weights.

    Attributes:
        steps: How many values of alpha are tried between 0 and 1, both included.
        rows: How many rows of each value the error is measured on, about.
    """

    name: ClassVar[str] = "smooth"
    title: ClassVar[str] = "SmoothQuant: scales of channels moved from activations to the weights that read them"
    place: ClassVar[int] = 1
    steps: int = 11
    rows: int = 512

    def rewrite(self, model: ir.Model, context: Context) -> Rewritten:
        """See ``Rewrite``."""
        return scaled(
            model, context, self.name, lambda seen, w: best_scale(seen, w, context, steps=self.steps), self.rows
        )


@dataclass(frozen=True)
class Group:
    """Linears that read one value.

    Attributes:
        value: Its name.
        linears: All its readers.
        fold: What divides it.
    """

    value: str
    linears: tuple[Operator, ...]
    fold: Fold


@dataclass(frozen=True)
class Seen:
    """What a value looked like.

    Attributes:
        rows: Some of its rows, ``[n, C]``.
        low: The least value of each channel in all samples, ``[C]``.
        high: The greatest.
    """

    rows: Reals
    low: Floats
    high: Floats


ScaleOf = Callable[[Seen, Sequence[Reals]], Floats | None]
"""The scale of each channel of a value that weights ``[C, O]`` are multiplied with, or None to leave it as it is."""


def scaled(model: ir.Model, context: Context, method: str, scale_of: ScaleOf, rows: int) -> Rewritten:
    """A model in which the channels of values are divided, and the weights that read them multiplied.

    Args:
        model: A prepared float graph; left as it is.
        context: Samples.
        method: The name of the method, for its note.
        scale_of: Chooses.
        rows: How many rows of each value it is shown, about.
    """
    groups, left_out = find_groups(model)
    copy = model.clone()
    nodes = nodes_of(copy)
    changed: list[str] = []
    for group, seen in zip(groups, _seen(model, groups, context, rows), strict=True):
        reason = context.refusal(method, *(op.name for op in group.linears))
        scale = None if reason else scale_of(seen, [_columns(op) for op in group.linears])
        if scale is None:
            left_out.update({op.name: reason or "for which no scale is better than none" for op in group.linears})
            continue
        group.fold.divide(nodes, scale)
        for op in group.linears:
            _multiply(nodes, op, scale)
        changed += group.fold.values
    done = sum(op.name not in left_out for group in groups for op in group.linears)
    return Rewritten(copy if changed else model, changed, (said(method, done, left_out),))


def find_groups(model: ir.Model) -> tuple[list[Group], dict[str, str]]:
    """The Linears whose input can be scaled, in topological order, and why others cannot, by name."""
    by_node = {op.node: op for op in operators(model)}
    found: list[Group] = []
    refused = in_bodies(model)
    for op in by_node.values():
        value = op.node.inputs[0] if op.op_type in {"MatMul", "Gemm"} and not op.subgraph else None
        weight = own_weight(op) if value is not None else None
        if value is None or weight is None or any(op in group.linears for group in found):
            continue
        readers = [by_node.get(use.node) for use in value.uses()]
        linears = tuple(reader for reader in readers if reader is not None and _reads_rows(reader, value))
        fold: Fold | str = "whose input others read, too"
        if len(linears) == len(readers) and not value.is_graph_output():
            size = channels(op.op_type, weight.shape, attributes(op.node))[0].size
            fold = find_fold(value, size, by_node)
        if isinstance(fold, str):
            refused[op.name] = fold if fold.startswith("whose") else f"whose input is {fold}"
        else:
            found.append(Group(value.name or "", linears, fold))
    return found, refused


def best_scale(seen: Seen, weights: Sequence[Reals], context: Context, *, steps: int) -> Floats | None:
    """The scale of each channel with the least error of the quantized products, ``[C]``; None if none beats 1.

    Args:
        seen: The value that is multiplied.
        weights: With what, ``[C, O]`` each.
        context: The types that both get.
        steps: How many values of alpha are tried.
    """
    weight = np.concatenate(weights, 1)
    exact = seen.rows.astype(np.float64) @ weight
    reach, width = np.maximum(seen.high, -seen.low), np.abs(weight).max(1).astype(np.float64)
    usable = (reach > 0) & (width > 0)
    best, least = None, _error(seen, weight, exact, np.ones(reach.size), context)
    for alpha in np.linspace(0, 1, steps):
        scale = np.where(usable, reach, 1.0) ** alpha / np.where(usable, width, 1.0) ** (1 - alpha)
        scale = np.where(usable, scale / np.exp(np.log(scale[usable]).mean()) if usable.any() else 1.0, 1.0)
        error = _error(seen, weight, exact, scale, context)
        if error < least:
            best, least = scale, error
    return best


def _error(seen: Seen, weight: Reals, exact: Floats, scale: Floats, context: Context) -> float:
    """Squared error of the product where both factors are quantized."""
    grid = params_from_range(
        min((seen.low / scale).min(), 0.0), (seen.high / scale).max(), context.activations, symmetric=False
    )
    given = fake_quantize((seen.rows / scale).astype(np.float32), grid)
    scaled = (weight * scale[:, None]).astype(np.float32)
    kernel = fake_quantize(scaled, _by_column(scaled, context.weights))
    return float(np.square(given.astype(np.float64) @ kernel - exact).sum())


def _by_column(weight: Reals, dtype: QuantType) -> QuantParams:
    most = np.abs(weight).max(0)
    return params_from_range(-most, most, dtype, symmetric=True, axis=1)


def _reads_rows(op: Operator, value: ir.Value) -> bool:
    """Whether an operator multiplies the rows of a value with a weight of its own."""
    plain = op.op_type in {"MatMul", "Gemm"} and not op.subgraph and not attributes(op.node).get("transA")
    weight = own_weight(op) if plain else None
    return weight is not None and weight.ndim == 2 and op.node.inputs[0] is value


def _columns(op: Operator) -> Reals:
    """The weight of a Linear as ``[C, O]``."""
    array = constant(operand(op.node, weight_site(op).operand))
    turned = op.op_type == "Gemm" and attributes(op.node).get("transB")
    return np.asarray(array.T if turned else array, np.float32) if array is not None else np.zeros((0, 0), np.float32)


def _multiply(nodes: Mapping[str, ir.Node], op: Operator, scale: Floats) -> None:
    """Multiplies the input channels of a weight."""
    site = weight_site(op)
    array = constant(operand(nodes[op.name], site.operand))
    if array is not None:
        factor = over_inputs(op.op_type, array.shape, attributes(op.node), scale)
        set_constant(nodes, NO_PLAN, (site,), (array * factor).astype(np.float32))


def _seen(model: ir.Model, groups: Sequence[Group], context: Context, rows: int) -> list[Seen]:
    """What the values of all groups look like in the samples."""
    names = [group.value for group in groups]
    if not names:
        return []
    observe = Observer(model, names)
    parts: list[list[Reals]] = [[] for _ in names]
    ends: list[list[tuple[Reals, Reals]]] = [[] for _ in names]
    each = max(rows // len(context.probes), 1)
    for probe in context.probes:
        found = observe(names, probe)
        for index, name in enumerate(names):
            flat = found[name].reshape(-1, found[name].shape[-1])
            parts[index].append(flat[:: max(len(flat) // each, 1)].copy())
            ends[index].append((flat.min(0), flat.max(0)))
    return [
        Seen(
            np.concatenate(part),
            np.min([low for low, _ in end], 0).astype(np.float64),
            np.max([high for _, high in end], 0).astype(np.float64),
        )
        for part, end in zip(parts, ends, strict=True)
    ]
