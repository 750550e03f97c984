"""The datafile and the requests that are timed: a small project, all of whose users take part in an experiment."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

FLAGS = ("checkout", "search", "banner", "pricing")
_ATTRIBUTES = ("country", "age", "app_version")
_VARIABLES = (("colour", "string", "blue"), ("limit", "integer", "10"), ("dark", "boolean", "false"))


def datafile() -> bytes:
    """Each flag has an experiment (two variations, a three-condition audience, a segment) and a rollout."""
    experiments, flags, rollouts = [], [], []
    for number, flag in enumerate(FLAGS, 1):
        experiments.append(_experiment(str(number), f"{flag}_test"))
        rollouts.append({"id": f"9{number}", "experiments": [_rule(number)]})
        flags.append(
            {
                "id": f"7{number}",
                "key": flag,
                "rolloutId": f"9{number}",
                "experimentIds": [f"1{number}"],
                "variables": [
                    {"id": f"{at}", "key": key, "type": kind, "defaultValue": default}
                    for at, (key, kind, default) in enumerate(_VARIABLES)
                ],
            }
        )
    return orjson.dumps(
        {
            "version": "4",
            "accountId": "12001",
            "projectId": "12002",
            "revision": "42",
            "sdkKey": "bench",
            "environmentKey": "production",
            "anonymizeIP": True,
            "botFiltering": False,
            "sendFlagDecisions": True,
            "attributes": [{"id": f"5{at}", "key": key} for at, key in enumerate(_ATTRIBUTES)],
            "audiences": [],
            "typedAudiences": [_audience()],
            "events": [],
            "groups": [],
            "experiments": experiments,
            "featureFlags": flags,
            "rollouts": rollouts,
        }
    )


def _audience() -> dict[str, object]:
    def leaf(name: str, match: str, value: object) -> dict[str, object]:
        return {"type": "custom_attribute", "name": name, "match": match, "value": value}

    qualified = {
        "type": "third_party_dimension",
        "name": "odp.audiences",
        "match": "qualified",
        "value": "segment-7",
    }
    conditions = [
        "and",
        ["or", leaf("country", "exact", "DE"), leaf("country", "exact", "FR")],
        leaf("app_version", "semver_ge", "2.1.0"),
        qualified,
    ]
    return {"id": "301", "name": "regulars", "conditions": conditions}


def _experiment(number: str, key: str) -> dict[str, object]:
    variations = [
        {
            "id": f"2{number}{at}",
            "key": name,
            "featureEnabled": name == "treatment",
            "variables": [{"id": "0", "value": "green"}, {"id": "1", "value": "20"}],
        }
        for at, name in enumerate(("control", "treatment"))
    ]
    return {
        "id": f"1{number}",
        "key": key,
        "layerId": f"8{number}",
        "status": "Running",
        "variations": variations,
        "trafficAllocation": [
            {"entityId": variations[0]["id"], "endOfRange": 5000},
            {"entityId": variations[1]["id"], "endOfRange": 10000},
        ],
        "audienceIds": ["301"],
        "forcedVariations": {},
    }


def _rule(number: int) -> dict[str, object]:
    variation = {"id": f"6{number}", "key": "off", "featureEnabled": False, "variables": []}
    return {
        "id": f"4{number}",
        "key": f"everyone_{number}",
        "layerId": f"9{number}",
        "status": "Running",
        "variations": [variation],
        "trafficAllocation": [{"entityId": variation["id"], "endOfRange": 10000}],
        "audienceIds": [],
        "forcedVariations": {},
    }


def request(number: int, keys: Sequence[str]) -> bytes:
    """The decide request of one user, who is in the audience."""
    return orjson.dumps(
        {
            "requestId": f"request-{number:06}",
            "userId": f"user-{number:06}",
            "userAttributes": {
                "country": "DE" if number % 2 else "FR",
                "age": 20 + number % 50,
                "app_version": "2.4.1",
            },
            "keys": list(keys),
        }
    )
