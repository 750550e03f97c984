"""Decisions and reasons as a running Optimizely Agent gave them, on three small projects.

Where the Agent and the Python SDK decide differently, the SDK is followed; every such answer is named here with its
cause, and nothing else may differ.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.decision import Facts
from pipeline.messages.decide import parse_decide_request
from pipeline.project import ProjectConfig, compile_datafile
from tests.decision.deciding import settled

Json = dict[str, Any]
_DATA = Path(__file__).parents[1] / "data" / "agent"
RECORDED: list[Json] = json.loads((_DATA / "decides.json").read_text())

_EXACT_NUMBERS = "the SDK does not compare numbers beyond 2^53"
_AND = "the SDK's `and` goes on after an unknown operand and finds a False, which `not` turns into True"
_STATUS = "the SDK insists on a running experiment, the Agent does not look"
_CAST = "a value that cannot be cast is null as in the SDK, not zero"
_BOOLEAN = "only `true` is true in the SDK"
_SPACES = "the SDK reads whole numbers with spaces around them"
_PREDICTION = "a prediction was fetched; there is none among the facts here"
_ECHO = "the Agent's numbers are all float64, so it echoes large ones rounded"

DIFFERENT: dict[str, str] = {
    **dict.fromkeys(("decide-093", "decide-094"), _EXACT_NUMBERS),
    **dict.fromkeys(("decide-103", "decide-105", "decide-106"), _AND),
    **dict.fromkeys(("decide-odd-020", "decide-odd-021", "decide-odd-029"), _STATUS),
    **dict.fromkeys(("decide-odd-001", "decide-odd-002", "decide-odd-003", "decide-odd-012", "decide-odd-016"), _CAST),
    **dict.fromkeys(("decide-odd-005", "decide-odd-006"), _BOOLEAN),
    "decide-odd-015": _SPACES,
    **dict.fromkeys(("decide-223", "decide-286", "decide-287", "decide-293"), _PREDICTION),
    **dict.fromkeys((f"decide-{number}" for number in range(275, 284)), _PREDICTION),
    "decide-217": _ECHO,
}
# Of an answer for all flags, only this one differs.
_ONLY = {"decide-odd-020": "paused_flag"}


def _document(name: str) -> Json:
    document: Json = json.loads((_DATA / f"{name}.json").read_text())
    return document


@cache
def project_for(name: str, flag_key: str) -> ProjectConfig:
    """The project with the holdouts that reach one flag.

    The Agent that was recorded limits holdouts by flag (`includedFlags`, `excludedFlags`: first the global ones, then
    those that include the flag). Datafiles have since come to say it by section, and the SDK reads only that.
    """
    document = _document(name)
    ids = {flag["key"]: flag["id"] for flag in document["featureFlags"]}
    flag_id = ids.get(flag_key)
    holdouts = document.get("holdouts", [])
    everywhere = [one for one in holdouts if not one["includedFlags"] and flag_id not in one["excludedFlags"]]
    document["holdouts"] = everywhere + [one for one in holdouts if flag_id in one["includedFlags"]]
    return compile_datafile(json.dumps(document).encode())


def _decide(recorded: Json, flag_key: str) -> tuple[Json, list[Json], list[Json]]:
    body = json.loads(recorded["body"]) | {"keys": [flag_key]}
    request = parse_decide_request(json.dumps(body).encode(), max_bytes=10**6)
    assert request.error is None
    segments = frozenset(recorded["segments"]) if "segments" in recorded else None
    project = project_for(recorded["datafile"], flag_key)
    result = json.loads(settled(project, request, Facts(segments)).value)
    tracking = result.get("tracking", {})
    return result["decisions"][0], tracking.get("impressions", []), tracking.get("attributes", [])


def _as_the_agent(decision: Json) -> Json:
    """Without the fields the Agent does not have."""
    ours = ("experimentId", "variationId", "ruleType", "decisionEventDispatched")
    return {name: value for name, value in decision.items() if name not in ours}


def _impressions_as_now(recorded: Json, flag_key: str) -> list[list[Any]]:
    """The recorded impressions of a flag, with the ids as newer SDKs send them; one for a key asked for twice."""
    found: list[list[Any]] = []
    for flag, rule, kind, variation, enabled, campaign_id, experiment_id, variation_id in recorded["impressions"]:
        entry = [flag, rule, kind, variation, enabled, campaign_id or experiment_id, experiment_id,
                 variation_id if variation_id.isdigit() else None]  # fmt: skip
        if flag == flag_key and entry not in found:
            found.append(entry)
    return found


def _attributes_as_now(recorded: Json) -> list[list[Any]]:
    """The recorded visitor attributes; bot filtering only where the datafile says something of it."""
    known = "botFiltering" in _document(recorded["datafile"])
    return sorted(entry for entry in recorded["attributes"] if known or entry[1] != "$opt_bot_filtering")


def _comparisons(*, different: bool) -> list[Any]:
    cases = []
    for recorded in RECORDED:
        answers = recorded["answer"] if isinstance(recorded["answer"], list) else [recorded["answer"]]
        for expected in answers:
            name = recorded["id"]
            if different == (name in DIFFERENT and _ONLY.get(name, expected["flagKey"]) == expected["flagKey"]):
                cases.append(pytest.param(recorded, expected, id=f"{name}-{expected['flagKey'][:20]}"))
    return cases


@pytest.mark.parametrize(("recorded", "expected"), _comparisons(different=False))
def test_same_decision(recorded: Json, expected: Json) -> None:
    decision, impressions, attributes = _decide(recorded, expected["flagKey"])
    assert _as_the_agent(decision) == expected
    entries = [list(entry.values())[:-1] for entry in impressions]
    assert entries == _impressions_as_now(recorded, expected["flagKey"])
    if impressions:
        assert sorted(list(entry.values()) for entry in attributes) == _attributes_as_now(recorded)


@pytest.mark.parametrize(("recorded", "expected"), _comparisons(different=True))
def test_different_decision(recorded: Json, expected: Json) -> None:
    """What is named as different is different, so that the list stays true."""
    decision, _, _ = _decide(recorded, expected["flagKey"])
    assert _as_the_agent(decision) != expected


def test_field_order_is_the_agents() -> None:
    recorded = next(one for one in RECORDED if one["id"] == "decide-001")
    decision, _, _ = _decide(recorded, "ab_flag")
    assert list(_as_the_agent(decision)) == list(recorded["answer"])
    assert list(decision)[-4:] == ["experimentId", "variationId", "ruleType", "decisionEventDispatched"]
