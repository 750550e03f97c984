"""What README.md and the demo itself give to be pasted, pasted: a request and its answer, with the demo's Kafka."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.patience import PATIENCE, stretched
from tests.processes import descendants
from tests.sandbox.terminal import Terminal, example_for_kcat, is_java, paste_example
from tests.test_readme import blocks

TITLE = "Your first request"
_SHOWN_BROKER = "127.0.0.1:9092"
needs_kcat = pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")


@contextmanager
def staying_up(pipeline: Callable[..., Terminal]) -> Iterator[tuple[str, str, Terminal]]:
    """The command of README.md, with less traffic: what it said, the address of its broker, the command itself."""
    start, _ = blocks("sh", TITLE)
    words = start.split()
    assert words[0] == "pipeline"
    terminal = pipeline(*words[1:], "--requests", "200")
    said = terminal.read_until("kcat -C")
    found = re.search(r"bootstrap servers +(\S+)", said)
    assert found is not None
    yield said, found[1], terminal
    if terminal.process.poll() is None:
        assert terminal.interrupt() < stretched(10)
        assert terminal.process.returncode == 0


def paste(words: list[str], text: str) -> str:
    """Run the text; what it printed. It must end well and complain of nothing."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def pasted_until_it_answers(script: str) -> str:
    """Paste commands whose last line reads: what that printed, pasted again until the result is there."""
    sending, reading = script.rstrip("\n").rsplit("\n", 1)
    assert paste(["sh", "-eu"], sending) == ""
    deadline = time.monotonic() + PATIENCE
    while True:
        # A grep that finds nothing ends with 1, and that is no mistake yet.
        done = subprocess.run(
            ["sh", "-u"], input=reading, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.stderr == ""
        if done.stdout:
            return done.stdout
        assert time.monotonic() < deadline, f"no answer within {PATIENCE} s"


def the_answer(lines: str) -> dict[str, Any]:
    """The one result among lines of partition, key, value."""
    (line,) = lines.splitlines()
    partition, user, value = line.split(" ", 2)
    result: dict[str, Any] = json.loads(value)
    assert result["source"].split("-")[-2] == partition
    assert result["userId"] == user
    return result


def test_python_and_what_is_printed(pipeline: Callable[..., Terminal]) -> None:
    (program,) = blocks("python", TITLE)
    with staying_up(pipeline) as (said, broker, terminal):
        assert _SHOWN_BROKER in program
        answer = paste([sys.executable, "-"], program.replace(_SHOWN_BROKER, broker))
        assert "'flagKey': 'checkout_redesign'" in answer
        assert paste_example(said)["decisions"][0]["flagKey"] == "checkout_redesign"
        # What stays up until Ctrl-C does not stay up without its broker.
        (pid,) = filter(is_java, descendants(terminal.process.pid))
        os.kill(pid, signal.SIGKILL)
        assert terminal.end() == 1
        assert "\nerror: Kafka ended by itself: SIGKILL, " in terminal.said


@needs_kcat
def test_kcat(pipeline: Callable[..., Terminal]) -> None:
    _, script = blocks("sh", TITLE)
    with staying_up(pipeline) as (said, broker, _):
        assert script.count(_SHOWN_BROKER) == 2
        result = the_answer(pasted_until_it_answers(script.replace(_SHOWN_BROKER, broker)))
        assert (result["requestId"], result["decisions"][0]["flagKey"]) == ("r-1", "checkout_redesign")
        printed = the_answer(pasted_until_it_answers(example_for_kcat(said)))
        assert (printed["requestId"], printed["decisions"][0]["flagKey"]) == ("my-first-request", "checkout_redesign")
