"""Which element types an operator takes and gives, from ONNX's own table of operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx_ir as ir
from onnx import defs

from qconvert.graph import STANDARD_DOMAINS, operators


@dataclass(frozen=True)
class Slot:
    """One operand or result of an operator.

    Attributes:
        variable: The name of its type in the table, e.g. ``T``: slots that share it have the same type.
        types: What it may be: ``tensor(float)``, ``tensor(float16)``, ...
    """

    variable: str
    types: frozenset[str]


@dataclass(frozen=True)
class Signature:
    """The operands and results of an operator; the last may stand for many."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]

    def operand(self, index: int) -> Slot:
        """The slot of operand ``index``."""
        return self.inputs[min(index, len(self.inputs) - 1)]

    def result(self, index: int) -> Slot:
        """The slot of result ``index``."""
        return self.outputs[min(index, len(self.outputs) - 1)]


def signature(node: ir.Node, opsets: Mapping[str, int]) -> Signature | None:
    """What an operator takes at the opset of its model; None where ONNX does not define it."""
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    versions = [opsets[name] for name in (node.domain, domain, "ai.onnx") if name in opsets]
    return _signature(node.op_type, domain, versions[0]) if versions else None


@cache
def _signature(op_type: str, domain: str, version: int) -> Signature | None:
    try:
        schema = defs.get_schema(op_type, version, domain)
    except defs.SchemaError:
        return None
    given, made = (
        tuple(Slot(slot.type_str, frozenset(slot.types)) for slot in slots) for slots in (schema.inputs, schema.outputs)
    )
    return Signature(given, made)


def complete_types(model: ir.Model) -> None:
    """Gives results without a type the one that they share with an operand: inference stops at foreign domains."""
    for op in operators(model):
        found = signature(op.node, model.opset_imports)
        for index, value in enumerate(op.node.outputs):
            if found is None or not found.outputs:
                continue
            if not any(kind.startswith("tensor(") for kind in found.result(index).types):
                value.type = None  # a sequence, which shape inference takes for a tensor
            if value.type is not None:
                continue
            variable = found.result(index).variable
            shared = [
                given.type
                for place, given in enumerate(op.node.inputs)
                if given is not None and given.type is not None and found.operand(place).variable == variable
            ]
            if shared:
                value.type = shared[0]
