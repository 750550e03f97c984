"""The loop of one partition: 1 fetched, 2 decoded and handled, 3 sent, 4 done. Commits follow from 4 alone.

A chunk is what one poll brought of this partition. Several are under way at once; they are settled in any order and
committed in order (`progress.py`). The role's handler decodes and handles; what it publishes goes to the same
partition number of the results topic (`sink.py`). Nothing here waits: the waiting is done by the consumer's one poll
(`consumer.py`), by the sender of the lane, and by the clients of the services.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiokafka import TopicPartition

from pipeline.errors import Rejected
from pipeline.kafka.commit_note import CommitNote
from pipeline.kafka.dead_letters import DeadLetters
from pipeline.kafka.progress import Progress, Span
from pipeline.kafka.records import Record
from pipeline.kafka.sink import Lane
from pipeline.messages.delivery import Chunk, Delivery, Result, identity_of

_NO_NOTE = CommitNote()
# After so many unclean ends in a row, the record at fault is looked for.
_TRUSTED_ENDS = 3


class Handler(Protocol):
    """What a role does with the records of one partition. One for each owned partition, for as long as it is owned."""

    def handle(self, chunk: Chunk) -> None:
        """Settle every record of the chunk, now or later, without waiting here."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Where an owned partition begins, and what a previous owner already published of it."""

    position: int
    note: CommitNote = _NO_NOTE
    """What the last owner left with its last commit."""
    scan_floor: int = 0
    results_end: int = 0
    """The end of the results partition when the scan was made."""
    recovered: Mapping[int, tuple[int, ...]] | None = None
    """Offset of a request -> timestamps (ms) that results published for it name. Of two topics of one name, two."""
    topic_id: str | None = None
    results_id: str | None = None
    """Ids of the topics that `position` and `scan_floor` belong to, where the broker gives any."""


class InFlight:
    """A chunk under way; the Chunk that handlers see, and the Receipt that senders tell."""

    __slots__ = ("_partition", "_pending", "abandoned", "octets", "records", "size", "span")

    def __init__(self, partition: Partition, records: Sequence[Record], span: Span, octets: int) -> None:
        self.records: Sequence[Delivery] = records
        self.abandoned = False
        self.octets = octets
        self.span = span
        self.size = len(records)
        self._partition = partition
        self._pending = len(records)

    @property
    def has_room(self) -> bool:
        return self._partition.lane.has_room

    def when_room(self, go_on: Callable[[], object]) -> None:
        self._partition.lane.when_room(go_on)

    def publish(self, results: Sequence[Result]) -> None:
        self._partition.publish(results, self)

    def reject(self, record: Delivery, why: Rejected) -> None:
        if not self.abandoned:
            self._partition.dead_letters.write(record, why, _Aside(self))

    def expect(self, count: int) -> None:
        self._pending += count

    def acknowledged(self, count: int, low: int) -> None:
        self.span.published(low)
        self.done(count)
        self._partition.acknowledged()

    def done(self, count: int) -> None:
        self._pending -= count
        if self._pending == 0:
            self._partition.finished(self)
        elif self._pending < 0:
            raise AssertionError(f"records of {self._partition.tp} settled twice")


class _Aside:
    """The receipt of a dead letter: it settles a record but says nothing of the results partition."""

    __slots__ = ("_chunk",)

    def __init__(self, chunk: InFlight) -> None:
        self._chunk = chunk

    def acknowledged(self, count: int, low: int) -> None:
        self._chunk.done(count)


