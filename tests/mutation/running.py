"""Mutants judged by several children at a time, each with a deadline, and the verdicts as they come."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, NoReturn

from tests.mutation.finding import Mutant, mutated
from tests.mutation.judging import Suite, judge, put_in_place

KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"
_SURVIVED = b"survived"
_MEMORY = 4 * 1024**3
_PATIENCE = 600.0
# So many times its processor time a child may take by the clock.
_IDLE = 10


class Verdict(NamedTuple):
    outcome: str
    by: str
    """The test or comparison that found it."""
    seconds: float
    """Processor time."""


@dataclass
class _Child:
    pid: int
    pipe: int
    until: float
    """When it is ended, if it should do nothing until then."""
    told: bytes = b""


def verdicts(
    suite: Suite, mutants: Iterable[Mutant], texts: dict[str, str], *, jobs: int, deadline: float
) -> Iterator[tuple[Mutant, Verdict]]:
    """In the order in which they are reached; `deadline` is in seconds of processor time.

    Closing the iterator ends the children that still run.
    """
    waiting, running = iter(mutants), dict[int, tuple[_Child, Mutant]]()
    selector = selectors.DefaultSelector()
    try:
        while True:
            while len(running) < jobs and (mutant := next(waiting, None)) is not None:
                child = _forked(partial(_judged, suite, mutant, texts[mutant.file]), deadline)
                running[child.pipe] = (child, mutant)
                selector.register(child.pipe, selectors.EVENT_READ)
            if not running:
                return
            for pipe in _ready(selector, running):
                child, mutant = running[pipe]
                if _told_all(child):
                    selector.unregister(pipe)
                    del running[pipe]
                    yield mutant, _verdict(child)
    finally:
        selector.close()
        for child, _ in running.values():
            _end(child)
            _verdict(child)


def checked(suite: Suite) -> Verdict:
    """The code as it is, which must survive."""
    child = _forked(partial(judge, suite), _PATIENCE)
    while not _told_all(child):
        pass
    return _verdict(child)


def _judged(suite: Suite, mutant: Mutant, text: str) -> str:
    put_in_place(suite, mutant.file, mutated(text, mutant.number))
    return judge(suite)


def _forked(work: Callable[[], str], deadline: float) -> _Child:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        _in_child(work, writing, int(deadline))
    os.close(writing)
    return _Child(pid, reading, time.monotonic() + _IDLE * deadline)


def _in_child(work: Callable[[], str], pipe: int, deadline: int) -> NoReturn:
    """Does not return: nothing of the parent may run twice."""
    try:
        # Processor time, by a signal of the system: others may use the machine too, and a parent may be gone.
        resource.setrlimit(resource.RLIMIT_CPU, (deadline, deadline + 1))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        found = work().encode("utf-8", "replace")
        os.write(pipe, found[:2000] or _SURVIVED)
    except BaseException as error:  # noqa: BLE001 - also SystemExit: a mutant may raise anything
        os.write(pipe, f"raised {error!r}".encode("utf-8", "replace")[:2000])
    finally:
        os._exit(0)


def _ready(selector: selectors.BaseSelector, running: dict[int, tuple[_Child, Mutant]]) -> list[int]:
    """Pipes with something to read, and those of children that wait for something that does not come."""
    first = min(child.until for child, _ in running.values())
    pipes = {int(key.fd) for key, _ in selector.select(max(0.0, first - time.monotonic()))}
    return sorted(pipes | {pipe for pipe, (child, _) in running.items() if child.until <= time.monotonic()})


def _told_all(child: _Child) -> bool:
    if child.until <= time.monotonic():
        _end(child)
    part = os.read(child.pipe, 4096)
    child.told += part
    return not part


def _verdict(child: _Child) -> Verdict:
    """Of a child that has told all, or was ended."""
    os.close(child.pipe)
    _, status, used = os.wait4(child.pid, 0)
    seconds = used.ru_utime + used.ru_stime
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return Verdict(TIMED_OUT, "", seconds)
    if child.told == _SURVIVED:
        return Verdict(SURVIVED, "", seconds)
    return Verdict(KILLED, child.told.decode("utf-8", "replace") or "the process died", seconds)


def _end(child: _Child) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
