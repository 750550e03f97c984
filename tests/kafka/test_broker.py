"""Whether Kafka answers: what counts as an outage by a clock of the test's, and what a real broker's answers do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, RequestTimedOutError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import HeartbeatRequest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from structlog.typing import EventDict

from pipeline.kafka.broker import FETCH, HEARTBEAT, PRODUCE, REQUESTS, BrokerMonitor
from pipeline.metrics import Metrics
from tests.kafka.member import Echo, kafka_settings, member
from tests.settled import until
from tests.support import Broker, TopicMaker

INTERVAL = 3.0
PATIENCE = 2 * INTERVAL
FETCHES = FetchRequest(500, 1, 1024, 1, [], "")
HEARTBEATS = HeartbeatRequest("group", 1, "member")


class Network:
    """aiokafka's client: answers a request when the test says so, or fails it."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[str]] = []

    async def send(self, node_id: int, request: Any, *, group: int = 0) -> str:
        self.asked.append(asyncio.get_running_loop().create_future())
        answer: str = await self.asked[-1]
        return answer


class Bench:
    def __init__(self) -> None:
        self.now = 1000.0
        self.metrics = Metrics(CollectorRegistry())
        self.monitor = BrokerMonitor(
            ["decide"], heartbeat_interval=INTERVAL, metrics=self.metrics, clock=lambda: self.now
        )
        self.network: Any = Network()
        self.monitor.follow("decide", SimpleNamespace(_client=self.network))  # type: ignore[arg-type]
        self.logs: list[EventDict] = []

    async def asks(self, request: object, node: int = 1) -> asyncio.Future[Any]:
        """A request on its way; the future ends with the answer that the test gives."""
        sent: asyncio.Future[Any] = asyncio.ensure_future(self.network.send(node, request, group=0))
        count = len(self.network.asked)
        await until(lambda: len(self.network.asked) > count)
        return sent

    async def answers(self, sent: asyncio.Future[Any]) -> None:
        self.network.asked[-1].set_result("answer")
        assert await sent == "answer"

    async def fails(self, sent: asyncio.Future[Any], error: BaseException) -> None:
        self.network.asked[-1].set_exception(error)
        with pytest.raises(type(error)):
            await sent

    def after(self, seconds: float) -> bool:
        """Whether there is an outage when so much time has passed."""
        self.now += seconds
        self.monitor.look()
        labels = {"upstream": "kafka", "reason": "unavailable"}
        return bool(self.metrics.registry.get_sample_value("decision_pipeline_upstream_blocked", labels))

    def answered_at(self, request: str) -> float:
        labels = {"role": "decide", "request": request}
        name = "decision_pipeline_kafka_last_response_timestamp_seconds"
        found = self.metrics.registry.get_sample_value(name, labels)
        assert found is not None
        return found

    @property
    def told(self) -> list[str]:
        return [one["event"] for one in self.logs]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with capture_logs() as logs:
        made = Bench()
        made.logs = logs
        yield made


@pytest.mark.asyncio
@pytest.mark.parametrize(("request_", "kind"), [(HEARTBEATS, HEARTBEAT), (FETCHES, FETCH)])
async def test_a_request_without_an_answer_is_an_outage_from_its_sending_until_the_answer(
    bench: Bench, request_: object, kind: str
) -> None:
    sent = await bench.asks(request_)
    assert not bench.after(PATIENCE - 0.1)
    assert bench.after(0.2)
    assert bench.after(60)
    (outage,) = bench.monitor.upstream.outages()
    assert outage.sentence() == f"kafka has been unavailable for 66 s: no answer to {kind} of role decide"
    assert bench.answered_at(kind) == 0
    await bench.answers(sent)
    assert not bench.after(0)
    assert bench.answered_at(kind) == pytest.approx(time.time(), abs=60)
    assert [(one["log_level"], one["event"], one.get("seconds")) for one in bench.logs] == [
        ("warning", "Kafka does not answer", None), ("info", "Kafka answers again", 66.1),
    ]  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize("error", [RequestTimedOutError(), KafkaConnectionError("no connection")])
async def test_a_request_that_fails_again_and_again_is_one_outage(bench: Bench, error: BaseException) -> None:
    for _ in range(10):
        await bench.fails(await bench.asks(HEARTBEATS), error)
        bench.after(1)
    assert bench.after(0)
    # Without a known broker nothing is even tried any more.
    assert bench.after(600)
    await bench.answers(await bench.asks(HEARTBEATS))
    assert not bench.after(0)
    assert bench.told == ["Kafka does not answer", "Kafka answers again"]


