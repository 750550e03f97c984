"""Role decide: each request is answered with one result. Its one effect is that result, but for sticky profiles.

Users whose facts are at hand are decided at once. The others wait for theirs: for segments, for the profiles of a whole
chunk, or for what `facts.py` settles step by step. Only later requests of the same user wait behind them, so that a
user's results keep the order of the requests.
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
from pipeline.handlers.sticky import Pending, Sticky
from pipeline.messages.decide import DecideRequest, parse_decide_request, read_expires_at
from pipeline.messages.delivery import RESULT_SOURCE_HEADER, Chunk, Delivery, Result, identity_of, source_of
from pipeline.messages.words import EXPIRED, FETCH_FAILED, SDK_KEY_MISSING
from pipeline.metrics import Metrics
from pipeline.profiles import Profile
from pipeline.project import ProjectConfig
from pipeline.settings import DecideSettings

log = structlog.get_logger("pipeline.decide")

_NOT_FETCHED = Facts()


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
        """Stop at once; who still waits is not answered, and read again by the next owner."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class _Waiting:
    """A user whose facts are being fetched: the request that asked, and the later ones in their order."""

    __slots__ = ("head", "later")

    def __init__(self, head: Pending) -> None:
        self.head = head
        # Made when it is needed: an empty one is larger than the request.
        self.later: deque[Pending] | None = None

    def append(self, pending: Pending) -> None:
        if self.later is None:
            self.later = deque()
        self.later.append(pending)


