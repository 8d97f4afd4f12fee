"""The types of a policy's values: choices, patterns, calibrators, presets; each checks itself and has a JSON Schema."""

from __future__ import annotations

import dataclasses
import re
import typing
import warnings
from collections.abc import Collection, Mapping
from fnmatch import translate
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from qconvert.calibrators import CALIBRATORS, Calibrator, make_calibrator
from qconvert.errors import CalibrationError
from qconvert.float8 import FLOAT8_TYPES
from qconvert.numerics import QUANT_TYPES
from qconvert.policy.messages import Fault, Loc, not_one_of, show, unknown_key
from qconvert.preprocess import PRESETS, Preprocess
from qconvert.targets import TARGETS, Granularity

Schema = dict[str, Any]
Bias = Literal["int32", "float"]
Position = Literal["first", "last"]


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
    """Marks a field whose value is one of ``choices``, looked up when the value is checked."""

    choices: Collection[str]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Schema:
        del schema, handler
        return {"enum": list(self.choices)}

    def _check(self, value: object) -> str:
        if isinstance(value, str) and value in self.choices:
            return value
        raise not_one_of(value, self.choices).error()


@lru_cache(4096)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern: ``re:EXPRESSION`` or a glob, in which ``*`` crosses ``/`` too.

    Raises:
        re.error: If the expression is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # "[[" and "--" in a set mean what they always meant
        return re.compile(pattern[3:] if pattern.startswith("re:") else translate(pattern))


def fits(pattern: str, text: str) -> bool:
    """Whether the whole text fits the pattern; every text fits itself, brackets and all."""
    return pattern == text or compile_pattern(pattern).fullmatch(text) is not None


def _check_pattern(pattern: str) -> str:
    try:
        compile_pattern(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise Fault(
            (), f"bad regular expression {show(pattern)}: {error}", "without 're:' it is a glob"
        ).error() from None
    return pattern


Pattern = Annotated[str, AfterValidator(_check_pattern)]
Patterns = Annotated[tuple[Annotated[Pattern, Field(min_length=1)], ...], Field(min_length=1, strict=False)]


def parse_calibrator(value: object) -> Calibrator:
    """The calibrator that ``minmax`` or ``{method: percentile, percentile: 99.9}`` asks for.

    Raises:
        PydanticCustomError: If there is no such calibrator, or a key of it is wrong.
    """
    if isinstance(value, Calibrator):
        return value
    given = {"method": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise Fault((), f"expected a calibrator's name or a mapping, got {show(value)}").error()
    if "method" not in given:
        raise Fault((), "the key 'method' is missing", f"the methods are {', '.join(CALIBRATORS)}").error()
    method, keys = given["method"], {key: item for key, item in given.items() if key != "method"}
    if not isinstance(method, str) or method not in CALIBRATORS:
        raise not_one_of(method, CALIBRATORS, loc=() if isinstance(value, str) else ("method",)).error()
    kinds = {field.name: type(field.default) for field in dataclasses.fields(CALIBRATORS[method])}
    for key, item in keys.items():
        if key not in kinds:
            raise unknown_key((key,), ("method", *kinds)).error()
        if kinds[key] is int and isinstance(item, float) and item.is_integer():
            keys[key] = int(item)
        _make(method, {key: keys[key]}, (key,))
    return _make(method, keys, ())


def _make(method: str, keys: dict[str, Any], loc: Loc) -> Calibrator:
    try:
        return make_calibrator(method, **keys)
    except CalibrationError as error:
        text = str(error).rpartition(f"{loc[0]}: ")[2] if loc else str(error)
        raise Fault(loc, text, error.hint).error() from None


def dump_calibrator(calibrator: Calibrator) -> str | dict[str, Any]:
    """What ``parse_calibrator`` makes this calibrator of, defaults left out."""
    method = next(name for name, kind in CALIBRATORS.items() if type(calibrator) is kind)
    values = ((field, getattr(calibrator, field.name)) for field in dataclasses.fields(calibrator))
    changed = {field.name: value for field, value in values if value != field.default}
    return {"method": method, **changed} if changed else method


def _calibrator_schema(method: str) -> Schema:
    keys: Schema = {"method": {"const": method}}
    for field in dataclasses.fields(CALIBRATORS[method]):
        keys[field.name] = {
            "type": "integer" if type(field.default) is int else "number",
            "default": field.default,
            **field.metadata,
        }
    return {"type": "object", "properties": keys, "required": ["method"], "additionalProperties": False}


class _CalibratorField:
    """Marks a field that holds a calibrator."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(
            parse_calibrator, serialization=core_schema.plain_serializer_function_ser_schema(dump_calibrator)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Schema:
        del schema, handler
        return {"anyOf": [{"enum": list(CALIBRATORS)}, *map(_calibrator_schema, CALIBRATORS)]}


class _PreprocessField:
    """Marks a field that holds preprocessing: a preset's name, or a block."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self._preset, handler(source), serialization=core_schema.plain_serializer_function_ser_schema(self._dump)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Schema:
        return {"anyOf": [{"enum": list(PRESETS)}, handler(schema)]}

    @staticmethod
    def _preset(value: object) -> object:
        if isinstance(value, str) and value not in PRESETS:
            raise not_one_of(value, PRESETS).error()
        return PRESETS[value] if isinstance(value, str) else value

    @staticmethod
    def _dump(value: Preprocess) -> str | dict[str, Any]:
        return next((name for name, preset in PRESETS.items() if preset == value), None) or value.model_dump(
            mode="json", exclude_defaults=True
        )


DtypeName = Annotated[str, OneOf((*QUANT_TYPES, *FLOAT8_TYPES))]
TargetName = Annotated[str, OneOf(TARGETS)]
GranularityName = Annotated[Granularity, OneOf(typing.get_args(Granularity))]
BiasName = Annotated[Bias, OneOf(typing.get_args(Bias))]
PositionName = Annotated[Position, OneOf(typing.get_args(Position))]
CalibratorChoice = Annotated[Calibrator, _CalibratorField()]
PreprocessChoice = Annotated[Preprocess, _PreprocessField()]
