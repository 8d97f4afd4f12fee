"""The stages of ``quantize``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from qconvert import calibration
from qconvert.calibration import Calibration
from qconvert.choose import make_chosen_plan
from qconvert.comparison import compare_outputs, file_size
from qconvert.errors import CalibrationError, PlanError
from qconvert.exchange.given import GivenRanges, given_ranges, unmatched_notes
from qconvert.files import atomic_output, check_writable
from qconvert.graph import file_hash, load_model, write_model
from qconvert.histogram import TensorStats
from qconvert.kernel_census import Kernel, census
from qconvert.listener import SILENT, Listener
from qconvert.pipeline.data import PROOF
from qconvert.pipeline.recovering import recover
from qconvert.plan import Plan
from qconvert.plan.dynamic import make_dynamic_plan
from qconvert.plan.outputs import quantize_outputs
from qconvert.plan.types import ActivationScheme
from qconvert.policy import Policy
from qconvert.prepare import prepare, raise_opset
from qconvert.provenance import record
from qconvert.random_inputs import random_feeds
from qconvert.recover import Journal, Tried, asked_methods, asked_names
from qconvert.recover.trials import PlanOf
from qconvert.rewrite import dynamic as rewrite_dynamic
from qconvert.rewrite.forms import Form, Written, write_plan
from qconvert.rewrite.interface import Interface
from qconvert.rewrite.qdq import needed_opset
from qconvert.scores import Fidelity
from qconvert.session import Feeds, check_opset, check_provider
from qconvert.support import check


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
    """A written model with its plan and its proof.

    Attributes:
        model: The float model.
        path: The written one.
        size_before: Bytes of the float model with its weight files.
        size_after: Bytes of the written one.
        plan: What was decided.
        proof: What was seen.
        interface: What inputs and outputs mean, where they are not what the float model's are.
        tried: What the methods of ``recover`` gave and cost.
    """

    model: Path
    path: Path
    size_before: int
    size_after: int
    plan: Plan
    proof: Proof
    interface: Interface | None = None
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True)
class Way:
    """When activations are quantized.

    Attributes:
        mode: ``static``: to ranges that calibration found; ``dynamic``: to their own, at run time.
        activation_scheme: Of dynamic activations: a scale for each tensor, or for each row of the last axis.
        bounded: Whether dynamic scales stay within what calibration saw.
    """

    mode: Literal["static", "dynamic"] = "static"
    activation_scheme: ActivationScheme = "per-tensor"
    bounded: bool = False


STATIC, QDQ = Way(), Form()


def quantize(
    model: Path,
    calibrated: Calibration | None,
    *,
    output: Path,
    policy: Policy | None = None,
    ranges: Path | None = None,
    way: Way = STATIC,
    form: Form = QDQ,
    provider: str = "cpu",
    budget: float | None = None,
    resume: bool = False,
    force: bool = False,
    listener: Listener = SILENT,
) -> Quantized:
    """Writes the quantized model, after it was loaded in onnxruntime and compared with the original on real samples.

    Args:
        model: The float model.
        calibrated: Its statistics; None where the way needs none, then random inputs are compared.
        output: Where to write.
        policy: What to quantize and how.
        ranges: A file of another tool's ranges (``exchange.FORMATS``), which count before those of the calibrator.
        way: When activations are quantized.
        form: What file is written.
        provider: Where the written model is run for the comparison.
        budget: Seconds after which the policy's ``recover`` begins no other method; None: no limit.
        resume: Whether what its steps make of layers is kept beside the output until that is written, and used again.
        force: Whether an existing output may be overwritten.
        listener: Hears notes.

    Raises:
        QConvertError: If anything the user can mend stops the work; nothing is written then.
    """
    policy = policy or Policy()
    check(policy, way.mode, form, activation_scheme=way.activation_scheme)
    _check_recover(policy, way, ranges)
    check_provider(provider)
    check_writable(output, force=force, keep=model)
    graph = load_model(model)
    if calibrated is None:
        calibrated = _uncalibrated(model, graph, way, listener)
    calibration.check_model(calibrated, model)
    for note in prepare(graph, calibrated.probes[:PROOF], original=model).notes:
        listener.note(note)
    tried: tuple[Tried, ...] = ()
    journal = Journal.beside(output) if resume else None
    if way.mode == "dynamic":
        plan, written = _dynamic(graph, policy, calibrated, way=way, ranges=ranges)
    elif asked_names(policy):
        plan_of = _planner(policy, calibrated, None, form=form, listener=listener)
        found = recover(graph, policy, plan_of, calibrated, budget=budget, journal=journal, listener=listener)
        plan, tried = found.work.plan, found.tried
        for note in found.work.notes:
            listener.note(note)
        written = _static(found.work.graph, plan, form)
    else:
        plan = _static_plan(graph, policy, calibrated, ranges=ranges, form=form, listener=listener)
        written = _static(graph, plan, form)
    for note in (*plan.notes, *written.notes):
        listener.note(note)
    record(written, model, calibrated, plan, mode=way.mode, form=form.format)
    with atomic_output(output, force=force) as temporary:
        write_model(written.model, temporary)
        proof = _prove(model, temporary, calibrated.probes[:PROOF], provider)
        size = file_size(temporary)
    if journal is not None:
        journal.drop()
    return Quantized(model, output, file_size(model), size, plan, proof, written.interface, tried)


def _uncalibrated(model: Path, graph: ir.Model, way: Way, listener: Listener) -> Calibration:
    """Random inputs in place of samples.

    Raises:
        CalibrationError: If the way needs statistics.
    """
    if way.mode == "static" or way.bounded:
        what = "bounds" if way.bounded else "static ranges"
        raise CalibrationError(f"{what} come from statistics, and there are none", hint="give --data SAMPLES")
    listener.note("no samples: the written model is compared with the original on random inputs")
    probes = tuple(random_feeds(graph, seed) for seed in range(PROOF))
    return Calibration(model.name, file_hash(model, graph), {"kind": "random"}, 0, (), {}, probes)


def _static_plan(
    graph: ir.Model,
    policy: Policy,
    calibrated: Calibration,
    *,
    ranges: Path | None,
    form: Form,
    listener: Listener,
) -> Plan:
    given = given_ranges(ranges, calibrated.stats) if ranges is not None else None
    plan = _planner(policy, calibrated, given, form=form, listener=listener)(graph, calibrated.stats)
    if given is not None:
        for note in (*given.notes, *unmatched_notes(given, plan, graph)):
            listener.note(note)
    return plan


def _planner(
    policy: Policy, calibrated: Calibration, given: GivenRanges | None, *, form: Form, listener: Listener
) -> PlanOf:
    """What plans a float model with statistics."""
    known = given.ranges if given else None

    def plan_of(graph: ir.Model, stats: Mapping[str, TensorStats]) -> Plan:
        plan = make_chosen_plan(graph, policy, stats, calibrated.probes, given=known, listener=listener)
        return quantize_outputs(graph, plan, stats) if form.gives_levels else plan

    return plan_of


def _check_recover(policy: Policy, way: Way, ranges: Path | None) -> None:
    """Refuses to win back accuracy where nothing would use it.

    Raises:
        PlanError: If activations are dynamic, or ranges are given, which rewrites of the float model would make wrong.
        PolicyError: If there is no method of a name.
    """
    if not asked_names(policy):
        return
    asked_methods(policy)
    if way.mode != "static":
        raise PlanError("recover is for static activations", hint="leave it out, or use --mode static")
    if ranges is not None:
        raise PlanError("recover changes ranges, and --ranges gives them", hint="leave one of them out")


def _static(graph: ir.Model, plan: Plan, form: Form) -> Written:
    check_opset(needed_opset(plan))
    raise_opset(graph, needed_opset(plan))
    return write_plan(graph, plan, form)


def _dynamic(
    graph: ir.Model, policy: Policy, calibrated: Calibration, *, way: Way, ranges: Path | None
) -> tuple[Plan, Written]:
    if ranges is not None:
        raise PlanError("--ranges are for static activations", hint="leave it out, or use --mode static")
    stats = calibrated.stats if way.bounded else None
    plan = make_dynamic_plan(graph, policy, stats, activation_scheme=way.activation_scheme, bounded=way.bounded)
    raise_opset(graph, rewrite_dynamic.needed_opset(plan))
    return plan, Written(rewrite_dynamic.to_dynamic(graph, plan))


def _prove(model: Path, written: Path, probes: Sequence[Feeds], provider: str) -> Proof:
    fidelity = compare_outputs(model, written, probes, provider=provider, optimize=True)
    unoptimized = compare_outputs(model, written, probes, provider=provider, optimize=False)
    return Proof(fidelity, unoptimized, len(probes), census(written, provider=provider))
