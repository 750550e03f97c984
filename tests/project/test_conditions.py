"""Condition trees: three-valued logic, what counts as unreadable, depth, and the match types one by one."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DatafileRefused
from pipeline.project.conditions import (
    MAX_DEPTH,
    Audience,
    Leaf,
    compile_tree,
    narrate,
    read_audiences,
    read_conditions,
)
from pipeline.project.matchers import MATCHERS

TRUE: dict[str, Any] = {"name": "t", "type": "custom_attribute", "match": "exists"}
FALSE: dict[str, Any] = {"name": "f", "type": "custom_attribute", "match": "exists"}
UNKNOWN: dict[str, Any] = {"name": "u", "type": "custom_attribute", "match": "exact", "value": 1}
USER = {"t": 1}


def evaluate(
    conditions: object, attributes: dict[str, Any] | None = None, segments: frozenset[str] | None = None
) -> Any:
    tree = read_conditions(conditions, "here", [])
    return compile_tree(tree)(USER if attributes is None else attributes, segments)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["and", TRUE, TRUE], True),
        (["and", TRUE, FALSE], False),
        (["and", TRUE, UNKNOWN], None),
        (["and", UNKNOWN, FALSE], False),  # a False decides, also after what cannot be told
        (["and", FALSE, UNKNOWN], False),
        (["or", FALSE, FALSE], False),
        (["or", UNKNOWN, TRUE], True),
        (["or", FALSE, UNKNOWN], None),
        (["not", TRUE], False),
        (["not", FALSE], True),
        (["not", UNKNOWN], None),
        (["not", FALSE, TRUE], True),  # only the first operand
        (["not", ["and", UNKNOWN, FALSE]], True),
        (["and"], True),
        (["or"], False),
        (["not"], None),
        ([], None),
        ([FALSE, TRUE], True),  # without an operator: or
        ([["and", TRUE], FALSE], True),
        (["xor", FALSE], None),  # no operator: an operand that cannot be read
        (["xor", TRUE], True),
        (TRUE, True),
        (None, None),
        ("text", None),
        (["and", 5], None),
    ],
)
def test_three_valued_logic(conditions: object, expected: bool | None) -> None:
    assert evaluate(conditions) is expected


def leaf(match: str | None, value: object, name: object = "a", kind: object = "custom_attribute") -> dict[str, Any]:
    fields = {"name": name, "type": kind, "value": value}
    return fields if match is None else fields | {"match": match}


@pytest.mark.parametrize(
    ("condition", "user", "expected"),
    [
        (leaf("exact", "x"), "x", True),
        (leaf("exact", "x"), "y", False),
        (leaf(None, "x"), "x", True),  # no match type: exact
        (leaf("exact", "x"), 1, None),
        (leaf("exact", True), True, True),
        (leaf("exact", True), 1, None),  # a boolean is never a number
        (leaf("exact", 1), True, None),
        (leaf("exact", 1), 1.0, True),
        (leaf("exact", 2**53), 2**53, True),
        (leaf("exact", 2**53 + 1), 2**53 + 1, None),
        (leaf("exact", 1), 2**53 + 1, None),
        (leaf("exact", 1), 10**400, None),
        (leaf("exact", 1), float("nan"), None),
        (leaf("exact", None), "x", None),
        (leaf("exact", ["x"]), ["x"], None),
        (leaf("exists", None), 0, True),
        (leaf("exists", None), None, False),
        (leaf("substring", "b"), "abc", True),
        (leaf("substring", ""), "abc", True),
        (leaf("substring", "x"), "abc", False),
        (leaf("substring", "b"), ["b"], None),
        (leaf("substring", 1), "1", None),
        (leaf("gt", 18), 18.5, True),
        (leaf("gt", 18), 18, False),
        (leaf("ge", 18), 18, True),
        (leaf("lt", 18), 17, True),
        (leaf("le", 18), 18, True),
        (leaf("le", 18), 19, False),
        (leaf("gt", 18), "19", None),
        (leaf("gt", 18), True, None),
        (leaf("gt", "18"), 19, None),
        (leaf("gt", True), 19, None),
        (leaf("semver_eq", "2"), "2.1", True),
        (leaf("semver_gt", "2.0.0"), "2.0.1", True),
        (leaf("semver_ge", "2.0.0"), "2.0.0", True),
        (leaf("semver_lt", "2.0.0"), "1.9", True),
        (leaf("semver_le", "2.0.0"), "2.0.1", False),
        (leaf("semver_eq", "2"), "2 ", None),
        (leaf("semver_eq", "2"), 2, None),
        (leaf("semver_eq", 2), "2", None),
        (leaf("semver_eq", "x"), "2", None),
        (leaf("regex", "x"), "x", None),
        (leaf("", "x"), "x", None),
        (leaf("exact", "x", kind="browser"), "x", None),
        (leaf("exact", "x", kind=None), "x", None),
        (leaf("exact", "x", kind="third_party_dimension"), "x", True),
        (leaf("exact", "x", name=None), "x", None),
        (leaf("exists", "x", name=None), "x", False),
        (leaf("exact", "x", name=["a"]), "x", None),
    ],
)
def test_match_types(condition: dict[str, Any], user: object, expected: bool | None) -> None:
    assert evaluate(condition, {"a": user}) is expected


def test_an_absent_attribute_cannot_be_told() -> None:
    for match in ("exact", "substring", "gt", "ge", "lt", "le", "semver_eq", "semver_gt"):
        assert evaluate(leaf(match, "1"), {}) is None
        assert evaluate(leaf(match, 1), {"a": None}) is None


def test_match_type_of_another_kind_is_unreadable() -> None:
    assert evaluate(leaf("exact", "x") | {"match": ["exact"]}, {"a": "x"}) is None


@pytest.mark.parametrize(
    ("segments", "expected"), [(None, False), (frozenset(), False), (frozenset({"s"}), True), (frozenset({"x"}), False)]
)
def test_segments(segments: frozenset[str] | None, expected: bool) -> None:
    """Segments never fetched: not qualified, rather than unknown."""
    assert evaluate(leaf("qualified", "s"), {}, segments) is expected
    assert evaluate(["not", leaf("qualified", "s")], {}, segments) is (not expected)
    assert evaluate(leaf("qualified", 1), {}, segments) is None


def test_segments_asked_for_are_collected() -> None:
    segments: list[str] = []
    read_conditions(
        ["or", leaf("qualified", "b"), ["and", leaf("qualified", "a"), leaf("qualified", "")]], "", segments
    )
    read_conditions(leaf("qualified", 5), "", segments)
    assert segments == ["b", "a"]


def nested(depth: int, innermost: object) -> object:
    for _ in range(depth):
        innermost = ["and", innermost]
    return innermost


def test_depth_is_limited() -> None:
    assert evaluate(nested(MAX_DEPTH, TRUE)) is True
    with pytest.raises(DatafileRefused, match="here: conditions are nested more than 64 levels deep"):
        evaluate(nested(MAX_DEPTH + 1, TRUE))
    with pytest.raises(DatafileRefused, match="nested more than 64"):
        read_audiences(nested(MAX_DEPTH + 1, "1"), {}, "here")


def test_audiences_of_a_rule() -> None:
    yes = Leaf(lambda _attributes, _segments: True)
    audiences = {"1": Audience("1", yes, yes.test)}
    assert read_audiences([], audiences, "") is None
    assert read_audiences(None, audiences, "") is None
    for conditions, expected in (
        ("1", True), (["1"], True), (["2", "1"], True), (["and", "1", "2"], None), (["not", "1"], False), ("2", None),
        (["or", {}], None), ([[]], None),
    ):  # fmt: skip
        tree = read_audiences(conditions, audiences, "")
        assert tree is not None
        assert compile_tree(tree)({}, None) is expected


_TREES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from((TRUE, FALSE, UNKNOWN, "junk")),
    lambda inner: st.tuples(st.sampled_from(("and", "or", "not")), st.lists(inner, max_size=3)).map(
        lambda pair: [pair[0], *pair[1]]
    ),
    max_leaves=12,
)


def reference(item: Any) -> bool | None:
    """The three-valued rules, written down once more and as plainly as they can be."""
    if not isinstance(item, list):
        verdicts: dict[str, bool | None] = {"t": True, "f": False, "u": None}
        return verdicts[str(item["name"])] if isinstance(item, dict) else None
    results = [reference(operand) for operand in item[1:]]
    if item[0] == "not":
        return None if not results or results[0] is None else not results[0]
    decisive: bool = item[0] == "or"
    if decisive in results:
        return decisive
    return None if None in results else not decisive


@given(_TREES)
def test_compiled_tree_is_the_rules(conditions: Any) -> None:
    assert evaluate(conditions) is reference(conditions)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"type": "third"}, 'unable to evaluate condition of type "third"'),
        ({"type": 5}, 'unable to evaluate condition of type ""'),
        ({"match": "regex"}, 'invalid Condition matcher "regex"'),
        ({"match": ["exact"]}, 'invalid Condition matcher ""'),
    ],
)
def test_what_cannot_be_evaluated_is_told(fields: dict[str, Any], told: str) -> None:
    tree = read_conditions({"name": "a", "type": "custom_attribute", "match": "exact", "value": 1} | fields, "", [])
    why: list[str] = []
    assert narrate(tree, {"a": 1}, None, why) is None
    assert why == [told]


@given(_TREES)
def test_remarks_never_decide(conditions: Any) -> None:
    """The walk for remarks ends where the Agent's does; where it can tell, it tells what the compiled tree tells."""
    tree = read_conditions(conditions, "", [])
    told = narrate(tree, USER, None, [])
    if told is not None and "not" not in str(conditions):
        assert told is evaluate(conditions)


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@given(
    st.sampled_from(("exact", "exists", "substring", "gt", "le", "qualified", "semver_eq", "semver_lt", "regex", "")),
    _JSON,
    _JSON,
    _JSON,
)
def test_no_value_raises(match: str, wanted: Any, user: Any, name: Any) -> None:
    for condition in (leaf(match, wanted), leaf(match, wanted, name=name), leaf(match, wanted, kind=name), wanted):
        assert evaluate(condition, {"a": user}, frozenset({"s"})) in (True, False, None)


def test_long_versions_are_compared_and_not_remembered() -> None:
    compiled = MATCHERS["semver_le"]("v", "1.2")
    longest = "1.2.3-" + "x" * 100_000
    assert compiled({"v": longest}, frozenset()) is True
    tracemalloc.start()
    try:
        for number in range(50):
            assert compiled({"v": f"{longest}{number}"}, frozenset()) is True
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000
