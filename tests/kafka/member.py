"""A member of a group on a real broker with a handler of the test's: what the tests of the loop share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import OffsetAndMetadata
from prometheus_client import CollectorRegistry

from pipeline.kafka import client
from pipeline.kafka.consumer import GroupConsumer, Role
from pipeline.kafka.dead_letters import DeadLetters
from pipeline.kafka.lease import Lease
from pipeline.kafka.partition import Handler
from pipeline.kafka.records import Record, lighten_consumers
from pipeline.kafka.sink import Sink
from pipeline.kafka.takeover import Takeover
from pipeline.kafka.topic_ids import TopicIds
from pipeline.messages.delivery import RESULT_SOURCE_HEADER, Chunk, Delivery, Result, source_of
from pipeline.metrics import Metrics
from pipeline.settings import KafkaSettings
from tests.patience import PATIENCE
from tests.support import Broker, Topics


class Failed(AssertionError):
    """A member gave up, which would have ended its process."""


def fail(reason: str, error: BaseException | None = None) -> NoReturn:
    raise Failed(reason) from error


def echoed(record: Delivery) -> Result:
    value = b'{"timestamp":%d,"value":%s}' % (record.timestamp, json.dumps((record.value or b"").decode()).encode())
    return Result(record.key or b"", value, [(RESULT_SOURCE_HEADER, source_of(record).encode())])


def value_of(result: Record) -> bytes:
    """The value of the record that `echoed` made the result of."""
    value: str = json.loads(result.value or b"")["value"]
    return value.encode()


async def topic_ids(admin: AIOKafkaAdminClient, topics: Collection[str]) -> Mapping[str, str]:
    """The ids of topics now; without those that the broker does not know (yet)."""
    return await TopicIds(admin, role="decide", topics=topics, metrics=Metrics(CollectorRegistry())).look()


class Echo:
    """Publishes each record as its own result, at once."""

    def handle(self, chunk: Chunk) -> None:
        chunk.publish([echoed(record) for record in chunk.records])


class LateEcho:
    """Publishes every tenth record later than the others, as a user whose segments had to be fetched."""

    def __init__(self, delay: float = 0.05) -> None:
        self._delay = delay

    def handle(self, chunk: Chunk) -> None:
        late = [record for record in chunk.records if record.offset % 10 == 3]
        chunk.publish([echoed(record) for record in chunk.records if record.offset % 10 != 3])
        if late:
            asyncio.get_running_loop().call_later(self._delay, chunk.publish, [echoed(record) for record in late])


@dataclass(frozen=True, slots=True)
class Member:
    consumer: GroupConsumer
    metrics: Metrics
    producer: AIOKafkaProducer
    takeover: Takeover
    admin: AIOKafkaAdminClient
    client: AIOKafkaConsumer
    lease: Lease
    results: Sink

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"decision_pipeline_{name}", labels) or 0.0


def kafka_settings(broker: Broker, **changes: object) -> KafkaSettings:
    values = {"bootstrap_servers": broker.bootstrap_servers, "session_timeout": 6, "heartbeat_interval": 1}
    return KafkaSettings.model_validate(values | changes)


@asynccontextmanager
async def member(
    settings: KafkaSettings,
    topics: Topics,
    handler: Callable[[str], Handler],
    *,
    partitions: int = 4,
    window: int = 10_000,
    drain_seconds: float = 20,
) -> AsyncIterator[Member]:
    """A started member of role decide on the test's topics. Leaves as a killed process does if it was not stopped."""
    metrics = Metrics(CollectorRegistry())
    admin = await client.start_client(client.admin(settings))
    scanner = await client.start_client(client.scanner(settings))
    producer = await client.start_client(client.producer(settings))
    consumer = await client.start_client(client.group_consumer(settings, "decide"))
    lease = Lease(settings.session_timeout - settings.heartbeat_interval)
    results = Sink(producer, topics.decide_results, partitions=partitions, metrics=metrics, fail=fail, lease=lease)
    letters = Sink(producer, topics.dead_letters, partitions=partitions, metrics=metrics, fail=fail)
    takeover = Takeover(
        group_id=f"{settings.group_id}.decide", admin=admin, scanner=scanner,
        topic_ids=TopicIds(
            admin, role="decide", topics=[topics.decide_requests, topics.decide_results, topics.dead_letters],
            metrics=metrics,
        ),
        results_topic=topics.decide_results, role="decide",
        topics=[topics.decide_requests], metrics=metrics,
    )  # fmt: skip
    group = GroupConsumer(
        Role("decide", (topics.decide_requests,), window, handler=handler),
        consumer=consumer, lease=lease, takeover=takeover, results=results,
        dead_letters=DeadLetters(letters, role="decide", max_bytes=2 * 1024**2, metrics=metrics),
        settings=settings, drain_seconds=drain_seconds, metrics=metrics, fail=fail,
    )  # fmt: skip
    await group.start()
    try:
        yield Member(group, metrics, producer, takeover, admin, consumer, lease, results)
    finally:
        await group.stop(seconds=7)
        await producer.stop()
        await scanner.stop()
        await admin.close()


async def commit(broker: Broker, group: str, tp: TopicPartition, point: OffsetAndMetadata) -> None:
    """Commit by hand, for a group without members."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([tp])
        await consumer.commit({tp: point})
    finally:
        await consumer.stop()


async def produce(broker: Broker, topic: str, records: Iterable[tuple[int, bytes, bytes]]) -> None:
    """Write (partition, key, value) records, in order within each partition."""
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, linger_ms=5, max_batch_size=256 * 1024)
    await producer.start()
    try:
        futures = [await producer.send(topic, value, key, partition) for partition, key, value in records]
        await asyncio.gather(*futures)
    finally:
        await producer.stop()


async def read(broker: Broker, topic: str, partitions: int, *, count: int, seconds: float = PATIENCE) -> list[Record]:
    """All records of a topic: at least `count` of them within the time, and whatever is there by then."""
    lighten_consumers()
    consumer: Any = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        everything = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(everything)
        await consumer.seek_to_beginning()
        found: list[Record] = []
        async with asyncio.timeout(seconds):
            while len(found) < count:
                for records in (await consumer.getmany(*everything, timeout_ms=200)).values():
                    found += records
        for records in (await consumer.getmany(*everything, timeout_ms=300)).values():
            found += records
        return found
    finally:
        await consumer.stop()


def sources(results: Iterable[Record]) -> list[str]:
    return [dict(record.headers)[RESULT_SOURCE_HEADER].decode() for record in results]
