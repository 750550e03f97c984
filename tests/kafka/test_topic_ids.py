"""The ids of topics, with brokers that lag behind, that lose a topic, or that give no ids; only the wire is faked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from pipeline.kafka.topic_ids import TopicIds
from pipeline.metrics import Metrics

OLD, NEW = b"o" * 16, b"n" * 16
TOPIC = "requests"


class Admin:
    """Brokers by node; each has the topic under one id, or not at all. A question to any broker goes to the first."""

    def __init__(self, **ids: bytes | None) -> None:
        self.ids = ids
        self.too_old = False
        self._client = SimpleNamespace(
            cluster=SimpleNamespace(brokers=lambda: [SimpleNamespace(nodeId=node) for node in self.ids])
        )

    async def _send_request(self, request: object, node: str | None) -> Any:
        if self.too_old:
            raise NotImplementedError
        found = self.ids[node or next(iter(self.ids))]
        return SimpleNamespace(topics=[(3, TOPIC, bytes(16), False)] if found is None else [(0, TOPIC, found, False)])


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
        for found in (OLD, None, None, OLD, None):
            admin.ids["only"] = found
            await ids.look()
    assert [line["event"] for line in logs] == ["topic does not exist any more: waiting until it is created again"] * 2
    assert recreated(metrics) == 0


@pytest.mark.asyncio
async def test_a_broker_without_ids_tells_nothing_and_stops_nobody() -> None:
    admin = Admin(only=OLD)
    admin.too_old = True
    ids, metrics = ids_of(admin)
    assert await ids.look() == {}
    assert not await ids.replaced(TOPIC, "AAAAAAAAAAAAAAAAAAAAAA", None)
    assert recreated(metrics) == 0
