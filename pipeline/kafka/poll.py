"""One poll of a consumer, counted as over however it ends.

aiokafka 0.14 counts the polls under way, and one that raised stays counted. A member then looks as if it polled for
ever: one that no longer reads is never put out of its group, and nobody gets its partitions. The consumer's loop and
`undecodable.py` poll through here. `Pace` says how many records the next poll may take.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any, cast

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.kafka.records import Record

_FIRST_RECORDS = 20
"""How many are taken by the first poll, when it is not known yet how long one takes."""
_HOLD_SECONDS = 0.01
"""How long handling one poll's records should hold the loop. A hundred flags take twenty times as long as one."""


class Pace:
    """How many records a poll takes: as many as are handled in `_HOLD_SECONDS`, going by the polls before."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.records = min(_FIRST_RECORDS, most)

    def handled(self, count: int, seconds: float) -> None:
        """Take as many records the next time as would have been handled in time, but not twice as many."""
        fit = int(count * _HOLD_SECONDS / seconds) if seconds else count
        self.records = max(1, min(fit, 2 * self.records, self._most))


async def poll(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], *, timeout_ms: int, max_records: int
) -> dict[TopicPartition, list[Record]]:
    """What `getmany` gives or raises, with none of its traces. One at a time for each consumer."""
    subscription: Any = consumer._subscription
    try:
        fetched: Any = await consumer.getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records)
        return cast("dict[TopicPartition, list[Record]]", fetched)
    finally:
        if subscription._fetch_count:
            # It was a poll nevertheless: idle time begins here, not at the last one that brought something.
            subscription._fetch_count, subscription._last_fetch_ended = 0, time.monotonic()
