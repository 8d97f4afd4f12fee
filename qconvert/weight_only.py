"""``qconvert quantize --mode weight-only``: few bits for weights, float32 for everything else, no calibration.

Weights pass one after the other, so that a model of many gigabytes takes little memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qconvert.comparison import compare_outputs, file_size
from qconvert.errors import DataError, ModelError, PlanError
from qconvert.files import atomic_output, check_writable
from qconvert.graph import file_hash, initializers, load_model, operand, weight_bytes, write_model
from qconvert.kernel_census import census
from qconvert.listener import SILENT, Listener
from qconvert.memory import WEIGHT_COPIES, resident, text
from qconvert.pipeline import Proof, Quantized
from qconvert.pipeline.data import PROOF, are_images, open_data
from qconvert.plan.weight_only import make_weight_plan
from qconvert.policy import Policy
from qconvert.prepare import prepare, raise_opset
from qconvert.preprocess import Preprocess
from qconvert.provenance import record_conversion
from qconvert.random_inputs import random_feeds
from qconvert.recover import Journal, Tried, Work, asked_names
from qconvert.recover.edits import nodes_of
from qconvert.recover.weights import names_for, recover_weights
from qconvert.rewrite.packing import Stored, packed_sizes, weight_sqnr
from qconvert.rewrite.weight_forms import needed_opset, readings
from qconvert.rewrite.weight_only import to_weight_only
from qconvert.session import TWO_BIT_OPSET, Feeds, check_opset, check_provider, open_session, run
from qconvert.support import check
from qconvert.visit import readable
from qconvert.workers import release_memory

COMPARED = 1 << 30
"""Bytes of float weights up to which the original is run beside the written model, where no limit is given."""

RUN = 1 << 32
"""Bytes of weights, as they are in memory, up to which the written model is run, where no limit is given."""

SEEN = 64
"""Samples that methods see which win back accuracy: others than outputs are compared on, where there are enough."""

RANDOM = 12
"""Random inputs that they see where there are no samples; one more is what outputs are compared on."""

INLINE = 1 << 28
"""Bytes of weights that are written into the model's file; more go beside it, which takes less memory."""


@dataclass(frozen=True)
class StoredWeight:
    """One weight as it stands in the written file.

    Attributes:
        tensor: Its name in the float model.
        dtype: The type of its levels.
        elements: How many it has.
        bytes: What its levels, scales and zero points take.
        sqnr_db: Of the weight read back from the file, against the float one.
    """

    tensor: str
    dtype: str
    elements: int
    bytes: int
    sqnr_db: float


@dataclass(frozen=True)
class QuantizedWeights(Quantized):
    """A written model with its plan and its proof.

    Attributes:
        weights: The quantized weights.
        random: Whether ``proof`` is about random inputs, not samples. Its ``fidelity`` is empty where the original was
            not run; its ``samples`` is 0 where the written model was not either.
    """

    weights: tuple[StoredWeight, ...] = ()
    random: bool = False


def quantize_weights(
    model: Path,
    *,
    output: Path,
    policy: Policy | None = None,
    data: Path | None = None,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
    provider: str = "cpu",
    max_memory: int | None = None,
    shard_size: int | None = None,
    budget: float | None = None,
    resume: bool = False,
    force: bool = False,
    listener: Listener = SILENT,
) -> QuantizedWeights:
    """Writes a model with quantized weights, after every weight was read back from it and onnxruntime has run it.

    Args:
        model: The float model.
        output: Where to write.
        policy: What to quantize and how; what it says of activations does not count.
        data: Samples to compare outputs on; None takes random inputs.
        preprocess: How images become inputs; wins over the policy's; None infers it.
        limit: How many samples to choose from.
        seed: Which ones, or which random inputs.
        provider: Where the models are run.
        max_memory: Bytes that the process may take: a model that does not fit is not run. None runs the original up to
            ``COMPARED`` bytes of weights and the written model up to ``RUN``.
        shard_size: Bytes of each file of weights; None writes one.
        budget: Seconds after which the policy's ``recover`` begins no other method; None: no limit.
        resume: Whether what its steps make of layers is kept beside the output until that is written, and used again.
        force: Whether an existing output may be overwritten.
        listener: Hears notes and progress.

    Raises:
        QConvertError: If anything the user can mend stops the work; nothing is written then.
    """
    policy = policy or Policy()
    check(policy, "weight-only")
    check_provider(provider)
    check_writable(output, force=force, keep=model)
    graph = load_model(model)
    digest, compared = file_hash(model, graph), _fits(weight_bytes(graph), max_memory, COMPARED)
    preprocess = preprocess or policy.preprocess
    feeds, about = _feeds(model, graph, data, preprocess, limit=limit, seed=seed, listener=listener)
    if compared and data is None and feeds:
        feeds = _runnable(model, feeds, provider, listener)
    shown = feeds[:1] if data is None else feeds[:PROOF]
    for note in prepare(graph, feeds if compared else (), original=model, fold=False).notes:
        listener.note(note)
    seen = (feeds[len(shown) :] or feeds) if compared else ()
    journal = Journal.beside(output) if resume else None
    work, tried = _recovered(
        graph, policy, seen, random=data is None, budget=budget, journal=journal, listener=listener
    )
    graph, plan = work.graph, work.plan
    before = _float_weights(work)
    release_memory()
    needed = needed_opset(readings(graph, plan))
    check_opset(TWO_BIT_OPSET if any(entry.params.dtype.bits == 2 for entry in plan.entries) else needed)
    raise_opset(graph, needed)
    written = to_weight_only(graph, plan)
    for note in written.notes:
        listener.note(note)
    record_conversion(written.model, model, digest, about, {"mode": "weight-only", "target": plan.target})
    with atomic_output(output, force=force) as temporary:
        _write(written.model, temporary, shard_size, listener)
        weights = _read_back(load_model(temporary), written.stored, before, listener)
        release_memory()
        size = file_size(temporary)
        loaded = size + sum(4 * before[one.weight].size for one in written.stored if one.folded)
        runs = compared or _fits(loaded, max_memory, RUN)
        proof = _prove(model, temporary, shown if runs else (), provider, compared=compared, listener=listener)
    if journal is not None:
        journal.drop()
    return QuantizedWeights(
        model, output, file_size(model), size, plan, proof, None, tried, weights=weights, random=data is None
    )


