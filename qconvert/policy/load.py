"""Policies as YAML 1.2: reading with the place of every fault, and writing."""

from __future__ import annotations

import io
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from qconvert.errors import PolicyError
from qconvert.policy.messages import Fault, Loc, faults, show
from qconvert.policy.model import Place, Policy
from qconvert.policy.tree import find, parse, plain


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
    tree = parse(text, name)
    if not isinstance(tree, CommentedMap):
        problem = "the file is empty" if tree is None else f"expected a mapping of keys to values, got {show(tree)}"
        raise PolicyError(f"{name}: {problem}", hint="the least a policy says is 'version: 1'")
    try:
        policy = Policy.model_validate(plain(tree, name))
    except ValidationError as error:
        raise _located(faults(error, Policy), tree, name) from None
    except RecursionError:
        raise PolicyError(f"{name}: nested too deeply") from None
    rules = (rule.at(Place(f"rules[{i}]", name, find(tree, ("rules", i))[0])) for i, rule in enumerate(policy.rules))
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


def _located(found: list[Fault], tree: CommentedMap, name: str) -> PolicyError:
    """The error of the fault that stands first in the file; the others are counted."""
    placed: dict[tuple[int, Loc], list[Fault]] = {}
    for fault in found:
        placed.setdefault(find(tree, fault.loc), []).append(fault)
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
    wanted, got = [], ""
    for fault in alternatives:
        rule, _, got = fault.text.partition(", got ")
        if not got:
            return fault.text
        wanted.append(rule.removeprefix("expected "))
    return f"expected {' or '.join(dict.fromkeys(wanted))}, got {got}" if len(wanted) > 1 else alternatives[0].text
