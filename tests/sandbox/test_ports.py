"""A port of the documentation that is taken is said, with what took it and which port is used instead."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import suppress

import pytest

from pipeline.sandbox import ports
from pipeline.sandbox.processes import free_port
from tests.sandbox.terminal import Terminal
from tests.sandbox.test_services import LAST, pasted
from tests.support import Broker


class Said:
    """A display that only notes the steps."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)


def test_free_ports_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    for name, choose in (("KAFKA_PORT", ports.kafka_port), ("OPS_PORT", ports.ops_port)):
        usual = free_port()
        monkeypatch.setattr(ports, name, usual)
        assert choose(said) == usual  # type: ignore[arg-type]
    assert said.steps == []


def test_another_kafka_is_said(kafka: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    said, usual = Said(), int(kafka.bootstrap_servers.rpartition(":")[2])
    monkeypatch.setattr(ports, "KAFKA_PORT", usual)
    port = ports.kafka_port(said)  # type: ignore[arg-type]
    assert port != usual
    assert said.steps == [
        f"Port {usual} is taken by another Kafka. Kafka starts on port {port}; the commands below name it."
    ]


def test_a_program_that_is_no_kafka_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        usual = taken.getsockname()[1]
        monkeypatch.setattr(ports, "KAFKA_PORT", usual)
        monkeypatch.setattr(ports, "OPS_PORT", usual)
        monkeypatch.setattr("pipeline.sandbox.existing_kafka._ANSWER_SECONDS", 0.1)
        port, other = ports.kafka_port(said), ports.ops_port(said)  # type: ignore[arg-type]
    assert said.steps == [
        f"Port {usual} is taken by a program that is no Kafka. "
        f"Kafka starts on port {port}; the commands below name it.",
        f"Port {usual} is taken. The worker's /ready, /health and /metrics are on port {other}.",
    ]


def test_what_the_sandbox_prints_follows_the_ports(pipeline: Callable[..., Terminal]) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Another program that listens there serves as well.
        with suppress(OSError):
            taken.bind(("127.0.0.1", ports.OPS_PORT))
            taken.listen()
        terminal = pipeline("sandbox")
        said = terminal.read_until(LAST)
        told = re.search(r"^Port 8088 is taken\. .* on port (\d+)\.$", said, re.MULTILINE)
        assert told is not None
        assert pasted(said)["PIPELINE_OPS__PORT"] == told[1]
        assert terminal.interrupt() < 10
