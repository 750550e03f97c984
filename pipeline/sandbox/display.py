"""What the demo and the sandbox show: bars on a terminal, plain lines elsewhere (a log, a pipe).

An output that cannot encode a bar gets another character in its place.
"""

from __future__ import annotations

import codecs
import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from pipeline.sandbox.account import Account
from pipeline.sandbox.figures import Figures
from pipeline.sandbox.kafka_jars import VERSION, cache_directory
from pipeline.sandbox.summary import summary

_LINE_SECONDS = 2.0
_PIPE_WIDTH = 140
_DRAWN = "pipeline.drawn"


class Display(Protocol):
    """What is said, and when. `records` is how many will be sent in all, `requests` how many of them are requests."""

    def download(self, had: int, total: int) -> None: ...
    def step(self, text: str) -> None: ...
    def progress(self, account: Account, *, records: int, requests: int) -> None: ...
    def summary(self, figures: Figures) -> None: ...


@contextmanager
def display() -> Iterator[Display]:
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error(_DRAWN, _drawn)
        sys.stdout.reconfigure(errors=_DRAWN)
    console = Console(highlight=False)
    if not console.is_terminal:
        yield Lines(Console(highlight=False, width=_PIPE_WIDTH))
        return
    with Bars(console) as bars:
        yield bars


def _drawn(error: UnicodeError) -> tuple[str, int]:
    """Instead of the bars that an output in ASCII or Latin-1 has no character for."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "#" * (error.end - error.start), error.end


def _what_is_downloaded(total: int) -> str:
    return f"downloading Apache Kafka {VERSION} once ({total / 1e6:.0f} MB) to {cache_directory()}"


class Lines:
    """A line for each step, and one every two seconds in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = 0.0

    def download(self, had: int, total: int) -> None:
        if had == 0:
            self.step(_what_is_downloaded(total))
        elif self._due():
            self._console.print(f"downloaded {had / 1e6:.0f} of {total / 1e6:.0f} MB")

    def step(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
        self._said = time.monotonic()

    def progress(self, account: Account, *, records: int, requests: int) -> None:
        if self._due():
            impressions = account.logx.get("impressions", 0)
            self._console.print(
                f"sent {min(len(account.sent), records):,} of {records:,} records, "
                f"answered {min(account.answered, requests):,} of {requests:,} requests, "
                f"{impressions:,} impressions at logx"
            )

    def summary(self, figures: Figures) -> None:
        self._console.print(summary(figures))

    def _due(self) -> bool:
        if time.monotonic() - self._said < _LINE_SECONDS:
            return False
        self._said = time.monotonic()
        return True


class Bars:
    """Bars for what is under way; steps stay above them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._download: tuple[Progress, TaskID] | None = None
        self._running: Running | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bars()

    def download(self, had: int, total: int) -> None:
        if self._download is None:
            self.step(_what_is_downloaded(total))
            bar = Progress(TextColumn("  "), BarColumn(), DownloadColumn(), TimeElapsedColumn(), console=self._console)
            bar.start()
            self._download = bar, bar.add_task("", total=total)
        bar, task = self._download
        bar.update(task, completed=had)
        if had == total:
            self._end_bars()

    def step(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def progress(self, account: Account, *, records: int, requests: int) -> None:
        if self._running is None:
            self._running = Running(self._console, records, requests)
        self._running.update(account)

    def summary(self, figures: Figures) -> None:
        self._end_bars()
        self._console.print(summary(figures))

    def _end_bars(self) -> None:
        if self._download is not None:
            self._download[0].stop()
        if self._running is not None:
            self._running.stop()
        self._download = self._running = None


class Running:
    """The bars of a run: what was sent, and how far each of its effects has come."""

    def __init__(self, console: Console, records: int, requests: int) -> None:
        self._bars = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console,
        )  # fmt: skip
        self._sent = self._bars.add_task("records sent", total=records)
        self._answered = self._bars.add_task("requests answered", total=requests)
        self._impressions = self._bars.add_task("impressions at logx", total=None)
        self._odp = self._bars.add_task("ODP events at ODP", total=None)
        self._records, self._requests = records, requests
        self._bars.start()

    def update(self, account: Account) -> None:
        sent, answered = len(account.sent), account.answered
        self._advance(self._sent, sent, self._records)
        self._advance(self._answered, answered, self._requests)
        # While results and records still come, the whole grows: a bar of it would shrink, and its part may be ahead.
        due = account.impressions_due if answered >= self._requests else None
        delivered = account.delivered("odp_events") if sent >= self._records else None
        self._advance(self._impressions, account.logx.get("impressions", 0), due)
        self._advance(self._odp, account.odp.get("distinct_events", 0), delivered)

    def _advance(self, task: TaskID, part: int, whole: int | None) -> None:
        """The summary says what is surplus; a bar shows no part above its whole."""
        self._bars.update(task, completed=part if whole is None else min(part, whole), total=whole)

    def stop(self) -> None:
        self._bars.stop()
