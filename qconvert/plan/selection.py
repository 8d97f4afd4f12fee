"""Which operators become integer: the heavy ones, and the light ones on paths from one heavy operator to another.

Elsewhere a Q/DQ pair costs accuracy and saves nothing, so box decoding, normalization layers and what only they read
stay float; but not for a target without floats, which quantizes whatever it can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qconvert.graph import Operator, attributes, is_constant, operand, shape_of
from qconvert.plan.operands import activation_values, attribute_refusal, is_activation, is_float, operand_refusal
from qconvert.plan.settings import SettingsTable
from qconvert.rules import OP_RULES, Kind, role, weight_axis
from qconvert.targets import MOVES, Target


class Selection:
    """The operators of one graph, sorted into integer ones and float ones with a reason.

    Attributes:
        by_node: The operators by their nodes.
        heavy: Nodes in which the time goes.
        between: Nodes between integer operators, integer themselves or computed in float between quantized values.
    """

    def __init__(self, ops: Sequence[Operator], settings: SettingsTable, target: Target) -> None:
        self.settings, self.target = settings, target
        self.by_node: Mapping[ir.Node, Operator] = {op.node: op for op in ops}
        self.heavy: set[ir.Node] = set()
        self.between: set[ir.Node] = set()
        self._refused: dict[str, str] = {}
        self._choose()
        if not target.whole:
            self._leave_decoding()
        self._prune()

    def _choose(self) -> None:
        """Candidates by role, and the reason of every operator that cannot be one."""
        for op in self.by_node.values():
            reason = self._refusal(op)
            if reason:
                self._refused[op.name] = reason
            elif self._role(op.node) == "heavy":
                self.heavy.add(op.node)
            else:
                self.between.add(op.node)

    def _refusal(self, op: Operator) -> str:
        if op.subgraph:
            return f"inside {op.subgraph}: values in a subgraph cannot be observed from outside"
        if self.settings[op].float:
            return f"left float by {self.settings[op].reason}"
        rule, kind = OP_RULES.get(op.op_type), self._role(op.node)
        if rule is None or kind == "float":
            return f"no integer kernel for {op.op_type}"
        if kind in {"heavy", "light", "same"} and op.op_type not in self.target.integer_ops:
            return f"{self.target.name} has no integer kernel for {op.op_type}"
        return operand_refusal(activation_values(op, rule)) or attribute_refusal(op)

    def _role(self, node: ir.Node) -> Kind | None:
        return role(node.op_type, self.target)

    def _leave_decoding(self) -> None:
        """Takes away the expectations over a Softmax with which detectors decode boxes: one output, no heavy reader."""
        for op in self.by_node.values():
            if op.node in self.heavy and _is_expectation(op) and not self._is_followed(op.node):
                self.heavy.discard(op.node)
                self._refused[op.name] = "post-processing: an expectation over a Softmax, no heavy operator follows"

    def _is_followed(self, node: ir.Node) -> bool:
        """Whether a heavy operator computes on the result."""
        seen, todo = {node}, [node]
        while todo:
            for value in todo.pop().outputs:
                for use in value.uses():
                    if use.node in self.heavy:
                        return True
                    if use.node not in seen:
                        seen.add(use.node)
                        todo.append(use.node)
        return False

    def _prune(self) -> None:
        """Takes candidates away until each lies between integer operators."""
        changed = True
        while changed:
            doomed = {node for node in self.between if not self._stays(node)}
            self.between -= doomed
            changed = bool(doomed)

    def _stays(self, node: ir.Node) -> bool:
        return bool(self._data(node)) if self.target.whole else self._fed(node) and self._read(node)

    def _data(self, node: ir.Node) -> list[ir.Value]:
        """The activations of an operator that are computed."""
        op = self.by_node[node]
        return [value for value in activation_values(op, OP_RULES[op.op_type]) if not is_constant(value)]

    def _fed(self, node: ir.Node) -> bool:
        values = self._data(node)
        needs_integer_output = self._role(node) == "light" and not self._is_bias_add(node)
        return bool(values) and all(self._feeds(value, needs_integer_output) for value in values)

    def _feeds(self, value: ir.Value, integer_output: bool) -> bool:  # noqa: FBT001
        producer = value.producer()
        if producer is None:
            return False
        if producer in self.heavy:
            return not (integer_output and producer.op_type in self.target.float_output_ops)
        if producer not in self.between:
            return False
        if integer_output and (self._role(producer) in {"bridge", "relu"} or self._is_bias_add(producer)):
            source = operand(producer, 0)
            source = operand(producer, 1) if source is None or is_constant(source) else source
            return source is not None and self._feeds(source, integer_output=True)
        return True

    def _read(self, node: ir.Node) -> bool:
        return any(
            use.node in self.heavy or use.node in self.between
            for value in node.outputs
            for use in value.uses()
            if is_activation(use.node, use.idx)
        )

    def _is_bias_add(self, node: ir.Node) -> bool:
        """An Add of a constant row to a MatMul: the MatMul's bias, which its kernel adds in float."""
        return self.bias_add(node) is not None

    def bias_add(self, node: ir.Node) -> tuple[ir.Node, int] | None:
        """The MatMul and the operand that is its bias."""
        if node.op_type != "Add" or self.target.matmul_bias == "add":
            return None
        for data, row in ((0, 1), (1, 0)):
            value, bias = operand(node, data), operand(node, row)
            producer = value.producer() if value is not None else None
            if producer in self.heavy and producer.op_type == "MatMul" and bias is not None and is_constant(bias):
                return (producer, row) if bias.shape is not None and len(bias.shape) <= 1 else None
        return None

    def is_integer(self, node: ir.Node) -> bool:
        """Whether an operator reads and writes integers."""
        if node in self.heavy:
            return True
        return node in self.between and self._role(node) in {"light", "same"} and not self._is_bias_add(node)

    def why_float(self, op: Operator) -> str:
        """Why an operator is not integer."""
        if op.name in self._refused:
            return self._refused[op.name]
        if op.node in self.between:
            if self._is_bias_add(op.node):
                return "bias of a MatMul: added in float by its kernel"
            return "computed in float between quantized values"
        if not any(is_float(value) for value in op.node.outputs):
            return "not float32"
        if not self._fed(op.node):
            return "not every input comes from an integer operator"
        return "no integer operator reads its result"


def _is_expectation(op: Operator) -> bool:
    """Whether the operator sums a Softmax, moved or not, with constant weights to one number."""
    weight, value = operand(op.node, 1), operand(op.node, 0)
    shape = shape_of(weight) if weight is not None and is_constant(weight) else None
    if not shape or (len(shape) > 1 and shape[weight_axis(op.op_type, len(shape), attributes(op.node))] != 1):
        return False
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in MOVES:
            return producer.op_type == "Softmax"
        value = operand(producer, 0)
    return False
