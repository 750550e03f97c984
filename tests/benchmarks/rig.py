"""The rig: Apache Kafka, the services and a sink on one core, what is measured on the other, and the counting.

A contender is a list of parts, each a process with a counter of what it has finished. All are started on a topic that
was filled beforehand; after a warm-up a part's processor time is set against its own count until the topic is drained
or the seconds are over. So parts that run ahead of each other are still each charged for what they did.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from uuid import uuid4

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from pipeline.sandbox.kafka import LocalKafka
from pipeline.sandbox.processes import Guarded, StandIns, temporary_directory, undisturbed, until
from tests.benchmarks.loads import cold_people
from tests.benchmarks.machine import MEASURED, OTHERS, pin, usage

PARTITIONS = 16
_WARM_SECONDS = 1.0
_START_SECONDS = 60.0
_DRAIN_SECONDS = 120.0
_LEAST_SECONDS = 0.5
_SAMPLE_SECONDS = 0.05
_DRAINED = 0.97
_BUSY = 0.85
_ADMIN_SECONDS = 30.0
_BROKER_FLAGS = ("-Xms1g", "-Xmx1g", "-XX:+UseSerialGC")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process of a contender."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    finished: Callable[[], int]
    """What it has finished so far, in units of the row (requests, impressions, events)."""
    total: int
    """What it can finish."""
    errors: Callable[[], int] = lambda: 0
    """How many requests it has answered with an error so far: such answers are cheap and would flatter it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one part took, in its measured seconds."""

    us: float
    """Processor time for a unit, microseconds."""
    rate: float
    """Units a second."""
    busy: float
    """Share of the wall clock it was on its core; below 0.85 it waited for somebody else."""
    peak_bytes: int
    errors: int = 0
    """Requests answered with an error, from the start on."""

    @property
    def waited(self) -> bool:
        return self.busy < _BUSY


class Rig:
    """Everything around what is measured. A context manager; not even its death leaves anything behind."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            broker = self._broker = self._stack.enter_context(LocalKafka(java_flags=_BROKER_FLAGS))
            self.bootstrap_servers = broker.bootstrap_servers
            self.stand_ins = self._stack.enter_context(StandIns(("cdn", "odp"), arguments={"odp": ["--fast"]}))
            self.stand_ins.control("odp", users=cold_people())
            # Made right before the first process that removes it should this one die.
            with undisturbed():
                self.directory = temporary_directory("bench")
                self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self._sink = self._process("sink", [sys.executable, "-m", "tests.benchmarks.sink"], None)
            self._stack.callback(self._sink.close)
            until(lambda: self._sink.log.read_bytes().endswith(b"}\n"), timeout=10, what="the sink")
            self.sink = f"http://127.0.0.1:{json.loads(self._sink.log_tail(1))['port']}"
            assert broker.pid is not None
            for pid in (broker.pid, self.stand_ins.pid("cdn"), self.stand_ins.pid("odp"), self._sink.pid):
                pin(pid, OTHERS)
            self._admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
            # Only asked for the ends of topics.
            self._reader = Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": "unused", "log_level": 0})
            self._stack.callback(self._reader.close)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            # Nothing of it is needed any more: who waits for the end need not wait for an orderly one.
            self._broker.kill()
        self._stack.close()

    def new_topic(self, name: str, partitions: int = PARTITIONS) -> str:
        """A topic with this name and something that makes it new."""
        topic = f"{name}-{uuid4().hex[:6]}"
        config = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": "4194304"}
        made = NewTopic(topic, partitions, 1, config=config)
        self._admin.create_topics([made])[topic].result(_ADMIN_SECONDS)
        until(lambda: self._has_leaders(topic, partitions), timeout=_ADMIN_SECONDS, what=f"leaders of {topic}")
        return topic

    def delete_topics(self, *topics: str) -> None:
        for future in self._admin.delete_topics(list(topics)).values():
            future.result(_ADMIN_SECONDS)

    def fill(self, topic: str, records: Iterable[tuple[bytes, bytes]]) -> int:
        """Write records by their keys; how many."""
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers, "enable.idempotence": True, "linger.ms": 20,
                "compression.type": "zstd", "partitioner": "murmur2_random", "batch.size": 256 * 1024,
                "queue.buffering.max.messages": 1_000_000, "log_level": 0,
            }
        )  # fmt: skip
        count = 0
        for key, value in records:
            put(producer, topic, key, value)
            count += 1
        if producer.flush(_START_SECONDS):
            raise TimeoutError("the broker did not take the records that fill a topic")
        return count

    def end_of(self, topic: str, partitions: int = PARTITIONS) -> int:
        """Records written to a topic so far."""
        return sum(
            self._reader.get_watermark_offsets(TopicPartition(topic, number), _ADMIN_SECONDS, cached=False)[1]
            for number in range(partitions)
        )

    def _has_leaders(self, topic: str, partitions: int) -> bool:
        """Whether a topic can be asked, which it cannot at once after it was made."""
        try:
            # Without this the client goes on believing for half a minute that there is no such topic.
            self._reader.list_topics(topic, _ADMIN_SECONDS)
            self.end_of(topic, partitions)
        except KafkaException:
            return False
        return True

    def sunk(self) -> dict[str, int]:
        """What the sink has counted."""
        with urllib.request.urlopen(f"{self.sink}/ledger", timeout=_ADMIN_SECONDS) as answer:
            counted: dict[str, int] = json.load(answer)
        return counted

    def measure(self, parts: Sequence[Part], *, seconds: float) -> list[Taken]:
        """Run the parts, one process each, on the measured core; what each took. They are killed at the end.

        A topic is drained, or the `seconds` after the warm-up are over. Raises TimeoutError when a part finishes
        nothing, RuntimeError when one ends by itself or has too little to do.
        """
        with ExitStack() as running:
            watches = []
            for part in parts:
                process = self.start(part)
                running.callback(process.kill)
                watches.append(_Watch(part, [process], seconds))
            return _watched(watches, seconds)

    def measure_together(self, parts: Sequence[Part], *, seconds: float, fill: Callable[[], object]) -> Taken:
        """Several processes that share the first part's count. `fill` gives them work once all of them are ready."""
        with ExitStack() as running:
            processes = []
            for part in parts:
                processes.append(self.start(part))
                running.callback(processes[-1].kill)
            for part, process in zip(parts, processes, strict=True):
                port = part.environment["PIPELINE_OPS__PORT"]
                until(functools.partial(_ready, port, process), timeout=_START_SECONDS, what="a worker")
            # Watched while it is filled: by the end of that the workers may have little left to do.
            with ThreadPoolExecutor(1) as beside:
                filling = beside.submit(fill)
                taken = _watched([_Watch(parts[0], processes, seconds)], seconds)[0]
                filling.result()
            return taken

    def start(self, part: Part) -> Guarded:
        """Run a part on the measured core."""
        process = self._process(part.name, part.command, part.environment)
        pin(process.pid, MEASURED)
        return process

    def start_beside(self, name: str, command: Sequence[str]) -> Guarded:
        """Run something that is not measured, where the broker is."""
        process = self._process(name, command, None)
        pin(process.pid, OTHERS)
        return process

    def _process(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None) -> Guarded:
        log = self.directory / f"{name}-{uuid4().hex[:6]}.log"
        # Therefore never close() one in the middle of a run, but kill() it: closing is how it is told of a death.
        return Guarded(command, log=log, environment=environment, remove=self.directory)


