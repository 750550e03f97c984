"""Takes events as fast as it can: counts them without parsing, so that what is measured is who sends them.

A process, `python -m tests.benchmarks.sink`, that says its port in one line. `GET /ledger` gives requests, events
and bytes; both Optimizely's and the data platform's event requests are taken.
"""

from __future__ import annotations

import asyncio
import sys

import orjson
from aiohttp import web

_LARGEST_BODY = 16 * 1024**2


class Sink:
    def __init__(self) -> None:
        self.counted = {"requests": 0, "events": 0, "bytes": 0}

    def _count(self, body: bytes, events: int) -> None:
        self.counted["requests"] += 1
        self.counted["events"] += events
        self.counted["bytes"] += len(body)

    async def logx(self, request: web.Request) -> web.Response:
        body = await request.read()
        # Each event has one, and it is no name that a value of the benchmarks' project contains.
        self._count(body, body.count(b'"uuid"'))
        return web.Response(status=204)

    async def odp(self, request: web.Request) -> web.Response:
        body = await request.read()
        self._count(body, body.count(b'"action"'))
        return web.json_response({"title": "Accepted", "status": 202}, status=202)

    async def ledger(self, request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self.counted), content_type="application/json")


async def serve() -> None:
    sink = Sink()
    application = web.Application(client_max_size=_LARGEST_BODY)
    application.router.add_post("/v1/events", sink.logx)
    application.router.add_post("/v3/events", sink.odp)
    application.router.add_get("/ledger", sink.ledger)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(orjson.dumps({"port": runner.addresses[0][1]}).decode() + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
