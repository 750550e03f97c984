"""One generated case decided twice, by us and by the SDK, and how the two differ."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from pipeline.decision import Facts
from pipeline.project import ProjectConfig, compile_datafile
from tests.conformance.generator import Case, Generator, Json, user_ids
from tests.conformance.oracle import Oracle
from tests.decision.deciding import settled

_COMPARED = ("variationKey", "enabled", "ruleKey", "flagKey", "experimentId", "variationId", "decisionEventDispatched")
CASES_PER_PROJECT = 30


def differences(project: ProjectConfig, oracle: Oracle, case: Case) -> list[str]:
    ours = json.loads(settled(project, case.request, Facts(case.segments)).value)
    decisions, impressions, attributes = oracle.answer(case)
    return [
        *_decisions(case, ours["decisions"], decisions),
        *_tracking(ours.get("tracking"), impressions, attributes),
    ]


def _decisions(case: Case, ours: list[Json], theirs: dict[str, Json]) -> Iterator[str]:
    keys = [decision["flagKey"] for decision in ours]
    if set(keys) != set(theirs) or len(keys) != len(theirs):
        yield f"flags {keys}, SDK {sorted(theirs)}"
        return
    if case.request.keys and keys != [key for key in case.request.keys if key in theirs]:
        yield f"order of flags {keys}"
    for decision in ours:
        expected = theirs[decision["flagKey"]]
        for name in _COMPARED:
            if decision[name] != expected[name]:
                yield f"{decision['flagKey']}.{name}: {decision[name]!r}, SDK {expected[name]!r}"
        variables = decision.get("variables", {})
        if json.dumps(variables, sort_keys=True) != json.dumps(expected["variables"], sort_keys=True):
            yield f"{decision['flagKey']}.variables: {variables}, SDK {expected['variables']}"


def _tracking(ours: Json | None, impressions: list[Json], attributes: list[Json] | None) -> Iterator[str]:
    if ours is None:
        if impressions:
            yield f"no tracking, SDK {impressions}"
        return
    if ours["impressions"] != impressions:
        yield f"impressions {ours['impressions']}, SDK {impressions}"
    typed = [{"entity_id": one["entity_id"], "key": one["key"], "type": "custom", "value": one["value"]}
             for one in ours["attributes"]]  # fmt: skip
    if attributes is not None and sorted(map(json.dumps, typed)) != sorted(
        json.dumps({name: one[name] for name in ("entity_id", "key", "type", "value")}) for one in attributes
    ):
        yield f"attributes {typed}, SDK {attributes}"


def compare(seed: int, count: int) -> tuple[int, list[str]]:
    """How many decisions were compared in `count` cases from `seed` on, and the first differences found."""
    compared = 0
    generator = Generator(seed)
    users = user_ids(random.Random(seed), 20)
    while compared < count:
        document = generator.project(users)
        project, oracle = compile_datafile(json.dumps(document).encode()), Oracle(document)
        for number in range(CASES_PER_PROJECT):
            case = generator.case(document, users)
            compared += 1
            found = differences(project, oracle, case)
            if found:
                where = f"seed {seed}, revision {document['revision']}, case {number}"
                return compared, [f"{where}: {text}\n  {case}\n  {json.dumps(document)}" for text in found]
    return compared, []
