"""Processes that tests start: whether they run, and that they hear signals as a command typed in a terminal does.

The process that starts the tests may ignore or block some: nohup, a script with a background job, a build runner.
A child inherits that, and would not hear the Ctrl-C of a test. A signal with a handler has its default in each child,
however it is started (execve), so the process of the tests itself goes on as if it still ignored the signal, and needs
no wrapper around each start. tests/conftest.py sees to it, once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def ignoring(*names: str) -> tuple[str, ...]:
    """The beginning of a command that ignores these signals, such as INT."""
    return "sh", "-c", f"trap '' {' '.join(names)}; exec \"$@\"", "sh"


IN_THE_BACKGROUND = ignoring("INT", "QUIT")
"""Runs what follows as a script does what it starts with `&`."""


def hear_signals_in_children() -> None:
    """Processes started from now on ignore and block nothing; this one ignores what it ignored before."""
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _ignored)
    # Ignored, it takes the status of every child away; the default is not to hear of it either.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


@contextmanager
def signals_heard() -> Iterator[None]:
    """Within it the process of the tests hears signals, too; afterwards they are to it as before."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_ignored(number: int, pid: int) -> bool:
    """Whether the process ignores the signal or has it blocked, so that nothing comes of sending it."""
    status = _status(pid)
    return any(int(status[kind], 16) >> (number - 1) & 1 for kind in ("SigIgn", "SigBlk"))


def is_running(pid: int) -> bool:
    """Whether the process is there and has not ended. Process 1 of a container may never ask for the end of orphans."""
    try:
        return _status(pid)["State"].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    """Children, their children and so on; those that end meanwhile may be among them."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def words_of(pid: int) -> list[str]:
    """The command of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _status(pid: int) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def _ignored(number: int, frame: FrameType | None) -> None:
    """Nothing: unlike SIG_IGN, no child inherits this."""
