"""What experiments on a model are made with: the prepared graph, statistics, samples in a seeded order."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert import calibration
from qconvert.calibration import Calibration
from qconvert.choose import make_chosen_plan
from qconvert.errors import CorruptSampleError, DataError
from qconvert.graph import FLOATS, load_model, operators, weight_bytes
from qconvert.listener import SILENT, Listener
from qconvert.memory import resident, value_bytes
from qconvert.pipeline.calibrating import calibrate
from qconvert.pipeline.data import PROOF, are_images, open_data, say_skipped
from qconvert.plan import Plan
from qconvert.policy import Policy
from qconvert.prepare import prepare
from qconvert.preprocess import Preprocess
from qconvert.samples import Sample, SampleSet
from qconvert.samples.pack import held_bytes
from qconvert.sensing.cut import Origin
from qconvert.sensing.engine import GROUP, Lab
from qconvert.sensing.measures import Custom
from qconvert.sensing.room import Needs, Room, plan_room
from qconvert.workers import default_workers

HELD = 256 << 20
"""Bytes of samples that stay in memory; others are read again for every group of experiments."""


@dataclass(frozen=True)
class Material:
    """A model, its statistics and samples.

    Attributes:
        graph: Prepared.
        calibrated: Its statistics.
        samples: What it is run on.
    """

    graph: ir.Model
    calibrated: Calibration
    samples: SampleSet

    def plan(self, policy: Policy, listener: Listener = SILENT) -> Plan:
        """The plan of a policy.

        Raises:
            QConvertError: If the policy does not fit.
        """
        known = self.calibrated
        return make_chosen_plan(self.graph, policy, known.stats, known.probes, listener=listener)


def gather(
    model: Path,
    data: Path,
    *,
    policy: Policy,
    calibrated: Calibration | None,
    labels: Path | None,
    preprocess: Preprocess | None,
    limit: int | None,
    seed: int,
    threads: int,
    max_memory: int | None,
    strict: bool,
    listener: Listener,
) -> Material:
    """Reads a model, its samples and, where none are given, its statistics, which are taken of the same samples.

    Raises:
        QConvertError: If anything the user can mend stops the work.
    """
    graph = load_model(model)
    if preprocess is None and are_images(data):
        preprocess = policy.preprocess or _recorded(calibrated)
    samples = open_data(model, graph, data, preprocess, labels=labels, limit=limit, seed=seed, listener=listener)
    if calibrated is None:
        listener.note("ranges from the same samples: give --calibration to judge ranges found on others")
        calibrated = calibrate(
            model, data, policy=policy, preprocess=preprocess, limit=limit, seed=seed, threads=threads, strict=strict,
            max_memory=max_memory,
        )  # fmt: skip
    calibration.check_model(calibrated, model)
    for note in prepare(graph, calibrated.probes[:PROOF], original=model).notes:
        listener.note(note)
    return Material(graph, calibrated, samples)


def _recorded(calibrated: Calibration | None) -> Preprocess | None:
    recorded = calibrated.data.get("preprocess") if calibrated is not None else None
    return Preprocess.model_validate(recorded) if isinstance(recorded, dict) else None


def open_lab(
    material: Material,
    *,
    seed: int,
    threads: int,
    max_memory: int | None,
    strict: bool,
    listener: Listener,
    custom: Custom | None = None,
) -> tuple[Lab, Room]:
    """What experiments share, and the memory that they take; the graph must have the opset of all plans by now.

    Raises:
        CalibrationError: If the memory does not do.
        DataError: If no sample can be read.
    """
    graph, samples = material.graph, material.samples
    store = _Store(samples, seed, strict=strict, listener=listener)
    room = _room(graph, store, threads=threads, limit=max_memory)
    listener.note(str(room))
    outputs = tuple(value.name or "" for value in graph.graph.outputs)
    batch, count = samples.source.batch, len(store.order)
    return Lab(graph, Origin.of(graph), outputs, store.load, count, batch, room.workers, room.values, custom), room


class _Store:
    """The samples that can be read, in the order of a seed; as many as there is room for stay in memory.

    Attributes:
        order: Their numbers in the set.
        bytes: What stays.
    """

    def __init__(self, samples: SampleSet, seed: int, *, strict: bool, listener: Listener) -> None:
        self.samples = samples
        self.order: list[int] = []
        self.bytes = 0
        self.held: dict[int, Sample] = {}
        shuffled = list(range(len(samples)))
        random.Random(seed).shuffle(shuffled)  # noqa: S311 - an order, no secret
        skipped = [broken for index in shuffled if (broken := self._read(index, strict=strict))]
        say_skipped(skipped, listener)
        if not self.order:
            raise DataError(
                f"none of the {len(samples)} samples can be read; the first: {skipped[0][1]}",
                hint="mend them, or give others with --data",
            )

    def _read(self, index: int, *, strict: bool) -> tuple[str, str] | None:
        """Adds a sample; its name and what is wrong with it where it cannot be read."""
        try:
            self._add(index, self.samples.load(index))
        except CorruptSampleError as error:
            if strict:
                raise
            return error.sample, str(error)
        return None

    def _add(self, index: int, sample: Sample) -> None:
        size = held_bytes(sample.feeds)
        if self.bytes + size <= HELD or not self.held:
            self.held[len(self.order)] = sample
            self.bytes += size
        self.order.append(index)

    def load(self, position: int) -> Sample:
        """The sample at a position of the order."""
        return self.held.get(position) or self.samples.load(self.order[position])


def _room(graph: ir.Model, store: _Store, *, threads: int, limit: int | None) -> Room:
    feeds, count = store.load(0).feeds, len(store.order)
    outputs = [value.name or "" for value in graph.graph.outputs]
    made = (value for op in operators(graph) if not op.subgraph for value in op.node.outputs)
    names = [value.name for value in made if value.name and value.dtype in FLOATS]
    sizes = value_bytes(graph, tuple(dict.fromkeys((*names, *outputs))), feeds)
    needs = Needs(
        weights=weight_bytes(graph),
        largest=max(sizes.values()),
        values=sum(sizes.values()),
        kept=count * sum(sizes[name] for name in outputs),
        nodes=GROUP * sum(1 for _ in operators(graph)) // 2,
        samples=count,
    )
    return plan_room(needs, base=resident(), workers=threads or default_workers(), limit=limit)
