"""Events as the data platform takes them: what it refuses, and what it keeps. Pure; used by the stand-in for ODP."""

from __future__ import annotations

from typing import Any

EVENTS_AT_ONCE = 500


def events_fault(events: Any) -> str | None:
    """What the data platform would refuse, None if nothing."""
    if type(events) is not list or not 0 < len(events) <= EVENTS_AT_ONCE:
        return f"not an array of 1 to {EVENTS_AT_ONCE} events"
    for number, event in enumerate(events):
        fault = _event_fault(event)
        if fault is not None:
            return f"[{number}]: {fault}"
    return None


def _event_fault(event: Any) -> str | None:
    if type(event) is not dict or event.keys() != {"type", "action", "identifiers", "data"}:
        return "not exactly type, action, identifiers, data"
    for name in ("type", "action"):
        if type(event[name]) is not str or not event[name]:
            return f"{name} is no text"
    identifiers, data = event["identifiers"], event["data"]
    if type(identifiers) is not dict or not identifiers:
        return "identifiers is empty"
    if any(type(value) is not str or not value for value in identifiers.values()):
        return "an identifier is no text"
    if type(data) is not dict or any(type(value) in (list, dict) for value in data.values()):
        return "data is not flat"
    if not data.get("idempotence_id"):
        return "idempotence_id is missing"
    return None


def as_kept(event: dict[str, Any]) -> dict[str, Any]:
    """The event as it is written down: a value that is null is an empty text from then on."""
    data = {name: "" if value is None else value for name, value in event["data"].items()}
    return event | {"data": data}
