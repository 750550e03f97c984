"""A decide request that is not answered yet, and what is known of its user's segments.

A request asks for its user's segments when it arrives, also behind others of the same user: requests that wait together
share ODP's answer, and each one's deadline counts from its own arrival. Made by `handlers/decide.py`.
"""

from __future__ import annotations

import asyncio

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
    def dropped(self) -> bool:
        """True once the next owner is to answer the request: its partition was given away, or the worker stops."""
        segments = self.segments
        return self.chunk.abandoned or (isinstance(segments, asyncio.Future) and segments.cancelled())

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
