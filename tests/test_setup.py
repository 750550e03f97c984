"""The first step of `make demo` and `make test`: it says how large the download is, and that it goes on."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.sandbox.processes import until
from tests.patience import PATIENCE
from tests.processes import is_running

ROOT = Path(__file__).parents[1]
TOTAL = len(re.findall(r"^[a-z0-9].*==", (ROOT / "requirements-demo.lock").read_text("utf-8"), re.MULTILINE))

# A Python whose pip downloads nothing: it names seven packages, then waits for a file, and ends as the file says.
PIP = """#!/bin/sh
[ "$1" = -m ] || exec {python} "$@"
case $* in *--version) exit 0 ;; esac
case $* in *--no-index*) exit 0 ;; esac
echo "pip begins: $*"
echo "Ignoring one: markers do not match your environment"
echo "Requirement already satisfied: two in here"
echo $$ > {pid}.part && mv {pid}.part {pid}
for name in three four five six seven; do echo "Collecting $name"; echo "  Downloading $name (1 MB)"; done
while [ ! -e {go} ]; do sleep 0.05; done
. {go}
"""


class SetUp:
    """A set-up whose pip is ours, and what it says so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: int, go: Path) -> None:
        self.said = ""
        self._process = process
        self._output = output
        self._go = go

    def read_until(self, pattern: str, *, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.said):
            assert select.select([self._output], [], [], max(0, deadline - time.monotonic()))[0], self.said
            part = os.read(self._output, 65536)
            assert part, self.said
            self.said += part.decode()

    def terminate(self) -> int:
        """End the set-up itself, pip or no pip; its status."""
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def end(self, script: str) -> int:
        """Let pip end so; the status of the set-up."""
        unfinished = self._go.with_suffix(".part")
        unfinished.write_text(script)
        unfinished.rename(self._go)
        return self._process.wait(PATIENCE)


@contextmanager
def set_up(directory: Path) -> Iterator[SetUp]:
    venv, go = directory / "venv", directory / "go"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(PIP.format(python=sys.executable, go=go, pid=venv / "pip.pid"))
    python.chmod(0o755)
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        ["sh", ".ci/venv", "demo"], cwd=ROOT, env={"PATH": os.environ["PATH"], "VENV": str(venv)},
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield SetUp(process, ours, go)
    finally:
        go.touch()
        process.wait(PATIENCE)
        os.close(ours)


def test_without_a_terminal_the_download_is_announced_and_counted_every_few_seconds(tmp_path: Path) -> None:
    with set_up(tmp_path) as made:
        made.read_until(r"\n  7 of \d+ packages\n")
        assert re.match(rf"installing {TOTAL} packages of requirements-demo\.lock into .*about 60 MB", made.said)
        assert f"  7 of {TOTAL} packages\n" in made.said
        assert "Collecting" not in made.said
        assert made.end("echo 'Installing collected packages: all'") == 0
    assert (tmp_path / "venv" / ".installed-demo").exists()


def test_without_a_terminal_a_failure_is_told_at_once_and_counts_no_further(tmp_path: Path) -> None:
    with set_up(tmp_path) as made:
        assert made.end("echo 'ERROR: no such file'; exit 1") == 1
        made.read_until(r"All that pip said: ")
        assert re.search(
            r"downloaded\)\nERROR: no such file\n\nmake: the packages of requirements-demo\.lock could not", made.said
        )
    assert not (tmp_path / "venv" / ".installed-demo").exists()


def test_a_set_up_that_is_ended_leaves_no_pip_behind(tmp_path: Path) -> None:
    with set_up(tmp_path) as made:
        pid = tmp_path / "venv" / "pip.pid"
        until(pid.exists, timeout=PATIENCE, what="pip")
        number = int(pid.read_text())
        assert made.terminate() == 143
        until(lambda: not is_running(number), timeout=PATIENCE, what="the end of pip")
    assert not (tmp_path / "venv" / ".installed-demo").exists()


@pytest.mark.parametrize(("level", "megabytes"), [("demo", 60), ("dev", 140)])
def test_what_is_announced_is_in_the_readme_too(level: str, megabytes: int) -> None:
    script = (ROOT / ".ci" / "venv").read_text("utf-8")
    assert f"megabytes={megabytes}" in script
    assert f"about {megabytes} MB" in (ROOT / "README.md").read_text("utf-8"), level
