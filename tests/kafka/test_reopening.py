"""Reopenings of partitions by themselves, with a fake Kafka; and results with fewer partitions on Apache Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaTimeoutError
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from pipeline.kafka import openings, reopening
from pipeline.kafka.commits import Commits
from pipeline.kafka.openings import Openings
from pipeline.kafka.partition import Opening, Partition
from pipeline.kafka.records import Record
from pipeline.kafka.reopening import Reopening
from pipeline.kafka.watch import Watch
from pipeline.messages.delivery import Chunk
from pipeline.metrics import Metrics
from tests.kafka.member import Echo, Member, kafka_settings, member, produce, read, sources
from tests.settled import until
from tests.support import Broker, TopicMaker, recreate_topic

REQUESTS, RESULTS = "requests", "results"


class Lane:
    """A results partition; what is on its way there arrives once `arrived` is set."""

    def __init__(self) -> None:
        self.end = self.octets = 0
        self.topic_id: str | None = None
        self.arrived = asyncio.Event()
        self.arrived.set()

    @property
    def sending(self) -> bool:
        return not self.arrived.is_set()

    async def flush(self) -> None:
        await self.arrived.wait()


class Results:
    """A results topic of `count` partitions, known to have `partitions`."""

    topic = RESULTS

    def __init__(self, partitions: int) -> None:
        self.partitions = self.count = partitions
        self.answers = True

    async def recount(self) -> bool:
        await asyncio.sleep(0)
        if self.answers:
            self.partitions = self.count
        return self.answers


class Kafka:
    """A group's consumer, and the brokers that a takeover asks."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {REQUESTS: "requests-1", RESULTS: "results-1"}
        self.results: Results | None = None
        self.committed: list[dict[int, int]] = []
        self.commit_failures = 0
        self.opened: list[list[int]] = []
        self.lost_at: list[tuple[int, int, int]] = []
        self.sought: dict[int, int] = {}
        self.fault: BaseException | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self.owned: set[TopicPartition] = set()

    # The consumer

    def pause(self, *partitions: TopicPartition) -> None:
        assert set(partitions) <= self.owned

    def resume(self, *partitions: TopicPartition) -> None:
        assert set(partitions) <= self.owned

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if tp not in self.owned:
            raise IllegalStateError(f"{tp} is not assigned")
        self.sought[tp.partition] = offset

    def assignment(self) -> Collection[TopicPartition]:
        return frozenset(self.owned)

    async def commit(self, points: Mapping[TopicPartition, Any]) -> None:
        await asyncio.sleep(0)
        if self.commit_failures:
            self.commit_failures -= 1
            raise CommitFailedError
        self.committed.append({tp.partition: point.offset for tp, point in points.items()})

    # The takeover

    async def topic_ids(self) -> Mapping[str, str]:
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        return self.ids

    async def first_offset(self, tp: TopicPartition) -> int:
        self.meanwhile()
        await asyncio.sleep(0)
        return 10

    def is_of(self, partition: Partition, ids: Mapping[str, str]) -> bool:
        pairs = [(partition.topic_id, ids.get(REQUESTS)), (partition.results_id, ids.get(RESULTS))]
        return all(None in pair or pair[0] == pair[1] for pair in pairs)

    def lost(self, tp: TopicPartition, offset: int, first: int) -> None:
        self.lost_at.append((tp.partition, offset, first))

    async def open(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, Opening]:
        await asyncio.sleep(0)
        self.opened.append(sorted(tp.partition for tp in partitions))
        if self.results is not None and any(tp.partition >= self.results.count for tp in partitions):
            raise KafkaTimeoutError
        return {tp: Opening(0, topic_id=self.ids.get(REQUESTS), results_id=self.ids.get(RESULTS)) for tp in partitions}


