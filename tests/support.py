"""What tests share: names of topics of their own, and the environment of a worker process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol
from uuid import uuid4

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from pipeline.sandbox.kafka import LocalKafka
from pipeline.sandbox.processes import StandIns, free_port
from pipeline.sandbox.worker import worker_environment
from tests.patience import PATIENCE


class Broker(Protocol):
    """What the fixture `kafka` gives: a LocalKafka, or an existing one."""

    @property
    def bootstrap_servers(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ExistingKafka:
    bootstrap_servers: str


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics of one test. The fields are named as in the settings."""

    decide_requests: str
    decide_results: str
    track_events: str
    odp_events: str
    dead_letters: str

    @property
    def names(self) -> list[str]:
        return list(asdict(self).values())


def add_listener_with_password(broker: LocalKafka) -> int:
    """The port of one more listener, which asks for SCRAM-SHA-512; call it before the broker is started."""
    port = free_port()
    listeners = f"PLAINTEXT://127.0.0.1:{broker.port},CONTROLLER://127.0.0.1:{broker.controller_port}"
    broker.add_properties(
        {
            "listeners": f"{listeners},SECURE://127.0.0.1:{port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_PLAINTEXT",
            "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.secure.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
        }
    )
    return port


class TopicMaker(Protocol):
    """What the fixture `topics` gives."""

    async def __call__(self, partitions: int = 4, results_partitions: int | None = None) -> Topics: ...


def unique_topics() -> Topics:
    run = uuid4().hex[:8]
    return Topics(*(f"{name}.{run}" for name in ("requests", "results", "track", "odp", "dead")))


async def create_topics(bootstrap_servers: str, topics: Topics, partitions: int, results_partitions: int) -> None:
    by_broker = {"message.timestamp.type": "LogAppendTime"}
    made = [
        NewTopic(topics.decide_requests, partitions, 1, topic_configs=by_broker),
        NewTopic(topics.decide_results, results_partitions, 1, topic_configs=by_broker),
        NewTopic(topics.track_events, partitions, 1, topic_configs=by_broker),
        NewTopic(topics.odp_events, partitions, 1),
        NewTopic(topics.dead_letters, partitions, 1, topic_configs={"max.message.bytes": str(2 * 1024**2)}),
    ]
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await _controller(admin)
        await admin.create_topics(made)
    finally:
        await admin.close()


async def _controller(admin: AIOKafkaAdminClient) -> None:
    """Wait until the cluster has a controller: a broker that was held, or is busy, may have none for a moment."""
    async with asyncio.timeout(PATIENCE):
        while admin._client.cluster.controller is None:
            await asyncio.sleep(0.1)
            await admin._client.force_metadata_update()


async def add_partitions(bootstrap_servers: str, topic: str, partitions: int) -> None:
    """Let a topic grow to so many partitions."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(partitions)})
    finally:
        await admin.close()


async def recreate_topic(
    bootstrap_servers: str, topic: str, partitions: int, *,
    had: int | None = None, meanwhile: Callable[[], None] = lambda: None, **config: str,
) -> None:  # fmt: skip
    """Delete a topic and make one of the same name; returns when the broker has the new one.

    `had` is the old one's number of partitions, if the new one's is another; `meanwhile` is called while there is no
    topic. The names of the configuration have `_` for `.`.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    new = NewTopic(
        topic, partitions, 1, topic_configs={name.replace("_", "."): value for name, value in config.items()}
    )

    async def seen(count: int) -> None:
        # The controller answers before the broker has taken the change: what is written then goes to the old log.
        while len((await admin.describe_topics([topic]))[0]["partitions"]) != count:  # noqa: ASYNC110 - a broker is asked
            await asyncio.sleep(0.02)

    try:
        async with asyncio.timeout(20):
            await seen(partitions if had is None else had)
            await admin.delete_topics([topic])
            await seen(0)
        meanwhile()
        async with asyncio.timeout(20):
            await admin.create_topics([new])
            await seen(partitions)
    finally:
        await admin.close()


async def delete_topics(bootstrap_servers: str, topics: Topics) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_topics(topics.names)
    finally:
        await admin.close()


def worker_env(
    broker: Broker, topics: Topics, stand_ins: StandIns | None = None, overrides: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The whole environment of a worker on these topics, in a group of its own.

    `overrides` are names without their prefix, e.g. `{"ODP__MAX_LINGER": "0.1"}`.
    """
    settings = {
        "KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "KAFKA__GROUP_ID": f"group-{uuid4().hex[:8]}",
        **(overrides or {}),
    }
    return worker_environment(settings, topics=asdict(topics), stand_ins=stand_ins)
