"""Runs a model from layer to layer over all samples, each operator once: what later layers need is all that is kept.

A layer may be changed before it is passed: then all behind it sees what it makes since. Values between quantized layers
are kept as levels, a quarter of what floats take; what exceeds the limit goes to a temporary file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Event, Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qconvert.files import Spill
from qconvert.graph import is_constant
from qconvert.sensing.cut import reads
from qconvert.session import Feeds, open_session, run
from qconvert.workers import default_workers, run_workers

Array = npt.NDArray[Any]

AHEAD = 4
"""Samples for each worker that are computed before they are asked for."""


class Store:
    """Arrays by name and sample; those beyond the limit lie in a temporary file until the store is closed."""

    def __init__(self, limit: int) -> None:
        """Holds ``limit`` bytes in memory."""
        self._limit, self._held, self._lock = limit, 0, Lock()
        self._arrays: dict[str, dict[int, Array]] = {}
        self._spill = Spill()

    def put(self, name: str, sample: int, array: Array) -> None:
        """Keeps an array, which is copied only into the file."""
        with self._lock:
            if self._held + array.nbytes > self._limit:
                array = self._spill.put(array)
            else:
                self._held += array.nbytes
            self._arrays.setdefault(name, {})[sample] = array

    def drop(self, name: str) -> None:
        """Forgets a value of all samples."""
        with self._lock:
            for array in self._arrays.pop(name, {}).values():
                self._held -= 0 if isinstance(array, np.memmap) else array.nbytes

    def get(self, name: str, sample: int) -> Array:
        """One of them."""
        return self._arrays[name][sample]

    def shapes(self, name: str) -> set[tuple[int, ...]]:
        """Of all samples."""
        return {array.shape for array in self._arrays[name].values()}

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    @property
    def names(self) -> list[str]:
        """Of the values that are kept."""
        return list(self._arrays)

    def close(self) -> None:
        """Gives everything back."""
        self._arrays.clear()
        self._spill.close()


class Stream:
    """A model on its way through all samples."""

    def __init__(self, model: ir.Model, stops: Sequence[ir.Node], probes: Sequence[Feeds], *, stored: int) -> None:
        """Stands before the first operator.

        Args:
            model: The model; the constants of operators that were not passed yet may be changed.
            stops: Operators of its main graph, in topological order.
            probes: Samples.
            stored: Bytes of values that may be held in memory.
        """
        self._model, self._probes = model, probes
        self._stops = list(stops)
        self._store = Store(stored)
        self._passed = 0
        order = list(model.graph)
        rank = {node: place for place, node in enumerate(order)}
        self._needed = [_behind(self._stops[index:], rank) for index in range(len(self._stops))]

    def advance(self, index: int) -> None:
        """Goes to just before stop number ``index``; not back.

        Raises:
            ModelError: If onnxruntime fails.
        """
        frontier = self._frontier(index)
        wanted = [value for value in frontier if value.name not in self._store and not value.is_graph_input()]
        if wanted:
            for number, arrays in enumerate(self.fetch(wanted)):
                for value, array in zip(wanted, arrays, strict=True):
                    self._store.put(value.name or "", number, array)
        kept = {value.name for value in frontier}
        for name in self._store.names:
            if name not in kept:
                self._store.drop(name)
        self._passed = index

    def fetch(self, values: Sequence[ir.Value]) -> Iterator[list[Array]]:
        """Values that the operators since the last stop make, or that are kept, for one sample after another.

        Raises:
            ModelError: If onnxruntime fails.
        """
        inputs = self._inputs(values)
        made = [value for value in dict.fromkeys(values) if value not in inputs]
        names = [value.name or "" for value in made]
        session = open_session(self._cut(inputs, made), threads=1, integer=False) if made else None

        def one(number: int) -> dict[str, Array]:
            feeds = {value.name or "": self._read(value.name or "", number) for value in inputs}
            found = run(session, feeds, names) if session is not None else []
            return {**feeds, **dict(zip(names, found, strict=True))}

        for found in in_order(one, len(self._probes)):
            yield [found[value.name or ""] for value in values]

    def close(self) -> None:
        """Gives back what is kept."""
        self._store.close()

    def _read(self, name: str, number: int) -> Array:
        return self._store.get(name, number) if name in self._store else self._probes[number][name]

    def _inputs(self, values: Sequence[ir.Value]) -> list[ir.Value]:
        """What is kept and leads to these values."""
        found, seen, todo = [], set(values), list(values)
        while todo:
            value = todo.pop()
            producer = value.producer()
            if value.name in self._store or value.is_graph_input():
                found.append(value)
            elif producer is not None:
                new = [one for one in reads(producer) if one not in seen and not is_constant(one)]
                seen.update(new)
                todo += new
        return sorted(found, key=lambda value: value.name or "")

    def _cut(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
        """A model of what lies between."""
        part = ir.convenience.extract(self._model.graph, list(inputs), list(outputs))
        for value in part.inputs:
            shapes = self._shapes(value.name or "")
            one = next(iter(shapes))
            value.shape = ir.Shape(one if len(shapes) == 1 else [None] * len(one))
        return ir.Model(part, ir_version=self._model.ir_version, functions=list(self._model.functions.values()))

    def _shapes(self, name: str) -> set[tuple[int, ...]]:
        if name in self._store:
            return self._store.shapes(name)
        return {probe[name].shape for probe in self._probes}

    def _frontier(self, index: int) -> list[ir.Value]:
        """What operators from a stop on read of what lies before it; levels in place of the reals made of them."""
        needed = self._needed[index]
        found: dict[ir.Value, None] = {}
        for node in needed:
            for value in reads(node):
                source = _levels(value)
                if source.producer() not in needed and not is_constant(source):
                    found[source] = None
        return list(found)


def _behind(stops: Sequence[ir.Node], rank: Mapping[ir.Node, int]) -> frozenset[ir.Node]:
    """The operators at or behind the first of some stops that any of them depends on; without those that dequantize."""
    found, todo = set(stops), list(stops)
    while todo:
        for value in reads(todo.pop()):
            producer = _levels(value).producer()
            if producer is not None and producer not in found and rank[producer] > rank[stops[0]]:
                found.add(producer)
                todo.append(producer)
    return frozenset(found)


def _levels(value: ir.Value) -> ir.Value:
    """The levels that a value is made of, or the value itself."""
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        levels = producer.inputs[0]
        if levels is not None and levels.type is not None:
            return levels
    return value


def in_order(one: Callable[[int], Any], count: int) -> Iterator[Any]:
    """``one(0), one(1), ...``, some of them computed at once."""
    workers = min(default_workers(), count)
    for start in range(0, count, AHEAD * workers):
        numbers = range(start, min(start + AHEAD * workers, count))
        found: dict[int, Any] = {}
        todo = deque(numbers)

        def work(todo: deque[int] = todo, found: dict[int, Any] = found) -> None:
            while todo:
                try:
                    number = todo.popleft()
                except IndexError:
                    return
                found[number] = one(number)

        run_workers(workers, work, Event())
        yield from (found[number] for number in numbers)
