"""Headers as producers' serializers write them: what is plain is read, what is not is said."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.messages.decide import DecideRequest, parse_decide_request, read_expires_at
from pipeline.messages.headers import milliseconds

TIME = 1_760_000_000_000
_BLANKS = st.text(" \t\r\n", max_size=3).map(str.encode)


def request(*values: bytes | None, **body: object) -> DecideRequest:
    found = parse_decide_request(json.dumps({"userId": "u"} | body).encode(), max_bytes=1000)
    read_expires_at(found, [("other", b"x"), *(("expires-at", value) for value in values)])  # type: ignore[list-item]
    return found


@pytest.mark.parametrize(
    "value",
    [
        b"1760000000000", b'"1760000000000"', b" 1760000000000 ", b'\t" 1760000000000 "\r\n', b"001760000000000",
        TIME.to_bytes(8, "big"),
    ],
)  # fmt: skip
def test_a_time_is_read_however_it_was_written(value: bytes) -> None:
    assert milliseconds(value) == TIME
    assert request(value).expires_at == TIME


@pytest.mark.parametrize("value", [None, b"", b"  ", b'""', b'" "', b"null", b"0", b"000", bytes(8)])
def test_an_empty_header_or_zero_sets_nothing(value: bytes | None) -> None:
    found = request(value)
    assert (found.expires_at, found.error, found.detail) == (None, None, None)


@pytest.mark.parametrize(
    "value",
    [
        b"soon", b"-1", b"+1760000000000", b"1760000000000.0", b"1.76e12", b"1,760", b"1760000000000000", b"9" * 5000,
        b'"1760000000000', b'""1760000000000""', b"'1760000000000'", b"true", b"2025-10-09T08:53:20Z",
        "\u0661\u0662".encode(), b"\xff\xfe", bytes(4) + b"\x01", (-5).to_bytes(8, "big", signed=True),
        (10**15).to_bytes(8, "big"), TIME.to_bytes(8, "little"), bytes(9),
    ],
)  # fmt: skip
def test_anything_else_is_the_error_of_its_request_and_its_detail_quotes_nothing(value: bytes) -> None:
    found = request(value)
    assert (found.error, found.detail) == ("error parsing request body", "header expires-at: pattern")
    assert found.expires_at is None


def test_of_several_the_last_counts_that_is_not_empty() -> None:
    assert request(b"5", b"7").expires_at == 7
    assert request(b"5", b"7", None, b"").expires_at == 7
    assert request(b"x", b"7").error == request(b"7", b"x").error == "error parsing request body"


@given(st.integers(1, 10**15 - 1), _BLANKS, _BLANKS, st.booleans())
def test_a_time_survives_its_dress(time: int, before: bytes, after: bytes, quoted: bool) -> None:
    text = before + b"%d" % time + after
    assert milliseconds(b'"' + text + b'"' if quoted else text) == milliseconds(time.to_bytes(8, "big")) == time


@given(st.binary(max_size=30) | st.text('0123456789" \n.-+', max_size=20).map(str.encode))
def test_any_bytes_are_a_time_nothing_or_an_error(value: bytes) -> None:
    found = request(value)
    if found.error is None:
        digits = value.strip(b'" \t\r\n') or b"0"
        long = len(value) == 8 and value[:1] == b"\x00"
        told = int.from_bytes(value, "big") if long else 0 if digits == b"null" else int(digits)
        assert (found.expires_at or 0) == told < 10**15
    else:
        assert found.expires_at is None
