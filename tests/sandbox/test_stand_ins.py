"""The stand-ins answer as the services do, count what arrives, and fail when they are told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StartFailed
from pipeline.sandbox import processes
from pipeline.sandbox import project_data as data
from pipeline.sandbox.processes import SERVICES, Guarded, StandIns, free_port, until
from tests.patience import PATIENCE
from tests.processes import is_running
from tests.sandbox.calls import Answered, call


def event(uuid: int, **changes: Any) -> dict[str, Any]:
    return {
        "entity_id": "93001",
        "key": "campaign_activated",
        "timestamp": 1_790_000_000_000,
        "uuid": f"00000000-0000-4000-8000-{uuid:012d}",
    } | changes


def visitor(*events: dict[str, Any], visitor_id: str = "user-00001", **changes: Any) -> dict[str, Any]:
    metadata = {
        "flag_key": "checkout_redesign",
        "rule_key": "checkout_loyal",
        "rule_type": "feature-test",
        "variation_key": "redesign",
        "enabled": True,
    }
    decision = {"campaign_id": "93001", "experiment_id": "3001", "variation_id": "30012", "metadata": metadata}
    snapshots = [{"decisions": [decision], "events": [each]} for each in events]
    return {"visitor_id": visitor_id, "attributes": [], "snapshots": snapshots} | changes


def payload(*visitors: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "account_id": "10001",
        "project_id": "20001",
        "revision": "42",
        "client_name": "any",
        "client_version": "1",
        "anonymize_ip": True,
        "enrich_decisions": True,
        "region": "US",
        "visitors": list(visitors),
    } | changes


def conversion(uuid: int, **changes: Any) -> dict[str, Any]:
    happened = event(uuid, entity_id="701", key="purchase") | changes
    return {"visitor_id": "user-00001", "attributes": [], "snapshots": [{"events": [happened]}]}


# -- logx


def test_logx_counts_an_event_once_and_its_repeats_beside(stand_ins: StandIns) -> None:
    first = payload(
        visitor(event(1)), visitor(event(2), visitor_id="user-00002"), conversion(3, revenue=1250, value=2.5)
    )
    assert call(stand_ins.logx_url, first).status == 204
    assert call(stand_ins.logx_url, payload(visitor(event(1)))).status == 204
    # The same identity for another visitor: something is wrong with whoever made it.
    assert call(stand_ins.logx_url, payload(visitor(event(2), visitor_id="user-00009"))).status == 204
    counted = stand_ins.ledger("logx", query="full=1")
    assert {name: counted[name] for name in ("dispatches", "events", "distinct", "repeats", "conflicts")} == {
        "dispatches": 3, "events": 5, "distinct": 3, "repeats": 2, "conflicts": 1,
    }  # fmt: skip
    assert (counted["impressions"], counted["conversions"], counted["largest_batch"]) == (2, 1, 3)
    assert counted["by_project"] == {"20001": 5}
    assert counted["entries"][0] == [
        "93001", "00000000-0000-4000-8000-000000000001", 1_790_000_000_000, "user-00001",
        "checkout_redesign", "checkout_loyal", "redesign", "campaign_activated",
    ]  # fmt: skip
    assert counted["entries"][2][3:] == ["user-00001", "", "", "", "purchase"]
    assert counted["values"] == {conversion(3)["snapshots"][0]["events"][0]["uuid"]: {"revenue": 1250, "value": 2.5}}


_PLAN = {"entity_id": "801", "key": "plan", "type": "custom", "value": "premium"}


@pytest.mark.parametrize(
    ("repeat", "conflicts"),
    [
        (payload(visitor(event(1)), conversion(2, revenue=5, tags={"a": 1, "b": 2})), 0),
        (payload(visitor(event(1)), conversion(2, tags={"b": 2, "a": 1}, revenue=5), revision="43"), 0),
        (payload(conversion(2, revenue=6, tags={"a": 1, "b": 2})), 1),
        (payload(conversion(2, revenue=5, tags={"a": 1})), 1),
        (payload(conversion(2, revenue=5, value=1, tags={"a": 1, "b": 2})), 1),
        (payload(conversion(2)), 1),
        (payload(visitor(event(1), attributes=[_PLAN])), 1),
        (payload(visitor(event(1)), project_id="20002"), 1),
    ],
)
def test_a_repeat_that_says_something_else_is_a_conflict(
    stand_ins: StandIns, repeat: dict[str, Any], conflicts: int
) -> None:
    first = payload(visitor(event(1)), conversion(2, revenue=5, tags={"a": 1, "b": 2}))
    for body in (first, repeat):
        assert call(stand_ins.logx_url, body).status == 204
    counted = stand_ins.ledger("logx")
    assert (counted["distinct"], counted["conflicts"]) == (2, conflicts)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("3002", ("experiment_id",)),
        ("30011", ("variation_id",)),
        ("rollout", ("metadata", "rule_type")),
        (False, ("metadata", "enabled")),
        ("c-1", ("metadata", "cmab_uuid")),
    ],
)
def test_a_repeat_with_another_decision_is_a_conflict(
    stand_ins: StandIns, value: object, path: tuple[str, ...]
) -> None:
    for body in (GOOD, GOOD, _with(GOOD, value, *_DECISION, *path)):
        assert call(stand_ins.logx_url, body).status == 204
    counted = stand_ins.ledger("logx")
    assert (counted["repeats"], counted["conflicts"]) == (4, 1)


def _without(document: dict[str, Any], *path: str | int) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(document))
    inner: Any = copy
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return copy


def _with(document: dict[str, Any], value: object, *path: str | int) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(document))
    inner: Any = copy
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return copy


GOOD = payload(
    visitor(event(1), attributes=[{"entity_id": "801", "key": "plan", "type": "custom", "value": "premium"}]),
    conversion(2, tags={"colour": "red"}),
)
_VISITOR = ("visitors", 0)
_SNAPSHOT = (*_VISITOR, "snapshots", 0)
_DECISION = (*_SNAPSHOT, "decisions", 0)
_EVENT = (*_SNAPSHOT, "events", 0)
_ATTRIBUTE = (*_VISITOR, "attributes", 0)
_EVERY_FIELD: list[tuple[str | int, ...]] = [
    *[(name,) for name in GOOD if name != "region"],
    *[(*_VISITOR, name) for name in GOOD["visitors"][0]],
    *[(*_ATTRIBUTE, name) for name in ("entity_id", "key", "type", "value")],
    *[(*_SNAPSHOT, name) for name in ("decisions", "events")],
    *[(*_DECISION, name) for name in ("campaign_id", "experiment_id", "variation_id", "metadata")],
    *[(*_DECISION, "metadata", name) for name in ("flag_key", "rule_key", "rule_type", "variation_key", "enabled")],
    *[(*_EVENT, name) for name in ("entity_id", "key", "timestamp", "uuid")],
]


@pytest.mark.parametrize("path", _EVERY_FIELD, ids=lambda path: ".".join(map(str, path)))
def test_logx_refuses_a_payload_without_a_field_or_with_another_type(
    stand_ins: StandIns, path: tuple[str | int, ...]
) -> None:
    assert call(stand_ins.logx_url, _without(GOOD, *path)).status == 400
    assert call(stand_ins.logx_url, _with(GOOD, {"of": "another type"}, *path)).status == 400


@pytest.mark.parametrize("place", [(), _VISITOR, _ATTRIBUTE, _SNAPSHOT, _DECISION, (*_DECISION, "metadata"), _EVENT])
def test_logx_refuses_a_field_that_is_not_documented(stand_ins: StandIns, place: tuple[str | int, ...]) -> None:
    assert call(stand_ins.logx_url, GOOD).status == 204
    assert call(stand_ins.logx_url, _with(GOOD, "x", *place, "surplus")).status == 400


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([], ("visitors",)),
        ("MARS", ("region",)),
        (False, ("enrich_decisions",)),
        ("", (*_VISITOR, "visitor_id")),
        (2**53 + 1, (*_ATTRIBUTE, "value")),
        (None, (*_ATTRIBUTE, "value")),
        ("30012x", (*_DECISION, "variation_id")),
        ("", (*_DECISION, "variation_id")),
        (1, (*_DECISION, "metadata", "enabled")),
        ("targeted", (*_DECISION, "metadata", "rule_type")),
        ("93002", (*_EVENT, "entity_id")),
        ("purchase", (*_EVENT, "key")),
        (1_790_000_000, (*_EVENT, "timestamp")),
        (1_790_000_000_000.5, (*_EVENT, "timestamp")),
        ("no uuid", (*_EVENT, "uuid")),
        ("0-0-0-0-0", (*_EVENT, "uuid")),
        ("12.50", ("visitors", 1, "snapshots", 0, "events", 0, "revenue")),
    ],
)
def test_logx_refuses_a_value_that_is_not_documented(
    stand_ins: StandIns, value: object, path: tuple[str | int, ...]
) -> None:
    assert call(stand_ins.logx_url, _with(GOOD, value, *path)).status == 400
    assert stand_ins.ledger("logx")["refused"] == {"400": 1}
    assert stand_ins.ledger("logx")["events"] == 0


def test_logx_takes_what_is_documented_as_optional(stand_ins: StandIns) -> None:
    holdout = _with(_with(GOOD, None, *_DECISION, "variation_id"), "holdout", *_DECISION, "metadata", "rule_type")
    assert call(stand_ins.logx_url, holdout).status == 204
    assert call(stand_ins.logx_url, _with(GOOD, "0d6f", *_DECISION, "metadata", "cmab_uuid")).status == 204
    assert call(stand_ins.logx_url, _without(GOOD, "region")).status == 204


def test_logx_has_limits(stand_ins: StandIns) -> None:
    many = [conversion(number) for number in range(10_001)]
    assert call(stand_ins.logx_url, payload(*many[:10_000])).status == 204
    assert call(stand_ins.logx_url, payload(*many)).status == 400
    large = payload(conversion(1, tags={"text": "x" * 3_500_000}))
    assert call(stand_ins.logx_url, large).status == 413


def test_logx_refuses_a_poisoned_body(stand_ins: StandIns) -> None:
    stand_ins.control("logx", poison=["user-00002"], poison_status=503)
    assert (
        call(stand_ins.logx_url, payload(visitor(event(1)), visitor(event(2), visitor_id="user-00002"))).status == 503
    )
    assert call(stand_ins.logx_url, payload(visitor(event(1)))).status == 204


def test_logx_may_read_later(stand_ins: StandIns) -> None:
    stand_ins.control("logx", unread=True)
    assert call(stand_ins.logx_url, GOOD).status == 204
    assert call(stand_ins.logx_url, _with(GOOD, "x", "surplus")).status == 204
    counted = stand_ins.ledger("logx")
    assert (counted["distinct"], counted["refused"]) == (2, {"400": 1})


# -- CDN


def _datafile(stand_ins: StandIns, key: str, **headers: str) -> Answered:
    return call(
        stand_ins.cdn_url_template % key, None, {name.replace("_", "-"): text for name, text in headers.items()}
    )


def test_the_cdn_serves_datafiles_that_name_the_odp_stand_in(stand_ins: StandIns) -> None:
    answer = _datafile(stand_ins, data.PRODUCTION)
    assert answer.json == data.datafile(data.PRODUCTION, stand_ins.odp_host)
    assert _datafile(stand_ins, data.STAGING).json["environmentKey"] == "staging"
    assert _datafile(stand_ins, data.REVOKED).status == 403
    assert stand_ins.ledger("cdn")["by_key"][data.REVOKED] == {"403": 1}


def test_the_cdn_answers_conditionally(stand_ins: StandIns) -> None:
    first = _datafile(stand_ins, data.PRODUCTION)
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    assert _datafile(stand_ins, data.PRODUCTION, If_None_Match=etag).status == 304
    assert _datafile(stand_ins, data.PRODUCTION, If_Modified_Since=modified).status == 304
    stand_ins.control("cdn", revision={data.PRODUCTION: "43"})
    # Within the same second, yet a later date.
    for headers in ({"If_None_Match": etag}, {"If_Modified_Since": modified}):
        second = _datafile(stand_ins, data.PRODUCTION, **headers)
        assert (second.status, second.json["revision"]) == (200, "43")
    assert stand_ins.ledger("cdn")["by_key"] == {data.PRODUCTION: {"200": 3, "304": 2}}


def test_the_cdn_publishes_denies_and_alternates(stand_ins: StandIns) -> None:
    stand_ins.put_datafile("newKey", b'{"revision":"1"}')
    assert _datafile(stand_ins, "newKey").json == {"revision": "1"}
    stand_ins.put_datafile("newKey", b'{"revision":"2"}')
    stand_ins.control("cdn", alternate=["newKey"])
    revisions = [_datafile(stand_ins, "newKey").json["revision"] for _ in range(4)]
    assert sorted(revisions) == ["1", "1", "2", "2"]
    assert revisions[0] != revisions[1]
    stand_ins.control("cdn", denied=["newKey"])
    assert _datafile(stand_ins, "newKey").status == 403
    stand_ins.control("cdn", reset=True)
    assert _datafile(stand_ins, "newKey").status == 403
    assert _datafile(stand_ins, data.PRODUCTION).json["revision"] == "42"


# -- faults and life, the same for all


def test_faults_are_ordered_and_forgotten(stand_ins: StandIns) -> None:
    stand_ins.control("cdn", fail_next=1, fail_status=429, retry_after=7)
    refused = _datafile(stand_ins, data.PRODUCTION)
    assert (refused.status, refused.headers["Retry-After"]) == (429, "7")
    assert _datafile(stand_ins, data.PRODUCTION).status == 200
    stand_ins.control("cdn", status=503)
    assert [_datafile(stand_ins, data.PRODUCTION).status for _ in range(2)] == [503, 503]
    stand_ins.control("cdn", status=None)
    assert _datafile(stand_ins, data.PRODUCTION).status == 200
    stand_ins.control("cdn", status=503)
    stand_ins.control("cdn", reset=True)
    assert _datafile(stand_ins, data.PRODUCTION).status == 200
    assert stand_ins.ledger("cdn")["requests"] == 1


def test_a_dropped_answer_was_taken(stand_ins: StandIns) -> None:
    stand_ins.control("logx", drop_next=1)
    with pytest.raises(OSError, match=r"Remote end closed|Connection reset"):
        call(stand_ins.logx_url, GOOD)
    assert call(stand_ins.logx_url, GOOD).status == 204
    counted = stand_ins.ledger("logx")
    assert (counted["distinct"], counted["repeats"]) == (2, 2)


def test_a_held_answer_was_taken_and_comes_when_it_is_released(stand_ins: StandIns) -> None:
    stand_ins.control("logx", hold_answers=True)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call, stand_ins.logx_url, GOOD)
        until(lambda: stand_ins.ledger("logx")["unanswered"] == 1, timeout=PATIENCE, what="a held answer")
        assert stand_ins.ledger("logx")["distinct"] == 2
        assert not answer.done()
        stand_ins.control("logx", hold_answers=False)
        assert answer.result(5).status == 204
    assert stand_ins.ledger("logx")["unanswered"] == 0


def test_an_unknown_control_is_refused(stand_ins: StandIns) -> None:
    answer = call(stand_ins.address("odp") + "/control", {"latncy": 1})
    assert (answer.status, answer.json) == (400, {"error": "no such control: latncy"})


@pytest.mark.parametrize("service", SERVICES)
def test_a_stand_in_imports_nothing_of_the_worker(service: str) -> None:
    script = f"""
        import sys
        import pipeline.sandbox.{service}
        own = {{name for name in sys.modules if name.startswith("pipeline.")}}
        print(sorted(name for name in own if not name.startswith("pipeline.sandbox")))
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert found.stdout.strip() == "[]"


