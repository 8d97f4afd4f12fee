from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, get_args

import jsonschema  # type: ignore[import-untyped, unused-ignore]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from qconvert.calibrators import CALIBRATORS, make_calibrator
from qconvert.errors import PolicyError, TargetError
from qconvert.float8 import FLOAT8_TYPES
from qconvert.numerics import QUANT_TYPES
from qconvert.policy import (
    Defaults,
    Match,
    Policy,
    Rule,
    Scheme,
    Settings,
    dump,
    json_schema,
    load,
    loads,
    resolve,
    template,
    unmatched,
)
from qconvert.policy.fields import Bias, Position
from qconvert.preprocess import PRESETS, Preprocess
from qconvert.targets import TARGETS, Granularity

FULL = """\
version: 1
target: ort-cpu
preprocess: imagenet
defaults:
  weights:     {dtype: int8, symmetric: true, scheme: per-channel, calibrator: minmax, narrow_range: true}
  activations: {dtype: uint8, symmetric: false, scheme: per-tensor, calibrator: {method: percentile, percentile: 99.9}}
  bias: int32
rules:
  - match: {op_types: [Softmax, "Layer*"]}
    float: true
  - match: {names: ["/head/*", "re:.*fc[0-9]+$"], op_types: [Conv]}
    weights: {dtype: int4}
  - match: {position: first}
    activations: {dtype: uint16}
  - match: {subgraph: "then_branch*"}
    float: true
    # nothing else
"""


def fails(text: str) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        loads(text)
    assert "\n" not in str(caught.value)
    return caught.value


def find(
    policy: Policy,
    op_type: str = "Conv",
    *names: str,
    subgraph: str = "",
    position: AbstractSet[Position] = frozenset(),
) -> Settings:
    return resolve(policy, op_type=op_type, names=names or ("y",), subgraph=subgraph, position=position)


# --- what a file says ---


def test_a_full_file_says_everything() -> None:
    policy = loads(FULL)
    assert (policy.version, policy.target, policy.preprocess) == (1, "ort-cpu", PRESETS["imagenet"])
    assert policy.defaults.weights == Scheme(
        dtype="int8", symmetric=True, scheme="per-channel", calibrator=make_calibrator("minmax"), narrow_range=True
    )
    assert policy.defaults.activations.calibrator == make_calibrator("percentile", percentile=99.9)
    assert policy.defaults.bias == "int32"
    assert [rule.float for rule in policy.rules] == [True, None, None, True]
    assert policy.rules[1].match == Match(names=("/head/*", "re:.*fc[0-9]+$"), op_types=("Conv",))
    assert [str(rule.place) for rule in policy.rules] == [
        f"rules[{i}] (policy.yaml:{line})" for i, line in enumerate((9, 11, 13, 15))
    ]


def test_the_empty_policy_leaves_everything_open() -> None:
    assert find(Policy()) == Settings(None, Scheme(), Scheme(), None, "defaults")
    assert loads("version: 1") == Policy()
    assert (Policy().target, Policy().preprocess, Policy().rules) == ("ort-cpu", None, ())


@pytest.mark.parametrize(
    "text",
    [
        "version:",
        "rules:",
        "defaults:\n  weights:\n  bias:",
        "preprocess:\ntarget:\nversion: 1",
        "version: 1.0",
        "rules: []",
    ],
)
def test_a_key_without_a_value_counts_as_left_out(text: str) -> None:
    assert loads(text) == Policy()


def test_aliases_and_merge_keys_are_read() -> None:
    policy = loads(
        "defaults:\n"
        "  weights: &w {dtype: int4, symmetric: &t true}\n"
        "  activations: {<<: *w, dtype: uint8, narrow_range: *t}"
    )
    assert policy.defaults.activations == Scheme(dtype="uint8", symmetric=True, narrow_range=True)


