"""One case decided twice, by us and by the SDK, and how the two differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from msgspec.structs import replace

from pipeline.decision import Answer, Facts, Prediction, answer
from pipeline.messages.decide import DecideRequest, parse_decide_request
from pipeline.project import ProjectConfig, compile_datafile
from tests.conformance.deviations import LOST, shared_feature_rollouts
from tests.conformance.dice import Json
from tests.conformance.oracle import Oracle, Theirs
from tests.conformance.requests import Case, experiments_of

_COMPARED = (
    "variationKey", "enabled", "ruleKey", "flagKey", "userContext", "experimentId", "variationId", "ruleType",
    "decisionEventDispatched",
)  # fmt: skip
_ENVELOPE = ("accountId", "projectId", "region", "anonymizeIp", "attributes")
_MOST_ROUNDS = 20


class Difference(NamedTuple):
    """`what` is what differs, `text` how: ours first."""

    what: str
    text: str


@dataclass
class Ours:
    result: Json
    learned: dict[str, str] | None
    asked: dict[str, Json]
    """Attributes by attribute id that a prediction was wanted for, by rule id."""
    rounds: int
    """How many times predictions were wanted."""


def facts_of(case: Case) -> Facts:
    return Facts(None if case.segments is None else frozenset(case.segments), case.profile)


def request_of(case: Case) -> DecideRequest:
    request = parse_decide_request(json.dumps(case.request).encode(), max_bytes=10**6)
    assert request.error is None, request.error
    return request


def ours(project: ProjectConfig, case: Case, request: DecideRequest) -> Ours:
    """Our decision, given each prediction it turns out to depend on."""
    facts, asked = facts_of(case), dict[str, Json]()
    for rounds in range(_MOST_ROUNDS):
        found = answer(project, request, facts, source="t-0-1", timestamp=1)
        if not found.wanted:
            _known_beforehand(project, case, request, found)
            return Ours(json.loads(found.value), dict(found.learned) if found.learned else None, asked, rounds)
        assert asked.keys().isdisjoint(found.wanted), f"wanted again: {found.wanted}"
        asked |= {rule_id: wanted.attributes for rule_id, wanted in found.wanted.items()}
        fetched = {rule_id: _prediction(case, rule_id) for rule_id in found.wanted}
        facts = replace(facts, predictions={**(facts.predictions or {}), **fetched})
    raise AssertionError(f"still wanted after {_MOST_ROUNDS} rounds: {found.wanted}")


def _known_beforehand(project: ProjectConfig, case: Case, request: DecideRequest, settled: Answer) -> None:
    """With all predictions at hand, also such as are not needed, the answer is the same at once."""
    if case.predictions:
        predictions = {rule_id: _prediction(case, rule_id) for rule_id in _bandits(case)}
        facts = replace(facts_of(case), predictions=predictions)
        assert answer(project, request, facts, source="t-0-1", timestamp=1) == settled


def _bandits(case: Case) -> list[str]:
    return [one["id"] for one in experiments_of(case.datafile) if one.get("cmab")]


def _prediction(case: Case, rule_id: str) -> Prediction | None:
    told = (case.predictions or {}).get(rule_id)
    return None if told is None else Prediction(told["variationId"], told["uuid"])


class Comparison:
    """Both sides, given one datafile after another."""

    def __init__(self, oracle: Oracle | None = None) -> None:
        self.oracle = oracle or Oracle()
        self._project: ProjectConfig
        self._shared = frozenset[str]()

    def take(self, datafile: Json) -> list[Difference]:
        """Read a datafile on both sides. Raises Refused if only the SDK does not take it; we must take them all."""
        self._shared = shared_feature_rollouts(datafile)
        try:
            self._project = compile_datafile(json.dumps(datafile).encode())
        except Exception as error:  # noqa: BLE001 - any is a difference, whatever the SDK makes of the datafile
            return [Difference(f"refused: {error}", repr(error))]
        return list(_read_differently(self._project, self.oracle.take(datafile)))

    def differences(self, case: Case) -> list[Difference]:
        """In a decision on the datafile that was taken last."""
        request = request_of(case)
        try:
            found = ours(self._project, case, request)
        except Exception as error:  # noqa: BLE001 - any is a difference
            return [Difference(f"raised {type(error).__name__}", repr(error))]
        try:
            expected = self.oracle.answer(case, request)
        except Exception as error:  # noqa: BLE001 - what the SDK does not survive must not be generated
            return [Difference("SDK raised", repr(error))]
        self.oracle.tally.facts.update(_met(case, found))
        return [
            *_decisions(request.keys or tuple(self._project.flags), found.result["decisions"], expected.decisions),
            *_tracking(found.result, self._with_their_variations(found, expected), self._project, request),
            *_facts(case, found, expected),
        ]

    def _with_their_variations(self, found: Ours, expected: Theirs) -> Theirs:
        """Impressions of feature rollouts under several flags, with the variation that the SDK may have lost."""
        own = found.result.get("tracking", {}).get("impressions", [])
        for ours, theirs in zip(own, expected.impressions, strict=False):
            if theirs["experimentId"] in self._shared and theirs.items() >= LOST.items():
                theirs |= {name: ours[name] for name in LOST}
                self.oracle.tally.facts["an impression that the SDK sent without its variation"] += 1
        return expected


def _met(case: Case, found: Ours) -> Iterator[str]:
    if case.profile is not None:
        yield "a profile, and nothing learned" if found.learned is None else "a profile, and something learned"
    keys = case.request.get("keys") or []
    if len(keys) > 1 and len(set(keys)) == 1:
        yield "one key sent twice, answered" if found.result["decisions"] else "one key sent twice, left out"
    if found.rounds:
        yield "predictions wanted once" if found.rounds == 1 else "predictions wanted again"


def _read_differently(project: ProjectConfig, config: Any) -> Iterator[Difference]:
    """What other parts of the pipeline take from a datafile than decisions."""
    segments = {name for name in config.all_segments if isinstance(name, str) and name}
    integrated = config.host_for_odp and config.public_key_for_odp
    odp = project.odp and (project.odp.host, project.odp.key, set(project.odp.segments_to_check))
    pairs = {
        "integration": (odp, (config.host_for_odp, config.public_key_for_odp, segments) if integrated else None),
        "events": (dict(project.events), {key: event.id for key, event in config.event_key_map.items()}),
        "flags": (list(project.flags), list(config.feature_key_map)),
        "sdkKey": (project.sdk_key, config.sdk_key or ""),
        "environmentKey": (project.environment_key, config.environment_key or ""),
        "sendFlagDecisions": (project.send_flag_decisions, bool(config.send_flag_decisions)),
        "botFiltering": (project.bot_filtering, config.bot_filtering),
    }
    for what, (our, their) in pairs.items():
        if our != their:
            yield Difference(what, f"{our!r}, SDK {their!r}")


def _decisions(asked: tuple[str, ...], found: list[Json], expected: dict[str, Json]) -> Iterator[Difference]:
    keys = [decision["flagKey"] for decision in found]
    if set(keys) != set(expected) or len(keys) != len(expected):
        yield Difference("flags", f"{keys}, SDK {sorted(expected)}")
        return
    if keys != [key for key in asked if key in expected]:
        yield Difference("order", f"{keys} for {asked}")
    for decision in found:
        theirs = expected[decision["flagKey"]]
        own = {name: decision[name] for name in _COMPARED} | {"variables": decision.get("variables", {})}
        for name in _unlike(own, {name: theirs[name] for name in own}):
            yield Difference(name, f"{decision['flagKey']}.{name}: {own[name]!r}, SDK {theirs[name]!r}")
        if theirs["failure"] is not None and decision["reasons"] != [theirs["failure"]]:
            yield Difference("failure", f"{decision['reasons']}, SDK {theirs['failure']}")


def _unlike(own: Json, theirs: Json) -> list[str]:
    """Names of members that are not the same."""
    if _written(own) == _written(theirs):
        return []
    return [name for name in own if _written(own[name]) != _written(theirs[name])]


def _written(value: object) -> str:
    """1, 1.0 and true are equal in Python; here they are not."""
    return json.dumps(value, sort_keys=True)


def _tracking(result: Json, expected: Theirs, project: ProjectConfig, request: DecideRequest) -> Iterator[Difference]:
    tracking = result.get("tracking")
    if tracking is None or expected.envelope is None:
        if tracking is not None or expected.envelope is not None:
            yield Difference("tracking", f"{tracking}, SDK {expected.envelope} {expected.impressions}")
        return
    if tracking["impressions"] != expected.impressions:
        yield Difference("impressions", f"{tracking['impressions']}, SDK {expected.impressions}")
    for one in tracking["attributes"]:
        one["type"] = "custom"
    chosen = project.event_attributes(request.attributes)
    if chosen != tracking["attributes"]:
        yield Difference("chosen", f"{chosen}, in the result {tracking['attributes']}")
    own = {"revision": result["revision"]} | {name: tracking[name] for name in _ENVELOPE}
    for name in _unlike(own, expected.envelope):
        yield Difference(f"tracking {name}", f"{own[name]!r}, SDK {expected.envelope[name]!r}")


def _facts(case: Case, found: Ours, expected: Theirs) -> Iterator[Difference]:
    if found.learned is None:
        if expected.saved is not None:
            yield Difference("learned", f"nothing, SDK saved {expected.saved}")
    elif expected.saved is None or {**(case.profile or {}), **found.learned} != expected.saved:
        yield Difference("learned", f"{found.learned} to {case.profile}, SDK saved {expected.saved}")
    if _written(found.asked) != _written(expected.asked):
        yield Difference("asked", f"{found.asked}, SDK {expected.asked}")
