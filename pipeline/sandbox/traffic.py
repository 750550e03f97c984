"""Records as other services would produce them, some of them broken, each with what must become of it.

The same seed gives the same records. About one in twenty requests is wrong in some way. Used by the demo, the tests
and the benchmarks; the project they are about is `project_data`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import orjson

from pipeline.sandbox.project_data import EVENTS, FLAGS, PEOPLE, PRODUCTION, REVOKED, STAGING, email_of, user_id

Stream = Literal["decide_requests", "track_events", "odp_events"]


class Fate(StrEnum):
    """What must become of a record."""

    DECIDED = "result"
    ERROR = "result with error"
    EXPIRED = "expired"
    DELIVERED = "delivered"
    DEAD_LETTER = "dead letter"


class Sent(NamedTuple):
    """A record to produce. `kind` names what is special about it, `reason` is that of its dead letter, `error` that of
    its result."""

    stream: Stream
    key: bytes | None
    value: bytes | None
    fate: Fate
    kind: str
    reason: str = ""
    error: str = ""


STREAMS: tuple[Stream, ...] = ("decide_requests", "track_events", "odp_events")
UNKNOWN_TO_ODP = "unknown to ODP"
EXPIRED = "request expired"
_OPTIONS = (
    "INCLUDE_REASONS",
    "EXCLUDE_VARIABLES",
    "ENABLED_FLAGS_ONLY",
    "DISABLE_DECISION_EVENT",
    "IGNORE_USER_PROFILE_SERVICE",
)
_FORCED = (("checkout_redesign", "redesign"), ("search_ranking", "fresh_first"), ("onboarding_tour", "on"))
_UNKNOWN_SDK_KEY = "nobodysKey000001"
_BROKEN_EVERY = 20

Body = dict[str, Any]


def decide_requests(count: int, *, seed: int = 1) -> Iterator[Sent]:
    """Requests for one flag, several or all of them, half with segments; every twentieth is wrong in some way.

    Those that expire live for one millisecond: whoever wants to see it for sure sends them before a worker reads.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    wrong = _cycle(_WRONG_REQUESTS)
    for number in range(1, count + 1):
        body = _request(rng, number)
        if number % _BROKEN_EVERY:
            yield _sent("decide_requests", body, Fate.DECIDED, "ordinary")
        else:
            yield next(wrong)(body)


def track_events(count: int, *, seed: int = 2) -> Iterator[Sent]:
    """Conversions with tags; every twentieth is wrong in some way."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    wrong = _cycle(_WRONG_CONVERSIONS)
    for number in range(1, count + 1):
        body = _conversion(rng)
        if number % _BROKEN_EVERY:
            yield _sent("track_events", body, Fate.DELIVERED, "ordinary")
        else:
            yield next(wrong)(body)


def odp_events(count: int, *, seed: int = 3) -> Iterator[Sent]:
    """Events for the data platform; every twentieth is wrong in some way."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    wrong = _cycle(_WRONG_ODP_EVENTS)
    for number in range(1, count + 1):
        body = _odp_event(rng)
        if number % _BROKEN_EVERY:
            yield _sent("odp_events", body, Fate.DELIVERED, "ordinary")
        else:
            yield next(wrong)(body)


