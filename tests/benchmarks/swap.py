"""How long the event loop is held while a datafile is replaced under load.

The poller and the decide handler are the worker's own, the CDN is on a real socket; requests are handed over in chunks
that fill half of the time, so that the thread that compiles has the processor for the other half, while thousands of
users wait for a data platform that does not answer. A clock beside them is late by as much as the loop was held: the
longest lateness with replacements is set beside that without any, and beside what it takes to read such a datafile with
orjson, which no thread can take off the loop: it does not let go of the interpreter.
"""

from __future__ import annotations

import asyncio
import time
import timeit
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import orjson
from prometheus_client import CollectorRegistry

from pipeline.cmab import Predictions
from pipeline.datafile.poller import Datafiles
from pipeline.handlers.decide import DecideHandler, Decider
from pipeline.handlers.facts import FactSource
from pipeline.kafka.records import Record
from pipeline.logs import configure_logs
from pipeline.messages.delivery import Result
from pipeline.metrics import Metrics
from pipeline.odp.segments import Segments
from pipeline.sandbox.processes import StandIns
from pipeline.sandbox.project_data import PRODUCTION
from pipeline.settings import CmabSettings, DecideSettings, OdpSettings, OptimizelySettings
from pipeline.transport import Transport
from tests.benchmarks.project import datafile, flag_keys, request

SIZES = (500_000, 5_000_000)
"""Bytes of the datafiles that are replaced."""
_CHUNK = 100
_TICK_SECONDS = 0.001
_POLL_SECONDS = 0.1
_SWAP_SECONDS = 60.0
_WAITING = 9000
_NOBODY = "http://127.0.0.1:9"


@dataclass(slots=True)
class _Chunk:
    """Takes results and forgets them."""

    records: Sequence[Record]
    abandoned: bool = False
    has_room: bool = True

    def publish(self, results: Sequence[Result]) -> None: ...
    def when_room(self, go_on: Any) -> None:
        go_on()

    def reject(self, record: object, why: Exception) -> None:
        raise why

    def done(self, count: int) -> None: ...
    def expect(self, count: int) -> None: ...


class _Lateness:
    """A clock that is late by as long as the loop was held."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._due = 0.0

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + _TICK_SECONDS
        loop.call_at(self._due, self._tick)

    def take(self) -> float:
        """The longest since the last call, in milliseconds."""
        longest, self.longest = self.longest, 0.0
        return longest * 1000

    def _tick(self) -> None:
        self.longest = max(self.longest, asyncio.get_running_loop().time() - self._due)
        self.start()


def swapped(stand_ins: StandIns, octets: int, *, swaps: int) -> dict[str, Any]:
    """Milliseconds that the loop was held at most: without replacement, and for each of `swaps`."""
    configure_logs("error")
    return asyncio.run(_swapped(stand_ins, octets, swaps))


async def _swapped(stand_ins: StandIns, octets: int, swaps: int) -> dict[str, Any]:
    revisions = [_revision(octets, number) for number in range(swaps + 1)]
    stand_ins.put_datafile(PRODUCTION, revisions[0])
    metrics = Metrics(CollectorRegistry())
    async with Transport() as transport:
        settings = OptimizelySettings(
            sdk_keys=(PRODUCTION,), datafile_url_template=stand_ins.cdn_url_template, poll_interval=_POLL_SECONDS
        )
        datafiles = Datafiles(transport=transport, settings=settings, metrics=metrics)
        await datafiles.start()
        await datafiles.settled()
        segments = Segments(transport=transport, settings=_odp(), metrics=metrics)
        handler = _handler(transport, datafiles, segments, metrics)
        handler.handle(_Chunk(_records(_WAITING, fetch_segments=True)))
        load = asyncio.create_task(_load(handler))
        lateness = _Lateness()
        lateness.start()
        await asyncio.sleep(1.0)
        lateness.take()
        await asyncio.sleep(2.0)
        quiet = lateness.take()
        held = [await _one(stand_ins, datafiles, lateness, revision) for revision in revisions[1:]]
        load.cancel()
        await segments.close()
        await datafiles.close()
    return {
        "megabytes": len(revisions[0]) / 10**6, "loads_ms": _loads_ms(revisions[0]),
        "held_ms_without": quiet, "held_ms": max(held), "held_ms_median": median(held),
        "swaps": swaps, "waiting": _WAITING,
    }  # fmt: skip


async def _one(stand_ins: StandIns, datafiles: Datafiles, lateness: _Lateness, revision: bytes) -> float:
    wanted = orjson.loads(revision)["revision"]
    await asyncio.to_thread(stand_ins.put_datafile, PRODUCTION, revision)
    lateness.take()
    async with asyncio.timeout(_SWAP_SECONDS):
        while datafiles.status()[0].revision != wanted:  # noqa: ASYNC110 - the poller tells nobody
            await asyncio.sleep(_TICK_SECONDS)
    # What the old one leaves behind is freed now.
    await asyncio.sleep(0.2)
    return lateness.take()


def _loads_ms(raw: bytes) -> float:
    return min(timeit.repeat(lambda: orjson.loads(raw), number=1, repeat=9)) * 1000


def _revision(octets: int, number: int) -> bytes:
    return datafile(100, odp_host=_NOBODY, pad_bytes=octets).replace(
        b'"revision":"42"', b'"revision":"%d"' % (42 + number)
    )


def _odp() -> OdpSettings:
    return OdpSettings(allowed_hosts=("127.0.0.1",), allow_http=True, fetch_deadline=600)


def _handler(transport: Transport, datafiles: Datafiles, segments: Segments, metrics: Metrics) -> DecideHandler:
    predictions = Predictions(transport=transport, settings=CmabSettings(), metrics=metrics)
    facts = FactSource(
        datafiles=datafiles, segments=segments, profiles=None, predictions=predictions, max_result_bytes=10**6
    )
    decider = Decider(
        datafiles=datafiles, facts=facts, settings=DecideSettings(), max_record_bytes=10**6, metrics=metrics
    )  # fmt: skip
    return decider.handler()


def _records(count: int, *, fetch_segments: bool = False) -> list[Record]:
    first = _CHUNK if fetch_segments else 0
    values = [request(first + number, flag_keys(1), fetch_segments=fetch_segments) for number in range(count)]
    return [Record("decide.requests", 0, at, 1, 1, b"", value, ()) for at, value in enumerate(values)]


async def _load(handler: DecideHandler) -> None:
    records = _records(_CHUNK)
    while True:
        began = time.perf_counter()
        handler.handle(_Chunk(records))
        await asyncio.sleep(time.perf_counter() - began)
