"""Reasons that no recorded answer shows: local holdouts, bypassed holdouts, status, odd bucketing ids."""

from __future__ import annotations

from typing import Any

import pytest

from tests.decision.projects import NO_TRAFFIC, NOBODY, UNTOLD, Json, decided, flag, project, rule, variation

ON = variation("101", "on")
EVERYONE = rule("default-r", "default-r", ON)
HOLDOUT = rule("5", "h", variation("x", "held", enabled=False))


def reasons(
    *experiments: Json, rules: tuple[Json, ...] = (EVERYONE,), attributes: Json | None = None, **more: Any
) -> list[str]:
    config = project(
        featureFlags=[flag("f", *experiments, rollout="r")], experiments=list(experiments),
        rollouts=[{"id": "r", "experiments": list(rules)}], **more,
    )  # fmt: skip
    found: list[str] = decided(config, "f", attributes=attributes, options=("INCLUDE_REASONS",))["reasons"]
    return found


LAST = [
    "Audiences for experiment default-r collectively evaluated to true.",
    'User "user" meets conditions for targeting rule "Everyone Else".',
]


def test_experiment_that_does_not_run() -> None:
    assert reasons(rule("1", "e", ON, status="Paused")) == ['Experiment "e" is not running.', *LAST]


def test_rollout_without_rules() -> None:
    assert reasons(rules=()) == []


def test_last_rule_failed() -> None:
    assert reasons(rules=(rule("1", "one", ON, audienceIds=[UNTOLD]),)) == [
        'an error occurred while evaluating nested tree for audience ID "12"'
    ]


def test_local_holdout_of_an_experiment() -> None:
    assert reasons(rule("1", "e", ON), localHoldouts=[HOLDOUT | {"includedRules": ["1"]}]) == [
        "Audiences for holdout h collectively evaluated to true.",
        "User user meets conditions for local holdout h.",
        "User user is in variation held of local holdout h for rule 1.",
    ]


def test_local_holdouts_missed_are_told_of_experiments_only() -> None:
    nobody = HOLDOUT | {"includedRules": ["1", "default-r"], "audienceIds": [NOBODY]}
    empty = HOLDOUT | {"includedRules": ["1", "default-r"], "key": "empty", **NO_TRAFFIC}
    assert reasons(rule("1", "e", ON, **NO_TRAFFIC), localHoldouts=[nobody, empty]) == [
        "Audiences for holdout h collectively evaluated to false.",
        "User user does not meet conditions for local holdout h.",
        "Audiences for holdout empty collectively evaluated to true.",
        "User user meets conditions for local holdout empty.",
        "User user is not bucketed into local holdout empty for rule 1.",
        "Audiences for experiment e collectively evaluated to true.",
        *LAST,
    ]


def test_local_holdout_of_a_delivery_rule() -> None:
    assert reasons(localHoldouts=[HOLDOUT | {"includedRules": ["default-r"]}])[-1] == (
        "User user is in variation held of local holdout h for rule default-r."
    )


def test_holdout_that_excludes_targeted_deliveries() -> None:
    assert reasons(rule("1", "e", ON), holdouts=[HOLDOUT | {"excludeTargetedDeliveries": True}]) == [
        "Audiences for holdout h collectively evaluated to true.",
        "User user meets conditions for holdout h.",
        "User user is in variation held of holdout h.",
        "Holdout 'h' excludes targeted deliveries. Targeted delivery rules will be evaluated.",
        'Holdout "h" has excludeTargetedDeliveries enabled, continuing to rollout evaluation.',
        *LAST,
    ]


def test_cmab_traffic() -> None:
    cmab = rule("1", "e", ON, cmab={"attributeIds": [], "trafficAllocation": 0} | {"x": 1})
    assert reasons(cmab, attributes={"$opt_bucketing_id": 5}) == [
        "Audiences for experiment e collectively evaluated to true.",
        'Error computing bucketing ID for CMAB experiment e: invalid bucketing ID provided: "5"',
        "User user not in CMAB experiment e due to traffic allocation",
        LAST[0],
        'Error computing bucketing ID for experiment "default-r": "invalid bucketing ID provided: \\"5\\""',
        LAST[1],
    ]


@pytest.mark.parametrize(
    ("value", "shown"), [(5, "5"), (5.0, "5"), (5.5, "5.5"), (True, "true"), (None, "<nil>"), (1e300, "1e+300")]
)
def test_bucketing_id_that_is_no_text(value: object, shown: str) -> None:
    assert reasons(attributes={"$opt_bucketing_id": value})[1] == (
        f'Error computing bucketing ID for experiment "default-r": "invalid bucketing ID provided: \\"{shown}\\""'
    )


def test_the_agent_ends_an_and_at_the_first_unknown() -> None:
    conditions = ["and", UNTOLD, "missing"]
    assert reasons(rule("1", "e", ON, audienceConditions=conditions))[:2] == [
        'an error occurred while evaluating nested tree for audience ID "12"',
        "Audiences for experiment e collectively evaluated to false.",
    ]
