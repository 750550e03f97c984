"""Mutants judged by several children at a time, each with a deadline, and the verdicts as they come."""

from __future__ import annotations

import contextlib
import os
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


class Verdict(NamedTuple):
    outcome: str
    by: str
    """The test or comparison that found it."""
    seconds: float


@dataclass
class _Child:
    pid: int
    pipe: int
    started: float
    told: bytes = b""


def verdicts(
    suite: Suite, mutants: Iterable[Mutant], texts: dict[str, str], *, jobs: int, deadline: float
) -> Iterator[tuple[Mutant, Verdict]]:
    """In the order in which they are reached. Closing the iterator ends the children that still run."""
    waiting, running = iter(mutants), dict[int, tuple[_Child, Mutant]]()
    selector = selectors.DefaultSelector()
    try:
        while True:
            while len(running) < jobs and (mutant := next(waiting, None)) is not None:
                child = _forked(partial(_judged, suite, mutant, texts[mutant.file]))
                running[child.pipe] = (child, mutant)
                selector.register(child.pipe, selectors.EVENT_READ)
            if not running:
                return
            for pipe in _ready(selector, running, deadline):
                child, mutant = running[pipe]
                verdict = _verdict(child, deadline)
                if verdict is not None:
                    selector.unregister(pipe)
                    del running[pipe]
                    _reap(child)
                    yield mutant, verdict
    finally:
        selector.close()
        for child, _ in running.values():
            _end(child)
            _reap(child)


def checked(suite: Suite) -> Verdict:
    """The code as it is, which must survive."""
    child = _forked(partial(judge, suite))
    while (verdict := _verdict(child, float("inf"))) is None:
        pass
    _reap(child)
    return verdict


def _judged(suite: Suite, mutant: Mutant, text: str) -> str:
    put_in_place(suite, mutant.file, mutated(text, mutant.number))
    return judge(suite)


def _forked(work: Callable[[], str]) -> _Child:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        _in_child(work, writing)
    os.close(writing)
    return _Child(pid, reading, time.monotonic())


def _in_child(work: Callable[[], str], pipe: int) -> NoReturn:
    """Does not return: nothing of the parent may run twice."""
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        found = work().encode("utf-8", "replace")
        os.write(pipe, found[:2000] or _SURVIVED)
    except BaseException as error:  # noqa: BLE001 - also SystemExit: a mutant may raise anything
        os.write(pipe, f"raised {error!r}".encode("utf-8", "replace")[:2000])
    finally:
        os._exit(0)


def _ready(selector: selectors.BaseSelector, running: dict[int, tuple[_Child, Mutant]], deadline: float) -> list[int]:
    """Pipes with something to read, and those of children whose time is over."""
    first = min(child.started for child, _ in running.values()) + deadline
    pipes = {int(key.fd) for key, _ in selector.select(max(0.0, first - time.monotonic()))}
    late = {pipe for pipe, (child, _) in running.items() if time.monotonic() - child.started >= deadline}
    return sorted(pipes | late)


def _verdict(child: _Child, deadline: float) -> Verdict | None:
    """None while the child has told only a part."""
    seconds = time.monotonic() - child.started
    if seconds >= deadline:
        _end(child)
        return Verdict(TIMED_OUT, "", seconds)
    part = os.read(child.pipe, 4096)
    if part:
        child.told += part
        return None
    if child.told == _SURVIVED:
        return Verdict(SURVIVED, "", seconds)
    return Verdict(KILLED, child.told.decode("utf-8", "replace") or "the process died", seconds)


def _end(child: _Child) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)


def _reap(child: _Child) -> None:
    os.close(child.pipe)
    os.waitpid(child.pid, 0)
