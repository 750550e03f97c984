"""Sticky profiles and predictions in role decide: what is asked for and saved before a result may be sent."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pipeline.cmab import Predictions
from pipeline.errors import SegmentsUnavailable
from pipeline.handlers.decide import DecideHandler, Decider
from pipeline.handlers.facts import FactSource
from pipeline.messages.delivery import Result
from pipeline.profiles import Profile
from pipeline.project import ProjectConfig, compile_datafile
from pipeline.sandbox.processes import StandIns
from pipeline.settings import CmabSettings, DecideSettings
from pipeline.transport import Transport
from tests.decision.projects import document, flag, rule, variation
from tests.handlers.chunks import Loaded, PublishingChunk, new_metrics, records, value
from tests.handlers.test_decide import Told
from tests.settled import until

pytestmark = pytest.mark.asyncio

STICKY = rule("10", "sticky", variation("101", "a"), variation("102", "b"))
BANDIT = rule("20", "bandit", variation("201", "c"), variation("202", "d")) | {
    "cmab": {"attributeIds": ["9"], "trafficAllocation": 10_000}
}
PROJECT = {
    "featureFlags": [flag("kept", STICKY), flag("chosen", BANDIT)], "experiments": [STICKY, BANDIT],
    "attributes": [{"id": "9", "key": "plan"}],
    "integrations": [{"key": "odp", "host": "https://api.zaius.com", "publicKey": "k"}],
    "typedAudiences": [
        {"id": "1", "name": "n", "conditions": {
            "type": "third_party_dimension", "match": "qualified", "name": "odp.audiences", "value": "gold"}}
    ],
}  # fmt: skip


class Book:
    """Profiles of which the test says when a look-up or a save ends, in the order in which things happened."""

    def __init__(self, log: list[str]) -> None:
        self.upstream = None
        self.kept: dict[str, Profile | None] = {}
        self.log = log
        self.gate = asyncio.Event()
        self.gate.set()

    async def lookup(self, user_ids: Sequence[str]) -> Sequence[Profile | None]:
        self.log.append(f"lookup {' '.join(user_ids)}")
        await self.gate.wait()
        return [self.kept.get(user_id, {}) for user_id in user_ids]

    async def save(self, profiles: Sequence[tuple[str, Profile]]) -> None:
        self.log.append(f"save {' '.join(user_id for user_id, _ in profiles)}")
        await self.gate.wait()
        self.kept.update(profiles)

    async def close(self) -> None: ...


class Logged(list[Result]):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.happened = log

    def extend(self, results: Any) -> None:
        self.happened += [f"result {json.loads(one.value)['requestId']}" for one in results]
        super().extend(results)


class Bench:
    """One partition's handler with profiles, and the prediction service on a real socket."""

    def __init__(
        self, transport: Transport, stand_ins: StandIns, *, sticky: bool = True, max_result_bytes: int = 10**6,
        **fields: Any,
    ) -> None:  # fmt: skip
        self.happened: list[str] = []
        self.now = 1_700_000_000.0
        self.book = Book(self.happened)
        self.segments = Told()
        self.metrics = new_metrics()
        self.datafiles = Loaded({"key": self.project(**fields)})
        self.predictions = Predictions(
            transport=transport, metrics=self.metrics,
            settings=CmabSettings(prediction_url_template=stand_ins.prediction_url_template, retries=0),
        )  # fmt: skip
        facts = FactSource(
            datafiles=self.datafiles, segments=self.segments, profiles=self.book if sticky else None,
            predictions=self.predictions, max_result_bytes=max_result_bytes,
        )  # fmt: skip
        self.decider = Decider(
            datafiles=self.datafiles, facts=facts, settings=DecideSettings(), max_record_bytes=10**6,
            metrics=self.metrics, now=lambda: self.now,
        )  # fmt: skip
        self.log = Logged(self.happened)
        self.handler: DecideHandler = self.decider.handler()
        self._next = 0

    @staticmethod
    def project(**fields: Any) -> ProjectConfig:
        return compile_datafile(json.dumps(document(**(PROJECT | fields))).encode())

    def chunk(self, *values: Mapping[str, Any]) -> PublishingChunk:
        made = PublishingChunk(records(*values, first=self._next), log=self.log)
        self._next += len(values)
        self.handler.handle(made)
        return made

    def decision(self, request_id: str) -> dict[str, Any]:
        (result,) = (one for one in map(_document, self.log) if one["requestId"] == request_id)
        found: dict[str, Any] = result["decisions"][0]
        return found

    async def close(self) -> None:
        await self.decider.close()
        await self.predictions.close()