class DecideHandler:
    """The requests of one partition."""

    def __init__(self, decider: Decider) -> None:
        self._shared = decider
        self._waiting: dict[str, _Waiting] = {}
        self._sticky = Sticky(self, decider.facts)
        self._identities = IgnoredIdentities()
        self._at_it = False
        self._decided = 0
        """Since they were counted last."""

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
                self._identities.look_at(record)
            waiting = self._waiting.get(request.user_id)
            if waiting is None:
                self._begin((chunk, record, request), results)
            else:
                waiting.append((chunk, record, request))
        self.publish(chunk, results)
        self._look_up()
        shared.seconds.observe(time.perf_counter() - started)

    def _begin(self, pending: Pending, results: list[Result], profile: Profile | None = None) -> None:
        """Answer a request, or let its user wait; `_look_up` is called afterwards. `profile`: if it is known."""
        _, record, request = pending
        shared = self._shared
        if shared.options:
            request.options |= shared.options
        if record.headers and request.error is None:
            read_expires_at(request, record.headers)
        sdk_key = request.sdk_key
        if sdk_key is None:
            sdk_key = request.sdk_key = shared.datafiles.sole_key
        project = None if sdk_key is None else shared.datafiles.project(sdk_key)
        if project is None or request.error is not None:
            self.refuse(pending, request.error or self._without_project(sdk_key), None, results)
        elif (request.expires_at is not None or request.ttl_ms is not None or shared.max_age_ms) and self._is_expired(
            record, request
        ):
            shared.expired.inc()
            self._fail(pending, EXPIRED, project.revision, results)
        elif request.fetch_segments and project.odp is None:
            self.refuse(pending, FETCH_FAILED, project.revision, results)
        elif shared.may_stick and shared.facts.is_sticky(request):
            self._by_profile(pending, project, profile, results)
        elif not request.fetch_segments or project.odp is None:
            self._decide(pending, project, _NOT_FETCHED, results)
        elif (known := shared.facts.known_segments(project.odp, request)) is not None:
            self._decide(pending, project, Facts(known), results)
        else:
            future = shared.facts.fetch_segments(project.odp, request)
            self._waiting[request.user_id] = _Waiting(pending)
            future.add_done_callback(partial(self._arrived, request.user_id))

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
            self._waiting[pending[2].user_id] = _Waiting(pending)
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

    def settle(self, pending: Pending, facts: Facts, segments: asyncio.Future[frozenset[str]] | None = None) -> None:
        """Let the user wait until everything the request depends on was asked for, and what it taught is saved."""
        self._waiting.setdefault(pending[2].user_id, _Waiting(pending))
        self._start(self._settled(pending, facts, segments))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="decide, step by step")
        self._shared.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._shared.tasks.discard(task)
        if not task.cancelled():
            # A defect: raised here it reaches the loop's exception handler at once.
            task.result()

    async def _settled(self, pending: Pending, facts: Facts, segments: asyncio.Future[frozenset[str]] | None) -> None:
        chunk, record, request = pending
        lies_at = source_of(record)
        source, timestamp = identity_of(record, lies_at)
        results: list[Result] = []
        try:
            settling = self._shared.facts.settle(
                request, facts, segments, chunk, source=source, timestamp=timestamp, size=len(record.value or b"")
            )
            del segments  # as in `settle`
            value = await settling
        except SegmentsUnavailable:
            current = self.project(request)
            self.refuse(pending, FETCH_FAILED, current.revision if current else None, results)
        except Rejected as why:
            self._reject(pending, why)
        else:
            if value is not None:
                self.answered(pending, value, results, lies_at)
        if not chunk.abandoned:
            self.publish(chunk, results)
            self.release(request.user_id)

    # Who waits

    def release(self, user_id: str, profile: Profile | None = None) -> None:
        """The user's request is answered: those behind it are next, by the same profile."""
        self._go_on(user_id, self._waiting.pop(user_id).later, profile)

    def _arrived(self, user_id: str, future: asyncio.Future[frozenset[str]]) -> None:
        """A user's segments are here, or will not come. Thousands may come at once: each waits for room."""
        chunk = self._waiting[user_id].head[0]
        chunk.when_room(partial(self._answer, user_id, future))

    def _answer(self, user_id: str, future: asyncio.Future[frozenset[str]]) -> None:
        """Decide the request that asked, and those behind it."""
        waiting = self._waiting.pop(user_id)
        chunk, _, request = waiting.head
        if chunk.abandoned or future.cancelled():
            return
        results: list[Result] = []
        error = future.exception()
        project = self.project(request)
        if isinstance(error, SegmentsUnavailable) or project is None:
            self.refuse(waiting.head, FETCH_FAILED, project.revision if project else None, results)
        elif error is not None:
            raise error
        else:
            self._decide(waiting.head, project, Facts(future.result()), results)
        self.publish(chunk, results)
        again = self._waiting.get(user_id)
        if again is not None:
            again.later = waiting.later
        else:
            self._go_on(user_id, waiting.later)

    def _go_on(self, user_id: str, later: deque[Pending] | None, profile: Profile | None = None) -> None:
        self._go_through(user_id, later, profile)
        self._look_up()

    def _go_through(self, user_id: str, later: deque[Pending] | None, profile: Profile | None) -> None:
        while later:
            pending = later.popleft()
            results: list[Result] = []
            self._begin(pending, results, profile)
            self.publish(pending[0], results)
            again = self._waiting.get(user_id)
            if again is not None:
                again.later = later
                return
            if later and not later[0][0].has_room:
                # Whoever comes meanwhile lines up behind.
                self._waiting[user_id] = paused = _Waiting(later.popleft())
                paused.later = later
                paused.head[0].when_room(partial(self._resume, user_id))
                return

    def _resume(self, user_id: str) -> None:
        waiting = self._waiting.pop(user_id)
        if waiting.head[0].abandoned:
            return  # the next owner's, with all that lined up behind
        later = deque() if waiting.later is None else waiting.later
        later.appendleft(waiting.head)
        self._go_on(user_id, later)

    def _is_expired(self, record: Delivery, request: DecideRequest) -> bool:
        expires = request.expires_at
        if expires is None:
            expires = record.timestamp + (request.ttl_ms or self._shared.max_age_ms)
        return self._shared.now() * 1000 > expires

    def _decide(self, pending: Pending, project: ProjectConfig, facts: Facts, results: list[Result]) -> None:
        _, record, request = pending
        if is_large(project, request, len(record.value or b"")):
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
        _, record, request = pending
        if len(value) > self._shared.max_result_bytes:
            self._reject(pending, Rejected("result_too_large", f"its result has {len(value)} bytes"))
            return
        self._decided += 1
        results.append(self._result(record, request, value, lies_at or source_of(record)))

    def _reject(self, pending: Pending, why: Rejected) -> None:
        chunk, record, _ = pending
        self._shared.rejected.inc()
        chunk.reject(record, why)

    def refuse(self, pending: Pending, message: str, revision: str | None, results: list[Result]) -> None:
        self._shared.failed.inc()
        _, record, request = pending
        if request.detail is not None:
            # The detail names a property, never a value: neither is the user's.
            log.debug("decide request not parsed", source=source_of(record), detail=request.detail)
        self._fail(pending, message, revision, results)

    def _fail(self, pending: Pending, message: str, revision: str | None, results: list[Result]) -> None:
        _, record, request = pending
        lies_at = source_of(record)
        source, timestamp = identity_of(record, lies_at)
        value = failure(request, message, source=source, timestamp=timestamp, revision=revision)
        results.append(self._result(record, request, value, lies_at))

    def _result(self, record: Delivery, request: DecideRequest, value: bytes, lies_at: str) -> Result:
        headers = [(RESULT_SOURCE_HEADER, lies_at.encode())]
        if record.headers:
            copied = self._shared.copied
            headers += [header for header in record.headers if header[0] in copied]
        return Result(record.key if record.key is not None else request.user_id.encode(), value, headers)

    def publish(self, chunk: Chunk, results: list[Result]) -> None:
        if results:
            chunk.publish(results)
        # Counting costs as much as a small decision: once for all of them.
        if self._decided:
            self._shared.decided.inc(self._decided)
            self._decided = 0
        self._shared.facts.count_hits()
