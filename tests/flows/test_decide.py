"""Requests in, final results out, impressions counted: one worker, a client that shares nothing with it."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from typing import Any
from uuid import UUID

import mmh3
import pytest

from pipeline.sandbox.project_data import PRODUCTION, STAGING
from tests.flows.conftest import PARTITIONS, Flow
from tests.flows.project import FLAGS, SDK_KEY
from tests.flows.wire import Outgoing, Sent, Writer, keyed

ON, OFF = FLAGS


def body(user: str, **fields: Any) -> dict[str, Any]:
    return {"sdkKey": SDK_KEY, "userId": user, "keys": [ON]} | fields


def identity(sent: Sent, index: int = 0) -> UUID:
    """What a record's `index`-th event must be called: version 4 in form, MurmurHash3 of the record's identity."""
    raw = bytearray(mmh3.hash_bytes(f"{sent.source}|{sent.timestamp}|{index}".encode(), x64arch=True))
    raw[6], raw[8] = 0x40 | raw[6] & 0x0F, 0x80 | raw[8] & 0x0F
    return UUID(bytes=bytes(raw))


def test_a_request_gives_one_result_with_its_key_on_its_partition_number(flow: Flow) -> None:
    for partition in range(PARTITIONS):
        record = Outgoing(json.dumps(body("ada", requestId="r-1")).encode(), b"any key", partition=partition)
        sent = flow.writer.send(flow.topics.decide_requests, [record])
        (result,) = flow.results.of(sent)
        assert (result.key, result.partition) == (b"any key", partition)
        document = result.document
        assert (document["requestId"], document["userId"], document["source"]) == ("r-1", "ada", sent[0].source)
        assert document["timestamp"] == sent[0].timestamp
        assert [(one["flagKey"], one["variationKey"]) for one in document["decisions"]] == [(ON, "on")]


def test_a_null_key_is_answered_under_the_user_id_on_its_own_partition(flow: Flow) -> None:
    sent = flow.writer.send(
        flow.topics.decide_requests,
        [Outgoing(json.dumps(body("nobody's key")).encode(), None, partition=number) for number in range(PARTITIONS)],
    )
    results = flow.results.of(sent)
    assert [(result.key, result.partition) for result in results] == [
        (b"nobody's key", number) for number in range(PARTITIONS)
    ]


def test_a_thousand_requests_keep_each_users_order_and_every_impression_is_counted_once(flow: Flow) -> None:
    rng = random.Random(5)
    users = [f"thousand-{number:03d}" for number in range(100)]
    asked = [body(rng.choice(users), requestId=str(number), keys=[ON, OFF]) for number in range(1000)]
    sent = flow.writer.send(flow.topics.decide_requests, map(keyed, asked))
    results = flow.results.of(sent)
    assert [result.document["requestId"] for result in results] == [str(number) for number in range(1000)]
    places = defaultdict(list)
    for result in results:
        places[result.key].append((result.partition, result.offset))
    assert len(places) == 100
    assert all(own == sorted(own) for own in places.values())
    due = {
        (str(identity(place, index)), place.timestamp, request["userId"], flag)
        for place, request in zip(sent, asked, strict=True)
        for index, flag in enumerate((ON, OFF))
    }
    events = flow.events_of(*users, count=2000)
    assert {(one["uuid"], one["timestamp"], one["visitor"], one["flag"]) for one in events} == due
    assert len(events) == 2000
    assert flow.stand_ins.ledger("logx")["refused"] == {}


def test_impressions_are_sent_also_for_flags_that_enabled_flags_only_leaves_out(flow: Flow) -> None:
    (document,) = flow.decide(body("both lights", keys=[], decideOptions=["ENABLED_FLAGS_ONLY"]))
    assert [one["flagKey"] for one in document["decisions"]] == [ON]
    events = flow.events_of("both lights", count=2)
    assert {(one["flag"], one["variation"]) for one in events} == {(ON, "on"), (OFF, "off")}


def test_without_an_sdk_key_where_there_are_several_the_result_says_so(flow: Flow) -> None:
    (document,) = flow.decide({"userId": "keyless", "keys": [ON]})
    assert document["error"] == "sdkKey is needed: the worker has several"
    assert document["decisions"] == []


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_codec_is_read(flow: Flow, codec: str) -> None:
    users = [f"{codec}-{number}" for number in range(50)]
    writer = Writer(flow.broker.bootstrap_servers, **{"compression.type": codec, "linger.ms": 50})
    sent = writer.send(flow.topics.decide_requests, [keyed(body(user)) for user in users])
    assert [result.document["userId"] for result in flow.results.of(sent)] == users


def test_an_aborted_transaction_is_not_read_and_a_committed_one_is(flow: Flow) -> None:
    writer = Writer(flow.broker.bootstrap_servers, **{"transactional.id": f"tests-{time.monotonic_ns()}"})
    writer.producer.init_transactions(30)

    def in_transaction(user: str) -> list[Sent]:
        writer.producer.begin_transaction()
        return writer.send(flow.topics.decide_requests, [Outgoing(json.dumps(body(user)).encode(), b"one user")])

    aborted = in_transaction("aborted")
    writer.producer.abort_transaction(30)
    committed = in_transaction("committed")
    writer.producer.commit_transaction(30)
    (result,) = flow.results.of(committed)
    assert result.document["userId"] == "committed"
    # Both have one key: whatever was made of the earlier one would stand before this result.
    assert aborted[0].source not in {record.headers["source"].decode() for record in flow.results.all}


def test_a_request_whose_time_is_over_is_answered_so_and_sends_no_impression(flow: Flow) -> None:
    past, future = str(int(time.time() * 1000) - 1000).encode(), str(int(time.time() * 1000) + 60_000).encode()
    sent = flow.writer.send(
        flow.topics.decide_requests,
        [
            keyed(body("too late"))._replace(headers={"expires-at": past}),
            keyed(body("in time"))._replace(headers={"expires-at": future}),
            keyed(body("in time", ttlMs=60_000)),
            # As Spring writes a text, and Java's serializer a long.
            keyed(body("in time"))._replace(headers={"expires-at": b'"%b"' % future}),
            keyed(body("too late"))._replace(headers={"expires-at": int(past).to_bytes(8, "big")}),
            # No number, and one that no clock will ever show: neither is a time, and both are reported.
            keyed(body("too late"))._replace(headers={"expires-at": b"tomorrow"}),
            keyed(body("too late"))._replace(headers={"expires-at": b"9" * 5000}),
        ],
    )
    late, first, second, quoted, late_too, *unread = [result.document for result in flow.results.of(sent)]
    for expired in (late, late_too):
        assert (expired["error"], expired["decisions"]) == ("request expired", [])
        assert "tracking" not in expired
    assert [result.get("error") for result in (first, second, quoted)] == [None] * 3
    told = [(result["error"], result["detail"]) for result in unread]
    assert told == [("error parsing request body", "header expires-at: pattern")] * 2
    events = flow.events_of("too late", "in time", count=3)
    assert {one["visitor"] for one in events} == {"in time"}


def test_a_redelivered_dead_letter_keeps_its_identity(flow: Flow) -> None:
    first = Sent("some.requests", 7, 4711, 1_700_000_000_123)
    headers = {"pipeline-source": first.source.encode(), "pipeline-timestamp": str(first.timestamp).encode()}
    sent = flow.writer.send(flow.topics.decide_requests, [keyed(body("back again"))._replace(headers=headers)])
    (result,) = flow.results.of(sent)
    assert (result.document["source"], result.document["timestamp"]) == (first.source, first.timestamp)
    (event,) = flow.events_of("back again", count=1)
    assert (event["uuid"], event["timestamp"]) == (str(identity(first)), first.timestamp)


def test_traceparent_is_passed_on(flow: Flow) -> None:
    trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    record = keyed(body("traced"))._replace(headers={"traceparent": trace, "private": b"stays"})
    (result,) = flow.results.of(flow.writer.send(flow.topics.decide_requests, [record]))
    assert result.headers["traceparent"] == trace
    assert "private" not in result.headers


def test_two_projects_are_decided_side_by_side(flow: Flow) -> None:
    one, other = flow.decide(
        {"sdkKey": PRODUCTION, "userId": "user-00077", "keys": ["emergency_stop"]},
        {"sdkKey": STAGING, "userId": "user-00077", "keys": ["emergency_stop"]},
    )
    assert (one["sdkKey"], other["sdkKey"]) == (PRODUCTION, STAGING)
    # Production counts what is delivered to everyone, staging does not.
    assert one["decisions"][0]["decisionEventDispatched"] is True
    assert other["decisions"][0]["decisionEventDispatched"] is False
