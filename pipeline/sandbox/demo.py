"""`pipeline demo`: the whole product on one machine, with Apache Kafka, and an account of every record.

Starts a broker (unless one is named), the stand-ins and a worker as a process of its own; produces requests and events,
some of them broken; waits until each is accounted for; stops everything. The exit code is 0 only if the account closes.
Ctrl-C, or the death of this process, leaves nothing running.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError

import orjson
from aiokafka.errors import KafkaError

from pipeline.errors import ConfigurationError, StartFailed
from pipeline.sandbox.account import Account
from pipeline.sandbox.display import Display, display
from pipeline.sandbox.figures import Figures, figures
from pipeline.sandbox.guide import example, example_for_kcat, program
from pipeline.sandbox.interrupts import Interrupts, how_to_end
from pipeline.sandbox.parts import Parts, start_parts
from pipeline.sandbox.ports import kafka_port, ops_port
from pipeline.sandbox.processes import ANOTHER_DISK, free_port
from pipeline.sandbox.session import STILL_SECONDS, Accident, Kill, Session
from pipeline.sandbox.traffic import Fate, Sent, decide_requests, odp_events, track_events
from pipeline.settings import servers

REQUESTS = 20_000
_Outcome = TypeVar("_Outcome")
_LOOK_SECONDS = 0.2
_LAST_SECONDS = 5
_UNANSWERED = KafkaError, URLError, ConnectionError, TimeoutError


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run. A tenth as many conversions as decide requests are sent, and a twentieth ODP events."""

    requests: int = REQUESTS
    bootstrap_servers: str | None = None
    """An existing Kafka; the run has topics of its own there."""
    json_file: Path | None = None
    """Gets the figures of the summary."""
    kill: bool = False
    """Kill the worker with -9 in the middle and start another."""
    keep_running: bool = False
    """Stay up after the summary, until Ctrl-C."""
    still_seconds: float = STILL_SECONDS
    """Nothing has happened for so long: what is missing then will not come."""


def run_demo(plan: Plan) -> int:
    """Run it; the exit code. Raises StartFailed or ConfigurationError with what to do."""
    if plan.bootstrap_servers is not None:
        plan = replace(plan, bootstrap_servers=_servers(plan.bootstrap_servers))
    if plan.json_file is not None:
        _try_to_write(plan.json_file)
    with Interrupts() as interrupts, _quiet_clients(), display() as shown:
        try:
            return _run(plan, shown, interrupts)
        except KeyboardInterrupt:
            shown.step("interrupted; everything was stopped")
            return interrupts.status


def _servers(bootstrap_servers: str) -> str:
    try:
        return servers(bootstrap_servers)
    except ValueError as error:
        raise ConfigurationError([f"--bootstrap-servers: {error}"]) from None


@contextmanager
def _quiet_clients() -> Iterator[None]:
    """A broker that is gone is told in one line here; aiokafka would say it thousands of times."""
    logger = logging.getLogger("aiokafka")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _run(plan: Plan, shown: Display, interrupts: Interrupts) -> int:
    with ExitStack() as stack, interrupts.allowed():
        # A reader of README.md pastes its commands: they name the usual ports.
        own_kafka = plan.keep_running and plan.bootstrap_servers is None
        parts = start_parts(
            plan.bootstrap_servers, stack, shown,
            kafka_port=kafka_port(shown) if own_kafka else free_port(),
            operations_port=ops_port(shown) if plan.keep_running else free_port(),
        )  # fmt: skip
        try:
            written = _account_for(plan, parts, shown, interrupts)
            if plan.keep_running:
                _keep_running(parts, shown)
        except (KeyboardInterrupt, StartFailed):
            parts.abandon()
            raise
    if not plan.keep_running:
        shown.step(_where_next())
    return 0 if written["closed"] else 1


def _account_for(plan: Plan, parts: Parts, shown: Display, interrupts: Interrupts) -> Figures:
    """Run the traffic through a worker; the figures, shown and written."""
    account = Account()
    session = Session(parts, account, shown, still_seconds=plan.still_seconds)
    records = list(_records(plan.requests))
    # They live for a millisecond: sent while nobody reads, they are late for certain.
    _in_loop(session.send(record for record in records if record.fate is Fate.EXPIRED), parts, interrupts)
    shown.step("starting a worker")
    parts.worker.start()
    parts.worker.wait_ready(meanwhile=parts.check)
    accident = Kill(parts, shown) if plan.kill else Accident()
    on_time = [record for record in records if record.fate is not Fate.EXPIRED]
    _in_loop(session.run(on_time, accident), parts, interrupts)
    status = 0
    if not plan.keep_running:
        status = _in_loop(session.end(), parts, interrupts)
    faults = [*account.open(), *accident.faults(account)]
    if status != 0:
        faults.append(f"the worker ended with status {status}")
    written = figures(account, faults=faults, seconds=session.seconds)
    shown.summary(written)
    if faults:
        shown.step(f"\nThe end of the worker's log:\n{parts.worker.log_tail()}")
    if plan.json_file is not None:
        _write(plan.json_file, written)
    return written


