"""The table of methods that win back accuracy, as Markdown: every method at every width, on samples that none saw.

    python -m tests.benchmarks.recover [CASE ...] [--methods M ...] [--widths W ...] [--calibrator C]
                                       [--weight-calibrator C] [--calibrate N] [--evaluate N] [--budget SECONDS]

Methods are those of ``--recover``, several as ``equalize+bias``, beside ``none`` and ``auto``. A model is calibrated
once; each cell is quantized in a process of its own, whose seconds (the whole of ``quantize``, its proof included) and
peak memory are given. SQNR is pooled over samples and elements, the mean over the float outputs; top-1 where there are
labels.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qconvert import calibration, pipeline
from qconvert.policy import Policy
from qconvert.recover import AUTO, METHODS, NONE
from tests.benchmarks.job import peak
from tests.benchmarks.table import WIDTHS, Case, cases, measured, shown


@dataclass(frozen=True)
class Cell:
    """A model that is to be quantized.

    Attributes:
        model: The float model.
        calibrated: Its statistics and samples.
        output: Where to write.
        methods: Names joined by ``+``.
        width: A name of ``WIDTHS``.
        calibrator: Of activations.
        weight_calibrator: Of weights.
        budget: Seconds after which no other method is begun; None: no limit.
    """

    model: Path
    calibrated: Path
    output: Path
    methods: str
    width: str
    calibrator: str
    weight_calibrator: str
    budget: float | None


@dataclass(frozen=True)
class Filled:
    """What a cell says."""

    sqnr_db: float
    top1: float | None
    seconds: float
    peak_mb: float

    def __str__(self) -> str:
        top1 = "" if self.top1 is None else f" / {self.top1:.1f} %"
        return f"{self.sqnr_db:.2f} dB{top1}, {self.seconds:.0f} s, {self.peak_mb:.0f} MB"


def quantized(cell: Cell) -> tuple[float, float]:
    """Quantizes, in a process of its own: its seconds and the most MB that the process held."""
    names = () if cell.methods == NONE else cell.methods.split("+")
    policy = Policy().override(
        calibrator=cell.calibrator, weight_calibrator=cell.weight_calibrator, recover=names, **WIDTHS[cell.width]
    )
    calibrated, start = calibration.load(cell.calibrated), time.monotonic()
    pipeline.quantize(cell.model, calibrated, output=cell.output, policy=policy, budget=cell.budget, force=True)
    return time.monotonic() - start, peak() / 1e6


def filled(case: Case, cell: Cell, judged: int) -> Filled:
    """A cell of the table."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, most = pool.apply(quantized, (cell,))
    row = measured(case, cell.output, judged)
    return Filled(row.sqnr_db, row.top1, seconds, most)


def write(text: str) -> None:
    """At once, since the next part may take minutes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def table(case: Case, wish: argparse.Namespace, folder: Path) -> None:
    """Writes the table of a case, cell by cell."""
    stored, output = folder / f"{case.name}.calib", folder / f"{case.name}.onnx"
    samples = pipeline.calibrate(
        case.model, case.calibration, preprocess=case.preprocess, limit=wish.calibrate, output=stored
    ).samples
    about = f"ranges by {wish.calibrator} (weights: {wish.weight_calibrator}) from {samples} samples"
    about += f", figures from at most {wish.evaluate} others"
    write(
        f"### {case.name}: {about}\n\n| method | {' | '.join(wish.widths)} |\n| --- |{' ---: |' * len(wish.widths)}\n"
    )
    for methods in wish.methods:
        write(f"| {methods} |")
        for width in wish.widths:
            by = wish.calibrator, wish.weight_calibrator
            cell = Cell(case.model, stored, output, methods, width, *by, wish.budget)
            write(f" {shown(partial(filled, case, cell, wish.evaluate))} |")
        write("\n")
    write("\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the tables to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help="names of cases; none means all")
    parser.add_argument("--methods", nargs="*", default=(NONE, *METHODS, AUTO), metavar="M", help="rows")
    parser.add_argument("--widths", nargs="*", default=tuple(WIDTHS), metavar="W", help="columns")
    parser.add_argument("--calibrator", default="average", metavar="C", help="of the activations")
    parser.add_argument("--weight-calibrator", default="minmax", metavar="C", help="of the weights")
    parser.add_argument("--calibrate", type=int, default=128, metavar="N", help="samples to calibrate on, at most")
    parser.add_argument("--evaluate", type=int, default=300, metavar="N", help="samples to judge by, at most")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="after which a cell begins no other method")
    wish = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="qconvert-recover.") as name:
        for case in cases(Path(name)):
            if not wish.case or case.name in wish.case:
                table(case, wish, Path(name))


if __name__ == "__main__":
    main()
