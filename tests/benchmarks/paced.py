"""Requests at an even rate, for latencies and for partial load: what a drained backlog cannot show.

A process of its own, `python -m tests.benchmarks.paced`, on a core that is not measured. It ends by saying how many it
sent and how late the latest was: a generator that fell behind measured itself. Latency is the broker's own: the time
it appended the result less the time it appended the request, in whole milliseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import orjson
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.benchmarks.loads import CACHED, COLD, PEOPLE
from tests.benchmarks.rig import put

_TICK_SECONDS = 0.002
_READ_SECONDS = 30.0
_DIFFERENT = 20_000


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of one run: milliseconds, and what the generator did."""

    p50: float
    p99: float
    count: int
    late: float
    """Seconds the generator was behind at worst."""
    errors: int
    """Results that are an error."""


def send(bootstrap_servers: str, topic: str, *, rate: int, seconds: float, cold: bool) -> float:
    """Send requests evenly, of the people of the cached load or each of a new user; how late the latest was, in s."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers, "enable.idempotence": True, "linger.ms": 1,
            "compression.type": "zstd", "partitioner": "murmur2_random", "log_level": 0,
        }
    )  # fmt: skip
    # The first so many users are those whom the contender was started with.
    requests = islice(COLD.values(), PEOPLE, None) if cold else islice(CACHED.values(), _DIFFERENT)
    records = cycle(list(requests))
    start, sent, late = time.monotonic(), 0, 0.0
    total = int(rate * seconds)
    while sent < total:
        now = time.monotonic() - start
        # The next one's delay, and after it the last one's: neither a long sleep nor a full queue goes unseen.
        late = max(late, now - (sent + 1) / rate)
        for _ in range(min(total, int(now * rate)) - sent):
            key, value = next(records)
            put(producer, topic, key, value)
            sent += 1
        producer.poll(0)
        late = max(late, time.monotonic() - start - sent / rate)
        time.sleep(_TICK_SECONDS)
    if producer.flush(_READ_SECONDS):
        raise TimeoutError("the broker did not take the requests")
    return late


def latencies(
    bootstrap_servers: str, topic: str, partitions: Sequence[int], *, seconds: float, late: float
) -> Latencies:
    """Read all results and take the difference of the two timestamps, of those asked for in the last `seconds`."""
    reader = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "unused", "enable.auto.commit": False})
    try:
        ends = {number: reader.get_watermark_offsets(TopicPartition(topic, number))[1] for number in partitions}
        reader.assign([TopicPartition(topic, number, 0) for number in partitions])
        left, deadline = sum(ends.values()), time.monotonic() + _READ_SECONDS
        pairs: list[tuple[int, int]] = []
        errors = 0
        while left > 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} results could not be read")
            for message in reader.consume(5000, timeout=1):
                left -= 1
                result = orjson.loads(message.value() or b"")
                asked = result["timestamp"]
                errors += "error" in result
                pairs.append((asked, message.timestamp()[1] - asked))
    finally:
        reader.close()
    first = max(asked for asked, _ in pairs) - seconds * 1000
    taken = sorted(took for asked, took in pairs if asked >= first)
    return Latencies(taken[len(taken) // 2], taken[len(taken) * 99 // 100], len(taken), late, errors)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.paced", description=__doc__)
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--rate", type=int, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--cold", action="store_true", help="a new user in each request")
    options = parser.parse_args()
    late = send(options.bootstrap_servers, options.topic, rate=options.rate, seconds=options.seconds, cold=options.cold)
    sys.stdout.write(json.dumps({"late": late}) + "\n")


if __name__ == "__main__":
    main()
