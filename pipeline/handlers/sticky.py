"""Deciding by sticky profiles, many users at once: one look-up for all of them, one save for what they learned.

No result is sent before what it taught is saved. What a user's profile says holds for all of the user's requests that
stand in line: they are answered without another look-up. `handlers/decide.py` is the only user.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

from pipeline.decision import Answer, Facts, answer, is_large
from pipeline.handlers.facts import FactSource, room
from pipeline.handlers.pending import Pending, known
from pipeline.messages.decide import DecideRequest
from pipeline.messages.delivery import Chunk, Result, identity_of
from pipeline.profiles import Profile
from pipeline.project import ProjectConfig

# So many are looked up together, decided in one turn of the loop, and saved when their results are so large.
_MOST_LOOKED_UP = 250
_AT_ONCE = 20
_HELD_BYTES = 1024**2

_Learned = tuple[Pending, Profile, bytes]
"""A request, what its user's profile is to be, and the value of its result."""


class Line(Protocol):
    """The users of one partition, each with the requests that wait for an earlier one (`handlers/decide.py`)."""

    def project(self, request: DecideRequest) -> ProjectConfig | None:
        """The project as it is now."""

    def answered(self, pending: Pending, value: bytes, results: list[Result]) -> None:
        """Add the result of a request that was decided."""

    def refused(self, pending: Pending, project: ProjectConfig | None, results: list[Result]) -> bool:
        """Add the result of a request that cannot be decided any more; False where it can."""

    def settle(self, pending: Pending, facts: Facts) -> None:
        """Ask for what a request depends on, one thing after another; it goes on by itself."""

    def publish(self, chunk: Chunk, results: list[Result]) -> None: ...

    def release(self, user_id: str, profile: Profile | None = None) -> None:
        """The user's request is answered: those behind it are next, by this profile."""


class Sticky:
    """Those of one partition who wait for their profiles; each user once."""

    def __init__(self, line: Line, facts: FactSource) -> None:
        self._line = line
        self._facts = facts
        self._waiting: list[Pending] = []

    def add(self, pending: Pending) -> None:
        self._waiting.append(pending)

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    async def decide(self) -> None:
        """Decide all that wait now, and those behind them that turn out to need a look-up of their own."""
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST_LOOKED_UP], self._waiting[_MOST_LOOKED_UP:]
            await self._decide(batch)

    async def _decide(self, batch: Sequence[Pending]) -> None:
        profiles = await self._facts.profiles([pending.request.user_id for pending in batch])
        learned: list[_Learned] = []
        for first in range(0, len(batch), _AT_ONCE):
            # All are of one partition, and share its room.
            await room(batch[first].chunk)
            until = first + _AT_ONCE
            self._decide_some(zip(batch[first:until], profiles[first:until], strict=True), learned)
            if sum(len(value) for _, _, value in learned) > _HELD_BYTES:
                await self._keep(learned)
                learned = []
            # Between two of them others have their turn.
            await asyncio.sleep(0)
        await self._keep(learned)

    def _decide_some(self, those: Iterable[tuple[Pending, Profile | None]], learned: list[_Learned]) -> None:
        """Publish what taught nothing; what did is added to `learned`, and what is asked for goes on by itself."""
        results: defaultdict[Chunk, list[Result]] = defaultdict(list)
        answered: list[tuple[str, Profile | None]] = []
        for pending, profile in those:
            chunk, user_id = pending.chunk, pending.request.user_id
            if pending.dropped:
                continue  # the next owner's, with all that lined up behind
            project = self._line.project(pending.request)
            if self._line.refused(pending, project, results[chunk]) or project is None:
                answered.append((user_id, profile))
                continue
            found = self.by_profile(pending, project, profile)
            if found is None:
                continue
            if self._facts.must_save(found):
                learned.append((pending, {**(profile or {}), **(found.learned or {})}, found.value))
                continue
            answered.append((user_id, profile))
            self._line.answered(pending, found.value, results[chunk])
        self._publish(results, answered)

    def by_profile(self, pending: Pending, project: ProjectConfig, profile: Profile | None) -> Answer | None:
        """The answer; None where the user goes on waiting for something else."""
        segments = pending.resolve()
        facts = Facts(known(segments), profile)
        if isinstance(segments, asyncio.Future) or is_large(project, pending.request, pending.size):
            self._line.settle(pending, facts)
            return None
        source, timestamp = identity_of(pending.record)
        found = answer(project, pending.request, facts, source=source, timestamp=timestamp)
        if found.wanted:
            self._line.settle(pending, facts)
            return None
        return found

    async def _keep(self, learned: Iterable[_Learned]) -> None:
        """Save profiles, then publish the results that taught them."""
        learned = [one for one in learned if not one[0].dropped]
        if not learned:
            return
        await self._facts.save([(pending.request.user_id, profile) for pending, profile, _ in learned])
        results: defaultdict[Chunk, list[Result]] = defaultdict(list)
        learned = [one for one in learned if not one[0].dropped]
        for pending, _, value in learned:
            self._line.answered(pending, value, results[pending.chunk])
        self._publish(results, [(pending.request.user_id, profile) for pending, profile, _ in learned])

    def _publish(self, results: dict[Chunk, list[Result]], answered: Iterable[tuple[str, Profile | None]]) -> None:
        for chunk, own in results.items():
            self._line.publish(chunk, own)
        # Only now: whoever is behind them in line may be answered at once.
        for user_id, profile in answered:
            self._line.release(user_id, profile)
