"""The ``.calib`` file: statistics of a model over some data, from which every threshold is computed later.

A zip of ``.npy`` members and one JSON header, as ``numpy.savez_compressed`` writes it, without pickle; the same
contents give the same bytes.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qconvert.errors import CalibrationError
from qconvert.files import atomic_output
from qconvert.graph import file_hash
from qconvert.histogram import BINS, Histogram, SampleRanges, TensorStats
from qconvert.samples.archive import describe_samples, joined, put_array, put_samples, read_samples
from qconvert.visit import State

if TYPE_CHECKING:
    from qconvert.channels import ChannelStats

FORMAT = 5
SUFFIX = ".calib"
PART_SUFFIX = ".part"
"""Behind the name of a ``.calib`` file: what an unfinished run has kept."""

RANGES: Mapping[str, npt.DTypeLike] = {"index": np.int64, "low": np.float32, "high": np.float32}
"""The members that hold the ranges of single samples, of all values one after another."""

Feeds = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Calibration:
    """Statistics of one model over some data.

    Attributes:
        model: Path of the model, relative to the folder of the ``.calib`` file.
        model_hash: SHA-256 of the model and its weight files.
        data: Where the samples came from and how they were preprocessed, as JSON values.
        samples: How many samples were run.
        skipped: Samples that could not be read: ``(name, reason)``.
        stats: Statistics by name of the value in the prepared graph.
        probes: A few of the samples as fed to the model, for the comparisons that quantize makes; ``==`` ignores them.
        channels: Statistics of each channel, of the values that have them.
    """

    model: str
    model_hash: str
    data: Mapping[str, Any]
    samples: int
    skipped: tuple[tuple[str, str], ...]
    stats: Mapping[str, TensorStats]
    probes: tuple[Feeds, ...] = field(default=(), compare=False)
    channels: Mapping[str, ChannelStats] = field(default_factory=dict)

    def __add__(self, other: Calibration) -> Calibration:
        """The statistics of both: of the same model, over other samples.

        Raises:
            CalibrationError: If they belong to different models.
        """
        same = set(self.stats) == set(other.stats) and set(self.channels) == set(other.channels)
        if self.model_hash != other.model_hash or not same:
            raise CalibrationError("only calibrations of the same values of the same model can be added")
        stats = {name: stats + other.stats[name] for name, stats in self.stats.items()}
        channels = {name: rows + other.channels[name] for name, rows in self.channels.items()}
        skipped = tuple(sorted(self.skipped + other.skipped))
        samples = self.samples + other.samples
        return replace(self, samples=samples, skipped=skipped, stats=stats, channels=channels)


def save(calibration: Calibration, path: Path, *, force: bool, state: State | None = None) -> None:
    """Writes a ``.calib`` file, whole or not at all.

    Args:
        calibration: What is known.
        path: Where to.
        force: Whether an existing file may be overwritten.
        state: How far an unfinished run came; its statistics are the ones that are written.

    Raises:
        OutputError: If the file exists and ``force`` is not given, or cannot be written.
    """
    source = state or calibration
    names, rows = list(source.stats), list(source.stats.values())
    ranges = SampleRanges(*(joined([getattr(row.ranges, part) for row in rows], kind) for part, kind in RANGES.items()))
    header = {
        "format": FORMAT,
        "model": calibration.model,
        "model_hash": calibration.model_hash,
        "data": dict(calibration.data),
        "samples": calibration.samples,
        "skipped": [list(item) for item in calibration.skipped],
        "probes": describe_samples(calibration.probes),
        "values": [
            [
                name,
                row.ranges.index.size,
                row.histogram.exponent,
                row.histogram.zeros,
                *(_portable(number) for number in row.scalars()),
            ]
            for name, row in zip(names, rows, strict=True)
        ],
        "channels": [[name, one.counts.size] for name, one in source.channels.items()],
        "state": None if state is None else [[*map(list, state.groups)], state.passes, sorted(state.done)],
    }
    narrow = all(row.values <= np.iinfo(np.uint32).max for row in rows)
    counts = np.empty((len(rows), 2, BINS), np.uint32 if narrow else np.int64)
    for place, row in zip(counts, rows, strict=True):
        place[0], place[1] = row.histogram.negative, row.histogram.positive
    text = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
    with atomic_output(path, force=force) as temporary, temporary.open("wb") as file:
        arrays = {part: getattr(ranges, part) for part in RANGES} | _channel_members(source.channels)
        _write(file, {"header": text, "counts": counts, **arrays}, calibration.probes)


def _channel_members(channels: Mapping[str, ChannelStats]) -> dict[str, npt.NDArray[Any]]:
    """Each field of all values one after another."""
    rows = [one.to_arrays() for one in channels.values()]
    return {f"channel_{part}": np.concatenate([row[part] for row in rows]) for part in (rows[0] if rows else ())}


def _read_channels(sizes: Sequence[tuple[str, int]], archive: Mapping[str, Any]) -> dict[str, ChannelStats]:
    if not sizes:
        return {}
    from qconvert.channels import FIELDS, ChannelStats  # noqa: PLC0415 - numba, which most readers do without

    whole = {part: archive[f"channel_{part}"] for part in FIELDS}
    ends = np.cumsum([0, *(size for _, size in sizes)]).tolist()
    return {
        name: ChannelStats.from_arrays({part: array[start:end] for part, array in whole.items()})
        for (name, _), (start, end) in zip(sizes, pairwise(ends), strict=True)
    }


def _write(file: IO[bytes], arrays: Mapping[str, npt.NDArray[Any]], probes: Sequence[Feeds]) -> None:
    """What ``numpy.savez_compressed`` writes, without the time of day and at a third of its cost."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            put_array(archive, name, array)
        put_samples(archive, probes)


