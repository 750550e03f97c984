"""An outage is logged where it begins, changes and ends, and shown in the gauges while it is on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from structlog.typing import EventDict

from pipeline.metrics import Metrics
from pipeline.outage import DENIED, REFUSED, UNAVAILABLE, Outage, Upstream


class Bench:
    def __init__(self, forget_after: float | None = None) -> None:
        self.now = 1000.0
        self.metrics = Metrics(CollectorRegistry())
        self.upstream = Upstream("desk", self.metrics, forget_after=forget_after, clock=lambda: self.now)
        self.logs: list[EventDict] = []

    def outage(self, **where: str) -> Outage:
        return self.upstream.outage(begins="desk closed", ends="desk open", log=structlog.get_logger(), **where)

    def blocked(self, reason: str) -> float | None:
        labels = {"upstream": "desk", "reason": reason}
        return self.metrics.registry.get_sample_value("decision_pipeline_upstream_blocked", labels)

    @property
    def answered_at(self) -> float:
        name = "decision_pipeline_upstream_last_response_timestamp_seconds"
        return self.metrics.registry.get_sample_value(name, {"upstream": "desk"}) or 0.0


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with capture_logs() as logs:
        made.logs = logs
        yield made


def test_it_is_told_once_when_it_begins_and_once_with_its_duration_when_it_ends(bench: Bench) -> None:
    outage = bench.outage(account="7")
    assert (bench.blocked(UNAVAILABLE), bench.answered_at) == (0, 0)
    for number in range(3):
        outage.begin(UNAVAILABLE, f"HTTP 50{number}")
        bench.now += 10
    assert bench.blocked(UNAVAILABLE) == 1
    assert bench.answered_at == 0, "no good answer yet"
    for _ in range(2):
        outage.end()
    assert (bench.blocked(UNAVAILABLE), bench.answered_at > 0) == (0, True)
    assert bench.logs == [
        {"event": "desk closed", "log_level": "warning", "account": "7", "reason": "unavailable", "error": "HTTP 500"},
        {"event": "desk open", "log_level": "info", "account": "7", "reason": "unavailable", "seconds": 30.0},
    ]


def test_an_end_without_an_outage_is_only_an_answer(bench: Bench) -> None:
    bench.outage().end()
    assert bench.logs == []
    assert bench.answered_at > 0


def test_a_change_of_the_reason_or_of_what_the_client_tells_apart_is_told_and_the_outage_goes_on(bench: Bench) -> None:
    outage = bench.outage()
    outage.begin(UNAVAILABLE, "HTTP 503")
    bench.now += 5
    outage.begin(DENIED, "HTTP 401", edge="401")
    outage.begin(DENIED, "HTTP 401", edge="401")
    outage.begin(DENIED, "HTTP 403", edge="403")
    outage.begin(REFUSED, "rubbish", message="desk burns", revision=3)
    assert (bench.blocked(UNAVAILABLE), bench.blocked(DENIED), bench.blocked(REFUSED)) == (0, 0, 1)
    bench.now += 5
    outage.end()
    told = [(one["log_level"], one["event"], one.get("error")) for one in bench.logs]
    assert told == [
        ("warning", "desk closed", "HTTP 503"), ("error", "desk closed", "HTTP 401"),
        ("error", "desk closed", "HTTP 403"), ("error", "desk burns", "rubbish"), ("info", "desk open", None),
    ]  # fmt: skip
    assert bench.logs[3]["revision"] == 3
    assert bench.logs[4]["seconds"] == 10.0, "since it began, whatever it changed to"


def test_one_that_begins_again_is_told_again(bench: Bench) -> None:
    outage = bench.outage()
    for _ in range(2):
        outage.begin(UNAVAILABLE, "HTTP 503")
        outage.end()
    assert [one["event"] for one in bench.logs] == ["desk closed", "desk open"] * 2


def test_the_gauge_is_up_while_one_of_several_is_on(bench: Bench) -> None:
    first, second = bench.outage(account="1"), bench.outage(account="2")
    first.begin(UNAVAILABLE, "HTTP 503")
    second.begin(DENIED, "HTTP 401")
    assert (bench.blocked(UNAVAILABLE), bench.blocked(DENIED)) == (1, 1)
    first.end()
    assert (bench.blocked(UNAVAILABLE), bench.blocked(DENIED)) == (0, 1)
    second.forget()
    assert (bench.blocked(UNAVAILABLE), bench.blocked(DENIED)) == (0, 0)
    assert len(bench.logs) == 3, "of what is forgotten nobody knows how it went on"


def test_the_oldest_comes_first_in_words_for_people_and_for_programs(bench: Bench) -> None:
    late, early = bench.outage(), bench.outage(account="1")
    late.begin(DENIED, "HTTP 401")
    bench.now += 2
    early.begin(UNAVAILABLE, "no answer", since=990.0)
    assert [one.sentence() for one in bench.upstream.outages()] == [
        "desk (account 1) has been unavailable for 12 s: no answer",
        "desk has denied access for 2 s: HTTP 401",
    ]
    assert [one.document() for one in bench.upstream.outages()] == [
        {"upstream": "desk", "account": "1", "reason": "unavailable", "seconds": 12.0, "error": "no answer"},
        {"upstream": "desk", "reason": "denied", "seconds": 2.0, "error": "HTTP 401"},
    ]


def test_nobody_asks_any_more_and_the_outage_of_a_service_asked_on_demand_is_forgotten() -> None:
    bench = Bench(forget_after=300)
    outage = bench.outage()
    outage.begin(DENIED, "HTTP 401")
    bench.now += 200
    outage.begin(DENIED, "HTTP 401")
    bench.now += 299
    assert bench.blocked(DENIED) == 1
    bench.now += 2
    assert (bench.blocked(DENIED), bench.upstream.outages()) == (0, [])
    outage.begin(DENIED, "HTTP 401")
    assert bench.blocked(DENIED) == 1


def test_without_such_a_bound_it_stays_until_it_ends(bench: Bench) -> None:
    bench.outage().begin(DENIED, "HTTP 401")
    bench.now += 10**6
    assert bench.blocked(DENIED) == 1
