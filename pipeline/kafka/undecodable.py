"""Records that aiokafka cannot make: a header name that is not UTF-8 raises in the middle of a poll, for ever.

The poll that failed is repeated for one record of one partition at a time, until the culprit is the next one. A
position moves only when a record was made, so it names the culprit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.errors import Rejected
from pipeline.kafka.poll import poll
from pipeline.kafka.records import Record

UNDECODABLE = Rejected("undecodable", "the client library cannot read it: a header name is not UTF-8")


async def one_of_each(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], *, timeout_ms: int
) -> AsyncIterator[tuple[TopicPartition, list[Record], int | None]]:
    """For each partition at most one record, or the offset of one that cannot be made, which is stepped over.

    Each comes at once: a position that moved without its record being taken would look as if it was passed over.
    """
    for tp in partitions:
        try:
            made = await poll(consumer, [tp], timeout_ms=timeout_ms, max_records=1)
        except UnicodeDecodeError:
            culprit = await consumer.position(tp)
            consumer.seek(tp, culprit + 1)
            yield tp, [], culprit
        else:
            yield tp, made.get(tp, []), None


def unread(tp: TopicPartition, offset: int) -> Record:
    """What is known of such a record: where it is."""
    return Record(tp.topic, tp.partition, offset, -1, 0, None, None, ())
