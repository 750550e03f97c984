"""The ids of topics, with brokers that lag behind, that lose a topic, or that give no ids; only the wire is faked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from pipeline.kafka.topic_ids import TopicIds
from pipeline.metrics import Metrics

OLD, NEW = b"o" * 16, b"n" * 16
UNKNOWN, DENIED = UnknownTopicOrPartitionError.errno, TopicAuthorizationFailedError.errno
SILENT = None
TOPIC = "requests"


class Admin:
    """Brokers by node, asked in this order; each names one id, or an error, or stays silent."""

    def __init__(self, **ids: bytes | int | None) -> None:
        self.ids = ids
        self.too_old = False
        self._client = SimpleNamespace(
            cluster=SimpleNamespace(brokers=lambda: [SimpleNamespace(nodeId=node) for node in self.ids])
        )

    async def _send_request(self, request: object, node: str) -> Any:
        if self.too_old:
            raise NotImplementedError
        found = self.ids[node]
        if found is None:
            raise RequestTimedOutError
        error, topic_id = (found, bytes(16)) if isinstance(found, int) else (0, found)
        return SimpleNamespace(
            topics=[(error, TOPIC, topic_id, False)], brokers=[(one, "host", 9092, None) for one in self.ids]
        )


def ids_of(admin: Admin) -> tuple[TopicIds, Metrics]:
    metrics = Metrics(CollectorRegistry())
    return TopicIds(admin, role="decide", topics=[TOPIC], metrics=metrics), metrics  # type: ignore[arg-type]


def recreated(metrics: Metrics) -> float | None:
    labels = {"role": "decide", "topic": TOPIC}
    return metrics.registry.get_sample_value("decision_pipeline_topics_recreated_total", labels)


@pytest.mark.asyncio
async def test_a_new_id_is_believed_once_no_broker_has_the_old_one_and_said_once() -> None:
    admin = Admin(first=OLD, second=OLD)
    ids, metrics = ids_of(admin)
    before = dict(await ids.look())
    admin.ids["first"] = NEW
    with capture_logs() as logs:
        assert await ids.look() == before, "the second broker may be right: its metadata or the first's lag behind"
        assert (recreated(metrics), logs) == (0, [])
        admin.ids["second"] = NEW
        assert (await ids.look())[TOPIC] != before[TOPIC]
        await ids.look()
    assert recreated(metrics) == 1
    assert [(line["log_level"], line["previous_topic_id"]) for line in logs] == [("error", before[TOPIC])]


@pytest.mark.asyncio
async def test_a_topic_that_is_gone_is_said_once_each_time() -> None:
    admin = Admin(only=OLD)
    ids, metrics = ids_of(admin)
    with capture_logs() as logs:
        for found in (OLD, UNKNOWN, OLD, UNKNOWN, UNKNOWN, UNKNOWN, OLD, UNKNOWN, UNKNOWN):
            admin.ids["only"] = found
            await ids.look()
    assert [line["event"] for line in logs] == ["topic does not exist any more: waiting until it is created again"] * 2
    assert recreated(metrics) == 0


@pytest.mark.asyncio
async def test_a_broker_that_does_not_answer_may_have_the_old_topic() -> None:
    admin = Admin(first=NEW, second=NEW)
    ids, metrics = ids_of(admin)
    before = dict(await ids.look())
    # Cut off, the first has metadata from before the topic was created again; the second has the right ones.
    admin.ids |= {"first": OLD, "second": SILENT}
    assert await ids.look() == before
    assert recreated(metrics) == 0


@pytest.mark.asyncio
async def test_the_next_broker_is_asked_where_one_does_not_answer_and_none_is_an_error() -> None:
    admin = Admin(first=SILENT, second=OLD)
    ids, _ = ids_of(admin)
    assert TOPIC in await ids.look()
    admin.ids["second"] = SILENT
    with pytest.raises(KafkaConnectionError):
        await ids.look()


@pytest.mark.asyncio
async def test_a_topic_that_may_not_be_described_is_not_said_to_be_gone() -> None:
    admin = Admin(only=OLD)
    ids, _ = ids_of(admin)
    await ids.look()
    admin.ids["only"] = DENIED
    with capture_logs() as logs:
        for _ in range(3):
            await ids.look()
    assert logs == []


@pytest.mark.asyncio
async def test_a_broker_without_ids_tells_nothing_and_stops_nobody() -> None:
    admin = Admin(only=OLD)
    admin.too_old = True
    ids, metrics = ids_of(admin)
    assert await ids.look() == {}
    assert not await ids.replaced(TOPIC, "AAAAAAAAAAAAAAAAAAAAAA", None)
    assert recreated(metrics) == 0
