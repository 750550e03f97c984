"""Deciding without a network says what the decide role would say, also where it decides nothing."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.offline import People, decide_lines
from pipeline.sandbox.project_data import PRODUCTION, datafile


def decided(request: dict[str, Any], **datafile_fields: Any) -> dict[str, Any]:
    project = datafile(PRODUCTION, "https://odp.example") | datafile_fields
    (line,) = decide_lines(
        [orjson.dumps({"userId": "ada", "keys": ["dark_mode"]} | request)], orjson.dumps(project), People()
    )
    result: dict[str, Any] = orjson.loads(line)
    return result


def error(request: dict[str, Any], **datafile_fields: Any) -> str | None:
    result = decided(request, **datafile_fields)
    assert ("error" in result) == (result["decisions"] == [])
    return result.get("error")


@pytest.mark.parametrize(("sdk_key", "expected"), [(PRODUCTION, None), ("another", "unknown SDK key"), ("", None)])
def test_a_request_for_another_environment_is_not_decided_by_this_datafile(sdk_key: str, expected: str | None) -> None:
    assert error({"sdkKey": sdk_key}) == expected
    result = decided({"sdkKey": sdk_key})
    assert result["sdkKey"] == (sdk_key or PRODUCTION)


def test_a_datafile_that_names_no_key_decides_for_any() -> None:
    assert error({"sdkKey": "another"}, sdkKey="") is None


def test_segments_cannot_be_fetched_where_odp_is_not_integrated() -> None:
    assert error({"fetchSegments": True}) is None
    assert error({"fetchSegments": True}, integrations=[]) == "failed to fetch qualified segments"
    assert error({}, integrations=[]) is None


def test_the_first_fault_of_a_request_is_the_one_told() -> None:
    faulty = {"fetchSegments": True, "sdkKey": "another", "decideOptions": ["NOPE"]}
    assert error(faulty, integrations=[]) == "invalid option: NOPE"
    assert error(faulty | {"decideOptions": []}, integrations=[]) == "unknown SDK key"
