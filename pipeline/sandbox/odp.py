"""Stand-in for Optimizely's data platform: segments by GraphQL, and events.

`POST /v3/graphql` is executed by graphql-core against a real schema, so a query is really parsed and validated; a user
it does not know is an error at that alias, and null, beside the data of the others. `POST /v3/events` takes 1 to 500
events and counts them once by `idempotence_id`; an event makes its identifiers known and of one person. Accounts, each
with its API key, share neither people nor events.
Controls: `api_keys`; `users`, an object user id -> segments that goes before the 5,000 people; `max_aliases` and
`refuse_status`, a limit on users in a query and how it is refused (200: as GraphQL errors); `poison`, identifier
values that an event request is refused for; `form`, `exact` or `fast` (see odp_fast.py).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

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

from pipeline.sandbox.odp_events import as_kept, events_fault
from pipeline.sandbox.odp_fast import UNKNOWN, Answers, Shape, shape_of
from pipeline.sandbox.odp_people import People
from pipeline.sandbox.odp_schema import SCHEMA
from pipeline.sandbox.project_data import API_KEYS
from pipeline.sandbox.server import Handler, StandIn, answer_json, argument_parser, serve

_QUERIES_KEPT = 1000
EXACT, FAST = "exact", "fast"


class Query(NamedTuple):
    """A text that was validated: what is wrong with it, or how to answer it."""

    errors: list[GraphQLError]
    document: DocumentNode
    aliases: int
    shape: Shape | None


@dataclass(slots=True)
class Asking:
    """What the schema resolves an identifier by: the people of the account that asks."""

    people: People
    asked: Counter[str]

    def known_segments(self, name: str, value: str) -> tuple[str, ...] | None:
        """All segments of a user, None if there is no such user; called once for an alias."""
        self.asked[value] += 1
        return self.people.segments((name, value))


class Odp(StandIn):
    service = "odp"
    controls: ClassVar[Mapping[str, Any]] = {
        "api_keys": sorted(API_KEYS.values()),
        "users": {},
        "max_aliases": None,
        "refuse_status": 400,
        "poison": [],
        "form": EXACT,
    }
    meanings: ClassVar[Mapping[str, str]] = {
        "api_keys": "API keys that are accepted; any other gets 403",
        "users": "user id -> list of segments, before those of the sandbox's users",
        "max_aliases": "most users in one GraphQL query; null: no limit",
        "refuse_status": "status of a query above max_aliases; 200: refused as a GraphQL error",
        "poison": "identifier values; a request with an event of one of them is refused",
        "form": f"{EXACT}: GraphQL is executed; {FAST}: answered without executing it, for load",
    }

    def __init__(self, form: str = EXACT) -> None:
        super().__init__()
        self.initial["form"] = self.faults["form"] = form
        # Validating 50 aliases takes longer than executing them, and a worker sends the same text again and again.
        self._queries: dict[str, Query] = {}
        self._answers = Answers()
        self.reset()

    def reset(self) -> None:
        self._people: dict[str, People] = {}
        self._asked: dict[str, Counter[str]] = defaultdict(Counter)
        self._per_second: Counter[int] = Counter()
        self._graphql = self._aliases = self._unknown = self._largest_query = self._refused = self._denied = 0
        self._bodies: dict[tuple[str, str], dict[str, Any]] = {}
        self._event_requests = self._largest_batch = self._bad_events = self._repeats = self._conflicts = 0
        self._refusals: list[str] = []

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        return {("POST", "/v3/graphql"): self._post_graphql, ("POST", "/v3/events"): self._post_events}

    def ledger(self, query: Mapping[str, str]) -> dict[str, Any]:
        counted: dict[str, Any] = {
            "graphql_requests": self._graphql,
            "aliases": self._aliases,  # users asked for, repeats included
            "users": sum(map(len, self._asked.values())),  # distinct ones of each account
            "unknown_users": self._unknown,  # as often as they were asked for
            "largest_query": self._largest_query,
            "busiest_second": max(self._per_second.values(), default=0),
            "query_texts": len(self._queries),
            "refused": self._refused,
            "denied": self._denied,
            "event_requests": self._event_requests,
            "events": len(self._bodies) + self._repeats,
            "distinct_events": len(self._bodies),
            "repeated_events": self._repeats,
            "conflicting_events": self._conflicts,  # repeats that say something else than the first
            "largest_event_batch": self._largest_batch,
            "stitched_persons": sum(people.stitched for people in self._people.values()),
            "refused_events": self._bad_events,
            "refusals": self._refusals,
        }
        if query.get("full"):
            counted["asked"] = sum(self._asked.values(), Counter())
            counted["event_bodies"] = list(self._bodies.values())
            counted["event_accounts"] = [api_key for api_key, _ in self._bodies]  # of each body
        return counted

    def refusal(self, controls: Mapping[str, Any]) -> str | None:
        fault = super().refusal(controls)
        unknown = fault is None and controls.get("form", EXACT) not in (EXACT, FAST)
        return f"form is to be {EXACT} or {FAST}" if unknown else fault

    def ordered(self, controls: Mapping[str, Any]) -> None:
        super().ordered(controls)
        for people in self._people.values():
            people.told = self.faults["users"]

    async def _post_graphql(self, request: web.Request) -> web.Response:
        body = await request.read()
        api_key = request.headers.get("x-api-key", "")
        if api_key not in self.faults["api_keys"]:
            self._denied += 1
            return answer_json({"message": "Forbidden"}, status=403)
        self._graphql += 1
        self._per_second[int(time.monotonic())] += 1
        try:
            document = orjson.loads(body)
            text, variables = document["query"], document.get("variables") or {}
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            return self._bad_query(f"not a GraphQL request: {error}", 400)
        if type(text) is not str or type(variables) is not dict:
            return self._bad_query("not a GraphQL request: query is no text, or variables is no object", 400)
        query = self._queries.get(text) or self._validated(text)
        if query.errors:
            return answer_json({"errors": [_formatted(error, "ValidationError") for error in query.errors]})
        most = self.faults["max_aliases"]
        if most is not None and query.aliases > most:
            return self._bad_query(f"query is too complex: {query.aliases} > {most}", self.faults["refuse_status"])
        self._aliases += query.aliases
        self._largest_query = max(self._largest_query, query.aliases)
        return answer_json(self._answer_to(query, variables, Asking(self._people_of(api_key), self._asked[api_key])))

    def _answer_to(self, query: Query, variables: Any, asking: Asking) -> dict[str, Any]:
        if query.shape is not None and self.faults["form"] == FAST:
            rendered = self._answers.answer(query.shape, variables, asking.known_segments)
            if rendered is not None:
                self._unknown += rendered[1]
                return rendered[0]
        done = execute_sync(SCHEMA, query.document, root_value=asking, variable_values=variables)
        assert isinstance(done, ExecutionResult)
        answer: dict[str, Any] = {"data": done.data}
        if done.errors:
            self._unknown += sum((error.extensions or {}).get("code") == UNKNOWN for error in done.errors)
            answer["errors"] = [_formatted(error, "DataFetchingException") for error in done.errors]
        return answer

    def _people_of(self, api_key: str) -> People:
        """Accounts do not know each other's people."""
        if api_key not in self._people:
            self._people[api_key] = People(self.faults["users"])
        return self._people[api_key]

    def _validated(self, text: str) -> Query:
        document = DocumentNode(definitions=())
        try:
            document = parse(text)
            errors = list(validate(SCHEMA, document))
        except GraphQLError as error:
            errors = [error]
        operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
        aliases = sum(len(operation.selection_set.selections) for operation in operations)
        if len(self._queries) >= _QUERIES_KEPT:
            self._queries.clear()
        shape = None if errors else shape_of(document)
        query = self._queries[text] = Query(errors, document, aliases, shape)
        return query

    def _bad_query(self, why: str, status: int) -> web.Response:
        self._refused += 1
        error = {"message": why, "extensions": {"classification": "ExecutionAborted"}}
        return answer_json({"errors": [error]}, status=status)

    async def _post_events(self, request: web.Request) -> web.Response:
        body = await request.read()
        api_key = request.headers.get("x-api-key", "")
        if api_key not in self.faults["api_keys"]:
            self._denied += 1
            return answer_json({"title": "Forbidden", "status": 403}, status=403)
        try:
            events = orjson.loads(body)
        except orjson.JSONDecodeError:
            return self._bad_events_answer("not JSON")
        fault = events_fault(events)
        if fault is not None:
            return self._bad_events_answer(fault)
        poison = set(self.faults["poison"])
        if poison and any(poison & set(event["identifiers"].values()) for event in events):
            return self._bad_events_answer("poison")
        self._event_requests += 1
        self._largest_batch = max(self._largest_batch, len(events))
        people = self._people_of(api_key)
        for event in events:
            identity, kept = (api_key, str(event["data"]["idempotence_id"])), as_kept(event)
            first = self._bodies.setdefault(identity, kept)
            if first is not kept:
                self._repeats += 1
                self._conflicts += first != kept
            people.meet(event["identifiers"].items())
        return answer_json({"title": "Accepted", "status": 202}, status=202)

    def _bad_events_answer(self, why: str) -> web.Response:
        self._bad_events += 1
        self._refusals.append(why)
        del self._refusals[:-20]
        return answer_json({"title": "Bad Request", "status": 400, "detail": why}, status=400)


def _formatted(error: GraphQLError, classification: str) -> dict[str, Any]:
    formatted: dict[str, Any] = dict(error.formatted)
    return formatted | {"extensions": {"classification": classification, **(error.extensions or {})}}


def main() -> None:
    parser = argument_parser("Stand-in for Optimizely's data platform")
    parser.add_argument(
        "--fast", action="store_const", const=FAST, default=EXACT, dest="form", help="answer without executing GraphQL"
    )
    options = parser.parse_args()
    serve(Odp(options.form), options.port)


if __name__ == "__main__":
    main()