class Partition:
    """One owned partition, from its opening to its release."""

    def __init__(
        self,
        tp: TopicPartition,
        *,
        handler: Handler,
        dead_letters: DeadLetters,
        lane: Lane | None,
        window: int,
        weight: int,
        settled: Callable[[InFlight], None],
        acknowledged: Callable[[], None],
    ) -> None:
        """`lane`: the results partition of the same number, where the role publishes; `settled` hears of each chunk.

        `window` is in records; `weight` the bytes that one under way takes besides its value.

        `acknowledged` hears when results were written, also of a chunk that is not complete yet.
        """
        self.tp = tp
        self.dead_letters = dead_letters
        self.open = False
        self.blocked = False
        self.octets = 0
        self.moved_at = time.monotonic()
        self.commit_due = self.closing = False
        self.looking = False
        """Records go one at a time just now."""
        self.queue: deque[Record] = deque()
        """Records fetched and not begun: only where they go one at a time."""
        self.topic_id: str | None = None
        self.results_id: str | None = None
        """Ids of the topics that it was opened on, where the broker gives any."""
        self._handler = handler
        self._lane = lane
        self._window = window
        self._weight = weight
        self._settled = settled
        self.acknowledged = acknowledged
        self._progress = Progress(0)
        self._recovered: dict[int, tuple[int, ...]] = {}
        self._chunks: deque[InFlight] = deque()
        self._unclean = 0
        self._suspicious_end = 0
        self._begun = False
        self._in_hand: int | None = None
        self._killer: int | None = None

    def begin(self, opening: Opening) -> None:
        """Begin at a known position. Records are asked for once `open` is set."""
        self._recovered = dict(opening.recovered or {})
        self._progress = Progress(
            opening.position,
            scan_floor=opening.scan_floor,
            recovered_end=max(self._recovered, default=-1) + 1,
        )
        if self._lane is not None:
            same_log = opening.results_id == self._lane.topic_id
            self._lane.end = max(self._lane.end, opening.results_end) if same_log else opening.results_end
            self._lane.topic_id = opening.results_id
        self.topic_id, self.results_id = opening.topic_id, opening.results_id
        # Counted before the first record is touched: this life may be the next unclean end.
        self._unclean = opening.note.unclean + 1
        self._suspicious_end = opening.position + self._window
        self._killer = opening.note.alone
        self._begun = self.commit_due = True
        self.moved_at = time.monotonic()

    def learn_ids(self, topic_id: str | None, results_id: str | None) -> None:
        """Fill in the ids of the topics that no broker gave at the opening. The next commit names them."""
        before = self.topic_id, self.results_id
        if self.topic_id is None:
            self.topic_id = topic_id
        if self._lane is not None and self.results_id is None:
            self.results_id = self._lane.topic_id = results_id
        self.commit_due |= before != (self.topic_id, self.results_id)

    # 1. Fetched

    @property
    def full(self) -> bool:
        """The window is used up: not asked for until the oldest chunk is settled."""
        return self._progress.window >= self._window or self.looking

    @property
    def one_at_a_time(self) -> bool:
        """The last owners died one after the other, and what they may have died of is not passed yet."""
        return self._unclean > _TRUSTED_ENDS and self._progress.position < self._suspicious_end

    def take_in_hand(self, record: Record) -> None:
        """Name a record in the next commit, before it is taken alone."""
        self._in_hand = record.offset
        self.commit_due = True

    def take(self, records: list[Record]) -> int:
        """A chunk arrives; returns how many of its requests had been answered before a takeover."""
        octets = sum([len(record.value) for record in records if record.value]) + self._weight * len(records)
        chunk = self._under_way(records, octets)
        answered = 0
        if self._recovered:
            chunk.records = fresh = [record for record in records if not self._answered(record)]
            answered = len(records) - len(fresh)
        if self._killer is not None:
            self._put_killer_aside(chunk)

        # 2. Decoded and handled, by the role
        if chunk.records:
            self._handler.handle(chunk)
        if answered:
            chunk.done(answered)
        return answered

    def _under_way(self, records: list[Record], octets: int) -> InFlight:
        if not self._chunks:
            self.moved_at = time.monotonic()
        chunk = InFlight(self, records, self._progress.take(records[0].offset, records[-1].offset + 1), octets)
        self._chunks.append(chunk)
        self.octets += octets
        return chunk

    def put_aside(self, record: Record, why: Rejected) -> None:
        """A record that no handler can be given becomes a dead letter."""
        self._under_way([record], 0).reject(record, why)

    def _put_killer_aside(self, chunk: InFlight) -> None:
        """The record that was alone in hand when its process died goes to the dead letters, untouched."""
        for record in chunk.records:
            if record.offset == self._killer:
                chunk.records = [other for other in chunk.records if other is not record]
                chunk.reject(
                    record, Rejected("crashed_worker", "the process died while it had only this record in hand")
                )
        self._killer = None

    def _answered(self, record: Record) -> bool:
        """A published decision is final. Offsets repeat where a topic was created again: the time tells which."""
        timestamps = self._recovered.pop(record.offset, ())
        return bool(timestamps) and identity_of(record, "-")[1] in timestamps

    # 3. Sent

    @property
    def has_room(self) -> bool:
        """Whether results may be made: not while Kafka has enough of them to take."""
        return self._lane is None or self._lane.has_room

    @property
    def lane(self) -> Lane:
        if self._lane is None:
            raise AssertionError(f"the role that reads {self.tp.topic} publishes nothing")
        return self._lane

    def publish(self, results: Sequence[Result], chunk: InFlight) -> None:
        if not chunk.abandoned:
            self.lane.extend(results, chunk)

    # 4. Done

    def finished(self, chunk: InFlight) -> None:
        self.octets -= chunk.octets
        if self._progress.finish(chunk.span):
            self.moved_at = time.monotonic()
            self.commit_due = True
            while self._chunks and self._chunks[0].span.finished:
                self._chunks.popleft()
        self._settled(chunk)

    # Committed, watched, released

    @property
    def position(self) -> int:
        return self._progress.position

    @property
    def records_under_way(self) -> int:
        return self._progress.window

    @property
    def idle(self) -> bool:
        return not self._chunks

    def commit_point(self) -> tuple[int, str]:
        """What to commit now: the position, and the note for whoever takes over."""
        position = self._progress.position
        unclean = 0 if self.closing else self._unclean if position < self._suspicious_end else 1
        floor = None if self._lane is None else self._progress.floor(self._lane.end)
        alone = self._in_hand if self._in_hand is not None and self._in_hand >= position else None
        return position, CommitNote(floor, unclean, alone, self.topic_id, self.results_id).encode()

    def oldest(self) -> int | None:
        """Timestamp (ms) of the oldest record not settled, if there is one."""
        return self._chunks[0].records[0].timestamp if self._chunks and self._chunks[0].records else None

    def stuck_for(self, now: float) -> float:
        """Seconds without progress while there was work; 0 when there is none, or while only Kafka is waited for."""
        if not self._chunks or self.sending:
            return 0.0
        return now - self.moved_at

    def abandon(self) -> None:
        """The partition is given away: nothing of it is started any more, and nothing that still waits is done."""
        self.open = False
        # One that was never begun, or is blocked, has no position: committing one would send its next owner back.
        self.closing = self.commit_due = self._begun
        self._in_hand = None
        self.queue.clear()
        for chunk in self._chunks:
            chunk.abandoned = True

    def pass_over(self, position: int) -> None:
        """What lies before `position` was never given to us and never will be."""
        if self.idle and not self.looking and position > self._progress.position:
            self._progress.pass_over(position)
            self.commit_due = True

    def discard(self) -> None:
        """Results that Kafka was not given yet are the next owner's to give."""
        if self._lane is not None:
            self._lane.discard()

    @property
    def result_octets(self) -> int:
        """Bytes of results that Kafka has not acknowledged."""
        return 0 if self._lane is None else self._lane.octets

    @property
    def sending(self) -> bool:
        """Results are on their way to Kafka, which has not acknowledged them."""
        return self._lane is not None and self._lane.sending

    async def sent(self) -> None:
        """Wait until what was handed to Kafka is written; the caller ends the process if that takes too long."""
        if self._lane is not None:
            await self._lane.flush()
