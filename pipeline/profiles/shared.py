"""Profiles in Redis, in the layout that the Optimizely Agent uses.

Key: the user id; value: `{"<experiment id>": {"variation_id": "<id>"}}`. Users share look-ups (MGET), and saves (a
pipeline of SETs) of what they learned.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import msgspec
import structlog
from prometheus_client import Histogram
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from pipeline.metrics import Metrics
from pipeline.outage import UNAVAILABLE, Upstream
from pipeline.profiles.profile import NEW, Profile
from pipeline.settings import ProfilesSettings

_PAUSE_SECONDS = 1.0
# Saves are rare, and may end for good while Redis is full.
_FORGET_SECONDS = 300.0
# To write and read so many takes a few milliseconds of the loop; thousands would miss their own deadline.
_MOST_USERS = 250
# What Redis says where somebody keeps something else than a text under a user's key.
_OF_ANOTHER_KIND = "WRONGTYPE"

log = structlog.get_logger("pipeline.profiles")

_Q = TypeVar("_Q")
_A = TypeVar("_A")
_Asked = tuple[Sequence[_Q], asyncio.Future[Sequence[_A]]]


class _Kept(msgspec.Struct):
    variation_id: str | None = None


_read = msgspec.json.Decoder(dict[str, _Kept]).decode
_write = msgspec.json.Encoder().encode


def _profile(value: bytes | str) -> Profile | None:
    """A value as it lies in Redis; None if it is none."""
    try:
        kept = _read(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return {experiment: one.variation_id for experiment, one in kept.items() if one.variation_id}


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
        self._ttl_ms = int(settings.ttl * 1000)
        self._prefix = settings.key_prefix
        self._lookups = {
            name: metrics.profile_lookups.labels(name) for name in ("found", "none", "failed", "unreadable")
        }
        self._saves = {name: metrics.profile_saves.labels(name) for name in ("ok", "failed", "unreadable")}
        seconds, timeout = metrics.profile_request_seconds, settings.timeout
        # Apart: a Redis that is full, or a user without the right, may be read and not written.
        self.upstream = upstream = Upstream("redis", metrics, forget_after=_FORGET_SECONDS)
        self._reading = _Together(self._read, "profiles cannot be read", timeout, seconds.labels("lookup"), upstream)
        self._writing = _Together(self._write, "profiles cannot be saved", timeout, seconds.labels("save"), upstream)

    async def lookup(self, user_ids: Sequence[str]) -> Sequence[Profile | None]:
        try:
            values = await self._reading.ask(user_ids)
        except _Unanswered:
            self._lookups["failed"].inc(len(user_ids))
            return [None] * len(user_ids)
        found = [NEW if value is None else _profile(value) for value in values]
        new, unreadable = values.count(None), found.count(None)
        for outcome, count in (("none", new), ("unreadable", unreadable), ("found", len(found) - new - unreadable)):
            self._lookups[outcome].inc(count)
        return found

    async def save(self, profiles: Sequence[tuple[str, Profile]]) -> None:
        try:
            kept = await self._writing.ask(profiles)
        except _Unanswered:
            self._saves["failed"].inc(len(profiles))
        else:
            self._saves["ok"].inc(kept.count(True))
            self._saves["unreadable"].inc(kept.count(False))

    async def close(self) -> None:
        await self._reading.close()
        await self._writing.close()
        await self._redis.aclose()

    async def _read(self, user_ids: Sequence[str]) -> Sequence[bytes | str | None]:
        return await self._redis.mget([self._prefix + user_id for user_id in user_ids])

    async def _write(self, profiles: Sequence[tuple[str, Profile]]) -> Sequence[bool]:
        """Which of them are kept. What is no text was nil to MGET, and SET alone would wipe it out."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for user_id, profile in profiles:
                value = _write({experiment: _Kept(variation_id) for experiment, variation_id in profile.items()})
                pipe.set(self._prefix + user_id, value, px=self._ttl_ms or None, get=True)
            answers: Sequence[object] = await pipe.execute(raise_on_error=False)
        foreign = [isinstance(one, ResponseError) and str(one).startswith(_OF_ANOTHER_KIND) for one in answers]
        for answer, is_foreign in zip(answers, foreign, strict=True):
            if isinstance(answer, RedisError) and not is_foreign:
                raise answer
        return [not one for one in foreign]


