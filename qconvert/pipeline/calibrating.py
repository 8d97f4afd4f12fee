"""The stages of ``calibrate``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import onnx_ir as ir

from qconvert import calibration
from qconvert.calibration import Calibration
from qconvert.capture import Captured, Way, capture
from qconvert.errors import CorruptSampleError
from qconvert.files import Spill, check_writable
from qconvert.graph import files_of, hash_of, load_model, operators, weight_bytes
from qconvert.histogram import Detail
from qconvert.listener import SILENT, Listener
from qconvert.memory import plan_passes, resident, value_bytes
from qconvert.pipeline.data import PROOF, are_images, open_data, say_skipped
from qconvert.plan import candidate_values, make_placement, nothing_to_quantize
from qconvert.plan.channels import channel_axes
from qconvert.policy import Policy
from qconvert.prepare import prepare, quantized_pairs
from qconvert.preprocess import Preprocess
from qconvert.resume import Journal
from qconvert.samples import Sample, SampleSet
from qconvert.samples.ahead import ReadAhead
from qconvert.samples.pack import held_bytes, packed
from qconvert.session import Feeds, check_provider
from qconvert.visit import State, readable
from qconvert.workers import default_workers

PROBES = 128
PROBE_BYTES = 18 << 20
"""How many samples a ``.calib`` file keeps for choosing ranges (a power of two), how large they may be together."""


def calibrate(
    model: Path,
    data: Path,
    *,
    output: Path | None = None,
    policy: Policy | None = None,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
    provider: str = "cpu",
    threads: int = 0,
    detail: Detail = "exact",
    channels: bool = False,
    max_memory: int | None = None,
    resume: bool = False,
    strict: bool = False,
    force: bool = False,
    listener: Listener = SILENT,
) -> Calibration:
    """Runs the float model over samples and keeps the statistics of every value that could be quantized.

    Args:
        model: The float model.
        data: Samples: a folder of images, ``.npy``/``.npz`` files or ONNX test data; or one file.
        output: Where to write the ``.calib`` file; None writes none.
        policy: Its ``preprocess`` is used; operators that it leaves float are not observed, nor those that its target
            and most others compute in float.
        preprocess: How images become inputs; wins over the policy's; None infers it.
        limit: How many samples to choose; None takes all.
        seed: Which ones.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        threads: Samples in flight; 0 means one for each CPU.
        detail: Which values are counted: all (``exact``), ``sampled`` ones or none (``range``); extremes are exact.
        channels: Whether every channel of what Conv, Gemm and MatMul read and make has statistics of its own.
        max_memory: Bytes that the process may take; values are split into several passes to stay below.
        resume: Whether to go on with what an unfinished run to the same output has kept.
        strict: Whether a sample that cannot be read is an error.
        force: Whether an existing output may be overwritten.
        listener: Hears notes and progress.

    Raises:
        QConvertError: If anything the user can mend stops the work; nothing is written then.
    """
    policy = policy or Policy()
    check_provider(provider)
    if output is not None:
        check_writable(output, force=force, keep=model)
    graph = load_model(model)
    if preprocess is None and are_images(data):
        preprocess = policy.preprocess
    samples = open_data(model, graph, data, preprocess, limit=limit, seed=seed, listener=listener)
    order = spread(len(samples))
    first = _first(samples, order)
    kept = _kept(order, first) if detail != "range" else list(first)
    with (
        closing(Spill()) as spill,
        closing(ReadAhead(samples, kept, first, spill)) as ahead,
        ThreadPoolExecutor(1) as aside,
    ):
        digest = aside.submit(hash_of, files_of(model, graph))
        probes = tuple(sample.feeds for sample in first.values())
        for note in prepare(graph, probes, original=model).notes:
            listener.note(note)
        names = _observable(graph, policy, listener)
        axes = {name: axis for name, axis in channel_axes(graph).items() if name in names} if channels else {}
        sizes = value_bytes(graph, names, probes[0])
        passes = plan_passes(
            sizes,
            weights=weight_bytes(graph),
            base=resident(),
            workers=min(threads or default_workers(), len(samples)),
            limit=max_memory,
        )
        listener.note(str(passes))
        about = {**samples.description, "provider": provider, "statistics": detail, "channels": channels}
        result = Calibration(_relative(model, output), digest.result(), about, 0, (), {}, probes)
        journal = Journal.beside(output, result) if output is not None else None
        state = State(passes.groups)
        if journal is not None:
            state = journal.begin(state, resume=resume, note=listener.note)
        way = Way(
            detail=detail,
            channels=axes,
            provider=provider,
            threads=passes.workers,
            sizes=sizes,
            strict=strict,
            progress=listener.advance,
            keep=journal.keep if journal is not None else None,
            ready=ahead.take,
            gather=frozenset(kept),
            spill=spill,
        )
        found = _captured(graph, state, samples, way, listener)
    result = replace(
        result,
        samples=found.samples,
        skipped=found.skipped,
        stats={name: found.stats[name] for name in names},
        channels=found.channels,
        probes=_probes(samples, kept, found.gathered),
    )
    if output is not None and journal is not None:
        calibration.save(result, output, force=force)
        journal.drop()
    return result


def _relative(model: Path, output: Path | None) -> str:
    """Where the model is, seen from the file that is written."""
    return Path(os.path.relpath(model, output.parent if output is not None else Path())).as_posix()


def _captured(graph: ir.Model, state: State, samples: SampleSet, way: Way, listener: Listener) -> Captured:
    listener.start("calibrating", len(samples) * len(state.groups))
    try:
        found = capture(graph, state, samples, way)
    finally:
        listener.finish()
    say_skipped(found.skipped, listener)
    return found


def _first(samples: SampleSet, order: Sequence[int]) -> dict[int, Sample]:
    """The first readable samples by number."""
    return {number: packed(sample) for number, sample in islice(readable(samples, order), PROOF)}


def _kept(order: Sequence[int], first: Mapping[int, Sample]) -> list[int]:
    """The numbers of the samples that the file keeps: the first ones, and more as far as they are small enough."""
    room = min(PROBES, max(PROBE_BYTES // max(_size(first), 1), len(first)))
    return list(dict.fromkeys([*first, *order]))[:room]


def _size(samples: Mapping[int, Sample]) -> int:
    """Bytes of the largest."""
    return max(held_bytes(sample.feeds) for sample in samples.values())


def _probes(samples: SampleSet, kept: Sequence[int], gathered: Mapping[int, Sample]) -> tuple[Feeds, ...]:
    """The samples to keep; those that the run did not pass, because an earlier one did, are read again.

    No more than there is room for: some may not shrink as the first did.
    """
    found, room = list[Feeds](), PROBE_BYTES
    for index in kept:
        sample = gathered.get(index)
        with suppress(CorruptSampleError):
            sample = sample or packed(samples.load(index))
        if sample is not None:
            room -= held_bytes(sample.feeds)
            if room < 0 and len(found) >= PROOF:
                break
            found.append(sample.feeds)
    return tuple(found)


def spread(count: int) -> list[int]:
    """Numbers of ``PROBES`` samples, any first few evenly spread (0, 1/2, 1/4, 3/4, ... of all); then the others."""
    bits = PROBES.bit_length() - 1
    order = [int(f"{place:0{bits}b}"[::-1], 2) * count // PROBES for place in range(PROBES)]
    return list(dict.fromkeys([*order, *range(count)])) if count else []


def _observable(graph: ir.Model, policy: Policy, listener: Listener) -> tuple[str, ...]:
    """The values to observe; says what cannot be."""
    placement, table, target = make_placement(graph, policy)
    if not placement.integer:
        raise nothing_to_quantize(placement)
    _say_left_float(graph, listener)
    return candidate_values(graph, table, target)


def _say_left_float(graph: ir.Model, listener: Listener) -> None:
    pairs = quantized_pairs(graph)
    if pairs:
        listener.note(f"the model has {pairs} Q/DQ operators already: they stay, and nothing is quantized twice")
    inside = [op.subgraph for op in operators(graph) if op.subgraph]
    if inside:
        listener.note(
            f"{len(inside)} operators in {len(set(inside))} bodies of If, Loop or Scan stay float: "
            "values in a subgraph cannot be observed from outside ('qconvert inspect' lists them)"
        )
