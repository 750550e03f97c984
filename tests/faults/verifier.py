"""An independent client: requests written and results read by librdkafka, and what must be true of them.

Nothing here is the product's: a verifier that shared its code would share its mistakes.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.support import Broker


def requests(count: int, *, users: int, seed: int = 1, **fields: object) -> Iterator[tuple[str, bytes]]:
    """(user id, value) of decide requests; `requestId` numbers them."""
    rng = random.Random(seed)
    for number in range(count):
        user = f"user-{rng.randrange(users):05d}"
        yield user, json.dumps({"userId": user, "requestId": str(number), **fields}).encode()


def produce(broker: Broker, topic: str, records: Iterable[tuple[str, bytes]]) -> int:
    """Write records keyed by user id, each user's in order; returns how many. Waits out an outage."""
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap_servers, "partitioner": "murmur2", "enable.idempotence": True,
            "linger.ms": 20, "compression.type": "zstd", "message.timeout.ms": 0, "log_level": 0,
        }
    )  # fmt: skip
    count = 0
    for key, value in records:
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
        producer.poll(0)
    left = producer.flush(120)
    assert left == 0, f"{left} records were not written"
    return count


@dataclass(frozen=True, slots=True)
class Result:
    partition: int
    offset: int
    key: str
    source: str
    value: dict  # type: ignore[type-arg]

    @property
    def source_offset(self) -> int:
        return int(self.source.rpartition("-")[2])


class Trickle:
    """Writes numbered requests at a steady rate, from a thread of its own, until it is stopped."""

    def __init__(self, broker: Broker, topic: str, *, users: int, rate: int, **fields: object) -> None:
        self.written = 0
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(broker, topic, users, rate, fields), daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """How many were written in all."""
        self._stop.set()
        self._thread.join(130)
        assert not self._thread.is_alive(), "the last records cannot be written"
        if self._failure is not None:
            raise self._failure
        return self.written

    def _run(self, broker: Broker, topic: str, users: int, rate: int, fields: dict[str, object]) -> None:
        try:
            self.written = produce(broker, topic, self._paced(users, rate, fields))
        except (AssertionError, KafkaException) as error:
            self._failure = error

    def _paced(self, users: int, rate: int, fields: dict[str, object]) -> Iterator[tuple[str, bytes]]:
        started = time.monotonic()
        for number, record in enumerate(requests(10**9, users=users, seed=2, **fields)):
            while number > (time.monotonic() - started) * rate:
                if self._stop.wait(0.01):
                    return
            if self._stop.is_set():
                return
            yield record


class Results:
    """Everything on the results topic so far; `read()` goes on where it stopped."""

    def __init__(self, broker: Broker, topic: str, partitions: int) -> None:
        self.topic = topic
        self.all: list[Result] = []
        self.first_at: dict[int, float] = {}
        self._consumer = Consumer(
            {
                "bootstrap.servers": broker.bootstrap_servers, "group.id": "verifier", "enable.auto.commit": False,
                "reconnect.backoff.max.ms": 200, "log_level": 0,
            }
        )  # fmt: skip
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])

    def close(self) -> None:
        self._consumer.close()

    def poll(self, seconds: float) -> int:
        """Read what is there, waiting at most `seconds` for something; returns how many were read."""
        messages = self._consumer.consume(5000, seconds)
        for message in messages:
            error = message.error()
            if error is None:
                self.all.append(_result(message))
            elif error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE):
                raise KafkaException(error)
        return len(messages)

    def read_for(self, seconds: float, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Read whatever comes for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.poll(0.02)
            meanwhile()

    def read(self, count: int, *, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> list[Result]:
        """Read until `count` distinct sources were seen. Raises TimeoutError that says how many there were."""
        deadline = time.monotonic() + seconds
        sources: set[str] = {result.source for result in self.all}
        while len(sources) < count:
            before = len(self.all)
            self.poll(0.2)
            sources |= {result.source for result in self.all[before:]}
            meanwhile()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(sources)} of {count} sources within {seconds:g} s")
        return self.all

    def read_all(self, count: int, *, seconds: float) -> list[Result]:
        """`read`, and then whatever still comes within two seconds: second results would."""
        self.read(count, seconds=seconds)
        while self.poll(2.0):
            pass
        return self.all


def _result(message: Message) -> Result:
    headers: Any = message.headers() or []
    source = dict(headers)["source"]
    key, value, partition, offset = message.key(), message.value(), message.partition(), message.offset()
    assert isinstance(source, bytes) and isinstance(key, bytes) and isinstance(value, bytes)
    assert partition is not None and offset is not None
    return Result(partition, offset, key.decode(), source.decode(), json.loads(value))


def assert_one_result_each(results: list[Result], count: int) -> None:
    """Every source once, on its own partition number, each user's in the order of the requests."""
    twice = [source for source, times in Counter(result.source for result in results).items() if times > 1]
    assert not twice, f"{len(twice)} sources have a second result, e.g. {twice[:3]}"
    assert len(results) == count
    assert all(int(result.source.split("-")[-2]) == result.partition for result in results)
    by_user: dict[str, list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda one: (one.partition, one.offset)):
        by_user[result.key].append(result)
    unordered = [
        user for user, own in by_user.items() if [r.source_offset for r in own] != sorted(r.source_offset for r in own)
    ]
    assert not unordered, f"results of {len(unordered)} users are out of order, e.g. {unordered[:3]}"


def impressions_due(results: list[Result]) -> int:
    return sum(len(result.value.get("tracking", {}).get("impressions", ())) for result in results)


def delete_group(broker: Broker, group: str, *, seconds: float = 40) -> None:
    """Delete a group and its commits, as soon as its last member is gone."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
    deadline = time.monotonic() + seconds
    while True:
        try:
            admin.delete_consumer_groups([group])[group].result(10)
            return
        except KafkaException as error:
            if error.args[0].code() != KafkaError.NON_EMPTY_GROUP or time.monotonic() > deadline:
                raise
            time.sleep(0.2)  # the broker has no event for the end of a session


def members(broker: Broker, group: str) -> list[str]:
    """Member ids of a group now."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
    description = admin.describe_consumer_groups([group])[group].result(10)
    return sorted(member.member_id for member in description.members)
