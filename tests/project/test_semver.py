"""Semantic versions: what is none, and the cases in which SDKs disagree, settled as the Python SDK decides."""

from __future__ import annotations

import pytest

from pipeline.project.semver import order, parse

INVALID = (
    "", "-", ".", "..", "+", "+test", " ", "2 .3. 0", "2.", ".2.2", "3.7.2.2", "3.x", ",", "+build-prerelese", "true",
    "1\u00b2", "9" * 70,
)  # fmt: skip


@pytest.mark.parametrize("text", INVALID)
def test_invalid_versions_compare_to_nothing(text: str) -> None:
    assert parse(text) is None
    assert order(text, "2.0.0") is None
    assert order("2.0.0", text) is None


@pytest.mark.parametrize(
    ("target", "user", "expected"),
    [
        ("2.0.0", "2.0.0", 0),
        ("2", "2.9", 0),
        ("2.1", "2.1.9", 0),
        ("2.1.0", "2.1", -1),  # fewer parts than the target
        ("10.0.0", "9.0.0", -1),  # numbers, not text
        ("2.1.2", "2.1.2-beta", -1),  # a pre-release is before its release
        ("2.1.2-beta", "2.1.2", 1),
        ("2.1.2-beta", "2.1.2-beta", 0),
        ("2.1.2-beta", "2.1.2-rc", 1),
        ("2.1.2-rc", "2.1.2-beta", -1),
        ("2.1+beta", "2.1-rc", -1),  # above as text, but a pre-release is below anything else
        ("2.1-rc", "2.1+build", 1),  # below as text, but a release is above any pre-release
        ("3.7.0", "3.7.0+build", 0),
        ("3.7.0+build", "3.7.0", 1),
        ("3.7.0-2", "3.7.0-10", 1),  # numeric suffixes are numbers
        ("3.7.0-beta", "3.7.0-2", -1),
        ("3.7.1-beta+2.3", "3.7.1-beta+2.3", 0),
        ("2.9.9+beta-1", "2.9.9+beta-1", 0),
    ],
)
def test_order(target: str, user: str, expected: int) -> None:
    assert order(user, target) == expected
