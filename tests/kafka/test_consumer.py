"""The loop of a partition on Apache Kafka: every record once, in order, committed only when it is settled."""

from __future__ import annotations

from collections import defaultdict

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from pipeline.errors import Rejected
from pipeline.messages.delivery import Chunk
from tests.kafka.member import Echo, LateEcho, echoed, kafka_settings, member, produce, read, sources
from tests.support import Broker, TopicMaker, Topics


def numbered(count: int, partitions: int = 4) -> list[tuple[int, bytes, bytes]]:
    return [(number % partitions, b"user", b"%d" % number) for number in range(count)]


async def committed(taker: object, group: str, topics: Topics, partitions: int = 4) -> dict[int, OffsetAndMetadata]:
    tps = [TopicPartition(topics.decide_requests, number) for number in range(partitions)]
    offsets = await taker.list_consumer_group_offsets(group, partitions=tps)  # type: ignore[attr-defined]
    return {tp.partition: offset for tp, offset in offsets.items()}


@pytest.mark.asyncio
async def test_every_record_has_one_result_on_its_partition_and_is_committed(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics()
    await produce(kafka, own.decide_requests, numbered(20_000))
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: LateEcho()) as one:
        results = await read(kafka, own.decide_results, 4, count=20_000)
        await one.consumer.stop(polite=5)
        offsets = await committed(one.admin, f"{settings.group_id}.decide", own)
    assert len(results) == len(set(sources(results))) == 20_000
    assert {offset.offset for offset in offsets.values()} == {5_000}
    assert {offset.metadata for offset in offsets.values()} == {"floor=5000"}
    for result in results:
        assert dict(result.headers)["source"].split(b"-")[1] == b"%d" % result.partition


@pytest.mark.asyncio
async def test_results_of_records_at_hand_keep_the_order_of_the_requests(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics()
    await produce(kafka, own.decide_requests, numbered(5_000))
    async with member(kafka_settings(kafka, group_id=own.decide_requests), own, lambda _: Echo()):
        results = await read(kafka, own.decide_results, 4, count=5_000)
    by_partition: dict[int, list[int]] = defaultdict(list)
    for result in results:
        by_partition[result.partition].append(int(result.value or b""))
    assert all(values == sorted(values) for values in by_partition.values())


@pytest.mark.asyncio
async def test_an_unsettled_record_is_never_committed_and_fills_the_window(kafka: Broker, topics: TopicMaker) -> None:
    class Holds:
        """Keeps the record at offset 7 for ever and settles the rest."""

        def __init__(self) -> None:
            self.taken = 0

        def handle(self, chunk: Chunk) -> None:
            self.taken += len(chunk.records)
            chunk.publish([echoed(record) for record in chunk.records if record.offset != 7])

    own = await topics(partitions=1)
    await produce(kafka, own.decide_requests, numbered(3_000, 1))
    settings = kafka_settings(kafka, group_id=own.decide_requests, chunk_records=100)
    holds = Holds()
    async with member(settings, own, lambda _: holds, partitions=1, window=500) as one:
        await read(kafka, own.decide_results, 1, count=499)
        assert holds.taken == 500
        offsets = await committed(one.admin, f"{settings.group_id}.decide", own, 1)
        assert offsets[0] == OffsetAndMetadata(0, "floor=0 unclean=1")


@pytest.mark.asyncio
async def test_what_is_rejected_is_a_dead_letter_with_its_bytes_and_origin(kafka: Broker, topics: TopicMaker) -> None:
    class Refuses:
        def handle(self, chunk: Chunk) -> None:
            for record in chunk.records:
                chunk.reject(record, Rejected("not_json", "no JSON at all"))

    own = await topics()
    await produce(kafka, own.decide_requests, [(2, b"user", b"\xff{")])
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: Refuses()) as one:
        (letter,) = await read(kafka, own.dead_letters, 4, count=1)
        await one.consumer.stop(polite=5)
        offsets = await committed(one.admin, f"{settings.group_id}.decide", own)
    headers = {name: value.decode() for name, value in letter.headers}
    assert (letter.key, letter.value) == (b"user", b"\xff{")
    assert headers["pipeline-source"] == f"{own.decide_requests}-2-0"
    assert headers["pipeline-reason"] == "not_json"
    assert offsets[2].offset == 1


@pytest.mark.asyncio
async def test_two_members_share_the_work_and_a_rebalance_repeats_nothing(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics()
    await produce(kafka, own.decide_requests, numbered(10_000))
    settings = kafka_settings(kafka, group_id=own.decide_requests, chunk_records=50)
    async with member(settings, own, lambda _: LateEcho(0.2)) as one:
        await read(kafka, own.decide_results, 4, count=500)
        async with member(settings, own, lambda _: LateEcho(0.2)) as two:
            await two.consumer.assigned.wait()
            await produce(kafka, own.decide_requests, numbered(10_000))
            results = await read(kafka, own.decide_results, 4, count=20_000, seconds=60)
            assert [len(one.consumer.partitions), len(two.consumer.partitions)] == [2, 2]
    assert len(results) == len(set(sources(results))) == 20_000
