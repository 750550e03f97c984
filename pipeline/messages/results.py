"""A published decide result, as far as the roles behind it read it: typed, and checked while it is parsed.

One pass in place of a parse into dicts and a validation: a third of the time, and those two were half of what role
logx does with a record. It refuses what `decide-result.schema.json` refuses in the properties that are read; what was
decided is passed over. A refusal is explained by the schema.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
import orjson

from pipeline.errors import Rejected
from pipeline.messages.contracts import DECIDE_RESULT

Text = Annotated[str, msgspec.Meta(min_length=1)]

# In bytes that a stranger wrote; ours always match.
_SOURCE = re.compile(r".+-[0-9]+-[0-9]+")


class Attribute(msgspec.Struct, frozen=True, gc=False):
    """An attribute as Optimizely's events carry it. `type` is theirs: a result may leave it out."""

    entity_id: str
    key: str
    value: str | bool | int | float
    type: str = "custom"


class Impression(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One impression that is due, with the ids and keys that are sent."""

    flag_key: str
    rule_key: str
    rule_type: Text
    variation_key: str
    enabled: bool
    campaign_id: str
    experiment_id: str
    variation_id: str | None
    cmab_uuid: str | None = None


class Tracking(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """All that the impressions of one result need."""

    account_id: str
    project_id: str
    region: Text
    anonymize_ip: bool
    attributes: msgspec.Raw
    """For `parse_attributes`. As with impressions, many results have the same."""
    impressions: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]
    """For `parse_impression`. Few of them are different, so whoever reads them remembers what becomes of each."""


class Published(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """A result. `tracking` is unset when no impression is due; `timestamp` is the request record's, in ms."""

    request_id: Text
    source: Text
    timestamp: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
    user_id: str
    decisions: msgspec.Raw
    revision: str | None = None
    error: str | msgspec.UnsetType = msgspec.UNSET
    tracking: Tracking | msgspec.UnsetType = msgspec.UNSET


_decode = msgspec.json.Decoder(Published).decode
parse_attributes = msgspec.json.Decoder(list[Attribute]).decode
"""Reads `tracking.attributes`. Raises msgspec.MsgspecError or UnicodeDecodeError."""
parse_impression = msgspec.json.Decoder(Impression).decode
"""Reads one entry of `tracking.impressions`. Raises msgspec.MsgspecError or UnicodeDecodeError."""


def parse_result(value: bytes | None) -> Published:
    """A record's value. Raises Rejected: not_json, not_a_result."""
    try:
        result = _decode(value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise refusal(value or b"") from None
    tracked_error = result.error is not msgspec.UNSET and result.tracking is not msgspec.UNSET
    if tracked_error or _SOURCE.fullmatch(result.source) is None:
        raise refusal(value or b"")
    return result


def refusal(value: bytes) -> Rejected:
    """Why a record's value is no result, as the schema sees it."""
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        return Rejected("not_json", "the result is not JSON")
    # The schema knows no bounds of numbers.
    return Rejected("not_a_result", DECIDE_RESULT.first_fault(document) or "$: out of range")
