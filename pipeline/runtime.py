"""Running a worker's process: the event loop that fences itself, signals, the ways to end.

A worker whose loop stood still for about a session timeout (SIGSTOP, a suspended machine, a callback that never
returned) may have lost its partitions without knowing. It ends before it sends anything: each turn of the selector
looks at the clock first, and so does each request to Kafka, for a process goes on where it was held. What is left is a
request already handed to the socket.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn

import structlog

log = structlog.get_logger("pipeline.runtime")

# sysexits.h: an internal software error. Kubernetes restarts the pod; the next owner recovers.
EXIT_GAVE_UP = 70
# As a shell names the end by a signal: 128 and its number.
_SIGNALLED = 128
_TICK_SECONDS = 1.0


def _now() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def give_up(reason: str, error: BaseException | None = None, *, code: int = EXIT_GAVE_UP) -> NoReturn:
    """End the process at once, without another byte to Kafka: giving up a send in any other way could publish twice."""
    log.error("the process ends", reason=reason, exc_info=error)
    os._exit(code)


class Fence:
    """Ends the process if the loop stood still for `limit` seconds; remembers the longest stall below that."""

    def __init__(
        self, limit: float, *, end: Callable[[str], NoReturn] = give_up, clock: Callable[[], float] = _now
    ) -> None:
        self._limit = limit
        self._end = end
        self._clock = clock
        self._last = clock()
        self.longest = 0.0

    def check(self) -> None:
        """Called first thing in each turn of the loop, and before a request is handed to Kafka."""
        now = self._clock()
        stood = now - self._last
        self._last = now
        if stood > self._limit:
            self._end(
                f"the event loop stood still for {stood:.1f} s, longer than {self._limit:.1f} s: "
                "the partitions may have another owner by now"
            )
        self.longest = max(self.longest, stood - _TICK_SECONDS)


class _FencedSelector(selectors.DefaultSelector):
    """The system's selector; after each wait, and before anything it woke can run, the fence is checked."""

    def __init__(self, fence: Fence) -> None:
        super().__init__()
        self._fence = fence

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(timeout)
        self._fence.check()
        return ready


def run(main: Callable[[], Coroutine[Any, Any, int]], fence: Fence) -> int:
    """Run `main` on a fenced loop; returns its exit code."""

    def fenced_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop(_FencedSelector(fence))
        loop.set_exception_handler(_unhandled)

        def tick() -> None:
            # A loop without work would wait in the selector for ever, and look as if it stood still.
            loop.call_later(_TICK_SECONDS, tick)

        tick()
        return loop

    with asyncio.Runner(loop_factory=fenced_loop) as runner:
        return runner.run(main())


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception in a callback, which nobody will ever catch: a record would wait for ever, so the process ends."""
    error = context.get("exception")
    if error is not None and "handle" in context:
        give_up(f"a callback failed: {context['message']}", error)
    if context["message"].startswith("Unclosed AIOKafkaConnection"):
        # A wait for Kafka was broken off while a connection was made: aiokafka closes it now, and says so here.
        log.debug("connection closed before it was ready", reason=context["message"])
        return
    loop.default_exception_handler(context)


async def until_stopped(work: Awaitable[None], *, grace: float = 10.0) -> bool:
    """Run `work` until it is done or SIGTERM or SIGINT comes; True if it was a signal.

    Work that was cancelled has `grace` seconds to clean up. A second signal ends the process at once, with 128 and the
    signal's number: its sender does not want to wait for `PIPELINE_OPS__DRAIN`. An ignored SIGINT stays ignored:
    Ctrl-C is not meant for a worker that a script started in the background.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def asked(number: int) -> None:
        if stop.is_set():
            give_up(f"a second {signal.Signals(number).name} came during the stop", code=_SIGNALLED + number)
        log.info("stopping", signal=signal.Signals(number).name)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, asked, signal.SIGTERM)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGINT, asked, signal.SIGINT)
    running = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        stopped.cancel()
        await running
        return False
    running.cancel()
    await asyncio.wait({running}, timeout=grace)
    if running.done() and not running.cancelled() and (error := running.exception()) is not None:
        log.warning("work failed while it was stopped", reason=str(error) or type(error).__name__)
    return True
