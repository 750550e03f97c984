"""Records that can never be processed, written aside with their bytes, origin and reason.

A dead letter that is too large to copy is a pointer: its origin without the bytes. One that cannot be written stops
its partition, since the record is settled only by the acknowledgement.
"""

from __future__ import annotations

import structlog

from pipeline.errors import Rejected
from pipeline.kafka.sink import Receipt, Sink
from pipeline.messages.dead_letters import ADDED_HEADERS, POINTER_HEADER, REASONS, dead_letter_headers
from pipeline.messages.delivery import Delivery, Result
from pipeline.metrics import Metrics

_LONGEST_KEY = 1024

log = structlog.get_logger("pipeline.dead_letters")


class DeadLetters:
    """The dead letters of one role."""

    def __init__(self, sink: Sink, *, role: str, max_bytes: int, metrics: Metrics) -> None:
        self._sink = sink
        self._role = role
        self._max_bytes = max_bytes
        # Made at the start, a child for each reason: a series whose first sample is 1 shows no increase.
        self._counters = {reason: metrics.dead_letters.labels(role, reason) for reason in REASONS}

    def write(self, record: Delivery, why: Rejected, receipt: Receipt) -> None:
        """Append the record to the dead letters; `receipt` is told when it is written."""
        headers = dead_letter_headers(record, why, role=self._role)
        key, value = record.key or b"", record.value or b""
        if len(key) + len(value) + sum(len(name) + len(text or b"") for name, text in headers) > self._max_bytes:
            # A pointer: only what we say of it, so that it can always be written.
            key, value = key[:_LONGEST_KEY], b""
            headers = [header for header in headers if header[0] in ADDED_HEADERS]
            headers.append((POINTER_HEADER, b"too_large_to_copy"))
        lane = self._sink.lane(record.partition % self._sink.partitions)
        # A tombstone keeps its null key or value as an empty one: a record needs one of them.
        lane.extend([Result(key, value, headers)], receipt)
        self._counters[why.reason].inc()
        log.debug(
            "dead letter",
            role=self._role,
            reason=why.reason,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )
