"""The single floor: consume, orjson loads and dumps, append to a batch of the same partition number, commit in order.

It writes what the worker writes, field for field, without deciding anything: a result of the worker for this load with
this request's id, user, source and timestamp in it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer

from pipeline.kafka.records import lighten_consumers
from tests.benchmarks.contenders.job import POLL_RECORDS, Commits, Job, Record, consumer, ends, producer, run


async def floor(job: Job) -> None:
    document: dict[str, Any] = orjson.loads(await asyncio.to_thread(Path(job.document).read_bytes))
    async with consumer(job) as reader, producer(job) as writer:
        commits = Commits(reader)
        under_way: list[asyncio.Future[Any]] = []
        done: dict[Any, int] = {}
        while True:
            polled = await reader.getmany(timeout_ms=200, max_records=POLL_RECORDS)
            sent: list[asyncio.Future[Any]] = []
            for partition, records in polled.items():
                sent += await _write(job, document, writer, partition.partition, records)
            # One poll is acknowledged while the next is worked on.
            await asyncio.gather(*under_way)
            await commits.done(done)
            under_way, done = sent, ends(polled)


async def _write(
    job: Job, document: dict[str, Any], writer: AIOKafkaProducer, partition: int, records: list[Record]
) -> list[asyncio.Future[Any]]:
    prefix = f"{job.source}-{partition}-"
    batch = writer.create_batch()
    sent = []
    for record in records:
        request = orjson.loads(record.value or b"")
        result = document | {
            "requestId": request["requestId"],
            "source": f"{prefix}{record.offset}",
            "timestamp": record.timestamp,
            "userId": request["userId"],
        }
        value = orjson.dumps(result)
        if batch.append(key=record.key, value=value, timestamp=None) is None:
            sent.append(await writer.send_batch(batch, job.results, partition=partition))
            batch = writer.create_batch()
            batch.append(key=record.key, value=value, timestamp=None)
    if batch.record_count():
        sent.append(await writer.send_batch(batch, job.results, partition=partition))
    return sent


if __name__ == "__main__":
    # A floor has what the worker has: of the record too, which costs the client's own most of a microsecond.
    lighten_consumers()
    run(floor)
