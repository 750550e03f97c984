"""What Optimizely's event endpoint receives: impressions from a decide result, a conversion from a track event.

Pure: the same record gives the same bytes for ever. Identities are functions of the record, so whatever is sent twice
is counted once: Optimizely drops events with equal `entity_id`, `uuid` and `timestamp`. A visitor is rendered here,
complete; a body is `envelope_bytes` around visitors of that one envelope. Called by the role `logx`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import msgspec
import orjson
from mmh3 import mmh3_x64_128_digest
from msgspec import UNSET

from pipeline.errors import Rejected
from pipeline.messages.events import TrackEvent
from pipeline.messages.results import parse_attributes, parse_impression, parse_result, refusal
from pipeline.project import ProjectConfig

CLIENT_NAME = "decision-pipeline"
try:
    CLIENT_VERSION = version(CLIENT_NAME)
except PackageNotFoundError:  # a bare checkout
    CLIENT_VERSION = "0"

_SNAPSHOTS = b',"snapshots":['
_LONGEST_REMEMBERED = 2048
_LONGEST_ATTRIBUTES = 512
# Of an entry that a prediction had a part in: each is different. Other ways of writing it cost some memory only.
_PREDICTED = b'"cmabUuid":"'


class Envelope(NamedTuple):
    """What visitors of one request have in common: the key of a batch. A tuple, because it is hashed per record."""

    account_id: str
    project_id: str
    revision: str
    anonymize_ip: bool
    region: str


Visitor = tuple[bytes, int]
"""One rendered visitor and its number of events."""


def impressions(value: bytes | None, *, max_events: int, max_bytes: int) -> tuple[Envelope, Sequence[Visitor]] | None:
    """The impressions that a published result, a record's value, owes; None when it owes none.

    One visitor, so that its attributes are sent once, with a snapshot for each impression as the SDKs send them: the
    events of a snapshot are attributed to all of its decisions, so two decisions must not share one. Several visitors
    only where a single one would not fit a body of `max_bytes` or `max_events`; order and identities stay the same.
    Raises Rejected when it cannot be sent.
    """
    result = parse_result(value)
    tracking = result.tracking
    if tracking is UNSET:
        return None
    if result.revision is None:
        raise Rejected("not_a_result", "revision: required where impressions are due")
    envelope = _envelope(
        tracking.account_id, tracking.project_id, result.revision, tracking.anonymize_ip, tracking.region
    )
    try:
        opening = _opening(result.user_id, tracking.attributes)
        snapshots = _snapshots(tracking.impressions, result.source, result.timestamp)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise refusal(value or b"") from None
    visitor = b"".join((opening, _SNAPSHOTS, ",".join(snapshots).encode(), b"]}"))
    # No envelope comes near half a body, so what is below half needs no exact count.
    if len(visitor) * 2 <= max_bytes and len(snapshots) <= max_events:
        return envelope, [(visitor, len(snapshots))]
    room = max_bytes - overhead(envelope)
    return envelope, _several(opening, [text.encode() for text in snapshots], max_events, room)


def conversion(
    project: ProjectConfig, event: TrackEvent, *, source: str, timestamp: int
) -> tuple[Envelope, bytes, int]:
    """A conversion: its envelope, its visitor and its number of events, which is 1.

    `timestamp` is the record's, in ms, and part of the identity; the event happened then unless it says otherwise.
    Tags are passed on as they were parsed; `revenue` and `value` are read from them as the Python SDK does. Raises
    Rejected when the datafile has no such event.
    """
    event_id = project.events.get(event.event_key)
    if event_id is None:
        raise Rejected("unknown_event_key", "the datafile has no event of this key")
    sent: dict[str, Any] = {
        "entity_id": event_id,
        "key": event.event_key,
        "timestamp": timestamp if event.timestamp is None else event.timestamp,
        "uuid": event_uuid(source, timestamp, 0),
    }
    if event.tags:
        sent["tags"] = event.tags
        if (revenue := _revenue(event.tags.get("revenue"))) is not None:
            sent["revenue"] = revenue
        if (value := _value(event.tags.get("value"))) is not None:
            sent["value"] = value
    visitor = {
        "visitor_id": event.user_id,
        "attributes": project.event_attributes(event.attributes),
        "snapshots": [{"events": [sent]}],
    }
    envelope = Envelope(project.account_id, project.project_id, project.revision, project.anonymize_ip, project.region)
    return envelope, orjson.dumps(visitor), 1


def event_uuid(source: str, timestamp: int, index: int) -> str:
    """The identity of a record's `index`-th event: the same input gives the same text for ever.

    A UUID of version 4 in form, as the SDKs send; its other 120 bits are MurmurHash3 of the input. `timestamp` (the
    record's, ms) keeps a topic that was made anew from repeating identities.
    """
    # Bytes, never text: the hash crashes on a lone surrogate.
    digits = mmh3_x64_128_digest(f"{source}|{timestamp}|{index}".encode()).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


@lru_cache(maxsize=1024)
def envelope_bytes(envelope: Envelope) -> tuple[bytes, bytes]:
    """What stands before and after the visitors of a body, which are separated by commas."""
    head = orjson.dumps(
        {
            "account_id": envelope.account_id,
            "project_id": envelope.project_id,
            "revision": envelope.revision,
            "client_name": CLIENT_NAME,
            "client_version": CLIENT_VERSION,
            "anonymize_ip": envelope.anonymize_ip,
            "enrich_decisions": True,
            "region": envelope.region,
        }
    )
    return head[:-1] + b',"visitors":[', b"]}"


def overhead(envelope: Envelope) -> int:
    """Bytes of a body besides its visitors and the commas between them."""
    before, after = envelope_bytes(envelope)
    return len(before) + len(after)


@lru_cache(maxsize=1024)
def _envelope(account_id: str, project_id: str, revision: str, anonymize_ip: bool, region: str) -> Envelope:
    """Made once, not per record."""
    return Envelope(account_id, project_id, revision, anonymize_ip, region.upper())


_encode = msgspec.json.Encoder().encode


def _opening(user_id: str, attributes: msgspec.Raw) -> bytes:
    """A visitor up to its snapshots, without the comma."""
    sent = bytes(attributes)
    written = _attributes(sent) if len(sent) <= _LONGEST_ATTRIBUTES else _write_attributes(sent)
    return b'{"visitor_id":' + _encode(user_id) + b',"attributes":' + written


def _write_attributes(sent: bytes) -> bytes:
    """The attributes as Optimizely takes them: each with its type, which a result may leave out."""
    return _encode(parse_attributes(sent))


_attributes = lru_cache(maxsize=4096)(_write_attributes)


def _snapshots(tracked: Sequence[msgspec.Raw], source: str, timestamp: int) -> list[str]:
    snapshots = []
    for index, raw in enumerate(tracked):
        entry = bytes(raw)
        head = _render_head(entry) if len(entry) > _LONGEST_REMEMBERED or _PREDICTED in entry else _head(entry)
        snapshots.append(f'{head}{timestamp},"uuid":"{event_uuid(source, timestamp, index)}"}}]}}')
    return snapshots


def _render_head(entry: bytes) -> str:
    """A snapshot up to its timestamp."""
    impression = parse_impression(entry)
    variation_id = impression.variation_id
    if variation_id is not None and not (variation_id.isascii() and variation_id.isdigit()):
        raise Rejected("not_a_result", "tracking.impressions: variationId: pattern")
    metadata = {
        "flag_key": impression.flag_key,
        "rule_key": impression.rule_key,
        "rule_type": impression.rule_type,
        "variation_key": impression.variation_key,
        "enabled": impression.enabled,
    }
    if impression.cmab_uuid:
        metadata["cmab_uuid"] = impression.cmab_uuid
    decision = {
        "campaign_id": impression.campaign_id,
        "experiment_id": impression.experiment_id,
        "variation_id": variation_id,
        "metadata": metadata,
    }
    event = {"entity_id": impression.campaign_id, "key": "campaign_activated"}
    text = orjson.dumps({"decisions": [decision], "events": [event]}).decode()
    return text.removesuffix("}]}") + ',"timestamp":'


# It depends on the datafile only, unless a prediction had a part in it: a few texts, each used very often.
_head = lru_cache(maxsize=10_000)(_render_head)


def _several(opening: bytes, snapshots: Sequence[bytes], max_events: int, max_bytes: int) -> list[Visitor]:
    """Visitors of at most `max_bytes` and `max_events`, as few as their order allows; one snapshot always goes in."""
    frame = len(opening) + len(_SNAPSHOTS) + 2
    runs: list[list[bytes]] = []
    size = 0
    for snapshot in snapshots:
        size += len(snapshot) + 1
        if not runs or len(runs[-1]) == max_events or size > max_bytes:
            runs.append([])
            size = frame + len(snapshot)
        runs[-1].append(snapshot)
    return [(b"".join((opening, _SNAPSHOTS, b",".join(run), b"]}")), len(run)) for run in runs]


def _revenue(tag: object) -> int | None:
    """Integers only: the Python SDK sends no revenue for 12.0, nor for true."""
    return tag if isinstance(tag, int) and not isinstance(tag, bool) else None


def _value(tag: object) -> float | None:
    """Numbers and the text of numbers, if finite; not true or false."""
    if isinstance(tag, bool) or not isinstance(tag, int | float | str):
        return None
    try:
        value = float(tag)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
