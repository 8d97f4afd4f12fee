"""``make_weight_plan(model, policy) -> Plan``: grids of weights alone; activations stay float and need no samples.

Weights of Conv, ConvTranspose, Gemm and MatMul and tables that Gather looks rows up in, also where a Transpose lies
between, as in models whose last layer reads the table of the first. A weight is read a slab at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from qconvert.errors import PlanError, TargetError
from qconvert.float8 import FLOAT8_TYPES
from qconvert.graph import STANDARD_DOMAINS, Operator, attributes, is_constant, operand, operators, shape_of
from qconvert.listener import SILENT, Listener
from qconvert.plan.operands import is_float
from qconvert.plan.settings import DEFAULT_GROUP, Refusal, check_groups, settings_table
from qconvert.plan.types import Entry, FloatOp, Plan, Site
from qconvert.plan.weight_grids import find_grid
from qconvert.plan.weights import Granularity
from qconvert.policy import Policy, Scheme, Settings
from qconvert.rules import OP_RULES, reduction_axis, weight_axis
from qconvert.targets import HEAVY, Target, get_target
from qconvert.tensors import dims

WORTH = 1024
"""Elements of the smallest weight of other operators that is worth a word."""

GROUPED = frozenset({"Gemm", "MatMul", "Gather"})
"""Operators whose weights may have a scale for each group of inputs."""

_CARRIES = frozenset(
    {"Unsqueeze", "Squeeze", "Reshape", "Cast", "Slice", "Split", "Concat", "Expand", "Transpose", "Neg"}
)
"""Operators through which a factor reaches its product."""


@dataclass(frozen=True)
class _Weight:
    """What decides the grid of a stored weight; operators that agree in it share one."""

    name: str
    granularity: Granularity
    scheme: Scheme


@dataclass(frozen=True)
class _Use:
    """An operator and the place where the stored weight is read, its own or that of a Transpose before it."""

    op: Operator
    site: Site
    value: ir.Value
    transposed: bool = False


def make_weight_plan(model: ir.Model, policy: Policy, *, listener: Listener = SILENT) -> Plan:
    """Decides the grid of every weight; entries are of role ``weight`` only.

    Args:
        model: A graph with constants lifted and types inferred; left as it is.
        policy: The user's intent; what it says of activations and biases does not count.
        listener: Hears the progress.

    Raises:
        PolicyError: If a rule matches nothing.
        TargetError: If the policy asks for what the target does not take, or for groups of a type that has none.
        CalibrationError: If a calibrator finds no range from values alone.
        PlanError: If no weight is left to quantize, or one holds NaN or Inf.
    """
    target, ops = get_target(policy.target), tuple(operators(model))
    table = settings_table(policy, ops, target, complete=_complete)
    floats: list[FloatOp] = []
    groups: dict[_Weight, list[_Use]] = {}
    for op in ops:
        found = _find(op, table[op], target)
        scheme = _sized(found, table[op].weights, target) if isinstance(found, _Use) else None
        if isinstance(found, FloatOp):
            floats.append(found)
        elif isinstance(scheme, FloatOp):
            floats.append(scheme)
        elif found is not None and scheme is not None:
            groups.setdefault(_Weight(found.value.name or "", _granularity(found, scheme), scheme), []).append(found)
    _keep_shared_transposes(model, groups, floats)
    if not groups:
        raise _nothing(floats)
    listener.start("choosing ranges of weights", len(groups))
    try:
        entries = []
        for done, (weight, uses) in enumerate(groups.items(), 1):
            entries.append(_entry(weight, uses, table[uses[0].op].reason, target))
            listener.advance(done)
    finally:
        listener.finish()
    return Plan(target.name, tuple(entries), (), (), tuple(floats))


def _complete(found: Settings, target: Target) -> Settings:
    """What the policy leaves open, for weights alone: all levels are used, since no integer kernel wants them even."""
    fill = Scheme(dtype=target.stored[0] if target.stored else None, symmetric=True, narrow_range=False)
    weights = found.weights.over(fill.over(Scheme(scheme=target.stored_schemes[0])))
    check_groups("weights", weights, found.reason)
    fault = stored_fault(weights, target)
    if fault is not None:
        raise TargetError(f"{found.reason}: {fault}", hint=f"{fault.hint}, or another target ('qconvert formats')")
    if weights.scheme == "per-group" and not target.group_sizes:
        weights = weights.over(Scheme(group_size=DEFAULT_GROUP))
    return replace(found, weights=weights)


def stored_fault(weights: Scheme, target: Target) -> Refusal | None:
    """What of complete settings a target does not take where weights alone are quantized, or None."""
    if weights.dtype not in target.stored:
        why = f"target {target.name} stores {', '.join(target.stored) or 'none'}, not {weights.dtype}"
        return Refusal("weights.dtype", why, f"use {target.stored[0]}" if target.stored else "use another mode")
    if weights.scheme not in target.stored_schemes:
        why = f"target {target.name} stores {weights.dtype} {', '.join(target.stored_schemes)}, not {weights.scheme}"
        return Refusal("weights.scheme", why, f"use {target.stored_schemes[0]}")
    if weights.scheme == "per-group" and weights.dtype in FLOAT8_TYPES:
        why = f"{weights.dtype} has one scale a channel or a tensor, not per group"
        return Refusal("weights.scheme", why, "use per-channel, or an integer type")
    if weights.group_size is not None and target.group_sizes and weights.group_size not in target.group_sizes:
        sizes = " or ".join(map(str, target.group_sizes))
        why = f"target {target.name} takes groups of {sizes}, not {weights.group_size}"
        return Refusal("weights.group_size", why, f"use {target.group_sizes[0]}")
    if target.symmetric_weights and not weights.symmetric:
        why = f"target {target.name} takes zero points of 0 only"
        return Refusal("weights.symmetric", why, "leave it out")
    return None


def _find(op: Operator, settings: Settings, target: Target) -> _Use | FloatOp | None:
    """The weight of an operator, or why it stays float; None where there is nothing to say."""
    if op.op_type not in HEAVY and not _is_lookup(op):
        return _other(op)
    if settings.float:
        return FloatOp(op.name, op.op_type, f"left float by {settings.reason}", chosen=True)
    reason = "" if op.op_type in target.stored_ops else f"{target.name} stores no weights of {op.op_type}"
    if op.op_type == "Gather" and _is_factor(op.node):
        reason = reason or "its rows are factors, as of rotary embeddings: their errors would multiply"
    if reason:
        return FloatOp(op.name, op.op_type, reason)
    position = 0 if op.op_type == "Gather" else OP_RULES[op.op_type].weight or 0
    value = operand(op.node, position)
    producer = value.producer() if value is not None else None
    use = _Use(op, Site(op.name, position), value) if value is not None else None
    if value is not None and producer is not None and op.op_type in GROUPED and _swaps(producer):
        source = operand(producer, 0)
        name = producer.outputs[0].name or ""
        use = _Use(op, Site(name, 0), source, transposed=True) if source is not None else use
    if use is None or use.value.const_value is None or not is_constant(use.value):
        made = producer.op_type if producer is not None else "a graph input"
        known = "already quantized in the model" if made == "DequantizeLinear" else "its weight is computed, not stored"
        return FloatOp(op.name, op.op_type, known)
    if not is_float(use.value):
        stored = use.value.dtype.name.lower() if use.value.dtype is not None else "unknown"
        return FloatOp(op.name, op.op_type, f"its weight is {stored}, not float32")
    return use


def _is_lookup(op: Operator) -> bool:
    """A Gather of rows of a constant float table."""
    if op.op_type != "Gather":
        return False
    table = operand(op.node, 0)
    axis = int(attributes(op.node).get("axis", 0))
    return table is not None and is_constant(table) and is_float(table) and len(table.shape or ()) == 2 and axis == 0


def _is_factor(lookup: ir.Node) -> bool:
    """Whether what is looked up does nothing but multiply other values."""
    todo, seen, factors = [lookup], {lookup}, 0
    while todo:
        for use in (use for value in todo.pop().outputs for use in value.uses()):
            if use.node.op_type == "Mul":
                others = [value for place, value in enumerate(use.node.inputs) if place != use.idx]
                factors += 1
                if any(value is None or is_constant(value) for value in others):
                    return False
            elif use.node.op_type not in _CARRIES:
                return False
            elif use.node not in seen:
                seen.add(use.node)
                todo.append(use.node)
    return factors > 0


def _swaps(node: ir.Node) -> bool:
    """Whether a Transpose swaps the two axes of a constant."""
    if node.op_type != "Transpose" or node.domain not in STANDARD_DOMAINS:
        return False
    source = operand(node, 0)
    perm = attributes(node).get("perm")
    flat = source is not None and is_constant(source) and len(source.shape or ()) == 2
    return flat and (perm is None or list(perm) == [1, 0])


def _other(op: Operator) -> FloatOp | None:
    """An operator with a large weight that no form is known for."""
    for value in op.node.inputs:
        if value is None or value.const_value is None or not is_constant(value) or not is_float(value):
            continue
        if op.op_type != "Transpose" and len(dims(value.const_value)) > 1 and value.const_value.size >= WORTH:
            return FloatOp(op.name, op.op_type, f"weights of {op.op_type} are not stored in fewer bits")
    return None


def _axes(use: _Use, rank: int) -> tuple[int, int]:
    """The axes of the stored weight along which its operator's outputs and inputs lie."""
    kind, found = use.op.op_type, attributes(use.op.node)
    channel = 0 if kind == "Gather" else weight_axis(kind, rank, found)
    inner = reduction_axis(kind, rank, found) if kind in {"Gemm", "MatMul"} else 1
    return (1 - channel, 1 - inner) if use.transposed else (channel, inner)


