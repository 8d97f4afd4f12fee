"""``qconvert stats``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qconvert.cli import options as o
from qconvert.errors import CalibrationError, ModelError

if TYPE_CHECKING:
    from qconvert.calibration import Calibration
    from qconvert.calibrators import Calibrator
    from qconvert.cli.terminal import Terminal
    from qconvert.numerics import Range
    from qconvert.report.stats import Detail
    from qconvert.thresholds import Grid, Threshold

CALIB = ".calib"


@dataclass(frozen=True)
class _Wish:
    """What is looked at, and for which grid."""

    path: Path
    calibrated: Calibration
    grid: Grid
    calibrator: Calibrator | None
    method: str
    other: Mapping[str, Range] | None
    other_name: str


def _tensors(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """The names in the file that is typed, or else in the one here."""
    from qconvert import calibration as files  # noqa: PLC0415 - only while the shell completes
    from qconvert.errors import QConvertError  # noqa: PLC0415

    try:
        given = ctx.params.get("calib")
        names = list(files.load(given or files.find(Path())).stats)
    except QConvertError:
        return iter(())
    return (name for name in names if name.startswith(incomplete))


def _files(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    """The files with statistics that are near, and the names in the one here, as the file may be left out."""
    folder = Path(incomplete).parent if "/" in incomplete else Path()
    found = sorted(str(path) for path in folder.glob(f"*{CALIB}") if str(path).startswith(incomplete))
    return iter([*found, *_tensors(ctx, incomplete)])


def _types(incomplete: str) -> Iterator[str]:
    from qconvert.numerics import QUANT_TYPES  # noqa: PLC0415 - only while the shell completes

    return (name for name in QUANT_TYPES if name.startswith(incomplete))


Calib = Annotated[
    Path | None,
    typer.Argument(
        metavar="CALIB",
        help="A .calib file. Default: the one in this folder.",
        autocompletion=_files,
        show_default=False,
    ),
]
Tensor = Annotated[
    str | None,
    typer.Argument(
        metavar="TENSOR",
        help="A value, by its name or a glob that only it fits. Default: a table of all.",
        autocompletion=_tensors,
        show_default=False,
    ),
]
GridType = Annotated[
    str,
    typer.Option(
        "--type",
        help="Levels that ranges are for: uint8, int8, int4, ...",
        rich_help_panel=o.QUANTIZATION,
        autocompletion=_types,
    ),
]
Symmetric = Annotated[
    bool, typer.Option("--symmetric", help="Grids symmetric about 0.", rich_help_panel=o.QUANTIZATION)
]
Log = Annotated[bool, typer.Option("--log", help="Counts on a log scale.", rich_help_panel=o.OUTPUT)]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="HTML",
        help="Draw histograms with the ranges of all methods into one HTML file.",
        rich_help_panel=o.OUTPUT,
        show_default=False,
    ),
]
Export = Annotated[
    Path | None,
    typer.Option(
        "--export",
        metavar="FILE",
        help="Write the ranges of --calibrator, by FILE's ending: .cache (TensorRT) or .json (onnxruntime).",
        rich_help_panel=o.OUTPUT,
        show_default=False,
    ),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        "--compare",
        metavar="FILE",
        help="Show another tool's ranges beside ours: a .cache or .json file.",
        rich_help_panel=o.INPUT,
        show_default=False,
    ),
]


def command(
    calib: Calib = None,
    tensor: Tensor = None,
    compare: Compare = None,
    calibrator: o.CalibratorName = None,
    grid_type: GridType = "uint8",
    symmetric: Symmetric = False,
    log: Log = False,
    plot: Plot = None,
    export: Export = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Look at the statistics of a .calib file, and at the range that each method makes of them.

    Example: qconvert stats model.calib --calibrator entropy --plot stats.html
    """
    from qconvert import calibration, exchange, thresholds  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import Terminal, short  # noqa: PLC0415
    from qconvert.files import check_writable  # noqa: PLC0415

    terminal = Terminal(quiet=quiet)
    path, pattern = _place(calib, tensor, terminal)
    grid, method = _grid(grid_type, symmetric=symmetric), _method(calibrator)
    if method is None and (export or (compare and pattern is None)):
        option = "--export" if export else "--compare"
        raise CalibrationError(f"{option} needs --calibrator", hint="for example --calibrator entropy")
    for output in (plot, export):
        if output is not None:
            check_writable(output, force=force)
    if export is not None:
        exchange.exchange_format(export)
    calibrated = calibration.load(path)
    other = exchange.read_ranges(compare) if compare is not None else None
    wish = _Wish(path, calibrated, grid, method, calibrator or "", other, short(compare) if compare else "")
    name = thresholds.choose(calibrated.stats, pattern) if pattern is not None else None
    _show(wish, name, log=log, as_json=as_json)
    if export is not None:
        _export(wish, export, force=force, terminal=terminal)
    if plot is not None:
        _plot(wish, [name] if name else list(calibrated.stats), plot, log=log, force=force, terminal=terminal)


def show(path: Path, calibrated: Calibration) -> None:
    """The table of all values on stdout."""
    from qconvert.numerics import UINT8  # noqa: PLC0415 - --help does without
    from qconvert.thresholds import Grid  # noqa: PLC0415

    _show(_Wish(path, calibrated, Grid(UINT8, symmetric=False), None, "", None, ""), None, log=False, as_json=False)


