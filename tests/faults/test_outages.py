"""An outage is backpressure: Kafka away, logx refusing. Nothing lost, nothing twice, and nobody leaves a group."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator

import pytest

from pipeline.sandbox.kafka import LocalKafka
from pipeline.sandbox.processes import StandIns, until
from tests.faults.conftest import FULL, Fleet
from tests.faults.project import FLAG
from tests.faults.verifier import Results, Trickle, assert_one_result_each, impressions_due, members, produce, requests
from tests.patience import PATIENCE, stretched
from tests.support import Broker, TopicMaker, create_topics, unique_topics

PARTITIONS = 4
OUTAGE_SECONDS = 60.0 if FULL else 12.0


@pytest.fixture
def mortal_kafka() -> Iterator[LocalKafka]:
    """A broker of one's own: the test stops it."""
    with LocalKafka() as broker:
        yield broker


@pytest.mark.asyncio
async def test_kafka_is_away_under_load(
    mortal_kafka: LocalKafka, stand_ins: StandIns, fleet: Callable[..., Fleet]
) -> None:
    topics = unique_topics()
    await create_topics(mortal_kafka.bootstrap_servers, topics, PARTITIONS, PARTITIONS)
    # Both far below the outage: requests to the broker time out again and again, and what stands still is noticed.
    own = fleet(topics, mortal_kafka, KAFKA__REQUEST_TIMEOUT="2", OPS__STUCK_AFTER="5")
    results = Results(mortal_kafka, topics.decide_results, PARTITIONS)

    def play() -> float:
        worker = own.worker()
        worker.start()
        worker.wait_ready()
        trickle = Trickle(mortal_kafka, topics.decide_requests, users=500, rate=1000, keys=[FLAG])
        results.read(3000, seconds=PATIENCE)
        mortal_kafka.kill()
        results.read_for(OUTAGE_SECONDS)
        assert worker.running
        assert worker.healthy, "an outage is nothing that a restart would mend"
        before = len(results.all)
        mortal_kafka.start()
        back = time.monotonic()
        until(lambda: results.poll(0.02) > 0 and len(results.all) > before, timeout=60, what="the first new result")
        resumed = time.monotonic() - back
        total = trickle.stop()
        results.read_all(total, seconds=60)
        assert_one_result_each(results.all, total)
        due = impressions_due(results.all)
        until(lambda: stand_ins.ledger("logx")["distinct"] >= due, timeout=60, what="the impressions")
        assert stand_ins.ledger("logx")["distinct"] == due == total
        assert worker.running
        assert worker.stop() == 0
        return resumed

    resumed = await asyncio.to_thread(play)
    results.close()
    print(f"resumed {resumed:.1f} s after Kafka was back")
    assert resumed < 5


