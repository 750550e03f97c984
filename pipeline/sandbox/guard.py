"""Runs one command that ends when the process that started it does, in whatever way that one ended.

`guard.py --log FILE [--remove DIRECTORY] -- command...` prints the command's process id as one line, sends its output
to FILE and ends with its status. Standard input is a pipe from the starting process: at its end the command is killed
and DIRECTORY removed. A pipe does so on every system, and also when the starter was a thread that is long gone, where
Linux's parent death signal would fire too early. The command hears signals, whatever its starter ignores or blocks.
Started by `processes.Guarded`, as a file: it imports nothing of ours.
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

_NOT_STARTED = 127


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--remove", type=Path)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    _hear_signals()
    child = _started(options.command, options.log)
    if child is None:
        return _NOT_STARTED
    abandoned = threading.Event()

    def kill(number: int, frame: FrameType | None) -> None:
        child.kill()

    signal.signal(signal.SIGTERM, kill)
    threading.Thread(target=_watch, args=(child, abandoned), daemon=True).start()
    try:
        print(child.pid, flush=True)  # noqa: T201 - this line is the interface
    except BrokenPipeError:
        # The starter was interrupted before it heard of the command; at its end it closes the other pipe, too.
        sys.stdout = None
    status = child.wait()
    if abandoned.is_set() and options.remove is not None:
        shutil.rmtree(options.remove, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _hear_signals() -> None:
    """Here and in the command: its starter ends it by them, and may ignore or block them itself (nohup, `&`)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _started(command: list[str], path: Path) -> subprocess.Popen[bytes] | None:
    """The command with its output in the log, where it also says why it could not be run."""
    try:
        log = path.open("ab")
    except OSError:
        return None  # The starter was interrupted, and has removed the directory already.
    with log:
        try:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        except OSError as error:
            log.write(f"{error.strerror or error}\n".encode())
            return None


def _watch(child: subprocess.Popen[bytes], abandoned: threading.Event) -> None:
    # os.read, not sys.stdin: a daemon thread inside a buffered reader makes the interpreter abort at its end.
    while os.read(0, 1024):
        continue
    abandoned.set()
    child.kill()


if __name__ == "__main__":
    sys.exit(main())
