"""Workers that lose, invent or confuse something while every number is right: none of them closes the account."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.sandbox import demo
from pipeline.sandbox import project_data as data
from pipeline.sandbox.demo import Plan, run_demo
from pipeline.sandbox.parts import Parts, start_parts
from tests.sandbox.calls import call
from tests.sandbox.honest import Document, Worker
from tests.sandbox.test_stand_ins import event, payload, visitor
from tests.support import Broker


def test_an_honest_worker_closes_the_account() -> None:
    account = Worker().account(5_000)
    assert account.open() == []
    assert account.impressions_due > 12_000
    assert len(account.errors) == 6


def _every_second(change: Callable[[Document], Document]) -> Callable[[Document], Document]:
    number = 0

    def changed(document: Document) -> Document:
        nonlocal number
        number += 1
        return change(document) if number % 2 else document

    return changed


def _untracked(result: Document) -> Document:
    return {name: value for name, value in result.items() if name != "tracking"}


def _silently_untracked(result: Document) -> Document:
    """Consistent with itself, so only the project tells that an impression is due."""
    decisions = [decision | {"decisionEventDispatched": False} for decision in result["decisions"]]
    return _untracked(result) | {"decisions": decisions}


def _deciding(**changes: object) -> Callable[[Document], Document]:
    return lambda result: result | {
        "decisions": [decision | changes for decision in result["decisions"]]
    }  # fmt: skip


def _of_the_rule(rule: str) -> Callable[[Document], Document]:
    """Whoever has this rule of one flag has it of every flag, impressions included."""

    def changed(result: Document) -> Document:
        if all(decision["ruleKey"] != rule for decision in result["decisions"]):
            return result
        return _impressing(lambda i: [each | {"ruleKey": rule} for each in i])(_deciding(ruleKey=rule)(result))

    return changed


def _impressing(change: Callable[[list[Document]], list[Document]]) -> Callable[[Document], Document]:
    def changed(result: Document) -> Document:
        if "tracking" not in result:
            return result
        tracking = result["tracking"]
        return result | {"tracking": tracking | {"impressions": change(tracking["impressions"])}}

    return changed


def _without_option(option: str) -> Callable[[Document], Document]:
    return lambda request: request | {"decideOptions": [o for o in request.get("decideOptions", ()) if o != option]}


def _erring(error: str) -> Callable[[Document], Document]:
    return lambda result: result | {"error": error} if "error" in result else result


def _tracked_on_error(result: Document) -> Document:
    impression = dict.fromkeys(("flagKey", "ruleKey", "variationKey", "campaignId", "experimentId"), "1")
    tracking: Document = {
        "accountId": "1", "projectId": "1", "region": "US", "anonymizeIp": True, "attributes": [],
        "impressions": [impression | {"ruleType": "rollout", "enabled": False, "variationId": "1"}],
    }  # fmt: skip
    return result | {"tracking": tracking, "revision": "1"} if "error" in result else result


def _converting(change: Callable[[Document], Document]) -> Callable[[Document], Document]:
    """Changes the event of a conversion."""

    def changed(visitor: Document) -> Document:
        if "decisions" in visitor["snapshots"][0]:
            return visitor
        (event,) = visitor["snapshots"][0]["events"]
        return visitor | {"snapshots": [{"events": [change(event)]}]}

    return changed


def _confused(visitor: Document) -> Document:
    """The metadata of each impression is another variation's."""
    for snapshot in visitor["snapshots"]:
        for decision in snapshot.get("decisions", ()):
            decision["metadata"]["variation_key"] = "another"
    return visitor


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("answers the first flag alone",
     {"request": lambda r: r | {"keys": r["keys"][:1]} if isinstance(r["keys"], list) else r},
     "whose result does not answer the flags asked for"),
    ("answers in another order", {"result": lambda r: r | {"decisions": r["decisions"][::-1]}},
     "whose result does not answer the flags asked for"),
    ("does not know all flags", {"request": lambda r: r | {"keys": r["keys"] or list(data.FLAGS[:-1])}},
     "whose result does not answer the flags asked for"),
    ("answers nothing", {"result": lambda r: _untracked(r) | {"decisions": []}},
     "whose result does not answer the flags asked for"),
    ("loses every second tracking", {"result": _every_second(_untracked)},
     "whose result lacks an impression of a decision"),
    ("loses every second tracking and says so", {"result": _every_second(_silently_untracked)},
     "whose result has a wrong decisionEventDispatched"),
    ("loses the first impression", {"result": _impressing(lambda i: i[1:])},
     "whose result lacks an impression of a decision"),
    ("says that nothing is dispatched", {"result": _deciding(decisionEventDispatched=False)},
     "whose result has an impression of a decision without one"),
    ("tracks another variation than it answers",
     {"result": _impressing(lambda i: [each | {"variationKey": "another"} for each in i])},
     "whose result lacks an impression of a decision"),
    ("tracks flags that nobody asked for",
     {"result": _impressing(lambda i: [*i, i[0] | {"flagKey": "another", "enabled": False}])},
     "whose result has an impression of a flag that it does not answer"),
    ("tracks no attributes", {"result": lambda r: r if "tracking" not in r else
                              r | {"tracking": r["tracking"] | {"attributes": []}}},
     "whose result tracks other attributes"),
    ("ignores DISABLE_DECISION_EVENT", {"request": _without_option("DISABLE_DECISION_EVENT")},
     "whose result has impressions, though DISABLE_DECISION_EVENT was asked for"),
    ("ignores ENABLED_FLAGS_ONLY", {"request": _without_option("ENABLED_FLAGS_ONLY")},
     "whose result has a flag that is off, though ENABLED_FLAGS_ONLY was asked for"),
    ("gives every user id as another", {"result": lambda r: r | {"userId": "someone-else"}},
     "whose result has another userId"),
    ("gives every request id as another", {"result": lambda r: r | {"requestId": "wrong"}},
     "whose result has another requestId"),
    ("gives another environment", {"result": lambda r: r | {"sdkKey": data.STAGING}},
     "whose result has another sdkKey"),
    ("decides for somebody else", {"request": lambda r: r | {"userId": "user-00001"}},
     "whose result has another user context"),
    ("ignores attributes", {"request": lambda r: r | {"userAttributes": {}}},
     "whose result has another user context"),
    ("has one error for all", {"result": _erring("failed to fetch qualified segments")},
     "whose result has another error than expected"),
    ("tracks errors", {"result": _tracked_on_error}, "with a result that is none by its schema"),
    ("publishes without keys", {"address": lambda a: (None, *a[1:])}, "whose result has another record key"),
    ("publishes to one partition", {"address": lambda a: (*a[:2], 0)}, "whose result is on another partition"),
    ("publishes without the header", {"address": lambda a: (a[0], "", a[2])},
     "whose result has another header `source`"),
    ("publishes what is no result", {"result": lambda r: {"source": r["source"]}},
     "with a result that is none by its schema"),
    ("ignores the segments it fetched", {"segments": lambda user: ()},
     "whose result is not of the rule for the user's segments"),
    ("gives everyone all segments", {"segments": lambda user: tuple(data.SEGMENTS)},
     "whose result is of a rule for segments that the user does not have"),
    ("looks segments up unasked", {"request": lambda r: r | {"fetchSegments": True}},
     "whose result is of a rule for segments that the user does not have"),
    ("takes another flag's rule", {"result": _of_the_rule("points_loyal")},
     "whose result is of a rule of another flag"),
    ("posts one visitor", {"visitor": lambda v: v | {"visitor_id": "x"}}, "impressions at logx that no result owes"),
    ("posts other decisions", {"visitor": _confused}, "impressions at logx that no result owes"),
    ("posts conversions of one visitor",
     {"visitor": lambda v: v if "decisions" in v["snapshots"][0] else v | {"visitor_id": "x"}},
     "conversions at logx that nobody sent"),
    ("loses tags", {"visitor": _converting(lambda e: {n: x for n, x in e.items() if n != "tags"})},
     "conversions at logx that nobody sent"),
    ("doubles revenue", {"visitor": _converting(lambda e: e | {"revenue": 2 * e.get("revenue", 1)})},
     "conversions at logx that nobody sent"),
    ("posts conversions of another event", {"visitor": _converting(lambda e: e | {"entity_id": "1"})},
     "conversions at logx that nobody sent"),
    ("loses ODP data", {"odp_event": lambda e: e | {"data": {"idempotence_id": e["data"]["idempotence_id"]}}},
     "events at ODP that nobody sent"),
    ("posts one ODP identifier", {"odp_event": lambda e: e | {"identifiers": {"fs_user_id": "x"}}},
     "events at ODP that nobody sent"),
    ("posts to the wrong ODP account", {"odp_account": lambda _: data.API_KEYS[data.STAGING]},
     "events at ODP that nobody sent"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), [wrong[1:] for wrong in WRONG], ids=[wrong[0] for wrong in WRONG])
