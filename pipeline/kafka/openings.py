"""From assigned to read: each partition gets its position, what was published of it, a first commit, and is resumed.

A partition beyond the end of the results topic is blocked until the broker has a results partition of its number, and
is opened then as any other. `consumer.py` runs this in one task for each assignment and ends the task before it gives
the partitions back, so nothing is opened or resumed that is not owned any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.kafka.commits import Commits
from pipeline.kafka.partition import Opening, Partition
from pipeline.kafka.sink import Sink
from pipeline.kafka.takeover import Takeover
from pipeline.kafka.watch import ranges

log = structlog.get_logger("pipeline.consumer")

_RETRY_SECONDS = 0.5
_TRIES = 20
# While a partition is blocked, the broker is asked so often whether it still must be: one small request.
# What cannot be counted is said again about once a minute.
_SAID_AGAIN_TRIES = 12
_LOOK_AGAIN_SECONDS = 5.0

_Partitions = Mapping[TopicPartition, Partition]


class Openings:
    """The openings of one role's partitions. `results` is None for a role that publishes nothing."""

    def __init__(
        self, role: str, *, consumer: AIOKafkaConsumer, takeover: Takeover, results: Sink | None, commits: Commits
    ) -> None:
        self._role = role
        self._consumer = consumer
        self._takeover = takeover
        self._results = results
        self._commits = commits
        self._unanswered = 0

    async def open(self, partitions: _Partitions, opened: Callable[[], None]) -> None:
        """Open all of them; returns when none is blocked any more. `opened` is called each time that some can be read.

        Those that wait for nothing are not held up by the others. Raises what a scan that cannot be made raises.
        """
        beyond = self._beyond(partitions)
        beyond |= await self._open({tp: partition for tp, partition in partitions.items() if tp not in beyond})
        opened()
        while beyond and self._results is not None:
            if await self._counted(self._results):
                beyond = await self._unblock(beyond, self._results, opened)
            if beyond:
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def _beyond(self, partitions: _Partitions) -> dict[TopicPartition, Partition]:
        """Those without a results partition of their number, as far as is known."""
        if self._results is None:
            return {}
        known = self._results.partitions
        return {tp: partition for tp, partition in partitions.items() if tp.partition >= known}

    async def _counted(self, results: Sink) -> bool:
        """Count the results partitions anew: there may be more than when this process started."""
        counted = await results.recount()
        self._unanswered = 0 if counted else self._unanswered + 1
        if self._unanswered % _SAID_AGAIN_TRIES == 1:
            log.warning("results partitions cannot be counted, trying again", role=self._role, topic=results.topic)
        return counted

    async def _unblock(
        self, partitions: _Partitions, results: Sink, opened: Callable[[], None]
    ) -> dict[TopicPartition, Partition]:
        """Open those that need not wait any more; returns the others, which are blocked."""
        left = self._beyond(partitions)
        for tp, partition in partitions.items():
            where = {"topic": tp.topic, "partition": tp.partition, "results": results.topic}
            if tp in left and not partition.blocked:
                log.error(
                    "a results topic needs at least as many partitions as its requests: this partition waits",
                    **where, partitions=results.partitions,
                )  # fmt: skip
            elif partition.blocked and tp not in left:
                log.info(
                    "the results topic has grown: this partition waits no longer",
                    **where, partitions=results.partitions,
                )  # fmt: skip
            partition.blocked = tp in left
        if len(left) < len(partitions):
            left |= await self._open({tp: partition for tp, partition in partitions.items() if tp not in left})
            opened()
        return left

    async def _open(self, partitions: _Partitions) -> dict[TopicPartition, Partition]:
        """Open them; returns those that have no results partition any more."""
        if not partitions:
            return {}
        began = time.monotonic()
        openings = await self._found(partitions)
        for tp, opening in openings.items():
            self._consumer.seek(tp, opening.position)
            partitions[tp].begin(opening)
        # Before the first record is touched: should it kill the process, the next owner counts that.
        await self._commits.write(partitions)
        for tp, opening in openings.items():
            self._consumer.resume(tp)
            partitions[tp].open = True
            if partitions[tp].one_at_a_time:
                log.warning(
                    "its owners died one after the other: records go one at a time until the one at fault is found",
                    role=self._role, topic=tp.topic, partition=tp.partition,
                )  # fmt: skip
            log.debug(
                "partition opened", role=self._role, topic=tp.topic, partition=tp.partition,
                position=opening.position, floor=opening.scan_floor, recovered=len(opening.recovered or ()),
            )  # fmt: skip
        log.info(
            "partitions opened", role=self._role, count=len(openings), partitions=ranges(openings),
            recovered=sum(len(opening.recovered or ()) for opening in openings.values()),
            seconds=round(time.monotonic() - began, 3),
        )  # fmt: skip
        return {tp: partition for tp, partition in partitions.items() if tp not in openings}

    async def _found(self, partitions: _Partitions) -> dict[TopicPartition, Opening]:
        """Where to begin. An outage of the broker is waited out; a scan that cannot be made ends the process.

        Partitions that turn out to have no results partition are left out.
        """
        failures = 0
        while True:
            try:
                return await self._takeover.open(partitions.keys()) if partitions else {}
            except (KafkaError, TimeoutError) as error:
                failures += 1
                patient = isinstance(error, KafkaError) and error.retriable
                if not patient and failures >= _TRIES:
                    raise
                if failures == 1 or failures % _TRIES == 0:
                    reason = type(error).__name__
                    log.warning("opening partitions failed, trying again", role=self._role, reason=reason)
                await asyncio.sleep(_RETRY_SECONDS)
                # A results topic that was created again with fewer partitions looks like an outage to the scan.
                if self._results is not None and await self._results.recount():
                    beyond = self._beyond(partitions)
                    partitions = {tp: partition for tp, partition in partitions.items() if tp not in beyond}
