"""Dead letters on Apache Kafka: a copy where one fits, else a pointer that can always be written."""

from __future__ import annotations

import pytest

from pipeline.errors import Rejected
from pipeline.kafka import client
from pipeline.kafka.dead_letters import DeadLetters
from pipeline.kafka.records import Record as Read
from pipeline.kafka.sink import Sink
from pipeline.messages.contracts import DEAD_LETTER
from pipeline.messages.dead_letters import ADDED_HEADERS, POINTER_HEADER
from tests.handlers.chunks import new_metrics
from tests.kafka.member import fail, kafka_settings, read
from tests.settled import Record
from tests.support import Broker, TopicMaker

MAX_BYTES = 10_000


class Told:
    count = 0

    def acknowledged(self, count: int, low: int) -> None:
        self.count += count


async def written(kafka: Broker, topics: TopicMaker, *records: Record) -> list[Read]:
    """The dead letters of the records, in order."""
    own = await topics(partitions=1)
    producer = await client.start_client(client.producer(kafka_settings(kafka)))
    metrics = new_metrics()
    sink = Sink(producer, own.dead_letters, partitions=1, metrics=metrics, fail=fail)
    letters, told = DeadLetters(sink, role="decide", max_bytes=MAX_BYTES, metrics=metrics), Told()
    try:
        for record in records:
            letters.write(record, Rejected("not_json", "no JSON"), told)
        await sink.flush()
    finally:
        await producer.stop()
    assert told.count == len(records)
    return await read(kafka, own.dead_letters, 1, count=len(records))


def size(letter: Read) -> int:
    return (
        len(letter.key or b"")
        + len(letter.value or b"")
        + sum(len(name) + len(text) for name, text in letter.headers if name != POINTER_HEADER)
    )


@pytest.mark.asyncio
async def test_key_value_and_headers_count_together(kafka: Broker, topics: TopicMaker) -> None:
    large = b"x" * (MAX_BYTES // 2)
    parts = [
        Record(b"v", 0, key=b"k", headers=[("h", b"1")]),
        Record(large * 3, 1),
        Record(b"v", 2, key=large * 3),
        Record(b"v", 3, headers=[("own", large), ("more", large)]),
        Record(large, 4, key=large),
        # No part is too large by itself; a name counts too, and so does a header without a value.
        Record(b"v", 5, headers=[("n" * (MAX_BYTES + 1), None)]),  # type: ignore[list-item]
    ]
    copy, *pointers = await written(kafka, topics, *parts)
    assert (copy.key, copy.value, copy.headers[0]) == (b"k", b"v", ("h", b"1"))
    for offset, letter in enumerate(pointers, 1):
        headers = {name: text.decode() for name, text in letter.headers}
        assert letter.value == b""
        assert (headers["pipeline-source-offset"], headers[POINTER_HEADER]) == (str(offset), "too_large_to_copy")
        assert DEAD_LETTER.is_valid(headers)


@pytest.mark.asyncio
async def test_one_that_just_fits_is_copied_and_one_byte_more_is_a_pointer(kafka: Broker, topics: TopicMaker) -> None:
    (bare,) = await written(kafka, topics, Record(b"", 7, key=b""))
    room = MAX_BYTES - size(bare)
    fits, over = await written(kafka, topics, Record(b"x" * room, 7, key=b""), Record(b"x" * room, 7, key=b"k"))
    assert (size(fits), fits.value) == (MAX_BYTES, b"x" * room)
    assert over.value == b""


@pytest.mark.asyncio
async def test_a_pointer_keeps_our_headers_alone_and_the_beginning_of_its_key(
    kafka: Broker, topics: TopicMaker
) -> None:
    own = [("traceparent", b"t"), ("large", b"x" * MAX_BYTES)]
    replayed = [*own, ("pipeline-source", b"requests-3-9"), ("pipeline-timestamp", b"1700000000001")]
    long, replay = await written(
        kafka, topics, Record(b"v", 0, key=b"k" * 5000, headers=own), Record(b"v", 1, headers=replayed)
    )
    for letter in (long, replay):
        assert {name for name, _ in letter.headers} == ADDED_HEADERS
        assert size(letter) < MAX_BYTES
    assert long.key == b"k" * 1024
    assert replay.key == b"user"
    assert dict(replay.headers)["pipeline-source"] == b"requests-3-9"
