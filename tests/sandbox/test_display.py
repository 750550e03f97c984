"""Bars on a terminal, lines into a pipe: both say the same steps, how far it is, and the summary."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.sandbox.account import Account
from pipeline.sandbox.display import Bars, Lines, Running
from tests.sandbox.test_account import closed, of


def _console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=140, highlight=False, legacy_windows=False), file


def test_bars_show_what_is_under_way_and_steps_stay_above() -> None:
    console, file = _console(terminal=True)
    account = closed()
    with Bars(console) as bars:
        bars.step("starting [something]")
        bars.download(0, 1_000_000)
        bars.download(1_000_000, 1_000_000)
        bars.progress(account, records=9, requests=6)
        bars.step("killed")
        bars.progress(account, records=9, requests=6)
        bars.summary(of(account))
    said = file.getvalue()
    for words in ("starting [something]", "1.0/1.0 MB", "records sent", "7/9", "requests answered", "4/6", "3/?", "1/?",
                  "killed", "The account closes"):  # fmt: skip
        assert words in said, words
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h"), "the cursor is shown again"


def test_no_part_is_above_its_whole_and_no_bar_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    console, _ = _console(terminal=True)
    account = Account()
    running = Running(console, 2, 2)
    shown: list[tuple[float, float | None]] = []

    def look() -> None:
        running.update(account)
        for task in running._bars.tasks:
            assert task.total is None or task.completed <= task.total
        impressions = running._bars.tasks[2]
        shown.append((impressions.completed, impressions.total))

    try:
        owed, answered = [0], [0]
        monkeypatch.setattr(Account, "impressions_due", property(lambda _: owed[0]))
        monkeypatch.setattr(Account, "answered", property(lambda _: answered[0]))
        for due, done, there in ((3, 1, 2), (3, 1, 5), (9, 2, 8), (9, 3, 12)):
            # The services may have more than the results that were read owe, and a fault more than is due.
            owed, answered = [due], [done]
            account.book_services({"impressions": there}, {"distinct_events": there})
            look()
    finally:
        running.stop()
    assert shown == [(2, None), (5, None), (8, 9), (9, 9)]


def test_lines_are_few_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = _console(terminal=False)
    now = [0.0]
    monkeypatch.setattr("pipeline.sandbox.display.time.monotonic", lambda: now[0])
    lines, account = Lines(console), closed()
    lines.step("starting " + "x" * 200)
    for now[0] in (0.1, 1.9, 2.1, 2.2, 3.9, 4.2):
        lines.progress(account, records=9, requests=6)
    lines.summary(of(account))
    said = file.getvalue().splitlines()
    assert said[0] == "starting " + "x" * 200, "not folded"
    assert said[1:3] == ["sent 7 of 9 records, answered 4 of 6 requests, 3 impressions at logx"] * 2
    assert said[3] == ""
    assert said[-1].startswith("The account closes")
    assert all("\x1b" not in line for line in said)
