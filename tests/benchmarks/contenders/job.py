"""What a contender is told, and how all of them consume: the same clients and garbage collection as the worker has."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord

FETCH_BYTES = 256 * 1024
BATCH_BYTES = 512 * 1024
COMMIT_SECONDS = 0.5
POLL_RECORDS = 1000
"""More in one poll is slower: the records are older than the caches by the time they are handled."""

Record = ConsumerRecord[bytes, bytes]
Polled = dict[TopicPartition, list[Record]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One contender's work; passed on its command line."""

    bootstrap_servers: str
    group: str
    source: str
    """Topic to read."""
    results: str = ""
    """Topic to write."""
    sink: str = ""
    """URL that events are posted to; empty: none are."""
    document: str = ""
    """File whose JSON the floors write: a result of the worker for the same request."""
    datafile: str = ""
    segments: tuple[str, ...] = ()
    """Segments every user is in, for the naive worker: where they come from costs it nothing."""

    @property
    def argument(self) -> str:
        return json.dumps(asdict(self))


def job_from_arguments() -> Job:
    values = json.loads(sys.argv[1])
    return Job(**values | {"segments": tuple(values["segments"])})


def consumer(job: Job) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        job.source,
        bootstrap_servers=job.bootstrap_servers,
        group_id=job.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        session_timeout_ms=30_000,
        max_partition_fetch_bytes=FETCH_BYTES,
    )


def producer(job: Job, **more: Any) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        bootstrap_servers=job.bootstrap_servers, acks="all", enable_idempotence=True, compression_type="zstd",
        max_batch_size=BATCH_BYTES, max_request_size=4 * BATCH_BYTES, **more,
    )  # fmt: skip


class Commits:
    """Offsets are committed every half second, behind the work that is done."""

    def __init__(self, reader: AIOKafkaConsumer) -> None:
        self._reader = reader
        self._done: dict[TopicPartition, int] = {}
        self._next = 0.0

    async def done(self, ends: dict[TopicPartition, int]) -> None:
        self._done |= ends
        now = asyncio.get_running_loop().time()
        if self._done and now >= self._next:
            self._next = now + COMMIT_SECONDS
            await self._reader.commit(self._done)
            self._done = {}


def ends(polled: Polled) -> dict[TopicPartition, int]:
    return {partition: records[-1].offset + 1 for partition, records in polled.items() if records}


def run(main: Callable[[Job], Awaitable[None]]) -> None:
    """Run a contender until it is ended from outside."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = job_from_arguments()

    async def start() -> None:
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000)
        await main(job)

    asyncio.run(start())
