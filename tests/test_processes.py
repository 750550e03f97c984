"""A process that a test starts hears signals, also where whoever runs the tests ignores some; its end is seen."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.sandbox.processes import Guarded, until
from tests.patience import PATIENCE, stretched
from tests.processes import descendants, is_running, words_of

ROOT = Path(__file__).parents[1]
# Signals that end a process, and the one by which its parent learns of that.
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)
TELL = "grep -E '^Sig(Ign|Blk)' /proc/self/status"
# Ignores and blocks them all, and becomes the command that follows; so does a program that starts others carelessly.
DEAF = f"""
import os, signal, sys
for number in {[int(number) for number in NUMBERS]}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {[int(number) for number in NUMBERS]})
os.execvp(sys.argv[1], sys.argv[1:])
"""


def _run(directory: Path) -> str:
    return subprocess.run(["sh", "-c", TELL], capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


def _guarded(directory: Path) -> str:
    process = Guarded(["sh", "-c", TELL], log=directory / "log")
    assert process.wait(PATIENCE) == 0
    return process.log_tail()


def _asyncio(directory: Path) -> str:
    async def run() -> str:
        process = await asyncio.create_subprocess_shell(TELL, stdout=subprocess.PIPE)
        return (await asyncio.wait_for(process.communicate(), PATIENCE))[0].decode()

    return asyncio.run(run())


def _multiprocessing(directory: Path) -> str:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_status)


def _status() -> str:
    return Path("/proc/self/status").read_text()


def _deaf(told: str) -> list[str]:
    """Those of the signals that a process with this status does not hear."""
    (ignored,), (blocked,) = (re.findall(rf"^Sig{kind}:\s*([0-9a-f]+)$", told, re.MULTILINE) for kind in ("Ign", "Blk"))
    mask = int(ignored, 16) | int(blocked, 16)
    return [number.name for number in NUMBERS if mask >> (number - 1) & 1]


@pytest.mark.parametrize("start", [_run, _guarded, _asyncio, _multiprocessing])
def test_what_a_test_starts_hears_signals(start: Callable[[Path], str], tmp_path: Path) -> None:
    assert _deaf(start(tmp_path)) == []


def test_it_does_where_the_tests_are_run_by_something_deaf() -> None:
    chosen = f"{Path(__file__).relative_to(ROOT)}::{test_what_a_test_starts_hears_signals.__name__}"
    done = subprocess.run(
        [sys.executable, "-c", DEAF, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", chosen],
        cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_a_guarded_command_hears_signals_whatever_its_starter_does(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from pipeline.sandbox.processes import Guarded
process = Guarded(["sh", "-c", {TELL!r}], log=Path({str(tmp_path / "log")!r}))
process.wait({PATIENCE})
print(process.log_tail())
"""
    done = subprocess.run(
        [sys.executable, "-c", DEAF, sys.executable, "-c", program],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert _deaf(done.stdout) == []


def test_what_ignored_a_signal_goes_on_ignoring_it() -> None:
    program = """
import signal
from tests.processes import hear_signals_in_children, signals_heard
hear_signals_in_children()
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.raise_signal(number)
with signals_heard():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("heard")
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run(
        [sys.executable, "-c", DEAF, sys.executable, "-c", program],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "heard\n", "")


def test_one_that_has_ended_does_not_run_also_where_nobody_has_asked_for_its_end() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            assert is_running(process.pid)
            assert process.pid in descendants(os.getpid())
            # It has none for a moment, while it becomes another program.
            until(lambda: words_of(process.pid) == ["sleep", "600"], timeout=PATIENCE, what="its words")
        finally:
            process.kill()
        until(lambda: not is_running(process.pid), timeout=PATIENCE, what="its end")
    assert (is_running(process.pid), descendants(process.pid), words_of(process.pid)) == (False, [], [])


def test_seconds_are_stretched_by_no_more_than_the_machine_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, seconds in ((0.1, 3.0), (2.0, 3.0), (8.0, 12.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert stretched(3) == seconds
