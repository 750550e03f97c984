"""Visitor attributes of events: which values and keys are sent, under which id."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.project.attributes import MOST_REMEMBERED, EventAttributes


def written(known: EventAttributes, attributes: dict[str, Any]) -> list[dict[str, Any]]:
    """What is written for a result, as an event carries it."""
    try:
        as_json = orjson.dumps(attributes)
    except TypeError:
        as_json = b"{}"  # an integer too large; a result echoes null
    entries = orjson.loads(b"[" + known.written(attributes, as_json) + b"]")
    return [
        {"entity_id": one["entity_id"], "key": one["key"], "type": "custom", "value": one["value"]} for one in entries
    ]


KNOWN = EventAttributes({"country": "41", "$opt_user_agent": "42", "empty": ""}, None)


@pytest.mark.parametrize("value", ["x", "", True, False, 0, -1, 2.5, 2**53, -(2**53)])
def test_values_that_are_sent(value: object) -> None:
    assert KNOWN.chosen({"country": value}) == [{"entity_id": "41", "key": "country", "type": "custom", "value": value}]


@pytest.mark.parametrize("value", [None, [], {}, ["x"], 2**53 + 1, 1e300, float("inf"), float("nan"), 10**400])
def test_values_that_are_not(value: object) -> None:
    assert KNOWN.chosen({"country": value}) == []
    assert written(KNOWN, {"country": value}) == []


def test_keys() -> None:
    attributes = {"unknown": 1, "$opt_user_agent": "a", "$opt_other": "b", "empty": 1, "country": "SI"}
    sent = [(one["entity_id"], one["key"]) for one in KNOWN.chosen(attributes)]
    assert sent == [("42", "$opt_user_agent"), ("$opt_other", "$opt_other"), ("41", "country")]


@pytest.mark.parametrize("bot_filtering", [True, False])
def test_bot_filtering_comes_last(bot_filtering: bool) -> None:
    attributes = EventAttributes({"a": "1"}, bot_filtering).chosen({"$opt_x": 1, "a": 2})
    assert [one["key"] for one in attributes] == ["$opt_x", "a", "$opt_bot_filtering"]
    assert attributes[-1]["value"] is bot_filtering


def test_written_is_what_is_chosen() -> None:
    everything = EventAttributes({"country": "41", "ž": "4\n2", "$opt_known": "43"}, False)
    attributes: dict[str, Any] = {
        "country": "S\nI",
        "ž": 5,
        "$opt_x": True,
        "$opt_known": 2.5,
        "no": 1,
        "nothing": None,
    }
    for _ in range(2):  # the second time from memory
        assert written(everything, attributes) == everything.chosen(attributes)


def test_what_is_remembered_is_bounded_and_told_apart_by_every_value() -> None:
    attributes = EventAttributes({"a": "1"}, None)
    for number in range(2 * MOST_REMEMBERED + 10):
        assert written(attributes, {"a": number})[0]["value"] == number
    assert len(attributes._remembered) <= MOST_REMEMBERED
    for value in (1, True, 1.0, "1", "x", "X"):
        (sent,) = written(attributes, {"a": value})
        assert (type(sent["value"]), sent["value"]) == (type(value), value)
    long = {"a": "x" * 1000}
    assert written(attributes, long) == attributes.chosen(long)
    assert all(len(as_json) < 1000 for as_json in attributes._remembered)
