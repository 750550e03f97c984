"""Role logx without Kafka and logx: what each record owes, and what can never be sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.errors import Rejected
from pipeline.handlers.logx import ConversionsHandler, ImpressionsHandler
from pipeline.logx.dispatcher import Logx
from pipeline.logx.payload import Envelope
from pipeline.messages.delivery import Chunk, Delivery
from pipeline.project import compile_datafile
from pipeline.sandbox.project_data import EVENTS, PRODUCTION, STAGING, datafile
from pipeline.settings import LogxSettings
from pipeline.transport import Transport
from tests.handlers.chunks import Expecting, Loaded, new_metrics, records
from tests.messages.examples import nested
from tests.settled import RecordingChunk

PROJECTS = {
    key: compile_datafile(json.dumps(datafile(key, "http://127.0.0.1:1")).encode()) for key in (PRODUCTION, STAGING)
}


class Added(Logx):
    """Keeps what it is given."""

    def __init__(self, settings: LogxSettings) -> None:
        super().__init__(transport=Transport(), settings=settings, metrics=new_metrics())
        self.all: list[tuple[Envelope, dict[str, Any], int, Delivery]] = []

    def add(self, envelope: Envelope, visitor: bytes, events: int, chunk: Chunk, record: Delivery) -> None:
        self.all.append((envelope, json.loads(visitor), events, record))


def result(user: str = "ada", impressions: int = 1) -> dict[str, Any]:
    one = {
        "flagKey": "flag", "ruleKey": "rule", "ruleType": "feature-test", "variationKey": "on", "enabled": True,
        "campaignId": "1", "experimentId": "2", "variationId": "3", "cmabUuid": None,
    }  # fmt: skip
    document: dict[str, Any] = {
        "requestId": "r", "source": "requests-0-1", "timestamp": 1_700_000_000_000, "sdkKey": PRODUCTION,
        "userId": user, "revision": "42", "decisions": [],
    }  # fmt: skip
    if impressions:
        document["tracking"] = {
            "accountId": "10", "projectId": "20", "region": "EU", "anonymizeIp": True, "attributes": [],
            "impressions": [one] * impressions,
        }  # fmt: skip
    return document


def impressions_of(chunk: RecordingChunk, **settings: Any) -> Added:
    chosen = LogxSettings(**settings)
    logx = Added(chosen)
    ImpressionsHandler(logx, chosen).handle(chunk)
    return logx


def conversions_of(chunk: RecordingChunk, *keys: str) -> Added:
    logx = Added(LogxSettings())
    datafiles = Loaded({key: PROJECTS[key] for key in keys or (PRODUCTION,)})
    ConversionsHandler(logx, datafiles, max_record_bytes=1000).handle(chunk)
    return logx


def test_a_result_that_owes_nothing_is_done_and_the_others_are_handed_over() -> None:
    chunk = RecordingChunk(records(result(impressions=0), result("bob", 2), result(impressions=0)))
    logx = impressions_of(chunk)
    assert chunk.settlements == [2]
    ((envelope, visitor, events, record),) = logx.all
    assert (envelope.region, visitor["visitor_id"], events, record.offset) == ("EU", "bob", 2, 1)


def test_a_chunk_in_which_all_owe_something_settles_nothing_itself() -> None:
    chunk = RecordingChunk(records(result(), result()))
    assert len(impressions_of(chunk).all) == 2
    assert chunk.settlements == []


def test_a_result_of_more_events_than_a_request_takes_is_several_visitors_each_settled() -> None:
    chunk = Expecting(records(result("ada", 5)))
    logx = impressions_of(chunk, batch_events=2)
    assert [events for _, _, events, _ in logx.all] == [2, 2, 1]
    # The chunk itself counts one settlement for its record.
    assert chunk.expected == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", "not_json"),
        (None, "not_json"),
        (b"[]", "not_a_result"),
        (b'{"userId": "ada"}', "not_a_result"),
        (json.dumps(result() | {"timestamp": "now"}).encode(), "not_a_result"),
    ],
)
def test_what_is_no_result_is_rejected_and_its_neighbours_are_handed_over(value: bytes | None, reason: str) -> None:
    chunk = RecordingChunk(records(result(), value, result()))
    logx = impressions_of(chunk)
    assert [record.offset for _, _, _, record in logx.all] == [0, 2]
    ((record, why),) = chunk.rejected
    assert (record.offset, why.reason) == (1, reason)
    assert chunk.settled == 0


@pytest.mark.parametrize("name", ["requestId", "source", "timestamp", "userId", "revision", "error", "tracking"])
def test_a_result_nested_deeper_than_can_be_written_is_rejected_and_its_neighbours_are_handed_over(name: str) -> None:
    for deep in (nested(300), [nested(300)]):
        chunk = RecordingChunk(records(result(), result() | {"userId": "ada", name: deep}, result()))
        assert [record.offset for _, _, _, record in impressions_of(chunk).all] == [0, 2]
        ((record, why),) = chunk.rejected
        assert (record.offset, why.reason) == (1, "not_a_result")


def test_what_was_decided_is_passed_over_however_deep_it_is_nested() -> None:
    chunk = RecordingChunk(records(result() | {"decisions": [nested(300)], "sdkKey": nested(300)}))
    assert [record.offset for _, _, _, record in impressions_of(chunk).all] == [0]


def test_an_attribute_too_deep_to_be_written_is_rejected() -> None:
    tracked = result()
    tracked["tracking"]["attributes"] = [{"entity_id": "1", "key": "k", "value": nested(300)}]
    chunk = RecordingChunk(records(tracked))
    assert impressions_of(chunk).all == []
    assert [why.reason for _, why in chunk.rejected] == ["not_a_result"]


def test_a_conversion_carries_its_projects_ids_and_its_records_identity() -> None:
    chunk = RecordingChunk(records({"userId": "ada", "eventKey": "purchase", "userAttributes": {"plan": "free"}}))
    ((envelope, visitor, events, _),) = conversions_of(chunk).all
    (event,) = visitor["snapshots"][0]["events"]
    assert (envelope.account_id, envelope.revision, events) == ("10001", "42", 1)
    assert (event["entity_id"], event["timestamp"]) == (EVENTS["purchase"], 1_700_000_000_000)
    assert {attribute["key"]: attribute["value"] for attribute in visitor["attributes"]}["plan"] == "free"


def test_a_replayed_conversion_keeps_its_uuid() -> None:
    body = {"userId": "ada", "eventKey": "purchase"}
    first = conversions_of(RecordingChunk(records(body)))
    headers = [("pipeline-source", b"topic-0-0"), ("pipeline-timestamp", b"1700000000000")]
    again = conversions_of(RecordingChunk(records(body, first=77, timestamp=1_800_000_000_000, headers=headers)))
    assert again.all[0][1] == first.all[0][1]


@pytest.mark.parametrize(
    ("fields", "keys", "reason"),
    [
        ({"eventKey": "no_such_event"}, (PRODUCTION,), "unknown_event_key"),
        ({"sdkKey": "nobody"}, (PRODUCTION,), "sdk_key_unusable"),
        ({}, (PRODUCTION, STAGING), "sdk_key_missing"),
        ({"userId": ""}, (PRODUCTION,), "user_id_missing"),
        ({"padding": "x" * 1000}, (PRODUCTION,), "too_large"),
    ],
)
def test_a_conversion_that_can_never_be_sent_is_rejected(
    fields: dict[str, Any], keys: tuple[str, ...], reason: str
) -> None:
    chunk = RecordingChunk(records({"userId": "ada", "eventKey": "purchase"} | fields))
    assert conversions_of(chunk, *keys).all == []
    ((_, why),) = chunk.rejected
    assert isinstance(why, Rejected)
    assert why.reason == reason


def test_with_several_keys_the_one_that_is_named_is_taken() -> None:
    chunk = RecordingChunk(records({"userId": "ada", "eventKey": "purchase", "sdkKey": STAGING}))
    assert len(conversions_of(chunk, PRODUCTION, STAGING).all) == 1