def test_a_stand_in_ends_with_its_standard_input() -> None:
    command = [sys.executable, "-m", "pipeline.sandbox.cdn", "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["service"] == "cdn"
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


def test_ports_are_chosen_and_a_port_in_use_is_told_in_one_line() -> None:
    port = free_port()
    with StandIns(["logx"], ports={"logx": port}) as running:
        assert running.logx_url == f"http://127.0.0.1:{port}/v1/events"
        with pytest.raises(StartFailed, match=f"logx ended: 127.0.0.1:{port} cannot be listened on: .*in use") as told:
            StandIns(["logx"], ports={"logx": port})
        assert "Traceback" not in str(told.value)
        assert running.ended == ()
        os.kill(running.pid("logx"), signal.SIGKILL)
        until(lambda: running.ended == ("logx",), timeout=PATIENCE, what="its end")


def test_stand_ins_die_with_their_starter() -> None:
    script = """
        import sys
        from pipeline.sandbox.processes import StandIns
        running = StandIns()
        print(*map(running.pid, running.services), running.directory, flush=True)
        sys.stdin.read()
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with starter:
        assert starter.stdout is not None
        *pids, directory = starter.stdout.readline().split()
        assert len(pids) == len(SERVICES)
        starter.send_signal(signal.SIGKILL)
    until(lambda: not any(is_running(int(pid)) for pid in pids), timeout=PATIENCE, what="the end of the stand-ins")
    until(lambda: not Path(directory).exists(), timeout=PATIENCE, what="the removal of their logs")


def test_a_command_that_cannot_be_run_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StartFailed, match=r"/no/such cannot be started: No such file"):
        Guarded(["/no/such"], log=tmp_path / "log")
    with pytest.raises(StartFailed, match=r"python.* cannot be started: $"):
        Guarded([sys.executable], log=tmp_path / "missing" / "log")
    assert capfd.readouterr() == ("", "")


def test_a_starter_that_goes_before_it_is_told_leaves_nothing(tmp_path: Path) -> None:
    guard = Path(processes.__file__).with_name("guard.py")
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = subprocess.Popen(
        [sys.executable, "-I", str(guard), "--log", str(tmp_path / "log"), "--", *sleeping],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stderr:
        process.stdout.close()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.stdin.close()
        assert process.wait(PATIENCE) == 128 + signal.SIGKILL
        assert process.stderr.read() == b""


def test_a_guarded_command_gives_its_status_and_log(tmp_path: Path) -> None:
    process = Guarded([sys.executable, "-c", "print('said'); raise SystemExit(3)"], log=tmp_path / "log")
    assert process.wait(PATIENCE) == 3
    assert process.log_tail() == "said"
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    process = Guarded([sys.executable, "-c", stubborn], log=tmp_path / "stubborn")
    until(lambda: process.log_tail() == "up", timeout=PATIENCE, what="its start")
    with pytest.raises(TimeoutError):
        process.wait(0.05)
    assert process.stop(timeout=0.2) == 128 + signal.SIGKILL
    assert not process.running
