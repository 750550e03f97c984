"""/health, /ready and /metrics.

Health is progress, not a ping: it fails when work stands still and only a restart could help. An outage of Kafka, the
CDN, ODP or logx is no reason, and is told by both. Ready means: every datafile is loaded or known to be bad, and the
groups were joined.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, Protocol

import orjson
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from pipeline.errors import StartFailed
from pipeline.outage import Outage
from pipeline.settings import OpsSettings

log = structlog.get_logger("pipeline.operations")


class Observed(Protocol):
    """What the endpoints ask the worker."""

    def stuck(self) -> list[str]:
        """What stands still though it should not, one sentence each."""

    def awaited(self) -> list[str]:
        """What the start still waits for, one sentence each; empty once the worker is ready."""

    def outages(self) -> list[Outage]:
        """Of the services that the worker depends on, those under way."""

    def status(self) -> Mapping[str, Any]:
        """Roles, partitions and datafiles, for a person."""


class Operations:
    """The HTTP server of a worker's operators."""

    def __init__(self, observed: Observed, registry: CollectorRegistry, settings: OpsSettings) -> None:
        self._observed = observed
        self._registry = registry
        self._settings = settings
        self._runner: web.AppRunner | None = None
        self.port = settings.port

    async def start(self) -> None:
        """Listen. Raises StartFailed when the address cannot be had."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.host, self._settings.port)
        try:
            await site.start()
        except OSError as error:
            await self.close()
            advice = (
                "set PIPELINE_OPS__PORT to a free port, or to 0 to take any"
                if error.errno in (errno.EADDRINUSE, errno.EACCES)
                else "set PIPELINE_OPS__HOST to an address of this machine, or to 0.0.0.0 for all of them"
            )
            raise StartFailed(
                f"{self._settings.host}:{self._settings.port} cannot be listened on ({error.strerror}): {advice}"
            ) from error
        self.port = self._runner.addresses[0][1]
        log.info("listening", host=self._settings.host, port=self.port, paths=["/health", "/ready", "/metrics"])

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        stuck = self._observed.stuck()
        return _json({"status": "stuck" if stuck else "ok", "stuck": stuck, **self._observed.status()}, bool(stuck))

    async def _ready(self, _: web.Request) -> web.Response:
        awaited = self._observed.awaited()
        outages = [outage.sentence() for outage in self._observed.outages()]
        document = {"status": "waiting" if awaited else "ready", "awaited": awaited, "outages": outages}
        return _json(document, bool(awaited))

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _json(document: Mapping[str, Any], failed: bool) -> web.Response:
    return web.Response(
        status=503 if failed else 200, body=orjson.dumps(document) + b"\n", content_type="application/json"
    )
