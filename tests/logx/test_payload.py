"""What is sent to Optimizely: shapes, identities that never change, visitors that fit their bounds."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.logx.payload import (
    CLIENT_VERSION,
    Envelope,
    Visitor,
    conversion,
    envelope_bytes,
    event_uuid,
    overhead,
)
from pipeline.logx.payload import impressions as impressions_of
from pipeline.messages.events import TrackEvent
from pipeline.project import ProjectConfig
from pipeline.sandbox.logx_payload import read_payload

ENVELOPE = Envelope("10000000001", "20000000001", "42", True, "US")
TEXT = st.text(st.characters(codec="utf-8")) | st.text(st.sampled_from('{"\\:,}a'))
WIDE = {"max_events": 10_000, "max_bytes": 3_500_000}


def impressions(value: object, *, max_events: int, max_bytes: int) -> tuple[Envelope, Sequence[Visitor]] | None:
    """What a record of this value owes."""
    return impressions_of(orjson.dumps(value), max_events=max_events, max_bytes=max_bytes)


def impression(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "flagKey": f"flag_{number}",
        "ruleKey": f"rule_{number}",
        "ruleType": "feature-test",
        "variationKey": "treatment",
        "enabled": True,
        "campaignId": f"9{number}",
        "experimentId": f"8{number}",
        "variationId": f"7{number}",
    } | changes


def result(*tracked: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "requestId": "r-1",
        "source": "decide.requests-3-17",
        "timestamp": 1_764_000_000_123,
        "userId": "user-1",
        "revision": "42",
        "decisions": [],
        "tracking": {
            "accountId": "10000000001",
            "projectId": "20000000001",
            "region": "US",
            "anonymizeIp": True,
            "attributes": [{"entity_id": "41", "key": "country", "value": "DE"}],
            "impressions": list(tracked),
        },
    } | changes


@dataclass
class Project:
    """What a conversion reads of a datafile."""

    account_id: str = "10000000001"
    project_id: str = "20000000001"
    revision: str = "42"
    region: str = "EU"
    anonymize_ip: bool = False
    events: dict[str, str] = field(default_factory=lambda: {"purchase": "31001"})

    def event_attributes(self, attributes: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"entity_id": "1", "key": key, "type": "custom", "value": value} for key, value in attributes.items()]


def converted(tags: dict[str, Any], *, event_key: str = "purchase", timestamp: int | None = None) -> dict[str, Any]:
    event = TrackEvent(None, "user-1", event_key, {"country": "DE"}, tags, timestamp)
    envelope, visitor, events = conversion(
        cast(ProjectConfig, Project()), event, source="track.events-1-5", timestamp=9
    )
    assert (envelope, events) == (Envelope("10000000001", "20000000001", "42", False, "EU"), 1)
    return cast(dict[str, Any], orjson.loads(visitor))


def test_one_impression_is_sent_as_the_sdks_send_it() -> None:
    found = impressions(result(impression()), **WIDE)
    assert found is not None
    envelope, [(visitor, events)] = found
    assert (envelope, events) == (ENVELOPE, 1)
    assert orjson.loads(visitor) == {
        "visitor_id": "user-1",
        "attributes": [{"entity_id": "41", "key": "country", "type": "custom", "value": "DE"}],
        "snapshots": [
            {
                "decisions": [
                    {
                        "campaign_id": "91",
                        "experiment_id": "81",
                        "variation_id": "71",
                        "metadata": {
                            "flag_key": "flag_1",
                            "rule_key": "rule_1",
                            "rule_type": "feature-test",
                            "variation_key": "treatment",
                            "enabled": True,
                        },
                    }
                ],
                "events": [
                    {
                        "entity_id": "91",
                        "key": "campaign_activated",
                        "timestamp": 1_764_000_000_123,
                        "uuid": event_uuid("decide.requests-3-17", 1_764_000_000_123, 0),
                    }
                ],
            }
        ],
    }


def test_each_impression_has_its_own_snapshot_in_order() -> None:
    found = impressions(result(*(impression(n) for n in range(5))), **WIDE)
    assert found is not None
    [(visitor, events)] = found[1]
    snapshots = orjson.loads(visitor)["snapshots"]
    assert events == 5
    assert [len(one["decisions"]) for one in snapshots] == [1] * 5
    assert [one["decisions"][0]["metadata"]["flag_key"] for one in snapshots] == [f"flag_{n}" for n in range(5)]
    assert len({one["events"][0]["uuid"] for one in snapshots}) == 5


def test_a_variation_may_be_null_and_a_prediction_keeps_its_uuid() -> None:
    holdout = impression(1, variationId=None, ruleType="holdout")
    predicted = impression(2, cmabUuid="c-1")
    found = impressions(result(holdout, predicted, impression(2, cmabUuid="c-2"), impression(2)), **WIDE)
    assert found is not None
    decisions = [one["decisions"][0] for one in orjson.loads(found[1][0][0])["snapshots"]]
    assert decisions[0]["variation_id"] is None
    assert [one["metadata"].get("cmab_uuid") for one in decisions] == [None, "c-1", "c-2", None]


def test_text_that_json_escapes_arrives_unchanged() -> None:
    odd = 'a"b\\c\n\u2028é😀{}%s'
    found = impressions(result(impression(flagKey=odd, ruleKey=odd, campaignId=odd), userId=odd), **WIDE)
    assert found is not None
    visitor = orjson.loads(found[1][0][0])
    assert visitor["visitor_id"] == odd
    assert visitor["snapshots"][0]["events"][0]["entity_id"] == odd
    assert visitor["snapshots"][0]["decisions"][0]["metadata"]["flag_key"] == odd


@given(st.lists(st.tuples(st.sampled_from(["a", '{"entity_id":', '"{"', "\\"]), TEXT), max_size=4), TEXT, st.booleans())
def test_attributes_get_their_type_whatever_they_hold(
    pairs: list[tuple[str, str]], user_id: str, reverse: bool
) -> None:
    value = result(impression(), userId=user_id)
    value["tracking"]["attributes"] = [{"entity_id": "1", "key": key, "value": text} for key, text in pairs]
    if reverse:
        value["tracking"]["attributes"] = [dict(reversed(one.items())) for one in value["tracking"]["attributes"]]
    found = impressions(value, **WIDE)
    assert found is not None
    visitor = orjson.loads(found[1][0][0])
    assert visitor["visitor_id"] == user_id
    assert visitor["attributes"] == [
        {"entity_id": "1", "key": key, "type": "custom", "value": text} for key, text in pairs
    ]


def test_attributes_that_carry_their_type_are_sent_as_they_are() -> None:
    value = result(impression())
    value["tracking"]["attributes"][0]["type"] = "custom"
    with_type, without = impressions(value, **WIDE), impressions(result(impression()), **WIDE)
    assert with_type is not None
    assert without is not None
    assert orjson.loads(with_type[1][0][0]) == orjson.loads(without[1][0][0])


def test_a_result_without_tracking_owes_nothing() -> None:
    untracked = result()
    del untracked["tracking"]
    assert impressions(untracked, **WIDE) is None
    assert impressions(untracked | {"error": "request expired"}, **WIDE) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value.pop("source"),
        lambda value: value.update(source=5),
        lambda value: value.update(timestamp="1"),
        lambda value: value.update(timestamp=True),
        lambda value: value.update(tracking=["x"]),
        lambda value: value["tracking"].update(impressions=5),
        lambda value: value["tracking"].update(impressions=["x"]),
        lambda value: value["tracking"].update(attributes={"a": 1}),
        lambda value: value["tracking"].update(accountId=["1"]),
        lambda value: value["tracking"].update(region=None),
        lambda value: value["tracking"]["impressions"][0].pop("ruleKey"),
        lambda value: value["tracking"]["impressions"][0].update(flagKey=[]),
    ],
)
def test_a_value_that_is_no_result_is_rejected(spoil: Any) -> None:
    value = copy.deepcopy(result(impression()))
    spoil(value)
    with pytest.raises(Rejected) as raised:
        impressions(value, **WIDE)
    assert raised.value.reason == "not_a_result"


@pytest.mark.parametrize("value", [[], 5, None, "text"])
def test_a_value_that_is_no_object_is_rejected(value: Any) -> None:
    with pytest.raises(Rejected, match=r"\$: type"):
        impressions(value, **WIDE)


@given(
    sizes=st.lists(st.integers(0, 400), min_size=1, max_size=40),
    max_events=st.integers(1, 50),
    max_bytes=st.integers(900, 6000),
)
def test_visitors_fit_their_bounds_and_lose_nothing(sizes: list[int], max_events: int, max_bytes: int) -> None:
    tracked = [impression(n, variationKey="é" * (size // 2)) for n, size in enumerate(sizes)]
    whole = impressions(result(*tracked), **WIDE)
    found = impressions(result(*tracked), max_events=max_events, max_bytes=max_bytes)
    assert whole is not None
    assert found is not None
    envelope, visitors = found
    parts = [orjson.loads(visitor) for visitor, _ in visitors]
    complete = orjson.loads(whole[1][0][0])
    assert [one for part in parts for one in part["snapshots"]] == complete["snapshots"]
    assert [len(part["snapshots"]) for part in parts] == [events for _, events in visitors]
    for part, (visitor, events) in zip(parts, visitors, strict=True):
        assert part | {"snapshots": []} == complete | {"snapshots": []}
        assert events <= max_events
        assert overhead(envelope) + len(visitor) <= max_bytes or events == 1
    # As few as the order allows: a visitor could not have taken the first snapshot of the next.
    for (visitor, events), following in zip(visitors, parts[1:], strict=False):
        more = len(orjson.dumps(following["snapshots"][0])) + 1
        assert events == max_events or overhead(envelope) + len(visitor) + more > max_bytes


def test_a_visitor_is_filled_to_the_last_byte_and_no_further() -> None:
    tracked = [impression(n) for n in range(9)]
    three = impressions(result(*tracked[:3]), **WIDE)
    assert three is not None
    exact = overhead(ENVELOPE) + len(three[1][0][0])
    for max_bytes, shares in ((exact, [3, 3, 3]), (exact - 1, [2, 2, 2, 2, 1])):
        found = impressions(result(*tracked), max_events=100, max_bytes=max_bytes)
        assert found is not None
        assert [events for _, events in found[1]] == shares
    for max_events, shares in ((4, [4, 4, 1]), (1, [1] * 9), (9, [9])):
        found = impressions(result(*tracked), max_events=max_events, max_bytes=3_500_000)
        assert found is not None
        assert [events for _, events in found[1]] == shares


def test_identities_are_pinned_for_ever() -> None:
    # Changing one of these counts every event twice that is in flight while the worker is replaced.
    assert event_uuid("decide.requests-3-123456", 1_764_000_000_000, 0) == "6f76990f-681b-4bee-879a-7222306c74f5"
    assert event_uuid("decide.requests-3-123456", 1_764_000_000_000, 1) == "aee62a14-5c89-43f3-8bcb-779b785868c3"
    assert event_uuid("track.events-0-0", 0, 0) == "91d91bc8-6fdf-40ff-8b6b-cec17dc72fc3"
    assert event_uuid("é-1-2", -1, 11) == "0a6e161b-acdb-43aa-8b9a-db64728190fa"


@given(TEXT, st.integers(-1, 2**63), st.integers(0, 10_000))
def test_an_identity_is_a_uuid(source: str, timestamp: int, index: int) -> None:
    text = event_uuid(source, timestamp, index)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}", text)
    assert text == event_uuid(source, timestamp, index)
    assert text != event_uuid(source, timestamp, index + 1)


def test_an_envelope_surrounds_visitors() -> None:
    before, after = envelope_bytes(ENVELOPE)
    assert overhead(ENVELOPE) == len(before) + len(after)
    assert orjson.loads(before + b"{},{}" + after) == {
        "account_id": "10000000001",
        "project_id": "20000000001",
        "revision": "42",
        "client_name": "decision-pipeline",
        "client_version": CLIENT_VERSION,
        "anonymize_ip": True,
        "enrich_decisions": True,
        "region": "US",
        "visitors": [{}, {}],
    }


def test_a_stranger_reads_a_body_as_optimizely_documents_it() -> None:
    found = impressions(result(impression(1), impression(2, variationId=None, cmabUuid="c-1")), **WIDE)
    assert found is not None
    late = orjson.dumps(converted({"revenue": 5, "value": 1}, timestamp=1_764_000_000_000))
    before, after = envelope_bytes(ENVELOPE)
    payload = read_payload(orjson.loads(before + found[1][0][0] + b"," + late + after))
    assert [event[:5] for _, event in payload.events] == [
        ("user-1", "flag_1", "rule_1", "treatment", "campaign_activated"),
        ("user-1", "flag_2", "rule_2", "treatment", "campaign_activated"),
        ("user-1", "", "", "", "purchase"),
    ]


def test_a_conversion_is_sent_as_the_sdks_send_it() -> None:
    tags = {"revenue": 1200, "value": "3.5", "nested": {"a": [None]}}
    assert converted(tags) == {
        "visitor_id": "user-1",
        "attributes": [{"entity_id": "1", "key": "country", "type": "custom", "value": "DE"}],
        "snapshots": [
            {
                "events": [
                    {
                        "entity_id": "31001",
                        "key": "purchase",
                        "timestamp": 9,
                        "uuid": event_uuid("track.events-1-5", 9, 0),
                        "tags": tags,
                        "revenue": 1200,
                        "value": 3.5,
                    }
                ]
            }
        ],
    }


def test_a_late_conversion_keeps_its_time_and_its_identity() -> None:
    event = converted({}, timestamp=5)["snapshots"][0]["events"][0]
    assert event == {
        "entity_id": "31001",
        "key": "purchase",
        "timestamp": 5,
        "uuid": event_uuid("track.events-1-5", 9, 0),
    }


@pytest.mark.parametrize("tag", [12.0, "12", True, False, None, [12], {"a": 1}])
def test_revenue_is_an_integer_or_not_sent(tag: object) -> None:
    event = converted({"revenue": tag})["snapshots"][0]["events"][0]
    assert event["tags"] == {"revenue": tag}
    assert "revenue" not in event


@pytest.mark.parametrize("revenue", [0, -5, 2**63])
def test_any_integer_is_revenue(revenue: int) -> None:
    assert converted({"revenue": revenue})["snapshots"][0]["events"][0]["revenue"] == revenue


@pytest.mark.parametrize("tag", [True, False, None, [1], {"a": 1}, "", "1,234", "nan", "-inf", "1e999", "0x10"])
def test_a_value_that_is_no_finite_number_is_not_sent(tag: object) -> None:
    assert "value" not in converted({"value": tag})["snapshots"][0]["events"][0]


@pytest.mark.parametrize(("tag", "value"), [(0, 0.0), (5, 5.0), (-1.5, -1.5), ("5", 5.0), (" 1e3 ", 1000.0)])
def test_numbers_and_their_text_are_values(tag: object, value: float) -> None:
    assert converted({"value": tag})["snapshots"][0]["events"][0]["value"] == value


def test_an_event_that_the_datafile_lacks_is_rejected_without_quoting_it() -> None:
    with pytest.raises(Rejected) as raised:
        converted({}, event_key="someone@example.org")
    assert raised.value.reason == "unknown_event_key"
    assert "someone" not in str(raised.value)
