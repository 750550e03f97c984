"""The datafile and the requests that are timed: flags all alike, in whose experiments every user takes part.

A flag has what a flag of a shop has: three variables, an experiment of two variations behind an audience of three
conditions, and a rollout for everyone else. Conditions are nested and ids are as long as Optimizely writes them, and
each audience has its stand-in for old SDKs: all of that is read by whoever is compared. Everything is a function of
its arguments.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from pipeline.sandbox.project_data import API_KEYS, PRODUCTION, user_id

FLAGS = ("checkout", "search", "banner", "pricing")
SEGMENT = "mobile_users"
"""The segment that audiences ask for: one that the sandbox's data platform knows, and seven in ten people are in."""

_COUNTRIES = ("DE", "FR", "AT", "SI")
_ATTRIBUTES = ("country", "age", "app_version", "plan")
_VARIABLES = (("colour", "string", "blue"), ("limit", "integer", "10"), ("dark", "boolean", "false"))
_TREATED = ("green", "20")
_STAND_IN = orjson.dumps(
    ["or", {"match": "exact", "name": "$opt_dummy_attribute", "type": "custom_attribute", "value": "$opt_dummy_value"}]
).decode()

Document = dict[str, Any]


def flag_keys(count: int) -> tuple[str, ...]:
    """The keys of the first `count` flags."""
    return (*FLAGS, *(f"flag_{number:04d}" for number in range(len(FLAGS) + 1, count + 1)))[:count]


def datafile(flags: int = 4, *, segments: bool = True, odp_host: str | None = None, pad_bytes: int = 0) -> bytes:
    """`flags` flags, and as many more as it takes to make the file `pad_bytes` long.

    With `segments` one of the three conditions of an audience asks for SEGMENT, else for an attribute, as the two
    others do. `odp_host` is the URL of the data platform; None: the project has none.
    """
    written = orjson.dumps(_document(flags, segments, odp_host))
    while len(written) < pad_bytes:
        of_one = len(orjson.dumps(_document(flags + 1, segments, odp_host))) - len(written)
        flags += -(-(pad_bytes - len(written)) // of_one)
        written = orjson.dumps(_document(flags, segments, odp_host))
    return written


def request(number: int, keys: Sequence[str], *, fetch_segments: bool = False, sdk_key: str | None = None) -> bytes:
    """The decide request of one user, who meets all conditions on attributes.

    Counted from 1, the first 5,000 users are the sandbox's people. Three hundred combinations of attributes occur.
    """
    document: Document = {
        "requestId": str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))),
        "userId": user_id(number),
        "userAttributes": {
            "country": _COUNTRIES[number % 4],
            "age": 20 + number % 50,
            "app_version": f"{2 + number % 2}.{4 + number % 3}.1",
            "plan": "premium",
        },
        "keys": list(keys),
    }
    if fetch_segments:
        document["fetchSegments"] = True
    if sdk_key is not None:
        document["sdkKey"] = sdk_key
    return orjson.dumps(document)


def _id(kind: int, number: int) -> str:
    """An id of eleven digits. `kind` has two, and tells the ids of different things apart."""
    return str(kind * 10**9 + number)


def _document(flags: int, segments: bool, odp_host: str | None) -> Document:
    numbers = range(1, flags + 1)
    integration = {"key": "odp", "host": odp_host, "publicKey": API_KEYS[PRODUCTION]}
    keys = flag_keys(flags)
    return {
        "version": "4",
        "accountId": "12001",
        "projectId": "12002",
        "revision": "42",
        "sdkKey": "bench",
        "environmentKey": "production",
        "region": "US",
        "anonymizeIP": True,
        "botFiltering": False,
        "sendFlagDecisions": True,
        "attributes": [{"id": _id(10, at), "key": key} for at, key in enumerate(_ATTRIBUTES)],
        "audiences": [{**_named(number), "conditions": _STAND_IN} for number in numbers],
        "typedAudiences": [{**_named(number), "conditions": _conditions(segments)} for number in numbers],
        "events": [],
        "groups": [],
        "experiments": [_experiment(number, key) for number, key in zip(numbers, keys, strict=True)],
        "featureFlags": [_flag(number, key) for number, key in zip(numbers, keys, strict=True)],
        "rollouts": [{"id": _id(60, number), "experiments": [_everyone_else(number)]} for number in numbers],
        "integrations": [] if odp_host is None else [integration],
        "variables": [],
    }


def _named(number: int) -> Document:
    return {"id": _id(20, number), "name": f"Regulars {number}"}


def _conditions(segments: bool) -> list[Any]:
    third = ("third_party_dimension", "odp.audiences", "qualified", SEGMENT)
    asked = [
        ("custom_attribute", "age", "ge", 18),
        ("custom_attribute", "app_version", "semver_ge", "2.1.0"),
        third if segments else ("custom_attribute", "plan", "exact", "premium"),
    ]
    leaves = [{"type": kind, "name": name, "match": match, "value": value} for kind, name, match, value in asked]
    return ["and", *(["or", ["or", leaf]] for leaf in leaves)]


def _experiment(number: int, flag: str) -> Document:
    treated = [{"id": _variable_id(number, at), "value": value} for at, value in enumerate(_TREATED)]
    variations = [
        {"id": _id(41 + at, number), "key": key, "featureEnabled": key == "treatment", "variables": treated}
        for at, key in enumerate(("control", "treatment"))
    ]
    return _rule(_id(30, number), f"{flag}_test", _id(80, number), variations, [_id(20, number)])


def _everyone_else(number: int) -> Document:
    variation = {"id": _id(43, number), "key": "off", "featureEnabled": False, "variables": []}
    rule_id = f"default-rollout-{_id(70, number)}"
    return _rule(rule_id, rule_id, _id(60, number), [variation], [])


def _rule(rule_id: str, key: str, layer: str, variations: list[Document], audiences: list[str]) -> Document:
    """Traffic is divided evenly."""
    return {
        "id": rule_id,
        "key": key,
        "layerId": layer,
        "status": "Running",
        "variations": variations,
        "trafficAllocation": [
            {"entityId": variation["id"], "endOfRange": 10_000 * at // len(variations)}
            for at, variation in enumerate(variations, 1)
        ],
        "audienceIds": audiences,
        "forcedVariations": {},
    }


def _flag(number: int, key: str) -> Document:
    return {
        "id": _id(70, number),
        "key": key,
        "rolloutId": _id(60, number),
        "experimentIds": [_id(30, number)],
        "variables": [
            {"id": _variable_id(number, at), "key": name, "type": kind, "defaultValue": default}
            for at, (name, kind, default) in enumerate(_VARIABLES)
        ],
    }


def _variable_id(number: int, at: int) -> str:
    return _id(50, 10 * number + at)
