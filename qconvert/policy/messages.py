"""What is wrong with a value, in one line for people: the text, a hint, and the keys that lead to it."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

Loc = tuple[int | str, ...]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        loc: Keys and list positions from the top of the file to the value.
        text: The value and the rule it breaks.
        hint: What to do about it, or "".
    """

    loc: Loc
    text: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{path(self.loc)}: {self.text}" if self.loc else self.text

    def error(self) -> PydanticCustomError:
        """The fault as an error that a pydantic validator raises; ``faults`` gives it back."""
        return PydanticCustomError("fault", "{text}", {"text": self.text, "hint": self.hint, "loc": self.loc})


def path(loc: Loc) -> str:
    """The key path of a location: ``("rules", 0, "weights")`` is ``rules[0].weights``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def show(value: object) -> str:
    """A value as YAML has it, short."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a value of type {type(value).__name__}"


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """A hint with the closest choice, or "" when none is close."""
    folded = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), folded, 1)
    return f"did you mean '{folded[close[0]]}'?" if close else ""


def not_one_of(value: object, choices: Collection[str], *, loc: Loc = ()) -> Fault:
    """The fault of a value outside a list of choices."""
    return Fault(loc, f"expected one of {', '.join(choices)}, got {show(value)}", did_you_mean(value, choices))


def unknown_key(loc: Loc, keys: Collection[str]) -> Fault:
    """The fault of a key that a mapping with these keys does not have."""
    hint = did_you_mean(loc[-1], keys) or (f"the keys are {', '.join(keys)}" if keys else "")
    return Fault(loc, "unknown key", hint)


def faults(error: ValidationError, root: type[BaseModel]) -> list[Fault]:
    """Every fault that pydantic found in the keys of ``root``."""
    return [_fault(details, root) for details in error.errors(include_url=False)]


def _fault(details: ErrorDetails, root: type[BaseModel]) -> Fault:
    kind, loc, value, context = details["type"], details["loc"], details["input"], details.get("ctx", {})
    if kind == "fault":
        return Fault(loc + tuple(context["loc"]), context["text"], context["hint"])
    if kind == "extra_forbidden":
        return unknown_key(loc, _keys_at(root, loc[:-1]))
    if kind == "literal_error":
        return not_one_of(value, re.findall("'([^']*)'", context["expected"]), loc=loc)
    if kind == "missing":
        return Fault(
            loc[:-1], f"the key '{loc[-1]}' is missing" if isinstance(loc[-1], str) else "expected more numbers"
        )
    return Fault(loc, _text(details), _type_hint(kind, value))


def _text(details: ErrorDetails) -> str:
    kind, value, message = details["type"], details["input"], details["msg"]
    if kind == "too_short":
        return "an empty pattern matches nothing" if isinstance(value, str) else "expected at least one pattern"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    rule = message.removeprefix("Input should be ")
    if kind not in _EXPECTED and rule == message:
        return f"{message}, got {show(value)}"
    number = "a number " if kind.startswith(("greater_than", "less_than")) else ""
    return f"expected {_EXPECTED.get(kind, number + rule)}, got {show(value)}"


_EXPECTED = {
    "bool_type": "true or false",
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
}


def _type_hint(kind: str, value: object) -> str:
    if kind == "bool_type" and str(value).lower() in {"yes", "on", "y", "1", "no", "off", "n", "0"}:
        return f"write {'true' if str(value).lower() in {'yes', 'on', 'y', '1'} else 'false'}"
    if kind == "string_type" and isinstance(value, int | float):
        return f"put it in quotes: '{show(value)}'"
    if kind in {"tuple_type", "list_type"} and isinstance(value, str):
        return f"write ['{value}']"
    return ""


def _keys_at(root: type[BaseModel], loc: Loc) -> tuple[str, ...]:
    """The keys of the mapping at a location, or () where that is not known."""
    model: type[BaseModel] | None = root
    for part in loc:
        if isinstance(part, str) and model is not None:
            model = _model_in(model.model_fields[part].annotation) if part in model.model_fields else None
    return tuple(model.model_fields) if model else ()


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for model in map(_model_in, typing.get_args(annotation)) if model), None)
