"""Sticky profiles: which variation each experiment once gave a user, so that it stays when traffic changes.

They are looked up before a decision and saved before its result is sent. In Redis, in the layout the Optimizely Agent
uses (key: the user id, value: `{"<experiment id>": {"variation_id": "<id>"}}`), or in memory, which only a single
worker can do. Whatever is asked for in one turn of the event loop is one request: one MGET for a chunk of users, one
pipeline of SETs for what they learned. `handlers/facts.py` is the only user.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar, cast

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from pipeline.metrics import Metrics
from pipeline.settings import ProfilesSettings

Profile = Mapping[str, str]
"""Experiment id to variation id."""

_PAUSE_SECONDS = 1.0
_MOST_AT_ONCE = 1000
_MOST_CONNECTIONS = 8

log = structlog.get_logger("pipeline.profiles")

_Q = TypeVar("_Q")
_A = TypeVar("_A")


class Profiles(Protocol):
    """Where profiles are kept."""

    async def lookup(self, user_id: str) -> Profile | None:
        """The user's profile, empty for a new user; None if it cannot be told, and then nothing may be saved."""

    async def save(self, user_id: str, profile: Profile) -> None:
        """Keep this profile in place of the one before. A failure is counted, not raised: the decision stands."""

    async def close(self) -> None: ...


def make_profiles(settings: ProfilesSettings, metrics: Metrics) -> Profiles | None:
    """As configured; None where decisions are not sticky."""
    if settings.redis_url is not None:
        return RedisProfiles(settings, metrics)
    return MemoryProfiles(settings, metrics) if settings.single_worker else None


class MemoryProfiles:
    """For a single worker, and only until it ends: at most `max_users`, the one asked for longest ago leaves first."""

    def __init__(self, settings: ProfilesSettings, metrics: Metrics) -> None:
        self._most = settings.max_users
        self._known: OrderedDict[str, Profile] = OrderedDict()
        self._lookups = {name: metrics.profile_lookups.labels(name) for name in ("found", "none")}
        self._saves = metrics.profile_saves.labels("ok")

    async def lookup(self, user_id: str) -> Profile:
        found = self._known.get(user_id)
        self._lookups["none" if found is None else "found"].inc()
        if found is None:
            return {}
        self._known.move_to_end(user_id)
        return found

    async def save(self, user_id: str, profile: Profile) -> None:
        self._known[user_id] = profile
        self._known.move_to_end(user_id)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        self._saves.inc()

    async def close(self) -> None:
        self._known.clear()


class _Kept(msgspec.Struct):
    variation_id: str | None = None


_read = msgspec.json.Decoder(dict[str, _Kept]).decode
_write = msgspec.json.Encoder().encode