def _document(result: Result) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(result.value)
    return read


def body(request_id: str, user: str = "ada", key: str = "kept", **fields: Any) -> dict[str, Any]:
    return {"requestId": request_id, "userId": user, "keys": [key]} | fields


async def test_a_profile_is_looked_up_once_and_saved_before_its_result_is_sent(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        chunk = bench.chunk(body("a"))
        await until(lambda: chunk.settled == 1)
        assert bench.happened == ["lookup ada", "save ada", "result a"]
        assert bench.book.kept["ada"] == {"10": bench.decision("a")["variationId"]}
        # Known now: nothing is learned, nothing saved.
        again = bench.chunk(body("b"))
        await until(lambda: again.settled == 1)
        assert bench.happened[3:] == ["lookup ada", "result b"]
        await bench.close()


async def test_what_a_profile_says_is_decided(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        for number, (user, variation_id) in enumerate({"ann": "101", "bob": "102"}.items()):
            bench.book.kept[user] = {"10": variation_id, "99": "kept too"}
            chunk = bench.chunk(body(str(number), user))
            await until(lambda chunk=chunk: chunk.settled == 1)  # type: ignore[misc]
            assert bench.decision(str(number))["variationId"] == variation_id
        bench.book.kept["cid"] = {"99": "kept too"}
        chunk = bench.chunk(body("c", "cid"))
        await until(lambda: chunk.settled == 1)
        assert bench.book.kept["cid"] == {"99": "kept too", "10": bench.decision("c")["variationId"]}
        await bench.close()


@pytest.mark.parametrize("keys", [["kept"], ["kept", "chosen"]], ids=["profile", "profile and prediction"])
async def test_of_a_result_too_large_to_send_nothing_is_saved(stand_ins: StandIns, keys: list[str]) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins, max_result_bytes=5000)
        large = body("a", userAttributes={"text": "x" * 5000}) | {"keys": keys}
        chunk = bench.chunk(large, body("b"), large | {"userId": "bob"})
        await until(lambda: chunk.settled + len(chunk.reasons) == 3)
        assert chunk.reasons == ["result_too_large"] * 2
        # Whoever stands behind it learns for itself.
        assert [one for one in bench.happened if not one.startswith("lookup")] == ["save ada", "result b"]
        assert bench.book.kept == {"ada": {"10": bench.decision("b")["variationId"]}}
        await bench.close()


async def test_a_result_that_grew_while_it_waited_to_be_saved_is_not_saved(
    stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.handlers.facts._MOST_SAVED", 1)
    stand_ins.control("cmab", hold_answers=True)
    async with Transport() as transport:
        bench = Bench(transport, stand_ins, max_result_bytes=5000)
        both = {"keys": ["kept", "chosen"]}
        chunk = bench.chunk(body("a") | both, body("b", "bob") | both)
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 2)
        bench.book.gate.clear()
        stand_ins.control("cmab", hold_answers=False)
        await until(lambda: any(one.startswith("save") for one in bench.happened))
        # The other one waits for the slot, and is decided again by what is in use then.
        await until(lambda: bench.decider.facts._slots.locked() and bool(bench.decider.facts._slots._waiters))
        text = {"id": "1", "key": "text", "type": "string", "defaultValue": "x" * 5000}
        large = [flag("kept", STICKY) | {"variables": [text]}, flag("chosen", BANDIT)]
        bench.datafiles.projects["key"] = bench.project(featureFlags=large)
        bench.book.gate.set()
        await until(lambda: chunk.settled + len(chunk.reasons) == 2)
        assert chunk.reasons == ["result_too_large"]
        assert len(bench.book.kept) == 1
        await bench.close()


async def test_a_project_that_is_replaced_does_not_stay_for_who_waits_for_a_prediction(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        chunk = bench.chunk(body("a", key="chosen"))
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 1)
        part = weakref.ref(bench.datafiles.projects["key"].flags["chosen"].experiments[0].pick)
        assert part() is not None
        bench.datafiles.projects["key"] = bench.project()
        assert part() is None
        stand_ins.control("cmab", hold_answers=False)
        await until(lambda: chunk.settled == 1)
        await bench.close()


async def test_a_request_that_ignores_profiles_neither_looks_nor_waits(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.kept["ada"] = {"10": "101"}
        chunk = bench.chunk(body("a", decideOptions=["IGNORE_USER_PROFILE_SERVICE"]))
        assert chunk.settled == 1
        assert bench.happened == ["result a"]
        await bench.close()


async def test_without_a_readable_profile_nothing_is_saved(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.kept["ada"] = None
        chunk = bench.chunk(body("a"))
        await until(lambda: chunk.settled == 1)
        assert bench.happened == ["lookup ada", "result a"]
        await bench.close()


async def test_later_requests_of_the_user_wait_in_order_and_see_what_was_learned(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.gate.clear()
        first = bench.chunk(body("a"), body("b"))
        second = bench.chunk(body("c"), body("d", "bob", decideOptions=["IGNORE_USER_PROFILE_SERVICE"]))
        assert bench.happened == ["result d"], "others do not wait"
        bench.book.gate.set()
        await until(lambda: first.settled + second.settled == 4)
        assert [one for one in bench.happened if one != "lookup ada"] == [
            "result d",
            "save ada",
            "result a",
            "result b",
            "result c",
        ]
        await bench.close()


async def test_a_bandit_is_asked_for_its_attributes_and_its_choice_is_the_decision(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", variations={"20": ["202"]})
    async with Transport() as transport:
        bench = Bench(transport, stand_ins, sticky=False)
        chunk = bench.chunk(body("a", key="chosen", userAttributes={"plan": "gold", "other": 1}), body("b"))
        await until(lambda: chunk.settled == 2)
        assert bench.decision("a")["variationKey"] == "d"
        (instance,) = stand_ins.ledger("cmab", query="full=1")["instances"]
        assert instance["attributes"] == [{"id": "9", "value": "gold", "type": "custom_attribute"}]
        result = _document(bench.log[0])
        (impression,) = result["tracking"]["impressions"]
        assert (impression["variationId"], impression["cmabUuid"]) == ("202", instance["cmabUUID"])
        # Remembered: the next one, of the same user, is asked for nothing.
        again = bench.chunk(body("c", key="chosen", userAttributes={"plan": "gold"}))
        await until(lambda: again.settled == 1)
        assert stand_ins.ledger("cmab")["predictions"] == 1
        await bench.close()


async def test_a_prediction_that_cannot_be_had_is_an_error_of_its_flag_alone(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", status=500)
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        chunk = bench.chunk(body("a", key="chosen") | {"keys": ["chosen", "kept"]})
        await until(lambda: chunk.settled == 1)
        failed, kept = _document(bench.log[0])["decisions"]
        assert failed["reasons"] == ["Failed to fetch CMAB data for experiment bandit."]
        assert (failed["variationKey"], failed["enabled"]) == ("", False)
        assert kept["variationKey"] in ("a", "b")
        assert bench.book.kept["ada"] == {"10": kept["variationId"]}
        await bench.close()


async def test_options_that_forget_are_followed_once_for_a_request(stand_ins: StandIns) -> None:
    other = rule("30", "other", variation("301", "e")) | {"cmab": {"attributeIds": [], "trafficAllocation": 10_000}}
    stand_ins.control("cmab", variations={"20": ["unknown"], "30": ["301"]})
    async with Transport() as transport:
        bench = Bench(transport, stand_ins, featureFlags=[flag("chosen", BANDIT, other)], experiments=[BANDIT, other])
        chunk = bench.chunk(body("a", key="chosen", decideOptions=["RESET_CMAB_CACHE"]))
        await until(lambda: chunk.settled == 1)
        # The first experiment's choice is not in the datafile, so the second is asked: what the first said is kept.
        assert bench.decision("a")["variationKey"] == "e"
        assert stand_ins.ledger("cmab")["by_rule"] == {"20": 1, "30": 1}
        assert value(bench.metrics, "cmab_cache_entries") == 2
        await bench.close()


async def test_a_chunk_shares_one_look_up_and_one_save(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.kept["bob"] = {"10": "101"}
        users = ("ann", "bob", "cid", "dan")
        chunk = bench.chunk(*(body(user, user) for user in users), body("again", "ann"))
        await until(lambda: chunk.settled == 5)
        assert bench.happened[:2] == ["lookup ann bob cid dan", "result bob"], "who learns nothing is not held up"
        assert bench.happened[2:6] == ["save ann cid dan", "result ann", "result cid", "result dan"]
        assert bench.happened[6:] == ["result again"], "what was just saved holds for who stood in line"
        await bench.close()


async def test_a_look_up_and_a_save_grow_no_further_than_what_is_done_in_time(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        users = [f"user-{number}" for number in range(600)]
        chunk = bench.chunk(*(body(user, user) for user in users))
        await until(lambda: chunk.settled == 600)
        asked = [line.split() for line in bench.happened if not line.startswith("result ")]
        assert [(what, len(named)) for what, *named in asked] == [
            ("lookup", 250), ("save", 250), ("lookup", 250), ("save", 250), ("lookup", 100), ("save", 100),
        ]  # fmt: skip
        assert [name for what, *named in asked if what == "save" for name in named] == users
        await bench.close()


async def test_results_by_profile_name_where_their_requests_lie_and_first_lay(stand_ins: StandIns) -> None:
    replayed = [("pipeline-source", b"old.topic-3-99"), ("pipeline-timestamp", b"1600000000000")]
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        # One that learns, one behind it in line, and one that learns nothing.
        for first, bodies in ((5, (body("a"), body("b"))), (7, (body("c"),))):
            chunk = PublishingChunk(records(*bodies, first=first, headers=replayed), log=bench.log)
            bench.handler.handle(chunk)
            await until(lambda chunk=chunk: chunk.settled == len(chunk.records))  # type: ignore[misc]
        assert [result.headers for result in bench.log] == [[("source", b"topic-0-%d" % at)] for at in (5, 6, 7)]
        identities = {(one["source"], one["timestamp"]) for one in map(_document, bench.log)}
        assert identities == {("old.topic-3-99", 1_600_000_000_000)}
        await bench.close()


async def test_whoever_stood_in_line_and_learns_more_is_saved_too(stand_ins: StandIns) -> None:
    second = rule("30", "second", variation("301", "e"))
    flags = [flag("kept", STICKY), flag("more", second)]
    async with Transport() as transport:
        bench = Bench(transport, stand_ins, featureFlags=flags, experiments=[STICKY, second])
        chunk = bench.chunk(body("a"), body("b"), body("c", key="more"), body("d", key="more"))
        await until(lambda: chunk.settled == 4)
        saved = [at for at, one in enumerate(bench.happened) if one == "save ada"]
        assert len(saved) == 2
        assert bench.happened.index("result b") < saved[1] < bench.happened.index("result c")
        assert [one for one in bench.happened if one.startswith("result")] == [f"result {name}" for name in "abcd"]
        assert bench.book.kept["ada"] == {"10": bench.decision("a")["variationId"], "30": "301"}
        await bench.close()


async def test_many_results_are_saved_in_parts(stand_ins: StandIns) -> None:
    variables = [{"id": "1", "key": "text", "type": "string", "defaultValue": "x" * 30_000}]
    flags = [flag("kept", STICKY, variables=variables)]
    async with Transport() as transport:
        bench = Bench(transport, stand_ins, featureFlags=flags, experiments=[STICKY])
        users = [f"user-{number}" for number in range(100)]
        chunk = bench.chunk(*(body(user, user) for user in users))
        await until(lambda: chunk.settled == 100 and not bench.decider.tasks)
        saves = [one.split()[1:] for one in bench.happened if one.startswith("save")]
        assert [user for saved in saves for user in saved] == users
        assert [one["requestId"] for one in chunk.documents] == users
        assert 2 <= len(saves) <= 4, "over a mebibyte of results is not held"
        await bench.close()


async def test_a_later_request_without_a_profile_does_not_overtake(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.kept |= {"ann": {"10": "101"}, "bob": {"10": "101"}}
        ignoring: dict[str, Any] = {"decideOptions": ["IGNORE_USER_PROFILE_SERVICE"]}
        chunk = bench.chunk(body("a", "ann"), body("b", "bob"), body("c", "ann", **ignoring), body("d", "bob"))
        await until(lambda: chunk.settled == 4)
        results = [one for one in bench.happened if one.startswith("result")]
        assert results.index("result a") < results.index("result c")
        assert results.index("result b") < results.index("result d")
        await bench.close()


async def test_segments_that_are_not_remembered_are_waited_for_by_their_user_alone(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.segments.known = {"bob": frozenset({"gold"})}
        fetching: dict[str, Any] = {"fetchSegments": True}
        chunk = bench.chunk(body("a", **fetching), body("b", "bob", **fetching), body("c"))
        await until(lambda: bench.segments.asked and chunk.settled == 1)
        assert bench.happened == ["lookup ada bob", "save bob", "result b"]
        await bench.segments.tell(0, frozenset({"gold"}))
        await until(lambda: chunk.settled == 3)
        assert bench.happened[3:] == ["save ada", "result a", "lookup ada", "result c"]
        failing = bench.chunk(body("d", **fetching), body("e"))
        await until(lambda: len(bench.segments.asked) == 2)
        await bench.segments.tell(1, SegmentsUnavailable("timeout"))
        await until(lambda: failing.settled == 2)
        assert _document(bench.log[3])["error"] == "failed to fetch qualified segments"
        assert bench.happened[-1] == "result e"
        await bench.close()


async def test_what_was_given_away_is_neither_saved_nor_answered(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.gate.clear()
        chunk = bench.chunk(body("a"), body("b"))
        await until(lambda: bench.happened == ["lookup ada"])
        chunk.abandoned = True
        bench.book.gate.set()
        await until(lambda: not bench.decider.tasks)
        assert bench.happened == ["lookup ada"]
        assert chunk.settled == 0
        await bench.close()


async def test_who_waited_for_segments_keeps_what_was_learned_before(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.kept["ada"] = {"99": "kept too"}
        chunk = bench.chunk(body("a", fetchSegments=True))
        await until(lambda: bench.segments.asked)
        await bench.segments.tell(0)
        await until(lambda: chunk.settled == 1)
        assert bench.book.kept["ada"] == {"99": "kept too", "10": bench.decision("a")["variationId"]}
        await bench.close()


async def test_what_was_given_away_while_its_segments_were_fetched_is_not_saved(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        chunk = bench.chunk(body("a", fetchSegments=True))
        await until(lambda: bench.segments.asked)
        chunk.abandoned = True
        await bench.segments.tell(0)
        await until(lambda: not bench.decider.tasks)
        assert bench.happened == ["lookup ada"]
        assert chunk.settled == 0
        await bench.close()


async def test_a_request_whose_time_ends_during_the_look_up_is_expired_and_teaches_nothing(
    stand_ins: StandIns,
) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.gate.clear()
        chunk = bench.chunk(body("a", ttlMs=1000), body("b"))
        await until(lambda: bench.happened == ["lookup ada"])
        bench.now += 2
        bench.book.gate.set()
        await until(lambda: chunk.settled == 2)
        assert [(one["requestId"], one.get("error")) for one in map(_document, bench.log)] == [
            ("a", "request expired"), ("b", None),
        ]  # fmt: skip
        assert bench.happened == ["lookup ada", "result a", "lookup ada", "save ada", "result b"]
        assert value(bench.metrics, "decide_requests_total", outcome="expired") == 1
        await bench.close()


async def test_a_request_whose_time_ends_while_it_is_predicted_is_expired(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        chunk = bench.chunk(body("a", key="chosen", ttlMs=1000))
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 1)
        bench.now += 2
        stand_ins.control("cmab", hold_answers=False)
        await until(lambda: chunk.settled == 1)
        assert [one["error"] for one in map(_document, bench.log)] == ["request expired"]
        assert value(bench.metrics, "decide_requests_total", outcome="expired") == 1
        await bench.close()


async def test_a_sticky_users_segments_are_asked_for_beside_the_profile_and_fail_alone(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.gate.clear()
        chunk = bench.chunk(body("a", fetchSegments=True), body("b", fetchSegments=True), body("c"))
        assert len(bench.segments.asked) == 2, "only after the look-up"
        bench.book.gate.set()
        await bench.segments.tell(0, SegmentsUnavailable("invalid_identifier"))
        await bench.segments.tell(1, SegmentsUnavailable("expired"))
        await until(lambda: chunk.settled == 3)
        assert [(one["requestId"], one.get("error")) for one in map(_document, bench.log)] == [
            ("a", "failed to fetch qualified segments"), ("b", "request expired"), ("c", None),
        ]  # fmt: skip
        await bench.close()


async def test_what_was_given_away_while_it_was_predicted_is_not_counted(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with Transport() as transport:
        bench = Bench(transport, stand_ins, sticky=False)
        chunk = bench.chunk(body("a", key="chosen"))
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 1)
        chunk.abandoned = True
        stand_ins.control("cmab", hold_answers=False)
        await until(lambda: not bench.decider.tasks)
        bench.chunk(body("b", "bob"))
        assert bench.happened == ["result b"]
        assert value(bench.metrics, "decide_requests_total", outcome="decided") == 1
        await bench.close()


async def test_segments_that_fail_leave_no_cycles_behind(stand_ins: StandIns) -> None:
    # What is garbage while a datafile is compiled is never collected.
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        for turn, users in enumerate((2, 50)):
            gc.collect()
            gc.disable()
            try:
                chunk = bench.chunk(*(body(f"{turn}-{n}", f"{turn}-{n}", fetchSegments=True) for n in range(users)))
                await until(lambda users=users: len(bench.segments.asked) == users)  # type: ignore[misc]
                for number in range(users):
                    await bench.segments.tell(number, SegmentsUnavailable("timeout"))
                await until(lambda chunk=chunk, users=users: chunk.settled == users)  # type: ignore[misc]
                bench.segments.asked.clear()
                left = gc.collect()
            finally:
                gc.enable()
        assert left < 50, "not even one object a failure"
        await bench.close()


async def test_of_a_batch_from_several_chunks_each_is_looked_at(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.kept["bea"] = {"10": "101"}
        bench.book.gate.clear()
        bench.chunk(body("held", "hans"))
        await until(lambda: bench.happened == ["lookup hans"])
        given_away, kept = bench.chunk(body("b", "bob"), body("c", "bea")), bench.chunk(body("a", "ann"))
        given_away.abandoned = True
        bench.book.gate.set()
        await until(lambda: not bench.decider.tasks)
        assert bench.happened == [
            "lookup hans", "save hans", "result held", "lookup bob bea ann", "save ann", "result a",
        ]  # fmt: skip
        assert (kept.settled, given_away.settled) == (1, 0)
        await bench.close()


async def test_what_was_given_away_after_it_was_decided_is_not_saved(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.gate.clear()
        bench.chunk(body("held", "hans"))
        await until(lambda: bench.happened == ["lookup hans"])
        # The twenty of one turn, and one more who has to wait for room after them.
        given_away = bench.chunk(*(body(str(number), f"user-{number}") for number in range(20)))
        full = PublishingChunk(records(body("a", "ann"), first=100), log=bench.log, has_room=False)
        bench.handler.handle(full)
        bench.book.gate.set()
        await until(lambda: full.held_back)
        given_away.abandoned = True
        full.let_go_on()
        await until(lambda: not bench.decider.tasks)
        assert bench.happened[-2:] == ["save ann", "result a"]
        assert (full.settled, given_away.settled) == (1, 0)
        await bench.close()


async def test_what_was_given_away_while_many_are_saved_is_not_published(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.gate.clear()
        chunk = bench.chunk(body("a"), body("b", "bob"), body("c"))
        await until(lambda: bench.happened == ["lookup ada bob"])
        bench.book.gate.set()
        bench.book.gate.clear()
        await until(lambda: bench.happened == ["lookup ada bob", "save ada bob"])
        chunk.abandoned = True
        bench.book.gate.set()
        await until(lambda: not bench.decider.tasks)
        assert (chunk.settled, len(bench.happened)) == (0, 2)
        await bench.close()


async def test_between_twenty_users_and_the_next_twenty_others_have_their_turn(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        users = [f"user-{number}" for number in range(70)]
        bench.book.kept |= {user: {"10": "101"} for user in users}
        chunk = bench.chunk(*(body(user, user) for user in users))
        seen: set[int] = set()
        async with asyncio.timeout(5):
            while chunk.settled < len(users):
                seen.add(chunk.settled)
                await asyncio.sleep(0)
        assert seen == {0, 20, 40, 60}
        await bench.close()


async def test_what_was_given_away_while_it_was_to_be_saved_is_not_published(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.gate.clear()
        chunk = bench.chunk(body("a", fetchSegments=True), body("b", "bob"))
        bench.book.gate.set()
        await until(lambda: bench.segments.asked and "save bob" in bench.happened)
        bench.book.gate.clear()
        await bench.segments.tell(0, frozenset({"gold"}))
        await until(lambda: bench.happened[-1] == "save ada")
        chunk.abandoned = True
        bench.book.gate.set()
        await until(lambda: not bench.decider.tasks)
        assert "result a" not in bench.happened
        await bench.close()


async def test_a_partition_without_room_does_not_stop_the_others(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", variations={"20": ["202"]})
    async with Transport() as transport:
        bench = Bench(transport, stand_ins, sticky=False)
        users = [f"user-{number}" for number in range(600)]
        full = PublishingChunk(
            records(*(body(user, user, key="chosen") for user in users)), log=bench.log, has_room=False
        )
        bench.handler.handle(full)
        other = PublishingChunk(records(body("free", key="chosen"), first=1000), log=bench.log)
        bench.decider.handler().handle(other)
        await until(lambda: other.settled == 1)
        assert full.settled == 0
        full.has_room = True
        full.let_go_on()
        await until(lambda: full.settled == 600)
        await bench.close()


async def test_a_prediction_that_comes_when_there_is_no_room_waits_for_it(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with Transport() as transport:
        bench = Bench(transport, stand_ins, sticky=False)
        chunk = bench.chunk(body("a", key="chosen"))
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 1)
        chunk.has_room = False
        stand_ins.control("cmab", hold_answers=False)
        await until(lambda: chunk.held_back)
        assert chunk.settled == 0
        chunk.let_go_on()
        await until(lambda: chunk.settled == 1)
        await bench.close()


async def test_of_many_who_are_saved_one_by_one_fifty_are_at_a_time_and_no_room_keeps_the_others(
    stand_ins: StandIns,
) -> None:
    users = [f"user-{number}" for number in range(60)]
    saves = [f"save {user}" for user in users]
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        chunk = bench.chunk(*(body(user, user, fetchSegments=True) for user in users))
        # Each waits for its segments by itself only once its profile was looked up.
        await until(lambda: len(asyncio.all_tasks()) > 60)
        bench.book.gate.clear()
        for number in range(60):
            await bench.segments.tell(number)
        await until(lambda: bench.happened[1:] == saves[:50])
        for _ in range(10):
            await asyncio.sleep(0)
        assert bench.happened[1:] == saves[:50]
        # They are decided when it is their turn to be saved, whatever became of the room meanwhile.
        bench.datafiles.projects["key"] = bench.project(revision="99")
        chunk.has_room = False
        bench.book.gate.set()
        await until(lambda: chunk.settled == 60)
        assert [one["revision"] for one in chunk.documents] == ["7"] * 50 + ["99"] * 10
        await bench.close()


async def test_results_are_made_only_when_there_is_room_for_them(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        made = PublishingChunk(records(body("a")), log=bench.log, has_room=False)
        bench.handler.handle(made)
        await until(lambda: made.held_back)
        assert bench.happened == ["lookup ada"]
        made.let_go_on()
        await until(lambda: made.settled == 1)
        assert bench.happened == ["lookup ada", "save ada", "result a"]
        await bench.close()


async def test_a_datafile_that_is_replaced_meanwhile_decides(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.gate.clear()
        chunk = bench.chunk(body("a"))
        await until(lambda: bench.happened == ["lookup ada"])
        bench.datafiles.projects["key"] = bench.project(revision="99")
        bench.book.gate.set()
        await until(lambda: chunk.settled == 1)
        assert _document(bench.log[0])["revision"] == "99"
        await bench.close()


async def test_a_datafile_that_is_gone_meanwhile_is_an_error_for_all_who_stand_in_line(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.gate.clear()
        chunk = bench.chunk(body("a"), body("b"), body("c", "bob"))
        await until(lambda: bench.happened == ["lookup ada bob"])
        bench.datafiles.errors["key"] = "the key was revoked"
        del bench.datafiles.projects["key"]
        bench.book.gate.set()
        await until(lambda: chunk.settled == 3)
        assert {one["requestId"]: one["error"] for one in chunk.documents} == {
            "a": "failed to fetch qualified segments",
            "b": "the key was revoked",
            "c": "failed to fetch qualified segments",
        }
        assert value(bench.metrics, "decide_requests_total", outcome="error") == 3
        await bench.close()


async def test_a_stop_answers_nobody(stand_ins: StandIns) -> None:
    async with Transport() as transport:
        bench = Bench(transport, stand_ins)
        bench.book.gate.clear()
        chunk = bench.chunk(body("a"))
        await until(lambda: bench.happened == ["lookup ada"])
        await bench.close()
        assert (chunk.settled, bench.log) == (0, [])
