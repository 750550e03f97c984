"""Role decide: each request is answered with one result. Its one effect is that result, but for sticky profiles.

Users whose facts are at hand are decided at once. The others wait for theirs: for segments, for the profiles of a whole
chunk, or for what `facts.py` settles step by step. Only later requests of the same user wait behind them, so that a
user's results keep the order of the requests; they ask for the user's segments when they arrive, not when their turn
comes. A request whose time ends meanwhile is answered so in its turn, and not decided.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from pipeline.datafile.poller import Datafiles
from pipeline.decision import Facts, answer, failure, is_large
from pipeline.errors import Rejected, SegmentsUnavailable
from pipeline.handlers.facts import FactSource
from pipeline.handlers.identities import IgnoredIdentities
from pipeline.handlers.pending import Pending, Waiting
from pipeline.handlers.sticky import Sticky
from pipeline.messages.decide import DecideRequest, parse_decide_request, read_expires_at
from pipeline.messages.delivery import RESULT_SOURCE_HEADER, Chunk, Delivery, Result, identity_of, source_of
from pipeline.messages.words import EXPIRED, FETCH_FAILED, SDK_KEY_MISSING
from pipeline.metrics import Metrics
from pipeline.profiles import Profile
from pipeline.project import ProjectConfig
from pipeline.settings import DecideSettings

log = structlog.get_logger("pipeline.decide")

_NOT_FETCHED = Facts()
_AT_ONCE = 20
"""Most requests of one user answered in one turn of the loop; there may be thousands."""


class Decider:
    """What the decide handlers of a process share."""

    def __init__(
        self,
        *,
        datafiles: Datafiles,
        facts: FactSource,
        settings: DecideSettings,
        max_record_bytes: int,
        metrics: Metrics,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.datafiles = datafiles
        self.facts = facts
        self.may_stick = facts.keeps_profiles
        self.tasks: set[asyncio.Task[None]] = set()
        self.max_record_bytes = max_record_bytes
        self.max_keys = settings.max_keys
        self.max_result_bytes = facts.max_result_bytes
        self.now = now
        self.max_age_ms = int(settings.max_age * 1000)
        self.options = frozenset(settings.options)
        # A request's own `source` would stand beside ours, and be taken for it.
        self.copied = frozenset(("traceparent", *settings.copy_headers)) - {RESULT_SOURCE_HEADER}
        self.seconds = metrics.decide_seconds
        self.decided, self.failed, self.expired, self.rejected = (
            metrics.decide_requests.labels(outcome) for outcome in ("decided", "error", "expired", "rejected")
        )

    def handler(self) -> DecideHandler:
        """The handler of one owned partition."""
        return DecideHandler(self)

    async def close(self) -> None:
        """Stop at once. Requests that still wait are not answered; the next owner reads them again."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class DecideHandler:
    """The requests of one partition."""

    def __init__(self, decider: Decider) -> None:
        self._shared = decider
        self._waiting: dict[str, Waiting] = {}
        self._sticky = Sticky(self, decider.facts)
        self._identities = IgnoredIdentities()
        self._at_it = False
        self._decided = 0
        """Requests decided since the metric was raised last."""

    def handle(self, chunk: Chunk) -> None:
        """Decide a chunk: publish what can be decided now, remember who waits."""
        started = time.perf_counter()
        shared = self._shared
        results: list[Result] = []
        for record in chunk.records:
            try:
                request = parse_decide_request(
                    record.value, max_bytes=shared.max_record_bytes, max_keys=shared.max_keys
                )
            except Rejected as why:
                shared.rejected.inc()
                chunk.reject(record, why)
                continue
            if record.headers:
                self._read_headers(record, request)
            pending = Pending(chunk, record, request)
            waiting = self._waiting.get(request.user_id)
            if waiting is None:
                self._begin(pending, results)
            else:
                self._ask_early(pending)
                waiting.append(pending)
        self.publish(chunk, results)
        self._look_up()
        shared.seconds.observe(time.perf_counter() - started)

    def _read_headers(self, record: Delivery, request: DecideRequest) -> None:
        self._identities.look_at(record)
        if request.error is None:
            read_expires_at(request, record.headers)

    def _begin(self, pending: Pending, results: list[Result], profile: Profile | None = None) -> None:
        """Answer a request whose turn it is, or let its user wait; `_look_up` is called afterwards.

        `profile`: if it is known. A request that has waited begins again here, with its segments.
        """
        shared, request = self._shared, pending.request
        project = self._admitted(request)
        asked = pending.segments is not None
        if project is None or request.error is not None:
            message = FETCH_FAILED if asked else request.error or self._without_project(request.sdk_key)
            self.refuse(pending, message, None, results)
        elif (request.ttl_ms or request.expires_at is not None or shared.max_age_ms) and self._is_expired(pending):
            self._expire(pending, project, results)
        elif not request.fetch_segments:
            self._with_segments(pending, project, profile, results)
        elif project.odp is None and not asked:
            self.refuse(pending, FETCH_FAILED, project.revision, results)
        else:
            self._ask(pending, project)
            self._with_segments(pending, project, profile, results)

    def _admitted(self, request: DecideRequest) -> ProjectConfig | None:
        """The project as it is now, and the request's defaults filled in."""
        shared = self._shared
        if shared.options:
            request.options |= shared.options
        sdk_key = request.sdk_key
        if sdk_key is None:
            sdk_key = request.sdk_key = shared.datafiles.sole_key
        return None if sdk_key is None else shared.datafiles.project(sdk_key)

    def _with_segments(
        self, pending: Pending, project: ProjectConfig, profile: Profile | None, results: list[Result]
    ) -> None:
        """Go on with the segments, or without where none are asked for; they may be still to come."""
        shared = self._shared
        segments = pending.resolve()
        if isinstance(segments, SegmentsUnavailable):
            self._no_segments(pending, segments, project, results)
        elif shared.may_stick and shared.facts.is_sticky(pending.request):
            # The profile is looked up meanwhile.
            self._by_profile(pending, project, profile, results)
        elif isinstance(segments, asyncio.Future):
            user_id = pending.request.user_id
            self._waiting[user_id] = Waiting(pending)
            segments.add_done_callback(partial(self._arrived, user_id))
        else:
            self._decide(pending, project, _NOT_FETCHED if segments is None else Facts(segments), results)

    def _ask_early(self, pending: Pending) -> None:
        """Ask for the segments of a request whose turn has not come: its deadline counts from now."""
        request = pending.request
        if request.fetch_segments and request.error is None:
            project = self._admitted(request)
            if project is not None and not self._is_expired(pending):
                self._ask(pending, project)

    def _ask(self, pending: Pending, project: ProjectConfig) -> None:
        if pending.segments is None and project.odp is not None:
            expires_at = pending.expires_at(self._shared.max_age_ms)
            within = None if expires_at is None else expires_at / 1000 - self._shared.now()
            pending.segments = self._shared.facts.segments(project.odp, pending.request, within=within)

    def _without_project(self, sdk_key: str | None) -> str:
        return SDK_KEY_MISSING if sdk_key is None else self._shared.datafiles.error(sdk_key) or ""

    def _by_profile(
        self, pending: Pending, project: ProjectConfig, profile: Profile | None, results: list[Result]
    ) -> None:
        """Decide by the user's profile, or let the user wait until it is looked up, or what was learned is saved."""
        found = None if profile is None else self._sticky.by_profile(pending, project, profile)
        if found is not None and not found.learned:
            self.answered(pending, found.value, results)
        elif found is not None or profile is None:
            self._waiting[pending.request.user_id] = Waiting(pending)
            self._sticky.add(pending)

    def _look_up(self) -> None:
        """Decide those who wait for their profiles, unless somebody is at it."""
        if self._sticky.waits and not self._at_it:
            self._at_it = True
            self._start(self._decide_sticky())

    async def _decide_sticky(self) -> None:
        try:
            await self._sticky.decide()
        finally:
            self._at_it = False

    # One by one

    def settle(self, pending: Pending, facts: Facts) -> None:
        """Let the user wait until everything the request depends on was asked for, and what it taught is saved."""
        self._waiting.setdefault(pending.request.user_id, Waiting(pending))
        self._start(self._settled(pending, facts))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="decide, step by step")
        self._shared.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._shared.tasks.discard(task)
        if not task.cancelled():
            # A defect: raised here it reaches the loop's exception handler at once.
            task.result()

    async def _settled(self, pending: Pending, facts: Facts) -> None:
        record, request = pending.record, pending.request
        lies_at = source_of(record)
        source, timestamp = identity_of(record, lies_at)
        results: list[Result] = []
        expired = partial(self._is_expired, pending)
        try:
            value = await self._shared.facts.settle(pending, facts, expired, source=source, timestamp=timestamp)
        except SegmentsUnavailable as why:
            self._no_segments(pending, why, self.project(request), results)
        except Rejected as why:
            self._reject(pending, why)
        else:
            if value is not None:
                self.answered(pending, value, results, lies_at)
        if not pending.dropped:
            self.publish(pending.chunk, results)
            self.release(request.user_id)

    # Who waits

    def release(self, user_id: str, profile: Profile | None = None) -> None:
        """The user's request is answered: those behind it are next, by the same profile."""
        later = self._waiting.pop(user_id).later
        if later:
            self._go_on(user_id, later.popleft(), later, profile)

    def _arrived(self, user_id: str, _: object) -> None:
        """A user's segments are here, or will not come. Thousands may come at once: each waits for room."""
        self._waiting[user_id].head.chunk.when_room(partial(self._resume, user_id))

    def _resume(self, user_id: str) -> None:
        """The first of the user's requests goes on, and those behind it."""
        waiting = self._waiting.pop(user_id)
        self._go_on(user_id, waiting.head, waiting.later)

    def _go_on(
        self, user_id: str, pending: Pending, later: deque[Pending] | None, profile: Profile | None = None
    ) -> None:
        """Answer a user's requests in their order, until one has to wait or there is no room: then the rest waits too.

        Room was looked at for the first one.
        """
        results: list[Result] = []
        answered = 0
        while not pending.dropped:
            if answered and (answered == _AT_ONCE or not pending.chunk.has_room):
                self._pause(user_id, pending)
            else:
                self._begin(pending, results, profile)
                answered += 1
            waiting = self._waiting.get(user_id)
            if waiting is not None:
                waiting.later = later
            if waiting is not None or not later:
                break
            if later[0].chunk is not pending.chunk:
                self.publish(pending.chunk, results)
                results = []
            pending = later.popleft()
        self.publish(pending.chunk, results)
        self._look_up()

    def _pause(self, user_id: str, pending: Pending) -> None:
        """Let others have their turn, or wait for room. Whoever comes meanwhile lines up behind."""
        self._waiting[user_id] = Waiting(pending)
        go_on = partial(self._resume, user_id)
        if pending.chunk.has_room:
            asyncio.get_running_loop().call_soon(go_on)
        else:
            pending.chunk.when_room(go_on)

    # Time

    def _is_expired(self, pending: Pending) -> bool:
        expires_at = pending.expires_at(self._shared.max_age_ms)
        return expires_at is not None and self._shared.now() * 1000 > expires_at

    def refused(self, pending: Pending, project: ProjectConfig | None, results: list[Result]) -> bool:
        """Add the result of a request that cannot be decided any more after a wait; False where it can."""
        segments = pending.resolve()
        if project is None:
            self.refuse(pending, FETCH_FAILED, None, results)
        elif self._is_expired(pending):
            self._expire(pending, project, results)
        elif isinstance(segments, SegmentsUnavailable):
            self._no_segments(pending, segments, project, results)
        else:
            return False
        return True

    def _no_segments(
        self, pending: Pending, why: SegmentsUnavailable, project: ProjectConfig | None, results: list[Result]
    ) -> None:
        if why.reason == "expired":
            self._expire(pending, project, results)
        else:
            self.refuse(pending, FETCH_FAILED, project.revision if project else None, results)

    def _expire(self, pending: Pending, project: ProjectConfig | None, results: list[Result]) -> None:
        self._shared.expired.inc()
        self._fail(pending, EXPIRED, project.revision if project else None, results)

    def _decide(self, pending: Pending, project: ProjectConfig, facts: Facts, results: list[Result]) -> None:
        record, request = pending.record, pending.request
        if is_large(project, request, pending.size):
            self.settle(pending, facts)
            return
        lies_at = source_of(record)
        source, timestamp = identity_of(record, lies_at)
        found = answer(project, request, facts, source=source, timestamp=timestamp)
        if found.wanted:
            self.settle(pending, facts)
        else:
            self.answered(pending, found.value, results, lies_at)

    def project(self, request: DecideRequest) -> ProjectConfig | None:
        """The project as it is now: it may have been replaced while the request waited."""
        return self._shared.datafiles.project(request.sdk_key or "")

    def answered(self, pending: Pending, value: bytes, results: list[Result], lies_at: str = "") -> None:
        """Add the result of a request that was decided. `lies_at` spares working out where it lies again."""
        record, request = pending.record, pending.request
        if len(value) > self._shared.max_result_bytes:
            self._reject(pending, Rejected("result_too_large", f"its result has {len(value)} bytes"))
            return
        self._decided += 1
        results.append(self._result(record, request, value, lies_at or source_of(record)))

    def _reject(self, pending: Pending, why: Rejected) -> None:
        self._shared.rejected.inc()
        pending.chunk.reject(pending.record, why)

    def refuse(self, pending: Pending, message: str, revision: str | None, results: list[Result]) -> None:
        self._shared.failed.inc()
        detail = pending.request.detail
        if detail is not None:
            # The detail names a property, never a value: neither is the user's.
            log.debug("decide request not parsed", source=source_of(pending.record), detail=detail)
        self._fail(pending, message, revision, results)

    def _fail(self, pending: Pending, message: str, revision: str | None, results: list[Result]) -> None:
        record, request = pending.record, pending.request
        lies_at = source_of(record)
        source, timestamp = identity_of(record, lies_at)
        value = failure(request, message, source=source, timestamp=timestamp, revision=revision)
        results.append(self._result(record, request, value, lies_at))

    def _result(self, record: Delivery, request: DecideRequest, value: bytes, lies_at: str) -> Result:
        headers = [(RESULT_SOURCE_HEADER, lies_at.encode())]
        if record.headers:
            copied = self._shared.copied
            headers += [header for header in record.headers if header[0] in copied]
        key = record.key if record.key is not None else request.user_id.encode()
        return Result(key, value, headers, record.timestamp)

    def publish(self, chunk: Chunk, results: list[Result]) -> None:
        if results:
            chunk.publish(results)
        # Counting costs as much as a small decision: once for all of them.
        if self._decided:
            self._shared.decided.inc(self._decided)
            self._decided = 0
        self._shared.facts.count_hits()
