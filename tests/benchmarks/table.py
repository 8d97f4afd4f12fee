"""The accuracy table: every calibrator at every width, next to onnxruntime.quantization, as Markdown.

    python -m tests.benchmarks.table [CASE ...] [--calibrate N] [--evaluate N] [--methods M ...] [--widths W ...]
                                     [--divisions N]

Ranges come from one set of samples, all figures from another. SQNR is pooled over samples and elements, the mean over
the float outputs; top-1 where there are labels. With ``--divisions``, the images of both sets are divided anew at
random, N times, and cells are means with their standard errors: a set of a few hundred has a few that are hard, and
whichever side these fall on decides between methods that are equally good. onnxruntime.quantization runs on the same
samples with its own defaults (QDQ, uint8 activations, int8 weights, ``quant_pre_process`` before) in rows of 8 bits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qconvert import pipeline
from qconvert.calibration import Calibration
from qconvert.calibrators import CALIBRATORS
from qconvert.cli.demo import sample_models
from qconvert.comparison import Evaluation
from qconvert.graph import load_model, ports
from qconvert.policy import Policy
from qconvert.preprocess import Preprocess, Resize, preset
from qconvert.samples import InputSpec, open_samples

SHARED = Path(__file__).parents[3] / "shared" / "bench"

WIDTHS: Mapping[str, Mapping[str, Any]] = {
    "W8A8 per-channel": {"scheme": "per-channel"},
    "W8A8 per-tensor": {"scheme": "per-tensor"},
    "W4A8": {"scheme": "per-channel", "weights": "int4"},
    "W4A4": {"scheme": "per-channel", "weights": "int4", "activations": "uint4"},
}
"""Options over an empty policy; weights are per channel where nothing else is said."""

METHODS = (*CALIBRATORS, "aciq:distribution=laplace", "percentile:percentile=99.9")

PEERS = ("MinMax", "Entropy", "Percentile")
"""Names of onnxruntime.quantization's ``CalibrationMethod``."""


@dataclass(frozen=True)
class Case:
    """A model with samples to calibrate on and others to judge by."""

    name: str
    model: Path
    calibration: Path
    evaluation: Path
    labels: Path | None = None
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class Row:
    """What one method made of one model."""

    sqnr_db: float
    top1: float | None
    integer: int
    floats: int

    def __str__(self) -> str:
        top1 = "" if self.top1 is None else f" / {self.top1:.1f} %"
        return f"{self.sqnr_db:.2f} dB{top1}, {self.integer}/{self.floats}"


def cases(folder: Path) -> list[Case]:
    """The sample models, and those of the shared benchmark where it is there."""
    samples, data, models = sample_models(), SHARED / "data", SHARED / "models"
    digits, centered = samples / "digits", preset("centered")
    found = [
        Case(name, samples / name / "model.onnx", digits / "calibration", digits / "evaluation", None, centered)
        for name in ("digits_cnn", "digits_vit", "digits_gru")
    ]
    if not models.is_dir():
        return found
    imagenet, cifar = data / "imagenet", data / "cifar10"
    faces = Preprocess(resize=Resize(), scale=1 / 128, mean=127 / 128)
    photos = sorted((data / "coco64").glob("*.jpg"))
    photo_halves = _linked(folder / "coco_calibration", photos[:32]), _linked(folder / "coco_evaluation", photos[32:])
    stories = folder / "stories.npz"
    np.savez(stories, ids=np.load(data / "stories260k" / "eval.npz")["x"])
    classes = imagenet / "eval", imagenet / "eval_labels.csv"
    return [
        Case("mobilenetv2", models / "mobilenetv2_tv.onnx", imagenet / "calib", *classes, preset("imagenet")),
        Case("resnet20", models / "cifar_resnet20_bn.onnx", cifar / "calib", cifar / "eval", None, preset("cifar")),
        Case("ultraface", models / "ultraface_rfb320.onnx", *photo_halves, None, faces),
        Case("silero_vad", models / "silero_vad_16k_op15.onnx", data / "silero/calib.npz", data / "silero/eval.npz"),
        Case("stories260k", models / "stories260k.onnx", data / "stories260k" / "calib.npz", stories),
        *found,
    ]


def _linked(folder: Path, files: Sequence[Path]) -> Path:
    folder.mkdir()
    for place, file in enumerate(files):  # folders may hold files of one name
        (folder / f"{place:05}_{file.name}").symlink_to(file)
    return folder


def measured(case: Case, written: Path, count: int) -> Row:
    """A written model next to its original."""
    found: Evaluation = pipeline.evaluate(
        case.model, written, case.evaluation,
        labels=case.labels, preprocess=case.preprocess, limit=count, latency_runs=0,
    )  # fmt: skip
    accuracy = found.candidate.accuracy
    kernels = found.candidate.kernels
    return Row(
        float(np.mean([one.sqnr_db for one in found.fidelity])),
        None if accuracy is None else accuracy.top1,
        sum(kernel.integer for kernel in kernels),
        sum(not kernel.integer for kernel in kernels),
    )


