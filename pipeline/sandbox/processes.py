"""Processes of the sandbox: started, watched and ended together with whoever started them.

`Guarded` is any command; it cannot outlive its starter, even one that was killed. `StandIns` are the services that the
worker calls, each a process of its own. Everything here is synchronous and quick, except waits, which have a deadline.
Used by the demo, the tests and the benchmarks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import pipeline
from pipeline.errors import StartFailed

_PACKAGE_PARENT = Path(pipeline.__file__).parents[1]
_GUARD = Path(__file__).with_name("guard.py")
_CALL_SECONDS = 30
_SIGNALLED = 128
ANOTHER_DISK = "Free some room, or set TMPDIR to a directory of another disk"

Service = Literal["cdn", "odp", "logx", "cmab"]
SERVICES: tuple[Service, ...] = ("cdn", "odp", "logx", "cmab")

_ANY_PORTS: Mapping[Service, int] = MappingProxyType({})
_NO_ARGUMENTS: Mapping[Service, Sequence[str]] = MappingProxyType({})


class Guarded:
    """A running command whose output goes to the file `log`; it ends with this process, whatever happens."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        remove: Path | None = None,
    ) -> None:
        """Start it. `remove` is a directory to remove should this process die without stopping the command."""
        self.log = log
        self._guard: subprocess.Popen[bytes] | None = None
        try:
            with undisturbed():
                self.pid = self._started(command, environment, remove)
        except KeyboardInterrupt:
            # It may have been started, and nobody else will know of it.
            self.close()
            raise

    def _started(self, command: Sequence[str], environment: Mapping[str, str] | None, remove: Path | None) -> int:
        self._guard = subprocess.Popen(
            [sys.executable, "-I", str(_GUARD), "--log", str(self.log)]
            + (["--remove", str(remove)] if remove else [])
            + ["--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment) if environment is not None else None,
            cwd=_PACKAGE_PARENT,
            # A session of its own: Ctrl-C in the terminal reaches only the starter, which then stops things in order.
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        with self._guard.stdout as line:
            pid = line.readline()
        if not pid:
            self.close()
            raise StartFailed(f"{command[0]} cannot be started: {self.log_tail(3)}")
        return int(pid)

    @property
    def running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the command, if it still runs."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Its status: 128 + signal if one ended it. Raises TimeoutError after `timeout` seconds."""
        assert self._guard is not None
        try:
            status = self._guard.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"process {self.pid} still runs after {timeout:g} s") from None
        self._close_pipe()
        return status

    def stop(self, timeout: float = 10) -> int:
        """Ask it to end and wait; after `timeout` seconds it is killed. Its status."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except TimeoutError:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL, and wait until it is gone. Its status."""
        self.signal(signal.SIGKILL)
        return self.wait(_CALL_SECONDS)

    def close(self) -> None:
        """End it at once, politely or not; for `finally`."""
        if self._guard is not None:
            self._close_pipe()
            self._guard.wait(_CALL_SECONDS)

    def log_tail(self, lines: int = 40) -> str:
        try:
            text = self.log.read_text("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _close_pipe(self) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()


@contextmanager
def undisturbed() -> Iterator[None]:
    """A signal that has a handler waits until the end: what was made must be known before it can be removed."""
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if callable(handler := signal.getsignal(number)):
                    # Noted first: a signal between two of them leaves none of them waiting.
                    before[number] = handler
                    signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for came_first in came[:1]:
            signal.raise_signal(came_first)


def how_it_ended(status: int) -> str:
    """A status as a person says it."""
    if status <= _SIGNALLED:
        return f"exit code {status}"
    try:
        name = signal.Signals(status - _SIGNALLED).name
    except ValueError:
        return f"exit code {status}"
    return f"{name}, as if the machine had no memory left" if status == _SIGNALLED + signal.SIGKILL else name


def temporary_directory(name: str) -> Path:
    """A new one. Raises StartFailed if the machine has no place for it."""
    try:
        return Path(tempfile.mkdtemp(prefix=f"decision-pipeline-{name}-"))
    except OSError as error:
        why = error.strerror or error
        raise StartFailed(f"no temporary directory can be made: {why}. {ANOTHER_DISK}") from error


def free_port() -> int:
    """A TCP port of 127.0.0.1 that only whoever asks for this very one gets, for a minute.

    Its one connection was closed here first (TIME_WAIT): the system gives the port to no other socket, be it for a
    server or for a connection to one, until a server that sets SO_REUSEADDR, as each of ours does, listens on it.
    """
    with socket.socket() as server, socket.socket() as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.connect(server.getsockname())
        server.accept()[0].close()
        return int(server.getsockname()[1])


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def until(condition: Callable[[], bool], *, timeout: float, what: str, interval: float = 0.02) -> None:
    """Wait until `condition()` holds. Raises TimeoutError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(interval)


class StandIns:
    """The CDN, ODP, logx and CMAB, or some of them: each a process of its own on 127.0.0.1."""

    def __init__(
        self,
        services: Sequence[Service] = SERVICES,
        *,
        ports: Mapping[Service, int] = _ANY_PORTS,
        arguments: Mapping[Service, Sequence[str]] = _NO_ARGUMENTS,
    ) -> None:
        """Start them and wait for their ports: those given, free ones for the rest. `arguments` are the modules' own.

        Raises StartFailed with what the service said.
        """
        self._wanted_ports = ports
        self._arguments = arguments
        self._directory: Path | None = None
        self._processes: dict[Service, Guarded] = {}
        self._ports: dict[Service, int] = {}
        try:
            with undisturbed():
                self._directory = temporary_directory("stand-ins")
            others = [service for service in services if service != "cdn"]
            self._start(others)
            if "cdn" in services:
                # The datafiles name the ODP they belong to, so it has to have a port first.
                self._arguments = {**arguments, "cdn": ["--odp-host", self.odp_host] if "odp" in others else []}
                self._start(["cdn"])
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def directory(self) -> Path:
        """Of this process's run alone; it is removed at the end, whatever that is."""
        assert self._directory is not None
        return self._directory

    @property
    def services(self) -> tuple[Service, ...]:
        return tuple(self._processes)

    @property
    def cdn_url_template(self) -> str:
        return f"{self.address('cdn')}/datafiles/%s.json"

    @property
    def odp_host(self) -> str:
        return self.address("odp")

    @property
    def logx_url(self) -> str:
        return f"{self.address('logx')}/v1/events"

    @property
    def prediction_url_template(self) -> str:
        return f"{self.address('cmab')}/predict/%s"

    @property
    def ended(self) -> tuple[Service, ...]:
        """Services that ended although nobody stopped them."""
        return tuple(service for service, process in self._processes.items() if not process.running)

    def pid(self, service: Service) -> int:
        return self._processes[service].pid

    def address(self, service: Service) -> str:
        return f"http://127.0.0.1:{self._ports[service]}"

    def ledger(self, service: Service, *, query: str = "") -> dict[str, Any]:
        """What the service counted; `query` such as `full=1` asks for more (see the service)."""
        return self._call(service, f"/ledger?{query}", None)

    def control(self, service: Service, **faults: object) -> dict[str, Any]:
        """Set faults, or `reset=True` to forget them and everything counted; the faults now in force."""
        return self._call(service, "/control", faults)

    def put_datafile(self, sdk_key: str, datafile: bytes) -> None:
        """Publish a datafile under a key."""
        self._call("cdn", f"/datafiles/{sdk_key}", datafile)

    def stop(self) -> None:
        """End them; what they counted is gone."""
        for process in self._processes.values():
            process.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self, services: Sequence[Service]) -> None:
        for service in services:
            port = str(self._wanted_ports.get(service, 0))
            arguments = self._arguments.get(service, ())
            self._processes[service] = Guarded(
                [sys.executable, "-m", f"pipeline.sandbox.{service}", "--port", port, *arguments],
                log=self.directory / f"{service}.log",
                remove=self.directory,
            )
        for service in services:
            self._ports[service] = self._port_of(service)

    def _port_of(self, service: Service) -> int:
        process = self._processes[service]

        def announced() -> bool:
            return not process.running or process.log.read_bytes().endswith(b"}\n")

        until(announced, timeout=_CALL_SECONDS, what=f"the stand-in for {service}")
        if not process.running:
            raise StartFailed(f"the stand-in for {service} ended: {process.log_tail()}")
        return int(json.loads(process.log_tail(1))["port"])

    def _call(self, service: Service, path: str, document: object | None) -> dict[str, Any]:
        body = document if isinstance(document, bytes | None) else json.dumps(document).encode()
        request = urllib.request.Request(self.address(service) + path, data=body)  # noqa: S310 - our own process
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_CALL_SECONDS) as answer:
            answered: dict[str, Any] = json.load(answer)
        return answered
