"""The match types of a condition's leaf, each compiled to a test of a user.

A test takes the user's attributes and segments and returns True, False, or None when it cannot be told: the
attribute is absent or null, of another type, or a number that JSON cannot carry exactly. No value makes one raise.
Rules and limits are those of the Python SDK. Called by `conditions`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from pipeline.project import semver

Attributes = Mapping[Any, Any]
Segments = frozenset[str] | None
Name = str | None
Test = Callable[[Attributes, Segments], bool | None]

LARGEST_EXACT = 2**53
"""Numbers beyond this are not compared and not sent in events: a float64 holds them only roughly."""
SMALLEST_EXACT = -LARGEST_EXACT

_VERSIONS_REMEMBERED = 128
_LONGEST_REMEMBERED = 128


def unknown(_attributes: Attributes, _segments: Segments) -> bool | None:
    """The test that can never be told."""
    return None


def is_exact_number(value: object) -> bool:
    """Whether `value` is a number within 2^53; true and false are not numbers, NaN and infinity neither."""
    kind = type(value)
    return (kind is int or kind is float) and SMALLEST_EXACT <= value <= LARGEST_EXACT  # type: ignore[operator]


def _exact(name: Name, wanted: Any) -> Test:
    if type(wanted) is str or type(wanted) is bool:
        kind = type(wanted)

        def test_same(attributes: Attributes, _segments: Segments) -> bool | None:
            value = attributes.get(name)
            return value == wanted if type(value) is kind else None

        return test_same
    if not is_exact_number(wanted):
        return unknown

    def test_number(attributes: Attributes, _segments: Segments) -> bool | None:
        value = attributes.get(name)
        return value == wanted if is_exact_number(value) else None

    return test_number


def _exists(name: Name, _wanted: Any) -> Test:
    return lambda attributes, _segments: attributes.get(name) is not None


def _substring(name: Name, wanted: Any) -> Test:
    if type(wanted) is not str:
        return unknown

    def test(attributes: Attributes, _segments: Segments) -> bool | None:
        value = attributes.get(name)
        return wanted in value if type(value) is str else None

    return test


def _qualified(_name: Name, wanted: Any) -> Test:
    if type(wanted) is not str:
        return unknown
    # Segments never fetched count as not qualified, not as unknown: under `not` that is a difference.
    return lambda _attributes, segments: segments is not None and wanted in segments


def _number(compare: Callable[[Any, Any], Any]) -> Callable[[Name, Any], Test]:
    def matcher(name: Name, wanted: Any) -> Test:
        if not is_exact_number(wanted):
            return unknown

        def test(attributes: Attributes, _segments: Segments) -> bool | None:
            value: Any = attributes.get(name)
            kind = type(value)  # is_exact_number, without the call
            if (kind is int or kind is float) and SMALLEST_EXACT <= value <= LARGEST_EXACT:
                return compare(value, wanted)  # type: ignore[no-any-return]
            return None

        return test

    return matcher


def _version(*accepted: int) -> Callable[[Name, Any], Test]:
    def matcher(name: Name, wanted: Any) -> Test:
        if type(wanted) is not str or semver.parse(wanted) is None:
            return unknown

        def compared(version: str) -> bool | None:
            order = semver.order(version, wanted)
            return None if order is None else order in accepted

        # Users have few versions among them, and comparing one costs more than a whole audience.
        verdict = lru_cache(maxsize=_VERSIONS_REMEMBERED)(compared)

        def test(attributes: Attributes, _segments: Segments) -> bool | None:
            value = attributes.get(name)
            if type(value) is not str:
                return None
            return verdict(value) if len(value) <= _LONGEST_REMEMBERED else compared(value)

        return test

    return matcher


MATCHERS: Mapping[str, Callable[[Name, Any], Test]] = MappingProxyType(
    {
        "exact": _exact,
        "exists": _exists,
        "substring": _substring,
        "qualified": _qualified,
        "gt": _number(operator.gt),
        "ge": _number(operator.ge),
        "lt": _number(operator.lt),
        "le": _number(operator.le),
        "semver_eq": _version(0),
        "semver_gt": _version(1),
        "semver_ge": _version(0, 1),
        "semver_lt": _version(-1),
        "semver_le": _version(-1, 0),
    }
)
