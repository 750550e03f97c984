"""The codec of the records that this product writes, as it stands in the batches that Apache Kafka keeps."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import MemoryRecords

from pipeline.kafka import client
from pipeline.kafka.sink import Sink
from pipeline.messages.delivery import Result
from tests.handlers.chunks import new_metrics
from tests.kafka.member import fail, kafka_settings
from tests.support import Broker, TopicMaker

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_ATTRIBUTES = slice(21, 23)
_CODEC_BITS = 0b111


class Told:
    def acknowledged(self, count: int, low: int) -> None:
        """Nothing is done with it."""


@pytest.mark.asyncio
@pytest.mark.parametrize("codec", [None, *CODECS])
async def test_results_are_written_with_the_codec_that_is_set_and_with_zstd_by_default(
    kafka: Broker, topics: TopicMaker, monkeypatch: pytest.MonkeyPatch, codec: str | None
) -> None:
    own = await topics(partitions=1)
    settings = kafka_settings(kafka) if codec is None else kafka_settings(kafka, compression_type=codec)
    producer = await client.start_client(client.producer(settings))
    sink = Sink(producer, own.decide_results, partitions=1, metrics=new_metrics(), fail=fail)
    values = [b"%d" % number + b" " * 500 for number in range(20)]
    try:
        sink.lane(0).extend([Result(b"key", value, []) for value in values], Told())
        await sink.flush()
    finally:
        await producer.stop()

    seen: set[int] = set()
    memory_records: Any = MemoryRecords

    def noted(raw: bytes) -> Any:
        if raw:
            seen.add(int.from_bytes(raw[_ATTRIBUTES]) & _CODEC_BITS)
        return memory_records(raw)

    monkeypatch.setattr(fetcher, "MemoryRecords", noted)
    async with AIOKafkaConsumer(
        own.decide_results, bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest"
    ) as consumer:
        assert [(await consumer.getone()).value for _ in values] == values
    assert seen == {CODECS[codec or "zstd"]}
