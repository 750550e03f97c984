"""GraphQL for segments: the query for any number of users, and what its answer says of each. Pure.

Many users share one query by aliases. User ids and segment names go in as variables only, so no value is ever part of
the query's text, and the same number of users gives the same text, which a server may remember as validated.
`odp/client.py` calls both sides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson

from pipeline.errors import SegmentsUnavailable, Unavailable

QUALIFIED = "qualified"
# How the two generations of ODP's server say that a user id belongs to nobody they know.
_INVALID_IDENTIFIER = ("INVALID_IDENTIFIER_EXCEPTION", "InvalidIdentifierException")
_THROTTLED = re.compile(r"\brate\b|throttl|too many requests|quota", re.IGNORECASE)
_TOO_LARGE = re.compile(r"alias|complex|too (many|large|deep)|exceed|depth|cost", re.IGNORECASE)

Outcome = frozenset[str] | SegmentsUnavailable


class QueryTooLarge(Exception):
    """The server says that the query as a whole asks for too much; fewer users may be answered."""


@lru_cache(maxsize=1024)
def query_text(users: int) -> str:
    """The query for `users` users: aliases u0, u1, ... with a variable each, and $a for the segments asked about."""
    variables = "".join(f",$u{number}:String" for number in range(users))
    fields = " ".join(
        f"u{number}:customer(fs_user_id:$u{number}){{audiences(subset:$a){{edges{{node{{name state}}}}}}}}"
        for number in range(users)
    )
    return f"query($a:[String]{variables}){{{fields}}}"


def request_body(user_ids: Sequence[str], segments: Sequence[str]) -> bytes:
    variables: dict[str, object] = {f"u{number}": user_id for number, user_id in enumerate(user_ids)}
    variables["a"] = segments
    return orjson.dumps({"query": query_text(len(user_ids)), "variables": variables})


def parse_answer(body: bytes, users: int) -> list[Outcome]:
    """For each user the qualified segments, or why there are none.

    An error with a path fails the user it names. One without fails the users without data; if all have data, or if the
    list of errors is empty, which GraphQL forbids, the answer cannot be trusted and everyone fails.
    Raises QueryTooLarge if the server refused the query for its size.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        return [_failed("decode_error")] * users
    data = answer.get("data")
    if not isinstance(data, dict):
        data = {}
    outcomes: list[Outcome] = [_segments(data.get(f"u{number}")) for number in range(users)]
    errors = answer.get("errors")
    return outcomes if errors is None else _with_errors(outcomes, errors, data)


def _with_errors(outcomes: list[Outcome], errors: object, data: dict[str, Any]) -> list[Outcome]:
    if not isinstance(errors, list) or not errors:
        return [_failed("decode_error")] * len(outcomes)
    general = None
    for error in errors:
        number = _user_of(error, len(outcomes))
        if number is not None:
            outcomes[number] = _failure_of(error)
        elif general is None:
            general = error
    if general is None:
        return outcomes
    if not data and _THROTTLED.search(_message_of(general)):
        # A limit of requests told in a 200: asking for fewer users a request would only make more of them.
        raise Unavailable("ODP limits the rate of requests", status=429)
    if not data and len(outcomes) > 1 and _TOO_LARGE.search(_message_of(general)):
        raise QueryTooLarge
    whole = [number for number in range(len(outcomes)) if data.get(f"u{number}") is None] or range(len(outcomes))
    for number in whole:
        if not _explained(outcomes[number]):
            outcomes[number] = _failure_of(general)
    return outcomes


def _segments(customer: object) -> Outcome:
    """Names of the qualified nodes. Odd edges are skipped, segments not asked about are accepted: as the SDKs do."""
    edges: Any = customer
    for name in ("audiences", "edges"):
        edges = edges.get(name) if isinstance(edges, dict) else None
    if not isinstance(edges, list):
        return _failed("decode_error")
    names = set()
    for edge in edges:
        node = edge.get("node") if isinstance(edge, dict) else None
        if isinstance(node, dict) and node.get("state") == QUALIFIED and isinstance(node.get("name"), str):
            names.add(node["name"])
    return frozenset(names)


def _user_of(error: object, users: int) -> int | None:
    """Number of the user whose alias the error's path begins with."""
    path = error.get("path") if isinstance(error, dict) else None
    alias = path[0] if isinstance(path, list) and path else None
    if not isinstance(alias, str) or not re.fullmatch(r"u[0-9]{1,4}", alias) or int(alias[1:]) >= users:
        return None
    return int(alias[1:])


def _failure_of(error: object) -> SegmentsUnavailable:
    extensions = error.get("extensions") if isinstance(error, dict) else None
    if not isinstance(extensions, dict):
        return _failed("decode_error")
    code, classification = extensions.get("code"), extensions.get("classification")
    if code == _INVALID_IDENTIFIER[0] or classification == _INVALID_IDENTIFIER[1]:
        return _failed("invalid_identifier")
    if not isinstance(classification, str):
        return _failed("decode_error")
    return _failed("query_error", classification[:64])


def _explained(outcome: Outcome) -> bool:
    return isinstance(outcome, SegmentsUnavailable) and outcome.reason != "decode_error"


def _message_of(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else ""


def _failed(reason: str, text: str = "") -> SegmentsUnavailable:
    return SegmentsUnavailable(reason, f"audience segments fetch failed ({text or reason.replace('_', ' ')})")
