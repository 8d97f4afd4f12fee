"""Ranges to and from the files of other tools; the ending of a file says which.

To add one, add a file with ``dump`` and ``parse`` and a row to the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qconvert.errors import CalibrationError
from qconvert.exchange import ort, tensorrt
from qconvert.files import atomic_output
from qconvert.graph import operand, operators
from qconvert.numerics import Range

__all__ = ["FORMATS", "Format", "exchange_format", "read_ranges", "with_clamp_inputs", "write_ranges"]

CLAMPS = frozenset({"Clip", "Relu"})


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        title: What it is.
        symmetric: Whether it holds only ``[-limit, limit]``.
        advice: What its reader minds, one sentence.
        dump: The text of ranges; may raise ``ValueError`` where one cannot be written.
        parse: The ranges of a text; raises ``ValueError`` where it is damaged.
    """

    title: str
    symmetric: bool
    advice: str
    dump: Callable[[Mapping[str, Range]], str]
    parse: Callable[[str], dict[str, Range]]


FORMATS: dict[str, Format] = {
    ".cache": Format(
        title="TensorRT calibration cache",
        symmetric=True,
        advice=f"its header says TRT-{tensorrt.VERSION}: edit that to the version of TensorRT that reads it",
        dump=tensorrt.dump,
        parse=tensorrt.parse,
    ),
    ".json": Format(
        title="onnxruntime calibration JSON",
        symmetric=False,
        advice="for quantize_static(calibration_cache_path=...) with CalibrationMethod.MinMax, its default",
        dump=ort.dump,
        parse=ort.parse,
    ),
}
"""The kinds of files, by their ending."""


def exchange_format(path: Path) -> Format:
    """The format of a file's name.

    Raises:
        CalibrationError: If no format has that ending.
    """
    if path.suffix.lower() in FORMATS:
        return FORMATS[path.suffix.lower()]
    choices = " or ".join(f"{ending} ({one.title})" for ending, one in FORMATS.items())
    raise CalibrationError(f"{path}: no format of ranges ends in '{path.suffix}'", hint=f"name it {choices}")


def write_ranges(path: Path, ranges: Mapping[str, Range], *, force: bool = False) -> None:
    """Writes ranges by name of the value, whole or not at all.

    Where the format is symmetric, ``[low, high]`` becomes ``[-max(|low|, |high|), max(|low|, |high|)]``.

    Raises:
        CalibrationError: If the ending is unknown, or a value cannot be written.
        OutputError: If the file exists and ``force`` is not given, or cannot be written.
    """
    kind = exchange_format(path)
    if not ranges:
        raise CalibrationError(f"{path}: there is no range to write", hint="calibrate again on finite samples")
    try:
        text = kind.dump(ranges)
    except ValueError as error:
        message = f"{path}: {error}"
        raise CalibrationError(message, hint="rename that value in the model") from error
    with atomic_output(path, force=force) as temporary:
        temporary.write_bytes(text.encode())


def read_ranges(path: Path) -> dict[str, Range]:
    """Reads ranges by name of the value.

    Raises:
        CalibrationError: If the file is missing, damaged or of another kind.
    """
    kind = exchange_format(path)
    try:
        return kind.parse(path.read_bytes().decode())
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror or error}"
        raise CalibrationError(message, hint="check the path and its rights") from error
    except (ValueError, RecursionError) as error:  # of text that is no UTF-8, too
        reason = " ".join(str(error).split())
        message = f"{path}: not a readable {kind.title}: {reason}"
        raise CalibrationError(message, hint="it may be truncated or of another tool; write it again") from error


def with_clamp_inputs(ranges: Mapping[str, Range], model: ir.Model) -> dict[str, Range]:
    """The ranges, and for each Relu and Clip whose output has one the same for its input, unless that has its own.

    Other tools ask for the value before a clamp too; what the clamp cuts off needs no level.
    """
    found = dict(ranges)
    for operator in reversed(list(operators(model))):
        source = operand(operator.node, 0)
        name = source.name if source is not None else None
        if name and operator.op_type in CLAMPS and operator.name in found:
            found.setdefault(name, found[operator.name])
    return found
