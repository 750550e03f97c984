"""Small datafiles for the tests of decisions: what a test does not care about is filled in."""

from __future__ import annotations

import json
from typing import Any

from pipeline.decision import Facts
from pipeline.messages.decide import DecideRequest, ForcedDecision
from pipeline.project import ProjectConfig, compile_datafile
from tests.decision.deciding import settled

Json = dict[str, Any]

NOBODY = "11"  # an audience no user is in
UNTOLD = "12"  # an audience that can be told of no user

AUDIENCES: list[Json] = [
    {"id": NOBODY, "name": "n", "conditions": {"name": "x", "type": "custom_attribute", "match": "exists"}},
    {"id": UNTOLD, "name": "u", "conditions": {"name": "x", "type": "custom_attribute", "match": "gt", "value": 1}},
]


def variation(identity: str, key: str, *, enabled: bool = True, values: dict[str, str] | None = None) -> Json:
    own = [{"id": name, "value": value} for name, value in (values or {}).items()]
    return {"id": identity, "key": key, "featureEnabled": enabled, "variables": own}


def rule(identity: str, key: str, *variations: Json, **more: Any) -> Json:
    """An experiment, delivery rule or holdout whose whole traffic gets the first variation."""
    return {
        "id": identity,
        "key": key,
        "layerId": f"9{identity}" if identity.isdigit() else "",
        "status": "Running",
        "variations": list(variations),
        "audienceIds": [],
        "forcedVariations": {},
        "trafficAllocation": [{"entityId": variations[0]["id"], "endOfRange": 10000}] if variations else [],
        **more,
    }


NO_TRAFFIC: Json = {"trafficAllocation": []}


def flag(key: str, *experiments: Json, rollout: str = "", variables: list[Json] | None = None) -> Json:
    ids = [experiment["id"] for experiment in experiments]
    return {"id": f"f-{key}", "key": key, "rolloutId": rollout, "experimentIds": ids, "variables": variables or []}


def document(**sections: Any) -> Json:
    return {
        "version": "4",
        "revision": "7",
        "accountId": "1",
        "projectId": "2",
        "typedAudiences": AUDIENCES,
        **sections,
    }


def project(**sections: Any) -> ProjectConfig:
    return compile_datafile(json.dumps(document(**sections)).encode())


def request(
    *keys: str,
    user_id: str = "user",
    attributes: Json | None = None,
    options: tuple[str, ...] = (),
    forced: tuple[tuple[str, str, str], ...] = (),
) -> DecideRequest:
    return DecideRequest(
        user_id=user_id, request_id=None, sdk_key="key", attributes=attributes or {}, keys=keys,
        options=frozenset(options), forced=tuple(ForcedDecision(*one) for one in forced),
        fetch_segments=False, ignore_cache=False, reset_cache=False, ttl_ms=None, error=None,
    )  # fmt: skip


def answered(config: ProjectConfig, asked: DecideRequest, segments: frozenset[str] | None = None) -> Json:
    found = settled(config, asked, Facts(segments), source="topic-0-5", timestamp=1700)
    result: Json = json.loads(found.value)
    return result


def decided(config: ProjectConfig, *keys: str, **more: Any) -> Json:
    """The only decision of a request."""
    (decision,) = answered(config, request(*keys, **more))["decisions"]
    return dict(decision)


def impressions(config: ProjectConfig, *keys: str, **more: Any) -> list[tuple[str, str]]:
    """Rule type and rule key of the impressions owed, in order."""
    tracking = answered(config, request(*keys, **more)).get("tracking", {"impressions": []})
    return [(one["ruleType"], one["ruleKey"]) for one in tracking["impressions"]]
