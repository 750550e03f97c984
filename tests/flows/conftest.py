"""One worker for all flows that need none of their own, and workers of their own for those that do.

A test of the shared worker uses people of its own: what a stand-in counted of them is then the test's alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.sandbox.processes import StandIns, until
from pipeline.sandbox.project_data import SDK_KEYS
from pipeline.sandbox.worker import Worker
from tests.flows.project import SDK_KEY, datafile
from tests.flows.wire import Read, Reader, Sent, Writer, keyed
from tests.patience import PATIENCE
from tests.support import Broker, Topics, create_topics, delete_topics, unique_topics, worker_env

PARTITIONS = 4
QUICK = {
    "LOGX__LINGER": "0.1", "ODP__EVENT_LINGER": "0.1", "KAFKA__COMMIT_INTERVAL": "0.2",
    "ODP__FETCH_DEADLINE": "2", "KAFKA__SESSION_TIMEOUT": "6", "KAFKA__HEARTBEAT_INTERVAL": "1",
}  # fmt: skip


@dataclass(slots=True)
class Flow:
    """Topics, a client for each, and the services: what goes in and what comes out."""

    broker: Broker
    topics: Topics
    stand_ins: StandIns
    writer: Writer
    results: Reader
    dead_letters: Reader
    closing: list[Callable[[], None]] = field(default_factory=list)

    def decide(self, *bodies: Mapping[str, Any], **common: Any) -> list[dict[str, Any]]:
        """Write requests, each keyed by its user; their results, in the same order."""
        records = [keyed({**body, **common}) for body in bodies]
        return [result.document for result in self.results.of(self.writer.send(self.topics.decide_requests, records))]

    def letters(self, sent: list[Sent]) -> list[Read]:
        return self.dead_letters.of(sent)

    def events_of(self, *visitors: str, count: int, seconds: float = PATIENCE) -> list[dict[str, Any]]:
        """What logx counted of these visitors once there are `count` events of theirs, each once."""

        def entries() -> list[dict[str, Any]]:
            names = ("entity_id", "uuid", "timestamp", "visitor", "flag", "rule", "variation", "key")
            counted = self.stand_ins.ledger("logx", query="full=1")["entries"]
            return [dict(zip(names, entry, strict=True)) for entry in counted if entry[3] in visitors]

        until(lambda: len(entries()) >= count, timeout=seconds, what=f"{count} events at logx")
        return entries()


def open_flow(broker: Broker, stand_ins: StandIns, results_partitions: int = PARTITIONS) -> Flow:
    topics = unique_topics()
    asyncio.run(create_topics(broker.bootstrap_servers, topics, PARTITIONS, results_partitions))
    address = broker.bootstrap_servers
    return Flow(
        broker, topics, stand_ins, Writer(address),
        Reader(address, topics.decide_results, results_partitions), Reader(address, topics.dead_letters, PARTITIONS),
    )  # fmt: skip


def close_flow(flow: Flow) -> None:
    flow.results.close()
    flow.dead_letters.close()
    asyncio.run(delete_topics(flow.broker.bootstrap_servers, flow.topics))


@pytest.fixture(scope="session")
def _shared(kafka: Broker, _stand_ins: StandIns, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    flow = open_flow(kafka, _stand_ins)
    _stand_ins.put_datafile(SDK_KEY, datafile())
    keys = json.dumps([*SDK_KEYS, SDK_KEY])
    environment = worker_env(kafka, flow.topics, _stand_ins, QUICK | {"OPTIMIZELY__SDK_KEYS": keys})
    worker = Worker(environment, log=tmp_path_factory.mktemp("flows") / "worker.log")
    worker.start()
    try:
        worker.wait_ready()
        yield flow
        assert worker.stop() == 0, worker.log_tail()
    finally:
        if worker.running:
            worker.kill()
        close_flow(flow)


@pytest.fixture
def flow(_shared: Flow, stand_ins: StandIns) -> Flow:
    """The shared worker, all roles, without faults at the services."""
    return _shared


@dataclass(slots=True)
class Own:
    """Topics of one test, and its workers."""

    flow: Flow
    worker: Callable[..., Worker]


@pytest.fixture
def own(kafka: Broker, stand_ins: StandIns, tmp_path: Path) -> Iterator[Callable[..., Own]]:
    """`own(**settings)`: topics of one's own; its `worker(*arguments, **settings)` is a new one, not started."""
    flows: list[Flow] = []
    workers: list[Worker] = []
    stand_ins.put_datafile(SDK_KEY, datafile())

    def of(results_partitions: int = PARTITIONS, **settings: str) -> Own:
        flow = open_flow(kafka, stand_ins, results_partitions)
        flows.append(flow)
        environment = worker_env(kafka, flow.topics, stand_ins, QUICK | {"OPTIMIZELY__SDK_KEYS": SDK_KEY} | settings)

        def worker(*arguments: str, module: str = "pipeline", **more: str) -> Worker:
            log = tmp_path / f"worker-{len(workers)}.log"
            changed = {f"PIPELINE_{name}": value for name, value in more.items()}
            workers.append(Worker(environment | changed, log=log, module=module, arguments=arguments or ("run",)))
            return workers[-1]

        return Own(flow, worker)

    yield of
    for worker in workers:
        if worker.running:
            worker.kill()
    for flow in flows:
        close_flow(flow)


def metric(worker: Worker, name: str, role: str) -> float:
    """One role's value of a metric now; 0 where there is none."""
    for line in worker.metrics().splitlines():
        if line.startswith(f'decision_pipeline_{name}{{role="{role}"'):
            return float(line.rpartition(" ")[2])
    return 0.0
