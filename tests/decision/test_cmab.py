"""CMAB experiments: a prediction is wanted, comes among the facts, and chooses the variation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.decision import Answer, Facts, Prediction, Wanted, answer
from pipeline.project import ProjectConfig
from tests.decision.projects import NO_TRAFFIC, NOBODY, Json, flag, project, request, rule, variation

ON = variation("101", "on")
ALT = variation("103", "alt")
EVERYONE = rule("default-r", "default-r", variation("102", "off", enabled=False))
ALL: Json = {"attributeIds": ["41", "42"], "trafficAllocation": 10000}
ATTRIBUTES = [{"id": "41", "key": "country"}, {"id": "42", "key": "age"}, {"id": "43", "key": "plan"}]
CMAB = rule("1", "e", ON, ALT, cmab=ALL, **NO_TRAFFIC)
WHY = ("INCLUDE_REASONS",)
FAILED = "Failed to fetch CMAB data for experiment e."


def with_experiments(*experiments: Json, **more: Any) -> ProjectConfig:
    return project(
        featureFlags=[flag("f", *experiments, rollout="r")], experiments=list(experiments), attributes=ATTRIBUTES,
        rollouts=[{"id": "r", "experiments": [EVERYONE]}], **more,
    )  # fmt: skip


def asked(
    config: ProjectConfig, *, profile: dict[str, str] | None = None, keys: tuple[str, ...] = ("f",),
    predictions: dict[str, Prediction | None] | None = None, **more: Any,
) -> Answer:  # fmt: skip
    facts = Facts(profile=profile, predictions=predictions)
    return answer(config, request(*keys, **more), facts, source="t-0-1", timestamp=1)


def predicted(variation_id: str, config: ProjectConfig | None = None, **more: Any) -> Answer:
    found = asked(config or with_experiments(CMAB), predictions={"1": Prediction(variation_id, "uuid-1")}, **more)
    assert not found.wanted
    return found


def decision(found: Answer) -> Json:
    (only,) = json.loads(found.value)["decisions"]
    return dict(only)


def given(found: Answer) -> tuple[str, str, str]:
    only = decision(found)
    return only["ruleType"], only["ruleKey"], only["variationKey"]


def impressions(found: Answer) -> list[Json]:
    return list(json.loads(found.value).get("tracking", {"impressions": []})["impressions"])


def test_a_prediction_is_wanted_for_the_attributes_the_user_has_by_id() -> None:
    found = asked(with_experiments(CMAB), attributes={"country": "SI", "plan": "gold", "other": 1})
    assert found == Answer(b"", None, {"1": Wanted("1", {"41": "SI"})})


@pytest.mark.parametrize("value", [None, 0, False, [1], {"a": 1}, ""])
def test_any_value_is_handed_on_also_null(value: object) -> None:
    found = asked(with_experiments(CMAB), attributes={"age": value})
    assert found.wanted == {"1": Wanted("1", {"42": value})}


def test_unknown_and_repeated_attribute_ids() -> None:
    cmab = {"attributeIds": ["42", "gone", "41", "42"], "trafficAllocation": 10000}
    found = asked(with_experiments(CMAB | {"cmab": cmab}), attributes={"age": 5, "country": "SI", "gone": 1})
    assert found.wanted == {"1": Wanted("1", {"42": 5, "41": "SI"})}


def test_without_attributes_it_is_wanted_for_none() -> None:
    assert asked(with_experiments(CMAB)).wanted == {"1": Wanted("1", {})}


def test_the_prediction_chooses_the_variation() -> None:
    found = predicted("103", options=WHY)
    assert given(found) == ("feature-test", "e", "alt")
    assert decision(found)["reasons"] == [
        "Audiences for experiment e collectively evaluated to true.",
        "User bucketed into variation alt by CMAB service",
    ]


def test_its_impression_carries_the_uuid() -> None:
    (impression,) = impressions(predicted("103"))
    assert impression == {
        "flagKey": "f", "ruleKey": "e", "ruleType": "feature-test", "variationKey": "alt", "enabled": True,
        "campaignId": "91", "experimentId": "1", "variationId": "103", "cmabUuid": "uuid-1",
    }  # fmt: skip


def test_the_uuid_is_of_this_decision_only() -> None:
    config = with_experiments(CMAB)
    predicted("103", config)
    found = asked(config, predictions={"1": Prediction("103", "other")})
    assert impressions(found)[0]["cmabUuid"] == "other"
    assert impressions(asked(config, forced=(("f", "e", "alt"),)))[0]["cmabUuid"] is None


def test_an_unknown_variation_falls_through() -> None:
    found = predicted("999", options=WHY)
    assert given(found) == ("rollout", "default-r", "off")
    assert decision(found)["reasons"][1] == "variation with ID 999 not found in experiment 1"
    assert impressions(found) == []


def test_an_unknown_variation_falls_through_to_the_next_prediction() -> None:
    second = rule("2", "second", ON, cmab=ALL)
    config = with_experiments(CMAB, second)
    predictions: dict[str, Prediction | None] = {"1": Prediction("999", "a")}
    found = asked(config, predictions=predictions, attributes={"age": 3})
    assert found.wanted == {"2": Wanted("2", {"42": 3})}
    found = asked(config, predictions={**predictions, "2": Prediction("101", "b")})
    assert given(found) == ("feature-test", "second", "on")
    assert impressions(found)[0]["cmabUuid"] == "b"


def test_a_failure_is_an_error_without_impression() -> None:
    config = with_experiments(CMAB, rule("2", "second", ON), sendFlagDecisions=True)
    for options in ((), WHY, ("EXCLUDE_VARIABLES",)):
        found = asked(config, predictions={"1": None}, options=options)
        assert given(found) == ("", "", "")
        assert decision(found)["reasons"] == [FAILED]
        assert "variables" not in decision(found)
        assert impressions(found) == []
        assert not found.wanted


def test_the_error_is_answered_beside_other_flags() -> None:
    experiment = rule("2", "second", ON)
    config = project(featureFlags=[flag("f", CMAB), flag("g", experiment)], experiments=[CMAB, experiment])
    found = asked(config, keys=(), predictions={"1": None}, options=("ENABLED_FLAGS_ONLY",), profile={})
    assert [one["flagKey"] for one in json.loads(found.value)["decisions"]] == ["f", "g"]
    assert [one["flagKey"] for one in impressions(found)] == ["g"]
    assert found.learned == {"2": "101"}


def test_all_predictions_a_request_depends_on_are_wanted_at_once() -> None:
    second = rule("2", "second", ON, cmab=ALL)
    config = project(
        featureFlags=[flag("f", CMAB), flag("g", second), flag("h", CMAB)], experiments=[CMAB, second],
        attributes=ATTRIBUTES,
    )  # fmt: skip
    found = asked(config, keys=(), attributes={"age": 1})
    assert found.wanted == {"1": Wanted("1", {"42": 1}), "2": Wanted("2", {"42": 1})}
    assert found.value == b""


def test_nothing_is_learned_while_a_prediction_is_wanted() -> None:
    other = rule("2", "second", ON)
    config = project(featureFlags=[flag("f", other), flag("g", CMAB)], experiments=[CMAB, other])
    assert asked(config, keys=(), profile={}).learned is None
    found = asked(config, keys=(), profile={}, predictions={"1": Prediction("103", "u")})
    assert found.learned == {"2": "101"}


def test_a_prediction_is_never_learned_but_what_is_in_the_profile_needs_none() -> None:
    assert predicted("103", profile={}).learned is None
    kept = asked(with_experiments(CMAB), profile={"1": "101"})
    assert given(kept) == ("feature-test", "e", "on")
    assert impressions(kept)[0]["cmabUuid"] is None
    ignored = asked(with_experiments(CMAB), profile={"1": "101"}, options=("IGNORE_USER_PROFILE_SERVICE",))
    assert ignored.wanted == {"1": Wanted("1", {})}


def test_users_outside_its_audience_or_traffic_want_none() -> None:
    for more, reason in (
        ({"audienceIds": [NOBODY]}, "User user not in audience for CMAB experiment e"),
        (
            {"cmab": {"trafficAllocation": 0, "attributeIds": []}},
            "User user not in CMAB experiment e due to traffic allocation",
        ),
    ):
        found = asked(with_experiments(CMAB | more), options=WHY)
        assert given(found) == ("rollout", "default-r", "off")
        assert decision(found)["reasons"][1] == reason


def test_its_own_traffic_counts_and_not_the_ranges_of_its_variations() -> None:
    whole = CMAB | {"trafficAllocation": [{"entityId": "101", "endOfRange": 10000}]}
    assert asked(with_experiments(whole)).wanted
    assert not asked(with_experiments(whole | {"cmab": ALL | {"trafficAllocation": 0}})).wanted


@pytest.mark.parametrize(("open_to", "wanted"), [("1", True), ("other", False)])
def test_its_group_is_asked_first(open_to: str, wanted: bool) -> None:
    traffic = [{"entityId": open_to, "endOfRange": 10000}]
    group = {"id": "g", "policy": "random", "trafficAllocation": traffic, "experiments": [CMAB]}
    found = asked(project(featureFlags=[flag("f", CMAB)], groups=[group]), options=WHY)
    assert bool(found.wanted) is wanted


@pytest.mark.parametrize("more", [{"status": "Paused"}, {"cmab": {}}, {"cmab": None}])
def test_what_does_not_run_or_is_no_bandit_wants_none(more: Json) -> None:
    assert given(asked(with_experiments(CMAB | more))) == ("rollout", "default-r", "off")


def test_forced_decisions_whitelist_and_holdouts_want_none() -> None:
    holdout = rule("500", "holdout", variation("x", "held", enabled=False))
    local = holdout | {"includedRules": ["1"]}
    listed = CMAB | {"forcedVariations": {"user": "on"}}
    for found, expected in (
        (asked(with_experiments(CMAB), forced=(("f", "e", "alt"),)), ("feature-test", "e", "alt")),
        (asked(with_experiments(CMAB), forced=(("f", "", "alt"),)), ("feature-test", "", "alt")),
        (asked(with_experiments(listed)), ("feature-test", "e", "on")),
        (asked(with_experiments(CMAB, holdouts=[holdout])), ("holdout", "holdout", "held")),
        (asked(with_experiments(CMAB, localHoldouts=[local])), ("holdout", "holdout", "held")),
    ):
        assert not found.wanted
        assert given(found) == expected


def test_a_forced_rule_beats_a_prediction_that_is_there() -> None:
    found = predicted("101", forced=(("f", "e", "alt"),))
    assert given(found) == ("feature-test", "e", "alt")
    assert impressions(found)[0]["cmabUuid"] is None


def test_under_a_bypassed_holdout() -> None:
    bypassed = rule("500", "holdout", variation("x", "held", enabled=False), excludeTargetedDeliveries=True)
    assert not asked(with_experiments(CMAB, holdouts=[bypassed])).wanted
    config = with_experiments(CMAB | {"type": "td"}, holdouts=[bypassed])
    assert [one["ruleKey"] for one in impressions(predicted("101", config))] == ["holdout", "e"]
    assert impressions(asked(config, predictions={"1": None})) == []


def test_a_feature_rollouts_rest_may_be_predicted() -> None:
    assert given(predicted("102", with_experiments(CMAB | {"type": "fr"}))) == ("feature-test", "e", "off")


def test_predictions_of_other_rules_are_passed_over() -> None:
    found = asked(with_experiments(CMAB), predictions={"2": Prediction("101", "u")})
    assert found.wanted == {"1": Wanted("1", {})}
