"""A role's member of its consumer group: the one poll, the assignment, the commits, the watch over lag.

The poll runs in a task of its own and is never cancelled while the consumer lives (aiokafka's count of polls would
leak, and with it the check for idle members). Commits, health and the stop have their own timers: none depends on
a poll returning. aiokafka swallows what its rebalance hooks raise and sends no heartbeat during the assigned one, so
that hook only starts the opening task, and both report through `fail`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import IllegalStateError, KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from pipeline.kafka import client
from pipeline.kafka.commits import Commits, ReleaseTime
from pipeline.kafka.dead_letters import DeadLetters
from pipeline.kafka.lease import Lease
from pipeline.kafka.openings import Openings
from pipeline.kafka.partition import Handler, InFlight, Partition
from pipeline.kafka.poll import Pace, poll
from pipeline.kafka.records import Record
from pipeline.kafka.reopening import Reopening
from pipeline.kafka.sink import Fail, Sink
from pipeline.kafka.takeover import Takeover
from pipeline.kafka.undecodable import UNDECODABLE, one_of_each, unread
from pipeline.kafka.watch import Watch
from pipeline.metrics import Metrics
from pipeline.settings import KafkaSettings

log = structlog.get_logger("pipeline.consumer")

_POLL_MS = 100
_RETRY_SECONDS = 0.5
# Asking a partition that does not exist brings nothing and costs nothing, but it is a poll: the member stays in its
# group, and what was prefetched of the full partitions is kept (`pause` would throw it away).
_NOWHERE = TopicPartition("", -1)


@dataclass(frozen=True, slots=True)
class Role:
    """What a group consumer needs to know of its role."""

    name: str
    topics: tuple[str, ...]
    window: int
    handler: Callable[[str], Handler]
    """Makes the handler of an owned partition of the topic."""
    weight: int = 1024
    """Bytes that a record under way takes besides its value, as measured."""
    flush: Callable[[], Awaitable[None]] | None = None
    """Sends what handlers have gathered for a service, and waits for it; None where nothing is gathered."""
    held: Callable[[], bool] = lambda: False
    """True while a service does not take what it is sent: partitions stand still and nobody is to blame."""


class GroupConsumer(ConsumerRebalanceListener):
    """One role's membership and its owned partitions."""

    def __init__(
        self,
        role: Role,
        *,
        consumer: AIOKafkaConsumer,
        lease: Lease,
        takeover: Takeover,
        results: Sink | None,
        dead_letters: DeadLetters,
        settings: KafkaSettings,
        drain_seconds: float,
        metrics: Metrics,
        fail: Fail,
    ) -> None:
        self.role = role
        self._consumer = consumer
        self._results = results
        self._dead_letters = dead_letters
        self._settings = settings
        self._release_time = ReleaseTime(drain_seconds)
        self._fail = fail
        self._partitions: dict[TopicPartition, Partition] = {}
        self._stopping = False
        self._stopped = asyncio.Event()
        self._wake = asyncio.Event()
        self._releasing = asyncio.Lock()
        self._opening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lease = lease
        self._pace = Pace(settings.chunk_records)
        self._watch = Watch(role.name, role.topics, metrics=metrics)
        self._commits = Commits(consumer, watch=self._watch)
        self._openings = Openings(
            role.name, consumer=consumer, takeover=takeover, results=results, commits=self._commits
        )
        self._reopening = self._made_reopening(takeover)
        self.polled_at = time.monotonic()
        self.assigned = asyncio.Event()
        """Set once partitions were assigned and opened for the first time (there may be none for this member, and a
        blocked one is not waited for)."""

    def _made_reopening(self, takeover: Takeover) -> Reopening:
        return Reopening(
            self.role.name, self._partitions, consumer=self._consumer, takeover=takeover, openings=self._openings,
            results=self._results, commits=self._commits, seconds=self._release_time.seconds, owned=self._owned,
            start=self._start, opened=self._opened, wake=self._wake,
        )  # fmt: skip

    @property
    def partitions(self) -> Collection[Partition]:
        return self._partitions.values()

    @property
    def octets(self) -> int:
        """Bytes of the records under way and of their results."""
        return sum([partition.octets + partition.result_octets for partition in self._partitions.values()])

    async def start(self) -> None:
        """Join the group. The consumer itself has been started; partitions open as they are assigned."""
        self._lease.follow(self._consumer)
        self._lease.on_renewal = self._wake.set
        self._commits.follow()
        self._consumer.subscribe(list(self.role.topics), listener=self)
        for name, loop in (("poll", self._poll), ("commit", self._commit_regularly), ("watch", self._watch_regularly)):
            self._start(loop, f"{self.role.name} {name}")

    def _start(self, loop: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guarded(loop), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, loop: Callable[[], Awaitable[None]]) -> None:
        try:
            await loop()
        except Exception as error:  # noqa: BLE001 - boundary of the task: a role without its loop must not live on
            if not self._stopping:
                self._fail(f"role {self.role.name} cannot go on", error)
            log.debug("a loop failed during the stop", role=self.role.name, reason=type(error).__name__)

    # The poll

    async def _poll(self) -> None:
        keepalive = self._settings.max_poll_interval / 4
        due = 0.0
        while not self._stopping:
            self._wake.clear()
            self.polled_at = time.monotonic()
            ready = self._askable()
            # What is settled wakes this loop many times a second: not every time is there something to ask for.
            if ready or self.polled_at >= due:
                due = self.polled_at + keepalive
                await self._poll_once(ready or [_NOWHERE])
            if ready:
                # With records at hand getmany returns without ever yielding to the loop.
                await asyncio.sleep(0)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due - time.monotonic()):
                        await self._wake.wait()

    async def _poll_once(self, ready: list[TopicPartition]) -> None:
        try:
            await self._take(ready)
        except KafkaError as error:
            if not error.retriable:
                raise
            log.warning("fetching failed, trying again", role=self.role.name, reason=type(error).__name__)
            await asyncio.sleep(_RETRY_SECONDS)

    def _askable(self) -> list[TopicPartition]:
        if self._lease.lapsed or self.octets >= self._settings.held_bytes:
            return []
        return [
            tp
            for tp, partition in self._partitions.items()
            if partition.open and not partition.full and partition.has_room
        ]

    async def _take(self, ready: list[TopicPartition]) -> None:
        try:
            timeout_ms = 0 if ready == [_NOWHERE] else _POLL_MS
            fetched = await poll(self._consumer, ready, timeout_ms=timeout_ms, max_records=self._pace.records)
        except OffsetOutOfRangeError as error:
            await self._reopening.out_of_range(error.args[0], seconds=self._settings.request_timeout)
        except UnicodeDecodeError:
            await self._step_over_undecodable(ready)
        except NoOffsetForPartitionError:
            # Of a partition that is being opened: aiokafka has no position for it yet, we set it in a moment.
            return
        else:
            began = time.perf_counter()
            for tp, records in fetched.items():
                self._arrived(tp, records)
            if fetched:
                self._pace.handled(sum(map(len, fetched.values())), time.perf_counter() - began)

    def _arrived(self, tp: TopicPartition, records: list[Record]) -> None:
        partition = self._partitions.get(tp)
        if not records or partition is None or not partition.open:
            return  # nothing, or fetched before the partition was opened at its right position
        self._watch.consumed(tp.topic, len(records))
        if partition.one_at_a_time:
            partition.queue.extend(records)
            partition.looking = True
            self._start(functools.partial(self._one_at_a_time, partition), f"{tp.topic}-{tp.partition} one at a time")
        else:
            self._watch.recovered(partition.take(records))

    async def _step_over_undecodable(self, ready: list[TopicPartition]) -> None:
        async for tp, records, culprit in one_of_each(self._consumer, ready, timeout_ms=_POLL_MS):
            self._arrived(tp, records)
            partition = self._partitions.get(tp)
            if culprit is not None and partition is not None and partition.open:
                where = {"topic": tp.topic, "partition": tp.partition, "offset": culprit}
                log.error("a record cannot be read", role=self.role.name, **where)
                self._watch.consumed(tp.topic, 1)
                partition.put_aside(unread(tp, culprit), UNDECODABLE)

    async def _one_at_a_time(self, partition: Partition) -> None:
        """Each record is named in a commit, handled and settled before the next is touched."""
        while partition.queue and partition.open:
            record = partition.queue.popleft()
            partition.take_in_hand(record)
            if not await self._commits.write(self._partitions):
                partition.queue.appendleft(record)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if not partition.open:
                return
            self._watch.recovered(partition.take([record]))
            while not partition.idle and partition.open:
                self._wake.clear()
                await self._wake.wait()
        partition.looking = False
        self._wake.set()

    def _settled(self, topic: str, chunk: InFlight) -> None:
        self._watch.settled(chunk, topic)
        self._wake.set()

    # The assignment

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._watch.assigned(assigned)
        self._lease.renew()
        if self._stopping:
            return
        for tp in assigned:
            self._partitions[tp] = self._owned(tp)
        # aiokafka may have begun to fetch from its own idea of the position.
        self._consumer.pause(*assigned)
        self._opening = asyncio.create_task(self._guarded(self._open), name=f"{self.role.name} opening")

    def _owned(self, tp: TopicPartition) -> Partition:
        return Partition(
            tp,
            handler=self.role.handler(tp.topic),
            dead_letters=self._dead_letters,
            lane=None if self._results is None else self._results.lane(tp.partition),
            window=self.role.window,
            weight=self.role.weight,
            settled=functools.partial(self._settled, tp.topic),
            acknowledged=self._wake.set,
        )

    async def _open(self) -> None:
        await self._openings.open(dict(self._partitions), self._opened)

    def _opened(self) -> None:
        self.assigned.set()
        self._wake.set()

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        if not revoked:
            return
        try:
            await self._release()
        except TimeoutError as error:
            self._fail(f"role {self.role.name}: what was handed to Kafka was not written before the hand-over", error)
        except Exception as error:  # noqa: BLE001 - aiokafka would swallow it
            self._fail(f"role {self.role.name}: giving partitions back failed", error)

    def _close(self) -> list[Partition]:
        partitions = list(self._partitions.values())
        for partition in partitions:
            partition.open = False
        return partitions

    async def _release(self) -> bool:
        """Give all partitions back. Only what Kafka was given is waited for; False if it did not answer the commit."""
        async with self._releasing:
            # 1. Nothing new begins. Closed partitions are not opened anew; those just being opened are closed after it.
            self._close()
            if self._opening is not None:
                self._opening.cancel()
                await asyncio.wait([self._opening])
            await self._reopening.cancel()
            partitions = self._close()
            async with asyncio.timeout(self._release_time.seconds):
                # 2. Requests to a service get a moment; the next owner repeats what is left, under its identities.
                if self.role.flush is not None:
                    moment = min(self._settings.handover_timeout, self._release_time.left / 2)
                    with contextlib.suppress(TimeoutError):
                        async with self._release_time.at_most(moment):
                            await self.role.flush()
                # 3. Users who still wait for their segments are left to the next owner, and results not yet handed
                #    to Kafka too if we may have been put out of the group: the next owner may be at work already.
                for partition in partitions:
                    partition.abandon()
                    if self._lease.lapsed:
                        partition.discard()
                # 4. What Kafka was given must be written, or the next owner's scan could miss it.
                for partition in partitions:
                    await partition.sent()
            # 5. One last commit, still under our ownership.
            limit = self._release_time.at_most(self._release_time.left / 4)
            answered = await self._commits.write_within(self._partitions, limit)
            # 6. Forgotten.
            self._watch.released()
            self._partitions.clear()
            self._wake.set()
            return answered

    async def _commit_regularly(self) -> None:
        while not self._stopping:
            await asyncio.sleep(self._settings.commit_interval)
            await self._commits.write(self._partitions)

    # The watch

    async def _watch_regularly(self) -> None:
        while not self._stopping:
            ends: dict[TopicPartition, int] = {}
            owned = [tp for tp, partition in self._partitions.items() if partition.open]
            if owned:
                try:
                    for tp in owned:
                        # Past markers of transactions, which no poll brings: an idle partition would lag for ever.
                        self._partitions[tp].pass_over(await self._consumer.position(tp))
                    async with asyncio.timeout(self._settings.request_timeout):
                        ends = await self._consumer.end_offsets(owned)
                except (IllegalStateError, KafkaError, KeyError, TimeoutError) as error:
                    log.debug("lag is not known", role=self.role.name, reason=type(error).__name__)
            self._watch.observe(self.partitions, ends)
            await self._reopening.look(seconds=self._settings.request_timeout)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), self._watch.interval)

    def stuck(self, now: float, *, after: float) -> list[str]:
        """What has not moved for `after` seconds though it should have, one sentence each: for /health."""
        found = [] if self.role.held() else self._watch.stuck(self.partitions, now, after=after)
        silent = now - self.polled_at
        if silent > after + self._settings.rebalance_timeout:
            found.append(f"role {self.role.name} has not polled for {silent:.0f} s")
        return found + self._reopening.stuck(now, after=after + self._settings.rebalance_timeout)

    # The stop

    async def stop(self, *, seconds: float) -> None:
        """Finish what was taken within three quarters of the time, commit, leave; the rest is the next owner's.

        Only what Kafka was given is waited for without a limit: the caller ends the process at its deadline.
        """
        self._stopping = True
        self._stopped.set()
        self._close()
        self._release_time.stop_within(seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * 3 / 4):
                await self._finish()
        self._release_time.hurry()
        answered = await self._release()
        # A coordinator that did not answer will not answer a farewell either.
        farewell = self._release_time.left / 4 if answered else 0
        await client.stop_client(self._consumer, seconds=farewell)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _finish(self) -> None:
        if self.role.flush is not None and not self.role.held():
            await self.role.flush()
        while any(not partition.idle for partition in self._partitions.values()) and not self.role.held():
            self._wake.clear()
            await self._wake.wait()
