"""Sticky profiles in a real Redis: the Agent's layout, one request for many users, and nothing lost by an outage."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis

from pipeline.metrics import Metrics
from pipeline.profiles import Profile, make_profiles, shared
from pipeline.profiles.memory import MemoryProfiles
from pipeline.profiles.shared import RedisProfiles
from pipeline.settings import ProfilesSettings
from tests.patience import PATIENCE, stretched
from tests.redis_server import RedisServer
from tests.settled import until

pytestmark = pytest.mark.asyncio


class Opened:
    def __init__(self, redis: RedisServer, user: str, settings: dict[str, Any]) -> None:
        self.metrics = Metrics(CollectorRegistry())
        url = SecretStr(redis.url.replace("//", f"//{user}:any@") if user else redis.url)
        made = make_profiles(ProfilesSettings(redis_url=url, **settings), self.metrics)
        assert isinstance(made, RedisProfiles)
        self.profiles = made

    async def one(self, user_id: str) -> Profile | None:
        (found,) = await self.profiles.lookup([user_id])
        return found

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"decision_pipeline_{name}", labels) or 0.0


@asynccontextmanager
async def opened(redis: RedisServer, *, user: str = "", **settings: Any) -> AsyncIterator[Opened]:
    made = Opened(redis, user, settings)
    try:
        yield made
    finally:
        await made.profiles.close()


async def answering(made: Opened) -> None:
    """Until Redis is asked again after an outage."""
    async with asyncio.timeout(PATIENCE):
        while await made.one("anyone") is None:  # noqa: ASYNC110 - a pause of its own, of a second
            await asyncio.sleep(0.02)


async def test_what_is_saved_is_found_and_lies_there_as_the_agent_would_have_it(redis: RedisServer) -> None:
    async with opened(redis) as made:
        assert await made.one("ann") == {}
        await made.profiles.save([("ann", {"100": "1001", "200": "2002"})])
        assert await made.one("ann") == {"100": "1001", "200": "2002"}
        assert made.count("profile_lookups_total", outcome="none") == 1
        assert made.count("profile_lookups_total", outcome="found") == 1
        assert made.count("profile_saves_total", outcome="ok") == 1
    raw = redis.client.get("profile:ann")
    assert isinstance(raw, bytes)
    assert json.loads(raw) == {"100": {"variation_id": "1001"}, "200": {"variation_id": "2002"}}
    assert redis.client.pttl("profile:ann") == -1


async def test_a_database_of_the_agent_is_read_as_it_stands(redis: RedisServer) -> None:
    redis.client.set("žiga", '{"100":{"variation_id":"1001","more":1},"200":{},"300":{"variation_id":null}}')
    async with opened(redis, key_prefix="") as made:
        assert await made.one("žiga") == {"100": "1001"}


async def test_a_profile_lives_as_long_as_is_set(redis: RedisServer) -> None:
    async with opened(redis, ttl=60) as made:
        await made.profiles.save([("ann", {"1": "2"})])
    left = redis.client.pttl("profile:ann")
    assert isinstance(left, int)
    assert 50_000 < left <= 60_000


async def test_many_users_are_one_request(redis: RedisServer) -> None:
    users = [f"user-{number}" for number in range(250)]
    async with opened(redis, timeout=5) as made:
        before = redis.calls("mget")
        assert await made.profiles.lookup(users) == [{}] * 250
        await made.profiles.save([(user, {"1": user}) for user in users])
        assert await made.profiles.lookup(users) == [{"1": user} for user in users]
        assert redis.calls("mget") == before + 2
        assert made.count("profile_request_seconds_count", operation="lookup") == 2
        assert made.count("profile_request_seconds_count", operation="save") == 1
        assert made.count("profile_lookups_total", outcome="found") == 250
        assert made.count("profile_saves_total", outcome="ok") == 250


async def test_a_request_grows_no_further_than_what_is_written_in_time(redis: RedisServer) -> None:
    chunks = [[f"user-{chunk}-{number}" for number in range(100)] for chunk in range(40)]
    async with opened(redis, timeout=5) as made:
        await asyncio.gather(*(made.profiles.save([(user, {"1": user}) for user in users]) for users in chunks))
        assert made.count("profile_request_seconds_count", operation="save") == 20, "two of a hundred users fit"
        assert made.count("profile_saves_total", outcome="ok") == 4000
        alone = [user for users in chunks for user in users]
        assert await made.profiles.lookup(alone) == [{"1": user} for user in alone]
        assert made.count("profile_request_seconds_count", operation="lookup") == 1


async def test_what_somebody_else_keeps_there_stays_and_stops_nobody(redis: RedisServer) -> None:
    redis.client.hset("profile:ann", "name", "Ann")
    async with opened(redis) as made:
        for _ in range(2):
            assert await made.one("ann") == {}, "MGET says no more of it"
            await made.profiles.save([("bob", {"1": "a"}), ("ann", {"1": "a"}), ("cid", {"1": "a"})])
        assert made.count("profile_saves_total", outcome="unreadable") == 2
        assert made.count("profile_saves_total", outcome="ok") == 4
        assert await made.profiles.lookup(["bob", "cid"]) == [{"1": "a"}] * 2
    assert redis.client.hgetall("profile:ann") == {b"name": b"Ann"}


async def test_of_two_saves_for_one_user_the_later_counts(redis: RedisServer) -> None:
    async with opened(redis) as made:
        await made.profiles.save([("ann", {"1": "a"}), ("ann", {"1": "b"})])
        assert await made.one("ann") == {"1": "b"}


@pytest.mark.parametrize("value", ["{", "[]", '{"1":5}', '{"1":{"variation_id":7}}', b"\xff"])
async def test_what_cannot_be_read_is_nobodys_empty_profile(redis: RedisServer, value: str | bytes) -> None:
    redis.client.set("profile:ann", value)
    async with opened(redis) as made:
        assert await made.one("ann") is None
        assert made.count("profile_lookups_total", outcome="unreadable") == 1


@pytest.mark.parametrize("how", ["held", "gone"])
async def test_while_redis_is_away_nobody_waits_for_long_and_it_is_used_again_when_it_is_back(
    redis: RedisServer, how: str
) -> None:
    async with opened(redis, timeout=0.2) as made:
        await made.profiles.save([("ann", {"1": "a"})])
        redis.hold() if how == "held" else redis.stop()
        try:
            async with asyncio.timeout(stretched(2)):
                assert await made.profiles.lookup(["ann", "bob"]) == [None, None]
                # Right after it nothing is asked for: the next hundred do not wait at all.
                assert [await made.one("ann") for _ in range(100)] == [None] * 100
                await made.profiles.save([("ann", {"1": "b"})])
            assert made.count("profile_lookups_total", outcome="failed") == 102
            assert made.count("profile_saves_total", outcome="failed") == 1
            # Where no answer came it is asked once more: it might have been this process that stood still.
            assert made.count("profile_request_seconds_count", operation="lookup") == (2 if how == "held" else 1)
        finally:
            redis.go_on() if how == "held" else redis.start()
        await answering(made)
        assert await made.one("ann") == ({"1": "a"} if how == "held" else {})
        async with asyncio.timeout(PATIENCE):
            while await made.one("ann") != {"1": "c"}:
                await made.profiles.save([("ann", {"1": "c"})])
                await asyncio.sleep(0.02)


async def test_a_redis_that_may_only_be_read_is_read_and_no_log_names_a_user(
    redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    redis.client.set("profile:eva", '{"1":{"variation_id":"2"}}')
    redis.client.acl_setuser("reader", enabled=True, nopass=True, keys=["*"], commands=["+mget", "+client"])
    try:
        async with opened(redis, user="reader") as made:
            await made.profiles.save([("eva", {"1": "3"})])
            # Users go on with what they have: only what is new is not kept.
            assert await made.one("eva") == {"1": "2"}
            assert made.count("profile_saves_total", outcome="failed") == 1
            assert made.count("profile_lookups_total", outcome="found") == 1
    finally:
        redis.client.acl_deluser("reader")
    said = "".join(capsys.readouterr())
    assert "profiles cannot be saved" in said
    assert "eva" not in said


async def test_what_redis_says_of_a_command_does_not_reach_the_log(
    redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    class Odd(Redis):
        """As of a proxy that knows no MGET: what it answers quotes the keys."""

        async def mget(self, keys: Any, *args: Any) -> Any:
            return await self.execute_command("MGETT", *keys)  # type: ignore[no-untyped-call]

    async with opened(redis) as made:
        made.profiles._redis = Odd.from_url(redis.url)
        assert await made.one("alice@example.com") is None
    said = "".join(capsys.readouterr())
    assert "it refuses the command" in said
    assert "alice" not in said


async def test_of_what_redis_refuses_its_own_code_is_told(
    redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    redis.client.config_set("min-replicas-to-write", 1)
    try:
        async with opened(redis) as made:
            await made.profiles.save([("eva", {"1": "2"}), ("ann", {"1": "2"})])
            assert made.count("profile_saves_total", outcome="failed") == 2
    finally:
        redis.client.config_set("min-replicas-to-write", 0)
    said = "".join(capsys.readouterr())
    assert "ResponseError: NOREPLICAS" in said
    assert "eva" not in said


async def test_a_loop_that_stood_still_is_no_outage(redis: RedisServer) -> None:
    async with opened(redis, timeout=0.2) as made:
        await made.profiles.save([("ann", {"1": "a"})])
        redis.hold()
        asked = asyncio.ensure_future(made.one("ann"))
        await asyncio.sleep(0.05)  # the question is on its way
        redis.go_on()
        # Longer than the deadline, with the answer at the door: nothing of it is Redis' doing.
        held = time.monotonic() + 0.4
        while time.monotonic() < held:
            pass
        assert await asked == {"1": "a"}
        assert made.count("profile_lookups_total", outcome="failed") == 0


async def test_what_is_asked_meanwhile_goes_out_together(redis: RedisServer) -> None:
    async with opened(redis) as made:
        await made.one("warm")
        before = redis.calls("mget")
        users = [f"user-{number}" for number in range(300)]
        await asyncio.gather(*(made.profiles.save([(user, {"1": user})]) for user in users))
        assert await asyncio.gather(*map(made.one, users)) == [{"1": user} for user in users]
        assert redis.calls("mget") - before == 2, "250 at a time"
        assert made.count("profile_request_seconds_count", operation="save") == 2


@pytest.mark.parametrize("answered", [True, False])
async def test_one_who_gives_up_takes_the_answer_from_nobody(redis: RedisServer, answered: bool) -> None:
    async with opened(redis, timeout=5 if answered else 0.5) as made:
        redis.hold()
        try:
            impatient, patient = (asyncio.ensure_future(made.one(user)) for user in ("ann", "bob"))
            await until(lambda: not made.profiles._reading._asked and made.profiles._reading._task is not None)
            impatient.cancel()
            if answered:
                redis.go_on()
            async with asyncio.timeout(stretched(5)):
                assert await patient == ({} if answered else None)
        finally:
            redis.go_on()
        with pytest.raises(asyncio.CancelledError):
            await impatient


async def test_a_defect_is_told_to_the_loop_and_is_nobodys_answer(redis: RedisServer) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with opened(redis) as made:
        odd: Any = {"1": object()}
        with pytest.raises(asyncio.CancelledError):
            await made.profiles.save([("ann", odd)])
        assert [type(one["exception"]) for one in told] == [TypeError]
        async with asyncio.timeout(PATIENCE):
            await made.profiles.save([("ann", {"1": "a"})])
        assert await made.one("ann") == {"1": "a"}


async def test_failures_leave_no_cycles_behind(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is garbage while a datafile is compiled is never collected.
    monkeypatch.setattr(shared, "_PAUSE_SECONDS", 0.0)
    redis.stop()
    try:
        async with opened(redis) as made:
            await made.one("warm")
            await made.profiles.save([("warm", {"1": "a"})])
            gc.collect()
            gc.disable()
            try:
                for number in range(50):
                    assert await made.one(f"user {number}") is None
                    await made.profiles.save([(f"user {number}", {"1": "a"})])
                assert gc.collect() < 50, "not even one object a failure"
            finally:
                gc.enable()
            for operation in ("lookup", "save"):
                assert made.count("profile_request_seconds_count", operation=operation) == 51
    finally:
        redis.start()


async def test_a_stop_cancels_who_waits(redis: RedisServer) -> None:
    async with opened(redis, timeout=30) as made:
        redis.hold()
        try:
            waiting = [asyncio.ensure_future(made.one("ann")) for _ in range(2)]
            await asyncio.sleep(0)
            queued = asyncio.ensure_future(made.one("bob"))
            await asyncio.sleep(0)
            await made.profiles.close()
            for one in (*waiting, queued):
                with pytest.raises(asyncio.CancelledError):
                    await one
        finally:
            redis.go_on()


async def test_an_outage_is_told_once_and_its_end_too(
    redis: RedisServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_PAUSE_SECONDS", 0.0)
    async with opened(redis, timeout=0.1) as made:
        redis.hold()
        try:
            for _ in range(3):
                await made.one("ann")
        finally:
            redis.go_on()
        assert made.count("profile_request_seconds_count", operation="lookup") == 6, "each was tried, and failed"
        assert made.count("upstream_blocked", upstream="redis", reason="unavailable") == 1
        assert made.count("upstream_last_response_timestamp_seconds", upstream="redis") == 0
        await answering(made)
        assert await made.one("ann") == {}
        assert made.count("upstream_blocked", upstream="redis", reason="unavailable") == 0
        assert made.count("upstream_last_response_timestamp_seconds", upstream="redis") > 0
    said = "".join(capsys.readouterr())
    assert said.count("profiles cannot be read: decisions") == 1
    assert said.count("profiles cannot be read: over") == 1


async def test_a_connection_that_was_idle_when_redis_restarted_is_no_failure(redis: RedisServer) -> None:
    async with opened(redis) as made:
        assert await made.one("ann") == {}
        redis.stop()
        redis.start()
        assert await made.one("ann") == {}
        assert made.count("profile_lookups_total", outcome="failed") == 0


async def test_in_memory_the_one_asked_for_longest_ago_leaves_first() -> None:
    metrics = Metrics(CollectorRegistry())
    profiles = make_profiles(ProfilesSettings(single_worker=True, max_users=2), metrics)
    assert isinstance(profiles, MemoryProfiles)
    for user in ("ann", "bob"):
        await profiles.save([(user, {"1": user})])
    assert await profiles.lookup(["ann"]) == [{"1": "ann"}]
    await profiles.save([("cid", {"1": "cid"})])
    assert await profiles.lookup(["ann", "bob", "cid"]) == [{"1": "ann"}, {}, {"1": "cid"}]
    await profiles.save([("ann", {"1": "new"})])
    await profiles.save([("dan", {"1": "dan"})])
    assert await profiles.lookup(["ann", "cid", "dan"]) == [{"1": "new"}, {}, {"1": "dan"}], "saved is used, too"
    await profiles.save([(user, {"1": user}) for user in ("eva", "fay", "gus", "hal")])
    assert await profiles.lookup(["ann", "dan", "eva", "fay", "gus", "hal"]) == [{}] * 4 + [{"1": "gus"}, {"1": "hal"}]
    counted = metrics.registry.get_sample_value
    assert counted("decision_pipeline_profile_lookups_total", {"outcome": "none"}) == 6
    assert counted("decision_pipeline_profile_lookups_total", {"outcome": "found"}) == 7
    assert counted("decision_pipeline_profile_saves_total", {"outcome": "ok"}) == 9
    await profiles.close()
    assert await profiles.lookup(["ann"]) == [{}]


async def test_profiles_are_kept_only_where_it_is_said() -> None:
    assert make_profiles(ProfilesSettings(), Metrics(CollectorRegistry())) is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"redis_url": "redis://h:1/0", "single_worker": True},
            "profiles.single_worker: is set, and {profiles.redis_url} too",
        ),
        ({"redis_url": "h:1"}, "must begin with redis://"),
        ({"redis_url": "redis://:s3cr/et@host:6379/0"}, "cannot be used: encode"),
        ({"redis_url": "redis://host:6379/0?foo=1"}, "cannot be used: encode"),
        ({"redis_url": "redis://host:6379/0?ssl_cert_reqs=none"}, "cannot be used: encode"),
        ({"timeout": 0}, "greater than 0"),
    ],
)
async def test_settings_that_do_not_fit(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told) as refused:
        ProfilesSettings(**settings)
    assert "s3cr" not in str(refused.value.errors(include_input=False))


async def test_a_worker_without_profiles_does_not_load_the_client() -> None:
    script = "import sys, pipeline.assembly; sys.exit('redis' in sys.modules)"
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], check=False, timeout=PATIENCE)
    assert ended.returncode == 0
