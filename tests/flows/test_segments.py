"""Segments on the way from request to decision: asked for together, remembered, awaited without losing the order."""

from __future__ import annotations

from typing import Any

from pipeline.sandbox.processes import until
from pipeline.sandbox.project_data import PRODUCTION
from tests.flows.conftest import QUICK, Flow
from tests.flows.wire import keyed
from tests.patience import PATIENCE

FLAG = "checkout_redesign"


def body(user: str, **fields: Any) -> dict[str, Any]:
    return {"sdkKey": PRODUCTION, "userId": user, "keys": [FLAG], "fetchSegments": True} | fields


def rule(document: dict[str, Any]) -> str:
    """The rule that decided: `checkout_loyal` is for loyal customers alone."""
    assert "error" not in document
    (decision,) = document["decisions"]
    return str(decision["ruleKey"])


def requests_at_odp(flow: Flow) -> int:
    return int(flow.stand_ins.ledger("odp")["graphql_requests"])


def test_cold_users_share_queries_and_are_not_asked_about_again(flow: Flow) -> None:
    people = {f"cold-{n:03d}": ["loyal_customers"] if n % 2 else [] for n in range(500)}
    flow.stand_ins.control("odp", users=people, latency=0.02)
    documents = flow.decide(*map(body, people), decideOptions=["INCLUDE_REASONS"])
    loyal = {document["userId"] for document in documents if rule(document) == "checkout_loyal"}
    # Five in a hundred are held out of all experiments.
    assert loyal <= {user for user, segments in people.items() if segments}
    assert len(loyal) > 200
    asked = flow.stand_ins.ledger("odp", query="full=1")
    assert asked["graphql_requests"] < len(people) / 10
    assert asked["asked"] == dict.fromkeys(people, 1)
    again = flow.decide(*map(body, people))
    assert [rule(document) for document in again] == [rule(document) for document in documents]
    assert requests_at_odp(flow) == asked["graphql_requests"]


def test_ignore_cache_asks_again_and_saves_nothing(flow: Flow) -> None:
    flow.stand_ins.control("odp", users={"ignoring-0": []})
    assert rule(*flow.decide(body("ignoring-0"))) != "checkout_loyal"
    flow.stand_ins.control("odp", users={"ignoring-0": ["loyal_customers"]})
    fresh = flow.decide(body("ignoring-0", fetchSegmentsOptions=["IGNORE_CACHE"]))
    assert rule(*fresh) == "checkout_loyal"
    assert rule(*flow.decide(body("ignoring-0"))) != "checkout_loyal"
    assert requests_at_odp(flow) == 2


def test_reset_cache_forgets_everybody(flow: Flow) -> None:
    flow.stand_ins.control("odp", users={"resetting-0": [], "resetting-2": []})
    flow.decide(body("resetting-0"), body("resetting-2"))
    before = requests_at_odp(flow)
    flow.stand_ins.control("odp", users={"resetting-0": ["loyal_customers"], "resetting-2": ["loyal_customers"]})
    flow.decide(body("resetting-0"))
    assert requests_at_odp(flow) == before
    assert rule(*flow.decide(body("resetting-0", fetchSegmentsOptions=["RESET_CACHE"]))) == "checkout_loyal"
    assert rule(*flow.decide(body("resetting-2"))) == "checkout_loyal"


def test_a_user_unknown_to_odp_is_answered_with_the_agents_error_and_sends_no_impression(flow: Flow) -> None:
    flow.stand_ins.control("odp", users={"known to odp": []})
    unknown, known = flow.decide(body("unknown to odp"), body("known to odp"))
    assert (unknown["error"], unknown["decisions"]) == ("failed to fetch qualified segments", [])
    assert rule(known)
    (event,) = flow.events_of("unknown to odp", "known to odp", count=1)
    assert event["visitor"] == "known to odp"


