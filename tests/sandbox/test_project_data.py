"""The sandbox's project is one that Optimizely's own SDK takes, and its parts agree with each other."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import orjson
import pytest
from optimizely import optimizely
from optimizely.event.event_processor import ForwardingEventProcessor
from optimizely.helpers.sdk_settings import OptimizelySdkSettings
from optimizely.optimizely_user_context import OptimizelyUserContext

from pipeline.sandbox import project_data as data

HOST = "https://odp.example"


def _sdk(sdk_key: str) -> optimizely.Optimizely:
    sdk = optimizely.Optimizely(
        datafile=orjson.dumps(data.datafile(sdk_key, HOST)).decode(),
        event_processor=ForwardingEventProcessor(_NoDispatcher()),
        settings=OptimizelySdkSettings(odp_disabled=True),
    )
    assert sdk.is_valid
    return sdk


def _user(sdk: optimizely.Optimizely, number: int, attributes: Any) -> OptimizelyUserContext:
    user = sdk.create_user_context(data.user_id(number), attributes)
    assert user is not None
    return user


class _NoDispatcher:
    @staticmethod
    def dispatch_event(event: object) -> None:
        del event


@pytest.mark.parametrize("sdk_key", [data.PRODUCTION, data.STAGING])
def test_the_official_sdk_takes_the_datafile(sdk_key: str) -> None:
    config = _sdk(sdk_key).get_optimizely_config()
    assert config is not None
    assert tuple(config.features_map) == data.FLAGS
    assert config.revision == "42"
    assert {event.key for event in config.events} == set(data.EVENTS)


def test_every_flag_is_decided_both_ways_for_somebody() -> None:
    sdk = _sdk(data.PRODUCTION)
    logging.getLogger("optimizely").setLevel(logging.CRITICAL)
    seen: dict[str, Counter[str]] = {key: Counter() for key in data.FLAGS}
    rules = set()
    for number in range(1, 201):
        user = _user(sdk, number, {"plan": "premium", "age": 30, "app_version": "3.4.0"})
        user.set_qualified_segments(list(data.segments_of(data.user_id(number)) or ()))
        for key, decision in user.decide_all(["DISABLE_DECISION_EVENT"]).items():
            seen[key][decision.variation_key or ""] += 1
            rules.add(decision.rule_key)
    one_sided = {key for key, variations in seen.items() if len(variations) < 2}
    # What is off (or on) for everybody but the holdout's users, who get the same "off".
    assert one_sided == {"emergency_stop"}
    assert {"holdout_of_the_year", "holdout_of_sorting", "checkout_loyal", "points_loyal"} <= rules


def test_experiments_of_the_group_exclude_each_other() -> None:
    sdk = _sdk(data.STAGING)
    both = 0
    for number in range(1, 301):
        user = _user(sdk, number, {"visits": 30})
        found = user.decide_for_keys(["recommendations", "product_bundles"], ["DISABLE_DECISION_EVENT"])
        tests = {decision.rule_key for decision in found.values()} & {"recommendations_test", "bundles_test"}
        assert len(tests) == 1, "without an audience in the way everybody is in one of them"
        both += len(tests) > 1
    assert both == 0


def test_variables_of_every_type() -> None:
    sdk = _sdk(data.PRODUCTION)
    user = _user(sdk, 3, {})
    user.set_forced_decision(
        OptimizelyUserContext.OptimizelyDecisionContext("checkout_redesign"),
        OptimizelyUserContext.OptimizelyForcedDecision("redesign"),
    )
    variables = user.decide("checkout_redesign", ["DISABLE_DECISION_EVENT"]).variables
    assert variables == {
        "button_text": "Buy",
        "steps": 1,
        "discount": 0.05,
        "show_summary": True,
        "layout": {"columns": 2, "colours": ["green", "white"]},
    }


def test_people_have_their_share_of_segments() -> None:
    counted = Counter(
        segment for number in range(1, data.PEOPLE + 1) for segment in data.segments_of(data.user_id(number)) or ()
    )
    for name, share in data.SEGMENTS.items():
        assert abs(counted[name] / data.PEOPLE * 100 - share) < 3, name


@pytest.mark.parametrize(
    "user", ["user-00000", "user-05001", "user-1", "user-\u0660\u0660\u0660\u0660\u0661", "guest", ""]
)
def test_others_are_unknown(user: str) -> None:
    assert data.segments_of(user) is None


def test_every_segment_is_one_that_an_audience_asks_for() -> None:
    asked = set()

    def walk(node: object) -> None:
        if isinstance(node, list):
            for child in node:
                walk(child)
        elif isinstance(node, dict) and node.get("match") == "qualified":
            asked.add(node["value"])

    for audience in data.datafile(data.PRODUCTION, HOST)["typedAudiences"]:
        walk(audience["conditions"])
    assert asked == set(data.SEGMENTS)
