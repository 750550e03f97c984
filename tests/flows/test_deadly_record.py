"""A record whose handling kills the process is found: it alone becomes a dead letter, its neighbours have results."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.sandbox.worker import Worker
from tests.flows.conftest import Own
from tests.flows.deadly_worker import MARKER
from tests.flows.project import FLAGS
from tests.flows.wire import keyed

KILLED = 128 + 9


def test_a_record_that_kills_its_process_is_the_only_one_lost_to_it(own: Callable[..., Own]) -> None:
    one = own()
    bodies = [{"userId": f"user-{number}", "keys": [FLAGS[0]]} for number in range(60)]
    bodies[37]["requestId"] = MARKER.decode()
    records = [keyed(body)._replace(partition=1) for body in bodies]
    sent = one.flow.writer.send(one.flow.topics.decide_requests, records)
    # A static member that dies takes its partitions back without waiting for a session to end.
    worker = one.worker(
        "run", "--roles", "decide", module="tests.flows.deadly_worker",
        KAFKA__GROUP_INSTANCE_ID="deadly", KAFKA__COMMIT_INTERVAL="0.05",
    )  # fmt: skip
    ends = 0
    while ends < 6:
        worker.start()
        try:
            status = worker.wait(0.5 if ends > 3 else 20)
        except TimeoutError:
            break
        assert status == KILLED, worker.log_tail()
        ends += 1
    (letter,) = one.flow.letters([sent[37]])
    assert letter.headers["pipeline-reason"] == b"crashed_worker"
    assert letter.value == records[37].value
    neighbours = sent[:37] + sent[38:]
    assert len(one.flow.results.of(neighbours)) == len(one.flow.results.all) == 59
    assert len(one.flow.dead_letters.all) == 1
    assert worker.stop() == 0
    assert ends == 4, "three unclean ends, and one with the record alone in hand"
    log = worker.log.read_text()
    assert "records go one at a time" in log
    assert worker_is_trusted_again(worker, one)


def worker_is_trusted_again(worker: Worker, one: Own) -> bool:
    """After a clean stop the next owner takes records together, without a warning."""
    before = worker.log.read_text().count("records go one at a time")
    worker.start()
    one.flow.results.of(one.flow.writer.send(one.flow.topics.decide_requests, [keyed({"userId": "later"})]))
    assert worker.stop() == 0
    return worker.log.read_text().count("records go one at a time") == before
