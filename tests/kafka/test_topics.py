"""The topics on Apache Kafka: made as needed, described as they are, and named when they are missing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict

import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.errors import StartFailed
from pipeline.kafka import client
from pipeline.kafka.topics import check_topics, create_topics, describe_topics
from pipeline.settings import ROLES, KafkaSettings, TopicsSettings
from tests.kafka.member import kafka_settings
from tests.patience import PATIENCE
from tests.support import Broker, delete_topics, unique_topics


class Named:
    """Topics of one test by name, not made yet."""

    def __init__(self, kafka: KafkaSettings, admin: AIOKafkaAdminClient) -> None:
        self.kafka = kafka
        self.admin = admin
        self.names = unique_topics()
        self.settings = TopicsSettings(
            **asdict(self.names), partitions=3, replication_factor=1, retention=3600, dead_letters_retention=7200
        )

    async def shown(self, *names: str) -> None:
        """Wait until the broker shows topics that the controller has just made."""
        async with asyncio.timeout(PATIENCE):
            while not all(one["partitions"] for one in await self.admin.describe_topics(list(names))):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def advice(self) -> list[str]:
        described = await describe_topics(self.admin, self.kafka, self.settings)
        return [f"{topic.name} {sentence}" for topic in described for sentence in topic.advice]


@pytest_asyncio.fixture
async def named(kafka: Broker) -> AsyncIterator[Named]:
    settings = kafka_settings(kafka)
    admin = await client.start_client(client.admin(settings))
    found = Named(settings, admin)
    yield found
    await delete_topics(kafka.bootstrap_servers, found.names)
    await admin.close()


@pytest.mark.asyncio
async def test_topics_are_made_once_with_equal_partitions_and_what_the_product_needs(named: Named) -> None:
    made = await create_topics(named.admin, named.kafka, named.settings)
    assert made == [(name, True) for name in named.names.names]
    await named.shown(*named.names.names)
    described = {topic.name: topic for topic in await describe_topics(named.admin, named.kafka, named.settings)}
    assert {(topic.partitions, topic.replicas, topic.advice) for topic in described.values()} == {(3, 1, ())}
    names = named.names
    for timed in (names.decide_requests, names.decide_results, names.track_events):
        assert described[timed].config["message.timestamp.type"] == "LogAppendTime"
    # ODP events carry their own time; what the broker adds is of no use to them.
    assert described[names.odp_events].config["message.timestamp.type"] == "CreateTime"
    assert described[names.decide_requests].config["retention.ms"] == "3600000"
    assert described[names.dead_letters].config["retention.ms"] == "7200000"
    # Around the value there are key and headers; a dead letter carries a whole record and why it is one.
    for name, largest in ((names.decide_results, 1024**2), (names.dead_letters, 2 * 1024**2)):
        assert int(described[name].config["max.message.bytes"]) >= largest + 32 * 1024
    assert await create_topics(named.admin, named.kafka, named.settings) == [(name, False) for name in names.names]


@pytest.mark.asyncio
async def test_a_topic_that_cannot_be_made_is_named_with_the_brokers_reason(named: Named) -> None:
    settings = named.settings.model_copy(update={"replication_factor": 2})
    advice = r"set PIPELINE_TOPICS__REPLICATION_FACTOR to the number of brokers, or below \(.*[Rr]eplication.*\)"
    with pytest.raises(StartFailed, match=rf"topic {named.names.decide_requests} cannot be created: {advice}"):
        await create_topics(named.admin, named.kafka, settings)


@pytest.mark.asyncio
async def test_topics_that_are_not_as_needed_come_with_advice(named: Named) -> None:
    names = named.names
    await named.admin.create_topics(
        [
            NewTopic(names.decide_requests, 4, 1, topic_configs={"message.timestamp.type": "CreateTime"}),
            NewTopic(names.decide_results, 2, 1, topic_configs={"message.timestamp.type": "LogAppendTime"}),
            NewTopic(names.dead_letters, 1, 1, topic_configs={"max.message.bytes": "1000"}),
            NewTopic(names.track_events, 1, 1, topic_configs={"message.timestamp.type": "LogAppendTime"}),
        ]
    )
    await named.shown(names.decide_requests, names.decide_results, names.dead_letters, names.track_events)
    advice = await named.advice()
    assert f"{names.odp_events} is missing: run `pipeline topics create`" in advice
    assert f"{names.decide_results} needs at least 4 partitions, as many as {names.decide_requests}" in advice
    assert any(f"{names.decide_requests} set message.timestamp.type=LogAppendTime" in one for one in advice)
    assert any(f"{names.dead_letters} set max.message.bytes to at least" in one for one in advice)
    assert not any(one.startswith(names.track_events) for one in advice)


@pytest.mark.asyncio
async def test_missing_topics_are_all_named_and_only_those_that_the_roles_need(named: Named) -> None:
    names = named.names
    with pytest.raises(StartFailed) as caught:
        await check_topics(named.admin, named.kafka, named.settings, ROLES)
    assert all(name in str(caught.value) for name in names.names)
    assert "`pipeline topics create`" in str(caught.value)
    await named.admin.create_topics([NewTopic(names.odp_events, 2, 1), NewTopic(names.dead_letters, 1, 1)])
    await named.shown(names.odp_events, names.dead_letters)
    facts = await check_topics(named.admin, named.kafka, named.settings, ["odp_events"])
    assert {name: one.partitions for name, one in facts.items()} == {names.odp_events: 2, names.dead_letters: 1}
    # Kafka's default of 1 MiB, less what a batch adds: what is larger becomes a pointer instead of ending the process.
    assert facts[names.dead_letters].max_bytes == 1_048_588 - 64 * 1024
    with pytest.raises(StartFailed, match=names.decide_results):
        await check_topics(named.admin, named.kafka, named.settings, ["logx"])