def put(producer: Producer, topic: str, key: bytes, value: bytes) -> None:
    """Hand over a record, which waits for room in the producer's queue."""
    while True:
        try:
            producer.produce(topic, value=value, key=key)
            break
        except BufferError:
            producer.poll(0.1)


def _ready(port: str, process: Guarded) -> bool:
    if not process.running:
        raise RuntimeError(f"a worker ended at its start:\n{process.log_tail()}")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=_ADMIN_SECONDS):
            return True
    except OSError:
        return False


def _watched(watches: Sequence[_Watch], seconds: float) -> list[Taken]:
    deadline = time.monotonic() + _START_SECONDS + min(seconds, _DRAIN_SECONDS)
    # A list: each is to be looked at, also after one that is not done.
    while not all([watch.look() for watch in watches]):  # noqa: C419
        if time.monotonic() > deadline:
            raise TimeoutError("; ".join(watch.late() for watch in watches if watch.taken is None))
        time.sleep(_SAMPLE_SECONDS)
    return [watch.taken for watch in watches if watch.taken is not None]


class _Watch:
    """One running part, of one process or several: when its measured seconds begin and end."""

    def __init__(self, part: Part, processes: Sequence[Guarded], seconds: float) -> None:
        self.part = part
        self.taken: Taken | None = None
        self._processes = processes
        self._seconds = seconds
        self._first: tuple[float, int] | None = None
        self._begin: tuple[float, int, float] | None = None

    def look(self) -> bool:
        """Whether it is done; called again and again."""
        if self.taken is not None:
            return True
        for process in self._processes:
            if not process.running:
                raise RuntimeError(f"{self.part.name} ended by itself:\n{process.log_tail()}")
        count, now = self.part.finished(), time.monotonic()
        used = [usage(process.pid) for process in self._processes]
        cpu, peak = sum(one.cpu for one in used), max(one.peak_bytes for one in used)
        if self._first is None:
            self._first = (now, count) if count else None
        elif self._begin is None:
            if now - self._first[0] >= _WARM_SECONDS:
                self._begin = (now, count, cpu)
        elif count >= self.part.total * _DRAINED or now - self._begin[0] >= self._seconds:
            begun, had, before = self._begin
            if count == had or now - begun < _LEAST_SECONDS:
                raise RuntimeError(
                    f"{self.part.name} had drained its topic {now - begun:.1f} s after the warm-up: too little to "
                    f"measure, fill in more than {self.part.total}"
                )
            spent, wall = cpu - before, now - begun
            errors = self.part.errors()
            self.taken = Taken(spent / (count - had) * 1e6, (count - had) / wall, spent / wall, peak, errors)
        return self.taken is not None

    def late(self) -> str:
        """What to say when it is not done in time."""
        return f"{self.part.name}: {self.part.finished()} of {self.part.total} in time\n{self._processes[0].log_tail()}"