def test_a_preprocess_block_is_read() -> None:
    assert loads("preprocess: {mean: [1, 2.5, 3], scale: 1}").preprocess == Preprocess(mean=(1.0, 2.5, 3.0), scale=1.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_known_by_name(preset: str) -> None:
    assert loads(f"preprocess: {preset}").preprocess == PRESETS[preset]
    assert dump(loads(f"preprocess: {preset}")).splitlines()[-1] == f"preprocess: {preset}"


@pytest.mark.parametrize("method", CALIBRATORS)
def test_every_calibrator_is_known_by_name_and_keys(method: str) -> None:
    plain = make_calibrator(method)
    keys = ", ".join(f"{key}: {value}" for key, value in dataclasses.asdict(plain).items())
    for text in (method, f"{{method: {method}}}", f"{{method: {method}, {keys}}}"):
        assert loads(f"defaults: {{weights: {{calibrator: {text}}}}}").defaults.weights.calibrator == plain


def test_values_are_frozen_and_hashable() -> None:
    policy = loads(FULL)
    assert hash(policy) == hash(loads(FULL))
    with pytest.raises(ValidationError):
        policy.target = "generic"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Policy(target="nowhere")


def test_where_a_rule_stands_is_no_part_of_it() -> None:
    assert loads("# a line more\n" + FULL) == loads(FULL)
    assert loads(FULL, name="other.yaml") == loads(FULL)
    assert str(Policy(rules=(Rule(match=Match(position="first")),)).rules[0].place) == "rules[0]"


# --- what is wrong with a file ---

BAD = [
    # text, message, hint
    (
        "defaults:\n  weights:\n    dtype: int5",
        "3: defaults.weights.dtype: expected one of int2, ..., got 'int5'",
        "'int8'",
    ),
    (
        "rules:\n- match: {names: [a]}\n  weights: {dtype: 8}",
        "3: rules[0].weights.dtype: expected one of int2, ..., got 8",
        "",
    ),
    ("version: 1\n\ndefaults: {wieghts: {}}", "3: defaults.wieghts: unknown key", "did you mean 'weights'?"),
    ("traget: ort-cpu", "1: traget: unknown key", "did you mean 'target'?"),
    ("zzz: 1", "1: zzz: unknown key", "the keys are version, target, preprocess, recover, defaults, rules"),
    ("rules:\n- {match: {name: [a]}}", "2: rules[0].match.name: unknown key", "did you mean 'names'?"),
    ("target: ort", "1: target: expected one of ort-cpu, ..., got 'ort'", "did you mean 'ort-cpu'?"),
    ("preprocess: imagnet", "1: preprocess: expected one of imagenet, ..., got 'imagnet'", "did you mean 'imagenet'?"),
    ("preprocess: {rezise: 1}", "1: preprocess.rezise: unknown key", "did you mean 'resize'?"),
    ("preprocess:\n  color: red", "2: preprocess.color: expected one of rgb, bgr, gray, got 'red'", ""),
    ("preprocess:\n  mean:\n  - 1\n  - x", "4: preprocess.mean[1]: expected a number, got 'x'", ""),
    ("preprocess: {crop: [1]}", "1: preprocess.crop: expected more numbers", ""),
    ("preprocess: {std: 0}", "1: preprocess.std: expected a number greater than 0 or a list, got 0", ""),
    ("preprocess: {std: x}", "1: preprocess.std: expected a number or a list, got 'x'", ""),
    ("preprocess: [a]", "1: preprocess: expected a mapping of keys to values, got a list", ""),
    ("defaults: {bias: false}", "1: defaults.bias: expected one of int32, float, got false", ""),
    ("defaults: {bias: Float}", "1: defaults.bias: expected one of int32, float, got 'Float'", "did you mean 'float'?"),
    (
        "defaults: {weights: {scheme: per_channel}}",
        "1: ...: expected one of per-tensor, per-channel, per-group, got ...",
        "'per-channel'",
    ),
    (
        "defaults: {weights: {symmetric: yes}}",
        "1: defaults.weights.symmetric: expected true or false, got 'yes'",
        "write true",
    ),
    (
        "defaults: {weights: {symmetric: 0}}",
        "1: defaults.weights.symmetric: expected true or false, got 0",
        "write false",
    ),
    ("defaults: {weights: int8}", "1: defaults.weights: expected a mapping of keys to values, got 'int8'", ""),
    ("defaults: []", "1: defaults: expected a mapping of keys to values, got a list", ""),
    ("rules: {a: 1}", "1: rules: expected a list, got a mapping", ""),
    ("rules:\n-", "2: rules[0]: expected a mapping of keys to values, got nothing", ""),
    ("rules:\n- float: true", "2: rules[0]: the key 'match' is missing", ""),
    ("rules:\n- match:", "2: rules[0]: the key 'match' is missing", ""),
    (
        "rules:\n- match: {}",
        "2: rules[0].match: expected at least one of op_types, names, any, position, subgraph",
        "every",
    ),
    ("rules:\n- match: {names: [], op_types: [a]}", "2: rules[0].match.names: expected at least one pattern", ""),
    ("rules:\n- match: {names: ['']}", "2: rules[0].match.names[0]: an empty pattern matches nothing", ""),
    ("rules:\n- match: {names: conv}", "2: rules[0].match.names: expected a list, got 'conv'", "write ['conv']"),
    (
        "rules:\n- match:\n    names:\n    - 249",
        "4: rules[0].match.names[0]: expected text, got 249",
        "in quotes: '249'",
    ),
    (
        "rules:\n- match: {names: ['re:[']}",
        "2: rules[0].match.names[0]: bad regular expression 're:[': unterminated ...",
        "glob",
    ),
    ("rules:\n- match: {subgraph: 're:('}", "2: rules[0].match.subgraph: bad regular expression 're:(': ...", "glob"),
    (
        "rules:\n- match: {position: frist}",
        "2: rules[0].match.position: expected one of first, last, got 'frist'",
        "'first'",
    ),
    (
        "rules:\n- match: {position: last}\n  float: true\n  bias: float",
        "2: rules[0]: float: true leaves nothing for ...",
        "",
    ),
    (
        "defaults: {weights: {calibrator: percentil}}",
        "1: ...calibrator: expected one of minmax, ..., got 'percentil'",
        "'percentile'",
    ),
    (
        "defaults: {weights: {calibrator: {method: kl}}}",
        "1: ...calibrator.method: expected one of minmax, ..., got 'kl'",
        "",
    ),
    (
        "defaults: {weights: {calibrator: {percentile: 9}}}",
        "1: ...calibrator: the key 'method' is missing",
        "the methods are minmax",
    ),
    ("defaults: {weights: {calibrator: 3}}", "1: ...calibrator: expected a calibrator's name or a mapping, got 3", ""),
    (
        "defaults: {weights: {calibrator: {method: percentile, percntile: 9}}}",
        "1: ...calibrator.percntile: unknown key",
        "'percentile'",
    ),
    (
        "defaults:\n  weights:\n    calibrator:\n      method: percentile\n      percentile: 999",
        "5: defaults.weights.calibrator.percentile: expected a number above 50 and at most 100, got 999",
        "default",
    ),
    ("version: 2", "1: version: unknown version 2", "this qconvert reads version 1"),
    ("version: true", "1: version: unknown version true", ""),
    ("version: '1'", "1: version: unknown version '1'", ""),
    ("target: !x ort-cpu", "1: target: expected one of ..., got a value of type TaggedScalar", ""),
    ("a: 1\n2: 3", "2: expected text as a key, got 2", "put it in quotes: '2'"),
    ("? [1]\n: 2", "1: expected text as a key, got a list", ""),
    (
        "rules: &a\n- match: {names: [a]}\n  weights: &b {calibrator: *b}",
        "3: an alias stands inside the block that it repeats",
        "",
    ),
    ("defaults: &a\n  weights: {x: [*a]}", "1: an alias stands inside ...", ""),
    # YAML itself
    ("target: a\ntarget: b", '2:1: duplicate key "target"', "keep one of them"),
    ("rules: [1, 2\nb: 3", "2:2: expected ',' or ']', but got ':'", ""),
    ("a: 1\n b: 2", "2:3: mapping values are not allowed here", "check the indentation"),
    ("\ta: 1", "1:1: found character '\\t' that cannot start any token", "indent with spaces"),
    ("target: 'x", "1:11: found unexpected end of stream", ""),
    ("rules:\n - match: {names: [*x]}", "2:20: found undefined alias 'x'", "in quotes: '*name'"),
    ("a: 1\n---\nb: 2", "2:1: expected a single document in the stream, but found another document", ""),
    ("a: 1\nb: \x07", "2: the character U+0007 is not allowed in YAML", ""),
    ("target: !!float foo", " not YAML: could not convert string to float: 'foo'", ""),
    ("target: !!int ''", " not YAML: a tag ('!') or '<<' does not fit its value", ""),
    ("[" * 1500, " nested too deeply", ""),
    ("", " the file is empty", "version: 1"),
    ("# only this\n", " the file is empty", "version: 1"),
    ("- a", " expected a mapping of keys to values, got a list", "version: 1"),
    ("hello", " expected a mapping of keys to values, got 'hello'", "version: 1"),
]


@pytest.mark.parametrize(("text", "message", "hint"), BAD, ids=[text[:40] for text, _, _ in BAD])
def test_a_wrong_file_gets_one_line_with_its_place(text: str, message: str, hint: str) -> None:
    error = fails(text)
    pattern = ".*".join(map(re.escape, f"policy.yaml:{message}".split("...")))
    assert re.fullmatch(pattern, str(error)), str(error)
    assert hint in error.hint


def test_the_first_fault_by_line_is_told_and_the_others_counted() -> None:
    error = fails(
        "version: 1\nrules:\n  - match: {names: [a]}\n    wieghts: 1\ndefaults: {bias: x, weights: {dtype: y}}\n"
    )
    assert str(error) == "policy.yaml:4: rules[0].wieghts: unknown key (and 2 more)"


def test_every_list_of_choices_is_the_table_itself() -> None:
    types = ", ".join((*QUANT_TYPES, *FLOAT8_TYPES))
    assert f"expected one of {types}, got" in str(fails("defaults: {weights: {dtype: x}}"))
    assert f"expected one of {', '.join(TARGETS)}, got" in str(fails("target: x"))
    assert f"expected one of {', '.join(CALIBRATORS)}, got" in str(fails("defaults: {weights: {calibrator: x}}"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    with pytest.raises(PolicyError, match=re.escape(f"{path}: no such file")) as caught:
        load(path)
    assert "policy init" in caught.value.hint
    with pytest.raises(PolicyError, match=re.escape(f"{tmp_path}: cannot be read: Is a directory")):
        load(tmp_path)
    path.write_bytes(b"version: 1\ntarget: \xff\n")
    with pytest.raises(PolicyError, match=re.escape(f"{path}:2: not UTF-8: byte 0xff")):
        load(path)
    path.write_text("version: 1\ntarget: x")
    with pytest.raises(PolicyError, match=re.escape(f"{path}:2: target: expected")):
        load(path)


def test_a_byte_order_mark_and_windows_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert load(path) == loads(FULL)
    assert str(load(path).rules[3].place) == f"rules[3] ({path}:15)"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("aversion1:{}[]-&*!?|>'\"%@`,# \n\t.<~")), max_size=40))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    try:
        loads(text)
    except PolicyError as error:
        assert str(error).startswith("policy.yaml:")  # noqa: PT017 - either outcome is right


