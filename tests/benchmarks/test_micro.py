"""What `micro` times is the same work on both sides, and `project` is what the figures are said to be of."""

from __future__ import annotations

import gc
from typing import Any

import orjson
import pytest

from pipeline.project import compile_datafile
from pipeline.project.outcomes import Outcome
from pipeline.sandbox.project_data import API_KEYS, PRODUCTION, SEGMENTS, segments_of, user_id
from tests.benchmarks import micro
from tests.benchmarks.project import FLAGS, SEGMENT, datafile, flag_keys, request

Json = dict[str, Any]
CASES = {case.name: case for case in micro.cases(micro.SMALLEST)}


def compared(says: str) -> list[str]:
    names = [name for name, case in CASES.items() if case.says == says]
    assert names, f"no row compares with {says}"
    return names


def both(name: str) -> tuple[Any, Any]:
    case = CASES[name]
    assert case.theirs is not None
    return case.ours(), case.theirs()


ALONE = [name for name in compared(micro.SDK_DECIDE) if "alone" in name]
WRITTEN = [name for name in compared(micro.SDK_DECIDE) if "alone" not in name]


@pytest.mark.parametrize("name", WRITTEN)
def test_both_sides_decide_the_same_and_owe_the_same_events(name: str) -> None:
    for _ in range(2):  # calls need not be of the same users
        results, work = both(name)
        ours = [orjson.loads(result) for result in results]
        assert len(ours) == CASES[name].operations
        assert [decisions(result) for result in ours] == [decisions_of_sdk(each) for each in work.decisions]
        assert [due for result in ours for due in events(result)] == [event_of_sdk(event) for event in work.events]
        explained = [bool(decision["reasons"]) for result in ours for decision in result["decisions"]]
        assert set(explained) == {"reasons" in name}
        assert bool(work.events) == ("no impression" not in name)


@pytest.mark.parametrize("name", ALONE)
def test_both_sides_come_to_the_same_decisions(name: str) -> None:
    decided, work = both(name)
    assert len(decided) == CASES[name].operations
    assert work.events == []
    ours = [decisions({"decisions": [decision_of(outcome) for outcome in each]}) for each in decided]
    assert ours == [decisions_of_sdk(each) for each in work.decisions]


def decision_of(outcome: Outcome) -> Json:
    written: Json = orjson.loads(outcome.opening + b"null" + outcome.variables.member + b"}")
    return written


def decisions(result: Json) -> dict[str, Json]:
    taken = ("variationKey", "enabled", "ruleKey", "variables")
    return {one["flagKey"]: {name: one[name] for name in taken} for one in result["decisions"]}


def decisions_of_sdk(decided: Any) -> dict[str, Json]:
    by_key = decided if isinstance(decided, dict) else {decided.flag_key: decided}
    return {
        key: {
            "variationKey": one.variation_key,
            "enabled": one.enabled,
            "ruleKey": one.rule_key,
            "variables": one.variables,
        }
        for key, one in by_key.items()
    }


def events(result: Json) -> list[tuple[str, ...]]:
    taken = ("flagKey", "ruleKey", "ruleType", "variationKey", "experimentId", "variationId")
    due = result.get("tracking", {"impressions": []})["impressions"]
    return [(result["userId"], *(one[name] for name in taken)) for one in due]


def event_of_sdk(event: Any) -> tuple[str, ...]:
    rule, variation = event.experiment, event.variation
    return (
        event.user_id, event.flag_key, event.rule_key, event.rule_type, variation.key, rule.id, variation.id
    )  # fmt: skip


def test_every_user_takes_part_in_the_experiment() -> None:
    for name in WRITTEN:
        found = [orjson.loads(result) for result in CASES[name].ours()]
        assert {one["ruleType"] for result in found for one in result["decisions"]} == {"feature-test"}
    many = [request(number, FLAGS[:1]) for number in range(1, 9)]
    assert len(set(many)) == len(many)


def test_both_variations_are_given() -> None:
    found = [orjson.loads(result) for result in CASES["1 flag: decide and write the result"].ours()]
    assert {result["decisions"][0]["variationKey"] for result in found} == {"control", "treatment"}


@pytest.mark.parametrize("name", compared(micro.SDK_EVENT))
def test_both_sides_write_the_same_impressions(name: str) -> None:
    ours, theirs = (orjson.loads(body) for body in both(name))
    envelope = ("account_id", "project_id", "revision", "anonymize_ip", "enrich_decisions")
    assert [ours[field] for field in envelope] == [theirs[field] for field in envelope]
    # All of a user's in one visitor, or each in one of its own.
    assert snapshots(ours) == snapshots(theirs)


