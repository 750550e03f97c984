"""Opening partitions: where to begin, and what a previous owner already published of what it had not committed.

The floor in the commit's metadata says from where the results must be read. Without one (a first start, commits
expired or deleted) it is found by time: no result of a request is older than the request. A minute is taken off,
since leaders of two partitions may be two machines with two clocks. Offsets of a topic that was deleted and created
again mean nothing: the ids in the note tell (`topic_ids.py`), and a result answers the request whose time it names.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping

import msgspec
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import OffsetAndMetadata
from prometheus_client import Histogram

from pipeline.kafka.commit_note import CommitNote
from pipeline.kafka.partition import Opening, Partition
from pipeline.kafka.poll import poll
from pipeline.kafka.records import Record
from pipeline.kafka.topic_ids import TopicIds
from pipeline.kafka.undecodable import one_of_each
from pipeline.messages.delivery import RESULT_SOURCE_HEADER
from pipeline.metrics import Metrics

log = structlog.get_logger("pipeline.takeover")

_LOG_APPEND_TIME = 1
# Most that the clocks of two brokers are taken to differ.
_CLOCK_SKEW_MS = 60_000
_LONGEST_OFFSET = 19
# Without a record for so long a scan is given up and made again.
_SCAN_SILENCE_SECONDS = 10.0
_POLL_MS = 500
# Without a limit a poll unpacks all that was fetched, a MiB of each partition before decompression: that took 240 MB,
# and held the event loop for a second.
_SCAN_RECORDS = 1000


class _Timed(msgspec.Struct, frozen=True, gc=False):
    """Of a result, the time of the request that it answers; everything else is passed over."""

    timestamp: int


_decode = msgspec.json.Decoder(_Timed).decode


class Takeover:
    """Finds out where partitions of one group begin. Its consumer has no group and serves one scan at a time."""

    def __init__(
        self,
        *,
        group_id: str,
        admin: AIOKafkaAdminClient,
        scanner: AIOKafkaConsumer,
        topic_ids: TopicIds,
        results_topic: str | None,
        role: str,
        topics: Collection[str],
        metrics: Metrics,
    ) -> None:
        """`topics`: what the role reads. `results_topic` is None for a role that publishes nothing: nothing to scan."""
        self._group_id = group_id
        self._admin = admin
        self._scanner = scanner
        self._topic_ids = topic_ids
        self._results_topic = results_topic
        self._role = role
        # Made at the start: a series whose first sample is 1 shows no increase.
        self._lost = {topic: metrics.offsets_lost.labels(role, topic) for topic in topics}
        self._seconds: Histogram = metrics.takeover_seconds
        self._lock = asyncio.Lock()

    async def open(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, Opening]:
        """The openings of partitions just assigned. May be cancelled; raises what aiokafka raises."""
        async with self._lock:
            started = time.perf_counter()
            # Before the offsets: should a topic be created again in between, they are taken for the old one's.
            ids = dict(await self._topic_ids.look())
            committed = await self._admin.list_consumer_group_offsets(self._group_id, partitions=list(partitions))
            notes = {tp: CommitNote.decode(committed[tp].metadata) for tp in partitions if tp in committed}
            committed = await self._of_this_topic(committed, notes, ids)
            positions = await self._positions(partitions, committed)
            # A commit at another position than ours belongs to a log that is gone, and so does its note.
            notes = {
                tp: notes[tp] if tp in committed and committed[tp].offset == position else CommitNote()
                for tp, position in positions.items()
            }
            if self._results_topic is None:
                return {
                    tp: Opening(position, notes[tp], topic_id=ids.get(tp.topic)) for tp, position in positions.items()
                }
            try:
                openings = await self._scan(positions, notes, ids)
            finally:
                # Else it would go on fetching, and keep what it fetched.
                self._scanner.pause(*self._scanner.assignment())
            self._seconds.observe(time.perf_counter() - started)
            return openings

    async def topic_ids(self) -> Mapping[str, str]:
        """The ids of the role's topics now, as far as they are known. Raises KafkaError."""
        return await self._topic_ids.look()

    def is_of(self, partition: Partition, ids: Mapping[str, str]) -> bool:
        """Whether the topics still have the ids that the partition was opened on, as far as any are known."""
        pairs = [(partition.topic_id, ids.get(partition.tp.topic))]
        if self._results_topic is not None:
            pairs.append((partition.results_id, ids.get(self._results_topic)))
        return all(None in pair or pair[0] == pair[1] for pair in pairs)

    async def end_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        ends: dict[TopicPartition, int] = await self._scanner.end_offsets(list(partitions))
        return ends

    async def first_offset(self, tp: TopicPartition) -> int:
        firsts: dict[TopicPartition, int] = await self._scanner.beginning_offsets([tp])
        return firsts[tp]

    async def _of_this_topic(
        self,
        committed: dict[TopicPartition, OffsetAndMetadata],
        notes: dict[TopicPartition, CommitNote],
        ids: Mapping[str, str],
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """The commits without those made for a topic that was deleted since."""
        pairs = {(tp.topic, note.topic) for tp, note in notes.items()}
        gone = {pair for pair in pairs if await self._topic_ids.replaced(*pair, ids.get(pair[0]))}
        return {tp: at for tp, at in committed.items() if tp in notes and (tp.topic, notes[tp].topic) not in gone}

    async def _positions(
        self, partitions: Collection[TopicPartition], committed: dict[TopicPartition, OffsetAndMetadata]
    ) -> dict[TopicPartition, int]:
        firsts = await self._scanner.beginning_offsets(list(partitions))
        ends = await self._scanner.end_offsets(list(partitions))
        positions = {}
        for tp in partitions:
            offset = committed[tp].offset if tp in committed else -1
            if offset < 0:
                offset = firsts[tp]
            elif not firsts[tp] <= offset <= ends[tp]:
                self.lost(tp, offset, firsts[tp])
                offset = firsts[tp]
            positions[tp] = offset
        return positions

    def lost(self, tp: TopicPartition, offset: int, first: int) -> None:
        """A position is not in the log any more: records were deleted unread, or the log was truncated."""
        self._lost[tp.topic].inc()
        log.error(
            "committed offset is not in the log: records may be lost; reading from the log's start",
            role=self._role, topic=tp.topic, partition=tp.partition, committed=offset, log_start=first,
        )  # fmt: skip

    async def _scan(
        self, positions: dict[TopicPartition, int], notes: dict[TopicPartition, CommitNote], ids: Mapping[str, str]
    ) -> dict[TopicPartition, Opening]:
        assert self._results_topic is not None
        lanes = {tp: TopicPartition(self._results_topic, tp.partition) for tp in positions}
        firsts = await self._scanner.beginning_offsets(list(lanes.values()))
        ends = await self._scanner.end_offsets(list(lanes.values()))
        results_id = ids.get(self._results_topic)
        befores = {note.results for note in notes.values()}
        gone = {one for one in befores if await self._topic_ids.replaced(self._results_topic, one, results_id)}
        floors: dict[TopicPartition, int] = {}
        unknown = []
        for tp, lane in lanes.items():
            floor = notes[tp].floor
            # After the end: of a log that was truncated, or of a topic that is gone and whose id nobody knew.
            if floor is None or floor > ends[lane] or notes[tp].results in gone:
                unknown.append(tp)
            else:
                floors[lane] = max(floor, firsts[lane])
        if unknown:
            for tp, floor in (await self._floors_by_time({tp: positions[tp] for tp in unknown}, lanes, ends)).items():
                floors[lanes[tp]] = max(floor, firsts[lanes[tp]])
        recovered = await self._read(floors, ends, {lanes[tp]: (tp.topic, positions[tp]) for tp in positions})
        return {
            tp: Opening(
                position, notes[tp], floors[lanes[tp]], ends[lanes[tp]], recovered[lanes[tp]],
                ids.get(tp.topic), results_id,
            )
            for tp, position in positions.items()
        }  # fmt: skip

    async def _floors_by_time(
        self,
        positions: dict[TopicPartition, int],
        lanes: dict[TopicPartition, TopicPartition],
        ends: dict[TopicPartition, int],
    ) -> dict[TopicPartition, int]:
        """For each partition the first results offset that is not older than its first request to be read."""
        times = await self._times_at(positions)
        asked = {lanes[tp]: max(0, timestamp - _CLOCK_SKEW_MS) for tp, timestamp in times.items()}
        found = await self._scanner.offsets_for_times(asked) if asked else {}
        floors = {}
        for tp, lane in lanes.items():
            if tp in positions:
                at = found.get(lane)
                floors[tp] = ends[lane] if at is None else at.offset
        return floors

    async def _times_at(self, positions: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Timestamp (ms) of the first record at or after each position; partitions with nothing to read are left out.

        The requests are read to the end of the log as it is now: what comes later has no result yet.
        """
        ends = await self._scanner.end_offsets(list(positions))
        waiting = {tp: position for tp, position in positions.items() if position < ends[tp]}
        times: dict[TopicPartition, int] = {}
        if not waiting:
            return times
        self._begin(waiting)
        while waiting:
            for tp, records in (await self._fetched(list(waiting), max_records=1)).items():
                # A producer's clock says nothing of when the result came: without append time all results are read.
                times[tp] = records[0].timestamp if records[0].timestamp_type == _LOG_APPEND_TIME else 0
                del waiting[tp]
            await self._drop_ended(waiting, ends)
        return times

    async def _read(
        self,
        floors: dict[TopicPartition, int],
        ends: dict[TopicPartition, int],
        requests: dict[TopicPartition, tuple[str, int]],
    ) -> dict[TopicPartition, dict[int, tuple[int, ...]]]:
        """The sources found between floor and end of each results partition -> times that their results name (ms)."""
        recovered: dict[TopicPartition, dict[int, tuple[int, ...]]] = {lane: {} for lane in floors}
        waiting = {lane: floor for lane, floor in floors.items() if floor < ends[lane]}
        if not waiting:
            return recovered
        self._begin(waiting)
        while waiting:
            for lane, records in (await self._fetched(list(waiting), max_records=_SCAN_RECORDS)).items():
                topic, position = requests[lane]
                prefix = f"{topic}-{lane.partition}-".encode()
                for record in records:
                    offset = _request_of(record, prefix)
                    if offset >= position and (timestamp := _request_time(record)) is not None:
                        found = recovered[lane].get(offset, ())
                        if timestamp not in found:
                            recovered[lane][offset] = (*found, timestamp)
            await self._drop_ended(waiting, ends)
        return recovered

    def _begin(self, positions: dict[TopicPartition, int]) -> None:
        self._scanner.assign(list(positions))
        for tp, position in positions.items():
            self._scanner.seek(tp, position)

    async def _fetched(
        self, partitions: list[TopicPartition], *, max_records: int
    ) -> dict[TopicPartition, list[Record]]:
        deadline = time.monotonic() + _SCAN_SILENCE_SECONDS
        while True:
            try:
                fetched = await poll(self._scanner, partitions, timeout_ms=_POLL_MS, max_records=max_records)
            except UnicodeDecodeError:
                # Not ours, so it answers nothing.
                each = one_of_each(self._scanner, partitions, timeout_ms=_POLL_MS)
                return {tp: records async for tp, records, _ in each if records}
            if fetched:
                return fetched
            for tp in partitions:
                if await self._scanner.position(tp) >= (await self.end_offsets([tp]))[tp]:
                    return {}
            if time.monotonic() > deadline:
                raise TimeoutError(f"no record of {partitions[0].topic} within {_SCAN_SILENCE_SECONDS:g} s")

    async def _drop_ended(self, waiting: dict[TopicPartition, int], ends: dict[TopicPartition, int]) -> None:
        for tp in list(waiting):
            if await self._scanner.position(tp) >= ends[tp]:
                del waiting[tp]


def _request_of(record: Record, prefix: bytes) -> int:
    """The offset of the request that a result answers; -1 where it is not of the topic and partition of `prefix`."""
    for name, value in record.headers:
        if name == RESULT_SOURCE_HEADER:
            text = value[len(prefix) :] if value and value.startswith(prefix) else b""
            if text.isdigit() and len(text) <= _LONGEST_OFFSET:
                return int(text)
    return -1


def _request_time(record: Record) -> int | None:
    """The time (ms) of the request that a result answers; None where a stranger wrote something else."""
    try:
        return _decode(record.value or b"").timestamp
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
