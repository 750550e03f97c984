"""Global holdouts are one for all flags: what a flag makes of one is its own, and is written when it is needed."""

from __future__ import annotations

import tracemalloc

import pytest

from tests.decision.projects import Json, answered, decided, flag, project, request, rule, variation

HELD = variation("$opt_dummy_variation_id", "held", enabled=False)


def holdout(identity: str, **more: object) -> Json:
    return rule(identity, f"h{identity}", HELD, **more)


def origins(answer: Json) -> list[tuple[str, str, str]]:
    """Flag, rule and variation of each decision."""
    return [(one["flagKey"], one["ruleKey"], one["variationKey"]) for one in answer["decisions"]]


def test_each_flag_is_held_out_by_itself() -> None:
    price = [{"id": "v", "key": "price", "type": "integer", "defaultValue": "7"}]
    config = project(featureFlags=[flag("f"), flag("g", variables=price)], holdouts=[holdout("5")])
    answer = answered(config, request())
    assert origins(answer) == [("f", "h5", "held"), ("g", "h5", "held")]
    assert [one.get("variables") for one in answer["decisions"]] == [None, {"price": 7}]
    assert [one["flagKey"] for one in answer["tracking"]["impressions"]] == ["f", "g"]


def test_reasons_are_each_flags_own() -> None:
    config = project(featureFlags=[flag("f"), flag("g")], holdouts=[holdout("4", trafficAllocation=[]), holdout("5")])
    first, second = answered(config, request(options=("INCLUDE_REASONS",)))["decisions"]
    assert first["reasons"] == second["reasons"]
    assert "User user is in no holdout variation." in first["reasons"]
    assert "User user is in variation held of holdout h5." in first["reasons"]


def test_one_id_of_a_global_and_a_local_holdout_is_two_holdouts() -> None:
    experiment = rule("1", "e", variation("101", "on"))
    twin = rule("5", "local", variation("$opt_dummy_variation_id", "kept", enabled=True), includedRules=["1"])
    everybody = holdout("5", excludeTargetedDeliveries=True)
    config = project(
        featureFlags=[flag("f", experiment | {"type": "td"})], experiments=[experiment | {"type": "td"}],
        holdouts=[everybody], localHoldouts=[twin],
    )  # fmt: skip
    answer = answered(config, request("f"))
    assert origins(answer) == [("f", "local", "kept")]
    assert [one["ruleKey"] for one in answer["tracking"]["impressions"]] == ["local"]


def test_variations_of_one_key_are_told_by_their_ids() -> None:
    twice = [variation("51", "held", enabled=False), variation("52", "held", enabled=False)]
    for wanted in ("51", "52"):
        traffic = [{"entityId": wanted, "endOfRange": 10000}]
        config = project(featureFlags=[flag("f")], holdouts=[rule("5", "h", *twice, trafficAllocation=traffic)])
        assert decided(config, "f")["variationId"] == wanted


def test_a_local_holdout_of_no_rule_that_there_is_stops_nothing() -> None:
    deep: object = {"name": "a", "type": "custom_attribute", "match": "exists"}
    for _ in range(70):
        deep = ["not", deep]
    loose = holdout("5", audienceConditions=deep, includedRules=["gone"])
    assert decided(project(featureFlags=[flag("f")], localHoldouts=[loose]), "f")["ruleKey"] == ""


@pytest.mark.parametrize("section", ["holdouts", "localHoldouts"])
def test_a_holdout_takes_no_memory_for_each_flag_and_rule(section: str) -> None:
    experiments = [rule(str(number), f"e{number}", variation(f"9{number}", "on")) for number in range(1000, 1200)]
    rule_ids = [one["id"] for one in experiments]
    flags = [flag(f"f{number}", one) for number, one in enumerate(experiments)]

    def kept(holdouts: int) -> int:
        listed = [holdout(str(number), audienceIds=["11"], includedRules=rule_ids) for number in range(holdouts)]
        tracemalloc.start()
        try:
            config = project(featureFlags=flags, experiments=experiments, **{section: listed})
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(config.flags) == 200
        return taken

    assert kept(50) < 1.5 * kept(0)
