"""Bucketing: known buckets, and the compiled table against the rule it stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.project.allocation import BUCKETS, HASHES, bucket, compile_allocation, first_hash


@pytest.mark.parametrize(
    ("bucketing_id", "parent_id", "expected"),
    [
        ("ppid1", "1886780721", 5254),
        ("ppid2", "1886780721", 4299),
        ("ppid2", "1886780722", 2434),
        ("ppid3", "1886780721", 5439),
        ("15580846default-rollout-386456-", "20914452332", 9999),  # hash 4294967228: float32 would give 10000
        ("é", "1", 3677),
        ("matjaz", "16910084756", 2477),
        ("matjaz", "16911963060", 3431),
        ("matjaz-user-1", "9300000235908", 5608),
        ("matjaz-user-2", "9300000235908", 298),
        ("matjaz-user-4", "9300000235908", 5344),
        ("test_user", "9300000235908", 9791),
        ("user1", "16910084756", 4663),
        ("test_user_holdout", "1673112", 4329),
        ("test_user_holdout", "1673113", 5003),
        ("test_user_holdout", "1673114", 7114),
        ("test_user_holdout", "1673115", 1552),
    ],
)
def test_known_buckets(bucketing_id: str, parent_id: str, expected: int) -> None:
    assert bucket((bucketing_id + parent_id).encode()) == expected


@given(st.integers(0, 2**32 - 1))
def test_whole_numbers_give_the_bucket_of_float64(value: int) -> None:
    assert value * 10_000 // 2**32 == int(value / 2**32 * 10_000)


_ENDS = st.one_of(st.integers(-1, 10_001), st.integers(0, 30), st.sampled_from((0, 5000, 9999, 10_000)))


@given(st.text(max_size=12), st.text(max_size=6), st.lists(st.tuples(_ENDS, st.one_of(st.none(), st.integers(0, 9)))))
def test_first_range_above_the_bucket_wins(
    bucketing_id: str, parent_id: str, ranges: list[tuple[int, int | None]]
) -> None:
    value = bucket((bucketing_id + parent_id).encode())
    expected = next((gives for end, gives in ranges if value < end), None)
    assert compile_allocation(parent_id, ranges)(bucketing_id.encode()) == expected


@pytest.mark.parametrize("end", [1, 2, 3, 4999, 5000, 5001, 9999, 10_000, *range(7, 10_000, 613)])
def test_first_hash_of_a_bucket(end: int) -> None:
    """Ranges are compared by hash: the hash before the first one of a bucket lies in the bucket before."""
    first = first_hash(end)
    assert first * BUCKETS // HASHES == end
    assert (first - 1) * BUCKETS // HASHES == end - 1


def test_after_all_traffic_is_given_nothing_is_left() -> None:
    assert compile_allocation("p", [(10_000, "all"), (20_000, "late")])(b"anyone") == "all"
