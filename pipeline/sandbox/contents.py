"""What the records of a run must say, as far as their sender can tell without deciding anything itself. Pure.

Not a second evaluator: which variation a user gets is not checked, only that the answer is to this request, about the
flags it asked for, from rules the user's segments allow, and that its impressions are those of its decisions. Called by
the account for each result, and at the end for what the services have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from pipeline.sandbox.logx_payload import IMPRESSION
from pipeline.sandbox.project_data import (
    API_KEYS,
    ATTRIBUTES,
    EVENTS,
    FIRST_RULES,
    FLAGS,
    PRODUCTION,
    SEGMENTS_OF_RULES,
    segments_of,
)
from pipeline.sandbox.traffic import Fate, Sent

Document = Mapping[str, Any]

_SILENT = "DISABLE_DECISION_EVENT"
_ENABLED_ONLY = "ENABLED_FLAGS_ONLY"
_HOLDOUT, _ROLLOUT = "holdout", "rollout"
_BOT_FILTERING = "$opt_bot_filtering"
_OF_THE_SENDER = {"idempotence_id", "data_source_type", "data_source", "data_source_version"}

Impression = tuple[str, int, str, str, str, str]
"""User, time in ms, campaign id, and the keys of flag, rule and variation."""


class Published(NamedTuple):
    """A record of decide.results."""

    key: bytes | None
    document: Document
    partition: int
    source: str
    """The header of this name; empty without it."""


def result_faults(source: str, record: Sent, published: Published) -> Iterator[str]:
    """What a result says otherwise than its request `record`, which is at `source`, lets its sender expect."""
    asked: Document = orjson.loads(record.value or b"")
    said = published.document
    yield from _address_faults(source, record, asked, published)
    if record.fate is not Fate.DECIDED:
        if said.get("error", record.error) != record.error:
            yield "has another error than expected"
        # That an error comes without decisions and impressions is in the schema.
    elif "error" not in said:
        yield from _flag_faults(asked, said["decisions"])
        yield from _context_faults(asked, said)
        yield from _impression_faults(asked, said)
        yield from _segment_faults(asked, said["decisions"])


def _address_faults(source: str, record: Sent, asked: Document, published: Published) -> Iterator[str]:
    said, user = published.document, asked["userId"]
    if said["requestId"] != asked.get("requestId", source):
        yield "has another requestId"
    if said["userId"] != user:
        yield "has another userId"
    if said.get("sdkKey") != asked["sdkKey"]:
        yield "has another sdkKey"
    if published.key != (user.encode() if record.key is None else record.key):
        yield "has another record key"
    if published.partition != int(source.rsplit("-", 2)[1]):
        yield "is on another partition"
    if published.source != source:
        yield "has another header `source`"


def _flag_faults(asked: Document, decisions: list[Document]) -> Iterator[str]:
    """Each flag asked for is answered once and in order; left out may only be those that are off, where asked to."""
    due = _flags_asked(asked)
    answered = [decision["flagKey"] for decision in decisions]
    if len(due) > 1 and _ENABLED_ONLY in asked.get("decideOptions", ()):
        if any(decision["flagKey"] in FLAGS and not decision["enabled"] for decision in decisions):
            yield "has a flag that is off, though ENABLED_FLAGS_ONLY was asked for"
        # An unknown flag is an error, and an error is answered always.
        due = [flag for flag in due if flag in answered or flag not in FLAGS]
    if answered != due:
        yield "does not answer the flags asked for"


def _flags_asked(asked: Document) -> list[str]:
    return list(dict.fromkeys(asked["keys"])) or list(FLAGS)


def _context_faults(asked: Document, said: Document) -> Iterator[str]:
    attributes = asked["userAttributes"]
    context = {"userId": asked["userId"], "attributes": attributes}
    if any(decision["userContext"] != context for decision in said["decisions"]):
        yield "has another user context"
    if "tracking" in said:
        tracked = {name: value for name, value in attributes.items() if name in ATTRIBUTES}
        tracked[_BOT_FILTERING] = asked["sdkKey"] == PRODUCTION
        if {each["key"]: each["value"] for each in said["tracking"]["attributes"]} != tracked:
            yield "tracks other attributes"


def _impression_faults(asked: Document, said: Document) -> Iterator[str]:
    """Each decision that must have an impression says so and has it, the others not."""
    tracked: list[Document] = said.get("tracking", {}).get("impressions", [])
    silent = _SILENT in asked.get("decideOptions", ())
    if silent and "tracking" in said:
        yield "has impressions, though DISABLE_DECISION_EVENT was asked for"
    dispatched = {decision["flagKey"]: decision["decisionEventDispatched"] for decision in said["decisions"]}
    due = {
        decision["flagKey"]: not silent and _has_impression(decision, asked["sdkKey"]) for decision in said["decisions"]
    }
    if dispatched != due:
        yield "has a wrong decisionEventDispatched"
    there = {_outcome(impression) for impression in tracked}
    sent = {_outcome(decision) for decision in said["decisions"] if decision["decisionEventDispatched"]}
    if not sent <= there:
        yield "lacks an impression of a decision"
    answered = dispatched.keys()
    if any(dispatched.get(impression["flagKey"]) is False for impression in tracked):
        yield "has an impression of a decision without one"
    unanswered = [impression for impression in tracked if impression["flagKey"] not in answered]
    if any(each["enabled"] or each["flagKey"] not in _flags_asked(asked) for each in unanswered):
        yield "has an impression of a flag that it does not answer"


def _has_impression(decision: Document, sdk_key: str) -> bool:
    """As the project says: production reports every decision, staging those of experiments."""
    return decision["flagKey"] in FLAGS and (sdk_key == PRODUCTION or decision["ruleType"] != _ROLLOUT)


def _outcome(decision: Document) -> tuple[str, str, str, bool]:
    """The same for a decision and for its impression."""
    return decision["flagKey"], decision["ruleKey"], decision["variationKey"], decision["enabled"]


def _segment_faults(asked: Document, decisions: list[Document]) -> Iterator[str]:
    """Nobody is in a rule for segments they do not have; whoever has those of a flag's first rule is in it."""
    segments = set(segments_of(asked["userId"]) or ()) if asked["fetchSegments"] else set()
    forced = {each["flagKey"] for each in asked.get("forcedDecisions", ())}
    for decision in decisions:
        flag, rule = decision["flagKey"], decision["ruleKey"]
        if flag in forced:
            continue
        if rule in SEGMENTS_OF_RULES:
            of_flag, needed = SEGMENTS_OF_RULES[rule]
            if of_flag != flag:
                yield "is of a rule of another flag"
            if not needed <= segments:
                yield "is of a rule for segments that the user does not have"
        first = FIRST_RULES.get(flag)
        if first not in (None, rule) and decision["ruleType"] != _HOLDOUT and SEGMENTS_OF_RULES[first][1] <= segments:
            yield "is not of the rule for the user's segments"


