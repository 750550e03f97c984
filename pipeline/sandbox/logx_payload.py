"""The event payload as Optimizely documents it, checked field by field: nothing missing, nothing unknown.

An impression is a snapshot of one decision and its `campaign_activated` event; a conversion a snapshot of events alone.
Called by the stand-in for each body, up to 10,000 events at a time, so the valid case counts names, looks at types and
does nothing else.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

MAX_EVENTS = 10_000
IMPRESSION = "campaign_activated"

Identity = tuple[str, str, int]
"""entity_id, uuid, timestamp: what Optimizely counts an event by."""

Event = tuple[str, str, str, str, str, int, bytes]
"""visitor_id, flag_key, rule_key, variation_key, key, a hash of all else that is said of it, a conversion's values.

The keys of flag, rule and variation are empty for a conversion. Values are its tags, revenue and value as one JSON
object, empty where it has none; an impression's are always empty.
"""

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
_VALUES = ("tags", "revenue", "value")
_EVENT = {"entity_id", "key", "timestamp", "uuid", *_VALUES}
_RULE_TYPES = {"feature-test", "rollout", "holdout", "experiment"}
_REGIONS = {"US", "EU"}
_is_uuid = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch
_NO_NAMES = ("", "", ""), 0
_LARGEST_NUMBER = 2**53
_EARLIEST, _LATEST = 1_000_000_000_000, 9_999_999_999_999


class Invalid(Exception):
    """The payload is not as documented; the text says where."""


class Payload(NamedTuple):
    project_id: str
    events: list[tuple[Identity, Event]]
    """In order."""


def read_payload(document: Any) -> Payload:
    """The events of a payload. Raises Invalid."""
    if type(document) is not dict:
        raise Invalid("not an object")
    _check_envelope(document)
    account = hash((document["account_id"], document["project_id"]))
    events: list[tuple[Identity, Event]] = []
    for number, visitor in enumerate(document["visitors"]):
        try:
            _read_visitor(visitor, account, events)
        except Invalid as error:
            raise Invalid(f"visitors[{number}]: {error}") from None
        except (KeyError, TypeError, AttributeError) as error:
            # A name that is missing, or a list where an object should be. With the right number of names, and every
            # one of them found, there is none that should not be there.
            raise Invalid(f"visitors[{number}]: {type(error).__name__}: {error}") from None
    if not 0 < len(events) <= MAX_EVENTS:
        raise Invalid(f"{len(events)} events")
    return Payload(document["project_id"], events)


def _check_envelope(document: dict[str, Any]) -> None:
    names = document.keys() - {"region"}
    if names != _ENVELOPE.keys():
        raise Invalid(f"envelope: missing or not documented: {', '.join(sorted(names ^ _ENVELOPE.keys()))}")
    for name, kind in _ENVELOPE.items():
        if type(document[name]) is not kind:
            raise Invalid(f"{name} is no {kind.__name__}")
    if not all(document[name] for name in ("account_id", "project_id", "client_name", "client_version")):
        raise Invalid("account_id, project_id, client_name or client_version is empty")
    if document["enrich_decisions"] is not True:
        raise Invalid("enrich_decisions is not true")
    if "region" in document and document["region"] not in _REGIONS:
        raise Invalid("region is unknown")


def _read_visitor(visitor: Any, account: int, events: list[tuple[Identity, Event]]) -> None:
    visitor_id, attributes, snapshots = visitor["visitor_id"], visitor["attributes"], visitor["snapshots"]
    if len(visitor) != 3 or type(visitor_id) is not str or not visitor_id:
        raise Invalid("visitor_id is no text, or there is more than visitor_id, attributes, snapshots")
    if type(attributes) is not list or type(snapshots) is not list or not snapshots:
        raise Invalid("attributes or snapshots is no list, or there is no snapshot")
    for attribute in attributes:
        value = attribute["value"]
        kind = type(value)
        if kind is not str and kind is not bool and not _is_usable_number(value):
            raise Invalid("the value of an attribute is no text, boolean or number up to 2^53")
        if len(attribute) != 4 or attribute["type"] != "custom":
            raise Invalid("an attribute is not exactly entity_id, key, type `custom`, value")
        if type(attribute["entity_id"]) is not str or type(attribute["key"]) is not str:
            raise Invalid("an attribute's entity_id or key is no text")
    of_all = hash((account, orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS)))
    for snapshot in snapshots:
        happened = snapshot["events"]
        if type(happened) is not list or not happened:
            raise Invalid("a snapshot without events")
        decided = len(snapshot) > 1
        (flag_key, rule_key, variation_key), decision = _read_decision(snapshot) if decided else _NO_NAMES
        for event in happened:
            identity, key, values = _read_event(event)
            if (key == IMPRESSION) is not decided:
                raise Invalid(f"{IMPRESSION} and decisions go together")
            rest = hash((of_all, decision, values))
            events.append((identity, (visitor_id, flag_key, rule_key, variation_key, key, rest, values)))


def _is_usable_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER


def _read_decision(snapshot: dict[str, Any]) -> tuple[tuple[str, str, str], int]:
    """flag_key, rule_key and variation_key of the one decision, and a hash of the rest of it."""
    decisions = snapshot["decisions"]
    if len(snapshot) != 2 or type(decisions) is not list or len(decisions) != 1 or len(snapshot["events"]) != 1:
        raise Invalid("a snapshot is not one decision and one event")
    decision = decisions[0]
    campaign_id, experiment_id, metadata = decision["campaign_id"], decision["experiment_id"], decision["metadata"]
    variation_id = decision["variation_id"]
    if len(decision) != 4 or type(campaign_id) is not str or type(experiment_id) is not str:
        raise Invalid("a decision is not exactly campaign_id, experiment_id, variation_id, metadata")
    if variation_id is not None and not (variation_id.isdigit() and variation_id.isascii()):
        raise Invalid("variation_id is neither digits nor null")
    if snapshot["events"][0]["entity_id"] != campaign_id:
        raise Invalid("an impression's entity_id is not its campaign_id")
    names = metadata["flag_key"], metadata["rule_key"], metadata["variation_key"]
    if type(names[0]) is not str or type(names[1]) is not str or type(names[2]) is not str:
        raise Invalid("metadata's flag_key, rule_key or variation_key is no text")
    if metadata["rule_type"] not in _RULE_TYPES or type(metadata["enabled"]) is not bool:
        raise Invalid("metadata.rule_type or metadata.enabled is unknown")
    if len(metadata) != 5 and not (len(metadata) == 6 and type(metadata["cmab_uuid"]) is str):
        raise Invalid("metadata has more than is documented")
    said = metadata["rule_type"], metadata["enabled"], metadata.get("cmab_uuid")
    return names, hash((campaign_id, experiment_id, variation_id, said))


def _read_event(event: Any) -> tuple[Identity, str, bytes]:
    """Its identity, key and values."""
    entity_id, uuid, timestamp, key = event["entity_id"], event["uuid"], event["timestamp"], event["key"]
    values = b""
    if len(event) != 4:
        _check_optional(event)
        said = {name: event[name] for name in _VALUES if name in event}
        values = orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
    if type(timestamp) is not int or not _EARLIEST <= timestamp <= _LATEST:
        raise Invalid("timestamp is not milliseconds")
    if type(uuid) is not str or _is_uuid(uuid) is None:
        raise Invalid("uuid is no UUID")
    if type(entity_id) is not str or type(key) is not str or not key:
        raise Invalid("entity_id or key is no text")
    return (entity_id, uuid, timestamp), key, values


def _check_optional(event: dict[str, Any]) -> None:
    if event.keys() - _EVENT:
        raise Invalid(f"an event has more than is documented: {', '.join(sorted(event.keys() - _EVENT))}")
    if type(event.get("tags", {})) is not dict:
        raise Invalid("tags is no object")
    if type(event.get("revenue", 0)) is not int:
        raise Invalid("revenue is no integer")
    if type(event.get("value", 0)) not in (int, float):
        raise Invalid("value is no number")
