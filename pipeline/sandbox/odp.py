"""Stand-in for Optimizely's data platform: segments by GraphQL, and events.

`POST /v3/graphql` is executed by graphql-core against a real schema, so a query is really parsed and validated; a user
it does not know is an error at that alias, and null, beside the data of the others. `POST /v3/events` takes 1 to 500
events and counts them once by `idempotence_id`. Controls: `api_keys`; `users`, an object user id -> segments that goes
before the 5,000 people; `max_aliases` and `refuse_status`, a limit on users in a query and how it is refused (200: as
GraphQL errors); `poison`, identifier values that an event request is refused for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson
from aiohttp import web
from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLError,
    OperationDefinitionNode,
    execute_sync,
    parse,
    validate,
)

from pipeline.sandbox.odp_schema import SCHEMA
from pipeline.sandbox.project_data import API_KEYS, segments_of
from pipeline.sandbox.server import Handler, StandIn, answer_json, argument_parser, serve

_QUERIES_KEPT = 1000
_EVENTS_AT_ONCE = 500


class Odp(StandIn):
    service = "odp"
    controls: ClassVar[Mapping[str, Any]] = {
        "api_keys": sorted(API_KEYS.values()),
        "users": {},
        "max_aliases": None,
        "refuse_status": 400,
        "poison": [],
    }

    def __init__(self) -> None:
        super().__init__()
        # Validating 50 aliases takes longer than executing them, and a worker sends the same text again and again.
        self._queries: dict[str, DocumentNode | list[GraphQLError]] = {}
        self.reset()

    def reset(self) -> None:
        self._asked: Counter[str] = Counter()
        self._per_second: Counter[int] = Counter()
        self._graphql = self._aliases = self._unknown = self._largest_query = self._refused = self._denied = 0
        self._events: Counter[str] = Counter()
        self._bodies: dict[str, dict[str, Any]] = {}
        self._event_requests = self._largest_batch = self._bad_events = 0
        self._refusals: list[str] = []

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        return {("POST", "/v3/graphql"): self._post_graphql, ("POST", "/v3/events"): self._post_events}

    def ledger(self, query: Mapping[str, str]) -> dict[str, Any]:
        counted: dict[str, Any] = {
            "graphql_requests": self._graphql,
            "aliases": self._aliases,  # users asked for, repeats included
            "users": len(self._asked),
            "unknown_users": self._unknown,
            "largest_query": self._largest_query,
            "busiest_second": max(self._per_second.values(), default=0),
            "query_texts": len(self._queries),
            "refused": self._refused,
            "denied": self._denied,
            "event_requests": self._event_requests,
            "events": self._events.total(),
            "distinct_events": len(self._events),
            "repeated_events": self._events.total() - len(self._events),
            "largest_event_batch": self._largest_batch,
            "refused_events": self._bad_events,
            "refusals": self._refusals,
        }
        if query.get("full"):
            counted |= {"asked": self._asked, "event_bodies": list(self._bodies.values())}
        return counted

    async def _post_graphql(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("x-api-key") not in self.faults["api_keys"]:
            self._denied += 1
            return answer_json({"message": "Forbidden"}, status=403)
        self._graphql += 1
        self._per_second[int(time.monotonic())] += 1
        try:
            document = orjson.loads(body)
            text, variables = document["query"], document.get("variables") or {}
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            return self._bad_query(f"not a GraphQL request: {error}", 400)
        known = self._validated(text)
        if isinstance(known, list):
            return answer_json({"errors": [_formatted(error, "ValidationError") for error in known]})
        operations = [node for node in known.definitions if isinstance(node, OperationDefinitionNode)]
        aliases = sum(len(operation.selection_set.selections) for operation in operations)
        most = self.faults["max_aliases"]
        if most is not None and aliases > most:
            return self._bad_query(f"query is too complex: {aliases} > {most}", self.faults["refuse_status"])
        self._aliases += aliases
        self._largest_query = max(self._largest_query, aliases)
        done = execute_sync(SCHEMA, known, root_value=self, variable_values=variables)
        assert isinstance(done, ExecutionResult)
        answer: dict[str, Any] = {"data": done.data}
        if done.errors:
            self._unknown += len(done.errors)
            answer["errors"] = [_formatted(error, "DataFetchingException") for error in done.errors]
        return answer_json(answer)

    def known_segments(self, fs_user_id: str) -> list[str] | None:
        """All segments of a user, None if there is no such user; called by the schema, once for an alias."""
        self._asked[fs_user_id] += 1
        ordered: dict[str, list[str]] = self.faults["users"]
        if fs_user_id in ordered:
            return ordered[fs_user_id]
        segments = segments_of(fs_user_id)
        return None if segments is None else list(segments)

    def _validated(self, text: str) -> DocumentNode | list[GraphQLError]:
        known = self._queries.get(text)
        if known is None:
            try:
                document = parse(text)
                known = validate(SCHEMA, document) or document
            except GraphQLError as error:
                known = [error]
            if len(self._queries) >= _QUERIES_KEPT:
                self._queries.clear()
            self._queries[text] = known
        return known

    def _bad_query(self, why: str, status: int) -> web.Response:
        self._refused += 1
        error = {"message": why, "extensions": {"classification": "ExecutionAborted"}}
        return answer_json({"errors": [error]}, status=status)

    async def _post_events(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("x-api-key") not in self.faults["api_keys"]:
            self._denied += 1
            return answer_json({"title": "Forbidden", "status": 403}, status=403)
        try:
            events = orjson.loads(body)
        except orjson.JSONDecodeError:
            return self._bad_events_answer("not JSON")
        fault = _events_fault(events)
        if fault is not None:
            return self._bad_events_answer(fault)
        poison = set(self.faults["poison"])
        if poison and any(poison & set(event["identifiers"].values()) for event in events):
            return self._bad_events_answer("poison")
        self._event_requests += 1
        self._largest_batch = max(self._largest_batch, len(events))
        for event in events:
            identity = str(event["data"]["idempotence_id"])
            self._events[identity] += 1
            self._bodies[identity] = event
        return answer_json({"title": "Accepted", "status": 202}, status=202)

    def _bad_events_answer(self, why: str) -> web.Response:
        self._bad_events += 1
        self._refusals.append(why)
        del self._refusals[:-20]
        return answer_json({"title": "Bad Request", "status": 400, "detail": why}, status=400)


def _formatted(error: GraphQLError, classification: str) -> dict[str, Any]:
    formatted: dict[str, Any] = dict(error.formatted)
    return formatted | {"extensions": {"classification": classification, **(error.extensions or {})}}


def _events_fault(events: Any) -> str | None:
    """What the data platform would refuse, None if nothing."""
    if type(events) is not list or not 0 < len(events) <= _EVENTS_AT_ONCE:
        return f"not an array of 1 to {_EVENTS_AT_ONCE} events"
    for number, event in enumerate(events):
        fault = _event_fault(event)
        if fault is not None:
            return f"[{number}]: {fault}"
    return None


def _event_fault(event: Any) -> str | None:
    if type(event) is not dict or event.keys() != {"type", "action", "identifiers", "data"}:
        return "not exactly type, action, identifiers, data"
    for name in ("type", "action"):
        if type(event[name]) is not str or not event[name]:
            return f"{name} is no text"
    identifiers, data = event["identifiers"], event["data"]
    if type(identifiers) is not dict or not identifiers:
        return "identifiers is empty"
    if any(type(value) is not str or not value for value in identifiers.values()):
        return "an identifier is no text"
    if type(data) is not dict or any(type(value) in (list, dict) for value in data.values()):
        return "data is not flat"
    if not data.get("idempotence_id"):
        return "idempotence_id is missing"
    return None


def main() -> None:
    options = argument_parser("Stand-in for Optimizely's data platform").parse_args()
    serve(Odp(), options.port)


if __name__ == "__main__":
    main()