def _request(rng: random.Random, number: int) -> Body:
    # Some people come back often: the segments cache has something to do.
    person = rng.randint(1, PEOPLE) if rng.random() < 0.7 else rng.randint(1, PEOPLE // 50)
    body: Body = {
        "requestId": f"request-{number}",
        "sdkKey": PRODUCTION if rng.random() < 0.7 else STAGING,
        "userId": user_id(person),
        "userAttributes": _attributes(rng),
        "keys": _keys(rng),
        "fetchSegments": rng.random() < 0.5,
    }
    if rng.random() < 0.3:
        body["decideOptions"] = rng.sample(_OPTIONS, rng.randint(1, 2))
    if body["fetchSegments"] and rng.random() < 0.02:
        body["fetchSegmentsOptions"] = ["IGNORE_CACHE"]
    if rng.random() < 0.03:
        flag, variation = rng.choice(_FORCED)
        body["forcedDecisions"] = [{"flagKey": flag, "variationKey": variation}]
    return body


def _keys(rng: random.Random) -> list[str]:
    """One flag for most; several, one of them unknown now and then, or repeated; none, which means all."""
    chosen = rng.random()
    if chosen < 0.5:
        return [rng.choice(FLAGS)]
    if chosen < 0.8:
        keys = rng.sample(FLAGS, rng.randint(2, 4))
        if rng.random() < 0.1:
            keys.append(rng.choice(["no_such_flag", keys[0]]))
        return keys
    return []


def _attributes(rng: random.Random) -> Body:
    attributes: Body = {
        "plan": rng.choice(["free", "basic", "premium"]),
        "country": rng.choice(["DE", "AT", "FR", "US"]),
        "age": rng.randint(14, 80),
        "app_version": rng.choice(["2.9.4", "3.1.0", "3.2.0-beta", "3.4.1"]),
        "visits": rng.choice([1, 7, 21, 40.5]),
        "staff": rng.random() < 0.02,
        "not_in_the_datafile": "ignored",
    }
    return {name: value for name, value in attributes.items() if rng.random() < 0.8}


def _conversion(rng: random.Random) -> Body:
    body: Body = {
        "sdkKey": PRODUCTION if rng.random() < 0.7 else STAGING,
        "userId": user_id(rng.randint(1, PEOPLE)),
        "eventKey": rng.choice(list(EVENTS)),
        "userAttributes": _attributes(rng),
    }
    if rng.random() < 0.6:
        body["eventTags"] = {"revenue": rng.randint(100, 90_000), "value": rng.random() * 10, "category": "shoes"}
    return body


def _odp_event(rng: random.Random) -> Body:
    person = user_id(rng.randint(1, PEOPLE))
    identifiers = {"fs_user_id": person}
    if rng.random() < 0.3:
        identifiers["email"] = email_of(person)
    return {
        "sdkKey": PRODUCTION if rng.random() < 0.7 else STAGING,
        "action": rng.choice(["viewed", "added_to_cart", "purchased"]),
        "identifiers": identifiers,
        "data": {"product": rng.randint(1, 500), "price": 12.5, "first_time": rng.random() < 0.2, "campaign": None},
    }


def _sent(stream: Stream, body: object, fate: Fate, kind: str, key: str | None = None) -> Sent:
    if key is None and isinstance(body, dict):
        user = body.get("userId") or body.get("identifiers", {}).get("fs_user_id")
        key = user if isinstance(user, str) else None
    return Sent(stream, key.encode() if key else None, orjson.dumps(body), fate, kind)


def _dead_letter(stream: Stream, body: object, reason: str, kind: str, key: str | None = None) -> Sent:
    return _sent(stream, body, Fate.DEAD_LETTER, kind, key)._replace(reason=reason)


def _raw(stream: Stream, value: bytes | None, reason: str, kind: str) -> Sent:
    return Sent(stream, b"broken", value, Fate.DEAD_LETTER, kind, reason)


def _cycle(kinds: tuple[Callable[[Body], Sent], ...]) -> Iterator[Callable[[Body], Sent]]:
    while True:
        yield from kinds


def _without(body: Body, name: str) -> Body:
    return {key: value for key, value in body.items() if key != name}


def _error(kind: str, error: str, **changes: object) -> Callable[[Body], Sent]:
    """A request that is answered with an error."""
    return lambda body: _sent("decide_requests", body | changes, Fate.ERROR, kind)._replace(error=error)


def _dead(stream: Stream, kind: str, reason: str, **changes: object) -> Callable[[Body], Sent]:
    """A record that can only be a dead letter."""
    return lambda body: _dead_letter(stream, body | changes, reason, kind)


_NO_USER = "user_id_missing"
_NO_KEY = "sdk_key_unusable"
# What the contract says, not what the worker's code says.
_DENIED = "unable to fetch fresh datafile (consider rechecking SDK key), status code: 403 Forbidden"
_NOT_PARSED = "error parsing request body"
_NO_SEGMENTS = "failed to fetch qualified segments"
_WRONG_REQUESTS: tuple[Callable[[Body], Sent], ...] = (
    lambda _: _raw("decide_requests", b'{"userId": "user-00001', "not_json", "not JSON"),
    _error("unknown SDK key", "unknown SDK key", sdkKey=_UNKNOWN_SDK_KEY),
    lambda body: _dead_letter("decide_requests", _without(body, "userId"), _NO_USER, "no userId", key="user-00007"),
    _error("denied SDK key", _DENIED, sdkKey=REVOKED),
    lambda body: _sent("decide_requests", body | {"ttlMs": 1}, Fate.EXPIRED, "expired")._replace(error=EXPIRED),
    _error("unknown option", "invalid option: INCLUDE_REASON", decideOptions=["INCLUDE_REASON"]),
    _dead("decide_requests", "userId is a number", _NO_USER, userId=7),
    lambda body: _sent(
        "decide_requests",
        _without(body, "fetchSegmentsOptions") | {"userId": f"guest-{body['requestId']}", "fetchSegments": True},
        Fate.ERROR,
        UNKNOWN_TO_ODP,
    )._replace(error=_NO_SEGMENTS),
    lambda _: _raw("decide_requests", b"[1, 2, 3]", "not_an_object", "not an object"),
    _error("attributes are a list", _NOT_PARSED, userAttributes=["plan"]),
    _error("keys are a text", _NOT_PARSED, keys="checkout_redesign"),
    lambda body: _sent("decide_requests", body | {"keys": ["no_such_flag"]}, Fate.DECIDED, "unknown flag"),
    _dead("decide_requests", "userId is empty", _NO_USER, userId=""),
    lambda body: _sent("decide_requests", body, Fate.DECIDED, "no record key")._replace(key=None),
    lambda _: _raw("decide_requests", None, "empty", "no value"),
)
_WRONG_CONVERSIONS: tuple[Callable[[Body], Sent], ...] = (
    _dead("track_events", "unknown event", "unknown_event_key", eventKey="no_such_event"),
    lambda _: _raw("track_events", b"purchase", "not_json", "not JSON"),
    lambda body: _dead_letter("track_events", _without(body, "userId"), _NO_USER, "no userId", key="user-00007"),
    _dead("track_events", "unknown SDK key", _NO_KEY, sdkKey=_UNKNOWN_SDK_KEY),
    lambda body: _dead_letter("track_events", _without(body, "eventKey"), "event_key_missing", "no eventKey"),
    _dead("track_events", "denied SDK key", _NO_KEY, sdkKey=REVOKED),
)
_WRONG_ODP_EVENTS: tuple[Callable[[Body], Sent], ...] = (
    lambda body: _dead_letter("odp_events", _without(body, "action"), "action_missing", "no action"),
    _dead("odp_events", "no identifiers", "identifiers_missing", identifiers={}),
    _dead("odp_events", "data is nested", "data_invalid", data={"product": {"id": 7}}),
    lambda _: _raw("odp_events", b"{", "not_json", "not JSON"),
    _dead("odp_events", "denied SDK key", _NO_KEY, sdkKey=REVOKED),
)
