"""Workers as processes of their own, killed, stopped and held; sizes for everyday and for the full proof."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.sandbox.processes import StandIns
from pipeline.sandbox.worker import Worker
from tests.faults.project import SDK_KEY, datafile
from tests.support import Broker, TopicMaker, Topics, worker_env

FULL = os.environ.get("FAULTS") == "full"
"""`make faults` runs the sizes that the claims in the README are made of; `make test` smaller ones."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Workers of one group on topics of their own."""

    topics: Topics
    group: str
    worker: Callable[..., Worker]


@pytest.fixture
def fleet(kafka: Broker, stand_ins: StandIns, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """`fleet(topics, **settings)`: its `worker()` gives a new one, not started, with further settings of its own."""
    made: list[Worker] = []
    stand_ins.put_datafile(SDK_KEY, datafile("first", everyone_gets="old"))

    def of(topics: Topics, broker: Broker = kafka, **settings: str) -> Fleet:
        shared = {"OPTIMIZELY__SDK_KEYS": SDK_KEY, "KAFKA__SESSION_TIMEOUT": "6", "KAFKA__HEARTBEAT_INTERVAL": "1"}
        environment = worker_env(broker, topics, stand_ins, shared | settings)

        def worker(**own: str) -> Worker:
            log = tmp_path / f"worker-{len(made)}.log"
            made.append(Worker(environment | _prefixed(own), log=log))
            return made[-1]

        return Fleet(topics, environment["PIPELINE_KAFKA__GROUP_ID"], worker)

    yield of
    for worker in made:
        if worker.running:
            worker.resume()
            worker.kill()


def _prefixed(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"PIPELINE_{name}": value for name, value in settings.items()}


__all__ = ["FULL", "Fleet", "TopicMaker"]
