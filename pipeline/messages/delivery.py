"""A record on its way through a role, as handlers see it. Nothing here knows Kafka.

The loop of a partition (`kafka/partition.py`) hands a role a `Chunk`: up to 500 records of one partition, in order.
The role settles every record exactly once, now or later, in any order: by publishing a result for it, by rejecting
it, or by saying that its effect is durable elsewhere. Offsets are committed from nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from pipeline.errors import Rejected
from pipeline.messages.headers import integer, plain

Headers = Sequence[tuple[str, bytes]]

# On a result: where its request lies, as topic-partition-offset. A takeover finds by it what is answered.
RESULT_SOURCE_HEADER = "source"
# The identity that a record keeps when it is replayed from the dead letters.
SOURCE_HEADER = "pipeline-source"
TIMESTAMP_HEADER = "pipeline-timestamp"
_IDENTITY_HEADERS = (SOURCE_HEADER, TIMESTAMP_HEADER)
_IDENTITY = re.compile(rb"[A-Za-z0-9._-]{1,249}-[0-9]{1,10}-[0-9]{1,19}")
_TIMESTAMP = re.compile(rb"-1|[0-9]{1,19}")


class Delivery(Protocol):
    """One consumed record. What the consumer gives (`kafka/records.py`) is one as it is; nothing is copied."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Milliseconds since the epoch, as the broker stored it."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


class Result(msgspec.Struct, frozen=True, gc=False):
    """What is published for one record, onto the record's own partition number of the results topic."""

    key: bytes
    value: bytes
    headers: Headers
    requested_at: int | None = None
    """Timestamp (ms) of the request record that it answers; None for what answers no request, as a dead letter."""


class Chunk(Protocol):
    """Records of one partition, consumed together, to be settled by the role that got them."""

    @property
    def records(self) -> Sequence[Delivery]: ...

    @property
    def abandoned(self) -> bool:
        """True once the partition was given away: whatever is still waiting is dropped, its new owner does it."""

    @property
    def has_room(self) -> bool:
        """Whether results may be made now; False while Kafka has not taken what it was given before."""

    def when_room(self, go_on: Callable[[], object]) -> None:
        """Call `go_on` as soon as there is room for results: now, or when Kafka has taken some."""

    def publish(self, results: Sequence[Result]) -> None:
        """Publish one result for each of as many records; they are settled when Kafka has acknowledged them."""

    def reject(self, record: Delivery, why: Rejected) -> None:
        """Write the record to the dead letters; it is settled when Kafka has acknowledged that."""

    def done(self, count: int) -> None:
        """Settle `count` records whose effect is durable outside Kafka, or which need no effect."""

    def expect(self, count: int) -> None:
        """Ask for `count` further settlements, for a record whose effect goes out in several parts."""


def source_of(record: Delivery) -> str:
    """The identity of a record: topic, partition and offset. Repeats only if a topic is made anew."""
    return f"{record.topic}-{record.partition}-{record.offset}"


def identity_of(record: Delivery, lies_at: str = "") -> tuple[str, int]:
    """Source and timestamp that a record's identifiers are made from: those it first had, if it was replayed.

    `lies_at` spares working out `source_of` the record again. Both come from the headers or neither does: half an
    identity would be that of another record.
    """
    if record.headers:
        source, timestamp = _first_identity(record.headers)
        if _IDENTITY.fullmatch(source) and _TIMESTAMP.fullmatch(timestamp):
            return source.decode("ascii"), int(timestamp)
    return lies_at or source_of(record), record.timestamp


def identity_fault(headers: Headers) -> str:
    """Why `identity_of` ignores the identity headers a record has, as `header name: keyword`; empty: it does not."""
    if not any(name in _IDENTITY_HEADERS for name, _ in headers):
        return ""
    for name, text, form in zip(_IDENTITY_HEADERS, _first_identity(headers), (_IDENTITY, _TIMESTAMP), strict=True):
        if not form.fullmatch(text):
            return f"header {name}: {'pattern' if text else 'required'}"
    return ""


def _first_identity(headers: Headers) -> tuple[bytes, bytes]:
    source = timestamp = b""
    for name, value in headers:
        if name == SOURCE_HEADER:
            source = plain(value)
        elif name == TIMESTAMP_HEADER:
            timestamp = integer(value)
    return source, timestamp
