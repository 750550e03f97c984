"""`pipeline` as a person runs it in a terminal: what it says as it comes, Ctrl-C, and what it printed to be pasted."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from pipeline.sandbox.processes import until
from tests.patience import PATIENCE, stretched
from tests.processes import descendants, is_ignored, is_running, words_of

_BETWEEN_PRESSES = 0.15


class Terminal:
    """The running command. Tests get one by the fixture `pipeline`."""

    def __init__(self, *arguments: str, before: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "pipeline", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self._output = self.process.stdout
        self._unread = b""
        self.said = ""

    def close(self) -> None:
        """Whatever happened, nothing of it stays: what it started ends with it."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self._output.close()

    def end(self) -> int:
        """Wait until it ends by itself; its status."""
        self._read_all("its end")
        return self.process.wait(PATIENCE)

    def read_until(self, words: str) -> str:
        while line := self._line(repr(words)):
            self.said += line
            if words in line:
                return self.said
        raise AssertionError(f"{words!r} was not said: {self.said}")

    def interrupt(self, number: int = signal.SIGINT, *, presses: int = 1) -> float:
        """Ctrl-C, or another signal, which reaches the whole group of processes; the seconds until its end."""
        # While it starts a process of its own, all signals are blocked for a moment.
        heard = f"a command that hears {signal.Signals(number).name}"
        until(lambda: not is_ignored(number, self.process.pid), timeout=stretched(1), what=heard)
        children = descendants(self.process.pid)
        interrupted = time.monotonic()
        for _ in range(presses):
            if self.process.poll() is None:
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_BETWEEN_PRESSES)
        self._read_all("its end after a signal")
        self.process.wait(PATIENCE)
        took = time.monotonic() - interrupted
        ended(children)
        return took

    def _read_all(self, what: str) -> None:
        while line := self._line(what):
            self.said += line

    def _line(self, what: str) -> str:
        """The next line of its output, with its end; empty at the end of the output. Fails after a long silence."""
        while b"\n" not in self._unread:
            ready = select.select([self._output], [], [], PATIENCE)[0]
            assert ready, f"{what}: not said in {PATIENCE:g} s of silence after: {self.said}{self._unread.decode()}"
            if not (part := os.read(self._output.fileno(), 65536)):
                break
            self._unread += part
        line, end, self._unread = self._unread.partition(b"\n")
        return (line + end).decode()


def ended(children: list[int]) -> None:
    """Wait until none of the processes runs any more."""
    until(lambda: not any(map(is_running, children)), timeout=PATIENCE, what="the end of all children")


def is_stand_in(pid: int, service: str) -> bool:
    """Whether the process is the stand-in itself, and not its guard."""
    return words_of(pid)[1:3] == ["-m", f"pipeline.sandbox.{service}"]


def is_worker(pid: int) -> bool:
    return words_of(pid)[1:4] == ["-m", "pipeline", "run"]


def is_java(pid: int) -> bool:
    return any(word.endswith("/java") for word in words_of(pid)[:1])


def paste_example(said: str) -> dict[str, Any]:
    """Run the example that was printed; the answer it prints."""
    begin = said.rindex("\n\n", 0, said.index("<<'END'")) + 2
    command = said[begin : said.index("\nEND\n") + len("\nEND\n")]
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["requestId"] == "my-first-request"
    return answer


def example_for_kcat(said: str) -> str:
    """The commands for kcat that were printed."""
    begin = said.index("\nprintf ") + 1
    return said[begin : said.index("\n", said.index("\nkcat -C", begin) + 1) + 1]
