"""The public functions, one for each command: the only room that knows the order of the stages.

They take paths and values, return values, raise ``QConvertError`` and print nothing; a ``Listener`` hears notes and
progress.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert import calibration
from qconvert.calibration import Calibration
from qconvert.capture import capture
from qconvert.comparison import Evaluation, compare_models, compare_outputs, file_size
from qconvert.errors import ModelError
from qconvert.files import atomic_output, check_writable
from qconvert.graph import file_hash, load_model, operators, ports, write_model
from qconvert.kernel_census import Kernel, census
from qconvert.listener import SILENT, Listener
from qconvert.plan import Plan, candidate_values, make_placement, make_plan, nothing_to_quantize
from qconvert.policy import Policy
from qconvert.prepare import prepare, quantized_pairs, raise_opset
from qconvert.preprocess import Preprocess
from qconvert.provenance import record, recorded_preprocess
from qconvert.rewrite.qdq import needed_opset, to_qdq
from qconvert.samples import InputSpec, SampleSet, open_samples
from qconvert.samples.find import find as find_samples
from qconvert.scores import Fidelity
from qconvert.session import Feeds, check_provider
from qconvert.visit import readable

PROBES = 4
PROBE_BYTES = 32 << 20
"""How many samples a ``.calib`` file keeps for quantize's comparisons, and how large they may be together."""


