"""Sticky profiles: which variation each experiment once gave a user, so that it stays when traffic changes.

They are looked up before a decision and saved before its result is sent. In Redis, in the layout the Optimizely Agent
uses (key: the user id, value: `{"<experiment id>": {"variation_id": "<id>"}}`), or in memory, which only a single
worker can do. The users of a chunk share one look-up (MGET), and one save (a pipeline of SETs) of what they learned.
`handlers/facts.py` is the only user.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

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

    async def lookup(self, user_ids: Sequence[str]) -> Sequence[Profile | None]:
        """The users' profiles in their order, empty for a new user.

        None if one cannot be told; then nothing may be saved for the user.
        """

    async def save(self, profiles: Sequence[tuple[str, Profile]]) -> None:
        """Keep these profiles by user id in place of those before; of two for one user the later.

        A failure is counted, not raised: the decision stands.
        """

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

    async def lookup(self, user_ids: Sequence[str]) -> Sequence[Profile]:
        found = [self._known.get(user_id) for user_id in user_ids]
        for user_id, profile in zip(user_ids, found, strict=True):
            if profile is not None:
                self._known.move_to_end(user_id)
        new = found.count(None)
        self._lookups["none"].inc(new)
        self._lookups["found"].inc(len(found) - new)
        return [_NEW if profile is None else profile for profile in found]

    async def save(self, profiles: Sequence[tuple[str, Profile]]) -> None:
        for user_id, profile in profiles:
            self._known[user_id] = profile
            self._known.move_to_end(user_id)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        self._saves.inc(len(profiles))

    async def close(self) -> None:
        self._known.clear()


class _Kept(msgspec.Struct):
    variation_id: str | None = None


_NEW: Profile = {}
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
        self._connections = asyncio.Semaphore(_MOST_CONNECTIONS)
        self._timeout = settings.timeout
        self._ttl_ms = int(settings.ttl * 1000)
        self._prefix = settings.key_prefix
        self._seconds = {name: metrics.profile_request_seconds.labels(name) for name in ("lookup", "save")}
        self._lookups = {
            name: metrics.profile_lookups.labels(name) for name in ("found", "none", "failed", "unreadable")
        }
        self._saves = {name: metrics.profile_saves.labels(name) for name in ("ok", "failed")}
        # Apart: a Redis that is full, or a user without the right, may be read and not written.
        self._pauses = {"lookup": _Pause("profiles cannot be read"), "save": _Pause("profiles cannot be saved")}

    async def lookup(self, user_ids: Sequence[str]) -> Sequence[Profile | None]:
        keys = [self._prefix + user_id for user_id in user_ids]
        try:
            values = await self._within("lookup", lambda: self._redis.mget(keys))
        except _Unanswered:
            self._lookups["failed"].inc(len(keys))
            return [None] * len(keys)
        found = [_NEW if value is None else _profile(value) for value in values]
        new, unreadable = values.count(None), found.count(None)
        for outcome, count in (("none", new), ("unreadable", unreadable), ("found", len(found) - new - unreadable)):
            self._lookups[outcome].inc(count)
        return found

    async def save(self, profiles: Sequence[tuple[str, Profile]]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for user_id, profile in profiles:
                value = _write({experiment: _Kept(variation_id) for experiment, variation_id in profile.items()})
                pipe.set(self._prefix + user_id, value, px=self._ttl_ms or None)
            try:
                # An error that the pipeline raised itself would quote the command, and so the user.
                await self._within("save", lambda: _checked(pipe.execute(raise_on_error=False)))
            except _Unanswered:
                self._saves["failed"].inc(len(profiles))
            else:
                self._saves["ok"].inc(len(profiles))

    async def close(self) -> None:
        await self._redis.aclose()

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
