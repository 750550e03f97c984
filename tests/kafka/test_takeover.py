"""Opening a partition on Apache Kafka: where it begins, and which requests are answered already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.structs import OffsetAndMetadata
from prometheus_client import CollectorRegistry

from pipeline.kafka import client
from pipeline.kafka.partition import Opening
from pipeline.kafka.takeover import Takeover
from pipeline.kafka.topic_ids import TopicIds
from pipeline.metrics import Metrics
from tests.kafka.member import commit, kafka_settings, produce, topic_ids
from tests.patience import PATIENCE
from tests.support import Broker, TopicMaker, Topics, recreate_topic

GROUP = "decide"


class Openings:
    """One partition of requests, its results, and what a new owner finds."""

    def __init__(self, kafka: Broker, topics: Topics, admin: AIOKafkaAdminClient, scanner: AIOKafkaConsumer) -> None:
        self.kafka = kafka
        self.scanner = scanner
        self.admin = admin
        self.topics = topics
        self.metrics = Metrics(CollectorRegistry())
        self.group = f"{topics.decide_requests}.{GROUP}"
        self.tp = TopicPartition(topics.decide_requests, 0)
        self._takeover = Takeover(
            group_id=self.group, admin=admin, scanner=scanner,
            topic_ids=TopicIds(
                admin, role="decide", topics=[topics.decide_requests, topics.decide_results], metrics=self.metrics
            ),
            results_topic=topics.decide_results, role="decide",
            topics=[topics.decide_requests], metrics=self.metrics,
        )  # fmt: skip

    async def requests(self, count: int) -> None:
        await produce(self.kafka, self.topics.decide_requests, [(0, b"user", b"{}") for _ in range(count)])

    async def results(self, *offsets: int, value: bytes = b'{"timestamp":7}') -> None:
        settings = kafka_settings(self.kafka)
        producer = await client.start_client(client.producer(settings))
        try:
            for offset in offsets:
                source = f"{self.topics.decide_requests}-0-{offset}".encode()
                await producer.send(
                    self.topics.decide_results, value, b"user", partition=0, headers=[("source", source)]
                )
            await producer.flush()
        finally:
            await producer.stop()

    async def commit(self, offset: int, metadata: str) -> None:
        await commit(self.kafka, self.group, self.tp, OffsetAndMetadata(offset, metadata))

    async def open(self) -> Opening:
        return (await self._takeover.open([self.tp]))[self.tp]

    def recreated(self, topic: str) -> float:
        labels = {"role": "decide", "topic": topic}
        return self.metrics.registry.get_sample_value("decision_pipeline_topics_recreated_total", labels) or 0

    async def id_of(self, topic: str) -> str:
        """Of a topic that may just have been made: the broker knows it a moment later."""
        async with asyncio.timeout(20):
            while not (ids := await topic_ids(self.admin, [topic])):  # noqa: ASYNC110 - a broker is asked
                await asyncio.sleep(0.02)
        return ids[topic]

    async def recreate(self, topic: str) -> None:
        await recreate_topic(self.kafka.bootstrap_servers, topic, 1, message_timestamp_type="LogAppendTime")

    def lost(self) -> float:
        labels = {"role": "decide", "topic": self.topics.decide_requests}
        return self.metrics.registry.get_sample_value("decision_pipeline_offsets_out_of_range_total", labels) or 0


async def coordinated(admin: AIOKafkaAdminClient) -> None:
    """Wait until a new broker has made its topic of offsets."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await admin.find_coordinator(GROUP)
            except GroupCoordinatorNotAvailableError:
                await asyncio.sleep(0.1)
            else:
                return


@pytest_asyncio.fixture
async def openings(kafka: Broker, topics: TopicMaker) -> AsyncIterator[Openings]:
    own = await topics(partitions=1)
    settings = kafka_settings(kafka)
    admin = await client.start_client(client.admin(settings))
    scanner = await client.start_client(client.scanner(settings))
    await coordinated(admin)
    yield Openings(kafka, own, admin, scanner)
    await scanner.stop()
    await admin.close()


@pytest.mark.asyncio
async def test_a_new_group_begins_at_the_log_start_with_nothing_answered(openings: Openings) -> None:
    await openings.requests(3)
    opening = await openings.open()
    assert (opening.position, dict(opening.recovered or {})) == (0, {})


@pytest.mark.asyncio
async def test_without_any_commit_what_was_published_is_found_by_time(openings: Openings) -> None:
    await openings.requests(5)
    await openings.results(0, 1, 3)
    opening = await openings.open()
    assert opening.position == 0
    assert sorted(opening.recovered or ()) == [0, 1, 3]
    assert opening.results_end == 3


@pytest.mark.asyncio
async def test_the_floor_of_the_commit_says_where_to_read(openings: Openings) -> None:
    await openings.requests(6)
    await openings.results(0, 1, 2, 4)
    await openings.commit(2, "floor=2")
    opening = await openings.open()
    assert opening.position == 2
    assert opening.scan_floor == 2
    assert sorted(opening.recovered or ()) == [2, 4]


@pytest.mark.asyncio
async def test_a_commit_moved_by_hand_has_no_floor_and_is_found_by_time(openings: Openings) -> None:
    await openings.requests(6)
    await openings.results(0, 1, 2)
    await openings.commit(1, "")
    opening = await openings.open()
    assert opening.position == 1
    assert sorted(opening.recovered or ()) == [1, 2]


