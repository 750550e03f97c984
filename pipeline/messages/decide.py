"""Decide requests: the value of a record of `decide.requests`, parsed.

A record without a usable user id is Rejected. Everything else that is wrong becomes a request whose `error`, in the
Optimizely Agent's words, is its answer. Called by the decide role for every record and by `pipeline decide` for every
line, so the valid case is one schema check and one object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.errors import Rejected
from pipeline.messages.contracts import DECIDE_REQUEST, read_object, too_deep

PARSING_FAILED = "error parsing request body"
SDK_KEY_MALFORMED = "sdkKey failed validation"

# The schema is the only list of options.
DECIDE_OPTIONS: frozenset[str] = frozenset(DECIDE_REQUEST.schema["properties"]["decideOptions"]["items"]["enum"])

# Repeating an unknown option must not make a result larger than a record may be.
_LONGEST_OPTION = 256

_NO_OPTIONS: frozenset[str] = frozenset()
_is_valid = DECIDE_REQUEST.is_valid


class ForcedDecision(NamedTuple):
    """A variation to be taken without evaluating; an empty `rule_key` means the whole flag."""

    flag_key: str
    rule_key: str
    variation_key: str


@dataclass(slots=True)
class DecideRequest:
    """One user to decide for. With `error` set, all of it but the ids is empty and the error is the answer."""

    user_id: str
    request_id: str | None  # None: the result carries its source as one
    sdk_key: str | None  # None: the only key there is; the decide role fills it in
    attributes: dict[str, Any]
    keys: tuple[str, ...]  # repeats removed, the first place kept; empty: all flags
    options: frozenset[str]  # of DECIDE_OPTIONS
    forced: tuple[ForcedDecision, ...]  # as given: the last one for the same place counts
    fetch_segments: bool
    ignore_cache: bool
    reset_cache: bool
    ttl_ms: int | None  # counted from the record's timestamp
    error: str | None


def parse_decide_request(value: bytes | None, *, max_bytes: int) -> DecideRequest:
    """The request in a record's value.

    Raises Rejected: empty, too_large, not_json, not_an_object, user_id_missing.
    """
    document = read_object(value, max_bytes=max_bytes)
    if not _is_valid(document) or too_deep(value or b"", document):
        return _faulty(document)
    get = document.get
    keys = get("keys")
    options = get("decideOptions")
    forced = get("forcedDecisions")
    cache_options = get("fetchSegmentsOptions") or ()
    ttl_ms = get("ttlMs")
    return DecideRequest(
        document["userId"],
        get("requestId") or None,
        get("sdkKey") or None,
        get("userAttributes") or {},
        tuple(dict.fromkeys(keys) if len(keys) > 1 else keys) if keys else (),
        frozenset(options) if options else _NO_OPTIONS,
        _forced_decisions(forced) if forced else (),
        get("fetchSegments") is True,
        "IGNORE_CACHE" in cache_options,
        "RESET_CACHE" in cache_options,
        # JSON's 5000.0 is an integer to a schema, but a float here.
        None if ttl_ms is None else int(ttl_ms),
        None,
    )


def _forced_decisions(entries: list[dict[str, str | None] | None]) -> tuple[ForcedDecision, ...]:
    return tuple(
        ForcedDecision(
            entry.get("flagKey") or "",
            entry.get("ruleKey") or "",
            # An absent variation is kept: the Agent reports it as an invalid one.
            entry.get("variationKey") or "",
        )
        for entry in entries
        if entry is not None
    )


def _faulty(document: dict[str, Any]) -> DecideRequest:
    user_id = document.get("userId")
    if type(user_id) is not str or not user_id:
        raise Rejected("user_id_missing", _user_id_fault(user_id))
    return DecideRequest(
        user_id=user_id,
        request_id=_usable(document, "requestId"),
        sdk_key=_usable(document, "sdkKey"),
        attributes={},
        keys=(),
        options=_NO_OPTIONS,
        forced=(),
        fetch_segments=False,
        ignore_cache=False,
        reset_cache=False,
        ttl_ms=None,
        error=_error(document),
    )


def _user_id_fault(user_id: object) -> str:
    return 'missing "userId" in request payload' if user_id in (None, "") else "userId is no string"


def _usable(document: dict[str, Any], name: str) -> str | None:
    """The property, if it alone would be acceptable: the sender should recognise its own faulty request."""
    value = document.get(name)
    return value if value and _is_valid({"userId": "-", name: value}) else None


def _error(document: dict[str, Any]) -> str:
    """In the Agent's order: the SDK key, then the types of all fields, then the options."""
    sdk_key = document.get("sdkKey")
    if type(sdk_key) is str and sdk_key and _usable(document, "sdkKey") is None:
        return SDK_KEY_MALFORMED
    options = document.get("decideOptions")
    if type(options) is not list or not _is_valid({**document, "decideOptions": None}):
        return PARSING_FAILED
    # Go reads null in a list of strings as an empty string, which is no option.
    names = ["" if option is None else option for option in options]
    unknown = [name for name in names if type(name) is not str or name not in DECIDE_OPTIONS]
    if not unknown or any(type(name) is not str for name in unknown):
        return PARSING_FAILED
    return f"invalid option: {unknown[0][:_LONGEST_OPTION]}"
