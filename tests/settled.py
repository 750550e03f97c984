"""A chunk that remembers how its records were settled, and records to put into it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.errors import Rejected
from pipeline.messages.delivery import Delivery, Headers, Result
from tests.patience import PATIENCE


@dataclass(slots=True, eq=False)
class Record:
    """A consumed record, without Kafka."""

    value: bytes | None = b"{}"
    offset: int = 0
    topic: str = "topic"
    partition: int = 0
    timestamp: int = 1_700_000_000_000
    key: bytes | None = b"user"
    headers: Headers = ()


@dataclass(slots=True, eq=False)
class RecordingChunk:
    records: Sequence[Delivery] = ()
    abandoned: bool = False
    settled: int = 0
    settlements: list[int] = field(default_factory=list)
    rejected: list[tuple[Delivery, Rejected]] = field(default_factory=list)

    has_room: bool = True

    def when_room(self, go_on: Callable[[], object]) -> None:
        go_on()

    def publish(self, results: Sequence[Result]) -> None:
        raise AssertionError("no result was expected")

    def reject(self, record: Delivery, why: Rejected) -> None:
        self.rejected.append((record, why))

    def done(self, count: int) -> None:
        self.settled += count
        self.settlements.append(count)

    def expect(self, count: int) -> None:
        raise AssertionError("no further settlement was expected")


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; fail if that takes too long."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for is out of reach of an event
            await asyncio.sleep(0.001)
