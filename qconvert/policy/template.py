"""A policy file to start from: every key explained, with its choices, and examples of all of them."""

from __future__ import annotations

import dataclasses

from qconvert.calibrators import CALIBRATORS
from qconvert.float8 import FLOAT8_TYPES
from qconvert.numerics import QUANT_TYPES
from qconvert.policy.model import VERSION
from qconvert.preprocess import PRESETS
from qconvert.targets import TARGETS, get_target

_TEXT = """\
## How qconvert quantizes a model. What is left out here is decided by the target.
## Lines with one '#' are examples: remove it to use them.
version: {version}

## The runtime that the model is for: {targets}.
## {target}: {title}.
target: {target}

## How images become inputs: {presets};
## or a block with the keys resize, crop, color, layout, scale, mean and std.
#preprocess: imagenet

## Methods that win back accuracy after quantization, in any order; auto alone tries all and keeps what helps.
#recover: [equalize, bias]

## Settings for everything that no rule below decides.
##
##   dtype         {dtypes}
##                 activations for {target}: {activations}
##                 weights for {target}: {weights}
##   symmetric     true: the zero point is fixed. false: the range may lie anywhere around 0.
##   scheme        per-tensor: one scale. per-channel: one for each output channel (weights). per-group: one for each
##                 group of its inputs (weights of MatMul and Gemm).
##   group_size    how many inputs share a scale where the scheme is per-group; 32 where it is left out.
##   calibrator    how the range is chosen from what the samples show: a name, or a block with the method's keys:
{calibrators}
##   narrow_range  true: leave out the lowest level of a signed dtype (int8: -127 to 127).
##   bias          int32: on the scale of the products. float: as it is.
#defaults:
#  weights:     {{dtype: {weight}, symmetric: true, scheme: per-channel, calibrator: minmax, narrow_range: true}}
#  activations: {{dtype: {activation}, symmetric: {symmetric}, calibrator: {{method: percentile, percentile: 99.99}}}}
#  bias: {bias}

## Exceptions. For each operator the first rule that matches counts; a rule that matches none is an error.
## What a rule leaves open comes from the defaults. A rule says
##
##   match         all keys that are given must match; of a list, one pattern must:
##     names       of the operator's outputs or of its node      'qconvert inspect MODEL' lists them
##     op_types    of the operator
##     any         either of the two
##     position    first or last operator of Conv, ConvTranspose, Gemm and MatMul
##     subgraph    one pattern of the path of subgraph attributes; '' is the main graph
##   float         true: stay float. false: be quantized, whatever the target thinks.
##   weights, activations, bias      as above
##
## A pattern is a glob (* ? [abc], and * crosses '/'), or a regular expression for the whole name after 're:'.
## Patterns that start with * and names that are numbers stand in quotes.
#rules:
#  - match: {{op_types: [Softmax, "Layer*"]}}
#    float: true
#  - match: {{names: ["/head/*", "re:.*fc[0-9]+"], op_types: [Conv, Gemm]}}
#    weights: {{scheme: per-tensor}}
#  - match: {{position: first}}
#    activations: {{calibrator: minmax}}
#  - match: {{subgraph: "then_branch*"}}
#    float: true
"""


def template(target: str = "ort-cpu") -> str:
    """A commented policy file for a target; as it is, it equals ``Policy(target=target)``.

    Raises:
        TargetError: If there is no such target.
    """
    kind = get_target(target)
    weights = kind.weights if "static" in kind.modes else kind.stored
    return _TEXT.format(
        version=VERSION,
        target=target,
        title=kind.title,
        targets=", ".join(TARGETS),
        presets=", ".join(PRESETS),
        dtypes=", ".join((*QUANT_TYPES, *FLOAT8_TYPES)),
        activations=", ".join(kind.activations),
        weights=", ".join(weights),
        weight=weights[0],
        activation=kind.activations[0],
        symmetric="true" if kind.symmetric_activations else "false",
        bias=kind.bias,
        calibrators="\n".join(_calibrator_line(name) for name in CALIBRATORS),
    )


def _calibrator_line(name: str) -> str:
    kind = CALIBRATORS[name]
    keys = ", ".join(f"{field.name}: {field.default}" for field in dataclasses.fields(kind))
    return f"##     {name:<12}{keys or '-'}"
