"""Events out: conversions to logx, events to ODP, each once; what can never be sent is a dead letter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.sandbox.processes import until
from pipeline.sandbox.project_data import EVENTS, PRODUCTION, REVOKED
from tests.flows.conftest import Flow
from tests.flows.project import SDK_KEY
from tests.flows.test_decide import body as request
from tests.flows.test_decide import identity
from tests.flows.wire import Outgoing, Read, keyed
from tests.patience import PATIENCE


def conversion(user: str, **fields: Any) -> dict[str, Any]:
    return {"sdkKey": PRODUCTION, "userId": user, "eventKey": "purchase"} | fields


def odp_event(user: str, **fields: Any) -> Outgoing:
    event = {"sdkKey": PRODUCTION, "action": "viewed", "identifiers": {"fs_user_id": user}, "data": {"product": 7}}
    return Outgoing(json.dumps(event | fields).encode(), user.encode())


def test_conversions_are_counted_once_with_the_time_of_their_record(flow: Flow) -> None:
    users = [f"buyer-{number:03d}" for number in range(300)]
    sent = flow.writer.send(flow.topics.track_events, [keyed(conversion(user)) for user in users])
    events = flow.events_of(*users, count=300)
    due = {(user, str(identity(place)), place.timestamp) for user, place in zip(users, sent, strict=True)}
    assert {(one["visitor"], one["uuid"], one["timestamp"]) for one in events} == due
    assert {(one["entity_id"], one["key"]) for one in events} == {(EVENTS["purchase"], "purchase")}
    assert len(events) == 300


def test_a_late_conversion_counts_when_it_happened(flow: Flow) -> None:
    flow.writer.send(flow.topics.track_events, [keyed(conversion("latecomer", timestamp=1_700_000_000_000))])
    (event,) = flow.events_of("latecomer", count=1)
    assert event["timestamp"] == 1_700_000_000_000


TRACK_FAULTS = [
    (json.dumps(conversion("faulty", eventKey="no_such_event")).encode(), "unknown_event_key"),
    (json.dumps(conversion("faulty", sdkKey="nobodysKey000001")).encode(), "sdk_key_unusable"),
    (json.dumps(conversion("faulty", sdkKey=REVOKED)).encode(), "sdk_key_unusable"),
    (json.dumps({"userId": "faulty", "eventKey": "purchase"}).encode(), "sdk_key_missing"),
    (json.dumps(conversion("")).encode(), "user_id_missing"),
    (b'{"userId": "faulty', "not_json"),
    (b"\xff\xfe\x00", "not_json"),
    (b"[]", "not_an_object"),
]


@pytest.mark.parametrize(
    ("value", "reason"), TRACK_FAULTS, ids=[f"{n}-{why}" for n, (_, why) in enumerate(TRACK_FAULTS)]
)
def test_a_conversion_that_can_never_be_sent_is_a_dead_letter_with_its_bytes_and_origin(
    flow: Flow, value: bytes, reason: str
) -> None:
    record = Outgoing(value, b"its key", {"traceparent": b"00-1"}, partition=3)
    (sent,) = flow.writer.send(flow.topics.track_events, [record])
    (letter,) = flow.letters([sent])
    assert (letter.key, letter.value, letter.partition) == (b"its key", value, 3)
    told = {name.removeprefix("pipeline-"): text.decode() for name, text in letter.headers.items()}
    assert told.pop("detail")
    assert told == {
        "traceparent": "00-1", "reason": reason, "role": "logx",
        "source-topic": flow.topics.track_events, "source-partition": "3", "source-offset": str(sent.offset),
        "source": sent.source, "timestamp": str(sent.timestamp),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"{", "not_json"),
        (b'"x"', "not_an_object"),
        (b'{"userId": 7}', "user_id_missing"),
    ],
)
def test_a_request_that_names_nobody_is_a_dead_letter_and_its_neighbours_have_results(
    flow: Flow, value: bytes | None, reason: str
) -> None:
    neighbour = Outgoing(json.dumps(request("neighbour")).encode(), b"key", partition=2)
    before, bad, after = flow.writer.send(
        flow.topics.decide_requests, [neighbour, Outgoing(value, b"key", partition=2), neighbour]
    )
    (letter,) = flow.letters([bad])
    assert (letter.headers["pipeline-reason"], letter.headers["pipeline-role"]) == (reason.encode(), b"decide")
    # A record needs a key or a value, so a null one is kept as an empty one.
    assert letter.value == (value or b"")
    assert len(flow.results.of([before, after])) == 2
    assert bad.source not in {result.headers["source"].decode() for result in flow.results.all}


def test_odp_events_are_delivered_once_in_full_batches(flow: Flow) -> None:
    users = [f"viewer-{number:04d}" for number in range(1100)]
    flow.writer.send(flow.topics.odp_events, map(odp_event, users))
    until(lambda: flow.stand_ins.ledger("odp")["distinct_events"] == 1100, timeout=PATIENCE, what="the events at ODP")
    ledger = flow.stand_ins.ledger("odp", query="full=1")
    assert sorted(event["identifiers"]["fs_user_id"] for event in ledger["event_bodies"]) == users
    assert ledger["largest_event_batch"] <= 500
    assert ledger["event_requests"] < 40
    assert (ledger["repeated_events"], ledger["refused_events"]) == (0, 0)


def test_an_odp_event_carries_the_identity_of_its_record_and_its_own_time(flow: Flow) -> None:
    (sent,) = flow.writer.send(flow.topics.odp_events, [odp_event("late viewer", timestamp=1_700_000_000_999)])
    until(lambda: flow.stand_ins.ledger("odp")["distinct_events"] == 1, timeout=PATIENCE, what="the event at ODP")
    (event,) = flow.stand_ins.ledger("odp", query="full=1")["event_bodies"]
    assert event["type"] == "fullstack"
    assert event["data"] == {
        "product": 7, "idempotence_id": str(identity(sent)), "ts": 1_700_000_000, "data_source_type": "sdk",
        "data_source": "decision-pipeline", "data_source_version": event["data"]["data_source_version"],
    }  # fmt: skip


def test_an_odp_event_that_is_refused_is_a_dead_letter_and_the_others_are_delivered(flow: Flow) -> None:
    flow.stand_ins.control("odp", poison=["poisonous"])
    users = [f"beside-{number}" for number in range(20)]
    users.insert(11, "poisonous")
    sent = flow.writer.send(flow.topics.odp_events, map(odp_event, users))
    (letter,) = flow.letters([sent[11]])
    assert letter.headers["pipeline-reason"] == b"odp_refused"
    assert letter.value == odp_event("poisonous").value
    until(lambda: flow.stand_ins.ledger("odp")["distinct_events"] == 20, timeout=PATIENCE, what="the others")
    assert {place.source for place in sent} & _dead(flow) == {sent[11].source}


def test_an_odp_event_of_a_project_without_odp_is_a_dead_letter(flow: Flow) -> None:
    (letter,) = flow.letters(flow.writer.send(flow.topics.odp_events, [odp_event("someone", sdkKey=SDK_KEY)]))
    assert letter.headers["pipeline-reason"] == b"odp_not_integrated"


def test_a_visitor_that_logx_refuses_is_one_dead_letter_and_all_others_are_delivered(flow: Flow) -> None:
    flow.stand_ins.control("logx", poison=["refused visitor"])
    users = [f"fine-{number}" for number in range(60)]
    users.insert(41, "refused visitor")
    sent = flow.writer.send(flow.topics.decide_requests, [keyed(request(user)) for user in users])
    results = flow.results.of(sent)
    assert len(flow.events_of(*users, count=60)) == 60
    until(lambda: bool(_refused(flow)), timeout=PATIENCE, what="the dead letter")
    (letter,) = _refused(flow)
    # The role logx reads results, so that is what its dead letter holds.
    assert letter.value == results[41].value
    assert letter.headers["pipeline-source-topic"].decode() == flow.topics.decide_results
    assert int(letter.headers["pipeline-source-offset"]) == results[41].offset


def _refused(flow: Flow) -> list[Read]:
    flow.dead_letters.poll(0.1)
    return [one for one in flow.dead_letters.all if one.headers["pipeline-reason"] == b"logx_refused"]


def _dead(flow: Flow) -> set[str]:
    while flow.dead_letters.poll(0.2):
        continue
    return {letter.headers["pipeline-source"].decode() for letter in flow.dead_letters.all}


def test_a_dead_letter_that_is_sent_again_and_fails_again_keeps_its_origin(flow: Flow) -> None:
    (first,) = flow.letters(flow.writer.send(flow.topics.track_events, [Outgoing(b"{", b"k", partition=0)]))
    again = Outgoing(first.value, first.key, first.headers, partition=0)
    (sent,) = flow.writer.send(flow.topics.track_events, [again])
    (second,) = flow.letters([sent])
    assert second.headers["pipeline-source"] == first.headers["pipeline-source"]
    assert second.headers["pipeline-timestamp"] == first.headers["pipeline-timestamp"]
    assert second.headers["pipeline-source-offset"] == str(sent.offset).encode()
