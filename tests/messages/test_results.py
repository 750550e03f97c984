"""What role logx reads of a result: it refuses what the schema refuses there, and nothing else, whatever the bytes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from pipeline.errors import Rejected
from pipeline.logx.payload import Envelope, Visitor, impressions
from pipeline.messages.contracts import DECIDE_RESULT
from pipeline.messages.results import Tracking, parse_attributes, parse_result
from tests.messages.examples import document, files, value
from tests.messages.faults import FAULTS

MESSAGE = "decide-result"
# Properties that nothing behind the results reads.
UNREAD = ("decisions.", "error: minLength", "detail: minLength", "decisions: maxItems")


def owed(raw: bytes) -> tuple[Envelope, Sequence[Visitor]] | None:
    """What logx does with a record."""
    return impressions(raw, max_events=10_000, max_bytes=3_500_000)


@pytest.mark.parametrize("name", files("valid", MESSAGE))
def test_a_valid_result_is_read_as_it_stands(name: str) -> None:
    shown = document("valid", MESSAGE, name)
    read = parse_result(value("valid", MESSAGE, name))
    assert (read.source, read.timestamp, read.user_id) == (shown["source"], shown["timestamp"], shown["userId"])
    assert read.revision == shown.get("revision")
    assert (read.tracking is UNSET) == ("tracking" not in shown)
    if isinstance(read.tracking, Tracking):
        assert len(read.tracking.impressions) == len(shown["tracking"]["impressions"])
        assert [one.value for one in parse_attributes(read.tracking.attributes)] == [
            one["value"] for one in shown["tracking"]["attributes"]
        ]


@pytest.mark.parametrize("name", files("invalid", MESSAGE))
def test_an_invalid_result_is_refused_where_it_is_read(name: str) -> None:
    raw = value("invalid", MESSAGE, name)
    if FAULTS[MESSAGE][name].startswith(UNREAD):
        owed(raw)
    else:
        with pytest.raises(Rejected) as refused:
            owed(raw)
        assert refused.value.reason == "not_a_result"


FULL: dict[str, Any] = document("valid", MESSAGE, "cmab-and-rollout")
ODD: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers(-5, 2**63 - 1) | st.text(max_size=3) | st.just([]) | st.just({})
)


def places(of: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of everything that is read in a result."""
    if isinstance(of, dict):
        found = [(*path, key) for key in of if not (path == () and key in ("decisions", "sdkKey"))]
    elif isinstance(of, list):
        found = [(*path, at) for at in range(len(of))]
    else:
        return []
    return found + [deeper for one in found for deeper in places(_at(of, one[len(path) :]), one)]


def _at(of: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        of = of[key]
    return of


@given(st.sampled_from(places(FULL)), ODD, st.booleans())
def test_one_changed_or_missing_value_is_refused_as_the_schema_refuses_it(
    path: tuple[str | int, ...], odd: object, missing: bool
) -> None:
    changed = copy.deepcopy(FULL)
    holder = _at(changed, path[:-1])
    if missing and isinstance(holder, dict):
        del holder[path[-1]]
    else:
        holder[path[-1]] = odd
    # Impressions of no revision are more than a schema can say.
    expected = DECIDE_RESULT.is_valid(changed) and not ("tracking" in changed and changed.get("revision") is None)
    try:
        owed(orjson.dumps(changed))
    except Rejected:
        assert not expected
    else:
        assert expected


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "not_json"),
        (b"", "not_json"),
        (b"\xff", "not_json"),
        (b'{"source":"\xff"}', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"decisions":' + b"[" * 100_000, "not_json"),
        (b"null", "not_a_result"),
    ],
)
def test_whatever_the_bytes_are_it_is_only_refused(raw: bytes | None, reason: str) -> None:
    with pytest.raises(Rejected) as refused:
        parse_result(raw)
    assert refused.value.reason == reason


NUMBERS = [2**63, -(2**63) - 1, 2**64, 10**400]


@pytest.mark.parametrize("number", NUMBERS, ids=["2^63", "-2^63-1", "2^64", "10^400"])
def test_a_timestamp_that_no_clock_shows_is_refused(number: int) -> None:
    raw = orjson.dumps(FULL | {"timestamp": "NUMBER"}).replace(b'"NUMBER"', str(number).encode())
    with pytest.raises(Rejected, match=r"^(timestamp: |\$: out of range|the result is not JSON)"):
        owed(raw)


@pytest.mark.parametrize("number", [1, 1.5, *NUMBERS], ids=["1", "1.5", "2^63", "-2^63-1", "2^64", "10^400"])
def test_the_number_of_an_attribute_is_sent_as_it_stands(number: float) -> None:
    changed = copy.deepcopy(FULL)
    changed["tracking"]["attributes"] = [{"entity_id": "1", "key": "a", "value": "NUMBER"}]
    found = owed(orjson.dumps(changed).replace(b'"NUMBER"', str(number).encode()))
    assert found is not None
    assert f'"value":{number},'.encode() in found[1][0][0]
