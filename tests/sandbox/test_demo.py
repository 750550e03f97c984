"""The demo closes its account on a real broker, notices when it does not, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient

from pipeline.sandbox import demo
from pipeline.sandbox.demo import run_demo
from pipeline.sandbox.processes import until
from pipeline.sandbox.traffic import Fate, decide_requests
from tests.support import Broker


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """So that what the demo leaves there can be seen."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def test_the_account_closes(
    kafka: Broker, own_temporary_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    account = tmp_path / "account.json"
    assert run_demo(requests=300, bootstrap_servers=kafka.bootstrap_servers, json_file=account) == 0
    written = orjson.loads(account.read_bytes())
    assert written["closed"] is True
    assert written["sent"] == {"decide_requests": 300, "track_events": 30, "odp_events": 15}
    assert sum(written["requests"].values()) == 300
    assert written["impressions_due"] == written["logx"]["impressions"] > 300
    said = capsys.readouterr().out
    assert "The account closes" in said
    assert "decide requests  300 sent" in said
    assert list(own_temporary_directory.iterdir()) == []


@pytest.mark.asyncio
async def test_nothing_of_it_stays_on_an_existing_broker(kafka: Broker) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        assert [topic for topic in await admin.list_topics() if topic.startswith("demo-")] == []
    finally:
        await admin.close()


def test_another_outcome_than_expected_is_a_failure(
    kafka: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(count: int):  # type: ignore[no-untyped-def]
        for record in decide_requests(count):
            yield record._replace(fate=Fate.ERROR) if record.kind == "ordinary" else record

    monkeypatch.setattr(demo, "decide_requests", wrong)
    monkeypatch.setattr(demo, "_STILL_SECONDS", 2)
    assert run_demo(requests=20, bootstrap_servers=kafka.bootstrap_servers) == 1
    said = capsys.readouterr().out
    assert "The account does not close" in said
    assert "19 records with another outcome than expected" in said
    assert "worker stopped" in said, "the end of the worker's log is shown"


def test_ctrl_c_leaves_nothing_running(own_temporary_directory: Path) -> None:
    command = [sys.executable, "-c", "from pipeline.sandbox.demo import run_demo; raise SystemExit(run_demo(200_000))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("sent "):
                break
        children = _descendants(process.pid)
        assert len(children) >= 10, "guards and what they guard: broker, three stand-ins, worker"
        interrupted = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(10) == 130
    assert time.monotonic() - interrupted < 10
    assert "interrupted" in rest
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), timeout=5, what="the end of all children")
    assert list(own_temporary_directory.iterdir()) == []


def _descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *_descendants(int(child))]
    return found