class _Unanswered(Exception):
    """Redis did not answer in time, or not as it should."""


class _Together(Generic[_Q, _A]):
    """What is asked while a request is under way goes out with the next one, so that requests grow with the load.

    They do so up to a bound of users; whoever asks for more than that asks alone.

    After a failure nothing is asked for a second: nobody waits for what is down. One line is logged when that begins,
    and one when it is over.
    """

    def __init__(
        self, request: Callable[[Sequence[_Q]], Awaitable[Sequence[_A]]], fault: str, timeout: float,
        seconds: Histogram, upstream: Upstream,
    ) -> None:  # fmt: skip
        self._request = request
        self._fault = fault
        self._timeout = timeout
        self._seconds = seconds
        self._asked: deque[_Asked[_Q, _A]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._resumes = 0.0
        self._outage = upstream.outage(
            begins=f"{fault}: decisions are made all the same", ends=f"{fault}: over", log=log
        )

    def ask(self, questions: Sequence[_Q]) -> asyncio.Future[Sequence[_A]]:
        """The answers in their order, or _Unanswered; a failure nobody looks at is not reported by asyncio."""
        future: asyncio.Future[Sequence[_A]] = asyncio.get_running_loop().create_future()
        self._asked.append((questions, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name=self._fault)
            self._task.add_done_callback(self._ended)
        return future

    async def close(self) -> None:
        """Stop at once. Who waits is cancelled and not failed: a stop must not become somebody's answer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            return
        # Cancelled, perhaps before it began, or a defect.
        self._task = None
        asked, self._asked = self._asked, deque()
        for _, future in asked:
            future.cancel()
        if not task.cancelled():
            # Raised here it reaches the loop's exception handler at once.
            task.result()

    async def _work(self) -> None:
        while self._asked:
            asked = self._next()
            try:
                answers = await self._answers([question for questions, _ in asked for question in questions])
            except _Unanswered:
                for _, future in asked:
                    if not future.done():
                        future.set_exception(_Unanswered())
                        future.exception()
                continue
            except BaseException:
                self._asked.extendleft(reversed(asked))
                raise
            at = 0
            for questions, future in asked:
                if not future.done():
                    future.set_result(answers[at : at + len(questions)])
                at += len(questions)
        # Here, and not when the task is seen to be done: whoever asks in between begins another.
        self._task = None

    def _next(self) -> list[_Asked[_Q, _A]]:
        """Those who share the next request."""
        found = [self._asked.popleft()]
        users = len(found[0][0])
        while self._asked and users + len(self._asked[0][0]) <= _MOST_USERS:
            found.append(self._asked.popleft())
            users += len(found[-1][0])
        return found

    async def _answers(self, questions: Sequence[_Q]) -> Sequence[_A]:
        if time.monotonic() < self._resumes:
            raise _Unanswered
        try:
            answers = await self._tried(questions)
        except (RedisError, OSError, TimeoutError) as error:
            self._resumes = time.monotonic() + _PAUSE_SECONDS
            self._outage.begin(UNAVAILABLE, _said(error))
            raise _Unanswered from None
        self._outage.end()
        return answers

    async def _tried(self, questions: Sequence[_Q]) -> Sequence[_A]:
        try:
            return await self._once(questions)
        except TimeoutError:
            # Once more: it may have been this process that stood still, with the answer at its door.
            return await self._once(questions)

    async def _once(self, questions: Sequence[_Q]) -> Sequence[_A]:
        with self._seconds.time():
            async with asyncio.timeout(self._timeout):
                return await self._request(questions)


def _said(error: BaseException) -> str:
    """What went wrong. What Redis itself says may quote the command, and so the user: of that only its code."""
    text = str(error)
    if isinstance(error, ResponseError):
        code = text.partition(" ")[0]
        text = code if code.isupper() else "it refuses the command; is it older than Redis 6.2?"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
