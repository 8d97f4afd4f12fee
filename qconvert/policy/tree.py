"""YAML 1.2 as a tree that knows its lines: parsed, rid of what only YAML can get wrong, turned into plain values."""

from __future__ import annotations

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node, ScalarNode
from ruamel.yaml.reader import ReaderError

from qconvert.errors import PolicyError
from qconvert.policy.messages import Fault, Loc, show

_ODD = (YAMLError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, AssertionError)
"""What ruamel raises over ill-formed tags, dates and numbers."""


def parse(text: str, name: str) -> object:
    """The YAML as ruamel's tree, which knows its lines.

    Raises:
        PolicyError: If it is not YAML.
    """
    try:
        tree: object = YAML(typ="rt", pure=True).load(text)
        if "*" in text:
            _refuse_cycle(YAML(typ="rt", pure=True).compose(text), name, set(), set())
    except MarkedYAMLError as error:
        raise _syntax(error, name) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PolicyError(f"{name}:{line}: the character U+{error.character:04X} is not allowed in YAML") from None
    except RecursionError:
        raise PolicyError(f"{name}: nested too deeply") from None
    except _ODD as error:
        told = isinstance(error, ValueError) and str(error)
        reason = told.partition("\n")[0] if told else "a tag ('!') or '<<' does not fit its value"
        raise PolicyError(f"{name}: not YAML: {reason}") from None
    return tree


def _syntax(error: MarkedYAMLError, name: str) -> PolicyError:
    problem, mark = str(error.problem or error.context), error.problem_mark or error.context_mark
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    hint = "check brackets, quotes and indentation up to there"
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


def _refuse_cycle(node: Node | None, name: str, above: set[int], done: set[int]) -> None:
    """Refuses an alias to a block that it is part of, which ruamel would read as nothing."""
    if node is None or isinstance(node, ScalarNode) or id(node) in done:
        return
    if id(node) in above:
        raise PolicyError(f"{name}:{node.start_mark.line + 1}: an alias stands inside the block that it repeats")
    above.add(id(node))
    for item in node.value:
        for child in item if isinstance(item, tuple) else (item,):
            _refuse_cycle(child, name, above, done)
    above.remove(id(node))
    done.add(id(node))


def plain(tree: object, name: str) -> object:
    """The tree as plain values.

    Raises:
        PolicyError: If a key is not text.
    """
    return _Plain(name).convert(tree, ())


class _Plain:
    """Turns ruamel's tree into plain values; an aliased node is converted once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done: dict[int, object] = {}

    def convert(self, node: object, loc: Loc) -> object:
        if not isinstance(node, CommentedMap | CommentedSeq):
            return _scalar(node)
        if id(node) not in self.done:
            self.done[id(node)] = self._block(node, loc)
        return self.done[id(node)]

    def _block(self, node: CommentedMap | CommentedSeq, loc: Loc) -> object:
        if isinstance(node, CommentedSeq):
            return [self.convert(item, (*loc, index)) for index, item in enumerate(node)]
        for key in node:
            if not isinstance(key, str):
                hint = f"put it in quotes: '{show(key)}'" if isinstance(key, int | float) else ""
                fault = Fault(loc, f"expected text as a key, got {show(key)}", hint)
                line = (node.lc.data or {}).get(key, [node.lc.line])[0]
                raise PolicyError(f"{self.name}:{line + 1}: {fault}", hint=hint)
        return {str(key): self.convert(item, (*loc, str(key))) for key, item in node.items()}


def find(tree: object, loc: Loc) -> tuple[int, Loc]:
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


def _scalar(value: object) -> object:
    """A scalar without ruamel's memory of how it was written."""
    for kind in (str, int, float):
        if isinstance(value, kind) and not isinstance(value, bool):
            return bool(value) if type(value).__name__ == "ScalarBoolean" else kind(value)
    return value
