"""What is written to a topic: one open batch and one sender for each partition, and nothing else calls `send_batch`.

Whatever is appended while the previous batch is under way goes into the next one, so batches grow with the load and
nobody waits for a linger. A batch handed to Kafka is never given up while the process lives: idempotent batches do
not expire, and a second producer would publish beside them. If Kafka refuses one for good, the process ends.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError
from aiokafka.producer.message_accumulator import BatchBuilder

from pipeline.kafka.broker import Requests
from pipeline.kafka.lease import Lease
from pipeline.messages.delivery import Result
from pipeline.metrics import Metrics

_COUNT_SECONDS = 10.0
UNSENT_BYTES = 6 * 1024**2
"""Most bytes of results that Kafka has not acknowledged (process, topic), divided among the partitions: more would only
be older and in the way."""
_LEAST_SHARE = 384 * 1024

Fail = Callable[[str, BaseException], None]


class Receipt(Protocol):
    """Who is told that records were written."""

    def acknowledged(self, count: int, low: int) -> None:
        """`count` records appended for it lie at or after offset `low`."""


def waits(requested_at: Sequence[int], now: float) -> list[float]:
    """Seconds from each timestamp (ms) until now (ms).

    A producer's clock may be ahead, and -1 is Kafka's word for no timestamp: both count as 0, or they spoil the sum.
    """
    return [(now - at) / 1000 if 0 <= at <= now else 0.0 for at in requested_at]


class _Batch:
    __slots__ = ("builder", "count", "octets", "receipts", "requested_at")

    def __init__(self, builder: BatchBuilder) -> None:
        self.builder = builder
        self.count = 0
        self.octets = 0
        self.receipts: list[tuple[Receipt, int]] = []
        self.requested_at: list[int] = []
        """The timestamps of the requests that are answered in it."""


class Lane:
    """One partition of an output topic.

    `end` is the offset after the last record known to be written: acknowledged to us, or found by a scan. Whatever is
    appended from now on will lie at or after it.
    """

    def __init__(self, sink: Sink, partition: int) -> None:
        self.end = 0
        self.topic_id: str | None = None
        """The topic that `end` belongs to, where the broker gives ids."""
        self.octets = 0
        """Bytes appended and not acknowledged."""
        self._sink = sink
        self._partition = partition
        self._batches: deque[_Batch] = deque()
        self._task: asyncio.Task[None] | None = None
        self._waits_for_lease = False
        self._held_back: deque[Callable[[], object]] = deque()
        self._turn_is_due = False

    @property
    def sending(self) -> bool:
        """Something is on its way: to be waited for, however long Kafka takes."""
        return self._task is not None

    @property
    def has_room(self) -> bool:
        """Whether more may be made for this partition. One that cannot be written holds its own share and no more."""
        return self.octets < max(_LEAST_SHARE, UNSENT_BYTES // self._sink.lanes)

    def when_room(self, go_on: Callable[[], object]) -> None:
        """Call `go_on` now, or, in the order they came, when Kafka has acknowledged enough."""
        if self.has_room and not self._held_back:
            go_on()
        else:
            self._held_back.append(go_on)

    def _let_go_on(self) -> None:
        # Each in a turn of the loop of its own: what one makes takes room, and what one raises is its own fault.
        if self._held_back and not self._turn_is_due:
            self._turn_is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        if self._held_back and self.has_room:
            go_on = self._held_back.popleft()
            self._let_go_on()
            go_on()

    def extend(self, records: Sequence[Result], receipt: Receipt) -> None:
        """Append records to the open batch. `receipt` is told when they are written."""
        now = int(time.time() * 1000)
        batch = self._batches[-1] if self._batches else self._new_batch()
        appended = octets = 0
        for record in records:
            key, value, headers = record.key, record.value, record.headers
            if batch.builder.append(timestamp=now, key=key, value=value, headers=headers) is None:
                # Full: a batch takes no more after it once said so. The first record of a batch always fits.
                self._tally(batch, appended, octets, receipt)
                batch, appended, octets = self._new_batch(), 0, 0
                batch.builder.append(timestamp=now, key=key, value=value, headers=headers)
            appended += 1
            octets += len(value)
            if record.requested_at is not None:
                batch.requested_at.append(record.requested_at)
        self._tally(batch, appended, octets, receipt)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._send(), name=f"send {self._sink.topic}-{self._partition}"
            )

    async def flush(self) -> None:
        """Wait until all that was appended is written. The caller gives the deadline, and ends the process then."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def discard(self) -> None:
        """Forget what Kafka was not given yet: nobody is told, so nothing of it is committed."""
        self._batches.clear()
        if self._task is not None and self._waits_for_lease:
            self._task.cancel()

    def _new_batch(self) -> _Batch:
        batch = _Batch(self._sink.producer.create_batch())
        self._batches.append(batch)
        return batch

    def _tally(self, batch: _Batch, count: int, octets: int, receipt: Receipt) -> None:
        if count:
            batch.count += count
            batch.octets += octets
            self.octets += octets
            batch.receipts.append((receipt, count))

    async def _send(self) -> None:
        try:
            while self._batches:
                await self._leased()
                batch = self._batches.popleft()
                if batch.count:
                    self._written(batch, await self._deliver(batch.builder))
        except Exception as error:  # noqa: BLE001 - boundary of the task: what Kafka refuses for good ends the process
            self._sink.fail(f"{self._sink.topic}-{self._partition} cannot be written", error)
        finally:
            self._task = None
            self.octets = sum(batch.octets for batch in self._batches)
            self._let_go_on()

    async def _leased(self) -> None:
        """What is written now must still be ours to write."""
        if self._sink.lease is not None and self._sink.lease.lapsed:
            self._waits_for_lease = True
            try:
                await self._sink.lease.valid()
            finally:
                self._waits_for_lease = False

    async def _deliver(self, builder: BatchBuilder) -> int:
        sink = self._sink
        started = time.perf_counter()
        builder.close()
        target = (sink.topic, self._partition)
        sink.requests.began(target)
        try:
            offset = await self._acknowledged(builder)
        except BaseException:
            # Cancelled, or refused for good: the process ends.
            sink.requests.dropped(target)
            raise
        sink.requests.answered(target)
        sink.seconds.observe(time.perf_counter() - started)
        return offset

    async def _acknowledged(self, builder: BatchBuilder) -> int:
        sink = self._sink
        while True:
            try:
                future = await sink.producer.send_batch(builder, sink.topic, partition=self._partition)
                break
            except KafkaTimeoutError:
                # The wait for a free slot timed out: nothing was queued, so asking again cannot write twice.
                sink.retries.inc()
        metadata = await future
        offset: int = metadata.offset
        return offset

    def _written(self, batch: _Batch, offset: int) -> None:
        # -1 after a duplicate sequence number: written, but nobody knows where. It never moves the end.
        low = self.end if offset < 0 else offset
        if offset >= 0:
            self.end = max(self.end, offset + batch.count)
        self.octets -= batch.octets
        self._sink.written.inc(batch.count)
        if batch.requested_at:
            self._sink.latency.observe_all(waits(batch.requested_at, time.time() * 1000))
        for receipt, count in batch.receipts:
            receipt.acknowledged(count, low)
        self._let_go_on()


