"""A bounded cache in memory: the least recently used entry leaves first, expiry is looked at when an entry is read.

It is an aiocache backend, so another one can stand in its place; aiocache's own has no bound. The hot path calls
`peek`, `put` and `drop`, which do not await: a fifth of a microsecond against two. `odp/segments.py` is its first user.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

# aiocache loads the Redis client wherever it is installed, for a backend that is not used here: eight megabytes of each
# worker. While its name stands for nothing, aiocache goes without.
_modules: dict[str, Any] = sys.modules
_hidden = "redis" not in _modules
if _hidden:
    _modules["redis"] = None
from aiocache.base import BaseCache  # noqa: E402
from aiocache.serializers import NullSerializer  # noqa: E402

if _hidden:
    del _modules["redis"]

_NEVER = float("inf")


class MemoryCache(BaseCache):  # type: ignore[misc]  # aiocache has no types
    """At most `size` entries, each for `timeout` seconds.

    `size` 0 remembers nothing, `timeout` 0 remembers for ever. An entry is valid while it is younger than `timeout`;
    reading it makes it the most recently used, writing it starts its time anew. `evicted` is called for every entry
    that leaves because the cache is full. None cannot be told from an absent entry.
    """

    NAME = "bounded-memory"

    def __init__(
        self,
        *,
        size: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        evicted: Callable[[], object] = lambda: None,
    ) -> None:
        # aiocache's own `timeout` is that of an operation, and there is nothing to wait for here.
        super().__init__(serializer=NullSerializer(), timeout=None, ttl=timeout)
        self._size = size
        self._clock = clock
        self._evicted = evicted
        self._entries: OrderedDict[Hashable, tuple[Any, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def peek(self, key: Hashable) -> Any:
        """The value of a valid entry, else None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, expires = entry
        if self._clock() >= expires:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: Hashable, value: object) -> None:
        """Remember a value for the timeout of the cache."""
        self._put(key, value, self.ttl)

    def drop(self, key: Hashable) -> None:
        """Forget a key, if it is remembered."""
        self._entries.pop(key, None)

    def empty(self) -> None:
        self._entries.clear()

    def _put(self, key: Hashable, value: object, ttl: float | None) -> None:
        if self._size <= 0:
            return
        self._entries[key] = (value, self._clock() + ttl if ttl else _NEVER)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
            self._evicted()

    # What aiocache calls. Its public methods wrap these with namespaces, plugins and serialisation.

    async def _get(self, key: Hashable, encoding: str | None = "utf-8", _conn: object = None) -> Any:
        return self.peek(key)

    async def _gets(self, key: Hashable, encoding: str | None = "utf-8", _conn: object = None) -> Any:
        return self.peek(key)

    async def _multi_get(
        self, keys: Iterable[Hashable], encoding: str | None = "utf-8", _conn: object = None
    ) -> list[Any]:
        return [self.peek(key) for key in keys]

    async def _set(
        self, key: Hashable, value: object, ttl: float | None = None, _cas_token: object = None, _conn: object = None
    ) -> bool | int:
        if _cas_token is not None and _cas_token != self.peek(key):
            return 0
        self._put(key, value, ttl)
        return True

    async def _multi_set(
        self, pairs: Iterable[tuple[Hashable, object]], ttl: float | None = None, _conn: object = None
    ) -> bool:
        for key, value in pairs:
            self._put(key, value, ttl)
        return True

    async def _add(self, key: Hashable, value: object, ttl: float | None = None, _conn: object = None) -> bool:
        if self.peek(key) is not None:
            raise ValueError(f"Key {key!r} already exists, use .set to update the value")
        self._put(key, value, ttl)
        return True

    async def _exists(self, key: Hashable, _conn: object = None) -> bool:
        return self.peek(key) is not None

    async def _increment(self, key: Hashable, delta: int, _conn: object = None) -> int:
        value = self.peek(key) or 0
        if not isinstance(value, int):
            raise TypeError("Value is not an integer")
        expires = self._entries[key][1] if key in self._entries else _NEVER
        self._put(key, value + delta, None if expires == _NEVER else expires - self._clock())
        return value + delta

    async def _expire(self, key: Hashable, ttl: float, _conn: object = None) -> bool:
        value = self.peek(key)
        if value is None:
            return False
        self._put(key, value, ttl)
        return True

    async def _delete(self, key: Hashable, _conn: object = None) -> int:
        return 0 if self._entries.pop(key, None) is None else 1

    async def _clear(self, namespace: str | None = None, _conn: object = None) -> bool:
        if namespace:
            for key in [key for key in self._entries if isinstance(key, str) and key.startswith(namespace)]:
                del self._entries[key]
        else:
            self.empty()
        return True

    async def _redlock_release(self, key: Hashable, value: object) -> int:
        """Give a lock back if it is still the caller's: aiocache's RedLock is built on it."""
        if self.peek(key) != value:
            return 0
        del self._entries[key]
        return 1
