"""Visitors reach Optimizely's endpoint of their region, within its limits, each settled once. Real sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from pipeline.limits import Backoff
from pipeline.logx.dispatcher import Logx
from pipeline.logx.payload import Envelope
from pipeline.metrics import Metrics
from pipeline.settings import LogxSettings
from pipeline.transport import Transport
from tests.patience import PATIENCE
from tests.settled import Record, RecordingChunk, until

US = Envelope("1", "2", "42", True, "US")
EU = Envelope("1", "2", "42", True, "EU")
POISON = b"poison"


@dataclass
class Endpoint:
    """Optimizely's event endpoint: keeps bodies, answers `answers` first and then 204; refuses poison."""

    bodies: list[tuple[str, bytes]] = field(default_factory=list)
    types: set[str] = field(default_factory=set)
    answers: list[int] = field(default_factory=list)
    poisoned: int = 400

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.types.add(request.headers["Content-Type"])
        self.bodies.append((request.path, body))
        if self.answers:
            return web.Response(status=self.answers.pop(0))
        return web.Response(status=self.poisoned if POISON in body else 204)

    def documents(self, path: str) -> list[Any]:
        return [orjson.loads(body) for at, body in self.bodies if at == path]


class Bench:
    """The real client against an endpoint, with the metrics it sets."""

    def __init__(self, logx: Logx, endpoint: Endpoint, registry: CollectorRegistry) -> None:
        self.logx, self.endpoint, self.registry = logx, endpoint, registry
        self.chunk = RecordingChunk()

    def add(self, *visitors: bytes, envelope: Envelope = US, events: int = 1) -> list[Record]:
        records = [Record(offset=n) for n in range(len(visitors))]
        for visitor, record in zip(visitors, records, strict=True):
            self.logx.add(envelope, visitor, events, self.chunk, record)
        return records

    async def drain(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.logx.drain()

    def held(self, reason: str) -> float | None:
        name = "decision_pipeline_upstream_blocked"
        return self.registry.get_sample_value(name, {"upstream": "logx", "reason": reason})

    def sample(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(f"decision_pipeline_{name}", {"destination": "logx"} | labels)
        return found or 0.0


@asynccontextmanager
async def bench(**settings: Any) -> AsyncIterator[Bench]:
    endpoint, registry = Endpoint(), CollectorRegistry()
    app = web.Application(client_max_size=4 * 1024**2)
    app.router.add_post("/{region}/v1/events", endpoint.receive)
    async with TestServer(app) as server, Transport() as transport:
        logx = Logx(
            transport=transport,
            settings=LogxSettings(
                url=str(server.make_url("/us/v1/events")), eu_url=str(server.make_url("/eu/v1/events")), **settings
            ),
            metrics=Metrics(registry),
            backoff=Backoff(first=0.001, cap=0.004, rng=random.Random(1)),
        )
        yield Bench(logx, endpoint, registry)
        await logx.close()


@pytest.mark.asyncio
async def test_visitors_share_a_request_and_any_2xx_settles_them() -> None:
    async with bench() as b:
        b.endpoint.answers = [200]
        b.add(b'{"visitor_id":"a"}', b'{"visitor_id":"b"}', events=2)
        await b.drain()
        [document] = b.endpoint.documents("/us/v1/events")
        assert document["visitors"] == [{"visitor_id": "a"}, {"visitor_id": "b"}]
        assert (document["revision"], document["anonymize_ip"], document["enrich_decisions"]) == ("42", True, True)
        assert b.endpoint.types == {"application/json"}
        assert b.chunk.settlements == [2]
        assert b.sample("dispatched_events_total") == 4


@pytest.mark.asyncio
async def test_nothing_waits_longer_than_the_linger() -> None:
    async with bench(linger=0.01) as b:
        b.add(b"{}")
        await until(lambda: b.chunk.settled == 1)
        assert b.sample("dispatch_cuts_total", trigger="linger") == 1


@pytest.mark.asyncio
async def test_a_region_has_its_endpoint_and_an_envelope_its_request() -> None:
    odd = [US._replace(region="XX"), US._replace(revision="43"), US._replace(anonymize_ip=False), US]
    async with bench() as b:
        for envelope in [*odd, EU, EU._replace(account_id="9"), *odd, EU]:
            b.add(b"{}", envelope=envelope)
        await b.drain()
        american, european = b.endpoint.documents("/us/v1/events"), b.endpoint.documents("/eu/v1/events")
        assert [len(one["visitors"]) for one in american] == [2, 2, 2, 2]
        assert sorted(len(one["visitors"]) for one in european) == [1, 2]
        assert {one["region"] for one in european} == {"EU"}
        assert b.chunk.settled == 11


@pytest.mark.asyncio
@pytest.mark.parametrize(("batch_bytes", "batch_events", "most"), [(1000, 10_000, None), (100_000, 9, 4)])
async def test_no_request_is_over_the_limits(batch_bytes: int, batch_events: int, most: int | None) -> None:
    names = ["x" * (n * 7 % 120) for n in range(300)]
    async with bench(batch_bytes=batch_bytes, batch_events=batch_events) as b:
        b.add(*(orjson.dumps({"visitor_id": name}) for name in names), events=2)
        await b.drain()
        documents = b.endpoint.documents("/us/v1/events")
        largest = max(len(body) for _, body in b.endpoint.bodies)
        if most is None:
            assert batch_bytes - 40 < largest <= batch_bytes
        else:
            assert max(len(one["visitors"]) for one in documents) == most
        assert sorted(v["visitor_id"] for one in documents for v in one["visitors"]) == sorted(names)
        assert b.chunk.settled == len(names)


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [400, 413, 422])
async def test_only_the_refused_visitor_is_rejected(status: int) -> None:
    visitors = [b'{"visitor_id":"%d"}' % n for n in range(40)]
    visitors[17] = b'{"visitor_id":"poison"}'
    async with bench() as b:
        b.endpoint.poisoned = status
        records = b.add(*visitors)
        await b.drain()
        [(record, why)] = b.chunk.rejected
        assert record is records[17]
        assert why.reason == "logx_refused"
        assert str(why).startswith(f"Optimizely refused the event: HTTP {status}")
        assert b.chunk.settled == 39
        assert b.held("denied") == b.held("unavailable") == 0


@pytest.mark.asyncio
async def test_a_visitor_that_no_request_can_hold_is_rejected_unsent() -> None:
    async with bench(batch_bytes=400) as b:
        small, large = b.add(b"{}", b'{"visitor_id":"%s"}' % (b"x" * 400))
        await b.drain()
        [(record, why)] = b.chunk.rejected
        assert record is large
        assert record is not small
        assert why.reason == "event_too_large"
        assert (b.chunk.settled, len(b.endpoint.bodies)) == (1, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize(("status", "reason"), [(503, "unavailable"), (429, "unavailable"), (403, "denied")])
async def test_an_outage_holds_and_loses_nothing(status: int, reason: str) -> None:
    async with bench() as b:
        b.endpoint.answers = [status] * 10_000
        b.add(b'{"visitor_id":"a"}', b'{"visitor_id":"b"}')
        drained = asyncio.create_task(b.drain())
        await until(lambda: b.held(reason) and len(b.endpoint.bodies) > 3)
        assert (b.chunk.settled, drained.done()) == (0, False)
        b.endpoint.answers.clear()
        await drained
        # The same bytes each time, so what arrived although it was not confirmed is counted once.
        assert len({body for _, body in b.endpoint.bodies}) == 1
        assert (b.chunk.settled, b.chunk.rejected, b.held(reason)) == (2, [], 0)
