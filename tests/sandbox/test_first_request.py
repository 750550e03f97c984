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
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE, stretched
from tests.processes import descendants
from tests.sandbox.terminal import Terminal, example_for_kcat, is_java, paste_example
from tests.sandbox.test_services import LAST, pasted
from tests.test_readme import blocks

TITLE = "Your first request"
OWN_WORKER = "A worker of your own"
OFFLINE = "Deciding offline"
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


@contextmanager
def running(script: str, environment: dict[str, str], directory: Path) -> Iterator[subprocess.Popen[str]]:
    """The script in a shell, in a session of its own, until the test has ended."""
    process = subprocess.Popen(
        ["sh", "-eu"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment, cwd=directory, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(script)
    process.stdin.close()
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(f"{words!r} was not said: {said}")


@needs_kcat
def test_a_worker_of_one_s_own(pipeline: Callable[..., Terminal], tmp_path: Path) -> None:
    start, own_worker, request, controls = blocks("sh", OWN_WORKER)
    words = start.split()
    assert words[0] == "pipeline"
    terminal = pipeline(*words[1:])
    printed = pasted(terminal.read_until(LAST))
    broker = printed["PIPELINE_KAFKA__BOOTSTRAP_SERVERS"]
    # `pipeline` is on the path of the reader, and so is this interpreter's.
    environment = printed | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{printed['PATH']}"}
    (datafile,) = blocks("sh", OFFLINE)
    subprocess.run(["sh", "-eu"], input=datafile, text=True, cwd=tmp_path, env=environment, timeout=60, check=True)
    with running(own_worker, environment, tmp_path) as worker:
        said = read_until(worker, "worker started")
        assert '"etag"' in said
        assert "…e01" in said, "the end of its SDK key"
        assert request.count(_SHOWN_BROKER) == 2
        result = the_answer(pasted_until_it_answers(request.replace(_SHOWN_BROKER, broker)))
        assert (result["requestId"], result["sdkKey"]) == ("r-3", "shopExample01")
        assert result["decisions"][0]["ruleKey"] == "checkout_test", "a user in Slovenia is in the audience"
        told = subprocess.run(
            ["sh", "-eu"], input=controls, capture_output=True, text=True, env=environment, timeout=60, check=True
        )
        # curl ends no line.
        listed, ordered, counted = json.loads(f"[{re.sub(r'}(?={)', '},', told.stdout)}]")
        assert listed["status"]["value"] is None
        assert ordered["status"] == 503
        assert counted["requests"] == counted["events"] == 0
    assert terminal.interrupt() < 10
    assert terminal.process.returncode == 0