def test_an_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    assert "a0: unknown key" in str(fails("\n".join(lines)))


# --- which rule counts ---


def test_the_first_rule_that_matches_counts_and_the_rest_is_inherited() -> None:
    policy = loads(FULL)
    head = find(policy, "Conv", "/head/Conv_output_0")
    assert (head.reason, head.matched, head.float) == ("rules[1] (policy.yaml:11)", (1,), None)
    assert head.weights == policy.defaults.weights.model_copy(update={"dtype": "int4"})
    assert (head.activations, head.bias) == (policy.defaults.activations, "int32")
    assert find(policy, "Gemm", "/head/Gemm").reason == "defaults"
    assert find(policy, "Conv", "a", "xfc12").matched == (1,)
    assert find(policy, "Conv", "/head/x", position={"first"}).matched == (1, 2)
    assert find(policy, "Conv", position={"first", "last"}).activations.dtype == "uint16"
    assert find(policy, "LayerNormalization").float is True
    assert find(policy, "Conv", subgraph="then_branch/else_branch").float is True
    assert find(policy, "Conv", subgraph="else_branch").float is None


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("/a/*", "/a/b/c", True),
        ("/a", "/a/b", False),
        ("a?", "ab", True),
        ("[ab]c", "bc", True),
        ("layer[0]/Conv", "layer[0]/Conv", True),
        ("conv", "Conv", False),
        ("re:a+", "aaa", True),
        ("re:a+", "aab", False),
        ("re:.*fc[0-9]+$", "/net/fc12", True),
        ("re:x", "re:x", True),
        ("249", "249", True),
        ("[[]a", "[a", True),
        ("re:[[a]b", "ab", True),
        ("*", "", False),
    ],
)
def test_patterns(pattern: str, text: str, expected: bool) -> None:
    policy = Policy(rules=(Rule(match=Match(names=(pattern,))),))
    assert bool(resolve(policy, op_type="Conv", names=(text,)).matched) is expected


