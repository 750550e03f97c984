"""The end of a process: a loop that stood still, signals, a callback that failed; real processes where it matters."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from pipeline import runtime
from pipeline.runtime import EXIT_GAVE_UP, Fence, until_stopped
from pipeline.sandbox.processes import Guarded, until
from tests.patience import PATIENCE
from tests.processes import IN_THE_BACKGROUND, ignoring, is_ignored, signals_heard


class Ended(Exception):
    """The process would have ended here."""


def end(reason: str) -> NoReturn:
    raise Ended(reason)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_fence_ends_the_process_when_the_loop_stood_still_for_longer_than_its_limit() -> None:
    clock = Clock()
    fence = Fence(27.0, end=end, clock=clock)
    clock.now += 27.0
    fence.check()
    clock.now += 27.1
    with pytest.raises(Ended, match=r"stood still for 27\.1 s, longer than 27\.0 s"):
        fence.check()


def test_turns_that_are_short_do_not_add_up() -> None:
    clock = Clock()
    fence = Fence(5.0, end=end, clock=clock)
    for _ in range(100):
        clock.now += 4.9
        fence.check()


def test_a_fence_remembers_the_longest_stall_beyond_an_idle_turn() -> None:
    clock = Clock()
    fence = Fence(10.0, end=end, clock=clock)
    for seconds in (1.0, 3.5, 2.0):
        clock.now += seconds
        fence.check()
    # An idle loop turns once a second: that is no stall.
    assert fence.longest == pytest.approx(2.5)


def test_an_idle_loop_turns_often_enough_to_be_known_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_TICK_SECONDS", 0.05)

    class Counting(Fence):
        turns = 0

        def check(self) -> None:
            super().check()
            self.turns += 1
            if self.turns > 4 and idle:
                asyncio.get_running_loop().call_soon(idle[0].set)

    idle: list[asyncio.Event] = []

    async def wait() -> int:
        idle.append(asyncio.Event())
        async with asyncio.timeout(PATIENCE):
            await idle[0].wait()
        return 3

    assert runtime.run(wait, Counting(60.0, end=end)) == 3


# Signals, in this process


@pytest.mark.asyncio
async def test_work_that_ends_by_itself_was_not_stopped() -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    assert await until_stopped(work()) is False


@pytest.mark.asyncio
async def test_what_work_raises_is_raised() -> None:
    async def work() -> None:
        raise LookupError("of the work")

    with pytest.raises(LookupError, match="of the work"):
        await until_stopped(work())


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_work_and_waits_until_it_is_gone(number: signal.Signals) -> None:
    events = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("cleaned up")

    with signals_heard():
        async with asyncio.timeout(PATIENCE):
            assert await until_stopped(work()) is True
    assert events == ["cleaned up"]


@pytest.mark.asyncio
async def test_work_that_does_not_end_when_it_is_cancelled_holds_up_no_stop() -> None:
    go_on = asyncio.Event()

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            await go_on.wait()

    async with asyncio.timeout(5):
        assert await until_stopped(work(), grace=0.05) is True
    go_on.set()


@pytest.mark.asyncio
async def test_what_work_raises_while_it_is_stopped_is_a_line_of_the_log() -> None:
    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("of the clean-up")

    with capture_logs() as logs:
        async with asyncio.timeout(5):
            assert await until_stopped(work()) is True
    assert [line["reason"] for line in logs if line["log_level"] == "warning"] == ["of the clean-up"]


# Ends, in processes of their own

PRELUDE = """
import asyncio, os, signal, sys, time
from pathlib import Path
from pipeline import logs, runtime
logs.configure_logs("info")
out = Path(sys.argv[1])
def write(text):
    with out.open("a") as file:
        file.write(f"{time.monotonic()} {text}\\n")
"""
WRITES = """
async def main():
    # A timer, whose callback runs in the very turn that ends the wait.
    def send():
        write("sent")
        asyncio.get_running_loop().call_later(0.02, send)
    send()
    await asyncio.sleep(60)
    return 0
sys.exit(runtime.run(main, runtime.Fence(1.0)))
"""
FAILS = """
async def main():
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(60)
    return 0
