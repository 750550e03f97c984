"""Attributes chosen and written once are not chosen again for the next user who has the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

import orjson
import pytest

from pipeline.project.attributes import MOST_REMEMBERED, EventAttributes


class Unread(Mapping[str, object]):
    """Attributes that nobody may look at."""

    def __getitem__(self, key: str) -> NoReturn:
        raise AssertionError(key)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("they are looked at")

    def __len__(self) -> int:
        return 1


def as_json(number: int, *, longer: int = 0) -> bytes:
    return orjson.dumps({"a": number, "pad": "x" * longer})


def test_the_same_ones_are_not_looked_at_again() -> None:
    known = EventAttributes({"a": "1"}, None)
    first = known.written({"a": 5}, as_json(5))
    assert first == b'{"entity_id":"1","key":"a","value":5}'
    assert known.written(Unread(), as_json(5)) == first


def test_long_ones_are() -> None:
    known = EventAttributes({"a": "1"}, None)
    # To the byte: 512 are remembered.
    bare = len(as_json(5))
    known.written({"a": 5}, as_json(5, longer=512 - bare))
    known.written(Unread(), as_json(5, longer=512 - bare))
    known.written({"a": 5}, as_json(5, longer=513 - bare))
    with pytest.raises(AssertionError, match="looked at"):
        known.written(Unread(), as_json(5, longer=513 - bare))


def test_all_are_forgotten_when_there_are_too_many() -> None:
    known = EventAttributes({"a": "1"}, None)
    for number in range(MOST_REMEMBERED):
        known.written({"a": number}, as_json(number))
    known.written(Unread(), as_json(0))
    known.written({"a": -1}, as_json(-1))
    known.written(Unread(), as_json(-1))
    with pytest.raises(AssertionError, match="looked at"):
        known.written(Unread(), as_json(0))
