"""The document an answer is: its shape, options, order, and that no value of an attribute can spoil it."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decision import Facts, answer, failure
from tests.decision.projects import (
    NOBODY,
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

VARIABLES = [
    {"id": "v1", "key": "title", "type": "string", "defaultValue": "none"},
    {"id": "v2", "key": "limit", "type": "integer", "defaultValue": "abc"},
]
ON = variation("101", "on", values={"v1": "own", "v2": "3"})
OFF = variation("102", "off", enabled=False, values={"v1": "unused"})
EXPERIMENTS = [rule("1", "e", ON), rule("2", "e2", OFF)]
CONFIG = project(
    sdkKey="key",
    region="eu",
    anonymizeIP=True,
    botFiltering=True,
    attributes=[{"id": "41", "key": "country"}],
    experiments=EXPERIMENTS,
    featureFlags=[
        flag("f", EXPERIMENTS[0], variables=VARIABLES),
        flag("off", EXPERIMENTS[1], variables=VARIABLES),
        flag("none"),
    ],
)


def test_whole_answer() -> None:
    asked = request("f", attributes={"country": "SI", "age": 5})
    result = answer(CONFIG, asked, Facts(), source="topic-0-5", timestamp=1700).value
    assert result == orjson.dumps(
        {
            "requestId": "topic-0-5",
            "source": "topic-0-5",
            "timestamp": 1700,
            "sdkKey": "key",
            "userId": "user",
            "revision": "7",
            "decisions": [
                {
                    "variationKey": "on",
                    "enabled": True,
                    "ruleKey": "e",
                    "flagKey": "f",
                    "userContext": {"userId": "user", "attributes": {"country": "SI", "age": 5}},
                    "reasons": [],
                    "variables": {"title": "own", "limit": 3},
                    "isEveryoneElseVariation": False,
                    "experimentId": "1",
                    "variationId": "101",
                    "ruleType": "feature-test",
                    "decisionEventDispatched": True,
                }
            ],
            "tracking": {
                "accountId": "1",
                "projectId": "2",
                "region": "EU",
                "anonymizeIp": True,
                "attributes": [
                    {"entity_id": "41", "key": "country", "value": "SI"},
                    {"entity_id": "$opt_bot_filtering", "key": "$opt_bot_filtering", "value": True},
                ],
                "impressions": [
                    {
                        "flagKey": "f",
                        "ruleKey": "e",
                        "ruleType": "feature-test",
                        "variationKey": "on",
                        "enabled": True,
                        "campaignId": "91",
                        "experimentId": "1",
                        "variationId": "101",
                        "cmabUuid": None,
                    }
                ],
            },
        }
    )


def test_own_request_id() -> None:
    asked = request("f")
    asked.request_id = "mine"
    result = answered(CONFIG, asked)
    assert (result["requestId"], result["source"]) == ("mine", "topic-0-5")


def test_nothing_to_track() -> None:
    assert "tracking" not in answered(CONFIG, request("none"))
    assert "tracking" not in answered(CONFIG, request("f", options=("DISABLE_DECISION_EVENT",)))
    assert decided(CONFIG, "f", options=("DISABLE_DECISION_EVENT",))["decisionEventDispatched"] is False


def test_a_flag_without_a_decision_is_tracked_where_the_project_sends_all() -> None:
    config = project(featureFlags=[flag("none")], sendFlagDecisions=True)
    (impression,) = answered(config, request("none"))["tracking"]["impressions"]
    assert impression == {
        "flagKey": "none", "ruleKey": "", "ruleType": "rollout", "variationKey": "", "enabled": False,
        "campaignId": "", "experimentId": "", "variationId": None, "cmabUuid": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layer_id", "variation_id", "campaign_id", "sent_variation_id"),
    [
        ("90", "101", "90", "101"),
        ("", "007", "1", "007"),
        ("default-9", "$opt_v", "default-9", None),
        ("90", "\u0661", "90", None),  # a digit, but not an ASCII one
        ("90", "a1", "90", None),
        ("90", "", "90", None),
    ],
)
def test_ids_as_they_are_sent(
    layer_id: str, variation_id: str, campaign_id: str, sent_variation_id: str | None
) -> None:
    experiment = rule("1", "e", variation(variation_id, "on"), layerId=layer_id, forcedVariations={"user": "on"})
    config = project(featureFlags=[flag("f", experiment)], experiments=[experiment])
    result = answered(config, request("f"))
    (impression,) = result["tracking"]["impressions"]
    assert (impression["campaignId"], impression["variationId"]) == (campaign_id, sent_variation_id)
    assert result["decisions"][0]["variationId"] == variation_id


def test_all_flags_in_the_datafiles_order_and_keys_in_the_requests() -> None:
    assert [one["flagKey"] for one in answered(CONFIG, request())["decisions"]] == ["f", "off", "none"]
    keys = ("none", "no such", "f")
    assert [one["flagKey"] for one in answered(CONFIG, request(*keys))["decisions"]] == list(keys)


def test_a_project_without_flags() -> None:
    assert answered(project(), request())["decisions"] == []


def test_unknown_flag() -> None:
    for options in ((), ("INCLUDE_REASONS",), ("EXCLUDE_VARIABLES",)):
        decision = decided(CONFIG, 'no "such"', options=options)
        assert decision == {
            "variationKey": "", "enabled": False, "ruleKey": "", "flagKey": 'no "such"',
            "userContext": {"userId": "user", "attributes": {}},
            "reasons": ['No flag was found for key "no "such"".'], "isEveryoneElseVariation": False,
            "experimentId": "", "variationId": "", "ruleType": "", "decisionEventDispatched": False,
        }  # fmt: skip
    assert impressions(CONFIG, "no such") == []


def test_enabled_flags_only_filters_answers_and_not_impressions() -> None:
    options = ("ENABLED_FLAGS_ONLY",)
    several = answered(CONFIG, request("off", "no such", "f", options=options))
    assert [one["flagKey"] for one in several["decisions"]] == ["no such", "f"]
    assert [one["flagKey"] for one in several["tracking"]["impressions"]] == ["off", "f"]
    assert [one["flagKey"] for one in answered(CONFIG, request(options=options))["decisions"]] == ["f"]
    assert decided(CONFIG, "off", options=options)["flagKey"] == "off"


def test_variables_of_a_disabled_flag_are_the_defaults() -> None:
    assert decided(CONFIG, "off")["variables"] == {"title": "none", "limit": None}
    assert decided(CONFIG, "off")["reasons"] == ['Variable value for key "limit" is invalid or wrong type.']


def test_errors_before_infos_and_none_without_variables() -> None:
    both = decided(CONFIG, "off", options=("INCLUDE_REASONS",))["reasons"]
    assert both == [
        'Variable value for key "limit" is invalid or wrong type.',
        "Audiences for experiment e2 collectively evaluated to true.",
    ]
    bare = decided(CONFIG, "off", options=("INCLUDE_REASONS", "EXCLUDE_VARIABLES"))
    assert (bare["reasons"], "variables" in bare) == (both[1:], False)
    assert decided(CONFIG, "off", options=("EXCLUDE_VARIABLES",))["reasons"] == []


def test_an_enabled_holdout_has_no_values() -> None:
    """The SDK knows only the values of experiments' and rules' variations."""
    holdout = rule("5", "h", variation("105", "held", values={"v1": "own"}))
    config = project(featureFlags=[flag("f", variables=VARIABLES)], holdouts=[holdout])
    assert decided(config, "f")["variables"] == {"title": None, "limit": None}


def test_bucketing_id() -> None:
    halves = [{"entityId": "101", "endOfRange": 5000}, {"entityId": "102", "endOfRange": 10000}]
    experiment = rule("1", "e", ON, OFF, trafficAllocation=halves)
    config = project(featureFlags=[flag("f", experiment)], experiments=[experiment])
    by_user = {user: decided(config, "f", user_id=user)["variationKey"] for user in ("u1", "u2", "u3", "u4", "u5", "")}
    assert set(by_user.values()) == {"on", "off"}
    for user, expected in by_user.items():
        assert decided(config, "f", attributes={"$opt_bucketing_id": user})["variationKey"] == expected
        for unusable in (None, 5, True, ["x"]):
            attributes = {"$opt_bucketing_id": unusable}
            assert decided(config, "f", user_id=user, attributes=attributes)["variationKey"] == expected


def test_segments_are_facts() -> None:
    leaf = {"name": "odp.audiences", "type": "third_party_dimension", "match": "qualified", "value": "vip"}
    experiment = rule("1", "e", ON, audienceIds=["21"])
    config = project(
        featureFlags=[flag("f", experiment)],
        experiments=[experiment],
        typedAudiences=[{"id": "21", "name": "s", "conditions": leaf}],
    )
    for segments, expected in ((None, ""), (frozenset[str](), ""), (frozenset({"vip"}), "e")):
        assert answered(config, request("f"), segments)["decisions"][0]["ruleKey"] == expected


def test_failure() -> None:
    asked = request("f")
    result = failure(asked, 'invalid option: "X"', source="topic-0-5", timestamp=1700, revision=None)
    assert orjson.loads(result) == {
        "requestId": "topic-0-5", "source": "topic-0-5", "timestamp": 1700, "sdkKey": "key", "userId": "user",
        "revision": None, "decisions": [], "error": 'invalid option: "X"',
    }  # fmt: skip


def test_a_request_with_an_error_is_answered_with_it() -> None:
    asked = request("f")
    asked.error = "error parsing request body"
    result = answered(CONFIG, asked)
    assert (result["error"], result["decisions"], result["revision"]) == ("error parsing request body", [], "7")
    assert "tracking" not in result


_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
_KEYS = st.one_of(
    st.sampled_from(("country", "$opt_bucketing_id", "$opt_other", "$opt_bot_filtering")), st.text(max_size=4)
)


@given(st.dictionaries(_KEYS, _VALUES, max_size=4), st.text(max_size=6))
def test_no_attribute_spoils_an_answer(attributes: Json, user_id: str) -> None:
    for options in ((), ("INCLUDE_REASONS",)):
        result = orjson.loads(
            answer(
                CONFIG,
                request("f", user_id=user_id, attributes=attributes, options=options),
                Facts(),
                source="s",
                timestamp=1,
            ).value
        )
        assert result["decisions"][0]["variationKey"] == "on"
        sent = [{"type": "custom", **one} for one in result["tracking"]["attributes"]]
        assert sent == orjson.loads(orjson.dumps(CONFIG.event_attributes(attributes)))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_values_that_cannot_be_written_again_are_null() -> None:
    attributes = {"deep": nested(600), "huge": 10**30, "country": "SI"}
    decision = decided(CONFIG, "f", attributes=attributes)
    assert decision["userContext"]["attributes"] == {"deep": None, "huge": None, "country": "SI"}


def test_every_depth_is_written_or_null() -> None:
    for depth in range(240, 260):
        decision = decided(CONFIG, "f", attributes={"deep": nested(depth), "country": "SI"})
        assert decision["userContext"]["attributes"]["deep"] in (nested(depth), None)


def test_reasons_change_nothing_else() -> None:
    def without_reasons(options: tuple[str, ...]) -> Json:
        result = answered(CONFIG, request(options=options))
        for decision in result["decisions"]:
            del decision["reasons"]
        return result

    assert without_reasons(()) == without_reasons(("INCLUDE_REASONS",))


def test_same_bytes_for_the_same_question() -> None:
    asked = request(attributes={"country": "SI"})
    answers = {answer(CONFIG, asked, Facts(), source="s", timestamp=1).value for _ in range(3)}
    assert len(answers) == 1
    assert b"\n" not in answers.pop()


def test_one_line_whatever_the_texts_hold() -> None:
    experiment = rule("1", "e\n", variation("101", "on\n"), audienceIds=[NOBODY])
    config = project(featureFlags=[flag("f\n", experiment)], experiments=[experiment])
    result = answer(
        config, request(attributes={"a\n": "\n"}, options=("INCLUDE_REASONS",)), Facts(), source="s\n", timestamp=1
    ).value
    assert b"\n" not in result
    assert json.loads(result)["source"] == "s\n"
