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
from pipeline.messages.decide import DecideRequest
from pipeline.messages.delivery import Chunk, Delivery, Result, identity_of
from pipeline.messages.words import FETCH_FAILED
from pipeline.profiles import Profile
from pipeline.project import ProjectConfig

# So many are looked up together, decided in one turn of the loop, and saved when their results are so large.
_MOST_LOOKED_UP = 250
_AT_ONCE = 20
_HELD_BYTES = 1024**2

Pending = tuple[Chunk, Delivery, DecideRequest]
"""A request that is not answered yet."""
_Learned = tuple[Pending, Profile, bytes]
"""A request, what its user's profile is to be, and the value of its result."""


class Line(Protocol):
    """The users of one partition, each with the requests that wait for an earlier one (`handlers/decide.py`)."""

    def project(self, request: DecideRequest) -> ProjectConfig | None:
        """The project as it is now."""

    def answered(self, pending: Pending, value: bytes, results: list[Result]) -> None:
        """Add the result of a request that was decided."""

    def refuse(self, pending: Pending, message: str, revision: str | None, results: list[Result]) -> None:
        """Add the result of one that cannot be."""

    def settle(self, pending: Pending, facts: Facts, segments: asyncio.Future[frozenset[str]] | None = None) -> None:
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
        profiles = await self._facts.profiles([request.user_id for _, _, request in batch])
        learned: list[_Learned] = []
        for first in range(0, len(batch), _AT_ONCE):
            # All are of one partition, and share its room.
            await room(batch[first][0])
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
            if pending[0].abandoned:
                continue  # the next owner's, with all that lined up behind
            project = self._line.project(pending[2])
            if project is None:
                self._line.refuse(pending, FETCH_FAILED, None, results[pending[0]])
                answered.append((pending[2].user_id, profile))
                continue
            found = self.by_profile(pending, project, profile)
            if found is None:
                continue
            if self._facts.must_save(found):
                learned.append((pending, {**(profile or {}), **(found.learned or {})}, found.value))
                continue
            answered.append((pending[2].user_id, profile))
            self._line.answered(pending, found.value, results[pending[0]])
        self._publish(results, answered)

    def by_profile(self, pending: Pending, project: ProjectConfig, profile: Profile | None) -> Answer | None:
        """The answer; None where the user goes on waiting for something else."""
        _, record, request = pending
        segments = None
        if request.fetch_segments and project.odp is not None:
            segments = self._facts.known_segments(project.odp, request)
            if segments is None:
                self._line.settle(pending, Facts(None, profile), self._facts.fetch_segments(project.odp, request))
                return None
        source, timestamp = identity_of(record)
        facts = Facts(segments, profile)
        if is_large(project, request, len(record.value or b"")):
            self._line.settle(pending, facts)
            return None
        found = answer(project, request, facts, source=source, timestamp=timestamp)
        if found.wanted:
            self._line.settle(pending, facts)
            return None
        return found

    async def _keep(self, learned: Iterable[_Learned]) -> None:
        """Save profiles, then publish the results that taught them."""
        learned = [one for one in learned if not one[0][0].abandoned]
        if not learned:
            return
        await self._facts.save([(request.user_id, profile) for (_, _, request), profile, _ in learned])
        results: defaultdict[Chunk, list[Result]] = defaultdict(list)
        learned = [one for one in learned if not one[0][0].abandoned]
        for pending, _, value in learned:
            self._line.answered(pending, value, results[pending[0]])
        self._publish(results, [(request.user_id, profile) for (_, _, request), profile, _ in learned])

    def _publish(self, results: dict[Chunk, list[Result]], answered: Iterable[tuple[str, Profile | None]]) -> None:
        for chunk, own in results.items():
            self._line.publish(chunk, own)
        # Only now: whoever is behind them in line may be answered at once.
        for user_id, profile in answered:
            self._line.release(user_id, profile)
