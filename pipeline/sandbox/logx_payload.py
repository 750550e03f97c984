"""The event payload as Optimizely documents it, checked field by field: nothing missing, nothing unknown.

An impression is a snapshot of one decision and its `campaign_activated` event; a conversion a snapshot of events alone.
Called by the stand-in for each body, up to 10,000 events at a time, so the valid case compares sets of names and types
and nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

MAX_EVENTS = 10_000
IMPRESSION = "campaign_activated"

Event = tuple[str, str, str, str, str]
"""visitor_id, flag_key, rule_key, variation_key, key; the middle three are empty for a conversion."""

_ENVELOPE = {
    "account_id": str,
    "project_id": str,
    "revision": str,
    "client_name": str,
    "client_version": str,
    "anonymize_ip": bool,
    "enrich_decisions": bool,
    "visitors": list,
}
_VISITOR = {"visitor_id", "attributes", "snapshots"}
_ATTRIBUTE = {"entity_id", "key", "type", "value"}
_DECISION = {"campaign_id", "experiment_id", "variation_id", "metadata"}
_METADATA = {"flag_key": str, "rule_key": str, "rule_type": str, "variation_key": str, "enabled": bool}
_EVENT = {"entity_id", "key", "timestamp", "uuid"}
_EVENT_OPTIONAL = {"tags", "revenue", "value"}
_RULE_TYPES = {"feature-test", "rollout", "holdout", "experiment"}
_REGIONS = {"US", "EU"}
_LARGEST_NUMBER = 2**53
_EARLIEST, _LATEST = 1_000_000_000_000, 9_999_999_999_999


class Invalid(Exception):
    """The payload is not as documented; the text says where."""


class Payload(NamedTuple):
    project_id: str
    events: list[tuple[tuple[str, str, int], Event]]
    """((entity_id, uuid, timestamp), event), in order."""


def read_payload(document: Any) -> Payload:
    """The events of a payload. Raises Invalid."""
    if type(document) is not dict:
        raise Invalid("not an object")
    _check_envelope(document)
    events: list[tuple[tuple[str, str, int], Event]] = []
    for number, visitor in enumerate(document["visitors"]):
        try:
            _read_visitor(visitor, events)
        except Invalid as error:
            raise Invalid(f"visitors[{number}]: {error}") from None
    if not 0 < len(events) <= MAX_EVENTS:
        raise Invalid(f"{len(events)} events")
    return Payload(document["project_id"], events)


def _check_envelope(document: dict[str, Any]) -> None:
    _exactly(document.keys() - {"region"}, _ENVELOPE.keys())
    for name, kind in _ENVELOPE.items():
        if type(document[name]) is not kind:
            raise Invalid(f"{name} is no {kind.__name__}")
    if not document["account_id"] or not document["project_id"]:
        raise Invalid("account_id or project_id is empty")
    if document["enrich_decisions"] is not True:
        raise Invalid("enrich_decisions is not true")
    if "region" in document and document["region"] not in _REGIONS:
        raise Invalid("region is unknown")


def _read_visitor(visitor: Any, events: list[tuple[tuple[str, str, int], Event]]) -> None:
    if type(visitor) is not dict or visitor.keys() != _VISITOR:
        raise Invalid("not exactly visitor_id, attributes, snapshots")
    visitor_id, attributes, snapshots = visitor["visitor_id"], visitor["attributes"], visitor["snapshots"]
    if type(visitor_id) is not str or not visitor_id:
        raise Invalid("visitor_id is no text")
    if type(attributes) is not list or type(snapshots) is not list or not snapshots:
        raise Invalid("attributes or snapshots is no list, or there is no snapshot")
    for attribute in attributes:
        _check_attribute(attribute)
    for snapshot in snapshots:
        if type(snapshot) is not dict or type(snapshot.get("events")) is not list or not snapshot["events"]:
            raise Invalid("a snapshot without events")
        names = ("", "", "")
        if len(snapshot) > 1:
            names = _read_decision(snapshot)
        for event in snapshot["events"]:
            identity, key = _read_event(event)
            if (key == IMPRESSION) != (len(snapshot) > 1):
                raise Invalid(f"{IMPRESSION} and decisions go together")
            events.append((identity, (visitor_id, *names, key)))


def _check_attribute(attribute: Any) -> None:
    if type(attribute) is not dict or attribute.keys() != _ATTRIBUTE:
        raise Invalid("an attribute is not exactly entity_id, key, type, value")
    value, kind = attribute["value"], type(attribute["value"])
    usable = kind is str or kind is bool or (kind in (int, float) and -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER)
    if not usable:
        raise Invalid(f"the value of attribute {attribute['key']} is no text, boolean or number up to 2^53")
    if attribute["type"] != "custom" or type(attribute["entity_id"]) is not str or type(attribute["key"]) is not str:
        raise Invalid("an attribute's type, entity_id or key is wrong")


def _read_decision(snapshot: dict[str, Any]) -> tuple[str, str, str]:
    """flag_key, rule_key and variation_key of the one decision."""
    decisions = snapshot.get("decisions")
    if len(snapshot) != 2 or type(decisions) is not list or len(decisions) != 1 or len(snapshot["events"]) != 1:
        raise Invalid("a snapshot is not one decision and one event")
    decision = decisions[0]
    if type(decision) is not dict or decision.keys() != _DECISION:
        raise Invalid("a decision is not exactly campaign_id, experiment_id, variation_id, metadata")
    variation_id = decision["variation_id"]
    if variation_id is not None and not (
        type(variation_id) is str and variation_id.isascii() and variation_id.isdigit()
    ):
        raise Invalid("variation_id is neither digits nor null")
    if type(decision["campaign_id"]) is not str or type(decision["experiment_id"]) is not str:
        raise Invalid("campaign_id or experiment_id is no text")
    if snapshot["events"][0].get("entity_id") != decision["campaign_id"]:
        raise Invalid("an impression's entity_id is not its campaign_id")
    metadata = decision["metadata"]
    if type(metadata) is not dict:
        raise Invalid("metadata is no object")
    _exactly(metadata.keys() - {"cmab_uuid"}, _METADATA.keys())
    for name, kind in _METADATA.items():
        if type(metadata[name]) is not kind:
            raise Invalid(f"metadata.{name} is no {kind.__name__}")
    if metadata["rule_type"] not in _RULE_TYPES:
        raise Invalid("metadata.rule_type is unknown")
    return metadata["flag_key"], metadata["rule_key"], metadata["variation_key"]


def _read_event(event: Any) -> tuple[tuple[str, str, int], str]:
    if type(event) is not dict:
        raise Invalid("an event is no object")
    if event.keys() != _EVENT:
        _exactly(event.keys() - _EVENT_OPTIONAL, _EVENT)
        _check_optional(event)
    entity_id, uuid, timestamp, key = event["entity_id"], event["uuid"], event["timestamp"], event["key"]
    if type(timestamp) is not int or not _EARLIEST <= timestamp <= _LATEST:
        raise Invalid("timestamp is not milliseconds")
    if type(uuid) is not str or len(uuid) != 36 or uuid.count("-") != 4:
        raise Invalid("uuid is no UUID")
    if type(entity_id) is not str or type(key) is not str or not key:
        raise Invalid("entity_id or key is no text")
    return (entity_id, uuid, timestamp), key


def _check_optional(event: dict[str, Any]) -> None:
    if type(event.get("tags", {})) is not dict:
        raise Invalid("tags is no object")
    if type(event.get("revenue", 0)) is not int:
        raise Invalid("revenue is no integer")
    if type(event.get("value", 0)) not in (int, float):
        raise Invalid("value is no number")


def _exactly(names: Any, expected: Any) -> None:
    if names != expected:
        raise Invalid(
            f"missing: {', '.join(sorted(expected - names)) or 'nothing'}; "
            f"not documented: {', '.join(sorted(names - expected)) or 'nothing'}"
        )
