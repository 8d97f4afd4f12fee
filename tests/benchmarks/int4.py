"""INT4 weights in groups, beside onnxruntime's own quantizer: ``python tests/benchmarks/int4.py``.

Output SQNR in dB on samples that no method saw, of the same MatMuls on grids of the same kind. onnxruntime's HQQ takes
torch, and asymmetric grids only; its GPTQ runs where groups divide the inputs of every MatMul.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization import matmul_nbits_quantizer as peer

from qconvert.graph import load_model
from qconvert.listener import SILENT
from qconvert.metrics import sqnr_db
from qconvert.pipeline.data import open_data
from qconvert.policy import loads
from qconvert.preprocess import Preprocess, preset
from qconvert.weight_only import quantize_weights

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
HERE = Path(__file__).resolve().parents[2]
BENCH = HERE.parent / "shared" / "bench"
SAMPLES = 160


@dataclass(frozen=True)
class Case:
    """A model, the samples that methods may see, and others."""

    model: Path
    seen: Path
    unseen: Path
    preprocess: Preprocess | None = None

    def feeds(self, data: Path, limit: int) -> list[dict[str, Array]]:
        """What the model reads of samples."""
        graph = load_model(self.model)
        found = open_data(self.model, graph, data, self.preprocess, limit=limit, seed=0, listener=SILENT)
        return [dict(found.load(index).feeds) for index in range(len(found))]


CASES = {
    "digits_vit": Case(
        HERE / "sample_models/digits_vit/model.onnx",
        HERE / "sample_models/digits/calibration",
        HERE / "sample_models/digits/evaluation",
        preset("centered"),
    ),
    "stories260k": Case(
        BENCH / "models/stories260k.onnx", BENCH / "data/stories260k/calib.npz", BENCH / "data/stories260k/eval.npz"
    ),
}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Samples as onnxruntime's quantizer wants them."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = feeds

    def get_next(self) -> Feeds | None:
        """Unused: the quantizer iterates."""
        return None

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self._feeds)


def outputs(model: Path, feeds: Sequence[Feeds]) -> Array:
    """Of all samples, as onnxruntime computes them by default."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.concatenate([np.ravel(session.run(None, dict(one))[0]) for one in feeds])


def ours(case: Case, out: Path, group: int, *, symmetric: bool, recover: str, data: bool) -> None:
    """Writes a model with groups in the MatMuls that the other quantizer takes."""
    kinds = {node.op_type for node in onnx.load(case.model).graph.node} & {"Conv", "Gather", "Gemm"}
    rules = "".join(f"  - match: {{op_types: [{kind}]}}\n    float: true\n" for kind in sorted(kinds))
    dtype = "int4" if symmetric else "uint4"
    scheme = f"dtype: {dtype}, scheme: per-group, group_size: {group}, symmetric: {str(symmetric).lower()}"
    text = f"version: 1\ndefaults:\n  weights: {{{scheme}}}\n" + (f"rules:\n{rules}" if rules else "")
    text += f"recover: [{recover}]\n" if recover else ""
    quantize_weights(
        case.model,
        output=out,
        policy=loads(text),
        data=case.seen if data else None,
        preprocess=case.preprocess if data else None,
        force=True,
    )


def theirs(case: Case, out: Path, config: peer.WeightOnlyQuantConfig, group: int, *, symmetric: bool) -> None:
    """The same by onnxruntime's quantizer."""
    made = peer.MatMulNBitsQuantizer(
        onnx.load(case.model), block_size=group, is_symmetric=symmetric, algo_config=config
    )
    made.process()
    onnx.save(getattr(made.model, "model", made.model), out)


def columns(case: Case, group: int, *, symmetric: bool) -> Mapping[str, Callable[[Path], None]]:
    """What writes each model of a row, by the title of the column."""
    default = peer.DefaultWeightOnlyQuantConfig(block_size=group, is_symmetric=symmetric, bits=4)
    hqq, gptq = peer.HQQWeightOnlyQuantConfig(block_size=group, bits=4), peer.GPTQWeightOnlyQuantConfig

    def our(recover: str, *, data: bool) -> Callable[[Path], None]:
        return lambda out: ours(case, out, group, symmetric=symmetric, recover=recover, data=data)

    def their(config: Callable[[], Any]) -> Callable[[Path], None]:
        return lambda out: theirs(case, out, config(), group, symmetric=symmetric)

    return {
        "theirs": their(lambda: default),
        "their hqq": their(lambda: hqq),
        "their gptq": their(lambda: gptq(Reader(case.feeds(case.seen, SAMPLES)))),
        "nearest": our("none", data=False),
        "hqq": our("hqq", data=False),
        "no data": our("", data=False),
        "data": our("", data=True),
        **{name: our(name, data=True) for name in sys.argv[1:]},
    }


def main() -> None:
    """Prints the table."""
    logging.disable(logging.INFO)
    out = Path(tempfile.mkdtemp()) / "model.onnx"
    for name, case in CASES.items():
        feeds = case.feeds(case.unseen, SAMPLES)
        wanted = outputs(case.model, feeds)
        for group in (128, 64, 32, 16):
            for symmetric in (True, False):
                row = [
                    f"{title} {_scored(write, out, wanted, feeds)}"
                    for title, write in columns(case, group, symmetric=symmetric).items()
                ]
                kind = "symmetric" if symmetric else "asymmetric"
                sys.stdout.write(f"{name} {group} {kind} {' | '.join(row)}\n")
                sys.stdout.flush()


def _scored(write: Callable[[Path], None], out: Path, wanted: Array, feeds: Sequence[Feeds]) -> str:
    """dB, or a dash where the model cannot be made."""
    try:
        write(out)
    except (ValueError, ImportError):
        return "-"
    return f"{sqnr_db(wanted, outputs(out, feeds)):.2f}"


if __name__ == "__main__":
    main()
