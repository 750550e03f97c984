"""What the consumers give: the record that Kafka has, in the shape of ours and not of aiokafka's."""

from __future__ import annotations

import sys
import time

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord

from pipeline.kafka import client
from pipeline.kafka.poll import poll
from pipeline.kafka.records import Record
from tests.kafka.member import kafka_settings
from tests.support import Broker, TopicMaker


@pytest.mark.asyncio
async def test_a_consumer_gives_all_of_a_record_in_a_small_object(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=1)
    tp = TopicPartition(own.decide_requests, 0)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        headers = [("traceparent", b"00"), ("traceparent", b"01")]
        await producer.send_and_wait(tp.topic, b"value", b"key", 0, headers=headers)
        await producer.send_and_wait(tp.topic, None, b"key", 0)
        await producer.send_and_wait(tp.topic, b"", None, 0)
    consumer = client.scanner(kafka_settings(kafka))
    await consumer.start()
    try:
        consumer.assign([tp])
        found: list[Record] = []
        while len(found) < 3:
            found += (await poll(consumer, [tp], timeout_ms=10_000, max_records=3)).get(tp, [])
    finally:
        await consumer.stop()
    first, second, third = found
    assert type(first) is Record, "aiokafka has changed: records are its own again"
    assert (first.topic, first.partition, first.offset, first.timestamp_type) == (tp.topic, 0, 0, 1)
    assert (first.key, first.value) == (b"key", b"value")
    assert abs(first.timestamp - time.time() * 1000) < 60_000, "the broker's own, in milliseconds"
    assert first.headers == (("traceparent", b"00"), ("traceparent", b"01"))
    assert (second.key, second.value, second.headers) == (b"key", None, ())
    assert (third.offset, third.key, third.value) == (2, None, b"")


def test_it_is_a_third_of_aiokafkas() -> None:
    theirs = ConsumerRecord("t", 0, 0, 0, 0, b"", b"", None, 0, 0, ())
    ours = Record("t", 0, 0, 0, 0, b"", b"", ())
    assert 3 * sys.getsizeof(ours) <= sys.getsizeof(theirs) + sys.getsizeof(theirs.__dict__)