@dataclass(frozen=True)
class Bench:
    """A case with its samples read.

    Attributes:
        case: It.
        calibrated: Our statistics of the samples.
        feeds: The samples, for the peer.
        count: How many others to judge by, at most.
        folder: For models.
    """

    case: Case
    calibrated: Calibration
    feeds: Sequence[Mapping[str, Any]]
    count: int
    folder: Path

    def ours(self, method: str, width: str) -> Row:
        """One calibrator at one width."""
        policy = Policy().override(calibrator=method, **WIDTHS[width])
        written = self.folder / "ours.onnx"
        pipeline.quantize(self.case.model, self.calibrated, output=written, policy=policy, force=True)
        return measured(self.case, written, self.count)

    def theirs(self, method: str, width: str) -> Row:
        """onnxruntime.quantization on the same samples."""
        from onnxruntime import quantization as peer

        feeds = self.feeds

        class Reader(peer.CalibrationDataReader):  # type: ignore[misc] # the peer has no types
            def __init__(self) -> None:
                self.rows: Iterator[Mapping[str, npt.NDArray[Any]]] = iter(feeds)

            def get_next(self) -> Mapping[str, npt.NDArray[Any]] | None:
                return next(self.rows, None)

        simple, written = self.folder / "simple.onnx", self.folder / "theirs.onnx"
        with redirect_stdout(sys.stderr):  # the peer prints
            peer.quant_pre_process(self.case.model, simple)
            peer.quantize_static(
                simple, written, Reader(),
                calibrate_method=peer.CalibrationMethod[method],
                per_channel=WIDTHS[width]["scheme"] == "per-channel",
                activation_type=peer.QuantType.QUInt8, weight_type=peer.QuantType.QInt8,
            )  # fmt: skip
        return measured(self.case, written, self.count)


def feeds_of(case: Case, count: int) -> list[Mapping[str, Any]]:
    """The samples that calibrate chooses."""
    inputs, _ = ports(load_model(case.model))
    specs = [InputSpec(port.name, port.dtype, port.shape) for port in inputs if port.dtype is not None]
    samples = open_samples(case.calibration, specs, preprocess=case.preprocess, limit=count)
    return [samples.load(index).feeds for index in range(len(samples))]


def shown(measure: Callable[[], object]) -> str:
    """A cell of the table; what a tool refuses is said, not raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(measure())
        except Exception as error:  # noqa: BLE001 - the peer raises whatever it likes
            sys.stderr.write(f"refused: {error}\n")
            return "refused"


def divided(case: Case, folder: Path, seed: int) -> Case:
    """The case with its images divided at random into as many for both uses as before; without labels."""
    here = sorted(file for file in case.calibration.rglob("*") if file.is_file())
    files = here + sorted(file for file in case.evaluation.rglob("*") if file.is_file())
    order = np.random.default_rng(seed).permutation(len(files))
    mixed = [files[place] for place in order]
    parts = mixed[: len(here)], mixed[len(here) :]
    calibration, evaluation = (
        _linked(folder / f"{case.name}_{seed}_{use}", part)
        for use, part in zip(("calibration", "evaluation"), parts, strict=True)
    )
    return replace(case, calibration=calibration, evaluation=evaluation, labels=None)


def mean(rows: Sequence[Row]) -> str:
    """A cell of several divisions."""
    values = [row.sqnr_db for row in rows]
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.2f} dB"


def table(
    divisions: Sequence[Case], widths: Sequence[str], methods: Sequence[str], counts: tuple[int, int], folder: Path
) -> list[str]:
    """All methods at all widths: SQNR / top-1, heavy operators on integers/in float; or the mean SQNR of divisions."""
    count, judged = counts
    benches = []
    for case in divisions:
        calibrated = pipeline.calibrate(case.model, case.calibration, preprocess=case.preprocess, limit=count)
        benches.append(Bench(case, calibrated, feeds_of(case, count), judged, folder))

    def cell(measure: Callable[[Bench], Row]) -> str:
        return shown(lambda: measure(benches[0]) if len(benches) == 1 else mean([measure(one) for one in benches]))

    rows = {method: [cell(partial(Bench.ours, method=method, width=width)) for width in widths] for method in methods}
    for method in PEERS:
        rows[f"onnxruntime {method}"] = [
            cell(partial(Bench.theirs, method=method, width=width)) if width.startswith("W8A8") else "-"
            for width in widths
        ]
    samples = benches[0].calibrated.samples
    title = f"### {divisions[0].name}: ranges from {samples} samples, figures from at most {judged} others"
    title += f", {len(divisions)} divisions" if len(divisions) > 1 else ""
    lines = [title, "", f"| calibrator | {' | '.join(widths)} |", f"| --- |{' ---: |' * len(widths)}"]
    return [*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items()), ""]


def main() -> None:
    """Writes the tables to standard output, each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help="names of cases; none means all")
    parser.add_argument("--calibrate", type=int, default=128, metavar="N", help="samples to calibrate on, at most")
    parser.add_argument("--evaluate", type=int, default=300, metavar="N", help="samples to judge by, at most")
    parser.add_argument("--methods", nargs="*", default=METHODS, metavar="M", help="calibrators")
    parser.add_argument("--widths", nargs="*", default=tuple(WIDTHS), metavar="W", help="columns")
    parser.add_argument(
        "--divisions", type=int, default=0, metavar="N", help="of all images, at random; 0: as they are"
    )
    wish = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qconvert-table.") as name:
        folder = Path(name)
        for case in cases(folder):
            if not wish.case or case.name in wish.case:
                several = (
                    [divided(case, folder, seed) for seed in range(wish.divisions)] if wish.divisions > 1 else [case]
                )
                lines = table(several, wish.widths, wish.methods, (wish.calibrate, wish.evaluate), folder)
                sys.stdout.write("\n".join(lines) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
