"""The private parts of aiokafka's clients that a stop cuts off: an upgrade must not rename one unseen."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from pipeline.kafka import client
from tests.kafka.member import kafka_settings
from tests.support import Broker, TopicMaker


@pytest.mark.asyncio
async def test_each_part_that_is_cut_off_is_there(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics()
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    consumer: AIOKafkaConsumer = await client.start_client(client.group_consumer(settings, "decide"))
    producer = await client.start_client(client.producer(settings))
    admin = await client.start_client(client.admin(settings))
    scanner = await client.start_client(client.scanner(settings))
    try:
        consumer.subscribe([own.decide_requests])
        parts: list[Any] = [
            consumer._client, consumer._coordinator, consumer._fetcher, producer.client, producer._sender,
            admin._client, scanner._coordinator,
        ]  # fmt: skip
        missing = {name for name in client._BACKGROUND_TASKS if not any(hasattr(part, name) for part in parts)}
        assert missing == set()
        assert isinstance(parts[2]._pending_tasks, set)
        assert all(isinstance(network._conns, dict) for network in (consumer._client, producer.client, admin._client))
    finally:
        for one in (consumer, producer, admin, scanner):
            await client.stop_client(one)
