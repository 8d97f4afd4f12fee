"""``qconvert calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qconvert.cli import options as o

Show = Annotated[
    bool, typer.Option("--show", help="Print the statistics ('qconvert stats' shows more).", rich_help_panel=o.OUTPUT)
]


Statistics = Annotated[
    Literal["exact", "sampled", "range"],
    typer.Option(
        "--stats",
        help="What is counted of each value: exact histograms, sampled ones (every n-th element), or its range alone. "
        "Extremes are exact in any case.",
        rich_help_panel=o.CALIBRATION,
    ),
]


Channels = Annotated[
    bool,
    typer.Option(
        "--channels",
        help="Keep range, mean and spread of every channel of what Conv, Gemm and MatMul read and make, too.",
        rich_help_panel=o.CALIBRATION,
    ),
]


def command(
    model: o.ModelArgument,
    data: o.Data,
    preprocess: o.PreprocessName = None,
    samples: o.Samples = None,
    seed: o.Seed = 0,
    strict: o.Strict = False,
    policy: o.PolicyFile = None,
    target: o.TargetName = None,
    exclude: o.Exclude = None,
    statistics: Statistics = "exact",
    channels: Channels = False,
    resume: o.Resume = False,
    output: o.Output = None,
    show: Show = False,
    force: o.Force = False,
    quiet: o.Quiet = False,
    provider: o.Provider = "cpu",
    threads: o.Threads = 0,
    max_memory: o.MaxMemory = None,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Run the float model over samples and write the statistics of its values to MODEL.calib.

    One pass; every threshold method is computed from that file later.

    Example: qconvert calibrate model.onnx --data images/ --preprocess imagenet
    """
    from qconvert import pipeline  # noqa: PLC0415 - --help does without
    from qconvert.calibration import SUFFIX  # noqa: PLC0415
    from qconvert.cli import stats  # noqa: PLC0415
    from qconvert.cli.terminal import Terminal, short  # noqa: PLC0415

    terminal = Terminal(quiet=quiet)
    path = output or Path(model.with_suffix(SUFFIX).name)
    result = pipeline.calibrate(
        model,
        data,
        output=path,
        policy=o.read_policy(policy, target=target, exclude=exclude),
        preprocess=o.read_preprocess(preprocess),
        limit=samples,
        seed=seed,
        provider=provider,
        threads=threads,
        detail=statistics,
        channels=channels,
        max_memory=max_memory,
        resume=resume,
        strict=strict,
        force=force,
        listener=terminal,
    )
    if show:
        stats.show(path, result)
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    terminal.done(
        f"{short(path)}: {len(result.stats)} values over {result.samples} samples{skipped}; next: qconvert quantize"
    )
