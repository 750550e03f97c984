"""Feature rollouts: whoever is not in the experiment's own traffic gets what everyone else gets, to the last bucket."""

from __future__ import annotations

import pytest

from pipeline.project.allocation import bucket
from tests.decision.projects import NO_TRAFFIC, Json, decided, flag, project, rule, variation

ON = variation("101", "on")
ELSE = variation("102", "else", enabled=False)
LAST_ID, LAST_USER = "20914452332", "15580846default-rollout-386456-"


def given(experiment: Json, *rules: Json, user_id: str = "user") -> tuple[str, str]:
    config = project(
        featureFlags=[flag("f", experiment, rollout="r")], experiments=[experiment],
        rollouts=[{"id": "r", "experiments": list(rules)}],
    )  # fmt: skip
    decision = decided(config, "f", user_id=user_id)
    return decision["ruleKey"], decision["variationKey"]


def test_the_last_bucket_is_in_it_too() -> None:
    assert bucket((LAST_USER + LAST_ID).encode()) == 9999
    experiment = rule(LAST_ID, "fr", ON, type="fr", **NO_TRAFFIC)
    assert given(experiment, rule("9", "default", ELSE), user_id=LAST_USER) == ("fr", "else")


def test_it_is_the_last_rule_that_gives_the_variation() -> None:
    experiment = rule("1", "fr", ON, type="fr", **NO_TRAFFIC)
    first, bare = rule("8", "first", ON), rule("8", "bare")
    assert given(experiment, bare, rule("9", "default", ELSE)) == ("fr", "else")
    assert given(experiment, first, rule("9", "default", ELSE)) == ("fr", "else")
    # Without variations of its own there is nothing to add.
    assert given(experiment, first, rule("9", "default")) == ("first", "on")
    assert given(experiment) == ("", "")


@pytest.mark.parametrize("kind", ["ab", "td", "", "FR"])
def test_only_feature_rollouts_do_so(kind: str) -> None:
    experiment = rule("1", "e", ON, type=kind, **NO_TRAFFIC)
    assert given(experiment, rule("9", "default", ELSE)) == ("default", "else")


def test_its_own_traffic_comes_first() -> None:
    experiment = rule("1", "fr", ON, type="fr")
    assert given(experiment, rule("9", "default", ELSE)) == ("fr", "on")


def test_one_that_two_flags_share_is_one_experiment() -> None:
    """The flag decided first must not depend on the rollout of the one read first."""
    experiment = rule("1", "fr", ON, type="fr", **NO_TRAFFIC)
    config = project(
        featureFlags=[flag("f", experiment, rollout="none"), flag("g", experiment, rollout="r")],
        experiments=[experiment], rollouts=[{"id": "r", "experiments": [rule("9", "default", ELSE)]}],
    )  # fmt: skip
    assert [decided(config, key)["variationKey"] for key in ("f", "g")] == ["else", "else"]