class Holds:
    """Settles nothing by itself."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    def handle(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)


class Bench:
    """Partitions 0 to 3 of a role, opened on the topics as they are at first."""

    def __init__(self) -> None:
        self.kafka = Kafka()
        self.results = self.kafka.results = Results(4)
        self.partitions: dict[TopicPartition, Partition] = {}
        self.lanes: dict[int, Lane] = {}
        self.handler = Holds()
        self.wake = asyncio.Event()
        self.failures: list[BaseException] = []
        self.tasks: list[asyncio.Task[None]] = []
        consumer: Any = self.kafka
        takeover: Any = self.kafka
        results: Any = self.results
        commits = Commits(consumer, watch=Watch("decide", [REQUESTS], metrics=Metrics(CollectorRegistry())))
        self.reopening = Reopening(
            "decide", self.partitions, consumer=consumer, takeover=takeover, results=results, commits=commits,
            openings=Openings("decide", consumer=consumer, takeover=takeover, results=results, commits=commits),
            seconds=0.2, owned=self.owned, start=self.start, opened=self.wake.set, wake=self.wake,
        )  # fmt: skip
        for number in range(4):
            tp = TopicPartition(REQUESTS, number)
            self.kafka.owned.add(tp)
            partition = self.partitions[tp] = self.owned(tp)
            partition.begin(Opening(0, topic_id="requests-1", results_id="results-1"))
            partition.open = True

    def owned(self, tp: TopicPartition) -> Partition:
        lane: Any = self.lanes.setdefault(tp.partition, Lane())
        unused: Any = None
        return Partition(
            tp, handler=self.handler, dead_letters=unused, lane=lane, window=100, weight=0,
            settled=lambda chunk: self.wake.set(), acknowledged=self.wake.set,
        )  # fmt: skip

    def start(self, loop: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await loop()
            except Exception as error:  # noqa: BLE001 - as the consumer, which ends the process then
                self.failures.append(error)

        self.tasks.append(asyncio.create_task(guarded(), name=name))
        return self.tasks[-1]

    def partition(self, number: int) -> Partition:
        return self.partitions[TopicPartition(REQUESTS, number)]

    def take(self, number: int, *offsets: int) -> None:
        self.partition(number).take(
            [Record(REQUESTS, number, offset, 1_700_000_000_000, 1, b"user", b"{}", ()) for offset in offsets]
        )

    @property
    def open(self) -> list[int]:
        return sorted(tp.partition for tp, partition in self.partitions.items() if partition.open)

    @property
    def blocked(self) -> list[int]:
        return sorted(tp.partition for tp, partition in self.partitions.items() if partition.blocked)

    async def look(self) -> None:
        await self.reopening.look(seconds=1)


@pytest_asyncio.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(openings, "_LOOK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(openings, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(reopening, "_COUNT_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(reopening, "_RETRY_SECONDS", 0.01)
    one = Bench()
    yield one
    for task in one.tasks:
        task.cancel()
    await asyncio.gather(*one.tasks, return_exceptions=True)


@pytest.mark.asyncio
async def test_results_with_fewer_partitions_block_those_beyond_and_no_other(bench: Bench) -> None:
    bench.kafka.ids[RESULTS], bench.results.count = "results-2", 2
    await bench.look()
    await until(lambda: (bench.open, bench.blocked) == ([0, 1], [2, 3]))
    assert bench.kafka.opened == [[0, 1]], "nothing is asked of a results partition that is not there"
    bench.results.count = 4
    await until(lambda: (bench.open, bench.blocked) == ([0, 1, 2, 3], []))


@pytest.mark.asyncio
async def test_a_scan_that_fails_as_results_partitions_are_gone_blocks_those_beyond(bench: Bench) -> None:
    bench.kafka.ids[RESULTS], bench.results.count = "results-2", 2
    bench.results.answers = False
    await bench.look()
    await until(lambda: len(bench.kafka.opened) == 2)
    assert bench.kafka.opened == [[0, 1, 2, 3]] * 2, "the old number stands while nobody counts"
    bench.results.answers = True
    await until(lambda: (bench.open, bench.blocked) == ([0, 1], [2, 3]))


@pytest.mark.asyncio
@pytest.mark.parametrize("when", ["before", "during"])
async def test_results_on_their_way_to_a_partition_that_is_gone_end_the_process(bench: Bench, when: str) -> None:
    bench.kafka.ids[RESULTS] = "results-2"
    bench.take(2, 0)
    if when == "before":
        bench.results.count = 2
        bench.lanes[2].arrived.clear()
    await bench.look()
    if when == "during":
        await until(lambda: bench.open == [])
        bench.lanes[2].arrived.clear()
        bench.results.count = 2
    await until(lambda: bool(bench.failures))
    (error,) = bench.failures
    assert isinstance(error, LookupError)
    assert str(error) == (
        "results was created again with fewer partitions (2), and results are on their way to partition 2"
    )


@pytest.mark.asyncio
async def test_results_on_their_way_are_waited_for_on_all_partitions_at_once(bench: Bench) -> None:
    for lane in bench.lanes.values():
        lane.arrived.clear()
    bench.kafka.ids[RESULTS] = "results-2"
    await bench.look()
    for number in (3, 2, 1):
        bench.lanes[number].arrived.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert bench.kafka.opened == []
    bench.lanes[0].arrived.set()
    await until(lambda: bench.open == [0, 1, 2, 3])


@pytest.mark.asyncio
async def test_a_reopening_that_does_not_end_keeps_no_later_one_from_beginning(bench: Bench) -> None:
    bench.kafka.ids[RESULTS], bench.results.count = "results-2", 2
    await bench.look()
    await until(lambda: (bench.open, bench.blocked) == ([0, 1], [2, 3]))
    bench.kafka.ids[REQUESTS] = "requests-2"
    await bench.look()
    await until(lambda: bench.open == [0, 1])
    assert {bench.partition(number).topic_id for number in (0, 1)} == {"requests-2"}
    # The log ends before the position: the partition is asked nothing more until it was opened anew.
    before = len(bench.kafka.opened)
    await bench.reopening.out_of_range({TopicPartition(REQUESTS, 1): 50}, seconds=1)
    assert bench.open == [0]
    await until(lambda: bench.open == [0, 1])
    assert bench.kafka.opened[before:] == [[1]]
    await bench.reopening.cancel()
    assert all(task.done() for task in bench.tasks)
    bench.results.count = 4
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert bench.open == [0, 1], "nothing is opened of partitions given back"


@pytest.mark.asyncio
async def test_nothing_is_read_anew_before_the_position_was_committed(bench: Bench) -> None:
    bench.take(1, 0, 1, 2)
    bench.kafka.commit_failures = 3
    bench.kafka.ids[RESULTS] = "results-2"
    await bench.look()
    bench.handler.chunks[0].done(3)
    await until(lambda: bench.open == [0, 1, 2, 3])
    assert bench.kafka.commit_failures == 0
    assert bench.kafka.committed[0] == {0: 0, 1: 3, 2: 0, 3: 0}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("topic", "level", "event"),
    [
        (RESULTS, "warning", "records not finished in time are read again"),
        (REQUESTS, "error", "records of a deleted topic were not finished in time and are given up"),
    ],
)
async def test_records_not_finished_in_time_are_told_as_lost_only_where_they_are(
    bench: Bench, topic: str, level: str, event: str
) -> None:
    bench.take(1, 0, 1)
    bench.kafka.ids[topic] = f"{topic}-2"
    with capture_logs() as logs:
        await bench.look()
        await until(lambda: bench.open == [0, 1, 2, 3])
    told = [(line["log_level"], line["event"], line["records"]) for line in logs if "in time" in line["event"]]
    assert told == [(level, event, 2)]


@pytest.mark.asyncio
async def test_ids_not_known_at_the_opening_are_learned_and_committed(bench: Bench) -> None:
    one = bench.partition(1)
    one.begin(Opening(0))
    one.commit_due = False
    assert one.commit_point()[1] == "floor=0 unclean=1"
    bench.kafka.ids.clear()
    await bench.look()
    assert not one.commit_due
    for topic, topic_id in ((REQUESTS, "requests-1"), (RESULTS, "results-1")):
        bench.kafka.ids[topic] = topic_id
        one.commit_due = False
        await bench.look()
        assert one.commit_due
    assert one.commit_point()[1] == "floor=0 unclean=1 topic=requests-1 results=results-1"
    assert bench.lanes[1].topic_id == "results-1"
    one.commit_due = False
    await bench.look()
    assert not one.commit_due
    bench.kafka.ids[RESULTS] = "results-2"
    await bench.look()
    assert bench.open == []


@pytest.mark.asyncio
@pytest.mark.parametrize("given_back", ["closed", "forgotten", "owned anew"])
async def test_a_partition_given_back_meanwhile_is_not_set_to_the_start_of_its_log(
    bench: Bench, given_back: str
) -> None:
    tp = TopicPartition(REQUESTS, 1)

    def release() -> None:
        bench.partition(1).open = False
        if given_back == "forgotten":
            bench.kafka.owned.discard(tp)
            del bench.partitions[tp]
        elif given_back == "owned anew":
            bench.partitions[tp] = bench.owned(tp)
            bench.partitions[tp].open = True

    bench.kafka.meanwhile = release
    with capture_logs() as logs:
        await bench.reopening.out_of_range({tp: 5}, seconds=1)
    assert (bench.kafka.sought, bench.kafka.lost_at, logs) == ({}, [], [])


@pytest.mark.asyncio
async def test_an_outage_while_a_position_is_out_of_range_is_told_once_and_waited_out(bench: Bench) -> None:
    tp = TopicPartition(REQUESTS, 1)
    with capture_logs() as logs:
        for fault in (KafkaTimeoutError(), KafkaTimeoutError(), TimeoutError()):
            bench.kafka.fault = fault
            await bench.reopening.out_of_range({tp: 5}, seconds=1)
        assert bench.open == [0, 1, 2, 3]
        bench.kafka.fault = None
        await bench.reopening.out_of_range({tp: 5}, seconds=1)
    assert bench.kafka.sought == {1: 10}
    assert [(line["log_level"], line["partitions"], line["reason"]) for line in logs] == [
        ("warning", "requests 1", "KafkaTimeoutError")
    ]


@pytest.mark.asyncio
async def test_a_reopening_that_takes_long_is_unhealthy_unless_kafka_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(reopening, "time", SimpleNamespace(monotonic=lambda: now))
    for lane in bench.lanes.values():
        lane.arrived.clear()
    bench.kafka.ids[RESULTS] = "results-2"
    await bench.look()
    assert bench.reopening.stuck(now + 59, after=60) == []
    now += 61
    assert bench.reopening.stuck(now, after=60) == ["requests 0-3: opening anew takes 61 s"]
    bench.kafka.fault = KafkaTimeoutError()
    await bench.look()
    assert bench.reopening.stuck(now, after=60) == []
    bench.kafka.fault = None
    assert bench.reopening.stuck(now + 61, after=60) != []
    # A partition without a results partition is blocked, which has a metric of its own.
    bench.results.count = 4
    for lane in bench.lanes.values():
        lane.arrived.set()
    await until(lambda: bench.open == [0, 1, 2, 3])
    assert bench.reopening.stuck(now + 1000, after=60) == []
    await bench.look()
    for partition in bench.partitions.values():
        partition.open = False
    assert bench.reopening.stuck(now + 1000, after=60) == [], "closed for a stop"


def opened(one: Member) -> list[int]:
    return sorted(partition.tp.partition for partition in one.consumer.partitions if partition.open)


@pytest.mark.asyncio
async def test_an_idle_member_whose_results_have_fewer_partitions_works_on_those_that_it_can(
    kafka: Broker, topics: TopicMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openings, "_LOOK_AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(Watch, "interval", 0.2)
    own = await topics(partitions=4)
    settings = kafka_settings(kafka, group_id=own.decide_requests)
    async with member(settings, own, lambda _: Echo()) as taken:
        await until(lambda: opened(taken) == [0, 1, 2, 3])
        await recreate_topic(kafka.bootstrap_servers, own.decide_results, 2, had=4)
        await until(lambda: sorted(one.tp.partition for one in taken.consumer.partitions if one.blocked) == [2, 3])
        await produce(kafka, own.decide_requests, [(number, b"user", b"1") for number in range(4)])
        results = await read(kafka, own.decide_results, 2, count=2)
        assert sorted(sources(results)) == [f"{own.decide_requests}-{number}-0" for number in (0, 1)]
        assert opened(taken) == [0, 1]
        await until(lambda: taken.value("partitions_blocked", role="decide") == 2)
