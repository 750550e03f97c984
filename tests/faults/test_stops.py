"""A stop while Kafka is away: in time, and with exit code 0 unless something written was not acknowledged."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from pipeline.sandbox.kafka import LocalKafka
from pipeline.sandbox.processes import StandIns, free_port, until
from pipeline.sandbox.project_data import PRODUCTION
from pipeline.sandbox.worker import Worker
from tests.faults.proxy import Proxy
from tests.faults.verifier import Results, produce
from tests.patience import PATIENCE, stretched
from tests.support import Broker, ExistingKafka, Topics, create_topics, unique_topics, worker_env

DRAIN = 4.0
PARTITIONS = 2
Outage = Literal["killed", "frozen", "silent", "refusing", "slow"]
OUTAGES: tuple[Outage, ...] = ("killed", "frozen", "silent", "refusing", "slow")
Signal = signal.Signals


class Kafka:
    """A broker behind a proxy: the workers know the proxy alone, the tests the broker."""

    def __init__(self, broker: LocalKafka, proxy: Proxy) -> None:
        self.broker = broker
        self.proxy = proxy
        self.through_proxy: Broker = ExistingKafka(f"127.0.0.1:{proxy.port}")

    def take_away(self, outage: Outage) -> None:
        if outage == "killed":
            self.broker.kill()
        elif outage == "frozen":
            self.broker.pause()
        else:
            self.proxy.set(outage)

    def give_back(self) -> None:
        self.broker.resume()
        self.broker.start()
        self.proxy.set("passing")
        # A broker that was held is fenced at first, and the cluster has no controller to make topics.
        until(lambda: asyncio.run(self._controlled()), timeout=PATIENCE, what="a controller")

    async def _controlled(self) -> bool:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.broker.bootstrap_servers)
        await admin.start()
        try:
            cluster = await admin.describe_cluster()
        except KafkaError:
            # Its metadata name no broker that could be asked.
            return False
        finally:
            await admin.close()
        return bool(cluster["brokers"]) and cluster["controller_id"] in {one["node_id"] for one in cluster["brokers"]}


@pytest.fixture(scope="module")
def _away() -> Iterator[Kafka]:
    broker, behind, before = LocalKafka(), free_port(), free_port()
    listeners = f"PLAINTEXT://127.0.0.1:{broker.port},CONTROLLER://127.0.0.1:{broker.controller_port}"
    broker.add_properties(
        {
            "listeners": f"{listeners},PROXIED://127.0.0.1:{behind}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker.port},PROXIED://127.0.0.1:{before}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT",
        }
    )
    with broker, Proxy(before, behind) as proxy:
        yield Kafka(broker, proxy)


@pytest.fixture
def away(_away: Kafka) -> Iterator[Kafka]:
    yield _away
    _away.give_back()


class Stopped:
    """A worker of one test on topics of its own, and how it ended."""

    def __init__(self, away: Kafka, stand_ins: StandIns, log: Path, **settings: str) -> None:
        self.topics: Topics = unique_topics()
        self.away = away
        asyncio.run(create_topics(away.broker.bootstrap_servers, self.topics, PARTITIONS, PARTITIONS))
        quick = {
            "OPS__DRAIN": f"{DRAIN:g}", "KAFKA__REBALANCE_TIMEOUT": "20", "KAFKA__SESSION_TIMEOUT": "8",
            "KAFKA__HEARTBEAT_INTERVAL": "1", "KAFKA__REQUEST_TIMEOUT": "15", "ODP__FETCH_DEADLINE": "60",
            "ODP__REQUEST_TIMEOUT": "60", "LOGX__LINGER": "0.1",
        }  # fmt: skip
        self._environment = worker_env(away.through_proxy, self.topics, stand_ins, quick | settings)
        self.worker = Worker(self._environment, log=log)
        self.seconds = 0.0

    def another(self, name: str) -> Worker:
        """One more member of the same groups."""
        return Worker(self._environment, log=self.worker.log.with_name(f"{name}.log"))

    def ask(self, stand_ins: StandIns) -> None:
        """Requests whose users wait for ODP until its answers are let go."""
        stand_ins.control("odp", hold_answers=True)
        bodies: list[dict[str, Any]] = [
            {"sdkKey": PRODUCTION, "userId": f"user-{number}", "keys": ["checkout_redesign"], "fetchSegments": True}
            for number in range(10)
        ]
        produce(
            self.away.broker,
            self.topics.decide_requests,
            ((body["userId"], json.dumps(body).encode()) for body in bodies),
        )
        until(lambda: stand_ins.ledger("odp")["graphql_requests"] > 0, timeout=PATIENCE, what="a question to ODP")

    def stop(self, *numbers: Signal) -> int:
        began = time.monotonic()
        for number in numbers:
            self.worker.signal(number)
            until(lambda: '"stopping"' in self.worker.log_tail(400), timeout=5, what="the stop")
        code = self.worker.wait(DRAIN + 20)
        self.seconds = time.monotonic() - began
        print(f"exit code {code} after {self.seconds:.1f} s")
        return code

    def lines(self) -> list[dict[str, Any]]:
        """Every line of standard error: JSON, and no traceback in any."""
        lines: list[dict[str, Any]] = [json.loads(line) for line in self.worker.log.read_text().splitlines()]
        loud = [
            line for line in lines if "exception" in line or line["logger"] == "asyncio" or "Unclosed" in line["event"]
        ]
        assert loud == []
        return lines

    def last(self) -> str:
        return str(self.lines()[-1]["event"])


@pytest.fixture
def stopped(away: Kafka, stand_ins: StandIns, tmp_path: Path) -> Iterator[Callable[..., Stopped]]:
    made: list[Stopped] = []

    def of(**settings: str) -> Stopped:
        made.append(Stopped(away, stand_ins, tmp_path / f"worker-{len(made)}.log", **settings))
        return made[-1]

    yield of
    for one in made:
        if one.worker.running:
            one.worker.kill()


@pytest.mark.parametrize(
    ("outage", "number"), [*((outage, Signal.SIGTERM) for outage in OUTAGES), ("silent", Signal.SIGINT)]
)
def test_an_idle_worker_stops_cleanly(stopped: Callable[..., Stopped], outage: Outage, number: Signal) -> None:
    one = stopped()
    one.worker.start()
    one.worker.wait_ready()
    one.away.take_away(outage)
    assert one.stop(number) == 0
    assert one.seconds < stretched(DRAIN + 1)
    assert one.last() == "worker stopped"
    told = [line for line in one.lines() if "last offsets were not committed" in line["event"]]
    assert len(told) == (0 if outage == "slow" else 3), "once for each role"


@pytest.mark.parametrize("outage", OUTAGES)
def test_users_who_still_wait_for_their_segments_are_the_next_owners(
    stopped: Callable[..., Stopped], stand_ins: StandIns, outage: Outage
) -> None:
    one = stopped()
    one.worker.start()
    one.worker.wait_ready()
    one.ask(stand_ins)
    one.away.take_away(outage)
    assert one.stop(Signal.SIGTERM) == 0
    assert one.seconds < stretched(DRAIN + 1)
    assert one.last() == "worker stopped"


@pytest.mark.parametrize("outage", OUTAGES)
def test_what_kafka_has_not_acknowledged_ends_the_process_at_the_deadline_and_is_answered_once(
    stopped: Callable[..., Stopped], stand_ins: StandIns, outage: Outage
) -> None:
    one = stopped()
    one.worker.start()
    one.worker.wait_ready()
    one.ask(stand_ins)
    one.away.take_away(outage)
    stand_ins.control("odp", hold_answers=False)
    until(
        lambda: one.worker.metric("decide_requests_total", outcome="error") == 10, timeout=PATIENCE, what="the results"
    )
    code = one.stop(Signal.SIGTERM)
    assert one.seconds < stretched(DRAIN + 1)
    if outage == "slow":
        assert (code, one.last()) == (0, "worker stopped")
    else:
        assert (code, one.last()) == (70, "the process ends")
        assert one.lines()[-1]["reason"] == (
            f"Kafka has not acknowledged what was written to {one.topics.decide_results}: "
            f"the stop took longer than {DRAIN:g} s"
        )
    one.away.give_back()
    one.worker.start()
    one.worker.wait_ready()
    results = Results(one.away.broker, one.topics.decide_results, PARTITIONS)
    try:
        results.read(10, seconds=40)
        results.read_for(1)
        assert len(results.all) == 10
    finally:
        results.close()
    assert one.worker.stop() == 0


@pytest.mark.parametrize("outage", ["killed", "silent"])
@pytest.mark.parametrize(("first", "second"), [(Signal.SIGTERM, Signal.SIGTERM), (Signal.SIGTERM, Signal.SIGINT)])
def test_a_second_signal_ends_it_at_once(
    stopped: Callable[..., Stopped], stand_ins: StandIns, outage: Outage, first: Signal, second: Signal
) -> None:
    one = stopped()
    one.worker.start()
    one.worker.wait_ready()
    one.ask(stand_ins)
    one.away.take_away(outage)
    assert one.stop(first, second) == 128 + second
    assert one.seconds < stretched(2)
    assert one.lines()[-1]["reason"] == f"a second {second.name} came during the stop"


@pytest.mark.parametrize("outage", ["refusing", "silent", "frozen"])
def test_a_start_that_waits_for_the_broker_is_stopped(stopped: Callable[..., Stopped], outage: Outage) -> None:
    one = stopped()
    one.away.take_away(outage)
    one.worker.start()
    until(lambda: '"listening"' in one.worker.log_tail(), timeout=PATIENCE, what="the start")
    if outage == "refusing":
        until(lambda: "waiting for a broker" in one.worker.log_tail(), timeout=PATIENCE, what="the wait")
    assert one.stop(Signal.SIGTERM) == 0
    assert one.seconds < stretched(DRAIN + 1)
    assert one.last() == "worker stopped"


@pytest.mark.parametrize("outage", ["refusing", "silent", None])
def test_a_start_that_waits_for_a_datafile_is_stopped(
    stopped: Callable[..., Stopped], stand_ins: StandIns, outage: Outage | None
) -> None:
    stand_ins.control("cdn", status=503)
    one = stopped()
    one.worker.start()
    until(lambda: "waiting for the datafiles" in one.worker.readiness[1], timeout=PATIENCE, what="the wait")
    if outage is not None:
        one.away.take_away(outage)
    assert one.stop(Signal.SIGTERM) == 0
    assert one.seconds < stretched(DRAIN + 1)
    assert one.last() == "worker stopped"


@pytest.mark.parametrize("outage", ["refusing", "silent", "killed"])
def test_partitions_that_are_just_opened_hold_up_no_stop(stopped: Callable[..., Stopped], outage: Outage) -> None:
    one = stopped()
    one.worker.start()
    until(lambda: '"worker started"' in one.worker.log_tail(200), timeout=PATIENCE, what="the start", interval=0.001)
    one.away.take_away(outage)
    assert one.stop(Signal.SIGTERM) == 0
    assert one.seconds < stretched(DRAIN + 1)
    assert one.last() == "worker stopped"


def test_a_rebalance_that_waits_for_another_member_holds_up_no_stop(stopped: Callable[..., Stopped]) -> None:
    one = stopped()
    one.worker.start()
    one.worker.wait_ready()
    # A member that is held does not come back to the group, which waits for it until its session is over.
    held, third = one.another("held"), one.another("third")
    held.start()
    held.wait_ready()
    held.pause()
    third.start()
    try:
        until(lambda: one.worker.metric("partitions_owned", role="decide") == 0, timeout=PATIENCE, what="a rebalance")
        assert one.stop(Signal.SIGTERM) == 0
        assert one.seconds < stretched(DRAIN + 1)
        assert one.last() == "worker stopped"
    finally:
        for other in (held, third):
            other.resume()
            other.kill()
