"""``qconvert convert``: half precision, proved on samples or, without any, on random inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime as ort

from qconvert.comparison import file_size
from qconvert.errors import ModelError
from qconvert.files import atomic_output, check_writable
from qconvert.graph import Port, file_hash, load_model, opset, ports, write_model
from qconvert.listener import SILENT, Listener
from qconvert.prepare.opset import raise_opset
from qconvert.prepare.types import infer_types
from qconvert.preprocess import Preprocess
from qconvert.provenance import record_conversion
from qconvert.random_inputs import random_feeds
from qconvert.rewrite.half import HalfReport, To, to_half
from qconvert.samples import InputSpec, SampleSet, open_samples
from qconvert.scores import Fidelity, Sums, pool_fidelity, sample_sums
from qconvert.session import Feeds, numpy_type, open_session, run
from qconvert.simulate import Peak, simulate
from qconvert.visit import readable

RANDOM_RUNS = 4
"""How many random inputs a model is compared on where no samples are given."""

OVERFLOW = 65520.0
"""The least magnitude that float16 rounds to infinity; its largest value is 65504."""

_STORED = "storage only: the file shrinks, the model computes in float32, as fast and in as much memory as before"
_COMPUTED = (
    "onnxruntime's CPU provider computes float16 in float32: no gain in speed here, and no overflow; "
    "hardware that rounds every value to float16 is simulated"
)

BFLOAT16_OPSET = 13
"""The first opset whose Cast knows bfloat16."""

LISTED = 4
"""Values that an error names."""


@dataclass(frozen=True)
class Overflow:
    """A value that float16 cannot hold: ``peak`` is its largest magnitude over all samples, in float32."""

    value: str
    op_type: str
    peak: float
    operators: tuple[str, ...]


@dataclass(frozen=True)
class HalfProof:
    """What was seen of a converted model before convert called it done.

    Attributes:
        here: Fidelity of each float output as onnxruntime runs the file on this CPU.
        simulated: The same with every half value rounded; empty where nothing computes in half.
        overflows: Values that become infinite in the simulation.
        samples: On how many samples.
        random: Whether these were random.
    """

    here: tuple[Fidelity, ...]
    simulated: tuple[Fidelity, ...]
    overflows: tuple[Overflow, ...]
    samples: int
    random: bool


@dataclass(frozen=True)
class Converted:
    """A written model, what the conversion did, and its proof."""

    model: Path
    path: Path
    size_before: int
    size_after: int
    report: HalfReport
    proof: HalfProof


def convert(
    model: Path,
    *,
    output: Path,
    to: To = "fp16",
    data: Path | None = None,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    seed: int = 0,
    keep_io: bool = True,
    block: Sequence[str] = (),
    storage_only: bool = False,
    force: bool = False,
    listener: Listener = SILENT,
) -> Converted:
    """Writes the model in half precision, after it was loaded in onnxruntime and compared with the original.

    Args:
        model: The float32 model.
        output: Where to write.
        to: ``fp16`` or ``bf16``; bf16 is storage only.
        data: Samples to compare on; None takes random inputs.
        preprocess: How images become inputs; None infers it.
        limit: How many samples to choose; None takes all.
        seed: Which ones, or which random inputs.
        keep_io: Whether inputs and outputs stay float32.
        block: Patterns for names or types of operators that stay in float32.
        storage_only: Whether weights are stored in half and computed with in float32.
        force: Whether an existing output may be overwritten.
        listener: Hears notes and progress.

    Raises:
        QConvertError: If anything the user can mend stops the work; nothing is written then.
    """
    if not keep_io and (storage_only or to == "bf16"):
        raise ModelError(
            "inputs and outputs stay float32 where only the storage changes", hint="leave out --no-keep-io"
        )
    check_writable(output, force=force, keep=model)
    graph = load_model(model)
    digest = file_hash(model, graph)
    samples = _open(graph, data, preprocess, limit=limit, seed=seed) if data is not None else None
    if samples is not None:
        for note in samples.notes:
            listener.note(note)
    else:
        listener.note("random inputs: the comparison says little about real data; --data gives it samples")
    drawn = [] if samples is not None else [random_feeds(graph, seed + place) for place in range(RANDOM_RUNS)]
    feeds = _Feeds(samples, drawn)
    passes.RemoveInitializersFromInputsPass()(graph)
    passes.InlinePass()(graph)
    before = opset(graph)
    if to == "bf16" and raise_opset(graph, BFLOAT16_OPSET):
        listener.note(f"opset raised from {before} to {BFLOAT16_OPSET}, the first that casts bfloat16")
    infer_types(graph)
    half, report = to_half(graph, to=to, keep_io=keep_io, block=block, storage_only=storage_only)
    listener.note(_STORED if report.storage_only else _COMPUTED)
    settings = {"to": to, "keep_io": keep_io, "block": list(block), "storage_only": report.storage_only}
    record_conversion(half, model, digest, samples.description if samples is not None else {}, settings)
    with atomic_output(output, force=force) as temporary:
        write_model(half, temporary)
        proof = _prove(model, temporary, feeds, report, listener)
        size = file_size(temporary)
    return Converted(model, output, file_size(model), size, report, proof)


def _open(graph: ir.Model, data: Path, preprocess: Preprocess | None, *, limit: int | None, seed: int) -> SampleSet:
    specs = [InputSpec(port.name, _dtype(port), port.shape) for port in ports(graph)[0]]
    return open_samples(data, specs, preprocess=preprocess, limit=limit, seed=seed)


def _dtype(port: Port) -> np.dtype[Any]:
    if port.dtype is None or port.dtype.kind not in "fiub":
        kind = "not a tensor" if port.dtype is None else f"a tensor of {port.dtype.name}"
        raise ModelError(f"input '{port.name}' is {kind}", hint="only numbers can be fed to a model that is converted")
    return port.dtype


@dataclass(frozen=True)
class _Feeds:
    """The samples, or random inputs where there are none."""

    samples: SampleSet | None
    drawn: Sequence[Feeds]

    def __len__(self) -> int:
        return len(self.drawn) if self.samples is None else len(self.samples)

    def __iter__(self) -> Iterator[Feeds]:
        if self.samples is None:
            return iter(self.drawn)
        return (sample.feeds for _, sample in readable(self.samples))


def _prove(model: Path, written: Path, feeds: _Feeds, report: HalfReport, listener: Listener) -> HalfProof:
    race = _Race.of(model, written, simulated=not report.storage_only)
    listener.start("comparing", len(feeds))
    try:
        for done, inputs in enumerate(feeds, 1):
            race.step(inputs)
            listener.advance(done)
    except ModelError as error:
        if feeds.samples is None:
            raise ModelError(f"random inputs: {error}", hint="give real samples with --data") from error
        raise
    finally:
        listener.finish()
    overflows = race.overflows()
    if race.broken:
        named = ", ".join(name for one in overflows[:LISTED] for name in one.operators)
        hint = f"keep in float32 what overflows: --block {named}" if named else "this should not happen"
        raise ModelError(f"the written model's output '{min(race.broken)}' is not finite", hint=hint)
    return HalfProof(race.fidelity(race.here), race.fidelity(race.rounded), overflows, race.runs, feeds.samples is None)


@dataclass
class _Race:
    """The original, the written model and its simulation, on the same inputs."""

    before: ort.InferenceSession
    after: ort.InferenceSession
    simulation: ort.InferenceSession | None
    peaks: dict[str, Peak]
    here: list[list[Sums | None]] = field(default_factory=list)
    rounded: list[list[Sums | None]] = field(default_factory=list)
    largest: dict[str, float] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    runs: int = 0

    @classmethod
    def of(cls, model: Path, written: Path, *, simulated: bool) -> _Race:
        before, after = open_session(model), open_session(written)
        if not simulated:
            return cls(before, after, None, {})
        found = simulate(load_model(written))
        return cls(before, after, open_session(found.model), dict(found.peaks))

    @property
    def names(self) -> list[str]:
        return [output.name for output in self.before.get_outputs()]

    def step(self, feeds: Feeds) -> None:
        expected = run(self.before, feeds)
        cast = {one.name: feeds[one.name].astype(numpy_type(one.type)) for one in self.after.get_inputs()}
        found = run(self.after, cast)
        self.runs += 1
        self.here.append([sample_sums(a, b) for a, b in zip(expected, found, strict=True)])
        self.broken.update(n for n, a, b in zip(self.names, expected, found, strict=True) if _breaks(a, b))
        if self.simulation is not None:
            values = run(self.simulation, cast)
            self.rounded.append([sample_sums(a, b) for a, b in zip(expected, values[: len(expected)], strict=True)])
            for name, value in zip(self.peaks, values[len(expected) :], strict=True):
                self.largest[name] = float(np.fmax(self.largest.get(name, 0.0), value))

    def overflows(self) -> tuple[Overflow, ...]:
        """Values that were finite before they were rounded, beyond the range: where infinities begin."""
        found = [(self.peaks[name], peak) for name, peak in self.largest.items() if OVERFLOW <= peak < np.inf]
        return tuple(Overflow(one.value, one.op_type, peak, one.operators) for one, peak in found)

    def fidelity(self, rows: Sequence[Sequence[Sums | None]]) -> tuple[Fidelity, ...]:
        found = [pool_fidelity(name, [row[place] for row in rows]) for place, name in enumerate(self.names) if rows]
        return tuple(one for one in found if one is not None)


def _breaks(before: Any, after: Any) -> bool:  # noqa: ANN401 - onnxruntime outputs are arrays, lists or dictionaries
    arrays = isinstance(before, np.ndarray) and isinstance(after, np.ndarray) and before.dtype.kind == "f"
    return bool(arrays and np.isfinite(before).all() and not np.isfinite(after).all())
