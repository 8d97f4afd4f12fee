"""The integer format: between the first QuantizeLinear and the last DequantizeLinear no operator touches a float.

The QDQ graph of a plan holds every decision. Each QuantizeLinear in it becomes integer nodes for what it is fed with:
sums of products with a rounding multiplication, tables of 256 levels, or the float operator itself on levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.graph import operators
from qconvert.plan import Plan
from qconvert.rewrite.integer.between import FloatIsland, float_tensors
from qconvert.rewrite.integer.lower import lower
from qconvert.rewrite.integer.multiplier import Rounding
from qconvert.rewrite.qdq import to_qdq

_SHOWN = 5


@dataclass(frozen=True)
class IntegerModel:
    """A model in the integer format.

    Attributes:
        model: It.
        islands: The operators in it that compute on floats between integer ones.
    """

    model: ir.Model
    islands: tuple[FloatIsland, ...]


def to_integer(model: ir.Model, plan: Plan, *, requant: Rounding = "single", allow_float: bool = False) -> IntegerModel:
    """Carries out a plan on a prepared graph, which becomes the integer model.

    Args:
        model: The graph, of the opset that ``needed_opset`` says.
        plan: Its grids.
        requant: How sums come to 8 bits: with TensorFlow Lite's ``single`` rounding or gemmlowp's ``double`` one.
        allow_float: Whether operators without an integer form may stay, between DequantizeLinear and QuantizeLinear.

    Raises:
        PlanError: If an operator between integer ones has no integer form and ``allow_float`` does not allow that, or
            the plan names what the graph does not have.
    """
    wanted = {op.operator for op in plan.floats if op.chosen}
    chosen = {op.node for op in operators(model) if op.name in wanted}
    islands = lower(to_qdq(model, plan), requant, chosen=chosen)
    if islands and not allow_float:
        raise _refusal(islands)
    return IntegerModel(model, islands)


def _refusal(islands: tuple[FloatIsland, ...]) -> PlanError:
    named = "; ".join(f"{island.op_type} '{island.operator}': {island.reason}" for island in islands[:_SHOWN])
    more = f"; and {len(islands) - _SHOWN} more" if len(islands) > _SHOWN else ""
    return PlanError(
        f"no integer form for {len(islands)} operators: {named}{more}",
        hint="--allow-float leaves them float between DequantizeLinear and QuantizeLinear",
    )


__all__ = ["FloatIsland", "IntegerModel", "Rounding", "float_tensors", "to_integer"]