def test_the_empty_subgraph_pattern_is_the_main_graph() -> None:
    policy = loads("rules:\n- {match: {subgraph: ''}, bias: float}")
    assert (find(policy).bias, find(policy, subgraph="then_branch").bias) == ("float", None)


def test_float_false_is_not_open() -> None:
    assert find(loads("rules:\n- {match: {op_types: [Conv]}, float: false}")).float is False


NAMES, OPS, SUBGRAPHS = ("a", "b", "ab", "/a/b"), ("Conv", "Gemm", "Add"), ("", "then", "then/else")
schemes = st.builds(
    lambda granularity, **keys: Scheme(scheme=granularity[0], group_size=granularity[1], **keys),
    st.sampled_from(
        [(None, None), ("per-tensor", None), ("per-channel", None), ("per-group", None), ("per-group", 64), (None, 8)]
    ),
    dtype=st.sampled_from([None, "int8", "uint16"]),
    symmetric=st.sampled_from([None, True, False]),
    calibrator=st.sampled_from([None, make_calibrator("minmax"), make_calibrator("percentile", percentile=99.0)]),
    narrow_range=st.sampled_from([None, True, False]),
)
names_or_globs = st.lists(st.sampled_from((*NAMES, "a*", "*b", "?", "[ab]", "zz")), max_size=2).map(tuple)
ops_or_globs = st.lists(st.sampled_from((*OPS, "C*", "*d*", "Relu")), max_size=2).map(tuple)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    keys = {
        "names": draw(names_or_globs),
        "op_types": draw(ops_or_globs),
        "any": draw(st.one_of(st.just(()), names_or_globs, ops_or_globs)),
        "position": draw(st.sampled_from([None, None, "first", "last"])),
        "subgraph": draw(st.sampled_from([None, None, "", "then*"])),
    }
    keys = {key: value for key, value in keys.items() if value not in (None, ())} or {"names": ("*",)}
    match = Match.model_validate(keys)
    if draw(st.booleans()):
        return Rule(match=match, float=True)
    bias: Bias | None = draw(st.sampled_from(["int32", "float", None]))
    return Rule(
        match=match,
        float=draw(st.sampled_from([False, None])),
        weights=draw(schemes),
        activations=draw(schemes),
        bias=bias,
    )