sys.exit(runtime.run(main, runtime.Fence(60)))
"""
STOPPED = """
async def main():
    async def work():
        write("ready")
        await asyncio.sleep(60)
    return 0 if await runtime.until_stopped(work()) else 1
sys.exit(runtime.run(main, runtime.Fence(60)))
"""
TWICE = """
async def main():
    async def stubborn():
        # Only now: signals are heard, and a cancelled task that never ran would have nothing to clean up.
        write("ready")
        try:
            await asyncio.sleep(60)
        finally:
            write("stopping")
            await asyncio.sleep(60)
    await runtime.until_stopped(stubborn())
    return 0
sys.exit(runtime.run(main, runtime.Fence(60)))
"""


class Script:
    """A script that runs on the product's loop and writes lines of `time text` to a file."""

    def __init__(self, directory: Path, text: str, before: Sequence[str] = ()) -> None:
        self._out = directory / "out"
        command = [*before, sys.executable, "-c", PRELUDE + text, str(self._out)]
        self.process = Guarded(command, log=directory / "log")

    @property
    def lines(self) -> list[str]:
        return self._out.read_text().splitlines() if self._out.exists() else []

    def wait_for(self, text: str) -> None:
        until(lambda: any(line.endswith(f" {text}") for line in self.lines), timeout=PATIENCE, what=text)


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[list[Script]]:
    made: list[Script] = []
    yield made
    for script in made:
        script.process.close()


def run(scripts: list[Script], directory: Path, text: str, before: Sequence[str] = ()) -> Script:
    scripts.append(Script(directory, text, before))
    return scripts[-1]


def test_a_worker_in_the_background_of_a_script_ignores_ctrl_c_and_ends_by_sigterm(
    scripts: list[Script], tmp_path: Path
) -> None:
    script = run(scripts, tmp_path, STOPPED, IN_THE_BACKGROUND)
    script.wait_for("ready")
    script.process.signal(signal.SIGINT)
    script.process.signal(signal.SIGTERM)
    assert script.process.wait(PATIENCE) == 0
    (stopping,) = [line for line in script.process.log_tail().splitlines() if '"stopping"' in line]
    assert '"SIGTERM"' in stopping


def test_sigterm_ends_a_worker_whose_starter_ignores_it(scripts: list[Script], tmp_path: Path) -> None:
    script = run(scripts, tmp_path, STOPPED, ignoring("TERM"))
    script.wait_for("ready")
    assert not is_ignored(signal.SIGTERM, script.process.pid)
    script.process.signal(signal.SIGTERM)
    assert script.process.wait(PATIENCE) == 0


def test_a_process_that_was_stopped_for_too_long_ends_before_it_does_anything_else(
    scripts: list[Script], tmp_path: Path
) -> None:
    script = run(scripts, tmp_path, WRITES)
    script.wait_for("sent")
    script.process.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    until(lambda: time.monotonic() > stopped + 1.3, timeout=PATIENCE, what="a stop that is too long")
    script.process.signal(signal.SIGCONT)
    assert script.process.wait(PATIENCE) == EXIT_GAVE_UP == 70
    assert "the event loop stood still" in script.process.log_tail()
    assert float(script.lines[-1].split()[0]) < stopped + 0.1


def test_a_callback_that_fails_ends_the_process_with_its_traceback(scripts: list[Script], tmp_path: Path) -> None:
    script = run(scripts, tmp_path, FAILS)
    assert script.process.wait(PATIENCE) == EXIT_GAVE_UP
    log = script.process.log_tail()
    assert "a callback failed" in log
    assert "ZeroDivisionError" in log


def test_a_second_signal_ends_a_stop_that_hangs(scripts: list[Script], tmp_path: Path) -> None:
    script = run(scripts, tmp_path, TWICE)
    script.wait_for("ready")
    script.process.signal(signal.SIGTERM)
    script.wait_for("stopping")
    script.process.signal(signal.SIGINT)
    assert script.process.wait(PATIENCE) == 128 + signal.SIGINT
    assert "a second SIGINT came during the stop" in script.process.log_tail()
