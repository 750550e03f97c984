"""Events reach ODP once each, whatever it answers; what it refuses becomes a dead letter of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from pipeline.limits import Backoff
from pipeline.messages.events import OdpEvent
from pipeline.odp.events import OdpEvents, render_event
from tests.odp.stand_in import UNSENDABLE, Account, Odp, Parts, parts
from tests.patience import PATIENCE
from tests.settled import Record, RecordingChunk, until


def event(action: str = "view", **data: Any) -> OdpEvent:
    return OdpEvent(None, "fullstack", action, {"fs_user_id": "ann"}, data, None)


def rendered(action: str = "view") -> bytes:
    return render_event(event(action), idempotence_id=action, version="1.2.3")


@asynccontextmanager
async def made_of(odp: Odp, **settings: Any) -> AsyncIterator[tuple[OdpEvents, Parts]]:
    async with parts(odp, **{"event_linger": 30, **settings}) as made:
        events = OdpEvents(
            transport=made.transport, settings=made.settings, metrics=made.metrics,
            backoff=Backoff(first=0.005, cap=0.02, rng=Random(1)),
        )  # fmt: skip
        try:
            yield events, made
        finally:
            await events.close()


async def drained(events: OdpEvents) -> None:
    async with asyncio.timeout(PATIENCE):
        await events.drain()


def test_event_carries_default_data() -> None:
    assert orjson.loads(rendered("view")) == {
        "type": "fullstack",
        "action": "view",
        "identifiers": {"fs_user_id": "ann"},
        "data": {
            "idempotence_id": "view",
            "data_source_type": "sdk",
            "data_source": "decision-pipeline",
            "data_source_version": "1.2.3",
        },
    }


def test_sender_may_set_default_data_itself() -> None:
    given = event(data_source="shop", idempotence_id=None, value=1.5)
    data = orjson.loads(render_event(given, idempotence_id="x", version="1"))["data"]
    assert data["data_source"] == "shop"
    assert data["idempotence_id"] is None
    assert data["value"] == 1.5
    assert data["data_source_type"] == "sdk"


def test_late_event_says_when_it_happened() -> None:
    late = event()
    late.timestamp = 1_700_000_000_999
    assert orjson.loads(render_event(late, idempotence_id="x", version="1"))["data"]["ts"] == 1_700_000_000
    late.data = {"ts": 5}
    assert orjson.loads(render_event(late, idempotence_id="x", version="1"))["data"]["ts"] == 5


@pytest.mark.asyncio
async def test_events_go_in_batches_of_their_account() -> None:
    async with made_of(Odp(), event_batch_size=3) as (events, made):
        chunk, other = RecordingChunk(), RecordingChunk()
        for number in range(7):
            events.add(made.account, rendered(f"a{number}"), chunk, Record())
        events.add(Account(made.odp.host, segments_to_check=("another",)), rendered("a7"), chunk, Record())
        events.add(Account(made.odp.host + "/"), rendered("b0"), other, Record())
        await drained(events)
        assert sorted([each["action"] for each in batch] for batch in made.odp.events) == [
            ["a0", "a1", "a2"], ["a3", "a4", "a5"], ["a6", "a7"], ["b0"],
        ]  # fmt: skip
        assert (chunk.settled, other.settled) == (8, 1)
        assert made.sample("dispatched_events_total", destination="odp_events") == 9


@pytest.mark.asyncio
async def test_linger_sends_what_is_there() -> None:
    async with made_of(Odp(), event_linger=0.01) as (events, made):
        chunk = RecordingChunk()
        events.add(made.account, rendered(), chunk, Record())
        await until(lambda: chunk.settled == 1)


@pytest.mark.asyncio
async def test_refused_event_is_rejected_alone() -> None:
    async with made_of(Odp(poison="bad")) as (events, made):
        chunk = RecordingChunk()
        records = [Record(offset=number) for number in range(20)]
        for number, record in enumerate(records):
            events.add(made.account, rendered("bad" if number == 13 else f"a{number}"), chunk, record)
        await drained(events)
        assert [(record, why.reason) for record, why in chunk.rejected] == [(records[13], "odp_refused")]
        assert chunk.settled == 19
        assert len({each["action"] for batch in made.odp.events for each in batch}) == 19


@pytest.mark.asyncio
async def test_outage_loses_nothing() -> None:
    async with made_of(Odp(statuses=[503, 500, 429, 408])) as (events, made):
        chunk = RecordingChunk()
        events.add(made.account, rendered("a"), chunk, Record())
        events.add(made.account, rendered("b"), chunk, Record())
        await drained(events)
        assert [[each["action"] for each in batch] for batch in made.odp.events] == [["a", "b"]]
        assert (chunk.settled, chunk.rejected) == (2, [])


@pytest.mark.asyncio
async def test_refused_key_is_held_and_alarmed() -> None:
    async with made_of(Odp(key="another"), event_linger=0) as (events, made):
        chunk = RecordingChunk()
        with capture_logs() as logs:
            events.add(made.account, rendered(), chunk, Record())
            await until(lambda: made.sample("dispatches_total", destination="odp_events", outcome="denied") >= 3)
        assert events.held
        assert (chunk.settled, chunk.rejected) == (0, [])
        assert made.sample("upstream_blocked", upstream="odp_events", reason="denied") == 1
        assert [entry["log_level"] for entry in logs] == ["error"]
        assert "public-key" not in repr(logs)
        made.odp.key = "public-key"
        await until(lambda: chunk.settled == 1)
        assert not events.held
        assert made.sample("upstream_blocked", upstream="odp_events", reason="denied") == 0


@pytest.mark.asyncio
async def test_host_not_allowed_is_held_and_never_called() -> None:
    async with made_of(Odp(), allowed_hosts=("api.zaius.com",), event_linger=0) as (events, made):
        chunk = RecordingChunk()
        events.add(made.account, rendered(), chunk, Record())
        await until(lambda: made.sample("upstream_blocked", upstream="odp_events", reason="denied") == 1)
        assert (made.odp.events, chunk.settled, chunk.rejected) == ([], 0, [])


@pytest.mark.asyncio
@pytest.mark.parametrize(("host", "key"), UNSENDABLE.values(), ids=UNSENDABLE)
async def test_account_nobody_can_call_is_held_and_alarmed_and_the_others_go_on(host: str, key: str) -> None:
    async with made_of(Odp(), allowed_hosts=("127.0.0.1", "*.example"), event_linger=0) as (events, made):
        chunk, others = RecordingChunk(), RecordingChunk()
        with capture_logs() as logs:
            events.add(Account(host or made.odp.host, key), rendered(), chunk, Record())
            await until(lambda: made.sample("dispatches_total", destination="odp_events", outcome="denied") >= 3)
        events.add(made.account, rendered(), others, Record())
        await until(lambda: others.settled == 1)
        assert made.sample("upstream_blocked", upstream="odp_events", reason="denied") == 1
        assert (chunk.settled, chunk.rejected) == (0, [])
        assert [entry["log_level"] for entry in logs] == ["error"]
