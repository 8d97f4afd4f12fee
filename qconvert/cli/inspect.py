"""``qconvert inspect``."""

from __future__ import annotations

from qconvert.cli import options as o


def command(
    model: o.ModelArgument,
    policy: o.PolicyFile = None,
    target: o.TargetName = None,
    scheme: o.SchemeName = None,
    exclude: o.Exclude = None,
    calibration: o.CalibrationFile = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,  # noqa: ARG001 - read by main
) -> None:
    """Show what is in a model, what would be quantized and what not, and why; writes nothing.

    Example: qconvert inspect model.onnx --policy policy.yaml
    """
    from qconvert import inspection, report  # noqa: PLC0415 - --help does without

    wanted = o.read_policy(policy, target=target, scheme=scheme, exclude=exclude)
    result = inspection.inspect(model, policy=wanted, calibrated=calibration)
    if as_json:
        report.json.print_json(report.json.inspection(result))
    else:
        report.console.inspection(result)