policies = st.builds(
    Policy,
    target=st.sampled_from(list(TARGETS)),
    preprocess=st.sampled_from([None, *PRESETS.values(), Preprocess(mean=(0.1, 2.0, 3e-7)), Preprocess()]),
    defaults=st.builds(Defaults, weights=schemes, activations=schemes, bias=st.sampled_from([None, "int32", "float"])),
    rules=st.lists(rules(), max_size=5).map(tuple),
)


def naive(policy: Policy, op_type: str, names: list[str], subgraph: str, position: set[str]) -> tuple[Any, ...]:
    """The settings and the deciding rule, one slow step at a time."""

    def fits(patterns: Iterable[str], texts: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns for text in texts)

    chosen = None
    for index, rule in enumerate(policy.rules):
        asked = rule.match.model_dump(exclude_defaults=True)
        answers = []
        for key, value in asked.items():
            if key == "names":
                answers.append(fits(value, names))
            if key == "op_types":
                answers.append(fits(value, [op_type]))
            if key == "any":
                answers.append(fits(value, [*names, op_type]))
            if key == "position":
                answers.append(value in position)
            if key == "subgraph":
                answers.append(fits([value], [subgraph]))
        if all(answers):
            chosen = index
            break

    def pick(kind: str, key: str) -> object:
        layers = [policy.defaults] if chosen is None else [policy.rules[chosen], policy.defaults]
        if key == "group_size" and getattr(layers[0], kind).scheme not in {None, "per-group"}:
            return None
        values = [getattr(getattr(layer, kind), key) for layer in layers]
        return next((value for value in values if value is not None), None)

    schemes = [{key: pick(kind, key) for key in Scheme.model_fields} for kind in ("weights", "activations")]
    rule_bias = None if chosen is None else policy.rules[chosen].bias
    keep = None if chosen is None else policy.rules[chosen].float
    return chosen, keep, *schemes, rule_bias if rule_bias is not None else policy.defaults.bias


