"""How many users go into a query: fewer at once where the service refuses, more again after a long time of success."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from pipeline.errors import PayloadRefused, SegmentsUnavailable, Unavailable
from pipeline.limits import Backoff
from pipeline.odp.coalescer import GROW_AFTER, PAUSE_AFTER, Coalescer
from pipeline.odp.graphql import Outcome
from pipeline.outage import Upstream
from pipeline.settings import OdpSettings
from tests.handlers.chunks import new_metrics
from tests.patience import PATIENCE
from tests.settled import until

MOST = 7


class Asked:
    """One user asked about, who waits until answered."""

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.since = 0.0
        self.asked_again = False
        self.last_failure: SegmentsUnavailable | None = None
        self.answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    @property
    def wanted(self) -> bool:
        return not self.answered.done()

    def answer(self, outcome: Outcome) -> None:
        self.answered.set_result(outcome)


class Service:
    """Takes so many users in a query, and remembers how many each had."""

    def __init__(self) -> None:
        self.takes = MOST
        self.down = False
        self.sizes: list[int] = []
        self.coalescer = Coalescer(
            self.ask, OdpSettings(max_users_per_query=MOST, max_linger=0), limit=2,
            backoff=Backoff(first=0.001, cap=0.001, rng=Random(1)),
            upstream=Upstream("odp_segments", new_metrics()),
        )  # fmt: skip

    async def ask(self, users: Sequence[str]) -> list[Outcome]:
        self.sizes.append(len(users))
        if self.down:
            raise Unavailable("HTTP 503", status=503)
        if len(users) > self.takes:
            raise PayloadRefused("HTTP 400", status=400)
        return [frozenset()] * len(users)

    async def wants(self, users: int) -> None:
        """So many users at once, and their answers."""
        asked = [Asked(f"user-{number}") for number in range(users)]
        for question in asked:
            self.coalescer.add(question)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(question.answered for question in asked))

    async def wants_full_queries(self, times: int) -> None:
        for _ in range(times):
            await self.wants(self.coalescer.limit)


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    yield made
    await made.coalescer.close()


def limit(service: Service) -> Any:
    return service.coalescer.limit


@pytest.mark.asyncio
async def test_after_many_full_answers_twice_as_many_users_are_tried_up_to_the_setting(service: Service) -> None:
    await service.wants_full_queries(GROW_AFTER - 1)
    assert limit(service) == 2
    await service.wants_full_queries(1)
    assert limit(service) == 4
    await service.wants_full_queries(GROW_AFTER)
    assert limit(service) == MOST
    await service.wants_full_queries(2 * GROW_AFTER)
    assert limit(service) == MOST
    assert max(service.sizes) == MOST


@pytest.mark.asyncio
async def test_queries_that_are_not_full_prove_nothing(service: Service) -> None:
    for _ in range(2 * GROW_AFTER):
        await service.wants(1)
    assert limit(service) == 2


@pytest.mark.asyncio
async def test_a_larger_query_that_is_refused_makes_the_limit_fall_at_once_and_the_count_begin_anew(
    service: Service,
) -> None:
    await service.wants_full_queries(GROW_AFTER)
    await service.wants_full_queries(GROW_AFTER // 2)
    assert limit(service) == 4
    service.takes = 2
    before = len(service.sizes)
    await service.wants(4)
    assert service.sizes[before:] == [4, 2, 2], "everyone is answered, by halves"
    assert limit(service) == 2
    # The second half, by which the limit was found, is the first full answer under it.
    await service.wants_full_queries(GROW_AFTER - 2)
    assert limit(service) == 2
    await service.wants_full_queries(1)
    assert limit(service) == 4


@pytest.mark.asyncio
async def test_users_asked_about_all_the_time_do_not_keep_the_ended_ones_behind_them_during_an_outage(
    service: Service,
) -> None:
    service.down = True
    busy = [Asked(f"busy-{number}") for number in range(limit(service) + 1)]
    for question in busy:
        service.coalescer.add(question)
    await until(lambda: len(service.sizes) > PAUSE_AFTER)
    gone = Asked("gone")
    service.coalescer.add(gone)
    gone.answer(frozenset())
    ended = weakref.ref(gone)
    del gone
    await until(lambda: ended() is None)
    assert not any(question.answered.done() for question in busy)
    service.down = False
    assert await busy[0].answered == frozenset()
