"""Predictions over a real socket: what is asked, what is remembered, and what becomes of failures."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from optimizely.cmab.cmab_client import DefaultCmabClient
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from structlog.testing import capture_logs

from pipeline.cmab import Predictions, circuits
from pipeline.decision import Prediction, Wanted
from pipeline.limits import Backoff
from pipeline.metrics import Metrics
from pipeline.sandbox.processes import StandIns
from pipeline.settings import CmabSettings
from pipeline.transport import Transport
from tests.patience import PATIENCE, stretched
from tests.settled import until

pytestmark = pytest.mark.asyncio
RULE = "7001"
NO_OPTIONS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Noting(Backoff):
    """No pause at all; notes how many failures in a row it was asked for."""

    noted: list[int] = field(default_factory=list)

    def delay(self, failures: int, retry_after: float | None = None) -> float:
        self.noted.append(failures)
        return 0.0


class Opened:
    def __init__(
        self, stand_ins: StandIns, transport: Transport, settings: dict[str, Any], backoff: Backoff | None
    ) -> None:
        self.stand_ins = stand_ins
        self.metrics = Metrics(CollectorRegistry())
        own = {"prediction_url_template": stand_ins.prediction_url_template} | settings
        self.predictions = Predictions(
            transport=transport, settings=CmabSettings(**own), metrics=self.metrics,
            backoff=backoff or Backoff(0.01, 0.02),
        )  # fmt: skip

    async def ask(self, user: str = "ann", *rules: str, options: frozenset[str] = NO_OPTIONS, **attributes: Any) -> Any:
        wanted = [Wanted(rule, attributes) for rule in rules or (RULE,)]
        found = await self.predictions.ask(user, wanted, options)
        return found if rules else found[RULE]

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"decision_pipeline_{name}", labels) or 0.0

    @property
    def asked(self) -> int:
        return int(self.stand_ins.ledger("cmab")["predictions"])

    @property
    def instances(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.stand_ins.ledger("cmab", query="full=1")["instances"]
        return found


@asynccontextmanager
async def opened(stand_ins: StandIns, *, backoff: Backoff | None = None, **settings: Any) -> AsyncIterator[Opened]:
    async with Transport() as transport:
        made = Opened(stand_ins, transport, settings, backoff)
        try:
            yield made
        finally:
            await made.predictions.close()


async def test_a_question_is_as_documented_and_the_answer_carries_its_id(stand_ins: StandIns) -> None:
    async with opened(stand_ins) as made:
        attributes: dict[str, Any] = {"11": "gold", "12": 7.5, "13": True}
        found = await made.ask("žiga", **attributes)
        assert isinstance(found, Prediction)
        (instance,) = made.instances
        assert instance == {
            "visitorId": "žiga", "experimentId": RULE, "cmabUUID": found.uuid,
            "attributes": [
                {"id": "11", "value": "gold", "type": "custom_attribute"},
                {"id": "12", "value": 7.5, "type": "custom_attribute"},
                {"id": "13", "value": True, "type": "custom_attribute"},
            ],
        }  # fmt: skip
        assert found.variation_id in {f"{RULE}1", f"{RULE}2"}
        assert made.count("cmab_requests_total", outcome="ok") == 1
        assert made.count("cmab_request_seconds_count") == 1


async def test_the_rule_is_percent_encoded_in_the_address(stand_ins: StandIns) -> None:
    async with opened(stand_ins) as made:
        found = await made.ask("ann", "a/b?c")
        assert found["a/b?c"] is not None


async def test_several_rules_are_asked_at_once(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", latency=0.2)
    async with opened(stand_ins) as made:
        found = await made.ask("ann", "1", "2", "3")
        assert stand_ins.ledger("cmab")["most_in_flight"] == 3
        assert all(found.values())
        assert found.keys() == {"1", "2", "3"}


async def test_the_same_attributes_are_not_asked_about_again_and_others_are(stand_ins: StandIns) -> None:
    async with opened(stand_ins) as made:
        first = await made.ask(a="x", b=1)
        assert await made.ask(b=1, a="x") == first, "their order does not matter"
        assert made.asked == 1
        second = await made.ask(a="x", b=2)
        assert second.uuid != first.uuid
        assert await made.ask(a="x", b=2) == second
        assert made.asked == 2
        # Of a user and a rule the last one only is remembered.
        third = await made.ask(a="x", b=1)
        assert third.uuid not in (first.uuid, second.uuid)
        assert (await made.ask("bob", a="x", b=1)).uuid != third.uuid
        assert made.count("cmab_lookups_total", outcome="hit") == 2
        assert made.count("cmab_lookups_total", outcome="miss") == 4
        assert made.count("cmab_cache_entries") == 2


async def test_it_is_remembered_for_so_long_and_for_so_many(stand_ins: StandIns) -> None:
    async with opened(stand_ins, cache_size=1) as made:
        first = await made.ask("ann")
        await made.ask("bob")
        assert (await made.ask("ann")).uuid != first.uuid
        assert made.count("cmab_cache_evictions_total") == 2
    async with opened(stand_ins, cache_size=0) as made:
        assert (await made.ask()).uuid != (await made.ask()).uuid
    async with opened(stand_ins, cache_timeout=0.05) as made:
        first = await made.ask()
        async with asyncio.timeout(PATIENCE):
            while await made.ask() == first:  # noqa: ASYNC110 - the cache's own clock
                await asyncio.sleep(0.01)


async def test_ignore_neither_looks_nor_remembers(stand_ins: StandIns) -> None:
    async with opened(stand_ins) as made:
        kept = await made.ask()
        passing = await made.ask(options=frozenset({"IGNORE_CMAB_CACHE", "RESET_CMAB_CACHE"}))
        assert passing.uuid != kept.uuid
        assert await made.ask() == kept
        assert made.count("cmab_lookups_total", outcome="bypass") == 1


async def test_reset_forgets_everybody_and_invalidate_one_user_in_one_rule(stand_ins: StandIns) -> None:
    async with opened(stand_ins) as made:
        ann, bob = await made.ask("ann", "1", "2"), await made.ask("bob")
        again = await made.ask("ann", "1", options=frozenset({"INVALIDATE_USER_CMAB_CACHE"}))
        assert again["1"].uuid != ann["1"].uuid
        assert await made.ask("ann", "1", "2") == {"1": again["1"], "2": ann["2"]}
        await made.ask("cid", options=frozenset({"RESET_CMAB_CACHE"}))
        assert (await made.ask("bob")).uuid != bob.uuid
        assert made.count("cmab_cache_entries") == 2


async def test_after_a_reset_nothing_asked_for_before_is_taken_or_remembered(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    reset = frozenset({"RESET_CMAB_CACHE"})
    async with opened(stand_ins) as made:
        before = [asyncio.ensure_future(made.ask(user)) for user in ("ann", "bob")]
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 2)
        after = asyncio.ensure_future(made.ask("ann", options=reset))
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 3)
        stand_ins.control("cmab", hold_answers=False)
        ann, bob = await asyncio.gather(*before)
        assert ann.uuid != (await after).uuid
        assert await made.ask("ann") == await after
        assert (await made.ask("bob")).uuid != bob.uuid


async def test_whoever_asks_the_same_waits_for_one_answer(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", latency=0.1)
    async with opened(stand_ins) as made:
        found = await asyncio.gather(*(made.ask() for _ in range(20)))
        assert len(set(found)) == 1
        assert made.asked == 1
        # One that gives up does not take the answer from the others.
        impatient, patient = (asyncio.ensure_future(made.ask("bob")) for _ in range(2))
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 2)
        impatient.cancel()
        assert await patient is not None


async def test_an_invalidated_question_under_way_is_not_remembered(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with opened(stand_ins) as made:
        before = asyncio.ensure_future(made.ask())
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 1)
        after = asyncio.ensure_future(made.ask(options=frozenset({"INVALIDATE_USER_CMAB_CACHE"})))
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 2)
        stand_ins.control("cmab", hold_answers=False)
        assert (await before).uuid != (await after).uuid
        assert await made.ask() == await after


async def test_a_failure_is_tried_once_more_and_then_no_prediction(stand_ins: StandIns) -> None:
    async with opened(stand_ins) as made:
        stand_ins.control("cmab", fail_next=1)
        assert await made.ask() is not None
        assert made.count("cmab_requests_total", outcome="retried") == 1
        stand_ins.control("cmab", fail_next=4)
        assert await made.ask("bob") is None
        assert await made.ask("bob") is None
        assert made.count("cmab_requests_total", outcome="failed") == 2
        assert await made.ask("bob") is not None, "a failure is not remembered"


async def test_a_service_that_does_not_answer_is_asked_now_and_then_and_nobody_waits_for_it(
    stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins.control("cmab", status=503)
    async with opened(stand_ins, retries=0) as made:
        for number in range(200):
            assert await made.ask(f"user {number}") is None
        asked = stand_ins.ledger("cmab")["requests"]
        assert 5 <= asked < 100, "the first five, and now and then one"
        assert made.count("cmab_requests_total", outcome="failed") == asked
        assert made.count("cmab_requests_total", outcome="held") == 200 - asked
        assert made.count("upstream_blocked", upstream="cmab", reason="unavailable") == 1
        assert made.count("upstream_last_response_timestamp_seconds", upstream="cmab") == 0
        stand_ins.control("cmab", status=None)
        async with asyncio.timeout(PATIENCE):
            while await made.ask() is None:  # noqa: ASYNC110 - a pause of the client's own
                await asyncio.sleep(0.005)
        assert await made.ask("another") is not None
        assert made.count("upstream_blocked", upstream="cmab", reason="unavailable") == 0
        assert made.count("upstream_last_response_timestamp_seconds", upstream="cmab") > 0
    said = "".join(capsys.readouterr())
    assert said.count("predictions fail") == 1
    assert said.count("predictions are back") == 1
    assert said.count("the prediction service does not answer") == 1
    assert said.count("the prediction service answers again") == 1


async def test_a_silent_service_holds_up_a_full_chunk_for_one_deadline(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    settings: dict[str, Any] = {"fetch_deadline": 0.5, "request_timeout": 10, "max_in_flight": 4}
    async with opened(stand_ins, **settings) as made:
        async with asyncio.timeout(stretched(3)):
            assert await asyncio.gather(*(made.ask(f"user {number}") for number in range(500))) == [None] * 500
            assert await asyncio.gather(*(made.ask(f"late {number}") for number in range(500))) == [None] * 500
        stand_ins.control("cmab", hold_answers=False)


async def test_who_waits_for_a_slot_goes_without_when_the_service_turns_out_to_be_down(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with opened(stand_ins, retries=0, request_timeout=0.1, fetch_deadline=60, max_in_flight=2) as made:
        assert await asyncio.gather(*(made.ask(f"user {number}") for number in range(100))) == [None] * 100
        assert made.count("cmab_requests_total", outcome="held") > 50
        stand_ins.control("cmab", hold_answers=False)


async def test_after_a_pause_one_finds_out_for_all_and_what_was_never_answered_counts(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with opened(stand_ins, retries=0, request_timeout=10, fetch_deadline=0.1) as made:
        twenty = [f"user {number}" for number in range(20)]
        assert await asyncio.gather(*map(made.ask, twenty)) == [None] * 20
        assert made.count("cmab_requests_total", outcome="failed") == 20
        asked = made.count("cmab_request_seconds_count")
        stand_ins.control("cmab", hold_answers=False, status=503)
        async with asyncio.timeout(PATIENCE):
            while made.count("cmab_request_seconds_count") == asked:
                assert await asyncio.gather(*map(made.ask, twenty)) == [None] * 20
        assert made.count("cmab_request_seconds_count") - asked < 10
        assert made.count("cmab_requests_total", outcome="held") > 10


async def test_the_pauses_of_an_outage_grow_from_the_fifth_failure_on(stand_ins: StandIns) -> None:
    backoff = Noting()
    stand_ins.control("cmab", status=503)
    async with opened(stand_ins, retries=0, backoff=backoff) as made:
        for number in range(8):
            assert await made.ask(f"user {number}") is None
        assert backoff.noted == [1, 1, 1, 1, 1, 2, 3, 4]
        stand_ins.control("cmab", status=None)
        assert await made.ask() is not None
        stand_ins.control("cmab", status=503)
        assert await made.ask("late") is None
        assert backoff.noted[8:] == [1], "from the beginning, after an answer"


async def test_each_line_counts_the_failures_since_the_one_before(
    stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins.control("cmab", status=503)
    async with opened(stand_ins, retries=0, backoff=Noting()) as made:
        with capture_logs() as logs:
            for number in range(7):
                monkeypatch.setattr(circuits, "_TOLD_SECONDS", 600.0 if 3 <= number < 6 else 0.0)
                assert await made.ask(f"user {number}") is None
            stand_ins.control("cmab", status=None)
            assert await made.ask() is not None
    of_rules = [one for one in logs if "rule" in one]
    assert [one.get("failures") for one in of_rules] == [1, 1, 1, 4, None]
    assert of_rules[-1]["event"] == "predictions are back"


async def test_one_that_finds_out_is_one_failure_however_often_it_is_tried(stand_ins: StandIns) -> None:
    backoff = Noting()
    stand_ins.control("cmab", status=503)
    async with opened(stand_ins, retries=1, backoff=backoff) as made:
        for number in range(7):
            assert await made.ask(f"user {number}") is None
    # Of each request a pause before its second try, and one after that; the last two found out for others.
    assert backoff.noted == [1, 1] * 5 + [1, 2] + [1, 3]


@pytest.mark.parametrize("fault", [{"answer": {}}, {"status": 400}])
async def test_nonsense_and_refusals_are_no_outage(stand_ins: StandIns, fault: dict[str, Any]) -> None:
    stand_ins.control("cmab", **fault)
    async with opened(stand_ins, retries=0) as made:
        for number in range(40):
            assert await made.ask(f"user {number}") is None
        assert stand_ins.ledger("cmab")["requests"] == 40
        assert made.count("cmab_requests_total", outcome="held") == 0


async def test_who_waits_to_try_again_leaves_the_slot_to_others(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", fail_next=1)
    settings: dict[str, Any] = {"max_in_flight": 1, "request_timeout": 60, "fetch_deadline": 60}
    async with opened(stand_ins, backoff=Backoff(60, 60), **settings) as made:
        waiting = asyncio.ensure_future(made.ask("ann"))
        await until(lambda: made.count("cmab_request_seconds_count") == 1)
        async with asyncio.timeout(stretched(5)):
            assert await made.ask("bob") is not None
        assert not waiting.done()
        await made.predictions.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_some_failures_among_many_are_no_outage_and_no_flood_of_lines(
    stand_ins: StandIns, capsys: pytest.CaptureFixture[str]
) -> None:
    async with opened(stand_ins, retries=0) as made:
        for number in range(40):
            stand_ins.control("cmab", fail_next=number % 2)
            assert (await made.ask(f"user {number}") is None) == bool(number % 2)
        assert made.count("cmab_requests_total", outcome="held") == 0
        assert made.count("cmab_requests_total", outcome="failed") == 20
    said = "".join(capsys.readouterr())
    assert said.count("predictions") == 1


async def test_failures_leave_no_cycles_behind(stand_ins: StandIns) -> None:
    # What is garbage while a datafile is compiled is never collected.
    stand_ins.control("cmab", answer={})
    async with opened(stand_ins, retries=0) as made:
        await made.ask("warm")
        gc.collect()
        gc.disable()
        try:
            for number in range(50):
                await made.ask(f"user {number}")
            assert gc.collect() < 50, "not even one object a failure"
        finally:
            gc.enable()


async def test_what_no_longer_holds_does_not_come_back_when_the_question_fails(stand_ins: StandIns) -> None:
    async with opened(stand_ins, retries=0) as made:
        invalidated, changed = await made.ask("ann"), await made.ask("bob", a=1)
        stand_ins.control("cmab", status=500)
        assert await made.ask("ann", options=frozenset({"INVALIDATE_USER_CMAB_CACHE"})) is None
        assert await made.ask("bob", a=2) is None
        stand_ins.control("cmab", status=None)
        assert (await made.ask("ann")).uuid != invalidated.uuid
        assert (await made.ask("bob", a=1)).uuid != changed.uuid


async def test_what_is_refused_is_not_tried_again(stand_ins: StandIns) -> None:
    async with opened(stand_ins) as made:
        stand_ins.control("cmab", fail_next=1, fail_status=400)
        assert await made.ask() is None
        assert made.count("cmab_requests_total", outcome="retried") == 0


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"predictions": []},
        {"predictions": [{}]},
        {"predictions": [None]},
        {"predictions": None},
        {"predictions": {"variation_id": "7"}},
        [],
    ],
)
async def test_an_answer_without_a_variation_is_a_failure(stand_ins: StandIns, answer: Any) -> None:
    stand_ins.control("cmab", answer=answer)
    async with opened(stand_ins) as made:
        assert await made.ask() is None
        assert made.count("cmab_requests_total", outcome="failed") == 1
        assert stand_ins.ledger("cmab")["answered_otherwise"] == 2


async def test_an_answer_that_is_no_json_is_a_failure(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", status=200)
    async with opened(stand_ins) as made:
        assert await made.ask() is None
        assert made.count("cmab_requests_total", outcome="failed") == 1
        assert stand_ins.ledger("cmab")["requests"] == 2


@pytest.mark.parametrize(
    ("predictions", "read"),
    [
        ([{"variation_id": 7}], "7"),
        ([{"variation_id": "7"}, {}], "7"),
        ([{"variation_id": "7"}, None], "7"),
        ([{"variation_id": None}], "None"),
    ],
)
async def test_the_first_prediction_is_read_as_the_sdk_reads_it(
    stand_ins: StandIns, predictions: list[Any], read: str
) -> None:
    stand_ins.control("cmab", answer={"predictions": predictions})
    async with opened(stand_ins) as made:
        assert (await made.ask()).variation_id == read
    sdk = DefaultCmabClient(prediction_endpoint=stand_ins.prediction_url_template.replace("%s", "{}"))
    assert await asyncio.to_thread(sdk.fetch_decision, RULE, "ann", {}, str(uuid4())) == read


async def test_nobody_waits_beyond_the_deadline(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with opened(stand_ins, request_timeout=0.1, retries=1) as made:
        async with asyncio.timeout(stretched(2)):
            assert await made.ask() is None
        # What the service asks for is not waited for longer than a request.
        stand_ins.control("cmab", hold_answers=False, fail_next=1, fail_status=429, retry_after=60)
        async with asyncio.timeout(stretched(2)):
            assert await made.ask("bob") is not None


async def test_requests_and_waiting_users_are_bounded(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with opened(stand_ins, max_in_flight=2, max_waiting=3) as made:
        waiting = [asyncio.ensure_future(made.ask(f"user {number}")) for number in range(3)]
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 2)
        assert await made.ask("one too many") is None
        assert made.count("cmab_requests_total", outcome="overloaded") == 1
        stand_ins.control("cmab", hold_answers=False)
        assert all(await asyncio.gather(*waiting))
        assert stand_ins.ledger("cmab")["most_in_flight"] == 2


async def test_attributes_that_no_json_can_hold_give_no_prediction(stand_ins: StandIns) -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    async with opened(stand_ins) as made:
        for options in (NO_OPTIONS, frozenset({"IGNORE_CMAB_CACHE"})):
            assert await made.ask(a=deep, options=options) is None
        assert made.asked == 0


async def test_a_stop_cancels_who_waits(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with opened(stand_ins) as made:
        waiting = asyncio.ensure_future(made.ask())
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 1)
        await made.predictions.close()
        for late in (waiting, made.ask("bob")):
            with pytest.raises(asyncio.CancelledError):
                await late


@pytest.mark.parametrize("template", ["https://example", "https://example/%s/%s", "example/%s"])
async def test_the_address_has_one_place_for_the_rule(template: str) -> None:
    with pytest.raises(ValidationError):
        CmabSettings(prediction_url_template=template)
