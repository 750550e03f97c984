"""Outages of the prediction service and of single rules: who is asked, who goes without, and when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from pipeline.cmab import circuits
from pipeline.cmab.circuits import Circuits
from pipeline.limits import Backoff
from pipeline.outage import Upstream
from pipeline.sandbox.processes import StandIns
from tests.cmab.test_predictions import Opened, opened
from tests.handlers.chunks import new_metrics
from tests.patience import PATIENCE, stretched
from tests.settled import until

WELL, ILL = "7001", "7002"
LONG = Backoff(0.01, 10 * PATIENCE)
"""Pauses are short; one that finds out and tells nobody is overdue only after the test."""


NEVER = Backoff(10 * PATIENCE, 10 * PATIENCE)


def circuits_of(
    backoff: Backoff, *, overdue: float = 60.0, most_probes: int = 10, upstream: Upstream | None = None
) -> Circuits:
    upstream = upstream or Upstream("cmab", new_metrics())
    return Circuits(backoff, overdue=overdue, most_probes=most_probes, upstream=upstream)


def open_circuit(kept: Circuits, rule: str) -> None:
    for _ in range(5):
        kept.failed(rule, probed=False)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - pauses of the client's own
            await asyncio.sleep(0.005)


async def _fail(made: Opened, *rules: str, times: int = 5) -> None:
    for number in range(times):
        found = await made.ask(f"fails {number}", *rules)
        assert all(one is None for one in found.values())


def answers(made: Opened, rule: str) -> Callable[[], Awaitable[bool]]:
    async def told() -> bool:
        return (await made.ask("again", rule))[rule] is not None

    return told


@pytest.mark.asyncio
@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize("fault", [{"hold_answers": True}, {"status": 503}], ids=["silent", "503"])
async def test_who_finds_out_has_all_its_tries_and_soon_knows(
    stand_ins: StandIns, retries: int, fault: dict[str, Any]
) -> None:
    async with opened(stand_ins, backoff=LONG, retries=retries, request_timeout=0.1) as made:
        stand_ins.control("cmab", **fault)
        await _fail(made, WELL)
        # The one that finds out now fails in each of its tries, and the next may ask soon.
        failed = made.count("cmab_requests_total", outcome="failed")
        asked = made.count("cmab_request_seconds_count")

        async def another_failed() -> bool:
            await made.ask("finds out", WELL)
            return made.count("cmab_requests_total", outcome="failed") > failed

        await _until(another_failed)
        assert made.count("cmab_request_seconds_count") - asked == 1 + retries
        stand_ins.control("cmab", hold_answers=False, status=None)
        await _until(answers(made, WELL))


@pytest.mark.asyncio
async def test_one_rules_fault_is_no_others(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", rule_status={ILL: 500})
    async with opened(stand_ins, backoff=LONG, retries=0) as made:
        for number in range(40):
            found = await made.ask(f"user {number}", WELL, ILL)
            assert (found[WELL] is None, found[ILL]) == (False, None)
        assert made.count("cmab_requests_total", outcome="held") > 10, "of the rule that fails"
        stand_ins.control("cmab", rule_status={})
        await _until(answers(made, ILL))


@pytest.mark.asyncio
async def test_who_is_never_asked_says_nothing_of_the_service(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", hold_answers=True)
    async with opened(stand_ins, backoff=NEVER, retries=0, fetch_deadline=0.2, max_in_flight=1) as made:
        assert await asyncio.gather(*(made.ask(f"user {number}") for number in range(20))) == [None] * 20
        assert made.count("cmab_request_seconds_count") < 5
        assert made.count("cmab_requests_total", outcome="failed") == 20
        stand_ins.control("cmab", hold_answers=False)
        await made.ask("another")
        assert made.count("cmab_requests_total", outcome="held") == 0


@pytest.mark.asyncio
async def test_a_deadline_in_a_pause_is_no_further_failure(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", status=503, retry_after=60)
    async with opened(stand_ins, backoff=NEVER, retries=1, request_timeout=60, fetch_deadline=0.5) as made:
        assert await asyncio.gather(*(made.ask(f"user {number}") for number in range(4))) == [None] * 4
        await made.ask("another")
        assert made.count("cmab_request_seconds_count") == 5, "nobody is held after four failures"


@pytest.mark.asyncio
async def test_a_rule_that_is_refused_is_answered(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", rule_status={ILL: 503})
    async with opened(stand_ins, backoff=LONG, retries=0) as made:
        await _fail(made, ILL)
        stand_ins.control("cmab", rule_status={ILL: 400})

        async def is_asked_again() -> bool:
            await made.ask("finds out", ILL)
            return bool(stand_ins.ledger("cmab")["requests"] > 5)

        await _until(is_asked_again)
        held = made.count("cmab_requests_total", outcome="held")
        await _fail(made, ILL, times=20)
        assert made.count("cmab_requests_total", outcome="held") == held


@pytest.mark.asyncio
@pytest.mark.parametrize("back", [True, False])
async def test_who_was_asked_once_has_all_its_tries(stand_ins: StandIns, back: bool) -> None:
    stand_ins.control("cmab", **({"fail_next": 50, "fail_status": 503} if back else {"status": 503}))
    async with opened(stand_ins, retries=1, max_in_flight=100) as made:
        users = [f"user {number}" for number in range(50)]
        found = await asyncio.gather(*map(made.ask, users))
        assert sum(one is None for one in found) == (0 if back else 50), "many at once are one blip"
        assert made.count("cmab_requests_total", outcome="retried") == 50
        assert made.count("cmab_requests_total", outcome="held") == 0


@pytest.mark.asyncio
async def test_who_is_held_waits_for_no_slot(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", rule_status={ILL: 503})
    async with opened(stand_ins, backoff=NEVER, retries=0, fetch_deadline=60, max_in_flight=1) as made:
        await _fail(made, ILL)
        stand_ins.control("cmab", hold_answers=True)
        slow = asyncio.ensure_future(made.ask("slow", WELL))
        await until(lambda: stand_ins.ledger("cmab")["requests"] == 6)
        async with asyncio.timeout(stretched(5)):
            assert await made.ask("another", ILL) == {ILL: None}
        stand_ins.control("cmab", hold_answers=False)
        assert (await slow)[WELL] is not None


def test_one_at_a_time_finds_out_until_it_is_overdue_and_few_of_all_rules() -> None:
    kept = circuits_of(Backoff(0.0, 0.0), overdue=60.0, most_probes=2)
    for rule in "abc":
        assert not kept.probes(rule)
        open_circuit(kept, rule)
    assert (kept.probes("a"), kept.holds("a"), kept.holds("b")) == (True, True, False)
    assert (kept.probes("b"), kept.holds("c")) == (True, True), "half of the slots are for others"
    kept.probed()
    assert (kept.holds("c"), kept.holds("a")) == (False, True)
    kept.failed("a", probed=True)
    assert not kept.holds("a")


@pytest.mark.asyncio
async def test_one_that_is_overdue_is_not_waited_for() -> None:
    kept = circuits_of(Backoff(0.0, 0.0), overdue=0.05)
    open_circuit(kept, ILL)
    assert kept.probes(ILL)
    assert kept.holds(ILL)
    await until(lambda: not kept.holds(ILL))


@pytest.mark.asyncio
async def test_whoever_finds_out_makes_room_for_the_next(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", status=503)
    async with opened(stand_ins, backoff=Backoff(0.0, 0.0), retries=0, max_in_flight=2) as made:
        await _fail(made, WELL, times=30)
        assert made.count("cmab_requests_total", outcome="held") == 0, "each found out, one after another"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "fault", [{"status": 503, "retry_after": 60}, {"hold_answers": True}], ids=["paused", "silent"]
)
async def test_who_finds_out_and_meets_the_deadline_has_found_out(stand_ins: StandIns, fault: dict[str, Any]) -> None:
    stand_ins.control("cmab", **fault)
    async with opened(stand_ins, backoff=LONG, retries=1, request_timeout=60, fetch_deadline=0.2) as made:
        await asyncio.gather(*(made.ask(f"user {number}") for number in range(5)))
        failed = made.count("cmab_requests_total", outcome="failed")

        async def another_failed() -> bool:
            await made.ask("finds out")
            return made.count("cmab_requests_total", outcome="failed") > failed

        await _until(another_failed)
        stand_ins.control("cmab", status=None, hold_answers=False)
        await _until(answers(made, WELL))


@pytest.mark.asyncio
async def test_nonsense_is_an_answer_also_to_who_finds_out(stand_ins: StandIns) -> None:
    stand_ins.control("cmab", status=503)
    async with opened(stand_ins, backoff=LONG, retries=1, fetch_deadline=0.5) as made:
        await _fail(made, WELL)
        stand_ins.control("cmab", status=None, answer={})

        async def asked_in_earnest() -> bool:
            held = made.count("cmab_requests_total", outcome="held")
            await made.ask("finds out")
            return made.count("cmab_requests_total", outcome="held") == held

        await _until(asked_in_earnest)
        held = made.count("cmab_requests_total", outcome="held")
        await _fail(made, WELL, times=20)
        assert made.count("cmab_requests_total", outcome="held") == held


@pytest.mark.asyncio
async def test_those_that_were_asked_before_it_opened_make_no_pause_longer() -> None:
    kept = circuits_of(LONG)
    for _ in range(100):
        kept.failed(WELL, probed=False)
    assert kept.holds(WELL)
    await until(lambda: not kept.holds(WELL))


def test_no_more_than_a_thousand_rules_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuits, "_MOST_RULES", 3)
    kept = circuits_of(NEVER)
    for rule in "abcad":
        open_circuit(kept, rule)
    assert [kept.holds(rule) for rule in "abcd"] == [True, False, True, True], "the one that failed longest ago"


def test_a_refusal_ends_an_outage_and_is_no_good_news() -> None:
    kept = circuits_of(NEVER)
    with capture_logs() as logs:
        open_circuit(kept, "a")
        kept.tell("a", "HTTP 503")
        kept.answered("a", well=False)
    assert not kept.holds("a")
    assert events_of_rules(logs) == [("predictions fail: decisions that need one are errors", "a")]


def test_what_was_told_is_told_to_be_over_and_nothing_else() -> None:
    kept = circuits_of(NEVER)
    with capture_logs() as logs:
        kept.tell("a", "HTTP 404")
        for rule in "ab":
            open_circuit(kept, rule)
            kept.tell(rule, "HTTP 503")
        for rule in "ab":
            kept.answered(rule, well=True)
    assert [rule for _, rule in events_of_rules(logs)] == ["a"], "b is no news, nor its end"
    kept = circuits_of(NEVER)
    with capture_logs() as logs:
        open_circuit(kept, "a")
        kept.tell("a", "HTTP 503")
        kept.answered("a", well=True)
        kept.answered("a", well=True)
    assert events_of_rules(logs) == [
        ("predictions fail: decisions that need one are errors", "a"), ("predictions are back", "a"),
    ]  # fmt: skip


def events_of_rules(logs: list[EventDict]) -> list[tuple[str, str]]:
    """Lines about single rules: an outage of the whole service has lines of its own."""
    return [(one["event"], one["rule"]) for one in logs if "rule" in one]


def test_the_service_has_an_outage_when_a_circuit_opens_and_no_rule_was_answered_meanwhile() -> None:
    upstream = Upstream("cmab", new_metrics())
    kept = circuits_of(NEVER, upstream=upstream)
    with capture_logs() as logs:
        for _ in range(4):
            kept.failed(ILL, probed=False)
        assert not upstream.blocked("unavailable"), "four may be bad luck"
        kept.answered(WELL, well=True)
        kept.failed(ILL, probed=False)
        assert kept.holds(ILL)
        assert not upstream.blocked("unavailable"), "one rule's fault is not the service's"
        assert logs == []
        open_circuit(kept, WELL)
        assert upstream.blocked("unavailable")
        kept.answered(ILL, well=False)
        assert not upstream.blocked("unavailable"), "a refusal is an answer"
        assert upstream.answered_at > 0
    assert [one["log_level"] for one in logs] == ["warning", "info"]