@settings(max_examples=300, deadline=None)
@given(
    policies,
    st.sampled_from(OPS),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=2),
    st.sampled_from(SUBGRAPHS),
    st.sets(st.sampled_from(["first", "last"])),
)
def test_first_match_wins(policy: Policy, op_type: str, names: list[str], subgraph: str, position: set[Any]) -> None:
    found = resolve(policy, op_type=op_type, names=names, subgraph=subgraph, position=position)
    chosen, keep, weights, activations, bias = naive(policy, op_type, names, subgraph, position)
    assert (found.matched[0] if found.matched else None) == chosen
    assert (found.float, dict(found.weights), dict(found.activations), found.bias) == (keep, weights, activations, bias)
    assert found.reason == ("defaults" if chosen is None else f"rules[{chosen}]")


# --- rules that match nothing ---

KNOWN: dict[str, Any] = {
    "names": ("/head/Conv", "/head/Conv_output_0", "/stem/Conv", "input"),
    "op_types": ("Conv", "Softmax", "Gemm"),
    "subgraphs": ("", "then_branch"),
}


def refused(policy: Policy, matched: set[int], **known: Collection[str]) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        unmatched(policy, matched, **known)
    return caught.value


@pytest.mark.parametrize(
    ("match", "message", "hint"),
    [
        ("names: ['/haed/*']", "names ['/haed/*'] match no operator", "closest: /head/Conv"),
        ("names: ['re:/haed/.+']", "names ['re:/haed/.+'] match no operator", "closest: /head/Conv"),
        ("op_types: [softmax]", "op_types ['softmax'] match no operator", "closest: Softmax"),
        ("any: [Sofmax]", "names or op_types ['Sofmax'] match no operator", "closest: Softmax"),
        ("subgraph: then_brnch", "subgraph 'then_brnch' match no operator", "closest: then_branch"),
        ("position: first", "position 'first' match no operator", "the model has no Conv"),
        (
            "names: [input], op_types: [Gemm]",
            "op_types ['Gemm'] and names ['input'] match no operator",
            "no operator matches all",
        ),
    ],
)
def test_a_rule_that_matches_nothing_is_refused(match: str, message: str, hint: str) -> None:
    policy = loads(f"rules:\n- match: {{names: ['*']}}\n- match: {{{match}}}")
    error = refused(policy, {0}, **KNOWN)
    assert str(error) == f"policy.yaml:3: rules[1]: {message}"
    assert error.hint.startswith(hint) or hint in error.hint
    assert refused(policy, {0}).hint == ("" if "position" not in match else error.hint)
    unmatched(policy, {0, 1}, **KNOWN)


def test_several_idle_rules_are_counted() -> None:
    policy = loads("rules:\n- match: {names: [a]}\n- match: {names: [b]}\n- match: {names: [c]}")
    assert str(refused(policy, {1})) == "policy.yaml:2: rules[0]: names ['a'] match no operator (and 1 more)"


def test_a_rule_behind_another_has_matched_all_the_same() -> None:
    policy = loads("rules:\n- match: {names: [a]}").override(exclude=["*"])
    unmatched(policy, set(find(policy, "Conv", "a").matched))


# --- the command line ---


def test_options_go_over_the_defaults() -> None:
    policy = loads(FULL).override(
        target="tensorrt",
        scheme="per-tensor",
        calibrator="mse",
        weights="int4",
        activations="int8",
        exclude=["Softmax", "/head/*"],
    )
    assert policy.target == "tensorrt"
    assert policy.defaults.weights == Scheme(
        dtype="int4", symmetric=True, scheme="per-tensor", calibrator=make_calibrator("minmax"), narrow_range=True
    )
    assert policy.defaults.activations == Scheme(
        dtype="int8", symmetric=False, scheme="per-tensor", calibrator=make_calibrator("mse")
    )
    assert [rule.match.any for rule in policy.rules[:2]] == [("Softmax",), ("/head/*",)]
    assert policy.rules[2:] == loads(FULL).rules
    assert find(policy, "Softmax").reason == "--exclude Softmax"
    assert find(policy, "Conv", "/head/Conv").reason == "--exclude /head/*"
    assert find(policy, "LayerNorm").reason == "rules[0] (policy.yaml:9)"
    assert str(refused(policy, {0, 2, 3, 4, 5})) == "--exclude /head/*: names or op_types ['/head/*'] match no operator"


def test_no_options_change_nothing() -> None:
    assert loads(FULL).override() == loads(FULL)


