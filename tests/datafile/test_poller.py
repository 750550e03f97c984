"""Datafiles are loaded before the start, kept through every trouble, and swapped only for better ones. Real sockets."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from structlog.typing import EventDict

from pipeline.datafile import poller
from pipeline.datafile.poller import Datafiles, DatafileStatus
from pipeline.errors import DatafileRefused
from pipeline.metrics import Metrics
from pipeline.project import ProjectConfig, compile_datafile
from pipeline.settings import OptimizelySettings, masked
from pipeline.transport import Transport
from tests.patience import stretched
from tests.settled import until

KEY, OTHER = "KZbunNn9bVfBWLpZPq2XC4", "91GuiKYH8ZF1hLLXR7DR1"
FORBIDDEN = "unable to fetch fresh datafile (consider rechecking SDK key), status code: 403 Forbidden"


class Flag:
    """One that can be seen to go."""


@dataclass(frozen=True)
class Project:
    """What the poller reads of a compiled datafile."""

    account_id: str
    project_id: str
    revision: str
    flags: dict[str, Flag] = field(default_factory=lambda: {"flag": Flag()})


def compile_small(raw: bytes) -> ProjectConfig:
    try:
        document = orjson.loads(raw)
        project = Project(document["accountId"], document["projectId"], document["revision"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DatafileRefused("not a datafile") from error
    return cast(ProjectConfig, project)


def datafile(revision: str, **changes: str) -> bytes:
    return orjson.dumps({"accountId": "1", "projectId": "2", "revision": revision} | changes)


@dataclass
class Shelf:
    """What the CDN has for one key. `status` overrides it; `validators` are offered and honoured."""

    body: bytes = b""
    status: int | None = None
    validators: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    asked: list[web.Request] = field(default_factory=list)


class Cdn:
    def __init__(self) -> None:
        self.shelves: dict[str, Shelf] = {}
        self.released = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        shelf = self.shelves[request.match_info["key"]]
        shelf.asked.append(request)
        if shelf.hang:
            await self.released.wait()
        if shelf.status is not None:
            return web.Response(status=shelf.status)
        etag = shelf.validators.get("ETag")
        if etag is not None and request.headers.get("If-None-Match") == etag:
            return web.Response(status=304)
        return web.Response(body=shelf.body, headers=shelf.validators)


class Bench:
    """Datafiles over a CDN: shelves by key, logs captured, metrics readable."""

    def __init__(self, cdn: Cdn, datafiles: Datafiles, registry: CollectorRegistry, logs: list[EventDict]) -> None:
        self.cdn, self.datafiles, self.registry, self.logs = cdn, datafiles, registry, logs

    @property
    def shelf(self) -> Shelf:
        return self.cdn.shelves[KEY]

    @property
    def status(self) -> DatafileStatus:
        return self.datafiles.status()[0]

    async def settled(self) -> None:
        async with asyncio.timeout(stretched(5)):
            await self.datafiles.settled()

    async def polled(self, times: int = 1) -> None:
        """Wait until so many further polls were begun and all but the last are over."""
        goal = len(self.shelf.asked) + times
        await until(lambda: len(self.shelf.asked) > goal)

    def revision(self, key: str = KEY) -> str | None:
        project = self.datafiles.project(key)
        return project.revision if project is not None else None

    def sample(self, name: str, key: str = KEY, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"decision_pipeline_{name}", {"sdk_key": masked(key)} | labels)

    def polls(self, outcome: str, key: str = KEY) -> float:
        return self.sample("datafile_polls_total", key, outcome=outcome) or 0.0

    def blocked(self, reason: str) -> float | None:
        labels = {"upstream": "cdn", "reason": reason}
        return self.registry.get_sample_value("decision_pipeline_upstream_blocked", labels)

    def logged(self, event: str) -> list[EventDict]:
        return [one for one in self.logs if one["event"] == event]


@asynccontextmanager
async def bench(
    *shelves: Shelf, keys: tuple[str, ...] = (KEY, OTHER), compile: Callable[[bytes], ProjectConfig] = compile_small,  # noqa: A002
    clock: Callable[[], float] | None = None, rng: random.Random | None = None, **settings: Any,
) -> AsyncIterator[Bench]:  # fmt: skip
    cdn, registry = Cdn(), CollectorRegistry()
    cdn.shelves = dict(zip(keys, shelves, strict=False))
    app = web.Application()
    app.router.add_get("/datafiles/{key}.json", cdn.answer)
    async with TestServer(app) as server, Transport() as transport:
        template = str(server.make_url("/datafiles/")) + "%s.json"
        used = {"datafile_url_template": template, "poll_interval": 0.02, "request_timeout": 2} | settings
        injected: dict[str, Any] = {"clock": clock} if clock else {}
        datafiles = Datafiles(
            transport=transport, settings=OptimizelySettings(sdk_keys=tuple(cdn.shelves), **used),
            metrics=Metrics(registry), compile=compile, rng=rng or random.Random(1), **injected,
        )  # fmt: skip
        with capture_logs() as logs:
            await datafiles.start()
            yield Bench(cdn, datafiles, registry, logs)
            cdn.released.set()
            await datafiles.close()


@pytest.mark.asyncio
async def test_a_datafile_is_loaded_before_the_start() -> None:
    async with bench(Shelf(datafile("42"))) as b:
        assert b.datafiles.project(KEY) is None
        assert b.datafiles.error(KEY) is None
        assert b.status == DatafileStatus(masked(KEY), "loading", None, None, None)
        await b.settled()
        assert (b.revision(), b.datafiles.error(KEY), b.datafiles.sole_key) == ("42", None, KEY)
        assert b.status.state == "loaded"
        assert b.status.age is not None
        assert b.polls("new") == 1
        assert (b.sample("datafile_last_success_timestamp_seconds") or 0) > 1_700_000_000


@pytest.mark.asyncio
async def test_a_datafile_is_compiled_into_a_project() -> None:
    sections = dict.fromkeys(
        ("attributes", "audiences", "events", "experiments", "featureFlags", "groups", "rollouts"), ()
    )
    document = orjson.loads(datafile("42", version="4")) | sections
    async with bench(Shelf(orjson.dumps(document)), compile=compile_datafile) as b:
        await b.settled()
        project = b.datafiles.project(KEY)
        assert isinstance(project, ProjectConfig)
        assert (project.account_id, project.revision) == ("1", "42")
        b.shelf.body = b'{"version": "3"}'
        await until(lambda: b.polls("refused") >= 1)
        assert b.datafiles.project(KEY) is project


@pytest.mark.asyncio
async def test_without_keys_there_is_nothing_to_wait_for() -> None:
    async with bench() as b:
        await b.settled()
        assert b.datafiles.sole_key is None
        assert b.datafiles.status() == []
        assert b.datafiles.error("any") == "unknown SDK key"


@pytest.mark.asyncio
async def test_a_new_revision_replaces_the_one_in_use() -> None:
    async with bench(Shelf(datafile("9"))) as b:
        await b.settled()
        b.shelf.body = datafile("10")
        await until(lambda: b.revision() == "10")
        taken = [(one["revision"], one["replaces"]) for one in b.logged("datafile taken")]
        assert taken == [("9", None), ("10", "9")]


@pytest.mark.asyncio
async def test_polls_are_conditional_and_304_confirms() -> None:
    validators = {"ETag": '"a"', "Last-Modified": "Tue, 24 Nov 2026 10:00:00 GMT"}
    async with bench(Shelf(datafile("42"), validators=validators)) as b:
        await b.settled()
        project = b.datafiles.project(KEY)
        await until(lambda: b.polls("unchanged") >= 2)
        first, second = b.shelf.asked[:2]
        assert "If-None-Match" not in first.headers
        assert "If-Modified-Since" not in first.headers
        assert second.headers["If-None-Match"] == '"a"'
        assert second.headers["If-Modified-Since"] == validators["Last-Modified"]
        assert b.datafiles.project(KEY) is project
        assert b.polls("new") == 1


@pytest.mark.asyncio
async def test_the_same_revision_is_not_swapped_but_its_validators_are_used() -> None:
    async with bench(Shelf(datafile("42"), validators={"ETag": '"a"'})) as b:
        await b.settled()
        project = b.datafiles.project(KEY)
        b.shelf.body, b.shelf.validators = datafile("42", more="x"), {"ETag": '"b"'}
        await until(lambda: b.shelf.asked[-1].headers.get("If-None-Match") == '"b"')
        assert b.datafiles.project(KEY) is project


@pytest.mark.asyncio
async def test_the_same_document_is_not_compiled_again_and_never_on_the_event_loop() -> None:
    threads: list[threading.Thread] = []

    def compile_noting(raw: bytes) -> ProjectConfig:
        threads.append(threading.current_thread())
        return compile_small(raw)

    async with bench(Shelf(datafile("42")), compile=compile_noting) as b:
        await b.settled()
        await until(lambda: b.polls("unchanged") >= 2)
        assert len(threads) == 1
        assert threads[0] is not threading.main_thread()
        assert b.registry.get_sample_value("decision_pipeline_datafile_compile_seconds_count") == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "bad",
    [b"", b"<html>", datafile("43")[:-5], datafile("43") + b" " * 5000, datafile("41"), datafile("43", accountId="9")],
    ids=["empty", "html", "truncated", "too large", "older", "other account"],
)
async def test_a_bad_datafile_is_refused_and_does_not_stick(bad: bytes) -> None:
    async with bench(Shelf(datafile("42"), validators={"ETag": '"good"'}), max_datafile_bytes=4000) as b:
        await b.settled()
        b.shelf.body, b.shelf.validators = bad, {"ETag": '"bad"'}
        await until(lambda: b.polls("refused") >= 3)
        assert b.revision() == "42"
        assert b.datafiles.error(KEY) is None
        assert b.status.error
        assert (b.shelf.asked[-1].headers["If-None-Match"], b.polls("failed")) == ('"good"', 0)
        assert [one["log_level"] for one in b.logged("datafile refused")] == ["error"]
        b.shelf.body = datafile("44")
        await until(lambda: b.revision() == "44")
        assert b.status.error is None
        assert len(b.logged("datafile polling recovered")) == 1


@pytest.mark.asyncio
async def test_what_was_refused_is_compiled_once_and_judged_anew_when_another_is_in_use() -> None:
    compiled: list[str] = []

    def noting(raw: bytes) -> ProjectConfig:
        project = compile_small(raw)
        compiled.append(project.revision)
        return project

    shelf = Shelf(datafile("42"))
    async with bench(shelf, compile=noting) as b:
        await b.settled()
        shelf.body = datafile("41")
        await until(lambda: b.polls("refused") >= 3)
        assert compiled == ["42", "41"]
        assert b.status.error is not None
        shelf.body = datafile("newest")
        await until(lambda: b.revision() == "newest")
        # No number comes before or after a word.
        shelf.body = datafile("41")
        await until(lambda: b.revision() == "41")
        assert compiled == ["42", "41", "newest", "41"]


@pytest.mark.asyncio
async def test_an_older_revision_is_taken_where_that_is_allowed() -> None:
    async with bench(Shelf(datafile("42")), allow_older_revision=True) as b:
        await b.settled()
        b.shelf.body = datafile("41")
        await until(lambda: b.revision() == "41")


@pytest.mark.asyncio
async def test_revisions_that_are_no_numbers_have_no_order() -> None:
    async with bench(Shelf(datafile("b"))) as b:
        await b.settled()
        b.shelf.body = datafile("a")
        await until(lambda: b.revision() == "a")


@pytest.mark.parametrize(
    ("revision", "current", "older"),
    [
        ("41", "42", True), ("9", "10", True), ("0041", "42", True), ("0", "1", True),
        ("9" * 9000, "1" + "0" * 9000, True),
        ("42", "42", False), ("042", "42", False), ("10", "9", False), ("", "1", False), ("1.0", "2", False),
        ("-1", "1", False), ("\u0661", "2", False), ("1", "\u00b2", False), ("a", "b", False),
    ],
)  # fmt: skip
def test_only_decimal_integers_are_ordered(revision: str, current: str, older: bool) -> None:
    assert poller._older(revision, current) is older


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, FORBIDDEN),
        (401, f"failed to instantiate Optimizely for SDK Key: {KEY}"),
        (404, f"failed to instantiate Optimizely for SDK Key: {KEY}"),
    ],
)
async def test_a_bad_key_does_not_hold_the_start_and_gets_well_by_itself(status: int, words: str) -> None:
    async with bench(Shelf(status=status)) as b:
        await b.settled()
        assert (b.datafiles.project(KEY), b.datafiles.error(KEY)) == (None, words)
        assert (b.status.state, b.status.error) == ("denied", f"HTTP {status}")
        await until(lambda: b.polls("denied") >= 3)
        assert b.sample("datafile_key_denied") == 1
        assert [one["log_level"] for one in b.logged("datafile denied")] == ["error"]
        b.shelf.status, b.shelf.body = None, datafile("42")
        await until(lambda: b.revision() == "42")
        assert (b.datafiles.error(KEY), b.status.state, b.sample("datafile_key_denied")) == (None, "loaded", 0)


@pytest.mark.asyncio
async def test_a_key_denied_later_keeps_its_project_and_alarms() -> None:
    async with bench(Shelf(datafile("42"))) as b:
        await b.settled()
        b.shelf.status = 403
        await until(lambda: b.polls("denied") >= 3)
        assert (b.revision(), b.datafiles.error(KEY), b.status.state) == ("42", None, "loaded")
        assert b.sample("datafile_key_denied") == 1
        assert [(one["log_level"], one["revision_in_use"]) for one in b.logged("datafile denied")] == [("error", "42")]
        # An outage says nothing about the key; rubbish with status 200 says that it is let in again.
        b.shelf.status = 503
        await until(lambda: b.polls("failed") >= 1)
        assert b.sample("datafile_key_denied") == 1
        b.shelf.status, b.shelf.body = None, b"rubbish"
        await until(lambda: b.polls("refused") >= 1)
        assert b.sample("datafile_key_denied") == 0


@pytest.mark.asyncio
async def test_a_bad_key_that_turns_to_rubbish_is_still_answered() -> None:
    async with bench(Shelf(status=403)) as b:
        await b.settled()
        b.shelf.status, b.shelf.body = None, b"rubbish"
        await until(lambda: b.datafiles.error(KEY) == f"failed to instantiate Optimizely for SDK Key: {KEY}")


@pytest.mark.asyncio
@pytest.mark.parametrize("trouble", [500, 503, 429, 302, 304, 400, "rubbish", "silence"])
async def test_what_says_nothing_of_the_key_holds_the_start(
    trouble: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "FIRST_REMINDER", 0.01)
    monkeypatch.setattr(poller, "REMIND_EVERY", 0.05)
    monkeypatch.setattr(poller, "FIRST_RETRY", 0.01)
    shelf = Shelf(b"rubbish", status=trouble if isinstance(trouble, int) else None, hang=trouble == "silence")
    async with bench(shelf, Shelf(datafile("7")), request_timeout=0.1) as b:
        held = asyncio.create_task(b.settled())
        await until(lambda: b.revision(OTHER) == "7" and len(b.shelf.asked) >= 3)
        said = len(b.logged("start held: datafiles not loaded yet"))
        await until(lambda: len(b.logged("start held: datafiles not loaded yet")) >= said + 2)
        assert not held.done()
        assert b.status.state == "loading"
        assert b.status.error
        assert b.datafiles.error(KEY) is None
        for one in b.logged("start held: datafiles not loaded yet")[said:]:
            assert (one["log_level"], list(one["waiting_for"])) == ("warning", [masked(KEY)])
        b.shelf.status, b.shelf.hang, b.shelf.body = None, False, datafile("42")
        b.cdn.released.set()
        await held
        assert (b.revision(), b.datafiles.sole_key) == ("42", None)


@pytest.mark.asyncio
async def test_a_key_keeps_its_project_while_the_cdn_is_down_and_its_age_is_seen() -> None:
    now = 1000.0
    async with bench(Shelf(datafile("42")), clock=lambda: now, stale_after=300) as b:
        await b.settled()
        b.shelf.status = 503
        await until(lambda: b.polls("failed") >= 1)
        assert b.sample("datafile_stale") == 0
        now += 301
        await b.polled(3)
        assert (b.revision(), b.status.age, b.sample("datafile_stale")) == ("42", 301, 1)
        assert [one["age_seconds"] for one in b.logged("datafile stale")] == [301]
        assert [one["log_level"] for one in b.logged("datafile failed")] == ["warning"]
        assert b.blocked("unavailable") == 1
        b.shelf.status = None
        await until(lambda: b.sample("datafile_stale") == 0)
        assert b.status.age == 0
        assert b.blocked("unavailable") == 0
        (over,) = b.logged("datafile polling recovered")
        assert over["seconds"] >= 0
        answered = "decision_pipeline_upstream_last_response_timestamp_seconds"
        assert b.registry.get_sample_value(answered, {"upstream": "cdn"}) == pytest.approx(time.time(), abs=60)


@pytest.mark.asyncio
async def test_a_long_interval_does_not_make_a_healthy_datafile_stale() -> None:
    now = 1000.0
    async with bench(Shelf(datafile("42")), clock=lambda: now, stale_after=10) as b:
        await b.settled()
        now += 60
        await until(lambda: b.polls("unchanged") >= 1)
        assert b.logged("datafile stale") == []


@pytest.mark.asyncio
async def test_the_beat_starts_anywhere_in_the_interval() -> None:
    class AtOnce(random.Random):
        def random(self) -> float:
            return 0.0

    async with bench(Shelf(datafile("42")), rng=AtOnce(), poll_interval=3600) as b:
        await until(lambda: b.polls("unchanged") == 1)
        assert len(b.shelf.asked) == 2


@pytest.mark.asyncio
async def test_a_key_is_percent_encoded_and_stands_in_no_log() -> None:
    key = "a/b+c=d_e-f" + "x" * 20
    async with bench(Shelf(status=404), keys=(key,)) as b:
        await b.settled()
        request = b.cdn.shelves[key].asked[0]
        assert request.raw_path == "/datafiles/a%2Fb%2Bc%3Dd_e-f" + "x" * 20 + ".json"
        b.cdn.shelves[key].status = 503
        await until(lambda: b.polls("failed", key) >= 1)
        b.cdn.shelves[key].status, b.cdn.shelves[key].body = None, datafile("42")
        await until(lambda: b.revision(key) == "42")
        assert len(b.logs) >= 4
        assert "d_e-f" not in repr(b.logs)
        assert masked(key) in repr(b.logs)


@pytest.mark.asyncio
async def test_keys_that_begin_alike_have_metrics_of_their_own() -> None:
    keys = ("sdk-key-one", "sdk-key-two")
    async with bench(Shelf(datafile("42")), Shelf(status=403), keys=keys) as b:
        await b.settled()
        assert [one.sdk_key for one in b.datafiles.status()] == [masked(key) for key in keys]
        assert [b.sample("datafile_key_denied", key) for key in keys] == [0, 1]


@pytest.mark.asyncio
async def test_an_address_that_cannot_be_called_is_reported_without_the_key() -> None:
    async with bench(Shelf(), datafile_url_template="http://%s.localhost:1/") as b:
        await until(lambda: b.polls("failed") >= 1)
        assert b.status.error is not None
        assert masked(KEY) in b.status.error
        assert KEY not in repr(b.logs) + b.status.error


@pytest.mark.asyncio
async def test_closing_ends_a_poll_under_way_and_keeps_the_project() -> None:
    async with bench(Shelf(datafile("42"))) as b:
        await b.settled()
        b.shelf.hang = True
        await until(lambda: len(b.shelf.asked) >= 2)
        async with asyncio.timeout(stretched(1)):
            await b.datafiles.close()
        assert b.revision() == "42"


@pytest.mark.asyncio
async def test_a_defect_is_not_swallowed() -> None:
    def broken(raw: bytes) -> ProjectConfig:
        raise ZeroDivisionError

    seen: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: seen.append(context["exception"]))
    async with bench(Shelf(datafile("42")), compile=broken) as b:
        with pytest.raises(ZeroDivisionError):
            await b.settled()
        assert [type(error) for error in seen] == [ZeroDivisionError]
