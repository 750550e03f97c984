"""The cache is bounded, forgets in the right order and at the right time, and is a backend of aiocache."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import pytest
from aiocache.lock import OptimisticLock, OptimisticLockError, RedLock
from hypothesis import given
from hypothesis import strategies as st

from pipeline.caching.memory import MemoryCache
from tests.patience import PATIENCE


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_least_recently_used_leaves_first() -> None:
    gone: list[int] = []
    cache = MemoryCache(size=2, timeout=0, evicted=lambda: gone.append(1))
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.peek("a") == 1
    cache.put("c", 3)
    assert (cache.peek("a"), cache.peek("b"), cache.peek("c")) == (1, None, 3)
    assert len(gone) == 1


def test_what_is_dropped_is_gone() -> None:
    cache = MemoryCache(size=2, timeout=0)
    cache.put("a", 1)
    cache.drop("a")
    cache.drop("never there")
    assert cache.peek("a") is None
    assert len(cache) == 0


def test_valid_while_younger_than_the_timeout() -> None:
    clock = Clock()
    cache = MemoryCache(size=10, timeout=600, clock=clock)
    cache.put("a", frozenset())
    clock.now += 599.9
    assert cache.peek("a") == frozenset()
    clock.now += 0.1
    assert cache.peek("a") is None
    assert len(cache) == 0


def test_reading_does_not_prolong_and_writing_does() -> None:
    clock = Clock()
    cache = MemoryCache(size=10, timeout=10, clock=clock)
    cache.put("read", 1)
    cache.put("written", 1)
    clock.now += 6
    cache.peek("read")
    cache.put("written", 2)
    clock.now += 6
    assert (cache.peek("read"), cache.peek("written")) == (None, 2)


def test_size_0_remembers_nothing_and_timeout_0_for_ever() -> None:
    clock = Clock()
    gone: list[int] = []
    disabled = MemoryCache(size=0, timeout=600, evicted=lambda: gone.append(1))
    disabled.put("a", 1)
    assert (disabled.peek("a"), len(disabled), gone) == (None, 0, [])
    lasting = MemoryCache(size=1, timeout=0, clock=clock)
    lasting.put("a", 1)
    clock.now += 10**9
    assert lasting.peek("a") == 1


operations = st.lists(
    st.tuples(st.sampled_from(["put", "peek", "tick"]), st.integers(0, 5), st.integers(0, 9)), max_size=80
)


@given(operations=operations, size=st.integers(0, 4), timeout=st.sampled_from([0, 3]))
def test_agrees_with_a_plain_model(operations: list[tuple[str, int, int]], size: int, timeout: int) -> None:
    clock = Clock()
    cache = MemoryCache(size=size, timeout=timeout, clock=clock)
    model: OrderedDict[int, tuple[int, float]] = OrderedDict()
    for operation, key, value in operations:
        if operation == "tick":
            clock.now += value / 2
        elif operation == "put":
            cache.put(key, value)
            model[key] = (value, clock.now)
            model.move_to_end(key)
            while len(model) > size:
                model.popitem(last=False)
        else:
            found = model.get(key)
            if found is not None and timeout and clock.now - found[1] >= timeout:
                del model[key]
                found = None
            if found is not None:
                model.move_to_end(key)
            assert cache.peek(key) == (None if found is None else found[0])
        assert len(cache) <= size


@pytest.mark.asyncio
async def test_aiocache_interface() -> None:
    clock = Clock()
    cache = MemoryCache(size=10, timeout=600, clock=clock)
    await cache.set("a", 1)
    await cache.set("short", 2, ttl=5)
    await cache.multi_set([("b", 3), ("c", 4)])
    assert await cache.multi_get(["a", "b", "x"]) == [1, 3, None]
    assert cache.peek("a") == 1
    with pytest.raises(ValueError, match="already exists"):
        await cache.add("a", 9)
    assert await cache.add("d", 5)
    assert await cache.increment("n") == 1
    assert await cache.increment("a", 2) == 3
    with pytest.raises(TypeError):
        cache.put("text", "x")
        await cache.increment("text")
    clock.now += 5
    assert await cache.get("short") is None
    assert await cache.exists("a")
    assert await cache.expire("a", 1)
    assert not await cache.expire("nothing", 1)
    clock.now += 1
    assert not await cache.exists("a")
    assert await cache.delete("b") == 1
    assert await cache.delete("b") == 0
    await cache.clear()
    assert len(cache) == 0


@pytest.mark.asyncio
async def test_incremented_entry_keeps_its_time() -> None:
    clock = Clock()
    cache = MemoryCache(size=10, timeout=10, clock=clock)
    cache.put("n", 1)
    clock.now += 6
    await cache.increment("n")
    clock.now += 4
    assert cache.peek("n") is None


@pytest.mark.asyncio
async def test_clearing_a_namespace_spares_the_others() -> None:
    cache = MemoryCache(size=10, timeout=600)
    await cache.set("a", 1, namespace="one:")
    await cache.set("a", 2, namespace="two:")
    await cache.clear(namespace="one:")
    assert await cache.get("a", namespace="one:") is None
    assert await cache.get("a", namespace="two:") == 2


@pytest.mark.asyncio
async def test_serves_aiocaches_locks() -> None:
    cache = MemoryCache(size=10, timeout=600)
    async with asyncio.timeout(PATIENCE), RedLock(cache, "x", lease=1):
        assert await cache.exists("x-lock")
    assert not await cache.exists("x-lock")
    async with asyncio.timeout(PATIENCE), RedLock(cache, "x", lease=1):
        cache.put("x-lock", "somebody else's")
    assert await cache.exists("x-lock")
    cache.put("y", 1)
    async with OptimisticLock(cache, "y") as lock:
        cache.put("y", 2)
        with pytest.raises(OptimisticLockError):
            await lock.cas(3)
