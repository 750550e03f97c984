"""Role decide without Kafka and ODP: who is answered when, with what, and what is left to the next owner."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.cmab import Predictions
from pipeline.errors import SegmentsUnavailable
from pipeline.handlers.decide import DecideHandler, Decider
from pipeline.handlers.facts import FactSource
from pipeline.messages.delivery import Headers, Result
from pipeline.odp.client import OdpAccount
from pipeline.odp.segments import Segments
from pipeline.profiles import Profiles
from pipeline.project import ProjectConfig, compile_datafile
from pipeline.sandbox.project_data import PRODUCTION, STAGING, datafile
from pipeline.settings import CmabSettings, DecideSettings, OdpSettings
from pipeline.transport import Transport
from tests.flows.project import FLAGS as PLAIN_FLAGS
from tests.flows.project import SDK_KEY as PLAIN
from tests.flows.project import datafile as plain_datafile
from tests.handlers.chunks import Loaded, PublishingChunk, new_metrics, records, value
from tests.settled import until

NOW_MS = 1_700_000_000_000
FLAG = "checkout_redesign"
REVOKED = "sandboxRevoked0001"


class Told(Segments):
    """Segments of which the test says when and what: futures by user, in the order they were asked for."""

    def __init__(self) -> None:
        self.metrics = new_metrics()
        super().__init__(transport=Transport(), settings=OdpSettings(), metrics=self.metrics)
        self.known: dict[str, frozenset[str]] = {}
        self.unknown: set[str] = set()
        self.asked: list[tuple[str, asyncio.Future[frozenset[str]], bool]] = []
        self.within: list[float | None] = []
        self.resets = 0

    def peek(self, account: OdpAccount, user_id: str) -> frozenset[str] | SegmentsUnavailable | None:
        self._uncounted += user_id in self.known
        if user_id in self.unknown:
            return SegmentsUnavailable("invalid_identifier")
        return self.known.get(user_id) if account.segments_to_check else frozenset()

    def fetch(
        self, account: OdpAccount, user_id: str, *, save: bool, within: float | None = None
    ) -> asyncio.Future[frozenset[str]]:
        future: asyncio.Future[frozenset[str]] = asyncio.get_running_loop().create_future()
        self.asked.append((user_id, future, save))
        self.within.append(within)
        return future

    def reset(self) -> None:
        self.resets += 1

    async def tell(self, number: int, answer: frozenset[str] | Exception = frozenset()) -> None:
        """Answer the question of this number, and let whoever waited for it go on."""
        _, future, _ = self.asked[number]
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        await asyncio.sleep(0)


class Bench:
    """One partition's handler and what it is given."""

    def __init__(
        self, projects: Mapping[str, ProjectConfig] | None = None, *, max_bytes: int = 1024**2,
        profiles: Profiles | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.segments = Told()
        self.metrics = new_metrics()
        self.now = NOW_MS / 1000
        self.datafiles = Loaded(projects or {PRODUCTION: PRODUCTION_PROJECT})
        predictions = Predictions(transport=Transport(), settings=CmabSettings(), metrics=self.metrics)
        facts = FactSource(
            datafiles=self.datafiles, segments=self.segments, profiles=profiles, predictions=predictions,
            max_result_bytes=max_bytes,
        )  # fmt: skip
        decider = Decider(
            datafiles=self.datafiles, facts=facts, settings=DecideSettings(**settings),
            max_record_bytes=max_bytes, metrics=self.metrics, now=lambda: self.now,
        )  # fmt: skip
        self.log: list[Result] = []
        self.handler: DecideHandler = decider.handler()
        self._next = 0

    def chunk(self, *values: Mapping[str, Any] | bytes | None, **common: Any) -> PublishingChunk:
        """Hand over the next records of the partition."""
        made = PublishingChunk(records(*values, first=self._next, **common), log=self.log)
        self._next += len(values)
        self.handler.handle(made)
        return made

    @property
    def answered(self) -> list[str]:
        return [json.loads(result.value)["requestId"] for result in self.log]

    def outcome(self, name: str) -> float:
        return value(self.metrics, "decide_requests_total", outcome=name)


def _project(sdk_key: str) -> ProjectConfig:
    return compile_datafile(json.dumps(datafile(sdk_key, "http://127.0.0.1:1")).encode())


PRODUCTION_PROJECT, STAGING_PROJECT = _project(PRODUCTION), _project(STAGING)
PLAIN_PROJECT = compile_datafile(plain_datafile())


def body(request_id: str, user: str = "ada", **fields: Any) -> dict[str, Any]:
    return {"requestId": request_id, "userId": user, "keys": [FLAG]} | fields


def fetching(request_id: str, user: str = "ada", **fields: Any) -> dict[str, Any]:
    return body(request_id, user, fetchSegments=True, **fields)


# Who waits


@pytest.mark.asyncio
async def test_only_later_requests_of_a_waiting_user_wait_behind_it() -> None:
    bench = Bench()
    chunk = bench.chunk(body("a", "bob"), fetching("b"), body("c"), body("d", "bob"), fetching("e", "cleo"))
    assert bench.answered == ["a", "d"]
    assert [user for user, _, _ in bench.segments.asked] == ["ada", "cleo"]
    await bench.segments.tell(1)
    assert bench.answered == ["a", "d", "e"]
    await bench.segments.tell(0)
    assert bench.answered == ["a", "d", "e", "b", "c"]
    assert chunk.settled == 5
    assert bench.outcome("decided") == 5


@pytest.mark.asyncio
async def test_requests_of_later_chunks_wait_too_and_each_settles_its_own_chunk() -> None:
    bench = Bench()
    first = bench.chunk(fetching("a"))
    second = bench.chunk(body("b"), body("c", "bob"), body("d"))
    assert (first.settled, second.settled) == (0, 1)
    await bench.segments.tell(0)
    assert bench.answered == ["c", "a", "b", "d"]
    assert (first.settled, second.settled) == (1, 3)


@pytest.mark.asyncio
async def test_a_request_behind_others_of_its_user_asks_when_it_arrives_and_keeps_its_place() -> None:
    bench = Bench()
    bench.chunk(fetching("a"), fetching("b", fetchSegmentsOptions=["IGNORE_CACHE"]), body("c"))
    assert [save for _, _, save in bench.segments.asked] == [True, False]
    await bench.segments.tell(1)
    assert bench.answered == []
    # A request that comes now waits at the end of the same queue.
    bench.chunk(body("d"))
    await bench.segments.tell(0)
    assert bench.answered == ["a", "b", "c", "d"]
    bench.chunk(fetching("e"), fetching("f"), body("g"))
    await bench.segments.tell(2)
    assert bench.answered[-1] == "e"
    bench.chunk(body("h"))
    await bench.segments.tell(3)
    assert bench.answered == list("abcdefgh")
    bench.chunk(body("i"))
    assert bench.answered[-1] == "i", "nobody waits any more"


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", [frozenset({"loyal_customers"}), SegmentsUnavailable("invalid_identifier")])
async def test_requests_of_one_user_that_wait_when_the_answer_comes_share_it(
    answer: frozenset[str] | Exception,
) -> None:
    bench = Bench()
    chunks = [bench.chunk(*(fetching(f"{number}-{one}") for one in range(50))) for number in range(4)]
    for _, future, _ in bench.segments.asked:
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
    await until(lambda: all(chunk.settled == 50 for chunk in chunks))
    assert bench.answered == [f"{number}-{one}" for number in range(4) for one in range(50)]
    assert bench.outcome("decided" if isinstance(answer, frozenset) else "error") == 200
    assert sum(chunk.publishes for chunk in chunks) <= 16, "published one by one"


@pytest.mark.asyncio
async def test_between_twenty_requests_of_a_user_and_the_next_twenty_others_have_their_turn() -> None:
    bench = Bench()
    bench.chunk(*(fetching(str(number)) for number in range(50)))
    turns: list[int] = []
    for number in range(50):
        bench.segments.asked[number][1].set_result(frozenset())
    while len(bench.log) < 50:
        await asyncio.sleep(0)
        turns.append(len(bench.log))
    assert turns == [20, 40, 50]
    assert bench.answered == [str(number) for number in range(50)]


@pytest.mark.asyncio
async def test_a_user_just_found_to_be_unknown_is_an_error_at_once() -> None:
    bench = Bench()
    bench.segments.unknown = {"ada"}
    bench.chunk(fetching("a"), body("b"))
    assert [(one["requestId"], one.get("error")) for one in map(_document, bench.log)] == [
        ("a", "failed to fetch qualified segments"), ("b", None),
    ]  # fmt: skip
    assert bench.segments.asked == []


@pytest.mark.asyncio
async def test_users_who_are_remembered_are_answered_at_once() -> None:
    bench = Bench()
    bench.segments.known = {"ada": frozenset()}
    bench.chunk(fetching("a"), fetching("b"))
    assert bench.answered == ["a", "b"]
    assert bench.segments.asked == []
    bench.chunk(fetching("c", fetchSegmentsOptions=["IGNORE_CACHE"]))
    assert [user for user, _, _ in bench.segments.asked] == ["ada"]


def test_a_look_up_is_counted_also_where_no_decision_comes_of_it() -> None:
    bench = Bench(max_bytes=2000)
    bench.segments.known = {"ada": frozenset()}
    chunk = bench.chunk(fetching("a", keys=[], userAttributes={"text": "x" * 1500}))
    assert chunk.reasons == ["result_too_large"]
    assert value(bench.segments.metrics, "segment_lookups_total", outcome="hit") == 1


@pytest.mark.asyncio
async def test_reset_cache_forgets_before_it_looks() -> None:
    bench = Bench()
    bench.chunk(fetching("a", fetchSegmentsOptions=["RESET_CACHE"]))
    assert bench.segments.resets == 1


@pytest.mark.asyncio
async def test_fetched_segments_decide() -> None:
    bench = Bench()
    bench.chunk(fetching("a"), fetching("b", "bob"))
    await bench.segments.tell(0, frozenset({"loyal_customers"}))
    await bench.segments.tell(1, frozenset())
    rules = {result["requestId"]: result["decisions"][0]["ruleKey"] for result in map(_document, bench.log)}
    assert rules["a"] == "checkout_loyal"
    assert rules["b"] != "checkout_loyal"


@pytest.mark.asyncio
async def test_a_user_without_segments_from_odp_is_answered_with_the_error_and_the_next_ones_go_on() -> None:
    bench = Bench()
    chunk = bench.chunk(fetching("a"), body("b"))
    await bench.segments.tell(0, SegmentsUnavailable("timeout", "no segments within 5 s"))
    first, second = map(_document, bench.log)
    assert (first["error"], first["decisions"]) == ("failed to fetch qualified segments", [])
    assert first["revision"] == PRODUCTION_PROJECT.revision
    assert "error" not in second
    assert chunk.settled == 2
    assert (bench.outcome("error"), bench.outcome("decided")) == (1, 1)


@pytest.mark.asyncio
async def test_a_datafile_without_odp_is_answered_with_the_error_and_one_without_segments_asks_nobody() -> None:
    bench = Bench({PLAIN: PLAIN_PROJECT})
    chunk = bench.chunk(fetching("a"))
    assert chunk.documents[0]["error"] == "failed to fetch qualified segments"
    document = json.loads(plain_datafile())
    document["integrations"] = [{"key": "odp", "host": "https://api.zaius.com", "publicKey": "key"}]
    bench = Bench({PLAIN: compile_datafile(json.dumps(document).encode())})
    chunk = bench.chunk(fetching("a", keys=[PLAIN_FLAGS[0]]))
    assert chunk.documents[0]["decisions"][0]["variationKey"] == "on"
    assert bench.segments.asked == []


@pytest.mark.asyncio
async def test_the_revision_that_is_current_when_segments_arrive_decides() -> None:
    bench = Bench()
    bench.chunk(fetching("a"))
    newer = json.dumps(datafile(PRODUCTION, "http://127.0.0.1:1", revision="43")).encode()
    bench.datafiles.projects[PRODUCTION] = compile_datafile(newer)
    await bench.segments.tell(0)
    assert _document(bench.log[0])["revision"] == "43"


# Room for results


@pytest.mark.asyncio
async def test_segments_that_arrive_while_kafka_is_behind_are_answered_when_there_is_room_in_the_users_order() -> None:
    bench = Bench()
    chunk = bench.chunk(fetching("r1"), body("r2"), body("r3"))
    chunk.has_room = False
    await bench.segments.tell(0)
    assert bench.answered == [], "a result was made that nobody can take"
    bench.chunk(body("r4"))
    chunk.let_go_on()
    assert bench.answered == ["r1"], "one for the room granted, which is looked at again before the next"
    bench.chunk(body("r5"))
    chunk.has_room = True
    chunk.let_go_on()
    assert bench.answered == ["r1", "r2", "r3", "r4", "r5"]


@pytest.mark.asyncio
async def test_what_waits_for_room_is_left_to_the_next_owner_when_its_partition_is_given_away() -> None:
    bench = Bench()
    chunk = bench.chunk(fetching("r1"), body("r2"), body("r3"))
    chunk.has_room = False
    await bench.segments.tell(0)
    chunk.let_go_on()
    assert bench.outcome("decided") == 1
    chunk.abandoned = chunk.has_room = True
    chunk.let_go_on()
    assert bench.outcome("decided") == 1, "decided, and counted, what the next owner decides"


# What is given away


@pytest.mark.asyncio
async def test_nothing_of_an_abandoned_chunk_is_published_nor_what_waited_behind_it() -> None:
    bench = Bench()
    first, second = bench.chunk(fetching("a")), bench.chunk(body("b"))
    first.abandoned = second.abandoned = True
    await bench.segments.tell(0)
    assert bench.log == []
    assert (first.settled, second.settled) == (0, 0)
    assert bench.outcome("decided") == 0


@pytest.mark.asyncio
async def test_a_stop_that_cancels_the_question_answers_nobody() -> None:
    bench = Bench()
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
    chunk = bench.chunk(fetching("a"), body("b"))
    bench.segments.asked[0][1].cancel()
    await asyncio.sleep(0)
    assert (bench.log, failed) == ([], [])
    assert chunk.settled == 0


# Time


@pytest.mark.parametrize(
    ("age_ms", "fields", "headers", "default", "expired"),
    [
        (0, {}, (), 0, False),
        (10**9, {}, (), 0, False),
        (1000, {"ttlMs": 1000}, (), 0, False),
        (1001, {"ttlMs": 1000}, (), 0, True),
        (1001, {}, (), 1, True),
        (1000, {}, (), 1, False),
        # What the request says goes before the default, either way.
        (1001, {"ttlMs": 5000}, (), 1, False),
        (1001, {"ttlMs": 1000}, (), 5, True),
        (5000, {}, [("expires-at", b"%d" % (NOW_MS - 1))], 0, True),
        (5000, {}, [("expires-at", b"%d" % NOW_MS)], 0, False),
        (5000, {"ttlMs": 10}, [("expires-at", b"%d" % (NOW_MS + 1))], 0, False),
        (5000, {}, [("expires-at", b'"%d"' % (NOW_MS - 1))], 0, True),
        (5000, {}, [("expires-at", (NOW_MS - 1).to_bytes(8, "big"))], 0, True),
        (5000, {"ttlMs": 10}, [("expires-at", NOW_MS.to_bytes(8, "big"))], 0, False),
        # An empty one says nothing.
        (0, {}, [("expires-at", None)], 0, False),
        (1001, {"ttlMs": 1000}, [("expires-at", b"")], 0, True),
    ],
)
def test_a_request_is_expired_by_its_header_its_ttl_or_the_default_in_this_order(
    age_ms: int, fields: dict[str, Any], headers: Headers, default: float, expired: bool
) -> None:
    bench = Bench(max_age=default)
    chunk = bench.chunk(body("a", **fields), headers=headers, timestamp=NOW_MS - age_ms)
    (document,) = chunk.documents
    assert (document.get("error") == "request expired") is expired
    assert bench.outcome("expired") == expired
    if expired:
        assert document["decisions"] == []
        assert "tracking" not in document
        assert document["revision"] == PRODUCTION_PROJECT.revision


@pytest.mark.parametrize("value", [b"soon", b"-1", b"9" * 5000])
def test_a_header_that_cannot_be_read_is_answered_with_an_error_that_names_it(value: bytes) -> None:
    bench = Bench()
    chunk = bench.chunk(body("a"), body("b", ttlMs=0), headers=[("expires-at", value)])
    told = [(one["error"], one["detail"], one["decisions"]) for one in chunk.documents]
    assert told == [
        ("error parsing request body", "header expires-at: pattern", []),
        # The body comes first.
        ("error parsing request body", "ttlMs: minimum", []),
    ]
    assert bench.outcome("error") == 2


@pytest.mark.asyncio
async def test_an_expired_request_fetches_nothing_and_one_that_expires_while_it_waits_keeps_its_place() -> None:
    bench = Bench()
    bench.chunk(fetching("a", ttlMs=1), timestamp=NOW_MS - 2)
    assert bench.segments.asked == []
    bench.chunk(fetching("b"), body("c", ttlMs=1000), body("d"), timestamp=NOW_MS)
    bench.now += 2
    await bench.segments.tell(0)
    assert [(one["requestId"], one.get("error")) for one in map(_document, bench.log)] == [
        ("a", "request expired"), ("b", None), ("c", "request expired"), ("d", None),
    ]  # fmt: skip


# Which project


@pytest.mark.asyncio
async def test_a_request_whose_time_ends_while_segments_are_fetched_is_expired_then_and_behind_others_in_its_turn() -> (
    None
):
    bench = Bench()
    bench.now += 1
    bench.chunk(
        fetching("a", ttlMs=3000), fetching("b"), fetching("c", ttlMs=2500), fetching("d", "bob"), timestamp=NOW_MS
    )
    assert bench.segments.within == [2, None, 1.5, None], "seconds that are left"
    expired = SegmentsUnavailable("expired", "the request's time ended before ODP answered")
    # The two clocks need not agree to the millisecond: the end of the wait is the end of the time.
    await bench.segments.tell(0, expired)
    assert [(one["requestId"], one["error"]) for one in map(_document, bench.log)] == [("a", "request expired")]
    await bench.segments.tell(2, expired)
    assert bench.answered == ["a"]
    await bench.segments.tell(1)
    assert [(one["requestId"], one.get("error")) for one in map(_document, bench.log)] == [
        ("a", "request expired"), ("b", None), ("c", "request expired"),
    ]  # fmt: skip
    assert bench.outcome("expired") == 2
    assert (bench.outcome("error"), bench.outcome("decided")) == (0, 1)


@pytest.mark.asyncio
async def test_a_request_behind_others_that_is_expired_when_it_arrives_fetches_nothing() -> None:
    bench = Bench()
    bench.chunk(fetching("a"), fetching("b", ttlMs=1), timestamp=NOW_MS - 2)
    assert len(bench.segments.asked) == 1
    await bench.segments.tell(0)
    assert [one.get("error") for one in map(_document, bench.log)] == [None, "request expired"]


@pytest.mark.asyncio
async def test_reset_cache_of_a_request_behind_others_is_followed_once_and_when_it_arrives() -> None:
    bench = Bench()
    bench.chunk(fetching("a"), fetching("b", fetchSegmentsOptions=["RESET_CACHE"]))
    assert bench.segments.resets == 1
    await bench.segments.tell(0)
    await bench.segments.tell(1)
    assert bench.answered == ["a", "b"]
    assert bench.segments.resets == 1


def test_without_an_sdk_key_the_only_one_is_taken_and_named() -> None:
    (document,) = Bench().chunk(body("a")).documents
    assert (document["sdkKey"], document.get("error")) == (PRODUCTION, None)


def test_without_an_sdk_key_where_there_are_several_the_result_says_so() -> None:
    bench = Bench({PRODUCTION: PRODUCTION_PROJECT, STAGING: STAGING_PROJECT})
    nameless, named = bench.chunk(body("a"), body("b", sdkKey=STAGING)).documents
    assert (nameless["error"], nameless["sdkKey"]) == ("sdkKey is needed: the worker has several", None)
    assert (named["sdkKey"], named["decisions"][0]["flagKey"]) == (STAGING, FLAG)


def test_a_key_without_a_project_is_answered_with_what_is_known_of_it() -> None:
    bench = Bench()
    bench.datafiles.errors = {REVOKED: "the agent's words"}
    denied, unknown = bench.chunk(body("a", sdkKey=REVOKED), body("b", sdkKey="nobody")).documents
    assert (denied["error"], unknown["error"]) == ("the agent's words", "unknown SDK key")
    assert bench.outcome("error") == 2


def test_a_faulty_request_is_answered_before_its_key_is_looked_at() -> None:
    bench = Bench()
    (document,) = bench.chunk(body("a", decideOptions=["NO_SUCH_OPTION"], sdkKey="nobody")).documents
    assert document["error"] == "invalid option: NO_SUCH_OPTION"


def test_what_could_not_be_parsed_is_named_in_the_result_and_in_a_debug_line_without_a_word_of_the_user() -> None:
    bench = Bench()
    with capture_logs() as lines:
        chunk = bench.chunk(
            body("a", "someone@example.org", keys=["secret flag", 5]), body("b", decideOptions=["NOPE"]), body("c"),
        )  # fmt: skip
    first, second, third = chunk.documents
    assert (first["error"], first["detail"]) == ("error parsing request body", "keys.1: type")
    # These say it themselves.
    assert "detail" not in second
    assert "detail" not in third
    (line,) = [line for line in lines if line["event"] == "decide request not parsed"]
    assert line == {
        "event": "decide request not parsed", "log_level": "debug", "source": "topic-0-0", "detail": "keys.1: type",
    }  # fmt: skip


def test_more_keys_than_the_worker_takes_are_an_error_that_says_whose_bound_it_is() -> None:
    bench = Bench(max_keys=2)
    few, many = bench.chunk(
        body("a", keys=[FLAG, "x", FLAG, "x"]), body("b", keys=[FLAG, "x", "y"], sdkKey=PRODUCTION)
    ).documents
    assert len(few["decisions"]) == 2
    assert (many["error"], many["decisions"], many["sdkKey"]) == ("error parsing request body", [], PRODUCTION)
    assert many["detail"] == "keys: maxItems, 2 here (PIPELINE_DECIDE__MAX_KEYS)"


def test_default_options_are_added_to_those_of_a_request() -> None:
    bench = Bench({PLAIN: PLAIN_PROJECT}, options=("DISABLE_DECISION_EVENT",))
    plain, more = bench.chunk(
        body("a", keys=[PLAIN_FLAGS[0]]), body("b", keys=[PLAIN_FLAGS[0]], decideOptions=["INCLUDE_REASONS"])
    ).documents
    assert "tracking" not in plain
    assert "tracking" not in more
    assert (plain["decisions"][0]["reasons"], bool(more["decisions"][0]["reasons"])) == ([], True)


# What is published


def test_what_names_nobody_is_rejected_and_its_neighbours_are_answered() -> None:
    bench = Bench()
    chunk = bench.chunk(body("a"), b"{", None, {"keys": []}, body("b"))
    assert bench.answered == ["a", "b"]
    assert chunk.reasons == ["not_json", "empty", "user_id_missing"]
    assert [record.offset for record, _ in chunk.rejected] == [1, 2, 3]
    assert chunk.publishes == 1
    assert bench.outcome("rejected") == 3


def test_a_chunk_without_any_result_publishes_nothing() -> None:
    chunk = Bench().chunk(b"{")
    assert (chunk.publishes, chunk.reasons) == (0, ["not_json"])


def test_a_request_over_the_size_cap_is_rejected() -> None:
    bench = Bench(max_bytes=2000)
    chunk = bench.chunk(body("a", padding="x" * 2000))
    assert chunk.reasons == ["too_large"]


def test_a_result_too_large_to_write_is_rejected_and_its_neighbours_are_answered() -> None:
    bench = Bench({PLAIN: PLAIN_PROJECT}, max_bytes=2000)
    # Below the cap itself, but repeated in each of two decisions.
    large = body("b", keys=[], userAttributes={"text": "x" * 1200})
    chunk = bench.chunk(body("a", keys=[PLAIN_FLAGS[0]]), large, body("c", keys=[PLAIN_FLAGS[0]]))
    assert bench.answered == ["a", "c"]
    assert chunk.reasons == ["result_too_large"]
    assert all(len(result.value) <= 2000 for result in bench.log)


def test_a_null_key_becomes_the_user_id_and_any_other_stays() -> None:
    bench = Bench()
    bench.chunk(body("a", "äda"), key=None)
    bench.chunk(body("b", "äda"), key=b"")
    bench.chunk(body("c", "äda"), key=b"other")
    assert [result.key for result in bench.log] == ["äda".encode(), b"", b"other"]


def test_a_result_carries_its_source_traceparent_and_the_headers_to_copy() -> None:
    bench = Bench(copy_headers=("tenant", "source"))
    headers = [("traceparent", b"00-1"), ("tenant", b"t1"), ("secret", b"s"), ("tenant", b"t2"), ("source", b"x")]
    bench.chunk(body("a"), headers=headers)
    assert bench.log[0].headers == [
        ("source", b"topic-0-0"), ("traceparent", b"00-1"), ("tenant", b"t1"), ("tenant", b"t2"),
    ]  # fmt: skip


def test_a_replayed_record_keeps_its_identity_and_the_header_names_where_it_lies_now() -> None:
    bench = Bench()
    bench.chunk(body("a"), headers=[("pipeline-source", b"old.topic-3-99"), ("pipeline-timestamp", b"1600000000000")])
    (result,) = bench.log
    document = _document(result)
    assert (document["source"], document["timestamp"]) == ("old.topic-3-99", 1_600_000_000_000)
    # A takeover looks for what was answered by the place it reads, not by the first one.
    assert result.headers[0] == ("source", b"topic-0-0")


def _document(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.value)
    return document


@pytest.mark.asyncio
async def test_each_result_knows_its_own_requests_timestamp_also_with_an_error_expired_or_replayed() -> None:
    bench = Bench()
    bench.now = NOW_MS / 1000
    bench.chunk(body("a"), timestamp=NOW_MS - 1)
    bench.chunk(body("b", sdkKey="unknown"), timestamp=NOW_MS - 2)
    bench.chunk(body("c", ttlMs=1), timestamp=NOW_MS - 3)
    replayed = [("pipeline-source", b"old.topic-3-99"), ("pipeline-timestamp", b"1600000000000")]
    bench.chunk(body("d"), headers=replayed, timestamp=NOW_MS - 4)
    bench.chunk(fetching("e"), timestamp=NOW_MS - 5)
    await bench.segments.tell(0)
    assert [NOW_MS - (result.requested_at or 0) for result in bench.log] == [1, 2, 3, 4, 5]
