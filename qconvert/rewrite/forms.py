"""One plan, many files: which writer carries out a plan, and what the written model is fed and gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from qconvert.errors import PlanError
from qconvert.plan import Plan
from qconvert.rewrite.integer import to_integer
from qconvert.rewrite.interface import InputType, Interface, OutputType, with_interface
from qconvert.rewrite.qdq import to_qdq
from qconvert.rewrite.qoperator import to_qoperator
from qconvert.targets import Format

Requant = Literal["single", "double"]


@dataclass(frozen=True)
class Form:
    """What file is made of a plan.

    Attributes:
        format: ``qdq``: float operators between Q/DQ pairs; ``qoperator``: onnxruntime's operators on levels;
            ``integer``: no float tensor between the first and the last of them.
        input_type: What float inputs become.
        output_type: What float outputs become.
        requant: How the integer format rounds sums to 8 bits.
        allow_float: Whether the integer format may leave operators that have no integer form.
    """

    format: Format = "qdq"
    input_type: InputType = "float32"
    output_type: OutputType = "float32"
    requant: Requant = "single"
    allow_float: bool = False

    @property
    def gives_levels(self) -> bool:
        """Whether outputs need a grid."""
        return self.output_type in {"uint8", "int8"}


@dataclass(frozen=True)
class Written:
    """A written model.

    Attributes:
        model: It.
        interface: What its inputs and outputs mean, where they are not what the float model's are.
        notes: What is not as the plan has it, one line each.
    """

    model: ir.Model
    interface: Interface | None = None
    notes: tuple[str, ...] = ()


def check_form(form: Form) -> None:
    """Refuses options of one format in another.

    Raises:
        PlanError: If there are any.
    """
    if form.format != "integer" and (form.requant != "single" or form.allow_float):
        raise PlanError("--requant and --allow-float are of the integer format", hint="add --format integer")


def write_plan(model: ir.Model, plan: Plan, form: Form) -> Written:
    """Carries out a plan on a prepared graph.

    Raises:
        PlanError: If an operator, input or output cannot have the form; names it.
        TargetError: If the types of the plan have no operators in this format.
    """
    check_form(form)
    written, notes = _write(model, plan, form)
    if form.input_type == form.output_type == "float32":
        return Written(written, None, notes)
    written, interface = with_interface(written, plan, input_type=form.input_type, output_type=form.output_type)
    return Written(written, interface, notes)


def _write(model: ir.Model, plan: Plan, form: Form) -> tuple[ir.Model, tuple[str, ...]]:
    if form.format == "integer":
        plan = with_sums(plan) if form.output_type == "int32" else plan
        found = to_integer(model, plan, requant=form.requant, allow_float=form.allow_float)
        return found.model, tuple(
            f"float island: {one.op_type} '{one.operator}': {one.reason}" for one in found.islands
        )
    if form.format == "qoperator":
        written, left = to_qoperator(model, plan)
        return written, tuple(f"{one.op_type} '{one.operator}' stays float between Q/DQ: {one.reason}" for one in left)
    return to_qdq(model, plan), ()


def with_sums(plan: Plan) -> Plan:
    """The plan without grids of outputs: their sums are not brought to 8 bits."""
    return replace(plan, entries=tuple(entry for entry in plan.entries if any(site.operator for site in entry.sites)))
