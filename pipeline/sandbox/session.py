"""The time in which a run is under way: records are produced, results read, a worker perhaps killed, until all is said.

Ends when the account closes, or when nothing has moved for half a minute: what is missing then will not come. So long
it takes to notice that somebody's Kafka is gone, too (of the demo's own `Parts.check` tells at once); no client waits
for one at its end. Used by the demo, once for a run.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import islice

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from pipeline.errors import StartFailed
from pipeline.sandbox.account import Account
from pipeline.sandbox.display import Display
from pipeline.sandbox.parts import Parts
from pipeline.sandbox.traffic import Sent
from pipeline.sandbox.worker import Worker

STILL_SECONDS = 30
_SENT_AT_ONCE = 1000
_READ_MS = 200
_ANSWER_SECONDS = 5
_LAST_SECONDS = 2


class Session:
    """One run: `send` and `run`, in one event loop or in several, then `end`."""

    def __init__(self, parts: Parts, account: Account, shown: Display, *, still_seconds: float = STILL_SECONDS) -> None:
        self.seconds = 0.0
        self._parts = parts
        self._account = account
        self._shown = shown
        self._still_seconds = still_seconds
        self._next: dict[TopicPartition, int] = {}

    async def send(self, records: Iterable[Sent]) -> None:
        """Produce records in their order, and book each with its place. Raises StartFailed if Kafka takes none."""
        async with self._limited("Kafka takes no records") as moved, self._producer() as producer:
            for batch in _batches(iter(records)):
                sending = [
                    await producer.send(self._parts.topics[record.stream], record.value, key=record.key)
                    for record in batch
                ]
                for record, future in zip(batch, sending, strict=True):
                    at = await future
                    self._account.book_sent(f"{at.topic}-{at.partition}-{at.offset}", record)
                moved()

    async def run(self, records: list[Sent], accident: Accident) -> None:
        """Send `records`, read what comes of them and of those sent before; `seconds` until all were answered."""
        started = moved = time.monotonic()
        account, before = self._account, self._account.progress
        requests = sum(record.stream == "decide_requests" for record in records) + account.count("decide_requests")
        total = len(records) + len(account.sent)
        async with self._reader() as consumer, asyncio.TaskGroup() as tasks:
            producing = tasks.create_task(self.send(records))
            while time.monotonic() - moved < self._still_seconds:
                await self._read(consumer)
                self._shown.progress(account, records=total, requests=requests)
                accident.happen(account, requests)
                if not self.seconds and producing.done() and account.answered >= requests:
                    self.seconds = time.monotonic() - started
                if producing.done() and accident.over and not account.open():
                    break
                if account.progress != before:
                    before, moved = account.progress, time.monotonic()
            else:
                await self._ask_broker()
            producing.cancel()
        self.seconds = self.seconds or time.monotonic() - started
        _book_lookups(account, self._parts.worker)
        await self._book_services("full=1")

    async def end(self) -> int:
        """Stop the worker, and read what it still wrote: nothing may come that nobody sent. Its exit status.

        Raises StartFailed if Kafka does not let it be read.
        """
        worker = self._parts.worker
        try:
            status = await asyncio.to_thread(worker.stop)
        except asyncio.CancelledError:
            # The thread waits for the worker, and the loop's end for the thread.
            worker.signal(signal.SIGKILL)
            raise
        async with self._limited("Kafka gives no more results") as moved, self._reader() as consumer:
            ends = await consumer.end_offsets(consumer.assignment())
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                before = dict(self._next)
                await self._read(consumer)
                if self._next != before:
                    moved()
        # What it posted last is not on any topic.
        await self._book_services("full=1")
        return status

    @asynccontextmanager
    async def _limited(self, still: str) -> AsyncIterator[Callable[[], None]]:
        """Raises StartFailed, saying `still` unless Kafka is gone, when too long nobody called what it gives."""
        seconds, now = max(self._still_seconds, _ANSWER_SECONDS), asyncio.get_running_loop().time
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                yield lambda: limit.reschedule(now() + seconds)
        except TimeoutError as error:
            if not limit.expired():
                raise  # Of what was done there.
            await self._ask_broker()
            raise StartFailed(f"{still}: nothing for {seconds:g} s, though {self._kafka} answers") from error

    @property
    def _kafka(self) -> str:
        return f"Kafka at {self._parts.bootstrap_servers}"

    async def _ask_broker(self) -> None:
        """Nothing moves: raises StartFailed if that is because Kafka, perhaps on another machine, is gone."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS), self._reader() as consumer:
                await consumer.end_offsets(consumer.assignment())
        except (TimeoutError, KafkaError) as error:
            raise StartFailed(f"{self._kafka} does not answer any more") from error

    @asynccontextmanager
    async def _producer(self) -> AsyncIterator[AIOKafkaProducer]:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._parts.bootstrap_servers,
            enable_idempotence=True,
            compression_type="zstd",
            linger_ms=5,
        )
        try:
            await producer.start()
            yield producer
        finally:
            # Its last batches wait for a broker without end: idempotent ones never expire.
            with suppress(TimeoutError):
                await asyncio.wait_for(producer.stop(), _LAST_SECONDS)

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[AIOKafkaConsumer]:
        """A reader of the results and dead letters; goes on where the last one ended."""
        topics = self._parts.topics["decide_results"], self._parts.topics["dead_letters"]
        consumer = AIOKafkaConsumer(
            *topics,
            bootstrap_servers=self._parts.bootstrap_servers,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        try:
            await consumer.start()
            for partition, offset in self._next.items():
                consumer.seek(partition, offset)
            yield consumer
        finally:
            with suppress(TimeoutError):
                await asyncio.wait_for(consumer.stop(), _LAST_SECONDS)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        account = self._account
        for partition, records in (await consumer.getmany(timeout_ms=_READ_MS, max_records=5000)).items():
            self._next[partition] = records[-1].offset + 1
            for record in records:
                if partition.topic == self._parts.topics["dead_letters"]:
                    account.book_dead_letter(record.key, record.value, record.headers)
                else:
                    account.book_result(record.key, record.value, record.headers, partition=record.partition)
        await self._book_services()

    async def _book_services(self, query: str = "") -> None:
        """`full=1` asks for each event there is: tens of thousands, so only at the end."""
        logx, odp = [
            await asyncio.to_thread(self._parts.stand_ins.ledger, service, query=query) for service in ("logx", "odp")
        ]
        self._account.book_services(logx, odp)


class Accident:
    """None: the run goes on undisturbed."""

    over = True
    """Whether everything has come of it that must; the run goes on until then."""

    def happen(self, account: Account, requests: int) -> None:
        """Called again and again; `requests` is how many there are in all."""

    def faults(self, account: Account) -> list[str]:
        """What should have come of it and did not."""
        return []


class Kill(Accident):
    """kill -9, while logx has taken a POST that the worker has no answer to; then a new worker in its place.

    Over when the new one has sent something again: what it could not know to be taken.
    """

    def __init__(self, parts: Parts, shown: Display) -> None:
        self.over = False
        self._parts = parts
        self._shown = shown
        self._repeats = 0
        # From the start, so that a short run has a POST under way, too.
        parts.stand_ins.control("logx", hold_answers=True)

    def happen(self, account: Account, requests: int) -> None:
        if account.kills:
            self.over = self._repeated(account)
        elif account.logx.get("unanswered", 0) and account.answered >= requests // 4:
            self._kill(account)

    def faults(self, account: Account) -> list[str]:
        if not account.kills:
            return ["the worker was not killed: there was no POST under way to logx"]
        return [] if self._repeated(account) else ["the kill caused no repeat on the wire"]

    def _repeated(self, account: Account) -> bool:
        """A held POST that the worker gave up before its death was repeated, too: that is not of the kill."""
        return int(account.logx.get("repeats", 0)) > self._repeats

    def _kill(self, account: Account) -> None:
        worker = self._parts.worker
        _book_lookups(account, worker)
        worker.kill()
        self._repeats = self._parts.stand_ins.ledger("logx")["repeats"]
        self._parts.stand_ins.control("logx", hold_answers=False)
        worker.start()
        account.kills += 1
        self._shown.step(
            f"killed the worker with -9 when logx had taken {account.logx.get('events', 0):,} events and not answered; "
            "started another"
        )


def _batches(records: Iterator[Sent]) -> Iterator[list[Sent]]:
    while batch := list(islice(records, _SENT_AT_ONCE)):
        yield batch


def _book_lookups(account: Account, worker: Worker) -> None:
    account.book_worker(*(worker.metric("segment_lookups_total", outcome=outcome) for outcome in ("hit", "shared")))
