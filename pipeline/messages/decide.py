"""Decide requests: the value of a record of `decide.requests`, parsed.

A record without a usable user id is Rejected. Everything else that is wrong becomes a request whose `error`, in the
Optimizely Agent's words, is its answer. Called by the decide role for every record and by `pipeline decide` for every
line: an ordinary request is read and checked in one step, by its types (`_Ordinary`); what is refused there is read
again by the schema, which alone says what is valid and what is wrong.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from pipeline.errors import Rejected
from pipeline.messages.contracts import DECIDE_REQUEST, read_object, too_deep
from pipeline.messages.delivery import Headers
from pipeline.messages.headers import milliseconds

EXPIRES_AT_HEADER = "expires-at"
PARSING_FAILED = "error parsing request body"
SDK_KEY_MALFORMED = "sdkKey failed validation"

_PROPERTIES: dict[str, dict[str, Any]] = DECIDE_REQUEST.schema["properties"]
# The schema is the only list of options, and the only place of the bounds.
DECIDE_OPTIONS: frozenset[str] = frozenset(_PROPERTIES["decideOptions"]["items"]["enum"])
MAX_KEYS: int = _PROPERTIES["keys"]["maxItems"]
_MAX_ATTRIBUTES: int = _PROPERTIES["userAttributes"]["maxProperties"]
_MAX_FORCED: int = _PROPERTIES["forcedDecisions"]["maxItems"]
_MAX_OPTIONS: int = _PROPERTIES["decideOptions"]["maxItems"]
_MAX_CACHE_OPTIONS: int = _PROPERTIES["fetchSegmentsOptions"]["maxItems"]

# Repeating an unknown option must not make a result larger than a record may be.
_LONGEST_OPTION = 256

_NO_OPTIONS: frozenset[str] = frozenset()
_SOME_OPTION = min(DECIDE_OPTIONS)
_is_valid = DECIDE_REQUEST.is_valid


class ForcedDecision(NamedTuple):
    """A variation to be taken without evaluating; an empty `rule_key` means the whole flag."""

    flag_key: str
    rule_key: str
    variation_key: str


class DecideRequest(msgspec.Struct, gc=False):
    """One user to decide for.

    With `error` set, it alone is the answer, and of the rest only the ids count; `detail` then names the faulty
    property or header as `path: keyword`, where the error itself does not.
    """

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
    detail: str | None = None
    keys_repeated: bool = False  # a key was sent twice: several keys, also where one is left of them
    expires_at: int | None = None  # epoch ms, from the record's headers: `read_expires_at`


# Larger ones are floats to one JSON reader and whole numbers to another.
_Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Attributes = Annotated[dict[str, str | bool | _Integer | float | None], Meta(max_length=_MAX_ATTRIBUTES)]
_Forced = Annotated[list[dict[str, str | None] | None], Meta(max_length=_MAX_FORCED)]
_CacheOptions = Annotated[list[str | None], Meta(max_length=_MAX_CACHE_OPTIONS)]


class _Ordinary(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What nearly all requests look like: valid by the schema, flat attributes, nothing that is not named here.

    Stricter than the schema wherever the two differ. What is skipped by the reader would not be looked at by it, not
    even for being UTF-8: hence no unknown fields.
    """

    userId: Annotated[str, Meta(min_length=1)]  # noqa: N815 - the names are those of the schema
    requestId: Annotated[str, Meta(max_length=1024)] | None = None  # noqa: N815
    sdkKey: Annotated[str, Meta(max_length=128)] | None = None  # noqa: N815
    userAttributes: _Attributes | None = None  # noqa: N815
    keys: Annotated[list[str], Meta(max_length=MAX_KEYS)] | None = None
    decideOptions: Annotated[list[str], Meta(max_length=_MAX_OPTIONS)] | None = None  # noqa: N815
    forcedDecisions: _Forced | None = None  # noqa: N815
    fetchSegments: bool | None = None  # noqa: N815
    fetchSegmentsOptions: _CacheOptions | None = None  # noqa: N815
    ttlMs: Annotated[int, Meta(ge=1, le=2**53 - 1)] | None = None  # noqa: N815


# A large one that is refused here would be read twice, and hold the event loop for as long.
_LARGEST_ORDINARY = 65_536
_read_ordinary = msgspec.json.Decoder(_Ordinary).decode


