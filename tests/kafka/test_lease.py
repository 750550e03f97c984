"""The lease of a member, by a clock of the test's: it counts from the asking, and lapses when nobody answers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.kafka.lease import Lease
from tests.patience import PATIENCE

SECONDS = 5.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(clock: Clock) -> Lease:
    return Lease(SECONDS, clock=clock)


class Coordinator:
    """Answers heartbeats as it is told, each after a second."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.answers = True

    async def _do_heartbeat(self) -> bool:
        self.clock.now += 1
        return self.answers


def followed(lease: Lease, clock: Clock) -> Any:
    coordinator = Coordinator(clock)
    lease.follow(SimpleNamespace(_coordinator=coordinator))  # type: ignore[arg-type]
    return coordinator


def test_it_holds_for_its_time_and_lapses_then(lease: Lease, clock: Clock) -> None:
    clock.now += SECONDS
    assert not lease.lapsed
    clock.now += 0.001
    assert lease.lapsed
    lease.renew()
    assert not lease.lapsed


@pytest.mark.asyncio
async def test_an_answered_heartbeat_renews_it_from_the_moment_of_asking(lease: Lease, clock: Clock) -> None:
    coordinator = followed(lease, clock)
    clock.now += 3
    assert await coordinator._do_heartbeat() is True
    # The broker counts from when it heard of us, which may have been as early as the asking.
    clock.now += SECONDS - 1
    assert not lease.lapsed
    clock.now += 0.001
    assert lease.lapsed


@pytest.mark.asyncio
async def test_a_heartbeat_that_is_not_answered_renews_nothing(lease: Lease, clock: Clock) -> None:
    coordinator = followed(lease, clock)
    coordinator.answers = False
    for _ in range(6):
        assert await coordinator._do_heartbeat() is False
    assert lease.lapsed
    coordinator.answers = True
    await coordinator._do_heartbeat()
    assert not lease.lapsed


@pytest.mark.asyncio
async def test_who_waits_goes_on_with_a_renewal_that_holds_and_not_with_one_that_came_too_late(
    lease: Lease, clock: Clock
) -> None:
    told: list[float] = []
    lease.on_renewal = lambda: told.append(clock.now)
    await asyncio.wait_for(lease.valid(), PATIENCE)
    clock.now += 60
    waiting = [asyncio.create_task(lease.valid()) for _ in range(2)]
    await asyncio.sleep(0)
    lease.renew(clock.now - SECONDS - 1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    lease.renew()
    await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
    assert len(told) == 2