def test_a_wrong_one_does_not(changes: dict[str, Any], said: str) -> None:
    faults = Worker(**changes).account().open()
    assert any(said in fault for fault in faults), faults


def test_the_rules_that_only_segments_lead_to_are_those_of_the_datafile() -> None:
    datafile = data.datafile(data.PRODUCTION, "")
    audiences = {each["id"]: each["conditions"] for each in datafile["typedAudiences"]}
    rollouts = {each["id"]: each["experiments"] for each in datafile["rollouts"]}
    experiments = {each["id"]: each for each in datafile["experiments"]}
    for rule, (flag_key, segments) in data.SEGMENTS_OF_RULES.items():
        (flag,) = (each for each in datafile["featureFlags"] if each["key"] == flag_key)
        rules = [*(experiments[number] for number in flag["experimentIds"]), *rollouts[flag["rolloutId"]]]
        (found,) = (each for each in rules if each["key"] == rule)
        operator, *conditions = audiences[found["audienceIds"][0]]
        named = {each["value"] for each in conditions if each["match"] == "qualified"}
        assert (named, len(found["audienceIds"])) == (segments, 1)
        assert operator == "and" or len(conditions) == 1
        if data.FIRST_RULES.get(flag_key) == rule:
            assert found is rules[0]
            assert len(conditions) == 1
            assert found["trafficAllocation"][-1]["endOfRange"] == 10_000


def test_what_is_posted_by_a_worker_that_ends_is_counted(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*arguments: Any, **options: Any) -> Parts:
        parts = start_parts(*arguments, **options)
        stop = parts.worker.stop

        def post_and_stop(timeout: float = 30) -> int:
            posted = payload(*(visitor(event(number)) for number in range(5)))
            if parts.worker.running:
                assert call(parts.stand_ins.logx_url, posted).status == 204
            return stop(timeout)

        monkeypatch.setattr(parts.worker, "stop", post_and_stop)
        return parts

    monkeypatch.setattr(demo, "start_parts", start)
    assert run_demo(Plan(requests=20, bootstrap_servers=kafka.bootstrap_servers)) == 1
    said = capsys.readouterr().out
    assert re.search(r"impressions at logx: \d+, should be \d+", said)
    assert "impressions at logx that no result owes: 5, such as user-00001" in said