def _place(calib: Path | None, tensor: str | None, terminal: Terminal) -> tuple[Path, str | None]:
    """The file and the value; where one argument is no file it is the value."""
    from qconvert import calibration  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import short  # noqa: PLC0415

    if calib is not None and tensor is None and calib.suffix != CALIB and not calib.is_file():
        calib, tensor = None, str(calib)
    if calib is not None:
        return calib, tensor
    try:
        path = calibration.find(Path())
    except CalibrationError as error:
        raise CalibrationError(str(error), hint="give the .calib file as the first argument") from error
    terminal.note(f"statistics from {short(path)}")
    return path, tensor


def _grid(name: str, *, symmetric: bool) -> Grid:
    from qconvert.numerics import QUANT_TYPES  # noqa: PLC0415 - --help does without
    from qconvert.thresholds import Grid  # noqa: PLC0415

    if name not in QUANT_TYPES:
        raise CalibrationError(f"--type: unknown type '{name}'", hint=f"choices: {', '.join(QUANT_TYPES)}")
    return Grid(QUANT_TYPES[name], symmetric)


def _method(option: str | None) -> Calibrator | None:
    return o.read_policy(None, calibrator=option).defaults.activations.calibrator if option is not None else None


def _show(wish: _Wish, name: str | None, *, log: bool, as_json: bool) -> None:
    from qconvert import report, thresholds  # noqa: PLC0415 - --help does without

    if name is not None:
        detail = _detail(wish, name)
        if as_json:
            report.json.print_json(report.stats.detail_json(detail))
        else:
            report.stats.detail(detail, log=log)
        return
    found: dict[str, Threshold] = {}
    missing: dict[str, str] = {}
    if wish.calibrator is not None:
        found, missing = thresholds.ranges(wish.calibrated.stats, wish.calibrator, wish.grid)
    overview = report.stats.Overview(
        wish.calibrated, wish.grid, wish.method, found, missing, wish.other, wish.other_name
    )
    if as_json:
        report.json.print_json(report.stats.overview_json(overview))
    else:
        report.stats.overview(overview)


def _detail(wish: _Wish, name: str) -> Detail:
    """All methods, the one that is asked for where it is none of them, and the other tool's range."""
    from qconvert import thresholds  # noqa: PLC0415 - --help does without
    from qconvert.report.stats import Detail  # noqa: PLC0415

    stats, channels = wish.calibrated.stats[name], wish.calibrated.channels.get(name)
    try:
        methods = thresholds.all_thresholds(stats, wish.grid)
        if wish.calibrator is not None and wish.method not in methods:
            methods[wish.method] = thresholds.threshold(stats, wish.calibrator, wish.grid)
    except CalibrationError as error:
        return Detail(name, stats, wish.grid, {}, str(error), channels)
    if wish.other is not None and name in wish.other:
        methods[wish.other_name] = thresholds.judge(stats, wish.other[name], wish.grid)
    return Detail(name, stats, wish.grid, methods, channels=channels)


def _export(wish: _Wish, path: Path, *, force: bool, terminal: Terminal) -> None:
    from qconvert import calibration, exchange, thresholds  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import short  # noqa: PLC0415
    from qconvert.graph import load_model  # noqa: PLC0415
    from qconvert.numerics import Range  # noqa: PLC0415

    if wish.calibrator is None:
        return
    found, missing = thresholds.ranges(wish.calibrated.stats, wish.calibrator, wish.grid)
    ranges = {name: Range(one.low, one.high) for name, one in found.items()}
    for name, reason in missing.items():
        terminal.warn(f"{name} is left out: {reason}")
    kind = exchange.exchange_format(path)
    uneven = [name for name, one in ranges.items() if one.low != -one.high]
    if kind.symmetric and uneven:
        terminal.warn(
            f"a {kind.title} holds symmetric ranges only: {len(uneven)} of {len(ranges)} become "
            "-/+ max(|low|, |high|); --type int8 --symmetric chooses ranges for such a grid"
        )
    try:
        ranges = exchange.with_clamp_inputs(ranges, load_model(calibration.model_path(wish.calibrated, wish.path)))
    except (CalibrationError, ModelError) as error:
        terminal.note(f"ranges before Relu and Clip are not added: {error}")
    exchange.write_ranges(path, ranges, force=force)
    terminal.done(f"{short(path)}: written, {len(ranges)} ranges as {kind.title}")
    terminal.note(kind.advice)


def _plot(wish: _Wish, names: list[str], path: Path, *, log: bool, force: bool, terminal: Terminal) -> None:
    from qconvert import report  # noqa: PLC0415 - --help does without
    from qconvert.cli.terminal import short  # noqa: PLC0415
    from qconvert.files import atomic_output  # noqa: PLC0415

    title = f"{Path(wish.calibrated.model).name}: {len(names)} histograms"
    subtitle = f"{wish.path.name}, {wish.calibrated.samples} samples; ranges for {wish.grid}"
    html = report.plot.page(title, subtitle, [_detail(wish, name) for name in names], log=log)
    with atomic_output(path, force=force) as temporary:
        temporary.write_text(html, encoding="utf-8")
    terminal.done(f"{short(path)}: written, {len(names)} histograms")
