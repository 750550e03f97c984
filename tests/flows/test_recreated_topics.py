"""A topic deleted and created again, between two lives of a worker and under it: no record is passed over."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from pipeline.sandbox.processes import StandIns, until
from pipeline.sandbox.worker import Worker
from tests.flows.conftest import PARTITIONS, Own
from tests.flows.project import FLAGS
from tests.flows.wire import Outgoing, Reader, keyed
from tests.support import add_partitions, recreate_topic

ON = FLAGS[0]
APPEND, CREATE = "LogAppendTime", "CreateTime"
RECREATED = "topic was deleted and created again"


def requests(name: str, count: int, **fields: object) -> list[Outgoing]:
    """Requests of users of their own, all on one partition: its offsets are then those of the other topic."""
    return [
        keyed({"userId": f"{name}-{number}", "keys": [ON], **fields})._replace(partition=1) for number in range(count)
    ]


def users(records: Iterable[Outgoing]) -> list[str]:
    return [str(json.loads(record.value or b"")["userId"]) for record in records]


def answers(results: Reader, records: list[Outgoing], *, seconds: float = 40) -> Counter[str]:
    """How many results each user has, once all of them have one; and a while later."""
    wanted = set(users(records))

    def counted() -> Counter[str]:
        return Counter(str(result.document["userId"]) for result in results.all)

    def complete() -> bool:
        results.poll(0.1)
        return wanted <= counted().keys()

    until(complete, timeout=seconds, what=f"a result of each of {len(wanted)} users")
    while results.poll(0.5):
        pass
    return Counter({user: count for user, count in counted().items() if user in wanted})


def recreate(one: Own, topic: str, kind: str = APPEND) -> None:
    asyncio.run(recreate_topic(one.flow.broker.bootstrap_servers, topic, PARTITIONS, message_timestamp_type=kind))


def told(worker: Worker) -> list[tuple[str, str]]:
    """Role and topic of each line that says so, in order."""
    lines = [json.loads(line) for line in worker.log.read_text().splitlines() if RECREATED in line]
    assert all(line["level"] == "error" for line in lines)
    return [(line["role"], line["topic"]) for line in lines]


@pytest.mark.parametrize("kind", [APPEND, CREATE])
def test_requests_created_again_between_two_lives_are_all_answered(own: Callable[..., Own], kind: str) -> None:
    one = own()
    topic = one.flow.topics.decide_requests
    recreate(one, topic, kind)
    before, after = requests("before", 20), requests("after", 30)
    worker = one.worker("run", "--roles", "decide")
    worker.start()
    one.flow.writer.send(topic, before)
    assert set(answers(one.flow.results, before).values()) == {1}
    assert worker.stop() == 0
    recreate(one, topic, kind)
    one.flow.writer.send(topic, after)
    worker.start()
    assert answers(one.flow.results, after) == dict.fromkeys(users(after), 1)
    assert worker.stop() == 0


@pytest.mark.parametrize("kind", [APPEND, CREATE])
def test_requests_created_again_under_a_running_worker_are_all_answered_once(
    own: Callable[..., Own], kind: str
) -> None:
    one = own()
    topic = one.flow.topics.decide_requests
    recreate(one, topic, kind)
    before, after = requests("before", 20), requests("after", 30)
    worker = one.worker("run", "--roles", "decide")
    worker.start()
    one.flow.writer.send(topic, before)
    answers(one.flow.results, before)
    recreate(one, topic, kind)
    # More than the position: nothing is out of range, and the first of them would never be read.
    one.flow.writer.send(topic, after)
    assert answers(one.flow.results, after) == dict.fromkeys(users(after), 1)
    assert told(worker) == [("decide", topic)]
    assert worker.metric("topics_recreated_total", role="decide", topic=topic) == 1
    assert worker.healthy
    # The next owner knows the requests that were answered before the reopening and after it.
    worker.kill()
    worker.start()
    more = requests("more", 5)
    one.flow.writer.send(topic, more)
    assert answers(one.flow.results, more) == dict.fromkeys(users(more), 1)
    assert answers(one.flow.results, after) == dict.fromkeys(users(after), 1)
    assert worker.stop() == 0


def test_a_new_log_that_ends_before_the_position_is_read_from_its_start(own: Callable[..., Own]) -> None:
    one = own()
    topic = one.flow.topics.decide_requests
    before, after = requests("before", 20), requests("after", 3)
    worker = one.worker("run", "--roles", "decide")
    worker.start()
    one.flow.writer.send(topic, before)
    answers(one.flow.results, before)
    recreate(one, topic)
    until(lambda: told(worker) == [("decide", topic)], timeout=30, what="the line that says so")
    one.flow.writer.send(topic, after)
    assert answers(one.flow.results, after) == dict.fromkeys(users(after), 1)
    assert worker.running
    assert worker.stop() == 0


def test_results_and_dead_letters_created_again_under_a_running_worker_are_written_and_read(
    own: Callable[..., Own], stand_ins: StandIns
) -> None:
    one = own()
    topics, broker = one.flow.topics, one.flow.broker.bootstrap_servers
    before, after, more = requests("before", 40), requests("after", 30), requests("more", 5)
    worker = one.worker()
    worker.start()
    one.flow.writer.send(topics.decide_requests, before)
    answers(one.flow.results, before)
    until(lambda: stand_ins.ledger("logx")["distinct"] == 40, timeout=20, what="the first impressions")
    recreate(one, topics.decide_results)
    recreate(one, topics.dead_letters)
    results, letters = (
        Reader(broker, topics.decide_results, PARTITIONS),
        Reader(broker, topics.dead_letters, PARTITIONS),
    )
    try:
        one.flow.writer.send(topics.decide_requests, after)
        (bad,) = one.flow.writer.send(topics.decide_requests, [Outgoing(b"no JSON", b"somebody")])
        assert answers(results, after) == dict.fromkeys(users(after), 1)
        assert letters.of([bad])
        until(lambda: stand_ins.ledger("logx")["distinct"] == 70, timeout=40, what="the impressions of the new topic")
        until(
            lambda: worker.metric("topics_recreated_total", role="decide", topic=topics.decide_results) == 1,
            timeout=20, what="the metric",
        )  # fmt: skip
        assert worker.metric("topics_recreated_total", role="decide", topic=topics.dead_letters) == 1
        assert worker.metric("topics_recreated_total", role="logx", topic=topics.decide_results) == 1
        # A floor of the old log would hide from the next owner what was published.
        worker.kill()
        worker.start()
        one.flow.writer.send(topics.decide_requests, more)
        assert answers(results, more) == dict.fromkeys(users(more), 1)
        assert answers(results, after) == dict.fromkeys(users(after), 1)
    finally:
        results.close()
        letters.close()
    assert worker.stop() == 0


def test_results_created_again_with_fewer_partitions_stop_only_those_beyond_and_lose_no_request(
    own: Callable[..., Own],
) -> None:
    one = own()
    topics, broker = one.flow.topics, one.flow.broker.bootstrap_servers
    first, second, beyond = (request._replace(partition=number) for number, request in enumerate(requests("asked", 3)))
    worker = one.worker("run", "--roles", "decide")
    worker.start()
    worker.wait_ready()

    def handed_over() -> None:
        # Its result is on its way to a partition that does not come back: nothing will acknowledge it.
        one.flow.writer.send(topics.decide_requests, [beyond])
        until(lambda: worker.metric("decide_requests_total", outcome="decided") == 1, timeout=40, what="the result")

    asyncio.run(recreate_topic(broker, topics.decide_results, 2, had=PARTITIONS, meanwhile=handed_over))
    assert worker.wait(30) == 70
    reason = json.loads(worker.log.read_text().splitlines()[-1])["reason"]
    if reason != f"{topics.decide_results}-2 cannot be written":
        # Kafka had been given the result before the topic was gone; else the writer is the first to know.
        assert reason == "role decide cannot go on"
        assert f"{topics.decide_results} was created again with fewer partitions (2)" in worker.log_tail()
    worker.start()
    until(lambda: worker.metric("partitions_blocked", role="decide") == 2, timeout=30, what="the blocked partitions")
    one.flow.writer.send(topics.decide_requests, [first, second])
    results = Reader(broker, topics.decide_results, 2)
    try:
        assert answers(results, [first, second]) == dict.fromkeys(users([first, second]), 1)
    finally:
        results.close()
    # As the log line and the alert say: the topic gets the partitions that it lacks.
    asyncio.run(add_partitions(broker, topics.decide_results, PARTITIONS))
    results = Reader(broker, topics.decide_results, PARTITIONS)
    try:
        assert answers(results, [first, second, beyond]) == dict.fromkeys(users([first, second, beyond]), 1)
    finally:
        results.close()
    assert worker.stop() == 0
