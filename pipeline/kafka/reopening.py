"""Partitions whose log is not the one they were opened on: a topic was deleted and created again under a worker.

aiokafka notices nothing: it fetches by name from the offset it had, which the new log may not have yet, or may have,
with other records before it that nobody would ever read. So the topics' ids are looked at regularly, and such a
partition is opened anew, as at a takeover: what was published of it is found, the rest is read from the log's start.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.kafka.commits import Commits
from pipeline.kafka.openings import Openings
from pipeline.kafka.partition import Partition
from pipeline.kafka.sink import Sink
from pipeline.kafka.takeover import Takeover
from pipeline.kafka.watch import ranges

log = structlog.get_logger("pipeline.consumer")

_RETRY_SECONDS = 0.5
# While results are waited for, the broker is asked so often whether their partition is still there: one small request.
_COUNT_AGAIN_SECONDS = 5.0


class Reopening:
    """Looks after the logs of one role's partitions."""

    def __init__(
        self,
        role: str,
        partitions: MutableMapping[TopicPartition, Partition],
        *,
        consumer: AIOKafkaConsumer,
        takeover: Takeover,
        openings: Openings,
        results: Sink | None,
        commits: Commits,
        seconds: float,
        owned: Callable[[TopicPartition], Partition],
        start: Callable[[Callable[[], Awaitable[None]], str], asyncio.Task[None]],
        opened: Callable[[], None],
        wake: asyncio.Event,
    ) -> None:
        """`partitions` are the owned ones, which are replaced here; `seconds` the time to finish what was read of the
        old log; `wake` is set whenever a batch was completed."""
        self._role = role
        self._partitions = partitions
        self._consumer = consumer
        self._takeover = takeover
        self._openings = openings
        self._results = results
        self._commits = commits
        self._seconds = seconds
        self._owned = owned
        self._start = start
        self._opened = opened
        self._wake = wake
        # Several at once: one ends only when none of its partitions is blocked any more.
        self._tasks: set[asyncio.Task[None]] = set()
        self._began: dict[TopicPartition, float] = {}
        self._silent_at = 0.0
        self._lost_is_unknown = False

    async def look(self, *, seconds: float) -> None:
        """Ask for the ids of the topics, and open anew what is of another topic by now."""
        for tp in list(self._began):
            partition = self._partitions.get(tp)
            if partition is None or partition.open or partition.blocked:
                del self._began[tp]
        try:
            async with asyncio.timeout(seconds):
                ids = await self._takeover.topic_ids()
        except (KafkaError, TimeoutError) as error:
            self._silent_at = time.monotonic()
            log.debug("topic ids are not known", role=self._role, reason=type(error).__name__)
            return
        results_id = None if self._results is None else ids.get(self._results.topic)
        for partition in self._partitions.values():
            if partition.open:
                # The broker that was asked at the opening may not have known the topics yet.
                partition.learn_ids(ids.get(partition.tp.topic), results_id)
        self._begin([one for one in self._partitions.values() if not self._takeover.is_of(one, ids)], ids)

    async def out_of_range(self, lost: Mapping[TopicPartition, int], *, seconds: float) -> None:
        """The broker has no record at these positions of partitions. Where it does not say why, the next poll asks."""
        try:
            async with asyncio.timeout(seconds):
                for tp, offset in lost.items():
                    await self._go_on(tp, offset)
        except (KafkaError, TimeoutError) as error:
            if not self._lost_is_unknown:
                log.warning(
                    "positions are not in the log, and the log's start is not known: trying again",
                    role=self._role, partitions=ranges(lost), reason=type(error).__name__,
                )  # fmt: skip
            self._lost_is_unknown = True
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            self._lost_is_unknown = False

    async def _go_on(self, tp: TopicPartition, offset: int) -> None:
        """Read on at the start of the log, or open the partition anew. Raises KafkaError."""
        partition = self._partitions.get(tp)
        if partition is None or not partition.open:
            return
        ids = await self._takeover.topic_ids()
        first = await self._takeover.first_offset(tp)
        if self._partitions.get(tp) is not partition or not partition.open:
            return  # given back meanwhile, or opened anew already
        if offset < first and self._takeover.is_of(partition, ids):
            self._takeover.lost(tp, offset, first)
            self._consumer.seek(tp, first)
        else:
            # The log ends before the position: it was truncated, or is a new one. A new opening tells which.
            self._begin([partition], ids)

    def stuck(self, now: float, *, after: float) -> list[str]:
        """A sentence for /health where partitions are being opened anew for `after` seconds in which Kafka answered."""
        seconds = {
            tp: now - max(began, self._silent_at)
            for tp, began in self._began.items()
            if tp in self._partitions and not self._partitions[tp].open and not self._partitions[tp].blocked
        }
        late = [tp for tp, taken in seconds.items() if taken > after]
        return [f"{ranges(late)}: opening anew takes {max(seconds.values()):.0f} s"] if late else []

    async def cancel(self) -> None:
        """The partitions are given back: nothing is opened any more."""
        while tasks := {task for task in self._tasks if not task.done()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        self._began.clear()

    def _begin(self, partitions: Sequence[Partition], ids: Mapping[str, str]) -> None:
        partitions = [partition for partition in partitions if partition.open]
        if not partitions:
            return
        for partition in partitions:
            partition.open = False
            self._began[partition.tp] = time.monotonic()
        self._consumer.pause(*(partition.tp for partition in partitions))
        names = sorted({partition.tp.topic for partition in partitions})
        task = self._start(lambda: self._reopen(partitions, dict(ids)), f"reopening {', '.join(names)}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reopen(self, partitions: Sequence[Partition], ids: Mapping[str, str]) -> None:
        # 1. Records already read exist nowhere else any more; what they lead to must be written before the scan.
        finishing = asyncio.ensure_future(self._finish(partitions, ids))
        try:
            while not finishing.done():
                await self._count_results(partitions)
                await asyncio.wait([finishing], timeout=_COUNT_AGAIN_SECONDS)
            await finishing
        finally:
            finishing.cancel()
        # 2. Where only the results are new, the position still holds. An older commit would have requests answered
        #    twice, so an outage is waited out; a release cancels this.
        same = {one.tp: one for one in partitions if _same_log(one, ids)}
        while not await self._commits.write(same):  # noqa: ASYNC110 - Kafka is asked
            await asyncio.sleep(_RETRY_SECONDS)
        # 3. As at a takeover.
        fresh = {partition.tp: self._owned(partition.tp) for partition in partitions}
        self._partitions.update(fresh)
        await self._openings.open(fresh, self._opened)

    async def _finish(self, partitions: Sequence[Partition], ids: Mapping[str, str]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                while any(not partition.idle for partition in partitions):
                    self._wake.clear()
                    await self._wake.wait()
        for partition in partitions:
            if not partition.idle:
                self._tell_unfinished(partition, ids)
            partition.abandon()
        await asyncio.gather(*(partition.sent() for partition in partitions))

    def _tell_unfinished(self, partition: Partition, ids: Mapping[str, str]) -> None:
        where = {
            "role": self._role, "topic": partition.tp.topic, "partition": partition.tp.partition,
            "records": partition.records_under_way,
        }  # fmt: skip
        if _same_log(partition, ids):
            log.warning("records not finished in time are read again", **where)
        else:
            log.error("records of a deleted topic were not finished in time and are given up", **where)

    async def _count_results(self, partitions: Sequence[Partition]) -> None:
        """Count the results partitions anew: a topic created again may have fewer.

        Raises LookupError where one is gone that results are on their way to: they can be neither written nor given
        up, and the next life of the process blocks that partition alone.
        """
        if self._results is None or not await self._results.recount():
            return
        count = self._results.partitions
        gone = [one.tp.partition for one in partitions if one.sending and one.tp.partition >= count]
        if gone:
            numbers = ", ".join(map(str, sorted(gone)))
            raise LookupError(
                f"{self._results.topic} was created again with fewer partitions ({count}), "
                f"and results are on their way to partition {numbers}"
            )


def _same_log(partition: Partition, ids: Mapping[str, str]) -> bool:
    """Whether the requests topic is the one that the partition was opened on, as far as its ids are known."""
    pair = (partition.topic_id, ids.get(partition.tp.topic))
    return None in pair or pair[0] == pair[1]
