"""Which of a flag's rules decides: each step of the precedence against those below it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.decision.projects import (
    NO_TRAFFIC,
    NOBODY,
    UNTOLD,
    Json,
    answered,
    decided,
    flag,
    impressions,
    project,
    request,
    rule,
    variation,
)

ON = variation("101", "on")
OFF = variation("102", "off", enabled=False)
ALT = variation("103", "alt")
EVERYONE = rule("default-r", "default-r", OFF)
HELD = variation("$opt_dummy_variation_id", "held", enabled=False)
HOLDOUT = rule("500", "holdout", HELD)


def outcome(decision: Json) -> tuple[str, str, str]:
    return decision["ruleType"], decision["ruleKey"], decision["variationKey"]


def with_rules(
    *experiments: Json, rules: tuple[Json, ...] = (EVERYONE,), holdouts: tuple[Json, ...] = (), **more: Any
) -> Any:
    return project(
        featureFlags=[flag("f", *experiments, rollout="r")],
        experiments=list(experiments),
        rollouts=[{"id": "r", "experiments": list(rules)}],
        holdouts=list(holdouts),
        **more,
    )


def test_experiments_before_the_rollout() -> None:
    assert outcome(decided(with_rules(rule("1", "e", ON)), "f")) == ("feature-test", "e", "on")


def test_first_experiment_that_gives_a_variation() -> None:
    config = with_rules(
        rule("1", "nobody", ON, audienceIds=[NOBODY]), rule("2", "untold", ON, audienceIds=[UNTOLD]),
        rule("3", "empty", ON, **NO_TRAFFIC), rule("4", "paused", ON, status="Paused"), rule("5", "e", ALT),
    )  # fmt: skip
    assert outcome(decided(config, "f")) == ("feature-test", "e", "alt")


def test_nothing_decides() -> None:
    for config in (with_rules(rules=()), project(featureFlags=[flag("f")]), with_rules(rules=(rule("r", "r"),))):
        decision = decided(config, "f")
        assert outcome(decision) == ("rollout", "", "")
        assert (decision["experimentId"], decision["variationId"], decision["enabled"]) == ("", "", False)


def test_passing_a_rule_without_being_in_its_traffic_leads_to_the_last() -> None:
    rules = (rule("1", "one", ON, **NO_TRAFFIC), rule("2", "two", ON), EVERYONE)
    decision = decided(with_rules(rules=rules), "f")
    assert outcome(decision) == ("rollout", "default-r", "off")
    assert decision["isEveryoneElseVariation"] is True


def test_failing_a_rule_leads_to_the_next() -> None:
    rules = (rule("1", "one", ON, audienceIds=[NOBODY]), rule("2", "two", ON), EVERYONE)
    decision = decided(with_rules(rules=rules), "f")
    assert outcome(decision) == ("rollout", "two", "on")
    assert decision["isEveryoneElseVariation"] is False


def test_delivery_rules_do_not_need_to_be_running() -> None:
    assert outcome(decided(with_rules(rules=(rule("1", "one", ON, status="Paused"),)), "f")) == ("rollout", "one", "on")


def test_an_experiment_without_a_status_runs() -> None:
    experiment = rule("1", "e", ON)
    del experiment["status"]
    assert outcome(decided(with_rules(experiment), "f")) == ("feature-test", "e", "on")


def test_whitelist_before_the_audience_by_user_id() -> None:
    experiment = rule("1", "e", ON, ALT, audienceIds=[NOBODY], forcedVariations={"user": "alt", "lost": "gone"})
    config = with_rules(experiment)
    assert outcome(decided(config, "f")) == ("feature-test", "e", "alt")
    assert outcome(decided(config, "f", user_id="lost")) == ("rollout", "default-r", "off")
    by_bucketing_id = decided(config, "f", user_id="other", attributes={"$opt_bucketing_id": "user"})
    assert outcome(by_bucketing_id) == ("rollout", "default-r", "off")


def test_whitelist_names_variations_of_its_own_experiment() -> None:
    """Experiments of different flags may share a key."""
    first = rule("1", "same", variation("201", "v"), forcedVariations={"user": "v"})
    second = rule("2", "same", variation("202", "v"), forcedVariations={"user": "v"})
    config = project(featureFlags=[flag("f", first), flag("g", second)], experiments=[first, second])
    assert [decided(config, key)["variationId"] for key in ("f", "g")] == ["201", "202"]


def test_forced_flag_before_everything() -> None:
    config = with_rules(rule("1", "e", ON, forcedVariations={"user": "on"}), holdouts=(HOLDOUT,))
    decision = decided(config, "f", forced=(("f", "", "off"),))
    assert outcome(decision) == ("feature-test", "", "off")
    assert (decision["experimentId"], decision["variationId"]) == ("", "102")
    assert impressions(config, "f", forced=(("f", "", "off"),)) == [("feature-test", "")]


def test_forced_rule_before_its_audience_and_local_holdouts_after_global_ones() -> None:
    experiment = rule("1", "e", ON, ALT, audienceIds=[NOBODY], status="Paused")
    forced = (("f", "e", "alt"),)
    local: Any = {"localHoldouts": [HOLDOUT | {"includedRules": ["1"]}]}
    assert outcome(decided(with_rules(experiment, **local), "f", forced=forced)) == ("feature-test", "e", "alt")
    held = decided(with_rules(experiment, holdouts=(HOLDOUT,)), "f", forced=forced)
    assert outcome(held) == ("holdout", "holdout", "held")


def test_forced_delivery_rule_may_name_any_variation_of_the_flag() -> None:
    experiment = rule("1", "e", ALT, audienceIds=[NOBODY])
    rules = (rule("2", "two", ON, audienceIds=[NOBODY]), EVERYONE)
    decision = decided(with_rules(experiment, rules=rules), "f", forced=(("f", "two", "alt"),))
    assert outcome(decision) == ("rollout", "two", "alt")
    assert (decision["experimentId"], decision["variationId"]) == ("2", "103")


@pytest.mark.parametrize("forced", [("f", "", "gone"), ("f", "e", "gone"), ("g", "", "off"), ("f", "gone", "off")])
def test_forced_decisions_that_do_not_apply(forced: tuple[str, str, str]) -> None:
    assert outcome(decided(with_rules(rule("1", "e", ON)), "f", forced=(forced,))) == ("feature-test", "e", "on")


def test_the_last_forced_decision_for_a_place_counts() -> None:
    forced = (("f", "", "off"), ("f", "", "on"))
    assert decided(with_rules(rule("1", "e", ON)), "f", forced=forced)["variationKey"] == "on"


def test_group_lets_one_of_its_experiments_be_reached() -> None:
    members = [rule("1", "one", ON), rule("2", "two", ALT)]
    for policy, expected in (("random", "two"), ("overlapping", "one")):
        traffic = [{"entityId": "2", "endOfRange": 10000}]
        group = {"id": "g", "policy": policy, "trafficAllocation": traffic, "experiments": members}
        config = project(featureFlags=[flag("f", *members)], groups=[group])
        assert decided(config, "f")["ruleKey"] == expected


def test_empty_audience_conditions_let_everyone_pass_whatever_the_ids_say() -> None:
    config = with_rules(rule("1", "e", ON, audienceIds=[NOBODY], audienceConditions=[]))
    assert decided(config, "f")["ruleKey"] == "e"
    config = with_rules(rule("1", "e", ON, audienceIds=[NOBODY], audienceConditions=None))
    assert decided(config, "f")["ruleKey"] == "default-r"


def test_nobody_is_bucketed_into_a_rule_without_a_key() -> None:
    assert decided(with_rules(rule("1", " ", ON)), "f")["ruleKey"] == "default-r"


def test_feature_rollout_gives_the_rest_what_everyone_else_gets() -> None:
    experiment = rule("1", "e", ON, type="fr", **NO_TRAFFIC)
    decision = decided(with_rules(experiment), "f")
    assert outcome(decision) == ("feature-test", "e", "off")
    assert decision["variationId"] == "102"
    whitelisted = decided(with_rules(experiment | {"forcedVariations": {"user": "off"}}), "f")
    assert outcome(whitelisted) == ("feature-test", "e", "off")


def test_rules_of_one_id_give_what_the_last_gives_under_the_name_of_their_own_rollout() -> None:
    first, last = rule("5", "x", ON, layerId="l1"), rule("5", "y", OFF, layerId="l2")
    config = project(
        featureFlags=[flag("f", rollout="r"), flag("g", rollout="s")], sendFlagDecisions=True,
        rollouts=[{"id": "r", "experiments": [first]}, {"id": "s", "experiments": [last]}],
    )  # fmt: skip
    assert outcome(decided(config, "f")) == ("rollout", "x", "off")
    assert outcome(decided(config, "g")) == ("rollout", "y", "off")
    tracked = answered(config, request())["tracking"]["impressions"]
    assert [(one["ruleKey"], one["campaignId"]) for one in tracked] == [("x", "l1"), ("y", "l2")]
    nameless = project(
        featureFlags=[flag("f", rollout="r")],
        rollouts=[{"id": "r", "experiments": [first]}, {"id": "s", "experiments": [last | {"key": " "}]}],
    )
    assert decided(nameless, "f")["ruleKey"] == "", "the last one gives nobody anything"


def test_nobody_is_in_a_variation_without_an_id() -> None:
    nameless = variation("", "nameless")
    assert decided(with_rules(rule("1", "e", nameless)), "f")["ruleKey"] == "default-r"
    listed = decided(with_rules(rule("1", "e", nameless, forcedVariations={"user": "nameless"})), "f")
    assert outcome(listed) == ("feature-test", "e", "nameless")


def test_global_holdouts_in_order_and_only_running_ones() -> None:
    draft = HOLDOUT | {"id": "501", "key": "draft", "status": "Draft"}
    nobody = HOLDOUT | {"id": "502", "key": "nobody", "audienceIds": [NOBODY]}
    empty = HOLDOUT | {"id": "503", "key": "empty", **NO_TRAFFIC}
    second = HOLDOUT | {"id": "504", "key": "second", "includedRules": ["gone"]}
    config = with_rules(rule("1", "e", ON), holdouts=(draft, nobody, empty, HOLDOUT, second))
    decision = decided(config, "f")
    assert outcome(decision) == ("holdout", "holdout", "held")
    assert (decision["experimentId"], decision["enabled"], decision["variationId"]) == ("500", False, HELD["id"])
    assert outcome(decided(with_rules(rule("1", "e", ON), holdouts=(second,)), "f"))[1] == "second"


@pytest.mark.parametrize(("included", "expected"), [(["1"], "holdout"), ([], "e"), (None, "e"), (["gone"], "e")])
def test_local_holdouts_of_experiments(included: list[str] | None, expected: str) -> None:
    config = with_rules(rule("1", "e", ON), localHoldouts=[HOLDOUT | {"includedRules": included}])
    assert decided(config, "f")["ruleKey"] == expected


def test_local_holdouts_of_delivery_rules() -> None:
    rules = (rule("1", "one", ON, audienceIds=[NOBODY]), EVERYONE)
    for included, expected in (("1", "holdout"), ("default-r", "holdout"), ("gone", "default-r")):
        config = with_rules(rules=rules, localHoldouts=[HOLDOUT | {"includedRules": [included]}])
        assert decided(config, "f")["ruleKey"] == expected


class TestHoldoutThatExcludesTargetedDeliveries:
    BYPASSED = HOLDOUT | {"excludeTargetedDeliveries": True}
    SECOND = HOLDOUT | {"id": "501", "key": "second"}

    def test_only_targeted_deliveries_and_the_rollout_are_evaluated(self) -> None:
        config = with_rules(rule("1", "ab", ON, type="ab"), rule("2", "td", ALT, type="td"), holdouts=(self.BYPASSED,))
        assert outcome(decided(config, "f")) == ("feature-test", "td", "alt")
        assert impressions(config, "f") == [("holdout", "holdout"), ("feature-test", "td")]

    def test_no_further_holdout_is_looked_at(self) -> None:
        config = with_rules(rule("1", "ab", ON), holdouts=(self.BYPASSED, self.SECOND))
        assert outcome(decided(config, "f")) == ("rollout", "default-r", "off")

    def test_the_holdout_owes_its_impression_though_the_decision_owes_none(self) -> None:
        config = with_rules(holdouts=(self.BYPASSED,))
        assert impressions(config, "f") == [("holdout", "holdout")]
        assert decided(config, "f")["decisionEventDispatched"] is True
        assert impressions(config, "f", options=("DISABLE_DECISION_EVENT",)) == []
        both = with_rules(holdouts=(self.BYPASSED,), sendFlagDecisions=True)
        assert impressions(both, "f") == [("holdout", "holdout"), ("rollout", "default-r")]

    def test_a_local_holdout_takes_its_place(self) -> None:
        local = self.SECOND | {"includedRules": ["default-r"]}
        config = with_rules(holdouts=(self.BYPASSED,), localHoldouts=[local])
        assert impressions(config, "f") == [("holdout", "second")]

    def test_it_is_forgotten_for_the_next_flag(self) -> None:
        experiment = rule("1", "e", ON)
        config = project(
            featureFlags=[flag("f", experiment), flag("g", experiment)], experiments=[experiment],
            holdouts=[self.BYPASSED],
        )  # fmt: skip
        forced = (("g", "", "on"),)
        assert impressions(config, forced=forced) == [("holdout", "holdout"), ("feature-test", "")]


class TestCmab:
    EXPERIMENT = rule("1", "e", ON, cmab={"attributeIds": [], "trafficAllocation": 10000})

    def test_without_a_prediction_the_flag_cannot_be_decided(self) -> None:
        config = with_rules(self.EXPERIMENT, sendFlagDecisions=True, holdouts=())
        for options in ((), ("INCLUDE_REASONS",), ("EXCLUDE_VARIABLES",)):
            decision = decided(config, "f", options=options)
            assert outcome(decision) == ("", "", "")
            assert decision["reasons"] == ["Failed to fetch CMAB data for experiment e."]
            assert "variables" not in decision
        assert impressions(config, "f") == []

    def test_the_error_survives_enabled_flags_only(self) -> None:
        config = project(featureFlags=[flag("f", self.EXPERIMENT), flag("g")], experiments=[self.EXPERIMENT])
        assert decided(config, options=("ENABLED_FLAGS_ONLY",))["flagKey"] == "f"

    def test_a_bypassed_holdout_owes_nothing_then(self) -> None:
        config = with_rules(
            self.EXPERIMENT | {"type": "td"}, holdouts=(TestHoldoutThatExcludesTargetedDeliveries.BYPASSED,)
        )
        assert impressions(config, "f") == []

    def test_users_outside_its_audience_or_traffic_go_on(self) -> None:
        for more in ({"audienceIds": [NOBODY]}, {"cmab": {"trafficAllocation": 0}}, {"cmab": {"attributeIds": ["1"]}}):
            assert decided(with_rules(self.EXPERIMENT | more), "f")["ruleKey"] == "default-r"

    def test_its_group_may_keep_users_out(self) -> None:
        traffic = [{"entityId": "other", "endOfRange": 10000}]
        group = {"id": "g", "policy": "random", "trafficAllocation": traffic, "experiments": [self.EXPERIMENT]}
        config = project(featureFlags=[flag("f", self.EXPERIMENT)], groups=[group])
        assert outcome(decided(config, "f")) == ("rollout", "", "")

    def test_an_empty_cmab_is_none(self) -> None:
        assert decided(with_rules(self.EXPERIMENT | {"cmab": {}}), "f")["ruleKey"] == "e"

    def test_forced_and_whitelisted_users_need_no_prediction(self) -> None:
        assert decided(with_rules(self.EXPERIMENT), "f", forced=(("f", "e", "on"),))["variationKey"] == "on"
        listed = self.EXPERIMENT | {"forcedVariations": {"user": "on"}}
        assert decided(with_rules(listed), "f")["variationKey"] == "on"
