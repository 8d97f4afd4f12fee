"""Which values carry a Q/DQ pair, and who reads them dequantized: a pure function of graph, settings and target."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from qconvert.graph import FLOATS, Operator, is_constant, operand, operators, shape_of
from qconvert.plan.operands import activation_values, fused_clamp, is_activation, is_float
from qconvert.plan.selection import Selection
from qconvert.plan.settings import SettingsTable
from qconvert.plan.types import FloatOp, Site
from qconvert.rules import OP_RULES, OpRule, role
from qconvert.targets import HEAVY, Target


@dataclass
class Placement:
    """What is quantized where.

    Attributes:
        integer: Operators that run on integers, by name, in topological order, with the reason.
        floats: Operators on float tensors that do not.
        values: Values that carry a Q/DQ pair, by name, in topological order: where the dequantized value is read.
        constants: Constant operands of light operators, likewise.
        ties: Values that must share their parameters, as a forest: ``ties[a] = b`` for the output and the input of an
            operator that only moves values, and for the operands of one whose operands share a scale.
        biases: The Add and its operand that is the constant bias of a MatMul, by the name of the MatMul, where runtimes
            make a Gemm of the two: its integer kernel takes an int32 bias.
        clamps: Relu or Clip operators that may vanish into the range of their output: ``clamps[output] = operator``.
        why: For each value, the reason for its Q/DQ pair.
    """

    integer: dict[str, Operator] = field(default_factory=dict)
    floats: list[FloatOp] = field(default_factory=list)
    values: dict[str, tuple[Site, ...]] = field(default_factory=dict)
    constants: dict[str, tuple[Site, ...]] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    biases: dict[str, tuple[Operator, int]] = field(default_factory=dict)
    clamps: dict[str, Operator] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def root(self, name: str) -> str:
        """The representative of all values that share their parameters with ``name``."""
        while name in self.ties:
            name = self.ties[name]
        return name

    def tie(self, name: str, other: str) -> None:
        """Makes two values, and all that are tied to either, share their parameters."""
        root, above = self.root(name), self.root(other)
        if root != above:
            self.ties[root] = above


def place(model: ir.Model, settings: SettingsTable, target: Target) -> Placement:
    """Decides which operators become integer and where the Q/DQ pairs go."""
    return _Placer(model, settings, target).place()


def candidate_values(model: ir.Model, settings: SettingsTable, target: Target) -> tuple[str, ...]:
    """Every value that this target or most others could quantize, a fused clamp as one with its producer."""
    by_node = {op.node: op for op in operators(model)}
    wanted: dict[str, None] = {}
    for op in operators(model):
        rule = OP_RULES.get(op.op_type)
        if (
            rule is None
            or role(op.op_type, target) == "float"
            or op.subgraph
            or settings[op].float
            or not is_float(op.node.outputs[0])
        ):
            continue
        for value in (*activation_values(op, rule), *op.node.outputs):
            clamp = fused_clamp(value)
            fused = clamp is not None and not settings[by_node[clamp]].float
            if value.name and is_float(value) and not is_constant(value) and not fused:
                wanted[value.name] = None
    return tuple(wanted)


class _Placer:
    def __init__(self, model: ir.Model, settings: SettingsTable, target: Target) -> None:
        self.model, self.settings, self.target = model, settings, target
        self.ops = list(operators(model))
        self.selection = Selection(self.ops, settings, target)
        self.by_node = self.selection.by_node
        self.by_name = {op.name: op for op in self.ops}
        self.order = {op.node: index for index, op in enumerate(self.ops)}
        self.out = Placement()

    def place(self) -> Placement:
        for op in self.ops:
            if op.name in self.out.clamps:
                continue
            if self.selection.is_integer(op.node):
                self.out.integer[op.name] = op
                self._values_of(op)
            elif self._touches_float(op):
                self.out.floats.append(
                    FloatOp(op.name, op.op_type, self.selection.why_float(op), bool(self.settings[op].float))
                )
                self._bias_of(op)
        self._sort_values()
        return self.out

    def _bias_of(self, add: Operator) -> None:
        found = self.selection.bias_add(add.node)
        if found is None or add.subgraph or self.settings[add].float:
            return
        matmul, row = found
        shape = shape_of(matmul.outputs[0])
        if shape is not None and (len(shape) == 2 or all(isinstance(size, int) for size in shape)):
            self.out.biases[self.by_node[matmul].name] = (add, row)

    def _touches_float(self, op: Operator) -> bool:
        if op.node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            return False
        return any(value.dtype in FLOATS for value in op.node.outputs)

    def _values_of(self, op: Operator) -> None:
        rule = OP_RULES[op.op_type]
        for value in self._quantized_operands(op, rule):
            if is_constant(value):
                if not (rule.weight is not None and value is operand(op.node, rule.weight)):
                    self._add(self.out.constants, value, op, "constant operand")
            else:
                self._add(self.out.values, value, op, f"input of {op.op_type} {op.name}")
        if rule.kind == "same":
            source = (self._quantized_operands(op, rule)[0].name) or ""
            for value in op.node.outputs:
                if value.name and is_float(value):
                    self._add_output(value, f"same scale as {source}")
                    self.out.tie(value.name, source)
        elif self._needs_output(op):
            self._add_output(self._end(op.node).outputs[0], f"output of {op.op_type} {op.name}")
        if op.op_type in self.target.shared_scale_ops:
            self._tie_operands(op)

    def _quantized_operands(self, op: Operator, rule: OpRule) -> list[ir.Value]:
        values = activation_values(op, rule)
        if op.op_type != "Add" or self.target.residual == "both":
            return values
        branch = next((value for value in values if self._fuses_into(value)), None)
        return [value for value in values if value is not branch]

    @staticmethod
    def _fuses_into(value: ir.Value) -> bool:
        """Whether the only reader of a heavy operator is this Add, so that TensorRT computes both in one kernel."""
        producer = value.producer()
        return (
            producer is not None
            and producer.op_type in HEAVY
            and len(value.uses()) == 1
            and not value.is_graph_output()
        )

    def _end(self, node: ir.Node) -> ir.Node:
        """The Add of the bias that a MatMul's kernel adds, or the operator itself."""
        uses = tuple(node.outputs[0].uses())
        bias = len(uses) == 1 and self.selection.bias_add(uses[0].node) is not None
        return uses[0].node if bias and not node.outputs[0].is_graph_output() else node

    def _tie_operands(self, op: Operator) -> None:
        """One scale for all; a grid that cannot be chosen would not fit the others, and stays apart from them."""
        values = [value for value in op.node.inputs if value is not None and not is_constant(value)]
        free = [value for value in values if not self._is_fixed(value)] if len(values) > 1 else values
        names = [value.name or "" for value in (*free, op.node.outputs[0])]
        for name in names[1:]:
            self.out.tie(name, names[0])

    def _is_fixed(self, value: ir.Value) -> bool:
        producer = value.producer()
        return producer is not None and any(op_type == producer.op_type for op_type, _ in self.target.fixed_outputs)

    def _needs_output(self, op: Operator) -> bool:
        if self.target.outputs == "free":
            return False
        return op.op_type not in self.target.float_output_ops or self._wants_output(op.node)

    def _wants_output(self, node: ir.Node) -> bool:
        """Whether only integer operators read a Gemm or MatMul, past its clamp: then its kernel may write integers."""
        clamp = self._clamp_of(node.outputs[0])
        value = clamp.outputs[0] if clamp is not None else node.outputs[0]
        if value.is_graph_output() or not value.uses():
            return False
        return all(self._reads_integer(use.node, use.idx) for use in value.uses())

    def _clamp_of(self, value: ir.Value) -> ir.Node | None:
        clamp = fused_clamp(value)
        return None if clamp is None or self.settings[self.by_node[clamp]].float else clamp

    def _reads_integer(self, node: ir.Node, position: int) -> bool:
        return self.selection.is_integer(node) and is_activation(node, position)

    def _add_output(self, value: ir.Value, why: str) -> None:
        clamp = self._clamp_of(value)
        if clamp is not None:
            value = clamp.outputs[0]
            why = f"{why} with its {clamp.op_type}"
        sites = [Site(self.by_node[node].name, idx) for node, idx in self._readers(value)]
        sites += [Site("", index) for index, output in enumerate(self.model.graph.outputs) if output is value]
        if self.target.outputs == "free":
            sites = [site for site in sites if self._integer_site(site)]
        if not sites:
            return
        self.out.values[value.name or ""] = tuple(sites)
        self.out.why[value.name or ""] = why
        if clamp is not None:
            self.out.clamps[value.name or ""] = self.by_node[clamp]

    def _integer_site(self, site: Site) -> bool:
        return bool(site.operator) and self._reads_integer(self.by_name[site.operator].node, site.operand)

    def _add(self, table: dict[str, tuple[Site, ...]], value: ir.Value, op: Operator, why: str) -> None:
        name = value.name or ""
        if name in table and self.out.why.get(name, "").startswith(("output of", "same scale")):
            return
        readers = [idx for node, idx in self._readers(value) if node is op.node and is_activation(node, idx)]
        sites = tuple(Site(op.name, idx) for idx in readers)
        table[name] = (*table.get(name, ()), *(site for site in sites if site not in table.get(name, ())))
        self.out.why.setdefault(name, why)

    def _readers(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        """Who reads a value at which operand, in topological order; QuantizeLinear of the model's own is left alone."""
        uses = [(use.node, use.idx) for use in value.uses() if use.node.op_type != "QuantizeLinear"]
        return sorted(uses, key=lambda use: (self.order[use[0]], use[1]))

    def _sort_values(self) -> None:
        """Into topological order of the producers, inputs first."""
        rank = {value.name: -1 for value in self.model.graph.inputs}
        rank.update({value.name: self.order[op.node] for op in self.ops for value in op.node.outputs})
        self.out.values = dict(sorted(self.out.values.items(), key=lambda item: rank.get(item[0], -1)))