def test_the_options_of_weights_alone() -> None:
    weights = Policy().override(scheme="per-group", group_size=64, weight_calibrator="mse:power=3").defaults.weights
    assert weights == Scheme(scheme="per-group", group_size=64, calibrator=make_calibrator("mse", power=3))


def test_another_scheme_drops_the_size_of_groups() -> None:
    grouped = Scheme(scheme="per-group", group_size=64)
    assert Scheme(scheme="per-channel").over(grouped) == Scheme(scheme="per-channel")
    assert Scheme(group_size=16).over(grouped) == Scheme(scheme="per-group", group_size=16)
    assert Scheme(dtype="int4").over(grouped) == Scheme(dtype="int4", scheme="per-group", group_size=64)


def test_a_calibrator_option_with_keys() -> None:
    policy = Policy().override(calibrator="percentile:percentile=99.5")
    assert policy.defaults.activations.calibrator == make_calibrator("percentile", percentile=99.5)
    assert Policy().override(calibrator="mse:steps=50, power=3").defaults.activations.calibrator == make_calibrator(
        "mse", steps=50, power=3
    )


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"target": "ort"}, "--target: expected one of ort-cpu, ", "did you mean 'ort-cpu'?"),
        (
            {"scheme": "per_channel"},
            "--scheme: expected one of per-tensor, per-channel, per-group, got 'per_channel'",
            "'per-channel'",
        ),
        ({"scheme": "per-channel", "group_size": 8}, "--group-size: scheme per-channel has no groups", "per-group"),
        ({"group_size": 1}, "--group-size: expected a number greater than or equal to 2, got 1", ""),
        ({"weight_calibrator": "msee"}, "--weight-calibrator: expected one of minmax, ", "did you mean 'mse'?"),
        ({"weight_calibrator": "mse:3"}, "--weight-calibrator: expected name:key=value", "write 'mse:power=3'"),
        ({"weights": "int5"}, "--weights: expected one of int2, ", "did you mean 'int8'?"),
        ({"activations": ""}, "--activations: expected one of int2, ", ""),
        ({"calibrator": "percentil"}, "--calibrator: expected one of minmax, ", "did you mean 'percentile'?"),
        (
            {"calibrator": "percentile:99.9"},
            "--calibrator: expected name:key=value",
            "write 'percentile:percentile=99.9'",
        ),
        ({"calibrator": "mse:99.9"}, "--calibrator: expected name:key=value", "write 'mse:power=99.9'"),
        ({"calibrator": "percentile:percentile=x"}, "--calibrator: percentile: expected a number ", ""),
        (
            {"calibrator": "percentile:pecentile=3"},
            "--calibrator: pecentile: unknown key",
            "did you mean 'percentile'?",
        ),
        ({"exclude": ["re:["]}, "--exclude: bad regular expression 're:['", "glob"),
        ({"exclude": [""]}, "--exclude: an empty pattern matches nothing", ""),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(message)) as caught:
        Policy().override(**options)
    assert hint in caught.value.hint


# --- writing ---


@settings(max_examples=200, deadline=None)
@given(policies)
def test_what_is_dumped_loads_again(policy: Policy) -> None:
    assert loads(dump(policy)) == policy


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_name_survives_being_dumped(name: str) -> None:
    policy = Policy(rules=(Rule(match=Match(names=("re:" + re.escape(name), "x"), subgraph="x" + name)),))
    assert loads(dump(policy)) == policy


def test_a_dump_is_pleasant_to_read() -> None:
    text = dump(loads(FULL).override(exclude=["Softmax"]))
    assert text.splitlines()[:3] == ["version: 1", "target: ort-cpu", "preprocess: imagenet"]
    assert "  - match: {any: [Softmax]}\n    float: true\n" in text
    assert dump(Policy()) == "version: 1\ntarget: ort-cpu\n"


@pytest.mark.parametrize("target", TARGETS)
def test_the_template_is_a_policy_and_so_are_its_examples(target: str) -> None:
    text = template(target)
    assert loads(text) == Policy(target=target)
    examples = loads(re.sub(r"(?m)^#(?!#)", "", text))
    assert examples.preprocess == PRESETS["imagenet"]
    static = "static" in TARGETS[target].modes
    assert examples.defaults.weights.dtype == (TARGETS[target].weights if static else TARGETS[target].stored)[0]
    assert examples.defaults.activations.dtype == TARGETS[target].activations[0]
    assert len(examples.rules) == 4
    keys = [*Policy.model_fields, *Scheme.model_fields, *Match.model_fields, *Rule.model_fields]
    for word in (*keys, *QUANT_TYPES, *CALIBRATORS, *PRESETS, *TARGETS, *get_args(Granularity), "first", "last"):
        assert word in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_a_template_for_no_target() -> None:
    with pytest.raises(TargetError, match="unknown target 'x'"):
        template("x")


