"""One poll of a consumer, counted as over however it ends.

aiokafka 0.14 counts the polls under way, and one that raised stays counted. A member then looks as if it polled for
ever: one that no longer reads is never put out of its group, and nobody gets its partitions. The consumer's loop and
`undecodable.py` poll through here.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any, cast

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.kafka.records import Record


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
