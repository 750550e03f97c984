"""What the demo shows: bars on a terminal, plain lines elsewhere (a log, a pipe)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.sandbox.account import Account
from pipeline.sandbox.kafka_jars import VERSION, cache_directory

_LINE_SECONDS = 2.0


class Display(Protocol):
    """What the demo says, and when."""

    def download(self, had: int, total: int) -> None: ...
    def step(self, text: str) -> None: ...
    def progress(self, account: Account, requests: int) -> None: ...
    def account(self, lines: list[tuple[str, str]], faults: list[str]) -> None: ...


@contextmanager
def display() -> Iterator[Display]:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield Lines(console)
        return
    with Bars(console) as bars:
        yield bars


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
        self._console.print(text, markup=False)
        self._said = time.monotonic()

    def progress(self, account: Account, requests: int) -> None:
        if self._due():
            self._console.print(f"sent {len(account.sent):,} records, answered {account.answered:,} of {requests:,}")

    def account(self, lines: list[tuple[str, str]], faults: list[str]) -> None:
        for what, how in lines:
            self._console.print(f"{what:<16} {how}", markup=False)
        _show_verdict(self._console, faults)

    def _due(self) -> bool:
        if time.monotonic() - self._said < _LINE_SECONDS:
            return False
        self._said = time.monotonic()
        return True


class Bars:
    """A bar for what is under way; steps stay above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._download: tuple[Progress, TaskID] | None = None
        self._answered: tuple[Progress, TaskID] | None = None

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
        self._end_bars()
        self._console.print(text, markup=False)

    def progress(self, account: Account, requests: int) -> None:
        if self._answered is None:
            bar = Progress(
                TextColumn("answered"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=self._console
            )
            bar.start()
            self._answered = bar, bar.add_task("", total=requests)
        bar, task = self._answered
        bar.update(task, completed=account.answered)

    def account(self, lines: list[tuple[str, str]], faults: list[str]) -> None:
        self._end_bars()
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for line in lines:
            table.add_row(*line)
        self._console.print(table)
        _show_verdict(self._console, faults)

    def _end_bars(self) -> None:
        for shown in (self._download, self._answered):
            if shown is not None:
                shown[0].stop()
        self._download = self._answered = None


def _show_verdict(console: Console, faults: list[str]) -> None:
    if faults:
        console.print("The account does not close:", style="bold red")
        for fault in faults:
            console.print(f"  {fault}", markup=False)
    else:
        console.print("The account closes: every record has one outcome, every event was counted once.", style="green")
