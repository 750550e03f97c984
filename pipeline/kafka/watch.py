"""What a role's partitions show to the outside: lag by count and by age, what is under way, what does not move."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping

import structlog
from aiokafka import TopicPartition

from pipeline.kafka.partition import InFlight, Partition
from pipeline.metrics import Metrics

log = structlog.get_logger("pipeline.consumer")


def ranges(partitions: Iterable[TopicPartition]) -> str:
    """Partitions in a few words: `decide.results 0-15, track.events 0-3 7`."""
    runs: dict[str, list[list[int]]] = {}
    for tp in sorted(partitions):
        of_topic = runs.setdefault(tp.topic, [])
        if of_topic and of_topic[-1][-1] == tp.partition - 1:
            of_topic[-1].append(tp.partition)
        else:
            of_topic.append([tp.partition])
    return ", ".join(f"{topic} {' '.join(map(_run, found))}" for topic, found in runs.items())


def _run(numbers: list[int]) -> str:
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


class Watch:
    """The metrics of one role's consumer. Label children are resolved here, once, and never per record."""

    interval = 5.0
    """Seconds between two looks at the lag."""

    def __init__(self, role: str, topics: Collection[str], *, metrics: Metrics) -> None:
        self._role = role
        self._metrics = metrics
        self._consumed = {topic: metrics.records_consumed.labels(role, topic) for topic in topics}
        self._settled = {topic: metrics.records_settled.labels(role, topic) for topic in topics}
        self._commits = metrics.commits.labels(role, "ok")
        self._commits_failed = metrics.commits.labels(role, "failed")
        self._in_flight = metrics.records_in_flight.labels(role)
        self._octets = metrics.bytes_in_flight.labels(role)
        self._owned = metrics.partitions_owned.labels(role)
        self._full = metrics.partitions_full.labels(role)
        self._blocked = metrics.partitions_blocked.labels(role)
        self._rebalances = metrics.rebalances.labels(role)
        self._lagging: dict[TopicPartition, int] = {}
        self._shown: set[TopicPartition] = set()

    def consumed(self, topic: str, count: int) -> None:
        self._consumed[topic].inc(count)

    def settled(self, chunk: InFlight, topic: str) -> None:
        self._settled[topic].inc(chunk.size)

    def recovered(self, count: int) -> None:
        if count:
            self._metrics.results_recovered.inc(count)

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        self._rebalances.inc()
        self._owned.set(len(partitions))
        log.info("partitions assigned", role=self._role, count=len(partitions), partitions=ranges(partitions))

    def released(self) -> None:
        """Nothing is owned any more: a partition's series must not outlive its ownership."""
        self._owned.set(0)
        self._show_nothing_of(self._shown)
        self._lagging.clear()

    def committed(self) -> None:
        self._commits.inc()

    def commit_failed(self, error: BaseException) -> None:
        self._commits_failed.inc()
        log.warning(
            "commit failed; what it covered is committed later or done again",
            role=self._role,
            reason=type(error).__name__,
        )

    def last_commit_failed(self) -> None:
        self._commits_failed.inc()
        log.warning(
            "the last offsets were not committed: Kafka did not answer; the next owner finds what was published",
            role=self._role,
        )

    def observe(self, partitions: Collection[Partition], ends: Mapping[TopicPartition, int]) -> None:
        """Set the gauges. `ends` holds the end of each log that is known."""
        self._in_flight.set(sum(partition.records_under_way for partition in partitions))
        self._octets.set(sum(partition.octets + partition.result_octets for partition in partitions))
        self._full.set(sum(partition.full for partition in partitions))
        self._blocked.set(sum(partition.blocked for partition in partitions))
        now = time.time() * 1000
        owned = {partition.tp for partition in partitions}
        self._show_nothing_of(self._shown - owned)
        for partition in partitions:
            labels = (self._role, partition.tp.topic, str(partition.tp.partition))
            oldest = partition.oldest()
            self._metrics.lag_seconds.labels(*labels).set(0 if oldest is None else max(0.0, (now - oldest) / 1000))
            self._shown.add(partition.tp)
            # Only what was seen in this round counts: during an outage nobody knows the ends.
            self._lagging.pop(partition.tp, None)
            if partition.tp in ends:
                lag = self._lagging[partition.tp] = max(0, ends[partition.tp] - partition.position)
                self._metrics.lag_records.labels(*labels).set(lag)

    def _show_nothing_of(self, partitions: Collection[TopicPartition]) -> None:
        for tp in list(partitions):
            for gauge in (self._metrics.lag_seconds, self._metrics.lag_records):
                gauge.remove(self._role, tp.topic, str(tp.partition))
            self._shown.discard(tp)

    def stuck(self, partitions: Collection[Partition], now: float, *, after: float) -> list[str]:
        """Partitions that have work and did not move for `after` seconds, one sentence each."""
        found = []
        for partition in partitions:
            name = f"{partition.tp.topic}-{partition.tp.partition}"
            seconds = partition.stuck_for(now)
            if seconds > after:
                found.append(f"{name} has had unfinished work for {seconds:.0f} s")
            elif (
                partition.open
                and partition.idle
                and self._lagging.get(partition.tp)
                and now - partition.moved_at > after
            ):
                found.append(f"{name} has records to read and reads none for {now - partition.moved_at:.0f} s")
        return found
