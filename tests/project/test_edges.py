"""Limits to the last digit, and outcomes that name nothing."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import DatafileRefused
from pipeline.project import compile_datafile
from pipeline.project.drafts import read_ranges
from pipeline.project.reader import Entry
from pipeline.project.semver import order, parse


@pytest.mark.parametrize(("digits", "read"), [(1, True), (63, True), (64, False), (5000, False)])
def test_parts_of_a_version_have_less_than_64_digits(digits: int, read: bool) -> None:
    part = "9" * digits
    assert (parse(part) is not None) is read
    assert order(f"1.{part}.0", f"1.{part}.0") == (0 if read else None)


@pytest.mark.parametrize(("digits", "expected"), [(63, 1), (64, -1)])
def test_a_suffix_is_a_number_up_to_there(digits: int, expected: int) -> None:
    """As a number it is above 9, as text below."""
    assert order(f"1.0.0-{'1' * digits}", "1.0.0-9") == expected


def test_the_outcome_of_a_prediction_that_failed_names_nothing() -> None:
    experiment = {"id": "1", "key": "e", "layerId": "9", "cmab": {"trafficAllocation": 10_000}}
    document = {
        "version": "4", "revision": "1", "experiments": [experiment], "sendFlagDecisions": True,
        "featureFlags": [{"id": "2", "key": "f", "experimentIds": ["1"]}],
    }  # fmt: skip
    (compiled,) = compile_datafile(json.dumps(document).encode()).flags["f"].experiments
    assert compiled.cmab is not None
    failed = compiled.cmab.failure
    assert (failed.kind, failed.rule_key, failed.variation_key, failed.variation_id) == ("", "", "", "")
    assert (failed.enabled, failed.tracked, failed.failed, failed.impression) == (False, False, True, b"")
    assert failed.sent == failed.unsent


def test_a_flag_that_nothing_decides_names_nothing() -> None:
    document = {"version": "4", "revision": "1", "featureFlags": [{"id": "2", "key": "f"}]}
    nothing = compile_datafile(json.dumps(document).encode()).flags["f"].nothing
    assert (nothing.kind, nothing.rule_key, nothing.variation_key, nothing.variation_id) == ("rollout", "", "", "")
    assert (nothing.enabled, nothing.tracked, nothing.failed) == (False, False, False)


def test_a_range_without_an_end_or_an_entity_reaches_nobody() -> None:
    parts = [{"entityId": "101"}, {"endOfRange": 5}, {"entityId": "102", "endOfRange": None}, {}]
    assert read_ranges(Entry({"trafficAllocation": parts})) == [(0, "101"), (5, ""), (0, "102"), (0, "")]


def test_of_a_version_nobody_knows_the_beginning_is_told() -> None:
    with pytest.raises(DatafileRefused) as refused:
        compile_datafile(json.dumps({"version": "0123456789" * 5, "revision": "1"}).encode())
    assert str(refused.value) == 'version is "01234567890123456789"; only "4" can be read'
