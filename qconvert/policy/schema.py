"""The JSON Schema of a policy file, for editors: it accepts what ``load`` accepts, but cannot try patterns."""

from __future__ import annotations

from typing import Any

from qconvert.policy.model import Match, Policy

Schema = dict[str, Any]
_NULL: Schema = {"type": "null"}


def json_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of a policy file."""
    schema = Policy.model_json_schema()
    blocks = schema["$defs"]
    for block in (schema, blocks["Defaults"], blocks["Rule"], blocks["Match"], blocks["Scheme"]):
        block["properties"] = {
            key: _optional(value, key in block.get("required", ())) for key, value in block["properties"].items()
        }
    blocks["Match"]["anyOf"] = [{"required": [key], "properties": {key: {"not": _NULL}}} for key in Match.model_fields]
    said = {key: {"additionalProperties": _NULL} for key in ("weights", "activations")}
    blocks["Rule"]["if"] = {"required": ["float"], "properties": {"float": {"const": True}}}
    blocks["Rule"]["then"] = {"properties": {**said, "bias": _NULL}}
    blocks["Scheme"]["if"] = {"required": ["scheme"], "properties": {"scheme": {"enum": ["per-tensor", "per-channel"]}}}
    blocks["Scheme"]["then"] = {"properties": {"group_size": _NULL}}
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "qconvert policy"}
    return {**title, **{key: value for key, value in _untitled(schema).items() if key not in title}}


def _optional(value: Schema, required: bool) -> Schema:  # noqa: FBT001 - a pure helper of one call
    """A key's schema, without the default where it says nothing, and with null for a key left without a value."""
    value = {key: item for key, item in value.items() if key != "default" or isinstance(item, str | int)}
    if required or _NULL in value.get("anyOf", ()):
        return value
    outer: Schema = {key: value.pop(key) for key in ("description", "default") if key in value}
    return {**outer, "anyOf": [value, _NULL]}


def _untitled(node: Any) -> Any:  # noqa: ANN401 - any JSON
    """The same JSON without the titles that only repeat the key."""
    if isinstance(node, list):
        return [_untitled(item) for item in node]
    if isinstance(node, dict):
        return {key: _untitled(item) for key, item in node.items() if not (key == "title" and isinstance(item, str))}
    return node
