"""A project with one experiment that everyone is in, in two revisions which swap the variations."""

from __future__ import annotations

import json

SDK_KEY = "FaultsProject01"
FLAG = "checkout"


def datafile(revision: str, *, everyone_gets: str) -> bytes:
    """`revision` should be no number: the two replace each other again and again, and numbers must not go back."""
    ids = {"old": "101", "new": "102"}
    variations: list[dict[str, object]] = [
        {"id": ids[key], "key": key, "featureEnabled": key == "new", "variables": []} for key in ("old", "new")
    ]
    return json.dumps(
        {
            "version": "4", "accountId": "10", "projectId": "20", "revision": revision, "sdkKey": SDK_KEY,
            "environmentKey": "production", "anonymizeIP": True, "botFiltering": False, "sendFlagDecisions": True,
            "attributes": [], "audiences": [], "typedAudiences": [], "events": [], "groups": [], "rollouts": [],
            "integrations": [], "variables": [],
            "experiments": [
                {
                    "id": "1", "key": "checkout_test", "layerId": "2", "status": "Running", "audienceIds": [],
                    "forcedVariations": {}, "variations": variations,
                    "trafficAllocation": [{"entityId": ids[everyone_gets], "endOfRange": 10000}],
                }
            ],
            "featureFlags": [{"id": "3", "key": FLAG, "rolloutId": "", "experimentIds": ["1"], "variables": []}],
        }
    ).encode()  # fmt: skip
