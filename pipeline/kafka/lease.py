"""Whether this process may still count itself a member of its group: the time of its last heartbeat that was answered.

aiokafka only logs that a session expired, and goes on. A worker cut off from its coordinator, and from nothing else,
would publish beside the next owner of its partitions. So nothing is read and no result is sent from the moment the
broker may have put us out, until a heartbeat is answered again. An outage of the whole broker is waited out like that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaConsumer


class Lease:
    """The lease of one consumer's partitions. `seconds` is the session timeout less one heartbeat's interval."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._renewed_at = clock()
        self._fresh = asyncio.Event()
        self.on_renewal: Callable[[], None] = lambda: None

    def follow(self, consumer: AIOKafkaConsumer) -> None:
        """Hear of the consumer's heartbeats. aiokafka 0.14 has no hook for them, so its method is wrapped."""
        coordinator: Any = consumer._coordinator
        heartbeat = coordinator._do_heartbeat

        async def heard() -> bool:
            asked_at = self._clock()
            answered = bool(await heartbeat())
            if answered:
                self.renew(asked_at)
            return answered

        coordinator._do_heartbeat = heard

    def renew(self, at: float | None = None) -> None:
        """The broker took us for a member at that time (now)."""
        self._renewed_at = self._clock() if at is None else at
        self._fresh.set()
        self.on_renewal()

    @property
    def lapsed(self) -> bool:
        return self._clock() - self._renewed_at > self._seconds

    async def valid(self) -> None:
        """Wait until the lease holds. Without a limit of its own: who waits is cancelled when the partitions go."""
        while self.lapsed:
            self._fresh.clear()
            await self._fresh.wait()
