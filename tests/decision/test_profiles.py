"""Sticky profiles: what a user was given before is given again, and what is given now is learned."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.decision import Answer, Facts, answer
from pipeline.decision.visitor import visitor_of
from pipeline.project import ProjectConfig
from tests.decision.projects import NO_TRAFFIC, NOBODY, Json, flag, project, request, rule, variation

ON = variation("101", "on")
ALT = variation("103", "alt")
EVERYONE = rule("default-r", "default-r", variation("102", "off", enabled=False))
HOLDOUT = rule("500", "holdout", variation("x", "held", enabled=False))
WHY = ("INCLUDE_REASONS",)


def with_experiments(*experiments: Json, **more: Any) -> ProjectConfig:
    return project(
        featureFlags=[flag("f", *experiments, rollout="r")], experiments=list(experiments),
        rollouts=[{"id": "r", "experiments": [EVERYONE]}], **more,
    )  # fmt: skip


def asked(config: ProjectConfig, profile: dict[str, str] | None, *keys: str, **more: Any) -> Answer:
    found = answer(config, request(*keys, **more), Facts(profile=profile), source="t-0-1", timestamp=1)
    assert not found.wanted
    return found


def given(found: Answer) -> list[tuple[str, str]]:
    return [(one["ruleKey"], one["variationKey"]) for one in json.loads(found.value)["decisions"]]


def reasons(found: Answer) -> list[str]:
    (decision,) = json.loads(found.value)["decisions"]
    return list(decision["reasons"])


def test_what_was_given_is_given_again_and_not_learned_again() -> None:
    found = asked(with_experiments(rule("1", "e", ON, ALT)), {"1": "103"}, "f", options=WHY)
    assert given(found) == [("e", "alt")]
    assert found.learned is None
    assert reasons(found) == ['User "user" was previously bucketed into variation "alt" of experiment "e".']


def test_what_one_flag_taught_holds_for_the_next() -> None:
    shared = rule("1", "e", ON, ALT)
    config = project(featureFlags=[flag("f", shared), flag("g", shared)], experiments=[shared])
    first, second = json.loads(asked(config, {}, options=WHY).value)["decisions"]
    assert first["reasons"] == ["Audiences for experiment e collectively evaluated to true."]
    assert second["reasons"] == ['User "user" was previously bucketed into variation "on" of experiment "e".']


def test_it_owes_the_same_impression() -> None:
    result = json.loads(asked(with_experiments(rule("1", "e", ON, ALT)), {"1": "103"}, "f").value)
    (impression,) = result["tracking"]["impressions"]
    assert (impression["experimentId"], impression["variationId"], impression["campaignId"]) == ("1", "103", "91")


def test_what_is_given_is_learned() -> None:
    found = asked(with_experiments(rule("1", "e", ON)), {"2": "x"}, "f")
    assert given(found) == [("e", "on")]
    assert found.learned == {"1": "101"}


def test_nothing_is_learned_where_no_profiles_are_kept() -> None:
    assert asked(with_experiments(rule("1", "e", ON)), None, "f").learned is None


def test_the_profile_handed_in_stays_as_it_was() -> None:
    profile = {"2": "x"}
    asked(with_experiments(rule("1", "e", ON)), profile, "f")
    assert profile == {"2": "x"}


def test_a_variation_that_is_gone_is_chosen_anew() -> None:
    found = asked(with_experiments(rule("1", "e", ON)), {"1": "999"}, "f", options=WHY)
    assert given(found) == [("e", "on")]
    assert found.learned == {"1": "101"}
    assert reasons(found)[0] == (
        'User "user" was previously bucketed into variation with ID "999" for experiment "e", but no matching '
        "variation was found."
    )


@pytest.mark.parametrize("profile", [{"1": ""}, {"2": "103"}, {}])
def test_an_empty_text_or_another_experiment_says_nothing(profile: dict[str, str]) -> None:
    found = asked(with_experiments(rule("1", "e", ON, ALT)), profile, "f", options=WHY)
    assert given(found) == [("e", "on")]
    assert found.learned == {"1": "101"}
    assert reasons(found) == ["Audiences for experiment e collectively evaluated to true."]


def test_it_beats_audience_and_traffic() -> None:
    for more in ({"audienceIds": [NOBODY]}, NO_TRAFFIC):
        found = asked(with_experiments(rule("1", "e", ON) | more), {"1": "101"}, "f")
        assert given(found) == [("e", "on")]
        assert given(asked(with_experiments(rule("1", "e", ON) | more), {}, "f")) == [("default-r", "off")]


def test_it_beats_the_group() -> None:
    member = rule("1", "e", ON)
    traffic = [{"entityId": "other", "endOfRange": 10000}]
    group = {"id": "g", "policy": "random", "trafficAllocation": traffic, "experiments": [member]}
    config = project(featureFlags=[flag("f", member)], groups=[group])
    assert given(asked(config, {"1": "101"}, "f")) == [("e", "on")]
    assert given(asked(config, {}, "f")) == [("", "")]


def test_the_whitelist_beats_it() -> None:
    listed = rule("1", "e", ON, ALT, forcedVariations={"user": "on"})
    found = asked(with_experiments(listed), {"1": "103"}, "f")
    assert given(found) == [("e", "on")]
    assert found.learned is None


def test_a_listed_variation_that_is_gone_leaves_it_in_place() -> None:
    listed = rule("1", "e", ON, ALT, forcedVariations={"user": "gone"})
    assert given(asked(with_experiments(listed), {"1": "103"}, "f")) == [("e", "alt")]


def test_a_paused_experiment_gives_it_no_more() -> None:
    found = asked(with_experiments(rule("1", "e", ON, status="Paused")), {"1": "101"}, "f", options=WHY)
    assert given(found) == [("default-r", "off")]
    assert reasons(found)[0] == 'Experiment "e" is not running.'
    assert found.learned is None


def test_the_option_neither_reads_nor_learns() -> None:
    options = ("IGNORE_USER_PROFILE_SERVICE", *WHY)
    found = asked(with_experiments(rule("1", "e", ON, ALT)), {"1": "103"}, "f", options=options)
    assert given(found) == [("e", "on")]
    assert found.learned is None
    assert reasons(found) == ["Audiences for experiment e collectively evaluated to true."]


def test_two_flags_learn_two_experiments_and_one_experiment_once() -> None:
    experiments = [rule("1", "one", ON), rule("2", "two", ALT)]
    config = project(
        featureFlags=[flag("f", experiments[0]), flag("g", experiments[1]), flag("h", experiments[0])],
        experiments=experiments,
    )  # fmt: skip
    found = asked(config, {})
    assert given(found) == [("one", "on"), ("two", "alt"), ("one", "on")]
    assert found.learned == {"1": "101", "2": "103"}
    assert asked(config, {"1": "101"}).learned == {"2": "103"}


def test_what_is_left_out_of_the_answer_is_learned_all_the_same() -> None:
    experiment = rule("1", "e", variation("102", "off", enabled=False))
    config = project(featureFlags=[flag("f", experiment), flag("g")], experiments=[experiment])
    found = asked(config, {}, options=("ENABLED_FLAGS_ONLY",))
    assert given(found) == []
    assert found.learned == {"1": "102"}


def test_what_does_not_come_from_bucketing_is_never_learned() -> None:
    experiment = rule("1", "e", ON, ALT)
    local = {"localHoldouts": [HOLDOUT | {"includedRules": ["1"]}]}
    for config, more, expected in (
        (with_experiments(experiment), {"forced": (("f", "", "alt"),)}, ("", "alt")),
        (with_experiments(experiment), {"forced": (("f", "e", "alt"),)}, ("e", "alt")),
        (with_experiments(experiment, holdouts=[HOLDOUT]), {}, ("holdout", "held")),
        (with_experiments(experiment, **local), {}, ("holdout", "held")),
        (with_experiments(), {}, ("default-r", "off")),
        (with_experiments(rule("1", "e", ON, forcedVariations={"user": "on"})), {}, ("e", "on")),
    ):
        found = asked(config, {}, "f", **more)
        assert given(found) == [expected]
        assert found.learned is None


def test_forced_decisions_and_holdouts_beat_it() -> None:
    experiment = rule("1", "e", ON, ALT)
    local = {"localHoldouts": [HOLDOUT | {"includedRules": ["1"]}]}
    profile = {"1": "103"}
    for found, expected in (
        (asked(with_experiments(experiment), profile, "f", forced=(("f", "", "on"),)), ("", "on")),
        (asked(with_experiments(experiment), profile, "f", forced=(("f", "e", "on"),)), ("e", "on")),
        (asked(with_experiments(experiment, holdouts=[HOLDOUT]), profile, "f"), ("holdout", "held")),
        (asked(with_experiments(experiment, **local), profile, "f"), ("holdout", "held")),
    ):
        assert given(found) == [expected]
        assert found.learned is None


def test_the_rest_of_a_feature_rollout_is_learned_and_kept() -> None:
    config = with_experiments(rule("1", "e", ON, type="fr", **NO_TRAFFIC))
    found = asked(config, {}, "f")
    assert given(found) == [("e", "off")]
    assert found.learned == {"1": "102"}
    assert given(asked(config, {"1": "102"}, "f")) == [("e", "off")]


def test_a_request_with_an_error_learns_nothing() -> None:
    wrong = request("f")
    wrong.error = "invalid option: X"
    config = with_experiments(rule("1", "e", ON))
    assert answer(config, wrong, Facts(profile={}), source="s", timestamp=1).learned is None


def test_a_visitor_without_a_profile_learns_nothing() -> None:
    visitor = visitor_of(request("f"), Facts())
    visitor.learn("1", "101")
    assert (visitor.profile, visitor.learned) == (None, None)
