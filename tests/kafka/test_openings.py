"""Topics that grow under a running member, on Apache Kafka: what is blocked, for how long, and what opens it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest
from aiokafka import TopicPartition
from structlog.testing import capture_logs

from pipeline.kafka import client, openings
from pipeline.kafka.partition import Opening
from tests.kafka.member import Echo, Member, echoed, kafka_settings, member, produce, read, sources, value_of
from tests.patience import PATIENCE
from tests.settled import until
from tests.support import Broker, TopicMaker, add_partitions

WAITS = "a results topic needs at least as many partitions as its requests: this partition waits"
GOES_ON = "the results topic has grown: this partition waits no longer"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openings, "_LOOK_AGAIN_SECONDS", 0.05)


def blocked(one: Member) -> list[int]:
    return sorted(partition.tp.partition for partition in one.consumer.partitions if partition.blocked)


def opened(one: Member) -> list[int]:
    return sorted(partition.tp.partition for partition in one.consumer.partitions if partition.open)


async def see_partitions(one: Member, count: int) -> None:
    """Have the member look at the topics' partitions now, as it does twice a minute, until it owns so many."""
    async with asyncio.timeout(PATIENCE):
        while len(one.consumer.partitions) < count:
            await one.client._client.force_metadata_update()
            await asyncio.sleep(0.1)


class Counts:
    """What a member hears of its results topic: nothing until `answers`, the truth from then on."""

    def __init__(self, one: Member) -> None:
        self.asked = 0
        self.answers = asyncio.Event()
        self._count = one.results.recount
        one.results.recount = self  # type: ignore[method-assign]

    async def __call__(self) -> bool:
        self.asked += 1
        return await self._count() if self.answers.is_set() else False


@pytest.mark.asyncio
async def test_partitions_added_to_the_results_and_then_to_the_requests_are_never_blocked(
    kafka: Broker, topics: TopicMaker
) -> None:
    own = await topics(partitions=2)
    await produce(kafka, own.decide_requests, [(number, b"user", b"old") for number in range(2)])
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    with capture_logs() as logs:
        async with member(settings, own, lambda _: Echo(), partitions=2) as one:
            await read(kafka, own.decide_results, 2, count=2)
            await add_partitions(kafka.bootstrap_servers, own.decide_results, 4)
            await add_partitions(kafka.bootstrap_servers, own.decide_requests, 4)
            await see_partitions(one, 4)
            await produce(kafka, own.decide_requests, [(number, b"user", b"new") for number in range(4)])
            results = await read(kafka, own.decide_results, 4, count=6)
            assert opened(one) == [0, 1, 2, 3]
    assert sorted(sources(results)) == sorted(
        f"{own.decide_requests}-{source}" for source in ("0-0", "0-1", "1-0", "1-1", "2-0", "3-0")
    )
    assert {record.partition for record in results if value_of(record) == b"new"} == {0, 1, 2, 3}
    assert not [line for line in logs if line["event"] in (WAITS, GOES_ON)]


@pytest.mark.asyncio
async def test_each_blocked_partition_goes_on_when_its_own_results_partition_is_there(
    kafka: Broker, topics: TopicMaker
) -> None:
    own = await topics(partitions=4, results_partitions=2)
    await produce(kafka, own.decide_requests, [(number, b"user", b"%d" % number) for number in range(4)])
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    with capture_logs() as logs:
        async with member(settings, own, lambda _: Echo(), partitions=2) as one:
            await read(kafka, own.decide_results, 2, count=2)
            await until(lambda: blocked(one) == [2, 3])
            # Who waits for nothing is ready: a blocked partition must not hold up a roll-out.
            assert one.consumer.assigned.is_set()
            for count, left in ((3, [3]), (4, [])):
                await add_partitions(kafka.bootstrap_servers, own.decide_results, count)
                await until(lambda left=left: blocked(one) == left)  # type: ignore[misc]
                await read(kafka, own.decide_results, count, count=count)
            assert opened(one) == [0, 1, 2, 3]
            results = await read(kafka, own.decide_results, 4, count=4)
    assert sorted((record.partition, value_of(record)) for record in results) == [(n, b"%d" % n) for n in range(4)]
    told = [(line["event"], line["partition"], line["partitions"]) for line in logs if "results" in line]
    assert {*told[:2]} == {(WAITS, 2, 2), (WAITS, 3, 2)}
    assert told[2:] == [(GOES_ON, 2, 3), (GOES_ON, 3, 4)]


