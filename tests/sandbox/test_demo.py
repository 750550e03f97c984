"""The demo closes its account on a real broker, notices when it does not, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupAuthorizationFailedError, GroupCoordinatorNotAvailableError, KafkaConnectionError

from pipeline.errors import StartFailed
from pipeline.sandbox import demo, existing_kafka, session
from pipeline.sandbox.account import Account
from pipeline.sandbox.demo import Plan, run_demo
from pipeline.sandbox.display import Display, display
from pipeline.sandbox.figures import Figures
from pipeline.sandbox.interrupts import Interrupts
from pipeline.sandbox.parts import TOPICS, Parts
from pipeline.sandbox.processes import ANOTHER_DISK, StandIns, until
from pipeline.sandbox.session import Kill, Session
from pipeline.sandbox.traffic import Fate, Sent, decide_requests
from pipeline.sandbox.worker import Worker
from tests.patience import PATIENCE, stretched
from tests.processes import IN_THE_BACKGROUND, descendants
from tests.sandbox.calls import call
from tests.sandbox.terminal import (
    Terminal,
    ended,
    is_java,
    is_stand_in,
    is_worker,
    paste_example,
)
from tests.sandbox.test_account import assert_printed_is_written
from tests.sandbox.test_stand_ins import event, visitor
from tests.sandbox.test_stand_ins import payload as logx_payload_of
from tests.support import Broker


def _figures_of(plan: Plan) -> Figures:
    assert plan.json_file is not None
    assert run_demo(plan) == 0
    written: Figures = orjson.loads(plan.json_file.read_bytes())
    return written


def _summary(said: str) -> str:
    return said[said.index("Decisions\n") : said.index("\nEverything ")]


def test_the_account_closes_and_everything_stays_up_where_it_is_asked_to(
    kafka: Broker, pipeline: Callable[..., Terminal], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    where = "--keep-running", "--bootstrap-servers", kafka.bootstrap_servers
    terminal = pipeline("demo", "--requests", "600", "--json", str(file), *where)
    said = terminal.read_until("The same with kcat")
    assert "The account closes" in said
    assert "600 sent = 600 accounted for" in said
    written = orjson.loads(file.read_bytes())
    assert_figures(written)
    assert_printed_is_written(_summary(said), written)

    assert f"  bootstrap servers  {kafka.bootstrap_servers}\n" in said
    url = re.search(r"http://127\.0\.0\.1:\d+/metrics", said)
    assert url is not None
    with urllib.request.urlopen(url[0], timeout=PATIENCE) as answer:
        assert b"decision_pipeline_decide_requests_total" in answer.read()
    assert paste_example(said)["decisions"][0]["flagKey"] == "checkout_redesign"
    assert terminal.interrupt() < stretched(10)
    assert terminal.process.returncode == 0
    assert terminal.said.endswith("stopped\n")


def assert_figures(written: Figures) -> None:
    assert (written["closed"], written["open"]) == (True, [])
    assert written["sent"] == {"decide_requests": 600, "track_events": 60, "odp_events": 30}
    assert sum(written["requests"].values()) == written["distinct_sources"] == 600
    assert written["requests"]["expired"] == written["errors"]["request expired"] == 2
    assert written["impressions_due"] == written["logx"]["impressions"] > 600
    assert (written["logx"]["repeats"], written["kills"], written["second_results"]) == (0, 0, 0)
    assert set(written["decisions"]["search_ranking"]) >= {"control", "fresh_first", "popular_first"}
    segments = written["segments"]
    assert segments["graphql_requests"] < segments["cold_users"] < segments["requests"]
    # Requests that are read together share an answer; later ones find it remembered.
    assert 0 < segments["cache_hits"] + segments["shared_lookups"] < segments["requests"]
    assert written["dead_letters"] == {
        "user_id_missing": 7, "not_json": 3, "not_an_object": 2, "empty": 2, "action_missing": 1,
        "unknown_event_key": 1,
    }  # fmt: skip


def test_a_killed_worker_repeats_events_and_the_account_closes(
    kafka: Broker, own_temporary_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(requests=400, bootstrap_servers=kafka.bootstrap_servers, json_file=tmp_path / "figures.json", kill=True)
    written = _figures_of(plan)
    assert (written["closed"], written["kills"]) == (True, 1)
    assert written["logx"]["repeats"] > 0
    assert written["logx"]["impressions"] == written["impressions_due"]
    assert list(own_temporary_directory.iterdir()) == []
    said = capsys.readouterr().out
    assert "killed the worker with -9" in said
    assert_printed_is_written(_summary(said), written)


def test_another_outcome_than_expected_is_a_failure(
    kafka: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(count: int) -> Iterator[Sent]:
        for record in decide_requests(count):
            yield record._replace(fate=Fate.ERROR) if record.kind == "ordinary" else record

    monkeypatch.setattr(demo, "decide_requests", wrong)
    file = tmp_path / "figures.json"
    plan = Plan(requests=20, bootstrap_servers=kafka.bootstrap_servers, json_file=file, still_seconds=1)
    assert run_demo(plan) == 1
    said = capsys.readouterr().out
    assert "The account does not close" in said
    assert "19 records with another outcome than expected" in said
    assert "worker stopped" in said, "the end of the worker's log is shown"
    assert orjson.loads(file.read_bytes())["closed"] is False


@pytest.mark.parametrize(("place", "why"), [("missing/figures", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_written_is_told_before_anything_starts(place: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / place
    with pytest.raises(StartFailed, match=rf"^--json {re.escape(str(file))} cannot be written: {why}$"):
        run_demo(Plan(json_file=file, bootstrap_servers="127.0.0.1:1"))


def test_a_dash_is_no_file_and_nothing_called_so_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StartFailed, match=r"^--json - would be a file of that name: name a file, or /dev/stdout$"):
        run_demo(Plan(json_file=Path("-"), bootstrap_servers="127.0.0.1:1"))
    assert list(tmp_path.iterdir()) == []


def test_figures_that_find_no_room_are_told_with_their_file() -> None:
    told = r"^the figures are above; --json /dev/full could not be written: No space left on device$"
    with pytest.raises(StartFailed, match=told):
        demo._write(Path("/dev/full"), {"closed": True})


def test_an_attempt_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.write_bytes(b"the figures of the run before")
    for file in (new, old):
        with pytest.raises(StartFailed, match=r"^--bootstrap-servers: 127\.0\.0\.1:1 cannot be reached"):
            run_demo(Plan(json_file=file, bootstrap_servers="127.0.0.1:1"))
    assert old.read_bytes() == b"the figures of the run before"
    assert not new.exists()


def test_a_host_that_is_no_name_is_told() -> None:
    with pytest.raises(StartFailed, match=r"^--bootstrap-servers: a\.\.b:9092 is no host name; is Kafka"):
        run_demo(Plan(bootstrap_servers="a..b:9092"))


class _Refusing:
    """An admin client that may delete neither topics nor the first group; the second is not there."""

    def __init__(self, **_: object) -> None:
        pass

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def delete_topics(self, topics: list[str]) -> None:
        await asyncio.sleep(60)

    async def find_coordinator(self, group: str) -> int:
        raise {"first": GroupAuthorizationFailedError, "second": GroupCoordinatorNotAvailableError}[group]


@pytest.mark.asyncio
async def test_what_could_not_be_removed_is_told_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(existing_kafka, "_REMOVE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        left = await existing_kafka.remove(address, topics=["a", "b"], groups=["first"])
    assert left == ["a, b, first could not be deleted: no answer within 0.2 s"]
    monkeypatch.setattr(existing_kafka, "AIOKafkaAdminClient", _Refusing)
    assert await existing_kafka.remove("", topics=["a", "b"], groups=["first", "second"]) == [
        "topics a, b could not be deleted: no answer within 0.2 s",
        "group first could not be deleted: GroupAuthorizationFailedError()",
    ]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KafkaConnectionError("no"), "the broker or a stand-in does not answer any more: KafkaConnectionError: no"),
        (ConnectionResetError(), "the broker or a stand-in does not answer any more: ConnectionResetError"),
        (TimeoutError(), "the broker or a stand-in does not answer any more: TimeoutError"),
        (OSError(errno.ENOSPC, "No space left on device"), f"[Errno 28] No space left on device. {ANOTHER_DISK}"),
        (OSError(errno.EMFILE, "Too many open files"), "[Errno 24] Too many open files"),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_what_ends_a_run_is_told_as_what_it_is(
    stand_ins: StandIns, error: Exception, told: str, *, grouped: bool
) -> None:
    async def work() -> None:
        raise ExceptionGroup("of tasks", [error]) if grouped else error

    parts = Parts("", None, stand_ins, {}, Worker({}, log=stand_ins.directory / "worker.log"))
    with Interrupts() as interrupts, pytest.raises(StartFailed) as failure:
        demo._in_loop(work(), parts, interrupts)
    assert str(failure.value) == told


class _NoWorker:
    """Counts what is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def metric(self, name: str, **labels: str) -> float:
        return 3

    def kill(self) -> None:
        self.done.append("kill")

    def start(self) -> None:
        self.done.append("start")

    def stop(self) -> int:
        self.done.append("stop")
        return 0


