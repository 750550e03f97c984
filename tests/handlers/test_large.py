"""Large answers of role decide: others have their turn between two slices, and everything else stays as it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.decision import Answer, LargeAnswer
from pipeline.errors import SegmentsUnavailable
from pipeline.handlers import large
from pipeline.profiles import Profile, Profiles
from pipeline.project import ProjectConfig, compile_datafile
from pipeline.sandbox.project_data import PRODUCTION
from tests.decision.projects import document, flag, rule, variation
from tests.handlers.test_decide import NOW_MS, Bench, body, fetching

pytestmark = pytest.mark.asyncio
FLAGS = 400
_STEPS = FLAGS // 16 + 1
_ODP = [{"key": "odp", "host": "https://odp.example", "publicKey": "key"}]
_VIP = {"name": "odp.audiences", "type": "third_party_dimension", "match": "qualified", "value": "vip"}


def project(revision: str = "7", **sections: Any) -> ProjectConfig:
    experiments = [rule(str(n), f"e{n}", variation(str(1000 + n), "on")) for n in range(FLAGS)]
    flags = [flag(f"f{n}", one) for n, one in enumerate(experiments)]
    fields = {"revision": revision, "experiments": experiments, "featureFlags": flags, "integrations": _ODP} | sections
    return compile_datafile(json.dumps(document(**fields)).encode())


PROJECT = project()
SEGMENTED = project(typedAudiences=[{"id": "11", "name": "vip", "conditions": _VIP}])


def everything(request_id: str, user: str = "ada", **fields: Any) -> dict[str, Any]:
    return body(request_id, user, keys=[]) | fields


class Kept(Profiles):
    """Profiles of which the test sees when they are saved."""

    upstream = None

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.gate = asyncio.Event()

    async def lookup(self, user_ids: Any) -> list[Profile | None]:
        return [{} for _ in user_ids]

    async def save(self, profiles: Any) -> None:
        self.log += [f"{user} keeps {len(profile)}" for user, profile in profiles]
        await self.gate.wait()

    async def close(self) -> None: ...


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A slice is one step, so that the turns can be counted; each step is noted by its user."""
    taken: list[str] = []
    step = LargeAnswer.step

    def noted(self: LargeAnswer) -> Answer | None:
        taken.append(self._request.user_id)
        return step(self)

    monkeypatch.setattr(large, "_SLICE_SECONDS", 0)
    monkeypatch.setattr(LargeAnswer, "step", noted)
    return taken


async def until(condition: Callable[[], object], each: Callable[[], object] = lambda: None) -> int:
    """Turns of the loop until the condition holds."""
    turns = 0
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)
            each()
            turns += 1
    return turns


def large_bench(config: ProjectConfig = PROJECT, **settings: Any) -> Bench:
    return Bench({PRODUCTION: config}, **settings)


async def test_others_are_decided_between_two_slices_and_one_slice_is_made_in_a_turn(steps: list[str]) -> None:
    bench = large_bench()
    most = before = 0

    def count() -> None:
        nonlocal most, before
        most, before = max(most, len(steps) - before), len(steps)

    first = bench.chunk(everything("large"), everything("large too", "bob"), body("small", "cleo"))
    assert bench.answered == ["small"]
    await until(lambda: len(steps) > 3, count)
    bench.chunk(body("smaller", "dora"))
    assert bench.answered == ["small", "smaller"]
    turns = await until(lambda: first.settled == 3, count)
    assert bench.answered == ["small", "smaller", "large", "large too"]
    # However many wait, a turn is never held for two slices; where one answer ends the next begins.
    assert most <= 2
    assert turns > _STEPS
    assert steps == ["ada"] * _STEPS + ["bob"] * _STEPS
    documents = [json.loads(result.value) for result in bench.log]
    assert [len(one["decisions"]) for one in documents] == [1, 1, FLAGS, FLAGS]
    assert len(documents[2]["tracking"]["impressions"]) == FLAGS


async def test_a_small_request_makes_no_task() -> None:
    bench = large_bench()
    before = asyncio.all_tasks()
    bench.chunk(body("small"), body("with more", keys=[f"f{n}" for n in range(200)]))
    assert bench.answered == ["small", "with more"]
    assert asyncio.all_tasks() == before


async def test_later_requests_of_the_user_wait_and_keep_their_order() -> None:
    bench = large_bench()
    chunk = bench.chunk(everything("a"), body("b"), everything("c"), body("d"))
    bench.chunk(body("e"))
    await until(lambda: chunk.settled == 4)
    assert bench.answered == ["a", "b", "c", "d", "e"]


async def test_one_revision_decides_all_of_it_also_when_another_comes_meanwhile(steps: list[str]) -> None:
    bench = large_bench()
    chunk = bench.chunk(everything("a"))
    await until(lambda: len(steps) > 5)
    newer = project("8", experiments=[rule(str(n), f"new{n}", variation("1", "off")) for n in range(FLAGS)])
    bench.datafiles.projects[PRODUCTION] = newer
    await until(lambda: chunk.settled)
    (result,) = chunk.documents
    assert result["revision"] == "8"
    assert {one["variationKey"] for one in result["decisions"]} == {"off"}
    assert len(result["decisions"]) == FLAGS