@pytest.mark.asyncio
async def test_what_was_published_of_a_blocked_partition_is_not_published_again(
    kafka: Broker, topics: TopicMaker
) -> None:
    own = await topics(partitions=2, results_partitions=1)
    await produce(kafka, own.decide_requests, [(1, b"user", b"first"), (1, b"user", b"second")])
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: Echo(), partitions=1) as slow:
        await until(lambda: blocked(slow) == [1])
        counts = Counts(slow)
        await add_partitions(kafka.bootstrap_servers, own.decide_results, 2)
        # Another owner, which began later and saw the partition at once: it published, and died before its commit.
        producer = await client.start_client(client.producer(settings))
        (first, _) = await read(kafka, own.decide_requests, 2, count=2)
        published = echoed(first)
        await producer.send_and_wait(
            own.decide_results, published.value, b"user", partition=1, headers=list(published.headers)
        )
        await producer.stop()
        counts.answers.set()
        results = await read(kafka, own.decide_results, 2, count=2)
        assert slow.value("results_recovered_total") == 1
    assert sorted(map(value_of, results)) == [b"first", b"second"]


@pytest.mark.asyncio
async def test_a_broker_that_does_not_answer_blocks_nothing_and_is_asked_again(
    kafka: Broker, topics: TopicMaker
) -> None:
    own = await topics(partitions=2)
    await produce(kafka, own.decide_requests, [(number, b"user", b"1") for number in range(2)])
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    with capture_logs() as logs:
        # It began when the results had one partition.
        async with member(settings, own, lambda _: Echo(), partitions=1) as one:
            counts = Counts(one)
            await until(lambda: counts.asked >= 3)
            assert (opened(one), blocked(one)) == ([0], [])
            counts.answers.set()
            await read(kafka, own.decide_results, 2, count=2)
            assert (opened(one), blocked(one)) == ([0, 1], [])
    told = [line["log_level"] for line in logs if "cannot be counted" in line["event"] or "results" in line]
    assert told == ["warning"]


@pytest.mark.asyncio
async def test_nothing_is_asked_or_opened_of_a_blocked_partition_that_was_given_back(
    kafka: Broker, topics: TopicMaker
) -> None:
    own = await topics(partitions=2, results_partitions=1)
    await produce(kafka, own.decide_requests, [(1, b"user", b"1")])
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: Echo(), partitions=1) as one:
        await until(lambda: blocked(one) == [1])
        counts = Counts(one)
        await until(lambda: counts.asked)
        owned = one.client.assignment()
        await one.consumer.on_partitions_revoked(owned)
        await add_partitions(kafka.bootstrap_servers, own.decide_results, 2)
        counts.answers.set()
        counts.asked = 0
        with pytest.raises(TimeoutError):
            await read(kafka, own.decide_results, 2, count=1, seconds=1)
        assert counts.asked == 0
        assert TopicPartition(own.decide_requests, 1) in one.client.paused()


@pytest.mark.asyncio
async def test_a_partition_given_back_while_it_is_unblocked_is_not_resumed(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=2, results_partitions=1)
    await produce(kafka, own.decide_requests, [(1, b"user", b"1")])
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: Echo(), partitions=1) as one:
        await until(lambda: blocked(one) == [1])
        scanned, go_on, scan = asyncio.Event(), asyncio.Event(), one.takeover.open

        async def late(partitions: Collection[TopicPartition]) -> dict[TopicPartition, Opening]:
            found = await scan(partitions)
            scanned.set()
            await go_on.wait()
            return found

        one.takeover.open = late  # type: ignore[method-assign]
        await add_partitions(kafka.bootstrap_servers, own.decide_results, 2)
        await asyncio.wait_for(scanned.wait(), PATIENCE)
        (waiting,) = [partition for partition in one.consumer.partitions if partition.tp.partition == 1]
        await one.consumer.on_partitions_revoked(one.client.assignment())
        go_on.set()
        with pytest.raises(TimeoutError):
            await read(kafka, own.decide_results, 2, count=1, seconds=1)
        assert not waiting.open
        assert waiting.tp in one.client.paused()
        offsets = await one.admin.list_consumer_group_offsets(f"{settings.group_id}.decide", partitions=[waiting.tp])
        assert offsets[waiting.tp].offset == -1, "the next owner would begin where nobody was"
