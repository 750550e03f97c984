"""An independent client of the topics: librdkafka writes and reads. Nothing here is the product's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import uuid4

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, Producer, TopicPartition

from tests.patience import PATIENCE

Headers = Mapping[str, bytes]


class Sent(NamedTuple):
    """Where the broker put a record, and the time it gave it (ms)."""

    topic: str
    partition: int
    offset: int
    timestamp: int

    @property
    def source(self) -> str:
        return f"{self.topic}-{self.partition}-{self.offset}"


class Outgoing(NamedTuple):
    value: bytes | None
    key: bytes | None = None
    headers: Headers = MappingProxyType({})
    partition: int = -1
    """-1: where the key's hash says."""


class Read(NamedTuple):
    """A record of a topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]
    timestamp: int
    """When the broker appended it (ms), where the topic says so."""

    @property
    def document(self) -> dict[str, Any]:
        assert self.value is not None
        document: dict[str, Any] = json.loads(self.value)
        return document


def keyed(body: Mapping[str, Any]) -> Outgoing:
    """A record as a service writes it: keyed by the user."""
    return Outgoing(json.dumps(body).encode(), str(body["userId"]).encode())


class Writer:
    """A producer; `send` returns when the broker has the records."""

    def __init__(self, bootstrap_servers: str, **configuration: object) -> None:
        defaults = {"bootstrap.servers": bootstrap_servers, "partitioner": "murmur2", "linger.ms": 5, "log_level": 0}
        self.producer = Producer(defaults | configuration)

    def send(self, topic: str, records: Iterable[Outgoing]) -> list[Sent]:
        """Write records in order; each user's stay in order. Returns where they are, in the order given."""
        places: dict[int, Sent] = {}

        def note(number: int) -> Callable[[object, Message], None]:
            def delivered(error: object, message: Message) -> None:
                assert error is None, error
                partition, offset = message.partition(), message.offset()
                assert partition is not None and offset is not None
                places[number] = Sent(topic, partition, offset, message.timestamp()[1])

            return delivered

        count = 0
        for count, (value, key, headers, partition) in enumerate(records, 1):
            self.producer.produce(
                topic, value, key, partition, on_delivery=note(count - 1), headers=dict(headers) or None
            )
            self.producer.poll(0)
        left = self.producer.flush(30)
        assert left == 0, f"{left} records were not written"
        return [places[number] for number in range(count)]


class Reader:
    """Everything on a topic since its beginning, as far as it was read; `until` goes on where it stopped."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int) -> None:
        self.all: list[Read] = []
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers, "group.id": f"reader-{uuid4().hex[:8]}",
                "enable.auto.commit": False, "fetch.wait.max.ms": 20, "log_level": 0,
            }
        )  # fmt: skip
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])

    def close(self) -> None:
        self._consumer.close()

    def poll(self, seconds: float) -> int:
        """Read what is there, waiting at most so long for something; how many were read."""
        messages = self._consumer.consume(5000, seconds)
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
            self.all.append(_read(message))
        return len(messages)

    def of(self, sources: Sequence[Sent], *, seconds: float = PATIENCE) -> list[Read]:
        """The one record that names each source in its headers, in the order of the sources. Raises TimeoutError."""
        wanted = [sent.source for sent in sources]
        deadline = time.monotonic() + seconds
        while missing := set(wanted) - self._by_source().keys():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{len(missing)} of {len(wanted)} without one within {seconds:g} s, e.g. {missing.pop()}"
                )
            self.poll(0.1)
        found = self._by_source()
        for source in wanted:
            assert len(found[source]) == 1, f"{source} has {len(found[source])}"
        return [found[source][0] for source in wanted]

    def _by_source(self) -> dict[str, list[Read]]:
        found: dict[str, list[Read]] = {}
        for record in self.all:
            found.setdefault(_source(record.headers), []).append(record)
        return found


def _source(headers: Mapping[str, bytes]) -> str:
    """Of the record itself: a result says `source`, a dead letter names topic, partition and offset."""
    if "pipeline-source-topic" in headers:
        return "-".join(headers[f"pipeline-source-{part}"].decode() for part in ("topic", "partition", "offset"))
    return headers["source"].decode()


def _read(message: Message) -> Read:
    headers: Any = message.headers() or []
    key, value, partition, offset = message.key(), message.value(), message.partition(), message.offset()
    assert partition is not None and offset is not None
    return Read(
        partition, offset, key.encode() if isinstance(key, str) else key,
        value.encode() if isinstance(value, str) else value, {name: value or b"" for name, value in headers},
        message.timestamp()[1],
    )  # fmt: skip