def test_requests_of_an_unknown_user_share_their_queries_and_nobody_is_behind_them(flow: Flow) -> None:
    others = [f"beside-{number:03d}" for number in range(200)]
    flow.stand_ins.control("odp", users={user: [] for user in others}, latency=0.05)
    crowd = [keyed(body("ANONYMOUS_USER"))._replace(partition=1) for _ in range(2000)]
    beside = [keyed(body(user))._replace(partition=1) for user in others]
    results = flow.results.of(flow.writer.send(flow.topics.decide_requests, [*crowd, *beside]), seconds=60)
    unknown, known = results[:2000], results[2000:]
    assert {result.document["error"] for result in unknown} == {"failed to fetch qualified segments"}
    assert all(rule(result.document) for result in known)
    assert [result.offset for result in unknown] == sorted(result.offset for result in unknown)
    asked = flow.stand_ins.ledger("odp", query="full=1")
    assert asked["graphql_requests"] <= 20, "of which four are for the 200 others"
    assert asked["asked"]["ANONYMOUS_USER"] <= 16


def test_while_odp_is_silent_each_request_waits_for_its_own_time_and_not_for_others_of_its_user(flow: Flow) -> None:
    flow.stand_ins.control("odp", users={"silenced": []}, hold_answers=True)
    waiting = [keyed(body("silenced"))._replace(partition=1) for _ in range(6)]
    short = keyed(body("in a hurry", ttlMs=500))._replace(partition=1)
    sent = flow.writer.send(flow.topics.decide_requests, [*waiting, short, keyed(body("later"))._replace(partition=1)])
    results = flow.results.of(sent)
    assert [result.document["error"] for result in results] == [
        *["failed to fetch qualified segments"] * 6, "request expired", "failed to fetch qualified segments",
    ]  # fmt: skip
    seconds = [(result.timestamp - request.timestamp) / 1000 for request, result in zip(sent, results, strict=True)]
    deadline = float(QUICK["ODP__FETCH_DEADLINE"])
    assert seconds[6] < min(seconds[:6]), "its time ended long before theirs"
    assert max(seconds[:6]) < 2 * deadline, "they waited one after the other"
    assert max(seconds[:6]) - min(seconds[:6]) < deadline


def test_an_outage_of_odp_is_an_error_within_the_deadline_and_over_when_it_is(flow: Flow) -> None:
    flow.stand_ins.control("odp", users={"outage-0": [], "outage-1": []}, status=503)
    (document,) = flow.decide(body("outage-0"))
    assert document["error"] == "failed to fetch qualified segments"
    flow.stand_ins.control("odp", status=None)
    assert rule(*flow.decide(body("outage-1")))


def test_one_users_results_keep_their_order_while_segments_are_awaited_and_others_go_ahead(flow: Flow) -> None:
    flow.stand_ins.control("odp", users={"patient": []}, latency=0.5)
    waiting = [
        body("patient", requestId="first"),
        body("patient", requestId="second", fetchSegments=False),
        body("patient", requestId="third", fetchSegmentsOptions=["IGNORE_CACHE"]),
        body("patient", requestId="fourth", fetchSegments=False),
    ]
    hurried = body("hurried", fetchSegments=False)
    # All on one partition, the hurried one last.
    records = [keyed(one)._replace(partition=1) for one in (*waiting, hurried)]
    results = flow.results.of(flow.writer.send(flow.topics.decide_requests, records))
    offsets = {result.document["requestId"]: result.offset for result in results}
    *patients, alone = [result.offset for result in results]
    assert patients == sorted(patients), offsets
    assert alone < patients[0]


def test_requests_that_wait_for_segments_fill_no_more_than_the_queries_allowed(flow: Flow) -> None:
    people: dict[str, list[str]] = {f"crowd-{n:04d}": [] for n in range(1500)}
    flow.stand_ins.control("odp", users=people, latency=0.1)
    flow.decide(*map(body, people))
    ledger = flow.stand_ins.ledger("odp")
    assert ledger["largest_query"] == 50
    assert ledger["most_in_flight"] <= 16
    until(lambda: flow.stand_ins.ledger("odp")["aliases"] == 1500, timeout=PATIENCE, what="each asked about once")
