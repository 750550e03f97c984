"""Ctrl-C, SIGTERM and SIGHUP while there is something to take down in order: the first ends it, others do nothing.

The first is a KeyboardInterrupt, whichever it was and whether a loop runs or not. Impatience must not cut short what
removes processes and directories: every wait in there has a deadline. Used by the demo and by `pipeline sandbox`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self, TypeVar

_Outcome = TypeVar("_Outcome")
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def how_to_end() -> str:
    """Words for a person: Ctrl-C, where this process hears it."""
    heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    return "Ctrl-C" if heard else f"`kill {os.getpid()}`"


class Interrupts:
    """A context manager for the main thread; `status` is the exit code of who was ended by a signal."""

    def __init__(self) -> None:
        self.status = 0
        self._cancel: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in _NUMBERS:
            # nohup has SIGHUP ignored, a script SIGINT in what it starts in the background: both stay so. SIGTERM asks
            # this very process to end, and is heard in any case.
            if number is signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._happened)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # After an interrupt only this process's end follows, in which a handler of ours would not count any more.
            signal.signal(number, signal.SIG_IGN if self.status else handler)

    def run(self, coroutine: Coroutine[Any, Any, _Outcome]) -> _Outcome:
        """asyncio.run, whose own handler would take the second Ctrl-C as an order to leave everything behind."""
        try:
            outcome = asyncio.run(self._cancellable(coroutine))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            self._cancel = None
        if self.status:
            # It came when the coroutine had just ended, or the coroutine went on; later ones do nothing any more.
            raise KeyboardInterrupt
        return outcome

    async def _cancellable(self, coroutine: Coroutine[Any, Any, _Outcome]) -> _Outcome:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await coroutine
        finally:
            # What remains is the loop's own end, which closes it: `run` sees the status.
            self._cancel = lambda: None

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """What comes after it takes everything down: no interrupt cuts that short, not even the first."""
        try:
            yield
        finally:
            self._cancel = lambda: None

    def _happened(self, number: int, frame: FrameType | None) -> None:
        if self.status:
            return
        self.status = 128 + number
        if self._cancel is None:
            raise KeyboardInterrupt
        self._cancel()