def impressions_of(result: Document) -> Iterator[Impression]:
    """The impressions that a result owes."""
    for each in result.get("tracking", {}).get("impressions", ()):
        keys = each["flagKey"], each["ruleKey"], each["variationKey"]
        yield result["userId"], result["timestamp"], each["campaignId"], *keys


def impressions_at(logx: Document) -> Counter[Impression]:
    """The distinct impressions in a full ledger of logx."""
    return Counter(
        (user, timestamp, campaign, flag, rule, variation)
        for campaign, _, timestamp, user, flag, rule, variation, key in logx["entries"]
        if key == IMPRESSION
    )


def conversions_due(records: Iterable[Sent]) -> Counter[bytes]:
    """What logx must have of the conversions among `records`, in a form of its own."""
    due: Counter[bytes] = Counter()
    for record in records:
        if record.stream == "track_events" and record.fate is Fate.DELIVERED:
            body = orjson.loads(record.value or b"")
            tags = body.get("eventTags", {})
            values = {name: tags[name] for name in ("revenue", "value") if name in tags}
            values |= {"tags": tags} if tags else {}
            due[_written(body["userId"], EVENTS[body["eventKey"]], body["eventKey"], values)] += 1
    return due


def conversions_at(logx: Document) -> Counter[bytes]:
    """The distinct conversions in a full ledger of logx, in the same form."""
    return Counter(
        _written(user, entity, key, logx["values"].get(uuid, {}))
        for entity, uuid, _, user, _, _, _, key in logx["entries"]
        if key != IMPRESSION
    )


def odp_events_due(records: Iterable[Sent]) -> Counter[bytes]:
    """What the data platform must have of the ODP events among `records`, in a form of its own."""
    due: Counter[bytes] = Counter()
    for record in records:
        if record.stream == "odp_events" and record.fate is Fate.DELIVERED:
            body = orjson.loads(record.value or b"")
            data = {name: "" if value is None else value for name, value in body["data"].items()}
            event = API_KEYS[body["sdkKey"]], body.get("type", "fullstack"), body["action"], body["identifiers"], data
            due[_written(*event)] += 1
    return due


def odp_events_at(odp: Document) -> Counter[bytes]:
    """The distinct events in a full ledger of ODP, in the same form: without what every worker adds."""
    return Counter(
        _written(
            account, event["type"], event["action"], event["identifiers"],
            {name: value for name, value in event["data"].items() if name not in _OF_THE_SENDER},
        )
        for account, event in zip(odp["event_accounts"], odp["event_bodies"], strict=True)
    )  # fmt: skip


def _written(*values: object) -> bytes:
    return orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