@pytest.mark.asyncio
async def test_a_broker_that_stands_still_is_seen_told_once_and_told_to_be_back(
    mortal_kafka: LocalKafka, stand_ins: StandIns, fleet: Callable[..., Fleet]
) -> None:
    topics = unique_topics()
    await create_topics(mortal_kafka.bootstrap_servers, topics, PARTITIONS, PARTITIONS)
    own = fleet(topics, mortal_kafka)
    results = Results(mortal_kafka, topics.decide_results, PARTITIONS)

    def play() -> None:
        worker = own.worker()

        def blocked() -> float:
            return worker.metric("upstream_blocked", upstream="kafka", reason="unavailable")

        def answered(request: str) -> float:
            return worker.metric("kafka_last_response_timestamp_seconds", role="decide", request=request)

        def outages() -> list[str]:
            found: list[str] = json.loads(worker.readiness[1])["outages"]
            return found

        worker.start()
        worker.wait_ready()
        produce(mortal_kafka, topics.decide_requests, requests(100, users=50, keys=[FLAG]))
        results.read(100, seconds=30)
        # Nothing more comes, so nothing is written, for longer than an answer may take; a fetch waits for records.
        until(lambda: answered("heartbeat") > 0, timeout=PATIENCE, what="the first heartbeat")
        before = answered("heartbeat")
        until(lambda: answered("heartbeat") > before + 6, timeout=PATIENCE, what="six seconds without a request")
        assert 0 < answered("produce") <= before + 1
        assert (blocked(), outages()) == (0, [])

        mortal_kafka.pause()
        paused = time.monotonic()
        until(lambda: blocked() == 1, timeout=PATIENCE, what="the outage")
        # Two heartbeats' intervals from the first request that is not answered, seen within half of one.
        assert time.monotonic() - paused < stretched(6)
        last = answered("heartbeat"), answered("fetch")
        until(
            lambda: "fetch" in outages()[0] and "heartbeat" in outages()[0],
            timeout=PATIENCE,
            what="both kinds of request",
        )
        (sentence,) = outages()
        assert re.match(r"kafka has been unavailable for \d+ s: no answer to (fetch|heartbeat) of", sentence), sentence
        assert worker.readiness[0] == 200
        assert worker.healthy
        assert (answered("heartbeat"), answered("fetch")) == last, "nothing is answered"
        # Longer than a session, so that the members are put out of their groups and come back.
        until(lambda: time.monotonic() - paused > 10, timeout=PATIENCE, what="ten seconds")
        assert blocked() == 1

        mortal_kafka.resume()
        until(lambda: blocked() == 0, timeout=PATIENCE, what="the end of the outage")
        assert outages() == []
        assert min(answered("heartbeat"), answered("fetch")) > max(last)
        assert worker.log_tail(1000).count("Kafka does not answer") == 1
        (over,) = [line for line in worker.log_tail(1000).splitlines() if "Kafka answers again" in line]
        assert "seconds" in over
        produce(mortal_kafka, topics.decide_requests, requests(100, users=50, keys=[FLAG]))
        results.read(200, seconds=30)
        assert blocked() == 0
        until(
            lambda: worker.metric("decide_latency_seconds_count") == 200,
            timeout=PATIENCE,
            what="the latency of each request",
        )
        assert worker.stop() == 0

    await asyncio.to_thread(play)
    results.close()


@pytest.mark.asyncio
async def test_logx_refuses_for_longer_than_a_poll_may_take(
    kafka: Broker, topics: TopicMaker, stand_ins: StandIns, fleet: Callable[..., Fleet]
) -> None:
    # A window so small that the outage fills every partition, and a poll interval far below the outage.
    own = fleet(
        await topics(PARTITIONS), KAFKA__MAX_POLL_INTERVAL="3", KAFKA__LOGX_WINDOW_RECORDS="500", LOGX__LINGER="0.2"
    )
    count, group = 20_000, f"{own.group}.logx"
    results = Results(kafka, own.topics.decide_results, PARTITIONS)

    def play() -> None:
        worker = own.worker()
        worker.start()
        worker.wait_ready()
        joined = members(kafka, group)
        stand_ins.control("logx", status=503)
        produce(kafka, own.topics.decide_requests, requests(count, users=500, keys=[FLAG]))
        results.read(count, seconds=60)
        until(
            lambda: _value(worker.metrics(), "partitions_full", "logx") == PARTITIONS,
            timeout=PATIENCE,
            what="full windows",
        )
        end = time.monotonic() + 10
        until(
            lambda: members(kafka, group) != joined or time.monotonic() > end,
            timeout=PATIENCE,
            what="ten quiet seconds",
        )
        assert members(kafka, group) == joined
        assert _value(worker.metrics(), "rebalances_total", "logx") == 1
        assert worker.healthy
        stand_ins.control("logx", status=None)
        until(lambda: stand_ins.ledger("logx")["distinct"] >= count, timeout=60, what="the impressions")
        assert stand_ins.ledger("logx")["distinct"] == count
        assert worker.stop() == 0

    await asyncio.to_thread(play)
    results.close()


def _value(metrics: str, name: str, role: str) -> float:
    for line in metrics.splitlines():
        if line.startswith(f'decision_pipeline_{name}{{role="{role}"'):
            return float(line.rpartition(" ")[2])
    return 0.0
