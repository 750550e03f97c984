"""The stand-in for predictions: one variation for a visitor, the documented body and no other, a ledger, faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.sandbox.processes import StandIns
from tests.sandbox.calls import Answered, call

RULE = "3010"


@pytest.fixture(scope="module")
def _running() -> Iterator[StandIns]:
    with StandIns(["cmab"]) as running:
        yield running


@pytest.fixture
def cmab(_running: StandIns) -> StandIns:
    _running.control("cmab", reset=True)
    return _running


def instance(visitor: str = "user-00001", **changes: Any) -> dict[str, Any]:
    return {
        "visitorId": visitor,
        "experimentId": RULE,
        "attributes": [{"id": "801", "value": "premium", "type": "custom_attribute"}],
        "cmabUUID": "00000000-0000-4000-8000-000000000001",
    } | changes


def predict(cmab: StandIns, *instances: Any, rule: str = RULE) -> Answered:
    return call(cmab.prediction_url_template % rule, {"instances": list(instances)})


def variation(answer: Answered) -> str:
    (prediction,) = answer.json["predictions"]
    return str(prediction["variation_id"])


def test_a_visitor_gets_the_same_variation_each_time_and_visitors_differ(cmab: StandIns) -> None:
    first = {user: variation(predict(cmab, instance(user))) for user in (f"user-{number:05d}" for number in range(40))}
    again = {user: variation(predict(cmab, instance(user, attributes=[]))) for user in first}
    assert again == first
    assert set(first.values()) == {"30101", "30102"}
    counted = cmab.ledger("cmab", query="full=1")
    assert (counted["predictions"], counted["visitors"], counted["by_rule"]) == (80, 40, {RULE: 80})
    assert counted["by_variation"] == {key: 2 * count for key, count in Counter(first.values()).items()}
    assert counted["repeated_uuids"] == 79
    assert counted["asked"] == dict.fromkeys(first, 2)
    assert counted["instances"][0] == instance("user-00000")


def test_variations_are_told(cmab: StandIns) -> None:
    cmab.control("cmab", variations={RULE: ["7", "8", "9"]})
    assert {variation(predict(cmab, instance(f"visitor {number}"))) for number in range(40)} == {"7", "8", "9"}
    assert variation(predict(cmab, instance(experimentId="44"), rule="44")) in {"441", "442"}


def test_several_visitors_at_once(cmab: StandIns) -> None:
    alone = [variation(predict(cmab, instance(visitor))) for visitor in "abc"]
    answer = predict(cmab, *map(instance, "abc")).json["predictions"]
    assert [prediction["variation_id"] for prediction in answer] == alone


@pytest.mark.parametrize(
    "document",
    [
        [], {}, {"instances": []}, {"instances": {}}, {"instances": [instance()], "surplus": 1},
        {"instances": ["text"]}, {"instances": [instance(surplus=1)]}, {"instances": [instance(visitorId="")]},
        {"instances": [instance(visitorId=7)]}, {"instances": [instance(experimentId="3011")]},
        {"instances": [instance(cmabUUID="no uuid")]}, {"instances": [instance(cmabUUID=None)]},
        {"instances": [instance(attributes={})]}, {"instances": [instance(attributes=["plan"])]},
        {"instances": [instance(attributes=[{"id": "801", "value": "x"}])]},
        {"instances": [instance(attributes=[{"id": "801", "value": None, "type": "custom_attribute"}])]},
        {"instances": [instance(attributes=[{"id": 801, "value": "x", "type": "custom_attribute"}])]},
        {"instances": [instance(attributes=[{"id": "801", "value": "x", "type": "custom"}])]},
        {"instances": [instance(), instance(visitorId=None)]},
    ],
)  # fmt: skip
def test_a_body_that_is_not_as_documented_is_refused(cmab: StandIns, document: Any) -> None:
    assert call(cmab.prediction_url_template % RULE, document).status == 400
    counted = cmab.ledger("cmab")
    assert (counted["refused"], counted["predictions"], len(counted["refusals"])) == (1, 0, 1)


@pytest.mark.parametrize("value", ["text", 7, 2.5, True])
def test_values_of_every_type_are_taken(cmab: StandIns, value: object) -> None:
    attribute = {"id": "801", "value": value, "type": "custom_attribute"}
    assert predict(cmab, instance(attributes=[attribute])).status == 200


def test_faults(cmab: StandIns) -> None:
    cmab.control("cmab", fail_next=1, fail_status=500)
    assert [predict(cmab, instance()).status for _ in range(2)] == [500, 200]
    answers: list[dict[str, Any]] = [{"predictions": []}, {"predictions": [{}]}]
    for answer in answers:
        cmab.control("cmab", answer=answer)
        assert predict(cmab, instance()).json == answer
    counted = cmab.ledger("cmab")
    assert (counted["predictions"], counted["answered_otherwise"]) == (1, 2)
    cmab.control("cmab", answer=None, rule_status={RULE: 404})
    assert predict(cmab, instance()).status == 404
    cmab.control("cmab", rule_status={"another": 404})
    assert predict(cmab, instance()).status == 200
