"""Output partitions: one sender each, batches that grow with the load, receipts that never promise too much."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder

from pipeline.kafka import client
from pipeline.kafka.broker import Requests
from pipeline.kafka.lease import Lease
from pipeline.kafka.sink import UNSENT_BYTES, Sink
from pipeline.messages.delivery import Result
from pipeline.settings import KafkaSettings
from tests.handlers.chunks import new_metrics, value
from tests.kafka.member import kafka_settings, read
from tests.patience import PATIENCE
from tests.settled import until
from tests.support import Broker, TopicMaker, add_partitions


class Producer(AIOKafkaProducer):
    """Makes real batches and hands them to nobody: the test says when and where each was written."""

    def __init__(self, max_batch_size: int) -> None:
        super().__init__(acks="all", enable_idempotence=True, max_batch_size=max_batch_size)  # type: ignore[no-untyped-call]
        self.batches: list[tuple[int, list[bytes]]] = []
        self.futures: list[asyncio.Future[Any]] = []
        self.time_outs = 0

    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> asyncio.Future[Any]:
        assert batch.closed(), "nothing may be added to a batch that was handed over"
        if self.time_outs:
            self.time_outs -= 1
            raise KafkaTimeoutError
        self.batches.append((partition, [b""] * batch.record_count()))
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    @property
    def sizes(self) -> list[int]:
        return [len(records) for _, records in self.batches]

    def written(self, number: int, offset: int) -> None:
        self.futures[number].set_result(SimpleNamespace(offset=offset))


class Receipts:
    """What one writer was told, in order."""

    def __init__(self, log: list[tuple[str, int, int]], name: str) -> None:
        self.log = log
        self.name = name

    def acknowledged(self, count: int, low: int) -> None:
        self.log.append((self.name, count, low))


class Bench:
    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.metrics = new_metrics()
        self.failures: list[tuple[str, BaseException]] = []
        self.log: list[tuple[str, int, int]] = []
        self.now = 1000.0
        self.lease = Lease(5, clock=lambda: self.now)
        self.sink = Sink(
            producer, "results", partitions=4, metrics=self.metrics, fail=lambda *why: self.failures.append(why),
            lease=self.lease, requests=Requests(patience=0.0),
        )  # fmt: skip

    def receipt(self, name: str) -> Receipts:
        return Receipts(self.log, name)

    def lapse(self) -> None:
        self.now += 60

    async def handed_over(self, batches: int) -> None:
        await until(lambda: len(self.producer.batches) == batches)


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    producer = Producer(4096)
    yield Bench(producer)
    await client.stop_client(producer)


def results(count: int, size: int = 10) -> Sequence[Result]:
    return [Result(b"key", b"x" * size, [("source", b"requests-0-%d" % number)]) for number in range(count)]


@pytest.mark.asyncio
async def test_what_comes_while_a_batch_is_under_way_goes_into_the_next_one(bench: Bench) -> None:
    lane = bench.sink.lane(2)
    lane.extend(results(1), bench.receipt("a"))
    await bench.handed_over(1)
    for name in "bcd":
        lane.extend(results(2), bench.receipt(name))
    assert lane.sending
    assert bench.producer.sizes == [1], "one sender: nothing is handed over beside what is under way"
    bench.producer.written(0, 100)
    await bench.handed_over(2)
    bench.producer.written(1, 101)
    await lane.flush()
    assert bench.producer.batches[0][0] == 2
    assert bench.producer.sizes == [1, 6]
    # Each is told an offset that none of its records lies before.
    assert bench.log == [("a", 1, 100), ("b", 2, 101), ("c", 2, 101), ("d", 2, 101)]
    assert lane.end == 107
    assert not lane.sending


def requested(*seconds_ago: float) -> list[Result]:
    now = time.time() * 1000
    return [Result(b"key", b"x", [], int(now - 1000 * ago)) for ago in seconds_ago]


def latency(bench: Bench, part: str, **labels: str) -> float:
    return value(bench.metrics, f"decide_latency_seconds_{part}", **labels)


@pytest.mark.asyncio
async def test_each_request_counts_from_its_timestamp_until_its_result_was_acknowledged(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    lane.extend(requested(0.2, 7), bench.receipt("a"))
    await bench.handed_over(1)
    # Of the same poll, and acknowledged in another batch.
    lane.extend(requested(8, 45, 7000), bench.receipt("a"))
    assert latency(bench, "count") == 0, "nothing was acknowledged yet"
    bench.producer.written(0, 100)
    await bench.handed_over(2)
    assert latency(bench, "count") == 2
    assert (latency(bench, "bucket", le="0.1"), latency(bench, "bucket", le="5.0")) == (0, 1)
    bench.producer.written(1, 102)
    await lane.flush()
    found = [latency(bench, "bucket", le=le) for le in ("5.0", "10.0", "30.0", "60.0", "3600.0", "+Inf")]
    assert found == [1, 3, 3, 4, 4, 5]
    assert latency(bench, "sum") == pytest.approx(7060.2, abs=5)


@pytest.mark.asyncio
async def test_a_batch_counts_as_unanswered_from_its_handing_over_until_it_is_acknowledged(bench: Bench) -> None:
    def waits() -> bool:
        return bench.sink.requests.unanswered_since() is not None

    bench.producer.time_outs = 1
    assert not waits()
    lanes = [bench.sink.lane(number) for number in (0, 1)]
    for lane in lanes:
        lane.extend(results(1), bench.receipt("a"))
    await bench.handed_over(2)
    assert waits()
    bench.producer.written(0, 100)
    await until(lambda: not lanes[0].sending)
    assert waits(), "of the other partition"
    assert bench.sink.requests.answered_at > 0
    bench.producer.written(1, 100)
    await until(lambda: not lanes[1].sending)
    assert not waits()


@pytest.mark.asyncio
async def test_a_producers_clock_ahead_or_no_timestamp_counts_as_no_wait(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    lane.extend([*requested(-86_400, 0.5), Result(b"key", b"x", [], -1)], bench.receipt("a"))
    await bench.handed_over(1)
    bench.producer.written(0, 100)
    await lane.flush()
    assert (latency(bench, "count"), latency(bench, "bucket", le="0.005")) == (3, 2)
    assert 0.5 <= latency(bench, "sum") < 5


@pytest.mark.asyncio
async def test_what_answers_no_request_has_no_latency_and_a_batch_of_both_counts_the_requests(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    lane.extend([*results(3), *requested(0.5)], bench.receipt("a"))
    await bench.handed_over(1)
    bench.producer.written(0, 100)
    await lane.flush()
    assert latency(bench, "count") == 1


@pytest.mark.asyncio
async def test_a_result_that_starts_a_new_batch_counts_with_that_batch(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    large = [Result(b"key", b"x" * 1500, [], one.requested_at) for one in requested(*[1.0] * 10)]
    lane.extend(large, bench.receipt("a"))
    await bench.handed_over(1)
    bench.producer.written(0, 100)
    await bench.handed_over(2)
    assert latency(bench, "count") == bench.producer.sizes[0] < 10
    for number in range(1, 10):
        await until(lambda number=number: len(bench.producer.futures) > number or not lane.sending)  # type: ignore[misc]
        if len(bench.producer.futures) <= number:
            break
        bench.producer.written(number, 100 + number)
    await lane.flush()
    assert latency(bench, "count") == 10


@pytest.mark.asyncio
async def test_who_waits_for_room_goes_on_in_turn_when_kafka_has_taken_enough(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    gone_on: list[str] = []

    def makes_more() -> None:
        gone_on.append("first")
        lane.extend(results(1, size=UNSENT_BYTES), bench.receipt("b"))

    lane.when_room(lambda: gone_on.append("at once"))
    lane.extend(results(1, size=UNSENT_BYTES), bench.receipt("a"))
    await bench.handed_over(1)
    lane.when_room(makes_more)
    lane.when_room(lambda: gone_on.append("second"))
    assert (gone_on, lane.has_room) == (["at once"], False)
    bench.producer.written(0, 100)
    await bench.handed_over(2)
    assert gone_on == ["at once", "first"], "what the first made has taken the room again"
    bench.producer.written(1, 101)
    await until(lambda: gone_on == ["at once", "first", "second"])
    assert (lane.octets, lane.has_room) == (0, True)


@pytest.mark.asyncio
async def test_a_partition_that_cannot_be_written_leaves_the_others_their_room(bench: Bench) -> None:
    stuck, other = bench.sink.lane(0), bench.sink.lane(1)
    stuck.extend(results(1, size=UNSENT_BYTES), bench.receipt("a"))
    gone_on: list[str] = []
    other.when_room(lambda: gone_on.append("at once"))
    assert (stuck.has_room, other.has_room, gone_on) == (False, True, ["at once"])
    other.extend(results(1, size=UNSENT_BYTES // 2), bench.receipt("b"))
    assert not other.has_room, "what there is is shared"
    await bench.handed_over(2)
    bench.producer.written(0, 100)
    bench.producer.written(1, 100)
    await stuck.flush()


@pytest.mark.asyncio
async def test_where_there_is_room_for_all_they_go_on_whatever_one_of_them_raises(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    gone_on: list[str] = []
    told: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    lane.extend(results(1, size=UNSENT_BYTES), bench.receipt("a"))
    await bench.handed_over(1)

    def fails() -> None:
        raise LookupError

    lane.when_room(fails)
    lane.when_room(lambda: lane.when_room(partial(gone_on.append, "who asks late")))
    for name in "bc":
        lane.when_room(partial(gone_on.append, name))
    bench.producer.written(0, 100)
    await until(lambda: len(gone_on) == 3)
    assert gone_on == ["b", "c", "who asks late"]
    assert [type(error) for error in told] == [LookupError]
    await lane.flush()
    assert bench.failures == []


@pytest.mark.asyncio
async def test_of_very_many_partitions_each_has_room_for_some_results(bench: Bench) -> None:
    lane, *_ = [bench.sink.lane(partition) for partition in range(100)]
    lane.extend(results(1, size=300_000), bench.receipt("a"))
    assert lane.has_room
    lane.extend(results(1, size=100_000), bench.receipt("b"))
    assert not lane.has_room
    for number in range(2):
        await bench.handed_over(number + 1)
        bench.producer.written(number, number)
    await lane.flush()


@pytest.mark.asyncio
async def test_room_is_given_batch_by_batch(bench: Bench) -> None:
    """Not only when a lane has nothing left to send, which under load it always has."""
    lane = bench.sink.lane(0)
    gone_on: list[str] = []
    lane.extend(results(1, size=UNSENT_BYTES), bench.receipt("a"))
    await bench.handed_over(1)
    lane.extend(results(1), bench.receipt("b"))
    lane.when_room(lambda: gone_on.append("after one batch"))
    bench.producer.written(0, 100)
    await bench.handed_over(2)
    await until(lambda: gone_on == ["after one batch"])
    bench.producer.written(1, 101)
    await lane.flush()


@pytest.mark.asyncio
async def test_what_is_discarded_leaves_its_room(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    gone_on: list[str] = []
    bench.lapse()
    lane.extend(results(1, size=UNSENT_BYTES), bench.receipt("a"))
    lane.when_room(lambda: gone_on.append("later"))
    await asyncio.sleep(0)
    lane.discard()
    await lane.flush()
    await until(lambda: (lane.octets, gone_on) == (0, ["later"]))


@pytest.mark.asyncio
async def test_a_full_batch_is_cut_and_every_record_is_in_exactly_one(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    lane.extend(results(10, size=1000), bench.receipt("a"))
    lane.extend(results(1), bench.receipt("b"))
    offset = 0
    while sum(bench.producer.sizes) < 11:
        await until(lambda: len(bench.producer.batches) > len([f for f in bench.producer.futures if f.done()]))
        bench.producer.written(len(bench.producer.batches) - 1, offset)
        offset += bench.producer.sizes[-1]
    await lane.flush()
    assert bench.producer.sizes == [3, 3, 3, 2]
    assert bench.log == [("a", 3, 0), ("a", 3, 3), ("a", 3, 6), ("a", 1, 9), ("b", 1, 9)]
    assert value(bench.metrics, "records_produced_total", topic="results") == 11


@pytest.mark.asyncio
async def test_a_record_larger_than_a_batch_is_a_batch_alone(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    lane.extend([*results(1), *results(1, size=10_000), *results(1)], bench.receipt("a"))
    for number in range(3):
        await bench.handed_over(number + 1)
        bench.producer.written(number, number)
    await lane.flush()
    assert bench.producer.sizes == [1, 1, 1]
    assert [count for _, count, _ in bench.log] == [1, 1, 1]


@pytest.mark.asyncio
async def test_a_wait_for_a_slot_that_times_out_is_repeated_and_nothing_is_handed_over_twice(bench: Bench) -> None:
    bench.producer.time_outs = 3
    lane = bench.sink.lane(0)
    lane.extend(results(2), bench.receipt("a"))
    await bench.handed_over(1)
    bench.producer.written(0, 7)
    await lane.flush()
    assert bench.producer.sizes == [2]
    assert bench.log == [("a", 2, 7)]
    assert value(bench.metrics, "produce_retries_total", topic="results") == 3


@pytest.mark.asyncio
async def test_an_offset_nobody_knows_moves_no_end_and_promises_no_more_than_is_known(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    for number, offset in enumerate((50, -1, 60)):
        lane.extend(results(2), bench.receipt(str(number)))
        await bench.handed_over(number + 1)
        bench.producer.written(number, offset)
        await lane.flush()
    # The second batch lies somewhere after the first: at 52 or later.
    assert bench.log == [("0", 2, 50), ("1", 2, 52), ("2", 2, 60)]
    assert lane.end == 62


@pytest.mark.asyncio
async def test_an_end_found_by_a_scan_never_goes_back(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    lane.end = 500
    lane.extend(results(1), bench.receipt("a"))
    await bench.handed_over(1)
    bench.producer.written(0, 400)
    await lane.flush()
    assert lane.end == 500


@pytest.mark.asyncio
async def test_what_kafka_refuses_for_good_is_told_once_and_nobody_is_told_it_was_written(bench: Bench) -> None:
    lane = bench.sink.lane(3)
    lane.extend(results(1), bench.receipt("a"))
    await bench.handed_over(1)
    bench.producer.futures[0].set_exception(MessageSizeTooLargeError())
    await lane.flush()
    ((reason, error),) = bench.failures
    assert reason == "results-3 cannot be written"
    assert isinstance(error, MessageSizeTooLargeError)
    assert bench.log == []


@pytest.mark.asyncio
async def test_a_flush_that_is_given_up_leaves_the_batch_on_its_way(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    lane.extend(results(1), bench.receipt("a"))
    await bench.handed_over(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await lane.flush()
    assert lane.sending
    bench.producer.written(0, 0)
    await bench.sink.flush()
    assert bench.log == [("a", 1, 0)]


@pytest.mark.asyncio
async def test_bytes_are_counted_until_they_are_acknowledged(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    lane.extend(results(2), bench.receipt("a"))
    await bench.handed_over(1)
    lane.extend(results(3, size=1500), bench.receipt("b"))
    assert lane.octets == 2 * 10 + 3 * 1500
    left = []
    for number in range(3):
        await bench.handed_over(number + 1)
        left.append(lane.octets)
        bench.producer.written(number, 2 * number)
    async with asyncio.timeout(PATIENCE):
        await lane.flush()
    # Two of the large ones fill a batch.
    assert bench.producer.sizes == [2, 2, 1]
    assert left == [2 * 10 + 3 * 1500, 3 * 1500, 1500]
    assert lane.octets == 0


@pytest.mark.asyncio
async def test_nothing_is_handed_over_while_the_lease_has_lapsed(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    lane.extend(results(1), bench.receipt("a"))
    await bench.handed_over(1)
    lane.extend(results(1), bench.receipt("b"))
    bench.lapse()
    bench.producer.written(0, 0)
    await until(lambda: lane._waits_for_lease)
    lane.extend(results(1), bench.receipt("c"))
    bench.lease.renew(bench.now - 60)  # a heartbeat whose answer came too late
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.producer.sizes == [1]
    assert lane.sending
    bench.lease.renew()
    await bench.handed_over(2)
    # It waits for Kafka now and no longer for the lease: it can be discarded no more.
    lane.discard()
    await asyncio.sleep(0)
    bench.producer.written(1, 1)
    async with asyncio.timeout(PATIENCE):
        await lane.flush()
    assert bench.log == [("a", 1, 0), ("b", 1, 1), ("c", 1, 1)]


@pytest.mark.asyncio
async def test_what_waits_for_the_lease_can_be_discarded_and_the_lane_goes_on_afterwards(bench: Bench) -> None:
    bench.lapse()
    lane = bench.sink.lane(0)
    lane.extend(results(3, size=2000), bench.receipt("a"))
    await until(lambda: lane._waits_for_lease)
    lane.discard()
    async with asyncio.timeout(PATIENCE):
        await lane.flush()
    assert (lane.octets, lane.sending) == (0, False)
    bench.lease.renew()
    lane.extend(results(1), bench.receipt("b"))
    await bench.handed_over(1)
    bench.producer.written(0, 7)
    await lane.flush()
    # Who was discarded is not told anything, now or later.
    assert (bench.log, bench.producer.sizes, bench.failures) == ([("b", 1, 7)], [1], [])
    assert lane.octets == 0


@pytest.mark.asyncio
async def test_what_kafka_was_given_is_waited_for_and_only_the_rest_discarded(bench: Bench) -> None:
    lane = bench.sink.lane(0)
    lane.extend(results(1), bench.receipt("a"))
    await bench.handed_over(1)
    lane.extend(results(5, size=1000), bench.receipt("b"))
    bench.lapse()
    lane.discard()
    assert lane.sending
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await lane.flush()
    bench.producer.written(0, 3)
    async with asyncio.timeout(PATIENCE):
        await lane.flush()
    assert bench.log == [("a", 1, 3)]
    assert (bench.producer.sizes, lane.octets, lane.end) == ([1], 0, 4)


@pytest.mark.asyncio
async def test_without_a_lease_anybody_may_write(bench: Bench) -> None:
    letters = Sink(bench.producer, "letters", partitions=1, metrics=bench.metrics, fail=bench.sink.fail)
    letters.lane(0).extend(results(1), bench.receipt("a"))
    await bench.handed_over(1)
    bench.producer.written(0, 0)
    await letters.flush()
    assert bench.log == [("a", 1, 0)]


@pytest.mark.asyncio
async def test_partitions_do_not_wait_for_each_other(bench: Bench) -> None:
    for partition in range(3):
        bench.sink.lane(partition).extend(results(1), bench.receipt(str(partition)))
    await bench.handed_over(3)
    bench.producer.written(2, 0)
    await bench.sink.lane(2).flush()
    assert bench.log == [("2", 1, 0)]
    assert bench.sink.sending
    bench.producer.written(0, 0)
    bench.producer.written(1, 0)
    await bench.sink.flush()
    assert not bench.sink.sending


@pytest.mark.asyncio
async def test_on_a_broker_order_and_offsets_are_what_the_receipts_say(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=1)
    settings: KafkaSettings = kafka_settings(kafka)
    producer = await client.start_client(client.producer(settings))
    metrics = new_metrics()

    def fail(reason: str, error: BaseException) -> None:
        raise AssertionError(reason) from error

    sink = Sink(producer, own.decide_results, partitions=1, metrics=metrics, fail=fail)
    log: list[tuple[str, int, int]] = []
    numbered = [Result(b"key", b"%d" % number + b" " * 500, []) for number in range(5000)]
    for first in range(0, 5000, 50):
        sink.lane(0).extend(numbered[first : first + 50], Receipts(log, str(first)))
        await asyncio.sleep(0)
    await sink.flush()
    written = await read(kafka, own.decide_results, 1, count=5000)
    await producer.stop()
    assert [int(record.value or b"") for record in written] == list(range(5000))
    told: Counter[str] = Counter()
    for name, count, low in log:
        # The first record that this receipt is about lies where it was appended, in the order of appending.
        assert low <= int(name) + told[name]
        told[name] += count
    assert told.total() == 5000
    assert sink.lane(0).end == 5000
    batches = metrics.registry.get_sample_value(
        "decision_pipeline_produce_seconds_count", {"topic": own.decide_results}
    )
    assert batches is not None
    assert batches < 100, "what waits together is sent together"


@pytest.mark.asyncio
async def test_on_a_broker_a_batch_outlives_a_partition_without_a_leader(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=1)
    seconds = 1.0
    producer = await client.start_client(client.producer(kafka_settings(kafka, request_timeout=seconds)))
    await producer.partitions_for(own.decide_results)
    cluster: Any = producer.client.cluster
    leader = cluster.leader_for_partition
    failures: list[BaseException] = []
    sink = Sink(
        producer, own.decide_results, partitions=1, metrics=new_metrics(), fail=lambda _, error: failures.append(error)
    )
    log: list[tuple[str, int, int]] = []
    try:
        # What metadata says for a while after its broker went.
        cluster.leader_for_partition = lambda tp: -1
        sink.lane(0).extend(results(3), Receipts(log, "a"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5 * seconds):
                await sink.flush()
        assert (failures, log, sink.sending) == ([], [], True)
        cluster.leader_for_partition = leader
        async with asyncio.timeout(PATIENCE):
            await sink.flush()
        assert (failures, log) == ([], [("a", 3, 0)])
    finally:
        await producer.stop()


@pytest.mark.asyncio
async def test_on_a_broker_a_topic_that_grew_is_counted_by_its_producer_which_then_takes_more(
    kafka: Broker, topics: TopicMaker
) -> None:
    own = await topics(partitions=1)
    log: list[tuple[str, int, int]] = []
    producer = await client.start_client(client.producer(kafka_settings(kafka)))
    sink = Sink(producer, own.decide_results, partitions=1, metrics=new_metrics(), fail=never)
    try:
        assert (await sink.recount(), sink.partitions) == (True, 1)
        # Metadata of all topics of a cluster may be megabytes, each time.
        assert producer.client._topics == {own.decide_results}
        await add_partitions(kafka.bootstrap_servers, own.decide_results, 3)
        async with asyncio.timeout(PATIENCE):
            while sink.partitions < 3:
                assert await sink.recount()
                await asyncio.sleep(0.05)
        sink.lane(2).extend(results(3), Receipts(log, "a"))
        async with asyncio.timeout(PATIENCE):
            await sink.flush()
        assert log == [("a", 3, 0)]
    finally:
        await producer.stop()


@pytest.mark.asyncio
async def test_on_a_broker_a_count_that_nobody_answers_changes_nothing(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=1)
    producer = await client.start_client(client.producer(kafka_settings(kafka, request_timeout=1)))
    cluster: Any = producer.client
    try:
        absent = Sink(producer, f"{own.decide_results}-absent", partitions=1, metrics=new_metrics(), fail=never)
        assert (await absent.recount(), absent.partitions) == (False, 1)
        sink = Sink(producer, own.decide_results, partitions=1, metrics=new_metrics(), fail=never)
        assert await sink.recount()
        # What the client says of itself when it reaches no broker. It keeps what it knew.
        cluster._metadata_update = unreachable
        assert (await sink.recount(), sink.partitions) == (False, 1)
    finally:
        await producer.stop()


def never(reason: str, error: BaseException) -> None:
    raise AssertionError(reason) from error


async def unreachable(*_: object) -> bool:
    return False


@pytest.mark.asyncio
async def test_each_request_to_the_broker_is_preceded_by_a_look_at_the_clock(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=1)
    looks: list[int] = []
    written = 0
    producer = await client.start_client(
        client.producer(kafka_settings(kafka), before_send=lambda: looks.append(written))
    )
    try:
        for number in range(1, 4):
            await producer.send_and_wait(own.decide_results, b"{}", partition=0)
            assert looks.count(number - 1) >= 1, "a request went out unseen"
            written = number
    finally:
        await producer.stop()
