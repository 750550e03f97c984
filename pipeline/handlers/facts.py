"""What a decision depends on besides the datafile: segments, sticky profile, predictions.

Most requests have it at hand. One that comes to a contextual bandit is settled step by step: decided, asked about,
decided again with the answers among its facts; and what it taught is saved before its result may be sent.
`handlers/decide.py` is the only user.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from pipeline.cmab import FORGETTING, Predictions
from pipeline.datafile.poller import Datafiles
from pipeline.decision import IGNORE_PROFILE, Answer, Facts, answer, is_large
from pipeline.errors import SegmentsUnavailable
from pipeline.handlers.large import LargeAnswers
from pipeline.messages.decide import DecideRequest
from pipeline.messages.delivery import Chunk
from pipeline.odp.segments import Segments
from pipeline.profiles import Profile, Profiles
from pipeline.project import OdpIntegration

_MOST_SAVED = 50
"""Most requests settled one by one whose profiles are being saved: their results are made and held meanwhile."""


class FactSource:
    """Of the process, for all its SDK keys."""

    def __init__(
        self, *, datafiles: Datafiles, segments: Segments, profiles: Profiles | None, predictions: Predictions,
        max_result_bytes: int,
    ) -> None:  # fmt: skip
        self._datafiles = datafiles
        self._segments = segments
        self._profiles = profiles
        self._predictions = predictions
        self.max_result_bytes = max_result_bytes
        self._slots = asyncio.Semaphore(_MOST_SAVED)
        self._large = LargeAnswers(datafiles, max_result_bytes)

    def count_hits(self) -> None:
        self._segments.count_hits()

    @property
    def keeps_profiles(self) -> bool:
        return self._profiles is not None

    def is_sticky(self, request: DecideRequest) -> bool:
        """Whether the user's profile has a say."""
        return self._profiles is not None and IGNORE_PROFILE not in request.options

    def must_save(self, found: Answer) -> bool:
        """Whether what was learned is to be saved before the result is sent. One too large never is: nobody got it."""
        return bool(found.learned) and len(found.value) <= self.max_result_bytes

    def known_segments(self, account: OdpIntegration, request: DecideRequest) -> frozenset[str] | None:
        """The user's segments, if they need not be waited for."""
        if request.reset_cache:
            self._segments.reset()
        # Where no audience asks for a segment there is nothing to look up either, whatever the options are.
        if request.ignore_cache and account.segments_to_check:
            return None
        return self._segments.peek(account, request.user_id)

    def fetch_segments(self, account: OdpIntegration, request: DecideRequest) -> asyncio.Future[frozenset[str]]:
        return self._segments.fetch(account, request.user_id, save=not request.ignore_cache)

    async def profiles(self, user_ids: Sequence[str]) -> Sequence[Profile | None]:
        """The users' sticky profiles, in order; None where one cannot be told, and then nothing may be saved."""
        return [None] * len(user_ids) if self._profiles is None else await self._profiles.lookup(user_ids)

    async def save(self, profiles: Sequence[tuple[str, Profile]]) -> None:
        if self._profiles is not None:
            await self._profiles.save(profiles)

    async def settle(
        self, request: DecideRequest, facts: Facts, segments: asyncio.Future[frozenset[str]] | None, chunk: Chunk,
        *, source: str, timestamp: int, size: int,
    ) -> bytes | None:  # fmt: skip
        """The value of the request's result, when all it takes is there and what it taught is saved.

        `facts` are those at hand; `segments` are still to come, if they are asked for; `size` is that of the record.
        None is returned when the chunk was abandoned meanwhile: the request is its next owner's. Raises
        SegmentsUnavailable, and Rejected where a large answer grows beyond what a result may hold.
        """
        if segments is not None:
            try:
                facts = msgspec.structs.replace(facts, segments=await segments)
            finally:
                # One that failed refers to this frame by its error's traceback, and would be a cycle with it.
                del segments
        found, facts = await self._decided(request, facts, chunk, source, timestamp, size=size, has_room=True)
        if not self.must_save(found):
            return None if chunk.abandoned else found.value
        del found
        async with self._slots:
            # Again, as nothing of it was kept: thousands may wait here. Not for room: the slot is the others' too.
            found, facts = await self._decided(request, facts, chunk, source, timestamp, size=size, has_room=False)
            if chunk.abandoned:
                return None
            if self.must_save(found):
                await self.save([(request.user_id, {**(facts.profile or {}), **(found.learned or {})})])
            return found.value

    async def _decided(
        self, request: DecideRequest, facts: Facts, chunk: Chunk, source: str, timestamp: int, *, size: int,
        has_room: bool,
    ) -> tuple[Answer, Facts]:  # fmt: skip
        """Decide; fetch the predictions the decision needs; repeat until it needs none.

        With `has_room` there is room for its result when it is made.
        """
        options = request.options
        while True:
            if has_room:
                await room(chunk)
            # The datafile may have been replaced meanwhile: a request is decided by one revision, the current one.
            project = self._datafiles.project(request.sdk_key or "")
            if project is None:
                raise SegmentsUnavailable("unavailable", "the datafile is gone")
            found = None
            if not is_large(project, request, size):
                found = answer(project, request, facts, source=source, timestamp=timestamp)
            # A project replaced meanwhile would stay until the answer, and be freed by it in one step.
            del project
            if found is None:
                found = await self._large.answer(
                    request, facts, chunk, has_room=has_room, source=source, timestamp=timestamp
                )
                if found is None:
                    continue
            if not found.wanted:
                return found, facts
            wanted = found.wanted.values()
            del found
            told = await self._predictions.ask(request.user_id, wanted, options)
            # Once for a request: what was just asked for is not to be forgotten by the next step.
            options = options - FORGETTING
            facts = msgspec.structs.replace(facts, predictions={**(facts.predictions or {}), **told})


async def room(chunk: Chunk) -> None:
    """Wait until there is room for results of the chunk."""
    if chunk.has_room:
        return
    granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def grant() -> None:
        if not granted.done():
            granted.set_result(None)

    chunk.when_room(grant)
    await granted