# --- the schema for editors ---

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_is_one_and_explains_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for block in (SCHEMA, *SCHEMA["$defs"].values()):
        for key, value in block["properties"].items():
            target = SCHEMA["$defs"].get(value.get("anyOf", [{}])[0].get("$ref", "").rpartition("/")[2], {})
            assert value.get("description") or target.get("description"), key
    json.dumps(SCHEMA)


def agrees(tree: dict[str, Any]) -> bool:
    """Whether the schema takes the tree; ``loads`` must think the same."""
    try:
        loads(json.dumps(tree, ensure_ascii=False))
    except PolicyError as error:
        assert not VALIDATOR.is_valid(tree), str(error)  # noqa: PT017 - either outcome is right
        return False
    VALIDATOR.validate(tree)
    return True


def plain(text: str) -> dict[str, Any]:
    return dict(YAML(typ="safe", pure=True).load(text))


@pytest.mark.parametrize(
    "text", [FULL, template(), dump(loads(FULL)), "rules:", "version: 1.0", "preprocess: {mean: 1}"]
)
def test_the_schema_takes_good_files(text: str) -> None:
    assert agrees(plain(text))


@pytest.mark.parametrize("text", [text for text, message, _ in BAD if re.match(r"\d+: ", message)])
def test_the_schema_refuses_what_load_refuses(text: str) -> None:
    if (
        any(word in str(fails(text)) for word in ("bad regular expression", "a key, got", "TaggedScalar", "U+"))
        or "&" in text
    ):
        pytest.skip("no JSON can say this")
    assert not VALIDATOR.is_valid(plain(text))


junk = st.sampled_from([None, True, 0, 1, 2.5, "", "x", [], ["x"], [""], {}, {"x": 1}])


def block(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A mapping with some of the keys, now and then with junk."""
    return st.fixed_dictionaries({}, optional={key: st.one_of(*[value] * 6, junk) for key, value in keys.items()})


any_calibrator = st.sampled_from(
    [
        "minmax",
        "mse",
        {"method": "percentile"},
        {"method": "percentile", "percentile": 99},
        {"method": "percentile", "percentile": 101},
        {"method": "percentile", "percentile": "99"},
        {"method": "mse", "steps": 20.0},
        {"method": "mse", "steps": 20.5},
        {"method": "minmax", "steps": 20},
        {"steps": 20},
    ]
)
any_scheme = block(
    dtype=st.sampled_from(list(QUANT_TYPES)),
    symmetric=st.booleans(),
    scheme=st.sampled_from(["per-tensor", "per-channel", "per-group"]),
    group_size=st.sampled_from([1, 32, 64.5]),
    calibrator=any_calibrator,
    narrow_range=st.booleans(),
)
any_patterns = st.lists(st.sampled_from(["a", "*", "249"]), min_size=1)
any_match = block(
    names=any_patterns,
    op_types=any_patterns,
    any=any_patterns,
    position=st.sampled_from(["first", "last"]),
    subgraph=st.sampled_from(["", "a*"]),
)
any_bias = st.sampled_from(["int32", "float"])
any_rule = block(match=any_match, float=st.booleans(), weights=any_scheme, activations=any_scheme, bias=any_bias)
any_preprocess = st.sampled_from(
    [*PRESETS, {}, {"mean": [1, 2]}, {"std": 0}, {"color": "red"}, {"resize": {"size": [1]}}]
)
any_tree = block(
    version=st.just(1),
    target=st.sampled_from(list(TARGETS)),
    preprocess=any_preprocess,
    defaults=block(weights=any_scheme, activations=any_scheme, bias=any_bias),
    rules=st.lists(any_rule, max_size=2),
)


@settings(max_examples=500, deadline=None)
@given(any_tree)
def test_the_schema_takes_exactly_what_load_takes(tree: dict[str, Any]) -> None:
    agrees(tree)


def test_importing_policies_stays_light() -> None:
    code = "import sys, qconvert.policy; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"onnx", "onnx_ir", "onnxruntime", "numba", "typer", "rich"} & set(loaded)
