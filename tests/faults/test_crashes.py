"""kill -9: nothing lost, nothing decided twice, each impression counted once, each user's results in order."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest

from pipeline.sandbox.processes import StandIns, until
from pipeline.sandbox.worker import Worker
from tests.faults.conftest import FULL, Fleet
from tests.faults.project import FLAG, SDK_KEY, datafile
from tests.faults.verifier import (
    Results,
    Trickle,
    assert_one_result_each,
    delete_group,
    impressions_due,
    produce,
    requests,
)
from tests.support import Broker, TopicMaker

PARTITIONS = 8
REQUESTS = 100_000 if FULL else 20_000


def counted_once(stand_ins: StandIns, due: int) -> None:
    until(lambda: stand_ins.ledger("logx")["distinct"] >= due, timeout=60, what=f"{due} impressions")
    ledger = stand_ins.ledger("logx")
    assert ledger["distinct"] == due
    assert ledger["conflicts"] == 0


@pytest.mark.asyncio
async def test_three_kills_and_a_rebalance(
    kafka: Broker, topics: TopicMaker, stand_ins: StandIns, fleet: Callable[..., Fleet]
) -> None:
    own = fleet(await topics(PARTITIONS))
    results = Results(kafka, own.topics.decide_results, PARTITIONS)

    def play() -> None:
        produce(kafka, own.topics.decide_requests, requests(REQUESTS, users=2000, keys=[FLAG]))
        # Static membership, as in production: who comes back takes its partitions without a rebalance.
        one = own.worker(KAFKA__GROUP_INSTANCE_ID="one", KAFKA__CHUNK_RECORDS="100")
        for kill in range(1, 4):
            one.start()
            results.read(kill * REQUESTS // 8, seconds=60)
            one.kill()
        one.start()
        two = own.worker(KAFKA__GROUP_INSTANCE_ID="two", KAFKA__CHUNK_RECORDS="100")
        two.start()
        results.read_all(REQUESTS, seconds=120)
        assert_one_result_each(results.all, REQUESTS)
        counted_once(stand_ins, impressions_due(results.all))
        assert (one.stop(), two.stop()) == (0, 0)

    await asyncio.to_thread(play)
    results.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("forgotten", ["before any commit", "commits deleted"])
async def test_a_takeover_without_a_commit(
    kafka: Broker, topics: TopicMaker, stand_ins: StandIns, fleet: Callable[..., Fleet], forgotten: str
) -> None:
    own = fleet(await topics(PARTITIONS))
    results = Results(kafka, own.topics.decide_results, PARTITIONS)

    def play() -> None:
        produce(kafka, own.topics.decide_requests, requests(REQUESTS, users=2000, keys=[FLAG]))
        interval = "3600" if forgotten == "before any commit" else "0.2"
        one = own.worker(KAFKA__COMMIT_INTERVAL=interval, KAFKA__CHUNK_RECORDS="100")
        one.start()
        results.read(REQUESTS // 4, seconds=60)
        one.kill()
        stand_ins.put_datafile(SDK_KEY, datafile("second", everyone_gets="new"))
        if forgotten == "commits deleted":
            delete_group(kafka, f"{own.group}.decide")
        two = own.worker()
        two.start()
        results.read_all(REQUESTS, seconds=120)
        assert_one_result_each(results.all, REQUESTS)
        counted_once(stand_ins, impressions_due(results.all))
        assert two.stop() == 0

    await asyncio.to_thread(play)
    results.close()


class Flips:
    """Publishes the two revisions in turn, so that whatever is decided again is decided differently."""

    def __init__(self, stand_ins: StandIns, every: float) -> None:
        self._stand_ins = stand_ins
        self._every = every
        self._at = time.monotonic()
        self.count = 0

    def __call__(self) -> None:
        if time.monotonic() - self._at >= self._every:
            self._at = time.monotonic()
            self.count += 1
            new = self.count % 2
            self._stand_ins.put_datafile(SDK_KEY, datafile(f"flip-{new}", everyone_gets="new" if new else "old"))


@pytest.mark.asyncio
@pytest.mark.timeout(600)
async def test_five_kills_in_a_backlog_while_the_datafile_flips(
    kafka: Broker, topics: TopicMaker, stand_ins: StandIns, fleet: Callable[..., Fleet]
) -> None:
    count, kills = (400_000, 5) if FULL else (60_000, 2)
    own = fleet(await topics(PARTITIONS), OPTIMIZELY__POLL_INTERVAL="0.2")
    results = Results(kafka, own.topics.decide_results, PARTITIONS)
    rng = random.Random(7)
    flips = Flips(stand_ins, every=0.3)

    def began_to_consume(worker: Worker) -> bool:
        results.poll(0.01)
        flips()
        return '_total{role="decide",topic="' in worker.metrics() and _consumed(worker) > 0

    def play() -> None:
        produce(kafka, own.topics.decide_requests, requests(count, users=5000, keys=[FLAG]))
        # More comes while the kills go on, so that each life of the victim has something to consume.
        trickle = Trickle(kafka, own.topics.decide_requests, users=5000, rate=2000, keys=[FLAG])
        steady, victim = own.worker(), own.worker()
        steady.start()
        for _ in range(kills):
            victim.start()
            until(lambda: began_to_consume(victim), timeout=90, what="the victim's first record")
            results.read_for(rng.uniform(0.2, 0.9), meanwhile=flips)
            victim.kill()
        total = count + trickle.stop()
        results.read(total, seconds=240, meanwhile=flips)
        results.read_all(total, seconds=1)
        assert_one_result_each(results.all, total)
        assert steady.stop() == 0

    await asyncio.to_thread(play)
    results.close()
    variations = {decision["variationKey"] for result in results.all for decision in result.value["decisions"]}
    assert variations == {"old", "new"}, "the datafile did not flip while requests were decided"


def _consumed(worker: Worker) -> float:
    for line in worker.metrics().splitlines():
        if line.startswith('decision_pipeline_records_consumed_total{role="decide"'):
            return float(line.rpartition(" ")[2])
    return 0


@pytest.mark.asyncio
async def test_a_worker_that_stood_still_ends_before_it_sends_anything(
    kafka: Broker, topics: TopicMaker, stand_ins: StandIns, fleet: Callable[..., Fleet]
) -> None:
    own = fleet(await topics(PARTITIONS))
    results = Results(kafka, own.topics.decide_results, PARTITIONS)

    def play() -> None:
        produce(kafka, own.topics.decide_requests, requests(REQUESTS, users=2000, keys=[FLAG]))
        zombie = own.worker(KAFKA__CHUNK_RECORDS="50")
        zombie.start()
        results.read(REQUESTS // 20, seconds=60)
        zombie.pause()
        heir = own.worker()
        heir.start()
        stand_ins.put_datafile(SDK_KEY, datafile("second", everyone_gets="new"))
        results.read(REQUESTS, seconds=120)
        zombie.resume()
        assert zombie.wait() == 70
        assert "stood still" in zombie.log_tail()
        results.read_all(REQUESTS, seconds=1)
        assert_one_result_each(results.all, REQUESTS)
        assert heir.stop() == 0

    await asyncio.to_thread(play)
    results.close()