@dataclass(frozen=True)
class Proof:
    """What was seen of a written model before quantize called it done.

    Attributes:
        fidelity: One for each float output, with onnxruntime's optimizations on.
        unoptimized: The same with them off.
        samples: How many real samples were compared.
        kernels: The heavy operators that really run.
    """

    fidelity: tuple[Fidelity, ...]
    unoptimized: tuple[Fidelity, ...]
    samples: int
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Quantized:
    """A written model with its plan and its proof."""

    model: Path
    path: Path
    size_before: int
    size_after: int
    plan: Plan
    proof: Proof


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
    strict: bool = False,
    force: bool = False,
    listener: Listener = SILENT,
) -> Calibration:
    """Runs the float model once over samples and keeps the statistics of every value that could be quantized.

    Args:
        model: The float model.
        data: Samples: a folder of images, ``.npy``/``.npz`` files or ONNX test data; or one file.
        output: Where to write the ``.calib`` file; None writes none.
        policy: Its ``preprocess`` is used, and operators that it leaves float are not observed.
        preprocess: How images become inputs; wins over the policy's; None infers it.
        limit: How many samples to choose; None takes all.
        seed: Which ones.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        threads: Samples in flight; 0 means one for each CPU.
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
    if preprocess is None and _are_images(data):
        preprocess = policy.preprocess
    samples = _open(model, graph, data, preprocess, limit=limit, seed=seed, listener=listener)
    probes = _probes(samples)
    for note in prepare(graph, probes, original=model).notes:
        listener.note(note)
    names = _observable(graph, policy, listener)
    listener.start("calibrating", len(samples))
    try:
        found = capture(
            graph, names, samples, provider=provider, threads=threads, strict=strict, progress=listener.advance
        )
    finally:
        listener.finish()
    _say_skipped(found.skipped, listener)
    folder = output.parent if output is not None else Path()
    result = Calibration(
        Path(os.path.relpath(model, folder)).as_posix(),
        file_hash(model),
        {**samples.description, "provider": provider},
        found.samples,
        found.skipped,
        found.stats,
        probes,
    )
    if output is not None:
        calibration.save(result, output, force=force)
    return result


def quantize(
    model: Path,
    calibrated: Calibration,
    *,
    output: Path,
    policy: Policy | None = None,
    provider: str = "cpu",
    force: bool = False,
    listener: Listener = SILENT,
) -> Quantized:
    """Writes the quantized model, after it was loaded in onnxruntime and compared with the original on real samples.

    Args:
        model: The float model that was calibrated.
        calibrated: Its statistics.
        output: Where to write.
        policy: What to quantize and how.
        provider: Where the written model is run for the comparison.
        force: Whether an existing output may be overwritten.
        listener: Hears notes.

    Raises:
        QConvertError: If anything the user can mend stops the work; nothing is written then.
    """
    policy = policy or Policy()
    check_provider(provider)
    check_writable(output, force=force, keep=model)
    calibration.check_model(calibrated, model)
    graph = load_model(model)
    for note in prepare(graph, calibrated.probes, original=model).notes:
        listener.note(note)
    plan = make_plan(graph, policy, calibrated.stats)
    raise_opset(graph, needed_opset(plan))
    written = to_qdq(graph, plan)
    record(written, model, calibrated, plan)
    with atomic_output(output, force=force) as temporary:
        write_model(written, temporary)
        proof = _prove(model, temporary, calibrated.probes, provider)
        size = file_size(temporary)
    return Quantized(model, output, file_size(model), size, plan, proof)


def evaluate(
    reference: Path,
    candidate: Path,
    data: Path,
    *,
    labels: Path | None = None,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
    provider: str = "cpu",
    threads: int = 0,
    latency_runs: int = 30,
    strict: bool = False,
    listener: Listener = SILENT,
) -> Evaluation:
    """Compares a model with its original: accuracy, fidelity, size, latency, kernels.

    Args:
        reference: The original.
        candidate: The model to judge.
        data: Samples.
        labels: A CSV ``file,label``; None takes labels from class folders or ``y`` arrays where there are any.
        preprocess: How images become inputs; None takes what the candidate was calibrated with, else infers it.
        limit: How many samples to choose; None takes all.
        seed: Which ones.
        provider: Execution provider of both.
        threads: Samples in flight, and threads of a timed run; 0 means one for each CPU.
        latency_runs: Timed runs of each; 0 leaves latency out.
        strict: Whether a sample that cannot be read is an error.
        listener: Hears notes and progress.

    Raises:
        QConvertError: If anything the user can mend stops the work.
    """
    check_provider(provider)
    graph = load_model(reference)
    if preprocess is None and _are_images(data):
        preprocess = recorded_preprocess(load_model(candidate))
        if preprocess is not None:
            listener.note(f"preprocessing taken from {candidate.name}, where calibrate recorded it")
    samples = _open(reference, graph, data, preprocess, labels=labels, limit=limit, seed=seed, listener=listener)
    listener.start("evaluating", len(samples))
    try:
        result = compare_models(
            reference,
            candidate,
            samples,
            provider=provider,
            threads=threads,
            latency_runs=latency_runs,
            strict=strict,
            progress=listener.advance,
        )
    finally:
        listener.finish()
    _say_skipped(result.skipped, listener)
    return result


def _are_images(data: Path) -> bool:
    return find_samples(data).kind == "images"


def _open(
    model: Path,
    graph: ir.Model,
    data: Path,
    preprocess: Preprocess | None,
    *,
    limit: int | None,
    seed: int,
    listener: Listener,
    labels: Path | None = None,
) -> SampleSet:
    inputs, outputs = ports(graph)
    strange = [port.name for port in inputs if port.dtype is None]
    if strange:
        raise ModelError(
            f"{model}: input '{strange[0]}' is not a tensor", hint="only tensor inputs can be fed from files"
        )
    specs = [InputSpec(port.name, port.dtype, port.shape) for port in inputs if port.dtype is not None]
    last = outputs[0].shape[-1] if outputs and outputs[0].shape else None
    samples = open_samples(
        data,
        specs,
        preprocess=preprocess,
        labels=labels,
        limit=limit,
        seed=seed,
        classes_hint=last if isinstance(last, int) else None,
    )
    for note in samples.notes:
        listener.note(note)
    return samples


def _probes(samples: SampleSet) -> tuple[Feeds, ...]:
    """The first readable samples, few and small enough to be kept."""
    found: list[Feeds] = []
    size = 0
    for sample in readable(samples):
        size += sum(array.nbytes for array in sample.feeds.values())
        if found and size > PROBE_BYTES:
            break
        found.append(sample.feeds)
        if len(found) == PROBES:
            break
    return tuple(found)


def _observable(graph: ir.Model, policy: Policy, listener: Listener) -> tuple[str, ...]:
    """The values to observe; says what cannot be."""
    placement, table, _ = make_placement(graph, policy)
    if not placement.integer:
        raise nothing_to_quantize(placement)
    _say_left_float(graph, listener)
    return candidate_values(graph, table)


def _say_skipped(skipped: Sequence[tuple[str, str]], listener: Listener) -> None:
    for name, reason in skipped:
        listener.note(f"skipped {reason if name in reason else f'{name}: {reason}'}")


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


def _prove(model: Path, written: Path, probes: Sequence[Feeds], provider: str) -> Proof:
    fidelity = compare_outputs(model, written, probes, provider=provider, optimize=True)
    unoptimized = compare_outputs(model, written, probes, provider=provider, optimize=False)
    return Proof(fidelity, unoptimized, len(probes), census(written, provider=provider))
