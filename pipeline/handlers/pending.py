"""A decide request that is not answered yet, and what is known of its user's segments.

A request asks for its user's segments when it arrives, also behind others of the same user: requests that wait together
share ODP's answer, and each one's deadline counts from its own arrival. Made by `handlers/decide.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from pipeline.errors import SegmentsUnavailable
from pipeline.messages.decide import DecideRequest
from pipeline.messages.delivery import Chunk, Delivery

Segments = frozenset[str] | SegmentsUnavailable | asyncio.Future[frozenset[str]]
"""A user's segments, why there are none, or the answer still to come."""


class Pending(msgspec.Struct):
    """One request of a chunk. `segments` is None until they were asked for."""

    chunk: Chunk
    record: Delivery
    request: DecideRequest
    segments: Segments | None = None

    @property
    def size(self) -> int:
        """Bytes of the record's value."""
        return len(self.record.value or b"")

    @property
    def dropped(self) -> bool:
        """True once the next owner is to answer the request: its partition was given away, or the worker stops."""
        segments = self.segments
        return self.chunk.abandoned or (isinstance(segments, asyncio.Future) and segments.cancelled())

    def expires_at(self, max_age_ms: int) -> int | None:
        """When the request's time ends, in ms since the epoch; None: never. `max_age_ms` is the default, 0 for none."""
        request = self.request
        if request.expires_at is not None:
            return request.expires_at
        age_ms = request.ttl_ms or max_age_ms
        return self.record.timestamp + age_ms if age_ms else None

    def resolve(self) -> Segments | None:
        """The segments, after taking over ODP's answer if it has come. Raises what only a defect puts into a future."""
        segments = self.segments
        if isinstance(segments, asyncio.Future) and segments.done():
            error = segments.exception()
            if error is None:
                self.segments = segments.result()
            elif isinstance(error, SegmentsUnavailable):
                self.segments = error
            else:
                raise error
        return self.segments


def known(segments: Segments | None) -> frozenset[str] | None:
    """The segments to decide by; None where none were asked for."""
    return segments if isinstance(segments, frozenset) else None


class Waiting:
    """A user whose facts are being fetched: the request that asked, and the later ones in their order."""

    __slots__ = ("head", "later")

    def __init__(self, head: Pending) -> None:
        self.head = head
        # Made when it is needed: an empty one is larger than the request.
        self.later: deque[Pending] | None = None

    def append(self, pending: Pending) -> None:
        if self.later is None:
            self.later = deque()
        self.later.append(pending)