@pytest.mark.asyncio
async def test_a_floor_before_the_log_start_means_the_log_start(openings: Openings) -> None:
    await openings.requests(4)
    await openings.results(0, 1, 2)
    await openings.admin.delete_records({TopicPartition(openings.topics.decide_results, 0): RecordsToDelete(2)})
    await openings.commit(0, "floor=0")
    opening = await openings.open()
    assert opening.scan_floor == 2
    assert sorted(opening.recovered or ()) == [2]


@pytest.mark.asyncio
async def test_a_position_before_the_log_start_is_lost_and_said_so(openings: Openings) -> None:
    await openings.requests(4)
    await openings.commit(1, "floor=0")
    await openings.admin.delete_records({openings.tp: RecordsToDelete(3)})
    opening = await openings.open()
    assert opening.position == 3
    assert openings.lost() == 1


@pytest.mark.asyncio
async def test_a_position_after_the_log_end_is_lost_and_said_so(openings: Openings) -> None:
    await openings.requests(2)
    await openings.commit(9, "floor=0")
    opening = await openings.open()
    assert opening.position == 0
    assert openings.lost() == 1


@pytest.mark.asyncio
async def test_an_offset_of_a_topic_that_is_gone_means_nothing_in_the_new_one(openings: Openings) -> None:
    requests, results = openings.topics.decide_requests, openings.topics.decide_results
    before = await openings.id_of(requests)
    assert len(before) == 22
    await openings.recreate(requests)
    await openings.requests(30)
    now = await openings.id_of(requests)
    # As a worker commits that has not noticed: the offset is within the new log.
    await openings.commit(20, f"floor=0 topic={before} results={await openings.id_of(results)}")
    opening = await openings.open()
    assert (opening.position, opening.topic_id) == (0, now)
    assert (openings.recreated(requests), openings.recreated(results), openings.lost()) == (1, 0, 0)
    assert (await openings.open()).position == 0
    assert openings.recreated(requests) == 1, "it is said once"
    await openings.commit(20, f"floor=0 topic={now}")
    assert (await openings.open()).position == 20


@pytest.mark.asyncio
async def test_a_floor_of_results_that_are_gone_means_nothing_in_the_new_ones(openings: Openings) -> None:
    requests, results = openings.topics.decide_requests, openings.topics.decide_results
    before = await openings.id_of(results)
    await openings.requests(6)
    await openings.recreate(results)
    await openings.results(2, 3, 5)
    # Within the new log, and beyond two results that it would hide.
    await openings.commit(2, f"floor=2 topic={await openings.id_of(requests)} results={before}")
    opening = await openings.open()
    assert (opening.position, opening.results_id) == (2, await openings.id_of(results))
    assert sorted(opening.recovered or ()) == [2, 3, 5]
    assert (openings.recreated(requests), openings.recreated(results)) == (0, 1)


@pytest.mark.asyncio
async def test_a_floor_beyond_the_end_of_the_results_is_found_by_time(openings: Openings) -> None:
    await openings.requests(4)
    await openings.results(0, 1)
    await openings.commit(0, "floor=50")
    assert sorted((await openings.open()).recovered or ()) == [0, 1]


@pytest.mark.asyncio
async def test_of_a_result_the_time_of_its_request_is_read_and_what_names_none_answers_nothing(
    openings: Openings,
) -> None:
    await openings.requests(4)
    await openings.results(0, value=b'{"requestId":"\\"timestamp\\":5","source":"s-0-0","timestamp":11,"decisions":[]}')
    await openings.results(0, value=b'{"timestamp":12,"error":"no such key"}')
    for value in (b"{}", b"", b'{"timestamp":"13"}', b'{"timestamp":14.5}', b"not JSON", b"[" * 5000):
        await openings.results(1, value=value)
    await openings.results(2, value=b'{"timestamp":-1}')
    assert (await openings.open()).recovered == {0: (11, 12), 2: (-1,)}


@pytest.mark.asyncio
async def test_a_topic_that_does_not_exist_has_no_id(openings: Openings) -> None:
    requests = openings.topics.decide_requests
    await openings.id_of(requests)
    ids = await topic_ids(openings.admin, [requests, "no.such.topic"])
    assert list(ids) == [requests]


@pytest.mark.asyncio
async def test_results_of_other_topics_and_committed_requests_are_not_counted(openings: Openings) -> None:
    await openings.requests(3)
    settings = kafka_settings(openings.kafka)
    producer = await client.start_client(client.producer(settings))
    for headers in ([], [("source", b"elsewhere-0-1")], [("source", openings.tp.topic.encode() + b"-1-2")]):
        value = b'{"timestamp":7}'
        await producer.send_and_wait(openings.topics.decide_results, value, b"u", partition=0, headers=headers)
    await producer.stop()
    await openings.results(0)
    await openings.commit(1, "floor=0")
    assert dict((await openings.open()).recovered or {}) == {}


@pytest.mark.asyncio
async def test_of_a_long_backlog_and_many_results_only_a_little_is_unpacked_at_a_time(
    openings: Openings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await openings.requests(4000)
    await openings.results(*range(2500))
    unpacked: list[int] = []
    getmany = openings.scanner.getmany

    async def counted(*partitions: TopicPartition, **limits: int) -> dict[TopicPartition, list[Any]]:
        fetched = await getmany(*partitions, **limits)
        unpacked.append(sum(len(records) for records in fetched.values()))
        return fetched

    monkeypatch.setattr(openings.scanner, "getmany", counted)
    opening = await openings.open()
    assert sorted(opening.recovered or {}) == list(range(2500))
    assert max(unpacked) <= 1000
    assert unpacked[0] == 1, "the first request alone says how old the oldest result can be"
    assert openings.scanner.paused() == openings.scanner.assignment()
