"""Visitor attributes of events: which values and keys are sent, under which id."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.project.attributes import EventAttributes

KNOWN = EventAttributes({"country": "41", "$opt_user_agent": "42", "empty": ""}, None)


@pytest.mark.parametrize("value", ["x", "", True, False, 0, -1, 2.5, 2**53, -(2**53)])
def test_values_that_are_sent(value: object) -> None:
    assert KNOWN.chosen({"country": value}) == [{"entity_id": "41", "key": "country", "type": "custom", "value": value}]


@pytest.mark.parametrize("value", [None, [], {}, ["x"], 2**53 + 1, 1e300, float("inf"), float("nan"), 10**400])
def test_values_that_are_not(value: object) -> None:
    assert KNOWN.chosen({"country": value}) == []
    assert KNOWN.written({"country": value}) == b""


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
    written = orjson.loads(b"[" + everything.written(attributes) + b"]")
    assert [{"type": "custom", **one} for one in written] == everything.chosen(attributes)
