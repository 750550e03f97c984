"""Conversions and ODP events: what is sent on, and why the rest is a dead letter."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.messages.contracts import MAX_NESTING, ODP_EVENT, TRACK_EVENT, too_deep
from pipeline.messages.dead_letters import REASONS
from pipeline.messages.events import OdpEvent, TrackEvent, parse_odp_event, parse_track_event
from tests.messages.examples import CONTRACTS, MAX_BYTES, document, files, nested, value
from tests.messages.strategies import documents_like

NOT_DATA = "ODP data is not valid"
NO_USER = 'missing "userId" in request payload'
NO_EVENT = 'missing "eventKey" in request payload'
NO_ACTION = 'missing "action" in request payload'
NO_IDENTIFIERS = 'missing or empty "identifiers" in request payload'

# What becomes of each invalid example: reason and detail.
TRACK_FAULTS = {
    "user-id-missing": ("user_id_missing", NO_USER),
    "user-id-empty": ("user_id_missing", NO_USER),
    "user-id-number": ("user_id_missing", "userId is no string"),
    "event-key-missing": ("event_key_missing", NO_EVENT),
    "event-key-null": ("event_key_missing", NO_EVENT),
    "event-key-empty": ("event_key_missing", NO_EVENT),
    "event-key-number": ("invalid_field", "eventKey: type"),
    "attributes-list": ("invalid_field", "userAttributes: type"),
    "tags-list": ("invalid_field", "eventTags: type"),
    "tags-text": ("invalid_field", "eventTags: type"),
    "timestamp-text": ("invalid_field", "timestamp: type"),
    "timestamp-in-seconds": ("invalid_field", "timestamp: minimum"),
    "timestamp-in-microseconds": ("invalid_field", "timestamp: maximum"),
    "timestamp-fraction": ("invalid_field", "timestamp: type"),
    "sdk-key-with-blank": ("invalid_field", "sdkKey: pattern"),
    "not-an-object-list": ("not_an_object", "a list in place of an object"),
    "not-an-object-number": ("not_an_object", "a number in place of an object"),
}
ODP_FAULTS = {
    "action-missing": ("action_missing", NO_ACTION),
    "action-null": ("action_missing", NO_ACTION),
    "action-empty": ("action_missing", NO_ACTION),
    "action-number": ("invalid_field", "action: type"),
    "identifiers-missing": ("identifiers_missing", NO_IDENTIFIERS),
    "identifiers-null": ("identifiers_missing", NO_IDENTIFIERS),
    "identifiers-none": ("identifiers_missing", NO_IDENTIFIERS),
    "identifiers-all-empty": ("identifiers_missing", NO_IDENTIFIERS),
    "identifiers-text": ("invalid_field", "identifiers: type"),
    "identifiers-number-inside": ("invalid_field", "identifiers.fs_user_id: type"),
    "data-object-inside": ("data_invalid", f"{NOT_DATA} (data.o: type)"),
    "data-list-inside": ("data_invalid", f"{NOT_DATA} (data.l: type)"),
    "data-number-too-large": ("data_invalid", f"{NOT_DATA} (data.big: maximum)"),
    "data-number-too-small": ("data_invalid", f"{NOT_DATA} (data.low: minimum)"),
    "data-list": ("invalid_field", "data: type"),
    "data-text": ("invalid_field", "data: type"),
    "type-number": ("invalid_field", "type: type"),
    "timestamp-in-seconds": ("invalid_field", "timestamp: minimum"),
    "sdk-key-number": ("invalid_field", "sdkKey: type"),
    "not-an-object-list": ("not_an_object", "a list in place of an object"),
}
RECORD_FAULTS = {"empty", "not_json", "not_an_object"}


def track(event: object) -> TrackEvent:
    return parse_track_event(orjson.dumps(event), max_bytes=MAX_BYTES)


def odp(event: object) -> OdpEvent:
    return parse_odp_event(orjson.dumps(event), max_bytes=MAX_BYTES)


def fault_of(parse: Callable[..., object], raw: bytes) -> tuple[str, str]:
    with pytest.raises(Rejected) as rejection:
        parse(raw, max_bytes=MAX_BYTES)
    return rejection.value.reason, rejection.value.detail


@pytest.mark.parametrize("name", files("valid", "track-event"))
def test_a_valid_conversion_is_read(name: str) -> None:
    raw = value("valid", "track-event", name)
    assert parse_track_event(raw, max_bytes=MAX_BYTES).user_id == "user-1"


@pytest.mark.parametrize("name", files("invalid", "track-event"))
def test_an_invalid_conversion_says_what_is_wrong(name: str) -> None:
    assert fault_of(parse_track_event, value("invalid", "track-event", name)) == TRACK_FAULTS[name]


@pytest.mark.parametrize("name", files("valid", "odp-event"))
def test_a_valid_odp_event_is_read(name: str) -> None:
    event = parse_odp_event(value("valid", "odp-event", name), max_bytes=MAX_BYTES)
    assert event.action == document("valid", "odp-event", name)["action"]


@pytest.mark.parametrize("name", files("invalid", "odp-event"))
def test_an_invalid_odp_event_says_what_is_wrong(name: str) -> None:
    assert fault_of(parse_odp_event, value("invalid", "odp-event", name)) == ODP_FAULTS[name]


def test_a_conversion_is_read_whole() -> None:
    assert track(document("valid", "track-event", "everything")) == TrackEvent(
        sdk_key="Kq3zV8wL2bT7nR5xY1mP9",
        user_id="user-1",
        event_key="purchase",
        attributes={"country": "SI", "beta": True},
        tags={"revenue": 1200, "value": 3.5, "category": "shoes"},
        timestamp=1767225600000,
    )
    bare = TrackEvent(None, "user-1", "purchase", {}, {}, None)
    assert track(document("valid", "track-event", "null-is-absent")) == bare
    assert track(document("valid", "track-event", "only-the-required")) == bare
    late = track(document("valid", "track-event", "whole-number-with-fraction")).timestamp
    assert (late, type(late)) == (1767225600000, int)


def test_an_odp_event_is_read_whole() -> None:
    assert odp(document("valid", "odp-event", "everything")) == OdpEvent(
        sdk_key="Kq3zV8wL2bT7nR5xY1mP9",
        type="loyalty",
        action="tier_reached",
        identifiers={"fs_user_id": "user-1", "email": "jo@example.org"},
        data={"tier": "gold", "points": 1200, "ratio": 0.5, "first": True, "previous": None},
        timestamp=1767225600000,
    )
    bare = OdpEvent(None, "fullstack", "opened", {"vuid": "v1"}, {}, None)
    assert odp(document("valid", "odp-event", "null-is-absent")) == bare
    assert odp(document("valid", "odp-event", "type-empty")) == bare


@pytest.mark.parametrize(
    ("given_names", "sent"),
    [
        ({"fs-user-id": "x"}, {"fs_user_id": "x"}),
        ({"FS_USER_ID": "x"}, {"fs_user_id": "x"}),
        ({"email": "e", "Fs-User-Id": "x"}, {"email": "e", "fs_user_id": "x"}),
        # An exact one leaves the others as they are; of two inexact ones the first is renamed.
        ({"Fs-User-Id": "x", "fs_user_id": "y"}, {"Fs-User-Id": "x", "fs_user_id": "y"}),
        ({"FS-USER-ID": "a", "FS_user_ID": "b"}, {"fs_user_id": "a", "FS_user_ID": "b"}),
        # Neither spelling, so another identifier.
        ({"fs-user_id": "x", "fsuserid": "y"}, {"fs-user_id": "x", "fsuserid": "y"}),
        ({"fs_user_id": "", "email": "e", "phone": ""}, {"email": "e", "phone": ""}),
        ({"FS_USER_ID": "", "email": "e"}, {"email": "e"}),
        ({"fs_user_id": None, "email": "e", "phone": None}, {"email": "e"}),
        ({"Email": "e"}, {"Email": "e"}),
    ],
)
def test_the_user_id_gets_its_proper_name(given_names: dict[str, Any], sent: dict[str, str]) -> None:
    identifiers = odp({"action": "a", "identifiers": given_names}).identifiers
    assert list(identifiers.items()) == list(sent.items())


def test_valid_data_is_not_blamed_for_another_fault() -> None:
    faulty = {"type": 5, "action": "a", "identifiers": {"vuid": "v"}, "data": {"k": 1}}
    assert fault_of(parse_odp_event, orjson.dumps(faulty)) == ("invalid_field", "type: type")
    both = fault_of(parse_odp_event, orjson.dumps({**faulty, "data": {"k": []}}))
    assert both[0] == "invalid_field"


def test_an_event_that_is_too_deep_is_rejected() -> None:
    assert track({"userId": "u", "eventKey": "e", "eventTags": {"a": nested(MAX_NESTING - 2)}})
    deep = {"userId": "u", "eventKey": "e", "action": "a", "identifiers": {"vuid": "v"}, "x": nested(MAX_NESTING)}
    for parse in (parse_track_event, parse_odp_event):
        assert fault_of(parse, orjson.dumps(deep)) == ("too_deep", "nested more than 200 levels deep")


@pytest.mark.parametrize(("message", "parse"), [("track-event", parse_track_event), ("odp-event", parse_odp_event)])
def test_no_depth_under_any_name_makes_an_event_raise_anything_but_rejected(
    message: str, parse: Callable[..., object]
) -> None:
    example = document("valid", message, "everything")
    for name in CONTRACTS[message].schema["properties"]:
        for deep in (nested(300), [nested(300)], {name: nested(300)}):
            reason, detail = fault_of(parse, json.dumps(example | {name: deep}).encode())
            assert reason in REASONS
            assert detail


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100) | documents_like("track-event").map(orjson.dumps))
def test_no_bytes_make_a_conversion_raise_anything_but_rejected(raw: bytes) -> None:
    try:
        event = parse_track_event(raw, max_bytes=MAX_BYTES)
    except Rejected as why:
        assert why.reason in RECORD_FAULTS | {"user_id_missing", "event_key_missing", "invalid_field"}
        assert why.reason in RECORD_FAULTS or not TRACK_EVENT.is_valid(orjson.loads(raw))
        assert why.detail
        return
    given_document = orjson.loads(raw)
    assert TRACK_EVENT.is_valid(given_document)
    assert not too_deep(raw, given_document)
    assert event.user_id
    assert event.event_key
    orjson.dumps([event.attributes, event.tags, event.timestamp])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100) | documents_like("odp-event").map(orjson.dumps))
def test_no_bytes_make_an_odp_event_raise_anything_but_rejected(raw: bytes) -> None:
    try:
        event = parse_odp_event(raw, max_bytes=MAX_BYTES)
    except Rejected as why:
        assert why.reason in RECORD_FAULTS | {"action_missing", "identifiers_missing", "data_invalid", "invalid_field"}
        assert why.reason in RECORD_FAULTS or not ODP_EVENT.is_valid(orjson.loads(raw))
        assert why.detail
        return
    assert ODP_EVENT.is_valid(orjson.loads(raw))
    assert event.type
    assert event.action
    assert any(event.identifiers.values())
    assert all(type(identifier) is str for identifier in event.identifiers.values())
    assert all(part is None or type(part) in (str, bool, int, float) for part in event.data.values())
    orjson.dumps([event.identifiers, event.data, event.timestamp])