class RedisProfiles:
    """For any number of workers. While Redis does not answer, decisions are made without profiles and none is saved.

    A lookup that failed is no empty profile: saving on top of it would wipe out what the user was given before.
    """

    def __init__(self, settings: ProfilesSettings, metrics: Metrics) -> None:
        assert settings.redis_url is not None
        self._redis: Redis = Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=settings.timeout, socket_connect_timeout=settings.timeout,
            # Once, at once: a connection that was idle may be gone. More would outlast the deadline.
            retry=Retry(NoBackoff(), 1),
        )  # fmt: skip
        self._connections = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._timeout = settings.timeout
        self._ttl_ms = int(settings.ttl * 1000)
        self._prefix = settings.key_prefix
        self._seconds = {name: metrics.profile_request_seconds.labels(name) for name in ("lookup", "save")}
        self._lookups = {
            name: metrics.profile_lookups.labels(name) for name in ("found", "none", "failed", "unreadable")
        }
        self._saves = {name: metrics.profile_saves.labels(name) for name in ("ok", "failed")}
        self._reads: _Together[str, bytes | None] = _Together(self._read_many)
        self._writes: _Together[tuple[str, bytes], None] = _Together(self._write_many)
        # Apart: a Redis that is full, or a user without the right, may be read and not written.
        self._pauses = {"lookup": _Pause("profiles cannot be read"), "save": _Pause("profiles cannot be saved")}

    async def lookup(self, user_id: str) -> Profile | None:
        try:
            value = await self._reads.ask(user_id)
        except _Unanswered:
            self._lookups["failed"].inc()
            return None
        if value is None:
            self._lookups["none"].inc()
            return {}
        try:
            kept = _read(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._lookups["unreadable"].inc()
            return None
        self._lookups["found"].inc()
        return {experiment: one.variation_id for experiment, one in kept.items() if one.variation_id}

    async def save(self, user_id: str, profile: Profile) -> None:
        value = _write({experiment: _Kept(variation_id) for experiment, variation_id in profile.items()})
        try:
            await self._writes.ask((user_id, value))
        except _Unanswered:
            self._saves["failed"].inc()
        else:
            self._saves["ok"].inc()

    async def close(self) -> None:
        await self._reads.close()
        await self._writes.close()
        await self._redis.aclose()

    async def _read_many(self, user_ids: Sequence[str]) -> Sequence[bytes | None]:
        keys = [self._prefix + user_id for user_id in user_ids]
        return cast("Sequence[bytes | None]", await self._within("lookup", lambda: self._redis.mget(keys)))

    async def _write_many(self, profiles: Sequence[tuple[str, bytes]]) -> Sequence[None]:
        # Of two for one user the later counts, as it was asked for later.
        async with self._redis.pipeline(transaction=False) as pipe:
            for user_id, value in profiles:
                pipe.set(self._prefix + user_id, value, px=self._ttl_ms or None)
            # An error it raised itself would quote the command, and so the user.
            written = await self._within("save", lambda: _checked(pipe.execute(raise_on_error=False)))
        return [None] * len(written)

    async def _within(self, what: str, request: Callable[[], Awaitable[_A]]) -> _A:
        """The answer to one request. After a failure none is made for a second: nobody waits for what is down.

        Raises _Unanswered.
        """
        pause = self._pauses[what]
        if time.monotonic() < pause.until:
            raise _Unanswered
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout), self._connections:
                answer = await request()
        except (RedisError, OSError, TimeoutError) as error:
            pause.begin(error)
            raise _Unanswered from error
        finally:
            self._seconds[what].observe(time.perf_counter() - started)
        pause.end()
        return answer


class _Pause:
    """The time after a failure; one line when it begins and one when it is over, however often it is prolonged."""

    def __init__(self, what: str) -> None:
        self.until = 0.0
        self._what = what
        self._since: float | None = None

    def begin(self, error: BaseException) -> None:
        self.until = time.monotonic() + _PAUSE_SECONDS
        if self._since is None:
            self._since = time.monotonic()
            log.warning(f"{self._what}: decisions are made all the same", reason=_said(error))

    def end(self) -> None:
        if self._since is not None:
            log.info(f"{self._what}: over", seconds=round(time.monotonic() - self._since, 1))
            self._since = None


async def _checked(answers: Awaitable[list[object]]) -> list[object]:
    """The answers to a pipeline. Raises the first error among them."""
    found = await answers
    for answer in found:
        if isinstance(answer, RedisError):
            raise answer
    return found


class _Unanswered(Exception):
    """Redis did not answer in time, or not as it should."""


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


_Asked = Sequence[tuple[_Q, asyncio.Future[_A]]]


class _Together(Generic[_Q, _A]):
    """What is asked in one turn of the loop goes out as one request, or as few of `_MOST_AT_ONCE` each."""

    def __init__(self, request: Callable[[Sequence[_Q]], Awaitable[Sequence[_A]]]) -> None:
        self._request = request
        self._asked: list[tuple[_Q, asyncio.Future[_A]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, question: _Q) -> asyncio.Future[_A]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_A] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._go)
        self._asked.append((question, future))
        return future

    async def close(self) -> None:
        asked, self._asked = self._asked, []
        for _, future in asked:
            future.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _go(self) -> None:
        asked, self._asked = self._asked, []
        for first in range(0, len(asked), _MOST_AT_ONCE):
            together = asked[first : first + _MOST_AT_ONCE]
            task = asyncio.create_task(self._answer(together), name="profiles")
            self._tasks.add(task)
            task.add_done_callback(partial(self._answered, together))

    def _answered(self, asked: _Asked[_Q, _A], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        for _, future in asked:
            # Of a task that was cancelled, perhaps before it began.
            future.cancel()
        if not task.cancelled():
            # A defect: raised here it reaches the loop's exception handler at once.
            task.result()

    async def _answer(self, asked: _Asked[_Q, _A]) -> None:
        try:
            answers = await self._request([question for question, _ in asked])
        except _Unanswered:
            for _, future in asked:
                if not future.done():
                    # One instance each: whoever awaits it adds to its traceback.
                    future.set_exception(_Unanswered())
            return
        for (_, future), answer in zip(asked, answers, strict=True):
            if not future.done():
                future.set_result(answer)