def parse_decide_request(value: bytes | None, *, max_bytes: int, max_keys: int = MAX_KEYS) -> DecideRequest:
    """The request in a record's value. `max_keys` is the worker's own bound on different keys, below the contract's.

    Raises Rejected: empty, too_large, not_json, not_an_object, user_id_missing.
    """
    if value and len(value) <= max_bytes and len(value) <= _LARGEST_ORDINARY:
        try:
            sent = _read_ordinary(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _by_the_schema(value, max_bytes, max_keys)
        if (
            (not sent.sdkKey or _is_key(sent.sdkKey))
            and _are_options(sent.decideOptions)
            and (not sent.keys or len(sent.keys) <= max_keys)
        ):
            return _request(
                sent.userId, sent.requestId, sent.sdkKey, sent.userAttributes, sent.keys, sent.decideOptions,
                sent.forcedDecisions, sent.fetchSegments, sent.fetchSegmentsOptions, sent.ttlMs,
            )  # fmt: skip
    return _by_the_schema(value, max_bytes, max_keys)


def read_expires_at(request: DecideRequest, headers: Headers) -> None:
    """Note until when somebody waits for the result; a header that cannot be read becomes the request's error.

    Of several the last counts that is not empty.
    """
    for name, value in headers:
        if name == EXPIRES_AT_HEADER:
            try:
                expires_at = milliseconds(value)
            except ValueError:
                request.error, request.detail = PARSING_FAILED, f"header {EXPIRES_AT_HEADER}: pattern"
                return
            if expires_at is not None:
                request.expires_at = expires_at


@lru_cache(maxsize=1024)
def _is_key(sdk_key: str) -> bool:
    return _is_valid({"userId": "-", "sdkKey": sdk_key})


def _are_options(names: list[str] | None) -> bool:
    return not names or DECIDE_OPTIONS.issuperset(names)


def _by_the_schema(value: bytes | None, max_bytes: int, max_keys: int) -> DecideRequest:
    document = read_object(value, max_bytes=max_bytes)
    if not _is_valid(document) or too_deep(value or b"", document):
        return _faulty(document)
    get = document.get
    ttl_ms = get("ttlMs")
    request = _request(
        document["userId"], get("requestId"), get("sdkKey"), get("userAttributes"), get("keys"), get("decideOptions"),
        get("forcedDecisions"), get("fetchSegments"), get("fetchSegmentsOptions"),
        # JSON's 5000.0 is an integer to a schema, but a float here.
        None if ttl_ms is None else int(ttl_ms),
    )  # fmt: skip
    if len(request.keys) > max_keys:
        detail = f"keys: maxItems, {max_keys} here (PIPELINE_DECIDE__MAX_KEYS)"
        return _refused(request.user_id, request.request_id, request.sdk_key, PARSING_FAILED, detail)
    return request


def _request(
    user_id: str,
    request_id: str | None,
    sdk_key: str | None,
    attributes: dict[str, Any] | None,
    keys: list[str] | None,
    options: list[str] | None,
    forced: list[dict[str, str | None] | None] | None,
    fetch_segments: bool | None,
    cache_options: list[str | None] | None,
    ttl_ms: int | None,
) -> DecideRequest:
    """What is null or empty is as if it was left out."""
    several = keys is not None and len(keys) > 1
    asked = tuple(dict.fromkeys(keys) if several else keys) if keys else ()
    return DecideRequest(
        user_id,
        request_id or None,
        sdk_key or None,
        attributes or {},
        asked,
        frozenset(options) if options else _NO_OPTIONS,
        _forced_decisions(forced) if forced else (),
        fetch_segments is True,
        cache_options is not None and "IGNORE_CACHE" in cache_options,
        cache_options is not None and "RESET_CACHE" in cache_options,
        ttl_ms,
        None,
        None,
        several and len(asked) < len(keys or ()),
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
    error, detail = _error(document)
    return _refused(user_id, _usable(document, "requestId"), _usable(document, "sdkKey"), error, detail)


def _refused(
    user_id: str, request_id: str | None, sdk_key: str | None, error: str, detail: str | None
) -> DecideRequest:
    return DecideRequest(
        user_id=user_id, request_id=request_id, sdk_key=sdk_key, attributes={}, keys=(), options=_NO_OPTIONS,
        forced=(), fetch_segments=False, ignore_cache=False, reset_cache=False, ttl_ms=None, error=error,
        detail=detail,
    )  # fmt: skip


def _user_id_fault(user_id: object) -> str:
    return 'missing "userId" in request payload' if user_id in (None, "") else "userId is no string"


def _usable(document: dict[str, Any], name: str) -> str | None:
    """The property, if it alone would be acceptable: the sender should recognise its own faulty request."""
    value = document.get(name)
    return value if value and _is_valid({"userId": "-", name: value}) else None


def _error(document: dict[str, Any]) -> tuple[str, str | None]:
    """The error and its detail, in the Agent's order: the SDK key, then the types of all fields, then the options."""
    sdk_key = document.get("sdkKey")
    if type(sdk_key) is str and sdk_key and _usable(document, "sdkKey") is None:
        return SDK_KEY_MALFORMED, None
    fault = _type_fault(document)
    if fault:
        return PARSING_FAILED, fault
    # Go reads null in a list of strings as an empty string, which is no option.
    names = ["" if option is None else option for option in document.get("decideOptions") or ()]
    unknown = next((name for name in names if name not in DECIDE_OPTIONS), None)
    if unknown is None:
        return PARSING_FAILED, "$: depth"
    return f"invalid option: {unknown[:_LONGEST_OPTION]}", None


def _type_fault(document: dict[str, Any]) -> str:
    """The first fault that is more than the name of an option, as `Contract.first_fault` says it; empty: none.

    Each property is looked at by itself: an explanation needs its document converted, and a whole one may be large.
    """
    for name, schema in _PROPERTIES.items():
        value = document.get(name)
        for kind, bound in ((list, "maxItems"), (dict, "maxProperties")):
            # Not converted: what is over its bound is the largest of all.
            if type(value) is kind and len(value) > schema.get(bound, len(value)):
                return f"{name}: {bound}"
        if type(value) is list and name == "decideOptions":
            value = [_SOME_OPTION if option is None or type(option) is str else option for option in value]
        part = {"userId": "-", name: value}
        if value is not None and not _is_valid(part):
            return DECIDE_REQUEST.first_fault(part)
    return ""
