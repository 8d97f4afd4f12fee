"""Policies as YAML 1.2: reading with the place of every fault, and writing."""

from __future__ import annotations

import io
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase, CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from qconvert.errors import PolicyError
from qconvert.policy.messages import Fault, Loc, faults, show
from qconvert.policy.model import Place, Policy


def load(path: str | Path) -> Policy:
    """The policy in a file.

    Raises:
        PolicyError: If it cannot be read, or something in it is wrong; the message names file and line.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise PolicyError(f"{path}: no such file", hint="'qconvert policy init' writes one to start from") from None
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError(
            f"{path}:{line}: not UTF-8: byte 0x{data[error.start]:02x}", hint="save the file as UTF-8"
        ) from None
    return loads(text, name=str(path))


def loads(text: str, *, name: str = "policy.yaml") -> Policy:
    """The policy in a text.

    Args:
        text: The YAML.
        name: What messages call it.

    Raises:
        PolicyError: If something in it is wrong.
    """
    tree = _parse(text, name)
    if not isinstance(tree, CommentedMap):
        problem = "the file is empty" if tree is None else f"expected a mapping of keys to values, got {show(tree)}"
        raise PolicyError(f"{name}: {problem}", hint="the least a policy says is 'version: 1'")
    try:
        plain = _Plain(name).convert(tree, ())
        policy = Policy.model_validate(plain)
    except ValidationError as error:
        raise _located(faults(error, Policy), tree, name) from None
    except RecursionError:
        raise PolicyError(f"{name}: nested too deeply") from None
    rules = (rule.at(Place(f"rules[{i}]", name, _find(tree, ("rules", i))[0])) for i, rule in enumerate(policy.rules))
    return policy.model_copy(update={"rules": tuple(rules)})


def dump(policy: Policy) -> str:
    """The policy as YAML; ``loads(dump(policy)) == policy``."""
    tree = {"version": policy.version, "target": policy.target, **policy.model_dump(mode="json", exclude_defaults=True)}
    yaml = YAML(typ="rt", pure=True)
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(_styled(tree, 2), stream)
    return stream.getvalue()


def _styled(node: object, levels: int) -> object:
    """The tree with the outer levels in block style, one key a line, and the inner ones in flow style."""
    if not isinstance(node, dict | list):
        return DoubleQuotedScalarString(node) if isinstance(node, str) and not node.isprintable() else node
    styled = (
        CommentedMap({key: _styled(item, levels - 1) for key, item in node.items()})
        if isinstance(node, dict)
        else CommentedSeq([_styled(item, levels) for item in node])
    )
    if levels <= 0:
        styled.fa.set_flow_style()
    return styled


def _parse(text: str, name: str) -> object:
    """The YAML as ruamel's tree, which knows its lines."""
    try:
        tree: object = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        raise _syntax(error, name) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PolicyError(f"{name}:{line}: the character U+{error.character:04X} is not allowed in YAML") from None
    except RecursionError:
        raise PolicyError(f"{name}: nested too deeply") from None
    except (
        YAMLError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        NotImplementedError,
        AssertionError,
    ) as error:
        raise PolicyError(
            f"{name}: not YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    return tree


def _syntax(error: MarkedYAMLError, name: str) -> PolicyError:
    problem, mark = str(error.problem or error.context), error.problem_mark or error.context_mark
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    hint = ""
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    elif "duplicate key" in problem:
        problem, hint = problem.partition(" with value")[0].removeprefix("found "), "keep one of them"
    elif "alias" in problem or "alias" in str(error.context):
        hint = "a pattern that starts with * stands in quotes: '*name'"
    elif "mapping values" in problem:
        hint = "check the indentation; text that holds ': ' stands in quotes"
    elif "cannot start any token" in problem and "\\t" in problem:
        hint = "indent with spaces"
    return PolicyError(f"{place}: {problem.splitlines()[0]}", hint=hint)


class _Plain:
    """Turns ruamel's tree into plain values; an aliased node is converted once, and may not contain itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done: dict[int, object] = {}
        self.open: set[int] = set()

    def convert(self, node: object, loc: Loc) -> object:
        if not isinstance(node, CommentedMap | CommentedSeq):
            return _scalar(node)
        if id(node) in self.open:
            raise self._error(node, Fault(loc, "an alias to a block that it is part of"))
        if id(node) not in self.done:
            self.open.add(id(node))
            self.done[id(node)] = self._block(node, loc)
            self.open.discard(id(node))
        return self.done[id(node)]

    def _block(self, node: CommentedMap | CommentedSeq, loc: Loc) -> object:
        if isinstance(node, CommentedSeq):
            return [self.convert(item, (*loc, index)) for index, item in enumerate(node)]
        for key in node:
            if not isinstance(key, str):
                hint = f"put it in quotes: '{show(key)}'" if isinstance(key, int | float) else ""
                raise self._error(node, Fault(loc, f"expected text as a key, got {show(key)}", hint))
        return {str(key): self.convert(item, (*loc, str(key))) for key, item in node.items()}

    def _error(self, node: CommentedBase, fault: Fault) -> PolicyError:
        return PolicyError(f"{self.name}:{node.lc.line + 1}: {fault}", hint=fault.hint)


def _scalar(value: object) -> object:
    """A scalar without ruamel's memory of how it was written."""
    for kind in (str, int, float):
        if isinstance(value, kind) and not isinstance(value, bool):
            return bool(value) if type(value).__name__ == "ScalarBoolean" else kind(value)
    return value


def _find(tree: object, loc: Loc) -> tuple[int, Loc]:
    """The line of the innermost key of ``loc`` that the file has, from 1, and ``loc`` without what the file has not."""
    line, found = 0, []
    for part in loc:
        if not isinstance(tree, CommentedMap | CommentedSeq):
            break
        if part in (tree if isinstance(tree, CommentedMap) else range(len(tree))):
            found.append(part)
            line = (tree.lc.data or {}).get(part, [line])[0]
            tree = tree[part]
    return line + 1, tuple(found)


def _located(found: list[Fault], tree: CommentedMap, name: str) -> PolicyError:
    """The error of the fault that stands first in the file; the others are counted."""
    placed: dict[tuple[int, Loc], list[Fault]] = {}
    for fault in found:
        placed.setdefault(_find(tree, fault.loc), []).append(fault)
    inner = {
        at: faults
        for at, faults in placed.items()
        if not any(at[1] == loc[: len(at[1])] and at[1] != loc for _, loc in placed)
    }
    (line, loc), first = min(inner.items(), key=lambda item: item[0][0])
    more = f" (and {len(inner) - 1} more)" if len(inner) > 1 else ""
    return PolicyError(f"{name}:{line}: {Fault(loc, _either(first))}{more}", hint=first[0].hint)


def _either(alternatives: list[Fault]) -> str:
    """The text of the faults of one value, which has several where each of several forms is allowed."""
    texts = [fault.text for fault in alternatives]
    split = [text.removeprefix("expected ").rpartition(", got ") for text in texts]
    if all(wanted and text.startswith("expected ") for (wanted, _, _), text in zip(split, texts, strict=True)):
        return f"expected {' or '.join(dict.fromkeys(wanted for wanted, _, _ in split))}, got {split[0][2]}"
    return next(
        text for (wanted, _, _), text in zip(split, texts, strict=True) if not (wanted and text.startswith("expected "))
    )
