"""`pipeline sandbox`: what it prints is all a worker and a producer need, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pipeline.errors import StartFailed
from pipeline.sandbox.kafka import LocalKafka
from pipeline.sandbox.processes import StandIns, free_port
from pipeline.sandbox.worker import Worker
from tests.patience import PATIENCE, stretched
from tests.processes import IN_THE_BACKGROUND, descendants, is_ignored, signals_heard
from tests.sandbox.terminal import Terminal, is_stand_in, paste_example

LAST = "Ctrl-C stops everything."


def pasted(said: str) -> dict[str, str]:
    """The environment of a shell that the lines of export were pasted into."""
    lines = "\n".join(line for line in said.splitlines() if line.startswith("export "))
    given = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    shell = subprocess.run(
        ["bash", "-c", f"{lines}\nenv -0"], env=given, capture_output=True, timeout=PATIENCE, check=True
    )
    return dict(line.split("=", 1) for line in shell.stdout.decode().split("\0") if line)


def test_a_worker_finds_everything_by_what_was_pasted(pipeline: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = pipeline("sandbox", "--kafka", "--fast")
    said = terminal.read_until(LAST)
    worker = Worker(pasted(said), log=tmp_path / "worker.log")
    worker.start()
    try:
        worker.wait_ready()
        answer = paste_example(said)
    finally:
        assert worker.stop() == 0
    assert answer["decisions"][0]["ruleKey"] == "checkout_loyal", "user-00042 is a loyal customer"
    assert terminal.interrupt() < stretched(10)
    assert terminal.process.returncode == 0
    assert terminal.said.endswith("stopped\n")


def _base() -> int:
    """The first of seven ports in a row that are free now."""
    while True:
        base = free_port()
        if base > 65_000:
            continue
        # Those that could be had are closed, also where the next could not.
        with suppress(OSError), ExitStack() as sockets:
            for place in range(7):
                sockets.enter_context(socket.create_server(("127.0.0.1", base + place)))
            return base


def test_its_ports_can_be_chosen_and_one_in_use_is_told(pipeline: Callable[..., Terminal]) -> None:
    lower = _base()
    base = lower + 2
    terminal = pipeline("sandbox", "--port-base", str(base))
    said = terminal.read_until(LAST)
    for place, service in enumerate(("cdn", "odp", "logx", "cmab")):
        assert f"  {service:<5} http://127.0.0.1:{base + place}\n" in said
        with urllib.request.urlopen(f"http://127.0.0.1:{base + place}/ledger", timeout=PATIENCE) as answer:
            assert answer.status == 200
    environment = pasted(said)
    assert "PIPELINE_KAFKA__BOOTSTRAP_SERVERS" not in environment
    assert environment["PIPELINE_LOGX__URL"] == f"http://127.0.0.1:{base + 2}/v1/events"
    second = pipeline("sandbox", "--port-base", str(lower))
    assert second.end() == 1
    assert second.said.splitlines()[-1] == f"error: port {base} is in use: choose another --port-base"
    assert terminal.interrupt() < stretched(5)


def test_without_a_place_for_temporary_files_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    told = r"^no temporary directory can be made: No such file or directory\. Free some room, or set TMPDIR to "
    with pytest.raises(StartFailed, match=told):
        StandIns(["logx"])


@pytest.mark.parametrize(
    "start", [lambda: StandIns(["logx"]), lambda: LocalKafka().start()], ids=["stand-ins", "kafka"]
)
def test_an_interrupt_while_its_directory_is_made_leaves_none(
    start: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.mkdtemp

    def interrupted(prefix: str) -> str:
        made = make(prefix=prefix, dir=tmp_path)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(tempfile, "mkdtemp", interrupted)
    with signals_heard(), pytest.raises(KeyboardInterrupt):
        start()
    assert list(tmp_path.iterdir()) == []


def test_sigterm_ends_it_like_ctrl_c(pipeline: Callable[..., Terminal]) -> None:
    terminal = pipeline("sandbox")
    terminal.read_until("starting stand-ins")
    assert terminal.interrupt(signal.SIGTERM, presses=2) < stretched(5)
    assert terminal.process.returncode == 0
    assert terminal.said.endswith("stopped\n")


def test_in_the_background_of_a_script_it_ignores_ctrl_c_says_how_it_ends_and_does(
    pipeline: Callable[..., Terminal],
) -> None:
    terminal = pipeline("sandbox", before=IN_THE_BACKGROUND)
    pid = terminal.process.pid
    assert terminal.read_until(" stops everything.").endswith(f"\n`kill {pid}` stops everything.\n")
    assert is_ignored(signal.SIGINT, pid)
    assert not any(is_ignored(signal.SIGINT, child) for child in descendants(pid)), "whatever ignores it above them"
    assert terminal.interrupt(signal.SIGTERM) < stretched(10)
    assert terminal.process.returncode == 0
    assert terminal.said.endswith("stopped\n")


def test_it_ends_when_a_part_of_it_does(pipeline: Callable[..., Terminal]) -> None:
    terminal = pipeline("sandbox")
    terminal.read_until(LAST)
    (odp,) = (pid for pid in descendants(terminal.process.pid) if is_stand_in(pid, "odp"))
    os.kill(odp, signal.SIGKILL)
    assert terminal.end() == 1
    assert "error: odp ended by itself; everything else was stopped" in terminal.said
