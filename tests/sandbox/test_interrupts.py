"""The first signal ends what runs, in a loop or not; later ones do not cut short how it is taken down."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.patience import PATIENCE
from tests.processes import IN_THE_BACKGROUND, ignoring

HEAD = """
    import asyncio, signal
    from pipeline.sandbox.interrupts import Interrupts
    press = signal.raise_signal
"""


def said(program: str, *before: str) -> tuple[int, str]:
    """Exit code and output, of a process of its own: what it does to signals stays there."""
    command = [*before, sys.executable, "-c", textwrap.dedent(HEAD) + textwrap.dedent(program)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_first_is_an_interrupt_and_later_ones_are_none(name: str, status: int) -> None:
    program = f"""
        with Interrupts() as interrupts:
            try:
                press(signal.{name})
            except KeyboardInterrupt:
                press(signal.SIGINT)
                print("taken down")
        press(signal.SIGINT)
        press(signal.SIGTERM)
        print(interrupts.status)
    """
    assert said(program) == (0, f"taken down\n{status}\n")


def test_in_a_loop_what_runs_is_cancelled_and_finishes_its_end() -> None:
    program = """
        async def work():
            try:
                press(signal.SIGTERM)
                await asyncio.sleep(30)
            finally:
                press(signal.SIGINT)
                await asyncio.sleep(0.01)
                print("finished")

        with Interrupts() as interrupts:
            try:
                interrupts.run(work())
            except KeyboardInterrupt:
                print(interrupts.status)
    """
    assert said(program) == (0, "finished\n143\n")


@pytest.mark.parametrize(
    "late",
    [
        "loop.call_soon(press, signal.SIGINT)",
        "close = loop.close; loop.close = lambda: (close(), press(signal.SIGINT))",
    ],
    ids=["before the task's end is seen", "after the loop is closed"],
)
def test_one_that_comes_when_the_work_has_just_ended_is_not_lost(late: str) -> None:
    program = f"""
        async def work():
            loop = asyncio.get_running_loop()
            {late}
            return "ran"

        with Interrupts() as interrupts:
            try:
                print(interrupts.run(work()))
            except KeyboardInterrupt:
                print("interrupted", interrupts.status)
    """
    assert said(program) == (0, "interrupted 130\n")


def test_what_takes_everything_down_is_not_cut_short_by_the_first_either() -> None:
    program = """
        with Interrupts() as interrupts:
            with interrupts.allowed():
                print(interrupts.run(asyncio.sleep(0, "ran")))
            press(signal.SIGINT)
            print("taken down")
    """
    assert said(program) == (0, "ran\ntaken down\n")


def test_without_an_interrupt_everything_is_as_before() -> None:
    program = """
        with Interrupts():
            pass
        print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
        press(signal.SIGTERM)
    """
    assert said(program) == (-15, "True\n")


def test_a_signal_just_before_a_process_is_started_leaves_every_handler_as_it_was() -> None:
    program = """
        from pathlib import Path
        from pipeline.sandbox.processes import Guarded
        handler_of = signal.getsignal

        def asked(number):
            if number == signal.SIGHUP:
                press(number)
            return handler_of(number)

        with Interrupts() as interrupts:
            before = handler_of(signal.SIGINT)
            signal.getsignal = asked
            try:
                Guarded(["true"], log=Path("/dev/null"))
            except KeyboardInterrupt:
                print(interrupts.status, handler_of(signal.SIGINT) == before)
    """
    assert said(program) == (0, "129 True\n")


@pytest.mark.parametrize(
    ("before", "name"), [(("nohup",), "SIGHUP"), (IN_THE_BACKGROUND, "SIGINT")], ids=["nohup", "in the background"]
)
def test_a_signal_that_is_ignored_stays_so(before: tuple[str, ...], name: str) -> None:
    program = f"""
        with Interrupts() as interrupts:
            press(signal.{name})
        print(interrupts.status)
    """
    assert said(program, *before) == (0, "0\n")


def test_sigterm_is_heard_even_where_the_starter_ignores_it() -> None:
    program = """
        with Interrupts() as interrupts:
            try:
                press(signal.SIGTERM)
            except KeyboardInterrupt:
                print(interrupts.status)
    """
    assert said(program, *ignoring("TERM")) == (0, "143\n")
