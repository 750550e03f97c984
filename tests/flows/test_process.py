"""The worker as operators meet it: roles apart, restarts, signals, and starts that fail in words for a person."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import urllib.request
from collections.abc import Callable
from typing import Any

from pipeline.sandbox.processes import StandIns, free_port, until
from pipeline.sandbox.worker import Worker
from pipeline.version import versions
from tests.flows.conftest import PARTITIONS, Own, metric
from tests.flows.project import FLAGS
from tests.flows.wire import Outgoing, Reader, keyed
from tests.patience import PATIENCE, stretched
from tests.support import add_partitions, unique_topics

ON = FLAGS[0]


def request(user: str, **fields: object) -> Outgoing:
    return keyed({"userId": user, "keys": [ON], **fields})


def test_role_decide_alone_publishes_and_posts_nothing_and_role_logx_alone_posts_it(
    own: Callable[..., Own], stand_ins: StandIns
) -> None:
    one = own()
    users = [f"apart-{number}" for number in range(40)]
    decide = one.worker("run", "--roles", "decide")
    decide.start()
    sent = one.flow.writer.send(one.flow.topics.decide_requests, map(request, users))
    one.flow.results.of(sent)
    assert decide.stop() == 0
    assert stand_ins.ledger("logx")["requests"] == 0
    logx = one.worker("run", "--roles", "logx")
    logx.start()
    events = one.flow.events_of(*users, count=40)
    assert {event["visitor"] for event in events} == set(users)
    assert logx.stop() == 0
    assert one.flow.results.poll(0.5) == 0, "role logx must publish nothing"


def logged(worker: Worker, event: str) -> list[dict[str, Any]]:
    whole, _, _ = worker.log.read_text().rpartition("\n")
    return [line for line in map(json.loads, whole.splitlines()) if line["event"] == event]


def test_a_start_says_what_runs_which_partitions_in_a_line_for_each_role_and_when_it_is_ready(
    own: Callable[..., Own],
) -> None:
    one = own()
    worker = one.worker()
    worker.start()
    worker.wait_ready()
    until(lambda: bool(logged(worker, "ready")), timeout=10, what="the line that says so")
    (started,), (ready,) = logged(worker, "worker started"), logged(worker, "ready")
    assert {name: started[name] for name in versions()} == versions()
    assert ready["partitions"] == {"decide": PARTITIONS, "logx": 2 * PARTITIONS, "odp_events": PARTITIONS}
    assert 0 < ready["seconds"] < 60
    topics, all_of_them = one.flow.topics, f"0-{PARTITIONS - 1}"
    assigned, opened = (
        {line["role"]: (line["count"], line["partitions"]) for line in logged(worker, f"partitions {event}")}
        for event in ("assigned", "opened")
    )
    read_by_logx = ", ".join(f"{topic} {all_of_them}" for topic in sorted((topics.decide_results, topics.track_events)))
    assert assigned == opened
    assert opened == {
        "decide": (PARTITIONS, f"{topics.decide_requests} {all_of_them}"),
        "logx": (2 * PARTITIONS, read_by_logx),
        "odp_events": (PARTITIONS, f"{topics.odp_events} {all_of_them}"),
    }
    assert len(logged(worker, "partitions opened")) == 3
    assert logged(worker, "partition opened") == []
    assert worker.metric("build_info", **versions()) == 1
    with urllib.request.urlopen(worker.metrics_url.replace("/metrics", "/health"), timeout=5) as answer:
        (datafile, *_) = json.load(answer)["datafiles"]
    assert datafile["ageSeconds"] == round(datafile["ageSeconds"], 1) < 60
    assert worker.stop() == 0


def test_a_restart_with_static_membership_moves_no_partition_of_the_others(own: Callable[..., Own]) -> None:
    one = own(KAFKA__HEARTBEAT_INTERVAL="0.3")
    first = one.worker("run", "--roles", "decide", KAFKA__GROUP_INSTANCE_ID="pod-0")
    second = one.worker("run", "--roles", "decide", KAFKA__GROUP_INSTANCE_ID="pod-1")
    first.start()
    first.wait_ready()
    second.start()

    def shared() -> bool:
        owned = [metric(worker, "partitions_owned", "decide") for worker in (first, second)]
        return owned == [PARTITIONS / 2, PARTITIONS / 2]

    until(shared, timeout=PATIENCE, what="two partitions each")
    before = metric(first, "rebalances_total", "decide")
    assert second.stop() == 0
    second.start()
    until(shared, timeout=PATIENCE, what="its partitions back")
    records = [request("anyone")._replace(partition=number) for number in range(PARTITIONS)]
    one.flow.results.of(one.flow.writer.send(one.flow.topics.decide_requests, records))
    assert metric(first, "rebalances_total", "decide") == before
    assert (first.stop(), second.stop()) == (0, 0)


def test_sigterm_with_work_under_way_loses_nothing_and_does_nothing_twice(
    own: Callable[..., Own], stand_ins: StandIns
) -> None:
    one = own(KAFKA__CHUNK_RECORDS="20", KAFKA__WINDOW_RECORDS="200")
    # Every logx request takes its time, so that impressions are under way whenever the signal comes.
    stand_ins.control("logx", latency=0.2)
    users = [f"term-{number:04d}" for number in range(6000)]
    sent = one.flow.writer.send(one.flow.topics.decide_requests, map(request, users))
    worker = one.worker()
    worker.start()
    until(lambda: one.flow.results.poll(0.02) > 0, timeout=PATIENCE, what="the first results")
    assert worker.stop() == 0
    stopped_at = len(one.flow.results.all)
    while one.flow.results.poll(0.3):
        stopped_at = len(one.flow.results.all)
    assert 0 < stopped_at < len(users), "the signal did not meet work under way"
    worker.start()
    assert len(one.flow.results.of(sent)) == len(one.flow.results.all) == len(users)
    until(lambda: stand_ins.ledger("logx")["distinct"] == len(users), timeout=PATIENCE, what="each impression")
    ledger = stand_ins.ledger("logx")
    assert (ledger["impressions"], ledger["repeats"]) == (len(users), 0)
    assert worker.stop() == 0


def test_a_second_sigterm_ends_the_process_at_once(own: Callable[..., Own], stand_ins: StandIns) -> None:
    one = own(LOGX__LINGER="0")
    worker = one.worker()
    worker.start()
    worker.wait_ready()
    # What logx does not take is waited for politely for many seconds.
    stand_ins.control("logx", status=503)
    one.flow.results.of(one.flow.writer.send(one.flow.topics.decide_requests, [request("held up")]))
    until(lambda: stand_ins.ledger("logx")["requests"] > 0, timeout=PATIENCE, what="a refused dispatch")
    worker.signal(signal.SIGTERM)
    until(lambda: '"stopping"' in worker.log_tail(), timeout=PATIENCE, what="the stop")
    worker.signal(signal.SIGTERM)
    assert worker.wait(stretched(3)) == 128 + signal.SIGTERM
    assert "a second SIGTERM came during the stop" in worker.log_tail()


# Starts that fail


def message_of(worker: Worker, *, status: int = 1, seconds: float | None = None) -> str:
    """What a start that fails says: its last line, JSON as every other, and no traceback."""
    worker.start()
    assert worker.wait(stretched(20) if seconds is None else seconds) == status
    lines = [json.loads(line) for line in worker.log.read_text().splitlines()]
    assert not any("exception" in line for line in lines)
    told = [line for line in lines if line["logger"] == "pipeline.run"]
    assert told == lines[-1:]
    assert told[0]["level"] == "error"
    message: str = told[0]["event"]
    return message


def test_missing_topics_are_named_with_the_command_that_makes_them(own: Callable[..., Own]) -> None:
    one, topics = own(), unique_topics()
    worker = one.worker(TOPICS__DECIDE_RESULTS=topics.decide_results, TOPICS__ODP_EVENTS=topics.odp_events)
    message = message_of(worker)
    assert f"missing topics: {topics.odp_events}, {topics.decide_results}" in message
    assert "`pipeline topics create`" in message


def test_a_broker_that_cannot_be_reached_is_named_within_the_start_timeout(own: Callable[..., Own]) -> None:
    one = own()
    worker = one.worker(KAFKA__BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}", KAFKA__START_TIMEOUT="2")
    assert "no broker can be reached: check PIPELINE_KAFKA__BOOTSTRAP_SERVERS" in message_of(
        worker, seconds=stretched(10)
    )


def test_an_operations_port_in_use_is_named_with_the_setting(own: Callable[..., Own]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        worker = own().worker(OPS__PORT=str(port))
        message = message_of(worker)
    assert f"127.0.0.1:{port} cannot be listened on" in message
    assert "PIPELINE_OPS__PORT" in message


def test_without_sdk_keys_the_setting_is_named(own: Callable[..., Own]) -> None:
    worker = own().worker(OPTIMIZELY__SDK_KEYS="[]", OPS__LOG_LEVEL="error")
    assert message_of(worker, status=2) == "PIPELINE_OPTIMIZELY__SDK_KEYS: name at least one SDK key"


def test_a_partition_waits_for_its_results_partition_and_the_others_go_on(own: Callable[..., Own]) -> None:
    one = own(results_partitions=PARTITIONS - 1)
    records = [request(f"user-{number}")._replace(partition=number) for number in range(PARTITIONS)]
    *served, waiting = one.flow.writer.send(one.flow.topics.decide_requests, records)
    worker = one.worker("run", "--roles", "decide")
    worker.start()
    one.flow.results.of(served)
    until(lambda: metric(worker, "partitions_blocked", "decide") == 1, timeout=PATIENCE, what="the blocked partition")
    told = json.loads(_line_with(worker, "needs at least as many partitions"))
    assert (told["level"], told["partition"], told["partitions"]) == ("error", waiting.partition, PARTITIONS - 1)
    assert worker.healthy
    # No restart: the topic grows, and that is all.
    broker, results = one.flow.broker.bootstrap_servers, one.flow.topics.decide_results
    asyncio.run(add_partitions(broker, results, PARTITIONS))
    grown = Reader(broker, results, PARTITIONS)
    try:
        (result,) = grown.of([waiting])
    finally:
        grown.close()
    assert (result.partition, result.document["userId"]) == (waiting.partition, f"user-{waiting.partition}")
    told = json.loads(_line_with(worker, "this partition waits no longer"))
    assert (told["level"], told["partition"], told["partitions"]) == ("info", waiting.partition, PARTITIONS)
    until(lambda: metric(worker, "partitions_blocked", "decide") == 0, timeout=PATIENCE, what="no blocked partition")
    assert worker.stop() == 0


def _line_with(worker: Worker, words: str) -> str:
    (line,) = [line for line in worker.log.read_text().splitlines() if words in line]
    return line


def test_the_default_age_expires_requests_that_name_none(own: Callable[..., Own]) -> None:
    one = own(DECIDE__MAX_AGE="0.001")
    sent = one.flow.writer.send(
        one.flow.topics.decide_requests, [request("old"), request("old", ttlMs=60_000), request("old", ttlMs=1)]
    )
    worker = one.worker("run", "--roles", "decide")
    worker.start()
    errors = [result.document.get("error") for result in one.flow.results.of(sent)]
    assert errors == ["request expired", None, "request expired"]
    assert worker.stop() == 0
