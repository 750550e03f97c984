"""Runs one command that ends when the process that started it does, in whatever way that one ended.

`guard.py --log FILE [--remove DIRECTORY] -- command...` prints the command's process id as one line, sends its output
to FILE and ends with its status. Standard input is a pipe from the starting process: at its end the command is killed
and DIRECTORY removed. A pipe does so on every system, and also when the starter was a thread that is long gone, where
Linux's parent death signal would fire too early. Started by `processes.Guarded`, as a file: it imports nothing of ours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--remove", type=Path)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    with options.log.open("ab") as log:
        child = subprocess.Popen(options.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    abandoned = threading.Event()

    def kill(number: int, frame: FrameType | None) -> None:
        child.kill()

    signal.signal(signal.SIGTERM, kill)
    threading.Thread(target=_watch, args=(child, abandoned), daemon=True).start()
    print(child.pid, flush=True)  # noqa: T201 - this line is the interface
    status = child.wait()
    if abandoned.is_set() and options.remove is not None:
        shutil.rmtree(options.remove, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _watch(child: subprocess.Popen[bytes], abandoned: threading.Event) -> None:
    # os.read, not sys.stdin: a daemon thread inside a buffered reader makes the interpreter abort at its end.
    while os.read(0, 1024):
        continue
    abandoned.set()
    child.kill()


if __name__ == "__main__":
    sys.exit(main())