def _portable(number: float) -> str:
    """Exact as text: whole numbers in decimal (JSON readers round beyond 2**53), floats in hexadecimal."""
    return number.hex() if isinstance(number, float) else str(number)


def load(path: Path) -> Calibration:
    """Reads a ``.calib`` file.

    Raises:
        CalibrationError: If the file is missing, damaged, unfinished or of another kind.
    """
    found, state = load_part(path)
    if state is not None:
        raise CalibrationError(f"{path}: what an unfinished run has kept", hint="'qconvert calibrate --resume' ends it")
    return found


def load_part(path: Path) -> tuple[Calibration, State | None]:
    """Reads a ``.calib`` file, or what an unfinished run has kept, then with its state.

    Raises:
        CalibrationError: If the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise CalibrationError(f"{path}: no such file", hint="'qconvert calibrate MODEL --data SAMPLES' writes it")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            header = json.loads(bytes(archive["header"]))
            found = header["format"]
            if found == FORMAT:
                return _read(header, archive)
    except PermissionError as error:
        raise CalibrationError(f"{path}: no permission to read it", hint="check its rights") from error
    except Exception as error:  # numpy, zipfile, zlib and json raise a dozen unrelated classes on damaged bytes
        message = f"{path}: not a readable calibration file"
        raise CalibrationError(message, hint="it may be truncated; calibrate again") from error
    raise CalibrationError(f"{path}: format {found}, this qconvert reads {FORMAT}", hint="calibrate again")


def _read(header: Mapping[str, Any], archive: Mapping[str, Any]) -> tuple[Calibration, State | None]:
    stats, parts, at = {}, [archive[part] for part in RANGES], 0
    rows = zip(header["values"], archive["counts"].astype(np.int64), strict=True)
    for (name, recorded, exponent, zeros, *scalars), counts in rows:
        low, high, *whole = scalars
        samples, values, low_sum, high_sum, nan, negative, positive = map(int, whole)
        stats[name] = TensorStats(
            Histogram(exponent, counts[0], counts[1], zeros),
            float.fromhex(low),
            float.fromhex(high),
            samples,
            values,
            low_sum,
            high_sum,
            nan,
            negative,
            positive,
            SampleRanges(*(part[at : at + recorded] for part in parts)),
        )
        at += recorded
    probes = tuple(read_samples(header["probes"], archive))
    skipped = tuple((name, reason) for name, reason in header["skipped"])
    about = header["model"], header["model_hash"], header["data"], header["samples"]
    found = Calibration(*about, skipped, stats, probes, _read_channels(header["channels"], archive))
    if header["state"] is None:
        return found, None
    groups, passes, done = header["state"]
    return found, State(tuple(map(tuple, groups)), passes, frozenset(done), stats, found.channels)


def check_model(calibration: Calibration, model: Path) -> None:
    """Refuses statistics of another model.

    Raises:
        CalibrationError: If the contents of ``model`` are not what was calibrated.
    """
    if file_hash(model) != calibration.model_hash:
        raise CalibrationError(
            f"the calibration belongs to another model ('{calibration.model}', other contents) than {model}",
            hint=f"run 'qconvert calibrate {model} --data SAMPLES' again",
        )


def model_path(calibration: Calibration, path: Path) -> Path:
    """Where the model of a ``.calib`` file at ``path`` is: where it was, or else beside the file.

    Raises:
        CalibrationError: If it is in neither place.
    """
    there = Path(os.path.normpath(path.parent / calibration.model))
    for candidate in (there, path.parent / there.name):
        if candidate.is_file():
            return candidate
    raise CalibrationError(
        f"{path}: its model '{calibration.model}' is not there", hint="give the model's path as the first argument"
    )


def find(folder: Path) -> Path:
    """The one ``.calib`` file of a folder.

    Raises:
        CalibrationError: If there is none or there are several.
    """
    found = sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_file())
    if len(found) == 1:
        return found[0]
    if not found:
        raise CalibrationError(
            "no .calib file in this folder says which model is meant",
            hint="run 'qconvert calibrate MODEL --data SAMPLES' here first, "
            "or give the model and --calibration FILE or --data SAMPLES",
        )
    listed = ", ".join(path.name for path in found[:4]) + (", ..." if len(found) > 4 else "")
    message = f"{len(found)} .calib files in this folder: {listed}"
    raise CalibrationError(message, hint="choose one with --calibration FILE")
