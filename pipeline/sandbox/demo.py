"""`pipeline demo`: the whole product on one machine, with Apache Kafka, and an account of every record.

Starts a broker (unless one is named), the stand-ins and a worker as a process of its own; produces requests and events,
some of them broken; waits until each is accounted for; stops everything. The exit code is 0 only if the account closes.
Ctrl-C, or the death of this process, leaves nothing running.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from uuid import uuid4

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from pipeline.errors import StartFailed
from pipeline.sandbox.account import Account
from pipeline.sandbox.display import Display, display
from pipeline.sandbox.kafka import LocalKafka, java_command
from pipeline.sandbox.kafka_jars import ensure_downloaded
from pipeline.sandbox.processes import StandIns
from pipeline.sandbox.traffic import Sent, decide_requests, odp_events, track_events
from pipeline.sandbox.worker import Worker, worker_environment

_PARTITIONS = 8
_SENT_AT_ONCE = 1000
_COMMAND_SECONDS = 60
_STILL_SECONDS = 30
"""Nothing happened for so long: what is missing then will not come."""

_INTERRUPTED = 130
_STREAMS = ("decide_requests", "decide_results", "track_events", "odp_events", "dead_letters")


@dataclass(frozen=True, slots=True)
class _Parts:
    bootstrap_servers: str
    topics: dict[str, str]
    stand_ins: StandIns
    worker: Worker


def run_demo(requests: int = 5000, bootstrap_servers: str | None = None, json_file: Path | None = None) -> int:
    """Run it with so many decide requests, a tenth as many conversions and a twentieth ODP events; the exit code.

    `bootstrap_servers` uses an existing Kafka, with topics of its own that are deleted afterwards. `json_file` gets the
    account as JSON. Raises StartFailed with what to do.
    """
    with display() as shown:
        try:
            return _run(requests, bootstrap_servers, json_file, shown)
        except KeyboardInterrupt:
            shown.step("interrupted; everything was stopped")
            return _INTERRUPTED


def _run(requests: int, bootstrap_servers: str | None, json_file: Path | None, shown: Display) -> int:
    with ExitStack() as stack:
        parts = _start(bootstrap_servers, stack, shown)
        account = Account()
        try:
            seconds = asyncio.run(_session(parts, account, requests, shown))
            status = parts.worker.stop()
            asyncio.run(_what_came_last(parts, account))
        finally:
            parts.worker.stop(timeout=5)
        faults = account.open()
        if status != 0:
            faults.append(f"the worker ended with status {status}")
        speed = f"{requests:,} requests sent and answered in {seconds:.1f} s, everything on this machine"
        shown.account([*account.lines(), ("throughput", speed)], faults)
        if faults:
            shown.step(f"the end of the worker's log:\n{parts.worker.log_tail()}")
        if json_file is not None:
            document = account.document() | {"closed": not faults, "open": faults, "seconds": round(seconds, 3)}
            json_file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        return 1 if faults else 0


def _start(bootstrap_servers: str | None, stack: ExitStack, shown: Display) -> _Parts:
    """Everything up to a worker that is ready; `stack` ends it in the opposite order."""
    if bootstrap_servers is None:
        java_command()
        ensure_downloaded(shown.download)
        shown.step("starting Apache Kafka")
        bootstrap_servers = stack.enter_context(LocalKafka()).bootstrap_servers
    shown.step("starting stand-ins for Optimizely's CDN, ODP and logx")
    stand_ins = stack.enter_context(StandIns())
    run = f"demo-{uuid4().hex[:8]}"
    topics = {stream: f"{run}.{stream.replace('_', '.')}" for stream in _STREAMS}
    environment = worker_environment(
        {
            "KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
            "KAFKA__GROUP_ID": run,
            "TOPICS__PARTITIONS": str(_PARTITIONS),
        },
        topics=topics,
        stand_ins=stand_ins,
    )
    _create_topics(environment)
    stack.callback(lambda: asyncio.run(_delete_topics(bootstrap_servers, topics)))
    shown.step("starting a worker")
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="decision-pipeline-demo-")))
    worker = Worker(environment, log=directory / "worker.log", remove=directory)
    stack.callback(lambda: worker.stop(timeout=5))
    worker.start()
    worker.wait_ready()
    return _Parts(bootstrap_servers, topics, stand_ins, worker)


def _create_topics(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pipeline", "topics", "create"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StartFailed(f"`pipeline topics create` took longer than {_COMMAND_SECONDS} s") from error
    if done.returncode != 0:
        raise StartFailed(f"`pipeline topics create` failed: {done.stderr or done.stdout}")


async def _delete_topics(bootstrap_servers: str, topics: dict[str, str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_topics(list(topics.values()))
    finally:
        await admin.close()


async def _session(parts: _Parts, account: Account, requests: int, shown: Display) -> float:
    """Produce and read until everything is accounted for, or nothing moves; seconds until all were answered."""
    started = time.monotonic()
    consumer = await _reader(parts)
    try:
        async with asyncio.TaskGroup() as tasks:
            producing = tasks.create_task(_produce(parts, account, requests))
            answered = 0.0
            last, moved = account.progress, started
            while time.monotonic() - moved < _STILL_SECONDS:
                await _read(parts, account, consumer)
                shown.progress(account, requests)
                if not answered and producing.done() and account.answered >= requests:
                    answered = time.monotonic() - started
                if producing.done() and not account.open():
                    break
                if account.progress != last:
                    last, moved = account.progress, time.monotonic()
            producing.cancel()
    finally:
        await consumer.stop()
    return answered or time.monotonic() - started


async def _what_came_last(parts: _Parts, account: Account) -> None:
    """What the worker still wrote while it stopped: nothing may come that nobody sent."""
    seen = Account()
    seen.sent = account.sent
    consumer = await _reader(parts)
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            await _read(parts, seen, consumer)
    finally:
        await consumer.stop()
    account.take_over(seen)


async def _reader(parts: _Parts) -> AIOKafkaConsumer:
    consumer = AIOKafkaConsumer(
        parts.topics["decide_results"],
        parts.topics["dead_letters"],
        bootstrap_servers=parts.bootstrap_servers,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    return consumer


async def _read(parts: _Parts, account: Account, consumer: AIOKafkaConsumer) -> None:
    batches = await consumer.getmany(timeout_ms=200, max_records=5000)
    for partition, records in batches.items():
        for record in records:
            if partition.topic == parts.topics["dead_letters"]:
                account.book_dead_letter(record.headers)
            else:
                account.book_result(record.value or b"")
    logx = await asyncio.to_thread(parts.stand_ins.ledger, "logx")
    odp = await asyncio.to_thread(parts.stand_ins.ledger, "odp")
    account.book_services(logx, odp)


async def _produce(parts: _Parts, account: Account, requests: int) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=parts.bootstrap_servers, enable_idempotence=True, compression_type="zstd", linger_ms=5
    )
    await producer.start()
    try:
        records = chain(decide_requests(requests), track_events(requests // 10), odp_events(requests // 20))
        for batch in _batches(records):
            sending = [
                await producer.send(parts.topics[record.stream], record.value, key=record.key) for record in batch
            ]
            for record, future in zip(batch, sending, strict=True):
                at = await future
                account.book_sent(f"{at.topic}-{at.partition}-{at.offset}", record)
    finally:
        await producer.stop()


def _batches(records: Iterator[Sent]) -> Iterator[list[Sent]]:
    while batch := list(islice(records, _SENT_AT_ONCE)):
        yield batch
