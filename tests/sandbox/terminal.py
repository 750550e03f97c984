"""`pipeline` as a person runs it in a terminal: what it says as it comes, Ctrl-C, and what it printed to be pasted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.sandbox.processes import until

_BETWEEN_PRESSES = 0.15


class Terminal:
    """The running command. Tests get one by the fixture `pipeline`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.said = ""

    def close(self) -> None:
        """Whatever happened, nothing of it stays: what it started ends with it."""
        self.process.kill()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def end(self) -> int:
        """Wait until it ends by itself; its status."""
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        return self.process.wait(30)

    def read_until(self, words: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return self.said
        raise AssertionError(f"{words!r} was not said: {self.said}")

    def interrupt(self, number: int = signal.SIGINT, *, presses: int = 1) -> float:
        """Ctrl-C, or another signal, which reaches the whole group of processes; the seconds until its end."""
        assert self.process.stdout is not None
        children = descendants(self.process.pid)
        interrupted = time.monotonic()
        for _ in range(presses):
            if self.process.poll() is None:
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_BETWEEN_PRESSES)
        self.said += self.process.stdout.read()
        self.process.wait(15)
        took = time.monotonic() - interrupted
        ended(children)
        return took


def ended(children: list[int]) -> None:
    """Wait until none of the processes is there any more."""
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), timeout=5, what="the end of all children")


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def is_stand_in(pid: int, service: str) -> bool:
    """Whether the process is the stand-in itself, and not its guard."""
    return _words(pid)[1:3] == ["-m", f"pipeline.sandbox.{service}"]


def is_worker(pid: int) -> bool:
    return _words(pid)[1:4] == ["-m", "pipeline", "run"]


def is_java(pid: int) -> bool:
    return _words(pid)[0].endswith("/java")


def _words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def paste_example(said: str) -> dict[str, Any]:
    """Run the example that was printed; the answer it prints."""
    begin = said.rindex("\n\n", 0, said.index("<<'END'")) + 2
    command = said[begin : said.index("\nEND\n") + len("\nEND\n")]
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["requestId"] == "my-first-request"
    return answer


def example_for_kcat(said: str) -> str:
    """The commands for kcat that were printed."""
    begin = said.index("\nprintf ") + 1
    return said[begin : said.index("\n", said.index("\nkcat -C", begin) + 1) + 1]
