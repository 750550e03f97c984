"""Partitions whose log is not the one they were opened on: a topic was deleted and created again under a worker.

aiokafka notices nothing: it fetches by name from the offset it had, which the new log may not have yet, or may have,
with other records before it that nobody would ever read. So the topics' ids are looked at regularly, and such a
partition is opened anew, as at a takeover: what was published of it is found, the rest is read from the log's start.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.kafka.commits import Commits
from pipeline.kafka.openings import Openings
from pipeline.kafka.partition import Partition
from pipeline.kafka.takeover import Takeover

log = structlog.get_logger("pipeline.consumer")


class Reopening:
    """Looks after the logs of one role's partitions. One reopening at a time."""

    def __init__(
        self,
        role: str,
        partitions: MutableMapping[TopicPartition, Partition],
        *,
        consumer: AIOKafkaConsumer,
        takeover: Takeover,
        openings: Openings,
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
        self._commits = commits
        self._seconds = seconds
        self._owned = owned
        self._start = start
        self._opened = opened
        self._wake = wake
        self._task: asyncio.Task[None] | None = None

    async def look(self, *, seconds: float) -> None:
        """Ask for the ids of the topics, and open anew what is of another topic by now."""
        try:
            async with asyncio.timeout(seconds):
                ids = await self._takeover.topic_ids()
        except (KafkaError, TimeoutError) as error:
            log.debug("topic ids are not known", role=self._role, reason=type(error).__name__)
            return
        for partition in self._partitions.values():
            if partition.open and partition.topic_id is None:
                # The broker that was asked at the opening did not know the topic yet.
                partition.topic_id = ids.get(partition.tp.topic)
        self._begin([one for one in self._partitions.values() if not self._takeover.is_of(one, ids)], ids)

    async def out_of_range(self, tp: TopicPartition, offset: int) -> None:
        """The broker has no record at the position of an owned partition. Raises KafkaError."""
        partition = self._partitions.get(tp)
        if partition is None or not partition.open:
            return
        ids = await self._takeover.topic_ids()
        first = await self._takeover.first_offset(tp)
        if offset < first and self._takeover.is_of(partition, ids):
            self._takeover.lost(tp, offset, first)
            self._consumer.seek(tp, first)
        else:
            # The log ends before the position: it was truncated, or is a new one. A new opening tells which.
            self._begin([partition], ids)

    async def cancel(self) -> None:
        """The partitions are given back: nothing is opened any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _begin(self, partitions: Sequence[Partition], ids: Mapping[str, str]) -> None:
        partitions = [partition for partition in partitions if partition.open]
        if not partitions or (self._task is not None and not self._task.done()):
            return
        for partition in partitions:
            partition.open = False
        self._consumer.pause(*(partition.tp for partition in partitions))
        names = sorted({partition.tp.topic for partition in partitions})
        self._task = self._start(lambda: self._reopen(partitions, dict(ids)), f"reopening {', '.join(names)}")

    async def _reopen(self, partitions: Sequence[Partition], ids: Mapping[str, str]) -> None:
        # 1. Records already read exist nowhere else any more; what they lead to must be written before the scan.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                while any(not partition.idle for partition in partitions):
                    self._wake.clear()
                    await self._wake.wait()
        for partition in partitions:
            if not partition.idle:
                log.error(
                    "records of a deleted topic were not finished in time and are given up", role=self._role,
                    topic=partition.tp.topic, partition=partition.tp.partition, records=partition.records_under_way,
                )  # fmt: skip
            partition.abandon()
            await partition.sent()
        # 2. Where only the results are new, the position still holds.
        await self._commits.write({one.tp: one for one in partitions if one.topic_id == ids.get(one.tp.topic)})
        # 3. As at a takeover.
        fresh = {partition.tp: self._owned(partition.tp) for partition in partitions}
        self._partitions.update(fresh)
        await self._openings.open(fresh, self._opened)
