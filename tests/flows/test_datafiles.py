"""Datafiles: a denied key hurts nobody else, a CDN that is down holds the start, a new revision decides at once."""

from __future__ import annotations

import json
from collections.abc import Callable

from pipeline.sandbox.processes import StandIns, until
from pipeline.sandbox.project_data import REVOKED
from tests.flows.conftest import Own, metric
from tests.flows.project import FLAGS, SDK_KEY, datafile
from tests.flows.wire import keyed
from tests.patience import PATIENCE

ON = FLAGS[0]
DENIED = "unable to fetch fresh datafile (consider rechecking SDK key), status code: 403 Forbidden"


def test_a_denied_key_is_answered_in_the_agents_words_until_the_cdn_has_it(
    own: Callable[..., Own], stand_ins: StandIns
) -> None:
    one = own(OPTIMIZELY__SDK_KEYS=json.dumps([SDK_KEY, REVOKED]), OPTIMIZELY__POLL_INTERVAL="0.2")
    worker = one.worker()
    worker.start()
    worker.wait_ready()
    bodies = [{"sdkKey": key, "userId": "someone", "keys": [ON]} for key in (REVOKED, SDK_KEY)]
    denied, fine = one.flow.decide(*bodies)
    assert (denied["error"], denied["decisions"]) == (DENIED, [])
    assert fine["decisions"][0]["variationKey"] == "on"
    stand_ins.put_datafile(REVOKED, datafile(REVOKED, revision="7"))
    until(lambda: "error" not in one.flow.decide(bodies[0])[0], timeout=PATIENCE, what="decisions of the denied key")
    # Once it was good it stays in use, whatever the CDN says of it later.
    stand_ins.control("cdn", denied=[REVOKED])
    answers = stand_ins.ledger("cdn")["by_key"][REVOKED].get("403", 0)
    until(
        lambda: stand_ins.ledger("cdn")["by_key"][REVOKED]["403"] > answers + 1,
        timeout=PATIENCE,
        what="two more denials",
    )
    (still,) = one.flow.decide(bodies[0])
    assert still["revision"] == "7"
    assert worker.stop() == 0


def test_a_cdn_that_is_down_holds_the_start_and_nothing_is_consumed(
    own: Callable[..., Own], stand_ins: StandIns
) -> None:
    one = own()
    stand_ins.control("cdn", status=503)
    sent = one.flow.writer.send(one.flow.topics.decide_requests, [keyed({"userId": "early", "keys": [ON]})])
    worker = one.worker()
    worker.start()
    until(lambda: "waiting for the datafiles" in worker.readiness[1], timeout=PATIENCE, what="what is awaited")
    assert worker.readiness[0] == 503
    asked = stand_ins.ledger("cdn")["requests"]
    until(lambda: stand_ins.ledger("cdn")["requests"] > asked, timeout=PATIENCE, what="another try")
    assert metric(worker, "partitions_owned", "decide") == metric(worker, "records_consumed_total", "decide") == 0
    assert worker.healthy, "an outage is no reason to be restarted"
    stand_ins.control("cdn", status=None)
    (result,) = one.flow.results.of(sent)
    assert result.document["decisions"][0]["variationKey"] == "on"
    assert worker.stop() == 0


def test_a_new_revision_decides_and_is_named_in_the_result(own: Callable[..., Own], stand_ins: StandIns) -> None:
    one = own(OPTIMIZELY__POLL_INTERVAL="0.2")
    worker = one.worker()
    worker.start()
    worker.wait_ready()
    request = {"userId": "someone", "keys": [ON]}
    assert one.flow.decide(request)[0]["revision"] == "1"
    stand_ins.put_datafile(SDK_KEY, datafile(revision="2"))
    until(lambda: one.flow.decide(request)[0]["revision"] == "2", timeout=PATIENCE, what="revision 2")
    assert worker.stop() == 0
