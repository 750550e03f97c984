"""The commits of a group consumer: one request for every owned partition that moved, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from pipeline.kafka.partition import Partition
from pipeline.kafka.watch import Watch

# What is not committed by then is tried again at the next turn, or repeated by the next owner.
_COMMIT_SECONDS = 10.0


class Commits:
    """Writes what the partitions say is settled, with their notes."""

    def __init__(self, consumer: AIOKafkaConsumer, *, watch: Watch) -> None:
        self._consumer = consumer
        self._watch = watch
        self._lock = asyncio.Lock()

    def follow(self) -> None:
        """Take what a request for a commit raises after its caller was gone: asyncio would log a traceback of it.

        aiokafka 0.14 shields that request from being cancelled, so its method is wrapped.
        """
        coordinator: Any = self._consumer._coordinator
        commit = coordinator._do_commit_offsets

        async def heard(*arguments: Any) -> None:
            task = asyncio.current_task()
            if task is not None:
                task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
            await commit(*arguments)

        coordinator._do_commit_offsets = heard

    async def write(self, partitions: Mapping[TopicPartition, Partition]) -> bool:
        """Commit what is due; False if that failed, and it is due again then.

        If the group went on without us, the next owner repeats the rest, under the same identities.
        """
        async with self._lock:
            due = [partition for partition in partitions.values() if partition.commit_due]
            points = {partition.tp: OffsetAndMetadata(*partition.commit_point()) for partition in due}
            if not points:
                return True
            if not set(points) <= self._consumer.assignment():
                return False
            for partition in due:
                partition.commit_due = False
            try:
                async with asyncio.timeout(_COMMIT_SECONDS):
                    await self._consumer.commit(points)
            except (IllegalStateError, KafkaError, TimeoutError) as error:
                self._watch.commit_failed(error)
                for partition in due:
                    partition.commit_due = True
                return False
            self._watch.committed()
            return True

    async def write_within(
        self, partitions: Mapping[TopicPartition, Partition], limit: AbstractAsyncContextManager[None]
    ) -> bool:
        """As `write`, before partitions are given back, which no outage of Kafka may hold up.

        `limit` ends the commit with TimeoutError; False if Kafka did not answer by then.
        """
        try:
            async with limit:
                await self.write(partitions)
        except TimeoutError:
            self._watch.last_commit_failed()
            return False
        return True


class ReleaseTime:
    """How long a release of partitions may take: the drain, or the rest of a stop that begins during the release."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._stop_at: float | None = None
        self._limit: asyncio.Timeout | None = None

    @property
    def left(self) -> float:
        return self.seconds if self._stop_at is None else max(0.0, self._stop_at - time.monotonic())

    def stop_within(self, seconds: float) -> None:
        self._stop_at = time.monotonic() + seconds

    @contextlib.asynccontextmanager
    async def at_most(self, seconds: float) -> AsyncIterator[None]:
        """As `asyncio.timeout`; `hurry` brings it forward. One release at a time has one limit at a time."""
        try:
            async with asyncio.timeout(seconds) as self._limit:
                yield
        finally:
            self._limit = None

    def hurry(self) -> None:
        """A stop waits for the release: its wait for a service, or for the commit, gets a quarter of the time left."""
        if self._limit is not None and not self._limit.expired():
            soon = asyncio.get_running_loop().time() + self.left / 4
            self._limit.reschedule(min(soon, self._limit.when() or soon))
