"""Ctrl-C before a command can hear it: one line and exit code 130, whatever is being loaded."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.patience import PATIENCE

# Ctrl-C in the very moment in which a module is looked for.
PROGRAM = """
import importlib.abc, signal, sys

number = {number}

class Press(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            signal.raise_signal(number)

sys.meta_path.insert(0, Press())
signal.signal(signal.SIGINT, signal.{before})
from pipeline.__main__ import main

sys.argv = ["pipeline", *{words!r}]
main()
"""
NOT_YET = ("check-config", "--nothing-of-the-kind")


def pressed(module: str, words: tuple[str, ...] = NOT_YET, before: str = "default_int_handler") -> tuple[int, str, str]:
    program = PROGRAM.format(number=int(signal.SIGINT), module=module, words=words, before=before)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout, done.stderr


# orjson loads these three while it is loaded itself: an exception there crashed the process.
@pytest.mark.parametrize("module", ["uuid", "json", "datetime", "typer", "orjson.orjson", "pipeline.settings"])
def test_ctrl_c_while_the_command_is_loaded_is_one_line(module: str) -> None:
    assert pressed(module) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("module", "words"), [("pipeline.sandbox.demo", ("demo",)), ("pipeline.kafka.topics", ("topics", "describe"))]
)
def test_ctrl_c_while_a_command_loads_its_own_modules_is_one_line(module: str, words: tuple[str, ...]) -> None:
    assert pressed(module, words) == (130, "", "interrupted\n")


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    code, _, told = pressed("orjson", before="SIG_IGN")
    assert (code, "interrupted" in told, "No such option" in told) == (2, False, True)
