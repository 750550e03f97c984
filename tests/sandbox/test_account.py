"""The account closes when every record has the outcome its sender expected, and for nothing less."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from rich.console import Console

from pipeline.messages.dead_letters import OFFSET_HEADER, PARTITION_HEADER, TOPIC_HEADER
from pipeline.messages.delivery import SOURCE_HEADER
from pipeline.sandbox.account import Account
from pipeline.sandbox.figures import Figures, figures
from pipeline.sandbox.project_data import STAGING
from pipeline.sandbox.summary import summary
from pipeline.sandbox.traffic import Fate, Sent, Stream

LOGX = {"impressions": 3, "conversions": 1, "conflicts": 0, "refused": {}, "events": 5, "repeats": 1, "dispatches": 2}
ODP = {"distinct_events": 1, "refused_events": 0, "events": 1, "graphql_requests": 2, "largest_query": 17}


DECIDED: tuple[tuple[str, str], ...] = (("search_ranking", "control"),)


def asking(**changes: Any) -> bytes:
    return orjson.dumps({
        "requestId": "r", "sdkKey": STAGING, "userId": "ada", "userAttributes": {}, "fetchSegments": False,
        "keys": ["search_ranking"],
    } | changes)  # fmt: skip


def book_result(
    account: Account,
    source: str,
    error: str | None = None,
    decisions: tuple[tuple[str, str], ...] = DECIDED,
    user: str = "ada",
) -> None:
    """Each decision is of an experiment, and so has an impression."""
    document: dict[str, Any] = {"requestId": "r", "source": source, "timestamp": 1, "sdkKey": STAGING, "userId": user}
    if error:
        document |= {"error": error, "decisions": []}
    else:
        common = {"enabled": True, "ruleKey": "rule", "ruleType": "feature-test", "experimentId": "1"}
        told = [common | {"flagKey": flag, "variationKey": variation} for flag, variation in decisions]
        more: dict[str, Any] = {
            "variationId": "", "reasons": [], "isEveryoneElseVariation": False, "decisionEventDispatched": True,
            "userContext": {"userId": user, "attributes": {}},
        }  # fmt: skip
        bots = {"entity_id": "$opt_bot_filtering", "key": "$opt_bot_filtering", "value": False}
        document |= {"revision": "1", "decisions": [each | more for each in told]}
        document["tracking"] = {
            "accountId": "1", "projectId": "1", "region": "US", "anonymizeIp": True, "attributes": [bots],
            "impressions": [each | {"campaignId": "1", "variationId": "1"} for each in told],
        }  # fmt: skip
    headers = [("source", source.encode())]
    account.book_result(user.encode(), orjson.dumps(document), headers, partition=int(source.rsplit("-", 2)[1]))


def dead(account: Account, source: str, reason: str = "not_json", value: bytes = b"", **changes: str) -> None:
    topic, partition, offset = source.rsplit("-", 2)
    headers = {
        "pipeline-source": source, "pipeline-reason": reason, "pipeline-source-topic": topic,
        "pipeline-source-partition": partition, "pipeline-source-offset": offset,
    } | {name.replace("_", "-"): text for name, text in changes.items()}  # fmt: skip
    account.book_dead_letter(b"", value, [(name, text.encode()) for name, text in headers.items()])


def sent(stream: Stream, fate: Fate, kind: str = "kind", value: bytes = b"", reason: str = "", error: str = "") -> Sent:
    return Sent(stream, None, value, fate, kind, reason, error)


def closed() -> Account:
    account = Account()
    wanting = asking(fetchSegments=True, keys=["search_ranking", "recommendations", "review_sorting"])
    for source, record in (
        ("requests-0-0", sent("decide_requests", Fate.DECIDED, value=wanting)),
        ("requests-0-1", sent("decide_requests", Fate.ERROR, value=asking(), error="no")),
        ("requests-0-2", sent("decide_requests", Fate.EXPIRED, value=asking(), error="request expired")),
        ("requests-1-0", sent("decide_requests", Fate.DEAD_LETTER, reason="not_json")),
        ("track-0-0", sent("track_events", Fate.DELIVERED)),
        ("track-0-1", sent("track_events", Fate.DEAD_LETTER, reason="unknown_event_key")),
        ("odp-0-0", sent("odp_events", Fate.DELIVERED)),
    ):
        account.book_sent(source, record)
    book_result(account, "requests-0-0", decisions=(*DECIDED, ("recommendations", "on"), ("review_sorting", "")))
    book_result(account, "requests-0-1", error="no")
    book_result(account, "requests-0-2", error="request expired")
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
    decisions = {"search_ranking": {"control": 1}, "recommendations": {"on": 1}, "review_sorting": {"": 1}}
    assert written["decisions"] == decisions
    assert written["dead_letters"] == {"not_json": 1, "unknown_event_key": 1}
    text = printed(written)
    assert (
        "4 sent = 4 accounted for: 1 decided + 1 answered with an error + 1 expired + 1 dead letter\n"
    ) in text.replace("  \n", "\n").replace(" \n", "\n")
    assert "3 due = 3 distinct at logx (1 repeat on the wire)" in text
    assert "2 sent = 1 at logx + 1 dead letter " in text
    assert "2 records (0 repeats in the topic)" in text
    assert "The account closes" in text


def test_a_second_result_is_a_fault_and_a_second_dead_letter_where_nobody_was_killed() -> None:
    account = closed()
    dead(account, "track-0-1", "another")
    assert account.open() == ["1 records with a second dead letter: track-0-1"]
    account.kills = 1
    assert account.open() == []
    book_result(account, "requests-0-0", decisions=(("search_ranking", "fresh_first"),) * 7)
    (fault,) = account.open()
    assert "with a second result" in fault
    assert "requests-0-0" in fault
    written = of(account)
    assert (written["second_results"], written["second_dead_letters"]) == (1, 1)
    assert written["decisions"]["search_ranking"] == {"control": 1}
    assert written["impressions_due"] == 3
    assert "2 records (1 repeat in the topic)" in printed(written)


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (lambda a: a.book_sent("requests-2-0", sent("decide_requests", Fate.DECIDED, "late")), "without an outcome"),
        (lambda a: book_result(a, "requests-9-9"), "that nobody sent: requests-9-9"),
        (lambda a: dead(a, "odp-9-9"), "that nobody sent: odp-9-9"),
        (lambda a: dead(a, "requests-0-0"), "with a result and a dead letter: requests-0-0"),
        (lambda a: dead(a, "track-0-0"), "dead letter instead of delivered"),
        (lambda a: a.book_services(LOGX | {"impressions": 2}, ODP), "impressions at logx: 2, should be 3"),
        (lambda a: a.book_services(LOGX | {"impressions": 4}, ODP), "impressions at logx: 4, should be 3"),
        (lambda a: a.book_services(LOGX | {"conversions": 0}, ODP), "conversions at logx: 0, should be 1"),
        (lambda a: a.book_services(LOGX | {"conflicts": 1}, ODP), "contradict"),
        (lambda a: a.book_services(LOGX | {"refused": {"400": 1}}, ODP), "refused by logx: 1"),
        (lambda a: a.book_services(LOGX, ODP | {"distinct_events": 2}), "events at ODP: 2, should be 1"),
        (lambda a: a.book_services(LOGX, ODP | {"conflicting_events": 2}), "events at ODP that contradict"),
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


def test_numbers_that_differ_are_not_printed_as_equal() -> None:
    account = closed()
    account.book_sent("requests-2-0", sent("decide_requests", Fate.DECIDED, value=asking()))
    account.book_services(LOGX | {"impressions": 2, "conversions": 0}, ODP | {"distinct_events": 2})
    text = printed(of(account))
    for words in (
        "5 sent but 4 accounted for",
        "3 due but 2 distinct at logx",
        "2 sent but 0 at logx",
        "1 sent but 2",
    ):
        assert words in text, words


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
    account.book_sent("requests-0-0", sent("decide_requests", expected, value=asking(), error=error or ""))
    book_result(account, "requests-0-0", error)
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
    account.book_services(LOGX, ODP | {"aliases": 5})
    account.book_worker(5.0, 1.0)
    account.book_worker(2.0, 3.0)
    assert of(account, [])["segments"] == {
        "requests": 4, "cold_users": 3, "environments": 2, "graphql_requests": 2, "users_looked_up": 5,
        "users_looked_up_again": 2,
        "users_per_request": 2.5, "largest_request": 17, "shared_lookups": 4, "cache_hits": 7,
        "cache_hits_of": {"the killed worker": 5, "the last worker": 2},
    }  # fmt: skip
    said = " ".join(printed(of(account, [])).split())
    assert (
        "4 look-ups shared the answer to another of their user; the worker's cache answered 7 look-ups: "
        "5 in the killed worker + 2 in the last worker, whose cache began empty"
    ) in said
    assert (
        "4 requests needed the segments of 3 users in 2 environments. "
        "The worker asked ODP for 5 users (2 of them again) in 2 GraphQL requests: 2.5 users in each, 17 in the largest"
    ) in said
    assert (
        "a second from the first request sent to the last result read, while impressions and events are delivered. "
        "Broker, stand-ins and worker share this machine" in said
    )


@pytest.mark.parametrize(("requests", "queries", "closes"), [(5000, 499, True), (5000, 500, False), (4999, 4999, True)])
def test_a_large_run_must_look_users_up_ten_at_a_time(requests: int, queries: int, *, closes: bool) -> None:
    account = Account()
    for number in range(requests):
        value = asking(userId=f"user-{number}", fetchSegments=True)
        account.book_sent(f"requests-0-{number}", sent("decide_requests", Fate.DECIDED, value=value))
    account.book_services({}, {"graphql_requests": queries})
    written = of(account, [])
    assert written["closed"] is closes
    assert written["open"] == [] or f"GraphQL requests: {queries}, should be fewer than a tenth" in written["open"][0]


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


def test_a_result_may_be_read_before_its_request_is_booked() -> None:
    account = Account()
    book_result(account, "requests-0-0", user="eve")
    account.book_sent("requests-0-0", sent("decide_requests", Fate.DECIDED, value=asking()))
    assert "1 records whose result has another userId: requests-0-0" in account.open()


def test_what_is_no_result_is_a_fault_and_no_crash() -> None:
    account = Account()
    for value in (None, b"", b"{", b"[]", b"{}"):
        account.book_result(b"ada", value, [("source", b"requests-0-0")], partition=0)
    account.book_dead_letter(None, None, [])
    assert account.open() == [
        "1 records that nobody sent: ",
        "5 records with a result that is none by its schema: " + ", ".join(["requests-0-0"] * 5),
        *Account().open(),
    ]  # fmt: skip


def test_a_small_run_has_no_empty_tables_and_says_one_of_one() -> None:
    account = Account()
    account.book_sent("requests-0-0", sent("decide_requests", Fate.DECIDED, value=asking(fetchSegments=True)))
    book_result(account, "requests-0-0")
    account.book_services(
        {"events": 1, "dispatches": 1, "impressions": 1, "largest_batch": 1, "largest_bytes": 1},
        {"graphql_requests": 1, "aliases": 1, "largest_query": 1},
    )
    account.book_worker(1, 0)
    said = printed(of(account))
    assert "Dead letters\n" not in said
    text = " ".join(said.split())
    assert "Answered with an error" not in text
    for words in ("1 request needed the segments of 1 user in 1 environment. The worker asked ODP for 1 user in 1 "
                  "GraphQL request: 1.0 users in each", "cache answered 1 look-up",
                  "1 event in 1 dispatch, 1 in the largest, 1 byte at most", "1 request answered in",
                  "1 sent = 1 accounted for:", "1 due = 1 distinct at logx"):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(("encoding", "bar"), [("utf-8", "▇"), ("ascii", "#")])
def test_every_terminal_can_show_the_summary(encoding: str, bar: str) -> None:
    with io.TextIOWrapper(io.BytesIO(), encoding=encoding) as file:
        Console(file=file, width=60, highlight=False).print(summary(of(closed())))
        file.flush()
        file.seek(0)
        text = file.read()
    assert bar in text
    assert "…" not in text
    assert [line[:2] for line in text.splitlines() if line.startswith(("recommendatio", "ns "))] == ["re", "ns"], (
        "folded"
    )


def test_a_request_with_a_result_and_a_dead_letter_is_answered_once() -> None:
    account = closed()
    answered = account.answered
    (source, *_) = account._results
    topic, partition, offset = source.rsplit("-", 2)
    place = {TOPIC_HEADER: topic, PARTITION_HEADER: partition, OFFSET_HEADER: offset}
    headers = [(SOURCE_HEADER, source.encode()), *((name, text.encode()) for name, text in place.items())]
    account.book_dead_letter(None, None, headers)
    assert account.answered == answered
    assert any("with a result and a dead letter" in sentence for sentence in account.open())


def test_requests_in_the_table_of_errors_are_those_that_the_account_calls_errors_and_expired() -> None:
    said = printed(of(closed()))
    _, _, table = said.partition("Answered with an error, or expired\n")
    rows = [line.split() for line in table.partition("\n\n")[0].splitlines()[2:]]
    assert sum(int(row[-1]) for row in rows) == 2
    assert "1 answered with an error + 1 expired" in said
