"""A policy: what the user wants, as frozen values. What is None is left to the next in line: rule, defaults, target."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from qconvert.calibrators import CALIBRATORS
from qconvert.errors import PolicyError
from qconvert.policy.fields import (
    BiasName,
    CalibratorChoice,
    DtypeName,
    GranularityName,
    Pattern,
    Patterns,
    PositionName,
    PreprocessChoice,
    TargetName,
)
from qconvert.policy.messages import Fault, faults, path, show

_BlockT = TypeVar("_BlockT", bound="_Block")

VERSION = 1
"""The version of the file's layout."""


@dataclass(frozen=True)
class Place:
    """Where a rule was written. No part of what it means: all places are equal.

    Attributes:
        label: ``rules[2]`` or ``--exclude GLOB``.
        file: The policy file, or "".
        line: The line in it, from 1, or 0.
    """

    label: str = field(default="", compare=False)
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.label} ({self.file}:{self.line})" if self.line else self.label

    def of(self, fault: str) -> str:
        """What is wrong there, as an error says it: ``policy.yaml:7: rules[2]: ...``."""
        return f"{f'{self.file}:{self.line}: ' if self.line else ''}{self.label}: {fault}"


class _Block(BaseModel):
    """A mapping of the file: frozen, no unknown keys; a key without a value counts as left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if item is not None or key not in cls.model_fields}


class Scheme(_Block):
    """How one kind of tensor is quantized; every part may be left open."""

    dtype: DtypeName | None = Field(None, description="The integer type of the levels.")
    symmetric: bool | None = Field(
        None, description="Whether the range is symmetric about 0, so that the zero point is fixed."
    )
    scheme: GranularityName | None = Field(
        None, description="One scale for the whole tensor, for each output channel, or for each group of its inputs."
    )
    group_size: int | None = Field(
        None, ge=2, description="How many inputs of an output channel share a scale where the scheme is per-group."
    )
    calibrator: CalibratorChoice | None = Field(
        None, description="How the range is chosen: a method's name, or a block of `method` and its keys."
    )
    narrow_range: bool | None = Field(
        None, description="Leave out the lowest level of a signed type, so that levels are symmetric about 0."
    )

    @model_validator(mode="after")
    def _groups_have_a_size(self) -> Scheme:
        if self.group_size is not None and self.scheme not in {None, "per-group"}:
            raise Fault(
                ("group_size",), f"scheme {self.scheme} has no groups", "write 'scheme: per-group', or leave it out"
            ).error()
        return self

    def over(self, base: Scheme) -> Scheme:
        """This scheme, with what it leaves open taken from ``base``; the size of groups only where there are some."""
        given: dict[str, object] = {name: value for name, value in self if value is not None}
        if self.scheme not in {None, "per-group"}:
            given["group_size"] = None
        return base.model_copy(update=given) if given else base


class Match(_Block):
    """Which operators a rule is for: all keys that are given must match; within a list, one pattern must."""

    op_types: Patterns = Field(
        (), description="Patterns of operator types: globs, or regular expressions as 're:EXPRESSION'."
    )
    names: Patterns = Field((), description="Patterns of names: of the operator's output tensors or of its node.")
    any: Patterns = Field((), description="Patterns of names or operator types: either may match.")
    position: PositionName | None = Field(
        None, description="The first or last heavy operator (Conv, ConvTranspose, Gemm, MatMul)."
    )
    subgraph: Pattern | None = Field(
        None, description="Pattern of the path of subgraph attributes; '' is the main graph."
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Match:
        if self == Match.model_construct():
            raise Fault(
                (), f"expected at least one of {', '.join(Match.model_fields)}", "names: ['*'] matches every operator"
            ).error()
        return self

    def __str__(self) -> str:
        titles = {"any": "names or op_types"}
        asked = [(name, value) for name, value in self if value is not None and value != ()]
        return " and ".join(
            f"{titles.get(k, k)} {list(v)}" if isinstance(v, tuple) else f"{k} {show(v)}" for k, v in asked
        )


class Rule(_Block):
    """Settings for the operators that match and that no earlier rule matches."""

    match: Match = Field(description="Which operators the rule is for.")
    float: bool | None = Field(None, description="true: leave the operators float. false: quantize them.")
    weights: Scheme = Field(Scheme(), description="How constant operands are quantized.")
    activations: Scheme = Field(Scheme(), description="How computed operands and results are quantized.")
    bias: BiasName | None = Field(None, description="The type of biases.")
    recover: tuple[str, ...] | None = Field(
        None, strict=False, description="Methods that win back accuracy here, in place of the policy's; [] for none."
    )
    _place: Place = PrivateAttr(Place())

    @model_validator(mode="after")
    def _not_contradictory(self) -> Rule:
        if self.float and (self.weights, self.activations, self.bias, self.recover) != (Scheme(), Scheme(), None, None):
            raise Fault((), "float: true leaves nothing for weights, activations, bias or recover to say").error()
        return self

    @property
    def place(self) -> Place:
        """Where the rule was written."""
        return self._place

    def at(self, place: Place) -> Rule:
        """The same rule, written elsewhere."""
        rule = self.model_copy()
        rule._place = place  # noqa: SLF001 - its own copy
        return rule


class Defaults(_Block):
    """Settings for everything that no rule decides."""

    weights: Scheme = Field(Scheme(), description="How constant operands are quantized.")
    activations: Scheme = Field(Scheme(), description="How computed operands and results are quantized.")
    bias: BiasName | None = Field(None, description="The type of biases.")


class Policy(_Block):
    """How a model is to be quantized; ``Policy()`` leaves everything to the target."""

    version: int = Field(VERSION, description="The version of the file's layout.", json_schema_extra={"const": VERSION})
    target: TargetName = Field("ort-cpu", description="The runtime that the model is for.")
    preprocess: PreprocessChoice | None = Field(
        None, description="How samples become inputs: a preset's name, or a block."
    )
    recover: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Methods that win back accuracy, in any order; 'auto' alone tries all and keeps what helps.",
    )
    defaults: Defaults = Field(Defaults(), description="Settings for everything that no rule decides.")
    rules: tuple[Rule, ...] = Field(
        (), strict=False, description="Exceptions; for each operator the first rule that matches counts."
    )

    @field_validator("version", mode="before")
    @classmethod
    def _known(cls, value: object) -> int:
        if isinstance(value, bool) or value != VERSION:
            raise Fault((), f"unknown version {show(value)}", f"this qconvert reads version {VERSION}").error()
        return VERSION

    @field_validator("rules")
    @classmethod
    def _placed(cls, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        return tuple(
            rule if rule.place.label else rule.at(Place(f"rules[{index}]")) for index, rule in enumerate(rules)
        )

    def override(
        self,
        *,
        target: str | None = None,
        scheme: str | None = None,
        group_size: int | None = None,
        calibrator: str | None = None,
        weight_calibrator: str | None = None,
        weights: str | None = None,
        activations: str | None = None,
        exclude: Sequence[str] = (),
        recover: Sequence[str] | None = None,
    ) -> Policy:
        """This policy with the options of the command line over its defaults; None leaves a default as it is.

        Args:
            target: Another target.
            scheme: Granularity of the weights.
            group_size: Inputs that share a scale where the scheme is per-group.
            calibrator: Method for the activations: ``percentile`` or ``percentile:percentile=99.9``.
            weight_calibrator: Method for the weights.
            weights: Type of the weights.
            activations: Type of the activations.
            exclude: Patterns of names or operator types to leave float, before all rules.
            recover: Methods that win back accuracy.

        Raises:
            PolicyError: If an option's value is wrong.
        """
        over_weights = _option(
            Scheme,
            weights=("dtype", weights),
            scheme=("scheme", scheme),
            group_size=("group_size", group_size),
            weight_calibrator=("calibrator", _calibrator_keys("--weight-calibrator", weight_calibrator)),
        )
        over_activations = _option(
            Scheme,
            activations=("dtype", activations),
            calibrator=("calibrator", _calibrator_keys("--calibrator", calibrator)),
        )
        defaults = {
            "weights": over_weights.over(self.defaults.weights),
            "activations": over_activations.over(self.defaults.activations),
        }
        excluded = tuple(
            Rule(match=_option(Match, exclude=("any", (glob,))), float=True).at(Place(f"--exclude {glob}"))
            for glob in exclude
        )
        update: dict[str, object] = {
            "defaults": self.defaults.model_copy(update=defaults),
            "rules": (*excluded, *self.rules),
        }
        if recover is not None:
            update["recover"] = tuple(recover)
        if target is not None:
            update["target"] = _option(Policy, target=("target", target)).target
        return self.model_copy(update=update)


def _option(block: type[_BlockT], **options: tuple[str, object]) -> _BlockT:
    """The block that command-line options fill in, each given as option=(key, value)."""
    made: dict[str, object] = {}
    for option, (key, value) in options.items():
        made[key] = value
        try:
            block.model_validate(made)
        except ValidationError as error:
            fault = faults(error, block)[0]
            inner = path(tuple(part for part in fault.loc[1:] if isinstance(part, str)))
            place = f"--{option.replace('_', '-')}: {inner + ': ' if inner else ''}"
            raise PolicyError(f"{place}{fault.text}", hint=fault.hint) from None
    return block.model_validate(made)


def _calibrator_keys(name: str, option: str | None) -> str | dict[str, object] | None:
    """What ``name:key=value,key=value`` asks for, as a policy file has it."""
    method, colon, rest = (option or "").partition(":")
    if not colon:
        return option
    keys: dict[str, object] = {"method": method}
    for pair in rest.split(","):
        key, equals, text = pair.partition("=")
        if not equals:
            known = [f.name for f in fields(CALIBRATORS[method])] if method in CALIBRATORS else []
            raise PolicyError(
                f"{name}: expected name:key=value,key=value, got {show(option)}",
                hint=f"write '{method}:{known[0]}={rest}'" if known else "",
            )
        keys[key.strip()] = _number(text.strip())
    return keys


def _number(text: str) -> object:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