async def test_a_project_that_is_replaced_is_let_go_of_beside_the_loop(
    steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[ProjectConfig] = []
    monkeypatch.setattr(large, "let_go", lambda projects: freed.append(projects.pop()))
    bench = large_bench()
    chunk = bench.chunk(everything("a"))
    await until(lambda: len(steps) > 5)
    bench.datafiles.projects[PRODUCTION] = project("8")
    await until(lambda: chunk.settled)
    assert freed == [PROJECT]


async def test_a_datafile_that_is_gone_meanwhile_is_an_error(steps: list[str]) -> None:
    bench = large_bench()
    chunk = bench.chunk(everything("a"), body("b", sdkKey=PRODUCTION))
    await until(lambda: len(steps) > 5)
    del bench.datafiles.projects[PRODUCTION]
    await until(lambda: chunk.settled == 2)
    assert [one["error"] for one in chunk.documents] == ["failed to fetch qualified segments", "unknown SDK key"]


@pytest.mark.parametrize("keys", [[], [f"unknown {n}" for n in range(900)]])
async def test_one_that_grows_too_large_is_given_up_at_once_and_its_user_goes_on(
    steps: list[str], keys: list[str]
) -> None:
    bench = large_bench(max_bytes=50_000)
    chunk = bench.chunk(everything("a", keys=keys, userAttributes={"text": "x" * 2000}), body("b"))
    await until(lambda: chunk.settled)
    assert chunk.reasons == ["result_too_large"]
    assert chunk.rejected[0][1].detail == "its result has more than 50000 bytes"
    assert bench.answered == ["b"]
    assert len(steps) < 4
    assert (bench.outcome("rejected"), bench.outcome("decided")) == (1, 1)


async def test_few_flags_with_large_attributes_are_large_too(steps: list[str]) -> None:
    bench = large_bench()
    chunk = bench.chunk(body("a", keys=["f1", "f2", "f3"], userAttributes={"text": "x" * 500_000}), body("b", "bob"))
    assert bench.answered == ["b"]
    await until(lambda: chunk.rejected)
    assert chunk.reasons == ["result_too_large"]


async def test_nothing_more_is_made_of_what_was_given_away(steps: list[str]) -> None:
    bench = large_bench()
    chunk = bench.chunk(everything("a"), everything("b", "bob"))
    await until(lambda: len(steps) > 5)
    chunk.abandoned = True
    at_most = len(steps) + 1
    await until(lambda: not bench.handler._shared.tasks)
    assert len(steps) <= at_most
    assert (bench.log, bench.outcome("decided"), bench.outcome("rejected")) == ([], 0, 0)


async def test_each_waits_for_room_also_when_it_had_some_before_its_turn(steps: list[str]) -> None:
    bench = large_bench()
    chunk = bench.chunk(everything("a"), everything("b", "bob"))
    await until(lambda: len(steps) > 5)
    chunk.has_room = False
    await until(lambda: chunk.held_back)
    assert bench.answered == ["a"], "it had begun"
    assert set(steps) == {"ada"}
    chunk.has_room = True
    chunk.let_go_on()
    await until(lambda: chunk.settled == 2)
    assert bench.answered == ["a", "b"]


async def test_with_profiles_what_it_taught_is_saved_before_its_result(steps: list[str]) -> None:
    log: list[str] = []
    profiles = Kept(log)
    bench = large_bench(profiles=profiles)
    chunk = bench.chunk(everything("a"), body("b"))
    await until(lambda: log)
    assert bench.answered == []
    profiles.gate.set()
    await until(lambda: chunk.settled == 2)
    assert (bench.answered, log) == (["a", "b"], [f"ada keeps {FLAGS}"])
    # Decided once to know that something is to be saved, and once more when its turn to be saved had come.
    assert len(steps) == 2 * _STEPS


async def test_with_segments_it_is_made_when_they_are_there(steps: list[str]) -> None:
    bench = large_bench(SEGMENTED)
    chunk = bench.chunk(fetching("a", keys=[]), fetching("b", "bob", keys=[]), body("c"))
    assert steps == []
    await bench.segments.tell(1, SegmentsUnavailable("timeout", "no segments within 5 s"))
    await bench.segments.tell(0)
    await until(lambda: chunk.settled == 3)
    assert bench.answered == ["b", "a", "c"]


async def test_a_large_request_whose_time_ends_while_others_are_made_is_expired_and_not_begun(steps: list[str]) -> None:
    bench = large_bench()
    chunk = bench.chunk(everything("first"), everything("late", "bob", ttlMs=1000), timestamp=NOW_MS)
    await until(lambda: len(steps) > 3)
    bench.now += 2
    await until(lambda: chunk.settled == 2)
    assert [(one["requestId"], one.get("error")) for one in chunk.documents] == [
        ("first", None), ("late", "request expired"),
    ]  # fmt: skip
    assert set(steps) == {"ada"}
