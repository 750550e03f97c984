"""Predictions for users, remembered as long as what they depend on stays the same.

One is remembered by user and rule, together with a digest of the attributes it was made from: other attributes ask
anew. While a question is under way whoever asks the same waits for its answer. The decide options say otherwise for one
request. `handlers/facts.py` asks for what a decision turned out to depend on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial
from hashlib import blake2b
from uuid import uuid4

import orjson

from pipeline.caching.memory import MemoryCache
from pipeline.cmab.client import CmabClient
from pipeline.decision import Prediction, Wanted
from pipeline.errors import PredictionUnavailable
from pipeline.limits import Backoff
from pipeline.metrics import Metrics
from pipeline.settings import CmabSettings
from pipeline.transport import Transport

IGNORE, RESET, INVALIDATE = "IGNORE_CMAB_CACHE", "RESET_CMAB_CACHE", "INVALIDATE_USER_CMAB_CACHE"
FORGETTING = frozenset((RESET, INVALIDATE))

_Key = tuple[str, str]


class Predictions:
    """The predictions of a process, for all its SDK keys: rule ids are Optimizely's own and never meet."""

    def __init__(
        self, *, transport: Transport, settings: CmabSettings, metrics: Metrics, backoff: Backoff | None = None
    ) -> None:
        self._settings = settings
        self._client = CmabClient(transport=transport, settings=settings, metrics=metrics, backoff=backoff)
        self.upstream = self._client.upstream
        self._cache = MemoryCache(
            size=settings.cache_size, timeout=settings.cache_timeout, evicted=metrics.cmab_cache_evictions.inc
        )
        metrics.cmab_cache_entries.set_function(self._cache.__len__)
        self._lookups = {name: metrics.cmab_lookups.labels(name) for name in ("hit", "miss", "bypass")}
        self._refused = metrics.cmab_requests.labels("overloaded")
        self._under_way: dict[tuple[_Key, bytes], asyncio.Task[Prediction]] = {}
        """The questions whose answers are to be remembered."""
        self._tasks: set[asyncio.Task[Prediction]] = set()
        self._waiting = 0
        self._closed = False

    async def ask(
        self, user_id: str, wanted: Collection[Wanted], options: frozenset[str]
    ) -> dict[str, Prediction | None]:
        """By rule id; None where it could not be had. Ends within `cmab.fetch_deadline`.

        `IGNORE_CMAB_CACHE` neither looks up nor remembers; `RESET_CMAB_CACHE` forgets all users first;
        `INVALIDATE_USER_CMAB_CACHE` forgets this user's predictions for the rules asked about.
        """
        if RESET in options and IGNORE not in options:
            self._cache.empty()
            # Answers to questions asked before are given, and not remembered.
            self._under_way.clear()
        found = await asyncio.gather(*(self._one(user_id, one, options) for one in wanted))
        return {one.rule_id: prediction for one, prediction in zip(wanted, found, strict=True)}

    async def close(self) -> None:
        """Stop at once: who still waits is cancelled and not failed, as a stop must not become somebody's answer."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _one(self, user_id: str, wanted: Wanted, options: frozenset[str]) -> Prediction | None:
        try:
            if IGNORE in options:
                self._lookups["bypass"].inc()
                return await self._fetch(user_id, wanted)
            return await self._remembered(user_id, wanted, invalidate=INVALIDATE in options)
        except PredictionUnavailable:
            return None

    async def _remembered(self, user_id: str, wanted: Wanted, *, invalidate: bool) -> Prediction:
        key, digest = (user_id, wanted.rule_id), _digest(wanted)
        known: tuple[bytes, Prediction] | None = None if invalidate else self._cache.peek(key)
        if known is not None and known[0] == digest:
            self._lookups["hit"].inc()
            return known[1]
        # Gone before the question, and so even if it fails: what no longer holds must not come back.
        self._cache.drop(key)
        self._lookups["miss"].inc()
        task = self._under_way.get((key, digest))
        if task is None or invalidate:
            task = asyncio.create_task(self._fetch(user_id, wanted), name="prediction")
            self._under_way[key, digest] = task
            self._tasks.add(task)
            task.add_done_callback(partial(self._arrived, key, digest))
        # Of several who wait one may be cancelled; the question is the others' too.
        try:
            return await asyncio.shield(task)
        except PredictionUnavailable as error:
            # A new one for each: the task's, with its traceback, would refer to this frame and the frame to it.
            raise PredictionUnavailable(str(error)) from None
        finally:
            del task

    def _arrived(self, key: _Key, digest: bytes, task: asyncio.Task[Prediction]) -> None:
        self._tasks.discard(task)
        arrived = not task.cancelled() and task.exception() is None
        # One that was invalidated meanwhile is answered and not remembered.
        if self._under_way.get((key, digest)) is task:
            del self._under_way[key, digest]
            if arrived:
                self._cache.put(key, (digest, task.result()))

    async def _fetch(self, user_id: str, wanted: Wanted) -> Prediction:
        if self._closed:
            raise asyncio.CancelledError
        if self._waiting >= self._settings.max_waiting:
            self._refused.inc()
            raise PredictionUnavailable("too many predictions are waited for")
        uuid = str(uuid4())
        self._waiting += 1
        try:
            return Prediction(await self._client.predict(user_id, wanted, uuid), uuid)
        finally:
            self._waiting -= 1


def _digest(wanted: Wanted) -> bytes:
    try:
        text = orjson.dumps(wanted.attributes, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise PredictionUnavailable(f"the user's attributes cannot be sent: {error}") from error
    return blake2b(text, digest_size=16).digest()