def test_the_kill_waits_for_a_post_under_way_and_demands_repeats(stand_ins: StandIns) -> None:
    worker = _NoWorker()
    parts = Parts("", None, stand_ins, {}, worker)  # type: ignore[arg-type]
    with display() as shown:
        kill, account = Kill(parts, shown), Account()
        assert stand_ins.control("logx")["hold_answers"] is True
        kill.happen(account, 0)
        assert (worker.done, kill.over) == ([], False)
        assert kill.faults(account) == ["the worker was not killed: there was no POST under way to logx"]
        account.book_services({"unanswered": 1, "events": 7}, {})
        kill.happen(account, 8)
        assert worker.done == [], "not before a part of the requests is answered"
        stand_ins.control("logx", hold_answers=False)
        for _ in range(2):
            # The second is a repeat before the kill, of a POST that the worker gave up.
            assert call(stand_ins.logx_url, logx_payload_of(visitor(event(1)))).status == 204
        kill.happen(account, 0)
        account.book_services({"unanswered": 1, "repeats": 1}, {})
        kill.happen(account, 0)
        assert (worker.done, kill.over, account.kills, account.cache_hits) == (["kill", "start"], False, 1, 3)
        assert stand_ins.control("logx")["hold_answers"] is False
        assert kill.faults(account) == ["the kill caused no repeat on the wire"]
        account.book_services({"repeats": 2}, {})
        kill.happen(account, 0)
    assert (worker.done, kill.over, kill.faults(account)) == (["kill", "start"], True, [])


