"""Segments are remembered per account, asked for once and together, and every wait ends."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from pipeline.errors import SegmentsUnavailable
from pipeline.limits import Backoff
from pipeline.metrics import Metrics
from pipeline.odp.segments import REASONS, Segments
from pipeline.settings import OdpSettings
from pipeline.transport import Transport
from tests.odp.stand_in import UNSENDABLE, Account, Odp, Parts, parts
from tests.patience import PATIENCE, stretched
from tests.settled import until

NAMES = [f"user-{number}" for number in range(200)]


def everyone(names: Iterable[str], segments: list[str]) -> dict[str, Iterable[str]]:
    return dict.fromkeys(names, segments)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Made:
    segments: Segments
    parts: Parts
    clock: Clock

    @property
    def odp(self) -> Odp:
        return self.parts.odp

    @property
    def account(self) -> Account:
        return self.parts.account

    def blocked(self, reason: str) -> float:
        return self.parts.sample("upstream_blocked", upstream="odp_segments", reason=reason)

    def fetch(
        self, user_id: str, *, save: bool = True, account: Account | None = None, within: float | None = None
    ) -> asyncio.Future[frozenset[str]]:
        return self.segments.fetch(account or self.account, user_id, save=save, within=within)

    def peek(self, user_id: str, account: Account | None = None) -> frozenset[str] | SegmentsUnavailable | None:
        return self.segments.peek(account or self.account, user_id)

    def failures(self, reason: str) -> float:
        return self.parts.sample("segment_failures_total", reason=reason)


@asynccontextmanager
async def made_of(odp: Odp, **settings: Any) -> AsyncIterator[Made]:
    async with parts(odp, **{"max_users_per_query": 10, "max_in_flight": 4, **settings}) as given:
        clock = Clock()
        segments = Segments(
            transport=given.transport, settings=given.settings, metrics=given.metrics, clock=clock,
            backoff=Backoff(first=0.01, cap=0.05, rng=Random(1)),
        )  # fmt: skip
        try:
            yield Made(segments, given, clock)
        finally:
            await segments.close()


async def together(*futures: asyncio.Future[frozenset[str]]) -> list[frozenset[str]]:
    return [await future for future in futures]


async def failure(future: asyncio.Future[frozenset[str]]) -> str:
    with pytest.raises(SegmentsUnavailable) as caught:
        await future
    assert caught.value.reason in REASONS
    return caught.value.reason


@pytest.mark.asyncio
async def test_fetched_then_remembered() -> None:
    async with made_of(Odp(people={"ann": ["gold", "other"], "bob": []})) as made:
        assert made.peek("ann") is None
        assert await together(made.fetch("ann"), made.fetch("bob")) == [frozenset({"gold"}), frozenset()]
        assert made.peek("ann") == frozenset({"gold"})
        assert made.peek("bob") == frozenset()
        assert made.odp.queries == [["ann", "bob"]]
        assert made.parts.sample("segment_lookups_total", outcome="miss") == 2
        assert made.parts.sample("segment_lookups_total", outcome="hit") == 0, "counted before it was told to"
        made.segments.count_hits()
        made.segments.count_hits()
        assert made.parts.sample("segment_lookups_total", outcome="hit") == 2
        assert made.parts.sample("segment_cache_entries") == 2
        made.clock.now += 600
        assert made.peek("ann") is None


@pytest.mark.asyncio
async def test_without_segments_to_check_nobody_is_asked() -> None:
    async with made_of(Odp()) as made:
        account = Account(made.odp.host, segments_to_check=())
        assert made.peek("ann", account) == frozenset()
        assert await made.fetch("ann", account=account) == frozenset()
        assert made.odp.queries == []


@pytest.mark.asyncio
async def test_users_of_one_turn_share_full_queries() -> None:
    async with made_of(Odp(people=everyone(NAMES, ["gold"]), gate=asyncio.Event())) as made:
        futures = [made.fetch(name) for name in NAMES]
        await until(lambda: made.odp.now == 4)
        assert made.odp.gate is not None
        made.odp.gate.set()
        assert await together(*futures) == [frozenset({"gold"})] * len(NAMES)
        assert [len(query) for query in made.odp.queries] == [10] * 20
        assert sorted(made.odp.asked) == sorted(NAMES)
        assert len(set(made.odp.texts)) == 1
        assert made.odp.most == 4


@pytest.mark.asyncio
async def test_one_user_is_asked_about_once_however_many_wait() -> None:
    async with made_of(Odp(people={"ann": ["gold"]}, gate=asyncio.Event())) as made:
        early = [made.fetch("ann") for _ in range(3)]
        await until(lambda: made.odp.queries)
        early.append(made.fetch("ann"))
        assert made.odp.gate is not None
        made.odp.gate.set()
        assert await asyncio.gather(*early) == [frozenset({"gold"})] * 4
        assert made.odp.asked == ["ann"]
        counted = {name: made.parts.sample("segment_lookups_total", outcome=name) for name in ("miss", "shared")}
        assert counted == {"miss": 1, "shared": 3}


@pytest.mark.asyncio
async def test_cancelled_waiter_leaves_the_others_alone() -> None:
    async with made_of(Odp(people={"ann": ["gold"]})) as made:
        one, two = made.fetch("ann"), made.fetch("ann")
        one.cancel()
        assert await two == frozenset({"gold"})


@pytest.mark.asyncio
async def test_lone_user_waits_while_a_query_is_under_way_but_not_longer_than_the_linger() -> None:
    gate = asyncio.Event()
    async with made_of(Odp(people=everyone(NAMES, []), gate=gate), max_linger=0.5) as made:
        made.fetch("user-1")
        await until(lambda: made.odp.queries)
        started = asyncio.get_running_loop().time()
        made.fetch("user-2")
        await asyncio.sleep(0.01)
        made.fetch("user-3")
        await until(lambda: len(made.odp.queries) == 2)
        assert asyncio.get_running_loop().time() - started >= 0.499
        assert made.odp.queries == [["user-1"], ["user-2", "user-3"]]


@pytest.mark.asyncio
async def test_full_query_goes_at_once_while_another_is_under_way() -> None:
    gate = asyncio.Event()
    async with made_of(Odp(people=everyone(NAMES, []), gate=gate), max_linger=10 * PATIENCE) as made:
        made.fetch("user-1")
        await until(lambda: made.odp.queries)
        for number in range(10, 20):
            made.fetch(f"user-{number}")
        await until(lambda: len(made.odp.queries) == 2)
        assert len(made.odp.queries[1]) == 10


@pytest.mark.asyncio
async def test_query_goes_when_the_one_under_way_ends() -> None:
    gate = asyncio.Event()
    async with made_of(Odp(people=everyone(NAMES, []), gate=gate), max_linger=10 * PATIENCE) as made:
        one = made.fetch("user-1")
        await until(lambda: made.odp.queries)
        two, three = made.fetch("user-2"), made.fetch("user-3")
        gate.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(one, two, three)
        assert made.odp.queries == [["user-1"], ["user-2", "user-3"]]


@pytest.mark.asyncio
async def test_ignored_cache_is_not_written() -> None:
    async with made_of(Odp(people={"ann": ["gold"]})) as made:
        assert await made.fetch("ann", save=False) == frozenset({"gold"})
        assert made.peek("ann") is None
        assert made.parts.sample("segment_lookups_total", outcome="bypass") == 1
        assert await together(made.fetch("ann", save=False), made.fetch("ann")) == [frozenset({"gold"})] * 2
        assert made.peek("ann") == frozenset({"gold"})
        made.segments.reset()
        await together(made.fetch("ann"), made.fetch("ann", save=False))
        assert made.peek("ann") == frozenset({"gold"})


@pytest.mark.asyncio
async def test_cache_of_size_0_is_off() -> None:
    async with made_of(Odp(people={"ann": ["gold"]}), cache_size=0) as made:
        await made.fetch("ann")
        assert made.peek("ann") is None


@pytest.mark.asyncio
async def test_reset_forgets_all_and_what_was_asked_before_it() -> None:
    gate = asyncio.Event()
    async with made_of(Odp(people={"ann": ["gold"], "bob": []})) as made:
        await made.fetch("ann")
        made.odp.gate = gate
        before = made.fetch("bob")
        await until(lambda: len(made.odp.queries) == 2)
        made.segments.reset()
        assert made.peek("ann") is None
        gate.set()
        assert await before == frozenset()
        assert made.peek("bob") is None
        made.odp.people = {"bob": ["silver"]}
        assert await made.fetch("bob") == frozenset({"silver"})
        assert made.peek("bob") == frozenset({"silver"})


@pytest.mark.asyncio
async def test_fetch_after_a_reset_does_not_join_a_question_from_before() -> None:
    gate = asyncio.Event()
    async with made_of(Odp(people={"ann": []}, gate=gate), max_linger=0) as made:
        before = made.fetch("ann")
        await until(lambda: made.odp.queries)
        made.segments.reset()
        after = made.fetch("ann")
        await until(lambda: len(made.odp.queries) == 2)
        gate.set()
        await asyncio.gather(before, after)
        assert made.odp.asked == ["ann", "ann"]


@pytest.mark.asyncio
@pytest.mark.parametrize("change", ["host", "key", "segments"])
async def test_accounts_share_no_entry(change: str) -> None:
    async with made_of(Odp(people={"ann": ["gold"]})) as made:
        await made.fetch("ann")
        host, key, names = made.account.host, made.account.key, made.account.segments_to_check
        other = {
            "host": Account(host + "/", key, names),
            "key": Account(host, "another", names),
            "segments": Account(host, key, ("gold",)),
        }[change]
        assert made.peek("ann", other) is None
        assert made.peek("ann", Account(host, key, names)) == frozenset({"gold"})


@pytest.mark.asyncio
async def test_accounts_ask_for_themselves() -> None:
    async with made_of(Odp(people={"ann": ["gold", "silver"]})) as made:
        gold = Account(made.odp.host, segments_to_check=("gold",))
        silver = Account(made.odp.host, segments_to_check=("silver",))
        futures = [made.fetch("ann", account=account) for account in (gold, silver)]
        assert await together(*futures) == [frozenset({"gold"}), frozenset({"silver"})]
        assert [made.peek("ann", account) for account in (gold, silver)] == [
            frozenset({"gold"}), frozenset({"silver"}),
        ]  # fmt: skip


@pytest.mark.asyncio
async def test_unknown_user_fails_alone_and_is_asked_about_again_after_a_short_time() -> None:
    async with made_of(Odp(people={"ann": ["gold"]})) as made:
        ann, unknown = made.fetch("ann"), made.fetch("unknown")
        assert await ann == frozenset({"gold"})
        assert await failure(unknown) == "invalid_identifier"
        assert made.odp.asked == ["ann", "unknown"]
        made.clock.now += 0.99
        assert _reason(made.peek("unknown")) == "invalid_identifier"
        assert made.parts.sample("segment_lookups_total", outcome="unknown") == 1
        assert made.failures("invalid_identifier") == 2, "each request that gets the error counts"
        assert made.parts.sample("segment_cache_entries") == 1
        made.clock.now += 0.01
        assert made.peek("unknown") is None
        made.odp.people["unknown"] = []
        assert await made.fetch("unknown") == frozenset()
        assert made.peek("unknown") == frozenset()


@pytest.mark.asyncio
@pytest.mark.parametrize("settings", [{"unknown_user_timeout": 0}, {"cache_size": 0}])
async def test_unknown_user_is_not_remembered_where_that_is_off(settings: dict[str, Any]) -> None:
    async with made_of(Odp(), **settings) as made:
        assert await failure(made.fetch("unknown")) == "invalid_identifier"
        assert made.peek("unknown") is None


@pytest.mark.asyncio
async def test_unknown_user_is_forgotten_by_a_reset_not_saved_when_the_cache_is_ignored_and_pushes_nobody_out() -> None:
    async with made_of(Odp(people={"ann": ["gold"]}), cache_size=1) as made:
        assert await failure(made.fetch("unknown", save=False)) == "invalid_identifier"
        assert made.peek("unknown") is None
        assert await made.fetch("ann") == frozenset({"gold"})
        assert await failure(made.fetch("unknown")) == "invalid_identifier"
        assert made.peek("ann") == frozenset({"gold"})
        made.segments.reset()
        assert made.peek("unknown") is None


@pytest.mark.asyncio
async def test_other_failures_are_not_remembered() -> None:
    async with made_of(Odp(people=everyone(["ann"], ["gold"]), failing={"ann": 2})) as made:
        assert await failure(made.fetch("ann")) == "query_error"
        assert made.peek("ann") is None


@pytest.mark.asyncio
async def test_requests_that_wait_for_one_user_share_its_failure() -> None:
    async with made_of(Odp()) as made:
        waiting = [made.fetch("unknown") for _ in range(300)]
        assert {await failure(future) for future in waiting} == {"invalid_identifier"}
        assert made.odp.queries == [["unknown"]]
        assert made.failures("invalid_identifier") == 300


@pytest.mark.asyncio
async def test_wait_ends_with_the_requests_own_time_where_that_is_sooner() -> None:
    async with made_of(Odp(gate=asyncio.Event()), fetch_deadline=0.4, request_timeout=30) as made:
        loop = asyncio.get_running_loop()
        began = loop.time()
        given = {"all": None, "later": 9.0, "soon": 0.1, "sooner": 0.05, "gone": -1.0}
        waiting = {made.fetch("ann", within=within): name for name, within in given.items()}
        ended: dict[asyncio.Future[frozenset[str]], float] = {}
        while len(ended) < len(waiting):
            done, _ = await asyncio.wait(waiting.keys() - ended.keys(), return_when=asyncio.FIRST_COMPLETED)
            ended |= dict.fromkeys(done, loop.time() - began)
        seconds = {waiting[future]: one for future, one in ended.items()}
        assert seconds["gone"] < seconds["sooner"] < seconds["soon"] < min(seconds["all"], seconds["later"])
        assert seconds["sooner"] >= 0.05
        assert seconds["soon"] >= 0.1
        assert seconds["all"] >= 0.4
        assert {waiting[future]: await failure(future) for future in waiting} == {
            "all": "timeout", "later": "timeout", "soon": "expired", "sooner": "expired", "gone": "expired",
        }  # fmt: skip
        assert made.failures("expired") == 3
        assert len(made.odp.queries) == 1


@pytest.mark.asyncio
async def test_answer_reaches_those_whose_time_has_not_ended() -> None:
    gate = asyncio.Event()
    async with made_of(Odp(people=everyone(["ann", "bob"], ["gold"]), gate=gate)) as made:
        soon, late, alone = made.fetch("ann", within=0.01), made.fetch("ann", within=3), made.fetch("bob", within=3)
        assert await failure(soon) == "expired"
        gate.set()
        assert await together(late, alone) == [frozenset({"gold"})] * 2
        assert made.peek("ann") == frozenset({"gold"})


@pytest.mark.asyncio
async def test_request_whose_time_ended_makes_room_for_one_other_and_no_more() -> None:
    gate = asyncio.Event()
    async with made_of(Odp(people=everyone(["ann"], ["gold"]), gate=gate), max_waiting_users=2) as made:
        gone, there = made.fetch("ann", within=0.01), made.fetch("ann")
        assert await failure(gone) == "expired"
        gate.set()
        assert await there == frozenset({"gold"})
        gate.clear()
        waiting = [made.fetch(name) for name in NAMES[:3]]
        assert await failure(waiting[2]) == "overloaded"
        assert not waiting[1].done()


@pytest.mark.asyncio
async def test_ended_waits_for_a_user_asked_about_all_the_time_are_let_go_of_while_odp_is_silent() -> None:
    async with made_of(Odp(gate=asyncio.Event()), fetch_deadline=0.05, request_timeout=30) as made:
        first = weakref.ref(made.fetch("ann"))
        async with asyncio.timeout(PATIENCE):
            while made.failures("timeout") < 1000:
                last = made.fetch("ann")
                await asyncio.sleep(0)
        assert not last.done(), "the question is still open"
        assert first() is None


@pytest.mark.asyncio
async def test_wait_for_a_user_is_never_counted_for_longer_than_the_deadline() -> None:
    async with made_of(Odp(gate=asyncio.Event()), fetch_deadline=0.1, request_timeout=30) as made:
        ended = made.fetch("ann")
        while not ended.done():
            last = made.fetch("ann")
            await asyncio.sleep(0.02)
        assert await failure(last) == "timeout"
        assert made.parts.sample("segment_wait_seconds_count") == 1
        assert made.parts.sample("segment_wait_seconds_sum") == pytest.approx(0.1)


def _reason(found: object) -> str:
    assert isinstance(found, SegmentsUnavailable)
    return found.reason


@pytest.mark.asyncio
async def test_failed_share_is_asked_for_once_more_and_alone() -> None:
    people = everyone(NAMES[:10], ["gold"])
    async with made_of(Odp(people=people, failing={"user-3": 1, "user-4": 9})) as made:
        futures = {name: made.fetch(name) for name in people}
        assert await failure(futures.pop("user-4")) == "query_error"
        assert set(await asyncio.gather(*futures.values())) == {frozenset({"gold"})}
        assert [sorted(query) for query in made.odp.queries] == [sorted(people), ["user-3", "user-4"]]


@pytest.mark.asyncio
async def test_outage_shorter_than_the_deadline_is_not_seen() -> None:
    async with made_of(Odp(people={"ann": ["gold"]}, statuses=[503, 500, 429, 408, 502])) as made:
        with capture_logs() as logs:
            assert await made.fetch("ann") == frozenset({"gold"})
        assert len(made.odp.queries) == 6
        # All slots are used again, no longer one at a time.
        made.odp.people, made.odp.gate = everyone(NAMES, []), asyncio.Event()
        for name in NAMES[:100]:
            made.fetch(name)
        await until(lambda: made.odp.now == 4)
        assert [(entry["log_level"], entry["event"]) for entry in logs] == [
            ("warning", "segments cannot be fetched"),
            ("info", "segments can be fetched again"),
        ]


@pytest.mark.asyncio
async def test_longer_outage_ends_at_the_deadline_with_few_requests() -> None:
    async with made_of(Odp(status=503), fetch_deadline=0.6) as made:
        started = asyncio.get_running_loop().time()
        futures = [made.fetch(name) for name in NAMES[:100]]
        assert {await failure(future) for future in futures} == {"unavailable"}
        assert 0.59 <= asyncio.get_running_loop().time() - started < stretched(2)
        # 4 at once until the pause, then one at a time, 25 to 50 ms apart.
        assert len(made.odp.queries) < 40
        assert made.failures("unavailable") == 100
        assert made.parts.sample("segment_wait_seconds_count") == 100
        assert made.parts.sample("segment_wait_seconds_bucket", le="0.5") == 0
        assert made.parts.sample("segment_wait_seconds_bucket", le="2.5") == 100
        assert made.blocked("unavailable") == 1
        assert made.parts.sample("upstream_last_response_timestamp_seconds", upstream="odp_segments") == 0
        made.odp.status, made.odp.people = 200, {"ann": []}
        assert await made.fetch("ann") == frozenset()
        assert made.blocked("unavailable") == 0
        assert made.parts.sample("upstream_last_response_timestamp_seconds", upstream="odp_segments") > 0


@pytest.mark.asyncio
async def test_each_user_counts_once_as_waiting_also_when_the_answer_comes_after_the_deadline() -> None:
    gate = asyncio.Event()
    async with made_of(Odp(people={"ann": [], "bob": []}, gate=gate), fetch_deadline=0.1) as made:

        def waited() -> float:
            return made.parts.sample("segment_wait_seconds_count")

        asked = [made.fetch("ann"), made.fetch("ann")]
        for one in asked:
            assert await failure(one) == "timeout"
        assert waited() == 1
        gate.set()
        assert await made.fetch("bob") == frozenset()
        await until(lambda: made.odp.now == 0)
        assert waited() == 2
        assert made.peek("bob") == frozenset()
        assert waited() == 2, "who is remembered does not wait"


@pytest.mark.asyncio
async def test_pause_asked_for_is_kept() -> None:
    async with made_of(Odp(people={"ann": []}, statuses=[429], headers={"Retry-After": "1"})) as made:
        started = asyncio.get_running_loop().time()
        made.fetch("ann")
        # Longer than the backoff's cap allows: the service's word is the one that counts.
        await until(lambda: len(made.odp.queries) == 2)
        assert asyncio.get_running_loop().time() - started >= 0.45


@pytest.mark.asyncio
async def test_answer_to_an_earlier_query_does_not_end_the_pause() -> None:
    gate = asyncio.Event()
    odp = Odp(people=everyone(NAMES, []), gate=gate, statuses=[429], headers={"Retry-After": "1"})
    async with made_of(odp) as made:
        futures = [made.fetch(name) for name in NAMES[:20]]
        await until(lambda: odp.now == 2)
        started = asyncio.get_running_loop().time()
        with capture_logs() as logs:
            gate.set()
            await until(lambda: sum(future.done() for future in futures) == 10 and logs)
            assert [entry["log_level"] for entry in logs] == ["warning"]
        await asyncio.gather(*futures)
        assert len(odp.queries) == 3
        assert asyncio.get_running_loop().time() - started >= 0.45


@pytest.mark.asyncio
async def test_silence_ends_at_the_deadline_of_each_waiter() -> None:
    async with made_of(Odp(people={"ann": []}, gate=asyncio.Event()), fetch_deadline=0.3) as made:
        started = asyncio.get_running_loop().time()
        early = made.fetch("ann")
        await asyncio.sleep(0.2)
        late = made.fetch("ann")
        assert await failure(early) == "timeout"
        assert asyncio.get_running_loop().time() - started >= 0.29
        assert await failure(late) == "timeout"
        assert asyncio.get_running_loop().time() - started >= 0.49
        assert made.odp.asked == ["ann"]


@pytest.mark.asyncio
async def test_request_that_hangs_is_given_up_and_tried_again() -> None:
    gate = asyncio.Event()
    async with made_of(Odp(people={"ann": ["gold"]}, gate=gate), request_timeout=0.1) as made:
        future = made.fetch("ann")
        await until(lambda: made.odp.queries)
        made.odp.gate = None
        assert await future == frozenset({"gold"})
        assert made.odp.asked == ["ann", "ann"]


@pytest.mark.asyncio
async def test_refused_key_fails_at_once_and_is_logged_once() -> None:
    async with made_of(Odp(people={"xanthippe": [], "bob": []}, key="another")) as made:
        with capture_logs() as logs:
            assert await failure(made.fetch("xanthippe")) == "denied"
            assert await failure(made.fetch("bob")) == "denied"
        assert made.odp.asked == ["xanthippe", "bob"]
        assert [(entry["log_level"], entry["reason"]) for entry in logs] == [("error", "denied")]
        assert made.blocked("denied") == 1
        assert "public-key" not in repr(logs)
        assert "xanthippe" not in repr(logs)


@pytest.mark.asyncio
async def test_host_not_allowed_fails_without_a_call() -> None:
    async with made_of(Odp(people={"ann": []}), allowed_hosts=()) as made:
        assert await failure(made.fetch("ann")) == "host_not_allowed"
        assert made.odp.queries == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "too_many",
    [(400, b""), (413, b""), (200, b'{"errors":[{"message":"Maximum number of aliases exceeded"}]}')],
    ids=["400", "413", "errors"],
)
async def test_refused_size_is_halved_and_remembered(too_many: tuple[int, bytes]) -> None:
    people = everyone(NAMES[:30], ["gold"])
    async with made_of(Odp(people=people, max_users=3, too_many=too_many), max_in_flight=1) as made:
        assert set(await asyncio.gather(*(made.fetch(name) for name in people))) == {frozenset({"gold"})}
        before = len(made.odp.queries)
        made.segments.reset()
        await asyncio.gather(*(made.fetch(name) for name in people))
        assert max(len(query) for query in made.odp.queries[before:]) == 3
        # A datafile with other segments is another account at the same ODP: it need not find out anew.
        before = len(made.odp.queries)
        other = Account(made.odp.host, segments_to_check=("gold",))
        await asyncio.gather(*(made.fetch(name, account=other) for name in people))
        assert max(len(query) for query in made.odp.queries[before:]) == 3


@pytest.mark.asyncio
async def test_one_user_the_server_refuses_fails_alone_and_shrinks_nothing() -> None:
    people = everyone(NAMES[:40], ["gold"])
    async with made_of(Odp(people=people, poison="user-7")) as made:
        futures = {name: made.fetch(name) for name in people}
        assert await failure(futures.pop("user-7")) == "refused"
        assert set(await asyncio.gather(*futures.values())) == {frozenset({"gold"})}
        before = len(made.odp.queries)
        made.segments.reset()
        await asyncio.gather(*(made.fetch(name) for name in people if name != "user-7"))
        assert max(len(query) for query in made.odp.queries[before:]) == 10


@pytest.mark.asyncio
async def test_unreadable_answer_fails_after_one_more_try() -> None:
    async with made_of(Odp(raw=b"<html>")) as made:
        assert await failure(made.fetch("ann")) == "decode_error"
        assert made.odp.asked == ["ann", "ann"]


@pytest.mark.asyncio
async def test_status_that_is_no_answer_fails_the_users() -> None:
    async with made_of(Odp(status=405)) as made:
        assert await failure(made.fetch("ann")) == "refused"
        assert made.odp.asked == ["ann"]


@pytest.mark.asyncio
@pytest.mark.parametrize(("host", "key"), UNSENDABLE.values(), ids=UNSENDABLE)
async def test_account_nobody_can_call_fails_at_once_for_all_and_blames_no_size(host: str, key: str) -> None:
    async with made_of(Odp(), allowed_hosts=("127.0.0.1", "*.example")) as made:
        account = Account(host or made.odp.host, key)
        futures = [made.fetch(name, account=account) for name in NAMES[:10]]
        assert {await failure(future) for future in futures} == {"refused"}
        # All ten were in one query, and halves of it were not tried.
        assert made.parts.sample("odp_queries_total", outcome="refused") == 1
        assert made.odp.queries == []


@pytest.mark.asyncio
async def test_rate_told_in_an_answer_is_waited_out_with_the_same_users() -> None:
    throttled = b'{"data":null,"errors":[{"message":"Rate limit exceeded"}]}'
    people = everyone(NAMES[:10], ["gold"])
    async with made_of(Odp(people=people, raw=throttled), fetch_deadline=2) as made:
        futures = [made.fetch(name) for name in people]
        await until(lambda: len(made.odp.queries) >= 2)
        made.odp.raw = None
        assert set(await asyncio.gather(*futures)) == {frozenset({"gold"})}
        assert {len(query) for query in made.odp.queries} == {10}


@pytest.mark.asyncio
async def test_line_is_bounded() -> None:
    async with made_of(Odp(people=everyone(NAMES, [])), max_waiting_users=25) as made:
        futures = [made.fetch(name) for name in NAMES[:30]]
        assert [await failure(future) for future in futures[25:]] == ["overloaded"] * 5
        await asyncio.gather(*futures[:25])
        assert await made.fetch("user-29") == frozenset()
        assert made.failures("overloaded") == 5


@pytest.mark.asyncio
async def test_those_whose_deadline_came_make_room_in_the_line() -> None:
    gate = asyncio.Event()
    odp = Odp(people=everyone(NAMES, []), gate=gate)
    async with made_of(odp, max_waiting_users=25, fetch_deadline=0.2, max_in_flight=1) as made:
        for future in [made.fetch(name) for name in NAMES[:25]]:
            assert await failure(future) == "timeout"
        futures = [made.fetch(name) for name in NAMES[25:50]]
        # The one query under way hangs; of those behind it only the living are kept.
        assert len(made.segments._account(made.account).coalescer._waiting) <= 25 + 15
        await until(lambda: len(made.segments._account(made.account).coalescer._waiting) == 25)
        for future in futures:
            assert await failure(future) == "timeout"


@pytest.mark.asyncio
async def test_those_who_gave_up_are_not_asked_about() -> None:
    gate = asyncio.Event()
    async with made_of(
        Odp(people=everyone(NAMES, []), gate=gate), max_in_flight=1, fetch_deadline=0.5, request_timeout=5
    ) as made:
        first = made.fetch("user-0")
        await until(lambda: made.odp.queries)
        others = [made.fetch(name) for name in NAMES[1:30]]
        for future in [first, *others]:
            assert await failure(future) == "timeout"
        futures = [made.fetch("user-99")]
        await until(lambda: len(made.segments._account(made.account).coalescer._waiting) == 1)
        futures.append(made.fetch("user-5"))
        gate.set()
        assert await together(*futures) == [frozenset()] * 2
        assert made.odp.queries == [["user-0"], ["user-99", "user-5"]]


@pytest.mark.asyncio
async def test_one_who_gave_up_among_those_who_wait_is_not_asked_about() -> None:
    gate = asyncio.Event()
    async with made_of(
        Odp(people=everyone(NAMES, []), gate=gate), max_in_flight=1, fetch_deadline=0.5, request_timeout=5
    ) as made:
        made.fetch("user-0")
        await until(lambda: made.odp.queries)
        early = [made.fetch("user-1"), made.fetch("user-2")]
        await asyncio.sleep(0.25)
        late = made.fetch("user-1")
        for future in early:
            assert await failure(future) == "timeout"
        gate.set()
        assert await late == frozenset()
        assert made.odp.queries == [["user-0"], ["user-1"]]


@pytest.mark.asyncio
async def test_failure_nobody_looks_at_is_not_reported() -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with made_of(Odp()) as made:
        futures = [made.fetch("unknown"), made.fetch("unknown")]
        await asyncio.wait(futures)
        del futures
        gc.collect()
    assert told == []


@pytest.mark.asyncio
async def test_each_waiter_has_a_failure_of_its_own() -> None:
    async with made_of(Odp()) as made:
        one, two = made.fetch("unknown"), made.fetch("unknown")
        await asyncio.wait([one, two])
        assert one.exception() is not two.exception()


@pytest.mark.asyncio
async def test_close_cancels_who_waits_and_leaves_nothing() -> None:
    async with made_of(Odp(people={"ann": []}, gate=asyncio.Event())) as made:
        future = made.fetch("ann")
        await until(lambda: made.odp.queries)
        await made.segments.close()
        assert future.cancelled()
        assert made.fetch("ann").cancelled()


@pytest.mark.asyncio
async def test_defect_in_a_query_reaches_the_loop_and_the_user_is_answered_at_the_deadline() -> None:
    class Broken(Transport):
        async def post(self, *args: object, **kwargs: object) -> Any:
            raise ZeroDivisionError

    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    settings = OdpSettings(allowed_hosts=("odp.example",), fetch_deadline=0.1)
    segments = Segments(transport=Broken(), settings=settings, metrics=Metrics(CollectorRegistry()))
    future = segments.fetch(Account("https://odp.example"), "ann", save=True)
    assert await failure(future) == "timeout"
    assert isinstance(told[0]["exception"], ZeroDivisionError)
    # Raised at once, not found out when the task is collected.
    assert told[0]["message"] != "Task exception was never retrieved"
    await segments.close()


@pytest.mark.asyncio
async def test_accounts_no_longer_used_are_let_go() -> None:
    async with made_of(Odp()) as made:
        for number in range(1100):
            made.peek("ann", Account(made.odp.host, segments_to_check=(f"segment-{number}",)))
        assert len(made.segments._accounts) == 1024
