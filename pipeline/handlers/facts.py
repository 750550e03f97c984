"""The facts that a decision depends on besides the datafile: segments, sticky profile, predictions.

Most requests have them at hand. A request that comes to a contextual bandit is settled step by step: decided, asked
about, decided again with the answers among its facts; its profile update is saved before its result may be sent.
`handlers/decide.py` is the only user.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from pipeline.cmab import FORGETTING, Predictions
from pipeline.datafile.poller import Datafiles
from pipeline.decision import IGNORE_PROFILE, Answer, Facts, answer, is_large
from pipeline.errors import SegmentsUnavailable
from pipeline.handlers.large import LargeAnswers
from pipeline.handlers.pending import Pending, known
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

    def segments(
        self, account: OdpIntegration, request: DecideRequest, *, within: float | None
    ) -> frozenset[str] | SegmentsUnavailable | asyncio.Future[frozenset[str]]:
        """The user's segments, why there are none, or the answer of ODP to come; once for each request.

        `within`: the seconds left of the request's own time, None without an end.
        """
        if request.reset_cache:
            self._segments.reset()
        # Where no audience asks for a segment there is nothing to look up either, whatever the options are.
        if not (request.ignore_cache and account.segments_to_check):
            remembered = self._segments.peek(account, request.user_id)
            if remembered is not None:
                return remembered
        return self._segments.fetch(account, request.user_id, save=not request.ignore_cache, within=within)

    async def profiles(self, user_ids: Sequence[str]) -> Sequence[Profile | None]:
        """The users' sticky profiles, in order; None where one cannot be told, and then nothing may be saved."""
        return [None] * len(user_ids) if self._profiles is None else await self._profiles.lookup(user_ids)

    async def save(self, profiles: Sequence[tuple[str, Profile]]) -> None:
        if self._profiles is not None:
            await self._profiles.save(profiles)

    async def settle(
        self, pending: Pending, facts: Facts, expired: Callable[[], bool], *, source: str, timestamp: int
    ) -> bytes | None:
        """The value of the request's result, when all it takes is there and what it taught is saved.

        `facts` are those at hand; the segments may be still to come. None is returned when the request was dropped
        meanwhile: it is its next owner's. Raises SegmentsUnavailable, reason `expired` once `expired()` says so, and
        Rejected where a large answer grows beyond what a result may hold.
        """
        segments = pending.segments
        if isinstance(segments, asyncio.Future):
            # Not awaited itself: the error of a future refers to the frame in which it is raised.
            await asyncio.wait((segments,))
            if pending.dropped:
                return None
            segments = pending.resolve()
            if isinstance(segments, SegmentsUnavailable):
                raise SegmentsUnavailable(segments.reason, segments.detail)
            facts = msgspec.structs.replace(facts, segments=known(segments))
        request, chunk = pending.request, pending.chunk
        deciding = _Deciding(pending, expired, source, timestamp)
        found, facts = await self._decided(deciding, facts, has_room=True)
        if not self.must_save(found):
            return None if chunk.abandoned else found.value
        del found
        async with self._slots:
            # Again, as nothing of it was kept: thousands may wait here. Not for room: the slot is the others' too.
            found, facts = await self._decided(deciding, facts, has_room=False)
            if chunk.abandoned:
                return None
            if self.must_save(found):
                await self.save([(request.user_id, {**(facts.profile or {}), **(found.learned or {})})])
            return found.value

    async def _decided(self, deciding: _Deciding, facts: Facts, *, has_room: bool) -> tuple[Answer, Facts]:
        """Decide; fetch the predictions the decision needs; repeat until it needs none.

        With `has_room` there is room for its result when it is made.
        """
        pending, _, source, timestamp = deciding
        request = pending.request
        options = request.options
        while True:
            if has_room:
                await room(pending.chunk)
            # The datafile may have been replaced meanwhile: a request is decided by one revision, the current one.
            project = self._datafiles.project(request.sdk_key or "")
            if project is None:
                raise SegmentsUnavailable("unavailable", "the datafile is gone")
            if deciding.expired():
                raise SegmentsUnavailable("expired", "the request's time ended before it could be decided")
            found = None
            if not is_large(project, request, pending.size):
                found = answer(project, request, facts, source=source, timestamp=timestamp)
            # A project replaced meanwhile would stay until the answer, and be freed by it in one step.
            del project
            if found is None:
                found = await self._large.answer(
                    request, facts, pending.chunk,
                    has_room=has_room, expired=deciding.expired, source=source, timestamp=timestamp,
                )  # fmt: skip
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


class _Deciding(NamedTuple):
    """A request that is decided step by step, and what stays the same meanwhile."""

    pending: Pending
    expired: Callable[[], bool]
    source: str
    timestamp: int


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