def _sized(use: _Use, scheme: Scheme, target: Target) -> Scheme | FloatOp:
    """The settings with the first size of groups that divides the inputs, or why the weight stays float."""
    shape = shape_of(use.value) or ()
    if scheme.scheme != "per-group" or not target.group_sizes:
        return scheme
    sizes = target.group_sizes if scheme.group_size is None else (scheme.group_size,)
    inputs = shape[_axes(use, len(shape))[1]] if len(shape) > 1 else 1
    size = next((size for size in sizes if isinstance(inputs, int) and inputs % size == 0), None)
    if size is None:
        reason = f"its {inputs} inputs are no whole number of groups of {' or '.join(map(str, sizes))}"
        return FloatOp(use.op.name, use.op.op_type, reason)
    return scheme.model_copy(update={"group_size": size})


def _granularity(use: _Use, scheme: Scheme) -> Granularity:
    """What the scheme asks for along the axes of the stored weight, or per channel where it has no groups."""
    rank = len(shape_of(use.value) or ())
    if scheme.scheme == "per-tensor" or rank < 2:
        return Granularity(reason="" if scheme.scheme == "per-tensor" else "a vector")
    channel, inner = _axes(use, rank)
    if scheme.scheme == "per-channel":
        return Granularity(channel)
    if use.op.op_type in GROUPED:
        return Granularity(inner, scheme.group_size)
    return Granularity(channel, reason=f"weights of {use.op.op_type} have no groups")