@pytest.mark.asyncio
async def test_a_failed_request_that_nobody_repeats_is_no_outage_while_kafka_answers_others(bench: Bench) -> None:
    # The partitions were given back, or have another leader.
    await bench.fails(await bench.asks(FETCHES), RequestTimedOutError())
    for _ in range(4):
        bench.now += INTERVAL
        await bench.answers(await bench.asks(HEARTBEATS, node=2))
    assert not bench.after(0)


@pytest.mark.asyncio
async def test_one_broker_of_several_that_does_not_answer_is_an_outage(bench: Bench) -> None:
    await bench.asks(FETCHES, node=1)
    for _ in range(4):
        bench.now += INTERVAL
        await bench.answers(await bench.asks(FETCHES, node=2))
    assert bench.after(0)


@pytest.mark.asyncio
async def test_a_member_that_asks_for_nothing_has_no_outage(bench: Bench) -> None:
    await bench.answers(await bench.asks(HEARTBEATS))
    assert not bench.after(3600), "no heartbeat is due during a rebalance"
    # A slow answer to another kind of request (here the other members of the group) is no outage.
    await bench.asks(object())
    assert not bench.after(3600)
    sent = await bench.asks(FETCHES)
    sent.cancel()
    await asyncio.wait([sent])
    assert not bench.after(3600), "fetches are cancelled when a consumer stops"


@pytest.mark.asyncio
async def test_an_outage_goes_on_when_the_member_leaves_its_group_and_cancels_what_is_overdue(bench: Bench) -> None:
    sent = await bench.asks(FETCHES)
    assert bench.after(PATIENCE + 1)
    sent.cancel()
    await asyncio.wait([sent])
    assert bench.after(60)
    await bench.answers(await bench.asks(object()))
    assert not bench.after(0), "Kafka answers again, and the partitions are gone"


def test_an_idle_producer_has_no_outage_and_a_batch_not_acknowledged_is_one(bench: Bench) -> None:
    produce = bench.monitor.produce
    assert not bench.after(3600)
    produce.began("results-0")
    produce.began("results-1")
    assert not bench.after(PATIENCE - 0.1)
    produce.answered("results-0")
    assert bench.answered_at(PRODUCE) == pytest.approx(time.time(), abs=60)
    assert bench.after(0.2), "one partition that cannot be written is enough"
    produce.answered("results-1")
    assert not bench.after(0)
    produce.began("results-1")
    produce.dropped("results-1")
    assert not bench.after(3600)


def test_however_often_heartbeats_come_a_fetch_may_wait_for_records() -> None:
    monitor = BrokerMonitor(["decide"], heartbeat_interval=0.1, metrics=Metrics(CollectorRegistry()))
    assert monitor.patience == 2.0


@pytest.mark.asyncio
async def test_a_process_that_stood_still_itself_does_not_accuse_kafka() -> None:
    bench = Bench()
    sent = await bench.asks(HEARTBEATS)
    bench.monitor.start()
    bench.monitor.close()
    bench.now += 60
    with capture_logs() as logs:
        bench.monitor._tick()
        bench.monitor.close()
        assert logs == []
        bench.now += 1
        bench.monitor._tick()
        bench.monitor.close()
        assert [one["event"] for one in logs] == ["Kafka does not answer"]
    await bench.answers(sent)


@pytest.mark.asyncio
async def test_on_a_broker_each_kind_of_request_is_seen_to_be_answered(kafka: Broker, topics: TopicMaker) -> None:
    # Fails when another version of aiokafka sends its requests in another way.
    own = await topics(partitions=1)
    metrics = Metrics(CollectorRegistry())
    monitor = BrokerMonitor(["decide"], heartbeat_interval=1, metrics=metrics)

    def answered(request: str) -> float:
        name, labels = "kafka_last_response_timestamp_seconds", {"role": "decide", "request": request}
        return metrics.registry.get_sample_value(f"decision_pipeline_{name}", labels) or 0.0

    async with member(kafka_settings(kafka), own, lambda _: Echo(), partitions=1) as made:
        made.results.requests = monitor.produce
        monitor.follow("decide", made.client)
        began = time.time()
        await asyncio.wait_for(made.consumer.assigned.wait(), 20)
        await until(lambda: min(answered(HEARTBEAT), answered(FETCH)) >= began)
        assert answered(PRODUCE) == 0
        await made.producer.send_and_wait(own.decide_requests, b"{}")
        await until(lambda: answered(PRODUCE) >= began)
        monitor.look()
        assert monitor.upstream.outages() == []
        assert monitor.upstream.answered_at == max(map(answered, REQUESTS))
