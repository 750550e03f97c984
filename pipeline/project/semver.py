"""Semantic versions as the Python SDK compares them, which is not always as semver.org says.

A comparison goes only as far as the target's precision: target `2` equals user `2.9`. A pre-release or build suffix
is one further part. Invalid versions compare to nothing. Called by the `semver_*` matchers.
"""

from __future__ import annotations

from typing import NamedTuple


class Version(NamedTuple):
    """A version cut into its parts: up to three numbers, then at most one suffix as text."""

    parts: tuple[str, ...]
    prerelease: bool
    build: bool


def order(user: str, target: str) -> int | None:
    """-1, 0 or 1: the user's version is below, at or above the target; None if one of them is no version."""
    user_version, target_version = parse(user), parse(target)
    if user_version is None or target_version is None:
        return None
    return compare(user_version, target_version)


def parse(text: str) -> Version | None:
    """The version, or None if it is not one: empty, with a space, more than three numbers, or a part not a number."""
    dash, plus = text.find("-"), text.find("+")
    prerelease = dash >= 0 and (plus < 0 or dash < plus)
    build = plus >= 0 and not prerelease
    suffix: tuple[str, ...] = ()
    prefix = text
    if prerelease or build:
        prefix, _, rest = text.partition("-" if prerelease else "+")
        suffix = (rest,)
    numbers = prefix.split(".")
    # isdecimal, not isdigit: `2` written as a superscript is a digit that int() refuses. int() also refuses thousands
    # of digits, which no version has.
    if " " in text or len(numbers) > 3 or not all(part.isdecimal() and len(part) < 64 for part in numbers):
        return None
    return Version((*numbers, *suffix), prerelease, build)


def compare(user: Version, target: Version) -> int:
    """-1, 0 or 1, of versions; see `order`."""
    for index, wanted in enumerate(target.parts):
        if index >= len(user.parts):
            return 1 if target.prerelease or target.build else -1
        result = _part_order(user.parts[index], wanted, user, target)
        if result:
            return result
    return -1 if user.prerelease and not target.prerelease else 0


def _part_order(part: str, wanted: str, user: Version, target: Version) -> int:
    if _numeric(part):
        if not _numeric(wanted):
            return -1  # a number comes before text; the SDK raises here
        return (int(part) > int(wanted)) - (int(part) < int(wanted))
    if part < wanted:
        return 1 if target.prerelease and not user.prerelease else -1
    if part > wanted:
        return -1 if user.prerelease and not target.prerelease else 1
    return 0


def _numeric(part: str) -> bool:
    return part.isdecimal() and len(part) < 64
