"""A small project of the flow tests' own: two experiments, one of which decides everyone to a variation that is off."""

from __future__ import annotations

import json

SDK_KEY = "FlowsProject001"
FLAGS = ("lights_on", "lights_off")


def datafile(sdk_key: str = SDK_KEY, revision: str = "1") -> bytes:
    """Every user is in both experiments: `lights_on` with the variation `on`, `lights_off` with `off`."""
    flags = [
        {"id": f"3{n}", "key": key, "rolloutId": "", "experimentIds": [f"1{n}"], "variables": []}
        for n, key in enumerate(FLAGS)
    ]
    return json.dumps(
        {
            "version": "4", "accountId": "10", "projectId": "20", "revision": revision, "sdkKey": sdk_key,
            "environmentKey": "production", "anonymizeIP": True, "botFiltering": False, "sendFlagDecisions": True,
            "attributes": [], "audiences": [], "typedAudiences": [], "events": [], "groups": [], "rollouts": [],
            "integrations": [], "variables": [], "featureFlags": flags,
            "experiments": [_experiment(n, key.removeprefix("lights_")) for n, key in enumerate(FLAGS)],
        }
    ).encode()  # fmt: skip


def _experiment(number: int, variation: str) -> dict[str, object]:
    only = {"id": f"4{number}", "key": variation, "featureEnabled": variation == "on", "variables": []}
    return {
        "id": f"1{number}", "key": f"test_{variation}", "layerId": f"2{number}", "status": "Running",
        "audienceIds": [], "forcedVariations": {}, "variations": [only],
        "trafficAllocation": [{"entityId": only["id"], "endOfRange": 10_000}],
    }  # fmt: skip
