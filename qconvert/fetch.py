"""Runs sessions again and again into the same memory: outputs are read where onnxruntime writes them, uncopied."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from qconvert.expose import Exposed
from qconvert.session import Feeds, failed, numpy_type

Arrays = dict[str, npt.NDArray[Any]]
_Kind = tuple[np.dtype[Any], tuple[int, ...]]
"""What memory an array needs."""

_LINE = 64
"""Bytes: arrays begin at multiples of it, as those in onnxruntime's own memory do."""


@dataclass(frozen=True)
class _Made:
    """What a stage made: the values by the names by which they are asked for, and what later stages take."""

    asked: Arrays
    handed_on: Arrays


@dataclass(frozen=True)
class _Stage:
    """A session, what it takes, which of its outputs are needed, and what becomes of them."""

    session: ort.InferenceSession
    inputs: Sequence[str]
    outputs: Sequence[str]
    asked: Mapping[str, str]
    handed_on: Collection[str]

    @staticmethod
    def of(session: ort.InferenceSession, asked: Mapping[str, str], handed_on: Collection[str]) -> _Stage:
        made = [output.name for output in session.get_outputs()]
        here = {name: output for name, output in asked.items() if output in made}
        needed = {*handed_on, *here.values()}
        inputs = [one.name for one in session.get_inputs()]
        outputs = [name for name in made if name in needed]
        return _Stage(session, inputs, outputs, here, [name for name in outputs if name in handed_on])

    def made(self, outputs: Arrays) -> _Made:
        """What these outputs are to those who wait for them."""
        asked = {name: outputs[output] for name, output in self.asked.items()}
        return _Made(asked, {name: outputs[name] for name in self.handed_on})

    def run(self, values: Feeds) -> Arrays:
        """The outputs in memory that onnxruntime gives them.

        Raises:
            ModelError: If onnxruntime fails.
        """
        binding = self.session.io_binding()
        for name in self.inputs:
            binding.bind_cpu_input(name, values[name])
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        try:
            self.session.run_with_iobinding(binding)
        except RuntimeError as error:
            raise failed({name: values[name] for name in self.inputs}, error) from error
        return {name: _view(value) for name, value in zip(self.outputs, binding.get_outputs(), strict=True)}


@dataclass(frozen=True)
class _Bound:
    """A session with memory: what is made there, and which inputs change from run to run."""

    session: ort.InferenceSession
    binding: ort.IOBinding
    made: _Made
    fed: Sequence[str]


@dataclass
class _Piece:
    """A piece of memory: its bytes, where it begins, and the first stage that may write to it again."""

    size: int
    start: int
    free: int = 0


