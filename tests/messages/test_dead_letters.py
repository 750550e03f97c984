"""Dead letters: the headers that let a person find the fault, and a replay keep the record's identity."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Rejected
from pipeline.messages.contracts import DEAD_LETTER
from pipeline.messages.dead_letters import ADDED_HEADERS, MAX_DETAIL_BYTES, POINTER_HEADER, REASONS, dead_letter_headers
from pipeline.messages.delivery import Headers, identity_fault, identity_of, source_of
from tests.settled import Record

WHY = Rejected("user_id_missing", 'missing "userId" in request payload')


def record(*headers: Any, offset: int = 1207, timestamp: int = 1767225600123) -> Record:
    return Record(topic="decide.requests", partition=3, offset=offset, timestamp=timestamp, headers=headers)


def as_text(headers: Headers) -> dict[str, str]:
    return {name: value.decode("utf-8") for name, value in headers}


def test_a_dead_letter_says_where_it_came_from_and_why() -> None:
    headers = dead_letter_headers(record(), WHY, role="decide")
    assert as_text(headers) == {
        "pipeline-source-topic": "decide.requests",
        "pipeline-source-partition": "3",
        "pipeline-source-offset": "1207",
        "pipeline-source": "decide.requests-3-1207",
        "pipeline-timestamp": "1767225600123",
        "pipeline-role": "decide",
        "pipeline-reason": "user_id_missing",
        "pipeline-detail": 'missing "userId" in request payload',
    }
    assert DEAD_LETTER.is_valid(as_text(headers))


def test_the_contract_describes_exactly_the_added_headers() -> None:
    assert set(DEAD_LETTER.schema["properties"]) == ADDED_HEADERS
    assert set(DEAD_LETTER.schema["required"]) == ADDED_HEADERS - {POINTER_HEADER}


def test_the_contract_names_every_reason_there_is() -> None:
    raised = {
        reason
        for path in (Path(__file__).parents[2] / "pipeline").rglob("*.py")
        for reason in re.findall(r"\bRejected\(\s*\"(\w+)\"", path.read_text("utf-8"))
    }
    sentences = DEAD_LETTER.schema["properties"]["pipeline-reason"]["description"].split(": ")[1:]
    named = {name for sentence in sentences for name in re.findall(r"\b[a-z_]+\b", sentence.partition(".")[0])}
    assert named == raised == set(REASONS)


def test_the_records_own_headers_come_first_and_stay_as_they_are() -> None:
    own: tuple[Any, ...] = (
        ("traceparent", b"00-a-b-01"),
        ("tag", b"1"),
        ("tag", b"\xff"),
        ("none", None),
        ("pipeline-other", b"x"),
    )
    headers = dead_letter_headers(record(*own), WHY, role="decide")
    assert tuple(headers[:5]) == own
    assert len(headers) == 5 + len(ADDED_HEADERS) - 1


def test_a_second_failure_keeps_the_identity_and_nothing_else_of_the_first() -> None:
    first = [*dead_letter_headers(record(("tag", b"1")), WHY, role="decide"), (POINTER_HEADER, b"too_large_to_copy")]
    replayed = record(*first, offset=90_311, timestamp=1767229999999)
    second = dead_letter_headers(replayed, Rejected("too_large", "more"), role="logx")
    assert as_text(second) == {
        "tag": "1",
        "pipeline-source-topic": "decide.requests",
        "pipeline-source-partition": "3",
        "pipeline-source-offset": "90311",
        "pipeline-source": "decide.requests-3-1207",
        "pipeline-timestamp": "1767225600123",
        "pipeline-role": "logx",
        "pipeline-reason": "too_large",
        "pipeline-detail": "more",
    }
    assert len(second) == 9
    assert identity_of(replayed) == ("decide.requests-3-1207", 1767225600123)


def test_a_record_without_a_timestamp_keeps_that_too() -> None:
    headers = dead_letter_headers(record(timestamp=-1), WHY, role="decide")
    assert DEAD_LETTER.is_valid(as_text(headers))
    assert identity_of(record(*headers, offset=5)) == ("decide.requests-3-1207", -1)


@pytest.mark.parametrize(
    ("detail", "kept"),
    [
        ("", ""),
        ("x" * 1024, "x" * 1024),
        ("x" * 1025, "x" * 1024),
        ("ž" * 600, "ž" * 512),
        # Cut between characters, not inside one.
        ("x" + "ž" * 600, "x" + "ž" * 511),
        ("xx" + "😀" * 600, "xx" + "😀" * 255),
        # What UTF-8 cannot hold.
        ("a\ud83db", "a?b"),
    ],
)
def test_a_detail_is_cut_between_characters(detail: str, kept: str) -> None:
    headers = dict(dead_letter_headers(record(), Rejected("not_json", detail), role="decide"))
    assert headers["pipeline-detail"].decode("utf-8") == kept
    assert len(headers["pipeline-detail"]) <= MAX_DETAIL_BYTES == 1024


def test_the_identity_is_the_place_of_the_record() -> None:
    assert identity_of(record()) == (source_of(record()), 1767225600123) == ("decide.requests-3-1207", 1767225600123)
    assert identity_of(record(("traceparent", b"x"))) == ("decide.requests-3-1207", 1767225600123)


def test_the_last_of_equal_headers_counts() -> None:
    twice = record(
        ("pipeline-source", b"a-0-1"), ("pipeline-timestamp", b"5"), ("pipeline-source", b"a-0-2"), ("x", None)
    )
    assert identity_of(twice) == ("a-0-2", 5)


@pytest.mark.parametrize("source", [b"a-0-1", b'"a-0-1"', b" a-0-1\r\n"])
@pytest.mark.parametrize(
    ("timestamp", "read"),
    [(b"5", 5), (b'"5"', 5), (b" 5\n", 5), (b'"-1"', -1), (bytes(7) + b"\x05", 5), (b"\xff" * 8, -1)],
)
def test_an_identity_that_a_serializer_dressed_is_the_same(source: bytes, timestamp: bytes, read: int) -> None:
    headers = (("pipeline-source", source), ("pipeline-timestamp", timestamp))
    assert identity_of(record(*headers)) == ("a-0-1", read)
    assert identity_fault(headers) == ""


@pytest.mark.parametrize(
    ("source", "timestamp"),
    [
        (b"a-0-1", None),
        (None, b"5"),
        (b"", b"5"),
        (b"a-0-1", b""),
        (b"a-0", b"5"),
        (b"a-0-x", b"5"),
        (b"\xff-0-1", b"5"),
        (b"t" * 250 + b"-0-1", b"5"),
        (b"a-0-1", b"-2"),
        (b"a-0-1", b"5.0"),
        (b"a-0-1", b"9" * 5000),
    ],
)
def test_half_an_identity_or_a_malformed_one_is_none(source: bytes | None, timestamp: bytes | None) -> None:
    headers: Any = (("pipeline-source", source), ("pipeline-timestamp", timestamp))
    assert identity_of(record(*headers)) == ("decide.requests-3-1207", 1767225600123)
    assert re.fullmatch(r"header pipeline-(source|timestamp): (pattern|required)", identity_fault(headers))
    assert DEAD_LETTER.is_valid(as_text(dead_letter_headers(record(*headers), WHY, role="decide")))
