"""One owned partition without a broker: what was answered before a takeover, and what is passed over."""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition

from pipeline.kafka.partition import Opening, Partition
from pipeline.kafka.records import Record
from pipeline.messages.delivery import SOURCE_HEADER, TIMESTAMP_HEADER, Chunk

TP = TopicPartition("requests", 0)
CREATE_TIME, LOG_APPEND_TIME = 0, 1
ASKED_AT = 1_700_000_000_000


class Settles:
    """Remembers the offsets it is given, and settles them when told to."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    @property
    def offsets(self) -> list[int]:
        return [record.offset for chunk in self.chunks for record in chunk.records]

    def handle(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)

    def settle(self) -> None:
        for chunk in self.chunks:
            chunk.done(len(chunk.records))


def record(
    offset: int, *, timestamp_type: int = LOG_APPEND_TIME, headers: tuple[tuple[str, bytes], ...] = ()
) -> Record:
    return Record("requests", 0, offset, ASKED_AT, timestamp_type, b"user", b"{}", headers)


def opened(handler: Settles, opening: Opening) -> Partition:
    partition = Partition(
        TP, handler=handler, dead_letters=None, lane=None, window=100, weight=1024,  # type: ignore[arg-type]
        settled=lambda chunk: None, acknowledged=lambda: None,
    )  # fmt: skip
    partition.begin(opening)
    partition.open = True
    return partition


@pytest.mark.parametrize("timestamp_type", [CREATE_TIME, LOG_APPEND_TIME])
@pytest.mark.parametrize(
    ("times", "answered"),
    [
        ((ASKED_AT,), True),
        # Of a topic that was deleted and created again, whose offsets repeat.
        ((ASKED_AT - 1,), False),
        ((ASKED_AT + 1,), False),
        ((ASKED_AT - 86_400_000, ASKED_AT), True),
    ],
)
def test_a_published_result_answers_the_request_whose_time_it_names(
    times: tuple[int, ...], timestamp_type: int, answered: bool
) -> None:
    handler = Settles()
    partition = opened(handler, Opening(5, recovered={6: times}))
    assert partition.take([record(offset, timestamp_type=timestamp_type) for offset in (5, 6, 7)]) == answered
    assert handler.offsets == ([5, 7] if answered else [5, 6, 7])
    assert partition.position == 5
    handler.settle()
    assert (partition.position, partition.idle) == (8, True)


def test_of_a_replayed_record_the_time_it_first_had_counts() -> None:
    handler = Settles()
    replayed = record(5, headers=((SOURCE_HEADER, b"requests-3-17"), (TIMESTAMP_HEADER, b"77")))
    assert opened(handler, Opening(5, recovered={5: (77,)})).take([replayed]) == 1
    assert opened(handler, Opening(5, recovered={5: (ASKED_AT,)})).take([replayed]) == 0


def test_a_chunk_that_was_answered_whole_is_settled_without_the_handler() -> None:
    handler = Settles()
    partition = opened(handler, Opening(5, recovered={5: (ASKED_AT,), 6: (ASKED_AT,)}))
    assert partition.take([record(5), record(6)]) == 2
    assert (handler.chunks, partition.position, partition.octets) == ([], 7, 0)


def test_a_record_weighs_more_than_its_bytes_until_it_is_settled() -> None:
    handler = Settles()
    partition = opened(handler, Opening(5))
    partition.take([record(5), record(6)])
    assert partition.octets == 2 * (len(b"{}") + 1024)
    handler.settle()
    assert partition.octets == 0


def test_what_no_poll_brings_is_committed_once_nothing_is_under_way() -> None:
    handler = Settles()
    partition = opened(handler, Opening(5))
    partition.take([record(5)])
    partition.commit_due = False
    partition.pass_over(9)
    assert (partition.position, partition.commit_due) == (5, False)
    handler.settle()
    partition.commit_due = False
    partition.pass_over(6)
    assert (partition.position, partition.commit_due) == (6, False)
    partition.pass_over(9)
    assert (partition.commit_point()[0], partition.commit_due) == (9, True)


def test_nothing_is_passed_over_while_records_wait_to_go_one_at_a_time() -> None:
    partition = opened(Settles(), Opening(5))
    # They were fetched, so the client is past them, and no handler has seen them.
    partition.queue.extend([record(5), record(6)])
    partition.looking = True
    partition.pass_over(7)
    assert partition.position == 5


def test_giving_up_a_partition_that_never_began_commits_nothing() -> None:
    partition = Partition(
        TP, handler=Settles(), dead_letters=None, lane=None, window=100, weight=1024,  # type: ignore[arg-type]
        settled=lambda chunk: None, acknowledged=lambda: None,
    )  # fmt: skip
    partition.abandon()
    assert not partition.commit_due
    begun = opened(Settles(), Opening(5))
    begun.commit_due = False
    begun.abandon()
    assert begun.commit_due
