"""A worker as it is wired: what operators see is all that there is."""

from __future__ import annotations

import pytest
import structlog
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError, TopicAuthorizationFailedError

from pipeline.assembly import Worker, start_failure
from pipeline.runtime import Fence
from pipeline.settings import Settings


@pytest.mark.asyncio
@pytest.mark.parametrize("profiles", [{}, {"redis_url": "redis://127.0.0.1:1/0"}], ids=["without Redis", "with Redis"])
async def test_every_upstream_that_has_a_gauge_is_told_by_ready_and_health(profiles: dict[str, str]) -> None:
    settings = Settings.model_validate({"optimizely": {"sdk_keys": ["key"]}, "profiles": profiles})
    worker = Worker(settings, Fence(60))
    gauges = {
        sample.labels["upstream"]
        for family in worker.registry.collect()
        for sample in family.samples
        if sample.name == "decision_pipeline_upstream_blocked"
    }
    assert [one.name for one in worker.upstreams] == list(dict.fromkeys(one.name for one in worker.upstreams))
    assert {one.name for one in worker.upstreams} == gauges
    assert ("redis" in gauges) == bool(profiles)
    outage = worker.logx.upstream.outage(begins="held", ends="resumed", log=structlog.get_logger())
    outage.begin("unavailable", "HTTP 503")
    assert worker.outages() == [outage]
    assert worker.status()["outages"] == [outage.document()]
    if worker.profiles is not None:
        await worker.profiles.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "Kafka did not answer during the start: TimeoutError"),
        (KafkaTimeoutError(), "Kafka did not answer during the start: KafkaTimeoutError"),
        (KafkaConnectionError("gone"), "Kafka did not answer during the start: KafkaConnectionError: gone"),
        (
            TopicAuthorizationFailedError({"decide.requests"}),
            "Kafka refused a request of the start: [Error 29] TopicAuthorizationFailedError: {'decide.requests'}",
        ),
    ],
)
def test_a_refusal_of_kafka_at_the_start_is_not_told_as_silence(error: KafkaError | TimeoutError, said: str) -> None:
    assert start_failure(error) == said
