"""The account closes when every record has the outcome its sender expected, and for nothing less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from pipeline.sandbox.account import Account
from pipeline.sandbox.traffic import Fate, Sent

LOGX = {"impressions": 3, "conversions": 1, "conflicts": 0, "refused": {}, "events": 5, "repeats": 1}
ODP = {"distinct_events": 1, "refused_events": 0, "events": 1}


def _result(source: str, impressions: int = 0, error: str | None = None) -> bytes:
    result: dict[str, Any] = {"source": source, "decisions": []}
    if impressions:
        result["tracking"] = {"impressions": [{}] * impressions}
    if error:
        result["error"] = error
    return orjson.dumps(result)


def _dead(account: Account, source: str, reason: str = "not_json") -> None:
    account.book_dead_letter([("pipeline-source", source.encode()), ("pipeline-reason", reason.encode())])


def _closed() -> Account:
    account = Account()
    for source, stream, fate in (
        ("requests-0-0", "decide_requests", Fate.DECIDED),
        ("requests-0-1", "decide_requests", Fate.ERROR),
        ("requests-1-0", "decide_requests", Fate.DEAD_LETTER),
        ("track-0-0", "track_events", Fate.DELIVERED),
        ("track-0-1", "track_events", Fate.DEAD_LETTER),
        ("odp-0-0", "odp_events", Fate.DELIVERED),
    ):
        account.book_sent(source, Sent(stream, None, b"", fate, "kind"))  # type: ignore[arg-type]
    account.book_result(_result("requests-0-0", impressions=3))
    account.book_result(_result("requests-0-1", error="no"))
    _dead(account, "requests-1-0")
    _dead(account, "track-0-1", "unknown_event_key")
    account.book_services(LOGX, ODP)
    return account


def test_it_closes() -> None:
    account = _closed()
    assert account.open() == []
    assert account.answered == 3
    assert account.impressions_due == 3
    lines = dict(account.lines())
    assert lines["decide requests"] == "3 sent = 1 decided + 1 answered with an error + 1 dead letters"
    assert lines["impressions"] == "3 due = 3 at logx, each once (1 repeats on the wire)"
    assert lines["conversions"] == "2 sent = 1 at logx + 1 dead letters"
    assert account.document()["closed"] is True


def test_a_repeated_result_counts_once() -> None:
    account = _closed()
    account.book_result(_result("requests-0-0", impressions=7))
    assert account.open() == []
    assert account.document()["second_results"] == 1


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (lambda a: a.book_sent("requests-2-0", Sent("decide_requests", None, b"", Fate.DECIDED, "late")), "without an"),
        (lambda a: a.book_result(_result("requests-9-9")), "that nobody sent: requests-9-9"),
        (lambda a: _dead(a, "odp-9-9"), "that nobody sent: odp-9-9"),
        (lambda a: _dead(a, "requests-0-0"), "with a result and a dead letter: requests-0-0"),
        (lambda a: _dead(a, "track-0-0"), "dead letter instead of delivered"),
        (lambda a: a.book_services(LOGX | {"impressions": 2}, ODP), "impressions at logx: 2, should be 3"),
        (lambda a: a.book_services(LOGX | {"impressions": 4}, ODP), "impressions at logx: 4, should be 3"),
        (lambda a: a.book_services(LOGX | {"conversions": 0}, ODP), "conversions at logx: 0, should be 1"),
        (lambda a: a.book_services(LOGX | {"conflicts": 1}, ODP), "contradict"),
        (lambda a: a.book_services(LOGX | {"refused": {"400": 1}}, ODP), "refused by logx: 1"),
        (lambda a: a.book_services(LOGX, ODP | {"distinct_events": 2}), "events at ODP: 2, should be 1"),
        (lambda a: a.book_services(LOGX, ODP | {"refused_events": 2}), "refused by ODP: 2"),
        (lambda a: a.book_services({}, {}), "impressions at logx: 0"),
    ],
)
def test_it_stays_open(happens: Callable[[Account], None], said: str) -> None:
    account = _closed()
    happens(account)
    assert any(said in sentence for sentence in account.open()), account.open()
    assert account.document()["closed"] is False


def test_an_error_is_not_taken_for_a_decision() -> None:
    account = Account()
    account.book_sent("requests-0-0", Sent("decide_requests", None, b"", Fate.DECIDED, "ordinary"))
    account.book_result(_result("requests-0-0", error="request expired"))
    assert "result with error instead of result" in account.open()[0]
