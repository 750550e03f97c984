"""The loop of a partition on Apache Kafka: every record once, in order, committed only when it is settled."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.structs import OffsetAndMetadata

from pipeline.errors import Rejected
from pipeline.kafka import commits
from pipeline.kafka.commit_note import CommitNote
from pipeline.kafka.partition import Opening
from pipeline.kafka.sink import UNSENT_BYTES
from pipeline.messages.delivery import Chunk, Result
from tests.kafka.member import (
    Echo,
    LateEcho,
    Member,
    commit,
    echoed,
    kafka_settings,
    member,
    produce,
    read,
    sources,
    topic_ids,
    value_of,
)
from tests.patience import PATIENCE, stretched
from tests.settled import until
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
        await one.consumer.stop(seconds=7)
        offsets = await committed(one.admin, f"{settings.group_id}.decide", own)
        ids = await topic_ids(one.admin, [own.decide_requests, own.decide_results])
    assert len(results) == len(set(sources(results))) == 20_000
    assert {offset.offset for offset in offsets.values()} == {5_000}
    assert {CommitNote.decode(offset.metadata).floor for offset in offsets.values()} == {5_000}
    assert {CommitNote.decode(offset.metadata).unclean for offset in offsets.values()} == {0}
    written = {(note.topic, note.results) for note in (CommitNote.decode(at.metadata) for at in offsets.values())}
    assert written == {(ids[own.decide_requests], ids[own.decide_results])}
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
        by_partition[result.partition].append(int(value_of(result)))
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
        # The window, and less than one poll of 100 more: polls are small at first and do not divide it evenly.
        assert 500 <= holds.taken < 600
        offsets = await committed(one.admin, f"{settings.group_id}.decide", own, 1)
        assert offsets[0].offset == 0
        assert offsets[0].metadata.startswith("floor=0 unclean=1 topic=")


@pytest.mark.asyncio
async def test_no_more_is_taken_while_results_wait_for_kafka_and_each_answer_of_it_lets_the_next_be(
    kafka: Broker, topics: TopicMaker
) -> None:
    """Also where no chunk is complete: of each the first record is settled at the very end."""

    class Large:
        def __init__(self) -> None:
            self.taken = self.most = 0
            self.first: list[tuple[Chunk, Result]] = []

        def handle(self, chunk: Chunk) -> None:
            self.taken += len(chunk.records)
            results = [
                Result(
                    b"user", b'{"timestamp":%d,"x":"%s"}' % (record.timestamp, b"x" * 100_000), echoed(record).headers
                )
                for record in chunk.records
            ]
            self.first.append((chunk, results[0]))
            if results[1:]:
                chunk.publish(results[1:])
            self.most = max(self.most, *(partition.result_octets for partition in one.consumer.partitions))

    own = await topics()
    await produce(kafka, own.decide_requests, numbered(400))
    large = Large()
    # No heartbeat comes between, which would have the member look again as well.
    rare = {"session_timeout": 9 * PATIENCE, "heartbeat_interval": 3 * PATIENCE}
    settings = kafka_settings(kafka, group_id=own.decide_requests, chunk_records=10, **rare)
    async with member(settings, own, lambda _: large) as one:
        await until(lambda: large.taken == 400)
        for chunk, result in large.first:
            chunk.publish([result])
        await read(kafka, own.decide_results, 4, count=400)
    assert UNSENT_BYTES // 4 <= large.most < UNSENT_BYTES // 4 + 10 * 100_000


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
        await one.consumer.stop(seconds=7)
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


@pytest.mark.asyncio
async def test_a_release_during_an_opening_commits_nothing(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=2)
    await produce(kafka, own.decide_requests, numbered(100, 2))
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: Echo(), partitions=2) as first:
        await read(kafka, own.decide_results, 2, count=100)
        await first.consumer.stop(seconds=7)
    async with member(settings, own, lambda _: Echo(), partitions=2) as second:
        opening, opened = asyncio.Event(), second.takeover.open

        async def never(partitions: Collection[TopicPartition]) -> dict[TopicPartition, Opening]:
            await opened(partitions)
            opening.set()
            await asyncio.Event().wait()
            return {}

        second.takeover.open = never  # type: ignore[method-assign]
        await asyncio.wait_for(opening.wait(), PATIENCE)
        await second.consumer.stop(seconds=7)
        offsets = await committed(second.admin, f"{settings.group_id}.decide", own, 2)
    assert {offset.offset for offset in offsets.values()} == {50}


@pytest.mark.asyncio
async def test_an_idle_partition_does_not_lag_behind_markers_of_transactions(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=1)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=own.decide_requests)
    await producer.start()
    async with producer.transaction():
        await producer.send_and_wait(own.decide_requests, b"1", b"user", partition=0)
    await producer.stop()
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    lag = {"role": "decide", "topic": own.decide_requests, "partition": "0"}
    async with member(settings, own, lambda _: Echo(), partitions=1) as one:
        await read(kafka, own.decide_results, 1, count=1)
        await until(lambda: one.metrics.registry.get_sample_value("decision_pipeline_lag_records", lag) == 0)
        await one.consumer.stop(seconds=7)
        offsets = await committed(one.admin, f"{settings.group_id}.decide", own, 1)
    assert offsets[0].offset == 2
    (only,) = one.consumer.stuck(time.monotonic() + 3600, after=60)
    assert "has not polled" in only


@pytest.mark.asyncio
async def test_a_member_that_polls_is_not_said_to_be_silent(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=1)
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: Echo(), partitions=1) as one:
        await asyncio.wait_for(one.consumer.assigned.wait(), PATIENCE)
        before = one.consumer.polled_at
        await produce(kafka, own.decide_requests, numbered(1, 1))
        await read(kafka, own.decide_results, 1, count=1)
        assert one.consumer.polled_at > before
        silence = 60 + settings.rebalance_timeout
        assert one.consumer.stuck(before + silence, after=60) == []
        assert len(one.consumer.stuck(one.consumer.polled_at + silence + 1, after=60)) == 1


@pytest.mark.asyncio
async def test_a_member_whose_heartbeats_fail_publishes_nothing_until_they_succeed(
    kafka: Broker, topics: TopicMaker
) -> None:
    own = await topics(partitions=1)
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: Echo(), partitions=1) as one:
        await asyncio.wait_for(one.consumer.assigned.wait(), PATIENCE)
        coordinator: Any = one.client._coordinator
        heartbeat = coordinator._do_heartbeat
        one.lease.renew(time.monotonic() - 3600)

        async def unanswered() -> bool:
            one.lease.renew(time.monotonic() - 3600)
            return False

        coordinator._do_heartbeat = unanswered
        one.lease.renew(time.monotonic() - 3600)
        await produce(kafka, own.decide_requests, numbered(10, 1))
        with pytest.raises(TimeoutError):
            await read(kafka, own.decide_results, 1, count=1, seconds=3)
        coordinator._do_heartbeat = heartbeat
        await read(kafka, own.decide_results, 1, count=10)


@pytest.mark.asyncio
async def test_suspects_go_one_at_a_time_across_the_chunks_of_several_polls(kafka: Broker, topics: TopicMaker) -> None:
    class Late:
        """Settles each record a moment later, and counts how many it holds at once."""

        def __init__(self) -> None:
            self.held = self.most = 0

        def handle(self, chunk: Chunk) -> None:
            self.held += len(chunk.records)
            self.most = max(self.most, self.held)
            asyncio.get_running_loop().call_later(0.002, self._settle, chunk)

        def _settle(self, chunk: Chunk) -> None:
            self.held -= len(chunk.records)
            chunk.publish([echoed(record) for record in chunk.records])

    own = await topics(partitions=1)
    await produce(kafka, own.decide_requests, numbered(60, 1))
    settings = kafka_settings(kafka, group_id=own.decide_requests, chunk_records=10)
    tp = TopicPartition(own.decide_requests, 0)
    async with member(settings, own, lambda _: Echo(), partitions=1) as one:
        await asyncio.wait_for(one.consumer.assigned.wait(), PATIENCE)
        await read(kafka, own.decide_results, 1, count=60)
        await one.consumer.stop(seconds=7)
    await produce(kafka, own.decide_requests, numbered(60, 1))
    await commit(kafka, f"{settings.group_id}.decide", tp, OffsetAndMetadata(60, "floor=60 unclean=3"))
    late = Late()
    async with member(settings, own, lambda _: late, partitions=1):
        results = await read(kafka, own.decide_results, 1, count=120)
    assert len(set(sources(results))) == 120
    assert late.most == 1


@pytest.mark.asyncio
async def test_a_record_that_cannot_be_read_is_a_pointer_and_its_neighbours_have_results(
    kafka: Broker, topics: TopicMaker
) -> None:
    class Latin(str):
        """A header name as only a client of another language writes it."""

        __slots__ = ()

        def encode(self, *_: object) -> bytes:
            return b"\xff"

    own = await topics(partitions=1)
    await produce(kafka, own.decide_requests, numbered(3, 1))
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    batch = producer.create_batch()
    batch._builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, 0, 1024 * 1024)
    batch.append(timestamp=None, key=b"user", value=b"{}", headers=[(Latin("x"), b"1")])
    await (await producer.send_batch(batch, own.decide_requests, partition=0))
    await producer.stop()
    await produce(kafka, own.decide_requests, numbered(3, 1))
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: Echo(), partitions=1) as one:
        results = await read(kafka, own.decide_results, 1, count=6)
        (letter,) = await read(kafka, own.dead_letters, 1, count=1)
        await one.consumer.stop(seconds=7)
        offsets = await committed(one.admin, f"{settings.group_id}.decide", own, 1)
    assert sorted(int(source.rpartition("-")[2]) for source in sources(results)) == [0, 1, 2, 4, 5, 6]
    headers = {name: value.decode() for name, value in letter.headers}
    assert (headers["pipeline-reason"], headers["pipeline-source-offset"]) == ("undecodable", "3")
    assert offsets[0].offset == 7


class Keeps:
    """Publishes the record at offset 0 and keeps the others, as while a service does not answer."""

    def __init__(self) -> None:
        self.kept: set[tuple[int, int]] = set()

    def handle(self, chunk: Chunk) -> None:
        for record in chunk.records:
            if record.offset == 0:
                chunk.publish([echoed(record)])
            else:
                self.kept.add((record.partition, record.offset))


class Gate:
    """Holds back what a member hands to Kafka until it is opened."""

    def __init__(self, one: Member) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()
        self._send: Any = one.producer.send_batch
        one.producer.send_batch = self._send_later  # type: ignore[method-assign]

    def open(self) -> None:
        self._opened.set()

    async def _send_later(self, *arguments: Any, **named: Any) -> Any:
        self.reached.set()
        await self._opened.wait()
        return await self._send(*arguments, **named)


@pytest.mark.asyncio
@pytest.mark.parametrize("order", [1, -1])
# With no time to be polite the stop gives back too, else it waits for the hook to have done it.
@pytest.mark.parametrize("polite", [60, 0])
# Put out of the group meanwhile, a member commits nothing and forgets its partitions sooner.
@pytest.mark.parametrize("evicted", [False, True])
async def test_a_stop_and_a_hook_that_give_partitions_back_at_once_end_both_and_soon(
    kafka: Broker, topics: TopicMaker, order: int, polite: float, evicted: bool
) -> None:
    own = await topics(partitions=2)
    await produce(kafka, own.decide_requests, numbered(4, 2))
    settings = kafka_settings(kafka, group_id=own.decide_requests, chunk_records=1, commit_interval=60)
    keeps = Keeps()
    async with member(settings, own, lambda _: keeps, partitions=2) as one:
        gate = Gate(one)
        await asyncio.wait_for(gate.reached.wait(), PATIENCE)
        await until(lambda: keeps.kept == {(0, 1), (1, 1)})
        # A heartbeat would wake whoever waits, sooner or later.
        one.lease.on_renewal = lambda: None
        owned = one.client.assignment()
        if evicted:
            one.client.assignment = frozenset  # type: ignore[method-assign]
        # As aiokafka calls the hook from its coordinator while a signal begins the stop.
        calls = [one.consumer.on_partitions_revoked(owned), one.consumer.stop(seconds=polite / 0.75)]
        both = [asyncio.create_task(call) for call in calls[::order]]
        await until(lambda: not any(partition.open for partition in one.consumer.partitions))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in both), "what was handed to Kafka is waited for"
        gate.open()
        async with asyncio.timeout(stretched(10)):
            await asyncio.gather(*both)
        assert not one.consumer.partitions
        offsets = await committed(one.admin, f"{settings.group_id}.decide", own, 2)
    assert {offset.offset for offset in offsets.values()} == ({0} if evicted else {1})


@pytest.mark.asyncio
async def test_partitions_that_are_assigned_during_a_stop_are_not_opened(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=1)
    await produce(kafka, own.decide_requests, numbered(2, 1))
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    keeps = Keeps()
    async with member(settings, own, lambda _: keeps, partitions=1) as one:
        await until(lambda: keeps.kept)
        (before,) = one.consumer.partitions
        stopping = asyncio.create_task(one.consumer.stop(seconds=0.7))
        await until(lambda: not before.open)
        await one.consumer.on_partitions_assigned([before.tp])
        assert list(one.consumer.partitions) == [before]
        await stopping
        assert not one.consumer.partitions
        await one.consumer.on_partitions_assigned([before.tp])
        assert not one.consumer.partitions


class Commit:
    """Commits of a member that Kafka does not answer any more."""

    def __init__(self, one: Member) -> None:
        self.begun = asyncio.Event()
        one.client.commit = self  # type: ignore[method-assign,assignment]

    async def __call__(self, points: object) -> None:
        self.begun.set()
        await asyncio.Event().wait()


@pytest.mark.asyncio
async def test_a_stop_does_not_wait_behind_a_hook_whose_commit_is_not_answered(
    kafka: Broker, topics: TopicMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_COMMIT_SECONDS", 10 * PATIENCE)
    own = await topics(partitions=1)
    settings = kafka_settings(kafka, group_id=own.decide_requests, commit_interval=60)
    # Alone the hook would have a quarter of the drain for its commit.
    async with member(settings, own, lambda _: Echo(), partitions=1, drain_seconds=10 * PATIENCE) as one:
        await until(lambda: any(partition.open for partition in one.consumer.partitions))
        (partition,) = one.consumer.partitions
        partition.commit_due = True
        commit = Commit(one)
        hook = asyncio.create_task(one.consumer.on_partitions_revoked([partition.tp]))
        await asyncio.wait_for(commit.begun.wait(), PATIENCE)
        began = time.monotonic()
        await one.consumer.stop(seconds=2)
        assert time.monotonic() - began < stretched(2)
        assert hook.done()
        assert not one.consumer.partitions


@pytest.mark.asyncio
async def test_a_stop_does_not_wait_behind_a_hook_that_waits_for_a_service(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=1)
    settings = kafka_settings(kafka, group_id=own.decide_requests, handover_timeout=15)
    async with member(settings, own, lambda _: Echo(), partitions=1) as one:
        await until(lambda: any(partition.open for partition in one.consumer.partitions))
        flushing = asyncio.Event()

        async def flush() -> None:
            flushing.set()
            await asyncio.Event().wait()

        one.consumer.role = replace(one.consumer.role, flush=flush)
        hook = asyncio.create_task(one.consumer.on_partitions_revoked(one.client.assignment()))
        await asyncio.wait_for(flushing.wait(), PATIENCE)
        began = time.monotonic()
        await one.consumer.stop(seconds=2)
        assert time.monotonic() - began < stretched(2)
        await hook


@pytest.mark.asyncio
async def test_a_hook_gives_a_commit_that_is_not_answered_a_quarter_of_the_drain(
    kafka: Broker, topics: TopicMaker
) -> None:
    own = await topics(partitions=1)
    settings = kafka_settings(kafka, group_id=own.decide_requests, commit_interval=60)
    async with member(settings, own, lambda _: Echo(), partitions=1, drain_seconds=1) as one:
        await until(lambda: any(partition.open for partition in one.consumer.partitions))
        (partition,) = one.consumer.partitions
        partition.commit_due = True
        Commit(one)
        async with asyncio.timeout(stretched(2)):
            await one.consumer.on_partitions_revoked([partition.tp])
        assert not one.consumer.partitions


@pytest.mark.asyncio
async def test_no_partition_is_opened_anew_while_all_are_given_back(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=2)
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: Echo(), partitions=2) as one:
        await until(lambda: [partition.open for partition in one.consumer.partitions] == [True, True])
        reopening, ended, go_on = one.consumer._reopening, asyncio.Event(), asyncio.Event()
        cancel = reopening.cancel

        async def late() -> None:
            await cancel()
            ended.set()
            await go_on.wait()

        reopening.cancel = late  # type: ignore[method-assign]
        owned = list(one.consumer.partitions)
        hook = asyncio.create_task(one.consumer.on_partitions_revoked(one.client.assignment()))
        await asyncio.wait_for(ended.wait(), PATIENCE)
        # The watch looks just now, and the topic is another.
        owned[0].topic_id = "x" * 22
        await reopening.look(seconds=PATIENCE)
        assert list(one.consumer.partitions) == owned
        assert not reopening._tasks
        go_on.set()
        await hook
