"""What ``qconvert formats`` prints: the supported cells of each target, mode and format together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

from qconvert.plan.dynamic import PRODUCTS
from qconvert.plan.weight_only import GROUPED
from qconvert.rewrite.limits import LIMITS
from qconvert.support.cells import Cell, cells
from qconvert.targets import HEAVY, TARGETS, Format, Granularity, Mode, Target


@dataclass(frozen=True)
class Row:
    """The supported cells of a target in one mode and format.

    Attributes:
        target: Name of the runtime.
        mode: When activations are quantized.
        format: What stands in the file.
        weights: Types of weights.
        activations: Types of activations.
        apart: Pairs of these types, of activations and weights, that do not go together.
        schemes: Which values of a weight may share a scale, with the operator types whose weights take that; those of
            others have one for the tensor, or for each channel where groups were asked for.
        group_sizes: How many inputs may share one; empty: any number.
        low_bits: The operator types whose weights may have fewer than 8 bits.
        activation_schemes: Which activations may share a scale that is found at run time.
        inputs: What float inputs may become.
        outputs: What float outputs may become.
        operators: The operator types that are quantized.
    """

    target: str
    mode: Mode
    format: Format
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    apart: tuple[tuple[str, str], ...]
    schemes: Mapping[str, tuple[str, ...]]
    group_sizes: tuple[int, ...]
    low_bits: tuple[str, ...]
    activation_schemes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: tuple[str, ...]


def rows() -> tuple[Row, ...]:
    """One row for each target, mode and format with a supported cell."""
    found: list[Row] = []
    for target in TARGETS.values():
        for _, group in groupby(cells(target), key=lambda cell: (cell.mode, cell.format)):
            found.append(_row(target, tuple(group)))
    return tuple(found)


def _row(target: Target, found: tuple[Cell, ...]) -> Row:
    def seen(name: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(getattr(cell, name) for cell in found))

    pairs = {(cell.activations, cell.weights) for cell in found}
    every = product(seen("activations"), seen("weights"))
    first = found[0]
    quantized = operators(target, first.mode, first.format)
    return Row(
        target.name,
        first.mode,
        first.format,
        seen("weights"),
        seen("activations"),
        tuple(pair for pair in every if pair not in pairs),
        {name: tuple(sorted(_takers(target, first.mode, name) & quantized)) for name in seen("scheme")},
        target.group_sizes if first.mode == "weight-only" else (),
        tuple(sorted(quantized & _low(target, first.mode))),
        seen("activation_scheme"),
        seen("input_type"),
        seen("output_type"),
        tuple(sorted(quantized)),
    )


def _low(target: Target, mode: Mode) -> frozenset[str]:
    return target.low_bit_ops if mode == "static" else frozenset({*HEAVY, "Gather"})


def _takers(target: Target, mode: Mode, scheme: Granularity) -> frozenset[str]:
    """The operator types whose weights take a granularity."""
    if mode == "weight-only":
        return GROUPED if scheme == "per-group" else target.stored_ops
    narrower = {"per-channel": target.per_channel | target.recurrent, "per-group": target.per_group}
    return narrower.get(scheme, frozenset(HEAVY) | target.recurrent)


def operators(target: Target, mode: Mode, name: Format) -> frozenset[str]:
    """The operator types that are quantized for a target."""
    if mode == "weight-only":
        return target.stored_ops
    if mode == "dynamic":
        return frozenset(PRODUCTS) | target.recurrent
    known = LIMITS[name].operators
    return target.integer_ops if known is None else target.integer_ops & known
