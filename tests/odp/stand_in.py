"""ODP on a real socket: GraphQL by a real schema, events, and the faults a test asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer
from graphql import GraphQLError, GraphQLResolveInfo, build_schema, graphql_sync
from prometheus_client import CollectorRegistry

from pipeline.metrics import Metrics
from pipeline.settings import OdpSettings
from pipeline.transport import Transport

SCHEMA = build_schema("""
    type Query { customer(fs_user_id: String, vuid: String): Customer }
    type Customer { audiences(subset: [String]): Audiences }
    type Audiences { edges: [Edge] }
    type Edge { node: Node }
    type Node { name: String, state: String }
""")


@dataclass(frozen=True, slots=True)
class Account:
    host: str
    key: str = "public-key"
    segments_to_check: tuple[str, ...] = ("gold", "silver")


# What a datafile may name and no request can be made of: (host, key), where an empty host stands for the real one.
UNSENDABLE = {
    "key of two lines": ("", "public\nkey"),
    "host with an empty label": ("http://a..example", "public-key"),
    "host with a long label": ("http://" + "x" * 64 + ".example", "public-key"),
}


class ResolverError(Exception):
    def __init__(self, extensions: dict[str, Any]) -> None:
        super().__init__("Exception while fetching data")
        self.extensions = extensions


@dataclass
class Odp:
    """`people` qualify for segments; whoever is not there is unknown, `failing` fails so many times before."""

    people: dict[str, Iterable[str]] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    failing_extensions: dict[str, Any] = field(default_factory=lambda: {"classification": "DataFetchingException"})
    statuses: list[int] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    gate: asyncio.Event | None = None
    max_users: int = 1000
    too_many: tuple[int, bytes] = (400, b'{"message":"too many aliases"}')
    poison: str | None = None
    key: str = "public-key"
    host: str = ""
    queries: list[list[str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    events: list[list[dict[str, Any]]] = field(default_factory=list)
    now: int = 0
    most: int = 0

    @property
    def asked(self) -> list[str]:
        return [user for query in self.queries for user in query]

    async def graphql(self, request: web.Request) -> web.Response:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._graphql(request)
        finally:
            self.now -= 1

    async def _graphql(self, request: web.Request) -> web.Response:
        document = orjson.loads(await request.read())
        variables = document["variables"]
        users = [value for name, value in variables.items() if name != "a"]
        self.queries.append(users)
        self.texts.append(document["query"])
        if self.gate is not None:
            await self.gate.wait()
        if request.headers.get("x-api-key") != self.key:
            return web.Response(status=403)
        status = self.statuses.pop(0) if self.statuses else self.status
        if status != 200:
            return web.Response(status=status, headers=self.headers)
        if self.raw is not None:
            return web.Response(body=self.raw)
        if len(users) > self.max_users:
            return web.Response(status=self.too_many[0], body=self.too_many[1])
        if self.poison in users:
            return web.Response(status=400)
        result = graphql_sync(SCHEMA, document["query"], {"customer": self._customer}, variable_values=variables)
        return web.Response(body=orjson.dumps(result.formatted), content_type="application/json")

    def _customer(self, info: GraphQLResolveInfo[Any], fs_user_id: str) -> dict[str, Any]:
        if self.failing.get(fs_user_id, 0) > 0:
            self.failing[fs_user_id] -= 1
            raise ResolverError(self.failing_extensions)
        if fs_user_id not in self.people:
            raise GraphQLError("could not resolve", extensions={"code": "INVALID_IDENTIFIER_EXCEPTION"})
        qualified = set(self.people[fs_user_id])

        def audiences(info: GraphQLResolveInfo[Any], subset: list[str]) -> dict[str, Any]:
            states = {name: "qualified" if name in qualified else "unqualified" for name in subset}
            return {"edges": [{"node": {"name": name, "state": state}} for name, state in states.items()]}

        return {"audiences": audiences}

    async def take_events(self, request: web.Request) -> web.Response:
        events = orjson.loads(await request.read())
        if request.headers.get("x-api-key") != self.key:
            return web.Response(status=403)
        status = self.statuses.pop(0) if self.statuses else self.status
        if status != 200:
            return web.Response(status=status, headers=self.headers)
        if len(events) > 500 or any(event["action"] == self.poison for event in events):
            return web.Response(status=400)
        self.events.append(events)
        return web.Response(status=202)


@asynccontextmanager
async def serving(odp: Odp) -> AsyncIterator[Odp]:
    """The stand-in on a free port of this machine; `odp.host` is its address."""
    application = web.Application()
    application.router.add_post("/v3/graphql", odp.graphql)
    application.router.add_post("/v3/events", odp.take_events)
    async with TestServer(application, host="127.0.0.1") as server:
        odp.host = f"http://127.0.0.1:{server.port}"
        try:
            yield odp
        finally:
            if odp.gate is not None:
                odp.gate.set()


@dataclass
class Parts:
    """What a client of ODP is made of, and the metrics it sets."""

    odp: Odp
    transport: Transport
    settings: OdpSettings
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.registry)
        self.account = Account(self.odp.host)

    def sample(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(f"decision_pipeline_{name}", labels)
        assert found is not None, name
        return found


@asynccontextmanager
async def parts(odp: Odp, **settings: Any) -> AsyncIterator[Parts]:
    allowed = {"allowed_hosts": ("127.0.0.1",), "allow_http": True, **settings}
    async with serving(odp), Transport() as transport:
        yield Parts(odp, transport, OdpSettings(**allowed))