def _keep_shared_transposes(model: ir.Model, groups: dict[_Weight, list[_Use]], floats: list[FloatOp]) -> None:
    """Leaves weights float whose Transpose is also read by operators that do not agree on the grid."""
    transposes = {op.name: op.node for op in operators(model) if op.op_type == "Transpose"}
    for weight, uses in list(groups.items()):
        kept = []
        for use in uses:
            node = transposes.get(use.site.operator)
            readers = {reader.node for reader in node.outputs[0].uses()} if node is not None else set()
            if use.transposed and readers - {other.op.node for other in uses}:
                reason = f"its weight is the Transpose '{use.site.operator}', which others read in float"
                floats.append(FloatOp(use.op.name, use.op.op_type, reason))
            else:
                kept.append(use)
        if kept:
            groups[weight] = kept
        else:
            del groups[weight]


def _nothing(floats: list[FloatOp]) -> PlanError:
    reasons = [op.reason for op in floats]
    ranked = sorted(dict.fromkeys(reasons), key=reasons.count, reverse=True)
    why = "; ".join(ranked[:2]) or "the model has no Conv, Gemm, MatMul or embedding with a constant float32 weight"
    return PlanError(f"no weight to quantize: {why}", hint="'qconvert inspect MODEL' shows what is in the file")


def _entry(weight: _Weight, uses: list[_Use], reason: str, target: Target) -> Entry:
    tensor = uses[0].value.const_value
    if tensor is None:
        raise PlanError(f"weight '{weight.name}' is not stored")
    params, method = find_grid(tensor, weight.scheme, weight.granularity, op=uses[0].op, turn=target.own_operators)
    readers = ", ".join(use.op.name for use in uses)
    why = f" ({weight.granularity.reason})" if weight.granularity.reason else ""
    sites = tuple(dict.fromkeys(use.site for use in uses))
    text = f"weight of {readers}, {weight.granularity}{why}; {reason}"
    return Entry(weight.name, "weight", params, sites, method, text)