class Fetcher:
    """Fetches some tensor outputs of sessions that follow one another; for one thread.

    All outputs have their places in memory that is kept while the shapes of the inputs stay the same; what is no longer
    needed leaves its place to what is made later. Where the sessions do not tell how large the outputs are, a run into
    new memory shows it first. Models whose output shapes depend on the data get new memory for every run.
    """

    def __init__(self, exposed: Exposed) -> None:
        """Fetches ``exposed.outputs``."""
        reads = [[one.name for one in session.get_inputs()] for session in exposed.sessions]
        self._last = {name: place for place, names in enumerate(reads) for name in names}
        self._stages = [
            _Stage.of(session, exposed.outputs, [name for name, last in self._last.items() if last > place])
            for place, session in enumerate(exposed.sessions)
        ]
        self.parts = [list(stage.asked) for stage in self._stages]
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._kinds: dict[str, _Kind] = {}
        self._bound: list[_Bound | None] = []
        self._told_right = self._reusable = True
        self._fresh: set[int] = set()

    def __call__(self, feeds: Feeds) -> Iterator[Arrays]:
        """The values by name, part by part as in ``parts``; their memory is valid until the next part is asked for.

        A mapping that came before holds the same arrays as then, with new values.

        Raises:
            ModelError: If onnxruntime fails on these feeds.
        """
        values = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        shapes = {name: array.shape for name, array in values.items()}
        if shapes != self._shapes:
            self._shapes, self._kinds = shapes, self._told(shapes) if self._told_right else {}
            self._bound = self._placed()
        learned: dict[str, _Kind] = {}
        for place, stage in enumerate(self._stages):
            made = self._again(place, values)
            if made is None:
                outputs = stage.run(values)
                made = stage.made(outputs)
                self._fresh.add(place)
                learned.update({name: (array.dtype, array.shape) for name, array in outputs.items()})
            values.update(made.handed_on)
            yield made.asked
        if self._reusable and not learned.items() <= self._kinds.items():
            self._kinds.update(learned)
            self._bound = self._placed()

    def _again(self, place: int, values: Feeds) -> _Made | None:
        """What a stage makes in the memory that is kept; None where there is none, or they have other shapes now."""
        bound = self._bound[place]
        if bound is None:
            return None
        for name in bound.fed:
            bound.binding.bind_cpu_input(name, values[name])
        try:
            bound.session.run_with_iobinding(bound.binding, _shrinking() if place in self._fresh else None)
        except RuntimeError:
            self._bound, self._kinds = [None] * len(self._stages), {}
            self._told_right, self._reusable = False, self._told_right
            return None
        self._fresh.discard(place)
        return bound.made

    def _told(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Kind]:
        """What the outputs are as far as the sessions tell it of inputs of these shapes."""
        axes: dict[str, int] = {}
        found: dict[str, _Kind] = {}
        for stage in self._stages:
            for one in stage.session.get_inputs():
                come = zip(one.shape, shapes.get(one.name, ()), strict=False)
                axes.update({axis: size for axis, size in come if isinstance(axis, str)})  # None is any size
            for one in stage.session.get_outputs():
                sizes = [size if isinstance(size, int) else axes.get(size) for size in one.shape]
                shape = tuple(size for size in sizes if size is not None)
                known = shape and len(shape) == len(sizes)  # onnxruntime says [] of an unknown one, too
                if known and one.name in stage.outputs:
                    found[one.name] = numpy_type(one.type), shape
        return found

    def _placed(self) -> list[_Bound | None]:
        """Memory for all outputs of the stages of which all are known, plain arrays and not empty."""
        pieces, chosen, ready, total = list[_Piece](), dict[str, _Piece](), list[bool](), 0
        for place, stage in enumerate(self._stages):
            ready.append(all(name in self._kinds and _plain(self._kinds[name]) for name in stage.outputs))
            for name in stage.outputs if ready[place] else ():
                size = _bytes(self._kinds[name])
                fits = [piece for piece in pieces if piece.free <= place and piece.size >= size]
                if not fits:
                    fits = [_Piece(size, total)]
                    pieces += fits
                    total += -(-size // _LINE) * _LINE
                chosen[name] = min(fits, key=lambda piece: piece.size)
                chosen[name].free = self._last.get(name, place) + 1
        memory = _memory(total)
        arrays = {name: _array(memory[piece.start :], *self._kinds[name]) for name, piece in chosen.items()}
        return [_bind(stage, arrays) if known else None for stage, known in zip(self._stages, ready, strict=True)]


def _shrinking() -> ort.RunOptions:
    """For a run after which onnxruntime gives back the memory that it had for outputs in the last one."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _plain(kind: _Kind) -> bool:
    return kind[0].kind in "fiub" and _bytes(kind) > 0


def _bytes(kind: _Kind) -> int:
    dtype, shape = kind
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def _memory(size: int) -> npt.NDArray[np.uint8]:
    """So many bytes, at once: numpy asks the system for huge pages where an array is large."""
    memory = np.empty(size + _LINE, np.uint8)
    return memory[-memory.ctypes.data % _LINE :]


def _array(memory: npt.NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """At the beginning of that memory."""
    return memory[: _bytes((dtype, shape))].view(dtype).reshape(shape)


def _bind(stage: _Stage, arrays: Arrays) -> _Bound:
    binding = stage.session.io_binding()
    for name in stage.inputs:
        if name in arrays:
            binding.bind_input(name, *_place(arrays[name]))
    for name in stage.outputs:
        binding.bind_output(name, *_place(arrays[name]))
    fed = [name for name in stage.inputs if name not in arrays]
    return _Bound(stage.session, binding, stage.made(arrays), fed)


def _place(array: npt.NDArray[Any]) -> tuple[str, int, npt.DTypeLike, tuple[int, ...], int]:
    """An array as ``IOBinding`` takes it."""
    return "cpu", 0, array.dtype, array.shape, array.ctypes.data


def _view(value: ort.OrtValue) -> npt.NDArray[Any]:
    """The tensor of an OrtValue as an array over the same memory, which it keeps."""
    dtype, shape = numpy_type(value.data_type()), tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, dtype)
    memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(value.data_ptr())
    memory.kept = value  # type: ignore[attr-defined]
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
