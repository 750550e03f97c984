"""A poll that fails is over like any other: what aiokafka counts under way must not grow."""

from __future__ import annotations

import time

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from pipeline.kafka.poll import poll
from tests.kafka.member import produce
from tests.settled import until
from tests.support import Broker, TopicMaker


@pytest.mark.asyncio
async def test_after_failed_polls_a_consumer_that_no_longer_polls_is_still_found_idle(
    kafka: Broker, topics: TopicMaker
) -> None:
    own = await topics(partitions=1)
    await produce(kafka, own.decide_requests, [(0, b"user", b"1")])
    tp = TopicPartition(own.decide_requests, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="none")
    await consumer.start()
    try:
        consumer.assign([tp])
        for _ in range(2):
            consumer.seek(tp, 77)
            began = time.monotonic()
            with pytest.raises(OffsetOutOfRangeError):
                await poll(consumer, [tp], timeout_ms=10_000, max_records=1)
            # By this aiokafka judges whether a member still lives: 0 while a poll is counted, else since its end.
            await until(lambda: consumer._subscription.fetcher_idle_time > 0)
            assert consumer._subscription.fetcher_idle_time < time.monotonic() - began
        consumer.seek(tp, 0)
        fetched = await poll(consumer, [tp], timeout_ms=10_000, max_records=1)
        assert [record.value for record in fetched[tp]] == [b"1"]
    finally:
        await consumer.stop()