def _try_to_write(file: Path) -> None:
    """Before anything is started: a mistyped path must not cost a whole run. An existing file stays as it is."""
    if str(file) == "-":
        raise StartFailed("--json - would be a file of that name: name a file, or /dev/stdout")
    new = not file.exists()
    try:
        file.open("ab").close()
    except OSError as error:
        raise StartFailed(f"--json {file} cannot be written: {error.strerror}") from error
    if new:
        file.unlink()


def _write(file: Path, written: Figures) -> None:
    try:
        file.write_bytes(orjson.dumps(written, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    except OSError as error:
        raise StartFailed(f"the figures are above; --json {file} could not be written: {error.strerror}") from error


def _in_loop(coroutine: Coroutine[Any, Any, _Outcome], parts: Parts, interrupts: Interrupts) -> _Outcome:
    """Run it. Raises StartFailed that names the part which is gone, or what the machine lacks."""
    try:
        return interrupts.run(_while_all_run(coroutine, parts))
    except (KafkaError, OSError) as error:
        raise _gone(error) from error
    except ExceptionGroup as group:
        told, _ = group.split(StartFailed)
        if told is not None:
            raise told.exceptions[0] from group
        gone, others = group.split((KafkaError, OSError))
        if gone is None or others is not None:
            raise
        raise _gone(gone.exceptions[0]) from group


def _gone(error: Exception) -> StartFailed:
    why = str(error) or type(error).__name__
    if isinstance(error, _UNANSWERED):
        return StartFailed(f"the broker or a stand-in does not answer any more: {why}")
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return StartFailed(f"{why}. {ANOTHER_DISK}" if full else why)


async def _while_all_run(coroutine: Coroutine[Any, Any, _Outcome], parts: Parts) -> _Outcome:
    """What it returns. Whatever it waits for is not waited for once a part has ended: raises StartFailed."""
    running = asyncio.ensure_future(coroutine)
    try:
        while not running.done():
            await asyncio.wait([running], timeout=_LOOK_SECONDS)
            parts.check()
        if running.exception() is not None:
            # A part whose connections were cut first is known to have ended a moment later.
            await asyncio.sleep(_LOOK_SECONDS)
            parts.check()
    finally:
        running.cancel()
        await asyncio.wait([running], timeout=_LAST_SECONDS)
        if running.done() and not running.cancelled():
            running.exception()  # Else asyncio would say that nobody looked at it.
    return running.result()


def _records(requests: int) -> chain[Sent]:
    return chain(decide_requests(requests), track_events(requests // 10), odp_events(requests // 20))


_NEXT = (
    ("demo --keep-running", "everything stays up: topics, metrics, a request to paste"),
    ("demo --kill", "the worker is killed in the middle of the run"),
    ("sandbox --kafka", "a broker and the stand-ins, for a worker of your own"),
)


def _where_next() -> str:
    commands = [(f"{program()} {arguments}", meaning) for arguments, meaning in _NEXT]
    rows = [*commands, ("README.md, schemas/", "the topics and the form of their messages")]
    width = max(len(name) for name, _ in rows)
    lines = "\n".join(f"  {name:<{width}}   {meaning}" for name, meaning in rows)
    return f"\nEverything was stopped. Where to look next:\n{lines}"


def _keep_running(parts: Parts, shown: Display) -> None:
    """Say what is there, and wait for Ctrl-C. Raises StartFailed that names a part which ended by itself."""
    topics = "\n".join(f"    {topic}" for topic in parts.topics.values())
    shown.step(
        f"\nEverything stays up until {how_to_end()}.\n"
        f"  bootstrap servers  {parts.bootstrap_servers}\n"
        f"  topics\n{topics}\n"
        f"  metrics            {parts.worker.metrics_url}\n"
        f"  log of the worker  {parts.worker.log}\n\n"
        f"A request and its answer, to paste into another terminal:\n\n"
        f"{example(parts.bootstrap_servers, parts.topics)}\n\n"
        f"The same with kcat:\n\n{example_for_kcat(parts.bootstrap_servers, parts.topics)}\n"
    )
    try:
        while True:
            parts.check()
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        parts.abandon()
        shown.step("stopped")
