"""The traffic repeats with its seed, has every kind of record, and holds what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import orjson
import pytest

from pipeline.messages.dead_letters import REASONS
from pipeline.sandbox import project_data as data
from pipeline.sandbox.traffic import Fate, Sent, decide_requests, odp_events, track_events

GENERATORS = [decide_requests, track_events, odp_events]


@pytest.mark.parametrize("generate", GENERATORS, ids=lambda generate: generate.__name__)
def test_the_seed_repeats_the_records(generate: Callable[..., Iterator[Sent]]) -> None:
    assert list(generate(300, seed=5)) == list(generate(300, seed=5))
    assert list(generate(300, seed=5)) != list(generate(300, seed=6))
    # A longer run begins as a shorter one.
    assert list(generate(500))[:300] == list(generate(300))


def test_the_default_run_has_every_kind_of_request() -> None:
    sent = list(decide_requests(5000))
    kinds = Counter(record.kind for record in sent)
    assert set(kinds) == {
        "ordinary", "not JSON", "unknown SDK key", "no userId", "denied SDK key", "unknown option",
        "userId is a number", "unknown to ODP", "not an object", "attributes are a list", "keys are a text",
        "unknown flag", "userId is empty", "no record key", "no value", "expired",
    }  # fmt: skip
    fates = Counter(record.fate for record in sent)
    assert set(fates) == {Fate.DECIDED, Fate.ERROR, Fate.EXPIRED, Fate.DEAD_LETTER}
    assert fates[Fate.DECIDED] > 4500
    bodies = [orjson.loads(record.value or b"") for record in sent if record.kind == "ordinary"]
    lengths = Counter(min(len(body["keys"]), 2) for body in bodies)
    assert all(lengths[length] > 500 for length in (0, 1, 2))
    assert sum(body["fetchSegments"] for body in bodies) > 2000
    assert any("no_such_flag" in body["keys"] for body in bodies)
    assert any(len(set(body["keys"])) < len(body["keys"]) for body in bodies)
    assert any("forcedDecisions" in body for body in bodies)
    assert {body["sdkKey"] for body in bodies} == {data.PRODUCTION, data.STAGING}
    assert {option for body in bodies for option in body.get("decideOptions", ())} >= {
        "DISABLE_DECISION_EVENT", "ENABLED_FLAGS_ONLY",
    }  # fmt: skip


def test_events_of_every_kind() -> None:
    tracked, sent = list(track_events(500)), list(odp_events(500))
    assert {record.kind for record in tracked if record.fate is Fate.DEAD_LETTER} == {
        "unknown event", "not JSON", "no userId", "unknown SDK key", "no eventKey", "denied SDK key",
    }  # fmt: skip
    assert {record.kind for record in sent if record.fate is Fate.DEAD_LETTER} == {
        "no action", "no identifiers", "data is nested", "not JSON", "denied SDK key",
    }  # fmt: skip
    assert {orjson.loads(r.value or b"")["eventKey"] for r in tracked if r.kind == "ordinary"} == set(data.EVENTS)
    assert {record.fate for record in tracked + sent} == {Fate.DELIVERED, Fate.DEAD_LETTER}


@pytest.mark.parametrize("generate", GENERATORS, ids=lambda generate: generate.__name__)
def test_a_record_s_key_is_its_user(generate: Callable[..., Iterator[Sent]]) -> None:
    for record in generate(400):
        if record.kind == "ordinary":
            body = orjson.loads(record.value or b"")
            assert record.key == (body.get("userId") or body["identifiers"]["fs_user_id"]).encode()


@pytest.mark.parametrize("generate", GENERATORS, ids=lambda generate: generate.__name__)
def test_a_dead_letter_s_reason_is_one_of_the_contract(generate: Callable[..., Iterator[Sent]]) -> None:
    for record in generate(400):
        assert (record.reason in REASONS) is (record.fate is Fate.DEAD_LETTER), record


def test_requests_that_expire_live_for_a_millisecond() -> None:
    expiring = [record for record in decide_requests(600) if record.fate is Fate.EXPIRED]
    assert expiring
    assert {orjson.loads(record.value or b"")["ttlMs"] for record in expiring} == {1}