@pytest.mark.asyncio
async def test_an_interrupt_does_not_wait_for_a_worker_that_will_not_stop(stand_ins: StandIns, tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)"
    arguments = ("-n1", "-r1", "-s", deaf, "time.sleep(60)")
    worker = Worker(dict(os.environ), log=tmp_path / "log", module="timeit", arguments=arguments)
    worker.start()
    until(lambda: worker.log_tail() == "deaf", timeout=PATIENCE, what="its deafness")
    shown: Display
    with display() as shown:
        ending = asyncio.create_task(Session(Parts("", None, stand_ins, {}, worker), Account(), shown).end())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ending), 0.5)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
    assert worker.wait(PATIENCE) == 128 + signal.SIGKILL


@pytest.mark.asyncio
@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize(
    ("waiting", "still"),
    [
        (lambda session: session.send(decide_requests(1)), "Kafka takes no records"),
        (Session.end, "Kafka gives no more results"),
    ],
    ids=["send", "end"],
)
async def test_somebodys_kafka_that_falls_silent_is_not_waited_for(
    stand_ins: StandIns,
    monkeypatch: pytest.MonkeyPatch,
    waiting: Callable[[Session], Coroutine[Any, Any, object]],
    still: str,
    *,
    answers: bool,
) -> None:
    async def answered(_: Session) -> None:
        return None

    monkeypatch.setattr(session, "_ANSWER_SECONDS", 0.2)
    if answers:
        monkeypatch.setattr(Session, "_ask_broker", answered)
    with socket.create_server(("127.0.0.1", 0)) as silent, display() as shown:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        topics = {stream: stream for stream in ("decide_requests", "decide_results", "dead_letters")}
        parts = Parts(address, None, stand_ins, topics, _NoWorker())  # type: ignore[arg-type]
        with pytest.raises(StartFailed) as failure:
            async with asyncio.timeout(stretched(5)):
                await waiting(Session(parts, Account(), shown, still_seconds=0.1))
    said = f"{still}: nothing for 0.2 s, though Kafka at {address} answers"
    assert str(failure.value) == (said if answers else f"Kafka at {address} does not answer any more")


def test_ctrl_c_leaves_nothing_running_however_often_it_is_pressed(pipeline: Callable[..., Terminal]) -> None:
    terminal = pipeline("demo")
    terminal.read_until("starting Apache Kafka")
    assert_interrupted(terminal, presses=3)


def test_ctrl_c_in_the_middle_leaves_nothing_running(kafka: Broker, pipeline: Callable[..., Terminal]) -> None:
    terminal = pipeline("demo", "--bootstrap-servers", kafka.bootstrap_servers)
    terminal.read_until("sent ")
    assert len(descendants(terminal.process.pid)) >= 8, "guards and what they guard"
    assert_interrupted(terminal, presses=3)


