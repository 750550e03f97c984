"""Tags of conversions, generated, as the Python SDK would send them: what it drops, what it reads from them."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimizely.error_handler import NoOpErrorHandler
from optimizely.event.event_factory import EventFactory
from optimizely.event.user_event_factory import UserEventFactory
from optimizely.logger import BaseLogger
from optimizely.project_config import ProjectConfig as SdkConfig

from pipeline.logx.payload import conversion
from pipeline.messages.events import parse_track_event
from pipeline.project import compile_datafile
from tests.conformance.dice import Json
from tests.decision.projects import document

DATAFILE = json.dumps(document(events=[{"id": "31", "key": "purchase", "experimentIds": []}]))
PROJECT = compile_datafile(DATAFILE.encode())
_LOGGER: Any = BaseLogger()
_CONFIG: Any = SdkConfig(DATAFILE, _LOGGER, NoOpErrorHandler)
_READ = ("tags", "revenue", "value")
_NAMES = st.sampled_from(["revenue", "value", "tags", "decisions", "category", ""])
_TEXTS = st.sampled_from(["12", "12.5", " 1e3 ", "1_000", "nan", "-inf", "1e999", "0x10", "1,234", "null", "None", ""])
_SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=6
)


def ours(tags: Json) -> Json:
    raw = json.dumps({"userId": "u", "eventKey": "purchase", "eventTags": tags}).encode()
    _, visitor, _ = conversion(PROJECT, parse_track_event(raw, max_bytes=10**6), source="t-0-1", timestamp=1)
    return _read(orjson.loads(visitor)["snapshots"][0]["events"][0])


def theirs(tags: Json) -> Json:
    given_tags: Any = json.loads(json.dumps(tags))
    event: Any = UserEventFactory.create_conversion_event(_CONFIG, "purchase", "u", None, given_tags)
    created: Any = EventFactory.create_log_event(event, _LOGGER)
    return _read(created.params["visitors"][0]["snapshots"][0]["events"][0])


def _read(event: Json) -> Json:
    """Without tags that say nothing: none, or none that is sent. Numbers with their kind: 1, 1.0 and true are equal."""
    return {name: json.dumps(event[name]) for name in _READ if name in event and event[name] != {}}


@given(st.dictionaries(_NAMES, _VALUES, max_size=4))
def test_tags_are_sent_as_the_sdk_sends_them(tags: Json) -> None:
    assert ours(tags) == theirs(tags)


@pytest.mark.parametrize(
    ("tags", "sent"),
    [
        ({"revenue": None, "value": None}, {}),
        ({"revenue": None, "value": 1, "category": None}, {"tags": '{"value": 1, "category": null}', "value": "1.0"}),
        ({"revenue": -5, "value": "12"}, {"tags": '{"revenue": -5, "value": "12"}', "revenue": "-5", "value": "12.0"}),
        ({"revenue": "12", "value": True}, {"tags": '{"revenue": "12", "value": true}'}),
        ({"revenue": 12.0}, {"tags": '{"revenue": 12.0}'}),
        ({"items": [{"value": None, "tags": None, "id": None}]}, {"tags": '{"items": [{"id": null}]}'}),
    ],
)
def test_what_is_null_or_no_number_is_not_read_and_null_is_dropped(tags: Json, sent: Json) -> None:
    assert ours(tags) == theirs(tags) == sent
