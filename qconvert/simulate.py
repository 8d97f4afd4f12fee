"""What a model in float16 computes where arithmetic really rounds to float16.

onnxruntime's CPU provider computes such graphs in float32 and rounds at Casts alone: nothing overflows, little is lost.
Here every value in float16 is rounded by a pair of Casts, as a GPU or NPU that sums in float32 rounds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qconvert.graph import initializers, operators, tidy
from qconvert.prepare.half import widen_node
from qconvert.prepare.types import infer_types
from qconvert.schemas import complete_types

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


@dataclass(frozen=True)
class Peak:
    """A value whose largest magnitude before it is rounded is an output of the simulation.

    Attributes:
        value: Its name.
        op_type: The operator that makes it.
        operators: Names of that operator and of those that read it, as ``--block`` takes them.
    """

    value: str
    op_type: str
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Simulation:
    """A graph that computes in float32 with every half value rounded.

    Attributes:
        model: Inputs and outputs as the half model has them, then one scalar for each peak.
        peaks: By the name of that scalar; values in bodies of If, Loop and Scan are rounded but have none.
    """

    model: ir.Model
    peaks: Mapping[str, Peak]


def simulate(model: ir.Model) -> Simulation:
    """The simulation of a float16 model; edits it. onnxruntime keeps the pairs of Casts with all its optimizations."""
    infer_types(model)
    complete_types(model)
    main = model.graph
    results = [(op.node, value) for op in operators(model) for value in op.node.outputs if _is_half(value)]
    seen = {value: _peak(node, value) for node, value in results if node.graph is main}
    for value in [value for value in (*(value for value, _ in initializers(model)), *main.inputs) if _is_half(value)]:
        _widen(value)
    for value in [value for graph in main.subgraphs() for value in graph.inputs if _is_half(value)]:
        value.type = ir.TensorType(FLOAT)
    for op in list(operators(model)):
        widen_node(op.node)
    peaks: dict[str, Peak] = {}
    for _, value in results:
        _round(main, value)
        if value in seen:
            peaks[_add_peak(main, value, len(peaks))] = seen[value]
    return Simulation(tidy(model), peaks)


def _is_half(value: ir.Value) -> bool:
    return value.dtype == FLOAT16


def _peak(node: ir.Node, value: ir.Value) -> Peak:
    readers = value.consumers()
    public = [reader.outputs[0].name or "" for reader in readers if reader.outputs[0].is_graph_output()]
    renamed = [name for name in public if value.name == f"{name}_float16"]
    own = [] if node.op_type == "Cast" else [renamed[0] if renamed else value.name or ""]
    others = [reader.outputs[0].name or "" for reader in readers if reader.op_type != "Cast"]
    return Peak(value.name or "", node.op_type, tuple(dict.fromkeys([*own, *others])))


def _add_peak(graph: ir.Graph, value: ir.Value, number: int) -> str:
    """The largest magnitude of a value as an output: one number, so that nothing large is fetched."""
    size = ir.node("Abs", [value])
    largest = ir.node("ReduceMax", size.outputs, {"keepdims": 0})
    name = f"qconvert_peak_{number}"
    largest.outputs[0].name, largest.outputs[0].type = name, ir.TensorType(FLOAT)
    largest.outputs[0].shape = ir.Shape(())
    graph.extend([size, largest])
    graph.outputs.append(largest.outputs[0])
    return name


def _round(main: ir.Graph, value: ir.Value) -> None:
    """Rounds a value for all its readers; as an output of the model it keeps its name and type."""
    graph, uses = value.graph, list(value.uses())
    narrow = _cast(value, FLOAT16)
    wide = _cast(narrow, FLOAT)
    for use in uses:
        use.node.replace_input_with(use.idx, wide)
    if graph is None or not value.is_graph_output():
        return
    for place, output in enumerate(graph.outputs):
        if output is value and graph is main:
            value.name, narrow.name = f"{value.name}_raw", value.name
            graph.outputs[place] = narrow
        elif output is value:
            graph.outputs[place] = wide


def _cast(value: ir.Value, to: ir.DataType) -> ir.Value:
    """A Cast of a value directly behind what makes it."""
    cast = ir.node("Cast", [value], {"to": to})
    result, graph, maker = cast.outputs[0], value.graph, value.producer()
    result.name, result.type, result.shape = f"{value.name}_{to.name.lower()}", ir.TensorType(to), value.shape
    if graph is not None:
        if maker is None:
            graph.insert_before(graph[0], cast)
        else:
            graph.insert_after(maker, cast)
    return result


def _widen(value: ir.Value) -> None:
    uses = list(value.uses())
    wide = _cast(value, FLOAT)
    for use in uses:
        use.node.replace_input_with(use.idx, wide)