def test_sigterm_while_the_worker_starts_is_like_ctrl_c_also_in_the_background(
    kafka: Broker, pipeline: Callable[..., Terminal]
) -> None:
    terminal = pipeline("demo", "--bootstrap-servers", kafka.bootstrap_servers, before=IN_THE_BACKGROUND)
    terminal.read_until("starting a worker")
    assert_interrupted(terminal, signal.SIGTERM)


def test_killed_while_kafka_makes_its_data_directory_it_leaves_nothing(
    pipeline: Callable[..., Terminal], own_temporary_directory: Path
) -> None:
    terminal = pipeline("demo")
    terminal.read_until("starting Apache Kafka")
    pid = terminal.process.pid
    until(lambda: any(map(is_java, descendants(pid))), timeout=PATIENCE, what="java", interval=0.005)
    assert [path.name.startswith("decision-pipeline-kafka-") for path in own_temporary_directory.iterdir()] == [True]
    children = descendants(pid)
    os.kill(pid, signal.SIGKILL)
    ended(children)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (lambda pid: is_stand_in(pid, "logx"), r"the stand-in for logx ended by itself; try again"),
        (is_worker, r"the worker ended by itself \(SIGKILL, as if [^)]+\); its log ends with"),
    ],
    ids=["logx", "worker"],
)
def test_a_part_that_is_gone_is_named_and_not_waited_for(
    kafka: Broker, pipeline: Callable[..., Terminal], part: Callable[[int], bool], told: str
) -> None:
    terminal = pipeline("demo", "--bootstrap-servers", kafka.bootstrap_servers)
    terminal.read_until("sent ")
    assert re.fullmatch(told, assert_it_ends_without(terminal, part)[0])


def test_a_broker_that_is_gone_is_named_and_not_waited_for(pipeline: Callable[..., Terminal]) -> None:
    terminal = pipeline("demo")
    terminal.read_until("sent ")
    assert assert_it_ends_without(terminal, is_java) == [
        "Kafka ended by itself: SIGKILL, as if the machine had no memory left"
    ]


def assert_it_ends_without(terminal: Terminal, part: Callable[[int], bool]) -> list[str]:
    """Kill a part; the lines of the error that ends the run soon."""
    children = descendants(terminal.process.pid)
    (pid,) = filter(part, children)
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    assert terminal.end() == 1
    assert time.monotonic() - killed < stretched(10)
    ended(children)
    assert "Traceback" not in terminal.said
    before, said = terminal.said.split("error: ")
    assert all(line.startswith(("starting ", "asking ", "sent ")) for line in before.splitlines())
    return said.splitlines()


def assert_interrupted(terminal: Terminal, number: int = signal.SIGINT, *, presses: int = 1) -> None:
    assert terminal.interrupt(number, presses=presses) < stretched(10)
    assert terminal.process.returncode == 128 + number
    assert terminal.said.endswith("interrupted; everything was stopped\n")
    assert "Traceback" not in terminal.said


@pytest.mark.asyncio
async def test_nothing_of_it_stays_on_an_existing_broker(kafka: Broker, pipeline: Callable[..., Terminal]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()

    async def of_demos() -> tuple[set[str], set[str]]:
        topics, groups = await admin.list_topics(), [group for group, *_ in await admin.list_consumer_groups()]
        return {name for name in topics if name.startswith("demo-")}, {name for name in groups if "demo-" in name}

    try:
        # A demo that was killed leaves its own there.
        before = await of_demos()
        terminal = pipeline("demo", "--requests", "20", "--bootstrap-servers", kafka.bootstrap_servers)
        terminal.read_until("sent ")
        topics, groups = await of_demos()
        assert len(topics - before[0]) == len(TOPICS)
        assert groups - before[1] != set()
        assert terminal.end() == 0
        assert await of_demos() == before
    finally:
        await admin.close()


@pytest.mark.parametrize("on_path", [True, False])
def test_the_commands_to_try_next_are_found_by_the_shell_as_they_are_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, on_path: bool
) -> None:
    scripts = Path(sys.executable).parent
    monkeypatch.chdir(scripts.parent)
    monkeypatch.setenv("PATH", str(scripts if on_path else tmp_path))
    first = demo._where_next().splitlines()[2].split()[0]
    assert first == ("pipeline" if on_path else f"{scripts.name}/pipeline")