def _recovered(
    graph: ir.Model,
    policy: Policy,
    seen: Sequence[Feeds],
    *,
    random: bool,
    budget: float | None,
    journal: Journal | None,
    listener: Listener,
) -> tuple[Work, tuple[Tried, ...]]:
    """The plan of a model, after the methods that the policy or usage asks for where there are inputs to run it on."""
    plan = make_weight_plan(graph, policy, listener=listener)
    names = names_for(policy, plan, weight_bytes(graph))
    if names and seen:
        found = recover_weights(
            graph, plan, policy, names, seen, random=random, budget=budget, journal=journal, listener=listener
        )
        for note in found.work.notes:
            listener.note(note)
        return found.work, found.tried
    if names and asked_names(policy):
        raise PlanError(
            "recover: the float model must run, and it does not fit or is not given what it reads",
            hint="give --data, and more --max-memory; or leave it out",
        )
    return Work(graph, graph, plan), ()


def _fits(weights: int, limit: int | None, usual: int) -> bool:
    """Whether a session for so many bytes of weights fits into the limit, or else into what is usual."""
    return weights <= usual if limit is None else resident() + WEIGHT_COPIES * weights <= limit


def _feeds(
    model: Path,
    graph: ir.Model,
    data: Path | None,
    preprocess: Preprocess | None,
    *,
    limit: int | None,
    seed: int,
    listener: Listener,
) -> tuple[Sequence[Feeds], Mapping[str, Any]]:
    """Some samples and what they are, or some random inputs."""
    if data is not None:
        usual = preprocess if are_images(data) else None
        samples = open_data(model, graph, data, usual, limit=limit, seed=seed, listener=listener)
        return [sample.feeds for _, sample in islice(readable(samples), PROOF + SEEN)], samples.description
    try:
        feeds = [random_feeds(graph, seed + index) for index in range(1 + RANDOM)]
    except DataError as error:
        listener.note(f"not run: {error}")
        return (), {}
    listener.note("no samples: run on random inputs, which says little about real data; --data gives it samples")
    return feeds, {}


def _runnable(model: Path, feeds: Sequence[Feeds], provider: str, listener: Listener) -> Sequence[Feeds]:
    """The random inputs, unless the original fails on them."""
    session = open_session(model, provider=provider)
    try:
        for one in feeds:
            run(session, one)
    except ModelError as error:
        listener.note(f"outputs are not compared, since the original fails on random inputs: {error}")
        return ()
    return feeds


def _write(model: ir.Model, path: Path, shard_size: int | None, listener: Listener) -> None:
    listener.start("writing weights", sum(1 for _ in initializers(model)))
    try:
        write_model(model, path, inline=INLINE, shard=shard_size, progress=listener.advance)
    finally:
        listener.finish()


def _float_weights(work: Work) -> dict[str, ir.TensorProtocol]:
    """What the float model has at the sites of each entry, by the entry's name: methods rename what others read too."""
    nodes, found = nodes_of(work.reference), {}
    for entry in work.plan.entries:
        value = operand(nodes[entry.sites[0].operator], entry.sites[0].operand)
        if value is not None and value.const_value is not None:
            found[entry.tensor] = value.const_value
    return found


def _read_back(
    written: ir.Model, stored: Sequence[Stored], before: Mapping[str, ir.TensorProtocol], listener: Listener
) -> tuple[StoredWeight, ...]:
    """Every weight as the file has it, compared with the float one."""
    tensors = {value.name or "": tensor for value, tensor in initializers(written)}
    sizes, found = packed_sizes(written), []
    listener.start("comparing weights", len(stored))
    try:
        for done, one in enumerate(stored, 1):
            source = before[one.weight]
            size = sum(sizes[name][0] for name in (one.tensor, *one.beside))
            sqnr = weight_sqnr(source, tensors[one.tensor], one)
            found.append(StoredWeight(source.name or one.weight, one.params.dtype.name, source.size, size, sqnr))
            listener.advance(done)
    finally:
        listener.finish()
    return tuple(found)


def _prove(
    model: Path, written: Path, feeds: Sequence[Feeds], provider: str, *, compared: bool, listener: Listener
) -> Proof:
    if compared and feeds:
        on, off = (compare_outputs(model, written, feeds, provider=provider, optimize=flag) for flag in (True, False))
        return Proof(on, off, len(feeds), census(written, provider=provider))
    if compared:
        open_session(written, provider=provider, optimize=False)
        return Proof((), (), 0, census(written, provider=provider))
    listener.note(f"outputs are not compared: {text(file_size(model))} of float weights are not run beside the others")
    if not feeds:
        listener.note("the written model was not run")
        return Proof((), (), 0, ())
    session = open_session(written, provider=provider)
    for one in feeds:
        for spec, output in zip(session.get_outputs(), run(session, one), strict=True):
            if isinstance(output, np.ndarray) and output.dtype.kind == "f" and not np.isfinite(output).all():
                raise ModelError(f"the written model's output '{spec.name}' is not finite", hint="nothing was written")
    return Proof((), (), len(feeds), ())
