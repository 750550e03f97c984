"""Events on their way out: conversions (`track.events`) and events for the customer data platform (`odp.events`).

Both are fire and forget for their senders, so a record with any fault is Rejected, with a detail that lets a person
find it. Called by the roles logx and odp_events for every record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.errors import Rejected
from pipeline.messages.contracts import MAX_NESTING, ODP_EVENT, TRACK_EVENT, Contract, read_object, too_deep

DEFAULT_TYPE = "fullstack"
FS_USER_ID = "fs_user_id"
_SPELLINGS = frozenset({"fs_user_id", "fs-user-id"})
# The SDK cleans a whole payload by these names, and the tags in it.
_DROPPED_WHERE_NULL = frozenset({"revenue", "value", "tags", "decisions"})


@dataclass(slots=True)
class TrackEvent:
    """A conversion. `timestamp`, in milliseconds, is None unless the sender reported it late."""

    sdk_key: str | None
    user_id: str
    event_key: str
    attributes: dict[str, Any]
    tags: dict[str, Any]
    timestamp: int | None


@dataclass(slots=True)
class OdpEvent:
    """An event for ODP, its identifiers named as ODP wants them; default data is not filled in yet."""

    sdk_key: str | None
    type: str
    action: str
    identifiers: dict[str, str]
    data: dict[str, str | int | float | bool | None]
    timestamp: int | None


def parse_track_event(value: bytes | None, *, max_bytes: int) -> TrackEvent:
    """The conversion in a record's value.

    Raises Rejected: empty, too_large, not_json, not_an_object, too_deep, user_id_missing, event_key_missing,
    invalid_field.
    """
    document = read_object(value, max_bytes=max_bytes)
    if not TRACK_EVENT.is_valid(document):
        raise _track_fault(document)
    _refuse_deep(value, document)
    get = document.get
    return TrackEvent(
        get("sdkKey") or None,
        document["userId"],
        document["eventKey"],
        get("userAttributes") or {},
        _tags(value or b"", get("eventTags") or {}),
        _timestamp(document),
    )


def _tags(value: bytes, tags: dict[str, Any]) -> dict[str, Any]:
    """The tags as the Python SDK sends them. A null is looked for in the record's bytes: most hold none."""
    sent: dict[str, Any] = _without_nulls(tags) if b"null" in value else tags
    return sent


def _without_nulls(node: Any) -> Any:
    """Without members that an event's own may be named like and that are null; also inside of other tags."""
    if type(node) is dict:
        return {
            name: _without_nulls(inner)
            for name, inner in node.items()
            if inner is not None or name not in _DROPPED_WHERE_NULL
        }
    if type(node) is list:
        return [_without_nulls(inner) for inner in node]
    return node


def parse_odp_event(value: bytes | None, *, max_bytes: int) -> OdpEvent:
    """The ODP event in a record's value.

    Raises Rejected: empty, too_large, not_json, not_an_object, too_deep, action_missing, identifiers_missing,
    data_invalid, invalid_field. The details of the three before the last are the Agent's words.
    """
    document = read_object(value, max_bytes=max_bytes)
    if not ODP_EVENT.is_valid(document):
        raise _odp_fault(document)
    _refuse_deep(value, document)
    get = document.get
    return OdpEvent(
        get("sdkKey") or None,
        get("type") or DEFAULT_TYPE,
        document["action"],
        _identifiers(document["identifiers"]),
        get("data") or {},
        _timestamp(document),
    )


def _timestamp(document: dict[str, Any]) -> int | None:
    timestamp = document.get("timestamp")
    # JSON's 1700000000000.0 is an integer to a schema, but a float here.
    return None if timestamp is None else int(timestamp)


def _refuse_deep(value: bytes | None, document: dict[str, Any]) -> None:
    if too_deep(value or b"", document):
        raise Rejected("too_deep", f"nested more than {MAX_NESTING} levels deep")


def _identifiers(given: dict[str, str | None]) -> dict[str, str]:
    """ODP's name for the user id, however it was spelled; without nulls, and without an empty user id."""
    misspelled = None
    if FS_USER_ID not in given:
        misspelled = next((name for name in given if name.lower() in _SPELLINGS), None)
    named = {FS_USER_ID if name == misspelled else name: value for name, value in given.items() if value is not None}
    if named.get(FS_USER_ID) == "":
        del named[FS_USER_ID]
    return named


def _missing(document: dict[str, Any], name: str) -> bool:
    return document.get(name) in (None, "")


def _invalid(contract: Contract, document: dict[str, Any]) -> Rejected:
    return Rejected("invalid_field", contract.first_fault(document))


def _track_fault(document: dict[str, Any]) -> Rejected:
    if _missing(document, "userId"):
        return Rejected("user_id_missing", 'missing "userId" in request payload')
    if type(document["userId"]) is not str:
        return Rejected("user_id_missing", "userId is no string")
    if _missing(document, "eventKey"):
        return Rejected("event_key_missing", 'missing "eventKey" in request payload')
    return _invalid(TRACK_EVENT, document)


def _odp_fault(document: dict[str, Any]) -> Rejected:
    if _missing(document, "action"):
        return Rejected("action_missing", 'missing "action" in request payload')
    identifiers = document.get("identifiers")
    if identifiers is None or (isinstance(identifiers, dict) and all(v in (None, "") for v in identifiers.values())):
        return Rejected("identifiers_missing", 'missing or empty "identifiers" in request payload')
    if isinstance(document.get("data"), dict) and ODP_EVENT.is_valid({**document, "data": None}):
        return Rejected("data_invalid", f"ODP data is not valid ({ODP_EVENT.first_fault(document)})")
    return _invalid(ODP_EVENT, document)
