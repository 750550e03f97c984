"""Bucketing: which part of the traffic a user falls into, compiled to one hash and one bisection.

MurmurHash3 x86 32 bit, seed 1, over the UTF-8 bytes of bucketing id + parent id (experiment, rule, holdout or
group); the bucket is floor(hash / 2^32 * 10000) in float64. Called while a datafile is compiled; what it returns is
called for every decision.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeVar

from mmh3 import mmh3_32_uintdigest

BUCKETS = 10_000
HASHES = 2**32
_SEED = 1

T = TypeVar("T")
Pick = Callable[[bytes], T | None]
"""From a bucketing id in UTF-8 to what the user gets, None if nothing. Bytes, because mmh3 dies of a lone surrogate."""


def bucket(key: bytes) -> int:
    """0 to 9999, for bucketing id + parent id. Whole numbers give what float64 gives: hash * 10000 is below 2^46."""
    return mmh3_32_uintdigest(key, _SEED) * BUCKETS // HASHES


def first_hash(end: int) -> int:
    """The smallest hash whose bucket is not below `end`, so that a bucket need not be computed to be compared."""
    return -(-end * HASHES // BUCKETS)


def compile_allocation(parent_id: str, ranges: Sequence[tuple[int, T | None]]) -> Pick[T]:
    """From ranges (end of range, what it gives) in the datafile's order: the first with bucket < end wins."""
    ends: list[int] = []
    given: list[T | None] = []
    for end, gives in ranges:
        # A range that ends before an earlier one is never reached.
        if end > 0 and (not ends or first_hash(end) > ends[-1]):
            ends.append(first_hash(end))
            given.append(gives)
    if not ends:
        return nobody
    if ends[0] >= HASHES:
        certain = given[0]
        return lambda _bucketing: certain
    suffix = parent_id.encode()
    table = (*given, None)

    def pick(bucketing: bytes) -> T | None:
        return table[bisect_right(ends, mmh3_32_uintdigest(bucketing + suffix, _SEED))]

    return pick


def nobody(_bucketing: bytes) -> None:
    return None
