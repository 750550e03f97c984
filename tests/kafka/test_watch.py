"""What the watch calls stuck: work that does not move, and records left unread; never what nobody can know."""

from __future__ import annotations

import time

import pytest
from aiokafka import TopicPartition

from pipeline.kafka.partition import Opening, Partition
from pipeline.kafka.records import Record
from pipeline.kafka.watch import Watch, ranges
from pipeline.messages.delivery import Chunk
from tests.handlers.chunks import new_metrics, value

TP = TopicPartition("requests", 0)
AFTER = 60
LABELS = {"role": "decide", "topic": "requests", "partition": "0"}


class Keeps:
    def handle(self, chunk: Chunk) -> None:
        self.chunk = chunk


@pytest.fixture
def keeps() -> Keeps:
    return Keeps()


@pytest.fixture
def partition(keeps: Keeps) -> Partition:
    made = Partition(
        TP, handler=keeps, dead_letters=None, lane=None, window=100, weight=1024,  # type: ignore[arg-type]
        settled=lambda chunk: None, acknowledged=lambda: None,
    )  # fmt: skip
    made.begin(Opening(5))
    made.open = True
    return made


@pytest.fixture
def watch() -> Watch:
    return Watch("decide", ["requests"], metrics=new_metrics())


def stuck(watch: Watch, partition: Partition) -> list[str]:
    return watch.stuck([partition], time.monotonic() + AFTER + 1, after=AFTER)


def test_records_left_unread_are_told_while_they_are_seen_and_not_during_an_outage(
    watch: Watch, partition: Partition
) -> None:
    watch.observe([partition], {TP: 8})
    assert stuck(watch, partition) == ["requests-0 has records to read and reads none for 61 s"]
    # The broker is away: what lay unread before may be read by now, and a restart would mend nothing.
    watch.observe([partition], {})
    assert stuck(watch, partition) == []
    watch.observe([partition], {TP: 5})
    assert stuck(watch, partition) == []


def test_lag_is_shown_as_it_was_last_seen(watch: Watch, partition: Partition) -> None:
    watch.observe([partition], {TP: 8})
    watch.observe([partition], {})
    assert value(watch._metrics, "lag_records", **LABELS) == 3


def test_work_that_does_not_move_is_told_whatever_is_known_of_the_log(
    watch: Watch, partition: Partition, keeps: Keeps
) -> None:
    partition.take([Record("requests", 0, 5, 1_700_000_000_000, 1, b"user", b"{}", ())])
    watch.observe([partition], {})
    assert stuck(watch, partition) == ["requests-0 has had unfinished work for 61 s"]
    keeps.chunk.done(1)
    assert stuck(watch, partition) == []


@pytest.mark.parametrize(
    ("partitions", "text"),
    [
        ([("a", 0)], "a 0"),
        ([("b", 1), ("a", 2), ("a", 0), ("a", 1), ("a", 7)], "a 0-2 7, b 1"),
        ([("a", number) for number in (1, 2, 4, 5, 6, 10)], "a 1-2 4-6 10"),
        ([], ""),
    ],
)
def test_partitions_are_named_in_ranges(partitions: list[tuple[str, int]], text: str) -> None:
    assert ranges(TopicPartition(topic, number) for topic, number in partitions) == text
