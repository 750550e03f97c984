"""Sticky profiles and predictions through the whole product: topics, a worker process, Redis, the services."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pipeline.sandbox.processes import until
from tests.flows.conftest import Flow, Own
from tests.flows.project import SDK_KEY
from tests.flows.wire import keyed
from tests.patience import PATIENCE
from tests.redis_server import RedisServer

QUICK = {"OPTIMIZELY__POLL_INTERVAL": "0.1"}
PATIENT = {"PROFILES__TIMEOUT": "5"}
"""A machine that is busy with other tests is no outage."""
BANDIT = ["4011", "4012"]


def project(revision: int, everyone: str) -> bytes:
    """`sticky` gives everyone new the variation `everyone` (a or b); `chosen` what the service predicts."""
    variations = [{"id": f"10{n}", "key": key, "featureEnabled": True} for n, key in enumerate("ab")]
    given = next(one["id"] for one in variations if one["key"] == everyone)
    common = {"layerId": "1", "status": "Running", "audienceIds": [], "forcedVariations": {}}
    experiments = [
        {"id": "10", "key": "sticky", "variations": variations, **common,
         "trafficAllocation": [{"entityId": given, "endOfRange": 10_000}]},
        {"id": "401", "key": "bandit", **common, "trafficAllocation": [],
         "variations": [{"id": one, "key": f"v{one}", "featureEnabled": True} for one in BANDIT],
         "cmab": {"attributeIds": ["9"], "trafficAllocation": 10_000}},
    ]  # fmt: skip
    flags = [
        {"id": f"2{n}", "key": key, "rolloutId": "", "experimentIds": [experiment["id"]], "variables": []}
        for n, (key, experiment) in enumerate(zip(("sticky", "chosen"), experiments, strict=True))
    ]
    return json.dumps(
        {
            "version": "4", "accountId": "1", "projectId": "2", "revision": str(revision), "sdkKey": SDK_KEY,
            "attributes": [{"id": "9", "key": "plan"}], "featureFlags": flags, "experiments": experiments,
        }
    ).encode()  # fmt: skip


def variations(flow: Flow, *users: str, key: str = "sticky", **fields: Any) -> list[str]:
    bodies = [{"userId": user, "keys": [key]} | fields for user in users]
    return [document["decisions"][0]["variationKey"] for document in flow.decide(*bodies)]


def published(flow: Flow, revision: int, everyone: str) -> None:
    """Wait until the worker decides by this revision."""
    flow.stand_ins.put_datafile(SDK_KEY, project(revision, everyone))
    ask = {"userId": "nobody", "keys": ["sticky"], "decideOptions": ["IGNORE_USER_PROFILE_SERVICE"]}
    until(lambda: flow.decide(ask)[0]["revision"] == str(revision), timeout=PATIENCE, what=f"revision {revision}")


def test_users_keep_their_variation_when_the_traffic_changes(own: Callable[..., Own], redis: RedisServer) -> None:
    made = own(PROFILES__REDIS_URL=redis.url, **QUICK, **PATIENT)
    made.flow.stand_ins.put_datafile(SDK_KEY, project(1, "a"))
    worker = made.worker()
    worker.start()
    worker.wait_ready()
    users = [f"user-{number}" for number in range(200)]
    before = redis.calls("mget")
    assert variations(made.flow, *users) == ["a"] * 200
    assert redis.calls("mget") - before < 100, "many users share a look-up"
    kept = redis.client.get("profile:user-7")
    assert isinstance(kept, bytes)
    assert json.loads(kept) == {"10": {"variation_id": "100"}}
    published(made.flow, 2, "b")
    assert variations(made.flow, *users, "new") == ["a"] * 200 + ["b"]
    assert variations(made.flow, "user-7", decideOptions=["IGNORE_USER_PROFILE_SERVICE"]) == ["b"]
    # What is known survives the worker, and any other worker knows it.
    worker.kill()
    second = made.worker()
    second.start()
    second.wait_ready()
    assert variations(made.flow, *users[:5], "new") == ["a"] * 5 + ["b"]
    assert second.stop() == 0


def test_without_redis_everyone_is_decided_and_nothing_is_forgotten(
    own: Callable[..., Own], redis: RedisServer
) -> None:
    made = own(PROFILES__REDIS_URL=redis.url, PROFILES__TIMEOUT="0.2", **QUICK)
    made.flow.stand_ins.put_datafile(SDK_KEY, project(1, "a"))
    worker = made.worker()
    worker.start()
    worker.wait_ready()
    # The first connection may take a busy machine longer than the deadline.
    until(
        lambda: variations(made.flow, "ann") == ["a"] and worker.metric("profile_saves_total", outcome="ok") > 0,
        timeout=PATIENCE, what="the profile to be saved",
    )  # fmt: skip
    published(made.flow, 2, "b")
    redis.hold()
    try:
        assert variations(made.flow, "ann", "bob") == ["b", "b"]
        assert worker.metric("profile_lookups_total", outcome="failed") >= 2
    finally:
        redis.go_on()
    until(lambda: variations(made.flow, "ann") == ["a"], timeout=PATIENCE, what="Redis to be asked again")
    assert worker.stop() == 0


def test_a_prediction_decides_and_its_id_goes_into_result_and_impression(own: Callable[..., Own]) -> None:
    made = own(**QUICK)
    flow = made.flow
    flow.stand_ins.put_datafile(SDK_KEY, project(1, "a"))
    flow.stand_ins.control("cmab", variations={"401": BANDIT})
    worker = made.worker()
    worker.start()
    worker.wait_ready()
    users = [f"bandit-{number}" for number in range(40)]
    bodies = [{"userId": user, "keys": ["chosen"], "userAttributes": {"plan": "gold"}} for user in users]
    asked = flow.decide(*bodies, *bodies)
    told = flow.stand_ins.ledger("cmab", query="full=1")
    assert told["asked"] == dict.fromkeys(users, 1), "remembered the second time"
    uuids = {instance["visitorId"]: instance["cmabUUID"] for instance in told["instances"]}
    for document in asked:
        (impression,) = document["tracking"]["impressions"]
        assert impression["cmabUuid"] == uuids[document["userId"]]
        assert document["decisions"][0]["variationKey"] == f"v{impression['variationId']}"
    assert {document["decisions"][0]["variationKey"] for document in asked} == {f"v{one}" for one in BANDIT}
    assert len(flow.events_of(*users, count=80)) == 80
    flow.stand_ins.control("cmab", status=500)
    failed, fine = flow.decide({"userId": "late", "keys": ["chosen"]}, {"userId": "late", "keys": ["sticky"]})
    assert failed["decisions"][0]["reasons"] == ["Failed to fetch CMAB data for experiment bandit."]
    assert "tracking" not in failed
    assert fine["decisions"][0]["variationKey"] == "a"
    assert worker.stop() == 0


def test_each_users_results_keep_the_order_of_the_requests(own: Callable[..., Own], redis: RedisServer) -> None:
    made = own(PROFILES__REDIS_URL=redis.url, **QUICK, **PATIENT)
    flow = made.flow
    flow.stand_ins.put_datafile(SDK_KEY, project(1, "a"))
    flow.stand_ins.control("cmab", variations={"401": BANDIT}, latency=0.05)
    worker = made.worker()
    worker.start()
    worker.wait_ready()
    keys: tuple[list[str], ...] = (["chosen"], ["sticky"], ["sticky", "chosen"], [])
    records = [
        keyed({"userId": f"u{number % 7}", "requestId": str(number), "keys": keys[number % 4],
               "decideOptions": ["IGNORE_CMAB_CACHE"] if number % 3 else []})
        for number in range(300)
    ]  # fmt: skip
    sent = flow.writer.send(flow.topics.decide_requests, records)
    results = sorted(flow.results.of(sent), key=lambda result: (result.partition, result.offset))
    for user in range(7):
        order = [int(one.document["requestId"]) for one in results if one.document["userId"] == f"u{user}"]
        assert order == sorted(order)
    assert worker.stop() == 0
