"""Real parts for every test: one Apache Kafka for the run, topics of one's own, the stand-ins."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from pipeline.sandbox.kafka import LocalKafka
from pipeline.sandbox.processes import StandIns
from tests.processes import hear_signals_in_children
from tests.redis_server import RedisServer
from tests.support import Broker, ExistingKafka, TopicMaker, Topics, create_topics, delete_topics, unique_topics


def pytest_configure() -> None:
    hear_signals_in_children()


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(self.format(record))


@pytest.fixture(autouse=True)
def _no_error_is_lost() -> Iterator[None]:
    """What a task or callback raises may reach nobody but the loop's exception handler: a test fails by it.

    The one it became known in: that of a task which waits in a cycle for the collector may be a later one.
    """
    errors, logger = _Errors(), logging.getLogger("asyncio")
    logger.addHandler(errors)
    try:
        yield
        gc.collect(0)  # a task is told of when it is gone
    finally:
        logger.removeHandler(errors)
    assert errors.told == []


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker]:
    """One broker for the run; PIPELINE_TEST_BOOTSTRAP_SERVERS names an existing one."""
    existing = os.environ.get("PIPELINE_TEST_BOOTSTRAP_SERVERS")
    if existing:
        yield ExistingKafka(existing)
        return
    with LocalKafka() as broker:
        yield broker


@pytest_asyncio.fixture
async def topics(kafka: Broker) -> AsyncIterator[TopicMaker]:
    """`await topics(partitions=4)` makes topics that no other test has; they are deleted afterwards."""
    made: list[Topics] = []

    async def make(partitions: int = 4, results_partitions: int | None = None) -> Topics:
        own = unique_topics()
        await create_topics(kafka.bootstrap_servers, own, partitions, results_partitions or partitions)
        made.append(own)
        return own

    yield make
    for own in made:
        await delete_topics(kafka.bootstrap_servers, own)


@pytest.fixture(scope="session")
def _stand_ins() -> Iterator[StandIns]:
    with StandIns() as running:
        yield running


@pytest.fixture
def stand_ins(_stand_ins: StandIns) -> Iterator[StandIns]:
    """The CDN, ODP, logx and CMAB, without faults and with empty ledgers."""
    for service in _stand_ins.services:
        _stand_ins.control(service, reset=True)
    yield _stand_ins
    for service in _stand_ins.services:
        _stand_ins.control(service, reset=True)


@pytest.fixture(scope="session")
def _redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(log=tmp_path_factory.mktemp("redis") / "server.log") as server:
        yield server


@pytest.fixture
def redis(_redis: RedisServer) -> RedisServer:
    """A Redis that runs and is empty."""
    _redis.start()
    _redis.client.flushall()
    return _redis