def snapshots(body: Json) -> list[Json]:
    """Each with its visitor, and without what differs from run to run."""
    found = []
    for visitor in body["visitors"]:
        for snapshot in visitor["snapshots"]:
            (event,) = snapshot["events"]
            assert event.pop("uuid") and event.pop("timestamp")
            snapshot["decisions"][0]["metadata"].pop("cmab_uuid", None)
            found.append({**snapshot, "visitor": visitor["visitor_id"], "attributes": visitor["attributes"]})
    return found


@pytest.mark.parametrize("name", compared(micro.SDK_AUDIENCE))
def test_both_sides_let_the_same_users_in(name: str) -> None:
    ours, theirs = both(name)
    assert ours == theirs
    assert any(ours)


@pytest.mark.parametrize("name", compared(micro.LOADS))
def test_a_datafile_is_compiled_whole(name: str) -> None:
    project, document = both(name)
    assert list(project.flags) == [flag["key"] for flag in document["featureFlags"]]
    assert len(project.flags) > len(FLAGS)


def test_the_steps_of_ours_alone_are_of_all_requests_and_results() -> None:
    alone = {name: case for name, case in CASES.items() if case.theirs is None}
    assert {name.partition(": ")[2] for name in alone} == {"parse the request", "read the result"}
    for name, case in alone.items():
        done = case.ours()
        assert (len(done) if "parse" in name else done) == case.operations


def test_rows_hold_the_best_round_and_the_middle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "QUICK", micro.SMALLEST)
    found = micro.rows(2, quick=True)
    assert [row.name for row in found] == list(CASES)
    for row in found:
        assert 0 < row.ours_us <= row.ours_median_us
        if row.theirs_us is None:
            assert (row.ratio, row.theirs, row.theirs_median_us) == (None, "", None)
        else:
            assert row.ratio == row.theirs_us / row.ours_us
            assert row.theirs_median_us is not None
            assert row.theirs_us <= row.theirs_median_us
            assert row.theirs
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)


def test_large_sizes_are_of_the_same_rows() -> None:
    assert (micro.FULL.small, micro.FULL.large) == (micro.QUICK.small, micro.QUICK.large) == (500_000, 5_000_000)


def test_flags_have_three_conditions_and_three_variables() -> None:
    for segments in (True, False):
        document = orjson.loads(datafile(6, segments=segments))
        assert [flag["key"] for flag in document["featureFlags"]] == list(flag_keys(6))
        assert {len(flag["variables"]) for flag in document["featureFlags"]} == {3}
        for audience in document["typedAudiences"]:
            leaves = [leaf for (_, (_, leaf)) in audience["conditions"][1:]]
            assert len(leaves) == 3
            assert [leaf["match"] for leaf in leaves].count("qualified") == segments
    assert flag_keys(6)[:4] == FLAGS


def test_the_sandbox_knows_the_segment_and_the_people() -> None:
    assert SEGMENT in SEGMENTS
    written = orjson.loads(request(17, ()))
    assert written["userId"] == user_id(17)
    assert segments_of(written["userId"]) is not None
    users = {orjson.loads(request(number, ()))["userId"] for number in (1, 2, 5_000, 5_001, 5_002, 150_000)}
    assert len(users) == 6


def test_a_datafile_names_the_data_platform_it_is_given() -> None:
    assert compile_datafile(datafile()).odp is None
    odp = compile_datafile(datafile(odp_host="http://127.0.0.1:9")).odp
    assert odp is not None
    assert (odp.host, odp.key, odp.segments_to_check) == ("http://127.0.0.1:9", API_KEYS[PRODUCTION], (SEGMENT,))


def test_padding_makes_the_file_at_least_so_long() -> None:
    wanted = 100_000
    written = datafile(1, pad_bytes=wanted)
    assert wanted <= len(written) < wanted * 1.05
    assert datafile(1, pad_bytes=10) == datafile(1)
    assert datafile(1, pad_bytes=len(datafile(1)) + 1) == datafile(2)


def test_requests_have_the_size_of_requests() -> None:
    plain = request(17, FLAGS[:1])
    fetched = request(17, FLAGS[:1], fetch_segments=True, sdk_key="bench")
    assert 170 <= len(plain) <= 200
    assert orjson.loads(fetched) == {**orjson.loads(plain), "fetchSegments": True, "sdkKey": "bench"}
