"""A small datafile that uses every section, and ways to damage it.

For the tests of robustness, here and in `tests/decision`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**66), 2**66)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["", "1", "101", "random", "json", "Running", "and", "not", "[]", "{", "\ud800", 10_000, 1e300])
)
ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)
"""Also what no JSON of ours may hold: lone surrogates, numbers beyond 64 bits."""


def _leaf(match: str, value: Any, name: str = "a") -> Json:
    kind = "third_party_dimension" if match == "qualified" else "custom_attribute"
    return {"name": name, "type": kind, "match": match, "value": value}


def _variation(identity: str, key: str, *, enabled: bool = True, **values: str) -> Json:
    own = [{"id": name, "value": value} for name, value in values.items()]
    return {"id": identity, "key": key, "featureEnabled": enabled, "variables": own}


def _rule(identity: str, key: str, *variations: Json, **more: Any) -> Json:
    step = 10_000 // len(variations)
    traffic = [{"entityId": one["id"], "endOfRange": step * place} for place, one in enumerate(variations, 1)]
    return {
        "id": identity, "key": key, "layerId": f"9{identity}", "status": "Running", "variations": list(variations),
        "audienceIds": [], "forcedVariations": {}, "trafficAllocation": traffic, **more,
    }  # fmt: skip


_AUDIENCES = {
    "21": ["and", ["or", _leaf("exact", "x"), _leaf("gt", 5)], ["not", _leaf("exists", None, "gone")]],
    "22": ["or", _leaf("qualified", "vip"), _leaf("semver_ge", "2.1.0-beta", "version")],
    "23": _leaf("substring", "b") | {"match": "no such"},
}
_VARIABLES = (
    ("v1", "text", "string", "none", None), ("v2", "limit", "integer", "5", None),
    ("v3", "rate", "double", "0.5", None), ("v4", "on", "boolean", "true", None),
    ("v5", "blob", "string", '{"a": [1]}', "json"), ("v6", "list", "json", "[1, 2]", None),
    ("v7", "color", "color", "#fff", None),
)  # fmt: skip
_AB = _rule(
    "1", "ab", _variation("101", "on", v1="own", v2="x"), _variation("102", "off", enabled=False),
    audienceConditions=["or", "21", ["not", "22"], "gone"], forcedVariations={"ada": "off", "bob": "gone"},
)  # fmt: skip
_CMAB = _rule(
    "3", "bandit", _variation("105", "b1"), _variation("106", "b2"), type="cmab",
    cmab={"attributeIds": ["41", "42", "gone"], "trafficAllocation": 9000},
)  # fmt: skip
_HELD = _variation("$opt_dummy_variation_id", "held", enabled=False)

WHOLE: Json = {
    "version": "4", "revision": "7", "accountId": "1001", "projectId": "2001", "sdkKey": "wholeExample01",
    "environmentKey": "production", "region": "EU", "anonymizeIP": True, "botFiltering": False,
    "sendFlagDecisions": True,
    "attributes": [{"id": "41", "key": "a"}, {"id": "42", "key": "version"}],
    "events": [{"id": "51", "key": "bought", "experimentIds": ["1"]}],
    "integrations": [{"key": "odp", "host": "https://odp.example", "publicKey": "k"}, {"key": "other"}],
    "audiences": [
        {"id": "21", "name": "old", "conditions": json.dumps(["or", _leaf("exact", "y")])},
        {"id": "24", "name": "plain", "conditions": json.dumps(_leaf("lt", 3))},
    ],
    "typedAudiences": [{"id": one, "name": one, "conditions": tree} for one, tree in _AUDIENCES.items()],
    "experiments": [
        _AB, _CMAB,
        _rule("4", "td", _variation("107", "delivered"), type="td", audienceIds=["24"]),
        _rule("5", "fr", _variation("108", "first"), type="fr", trafficAllocation=[]),
        _rule("6", "paused", _variation("109", "p"), status="Paused"),
    ],
    "groups": [
        {"id": "31", "policy": "random",
         "trafficAllocation": [{"entityId": "7", "endOfRange": 5000}, {"entityId": "", "endOfRange": 10_000}],
         "experiments": [_rule("7", "grouped", _variation("110", "g"))]},
        {"id": "32", "policy": "overlapping", "trafficAllocation": [],
         "experiments": [_rule("8", "free", _variation("111", "o"))]},
    ],
    "rollouts": [
        {"id": "61", "experiments": [
            _rule("71", "first", _variation("121", "on", v4="false"), audienceIds=["22"]),
            _rule("default-61", "default-61", _variation("122", "else", enabled=False)),
        ]},
        {"id": "62", "experiments": []},
    ],
    "holdouts": [
        _rule("81", "global", _HELD, audienceIds=["23"]),
        _rule("82", "through", _HELD, audienceIds=["24"], excludeTargetedDeliveries=True),
    ],
    "localHoldouts": [_rule("83", "local", _HELD, audienceIds=["22"], includedRules=["4", "71", "gone"])],
    "featureFlags": [
        {"id": "91", "key": "f1", "rolloutId": "61", "experimentIds": ["1", "3", "4", "gone"],
         "variables": [
             {"id": one, "key": key, "type": kind, "defaultValue": text, **({"subType": sub} if sub else {})}
             for one, key, kind, text, sub in _VARIABLES
         ]},
        {"id": "92", "key": "f2", "rolloutId": "61", "experimentIds": ["5", "6", "7", "8"], "variables": []},
        {"id": "93", "key": "f3", "rolloutId": "62", "experimentIds": ["3"], "variables": []},
    ],
}  # fmt: skip


def places(item: Any) -> Iterator[tuple[Any, Any]]:
    """Each object or list of a document with the keys or numbers it holds something under."""
    children = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for key, value in children:
        yield item, key
        yield from places(value)


@st.composite
def damaged(draw: st.DrawFn, most: int = 3) -> Json:
    """The whole datafile with one to `most` damages; now and then none of them hurts."""
    document: Any = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(1, most))):
        found = list(places(document))
        if found:
            parent, key = draw(st.sampled_from(found))
            _damage(draw, parent, key, found)
    return document  # type: ignore[no-any-return]


def _damage(draw: st.DrawFn, parent: Any, key: Any, found: list[tuple[Any, Any]]) -> None:
    match draw(st.sampled_from(("replace", "remove", "repeat", "rename", "swap", "text"))):
        case "replace":
            parent[key] = draw(ANY_JSON)
        case "remove":
            del parent[key]
        case "repeat" if isinstance(parent, list):
            parent.insert(0, copy.deepcopy(parent[key]))
        case "rename" if isinstance(parent, dict):
            parent[draw(st.sampled_from(("id", "key", "conditions", "")) | st.text(max_size=3))] = parent.pop(key)
        case "text":
            parent[key] = json.dumps(parent[key])
        case _:
            # What one place holds stands in another: an id of the wrong entity, a rule among variations.
            other, place = draw(st.sampled_from(found))
            parent[key] = copy.deepcopy(other[place])
