"""The account closes when every record has the outcome its sender expected, and for nothing less."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from rich.console import Console

from pipeline.sandbox.account import Account
from pipeline.sandbox.figures import Figures, figures
from pipeline.sandbox.summary import summary
from pipeline.sandbox.traffic import Fate, Sent, Stream

LOGX = {"impressions": 3, "conversions": 1, "conflicts": 0, "refused": {}, "events": 5, "repeats": 1, "dispatches": 2}
ODP = {"distinct_events": 1, "refused_events": 0, "events": 1, "graphql_requests": 2, "largest_query": 17}


def result(
    source: str, impressions: int = 0, error: str | None = None, decisions: tuple[tuple[str, str], ...] = ()
) -> bytes:
    document: dict[str, Any] = {
        "source": source,
        "decisions": [{"flagKey": flag, "variationKey": variation} for flag, variation in decisions],
    }
    if impressions:
        document["tracking"] = {"impressions": [{}] * impressions}
    if error:
        document["error"] = error
    return orjson.dumps(document)


def dead(account: Account, source: str, reason: str = "not_json", value: bytes = b"", **changes: str) -> None:
    topic, partition, offset = source.rsplit("-", 2)
    headers = {
        "pipeline-source": source, "pipeline-reason": reason, "pipeline-source-topic": topic,
        "pipeline-source-partition": partition, "pipeline-source-offset": offset,
    } | {name.replace("_", "-"): text for name, text in changes.items()}  # fmt: skip
    account.book_dead_letter(b"", value, [(name, text.encode()) for name, text in headers.items()])


def sent(stream: Stream, fate: Fate, kind: str = "kind", value: bytes = b"", reason: str = "") -> Sent:
    return Sent(stream, None, value, fate, kind, reason)


def closed() -> Account:
    account = Account()
    wanting = orjson.dumps({"sdkKey": "key", "userId": "ada", "fetchSegments": True})
    for source, record in (
        ("requests-0-0", sent("decide_requests", Fate.DECIDED, value=wanting)),
        ("requests-0-1", sent("decide_requests", Fate.ERROR)),
        ("requests-0-2", sent("decide_requests", Fate.EXPIRED)),
        ("requests-1-0", sent("decide_requests", Fate.DEAD_LETTER, reason="not_json")),
        ("track-0-0", sent("track_events", Fate.DELIVERED)),
        ("track-0-1", sent("track_events", Fate.DEAD_LETTER, reason="unknown_event_key")),
        ("odp-0-0", sent("odp_events", Fate.DELIVERED)),
    ):
        account.book_sent(source, record)
    account.book_result(result("requests-0-0", impressions=3, decisions=(("flag", "on"), ("flag", ""))))
    account.book_result(result("requests-0-1", error="no"))
    account.book_result(result("requests-0-2", error="request expired"))
    dead(account, "requests-1-0")
    dead(account, "track-0-1", "unknown_event_key")
    account.book_services(LOGX, ODP)
    return account


def of(account: Account, faults: list[str] | None = None) -> Figures:
    return figures(account, faults=account.open() if faults is None else faults, seconds=1.5)


def printed(document: Figures) -> str:
    console = Console(file=io.StringIO(), width=140, highlight=False)
    console.print(summary(document))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_closes() -> None:
    account = closed()
    assert account.open() == []
    assert account.answered == 4
    written = of(account)
    assert written["closed"] is True
    assert written["requests"] == {"result": 1, "result with error": 1, "expired": 1, "dead letter": 1}
    assert (written["impressions_due"], written["distinct_sources"]) == (3, 4)
    assert written["decisions"] == {"flag": {"on": 1, "": 1}}
    assert written["dead_letters"] == {"not_json": 1, "unknown_event_key": 1}
    text = printed(written)
    assert (
        "4 sent = 4 distinct sources: 1 decided + 1 answered with an error + 1 expired + 1 dead letters" in text
    )  # fmt: skip
    assert "3 due = 3 distinct at logx (1 repeats on the wire)" in text
    assert "2 sent = 1 at logx + 1 dead letters" in text
    assert "The account closes" in text


def test_a_repeated_dead_letter_counts_once_and_a_second_result_is_a_fault() -> None:
    account = closed()
    dead(account, "track-0-1", "another")
    assert account.open() == []
    account.book_result(result("requests-0-0", impressions=7, decisions=(("flag", "off"),)))
    (fault,) = account.open()
    assert "with a second result" in fault
    assert "requests-0-0" in fault
    written = of(account)
    assert (written["second_results"], written["second_dead_letters"]) == (1, 1)
    assert written["decisions"] == {"flag": {"on": 1, "": 1}}
    assert written["impressions_due"] == 3


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (lambda a: a.book_sent("requests-2-0", sent("decide_requests", Fate.DECIDED, "late")), "without an outcome"),
        (lambda a: a.book_result(result("requests-9-9")), "that nobody sent: requests-9-9"),
        (lambda a: dead(a, "odp-9-9"), "that nobody sent: odp-9-9"),
        (lambda a: dead(a, "requests-0-0"), "with a result and a dead letter: requests-0-0"),
        (lambda a: dead(a, "track-0-0"), "dead letter instead of delivered"),
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
    account = closed()
    happens(account)
    assert any(said in sentence for sentence in account.open()), account.open()
    written = of(account)
    assert written["closed"] is False
    assert "The account does not close" in printed(written)
    assert said in printed(written)


@pytest.mark.parametrize(
    ("letter", "said"),
    [
        ({"reason": "empty"}, "another reason: requests-1-0 (empty instead of not_json)"),
        ({"reason": ""}, "another reason: requests-1-0 (none instead of not_json)"),
        ({"value": b"changed"}, "other bytes: requests-1-0"),
        ({"pipeline_source_offset": "1"}, "does not say where they lay: requests-1-0"),
        ({"pipeline_source_topic": "results"}, "does not say where they lay: requests-1-0"),
        ({"pipeline_source_partition": ""}, "does not say where they lay: requests-1-0"),
    ],
)
def test_a_dead_letter_says_where_its_record_lay_and_why_and_holds_its_bytes(letter: dict[str, Any], said: str) -> None:
    account = Account()
    account.book_sent("requests-1-0", sent("decide_requests", Fate.DEAD_LETTER, reason="not_json"))
    dead(account, "requests-1-0", **letter)
    assert [sentence for sentence in account.open() if said in sentence], account.open()


@pytest.mark.parametrize(
    ("expected", "error", "said"),
    [
        (Fate.DECIDED, "no", "result with error instead of result"),
        (Fate.ERROR, "request expired", "expired instead of result with error"),
        (Fate.EXPIRED, "no", "result with error instead of expired"),
        (Fate.EXPIRED, None, "result instead of expired"),
    ],
)
def test_one_outcome_is_not_taken_for_another(expected: Fate, error: str | None, said: str) -> None:
    account = Account()
    account.book_sent("requests-0-0", sent("decide_requests", expected))
    account.book_result(result("requests-0-0", error=error))
    assert said in account.open()[0]


def test_cold_users_are_those_that_need_segments_each_environment_its_own() -> None:
    account = Account()
    bodies: list[tuple[dict[str, Any], Fate, str]] = [
        ({"sdkKey": "a", "userId": "ada", "fetchSegments": True}, Fate.DECIDED, "ordinary"),
        ({"sdkKey": "a", "userId": "ada", "fetchSegments": True}, Fate.DECIDED, "ordinary"),
        ({"sdkKey": "b", "userId": "ada", "fetchSegments": True}, Fate.DECIDED, "ordinary"),
        ({"sdkKey": "a", "userId": "guest", "fetchSegments": True}, Fate.ERROR, "unknown to ODP"),
        ({"sdkKey": "a", "userId": "bob", "fetchSegments": False}, Fate.DECIDED, "ordinary"),
        ({"sdkKey": "?", "userId": "eve", "fetchSegments": True}, Fate.ERROR, "unknown SDK key"),
        ({"sdkKey": "a", "userId": "eve", "fetchSegments": True}, Fate.EXPIRED, "expired"),
    ]
    for offset, (body, fate, kind) in enumerate(bodies):
        account.book_sent(f"requests-0-{offset}", sent("decide_requests", fate, kind, orjson.dumps(body)))
    account.book_services(LOGX, ODP)
    account.book_worker(5.0)
    account.book_worker(2.0)
    assert of(account, [])["segments"] == {
        "requests": 4, "cold_users": 3, "graphql_requests": 2, "users_per_request": 1.5, "largest_request": 17,
        "cache_hits": 7,
    }  # fmt: skip


def test_nothing_is_printed_that_the_document_does_not_hold() -> None:
    account = closed()
    account.kills = 1
    account.book_services(LOGX | {"largest_batch": 6_842, "largest_bytes": 3_499_916}, ODP | {"event_requests": 23})
    written = of(account)
    assert_printed_is_written(printed(written), written)


def assert_printed_is_written(text: str, written: Figures) -> None:
    """Every number in the text, shares and the -9 of a kill apart, is a value of the document, or a sum of one part."""
    for error in written["errors"]:
        assert error in text
        text = text.replace(error, "")
    text = re.sub(r"\d+%|with -9", "", text)
    said = {float(number.replace(",", "")) for number in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])", text)}
    assert len(said) > 5
    assert said - _numbers(written) == set()


def _numbers(document: object) -> set[float]:
    if isinstance(document, dict):
        inner = set().union(*map(_numbers, document.values()))
        values = [value for value in document.values() if isinstance(value, int)]
        return inner | {float(sum(values))} if values else inner
    return {float(document)} if isinstance(document, int | float) else set()


def test_an_answer_without_a_decision_is_a_fault_unless_disabled_flags_were_to_be_left_out() -> None:
    account = Account()
    for number, value in enumerate((b'{"decideOptions":["ENABLED_FLAGS_ONLY"]}', b"{}")):
        account.book_sent(f"requests-0-{number}", Sent("decide_requests", b"u", value, Fate.DECIDED, "plain"))
        account.book_result(result(f"requests-0-{number}"))
    (fault,) = account.open()
    assert fault == "1 records answered without a decision: requests-0-1"
