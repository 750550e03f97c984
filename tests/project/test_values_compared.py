"""What a condition compares with decides whether it can be told at all: unknown is not false, as `not` shows."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.project.conditions import compile_tree, read_conditions


def told(match: str, wanted: Any, value: Any) -> tuple[bool | None, bool | None]:
    """Of a user with this attribute: the condition, and its opposite."""
    leaf = {"name": "a", "type": "custom_attribute", "match": match, "value": wanted}
    one, other = (compile_tree(read_conditions(tree, "", []))({"a": value}, None) for tree in (leaf, ["not", leaf]))
    return one, other


UNKNOWN = (None, None)
NUMBERS = (0, 1, 1.5, -1, 2**53)


@pytest.mark.parametrize("match", ["exact", "gt", "ge", "lt", "le"])
@pytest.mark.parametrize("wanted", [None, [1], {}, 2**53 + 1, -(2**53) - 1, 1e300, float("inf")])
def test_no_number_to_compare_with_is_unknown_to_every_number(match: str, wanted: Any) -> None:
    assert {told(match, wanted, value) for value in NUMBERS} == {UNKNOWN}


@pytest.mark.parametrize("match", ["exact", "gt", "ge", "lt", "le"])
@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 1e300, float("-inf"), float("nan"), True, False, "1", [1]])
def test_no_number_of_the_user_is_unknown(match: str, value: Any) -> None:
    assert {told(match, wanted, value) for wanted in NUMBERS} == {UNKNOWN}


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("exact", [False, True, False]), ("gt", [False, False, True]), ("ge", [False, True, True]),
        ("lt", [True, False, False]), ("le", [True, True, False]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("edge", [2**53, -(2**53), 0, 2.5])
def test_numbers_up_to_the_edge_are_compared(match: str, expected: list[bool], edge: float) -> None:
    for wanted, value, result in ((edge, edge, expected[1]), (0, -3, expected[0]), (0, 3, expected[2])):
        assert told(match, wanted, value) == (result, not result)


@pytest.mark.parametrize("match", ["semver_eq", "semver_gt", "semver_ge", "semver_lt", "semver_le"])
@pytest.mark.parametrize("wanted", [2, None, ["2"], "", "2 ", "x", "1.2.3.4"])
def test_no_version_to_compare_with_is_unknown_to_every_version(match: str, wanted: Any) -> None:
    assert {told(match, wanted, value) for value in ("2", "2.0.0", "x")} == {UNKNOWN}


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("semver_eq", [False, True, False]), ("semver_gt", [False, False, True]), ("semver_ge", [False, True, True]),
        ("semver_lt", [True, False, False]), ("semver_le", [True, True, False]),
    ],
)  # fmt: skip
def test_versions_below_at_and_above(match: str, expected: list[bool]) -> None:
    for value, result in zip(("1.9.9", "2.0.0", "2.0.1"), expected, strict=True):
        assert told(match, "2.0.0", value) == (result, not result)


@pytest.mark.parametrize("wanted", [None, 1, True, ["b"]])
@pytest.mark.parametrize("match", ["substring", "qualified"])
def test_no_text_to_look_for_is_unknown(match: str, wanted: Any) -> None:
    assert told(match, wanted, "abc") == UNKNOWN


@pytest.mark.parametrize(("wanted", "value"), [(True, 1), (1, True), (False, 0), (0, False), ("1", 1), (1, "1")])
def test_values_of_different_types_are_never_the_same(wanted: Any, value: Any) -> None:
    assert told("exact", wanted, value) == UNKNOWN