class Sink:
    """The lanes of one output topic, made as they are needed."""

    def __init__(
        self, producer: AIOKafkaProducer, topic: str, *,
        partitions: int, metrics: Metrics, fail: Fail, lease: Lease | None = None, requests: Requests | None = None,
    ) -> None:  # fmt: skip
        """`lease` is that of the partitions whose results are written here; without one anybody may write.

        `requests` hears which batches Kafka has not acknowledged yet.
        """
        self.producer = producer
        self.topic = topic
        self.partitions = partitions
        """As many as were counted last: a topic may grow."""
        self.fail = fail
        self.lease = lease
        self.written = metrics.records_produced.labels(topic)
        self.seconds = metrics.produce_seconds.labels(topic)
        self.retries = metrics.produce_retries.labels(topic)
        self.latency = metrics.decide_latency
        self.requests = Requests() if requests is None else requests
        self._lanes: dict[int, Lane] = {}

    @property
    def lanes(self) -> int:
        """How many there are; at least one where it is asked."""
        return len(self._lanes)

    def lane(self, partition: int) -> Lane:
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = Lane(self, partition)
        return lane

    async def recount(self) -> bool:
        """Count the topic's partitions anew; False if no broker says how many there are.

        It is the producer that asks: it refuses what is for a partition it has not heard of itself.
        """
        client = self.producer.client
        # A client that follows no topic yet would ask for all that there are, now and ever after.
        client.add_topic(self.topic)
        try:
            async with asyncio.timeout(_COUNT_SECONDS):
                if not await client.force_metadata_update():
                    return False
                self.partitions = len(await self.producer.partitions_for(self.topic))
        except (KafkaError, TimeoutError):
            return False
        return True

    @property
    def sending(self) -> bool:
        return any(lane.sending for lane in self._lanes.values())

    async def flush(self) -> None:
        """Wait until everything appended so far, on every lane, is written."""
        for lane in list(self._lanes.values()):
            await lane.flush()
