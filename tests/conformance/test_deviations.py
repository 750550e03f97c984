"""What is not compared is different indeed, so that the list stays true, and only what is on it is left out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance import comparison
from tests.conformance.comparison import Comparison
from tests.conformance.deviations import DATAFILES, SHARED_KEY, deviation
from tests.conformance.oracle import Oracle, Refused
from tests.conformance.requests import Case
from tests.conformance.shrinking import differences
from tests.decision.projects import NO_TRAFFIC, Json, flag, rule, variation

ON, ALT = variation("101", "on"), variation("102", "alt")
WHOLE: Json = {"attributeIds": [], "trafficAllocation": 10000}
PREDICTED: Json = {"1": {"variationId": "101", "uuid": "u"}}
VARIABLE: Json = {"id": "v", "key": "v", "type": "string", "defaultValue": "d"}
LEAF: Json = {"name": "a", "type": "custom_attribute", "match": "exact", "value": {"x": 1}}


def case(*experiments: Json, rules: tuple[Json, ...] = (), more: Json | None = None, **facts: Any) -> Case:
    """One flag with these, one user; what the SDK needs and tests leave out is filled in."""
    datafile = {
        "version": "4", "revision": "7", "accountId": "1", "projectId": "2", "experiments": list(experiments),
        "rollouts": [{"id": "r", "experiments": list(rules)}],
        "featureFlags": [flag("f", *experiments, rollout="r", variables=[VARIABLE])], **(more or {}),
    }  # fmt: skip
    return Case(datafile, {"userId": "user", "userAttributes": {"a": 0}}, **facts)


def _shared(first: Json, **facts: Any) -> Case:
    """A second experiment has the key of the first."""
    return case(first, rule("2", first["key"], variation("103", "other")), **facts)


def _audience(conditions: object) -> Json:
    return {"typedAudiences": [{"id": "11", "name": "n", "conditions": conditions}]}


def test_a_datafile_that_we_refuse_is_different_also_where_the_sdk_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    dangling = case(rule("1", "e", ON)).datafile | {"experiments": []}
    with pytest.raises(Refused):
        Comparison().take(dangling)

    def defective(_raw: bytes) -> None:
        raise KeyError("defect")

    monkeypatch.setattr(comparison, "compile_datafile", defective)
    assert [one.what for one in Comparison().take(dangling)] == ["refused: 'defect'"]


_FEATURE_ROLLOUT = rule("1", "e", ON, type="fr", **NO_TRAFFIC)
DIFFERENT: dict[str, list[Case]] = {
    "variations of one id that differ: the SDK takes now one, now another": [
        case(rule("1", "e", ON, **NO_TRAFFIC), rule("2", "e2", variation("101", "other"))),
        case(rule("1", "e", variation("101", "on", values={"v": "A"})),
             rule("2", "e2", variation("101", "on", values={"v": "B"}))),
        case(rule("1", "e", ON, **NO_TRAFFIC), more={"holdouts": [rule("9", "h", variation("101", "held"))]}),
    ],
    "a condition that is a number, or holds an object: the SDK takes either for the number of a leaf": [
        case(rule("1", "e", ON, audienceIds=["11"]), more=_audience(LEAF)),
        case(rule("1", "e", ON, audienceIds=["11"]), more=_audience(["and", ["not", 0], ["not", LEAF | {"value": 1}]])),
        case(rule("1", "e", ON, audienceIds=["11"]), more=_audience(["or", "text", LEAF | {"value": 0}])),
    ],
    "a CMAB without its traffic or attributes: the SDK raises": [
        case(rule("1", "e", ON, cmab={"attributeIds": []})),
        case(rule("1", "e", ON, cmab={"trafficAllocation": 10000}), predictions=PREDICTED),
    ],
    "a CMAB in a delivery rule: there is no such thing": [case(rules=(rule("5", "r", ON, cmab=WHOLE),))],
    "a datafile without account, project or revision: the SDK's schema demands them": [
        case(rule("1", "e", ON), more={"accountId": None}), case(rule("1", "e", ON), more={"projectId": None}),
        case(more={"revision": None}),
    ],
    "a group policy outside of a group: the SDK believes it": [
        case(rule("1", "e", ON, groupPolicy="random", groupId="g")),
    ],
    SHARED_KEY: [
        _shared(rule("1", "s", ON, ALT, forcedVariations={"user": "alt"})),
        _shared(rule("1", "s", ON, ALT), profile={"1": "102"}),
        _shared(rule("1", "s", ON, cmab=WHOLE), predictions=PREDICTED),
    ],
}  # fmt: skip


def test_every_deviation_has_its_cases() -> None:
    assert set(DIFFERENT) == {*DATAFILES, SHARED_KEY}


@pytest.mark.parametrize(
    ("reason", "different"), [(reason, one) for reason, every in DIFFERENT.items() for one in every]
)
def test_it_is_different(reason: str, different: Case) -> None:
    assert deviation(different) == reason
    assert differences(Comparison(), different) != []


def test_an_impression_the_sdk_sends_without_its_variation() -> None:
    """A feature rollout under two flags, of which only the later has a rollout."""
    found = case(_FEATURE_ROLLOUT, rules=(rule("5", "r", ALT),))
    flags = [flag("g", _FEATURE_ROLLOUT), *found.datafile["featureFlags"]]
    oracle = Oracle()
    assert differences(Comparison(oracle), found.on({**found.datafile, "featureFlags": flags})) == []
    assert oracle.tally.facts["an impression that the SDK sent without its variation"] == 1


@pytest.mark.parametrize(
    "odd",
    [
        case(rule("1", "e", ON, status="")),
        case(rule("1", "e", ON, status=None)),
        case(rule("1", "e", ON | {"variables": [{"id": "v", "value": None}]})),
        case(more={"featureFlags": [flag("f", variables=[VARIABLE | {"defaultValue": None}])]}),
        case(_FEATURE_ROLLOUT, rules=(rule("5", "r", variation("201", "v"), variation("202", "v")),)),
        case(_FEATURE_ROLLOUT, rules=(rule("5", "r", ALT), rule("6", "s", ALT), rule("5", "r", variation("202", "v")))),
    ],
)
def test_what_is_odd_and_the_same(odd: Case) -> None:
    assert deviation(odd) is None
    assert differences(Comparison(), odd) == []


def test_a_flag_that_stands_twice_is_decided_once() -> None:
    found = case(rule("1", "e", ON))
    assert (
        differences(Comparison(), found.on({**found.datafile, "featureFlags": found.datafile["featureFlags"] * 2}))
        == []
    )


def test_shared_keys_that_are_not_looked_up_are_compared() -> None:
    found = _shared(rule("1", "s", ON))
    assert deviation(found) is None
    assert differences(Comparison(), found) == []
