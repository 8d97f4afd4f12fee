"""Grids for outputs that a plan leaves float, for models that shall give levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from qconvert.graph import operators
from qconvert.histogram import TensorStats
from qconvert.numerics import QUANT_TYPES, Range, params_from_range
from qconvert.plan.types import Entry, Plan, Site
from qconvert.rules import OP_RULES
from qconvert.targets import get_target


def quantize_outputs(model: ir.Model, plan: Plan, stats: Mapping[str, TensorStats]) -> Plan:
    """The plan with a grid, asymmetric where the target takes that, for every float32 output that has none.

    An output without statistics whose range no rule knows stays float.

    Args:
        model: The prepared graph that the plan is for.
        plan: It.
        stats: Statistics by value name; the extremes of an output count.
    """
    taken = {site for entry in plan.entries for site in entry.sites}
    makers = {value.name: op.op_type for op in operators(model) for value in op.node.outputs}
    first = next((entry.params.dtype for entry in plan.of("activation") if entry.params.dtype.bits == 8), None)
    dtype = first or QUANT_TYPES[get_target(plan.target).activations[0]]
    found = []
    for index, value in enumerate(model.graph.outputs):
        name, site = value.name or "", Site("", index)
        seen = _range(name, makers.get(name, ""), stats)
        if site not in taken and value.dtype == ir.DataType.FLOAT and value.producer() is not None and seen is not None:
            symmetric = get_target(plan.target).symmetric_activations
            params = params_from_range(seen.low, seen.high, dtype, symmetric=symmetric)
            found.append(Entry(name, "activation", params, (site,), "minmax (model output)", "output given as levels"))
    return replace(plan, entries=(*plan.entries, *found))


def _range(name: str, maker: str, stats: Mapping[str, TensorStats]) -> Range | None:
    rule, known = OP_RULES.get(maker), stats.get(name)
    if rule is not None and rule.output_range is not None:
        return rule.output_range
    if known is None or not known.finite or known.values == 0:
        return None
    return Range(min(known.low, 0.0), max(known.high, 0.0))
